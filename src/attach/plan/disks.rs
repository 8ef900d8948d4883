//! From the targets to the disks, and whether they are the volume.

use super::{Awaited, Settled, refuse, step, wait};
use crate::{
    attach::{Observed, Record, Refusal, Step, identity::shared_identity},
    model::{
        AttachSpec, DeviceName, DeviceNumber, Hctl, ScsiDevice, Session, SessionState, TargetPath,
        Wwid,
    },
};

/// What the questions below the device are asked of.
pub(super) struct Road<'a> {
    pub(super) spec: &'a AttachSpec,
    pub(super) record: &'a Record,
    pub(super) observed: &'a Observed,
}

impl<'a> Road<'a> {
    /// The paths that are used: all for a map, else the first whose target lets us in.
    fn wanted(&self) -> Vec<&'a TargetPath> {
        let paths = self.record.paths.iter();
        if self.record.multipath {
            return paths.collect();
        }
        let attempt = &self.observed.attempt;
        let gave_up = |path: &&TargetPath| {
            let session = self.observed.host.session(&path.target);
            attempt.overdue.sessions
                && session.is_some_and(|session| session.state != SessionState::LoggedIn)
        };
        let paths = paths.filter(|path| !gave_up(path));
        // A path that works already is kept, whatever stands before it in the list.
        let works = |path: &&TargetPath| self.disk_at(path).is_some();
        let open = |path: &&TargetPath| !attempt.failed_logins.contains_key(&path.target);
        paths.clone().find(works).or_else(|| paths.clone().find(open)).into_iter().collect()
    }

    pub(super) fn disk_at(&self, path: &TargetPath) -> Option<&'a ScsiDevice> {
        self.observed.host.disk_at(path)
    }

    fn is_nascent(&self, session: &Session, path: &TargetPath) -> bool {
        self.observed.host.nascent_of(session).any(|lun| lun == path.lun)
    }

    /// Sessions, disks, identity: everything below the device that is used.
    pub(super) fn disks(&self) -> Settled<(Wwid, Vec<&'a ScsiDevice>)> {
        self.sessions()?;
        let disks = self.present()?;
        Ok((self.identity(&disks)?, disks))
    }

    fn sessions(&self) -> Settled {
        let attempt = &self.observed.attempt;
        let (mut missing, mut recovering) = (Vec::new(), Vec::new());
        for path in self.wanted() {
            let target = &path.target;
            if attempt.failed_logins.contains_key(target) {
                continue;
            }
            match self.observed.host.session(target) {
                None => missing.push(target.clone()),
                Some(session) if session.state != SessionState::LoggedIn => {
                    recovering.push(target.clone());
                }
                Some(_) => {}
            }
        }
        if !missing.is_empty() {
            let why = format!("{} of {} sessions are missing", missing.len(), self.wanted().len());
            return step(Step::LogIn { targets: missing }, why);
        }
        let usable = self.wanted().iter().any(|path| {
            let session = self.observed.host.session(&path.target);
            session.is_some_and(|session| session.state == SessionState::LoggedIn)
        });
        if usable {
            return Ok(());
        }
        if recovering.is_empty() || attempt.overdue.sessions {
            let mut failures: Vec<String> = attempt
                .failed_logins
                .iter()
                .map(|(target, why)| format!("{target}: {why}"))
                .collect();
            let lost = |session: &Session| session.state != SessionState::LoggedIn;
            for path in &self.record.paths {
                if self.observed.host.session(&path.target).is_some_and(lost) {
                    failures.push(format!("{}: its session does not recover", path.target));
                }
            }
            return refuse(Refusal::NoPath { volume: self.spec.volume, failures });
        }
        wait(Awaited::Sessions { targets: recovering }, "the sessions are there, and not logged in")
    }

    /// The disks that are there; each of them was scanned or read anew by this very attach.
    fn present(&self) -> Settled<Vec<&'a ScsiDevice>> {
        let attempt = &self.observed.attempt;
        let (mut absent, mut awaited, mut nascent) = (Vec::new(), Vec::new(), Vec::new());
        let (mut stale, mut unread, mut disks) = (Vec::new(), Vec::new(), Vec::new());
        for path in self.wanted() {
            let Some(session) = self.observed.host.session(&path.target) else { continue };
            if session.state != SessionState::LoggedIn {
                continue;
            }
            let address = (session.host, path.lun.0);
            match self.disk_at(path) {
                None if self.is_nascent(session, path) => nascent.push(path.target.clone()),
                None if attempt.scanned.contains(&address) => awaited.push(path.target.clone()),
                None => absent.push((session.host, path.lun)),
                Some(disk) => {
                    let fresh =
                        attempt.scanned.contains(&address) || attempt.reread.contains(&disk.hctl);
                    if self.record.wwid.is_none() && !attempt.scanned.contains(&address) {
                        stale.push(disk);
                    } else if !fresh && !self.is_used(disk) {
                        unread.push(disk.hctl);
                    }
                    disks.push(disk);
                }
            }
        }
        self.purge(&stale)?;
        if !absent.is_empty() {
            return step(
                Step::Scan { luns: absent },
                "the sessions are there, the disks are not; automatic scans are off",
            );
        }
        if !unread.is_empty() {
            return step(
                Step::Reread { devices: unread },
                "the disks were there before this run; what the kernel remembers of them may be old",
            );
        }
        // What is in use can do without a path whose LUN is missing, but not without any.
        if self.record.completed && !disks.is_empty() {
            awaited.clear();
        }
        awaited.append(&mut nascent);
        if !awaited.is_empty() && !attempt.overdue.disks {
            return wait(
                Awaited::Disks { targets: awaited },
                "the LUN was scanned on every session",
            );
        }
        if disks.is_empty() {
            let targets = awaited.iter().map(ToString::to_string).collect();
            return refuse(Refusal::LunMissing { volume: self.spec.volume, targets });
        }
        Ok(disks)
    }

    /// Disks at the volume's address that nobody vouches for: Cinder has only now exported it.
    fn purge(&self, stale: &[&ScsiDevice]) -> Settled {
        for disk in stale {
            if let Some(map) = self.observed.host.map_of(disk) {
                self.nobody_uses(&map.name, map.number, &map.holders)?;
                let foreign = map.members_beside(stale);
                if !foreign.is_empty() {
                    return refuse(Refusal::ForeignDiskInMap {
                        volume: self.spec.volume,
                        map: map.name.clone(),
                        foreign,
                    });
                }
                return step(
                    Step::RemoveMap { name: map.name.clone(), wwid: map.wwid.clone() },
                    "a map is left over a disk that stood at the volume's address before the volume",
                );
            }
            self.nobody_uses(disk.name.as_str(), disk.number, &disk.holders)?;
        }
        if stale.is_empty() {
            return Ok(());
        }
        let devices = stale.iter().map(|disk| (disk.hctl, disk.name.clone())).collect();
        step(
            Step::PurgeStale { devices },
            "disks stood at the volume's address before it was exported to this node",
        )
    }

    pub(super) fn nobody_uses(
        &self,
        device: &str,
        number: DeviceNumber,
        holders: &[DeviceName],
    ) -> Settled {
        let by = match (self.observed.host.mounts_of(number).next(), holders.first()) {
            (Some(mount), _) => format!("a mount on {}", mount.target.display()),
            (None, Some(holder)) => holder.to_string(),
            (None, None) => return Ok(()),
        };
        refuse(Refusal::InUse { volume: self.spec.volume, device: device.to_owned(), by })
    }

    /// The disk, or the map over it, is mounted or held: reading it anew could only disturb.
    fn is_used(&self, disk: &ScsiDevice) -> bool {
        let host = &self.observed.host;
        let in_use = |number| host.mounts_of(number).next().is_some();
        in_use(disk.number)
            || host.map_of(disk).is_some_and(|map| in_use(map.number) || !map.holders.is_empty())
            || self.record.completed
    }

    pub(super) fn identity(&self, disks: &[&'a ScsiDevice]) -> Settled<Wwid> {
        self.sizes(disks)?;
        let recorded = self.record.wwid.as_ref();
        // An attached volume may have been extended since; its size is judged before first use.
        let stated = self.observed.volume.as_ref().map(|volume| volume.size_gib);
        let size_gib = stated.filter(|_| !self.record.completed);
        let wwid = match shared_identity(self.spec.volume, size_gib, recorded, disks) {
            Ok(wwid) => wwid,
            Err(what) => return refuse(Refusal::Identity { volume: self.spec.volume, what }),
        };
        let ours = |disk: &ScsiDevice| {
            self.record
                .paths
                .iter()
                .any(|path| self.disk_at(path).is_some_and(|own| own.hctl == disk.hctl))
        };
        let twin = self
            .observed
            .host
            .devices
            .iter()
            .find(|disk| disk.wwid.as_ref() == Some(&wwid) && !ours(disk));
        if let Some(twin) = twin {
            return refuse(Refusal::IdentityTaken {
                volume: self.spec.volume,
                device: twin.name.clone(),
                hctl: twin.hctl,
                wwid,
            });
        }
        if recorded.is_none() {
            let size = if size_gib.is_some() { ", the size that Cinder states" } else { "" };
            let why = match disks.len() {
                1 => format!("one disk is there, and it has a WWID{size}"),
                count => format!("{count} disks are there and agree: same WWID, same size{size}"),
            };
            return step(Step::RecordIdentity { wwid }, why);
        }
        Ok(wwid)
    }

    /// A volume that was extended while it is used: the kernel learns of it path by path.
    fn sizes(&self, disks: &[&'a ScsiDevice]) -> Settled {
        let differ = disks.iter().any(|disk| disk.size_bytes != disks[0].size_bytes);
        let old: Vec<Hctl> = disks
            .iter()
            .map(|disk| disk.hctl)
            .filter(|hctl| !self.observed.attempt.reread.contains(hctl))
            .collect();
        if self.record.completed && differ && !old.is_empty() {
            return step(
                Step::Reread { devices: old },
                "the disks differ in size: the volume may have been extended",
            );
        }
        Ok(())
    }
}
