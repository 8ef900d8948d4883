//! How an attached volume stands, by what the kernel shows alone. Pure.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use super::Record;
use crate::model::{
    AccessMode, AttachSpec, AttachmentId, DeviceName, DeviceState, HostState, MultipathPolicy,
    SessionState, Target, TargetPath, Usage, VolumeId, Wwid,
};

/// How one way to a volume stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathState {
    /// I/O flows.
    Active,
    /// Its session or its disk is there and does not work: iscsid and the kernel try by themselves.
    Failing,
    /// The session works, and no disk came by it.
    NoDisk,
    /// The disk works, and the map doesn't use it.
    NotInMap,
    /// The disk works, and has another size than the map: the volume was extended, and is to be resized.
    OtherSize,
    /// There is no session.
    NoSession {
        /// What the last login came to.
        why: Option<String>,
    },
}

impl PathState {
    /// Whether an attach may bring it back: all else must mend itself.
    const fn is_missing(&self) -> bool {
        match self {
            // A resize makes the map fit.
            Self::Active | Self::Failing | Self::OtherSize => false,
            Self::NoDisk | Self::NotInMap | Self::NoSession { .. } => true,
        }
    }
}

impl fmt::Display for PathState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("active"),
            Self::Failing => f.write_str("failing"),
            Self::NoDisk => f.write_str("no disk"),
            Self::NotInMap => f.write_str("not in the map"),
            Self::OtherSize => {
                f.write_str("its disk has another size than the map: attachd resize")
            }
            Self::NoSession { why: None } => f.write_str("no session"),
            Self::NoSession { why: Some(why) } => write!(f, "no session: {why}"),
        }
    }
}

/// One way to an attached volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStatus {
    /// The target and its portal.
    pub target: Target,
    /// The LUN there.
    pub lun: u64,
    /// The disk, where there is one.
    pub disk: Option<(String, DeviceName)>,
    /// How it stands.
    pub state: PathState,
}

/// Why a volume that is there can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Whatever reads or writes waits, or fails.
    NoPath,
    /// An error, or somebody, made the file system refuse writes.
    ReadOnlyFilesystem {
        /// Where it is mounted.
        path: PathBuf,
    },
    /// The kernel met errors in it. Newer kernels don't show whether it still takes writes.
    FilesystemErrors {
        /// Where it is mounted.
        path: PathBuf,
    },
}

impl Trouble {
    /// The CamelCase word that conditions and events use.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoPath => "NoPath",
            Self::ReadOnlyFilesystem { .. } => "ReadOnlyFilesystem",
            Self::FilesystemErrors { .. } => "FilesystemErrors",
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPath => f.write_str(
                "no path to the volume works: what reads or writes it waits, and fails when the queueing time is over",
            ),
            Self::ReadOnlyFilesystem { path } => write!(
                f,
                "the file system on {} takes no writes any more, as after an error: stop what uses it, detach the volume, and attach it again, which checks it",
                path.display()
            ),
            Self::FilesystemErrors { path } => write!(
                f,
                "the kernel met errors in the file system on {} since it was mounted, and it may take no writes any more: stop what uses it, detach the volume, and attach it again, which checks it",
                path.display()
            ),
        }
    }
}

/// An attached volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The volume.
    pub volume: VolumeId,
    /// The attachment.
    pub attachment: AttachmentId,
    /// The device to use.
    pub device: PathBuf,
    /// Its identity.
    pub wwid: Wwid,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Where it is mounted.
    pub mount_path: Option<PathBuf>,
    /// Every way to it.
    pub paths: Vec<PathStatus>,
    /// Why it can't be used now.
    pub trouble: Option<Trouble>,
    /// What should be known.
    pub warnings: Vec<String>,
    /// Whether anything had to be done.
    pub changed: bool,
}

impl Attached {
    /// Whether a path is missing that is used, and that an attach may bring back.
    pub fn is_incomplete(&self, record: &Record) -> bool {
        let mut missing = self.paths.iter().map(|path| path.state.is_missing());
        if record.multipath {
            missing.any(|missing| missing)
        } else {
            missing.all(|missing| missing)
        }
    }
}

/// What is gone of a volume that was attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// No map, or no disk, of its identity is on the node.
    NoDevice,
    /// The device is there, and not mounted where it was.
    NotMounted {
        /// Where it was.
        path: PathBuf,
    },
    /// It is mounted, and the device below the mount is gone: another one can't take its place.
    DeviceGone {
        /// Where.
        path: PathBuf,
    },
}

impl Loss {
    /// The CamelCase word that conditions and events use.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoDevice => "NoDevice",
            Self::NotMounted { .. } => "NotMounted",
            Self::DeviceGone { .. } => "DeviceGone",
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str(
                "the volume's device is not on the node any more; attach the volume again",
            ),
            Self::NotMounted { path } => write!(
                f,
                "the volume is not mounted on {} any more; attach it again",
                path.display()
            ),
            Self::DeviceGone { path } => write!(
                f,
                "the device of the mount on {} was taken from the node, and no other one can take its place: stop what uses it, detach the volume, and attach it again",
                path.display()
            ),
        }
    }
}

/// How an attached volume stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What is there.
    pub state: Result<Attached, Loss>,
    /// Something is missing that an attach may bring back. What recovers by itself is not.
    pub missing: bool,
}

/// Judges a volume whose attach was completed. `refusals` are what the last logins came to, where they
/// failed. `None` where nothing can be said: the attach was not completed, or a detach has begun.
pub fn judge(
    spec: &AttachSpec,
    record: &Record,
    host: &HostState,
    refusals: &BTreeMap<Target, String>,
) -> Option<Verdict> {
    if !record.completed || record.released {
        return None;
    }
    let lost = |loss, missing| Some(Verdict { state: Err(loss), missing });
    if let Some(path) = spec.mount_path() {
        let mount = host.mount_at(path);
        let Some(mount) = mount.filter(|mount| record.mount_device == Some(mount.number)) else {
            return lost(Loss::NotMounted { path: path.to_owned() }, true);
        };
        if !host.has_device(mount.number) {
            return lost(Loss::DeviceGone { path: path.to_owned() }, false);
        }
    }
    let Some(attached) = attached(spec, record, host, refusals, false) else {
        return lost(Loss::NoDevice, true);
    };
    let missing = attached.is_incomplete(record);
    Some(Verdict { state: Ok(attached), missing })
}

/// Whether a volume that was attached can still be used as it was asked to be.
pub(super) fn is_usable(spec: &AttachSpec, record: &Record, host: &HostState) -> bool {
    let verdict = judge(spec, record, host, &BTreeMap::new());
    verdict.is_none_or(|verdict| verdict.state.is_ok())
}

/// The device to use, its size in bytes.
pub(super) fn device(record: &Record, wwid: &Wwid, host: &HostState) -> Option<(PathBuf, u64)> {
    if record.multipath {
        let map = host.maps.iter().find(|map| map.wwid == *wwid)?;
        return Some((map.node.clone().unwrap_or_else(|| map.device.path()), map.size_bytes));
    }
    let disk = host.devices.iter().find(|disk| disk.wwid.as_ref() == Some(wwid))?;
    Some((disk.name.path(), disk.size_bytes))
}

fn path_state(
    record: &Record,
    path: &TargetPath,
    host: &HostState,
    refusals: &BTreeMap<Target, String>,
) -> PathState {
    let Some(session) = host.session(&path.target) else {
        return PathState::NoSession { why: refusals.get(&path.target).cloned() };
    };
    if session.state != SessionState::LoggedIn {
        return PathState::Failing;
    }
    match host.disk_at(path) {
        // Its disk is on the way.
        None if host.nascent_of(session).any(|lun| lun == path.lun) => PathState::Failing,
        None => PathState::NoDisk,
        Some(disk) if disk.state != DeviceState::Running => PathState::Failing,
        Some(disk) if record.multipath && host.map_of(disk).is_none() => {
            let map = host.maps.iter().find(|map| Some(&map.wwid) == record.wwid.as_ref());
            match map {
                Some(map) if map.size_bytes != disk.size_bytes => PathState::OtherSize,
                _ => PathState::NotInMap,
            }
        }
        Some(_) => PathState::Active,
    }
}

/// What an attached volume looks like; `None` where it isn't there.
pub(super) fn attached(
    spec: &AttachSpec,
    record: &Record,
    host: &HostState,
    refusals: &BTreeMap<Target, String>,
    changed: bool,
) -> Option<Attached> {
    let attachment = record.attachment()?;
    let wwid = record.wwid.clone()?;
    let status = |path: &TargetPath| PathStatus {
        target: path.target.clone(),
        lun: path.lun.0,
        disk: host.disk_at(path).map(|disk| (disk.hctl.to_string(), disk.name.clone())),
        state: path_state(record, path, host, refusals),
    };
    let paths: Vec<PathStatus> = record.paths.iter().map(status).collect();
    let (device, size_bytes) = device(record, &wwid, host)?;
    let mut warnings = Vec::new();
    if spec.multipath == MultipathPolicy::Auto && !record.multipath {
        warnings.push(
            "one path only: multipathd did not run, or was kept off the disks, when the volume was attached"
                .to_owned(),
        );
    }
    if record.multipath {
        for path in paths.iter().filter(|path| path.state != PathState::Active) {
            warnings.push(format!("path {} is missing: {}", path.target, path.state));
        }
    }
    let trouble = if paths.iter().all(|path| path.state != PathState::Active) {
        Some(Trouble::NoPath)
    } else {
        filesystem_trouble(spec, host)
    };
    Some(Attached {
        volume: spec.volume,
        attachment,
        device,
        wwid,
        size_bytes,
        mount_path: spec.mount_path().map(ToOwned::to_owned),
        paths,
        trouble,
        warnings,
        changed,
    })
}

/// Why a file system that was to take writes may not.
fn filesystem_trouble(spec: &AttachSpec, host: &HostState) -> Option<Trouble> {
    let Usage::Filesystem { mount_path, options, .. } = &spec.usage else { return None };
    let mut each = options.iter().flat_map(|option| option.split(','));
    let asked = each.rfind(|option| matches!(*option, "ro" | "rw"));
    if spec.mode == AccessMode::Ro || asked == Some("ro") {
        // It isn't checked before it is mounted: its errors may be old.
        return None;
    }
    let path = mount_path.clone();
    match host.mount_at(mount_path)? {
        mount if mount.read_only => Some(Trouble::ReadOnlyFilesystem { path }),
        mount if mount.errors => Some(Trouble::FilesystemErrors { path }),
        _ => None,
    }
}
