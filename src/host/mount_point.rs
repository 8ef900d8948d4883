//! Directories of mounts, held by open file descriptors.
//!
//! Between a look at a path and a system call on it, somebody may put a link or another directory in
//! its place. So every component is opened without following a link (`openat2(2)`), what is done is
//! done to the open directory, and after a mount its path must lead to it.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MntFlags, umount2},
    sys::stat::{FileStat, Mode, fstat, fstatat, major, minor, mkdirat},
    unistd::{UnlinkatFlags, syncfs, unlinkat},
};

use crate::model::DeviceNumber;

use super::HostError;

/// Directories that attachd makes: nothing for others.
const PRIVATE: Mode = Mode::from_bits_truncate(0o750);

/// A directory that volumes are mounted on, open.
#[derive(Debug)]
pub(super) struct MountPoint {
    directory: OwnedFd,
    root: PathBuf,
    target: PathBuf,
}

impl MountPoint {
    /// Opens a directory below one of the roots; makes what isn't there. No component of its path may
    /// be a link, and nothing that happens meanwhile leads out of the root.
    pub(super) fn open(roots: &[PathBuf], target: &Path) -> Result<Self, HostError> {
        let root = root_of(roots, target).ok_or_else(|| unusable(target, OUTSIDE))?;
        make(target)?;
        let directory = below(root, target).map_err(|errno| refused(target, errno))?;
        Ok(Self { directory, root: root.to_owned(), target: target.to_owned() })
    }

    /// The path that it was opened by.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// A name for the open directory itself, wherever it is moved.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
    }

    /// Whether the path leads to a file system of this device now.
    pub(super) fn leads_to(&self, number: DeviceNumber) -> bool {
        let mounted = below(&self.root, &self.target).and_then(fstat);
        mounted.is_ok_and(|stat| number_of(&stat) == number)
    }

    /// Takes away what was mounted on the open directory.
    pub(super) fn undo(&self) -> Result<(), Errno> {
        umount2(&self.path(), MntFlags::empty())
    }
}

/// The parent of a mount path, open, and the name in it.
#[derive(Debug)]
pub(super) struct Parent {
    directory: OwnedFd,
    name: PathBuf,
    target: PathBuf,
}

impl Parent {
    /// None where it isn't there.
    pub(super) fn open(target: &Path) -> Result<Option<Self>, HostError> {
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(unusable(target, "it names no directory"));
        };
        match open_real(parent) {
            Ok(directory) => {
                let (name, target) = (PathBuf::from(name), target.to_owned());
                Ok(Some(Self { directory, name, target }))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(refused(target, errno)),
        }
    }

    /// The device that is seen there. None where that can't be told: a file system that was shut down
    /// tells nothing.
    pub(super) fn device(&self) -> Option<DeviceNumber> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT;
        fstatat(&self.directory, &self.name, flags).ok().as_ref().map(number_of)
    }

    /// Writes out what the kernel holds back of the file system there.
    pub(super) fn write_out(&self) -> Result<(), Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags).resolve(BENEATH);
        syncfs(openat2(&self.directory, &self.name, how)?)
    }

    /// Unmounts, as the flags say; follows no link.
    pub(super) fn unmount(&self, how: MntFlags) -> Result<(), Errno> {
        let directory = format!("/proc/self/fd/{}", self.directory.as_raw_fd());
        umount2(&Path::new(&directory).join(&self.name), how | MntFlags::UMOUNT_NOFOLLOW)
    }

    /// Removes the directory, if it is empty. Says whether it was there and is gone.
    pub(super) fn remove(&self) -> Result<bool, HostError> {
        match unlinkat(&self.directory, &self.name, UnlinkatFlags::RemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
            Err(errno) => Err(HostError::io("remove", &self.target)(errno.into())),
        }
    }
}

const OUTSIDE: &str = "it is not below an allowed root; see --allowed-root";

/// Below one directory, through no link.
const BENEATH: ResolveFlag = ResolveFlag::RESOLVE_BENEATH
    .union(ResolveFlag::RESOLVE_NO_SYMLINKS)
    .union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

/// The root that a path is below of, the deepest.
pub(super) fn root_of<'a>(roots: &'a [PathBuf], target: &Path) -> Option<&'a Path> {
    let is_plain =
        target.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let below = |root: &&PathBuf| is_plain && target != *root && target.starts_with(root);
    roots.iter().filter(below).max_by_key(|root| root.components().count()).map(PathBuf::as_path)
}

fn how() -> OpenHow {
    OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
}

/// A directory through no link.
fn open_real(path: &Path) -> Result<OwnedFd, Errno> {
    if !path.is_absolute() {
        return Err(Errno::EINVAL);
    }
    let no_links = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(AT_FDCWD, path, how().resolve(no_links))
}

fn below(root: &Path, target: &Path) -> Result<OwnedFd, Errno> {
    let rest = target.strip_prefix(root).map_err(|_| Errno::EXDEV)?;
    openat2(open_real(root)?, rest, how().resolve(BENEATH))
}

/// Makes every component that isn't there, each in its open parent.
fn make(target: &Path) -> Result<(), HostError> {
    let mut directory = open_real(Path::new("/")).map_err(|errno| refused(target, errno))?;
    for part in target.components() {
        let Component::Normal(name) = part else { continue };
        let next = match open_child(&directory, name.as_ref()) {
            Err(Errno::ENOENT) => {
                match mkdirat(&directory, name, PRIVATE) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(HostError::io("make", target)(errno.into())),
                }
                open_child(&directory, name.as_ref())
            }
            opened => opened,
        };
        directory = next.map_err(|errno| refused(target, errno))?;
    }
    Ok(())
}

fn open_child(directory: impl AsFd, name: &Path) -> Result<OwnedFd, Errno> {
    openat2(directory, name, how().resolve(BENEATH))
}

fn number_of(stat: &FileStat) -> DeviceNumber {
    let (major, minor) = (major(stat.st_dev), minor(stat.st_dev));
    DeviceNumber {
        major: u32::try_from(major).unwrap_or(u32::MAX),
        minor: u32::try_from(minor).unwrap_or(u32::MAX),
    }
}

fn unusable(target: &Path, why: &str) -> HostError {
    HostError::MountPoint { path: target.to_owned(), why: why.to_owned() }
}

fn refused(target: &Path, errno: Errno) -> HostError {
    match errno {
        Errno::ELOOP => unusable(target, "a component of it is a symbolic link"),
        Errno::ENOTDIR => unusable(target, "it is not a directory"),
        Errno::EXDEV => unusable(target, OUTSIDE),
        errno => HostError::io("open", target)(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use nix::fcntl::{RenameFlags, renameat2};

    use super::*;

    fn reason(roots: &[PathBuf], target: &Path) -> &'static str {
        MountPoint::open(roots, target).unwrap_err().reason()
    }

    #[test]
    fn a_mount_point_is_made_private_and_may_not_be_a_link() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().to_owned()];
        let target = root.path().join("volumes/data");
        MountPoint::open(&roots, &target).unwrap();
        let mode = fs::metadata(&target).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o027, 0, "{mode:o}");
        let link = root.path().join("link");
        symlink(&target, &link).unwrap();
        assert_eq!(reason(&roots, &link.join("below")), "UnusableMountPoint");
        assert_eq!(reason(&roots, &link), "UnusableMountPoint");
        assert!(!target.join("below").exists(), "a directory was made through a link");
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(reason(&roots, &file), "UnusableMountPoint");
    }

    #[test]
    fn nothing_is_made_or_opened_outside_the_roots() {
        let root = tempfile::tempdir().unwrap();
        let (inside, outside) = (root.path().join("in"), root.path().join("out"));
        let roots = [inside.clone(), inside.join("deeper")];
        for target in [
            outside.join("x"),
            inside.clone(),
            inside.join("../out/x"),
            root.path().join("in-not"),
            PathBuf::from("relative"),
            PathBuf::from("/"),
        ] {
            assert_eq!(reason(&roots, &target), "UnusableMountPoint", "{}", target.display());
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "something was made");
        assert_eq!(root_of(&roots, &inside.join("deeper/x")), Some(&*inside.join("deeper")));
    }

    #[test]
    fn only_an_empty_directory_is_removed_and_never_through_a_link() {
        let root = tempfile::tempdir().unwrap();
        let (full, empty) = (root.path().join("full"), root.path().join("full/empty"));
        fs::create_dir_all(&empty).unwrap();
        symlink(&full, root.path().join("link")).unwrap();
        let remove = |path: &Path| Parent::open(path).unwrap().unwrap().remove();
        assert!(!remove(&full).unwrap());
        assert_eq!(
            Parent::open(&root.path().join("link/empty")).unwrap_err().reason(),
            "UnusableMountPoint"
        );
        assert!(remove(&empty).unwrap());
        assert!(!remove(&empty).unwrap());
        assert!(Parent::open(&root.path().join("none/x")).unwrap().is_none());
    }

    #[test]
    fn a_directory_that_is_swapped_for_a_link_all_the_time_never_leads_outside() {
        let base = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(base.path()).unwrap();
        let (root, outside) = (base.join("root"), base.join("outside"));
        fs::create_dir_all(root.join("a")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        symlink(&outside, root.join("b")).unwrap();
        let (enough, roots) = (AtomicBool::new(false), [root.clone()]);
        let (mut opened, mut refused) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let (a, b) = (root.join("a"), root.join("b"));
                    renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE).unwrap();
                }
            });
            for round in 0..100_000 {
                let target = root.join(format!("a/{}", round % 10));
                match MountPoint::open(&roots, &target) {
                    Ok(point) => {
                        opened += 1;
                        let there = fs::read_link(point.path()).unwrap();
                        assert!(there.starts_with(&root), "{}", there.display());
                    }
                    Err(_) => refused += 1,
                }
                if round >= 2000 && opened > 100 && refused > 100 {
                    break;
                }
            }
            enough.store(true, Ordering::Relaxed);
        });
        assert!(opened > 100 && refused > 100, "no race: {opened} opened, {refused} refused");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made outside");
    }
}
