//! From whatever somebody has in hand to what attachd holds. Pure.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Serialize;
use uuid::Uuid;

use super::{Chain, Inventory};
use crate::{
    attach::Origin,
    host::Users,
    model::{
        DeviceName, DeviceNumber, HostState, Iqn, MountEntry, MultipathMap, ScsiDevice, Session,
        Wwid,
    },
};

/// What somebody has in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handle {
    /// A volume's or an attachment's id.
    Id(Uuid),
    /// A target's name.
    Iqn(Iqn),
    /// A path below `/dev`.
    Device(PathBuf),
    /// A mount point, or a path below one.
    Place(PathBuf),
    /// A device's name, a WWID, a map's name or a request's.
    Word(String),
}

impl FromStr for Handle {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        if let Ok(id) = Uuid::try_parse(text) {
            return Ok(Self::Id(id));
        }
        let path = Path::new(text);
        if path.starts_with("/dev") {
            return Ok(Self::Device(path.to_owned()));
        }
        if path.is_absolute() {
            return Ok(Self::Place(path.to_owned()));
        }
        let iqn = ["iqn.", "eui.", "naa."].iter().any(|kind| text.starts_with(kind));
        match text.parse() {
            Ok(name) if iqn => Ok(Self::Iqn(name)),
            _ => Ok(Self::Word(text.to_owned())),
        }
    }
}

/// What the node says of a handle's path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The device that it leads to, or that is mounted there.
    pub number: Option<DeviceNumber>,
    /// That device's name.
    pub name: Option<DeviceName>,
    /// The mount that it lies on.
    pub mount: Option<MountEntry>,
}

/// Something of this node that attachd doesn't hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Foreign {
    /// In words.
    pub what: String,
    /// The sessions that it comes by.
    pub sessions: Vec<Session>,
    /// Its disks.
    pub disks: Vec<ScsiDevice>,
    /// The map.
    pub map: Option<MultipathMap>,
    /// Its mounts.
    pub mounts: Vec<MountEntry>,
    /// Who holds it, where that could be looked at.
    pub users: Option<Users>,
}

impl Inventory {
    /// Keeps what goes by a handle; where that is none of attachd's, tells what it is, if it is anything.
    pub fn narrow(&mut self, handle: &Handle, resolved: &Resolved, host: &HostState) {
        self.attachments.retain(|chain| goes_by(chain, handle, resolved));
        self.other_sessions.clear();
        if self.attachments.is_empty() {
            self.foreign = foreign(handle, resolved, host);
        } else {
            // Else one of them may be what is looked for.
            self.unreadable.clear();
        }
    }
}

fn goes_by(chain: &Chain, handle: &Handle, resolved: &Resolved) -> bool {
    match handle {
        Handle::Id(id) => {
            chain.volume.uuid() == *id || chain.attachment.is_some_and(|own| own.uuid() == *id)
        }
        Handle::Iqn(iqn) => chain.paths.iter().any(|path| &path.target.iqn == iqn),
        Handle::Device(path) => match resolved.number {
            Some(_) => is_device(chain, resolved),
            None => last(path).is_some_and(|name| is_named(chain, name)),
        },
        Handle::Place(path) => {
            // Where it should be mounted and isn't, the path leads to whatever is below.
            let asked_for = chain.mount_path.as_deref().is_some_and(|own| path.starts_with(own));
            asked_for || is_device(chain, resolved)
        }
        Handle::Word(word) => {
            // As kubectl writes it: a namespace or a kind before the name.
            let name = word.rsplit('/').next().unwrap_or(word);
            let request = match &chain.origin {
                Origin::CommandLine => false,
                Origin::RequestsDir(own) | Origin::Cluster(own) => own == word || own == name,
            };
            request || is_named(chain, word)
        }
    }
}

/// By number; or by name, as what sits on the volume.
fn is_device(chain: &Chain, resolved: &Resolved) -> bool {
    let disks = || chain.paths.iter().filter_map(|path| path.disk.as_ref());
    let by_number = resolved.number.is_some_and(|number| {
        chain.map.iter().any(|map| map.number == number)
            || disks().any(|disk| disk.number == number)
            || chain.mounts.iter().any(|mount| mount.number == number)
    });
    let sits = |holders: &Vec<DeviceName>| {
        resolved.name.as_ref().is_some_and(|name| holders.contains(name))
    };
    by_number
        || chain.map.iter().any(|map| sits(&map.holders))
        || disks().any(|disk| sits(&disk.holders))
}

fn is_named(chain: &Chain, word: &str) -> bool {
    let is = |name: &DeviceName| name.as_str() == word;
    let is_wwid = |wwid: &Wwid| wwid.as_str() == word;
    chain.wwid.as_ref().is_some_and(is_wwid)
        || chain.map.iter().any(|map| map.name == word || is(&map.device) || is_wwid(&map.wwid))
        || chain.paths.iter().filter_map(|path| path.disk.as_ref()).any(|disk| is(&disk.name))
}

fn last(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn foreign(handle: &Handle, resolved: &Resolved, host: &HostState) -> Option<Foreign> {
    let word = match handle {
        Handle::Id(_) => return None,
        Handle::Iqn(iqn) => return of_target(iqn, host),
        Handle::Device(path) => last(path)?,
        Handle::Place(_) => "",
        Handle::Word(word) => word,
    };
    let is_it = |number: DeviceNumber, name: &DeviceName| match resolved.number {
        Some(wanted) => wanted == number,
        None => name.as_str() == word,
    };
    let is_wwid = |wwid: Option<&Wwid>| wwid.is_some_and(|wwid| wwid.as_str() == word);
    let is_map = |map: &&MultipathMap| {
        is_it(map.number, &map.device) || map.name == word || is_wwid(Some(&map.wwid))
    };
    let is_disk =
        |disk: &&ScsiDevice| is_it(disk.number, &disk.name) || is_wwid(disk.wwid.as_ref());
    let disk = host.devices.iter().find(is_disk);
    let map = host.maps.iter().find(is_map).or_else(|| host.map_of(disk?));
    if let Some(map) = map {
        let is_member = |disk: &&ScsiDevice| map.members.iter().any(|m| m.device == disk.name);
        let disks: Vec<ScsiDevice> = host.devices.iter().filter(is_member).cloned().collect();
        let what = format!("{} ({}) is a multipath map", map.name, map.device);
        return Some(described(what, disks, Some(map), host));
    }
    if let Some(disk) = disk {
        let what = format!("{} is a disk of an iSCSI session", disk.name);
        return Some(described(what, vec![disk.clone()], None, host));
    }
    match (&resolved.mount, resolved.number) {
        (Some(mount), _) => Some(Foreign {
            what: format!(
                "it lies on {} ({}), which is no disk of an iSCSI session",
                mount.source, mount.fs_type
            ),
            mounts: vec![mount.clone()],
            ..nothing()
        }),
        (None, Some(number)) => {
            let name = resolved.name.as_ref().map_or(word, DeviceName::as_str);
            Some(Foreign {
                what: format!(
                    "{name} ({number}) is no disk of an iSCSI session and no multipath map"
                ),
                mounts: host.mounts_of(number).cloned().collect(),
                ..nothing()
            })
        }
        (None, None) => None,
    }
}

fn of_target(iqn: &Iqn, host: &HostState) -> Option<Foreign> {
    let sessions: Vec<&Session> = host.sessions.iter().filter(|s| &s.iqn == iqn).collect();
    let disks = sessions.iter().flat_map(|session| host.devices_of(session)).cloned().collect();
    let what = "it is a target that this node has a session to".to_owned();
    (!sessions.is_empty()).then(|| {
        let all = sessions.into_iter().cloned().collect();
        Foreign { sessions: all, ..described(what, disks, None, host) }
    })
}

fn nothing() -> Foreign {
    Foreign {
        what: String::new(),
        sessions: Vec::new(),
        disks: Vec::new(),
        map: None,
        mounts: Vec::new(),
        users: None,
    }
}

fn described(
    what: String,
    disks: Vec<ScsiDevice>,
    map: Option<&MultipathMap>,
    host: &HostState,
) -> Foreign {
    let numbers = disks.iter().map(|disk| disk.number).chain(map.map(|map| map.number));
    let mounts = numbers.flat_map(|number| host.mounts_of(number)).cloned().collect();
    let sessions = disks.iter().filter_map(|disk| host.session_of(disk)).cloned().collect();
    Foreign { what, sessions, disks, map: map.cloned(), mounts, users: None }
}
