//! What is on the node, joined: record ↔ sessions ↔ disks ↔ map ↔ mount, and what disagrees. Pure.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{LedgerError, Origin, OwnedTargets, Record};
use crate::model::{
    AttachmentId, HostState, Lun, MountEntry, MultipathMap, ScsiDevice, Session, SessionState,
    Target, VolumeId, Wwid,
};

/// Everything that attachd knows of this node's volumes.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// One for each record.
    pub attachments: Vec<Chain>,
    /// Sessions that no record names: somebody else's, or left behind.
    pub other_sessions: Vec<OtherSession>,
    /// Records that can't be read.
    pub unreadable: Vec<String>,
}

/// One attachment from the record down to the mount.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Chain {
    /// The volume.
    pub volume: VolumeId,
    /// The attachment, once its id is known.
    pub attachment: Option<AttachmentId>,
    /// Cinder's word for it; `None` where Cinder wasn't asked or can't be.
    pub cinder_status: Option<String>,
    /// Who asked for it.
    pub origin: Origin,
    /// Its identity, once it was verified.
    pub wwid: Option<Wwid>,
    /// Every way to it.
    pub paths: Vec<PathChain>,
    /// The map over its disks.
    pub map: Option<MultipathMap>,
    /// Its mounts.
    pub mounts: Vec<MountEntry>,
    /// What doesn't fit together.
    pub disagreements: Vec<String>,
}

/// One way to a volume.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathChain {
    /// The target and its portal.
    pub target: Target,
    /// The LUN there.
    pub lun: Lun,
    /// The session.
    pub session: Option<Session>,
    /// Whether attachd made it.
    pub own_session: bool,
    /// The disk.
    pub disk: Option<ScsiDevice>,
}

/// A session that no record names.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherSession {
    /// The session.
    pub session: Session,
    /// Its disks.
    pub disks: Vec<ScsiDevice>,
}

impl Inventory {
    /// Joins records with what the kernel shows.
    pub fn join(
        records: Vec<Result<Record, LedgerError>>,
        owned: &OwnedTargets,
        host: &HostState,
    ) -> Self {
        let (mut attachments, mut unreadable) = (Vec::new(), Vec::new());
        let mut named = BTreeSet::new();
        for record in records {
            match record {
                Ok(record) => {
                    named.extend(record.targets());
                    attachments.push(chain(&record, owned, host));
                }
                Err(error) => unreadable.push(error.to_string()),
            }
        }
        let other = |session: &&Session| !named.iter().any(|target| session.is_to(target));
        let other_sessions = host
            .sessions
            .iter()
            .filter(other)
            .map(|session| OtherSession {
                session: session.clone(),
                disks: host.devices_of(session).cloned().collect(),
            })
            .collect();
        Self { attachments, other_sessions, unreadable }
    }
}

fn chain(record: &Record, owned: &OwnedTargets, host: &HostState) -> Chain {
    let paths: Vec<PathChain> = record
        .paths
        .iter()
        .map(|path| {
            let session = host.session(&path.target);
            let disk = host.disk_at(path);
            PathChain {
                target: path.target.clone(),
                lun: path.lun,
                session: session.cloned(),
                own_session: session.is_some_and(|session| {
                    owned.get(&path.target).is_some_and(|mark| mark.of_session(session))
                }),
                disk: disk.cloned(),
            }
        })
        .collect();
    let disks = || paths.iter().filter_map(|path| path.disk.as_ref());
    let over_disk = disks().find_map(|disk| host.map_of(disk));
    let map = over_disk
        .or_else(|| host.maps.iter().find(|map| record.wwid.as_ref() == Some(&map.wwid)))
        .cloned();
    let mut mounts: Vec<MountEntry> = Vec::new();
    let numbers = map.iter().map(|map| map.number).chain(disks().map(|disk| disk.number));
    for number in numbers {
        mounts.extend(host.mounts_of(number).cloned());
    }
    let disagreements = disagreements(record, &paths, map.as_ref(), &mounts);
    Chain {
        volume: record.spec.volume,
        attachment: record.attachment(),
        cinder_status: None,
        origin: record.origin.clone(),
        wwid: record.wwid.clone(),
        paths,
        map,
        mounts,
        disagreements,
    }
}

fn disagreements(
    record: &Record,
    paths: &[PathChain],
    map: Option<&MultipathMap>,
    mounts: &[MountEntry],
) -> Vec<String> {
    let mut found = Vec::new();
    if record.attachment().is_none() {
        found.push("the reservation's id was never recorded".to_owned());
    }
    for path in paths.iter().take(if record.multipath { paths.len() } else { 1 }) {
        match (&path.session, &path.disk) {
            (None, _) => found.push(format!("no session to {}", path.target)),
            (Some(session), _) if session.state != SessionState::LoggedIn => {
                found.push(format!("the session to {} is not logged in", path.target));
            }
            (Some(_), None) => {
                found.push(format!("no disk for LUN {} of {}", path.lun, path.target));
            }
            (Some(_), Some(disk)) => {
                if record.wwid.is_some() && disk.wwid != record.wwid {
                    found.push(format!("{} is another volume's disk", disk.name));
                }
                if record.multipath
                    && map.is_some_and(|map| map.members.iter().all(|m| m.device != disk.name))
                {
                    found.push(format!("{} is not in the map", disk.name));
                }
            }
        }
    }
    if record.multipath && record.completed && map.is_none() {
        found.push("there is no map".to_owned());
    }
    if let Some(path) = record.spec.mount_path().filter(|_| record.completed)
        && mounts.iter().all(|mount| mount.target != path)
    {
        found.push(format!("it is not mounted on {}", path.display()));
    }
    for mount in mounts.iter().filter(|mount| Some(&*mount.target) != record.spec.mount_path()) {
        found.push(format!("it is also mounted on {}", mount.target.display()));
    }
    if !record.completed {
        found.push("the attach was not finished".to_owned());
    }
    found
}
