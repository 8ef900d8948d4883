//! The `attachd` binary.

use std::{process::ExitCode, time::Duration};

/// A system call on a device that hangs must not keep the process from ending.
const LAST_CALLS: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    // Before there is a second thread: it changes the environment.
    attachd::cli::complete();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            anstream::eprintln!("attachd: can't start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(attachd::cli::main());
    runtime.shutdown_timeout(LAST_CALLS);
    code
}
