//! What operations do to the node.

use std::path::Path;

use super::{
    Content, Fault, When, World,
    host::injected,
    kernel::{Maker, SimDisk, SimMap, SimMount},
};
use crate::{
    host::{Applied, HostError, HostOp, MountTarget},
    model::{
        Contents, DeviceId, DeviceName, Filesystem, Hctl, SessionState, Target, VolumeId, Wwid,
    },
};

/// In how many looks a login that outlives its attachd has its end.
const LATE: u32 = 6;

impl World {
    /// What a device holds now.
    pub(super) fn read(&mut self, device: &DeviceId) -> Result<Contents, HostError> {
        let volume = self.behind(device)?;
        Ok(match &self.storage.contents[&volume] {
            Content::Blank => Contents::Blank,
            Content::Remains { .. } => Contents::Data { offset: 4096 },
            Content::Filesystem { name, .. } => Contents::Filesystem { name: name.clone() },
            Content::Raw { .. } => Contents::Data { offset: 0 },
        })
    }

    fn behind(&mut self, device: &DeviceId) -> Result<VolumeId, HostError> {
        self.kernel.refresh_sessions(&self.storage);
        if !self.kernel.is_still(device) {
            return Err(HostError::DeviceReplaced { device: device.name.clone() });
        }
        self.kernel.behind(device.number, &self.storage).ok_or_else(injected)
    }

    /// Each item of a list; with a partial fault the first one fails, and the others go on.
    fn each<T>(
        &mut self,
        items: &[T],
        fault: Option<Fault>,
        name: impl Fn(&T) -> String,
        mut one: impl FnMut(&mut Self, &T) -> Result<bool, HostError>,
    ) -> Applied {
        let mut applied = Applied::default();
        for (index, item) in items.iter().enumerate() {
            let result = if index == 0 && fault == Some(Fault::Partial) {
                Err(injected())
            } else {
                one(self, item)
            };
            match result {
                Ok(changed) => applied.changed |= changed,
                Err(error) => applied.failures.push((name(item), error)),
            }
        }
        applied
    }

    /// Does one operation, for one volume.
    pub(super) fn apply(
        &mut self,
        volume: VolumeId,
        op: &HostOp,
        fault: Option<Fault>,
    ) -> Result<Applied, HostError> {
        let applied = self.effect(volume, op, fault);
        // What was refused changed nothing, and of files the kernel has nothing to say.
        let files_alone = matches!(
            op,
            HostOp::WriteNodeRecords { .. }
                | HostOp::RemoveDirectory { .. }
                | HostOp::ForgetMap { .. }
        );
        if applied.is_ok() && !files_alone {
            self.event();
        }
        applied
    }

    fn effect(
        &mut self,
        volume: VolumeId,
        op: &HostOp,
        fault: Option<Fault>,
    ) -> Result<Applied, HostError> {
        let done = |changed| Ok(Applied { changed, failures: Vec::new() });
        Ok(match op {
            HostOp::WriteNodeRecords { targets, .. } => {
                self.each(targets, fault, ToString::to_string, |world, target| {
                    let there = world.kernel.node_records.insert(target.clone(), Maker::Attachd);
                    if there == Some(Maker::Other) {
                        world.kernel.set_aside.insert(target.clone());
                    }
                    Ok(there.is_none())
                })
            }
            HostOp::Login { targets } if fault == Some(Fault::Crash(When::During)) => {
                self.kernel.logins.extend(targets.iter().map(|target| (target.clone(), LATE)));
                Applied::unchanged()
            }
            HostOp::Login { targets } => {
                self.each(targets, fault, ToString::to_string, World::log_in)
            }
            HostOp::GiveBackConnections { targets } => {
                self.each(targets, fault, ToString::to_string, |world, target| {
                    let answers = world.storage.answers(&target.iqn, target.portal).is_some();
                    Ok(answers && world.kernel.held_back.remove(target))
                })
            }
            HostOp::ScanLuns { luns } => self.each(
                luns,
                fault,
                |(host, lun)| format!("{host}:0:0:{lun}"),
                |world, (host, lun)| Ok(world.scan(*host, lun.0, Maker::Attachd)),
            ),
            HostOp::Rescan { devices } => self.each(
                devices,
                fault,
                ToString::to_string,
                |world, hctl| Ok(world.reread(*hctl)),
            ),
            HostOp::AddMap { wwid, devices } => return self.add_map(wwid, devices).and_then(done),
            HostOp::RemoveMap { name, wwid } => {
                return self.remove_map(volume, name, wwid).and_then(done);
            }
            HostOp::ForgetMap { .. } => Applied::unchanged(),
            HostOp::DeleteDevices { devices } => self.each(
                devices,
                fault,
                |(hctl, name)| format!("{name} ({hctl})"),
                |world, (hctl, name)| world.delete_disk(volume, *hctl, name),
            ),
            HostOp::SetReadOnly { devices } => {
                self.guard_read_only(volume, devices);
                for disk in self.kernel.disks.iter_mut().filter(|d| devices.contains(&d.name)) {
                    disk.read_only = true;
                }
                for map in self.kernel.maps.iter_mut().filter(|m| devices.contains(&m.device)) {
                    map.read_only = true;
                }
                Applied::changed()
            }
            HostOp::Format { device, filesystem, resume } => {
                return self.format(volume, device, *filesystem, *resume, fault).and_then(done);
            }
            HostOp::CheckFilesystem { device, .. } => {
                let behind = self.behind(device)?;
                self.guard_use(volume, behind, "checked a file system");
                Applied::unchanged()
            }
            HostOp::Mount { device, filesystem, target, read_only, .. } => {
                return self.mount(volume, device, *filesystem, target, *read_only).and_then(done);
            }
            HostOp::ResizeMap { name, wwid, size_bytes } => {
                return self.resize_map(volume, name, wwid, *size_bytes).and_then(done);
            }
            HostOp::GrowFilesystem { device, target, .. } => {
                return self.grow(volume, device, target, fault).and_then(done);
            }
            HostOp::StopQueueing { name } => {
                for map in self.kernel.maps.iter_mut().filter(|map| &map.name == name) {
                    map.queues = false;
                }
                Applied::changed()
            }
            HostOp::CutDisks { devices, maps } => self.each(
                devices,
                fault,
                |(hctl, name)| format!("{name} ({hctl})"),
                |world, (hctl, name)| world.cut_disk(volume, *hctl, name, maps),
            ),
            HostOp::Unmount { target } => return self.unmount(volume, target).and_then(done),
            HostOp::UnmountLazily { target } => {
                return done(self.unmount_lazily(volume, target));
            }
            HostOp::RemoveDirectory { target } => {
                if self.kernel.mounts.iter().any(|mount| &mount.target == target) {
                    return Err(HostError::Busy {
                        what: target.display().to_string(),
                        by: vec!["a mount".to_owned()],
                    });
                }
                let empty = self.kernel.directories.get(target) == Some(&false);
                if empty {
                    self.kernel.directories.remove(target);
                }
                return done(empty);
            }
            HostOp::Logout { targets } => {
                self.each(targets, fault, ToString::to_string, |world, target| {
                    world.guard_logout(target);
                    let stands = world.kernel.sessions.iter().any(|s| &s.target == target);
                    if stands && world.kernel.waits_in_iscsid.contains(target) {
                        return Err(HostError::SessionNotTakenOver { target: target.clone() });
                    }
                    if world.kernel.node_records.get(target) == Some(&Maker::Attachd) {
                        world.kernel.node_records.remove(target);
                    }
                    if world.kernel.set_aside.remove(target) {
                        world.kernel.node_records.insert(target.clone(), Maker::Other);
                    }
                    Ok(world.kernel.log_out(target))
                })
            }
        })
    }

    fn log_in(&mut self, target: &Target) -> Result<bool, HostError> {
        if !self.kernel.node_records.contains_key(target) {
            self.violation(format!("logged in to {target} without a node record"));
        }
        if self.kernel.logins.iter().any(|(under_way, _)| under_way == target) {
            // As iscsiadm's exit code 15: there is a session, or will be.
            return Ok(false);
        }
        match self.storage.answers(&target.iqn, target.portal) {
            Some(generation) => Ok(self.kernel.log_in(target, generation, Maker::Attachd)),
            None => Err(HostError::LoginTimedOut { target: target.clone() }),
        }
    }

    /// A scan of one LUN on one host; a disk that is there already stays as it is.
    pub(super) fn scan(&mut self, host: u32, lun: u64, maker: Maker) -> bool {
        self.kernel.refresh_sessions(&self.storage);
        let session = self.kernel.sessions.iter().find(|session| session.host == host);
        let Some(session) = session.filter(|session| session.state == SessionState::LoggedIn)
        else {
            return false;
        };
        let (iqn, portal) = (session.target.iqn.clone(), session.target.portal);
        let hctl = Hctl { host, channel: 0, target: 0, lun };
        if self.kernel.disks.iter().any(|disk| disk.hctl == hctl) {
            return false;
        }
        let Some(volume) = self.storage.behind(&iqn, lun) else { return false };
        let (name, number) = self.kernel.new_disk_name();
        let diskseq = self.kernel.next_diskseq();
        self.kernel.disks.push(SimDisk {
            hctl,
            name,
            number,
            diskseq,
            wwid: self.storage.identity(volume, lun),
            size_bytes: self.storage.shown_size_of(volume),
            iqn,
            seen: volume,
            read_only: false,
            appears_in: self.kernel.late.get(&portal).copied().unwrap_or(0),
            udev_lag: self.kernel.udev_lag,
            maker,
        });
        true
    }

    fn reread(&mut self, hctl: Hctl) -> bool {
        let Some(disk) = self.kernel.disks.iter_mut().find(|disk| disk.hctl == hctl) else {
            return false;
        };
        let Some(volume) = self.storage.behind(&disk.iqn, hctl.lun) else { return false };
        disk.wwid = self.storage.identity(volume, hctl.lun);
        disk.size_bytes = self.storage.shown_size_of(volume);
        disk.seen = volume;
        true
    }

    fn add_map(&mut self, wwid: &Wwid, devices: &[DeviceName]) -> Result<bool, HostError> {
        if self.kernel.no_maps {
            return Ok(false);
        }
        let mut waiting = false;
        for disk in self.kernel.disks.iter_mut().filter(|disk| devices.contains(&disk.name)) {
            waiting |= disk.udev_lag > 0;
            disk.udev_lag = disk.udev_lag.saturating_sub(1);
        }
        if waiting {
            return Ok(false);
        }
        let fitting = |disk: &&SimDisk| devices.contains(&disk.name) && &disk.wwid == wwid;
        let disks: Vec<&SimDisk> = self.kernel.disks.iter().filter(fitting).collect();
        let Some(first) = disks.first() else { return Err(injected()) };
        let (volume, size_bytes) = (first.seen, first.size_bytes);
        let names: Vec<DeviceName> = disks.iter().map(|disk| disk.name.clone()).collect();
        if let Some(map) = self.kernel.maps.iter_mut().find(|map| &map.wwid == wwid) {
            // As multipathd does: "failed to add new path, device size mismatch".
            if size_bytes != map.size_bytes {
                return Ok(false);
            }
            let before = map.members.len();
            map.members.extend(names);
            map.members.sort();
            map.members.dedup();
            return Ok(map.members.len() != before);
        }
        let (name, device, number) = self.kernel.new_map_name();
        let diskseq = self.kernel.next_diskseq();
        self.kernel.maps.push(SimMap {
            name,
            wwid: wwid.clone(),
            device,
            number,
            diskseq,
            size_bytes,
            read_only: false,
            node_in: self.kernel.udev_lag,
            members: names,
            holders: Vec::new(),
            queues: true,
            held: false,
            volume,
            maker: Maker::Attachd,
        });
        Ok(true)
    }

    fn remove_map(&mut self, volume: VolumeId, name: &str, wwid: &Wwid) -> Result<bool, HostError> {
        let is = |map: &SimMap| map.name == name && &map.wwid == wwid;
        let Some(map) = self.kernel.maps.iter().find(|map| is(map)).cloned() else {
            return Ok(false);
        };
        let mounted = self.kernel.mounts.iter().any(|mount| mount.number == map.number);
        if mounted || map.held || !map.holders.is_empty() {
            return Err(HostError::Busy { what: format!("map {name}"), by: Vec::new() });
        }
        self.guard_map(volume, &map);
        self.kernel.maps.retain(|map| !is(map));
        Ok(true)
    }

    /// The disk at an address, if it is still the one that is meant.
    fn meant(&self, hctl: Hctl, name: &DeviceName) -> Result<Option<SimDisk>, HostError> {
        match self.kernel.disks.iter().find(|disk| disk.hctl == hctl) {
            Some(disk) if &disk.name != name => {
                let (expected, found) = (name.clone(), Some(disk.name.clone()));
                Err(HostError::DeviceChanged { hctl, expected, found })
            }
            found => Ok(found.cloned()),
        }
    }

    fn delete_disk(
        &mut self,
        volume: VolumeId,
        hctl: Hctl,
        name: &DeviceName,
    ) -> Result<bool, HostError> {
        let Some(disk) = self.meant(hctl, name)? else { return Ok(false) };
        if self.kernel.maps.iter().any(|map| map.members.contains(name)) {
            return Err(HostError::Busy { what: name.to_string(), by: vec!["a map".to_owned()] });
        }
        self.guard_disk(volume, &disk);
        self.kernel.remove_disk(hctl);
        Ok(true)
    }

    fn cut_disk(
        &mut self,
        volume: VolumeId,
        hctl: Hctl,
        name: &DeviceName,
        maps: &[DeviceName],
    ) -> Result<bool, HostError> {
        let Some(disk) = self.meant(hctl, name)? else { return Ok(false) };
        let over = |map: &&SimMap| map.members.contains(name) && !maps.contains(&map.device);
        if let Some(map) = self.kernel.maps.iter().find(over) {
            return Err(HostError::Busy { what: name.to_string(), by: vec![map.name.clone()] });
        }
        self.guard_cut(volume, &disk);
        self.kernel.remove_disk(hctl);
        Ok(true)
    }

    /// Writes out what is held back, to whatever volume is behind the device by now.
    fn unmount(&mut self, volume: VolumeId, target: &Path) -> Result<bool, HostError> {
        let topmost = self.kernel.mounts.iter().rposition(|m| m.target == target);
        self.guard_unmount(volume, topmost);
        let Some(index) = topmost else { return Ok(false) };
        let mount = self.kernel.mounts[index].clone();
        if let Some(marker) = mount.unwritten {
            self.kernel.refresh_sessions(&self.storage);
            let behind = self.kernel.behind(mount.number, &self.storage);
            let map = self.kernel.maps.iter().find(|map| map.number == mount.number);
            if behind.is_none() && map.is_some_and(|map| map.queues) {
                let doing = format!("unmounting {}", target.display());
                return Err(HostError::TimedOut { doing, seconds: 60 });
            }
            self.kernel.mounts[index].unwritten = None;
            if let Some(behind) = behind {
                self.guard_use(volume, behind, "wrote what was held back");
                let content = Content::Filesystem { name: mount.fs_type.clone(), marker };
                self.storage.contents.insert(behind, content);
                self.expected.insert(behind, marker);
            }
        }
        if mount.busy {
            let what = format!("the mount at {}", target.display());
            return Err(HostError::Busy { what, by: vec!["process 7 (db)".to_owned()] });
        }
        self.kernel.mounts.remove(index);
        Ok(true)
    }

    fn unmount_lazily(&mut self, volume: VolumeId, target: &Path) -> bool {
        let topmost = self.kernel.mounts.iter().rposition(|m| m.target == target);
        self.guard_unmount(volume, topmost);
        let Some(index) = topmost else { return false };
        let mount = self.kernel.mounts.remove(index);
        self.guard_out_of_sight(&mount);
        for map in self.kernel.maps.iter_mut().filter(|map| map.number == mount.number) {
            map.held = mount.busy;
        }
        true
    }

    fn format(
        &mut self,
        volume: VolumeId,
        device: &DeviceId,
        filesystem: Filesystem,
        resume: bool,
        fault: Option<Fault>,
    ) -> Result<bool, HostError> {
        let found = self.read(device)?;
        let allowed = match &found {
            Contents::Blank => true,
            Contents::Data { .. } => resume,
            Contents::Filesystem { name } => resume && name == filesystem.name(),
            Contents::Signature { .. } => false,
        };
        if !allowed {
            return Err(HostError::NotBlank { device: device.name.clone(), found });
        }
        let behind = self.behind(device)?;
        self.guard_format(volume, behind);
        let cut = matches!(
            fault,
            Some(
                Fault::Error(When::During)
                    | Fault::Crash(When::During)
                    | Fault::Reboot(When::During)
                    | Fault::Hang(When::During)
            )
        );
        let content = if cut {
            Content::Remains { attachment: self.cinder.holding(volume) }
        } else {
            Content::Filesystem { name: filesystem.name().to_owned(), marker: 0 }
        };
        let size_bytes = self.kernel.size_of(&device.name).ok_or_else(injected)?;
        self.storage.filesystem_sizes.insert(behind, size_bytes);
        self.storage.contents.insert(behind, content);
        self.expected.insert(behind, 0);
        Ok(true)
    }

    /// As multipathd does it: it asks the first disk, and the kernel refuses a smaller one beside it.
    fn resize_map(
        &mut self,
        volume: VolumeId,
        name: &str,
        wwid: &Wwid,
        size_bytes: u64,
    ) -> Result<bool, HostError> {
        let not_grown = |why: &str| HostError::NotGrown { what: name.to_owned(), why: why.into() };
        let at = self.kernel.maps.iter().position(|map| map.name == name && &map.wwid == wwid);
        let Some(at) = at else { return Err(not_grown("it is gone")) };
        let map = self.kernel.maps[at].clone();
        if map.size_bytes == size_bytes {
            return Ok(false);
        }
        self.guard_resize(volume, &map, size_bytes);
        let smaller =
            |disk: &SimDisk| map.members.contains(&disk.name) && disk.size_bytes < size_bytes;
        if map.members.is_empty() || self.kernel.disks.iter().any(smaller) {
            return Err(not_grown("a disk is smaller"));
        }
        self.kernel.maps[at].size_bytes = size_bytes;
        Ok(true)
    }

    fn grow(
        &mut self,
        volume: VolumeId,
        device: &DeviceId,
        target: &Path,
        fault: Option<Fault>,
    ) -> Result<bool, HostError> {
        let there = self.kernel.mounts.iter().rfind(|mount| mount.target == target);
        if there.is_none_or(|mount| mount.number != device.number) {
            let (what, why) = (device.to_string(), "it is not mounted there".to_owned());
            return Err(HostError::NotGrown { what, why });
        }
        let behind = self.behind(device)?;
        let size_bytes = self.kernel.size_of(&device.name).ok_or_else(injected)?;
        self.guard_grow(volume, behind, size_bytes);
        let size = self.storage.filesystem_sizes.entry(behind).or_default();
        let before = *size;
        // Block group after block group: one that is cut short has grown by some.
        let partly = matches!(
            fault,
            Some(
                Fault::Error(When::During)
                    | Fault::Crash(When::During)
                    | Fault::Reboot(When::During)
                    | Fault::Hang(When::During)
            )
        );
        *size = if partly { before.midpoint(size_bytes) } else { size_bytes };
        Ok(before != size_bytes)
    }

    fn mount(
        &mut self,
        volume: VolumeId,
        device: &DeviceId,
        filesystem: Filesystem,
        target: &Path,
        read_only: bool,
    ) -> Result<bool, HostError> {
        let number = device.number;
        if let Some(there) = self.kernel.mounts.iter().rfind(|mount| mount.target == target) {
            if there.number == number {
                return Ok(false);
            }
            let what = format!("mount point {}", target.display());
            return Err(HostError::Busy { what, by: vec![there.source.clone()] });
        }
        if let MountTarget::Unusable { why } = self.kernel.mount_target(target) {
            return Err(HostError::MountPoint { path: target.to_owned(), why });
        }
        let behind = self.behind(device)?;
        match &self.storage.contents[&behind] {
            Content::Filesystem { name, .. } if name == filesystem.name() => {}
            _ => return Err(injected()),
        }
        self.guard_use(volume, behind, "mounted");
        self.kernel.directories.entry(target.to_owned()).or_insert(false);
        self.kernel.mounts.push(SimMount {
            number,
            source: device.name.path().display().to_string(),
            target: target.to_owned(),
            fs_type: filesystem.name().to_owned(),
            read_only,
            errors: false,
            volume: Some(volume),
            busy: false,
            unwritten: None,
            maker: Maker::Attachd,
        });
        Ok(true)
    }
}
