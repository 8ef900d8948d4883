//! A volume that was extended in Cinder while it is used: disks, map, file system, in this order.
//! Nothing here detaches, shrinks, or makes what isn't there.

use super::{Next, Settled, disks::Road, phase_of, refuse, step};
use crate::{
    attach::{AttachmentView, Observed, Phase, Record, Refusal, Step, identity::is_size_of},
    cinder::{AttachmentStatus, Volume},
    model::{
        AccessMode, DeviceState, Hctl, MultipathMap, ScsiDevice, SessionState, TargetPath, Usage,
        VolumeId,
    },
};

pub(super) fn phases_after(next: &Next, record: Option<&Record>) -> Vec<Phase> {
    let mut road = vec![Phase::Verify];
    if let Some(record) = record {
        road.extend(record.multipath.then_some(Phase::Map));
        road.extend(grows(record).then_some(Phase::Filesystem));
    }
    let here = phase_of(next);
    road.into_iter().filter(|phase| Some(*phase) > here).collect()
}

/// Whether there is a file system that may be written.
fn grows(record: &Record) -> bool {
    record.spec.mode == AccessMode::Rw && record.spec.mount_path().is_some()
}

pub(super) fn settle(
    volume: VolumeId,
    at_least_gib: Option<u64>,
    record: Option<&Record>,
    observed: &Observed,
) -> Settled {
    let Some(record) = record.filter(|record| record.completed && !record.released) else {
        return cannot(volume, "it is not attached to this node by attachd, or not completely");
    };
    still_ours(record, observed)?;
    let size_gib = stated(volume, at_least_gib, observed)?;
    let road = Road { spec: &record.spec, record, observed };
    let disks = road.every_path(size_gib)?;
    road.agree(&disks, size_gib)?;
    let wwid = road.identity(&disks)?;
    let device = if record.multipath {
        if let Some(map) = observed.host.maps.iter().find(|map| map.wwid == wwid) {
            road.map_is_sound(map, &wwid, &disks)?;
            road.map_of_size(map, disks[0].size_bytes)?;
        } else {
            return cannot(volume, "its multipath map is gone; attach it again first");
        }
        road.map(&wwid, &disks)?
    } else {
        road.single_disk(disks[0])?
    };
    let Usage::Filesystem { filesystem, mount_path, .. } = &record.spec.usage else {
        return Ok(());
    };
    if !grows(record) {
        return Ok(());
    }
    match observed.host.mount_at(mount_path).filter(|mount| mount.number == device.id.number) {
        None => {
            return cannot(volume, "its file system is not mounted; attach it again first");
        }
        Some(mount) if mount.read_only => {
            return cannot(
                volume,
                "its file system became read-only, which it does after errors; look into the kernel's log, detach, attach",
            );
        }
        Some(_) => {}
    }
    if observed.attempt.grown.is_some() {
        return Ok(());
    }
    step(
        Step::GrowFilesystem {
            device: device.id.clone(),
            filesystem: *filesystem,
            target: mount_path.clone(),
        },
        "the device has the size that Cinder states; its file system may be smaller",
    )
}

fn cannot<T>(volume: VolumeId, why: &str) -> Settled<T> {
    refuse(Refusal::NotResizable { volume, why: why.to_owned() })
}

fn differs<T>(volume: VolumeId, what: String) -> Settled<T> {
    refuse(Refusal::SizeDiffers { volume, what })
}

/// Cinder still holds the attachment for this node.
fn still_ours(record: &Record, observed: &Observed) -> Settled {
    let volume = record.spec.volume;
    let (Some(attachment), AttachmentView::Known { status, .. }) =
        (record.attachment(), &observed.attachment)
    else {
        return match (record.attachment(), &observed.attachment) {
            (Some(attachment), AttachmentView::Gone) => {
                refuse(Refusal::AttachmentGone { attachment, volume })
            }
            _ => refuse(Refusal::ConnectionUnknown { volume }),
        };
    };
    match status {
        AttachmentStatus::Attached | AttachmentStatus::Attaching => Ok(()),
        other => refuse(Refusal::AttachmentFailed { attachment, status: format!("{other:?}") }),
    }
}

/// The size in Cinder, once it is settled and what was asked for.
fn stated(volume: VolumeId, at_least_gib: Option<u64>, observed: &Observed) -> Settled<u64> {
    let Some(Volume { status, size_gib, .. }) = &observed.volume else {
        return refuse(Refusal::VolumeNotFound { volume });
    };
    if status == "extending" {
        return differs(volume, "Cinder is still extending it; try again in a moment".to_owned());
    }
    if status == "error_extending" {
        let what = "Cinder failed to extend it (error_extending); look into Cinder's volume log";
        return differs(volume, what.to_owned());
    }
    match at_least_gib.filter(|asked| asked > size_gib) {
        None => Ok(*size_gib),
        Some(asked) => differs(
            volume,
            format!(
                "{asked} GiB are asked for, and Cinder states {size_gib}; extend it there first: openstack volume set --size {asked} {volume}"
            ),
        ),
    }
}

impl<'a> Road<'a> {
    /// The disks of all paths, read anew by this very run. A path that is missing keeps the old size:
    /// where it came back, the map would hold disks of two sizes.
    fn every_path(&self, size_gib: u64) -> Settled<Vec<&'a ScsiDevice>> {
        let volume = self.spec.volume;
        let paths = self.record.paths.iter();
        let used: Vec<&TargetPath> =
            paths.filter(|path| self.record.multipath || self.disk_at(path).is_some()).collect();
        let missing: Vec<String> = used
            .iter()
            .filter_map(|path| Some(format!("{}: {}", path.target, self.trouble(path)?)))
            .collect();
        if !missing.is_empty() {
            let what = format!(
                "Cinder states {size_gib} GiB, and not every path can be asked ({}); it is done once all of them work",
                missing.join("; ")
            );
            return differs(volume, what);
        }
        let disks: Vec<&ScsiDevice> = used.iter().filter_map(|path| self.disk_at(path)).collect();
        if disks.is_empty() {
            return cannot(volume, "none of its disks is there; attach it again first");
        }
        let old: Vec<Hctl> = disks
            .iter()
            .map(|disk| disk.hctl)
            .filter(|hctl| !self.observed.attempt.reread.contains(hctl))
            .collect();
        if old.is_empty() {
            return Ok(disks);
        }
        step(
            Step::Reread { devices: old },
            format!(
                "Cinder states {size_gib} GiB; the kernel asks a disk for its size only when it is told to"
            ),
        )
    }

    /// What keeps a path from being asked.
    fn trouble(&self, path: &TargetPath) -> Option<&'static str> {
        let Some(session) = self.observed.host.session(&path.target) else {
            return Some("no session");
        };
        if session.state != SessionState::LoggedIn {
            return Some("its session is not logged in");
        }
        match self.disk_at(path) {
            None => Some("no disk"),
            Some(disk) if disk.state != DeviceState::Running => Some("its disk does not answer"),
            Some(_) => None,
        }
    }

    /// All disks are the volume still, and show what Cinder states.
    fn agree(&self, disks: &[&ScsiDevice], size_gib: u64) -> Settled {
        let volume = self.spec.volume;
        if let Some(other) = disks.iter().find(|disk| disk.wwid != self.record.wwid) {
            let what = format!("{} is another volume's disk by now", other.name);
            return refuse(Refusal::Identity { volume, what });
        }
        let first = disks[0].size_bytes;
        if disks.iter().all(|disk| disk.size_bytes == first && is_size_of(size_gib, first)) {
            return Ok(());
        }
        let sizes: Vec<String> = disks
            .iter()
            .map(|disk| {
                let path =
                    self.record.paths.iter().find(|path| {
                        self.disk_at(path).is_some_and(|found| found.hctl == disk.hctl)
                    });
                let way = path.map(|path| format!(" by {}", path.target)).unwrap_or_default();
                format!("{}{way} has {} bytes", disk.name, disk.size_bytes)
            })
            .collect();
        differs(
            volume,
            format!(
                "Cinder states {size_gib} GiB, {}; the storage's target does not show the new size on every path (some, tgt among them, show it only to a new export: detach and attach then)",
                sizes.join(", ")
            ),
        )
    }

    fn map_of_size(&self, map: &MultipathMap, size_bytes: u64) -> Settled {
        if map.size_bytes == size_bytes {
            return Ok(());
        }
        if map.size_bytes > size_bytes {
            let what = format!(
                "map {} has {} bytes, its disks have {size_bytes}, and nothing is ever shrunk",
                map.name, map.size_bytes
            );
            return differs(self.spec.volume, what);
        }
        step(
            Step::ResizeMap { name: map.name.clone(), wwid: map.wwid.clone(), size_bytes },
            "all disks of the map show the size that Cinder states",
        )
    }
}
