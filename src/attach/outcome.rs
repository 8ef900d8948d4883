use std::path::PathBuf;

use super::{Record, engine::Run};
use crate::model::{
    AttachSpec, AttachmentId, DeviceName, HostState, MultipathPolicy, Target, VolumeId, Wwid,
};

/// One way to an attached volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStatus {
    /// The target and its portal.
    pub target: Target,
    /// The LUN there.
    pub lun: u64,
    /// The disk, where there is one.
    pub disk: Option<(String, DeviceName)>,
    /// `active`, or why not.
    pub state: String,
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
    /// What should be known.
    pub warnings: Vec<String>,
    /// Whether anything had to be done.
    pub changed: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The volume is attached.
    Attached(Box<Attached>),
    /// The volume is not attached to this node; whether anything had to be done.
    Detached {
        /// Whether there was something to detach.
        changed: bool,
    },
}

/// Whether a volume that was attached can still be used as it was asked to be.
pub(super) fn is_usable(spec: &AttachSpec, record: &Record, host: &HostState) -> bool {
    match spec.mount_path() {
        Some(path) => {
            host.mount_at(path).is_some_and(|mount| record.mount_device == Some(mount.number))
        }
        None => record.wwid.as_ref().is_some_and(|wwid| device(record, wwid, host).is_some()),
    }
}

/// The device to use, and its size in bytes.
fn device(record: &Record, wwid: &Wwid, host: &HostState) -> Option<(PathBuf, u64)> {
    let map = host.maps.iter().find(|map| map.wwid == *wwid).filter(|_| record.multipath);
    if let Some(map) = map {
        return Some((map.node.clone().unwrap_or_else(|| map.device.path()), map.size_bytes));
    }
    let disk = host.devices.iter().find(|disk| disk.wwid.as_ref() == Some(wwid))?;
    Some((disk.name.path(), disk.size_bytes))
}

/// What an attached volume looks like; `None` where it isn't there.
pub(super) fn attached(
    spec: &AttachSpec,
    record: &Record,
    run: &Run<'_>,
    host: &HostState,
    changed: bool,
) -> Option<Attached> {
    let attachment = record.attachment()?;
    let wwid = record.wwid.clone()?;
    let paths: Vec<PathStatus> = record
        .paths
        .iter()
        .map(|path| {
            let session = host.session(&path.target);
            let disk = host.disk_at(path);
            let state = match (session, disk) {
                (_, Some(disk)) if disk.state == crate::model::DeviceState::Running => {
                    "active".to_owned()
                }
                (_, Some(_)) => "failing".to_owned(),
                (Some(_), None) => "no disk".to_owned(),
                (None, None) => match run.attempt.failed_logins.get(&path.target) {
                    Some(why) => format!("no session: {why}"),
                    None => "no session".to_owned(),
                },
            };
            PathStatus {
                target: path.target.clone(),
                lun: path.lun.0,
                disk: disk.map(|disk| (disk.hctl.to_string(), disk.name.clone())),
                state,
            }
        })
        .collect();
    let (device, size_bytes) = device(record, &wwid, host)?;
    let mut warnings = Vec::new();
    if spec.multipath == MultipathPolicy::Auto && !record.multipath {
        warnings.push(
            "one path only: multipathd did not run, or was kept off the disks, when the volume was attached"
                .to_owned(),
        );
    }
    if record.multipath {
        for path in paths.iter().filter(|path| path.state != "active") {
            warnings.push(format!("path {} is missing: {}", path.target, path.state));
        }
    }
    Some(Attached {
        volume: spec.volume,
        attachment,
        device,
        wwid,
        size_bytes,
        mount_path: spec.mount_path().map(ToOwned::to_owned),
        paths,
        warnings,
        changed,
    })
}
