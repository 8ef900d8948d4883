//! From the disks to the mount: the device above them, what it holds, where it is used.

use super::{Awaited, Settled, attach::mount_target_usable, disks::Road, refuse, step, wait};
use crate::{
    attach::{FormatProgress, Refusal, Step},
    model::{
        AccessMode, Contents, DeviceId, DeviceName, Filesystem, FormatPolicy, MultipathMap,
        ScsiDevice, Usage, Wwid,
    },
};

/// The device that a volume is used through.
pub(super) struct Device<'a> {
    pub(super) id: DeviceId,
    read_only: bool,
    holders: &'a [DeviceName],
    /// Its lasting path is there: a disk has one from the kernel, a map from udev.
    lasting: bool,
}

impl<'a> Road<'a> {
    /// A map that holds exactly these disks.
    pub(super) fn map(&self, wwid: &Wwid, disks: &[&'a ScsiDevice]) -> Settled<Device<'a>> {
        let host = &self.observed.host;
        let over = disks.iter().find_map(|disk| host.map_of(disk));
        let map = over.or_else(|| host.maps.iter().find(|map| &map.wwid == wwid));
        let Some(map) = map else {
            let names = disks.iter().map(|disk| disk.name.clone()).collect();
            if self.observed.attempt.overdue.map {
                return refuse(Refusal::NoMap { volume: self.spec.volume, wwid: wwid.clone() });
            }
            return self.add_map(wwid, names, "the disks are that volume, and no map is over them");
        };
        let never_used = !self.record.completed && !self.record.mounted;
        // multipathd gives an empty map no disk of another size, nor another size: it has no disk to ask.
        let outgrown = disks.iter().any(|disk| disk.size_bytes != map.size_bytes);
        if map.members.is_empty() && (never_used || outgrown) {
            // What it still holds back is another volume's, where the storage gives a WWID again.
            self.nobody_uses(&map.name, map.number, &map.holders)?;
            return step(
                Step::RemoveMap { name: map.name.clone(), wwid: map.wwid.clone() },
                "a map of that identity is left from before, without disks",
            );
        }
        self.map_is_sound(map, wwid, disks)?;
        // multipathd takes no disk of another size than the map's: after an extension the map is
        // resized first.
        let lacking: Vec<DeviceName> = disks
            .iter()
            .filter(|disk| disk.size_bytes == map.size_bytes)
            .map(|disk| disk.name.clone())
            .filter(|name| map.members.iter().all(|member| &member.device != name))
            .collect();
        if !lacking.is_empty() && !self.observed.attempt.overdue.map {
            return self.add_map(
                wwid,
                lacking,
                &format!("map {} lacks disks of the volume", map.name),
            );
        }
        Ok(Device {
            id: DeviceId { name: map.device.clone(), number: map.number, diskseq: map.diskseq },
            read_only: map.read_only,
            holders: &map.holders,
            lasting: map.node.is_some(),
        })
    }

    fn add_map<T>(&self, wwid: &Wwid, devices: Vec<DeviceName>, why: &str) -> Settled<T> {
        if self.observed.attempt.map_asked {
            return wait(
                Awaited::Map { wwid: wwid.clone() },
                "multipathd takes a disk only after udev has handled it",
            );
        }
        step(Step::AddMap { wwid: wwid.clone(), devices }, why)
    }

    pub(super) fn map_is_sound(
        &self,
        map: &MultipathMap,
        wwid: &Wwid,
        disks: &[&ScsiDevice],
    ) -> Settled {
        let volume = self.spec.volume;
        if &map.wwid != wwid {
            let what = format!("map {} was made for {}, its disk is {wwid}", map.name, map.wwid);
            return refuse(Refusal::Identity { volume, what });
        }
        // A member whose session is recovering, or whose disk just went, is ours all the same.
        let recorded_hosts: Vec<u32> = self
            .record
            .paths
            .iter()
            .filter_map(|path| self.observed.host.session(&path.target))
            .map(|session| session.host)
            .collect();
        let ours = |name: &DeviceName| match self.observed.host.device(name) {
            Some(disk) => {
                recorded_hosts.contains(&disk.hctl.host) && disk.wwid.as_ref() == Some(wwid)
            }
            None => false,
        };
        let foreign: Vec<DeviceName> = map
            .members
            .iter()
            .map(|member| member.device.clone())
            .filter(|name| !ours(name))
            .collect();
        if !foreign.is_empty() {
            return refuse(Refusal::ForeignDiskInMap { volume, map: map.name.clone(), foreign });
        }
        if let Some(disk) = disks.iter().find(|disk| disk.size_bytes != map.size_bytes)
            && !self.record.completed
        {
            let what = format!(
                "map {} has {} bytes, {} has {} bytes",
                map.name, map.size_bytes, disk.name, disk.size_bytes
            );
            return refuse(Refusal::Identity { volume, what });
        }
        Ok(())
    }

    pub(super) fn single_disk(&self, disk: &'a ScsiDevice) -> Settled<Device<'a>> {
        if let Some(map) = self.observed.host.map_of(disk) {
            return refuse(Refusal::ClaimedByMultipath {
                volume: self.spec.volume,
                device: disk.name.clone(),
                map: map.name.clone(),
            });
        }
        Ok(Device {
            id: DeviceId { name: disk.name.clone(), number: disk.number, diskseq: disk.diskseq },
            read_only: disk.read_only,
            holders: &disk.holders,
            lasting: true,
        })
    }

    /// The path that a user is told, and that the mount table shows, leads to the device. Whoever
    /// wrote to it before udev has made it would write to a plain file. Asked as late as can be:
    /// udev works while the contents are read and formatted.
    fn lasting(&self, device: &Device<'_>) -> Settled {
        match &self.record.wwid {
            Some(wwid) if !device.lasting && !self.observed.attempt.overdue.map => wait(
                Awaited::Map { wwid: wwid.clone() },
                "the map is there, and udev has not made its node in /dev/mapper yet",
            ),
            _ => Ok(()),
        }
    }

    /// The device is used as asked.
    pub(super) fn used(&self, device: &Device<'_>, disks: &[&ScsiDevice]) -> Settled {
        if self.spec.mode == AccessMode::Ro && !device.read_only {
            let mut devices: Vec<DeviceName> = disks.iter().map(|disk| disk.name.clone()).collect();
            if self.record.multipath {
                devices.push(device.id.name.clone());
            }
            return step(Step::SetReadOnly { devices }, "the volume is attached read-only");
        }
        let Usage::Filesystem { filesystem, format, mount_path, options } = &self.spec.usage else {
            if self.record.completed {
                return Ok(());
            }
            self.lasting(device)?;
            // Nobody was given it yet.
            return self.nobody_uses(device.id.name.as_str(), device.id.number, device.holders);
        };
        if let Some(entry) = self.observed.host.mount_at(mount_path) {
            if entry.number == device.id.number {
                return Ok(());
            }
            return refuse(Refusal::MountPath {
                volume: self.spec.volume,
                path: mount_path.clone(),
                why: format!("{} is mounted there", entry.source),
            });
        }
        if let Some(entry) = self.observed.host.mounts_of(device.id.number).next() {
            return refuse(Refusal::InUse {
                volume: self.spec.volume,
                device: device.id.name.to_string(),
                by: format!("a mount on {}", entry.target.display()),
            });
        }
        mount_target_usable(self.spec, self.observed)?;
        self.filesystem(device, *filesystem, *format)?;
        self.lasting(device)?;
        step(
            Step::Mount {
                device: device.id.clone(),
                filesystem: *filesystem,
                target: mount_path.clone(),
                read_only: self.spec.mode == AccessMode::Ro,
                options: options.clone(),
            },
            "the device holds a sound file system, and is not mounted",
        )
    }

    fn filesystem(
        &self,
        device: &Device<'_>,
        filesystem: Filesystem,
        format: FormatPolicy,
    ) -> Settled {
        let attempt = &self.observed.attempt;
        let volume = self.spec.volume;
        let contents = match &attempt.contents {
            Some((read, contents)) if *read == device.id => contents,
            _ => {
                return step(
                    Step::Probe { device: device.id.clone() },
                    "what is on the device decides whether it is formatted, checked or left alone",
                );
            }
        };
        let format_step = |resume, why: &str| {
            step(Step::Format { device: device.id.clone(), filesystem, resume }, why)
        };
        let found = match contents {
            Contents::Filesystem { name } if name == filesystem.name() => {
                if attempt.checked || self.spec.mode == AccessMode::Ro {
                    return Ok(());
                }
                return step(
                    Step::Check { device: device.id.clone(), filesystem },
                    "the file system may not have been unmounted cleanly",
                );
            }
            Contents::Blank => {
                let device = device.id.name.clone();
                if self.spec.mode == AccessMode::Ro {
                    let why = "the volume is attached read-only";
                    return refuse(Refusal::Blank { volume, device, why });
                }
                if format == FormatPolicy::Never {
                    return refuse(Refusal::Blank { volume, device, why: "format is \"never\"" });
                }
                if self.held_a_file_system() {
                    let why =
                        "it held a file system under this very attachment: look at the storage";
                    return refuse(Refusal::Blank { volume, device, why });
                }
                return format_step(
                    false,
                    "the device was read and is blank, and a format was asked for",
                );
            }
            Contents::Filesystem { name } => {
                return refuse(Refusal::OtherFilesystem {
                    volume,
                    device: device.id.name.clone(),
                    found: name.clone(),
                    wanted: filesystem,
                });
            }
            Contents::Signature { name } => name.clone(),
            // A format writes the file system's signature last, and nobody else's ever.
            Contents::Data { .. } if self.format_was_cut_short() => {
                return format_step(true, "a format of this very attachment was cut short");
            }
            Contents::Data { offset } => {
                format!("data (the first byte that is not zero is at {offset})")
            }
        };
        refuse(Refusal::NotBlank { volume, device: device.id.name.clone(), found })
    }

    fn held_a_file_system(&self) -> bool {
        self.record.format == FormatProgress::Done || self.record.mounted || self.record.completed
    }

    /// The attachment has been this node's alone since a format began, and the volume was never
    /// handed out: what is on it is what the format left. A volume of many nodes may be another's.
    fn format_was_cut_short(&self) -> bool {
        let alone = self.observed.volume.as_ref().is_some_and(|volume| !volume.multiattach);
        self.record.format == FormatProgress::Started
            && alone
            && !self.record.mounted
            && !self.record.completed
    }
}
