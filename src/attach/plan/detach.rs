//! The road back, in the only safe order: mount, map, disks, sessions, attachment, record.

use std::collections::BTreeSet;

use super::{Next, Settled, attach::no_lost_reservation, phase_of, refuse, step};
use crate::{
    attach::{AttachmentView, Observed, Phase, Record, Refusal, Reservation, Step},
    model::{DeviceName, DeviceNumber, MultipathMap, ScsiDevice, Target},
};

pub(super) fn phases_after(next: &Next, record: Option<&Record>) -> Vec<Phase> {
    let mut road = Vec::new();
    if record.is_some_and(|record| record.spec.mount_path().is_some()) {
        road.push(Phase::Unmount);
    }
    if record.is_some_and(|record| record.multipath) {
        road.push(Phase::RemoveMap);
    }
    road.extend([Phase::DeleteDevices, Phase::LogOut, Phase::DeleteAttachment, Phase::Forget]);
    let here = phase_of(next);
    road.into_iter().filter(|phase| Some(*phase) > here).collect()
}

pub(super) fn settle(record: Option<&Record>, observed: &Observed) -> Settled {
    let Some(record) = record else { return Ok(()) };
    let road = Road { record, observed };
    let disks = road.disks();
    let maps = road.maps(&disks);
    // Everything that could object is asked before the first change.
    road.nobody_else(&disks, &maps)?;
    road.unmount(&disks, &maps)?;
    if let Some(map) = maps.first() {
        return step(
            Step::RemoveMap { name: map.name.clone(), wwid: map.wwid.clone() },
            "nothing is mounted from the map any more",
        );
    }
    if !disks.is_empty() {
        let devices = disks.iter().map(|disk| (disk.hctl, disk.name.clone())).collect();
        return step(Step::DeleteDevices { devices }, "no map is over the disks any more");
    }
    let idle = road.idle_targets();
    if !idle.is_empty() {
        return step(
            Step::LogOut { targets: idle },
            "attachd made these sessions, and they carry nothing",
        );
    }
    match record.reservation {
        Reservation::Held(attachment) if observed.attachment != AttachmentView::Gone => {
            return step(
                Step::DeleteAttachment { attachment },
                "nothing of the volume is left on this node",
            );
        }
        Reservation::Held(_) => {}
        Reservation::Asked => no_lost_reservation(&record.spec, observed)?,
    }
    step(
        Step::Forget { volume: record.spec.volume },
        "the node and Cinder hold nothing of the attachment any more",
    )
}

struct Road<'a> {
    record: &'a Record,
    observed: &'a Observed,
}

impl<'a> Road<'a> {
    /// The disks at this attachment's addresses.
    fn disks(&self) -> Vec<&'a ScsiDevice> {
        let host = &self.observed.host;
        let mut disks: Vec<&ScsiDevice> = Vec::new();
        for path in &self.record.paths {
            for session in host.sessions.iter().filter(|session| session.is_to(&path.target)) {
                disks.extend(host.devices_of(session).filter(|disk| disk.hctl.lun == path.lun.0));
            }
        }
        disks
    }

    /// The maps over them, and a ghost of ours: a map of the recorded identity with no disk left.
    fn maps(&self, disks: &[&ScsiDevice]) -> Vec<&'a MultipathMap> {
        let ours = |map: &&MultipathMap| {
            let over_disk = |disk: &&ScsiDevice| map.members.iter().any(|m| m.device == disk.name);
            let ghost = self.record.wwid.as_ref() == Some(&map.wwid) && map.members.is_empty();
            disks.iter().any(over_disk) || ghost
        };
        self.observed.host.maps.iter().filter(ours).collect()
    }

    fn in_use<T>(&self, device: &str, by: String) -> Settled<T> {
        refuse(Refusal::InUse { volume: self.record.spec.volume, device: device.to_owned(), by })
    }

    /// No other mount, no holder, no foreign disk in a map.
    fn nobody_else(&self, disks: &[&ScsiDevice], maps: &[&MultipathMap]) -> Settled {
        let own_map = |holder: &DeviceName| maps.iter().any(|map| &map.device == holder);
        for map in maps {
            let foreign: Vec<DeviceName> = map
                .members
                .iter()
                .map(|member| member.device.clone())
                .filter(|name| disks.iter().all(|disk| &disk.name != name))
                .collect();
            if !foreign.is_empty() {
                return refuse(Refusal::ForeignDiskInMap {
                    volume: self.record.spec.volume,
                    map: map.name.clone(),
                    foreign,
                });
            }
            if let Some(holder) = map.holders.first() {
                return self.in_use(&map.name, holder.to_string());
            }
        }
        for disk in disks {
            if let Some(holder) = disk.holders.iter().find(|holder| !own_map(holder)) {
                return self.in_use(disk.name.as_str(), holder.to_string());
            }
        }
        for (device, number) in devices(disks, maps) {
            let foreign =
                self.observed.host.mounts_of(number).find(|mount| !self.is_own(&mount.target));
            if let Some(mount) = foreign {
                return self.in_use(&device, format!("a mount on {}", mount.target.display()));
            }
        }
        Ok(())
    }

    fn is_own(&self, target: &std::path::Path) -> bool {
        self.record.mounted && self.record.spec.mount_path() == Some(target)
    }

    fn unmount(&self, disks: &[&ScsiDevice], maps: &[&MultipathMap]) -> Settled {
        for (_, number) in devices(disks, maps) {
            if let Some(mount) = self.observed.host.mounts_of(number).next() {
                return step(
                    Step::Unmount { target: mount.target.clone() },
                    "the volume is mounted, and nothing else uses it",
                );
            }
        }
        if let Some(path) = self.record.spec.mount_path()
            && self.record.made_directory
        {
            return step(
                Step::RemoveDirectory { target: path.to_owned() },
                "attachd made the directory for the mount",
            );
        }
        Ok(())
    }

    /// Targets that attachd logged in to, that carry no disk, and that no other volume's record names.
    fn idle_targets(&self) -> Vec<Target> {
        let host = &self.observed.host;
        let idle = |target: &Target| {
            let mut sessions = host.sessions.iter().filter(|session| session.is_to(target));
            sessions.all(|session| host.devices_of(session).next().is_none())
        };
        let targets: BTreeSet<Target> = self.record.targets();
        targets
            .into_iter()
            .filter(|target| {
                self.observed.owned_targets.contains(target)
                    && !self.observed.shared_targets.contains(target)
                    && idle(target)
            })
            .collect()
    }
}

fn devices(disks: &[&ScsiDevice], maps: &[&MultipathMap]) -> Vec<(String, DeviceNumber)> {
    let maps = maps.iter().map(|map| (map.name.clone(), map.number));
    maps.chain(disks.iter().map(|disk| (disk.name.to_string(), disk.number))).collect()
}
