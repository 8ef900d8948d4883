//! The lock of open-iscsi's database: `/run/lock/iscsi/lock.write`, a hard link to `lock` beside it.
//!
//! Whoever makes the link has the lock; the others try again every 10 ms, for 30 s (`idbm_lock()`).
//! An iscsiadm that is killed leaves the link behind, and every later one waits in vain.
//!
//! attachd links a file of its own, which does as well, and holds a `flock` on it: where nobody does,
//! the attachd that made it is dead.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag},
    unistd::linkat,
};

use super::HostError;

const LOCK_DIRECTORY: &str = "run/lock/iscsi";
const LOCK: &str = "lock.write";
/// What an iscsiadm links.
const FILE: &str = "lock";
/// How often the lock is tried, as in `idbm_lock()`.
const LOCK_STEP: Duration = Duration::from_millis(10);
/// How long the lock is waited for: longer than an iscsiadm waits on a busy node (30 s, in 3000 steps).
const LOCK_LIMIT: Duration = Duration::from_mins(1);
/// A lock that is older, and without a living iscsiadm, was left behind by one that was killed.
/// iscsiadm holds it for milliseconds.
const LOCK_STALE: Duration = Duration::from_secs(3);

/// In so many attempts one looks whether the lock is stale.
const STALE_STEPS: u32 = 20;

/// The database's lock, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    link: PathBuf,
    #[expect(dead_code, reason = "held for its Drop, after the link is gone")]
    alive: Flock<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.link);
    }
}

/// Takes the database's lock.
pub(crate) async fn take(host_root: &Path) -> Result<Lock, HostError> {
    let directory = host_root.join(LOCK_DIRECTORY);
    let link = directory.join(LOCK);
    match fs::create_dir(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(HostError::io("make", directory)(error));
        }
        _ => {}
    }
    // Without a name, so that nothing is left of it.
    let own = OpenOptions::new()
        .write(true)
        .mode(0o600)
        .custom_flags(OFlag::O_TMPFILE.bits())
        .open(&directory)
        .and_then(|file| flocked(file).map_err(io::Error::from))
        .map_err(HostError::io("make a lock in", &directory))?;
    let path = format!("/proc/self/fd/{}", own.as_raw_fd());
    let attempts = async {
        let mut attempt = 0_u32;
        loop {
            let follow = AtFlags::AT_SYMLINK_FOLLOW;
            match linkat(AT_FDCWD, path.as_str(), AT_FDCWD, &link, follow) {
                Ok(()) => return Ok(()),
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(HostError::io("lock", &link)(error.into())),
            }
            // It looks at every process.
            if attempt.is_multiple_of(STALE_STEPS) {
                remove_stale(host_root);
            }
            tokio::time::sleep(LOCK_STEP).await;
            attempt = attempt.wrapping_add(1);
        }
    };
    match tokio::time::timeout(LOCK_LIMIT, attempts).await {
        Ok(Ok(())) => Ok(Lock { link, alive: own }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(HostError::DatabaseLocked { path: link, seconds: LOCK_LIMIT.as_secs() }),
    }
}

fn flocked(file: File) -> Result<Flock<File>, Errno> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)
}

/// Removes a lock that a dead attachd left.
fn remove_dead(directory: &Path) {
    let link = directory.join(LOCK);
    let Ok(file) = File::open(&link) else { return };
    let opened = inode(file.metadata());
    // An iscsiadm has taken it meanwhile. It holds no `flock`.
    if opened == inode(fs::metadata(directory.join(FILE))) {
        return;
    }
    // Whoever else finds it dead must wait for this one, so that nobody takes a new lock away.
    if let Ok(_file) = flocked(file)
        && opened == inode(fs::metadata(&link))
    {
        tracing::warn!(path = %link.display(), "removing a lock that a killed attachd left behind");
        let _ = fs::remove_file(&link);
    }
}

/// Removes a lock that nobody holds any more. Its inode's change time is the time of the link: an
/// iscsiadm that started later only waits for it.
pub(crate) fn remove_stale(host_root: &Path) {
    let directory = host_root.join(LOCK_DIRECTORY);
    let link = directory.join(LOCK);
    if inode(fs::metadata(&link)) != inode(fs::metadata(directory.join(FILE))) {
        return remove_dead(&directory);
    }
    let is_old = |taken: &Duration| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(*taken) > LOCK_STALE
    };
    let Some(taken) = taken(&link).filter(is_old) else { return };
    // Looked at once more at the end: another one may have removed it, and taken it anew.
    if no_iscsiadm_since(host_root, taken) && self::taken(&link) == Some(taken) {
        tracing::warn!(path = %link.display(), "removing a lock that a killed iscsiadm left behind");
        let _ = fs::remove_file(link);
    }
}

/// What a name stands for; `None` where it stands for nothing.
fn inode(metadata: io::Result<fs::Metadata>) -> Option<(u64, u64)> {
    metadata.ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// When the lock was taken, since 1970.
fn taken(link: &Path) -> Option<Duration> {
    let meta = fs::metadata(link).ok()?;
    let seconds = u64::try_from(meta.ctime()).ok()?;
    Some(Duration::new(seconds, u32::try_from(meta.ctime_nsec()).ok()?))
}

/// Whether the node's processes can be seen (iscsid is among them), and no iscsiadm has been there
/// since the lock was taken.
fn no_iscsiadm_since(host_root: &Path, taken: Duration) -> bool {
    let Some(booted) = booted(host_root) else { return false };
    let (mut iscsid, mut holder) = (false, false);
    for process in fs::read_dir(host_root.join("proc")).into_iter().flatten().flatten() {
        let Ok(stat) = fs::read_to_string(process.path().join("stat")) else { continue };
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'))
        else {
            continue;
        };
        iscsid |= name == "iscsid";
        // proc_pid_stat(5): the 22nd field, in clock ticks after the boot.
        let ticks = rest.split_whitespace().nth(19).and_then(|field| field.parse::<u64>().ok());
        let started = ticks.map(|ticks| {
            booted + Duration::from_millis(ticks * 1000 / procfs::ticks_per_second().max(1))
        });
        // Clock ticks are coarse.
        holder |= name == "iscsiadm" && started.is_none_or(|at| at <= taken + LOCK_STEP * 10);
    }
    iscsid && !holder
}

/// When the node was booted, since 1970.
fn booted(host_root: &Path) -> Option<Duration> {
    let uptime = fs::read_to_string(host_root.join("proc/uptime")).ok()?;
    let uptime = uptime.split_whitespace().next()?.parse().ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    now.checked_sub(Duration::try_from_secs_f64(uptime).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in ["run/lock", "proc/1"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        process(&root, 1, "iscsid", Duration::from_hours(1));
        fs::copy("/proc/uptime", root.path().join("proc/uptime")).unwrap();
        root
    }

    /// A process that is so old.
    fn process(root: &tempfile::TempDir, id: u32, name: &str, age: Duration) {
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
        let started = Duration::from_secs_f64(uptime).saturating_sub(age).as_millis();
        let ticks = started * u128::from(procfs::ticks_per_second()) / 1000;
        let directory = root.path().join(format!("proc/{id}"));
        fs::create_dir_all(&directory).unwrap();
        let before = "0 ".repeat(18);
        fs::write(directory.join("stat"), format!("{id} ({name}) S {before}{ticks} 0 0\n"))
            .unwrap();
    }

    #[tokio::test]
    async fn the_lock_excludes_and_is_free_afterwards() {
        let root = root();
        let lock = take(root.path()).await.unwrap();
        let directory = root.path().join("run/lock/iscsi");
        let link = directory.join("lock.write");
        // As iscsiadm tries it.
        fs::write(directory.join("lock"), "").unwrap();
        assert!(fs::hard_link(directory.join("lock"), &link).is_err());
        let second = take(root.path());
        let waited = tokio::time::timeout(LOCK_STALE + LOCK_STALE / 2, second).await;
        assert!(waited.is_err(), "two holders");
        drop(lock);
        assert!(!link.exists());
        drop(take(root.path()).await.unwrap());
        let left: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"]);
    }

    #[tokio::test]
    async fn a_lock_that_a_killed_attachd_left_is_removed_at_once() {
        let root = root();
        let lock = take(root.path()).await.unwrap();
        // Killed, it doesn't remove the link.
        let (link, kept) = (lock.link.clone(), root.path().join("kept"));
        fs::hard_link(&link, &kept).unwrap();
        drop(lock);
        fs::hard_link(&kept, &link).unwrap();
        process(&root, 2, "iscsiadm", LOCK_STALE * 2);
        let taken = tokio::time::timeout(LOCK_STALE / 3, take(root.path())).await;
        taken.expect("it waited").unwrap();
    }

    #[tokio::test]
    async fn a_lock_that_an_iscsiadm_takes_meanwhile_is_not_taken_for_a_dead_attachds() {
        let root = root();
        drop(take(root.path()).await.unwrap());
        let directory = root.path().join("run/lock/iscsi");
        fs::write(directory.join("lock"), "").unwrap();
        fs::hard_link(directory.join("lock"), directory.join("lock.write")).unwrap();
        remove_dead(&directory);
        assert!(directory.join("lock.write").exists());
    }

    #[tokio::test]
    async fn a_lock_that_a_killed_iscsiadm_left_is_removed_but_no_living_ones() {
        let root = root();
        drop(take(root.path()).await.unwrap());
        fs::write(root.path().join("run/lock/iscsi/lock"), "").unwrap();
        let (file, link) = (
            root.path().join("run/lock/iscsi/lock"),
            root.path().join("run/lock/iscsi/lock.write"),
        );
        fs::hard_link(&file, &link).unwrap();
        remove_stale(root.path());
        assert!(link.exists(), "it is young");
        tokio::time::sleep(LOCK_STALE + Duration::from_millis(100)).await;
        process(&root, 2, "iscsiadm", LOCK_STALE * 2);
        process(&root, 3, "iscsiadm", LOCK_STALE / 2);
        fs::copy("/proc/uptime", root.path().join("proc/uptime")).unwrap();
        remove_stale(root.path());
        assert!(link.exists(), "its holder may live");
        // One that came later waits for it, as attachd does.
        fs::remove_dir_all(root.path().join("proc/2")).unwrap();
        remove_stale(root.path());
        assert!(!link.exists());
    }
}
