//! Mounts and unmounts by the system calls themselves.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount},
};

use crate::model::{DeviceId, DeviceName, DeviceNumber, Filesystem, MountEntry};

use super::{
    Applied, HostError, MountTarget,
    blocking::{self, Blocking},
    mount_point::{MountPoint, Parent, root_of},
    mountinfo,
    openers::Openers,
    pinned::pin,
    propagation::Propagation,
    sysfs::{Sysfs, map_node},
    xfs_twin::mounted_twin,
};

/// The replay of a large journal takes its time.
const MOUNT_LIMIT: Duration = Duration::from_mins(5);
/// An unmount writes everything out first.
const UNMOUNT_LIMIT: Duration = Duration::from_mins(1);

/// A look at directories.
const LOOK_LIMIT: Duration = Duration::from_secs(20);

/// Mount options that are flags of `mount(2)`, and whether they set or clear one.
const FLAGS: [(&str, MsFlags, bool); 20] = [
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("nodev", MsFlags::MS_NODEV, true),
    ("dev", MsFlags::MS_NODEV, false),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("atime", MsFlags::MS_NOATIME, false),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("norelatime", MsFlags::MS_RELATIME, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("lazytime", MsFlags::MS_LAZYTIME, true),
    ("nolazytime", MsFlags::MS_LAZYTIME, false),
];

/// Options for `mount(8)` and `systemd`, which the kernel doesn't know.
const FOR_USERSPACE: [&str; 9] =
    ["defaults", "auto", "noauto", "user", "nouser", "users", "_netdev", "nofail", "owner"];

/// The mounts of this node.
#[derive(Debug, Clone)]
pub(crate) struct Mounts {
    pub(crate) roots: Vec<PathBuf>,
    pub(crate) dev: PathBuf,
    pub(crate) sysfs: Sysfs,
    pub(crate) openers: Openers,
    /// Where attachd is in another mount namespace than the host.
    pub(crate) propagation: Option<Propagation>,
    pub(crate) blocking: Blocking,
}

impl Mounts {
    /// Mounts a device, unless exactly this is mounted there already.
    pub(crate) async fn mount(
        &self,
        device: &DeviceId,
        filesystem: Filesystem,
        target: &Path,
        read_only: bool,
        options: &[String],
    ) -> Result<Applied, HostError> {
        let (flags, data) = parse_options(options, read_only);
        let (mounts, device, path) = (self.clone(), device.clone(), target.to_owned());
        let doing = format!("mounting {device} on {}", target.display());
        let work = move || mounts.mount_now(&device, filesystem, &path, flags, &data);
        let changed = self.blocking.once(doing, MOUNT_LIMIT, work).await?;
        Ok(Applied { changed, failures: Vec::new() })
    }

    fn mount_now(
        &self,
        device: &DeviceId,
        filesystem: Filesystem,
        target: &Path,
        flags: MsFlags,
        data: &str,
    ) -> Result<bool, HostError> {
        let number = Some(device.number);
        if let Some(there) = self.mounted_at(target)? {
            if Some(there.number) == number {
                return Ok(false);
            }
            let by = vec![format!("{} ({})", there.source, there.number)];
            return Err(HostError::Busy { what: format!("mount point {}", target.display()), by });
        }
        let point = MountPoint::open(&self.roots, target)?;
        let _pinned = pin(&self.dev, &self.sysfs, device)?;
        let device = &device.name;
        let source = self.stable_path(device, number);
        let data = Some(data).filter(|data| !data.is_empty());
        let mounted = mount(Some(&source), &point.path(), Some(filesystem.name()), flags, data);
        mounted.map_err(|errno| {
            self.twin(errno, device, number, filesystem).unwrap_or_else(|| HostError::Mount {
                device: device.clone(),
                filesystem: filesystem.name(),
                path: target.to_owned(),
                hint: hint(errno, filesystem),
                source: errno.into(),
            })
        })?;
        if !number.is_some_and(|number| point.leads_to(number)) {
            let undone = undone(&point);
            let why = format!(
                "it, or a directory above it, was replaced while the volume was mounted{undone}. See who else writes there"
            );
            return Err(HostError::MountPoint { path: target.to_owned(), why });
        }
        if self.propagation.is_some() {
            self.take_back_unless_on_host(&point, device, number)?;
        }
        Ok(true)
    }

    /// Why the kernel has no better word than EINVAL for a clone of a mounted XFS.
    fn twin(
        &self,
        errno: Errno,
        device: &DeviceName,
        number: Option<DeviceNumber>,
        filesystem: Filesystem,
    ) -> Option<HostError> {
        if (errno, filesystem) != (Errno::EINVAL, Filesystem::Xfs) {
            return None;
        }
        let (path, mounts) = (self.dev.join(device.as_str()), &self.openers.mountinfo);
        let (uuid, other) = mounted_twin(&self.dev, &self.sysfs, mounts, &path, number?)?;
        Some(HostError::XfsTwin { device: device.clone(), uuid, other })
    }

    /// A mount that only attachd sees is none: it ends with attachd, and keeps the device busy until then.
    fn take_back_unless_on_host(
        &self,
        point: &MountPoint,
        device: &DeviceName,
        number: Option<DeviceNumber>,
    ) -> Result<(), HostError> {
        let arrived = self.mounted_at(point.target())?.map(|there| there.number);
        if arrived.is_some() && arrived == number {
            return Ok(());
        }
        Err(HostError::NotPropagated {
            doing: format!("mounting {device} on"),
            path: point.target().to_owned(),
            why: format!("it is not among the host's mounts{}", undone(point)),
        })
    }

    /// The path that the mount table will show: a map by its name where udev has made that node, since
    /// `dm-N` is another map's after a reboot.
    fn stable_path(&self, device: &DeviceName, number: Option<DeviceNumber>) -> PathBuf {
        let node = self.sysfs.map_name(device).zip(number);
        node.and_then(|(name, number)| map_node(&self.dev, &name, number))
            .unwrap_or_else(|| self.dev.join(device.as_str()))
    }

    /// Unmounts what is mounted there; never lazily, never by force.
    pub(crate) async fn unmount(&self, target: &Path) -> Result<Applied, HostError> {
        let (mounts, path) = (self.clone(), target.to_owned());
        let doing = format!("unmounting {}", target.display());
        let work = move || mounts.take_away(&path, MntFlags::empty());
        match self.blocking.once(doing, UNMOUNT_LIMIT, work).await? {
            Unmounted::Done { changed } => Ok(Applied { changed, failures: Vec::new() }),
            Unmounted::Busy(number) => {
                let by = self.openers.of(number).await;
                // The mount itself is no news.
                let own = format!("the mount at {}", target.display());
                let by = by.into_iter().filter(|holder| *holder != own).collect();
                Err(HostError::Busy { what: format!("the mount at {}", target.display()), by })
            }
        }
    }

    /// Takes a mount out of the list though it is used: its file system goes with its last user. For a
    /// volume that can't be reached any more.
    pub(crate) async fn unmount_lazily(&self, target: &Path) -> Result<Applied, HostError> {
        let (mounts, path) = (self.clone(), target.to_owned());
        let doing = format!("unmounting {} lazily", target.display());
        let work = move || mounts.take_away(&path, MntFlags::MNT_DETACH);
        match self.blocking.once(doing, UNMOUNT_LIMIT, work).await? {
            Unmounted::Done { changed } => Ok(Applied { changed, failures: Vec::new() }),
            Unmounted::Busy(_) => {
                let what = format!("the mount at {}", target.display());
                Err(HostError::Busy { what, by: Vec::new() })
            }
        }
    }

    /// With [`MntFlags::MNT_DETACH`] what is held back is not written out before.
    fn take_away(&self, target: &Path, how: MntFlags) -> Result<Unmounted, HostError> {
        let there = self.mounted_at(target)?;
        if let Some(there) = &there {
            // `umount2` would take that away, and leave the volume's.
            if there.number.major == 0 {
                let what = format!("the mount at {}", target.display());
                let by = vec![format!("{} ({}) mounted over it", there.source, there.fs_type)];
                return Err(HostError::Busy { what, by });
            }
            let parent = Parent::open(target)?;
            let unmounted = parent.map_or(Ok(()), |parent| {
                if parent.device().is_some_and(|seen| seen != there.number) {
                    // Not what the list shows there: whatever it is, it isn't ours to unmount.
                    return Err(Errno::EXDEV);
                }
                if how.is_empty() {
                    write_out(&parent, target);
                }
                parent.unmount(how)
            });
            match unmounted {
                Err(Errno::EXDEV)
                    if self.propagation.is_none() && self.mounted_at(target)?.is_some() =>
                {
                    let why = format!(
                        "{} is in the list of mounts there, but the path leads elsewhere: it, or a directory above it, was replaced or mounted over",
                        there.source
                    );
                    return Err(HostError::MountPoint { path: target.to_owned(), why });
                }
                // Somebody else was faster.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT | Errno::EXDEV) => {}
                Err(Errno::EBUSY) => return Ok(Unmounted::Busy(there.number)),
                Err(errno) => return Err(HostError::io("unmount", target)(errno.into())),
            }
            let left = || Ok(self.mounted_at(target)?.map(|left| left.number));
            if self.propagation.is_some() && left()? == Some(there.number) {
                return Err(HostError::NotPropagated {
                    doing: "unmounting".to_owned(),
                    path: target.to_owned(),
                    why: "it is still among the host's mounts".to_owned(),
                });
            }
        }
        Ok(Unmounted::Done { changed: there.is_some() })
    }

    /// Removes an empty directory; one that holds something isn't only ours, and stays.
    pub(crate) async fn remove_directory(&self, target: &Path) -> Result<Applied, HostError> {
        let (path, doing) = (target.to_owned(), format!("removing {}", target.display()));
        let work = move || {
            let removed = Parent::open(&path)?.map_or(Ok(false), |parent| parent.remove())?;
            Ok(Applied { changed: removed, failures: Vec::new() })
        };
        self.blocking.once(doing, LOOK_LIMIT, work).await
    }

    /// What stands at a mount path.
    pub(crate) async fn target(&self, target: &Path) -> Result<MountTarget, HostError> {
        if root_of(&self.roots, target).is_none() {
            let roots: Vec<_> = self.roots.iter().map(|root| root.display().to_string()).collect();
            let why = format!(
                "it is not below an allowed root ({}); see --allowed-root",
                roots.join(", ")
            );
            return Ok(MountTarget::Unusable { why });
        }
        let (mounts, path) = (self.clone(), target.to_owned());
        let doing = format!("looking at {}", target.display());
        blocking::limited(doing, LOOK_LIMIT, move || {
            if let Some(there) = mounts.mounted_at(&path)? {
                let why = format!("{} ({}) is mounted there", there.source, there.fs_type);
                return Ok(MountTarget::Unusable { why });
            }
            let obstacle = mounts.propagation.as_ref().map(|both| both.obstacle(&path));
            match obstacle.transpose()?.flatten() {
                Some(why) => Ok(MountTarget::Unusable { why }),
                None => look_at(&path),
            }
        })
        .await
    }

    /// What is mounted there, whatever it is; where several are, the one that is seen.
    pub(crate) async fn at(&self, target: &Path) -> Result<Option<MountEntry>, HostError> {
        let (mounts, target) = (self.clone(), target.to_owned());
        let doing = "reading mountinfo".to_owned();
        blocking::limited(doing, LOOK_LIMIT, move || mounts.mounted_at(&target)).await
    }

    fn mounted_at(&self, target: &Path) -> Result<Option<MountEntry>, HostError> {
        let mounts = mountinfo::all(&self.openers.mountinfo)?;
        Ok(mounts.into_iter().rev().find(|mount| mount.target == target))
    }
}

/// Writes out what the kernel holds back of a file system, since an unmount doesn't tell that it could
/// not. What failed is lost already, so that nothing is gained by staying mounted: it is only said.
fn write_out(parent: &Parent, target: &Path) {
    if let Err(errno) = parent.write_out() {
        let target = target.display();
        tracing::warn!(
            "could not write out the file system on {target}: {errno}; what was not written yet is lost"
        );
    }
}

/// Takes a mount back; says so only where that fails.
fn undone(point: &MountPoint) -> String {
    match point.undo() {
        Ok(()) => String::new(),
        Err(errno) => format!(", and could not be undone: {errno}"),
    }
}

/// Every component must be a directory itself: a link would take the mount elsewhere, and the mount
/// table would show another path than the one that was asked for.
fn look_at(target: &Path) -> Result<MountTarget, HostError> {
    let unusable = |why: String| Ok(MountTarget::Unusable { why });
    let mut ancestors: Vec<&Path> = target.ancestors().collect();
    ancestors.reverse();
    for part in ancestors {
        match fs::symlink_metadata(part) {
            Ok(seen) if seen.is_symlink() => {
                return unusable(format!("{} is a symbolic link", part.display()));
            }
            Ok(seen) if !seen.is_dir() => {
                return unusable(format!("{} is not a directory", part.display()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(MountTarget::Absent),
            Err(error) => return Err(HostError::io("look at", part)(error)),
        }
    }
    match fs::read_dir(target).map_err(HostError::io("read", target))?.next() {
        None => Ok(MountTarget::EmptyDirectory),
        Some(_) => unusable("the directory is not empty".to_owned()),
    }
}

enum Unmounted {
    Done { changed: bool },
    Busy(DeviceNumber),
}

/// Options as `mount -o` takes them, as flags and data. `read_only` has the last word. What a volume
/// holds may be anybody's: its device nodes and set-user-ID programs count only where that was asked for.
fn parse_options(options: &[String], read_only: bool) -> (MsFlags, String) {
    let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let mut data = Vec::new();
    let words = options.iter().flat_map(|option| option.split(',')).map(str::trim);
    for word in words.filter(|word| !word.is_empty()) {
        if let Some((_, flag, set)) = FLAGS.iter().find(|(name, ..)| *name == word) {
            flags.set(*flag, *set);
        } else if !FOR_USERSPACE.contains(&word) && !word.starts_with("x-") {
            data.push(word);
        }
    }
    if read_only {
        flags.insert(MsFlags::MS_RDONLY);
        // XFS and ext4 write at a mount even then, to replay the log, unless they are kept from it;
        // without the replay the contents may be inconsistent. So only a device that refuses writes
        // (`BLKROSET`) makes them go without, which they do by themselves.
    }
    (flags, data.join(","))
}

fn hint(errno: Errno, filesystem: Filesystem) -> &'static str {
    match (errno, filesystem) {
        (Errno::EBUSY, _) => "the device or the mount point is in use",
        (Errno::EINVAL, Filesystem::Xfs) => {
            "not XFS, an option that XFS doesn't know, or its UUID is mounted already (a clone: use the option nouuid); see dmesg"
        }
        (Errno::EINVAL, Filesystem::Ext4) => {
            "not ext4, or an option that ext4 doesn't know; see dmesg"
        }
        (Errno::EUCLEAN, _) => "the file system is damaged; see dmesg",
        (Errno::EROFS | Errno::EACCES, _) => {
            "the device refuses writes: attach it read-only (mode: ro)"
        }
        (Errno::ENODEV, _) => "the kernel has no support for this file system",
        (Errno::ENOENT, _) => "the device's node is missing",
        (Errno::EPERM, _) => "attachd may not mount (CAP_SYS_ADMIN)",
        _ => "see dmesg for the kernel's reason",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn parsed(options: &[&str], read_only: bool) -> (MsFlags, String) {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        parse_options(&options, read_only)
    }

    #[test]
    fn known_options_become_flags_and_the_file_systems_own_stay_data() {
        let (flags, data) =
            parsed(&["noatime,nodiratime", "discard", "noexec", "nouuid,logbufs=8"], false);
        let asked = MsFlags::MS_NOATIME | MsFlags::MS_NODIRATIME | MsFlags::MS_NOEXEC;
        assert_eq!(flags, asked | MsFlags::MS_NODEV | MsFlags::MS_NOSUID);
        assert_eq!(data, "discard,nouuid,logbufs=8");
        let (flags, data) =
            parsed(&["defaults", "_netdev,x-systemd.automount", "", " ro , rw "], false);
        assert_eq!((flags, data.as_str()), (MsFlags::MS_NODEV | MsFlags::MS_NOSUID, ""));
    }

    #[test]
    fn device_nodes_and_set_user_id_programs_of_a_volume_count_only_where_asked_for() {
        assert_eq!(parsed(&[], false).0, MsFlags::MS_NODEV | MsFlags::MS_NOSUID);
        assert_eq!(parsed(&["dev"], false).0, MsFlags::MS_NOSUID);
        assert_eq!(parsed(&["suid"], false).0, MsFlags::MS_NODEV);
    }

    #[test]
    fn read_only_has_the_last_word() {
        let (flags, _) = parsed(&["rw"], true);
        assert!(flags.contains(MsFlags::MS_RDONLY));
    }

    #[test]
    fn only_an_absent_or_empty_directory_without_links_above_it_is_mounted_on() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let unusable = |path: &Path| match look_at(path).unwrap() {
            MountTarget::Unusable { why } => why,
            other => panic!("{} is {other:?}", path.display()),
        };
        fs::create_dir_all(root.join("full/sub")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink(root.join("full"), root.join("link")).unwrap();
        assert_eq!(look_at(&root.join("full/sub")).unwrap(), MountTarget::EmptyDirectory);
        assert_eq!(look_at(&root.join("full/none/deep")).unwrap(), MountTarget::Absent);
        assert!(unusable(&root.join("full")).contains("not empty"));
        assert!(unusable(&root.join("file")).contains("not a directory"));
        assert!(unusable(&root.join("file/below")).contains("not a directory"));
        assert!(unusable(&root.join("link/sub")).contains("symbolic link"));
    }
}
