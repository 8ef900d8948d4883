//! The invariants, at the moment of each operation.

use uuid::Uuid;

use super::{
    Content, World,
    kernel::{Maker, SimDisk, SimMap},
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
            | HostOp::Mount { device, .. } => behind(device),
            HostOp::SetReadOnly { devices } => devices.first().and_then(behind),
            HostOp::Unmount { target } => {
                let mount = self.kernel.mounts.iter().rfind(|mount| &mount.target == target);
                mount.and_then(|mount| mount.volume)
            }
            HostOp::RemoveMap { wwid, .. } => {
                self.kernel.maps.iter().find(|map| &map.wwid == wwid).map(|map| map.volume)
            }
            HostOp::DeleteDevices { devices } => devices.first().and_then(|(hctl, _)| {
                self.kernel.disks.iter().find(|disk| disk.hctl == *hctl).map(|disk| disk.seen)
            }),
            HostOp::WriteNodeRecords { .. }
            | HostOp::Login { .. }
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

    /// Nothing of an attachment may be on the node when it is deleted.
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
            map.volume == known.volume || disks.iter().any(|d| map.members.contains(&d.name))
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
