//! The road to an attached volume.

use super::{Awaited, Next, Settled, phase_of, refuse, step, wait};
use crate::{
    attach::{
        AttachmentView, FormatProgress, Observed, Phase, Record, Refusal, Reservation, Step,
        identity::shared_identity,
    },
    cinder::{AttachmentStatus, Volume},
    host::{MountTarget, NodeFacts},
    model::{
        AccessMode, AttachSpec, AttachmentId, Contents, DeviceName, DeviceNumber, Filesystem,
        FormatPolicy, MultipathMap, MultipathPolicy, Multipathd, ScsiDevice, SessionState,
        TargetPath, Usage, Wwid,
    },
};

/// The device that a volume is used through.
struct Device<'a> {
    name: &'a DeviceName,
    number: DeviceNumber,
    read_only: bool,
}

/// Whether a map will be made: settled before the reservation, kept in the record.
pub(in crate::attach) fn wants_map(spec: &AttachSpec, facts: Option<&NodeFacts>) -> bool {
    spec.multipath != MultipathPolicy::Disabled
        && facts.is_some_and(|facts| facts.multipathd == Multipathd::Claims)
}

pub(super) fn phases_after(next: &Next, spec: &AttachSpec, multipath: bool) -> Vec<Phase> {
    let mut road = vec![Phase::Reserve, Phase::Update, Phase::LogIn, Phase::Scan, Phase::Verify];
    if multipath {
        road.push(Phase::Map);
    }
    if spec.mount_path().is_some() {
        road.extend([Phase::Filesystem, Phase::Mount]);
    }
    road.push(Phase::Complete);
    let here = phase_of(next);
    road.into_iter().filter(|phase| Some(*phase) > here).collect()
}

pub(super) fn settle(spec: &AttachSpec, record: Option<&Record>, observed: &Observed) -> Settled {
    let Some(record) = record else {
        preconditions(spec, observed)?;
        reservable(spec, observed)?;
        return step(
            Step::Reserve { volume: spec.volume },
            "this node has no attachment of the volume, and the volume is available",
        );
    };
    same_request(spec, record)?;
    let attachment = match record.reservation {
        Reservation::Asked => {
            no_lost_reservation(spec, observed)?;
            reservable(spec, observed)?;
            return step(
                Step::Reserve { volume: spec.volume },
                "the reservation that was asked for never came to be",
            );
        }
        Reservation::Held(id) => id,
    };
    exported(spec, record, attachment, observed)?;
    let road = Road { spec, record, observed };
    let (wwid, disks) = road.disks()?;
    let device =
        if record.multipath { road.map(&wwid, &disks)? } else { road.single_disk(disks[0])? };
    road.used(&device, &disks)?;
    if !record.completed {
        return step(
            Step::Complete { attachment },
            "the volume is usable on this node, and Cinder doesn't know yet",
        );
    }
    Ok(())
}

/// What must hold before anything is changed.
fn preconditions(spec: &AttachSpec, observed: &Observed) -> Settled {
    let Some(facts) = observed.facts.as_ref().filter(|facts| facts.iscsid) else {
        return refuse(Refusal::IscsidNotRunning);
    };
    if spec.multipath == MultipathPolicy::Required {
        let why = match &facts.multipathd {
            Multipathd::Claims => None,
            Multipathd::NotRunning => Some(
                "multipathd doesn't answer on this node; start it (systemctl start multipathd)"
                    .to_owned(),
            ),
            Multipathd::Blacklisted { pattern } => Some(format!(
                "multipath.conf keeps multipathd off every disk (blacklist devnode {pattern:?})"
            )),
        };
        if let Some(why) = why {
            return refuse(Refusal::MultipathUnavailable { why });
        }
    }
    mount_target_usable(spec, observed)
}

fn mount_target_usable(spec: &AttachSpec, observed: &Observed) -> Settled {
    let (Some(path), Some(target)) = (spec.mount_path(), &observed.mount_target) else {
        return Ok(());
    };
    let refused = |why: String| {
        refuse(Refusal::MountPath { volume: spec.volume, path: path.to_owned(), why })
    };
    if let Some(entry) = observed.host.mount_at(path) {
        return refused(format!("{} is mounted there", entry.source));
    }
    match target {
        MountTarget::Absent | MountTarget::EmptyDirectory => Ok(()),
        MountTarget::Unusable { why } => refused(why.clone()),
    }
}

fn holders(volume: &Volume) -> Vec<String> {
    let holder = |usage: &crate::cinder::VolumeUse| match (&usage.host_name, &usage.server_id) {
        (Some(host), _) => format!("host {host:?} by attachment {}", usage.attachment_id),
        (None, Some(server)) => format!("server {server} by attachment {}", usage.attachment_id),
        (None, None) => format!("attachment {}", usage.attachment_id),
    };
    volume.attachments.iter().map(holder).collect()
}

fn reservable(spec: &AttachSpec, observed: &Observed) -> Settled {
    let Some(volume) = &observed.volume else {
        return refuse(Refusal::VolumeNotFound { volume: spec.volume });
    };
    let shared = volume.multiattach && volume.status == "in-use";
    if volume.status == "available" || shared {
        return Ok(());
    }
    let hint = match volume.status.as_str() {
        "creating" | "downloading" | "detaching" | "extending" | "attaching" => {
            "; it is busy, try again in a moment"
        }
        "in-use" | "reserved" => "; detach it where it is, or delete the attachment that holds it",
        status if status.starts_with("error") => {
            "; look into Cinder's log, then reset its state or restore it"
        }
        _ => "",
    };
    refuse(Refusal::VolumeNotAvailable {
        volume: spec.volume,
        status: volume.status.clone(),
        attached_to: holders(volume),
        hint,
    })
}

/// attachd was stopped between asking for the reservation and recording the answer: settles that
/// none is left that could be its own, or takes it up where it can be told from others.
pub(super) fn no_lost_reservation(spec: &AttachSpec, observed: &Observed) -> Settled {
    let reserved =
        || observed.attachments.iter().filter(|found| found.status == AttachmentStatus::Reserved);
    let instance = spec.instance.map(|instance| instance.to_string());
    if let Some(mine) = reserved().find(|found| instance.is_some() && found.instance == instance) {
        return step(
            Step::Adopt { attachment: mine.id },
            "the reservation whose id was lost carries this request's instance",
        );
    }
    let reserved: Vec<AttachmentId> = reserved().map(|found| found.id).collect();
    if reserved.is_empty() {
        return Ok(());
    }
    refuse(Refusal::LostReservation { volume: spec.volume, reserved })
}

fn same_request(spec: &AttachSpec, record: &Record) -> Settled {
    if &record.spec == spec {
        return Ok(());
    }
    let mut differences = Vec::new();
    if record.spec.mode != spec.mode {
        differences.push(format!("mode {} now, {} asked", record.spec.mode, spec.mode));
    }
    match (&record.spec.usage, &spec.usage) {
        (Usage::Block, Usage::Filesystem { .. }) => {
            differences.push("raw block now, a file system asked".to_owned());
        }
        (Usage::Filesystem { .. }, Usage::Block) => {
            differences.push("a file system now, raw block asked".to_owned());
        }
        (
            Usage::Filesystem { filesystem, mount_path, options, .. },
            Usage::Filesystem {
                filesystem: other_filesystem,
                mount_path: other_path,
                options: other_options,
                ..
            },
        ) => {
            if filesystem != other_filesystem {
                differences.push(format!("{filesystem} now, {other_filesystem} asked"));
            }
            if mount_path != other_path {
                differences.push(format!(
                    "mounted on {} now, {} asked",
                    mount_path.display(),
                    other_path.display()
                ));
            }
            if options != other_options {
                differences.push("other mount options".to_owned());
            }
        }
        (Usage::Block, Usage::Block) => {}
    }
    if record.spec.multipath != spec.multipath {
        differences
            .push(format!("multipath {} now, {} asked", record.spec.multipath, spec.multipath));
    }
    if record.spec.instance != spec.instance {
        differences.push("another instance".to_owned());
    }
    if differences.is_empty() {
        // Only the format policy, which matters before the mount alone.
        return Ok(());
    }
    refuse(Refusal::AttachedDifferently { volume: spec.volume, difference: differences.join(", ") })
}

/// The attachment exists, has a connector, and its paths are recorded.
fn exported(
    spec: &AttachSpec,
    record: &Record,
    attachment: AttachmentId,
    observed: &Observed,
) -> Settled {
    let (status, info) = match &observed.attachment {
        AttachmentView::Gone => {
            return refuse(Refusal::AttachmentGone { attachment, volume: spec.volume });
        }
        AttachmentView::Unknown => {
            return refuse(Refusal::ConnectionUnknown { volume: spec.volume });
        }
        AttachmentView::Known { status, info } => (status, info),
    };
    match status {
        AttachmentStatus::Reserved => {
            return step(
                Step::Update { attachment },
                "the attachment is reserved, and Cinder doesn't know this node's connector",
            );
        }
        AttachmentStatus::Attaching | AttachmentStatus::Attached => {}
        AttachmentStatus::Detached => {
            return refuse(Refusal::AttachmentGone { attachment, volume: spec.volume });
        }
        AttachmentStatus::ErrorAttaching
        | AttachmentStatus::ErrorDetaching
        | AttachmentStatus::Other(_) => {
            return refuse(Refusal::AttachmentFailed { attachment, status: format!("{status:?}") });
        }
    }
    let Some(info) = info else {
        return step(
            Step::Update { attachment },
            "Cinder shows no connection info for the attachment",
        );
    };
    if !info.complete
        && record.multipath
        && observed.attempt.discovered.is_none()
        && record.wwid.is_none()
    {
        if let Some(path) = info.paths.first() {
            return step(
                Step::Discover { portal: path.target.portal },
                "Cinder named one portal only, and a map wants all of them",
            );
        }
    }
    let mut wanted = info.paths.clone();
    if let (Some(discovered), Some(first)) = (&observed.attempt.discovered, info.paths.first()) {
        for target in discovered.iter().filter(|target| target.iqn == first.target.iqn) {
            if wanted.iter().all(|path| &path.target != target) {
                wanted.push(TargetPath { target: target.clone(), lun: first.lun });
            }
        }
    }
    if wanted.iter().any(|path| !record.paths.contains(path)) {
        return step(
            Step::RecordPaths { paths: wanted },
            "the ways to the volume are to be on disk before the first login",
        );
    }
    Ok(())
}

struct Road<'a> {
    spec: &'a AttachSpec,
    record: &'a Record,
    observed: &'a Observed,
}

impl<'a> Road<'a> {
    /// The paths that are used: all for a map, else the first whose target lets us in.
    fn wanted(&self) -> Vec<&'a TargetPath> {
        let paths = self.record.paths.iter();
        if self.record.multipath {
            return paths.collect();
        }
        // A path that works already is kept, whatever stands before it in the list.
        let works = |path: &&TargetPath| self.disk_at(path).is_some();
        let failed =
            |path: &&TargetPath| !self.observed.attempt.failed_logins.contains_key(&path.target);
        paths.clone().find(works).or_else(|| paths.clone().find(failed)).into_iter().collect()
    }

    fn disk_at(&self, path: &TargetPath) -> Option<&'a ScsiDevice> {
        let host = &self.observed.host;
        let session = host.session(&path.target)?;
        host.devices_of(session).find(|disk| disk.hctl.lun == path.lun.0)
    }

    /// Sessions, disks, identity: everything below the device that is used.
    fn disks(&self) -> Settled<(Wwid, Vec<&'a ScsiDevice>)> {
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
            let failures =
                attempt.failed_logins.iter().map(|(target, why)| format!("{target}: {why}"));
            return refuse(Refusal::NoPath {
                volume: self.spec.volume,
                failures: failures.collect(),
            });
        }
        wait(Awaited::Sessions { targets: recovering }, "the sessions are there, and not logged in")
    }

    /// The disks that are there; each of them was scanned or read anew by this very attach.
    fn present(&self) -> Settled<Vec<&'a ScsiDevice>> {
        let attempt = &self.observed.attempt;
        let (mut absent, mut awaited) = (Vec::new(), Vec::new());
        let (mut stale, mut unread, mut disks) = (Vec::new(), Vec::new(), Vec::new());
        for path in self.wanted() {
            let Some(session) = self.observed.host.session(&path.target) else { continue };
            if session.state != SessionState::LoggedIn {
                continue;
            }
            let address = (session.host, path.lun.0);
            match self.disk_at(path) {
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
        if !awaited.is_empty() && !attempt.overdue.disks && !self.record.completed {
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
                let foreign: Vec<DeviceName> = map
                    .members
                    .iter()
                    .map(|member| member.device.clone())
                    .filter(|name| stale.iter().all(|disk| &disk.name != name))
                    .collect();
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

    fn nobody_uses(&self, device: &str, number: DeviceNumber, holders: &[DeviceName]) -> Settled {
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

    fn identity(&self, disks: &[&'a ScsiDevice]) -> Settled<Wwid> {
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
            let why = format!(
                "{} {} and agree: same WWID, same size{}",
                disks.len(),
                if disks.len() == 1 { "disk is there" } else { "disks are there" },
                if size_gib.is_some() { ", the size that Cinder states" } else { "" }
            );
            return step(Step::RecordIdentity { wwid }, why);
        }
        Ok(wwid)
    }

    /// A map that holds exactly these disks.
    fn map(&self, wwid: &Wwid, disks: &[&'a ScsiDevice]) -> Settled<Device<'a>> {
        let host = &self.observed.host;
        let over = disks.iter().find_map(|disk| host.map_of(disk));
        let map = over.or_else(|| host.maps.iter().find(|map| &map.wwid == wwid));
        let names: Vec<DeviceName> = disks.iter().map(|disk| disk.name.clone()).collect();
        let Some(map) = map else {
            if self.observed.attempt.overdue.map {
                return refuse(Refusal::NoMap { volume: self.spec.volume, wwid: wwid.clone() });
            }
            return self.add_map(wwid, names, "the disks are that volume, and no map is over them");
        };
        self.map_is_sound(map, wwid, disks)?;
        let lacking: Vec<DeviceName> = names
            .into_iter()
            .filter(|name| map.members.iter().all(|member| &member.device != name))
            .collect();
        if !lacking.is_empty() && !self.observed.attempt.overdue.map {
            return self.add_map(
                wwid,
                lacking,
                &format!("map {} lacks disks of the volume", map.name),
            );
        }
        Ok(Device { name: &map.device, number: map.number, read_only: map.read_only })
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

    fn map_is_sound(&self, map: &MultipathMap, wwid: &Wwid, disks: &[&ScsiDevice]) -> Settled {
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

    fn single_disk(&self, disk: &'a ScsiDevice) -> Settled<Device<'a>> {
        if let Some(map) = self.observed.host.map_of(disk) {
            return refuse(Refusal::ClaimedByMultipath {
                volume: self.spec.volume,
                device: disk.name.clone(),
                map: map.name.clone(),
            });
        }
        Ok(Device { name: &disk.name, number: disk.number, read_only: disk.read_only })
    }

    /// The device is used as asked.
    fn used(&self, device: &Device<'_>, disks: &[&ScsiDevice]) -> Settled {
        if self.spec.mode == AccessMode::Ro && !device.read_only {
            let mut devices: Vec<DeviceName> = disks.iter().map(|disk| disk.name.clone()).collect();
            if self.record.multipath {
                devices.push(device.name.clone());
            }
            return step(Step::SetReadOnly { devices }, "the volume is attached read-only");
        }
        let Usage::Filesystem { filesystem, format, mount_path, options } = &self.spec.usage else {
            return Ok(());
        };
        if let Some(entry) = self.observed.host.mount_at(mount_path) {
            if entry.number == device.number {
                return Ok(());
            }
            return refuse(Refusal::MountPath {
                volume: self.spec.volume,
                path: mount_path.clone(),
                why: format!("{} is mounted there", entry.source),
            });
        }
        if let Some(entry) = self.observed.host.mounts_of(device.number).next() {
            return refuse(Refusal::InUse {
                volume: self.spec.volume,
                device: device.name.to_string(),
                by: format!("a mount on {}", entry.target.display()),
            });
        }
        mount_target_usable(self.spec, self.observed)?;
        self.filesystem(device, *filesystem, *format)?;
        step(
            Step::Mount {
                device: device.name.clone(),
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
            Some((name, contents)) if name == device.name => contents,
            _ => {
                return step(
                    Step::Probe { device: device.name.clone() },
                    "what is on the device decides whether it is formatted, checked or left alone",
                );
            }
        };
        let format_step = |resume, why: &str| {
            step(Step::Format { device: device.name.clone(), filesystem, resume }, why)
        };
        let found = match contents {
            Contents::Filesystem { name } if name == filesystem.name() => {
                if attempt.checked || self.spec.mode == AccessMode::Ro {
                    return Ok(());
                }
                return step(
                    Step::Check { device: device.name.clone(), filesystem },
                    "the file system may not have been unmounted cleanly",
                );
            }
            Contents::Blank => {
                let device = device.name.clone();
                if self.spec.mode == AccessMode::Ro {
                    let why = "the volume is attached read-only";
                    return refuse(Refusal::Blank { volume, device, why });
                }
                if format == FormatPolicy::Never {
                    return refuse(Refusal::Blank { volume, device, why: "format is \"never\"" });
                }
                return format_step(
                    false,
                    "the device was read and is blank, and a format was asked for",
                );
            }
            Contents::Filesystem { name } if self.record.format != FormatProgress::Started => {
                return refuse(Refusal::OtherFilesystem {
                    volume,
                    device: device.name.clone(),
                    found: name.clone(),
                    wanted: filesystem,
                });
            }
            Contents::Filesystem { name } | Contents::Signature { name } => name.clone(),
            Contents::Data { offset } => {
                format!("data (the first byte that is not zero is at {offset})")
            }
        };
        // The attachment has been this node's alone since the format began: the remains are its own.
        if self.record.format == FormatProgress::Started && !self.record.completed {
            return format_step(true, "a format of this very attachment was cut short");
        }
        refuse(Refusal::NotBlank { volume, device: device.name.clone(), found })
    }
}
