use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg, OFlag};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, oneshot},
    time::timeout,
};

use super::LedgerError;

/// Longer than any step of another attachd may take.
const LIMIT: Duration = Duration::from_mins(5);

/// A lock that is held until this is dropped, or the process ends, however it ends.
#[derive(Debug)]
#[expect(dead_code, reason = "held for their Drop, the file's first")]
pub struct Guard(Flock<File>, OwnedMutexGuard<()>);

/// Locks on files. Within this process they are waited for without a thread: hundreds of volumes
/// of one target may wait at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Locks(Arc<Mutex<HashMap<PathBuf, Weak<AsyncMutex<()>>>>>);

impl Locks {
    /// Takes `flock` on a file: it excludes other processes and other tasks of this one alike.
    pub(super) async fn acquire(&self, path: PathBuf, what: String) -> Result<Guard, LedgerError> {
        let locked = timeout(LIMIT, async {
            let own = self.own(&path).lock_owned().await;
            Ok(Guard(flock(path).await?, own))
        });
        let late = || LedgerError::Locked { what, seconds: LIMIT.as_secs() };
        locked.await.unwrap_or_else(|_| Err(late()))
    }

    /// Whether somebody has a lock now. Makes no file.
    pub(super) fn is_held(path: &Path) -> Result<bool, LedgerError> {
        let io = |source| LedgerError::Io { doing: "looking at", path: path.to_owned(), source };
        let file = OpenOptions::new().write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(io(error)),
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(false),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(io(errno.into())),
        }
    }

    fn own(&self, path: &PathBuf) -> Arc<AsyncMutex<()>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = all.get(path).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(AsyncMutex::new(()));
        all.insert(path.clone(), Arc::downgrade(&lock));
        lock
    }
}

/// The kernel's wait is a blocking call without a time limit, so a thread of its own does it; where
/// nobody waits any more when it gets the lock, it gives it back.
async fn flock(path: PathBuf) -> Result<Flock<File>, LedgerError> {
    let io =
        |path: &PathBuf, source| LedgerError::Io { doing: "locking", path: path.clone(), source };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&path)
        .map_err(|source| io(&path, source))?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(io(&path, errno.into())),
    };
    let (sender, receiver) = oneshot::channel();
    thread::spawn(move || {
        let locked = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
        // Dropped, and so unlocked, where the receiver is gone.
        drop(sender.send(locked));
    });
    match receiver.await {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err(errno)) => Err(io(&path, errno.into())),
        Err(_) => Err(io(&path, std::io::Error::other("the thread that waited for it ended"))),
    }
}
