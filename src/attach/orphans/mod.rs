//! What of attachd's own is left without a use: what it is, why it is thought so, and what frees it.
//!
//! [`Orphans::among`] is pure. [`Scene::look`] gathers what it looks at, and `Engine::clean` takes away
//! what can be taken safely, after judging it anew under its lock.
//!
//! ```text
//!   ledger (before and after the look), node, Cinder ──► Scene ──► Orphans::among ──► each: Remedy, or left and why
//!                                                                                        │
//!                  Engine::clean: lock, look and judge again, the steps of a detach ◄────┘
//! ```

mod clean;
mod look;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Origin, OwnedTargets, Record};
use crate::{
    host::KeptRecords,
    model::{
        AttachmentId, DeviceState, HostState, MountEntry, MultipathMap, ScsiDevice, Session,
        Target, TargetPath, VolumeId,
    },
};

pub use clean::Cleaned;
pub use look::LookError;

/// Everything that is looked at.
#[derive(Debug, Clone, Default)]
pub struct Scene {
    /// The ledger after the look at the node.
    pub records: Vec<Standing>,
    /// The ledger before it: what a detach took away meanwhile is no orphan.
    pub before: Vec<Record>,
    /// Ledger entries that can't be read: they may name anything.
    pub unreadable: Vec<String>,
    /// Targets that attachd logged in to.
    pub owned: OwnedTargets,
    /// The node.
    pub host: HostState,
    /// Node records that attachd made, with what it set aside for them.
    pub kept: Vec<KeptRecords>,
    /// Attachments that Cinder has for this node, and the ledger has not.
    pub strangers: Vec<Stranger>,
    /// What could not be looked at, and why.
    pub unknown: Vec<String>,
}

/// A record, and what goes on with it.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The record.
    pub record: Record,
    /// Cinder's side.
    pub cinder: InCinder,
    /// Another attachd works on the volume now.
    pub at_work: bool,
}

/// Whether Cinder has what a record stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InCinder {
    /// Cinder wasn't asked, or didn't answer.
    Unknown,
    /// It has the attachment, or the volume while the attachment's id is not known.
    There,
    /// It has the attachment no more.
    Gone,
}

/// An attachment of this node that the ledger doesn't know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// The attachment.
    pub attachment: AttachmentId,
    /// Its volume.
    pub volume: VolumeId,
    /// The ways to it, where Cinder's connection info is of a kind that attachd understands.
    pub paths: Vec<TargetPath>,
}

/// What is left, and what could not be told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Orphans {
    /// What is left without a use.
    pub orphans: Vec<Orphan>,
    /// What could not be looked at: there may be more.
    pub unknown: Vec<String>,
}

/// One thing without a use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Orphan {
    /// What kind of thing.
    pub kind: OrphanKind,
    /// Which one.
    pub what: String,
    /// What it belongs to: its volume, attachment or target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// Why it is thought an orphan.
    pub why: String,
    /// What frees it.
    pub freed: Freed,
}

/// What is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrphanKind {
    /// An attachment in Cinder without a device here.
    Attachment,
    /// A ledger entry without anything, or of something that was never ended.
    LedgerEntry,
    /// A session of attachd's that no ledger entry needs.
    Session,
    /// A disk on a session of attachd's, or of a volume that Cinder gave back.
    Disk,
    /// A multipath map without a usable disk.
    Map,
    /// A node record of attachd's without a session.
    NodeRecord,
    /// Node records of others that were set aside and not given back.
    SetAsideRecord,
}

/// What frees an orphan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Freed {
    /// `attachd orphans --clean`.
    ByCleaning(Remedy),
    /// A person who knows more.
    ByHand {
        /// Why attachd leaves it.
        because: String,
        /// What to do.
        how: String,
    },
}

/// What cleaning does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Remedy {
    /// The detach of a volume, never by force.
    Detach(VolumeId),
    /// The last steps of a detach, for a target that nothing needs: log out where the session is
    /// attachd's and empty, remove its node record, give back what was set aside.
    LogOut(Target),
}

impl Orphans {
    /// Judges what was seen.
    pub fn among(scene: &Scene) -> Self {
        let mut unknown = scene.unknown.clone();
        let mut orphans = Vec::new();
        for standing in scene.records.iter().filter(|standing| !standing.at_work) {
            orphans.extend(of_record(&standing.record, standing.cinder, &scene.host));
        }
        orphans.extend(scene.strangers.iter().filter_map(|stranger| of_stranger(stranger, scene)));
        orphans.extend(of_targets(scene));
        orphans.extend(of_disks(scene));
        orphans.extend(ghosts(scene));
        unknown.extend(scene.unreadable.iter().cloned());
        Self { orphans, unknown }
    }

    /// What cleaning can do, each once.
    pub fn remedies(&self) -> BTreeSet<&Remedy> {
        let freed = self.orphans.iter().map(|orphan| &orphan.freed);
        freed
            .filter_map(|freed| match freed {
                Freed::ByCleaning(remedy) => Some(remedy),
                Freed::ByHand { .. } => None,
            })
            .collect()
    }
}

/// What of a record is on the node.
struct Footprint<'a> {
    disks: Vec<&'a ScsiDevice>,
    maps: Vec<&'a MultipathMap>,
    mounts: Vec<&'a MountEntry>,
}

impl<'a> Footprint<'a> {
    fn of(record: &Record, host: &'a HostState) -> Self {
        let is_at = |session: &Session, disk: &ScsiDevice| {
            let mut paths = record.paths.iter();
            paths.any(|path| path.target.iqn == session.iqn && path.lun.0 == disk.hctl.lun)
        };
        let disks: Vec<&ScsiDevice> = host
            .devices
            .iter()
            .filter(|disk| host.session_of(disk).is_some_and(|session| is_at(session, disk)))
            .collect();
        let over = |map: &&MultipathMap| {
            record.wwid.as_ref() == Some(&map.wwid)
                || disks.iter().any(|disk| map.members.iter().any(|m| m.device == disk.name))
        };
        let maps: Vec<&MultipathMap> = host.maps.iter().filter(over).collect();
        let numbers: Vec<_> =
            disks.iter().map(|d| d.number).chain(maps.iter().map(|m| m.number)).collect();
        let of_ours = |mount: &&MountEntry| {
            let lost = record.mounted && record.mount_device == Some(mount.number);
            numbers.contains(&mount.number)
                || lost && record.spec.mount_path() == Some(&mount.target)
        };
        Self { disks, maps, mounts: host.mounts.iter().filter(of_ours).collect() }
    }

    fn is_empty(&self) -> bool {
        self.disks.is_empty() && self.maps.is_empty() && self.mounts.is_empty()
    }

    fn names(&self) -> String {
        let disks = self.disks.iter().map(|disk| disk.name.to_string());
        let maps = self.maps.iter().map(|map| format!("map {}", map.name));
        let mounts = self.mounts.iter().map(|mount| format!("mount {}", mount.target.display()));
        disks.chain(maps).chain(mounts).collect::<Vec<_>>().join(", ")
    }
}

/// A record whose volume nobody works on.
pub(super) fn of_record(record: &Record, cinder: InCinder, host: &HostState) -> Option<Orphan> {
    let here = Footprint::of(record, host);
    let volume = record.spec.volume;
    let attachment = record.attachment().map(|id| format!("attachment {id}"));
    let orphan = |kind, why: String, freed| {
        let volume = format!("volume {volume}");
        let (what, of) = match (kind, attachment.clone()) {
            (OrphanKind::Attachment, Some(attachment)) => (attachment, Some(volume)),
            (OrphanKind::LedgerEntry, attachment) => {
                (format!("ledger entry of {volume}"), attachment)
            }
            (_, attachment) => (format!("devices of {volume}"), attachment),
        };
        Some(Orphan { kind, what, of, why, freed })
    };
    let by_hand = |because: String, how: String| Freed::ByHand { because, how };
    let origin = &record.origin;
    let of_request = *origin != Origin::CommandLine;
    let end_request =
        format!("have attachd run at work; if the request is not wanted any more, delete {origin}");
    let detach = format!("attachd detach {volume}");
    let is_begun = !record.completed || record.released || record.cut;
    match cinder {
        InCinder::Gone if here.is_empty() => orphan(
            OrphanKind::LedgerEntry,
            "Cinder has the attachment no more, and nothing of it is on this node".to_owned(),
            if of_request {
                by_hand(format!("it belongs to {origin}"), end_request)
            } else {
                Freed::ByCleaning(Remedy::Detach(volume))
            },
        ),
        InCinder::Gone => orphan(
            if here.disks.is_empty() { OrphanKind::Map } else { OrphanKind::Disk },
            format!("Cinder has the attachment no more, and this is still here: {}", here.names()),
            if of_request {
                by_hand(format!("it belongs to {origin}"), end_request)
            } else {
                by_hand("what was not written to it would be given up".to_owned(), detach)
            },
        ),
        // Its daemon looks after it.
        InCinder::There if of_request => None,
        InCinder::There if is_begun => {
            let what = if record.released || record.cut { "a detach" } else { "an attach" };
            let why =
                format!("{what} by {origin} was begun and not ended, and nobody works on it now");
            let freed = match here.mounts.first() {
                Some(mount) => {
                    by_hand(format!("it is mounted on {}", mount.target.display()), detach)
                }
                None => Freed::ByCleaning(Remedy::Detach(volume)),
            };
            orphan(OrphanKind::LedgerEntry, why, freed)
        }
        InCinder::There if here.is_empty() => orphan(
            OrphanKind::Attachment,
            "Cinder has it, and it has no device on this node (a restart takes them away)"
                .to_owned(),
            by_hand(
                "whoever attached it may still want it".to_owned(),
                format!("attach it again as before, or give it up: {detach}"),
            ),
        ),
        InCinder::There | InCinder::Unknown => None,
    }
}

fn of_stranger(stranger: &Stranger, scene: &Scene) -> Option<Orphan> {
    let known = scene.all_records().any(|record| record.attachment() == Some(stranger.attachment));
    let used = stranger.paths.iter().any(|path| scene.host.disk_at(path).is_some());
    (!known && !used).then(|| Orphan {
        kind: OrphanKind::Attachment,
        what: format!("attachment {}", stranger.attachment),
        of: Some(format!("volume {}", stranger.volume)),
        why: "Cinder has it for this node, and it has no device here and no ledger entry"
            .to_owned(),
        freed: Freed::ByHand {
            because: "attachd has no record of making it; another program may be at work with it"
                .to_owned(),
            how: format!("if nobody needs it: attachd attachment delete {}", stranger.attachment),
        },
    })
}

impl Scene {
    fn all_records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().map(|standing| &standing.record).chain(&self.before)
    }

    /// Somebody's ledger entry stands for the target.
    fn is_named(&self, target: &Target) -> bool {
        self.all_records().flat_map(|record| &record.paths).any(|path| &path.target == target)
    }

    fn is_own(&self, session: &Session) -> bool {
        let mut marks = self.owned.iter();
        marks.any(|(target, mark)| session.is_to(target) && mark.of_session(session))
    }
}

/// How a target stands that attachd logged in to once.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AtTarget {
    /// No session.
    Nothing,
    /// Sessions of attachd's that carry nothing.
    Idle,
    /// Sessions of attachd's that carry disks.
    Carries(Vec<String>),
    /// Somebody else's session.
    Foreign,
}

/// How a target stands: a logout is for those that are idle or have nothing.
pub(super) fn at_target(target: &Target, owned: &OwnedTargets, host: &HostState) -> AtTarget {
    let sessions: Vec<&Session> = host.sessions.iter().filter(|s| s.is_to(target)).collect();
    let mark = owned.get(target);
    if sessions.iter().any(|session| !mark.is_some_and(|mark| mark.of_session(session))) {
        return AtTarget::Foreign;
    }
    let disks = sessions.iter().flat_map(|session| host.devices_of(session));
    let nascent = sessions.iter().flat_map(|session| {
        host.nascent_of(session).map(|lun| format!("a disk to come at LUN {lun}"))
    });
    let carried: Vec<String> = disks.map(|disk| disk.name.to_string()).chain(nascent).collect();
    match (sessions.is_empty(), carried.is_empty()) {
        (true, _) => AtTarget::Nothing,
        (false, true) => AtTarget::Idle,
        (false, false) => AtTarget::Carries(carried),
    }
}

fn of_targets(scene: &Scene) -> Vec<Orphan> {
    let mut targets: BTreeMap<&Target, Option<&KeptRecords>> =
        scene.owned.keys().map(|target| (target, None)).collect();
    for kept in &scene.kept {
        targets.insert(&kept.target, Some(kept));
    }
    let mut found = Vec::new();
    for (target, kept) in targets.into_iter().filter(|(target, _)| !scene.is_named(target)) {
        let stands = at_target(target, &scene.owned, &scene.host);
        let portal = target.portal;
        let set_aside = kept.is_some_and(|kept| kept.holds_others);
        let (kind, what) = match (&stands, set_aside) {
            (AtTarget::Idle | AtTarget::Carries(_), _) => {
                let mut sessions = scene.host.sessions.iter().filter(|s| s.is_to(target));
                let sid = sessions.next().map_or(0, |session| session.sid);
                (OrphanKind::Session, format!("session {sid} to {portal}"))
            }
            (_, true) => (
                OrphanKind::SetAsideRecord,
                format!("node record of others for {portal}, set aside"),
            ),
            (_, false) => (OrphanKind::NodeRecord, format!("node record for {portal}")),
        };
        let unreadable = !scene.unreadable.is_empty();
        let had = match kind {
            OrphanKind::Session => "attachd logged in",
            OrphanKind::SetAsideRecord => "attachd set it aside",
            _ => "attachd made it",
        };
        let (why, freed) = match stands {
            AtTarget::Nothing | AtTarget::Idle if unreadable => (
                format!("{had}, and no ledger entry that can be read names the target"),
                Freed::ByHand {
                    because: "a ledger entry can't be read, and may name the target".to_owned(),
                    how: "see to that entry first, then: attachd orphans --clean".to_owned(),
                },
            ),
            AtTarget::Idle => (
                format!("{had}, no ledger entry names the target, and it carries no disk"),
                Freed::ByCleaning(Remedy::LogOut(target.clone())),
            ),
            AtTarget::Nothing => (
                format!("{had}, no ledger entry names the target, and there is no session"),
                Freed::ByCleaning(Remedy::LogOut(target.clone())),
            ),
            AtTarget::Carries(disks) => (
                format!("{had}, and no ledger entry names the target"),
                Freed::ByHand {
                    because: format!("it carries {}", disks.join(", ")),
                    how: "free the disks first, then: attachd orphans --clean".to_owned(),
                },
            ),
            AtTarget::Foreign => (
                format!("{had}, and no ledger entry names the target"),
                Freed::ByHand {
                    because: "a session that attachd did not make goes there".to_owned(),
                    how: "once that session is gone: attachd orphans --clean".to_owned(),
                },
            ),
        };
        let of = Some(target.iqn.to_string());
        found.push(Orphan { kind, what, of, why, freed });
    }
    found
}

/// Disks on attachd's own sessions that no ledger entry names.
fn of_disks(scene: &Scene) -> Vec<Orphan> {
    let mut found = Vec::new();
    for session in scene.host.sessions.iter().filter(|session| scene.is_own(session)) {
        for disk in scene.host.devices_of(session) {
            let names =
                |path: &TargetPath| path.target.iqn == session.iqn && path.lun.0 == disk.hctl.lun;
            if scene.all_records().flat_map(|record| &record.paths).any(names) {
                continue;
            }
            let (hctl, name) = (disk.hctl, &disk.name);
            found.push(Orphan {
                kind: OrphanKind::Disk,
                what: format!("disk {name} ({hctl}), LUN {}", hctl.lun),
                of: Some(session.iqn.to_string()),
                why: "it came by a session of attachd's, and no ledger entry names its LUN".to_owned(),
                freed: Freed::ByHand {
                    because: "attachd has no record of scanning it".to_owned(),
                    how: format!(
                        "attachd inspect /dev/{name}; if nothing uses it: blockdev --flushbufs /dev/{name}, then echo 1 > /sys/class/scsi_device/{hctl}/device/delete"
                    ),
                },
            });
        }
    }
    found
}

/// Maps without a usable disk that no ledger entry stands for.
fn ghosts(scene: &Scene) -> Vec<Orphan> {
    let host = &scene.host;
    let dead = |map: &&MultipathMap| {
        let mut members = map.members.iter();
        // A disk of another kind of storage says nothing here, so it counts as a good one.
        members.all(|member| {
            host.device(&member.device).is_some_and(|disk| disk.state == DeviceState::Offline)
        })
    };
    let recorded = |map: &&MultipathMap| {
        let by_name = scene.all_records().any(|record| record.wwid.as_ref() == Some(&map.wwid));
        by_name
            || scene.records.iter().any(|standing| {
                Footprint::of(&standing.record, host)
                    .maps
                    .iter()
                    .any(|own| own.device == map.device)
            })
    };
    let ghost = |map: &MultipathMap| {
        let mounts: Vec<String> = host
            .mounts_of(map.number)
            .map(|mount| format!(", mounted on {}", mount.target.display()))
            .collect();
        Orphan {
            kind: OrphanKind::Map,
            what: format!("map {} ({}){}", map.name, map.device, mounts.concat()),
            of: None,
            why: "it has no usable disk, and no ledger entry has its WWID".to_owned(),
            freed: Freed::ByHand {
                because: "attachd has no record of making it".to_owned(),
                how: format!(
                    "attachd inspect /dev/{}; if nothing uses it: multipath -f {}",
                    map.device, map.name
                ),
            },
        }
    };
    host.maps.iter().filter(dead).filter(|map| !recorded(map)).map(ghost).collect()
}

#[cfg(test)]
mod tests;
