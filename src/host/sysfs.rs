//! What sysfs shows: iSCSI sessions, their disks, multipath maps.
//!
//! ```text
//! class/iscsi_session/session1 -> …/host2/session1/iscsi_session/session1
//!     targetname tpgt state target_id
//!     device/target2:0:0/2:0:0:1/{state,vendor,model,vpd_pg83,block/sda/{size,dev,ro,holders/}}
//! class/iscsi_connection/connection1:0/{persistent_address,persistent_port}
//! block/dm-0/{size,dev,ro,holders/,slaves/,dm/{uuid,name}}
//! ```
//!
//! Everything here can vanish while it is read; what vanishes is left out.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::model::{
    DeviceName, DeviceNumber, DeviceState, Hctl, Iqn, MapMember, MultipathMap, Portal, ScsiDevice,
    Session, SessionState,
};

use super::{HostError, wwid::wwid_of_page83};

/// The prefix of the dm UUID of maps that multipath made (multipath-tools' `UUID_PREFIX`).
const MPATH: &str = "mpath-";

/// `iscsi_session/target_id` while no target is set (`ISCSI_MAX_TARGET`, -1).
const NO_TARGET: &str = "4294967295";

/// A tree of sysfs: `/sys`, or a captured one.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

/// What sysfs showed in one walk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All iSCSI sessions.
    pub sessions: Vec<Session>,
    /// Their disks.
    pub devices: Vec<ScsiDevice>,
    /// All multipath maps.
    pub maps: Vec<MultipathMap>,
}

impl Sysfs {
    /// The tree below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Walks sessions, their disks and the maps. Blocks.
    pub fn snapshot(&self) -> Result<Snapshot, HostError> {
        let mut snapshot = Snapshot::default();
        for (name, path) in self.list("class/iscsi_session")? {
            if let Some(session) = self.session(&name, &path)? {
                disks_of(&path, &mut snapshot.devices)?;
                snapshot.sessions.push(session);
            }
        }
        for (name, path) in self.list("block")? {
            if name.starts_with("dm-")
                && let Some(map) = Self::map(&name, &path)?
            {
                snapshot.maps.push(map);
            }
        }
        snapshot.sessions.sort_by_key(|session| session.sid);
        snapshot.devices.sort_by_key(|device| device.hctl);
        snapshot.maps.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(snapshot)
    }

    fn session(&self, name: &str, path: &Path) -> Result<Option<Session>, HostError> {
        let number = name.strip_prefix("session").and_then(|sid| sid.parse::<u32>().ok());
        let (Some(sid), Some(host)) = (number, host_of(path)) else { return Ok(None) };
        let iqn = text(&path.join("targetname"))?.and_then(|text| text.parse::<Iqn>().ok());
        let tpgt = parsed::<u16>(&path.join("tpgt"))?;
        let state = match text(&path.join("state"))?.as_deref() {
            Some("LOGGED_IN") => SessionState::LoggedIn,
            Some("FAILED") => SessionState::Failed,
            _ => SessionState::Free,
        };
        let (Some(iqn), Some(portal), Some(tpgt)) = (iqn, self.portal(sid)?, tpgt) else {
            return Ok(None);
        };
        Ok(Some(Session { sid, host, iqn, portal, tpgt, state }))
    }

    /// The portal that was asked for, of the session's leading connection.
    fn portal(&self, sid: u32) -> Result<Option<Portal>, HostError> {
        let path = self.root.join(format!("class/iscsi_connection/connection{sid}:0"));
        let address = text(&path.join("persistent_address"))?
            .and_then(|text| text.trim_matches(['[', ']']).parse().ok());
        let port = parsed::<u16>(&path.join("persistent_port"))?;
        Ok(address.zip(port).map(|(address, port)| Portal::new(address, port)))
    }

    fn map(name: &str, path: &Path) -> Result<Option<MultipathMap>, HostError> {
        let wwid = text(&path.join("dm/uuid"))?
            .and_then(|uuid| uuid.strip_prefix(MPATH).and_then(|wwid| wwid.parse().ok()));
        let number = parsed::<DeviceNumber>(&path.join("dev"))?;
        let (Some(wwid), Some(device), Some(number), Some(map), Some(sectors)) = (
            wwid,
            DeviceName::new(name),
            number,
            text(&path.join("dm/name"))?,
            parsed::<u64>(&path.join("size"))?,
        ) else {
            return Ok(None);
        };
        let members = names(&path.join("slaves"))?;
        Ok(Some(MultipathMap {
            name: map,
            wwid,
            device,
            number,
            size_bytes: sectors.saturating_mul(512),
            read_only: flag(&path.join("ro"))?,
            members: members
                .into_iter()
                .map(|device| MapMember { device, path_state: None })
                .collect(),
            holders: names(&path.join("holders"))?,
        }))
    }

    /// The directory of a SCSI device.
    pub(crate) fn scsi_device(&self, hctl: Hctl) -> PathBuf {
        self.root.join(format!("class/scsi_device/{hctl}/device"))
    }

    /// The disk that a SCSI address has now.
    pub(crate) fn disk_at(&self, hctl: Hctl) -> Result<Option<DeviceName>, HostError> {
        Ok(names(&self.scsi_device(hctl).join("block"))?.into_iter().next())
    }

    /// Who sits on a block device.
    pub(crate) fn holders(&self, device: &DeviceName) -> Result<Vec<DeviceName>, HostError> {
        names(&self.root.join("block").join(device.as_str()).join("holders"))
    }

    /// A block device's number.
    pub(crate) fn number(&self, device: &DeviceName) -> Result<Option<DeviceNumber>, HostError> {
        parsed(&self.root.join("block").join(device.as_str()).join("dev"))
    }

    /// A map's name; `None` for what isn't one.
    pub(crate) fn map_name(&self, device: &DeviceName) -> Option<String> {
        text(&self.root.join("block").join(device.as_str()).join("dm/name")).ok().flatten()
    }

    /// The file that makes a SCSI host look for a LUN, and what to write before the LUN: the channel
    /// (always 0 for iSCSI) and the target number of the session (0 for software iSCSI; offload
    /// adapters have more than one session on a host).
    pub(crate) fn scan_file(&self, host: u32) -> Result<(PathBuf, String), HostError> {
        let mut target = None;
        for (_, path) in self.list("class/iscsi_session")? {
            if host_of(&path) == Some(host) {
                target = text(&path.join("target_id"))?.filter(|id| id != NO_TARGET);
            }
        }
        let file = self.root.join(format!("class/scsi_host/host{host}/scan"));
        Ok((file, format!("0 {}", target.as_deref().unwrap_or("0"))))
    }

    /// A class or `block`; empty where the kernel has no such thing (its module isn't loaded).
    fn list(&self, below: &str) -> Result<Vec<(String, PathBuf)>, HostError> {
        if !self.root.join("class").exists() {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(HostError::io("read", self.root.join("class"))(source));
        }
        entries(&self.root.join(below))
    }
}

/// All disks of a session.
fn disks_of(session: &Path, found: &mut Vec<ScsiDevice>) -> Result<(), HostError> {
    for (name, target) in entries(&session.join("device"))? {
        if !name.starts_with("target") {
            continue;
        }
        for (name, path) in entries(&target)? {
            if let Ok(hctl) = name.parse::<Hctl>()
                && let Some(disk) = disk(hctl, &path)?
            {
                found.push(disk);
            }
        }
    }
    Ok(())
}

fn disk(hctl: Hctl, path: &Path) -> Result<Option<ScsiDevice>, HostError> {
    let Some((name, block)) = entries(&path.join("block"))?.into_iter().next() else {
        return Ok(None);
    };
    let number = parsed::<DeviceNumber>(&block.join("dev"))?;
    let sectors = parsed::<u64>(&block.join("size"))?;
    let (Some(name), Some(number), Some(sectors)) = (DeviceName::new(&name), number, sectors)
    else {
        return Ok(None);
    };
    // `created`, `cancel`, `del` and `offline` refuse I/O as well; during recovery it is `blocked`,
    // and `transport-offline` once the replacement time is over.
    let state = match text(&path.join("state"))?.as_deref() {
        Some("running") => DeviceState::Running,
        Some("blocked" | "quiesce" | "created-blocked") => DeviceState::Blocked,
        _ => DeviceState::Offline,
    };
    Ok(Some(ScsiDevice {
        hctl,
        name,
        number,
        size_bytes: sectors.saturating_mul(512),
        wwid: readable(&path.join("vpd_pg83"), fs::read(path.join("vpd_pg83")))?
            .and_then(|page| wwid_of_page83(&page)),
        vendor: text(&path.join("vendor"))?.unwrap_or_default(),
        model: text(&path.join("model"))?.unwrap_or_default(),
        state,
        read_only: flag(&block.join("ro"))?,
        holders: names(&block.join("holders"))?,
    }))
}

/// The SCSI host in a session's real path (`…/host2/session1/…`).
fn host_of(session: &Path) -> Option<u32> {
    let real = fs::canonicalize(session).ok()?;
    let mut hosts = real
        .components()
        .filter_map(|part| part.as_os_str().to_str()?.strip_prefix("host")?.parse::<u32>().ok());
    hosts.next_back()
}

/// `None` for what has vanished, or is vanishing: the device is gone (`ENODEV`, `ENXIO`) or the
/// connection is not bound (`ENOTCONN`, `EINVAL`).
fn readable<T>(path: &Path, result: io::Result<T>) -> Result<Option<T>, HostError> {
    use nix::libc::{EINVAL, ENODEV, ENOENT, ENOTCONN, ENOTDIR, ENXIO};
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(ENOENT | ENOTDIR | ENODEV | ENXIO | ENOTCONN | EINVAL)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(HostError::io("read", path)(error)),
    }
}

fn text(path: &Path) -> Result<Option<String>, HostError> {
    let bytes = readable(path, fs::read(path))?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
}

fn parsed<T: std::str::FromStr>(path: &Path) -> Result<Option<T>, HostError> {
    Ok(text(path)?.and_then(|text| text.parse().ok()))
}

fn flag(path: &Path) -> Result<bool, HostError> {
    Ok(text(path)?.is_some_and(|text| text == "1"))
}

fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, HostError> {
    let Some(entries) = readable(directory, fs::read_dir(directory))? else {
        return Ok(Vec::new());
    };
    let named = entries.filter_map(Result::ok).filter_map(|entry| {
        let name = entry.file_name().to_str()?.to_owned();
        Some((name, entry.path()))
    });
    let mut named: Vec<_> = named.collect();
    named.sort();
    Ok(named)
}

fn names(directory: &Path) -> Result<Vec<DeviceName>, HostError> {
    Ok(entries(directory)?.iter().filter_map(|(name, _)| DeviceName::new(name)).collect())
}
