use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{
    DeviceName, DeviceNumber, Hctl, Iqn, Lun, Portal, SharedVec, Target, TargetPath, Wwid,
};

/// An iSCSI session as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Session {
    /// The session's number (`sessionN`).
    pub sid: u32,
    /// The SCSI host that belongs to it.
    pub host: u32,
    /// The target's name.
    pub iqn: Iqn,
    /// The portal that was asked for (`persistent_address`): what node records are kept under,
    /// even where the target redirected the login.
    pub portal: Portal,
    /// The target portal group.
    pub tpgt: u16,
    /// Its state.
    pub state: SessionState,
}

impl Session {
    /// Whether the session goes to this target.
    pub fn is_to(&self, target: &Target) -> bool {
        self.iqn == target.iqn && self.portal == target.portal
    }
}

/// `iscsi_session/state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionState {
    /// `LOGGED_IN`: usable.
    LoggedIn,
    /// `FAILED`: the connection is lost, recovery runs.
    Failed,
    /// `FREE` and whatever else: not usable.
    Free,
}

/// A SCSI disk, one path to a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScsiDevice {
    /// Its SCSI address.
    pub hctl: Hctl,
    /// The kernel's name for the disk.
    pub name: DeviceName,
    /// Its device number.
    pub number: DeviceNumber,
    /// See [`DeviceId::diskseq`](super::DeviceId::diskseq).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diskseq: Option<u64>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its identity by VPD page 0x83, as the kernel read it at the last scan.
    pub wwid: Option<Wwid>,
    /// INQUIRY's vendor.
    pub vendor: String,
    /// INQUIRY's product.
    pub model: String,
    /// The kernel's state of the path.
    pub state: DeviceState,
    /// Whether the block device refuses writes.
    pub read_only: bool,
    /// Who sits on it (maps, md, bcache, …).
    pub holders: Vec<DeviceName>,
}

/// `device/state` of a SCSI disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// I/O flows.
    Running,
    /// I/O waits (`blocked`, `quiesce`, …).
    Blocked,
    /// I/O fails (`offline`, `transport-offline`: the session's replacement time is over).
    Offline,
}

/// A device-mapper multipath map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MultipathMap {
    /// Its name.
    pub name: String,
    /// The WWID that multipath made it for (dm UUID without `mpath-`).
    pub wwid: Wwid,
    /// `/dev/mapper/<name>`, once udev has made it: the one lasting path.
    pub node: Option<PathBuf>,
    /// The kernel's name.
    pub device: DeviceName,
    /// Its device number.
    pub number: DeviceNumber,
    /// See [`DeviceId::diskseq`](super::DeviceId::diskseq).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diskseq: Option<u64>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether the block device refuses writes.
    pub read_only: bool,
    /// The disks below it.
    pub members: Vec<MapMember>,
    /// Who sits on it.
    pub holders: Vec<DeviceName>,
}

impl MultipathMap {
    /// The disks below it that are none of these.
    pub fn members_beside(&self, disks: &[&ScsiDevice]) -> Vec<DeviceName> {
        let names = self.members.iter().map(|member| &member.device);
        names.filter(|name| disks.iter().all(|disk| &disk.name != *name)).cloned().collect()
    }
}

/// One disk of a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MapMember {
    /// The kernel's name of the disk.
    pub device: DeviceName,
    /// multipathd's opinion (`active`, `failed`, …), where it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_state: Option<String>,
}

/// A line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MountEntry {
    /// The device that is mounted.
    pub number: DeviceNumber,
    /// What was given as source.
    pub source: String,
    /// Where.
    pub target: PathBuf,
    /// The kernel's file system name.
    pub fs_type: String,
    /// Whether the mount or the file system refuses writes.
    pub read_only: bool,
    /// The kernel met errors in the file system since it was last checked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub errors: bool,
}

/// The multipath daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Multipathd {
    /// It doesn't answer on its socket.
    NotRunning,
    /// It answers, but its configuration keeps it off every SCSI disk.
    Blacklisted {
        /// The pattern that does it.
        pattern: String,
    },
    /// It answers and claims disks.
    Claims,
}

/// What the kernel and multipathd show of this node's block storage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HostState {
    /// All iSCSI sessions.
    pub sessions: SharedVec<Session>,
    /// All SCSI disks that belong to an iSCSI session.
    pub devices: SharedVec<ScsiDevice>,
    /// SCSI devices of iSCSI sessions whose disk the kernel still has to make: it answers a scan as
    /// soon as the device is there, and attaches the disk driver to it afterwards.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nascent: Vec<Hctl>,
    /// All multipath maps.
    pub maps: SharedVec<MultipathMap>,
    /// All mounts of block devices.
    pub mounts: Vec<MountEntry>,
}

impl HostState {
    /// The session to a target, a usable one first.
    pub fn session(&self, target: &Target) -> Option<&Session> {
        let mut to_target: Vec<&Session> =
            self.sessions.iter().filter(|s| s.is_to(target)).collect();
        to_target.sort_by_key(|s| s.state != SessionState::LoggedIn);
        to_target.first().copied()
    }

    /// The session that a disk came through.
    pub fn session_of(&self, device: &ScsiDevice) -> Option<&Session> {
        self.sessions.iter().find(|s| s.host == device.hctl.host)
    }

    /// All disks of a session.
    pub fn devices_of<'a>(&'a self, session: &'a Session) -> impl Iterator<Item = &'a ScsiDevice> {
        self.devices.iter().filter(move |d| d.hctl.host == session.host)
    }

    /// The disk that a path leads to.
    pub fn disk_at(&self, path: &TargetPath) -> Option<&ScsiDevice> {
        let session = self.session(&path.target)?;
        self.devices_of(session).find(|disk| disk.hctl.lun == path.lun.0)
    }

    /// The LUNs of a session whose disks the kernel still has to make.
    pub fn nascent_of(&self, session: &Session) -> impl Iterator<Item = Lun> {
        let host = session.host;
        self.nascent.iter().filter(move |hctl| hctl.host == host).map(|hctl| Lun(hctl.lun))
    }

    /// The disk with this name.
    pub fn device(&self, name: &DeviceName) -> Option<&ScsiDevice> {
        self.devices.iter().find(|d| &d.name == name)
    }

    /// The map that a disk is part of.
    pub fn map_of(&self, device: &ScsiDevice) -> Option<&MultipathMap> {
        self.maps.iter().find(|m| m.members.iter().any(|member| member.device == device.name))
    }

    /// Whether a disk or a map of this number is there.
    pub fn has_device(&self, number: DeviceNumber) -> bool {
        self.devices.iter().any(|disk| disk.number == number)
            || self.maps.iter().any(|map| map.number == number)
    }

    /// Whether some session or disk doesn't work now, or is still to come.
    pub fn is_disturbed(&self) -> bool {
        self.sessions.iter().any(|session| session.state != SessionState::LoggedIn)
            || self.devices.iter().any(|disk| disk.state != DeviceState::Running)
            || !self.nascent.is_empty()
    }

    /// What is mounted exactly there (the topmost, where mounts are stacked).
    pub fn mount_at(&self, target: &Path) -> Option<&MountEntry> {
        self.mounts.iter().rev().find(|m| m.target == target)
    }

    /// All mounts of a device.
    pub fn mounts_of(&self, number: DeviceNumber) -> impl Iterator<Item = &MountEntry> {
        self.mounts.iter().filter(move |m| m.number == number)
    }
}

/// What a block device holds, as far as it can be told without trusting one tool alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Contents {
    /// Read, and seen to be zero wherever a signature or data was looked for.
    Blank,
    /// A file system (`ext4`, `xfs`, or one that attachd doesn't handle).
    Filesystem {
        /// blkid's TYPE.
        name: String,
    },
    /// Something else that a tool has a name for: a partition table, LVM, LUKS, RAID, swap, …
    Signature {
        /// blkid's name for it.
        name: String,
    },
    /// No known signature, but not blank: bytes that are not zero.
    Data {
        /// Where the first was seen, in bytes.
        offset: u64,
    },
}
