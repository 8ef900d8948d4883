//! What others do: other nodes, other tools on this node, administrators, applications.

use std::path::Path;

use uuid::Uuid;

use super::{
    Content, World,
    cinder::{PASSWORD, SimVolume},
    kernel::{Maker, SimMount},
};
use crate::{
    cinder::AttachmentStatus,
    model::{AttachmentId, Portal, Target, VolumeId},
};

impl World {
    /// Makes a blank volume.
    pub fn create_volume(&mut self, number: u128, size_gib: u64) -> VolumeId {
        let id: VolumeId =
            Uuid::from_u128((number + 1) << 112 | 0x7a29_c609_53cc_4134_830f_6d08_a0b9_da91 >> 16)
                .into();
        let volume = SimVolume { status: "available".to_owned(), multiattach: false };
        self.cinder.volumes.insert(id, volume);
        self.storage.sizes.insert(id, size_gib);
        self.storage.contents.insert(id, Content::Blank);
        id
    }

    /// An administrator deletes all attachments of a volume, without asking any node.
    pub fn take_by_force(&mut self, volume: VolumeId) {
        self.journal.push(format!("-- {volume} is taken away by force"));
        let all = self.cinder.attachments.iter().filter(|(_, a)| a.volume == volume);
        let ids: Vec<AttachmentId> = all.map(|(id, _)| *id).collect();
        for id in ids {
            self.delete_attachment(id);
        }
    }

    /// An administrator deletes the reservations of a volume that nobody can account for.
    ///
    /// # Panics
    /// One of them carries an instance of this node's: nobody else should have to free it.
    pub fn free_reservations(&mut self, volume: VolumeId) {
        assert!(
            !self.cinder.is_service
                || self.cinder.of(volume).all(|a| !a.ours
                    || a.instance.is_none()
                    || a.status != AttachmentStatus::Reserved),
            "a service was to be helped with its own reservation"
        );
        self.journal.push(format!("-- reservations of {volume} are freed"));
        let reserved = |(_, a): &(&AttachmentId, &super::SimAttachment)| {
            a.volume == volume && a.status == AttachmentStatus::Reserved
        };
        let ids: Vec<AttachmentId> =
            self.cinder.attachments.iter().filter(reserved).map(|(id, _)| *id).collect();
        for id in ids {
            self.delete_attachment(id);
        }
    }

    /// Another node attaches a volume, where it may.
    pub fn other_node_attaches(&mut self, volume: VolumeId) -> bool {
        let Ok(id) = self.reserve(volume, None, false) else { return false };
        self.journal.push(format!("-- another node attaches {volume}"));
        self.connect(id);
        if let Some(attachment) = self.cinder.attachments.get_mut(&id) {
            attachment.status = AttachmentStatus::Attached;
        }
        self.set_status(volume, "in-use");
        true
    }

    /// Another node reserves a volume, where it may, and leaves it there.
    pub fn other_node_reserves(&mut self, volume: VolumeId) -> bool {
        self.reserve(volume, None, false).is_ok()
    }

    /// Other nodes detach a volume.
    pub fn other_nodes_detach(&mut self, volume: VolumeId) {
        let theirs = self.cinder.attachments.iter().filter(|(_, a)| a.volume == volume && !a.ours);
        let ids: Vec<AttachmentId> = theirs.map(|(id, _)| *id).collect();
        for id in ids {
            self.journal.push(format!("-- another node detaches {volume}"));
            self.delete_attachment(id);
        }
    }

    /// Another node that has the volume writes to it.
    pub fn other_node_writes(&mut self, volume: VolumeId, content: Content) -> bool {
        let connected = self.cinder.of(volume).any(|a| !a.ours && a.address.is_some());
        if connected {
            self.journal.push(format!("-- another node writes {content:?} to {volume}"));
            let marker = match &content {
                Content::Filesystem { marker, .. } | Content::Raw { marker } => *marker,
                Content::Blank | Content::Remains { .. } => 0,
            };
            self.expected.insert(volume, marker);
            self.storage.contents.insert(volume, content);
        }
        connected
    }

    /// An application writes to a file below a mount path; false where the device doesn't answer.
    pub fn application_writes(&mut self, path: &Path, marker: u64) -> bool {
        let Some(mount) = self.kernel.mounts.iter().rfind(|m| m.target == path).cloned() else {
            self.violation(format!("nothing is mounted on {}", path.display()));
            return false;
        };
        let Some(behind) = self.kernel.behind(mount.number, &self.storage) else { return false };
        if Some(behind) != mount.volume {
            self.violation(format!("{} is {behind}, not {:?}", path.display(), mount.volume));
        }
        match self.storage.contents.get_mut(&behind) {
            Some(Content::Filesystem { marker: old, .. }) => *old = marker,
            _ => return false,
        }
        self.expected.insert(behind, marker);
        true
    }

    /// An application writes, and the kernel holds it back.
    ///
    /// # Panics
    /// If nothing is mounted there.
    pub fn application_writes_without_sync(&mut self, path: &Path, marker: u64) {
        let mount = self.kernel.mounts.iter_mut().rfind(|mount| mount.target == path);
        assert!(mount.is_some(), "nothing is mounted on {}", path.display());
        if let Some(mount) = mount {
            mount.unwritten = Some(marker);
        }
    }

    /// Processes sit on a mount, or leave it and all that it became.
    pub fn set_busy(&mut self, volume: VolumeId, busy: bool) {
        for mount in self.kernel.mounts.iter_mut().filter(|mount| mount.volume == Some(volume)) {
            mount.busy = busy;
        }
        for map in self.kernel.maps.iter_mut().filter(|map| map.volume == volume && !busy) {
            map.held = false;
        }
    }

    /// Other tools and administrators leave the node.
    pub fn everybody_else_leaves(&mut self) {
        self.journal.push("-- everybody else leaves the node".to_owned());
        self.kernel.mounts.retain(|mount| mount.maker == Maker::Attachd);
        let foreign: Vec<Target> = self
            .kernel
            .sessions
            .iter()
            .filter(|session| session.maker == Maker::Other)
            .map(|session| session.target.clone())
            .collect();
        for target in foreign {
            self.kernel.log_out(&target);
        }
        let disks: Vec<_> =
            self.kernel.disks.iter().filter(|d| d.maker == Maker::Other).map(|d| d.hctl).collect();
        for hctl in disks {
            self.kernel.remove_disk(hctl);
        }
        self.kernel.node_records.retain(|_, maker| *maker == Maker::Attachd);
        self.kernel.set_aside.clear();
    }

    /// What a volume's last rightful writer left is not there any more.
    pub fn lost_data(&self) -> Vec<VolumeId> {
        let lost = |(volume, marker): &(&VolumeId, &u64)| match self.storage.contents.get(volume) {
            Some(Content::Filesystem { marker: found, .. } | Content::Raw { marker: found }) => {
                found != *marker
            }
            _ => **marker != 0,
        };
        self.expected.iter().filter(lost).map(|(volume, _)| *volume).collect()
    }

    /// Another tool, or an administrator, logs in to a target by hand.
    pub fn somebody_logs_in(&mut self, target: &Target) -> bool {
        let Some(generation) = self.storage.answers(&target.iqn, target.portal) else {
            return false;
        };
        self.kernel.node_records.entry(target.clone()).or_insert(Maker::Other);
        self.kernel.log_in(target, generation, Maker::Other)
    }

    /// Another tool leaves a node record: discovery, say.
    pub fn somebody_discovers(&mut self, target: &Target) {
        self.kernel.node_records.entry(target.clone()).or_insert(Maker::Other);
    }

    /// An administrator deletes a node record; a session stays.
    pub fn somebody_deletes_the_record(&mut self, target: &Target) {
        self.kernel.node_records.remove(target);
    }

    /// An administrator logs out by hand.
    pub fn somebody_logs_out(&mut self, target: &Target) -> bool {
        self.journal.push(format!("-- somebody logs out of {target}"));
        self.event();
        self.kernel.log_out(target)
    }

    /// An administrator deletes a disk by hand.
    pub fn somebody_deletes(&mut self, device: &crate::model::DeviceName) -> bool {
        let Some(disk) = self.kernel.disks.iter().find(|disk| &disk.name == device) else {
            return false;
        };
        let hctl = disk.hctl;
        self.journal.push(format!("-- somebody deletes {device}"));
        self.kernel.remove_disk(hctl);
        self.event();
        true
    }

    /// The kernel meets an error in the file system that is mounted there. Nothing tells of it.
    pub fn meets_errors(&mut self, path: &Path) {
        self.journal.push(format!("-- {} meets errors", path.display()));
        for mount in self.kernel.mounts.iter_mut().filter(|mount| mount.target == path) {
            mount.errors = true;
        }
    }

    /// The file system that is mounted there meets an error, and refuses writes. Nothing tells of it.
    pub fn goes_read_only(&mut self, path: &Path) {
        self.journal.push(format!("-- {} goes read-only", path.display()));
        for mount in self.kernel.mounts.iter_mut().filter(|mount| mount.target == path) {
            mount.read_only = true;
        }
    }

    /// Another tool scans a LUN.
    pub fn somebody_scans(&mut self, target: &Target, lun: u64) -> bool {
        let session = self.kernel.sessions.iter().find(|session| &session.target == target);
        let Some(host) = session.map(|session| session.host) else { return false };
        self.scan(host, lun, Maker::Other)
    }

    /// Somebody mounts a device somewhere.
    pub fn somebody_mounts(&mut self, device: &crate::model::DeviceName, path: &Path) -> bool {
        let Some(number) = self.kernel.number(device) else { return false };
        let volume = self.kernel.behind(number, &self.storage);
        self.kernel.mounts.push(SimMount {
            number,
            source: device.path().display().to_string(),
            target: path.to_owned(),
            fs_type: "ext4".to_owned(),
            read_only: false,
            errors: false,
            volume,
            busy: false,
            unwritten: None,
            maker: Maker::Other,
        });
        true
    }

    /// An administrator resets a volume's status.
    pub fn reset_status(&mut self, volume: VolumeId, status: &str) {
        self.set_status(volume, status);
    }

    /// A volume grows.
    pub fn extend(&mut self, volume: VolumeId, size_gib: u64) {
        self.journal.push(format!("-- {volume} is extended to {size_gib} GiB"));
        self.storage.sizes.insert(volume, size_gib);
    }

    /// A volume grows, and its target goes on showing the old size.
    pub fn extend_unseen(&mut self, volume: VolumeId, size_gib: u64) {
        let old = self.storage.sizes.get(&volume).copied().unwrap_or(1);
        self.storage.stuck_sizes.entry(volume).or_insert(old);
        self.extend(volume, size_gib);
    }

    /// What the storage shows is what Cinder states again.
    pub fn show_sizes(&mut self) {
        self.storage.stuck_sizes.clear();
    }

    /// A portal stops answering, or answers again.
    pub fn set_portal(&mut self, portal: Portal, works: bool) {
        if works {
            self.storage.dead.remove(&portal);
        } else {
            self.storage.dead.insert(portal);
        }
        self.kernel.refresh_sessions(&self.storage);
        self.event();
    }

    /// What attachd, or a volume's attachment, left on the node or in Cinder.
    pub fn left(&self) -> Vec<String> {
        let kernel = &self.kernel;
        let mut left = Vec::new();
        for session in kernel.sessions.iter().filter(|s| s.maker == Maker::Attachd) {
            left.push(format!("session {} to {}", session.sid, session.target));
        }
        for disk in kernel.disks.iter().filter(|disk| disk.maker == Maker::Attachd) {
            left.push(format!("disk {} ({}, {})", disk.name, disk.hctl, disk.seen));
        }
        for map in kernel.maps.iter().filter(|map| map.maker == Maker::Attachd) {
            left.push(format!("map {}", map.name));
        }
        for mount in kernel.mounts.iter().filter(|mount| mount.maker == Maker::Attachd) {
            left.push(format!("mount {}", mount.target.display()));
        }
        for (target, _) in kernel.node_records.iter().filter(|(_, m)| **m == Maker::Attachd) {
            left.push(format!("node record {target}"));
        }
        for (id, attachment) in self.cinder.attachments.iter().filter(|(_, a)| a.ours) {
            left.push(format!("attachment {id} ({:?})", attachment.status));
        }
        for path in kernel.directories.keys() {
            left.push(format!("directory {}", path.display()));
        }
        left
    }
}

/// Files below a directory in which a secret stands.
pub fn secrets_in(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(directory) else { return found };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(secrets_in(&path));
        } else if std::fs::read_to_string(&path).is_ok_and(|text| text.contains(PASSWORD)) {
            found.push(path.display().to_string());
        }
    }
    found
}
