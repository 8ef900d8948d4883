//! What is on the node, joined: record ↔ sessions ↔ disks ↔ map ↔ mount, and what disagrees. Pure.

mod handle;

use std::{collections::BTreeSet, path::PathBuf};

use serde::Serialize;

use super::{Origin, OwnedTargets, Record, Records};
use crate::{
    host::Users,
    model::{
        AccessMode, AttachmentId, DeviceNumber, DeviceState, HostState, Lun, MountEntry,
        MultipathMap, ScsiDevice, Session, SessionState, Target, VolumeId, Wwid,
    },
};

pub use handle::{Foreign, Handle, Resolved};

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
    /// What was asked for, where attachd doesn't hold it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub foreign: Option<Foreign>,
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
    /// Where it is to be mounted.
    pub mount_path: Option<PathBuf>,
    /// Its mounts.
    pub mounts: Vec<MountEntry>,
    /// Who holds it beside its mounts, where that was looked at.
    pub users: Option<Users>,
    /// What doesn't fit together, that of the paths included.
    pub disagreements: Vec<String>,
}

impl Chain {
    /// Its map's and its disks' numbers.
    pub fn numbers(&self) -> impl Iterator<Item = DeviceNumber> {
        let disks = self.paths.iter().filter_map(|path| path.disk.as_ref());
        self.map.iter().map(|map| map.number).chain(disks.map(|disk| disk.number))
    }
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
    /// What doesn't fit.
    pub disagreements: Vec<String>,
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
    pub fn join(records: Records, owned: &OwnedTargets, host: &HostState) -> Self {
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
        Self { attachments, other_sessions, unreadable, foreign: None }
    }
}

fn chain(record: &Record, owned: &OwnedTargets, host: &HostState) -> Chain {
    let mut paths: Vec<PathChain> = record
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
                disagreements: Vec::new(),
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
    // Without a map the first path is used, and the others are not logged in to.
    let used = if record.multipath { paths.len() } else { 1 };
    for path in paths.iter_mut().take(used) {
        path.disagreements = of_path(record, path, map.as_ref());
    }
    let mut found = Vec::new();
    if record.attachment().is_none() {
        found.push("the reservation's id was never recorded".to_owned());
    }
    found.extend(paths.iter().flat_map(|path| path.disagreements.iter().cloned()));
    found.extend(of_map(record, &paths, map.as_ref()));
    found.extend(of_mounts(record, &mounts));
    if !record.completed {
        found.push("the attach was not finished".to_owned());
    }
    if record.released || record.cut {
        found.push("a detach was begun and not finished".to_owned());
    }
    Chain {
        volume: record.spec.volume,
        attachment: record.attachment(),
        cinder_status: None,
        origin: record.origin.clone(),
        wwid: record.wwid.clone(),
        paths,
        map,
        mount_path: record.spec.mount_path().map(ToOwned::to_owned),
        mounts,
        users: None,
        disagreements: found,
    }
}

fn of_path(record: &Record, path: &PathChain, map: Option<&MultipathMap>) -> Vec<String> {
    let mut found = Vec::new();
    match (&path.session, &path.disk) {
        (None, _) => found.push(format!("no session to {}", path.target)),
        (Some(session), _) if session.state != SessionState::LoggedIn => {
            found.push(format!("the session to {} is not logged in", path.target));
        }
        (Some(_), None) => found.push(format!("no disk for LUN {} of {}", path.lun, path.target)),
        (Some(_), Some(_)) => {}
    }
    let Some(disk) = &path.disk else { return found };
    match disk.state {
        DeviceState::Running => {}
        DeviceState::Blocked => found.push(format!("{} keeps its I/O waiting", disk.name)),
        DeviceState::Offline => found.push(format!("{} fails its I/O", disk.name)),
    }
    if record.wwid.is_some() && disk.wwid != record.wwid {
        found.push(format!("{} is another volume's disk", disk.name));
    }
    if record.multipath
        && let Some(map) = map
    {
        match map.members.iter().find(|member| member.device == disk.name) {
            None => found.push(format!("{} is not in the map", disk.name)),
            Some(member) => {
                if let Some(state) = member.path_state.as_deref().filter(|s| *s != "active") {
                    found.push(format!("{} is {state} in the map, says multipathd", disk.name));
                }
            }
        }
    }
    found
}

fn of_map(record: &Record, paths: &[PathChain], map: Option<&MultipathMap>) -> Vec<String> {
    let mut found = Vec::new();
    let Some(map) = map else {
        if record.multipath && record.completed {
            found.push("there is no map".to_owned());
        }
        return found;
    };
    if record.wwid.as_ref().is_some_and(|wwid| wwid != &map.wwid) {
        found.push(format!("the map {} is of another WWID, {}", map.name, map.wwid));
    }
    let disks: Vec<&ScsiDevice> = paths.iter().filter_map(|path| path.disk.as_ref()).collect();
    for member in map.members_beside(&disks) {
        found.push(format!("{member} is in the map, and is no path of this volume"));
    }
    let grown = disks.iter().any(|disk| disk.size_bytes != map.size_bytes);
    if grown {
        let volume = record.spec.volume;
        found.push(format!("the map has another size than its disks: attachd resize {volume}"));
    }
    found
}

fn of_mounts(record: &Record, mounts: &[MountEntry]) -> Vec<String> {
    let mut found = Vec::new();
    let own = record.spec.mount_path();
    if let Some(path) = own.filter(|_| record.completed)
        && mounts.iter().all(|mount| mount.target != path)
    {
        found.push(format!("it is not mounted on {}", path.display()));
    }
    for mount in mounts {
        let at = mount.target.display();
        if Some(&*mount.target) != own {
            found.push(format!("it is also mounted on {at}"));
            continue;
        }
        if mount.read_only && record.spec.mode == AccessMode::Rw {
            found.push(format!("the file system on {at} refuses writes"));
        }
        if mount.errors {
            found.push(format!("the kernel met errors in the file system on {at}"));
        }
    }
    found
}

#[cfg(test)]
mod tests;
