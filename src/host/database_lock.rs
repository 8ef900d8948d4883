//! The lock of open-iscsi's database: `/run/lock/iscsi/lock.write`, a hard link to `lock` beside it.
//!
//! Whoever makes the link has the lock; the others try again every 10 ms, for 30 s (`idbm_lock()`).
//! An iscsiadm that is killed leaves the link behind, and every later one waits in vain.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::HostError;

const LOCK_DIRECTORY: &str = "run/lock/iscsi";
const LOCK: &str = "lock.write";
/// How often the lock is tried, as in `idbm_lock()`.
const LOCK_STEP: Duration = Duration::from_millis(10);
/// How long the lock is waited for; iscsiadm itself waits 30 s.
const LOCK_LIMIT: Duration = Duration::from_secs(15);
/// A lock that is older, and without a living iscsiadm, was left behind by one that was killed.
/// iscsiadm holds it for milliseconds.
const LOCK_STALE: Duration = Duration::from_secs(3);

/// The database's lock, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Lock(PathBuf);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Takes the database's lock.
pub(crate) async fn take(host_root: &Path) -> Result<Lock, HostError> {
    let directory = host_root.join(LOCK_DIRECTORY);
    let (file, link) = (directory.join("lock"), directory.join(LOCK));
    match fs::create_dir(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(HostError::io("make", directory)(error));
        }
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&file)
        .map_err(HostError::io("open", &file))?;
    let attempts = async {
        loop {
            match fs::hard_link(&file, &link) {
                Ok(()) => return Ok(Lock(link.clone())),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(HostError::io("lock", &link)(error)),
            }
            remove_stale(host_root);
            tokio::time::sleep(LOCK_STEP).await;
        }
    };
    match tokio::time::timeout(LOCK_LIMIT, attempts).await {
        Ok(result) => result,
        Err(_) => Err(HostError::DatabaseLocked { path: link, seconds: LOCK_LIMIT.as_secs() }),
    }
}

/// Removes a lock that nobody holds any more. Its inode's change time is the time of the link.
pub(crate) fn remove_stale(host_root: &Path) {
    let link = host_root.join(LOCK_DIRECTORY).join(LOCK);
    let is_old = || {
        let taken = fs::metadata(&link).ok().and_then(|meta| u64::try_from(meta.ctime()).ok());
        let taken = taken.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let age = taken.and_then(|taken| SystemTime::now().duration_since(taken).ok());
        age.is_some_and(|age| age > LOCK_STALE)
    };
    // Looked at once more at the end: another one may have removed it, and taken it anew.
    if is_old() && no_iscsiadm_runs(host_root) && is_old() {
        tracing::warn!(path = %link.display(), "removing a lock that a killed iscsiadm left behind");
        let _ = fs::remove_file(link);
    }
}

/// Whether the node's processes can be seen (iscsid is among them), and none is an iscsiadm.
fn no_iscsiadm_runs(host_root: &Path) -> bool {
    let processes = fs::read_dir(host_root.join("proc")).into_iter().flatten();
    let names: Vec<String> = processes
        .filter_map(|process| fs::read_to_string(process.ok()?.path().join("comm")).ok())
        .collect();
    let runs = |name| names.iter().any(|comm| comm.trim_end() == name);
    runs("iscsid") && !runs("iscsiadm")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in ["run/lock", "proc/1"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        fs::write(root.path().join("proc/1/comm"), "iscsid\n").unwrap();
        root
    }

    #[tokio::test]
    async fn the_lock_excludes_and_is_free_afterwards() {
        let root = root();
        let lock = take(root.path()).await.unwrap();
        let link = root.path().join("run/lock/iscsi/lock.write");
        assert!(link.exists());
        // As iscsiadm tries it.
        let file = root.path().join("run/lock/iscsi/lock");
        assert!(fs::hard_link(&file, &link).is_err());
        let second = take(root.path());
        let waited = tokio::time::timeout(Duration::from_millis(100), second).await;
        assert!(waited.is_err(), "two holders");
        drop(lock);
        assert!(!link.exists());
        take(root.path()).await.unwrap();
    }

    #[tokio::test]
    async fn a_lock_that_a_killed_iscsiadm_left_is_removed_but_no_living_ones() {
        let root = root();
        drop(take(root.path()).await.unwrap());
        let (file, link) = (
            root.path().join("run/lock/iscsi/lock"),
            root.path().join("run/lock/iscsi/lock.write"),
        );
        fs::hard_link(&file, &link).unwrap();
        remove_stale(root.path());
        assert!(link.exists(), "it is young");
        tokio::time::sleep(LOCK_STALE + Duration::from_millis(1100)).await;
        fs::create_dir(root.path().join("proc/2")).unwrap();
        fs::write(root.path().join("proc/2/comm"), "iscsiadm\n").unwrap();
        remove_stale(root.path());
        assert!(link.exists(), "its holder may live");
        fs::remove_dir_all(root.path().join("proc/2")).unwrap();
        remove_stale(root.path());
        assert!(!link.exists());
    }
}
