//! The road to an attached volume.

use super::{Next, Settled, disks::Road, phase_of, refuse, step};
use crate::{
    attach::{AttachmentView, Observed, Phase, Record, Refusal, Reservation, Step},
    cinder::{AttachmentStatus, AttachmentSummary, Volume},
    host::{MountTarget, NodeFacts},
    model::{
        AttachSpec, AttachmentId, ConnectionInfo, MultipathPolicy, Multipathd, Target, TargetPath,
        Usage,
    },
};

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
    let here = match next {
        // What is in the way of the disks.
        Next::Do(Step::RemoveMap { .. }) => Some(Phase::Scan),
        _ => phase_of(next),
    };
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
    if is_left_over(record, observed) {
        return step(
            Step::Forget { volume: spec.volume },
            "of an earlier attach nothing is left but its record",
        );
    }
    same_request(spec, record)?;
    if record.cut && observed.attachment != AttachmentView::Gone {
        return refuse(Refusal::CutOff { volume: spec.volume });
    }
    if !record.completed {
        mount_path_is_ours(spec, observed)?;
    }
    let attachment = match record.reservation {
        Reservation::Asked => {
            no_lost_reservation(record, observed)?;
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
    // An update takes a completed attachment back.
    let attaching = matches!(
        observed.attachment,
        AttachmentView::Known { status: AttachmentStatus::Attaching, .. }
    );
    if !record.completed || attaching {
        return step(
            Step::Complete { attachment },
            "the volume is usable on this node, and Cinder doesn't know yet",
        );
    }
    Ok(())
}

/// Whether a detach was cut short after its last effect: the attachment is gone, by the word of a Cinder that
/// shows the volume, and so are the disks.
fn is_left_over(record: &Record, observed: &Observed) -> bool {
    let gone = observed.attachment == AttachmentView::Gone && observed.volume.is_some();
    let has_a_disk = record.paths.iter().any(|path| observed.host.disk_at(path).is_some());
    record.released && gone && !has_a_disk
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
    mount_path_is_ours(spec, observed)?;
    mount_target_usable(spec, observed)
}

/// No other volume is, or is about to be, mounted there.
fn mount_path_is_ours(spec: &AttachSpec, observed: &Observed) -> Settled {
    let Some(path) = spec.mount_path() else { return Ok(()) };
    let mut others = observed.others.records.iter().filter(|other| !other.released);
    let Some(other) = others.find(|other| other.spec.mount_path() == Some(path)) else {
        return Ok(());
    };
    let why = format!("it is the mount path of volume {}", other.spec.volume);
    refuse(Refusal::MountPath { volume: spec.volume, path: path.to_owned(), why })
}

pub(super) fn mount_target_usable(spec: &AttachSpec, observed: &Observed) -> Settled {
    let Some(path) = spec.mount_path() else { return Ok(()) };
    let refused = |why: String| {
        refuse(Refusal::MountPath { volume: spec.volume, path: path.to_owned(), why })
    };
    if let Some(entry) = observed.host.mount_at(path) {
        return refused(format!("{} is mounted there", entry.source));
    }
    match &observed.mount_target {
        Some(MountTarget::Unusable { why }) => refused(why.clone()),
        Some(MountTarget::Absent | MountTarget::EmptyDirectory) | None => Ok(()),
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
pub(super) fn no_lost_reservation(record: &Record, observed: &Observed) -> Settled {
    let reserved =
        || observed.attachments.iter().filter(|found| found.status == AttachmentStatus::Reserved);
    let instances: Vec<String> = record.instances.iter().map(ToString::to_string).collect();
    let is_mine = |found: &&AttachmentSummary| {
        found.instance.as_ref().is_some_and(|instance| instances.contains(instance))
    };
    if let Some(mine) = reserved().find(is_mine) {
        return step(
            Step::Adopt { attachment: mine.id },
            "the reservation whose id was lost carries the instance that it was asked for under",
        );
    }
    let reserved: Vec<AttachmentId> = reserved().map(|found| found.id).collect();
    if reserved.is_empty() {
        return Ok(());
    }
    refuse(Refusal::LostReservation { volume: record.spec.volume, reserved })
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
        && let Some(path) = info.paths.first()
    {
        return step(
            Step::Discover { portal: path.target.portal },
            "Cinder named one portal only, and a map wants all of them",
        );
    }
    let mut wanted = info.paths.clone();
    if let (Some(discovered), Some(first)) = (&observed.attempt.discovered, info.paths.first()) {
        // Whoever answers the discovery is as little trusted as Cinder.
        let of_the_volume =
            |target: &&Target| target.iqn == first.target.iqn && target.portal.flaw().is_none();
        for target in discovered.iter().filter(of_the_volume) {
            if wanted.len() < ConnectionInfo::MAX_PATHS
                && wanted.iter().all(|path| &path.target != target)
            {
                wanted.push(TargetPath { target: target.clone(), lun: first.lun });
            }
        }
    }
    if record.released || wanted.iter().any(|path| !record.paths.contains(path)) {
        return step(
            Step::RecordPaths { paths: wanted },
            "the ways to the volume are to be on disk before the first login",
        );
    }
    nobody_elses_address(spec, record, observed)
}

/// A LUN can't be two volumes: where another record names it too, one of the two is out of date,
/// and its disks may still be there.
fn nobody_elses_address(spec: &AttachSpec, record: &Record, observed: &Observed) -> Settled {
    for other in observed.others.records.iter().filter(|other| !other.released) {
        if let Some(path) = other.paths.iter().find(|path| record.names_unit_of(path)) {
            return refuse(Refusal::AddressTaken {
                volume: spec.volume,
                by: other.spec.volume,
                path: path.clone(),
            });
        }
    }
    Ok(())
}
