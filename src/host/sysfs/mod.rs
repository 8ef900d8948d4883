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

mod walk;

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{DirEntryExt as _, FileTypeExt, MetadataExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use nix::sys::stat::{major, minor};
use serde::Serialize;

use crate::model::{
    DeviceName, DeviceNumber, DeviceState, Hctl, Iqn, MapMember, MultipathMap, Portal, ScsiDevice,
    Session, SessionState, SharedVec, Wwid,
};

use super::{HostError, wwid::wwid_of_page83};

pub(crate) use walk::{Memory, Scope};

/// The prefix of the dm UUID of maps that multipath made (multipath-tools' `UUID_PREFIX`).
const MPATH: &str = "mpath-";

/// Of the kernel's smallest.
const PAGE: usize = 4096;

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
    pub sessions: SharedVec<Session>,
    /// Their disks.
    pub devices: SharedVec<ScsiDevice>,
    /// SCSI devices without their disk.
    pub nascent: Vec<Hctl>,
    /// All multipath maps.
    pub maps: SharedVec<MultipathMap>,
}

/// A session and its disks.
#[derive(Debug)]
struct OneSession {
    session: Arc<Session>,
    devices: Vec<Arc<ScsiDevice>>,
    nascent: Vec<Hctl>,
}

/// How many commands the kernel sent to a disk, and what became of them, since the disk is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct IoCounters {
    /// Sent.
    pub requested: u64,
    /// Ended, well or not.
    pub done: u64,
    /// Ended with an error; some errors are a disk's way to tell of a change.
    pub failed: u64,
}

impl Sysfs {
    /// The tree below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Walks sessions, their disks and the maps. Blocks.
    pub fn snapshot(&self) -> Result<Snapshot, HostError> {
        self.walk(&mut Memory::default(), &Scope::everything(), |_| None)
    }

    /// The multipath map with this identity. Blocks.
    pub(crate) fn map_of(&self, wwid: &Wwid) -> Result<Option<MultipathMap>, HostError> {
        for (name, link, _) in self.maps_and_others()? {
            if uuid(&link)?.as_ref() == Some(wwid)
                && let Some(map) = Self::map(&name, &resolved(link))?
            {
                return Ok(Some(map));
            }
        }
        Ok(None)
    }

    /// The multipath map over a disk. Blocks.
    pub(crate) fn map_over(&self, disk: &DeviceName) -> Result<Option<MultipathMap>, HostError> {
        for holder in self.holders(disk)? {
            if let Some(map) = self.map_named(&holder)? {
                return Ok(Some(map));
            }
        }
        Ok(None)
    }

    /// The multipath map that a block device is. Blocks.
    pub(crate) fn map_named(&self, device: &DeviceName) -> Result<Option<MultipathMap>, HostError> {
        Self::map(device.as_str(), &resolved(self.root.join("block").join(device.as_str())))
    }

    fn maps_and_others(&self) -> Result<Vec<(String, PathBuf, u64)>, HostError> {
        let mut found = self.list("block")?;
        found.retain(|(name, ..)| name.starts_with("dm-"));
        Ok(found)
    }

    fn map(name: &str, path: &Path) -> Result<Option<MultipathMap>, HostError> {
        let number = parsed::<DeviceNumber>(&path.join("dev"))?;
        let (Some(wwid), Some(device), Some(number), Some(map), Some(sectors)) = (
            uuid(path)?,
            DeviceName::new(name),
            number,
            text(&path.join("dm/name"))?,
            parsed::<u64>(&path.join("size"))?,
        ) else {
            return Ok(None);
        };
        // A disk that was deleted leaves its link until the map lets go of it.
        let slaves = path.join("slaves");
        let mut members = names(&slaves)?;
        members.retain(|member: &DeviceName| slaves.join(member.as_str()).exists());
        Ok(Some(MultipathMap {
            node: None,
            name: map,
            wwid,
            device,
            number,
            diskseq: parsed(&path.join("diskseq"))?,
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

    /// What the kernel counted at a disk since it is there.
    pub(crate) fn io_counters(&self, hctl: Hctl) -> Result<Option<IoCounters>, HostError> {
        let device = self.scsi_device(hctl);
        let count = |name: &str| -> Result<Option<u64>, HostError> {
            let text = text(&device.join(name))?;
            let digits = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
            Ok(text.as_deref().and_then(digits))
        };
        let counted = (count("iorequest_cnt")?, count("iodone_cnt")?, count("ioerr_cnt")?);
        let (Some(requested), Some(done), Some(failed)) = counted else { return Ok(None) };
        Ok(Some(IoCounters { requested, done, failed }))
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

    /// See [`DeviceId::diskseq`](crate::model::DeviceId::diskseq).
    pub(crate) fn diskseq(&self, device: &DeviceName) -> Result<Option<u64>, HostError> {
        parsed(&self.root.join("block").join(device.as_str()).join("diskseq"))
    }

    /// The name that a number has now.
    pub(crate) fn name_of(&self, number: DeviceNumber) -> Option<DeviceName> {
        let link = fs::read_link(self.root.join(format!("dev/block/{number}"))).ok()?;
        DeviceName::new(link.file_name()?.to_str()?)
    }

    /// Whether the ext4 on a block device met errors since it was last checked.
    pub(crate) fn ext4_errors(&self, number: DeviceNumber) -> bool {
        let name = self.name_of(number);
        let count =
            name.map(|name| self.root.join("fs/ext4").join(name.as_str()).join("errors_count"));
        let count = count.and_then(|path| parsed::<u64>(&path).ok().flatten());
        count.is_some_and(|count| count > 0)
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
        for (_, path, _) in self.list("class/iscsi_session")? {
            let path = resolved(path);
            if host_of(&path) == Some(host) {
                target = text(&path.join("target_id"))?.filter(|id| id != NO_TARGET);
            }
        }
        let file = self.root.join(format!("class/scsi_host/host{host}/scan"));
        Ok((file, format!("0 {}", target.as_deref().unwrap_or("0"))))
    }

    /// A class or `block`; empty where the kernel has no such thing (its module isn't loaded).
    fn list(&self, below: &str) -> Result<Vec<(String, PathBuf, u64)>, HostError> {
        if !self.root.join("class").exists() {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(HostError::io("read", self.root.join("class"))(source));
        }
        numbered(&self.root.join(below))
    }
}

/// The WWID in the dm UUID of a multipath map.
fn uuid(path: &Path) -> Result<Option<Wwid>, HostError> {
    let uuid = text(&path.join("dm/uuid"))?;
    Ok(uuid.and_then(|uuid| uuid.strip_prefix(MPATH)?.parse().ok()))
}

fn one_session(name: &str, link: PathBuf) -> Result<Option<OneSession>, HostError> {
    // …/host2/session1/iscsi_session/session1
    let path = resolved(link);
    let Some(device) = path.parent().and_then(Path::parent) else { return Ok(None) };
    let Some(session) = session(name, &path, device)? else { return Ok(None) };
    let mut found =
        OneSession { session: Arc::new(session), devices: Vec::new(), nascent: Vec::new() };
    disks_of(device, &mut found)?;
    Ok(Some(found))
}

fn session(name: &str, path: &Path, device: &Path) -> Result<Option<Session>, HostError> {
    let number = name.strip_prefix("session").and_then(|sid| sid.parse::<u32>().ok());
    let (Some(sid), Some(host)) = (number, host_of(path)) else { return Ok(None) };
    let iqn = text(&path.join("targetname"))?.and_then(|text| text.parse::<Iqn>().ok());
    let tpgt = parsed::<u16>(&path.join("tpgt"))?;
    let state = match text(&path.join("state"))?.as_deref() {
        Some("LOGGED_IN") => SessionState::LoggedIn,
        Some("FAILED") => SessionState::Failed,
        _ => SessionState::Free,
    };
    let (Some(iqn), Some(portal), Some(tpgt)) = (iqn, portal(device, sid)?, tpgt) else {
        return Ok(None);
    };
    Ok(Some(Session { sid, host, iqn, portal, tpgt, state }))
}

/// The portal that was asked for, of the session's leading connection.
fn portal(session: &Path, sid: u32) -> Result<Option<Portal>, HostError> {
    let path = session.join(format!("connection{sid}:0/iscsi_connection/connection{sid}:0"));
    let address = text(&path.join("persistent_address"))?
        .and_then(|text| text.trim_matches(['[', ']']).parse().ok());
    let port = parsed::<u16>(&path.join("persistent_port"))?;
    Ok(address.zip(port).map(|(address, port)| Portal::new(address, port)))
}

/// All disks of a session, those to come included.
fn disks_of(session: &Path, found: &mut OneSession) -> Result<(), HostError> {
    for (name, target) in entries(session)? {
        if !name.starts_with("target") {
            continue;
        }
        for (name, path) in entries(&target)? {
            let Ok(hctl) = name.parse::<Hctl>() else { continue };
            match disk(hctl, &path)? {
                Some(disk) => found.devices.push(Arc::new(disk)),
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
        diskseq: parsed(&block.join("diskseq"))?,
        size_bytes: sectors.saturating_mul(512),
        wwid: readable(&path.join("vpd_pg83"), attribute(&path.join("vpd_pg83")))?
            .and_then(|page| wwid_of_page83(&page)),
        vendor: text(&path.join("vendor"))?.unwrap_or_default(),
        model: text(&path.join("model"))?.unwrap_or_default(),
        state,
        read_only: flag(&block.join("ro"))?,
        holders: names(&block.join("holders"))?,
    }))
}

/// Where a link of sysfs leads to. Below a link the kernel makes its text anew for each file.
fn resolved(link: PathBuf) -> PathBuf {
    let Ok(to) = fs::read_link(&link) else { return link };
    let mut path = link;
    path.pop();
    for part in to.components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
    }
    path
}

/// The SCSI host in a session's own path (`…/host2/session1/…`).
fn host_of(session: &Path) -> Option<u32> {
    let mut hosts = session
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

/// An attribute: the kernel gives the whole of it, a page at most, to the first read.
fn attribute(path: &Path) -> io::Result<Vec<u8>> {
    let mut page = [0; PAGE];
    let length = File::open(path)?.read(&mut page)?;
    Ok(page[..length].to_vec())
}

fn text(path: &Path) -> Result<Option<String>, HostError> {
    let bytes = readable(path, attribute(path))?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
}

fn parsed<T: std::str::FromStr>(path: &Path) -> Result<Option<T>, HostError> {
    Ok(text(path)?.and_then(|text| text.parse().ok()))
}

fn flag(path: &Path) -> Result<bool, HostError> {
    Ok(text(path)?.is_some_and(|text| text == "1"))
}

fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, HostError> {
    Ok(numbered(directory)?.into_iter().map(|(name, path, _)| (name, path)).collect())
}

/// With their inode numbers.
fn numbered(directory: &Path) -> Result<Vec<(String, PathBuf, u64)>, HostError> {
    let Some(entries) = readable(directory, fs::read_dir(directory))? else {
        return Ok(Vec::new());
    };
    let named = entries.filter_map(Result::ok).filter_map(|entry| {
        let name = entry.file_name().to_str()?.to_owned();
        Some((name, entry.path(), entry.ino()))
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

    #[test]
    fn errors_of_an_ext4_are_found_by_its_device_number() {
        let tree = tempfile::tempdir().unwrap();
        let number = DeviceNumber { major: 253, minor: 0 };
        let sysfs = Sysfs::new(tree.path());
        assert!(!sysfs.ext4_errors(number), "nothing is there");
        for directory in ["dev/block", "devices/virtual/block/dm-0", "fs/ext4/dm-0"] {
            fs::create_dir_all(tree.path().join(directory)).unwrap();
        }
        let link = tree.path().join("dev/block/253:0");
        std::os::unix::fs::symlink("../../devices/virtual/block/dm-0", link).unwrap();
        for (count, errors) in [("0\n", false), ("1007\n", true)] {
            fs::write(tree.path().join("fs/ext4/dm-0/errors_count"), count).unwrap();
            assert_eq!(sysfs.ext4_errors(number), errors);
        }
    }

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
        assert_eq!(snapshot.maps.len(), 1, "{:?}", snapshot.maps);
        let map = &snapshot.maps[0];
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
    fn maps_are_found_by_identity_disk_and_number_without_reading_the_others() {
        let tree = fixtures::sysfs("two-paths");
        let sysfs = Sysfs::new(tree.path());
        let map = sysfs.snapshot().unwrap().maps[0].clone();
        assert_eq!(sysfs.map_of(&map.wwid).unwrap().as_ref(), Some(&map));
        assert_eq!(
            sysfs.map_of(&"36e0000000000000000000000000000000".parse().unwrap()).unwrap(),
            None
        );
        let disk = |name: &str| DeviceName::new(name).unwrap();
        assert_eq!(sysfs.map_over(&disk("sdb")).unwrap().as_ref(), Some(&map));
        assert_eq!(sysfs.map_over(&disk("sdz")).unwrap(), None);
        assert_eq!(sysfs.map_named(&disk("dm-0")).unwrap(), Some(map));
        assert_eq!(sysfs.map_named(&disk("sda")).unwrap(), None);
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

    #[test]
    fn a_disk_that_was_deleted_is_no_member_of_the_map_that_still_holds_on_to_it() {
        let tree = fixtures::sysfs("two-paths");
        let disk = "devices/platform/host1/session5/target1:0:0/1:0:0:1/block/sda";
        fs::remove_dir_all(tree.path().join(disk)).unwrap();
        let snapshot = Sysfs::new(tree.path()).snapshot().unwrap();
        let members: Vec<_> = snapshot.maps[0].members.iter().map(|m| m.device.as_str()).collect();
        assert_eq!(members, ["sdb"]);
    }
}
