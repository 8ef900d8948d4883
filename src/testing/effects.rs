//! What operations do to the node.

use std::path::Path;

use super::{
    Content, Fault, When, World,
    host::injected,
    kernel::{Maker, SimDisk, SimMap, SimMount},
};
use crate::{
    host::{Applied, HostError, HostOp, MountTarget},
    model::{Contents, DeviceName, Filesystem, Hctl, SessionState, Target, VolumeId, Wwid},
};

impl World {
    /// What a device holds now.
    pub(super) fn read(&mut self, device: &DeviceName) -> Result<Contents, HostError> {
        let volume = self.behind(device)?;
        Ok(match &self.storage.contents[&volume] {
            Content::Blank => Contents::Blank,
            Content::Remains { .. } => Contents::Data { offset: 4096 },
            Content::Filesystem { name, .. } => Contents::Filesystem { name: name.clone() },
            Content::Raw { .. } => Contents::Data { offset: 0 },
        })
    }

    fn behind(&mut self, device: &DeviceName) -> Result<VolumeId, HostError> {
        self.kernel.refresh_sessions(&self.storage);
        let number = self.kernel.number(device).ok_or_else(injected)?;
        self.kernel.behind(number, &self.storage).ok_or_else(injected)
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
        self.event();
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
                    let new = !world.kernel.node_records.contains_key(target);
                    // One that somebody left there is overwritten: the database knows no owners.
                    world.kernel.node_records.insert(target.clone(), Maker::Attachd);
                    Ok(new)
                })
            }
            HostOp::Login { targets } => {
                self.each(targets, fault, ToString::to_string, World::log_in)
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
            HostOp::Unmount { target } => {
                let topmost = self.kernel.mounts.iter().rposition(|m| &m.target == target);
                self.guard_unmount(volume, topmost);
                if let Some(index) = topmost {
                    self.kernel.mounts.remove(index);
                }
                return done(topmost.is_some());
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
                    // iscsiadm finds sessions by their node records.
                    if world.kernel.node_records.remove(target).is_none() {
                        return Ok(false);
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
        self.kernel.disks.push(SimDisk {
            hctl,
            name,
            number,
            wwid: self.storage.identity(volume, lun),
            size_bytes: self.storage.size_of(volume),
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
        disk.size_bytes = self.storage.size_of(volume);
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
            let before = map.members.len();
            map.members.extend(names);
            map.members.sort();
            map.members.dedup();
            return Ok(map.members.len() != before);
        }
        let (name, device, number) = self.kernel.new_map_name();
        self.kernel.maps.push(SimMap {
            name,
            wwid: wwid.clone(),
            device,
            number,
            size_bytes,
            read_only: false,
            node_in: self.kernel.udev_lag,
            members: names,
            holders: Vec::new(),
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
        if mounted || !map.holders.is_empty() {
            return Err(HostError::Busy { what: format!("map {name}"), by: Vec::new() });
        }
        self.guard_map(volume, &map);
        self.kernel.maps.retain(|map| !is(map));
        Ok(true)
    }

    fn delete_disk(
        &mut self,
        volume: VolumeId,
        hctl: Hctl,
        name: &DeviceName,
    ) -> Result<bool, HostError> {
        let Some(disk) = self.kernel.disks.iter().find(|disk| disk.hctl == hctl).cloned() else {
            return Ok(false);
        };
        if &disk.name != name {
            let expected = name.clone();
            return Err(HostError::DeviceChanged { hctl, expected, found: Some(disk.name) });
        }
        if self.kernel.maps.iter().any(|map| map.members.contains(name)) {
            return Err(HostError::Busy { what: name.to_string(), by: vec!["a map".to_owned()] });
        }
        self.guard_disk(volume, &disk);
        self.kernel.remove_disk(hctl);
        Ok(true)
    }

    fn format(
        &mut self,
        volume: VolumeId,
        device: &DeviceName,
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
            return Err(HostError::NotBlank { device: device.clone(), found });
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
        self.storage.contents.insert(behind, content);
        self.expected.insert(behind, 0);
        Ok(true)
    }

    fn mount(
        &mut self,
        volume: VolumeId,
        device: &DeviceName,
        filesystem: Filesystem,
        target: &Path,
        read_only: bool,
    ) -> Result<bool, HostError> {
        let number = self.kernel.number(device).ok_or_else(injected)?;
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
            source: device.path().display().to_string(),
            target: target.to_owned(),
            fs_type: filesystem.name().to_owned(),
            read_only,
            volume: Some(volume),
            maker: Maker::Attachd,
        });
        Ok(true)
    }
}
