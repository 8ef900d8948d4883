//! The road back, in the only safe order: mount, map, disks, sessions, attachment, record. Where
//! what was not written is given up, the disks go first: nothing can write through them then.

use std::collections::BTreeSet;

use super::{Awaited, Next, Settled, attach::no_lost_reservation, phase_of, refuse, step, wait};
use crate::{
    attach::{AttachmentView, Observed, Phase, Record, Refusal, Reservation, Step},
    model::{
        DeviceName, DeviceNumber, DeviceState, MountEntry, MultipathMap, ScsiDevice, Session,
        Target, TargetPath,
    },
};

pub(super) fn phases_after(next: &Next, record: Option<&Record>) -> Vec<Phase> {
    let mut road = Vec::new();
    let cut = record.is_some_and(|record| record.cut)
        || matches!(next, Next::Do(Step::GiveUp { .. } | Step::Cut { .. }));
    if record.is_some_and(|record| record.spec.mount_path().is_some()) {
        road.push(Phase::Unmount);
    }
    if record.is_some_and(|record| record.multipath) {
        road.push(Phase::RemoveMap);
    }
    if !cut {
        road.push(Phase::DeleteDevices);
    }
    road.extend([Phase::LogOut, Phase::DeleteAttachment, Phase::Forget]);
    let here = phase_of(next);
    road.into_iter().filter(|phase| Some(*phase) > here).collect()
}

pub(super) fn settle(force: bool, record: Option<&Record>, observed: &Observed) -> Settled {
    let Some(record) = record else { return Ok(()) };
    if let AttachmentView::Known { info: Some(info), .. } = &observed.attachment
        && record.paths.is_empty()
    {
        return step(
            Step::RecordPaths { paths: info.paths.clone() },
            "Cinder exports the volume to this node, and where is not recorded",
        );
    }
    let road = Road { record, observed };
    let disks = road.disks();
    let maps = road.maps(&disks);
    let cut = if record.cut { None } else { road.must_be_cut(force, &disks, &maps) };
    if !record.cut && cut.is_none() {
        road.disks_to_come()?;
    }
    // Everything that could object is asked before the first change.
    road.nobody_elses_disks()?;
    road.nobody_else(&disks, &maps)?;
    if let Some(why) = cut {
        return step(Step::GiveUp { volume: record.spec.volume }, why);
    }
    if record.cut {
        road.cut(&disks, &maps)?;
        road.disks_to_come()?;
    }
    road.unmount(&disks, &maps)?;
    let held = &observed.attempt.held_maps;
    if let Some(map) = maps.iter().find(|map| !held.contains_key(&map.name)) {
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
            "attachd logged in to these targets, and they carry nothing",
        );
    }
    let disown = road.left_targets();
    let unreleased = !record.released && !record.paths.is_empty() || !disown.is_empty();
    // A map that is left might take up a disk of the volume that is given this one's place.
    if unreleased && maps.is_empty() {
        return step(Step::Release { disown }, "no disk of the volume is on this node any more");
    }
    match record.reservation {
        Reservation::Held(attachment) if observed.attachment != AttachmentView::Gone => {
            return step(
                Step::DeleteAttachment { attachment },
                "nothing of the volume is left on this node",
            );
        }
        Reservation::Held(_) => {}
        Reservation::Asked => no_lost_reservation(record, observed)?,
    }
    if let Some(map) = maps.first() {
        return refuse(Refusal::StillHeld {
            volume: record.spec.volume,
            map: map.name.clone(),
            why: held.get(&map.name).cloned().unwrap_or_default(),
        });
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
    /// Other volumes' records that stand for something on this node.
    fn others(&self) -> impl Iterator<Item = &'a Record> {
        self.observed.others.records.iter().filter(|other| !other.released)
    }

    /// The storage gave the address to another volume of this node meanwhile.
    fn successor(&self, path: &TargetPath) -> Option<&'a Record> {
        let settled = |other: &&Record| self.record.released || other.wwid.is_some();
        self.others().filter(settled).find(|other| other.names_unit_of(path))
    }

    /// The disks of a logical unit, through whatever portal.
    fn disks_at(&self, path: &TargetPath) -> impl Iterator<Item = &'a ScsiDevice> {
        let host = &self.observed.host;
        self.sessions_of(path)
            .flat_map(|session| host.devices_of(session))
            .filter(move |disk| disk.hctl.lun == path.lun.0)
    }

    fn sessions_of(&self, path: &TargetPath) -> impl Iterator<Item = &'a Session> {
        self.observed.host.sessions.iter().filter(move |found| found.iqn == path.target.iqn)
    }

    /// Disks of a volume that was taken away stand where this one is exported: once this attachment
    /// is deleted, they would show yet another volume.
    fn nobody_elses_disks(&self) -> Settled {
        for path in self.record.paths.iter().filter(|_| !self.record.released) {
            if let Some(other) = self.successor(path)
                && self.disks_at(path).next().is_some()
            {
                return refuse(Refusal::AddressTaken {
                    volume: self.record.spec.volume,
                    by: other.spec.volume,
                    path: path.clone(),
                });
            }
        }
        Ok(())
    }

    /// A scan that was cut short leaves disks that the kernel is still making: they would come after
    /// the attachment is gone.
    fn disks_to_come(&self) -> Settled {
        let mut awaited = Vec::new();
        for path in self.record.paths.iter().filter(|path| self.successor(path).is_none()) {
            for session in self.sessions_of(path) {
                let nascent = self.observed.host.nascent_of(session).any(|lun| lun == path.lun);
                let target = Target { iqn: session.iqn.clone(), portal: session.portal };
                if nascent && !awaited.contains(&target) {
                    awaited.push(target);
                }
            }
        }
        if awaited.is_empty() || self.observed.attempt.overdue.disks {
            return Ok(());
        }
        wait(Awaited::Disks { targets: awaited }, "the kernel is still making disks of the volume")
    }

    /// The disks at this attachment's addresses.
    fn disks(&self) -> Vec<&'a ScsiDevice> {
        let mut disks: Vec<&ScsiDevice> = Vec::new();
        for path in self.record.paths.iter().filter(|path| self.successor(path).is_none()) {
            for disk in self.disks_at(path) {
                if disks.iter().all(|known| known.hctl != disk.hctl) {
                    disks.push(disk);
                }
            }
        }
        disks
    }

    /// Why this node must not, or can't, write what it holds back.
    fn must_be_cut(
        &self,
        force: bool,
        disks: &[&ScsiDevice],
        maps: &[&MultipathMap],
    ) -> Option<String> {
        let lost = self.record.spec.mount_path().and_then(|path| self.observed.host.mount_at(path));
        let there =
            !disks.is_empty() || !maps.is_empty() || lost.is_some_and(|mount| self.is_lost(mount));
        if self.record.released || !there {
            return None;
        }
        if self.observed.attachment == AttachmentView::Gone {
            let why = "Cinder has the attachment no more: the volume may be another node's by now";
            return Some(why.to_owned());
        }
        if !force {
            return None;
        }
        if let Some(why) = &self.observed.attempt.blocked {
            return Some(format!("force was asked for, and without it there is no way: {why}"));
        }
        let fails = |disk: &&ScsiDevice| disk.state == DeviceState::Offline;
        (!maps.is_empty() || lost.is_some()).then_some(())?;
        disks.iter().all(fails).then(|| {
            "force was asked for, and no path to the volume is left to write by".to_owned()
        })
    }

    /// No I/O of this node reaches the volume any more.
    fn cut(&self, disks: &[&ScsiDevice], maps: &[&MultipathMap]) -> Settled {
        let unqueued = &self.observed.attempt.unqueued;
        let queueing = maps.iter().any(|map| !unqueued.contains(&map.device));
        if disks.is_empty() && !queueing {
            return Ok(());
        }
        step(
            Step::Cut {
                maps: maps.iter().map(|map| (map.device.clone(), map.name.clone())).collect(),
                devices: disks.iter().map(|disk| (disk.hctl, disk.name.clone())).collect(),
            },
            "what was not written is given up, and must not reach the volume later",
        )
    }

    /// The maps over them, and a ghost of ours: a map of the recorded identity with no disk left.
    fn maps(&self, disks: &[&ScsiDevice]) -> Vec<&'a MultipathMap> {
        let ours = |map: &&MultipathMap| {
            let over_disk = |disk: &&ScsiDevice| map.members.iter().any(|m| m.device == disk.name);
            let anothers = || self.others().any(|other| other.wwid.as_ref() == Some(&map.wwid));
            let ghost = self.record.wwid.as_ref() == Some(&map.wwid)
                && map.members.is_empty()
                && !anothers();
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
            let foreign = map.members_beside(disks);
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
        for (device, number) in devices(disks, maps) {
            if let Some(mount) = self.observed.host.mounts_of(number).next() {
                // An unmount takes what was mounted last.
                let over = self.observed.host.mount_at(&mount.target);
                if let Some(over) = over.filter(|over| over.number != number) {
                    let by =
                        format!("{}, mounted over it on {}", over.source, over.target.display());
                    return self.in_use(&device, by);
                }
                return self.unmount_from(mount, "the volume is mounted, and nothing else uses it");
            }
        }
        let Some(path) = self.record.spec.mount_path() else { return Ok(()) };
        let there = self.observed.host.mount_at(path);
        if let Some(mount) = there.filter(|mount| self.is_lost(mount)) {
            return self.unmount_from(mount, "the volume is mounted, and its device is lost");
        }
        // Under somebody else's mount the directory stays.
        if self.record.made_directory && there.is_none() {
            return step(
                Step::RemoveDirectory { target: path.to_owned() },
                "attachd made the directory for the mount",
            );
        }
        Ok(())
    }

    fn unmount_from(&self, mount: &MountEntry, why: &str) -> Settled {
        let target = mount.target.clone();
        if self.record.cut && self.observed.attempt.mount_busy {
            let why = "processes keep the mount, and nothing is behind it any more";
            return step(Step::UnmountLazily { target }, why);
        }
        step(Step::Unmount { target }, why)
    }

    /// A mount of ours whose device the kernel has no more.
    fn is_lost(&self, mount: &MountEntry) -> bool {
        let alive = self.observed.host.has_device(mount.number);
        self.record.mounted && self.record.mount_device == Some(mount.number) && !alive
    }

    /// Targets of this record that no other one needs.
    fn unshared_targets(&self) -> BTreeSet<Target> {
        if self.observed.others.unreadable {
            return BTreeSet::new();
        }
        let mut targets = self.record.targets();
        for other in self.others() {
            for path in &other.paths {
                targets.remove(&path.target);
            }
        }
        targets
    }

    fn sessions_to(&self, target: &Target) -> impl Iterator<Item = &'a Session> {
        self.observed.host.sessions.iter().filter(move |session| session.is_to(target))
    }

    /// Targets that attachd logged in to, that carry no disk, and that no other record needs. Where no
    /// session is left, there may still be a node record.
    fn idle_targets(&self) -> Vec<Target> {
        let mut targets = self.unshared_targets();
        targets.retain(|target| {
            let Some(mark) = self.observed.owned_targets.get(target) else { return false };
            let mut sessions = self.sessions_to(target).peekable();
            if sessions.peek().is_none() {
                return !self.observed.attempt.logged_out.contains(target);
            }
            let left = self.observed.attempt.left_sessions.contains(target);
            !left
                && sessions.all(|session| mark.of_session(session) && self.carries_nothing(session))
        });
        targets.into_iter().collect()
    }

    /// No disk, nor one to come; but one of this volume that doesn't come (see [`Self::disks_to_come`]).
    fn carries_nothing(&self, session: &Session) -> bool {
        let host = &self.observed.host;
        let own = |lun| self.record.paths.iter().any(|path| path.lun == lun);
        host.devices_of(session).next().is_none() && host.nascent_of(session).all(own)
    }

    /// Targets that attachd has nothing at any more, or that somebody else has by now.
    fn left_targets(&self) -> Vec<Target> {
        let mut targets = self.unshared_targets();
        targets.retain(|target| {
            let mark = self.observed.owned_targets.get(target);
            mark.is_some_and(|mark| !self.sessions_to(target).any(|s| mark.of_session(s)))
        });
        targets.into_iter().collect()
    }
}

fn devices(disks: &[&ScsiDevice], maps: &[&MultipathMap]) -> Vec<(String, DeviceNumber)> {
    let maps = maps.iter().map(|map| (map.name.clone(), map.number));
    maps.chain(disks.iter().map(|disk| (disk.name.to_string(), disk.number))).collect()
}
