use std::{fs::OpenOptions, path::PathBuf, thread, time::Duration};

use nix::fcntl::{Flock, FlockArg};
use tokio::{sync::oneshot, time::timeout};

use super::LedgerError;

/// Longer than any step of another attachd may take.
const LIMIT: Duration = Duration::from_secs(300);

/// A lock that is held until this is dropped, or the process ends, however it ends.
#[derive(Debug)]
pub struct Guard(#[expect(dead_code, reason = "held for its Drop")] Flock<std::fs::File>);

/// Takes `flock` on a file: it excludes other processes and other tasks of this one alike.
///
/// The kernel's wait is a blocking call without a time limit, so a thread of its own does it; where
/// nobody waits any more when it gets the lock, it gives it back.
pub(super) async fn acquire(path: PathBuf, what: String) -> Result<Guard, LedgerError> {
    let io =
        |path: &PathBuf, source| LedgerError::Io { doing: "locking", path: path.clone(), source };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|source| io(&path, source))?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(Guard(lock)),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(io(&path, errno.into())),
    };
    let (sender, receiver) = oneshot::channel();
    thread::spawn(move || {
        let locked = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
        // Dropped, and so unlocked, where the receiver is gone.
        drop(sender.send(locked));
    });
    match timeout(LIMIT, receiver).await {
        Ok(Ok(Ok(lock))) => Ok(Guard(lock)),
        Ok(Ok(Err(errno))) => Err(io(&path, errno.into())),
        Ok(Err(_)) | Err(_) => Err(LedgerError::Locked { what, seconds: LIMIT.as_secs() }),
    }
}
