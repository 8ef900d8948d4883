//! What this process lets others see of itself.

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
    stat::{Mode, umask},
};

/// What attachd creates is never for others to write, whatever it was started with.
const OTHERS_WRITE: Mode = Mode::S_IWGRP.union(Mode::S_IWOTH);

/// Keeps the secrets in this process's memory from a core dump and from other processes of its user.
/// Call it while there is one thread.
///
/// # Errors
/// The kernel refuses.
pub fn keep_memory_private() -> std::io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // Also where the core is piped to a program, which the limit doesn't keep from it.
    prctl::set_dumpable(false)?;
    umask(umask(Mode::empty()).union(OTHERS_WRITE));
    Ok(())
}
