//! The invariants, at the moment of each operation.

use uuid::Uuid;

use super::{
    Content, World,
    kernel::{Maker, SimDisk, SimMap, SimMount},
};
use crate::{
    host::HostOp,
    model::{AttachmentId, DeviceName, Target, VolumeId},
};

impl World {
    /// The volume that an operation reaches; none (all zeros) where it reaches none.
    pub(super) fn touched(&self, op: &HostOp) -> VolumeId {
        let behind = |device: &DeviceName| {
            let number = self.kernel.number(device)?;
            self.kernel.behind(number, &self.storage)
        };
        let volume = match op {
            HostOp::Format { device, .. }
            | HostOp::CheckFilesystem { device, .. }
            | HostOp::GrowFilesystem { device, .. }
            | HostOp::Mount { device, .. } => behind(&device.name),
            HostOp::SetReadOnly { devices } => devices.first().and_then(behind),
            HostOp::Unmount { target } | HostOp::UnmountLazily { target } => {
                let mount = self.kernel.mounts.iter().rfind(|mount| &mount.target == target);
                mount.and_then(|mount| mount.volume)
            }
            HostOp::RemoveMap { wwid, .. } | HostOp::ResizeMap { wwid, .. } => {
                self.kernel.maps.iter().find(|map| &map.wwid == wwid).map(|map| map.volume)
            }
            HostOp::StopQueueing { name } => {
                self.kernel.maps.iter().find(|map| &map.name == name).map(|map| map.volume)
            }
            HostOp::DeleteDevices { devices } | HostOp::CutDisks { devices, .. } => {
                devices.first().and_then(|(hctl, _)| {
                    self.kernel.disks.iter().find(|disk| disk.hctl == *hctl).map(|disk| disk.seen)
                })
            }
            HostOp::WriteNodeRecords { .. }
            | HostOp::Login { .. }
            | HostOp::GiveBackConnections { .. }
            | HostOp::ScanLuns { .. }
            | HostOp::Rescan { .. }
            | HostOp::AddMap { .. }
            | HostOp::ForgetMap { .. }
            | HostOp::RemoveDirectory { .. }
            | HostOp::Logout { .. } => None,
        };
        volume.unwrap_or_else(|| Uuid::nil().into())
    }

    /// Writing, or what may write: only to the volume that was asked for.
    pub(super) fn guard_use(&mut self, volume: VolumeId, behind: VolumeId, what: &str) {
        if behind != volume {
            self.violation(format!("{what} on volume {behind} while attaching {volume}"));
        } else if !self.cinder.is_ours(volume) {
            self.violation(format!("{what} on volume {volume}, which this node doesn't have"));
        }
    }

    pub(super) fn guard_format(&mut self, volume: VolumeId, behind: VolumeId) {
        self.guard_use(volume, behind, "made a file system");
        let holding = self.cinder.holding(volume);
        match self.storage.contents[&behind].clone() {
            Content::Blank => {}
            Content::Remains { attachment } if attachment == holding => {}
            other => self.violation(format!("formatted volume {behind}, which held {other:?}")),
        }
    }

    /// A disk may be deleted where the volume was given this address, unless it now serves another
    /// volume of this node.
    fn is_of(&self, volume: VolumeId, disk: &SimDisk) -> bool {
        let address = (disk.iqn.clone(), disk.hctl.lun);
        let given = self.cinder.addresses.get(&volume).is_some_and(|all| all.contains(&address));
        let behind = self.storage.behind(&disk.iqn, disk.hctl.lun);
        let serves_another =
            behind == Some(disk.seen) && disk.seen != volume && self.cinder.is_ours(disk.seen);
        given && !serves_another
    }

    pub(super) fn guard_disk(&mut self, volume: VolumeId, disk: &SimDisk) {
        if !self.is_of(volume, disk) {
            self.violation(format!(
                "deleted {} ({}, seen as {}) while working for {volume}",
                disk.name, disk.hctl, disk.seen
            ));
        }
        if self.kernel.mounts.iter().any(|mount| mount.number == disk.number) {
            self.violation(format!("deleted {} while it is mounted", disk.name));
        }
    }

    /// As for a deletion, but that it may be in use.
    pub(super) fn guard_cut(&mut self, volume: VolumeId, disk: &SimDisk) {
        if !self.is_of(volume, disk) {
            self.violation(format!(
                "cut {} ({}, seen as {}) off while working for {volume}",
                disk.name, disk.hctl, disk.seen
            ));
        }
    }

    /// A file system that nobody sees any more, and that could still write, or have its users hang.
    pub(super) fn guard_out_of_sight(&mut self, mount: &SimMount) {
        if self.kernel.behind(mount.number, &self.storage).is_some() {
            let target = mount.target.display();
            self.violation(format!("took {target} out of sight while a disk is behind it"));
        }
        if self.kernel.maps.iter().any(|map| map.number == mount.number && map.queues) {
            let target = mount.target.display();
            self.violation(format!("took {target} out of sight while its map keeps I/O"));
        }
    }

    pub(super) fn guard_map(&mut self, volume: VolumeId, map: &SimMap) {
        let members: Vec<SimDisk> = self
            .kernel
            .disks
            .iter()
            .filter(|disk| map.members.contains(&disk.name))
            .cloned()
            .collect();
        let foreign = members.iter().any(|disk| !self.is_of(volume, disk));
        let ghost_of_another =
            members.is_empty() && map.volume != volume && self.cinder.is_ours(map.volume);
        if foreign || ghost_of_another || map.maker == Maker::Other && map.volume != volume {
            self.violation(format!(
                "removed map {} (made for {}) while working for {volume}",
                map.name, map.volume
            ));
        }
    }

    /// A map grows to a size that all its disks have, and the volume.
    pub(super) fn guard_resize(&mut self, volume: VolumeId, map: &SimMap, size_bytes: u64) {
        let members = self.kernel.disks.iter().filter(|disk| map.members.contains(&disk.name));
        let wrong: Vec<String> = members
            .filter(|disk| disk.size_bytes != size_bytes || disk.seen != volume)
            .map(|disk| format!("{} ({} bytes, seen as {})", disk.name, disk.size_bytes, disk.seen))
            .collect();
        let in_cinder = self.storage.size_of(volume);
        if !wrong.is_empty() || size_bytes != in_cinder || size_bytes < map.size_bytes {
            self.violation(format!(
                "resized map {} from {} to {size_bytes} bytes over {wrong:?}; volume {volume} has {in_cinder}",
                map.name, map.size_bytes
            ));
        }
    }

    /// A file system grows on its own volume, and no further than that goes.
    pub(super) fn guard_grow(&mut self, volume: VolumeId, behind: VolumeId, size_bytes: u64) {
        self.guard_use(volume, behind, "grew a file system");
        let in_cinder = self.storage.size_of(behind);
        let before = self.storage.filesystem_sizes.get(&behind).copied().unwrap_or(0);
        if size_bytes > in_cinder || size_bytes < before {
            self.violation(format!(
                "the file system of {behind}, {before} bytes, becomes {size_bytes}; the volume has {in_cinder}"
            ));
        }
    }

    pub(super) fn guard_read_only(&mut self, volume: VolumeId, devices: &[DeviceName]) {
        for device in devices {
            let number = self.kernel.number(device);
            let behind = number.and_then(|number| self.kernel.behind(number, &self.storage));
            if behind.is_some_and(|behind| behind != volume) {
                self.violation(format!("made {device} read-only while working for {volume}"));
            }
        }
    }

    pub(super) fn guard_unmount(&mut self, volume: VolumeId, index: Option<usize>) {
        let Some(mount) = index.and_then(|index| self.kernel.mounts.get(index)).cloned() else {
            return;
        };
        if mount.maker == Maker::Other || mount.volume != Some(volume) {
            self.violation(format!(
                "unmounted {} (of {:?}) while working for {volume}",
                mount.target.display(),
                mount.volume
            ));
        }
    }

    pub(super) fn guard_logout(&mut self, target: &Target) {
        let sessions: Vec<_> =
            self.kernel.sessions.iter().filter(|s| &s.target == target).cloned().collect();
        for session in sessions {
            if session.maker == Maker::Other {
                self.violation(format!("logged out of {target}, which attachd didn't log in to"));
            }
            let carried: Vec<String> = self
                .kernel
                .disks
                .iter()
                .filter(|disk| disk.hctl.host == session.host && disk.appears_in < u32::MAX)
                .map(|disk| disk.name.to_string())
                .collect();
            if !carried.is_empty() {
                self.violation(format!("logged out of {target}, which carries {carried:?}"));
            }
        }
        // A node record without a session that somebody left there can't be told from attachd's own.
    }

    /// Nothing of an attachment may be on the node when it is deleted, but for a map that processes hold
    /// and that nothing is behind any more.
    pub(super) fn guard_delete(&mut self, attachment: AttachmentId) {
        let Some(known) = self.cinder.attachments.get(&attachment).cloned() else { return };
        let Some((iqn, lun)) = known.address else { return };
        let disks: Vec<SimDisk> = self
            .kernel
            .disks
            .iter()
            .filter(|d| d.iqn == iqn && d.hctl.lun == lun && d.appears_in < u32::MAX)
            .cloned()
            .collect();
        let mut left: Vec<String> = disks.iter().map(|disk| disk.name.to_string()).collect();
        let over = |map: &&SimMap| {
            let held = map.held && map.members.is_empty() && !map.queues;
            (map.volume == known.volume && !held)
                || disks.iter().any(|d| map.members.contains(&d.name))
        };
        left.extend(self.kernel.maps.iter().filter(over).map(|map| map.name.clone()));
        let mounts = self.kernel.mounts.iter().filter(|m| m.volume == Some(known.volume));
        left.extend(mounts.map(|mount| mount.target.display().to_string()));
        if !left.is_empty() {
            let volume = known.volume;
            self.violation(format!("deleted {volume}'s attachment while {left:?} are on the node"));
        }
    }
}
