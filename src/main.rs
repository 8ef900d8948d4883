//! The `attachd` binary.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    attachd::cli::main().await
}
