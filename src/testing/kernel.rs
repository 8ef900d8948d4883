use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::storage::Storage;
use crate::{
    host::MountTarget,
    model::{
        DeviceId, DeviceName, DeviceNumber, DeviceState, Hctl, HostState, Iqn, MapMember,
        MountEntry, MultipathMap, ScsiDevice, Session, SessionState, Target, VolumeId, Wwid,
    },
};

/// Who made something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// attachd.
    Attachd,
    /// Anybody else.
    Other,
}

/// A session.
#[derive(Debug, Clone)]
pub struct SimSession {
    /// Its number.
    pub sid: u32,
    /// Its SCSI host.
    pub host: u32,
    /// Where to.
    pub target: Target,
    /// Whether it works.
    pub state: SessionState,
    /// Who logged in.
    pub maker: Maker,
    /// The credentials that it logged in with.
    pub generation: u64,
}

/// A disk.
#[derive(Debug, Clone)]
pub struct SimDisk {
    /// Its address.
    pub hctl: Hctl,
    /// Its name.
    pub name: DeviceName,
    /// Its number.
    pub number: DeviceNumber,
    /// The kernel's count of devices when it came.
    pub diskseq: u64,
    /// The target that it came from.
    pub iqn: Iqn,
    /// What the kernel read at the scan.
    pub wwid: Wwid,
    /// What the kernel read at the scan.
    pub size_bytes: u64,
    /// Which volume was there at the scan.
    pub seen: VolumeId,
    /// Refuses writes.
    pub read_only: bool,
    /// How often the node must be looked at until it appears.
    pub appears_in: u32,
    /// How often multipathd refuses it, since udev isn't done with it.
    pub udev_lag: u32,
    /// Another tool's, or an administrator's.
    pub maker: Maker,
}

/// A map.
#[derive(Debug, Clone)]
pub struct SimMap {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub wwid: Wwid,
    /// Its device.
    pub device: DeviceName,
    /// Its number.
    pub number: DeviceNumber,
    /// The kernel's count of devices when it came.
    pub diskseq: u64,
    /// Its size.
    pub size_bytes: u64,
    /// Refuses writes.
    pub read_only: bool,
    /// How often the node must be looked at until udev has made its lasting path.
    pub node_in: u32,
    /// Its disks.
    pub members: Vec<DeviceName>,
    /// Something sits on it.
    pub holders: Vec<DeviceName>,
    /// I/O waits where no path is left.
    pub queues: bool,
    /// A file system that was unmounted lazily is on it, for processes that don't let go.
    pub held: bool,
    /// The volume that it was made for.
    pub volume: VolumeId,
    /// Who made it.
    pub maker: Maker,
}

/// A mount.
#[derive(Debug, Clone)]
pub struct SimMount {
    /// Of which device.
    pub number: DeviceNumber,
    /// By which name.
    pub source: String,
    /// Where.
    pub target: PathBuf,
    /// Its file system.
    pub fs_type: String,
    /// Refuses writes.
    pub read_only: bool,
    /// Met errors.
    pub errors: bool,
    /// The volume that was mounted.
    pub volume: Option<VolumeId>,
    /// Processes don't let go of it.
    pub busy: bool,
    /// What an application wrote, and the kernel holds back.
    pub unwritten: Option<u64>,
    /// Who mounted it.
    pub maker: Maker,
}

/// The node's kernel, iscsid and multipathd.
#[derive(Debug, Default)]
pub struct Kernel {
    /// How often the node was started.
    pub boot: u64,
    /// Sessions.
    pub sessions: Vec<SimSession>,
    /// Disks.
    pub disks: Vec<SimDisk>,
    /// Maps.
    pub maps: Vec<SimMap>,
    /// Mounts.
    pub mounts: Vec<SimMount>,
    /// open-iscsi's node records: they survive a restart.
    pub node_records: BTreeMap<Target, Maker>,
    /// Node records of others that attachd set aside for its own. They survive a restart, too.
    pub set_aside: BTreeSet<Target>,
    /// Directories at mount paths; whether something is in them. They survive a restart.
    pub directories: BTreeMap<PathBuf, bool>,
    /// Whose sessions iscsid has not taken over since it was restarted, and does not end.
    pub waits_in_iscsid: BTreeSet<Target>,
    /// Whose connections iscsid can't set up again, until the kernel gives them back.
    pub held_back: BTreeSet<Target>,
    /// multipathd is away, or never makes a map.
    pub no_maps: bool,
    /// multipathd doesn't add new disks to maps by itself.
    pub no_auto_join: bool,
    /// How late disks appear, by portal.
    pub late: BTreeMap<crate::model::Portal, u32>,
    /// How late udev is with a new disk.
    pub udev_lag: u32,
    /// Logins that iscsid goes on with, though the attachd that asked for them was killed: in how many
    /// looks each has its end.
    pub(super) logins: Vec<(Target, u32)>,
    next_host: u32,
    next_sid: u32,
    diskseq: u64,
}

impl Kernel {
    /// Everything but files is gone.
    pub(super) fn reboot(&mut self) {
        *self = Self {
            boot: self.boot + 1,
            node_records: std::mem::take(&mut self.node_records),
            set_aside: std::mem::take(&mut self.set_aside),
            directories: std::mem::take(&mut self.directories),
            no_maps: self.no_maps,
            no_auto_join: self.no_auto_join,
            late: std::mem::take(&mut self.late),
            udev_lag: self.udev_lag,
            ..Self::default()
        };
    }

    pub(super) fn log_in(&mut self, target: &Target, generation: u64, maker: Maker) -> bool {
        if self.sessions.iter().any(|session| &session.target == target) {
            return false;
        }
        self.next_host += 1;
        self.next_sid += 1;
        self.sessions.push(SimSession {
            sid: self.next_sid,
            host: self.next_host,
            target: target.clone(),
            state: SessionState::LoggedIn,
            maker,
            generation,
        });
        true
    }

    pub(super) fn log_out(&mut self, target: &Target) -> bool {
        let hosts: Vec<u32> = self
            .sessions
            .iter()
            .filter(|session| &session.target == target)
            .map(|session| session.host)
            .collect();
        self.sessions.retain(|session| &session.target != target);
        let gone: Vec<Hctl> =
            self.disks.iter().filter(|d| hosts.contains(&d.hctl.host)).map(|d| d.hctl).collect();
        for hctl in gone {
            self.remove_disk(hctl);
        }
        !hosts.is_empty()
    }

    pub(super) fn remove_disk(&mut self, hctl: Hctl) {
        for disk in self.disks.extract_if(.., |disk| disk.hctl == hctl) {
            for map in &mut self.maps {
                map.members.retain(|member| member != &disk.name);
            }
        }
    }

    /// The lowest number that no disk has, nor a mount of a disk that is gone.
    pub(super) fn new_disk_name(&self) -> (DeviceName, DeviceNumber) {
        let number = |index: u32| DeviceNumber { major: 8, minor: index * 16 };
        let free = |index: &u32| {
            let number = number(*index);
            self.disks.iter().all(|disk| disk.number != number)
                && self.mounts.iter().all(|mount| mount.number != number)
        };
        let index = (0..u32::MAX).find(free).unwrap_or_default();
        (name(&format!("sd{}", letters(index))), number(index))
    }

    pub(super) fn new_map_name(&self) -> (String, DeviceName, DeviceNumber) {
        let number = |index: u32| DeviceNumber { major: 253, minor: index };
        let free = |index: &u32| self.maps.iter().all(|map| map.number != number(*index));
        let index = (0..u32::MAX).find(free).unwrap_or_default();
        (format!("mpath{}", letters(index)), name(&format!("dm-{index}")), number(index))
    }

    /// The logins that nobody waits for come to their ends; says whether there is news.
    pub(super) fn logins_go_on(&mut self, storage: &Storage) -> bool {
        for (_, looks) in &mut self.logins {
            *looks = looks.saturating_sub(1);
        }
        let ended: Vec<_> = self.logins.extract_if(.., |(_, looks)| *looks == 0).collect();
        for (target, _) in &ended {
            if let Some(generation) = storage.answers(&target.iqn, target.portal) {
                self.log_in(target, generation, Maker::Attachd);
            }
        }
        !ended.is_empty()
    }

    /// Sessions fail and recover with their targets.
    pub(super) fn refresh_sessions(&mut self, storage: &Storage) {
        for session in &mut self.sessions {
            let answers = storage.answers(&session.target.iqn, session.target.portal);
            // After a lost connection iscsid logs in again, with the credentials that it has.
            let held_back = self.held_back.contains(&session.target);
            session.state = if answers == Some(session.generation) && !held_back {
                SessionState::LoggedIn
            } else {
                SessionState::Failed
            };
        }
    }

    /// Time goes by: late disks come nearer, multipathd adds new disks to maps that exist. Says
    /// whether there is news.
    pub(super) fn tick(&mut self) -> bool {
        let mut news = false;
        for disk in &mut self.disks {
            if disk.appears_in > 0 {
                disk.appears_in -= 1;
                news |= disk.appears_in == 0;
            }
        }
        for map in self.maps.iter_mut().filter(|map| map.node_in > 0) {
            map.node_in -= 1;
            news |= map.node_in == 0;
        }
        let taken: BTreeSet<DeviceName> =
            self.maps.iter().flat_map(|map| map.members.clone()).collect();
        for disk in self.disks.iter().filter(|disk| disk.appears_in == 0 && disk.udev_lag == 0) {
            if taken.contains(&disk.name) || self.no_maps || self.no_auto_join {
                continue;
            }
            let fits =
                |map: &&mut SimMap| map.wwid == disk.wwid && map.size_bytes == disk.size_bytes;
            if let Some(map) = self.maps.iter_mut().find(fits) {
                map.members.push(disk.name.clone());
                news = true;
            }
        }
        news || self.disks.iter().any(|disk| disk.udev_lag > 0)
    }

    /// What sysfs and mountinfo show.
    pub(super) fn snapshot(&self, storage: &Storage) -> HostState {
        HostState {
            sessions: self.sessions.iter().map(shown_session).collect(),
            devices: self
                .disks
                .iter()
                .filter(|disk| disk.appears_in == 0)
                .map(|disk| self.shown_disk(disk, storage))
                .collect(),
            nascent: self.disks.iter().filter(|d| d.appears_in > 0).map(|d| d.hctl).collect(),
            maps: self.maps.iter().map(shown_map).collect(),
            mounts: self.mounts.iter().map(shown_mount).collect(),
        }
    }

    fn shown_disk(&self, disk: &SimDisk, storage: &Storage) -> ScsiDevice {
        let session = self.sessions.iter().find(|session| session.host == disk.hctl.host);
        let works = session.is_some_and(|session| session.state == SessionState::LoggedIn);
        let over = self.maps.iter().filter(|map| map.members.contains(&disk.name));
        ScsiDevice {
            hctl: disk.hctl,
            name: disk.name.clone(),
            number: disk.number,
            diskseq: Some(disk.diskseq),
            size_bytes: disk.size_bytes,
            wwid: Some(disk.wwid.clone()),
            vendor: storage.vendor().to_owned(),
            model: "VIRTUAL-DISK".to_owned(),
            state: if works { DeviceState::Running } else { DeviceState::Blocked },
            read_only: disk.read_only,
            holders: over.map(|map| map.device.clone()).collect(),
        }
    }

    /// What is at a mount path.
    pub(super) fn mount_target(&self, path: &Path) -> MountTarget {
        match self.directories.get(path) {
            None => MountTarget::Absent,
            Some(false) => MountTarget::EmptyDirectory,
            Some(true) => MountTarget::Unusable { why: "it is not empty".to_owned() },
        }
    }

    /// The volume that reads and writes of a device go to now.
    pub fn behind(&self, number: DeviceNumber, storage: &Storage) -> Option<VolumeId> {
        let below = |disk: &SimDisk| {
            let session = self.sessions.iter().find(|session| session.host == disk.hctl.host)?;
            let works = session.state == SessionState::LoggedIn;
            works.then(|| storage.behind(&disk.iqn, disk.hctl.lun)).flatten()
        };
        if let Some(map) = self.maps.iter().find(|map| map.number == number) {
            let mut members = self.disks.iter().filter(|disk| map.members.contains(&disk.name));
            return members.find_map(below);
        }
        self.disks.iter().find(|disk| disk.number == number).and_then(below)
    }

    /// A number that no device had before.
    pub(super) fn next_diskseq(&mut self) -> u64 {
        self.diskseq += 1;
        self.diskseq
    }

    /// Whether a device of this name is still the one that is meant.
    pub(super) fn is_still(&self, device: &DeviceId) -> bool {
        let disk = self.disks.iter().find(|disk| disk.name == device.name);
        let map = self.maps.iter().find(|map| map.device == device.name);
        let found = disk.map(|disk| disk.diskseq).or_else(|| map.map(|map| map.diskseq));
        self.number(&device.name) == Some(device.number) && found == device.diskseq
    }

    /// The size of a device in bytes.
    pub(super) fn size_of(&self, device: &DeviceName) -> Option<u64> {
        let disk = self.disks.iter().find(|disk| &disk.name == device).map(|disk| disk.size_bytes);
        let map = || self.maps.iter().find(|map| &map.device == device).map(|map| map.size_bytes);
        disk.or_else(map)
    }

    /// The number of a device.
    pub fn number(&self, device: &DeviceName) -> Option<DeviceNumber> {
        let disk = self.disks.iter().find(|disk| &disk.name == device).map(|disk| disk.number);
        disk.or_else(|| self.maps.iter().find(|map| &map.device == device).map(|map| map.number))
    }
}

fn shown_session(session: &SimSession) -> Session {
    Session {
        sid: session.sid,
        host: session.host,
        iqn: session.target.iqn.clone(),
        portal: session.target.portal,
        tpgt: 1,
        state: session.state,
    }
}

fn shown_map(map: &SimMap) -> MultipathMap {
    MultipathMap {
        name: map.name.clone(),
        wwid: map.wwid.clone(),
        node: (map.node_in == 0).then(|| Path::new("/dev/mapper").join(&map.name)),
        device: map.device.clone(),
        number: map.number,
        diskseq: Some(map.diskseq),
        size_bytes: map.size_bytes,
        read_only: map.read_only,
        members: map
            .members
            .iter()
            .map(|device| MapMember { device: device.clone(), path_state: None })
            .collect(),
        holders: map.holders.clone(),
    }
}

fn shown_mount(mount: &SimMount) -> MountEntry {
    MountEntry {
        number: mount.number,
        source: mount.source.clone(),
        target: mount.target.clone(),
        fs_type: mount.fs_type.clone(),
        read_only: mount.read_only,
        errors: mount.errors,
    }
}

/// a … z, aa … zz, aaa …: as the kernel counts its disks.
fn letters(index: u32) -> String {
    let last = char::from_u32(u32::from(b'a') + index % 26).unwrap_or('z');
    match index / 26 {
        0 => last.to_string(),
        before => format!("{}{last}", letters(before - 1)),
    }
}

#[expect(clippy::expect_used, reason = "fixed texts of the simulation")]
pub(super) fn name(text: &str) -> DeviceName {
    DeviceName::new(text).expect("a name of the simulation")
}
