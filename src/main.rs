//! The `attachd` binary.

use std::{process::ExitCode, time::Duration};

/// A system call on a device that hangs must not keep the process from ending.
const LAST_CALLS: Duration = Duration::from_millis(200);

/// attachd waits far more than it computes: a node of many cores needs no thread, and no heap, for each.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    // Before there is a second thread: it changes the environment.
    attachd::cli::complete();
    if let Err(error) = attachd::cli::keep_private() {
        anstream::eprintln!("attachd: can't keep its memory private: {error}");
        return ExitCode::FAILURE;
    }
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    let runtime = match threads.worker_threads(WORKERS).enable_all().build() {
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
