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
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

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
    /// SCSI devices without their disk.
    pub nascent: Vec<Hctl>,
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
                disks_of(&path, &mut snapshot)?;
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
        snapshot.nascent.sort();
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
            node: None,
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

/// All disks of a session, those to come included.
fn disks_of(session: &Path, found: &mut Snapshot) -> Result<(), HostError> {
    for (name, target) in entries(&session.join("device"))? {
        if !name.starts_with("target") {
            continue;
        }
        for (name, path) in entries(&target)? {
            let Ok(hctl) = name.parse::<Hctl>() else { continue };
            match disk(hctl, &path)? {
                Some(disk) => found.devices.push(disk),
                None if is_nascent(&path)? => found.nascent.push(hctl),
                None => {}
            }
        }
    }
    Ok(())
}

/// Whether a SCSI device is a disk by its type (0: direct access) that isn't about to go.
fn is_nascent(path: &Path) -> Result<bool, HostError> {
    let state = text(&path.join("state"))?;
    Ok(parsed::<u8>(&path.join("type"))? == Some(0)
        && !matches!(state.as_deref(), None | Some("cancel" | "del")))
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

/// A map's path by its name, where udev has made it and it leads to that very map.
pub(crate) fn map_node(dev: &Path, name: &str, number: DeviceNumber) -> Option<PathBuf> {
    let path = dev.join("mapper").join(name);
    let seen = fs::metadata(&path).ok().filter(|seen| seen.file_type().is_block_device())?;
    let is_it = major(seen.rdev()) == u64::from(number.major)
        && minor(seen.rdev()) == u64::from(number.minor);
    is_it.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixtures;

    const WWID: &str = "36e0afa839db0b2600447d09eda0f9451";

    fn hctl(text: &str) -> Hctl {
        text.parse().unwrap()
    }

    #[test]
    fn a_captured_node_with_two_paths_is_read_whole() {
        let tree = fixtures::sysfs("two-paths");
        let snapshot = Sysfs::new(tree.path()).snapshot().unwrap();
        let sessions: Vec<_> = snapshot
            .sessions
            .iter()
            .map(|s| (s.sid, s.host, s.portal.to_string(), s.tpgt, s.state))
            .collect();
        assert_eq!(
            sessions,
            [
                (4, 0, "10.0.2.2:27551".to_owned(), 1, SessionState::LoggedIn),
                (5, 1, "10.0.3.2:27551".to_owned(), 1, SessionState::LoggedIn),
            ]
        );
        let disks: Vec<_> = snapshot
            .devices
            .iter()
            .map(|d| (d.hctl.to_string(), d.name.as_str(), d.number.to_string(), d.size_bytes))
            .collect();
        assert_eq!(
            disks,
            [
                ("0:0:0:1".to_owned(), "sdb", "8:16".to_owned(), 1 << 30),
                ("1:0:0:1".to_owned(), "sda", "8:0".to_owned(), 1 << 30),
            ]
        );
        for disk in &snapshot.devices {
            assert_eq!(disk.wwid.as_ref().unwrap().as_str(), WWID);
            assert_eq!((disk.vendor.as_str(), disk.model.as_str()), ("IET", "VIRTUAL-DISK"));
            assert_eq!((disk.state, disk.read_only), (DeviceState::Running, false));
            assert_eq!(disk.holders[0].as_str(), "dm-0");
        }
        let [map] = snapshot.maps.as_slice() else { panic!("{:?}", snapshot.maps) };
        assert_eq!(
            (map.name.as_str(), map.wwid.as_str(), map.device.as_str()),
            (WWID, WWID, "dm-0")
        );
        assert_eq!((map.number.to_string().as_str(), map.size_bytes), ("253:0", 1 << 30));
        let members: Vec<_> = map.members.iter().map(|member| member.device.as_str()).collect();
        assert_eq!(members, ["sda", "sdb"]);
        assert!(map.holders.is_empty());
    }

    #[test]
    fn what_vanishes_is_left_out_and_the_rest_is_read() {
        let tree = fixtures::sysfs("two-paths");
        let host0 = tree.path().join("devices/platform/host0/session4");
        fs::remove_dir_all(host0.join("connection4:0")).unwrap();
        fs::remove_file(host0.join("target0:0:0/0:0:0:1/block/sdb/size")).unwrap();
        fs::remove_file(tree.path().join("devices/virtual/block/dm-0/dm/uuid")).unwrap();
        let snapshot = Sysfs::new(tree.path()).snapshot().unwrap();
        assert_eq!(snapshot.sessions.len(), 1);
        assert_eq!(snapshot.devices.len(), 1);
        assert!(snapshot.maps.is_empty());
    }

    #[test]
    fn a_scsi_device_whose_disk_is_still_to_come_is_told_from_what_is_none_or_goes() {
        let tree = fixtures::sysfs("two-paths");
        let sysfs = Sysfs::new(tree.path());
        let device = tree.path().join("devices/platform/host0/session4/target0:0:0/0:0:0:1");
        fs::remove_dir_all(device.join("block")).unwrap();
        for (kind, state, nascent) in [
            ("0\n", "running\n", true),
            ("0\n", "blocked\n", true),
            ("12\n", "running\n", false),
            ("0\n", "cancel\n", false),
        ] {
            fs::write(device.join("type"), kind).unwrap();
            fs::write(device.join("state"), state).unwrap();
            let snapshot = sysfs.snapshot().unwrap();
            assert_eq!(snapshot.devices.len(), 1);
            assert_eq!(snapshot.nascent == [hctl("0:0:0:1")], nascent, "{kind}{state}");
        }
    }

    #[test]
    fn a_disk_that_was_never_inquired_has_no_wwid_and_states_are_told_apart() {
        let tree = fixtures::sysfs("two-paths");
        let sysfs = Sysfs::new(tree.path());
        let disk = tree.path().join("devices/platform/host0/session4/target0:0:0/0:0:0:1");
        fs::remove_file(disk.join("vpd_pg83")).unwrap();
        for (text, state) in [
            ("running\n", DeviceState::Running),
            ("blocked\n", DeviceState::Blocked),
            ("transport-offline\n", DeviceState::Offline),
            ("offline\n", DeviceState::Offline),
        ] {
            fs::write(disk.join("state"), text).unwrap();
            let disk = sysfs.snapshot().unwrap().devices[0].clone();
            assert_eq!((disk.wwid, disk.state), (None, state));
        }
    }

    #[test]
    fn a_node_without_iscsi_is_empty_and_no_sysfs_is_an_error() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("class")).unwrap();
        assert_eq!(Sysfs::new(tree.path()).snapshot().unwrap(), Snapshot::default());
        assert!(Sysfs::new(tree.path().join("nothing")).snapshot().is_err());
    }

    #[test]
    fn addresses_and_scan_files_are_found() {
        let tree = fixtures::sysfs("two-paths");
        let sysfs = Sysfs::new(tree.path());
        assert_eq!(sysfs.disk_at(hctl("1:0:0:1")).unwrap().unwrap().as_str(), "sda");
        assert_eq!(sysfs.disk_at(hctl("1:0:0:2")).unwrap(), None);
        let (file, target) = sysfs.scan_file(1).unwrap();
        assert!(file.ends_with("class/scsi_host/host1/scan") && file.exists());
        assert_eq!(target, "0 0");
        let other = tree.path().join("devices/platform/host1/session5/iscsi_session/session5");
        fs::write(other.join("target_id"), "7\n").unwrap();
        assert_eq!(sysfs.scan_file(1).unwrap().1, "0 7");
        fs::write(other.join("target_id"), "4294967295\n").unwrap();
        assert_eq!(sysfs.scan_file(1).unwrap().1, "0 0");
    }
}
