//! Effects on this Linux host, one file per tool or kernel interface.
//!
//! The engine needs only [`Host`]: observe, then apply one [`HostOp`], then observe again.
//! [`LinuxHost`] is the real one. Nothing in here decides what is right to do; that is the plan's job.
//!
//! ```text
//! linux.rs          LinuxHost: puts the others together
//! exec.rs           the only place where a process is born      blocking.rs  blocking work with a time limit
//! sysfs.rs          sessions, disks and maps as the kernel shows them        wwid.rs  VPD page 0x83
//! scsi.rs           scan, rescan, flush, delete                 uevent.rs    the counter of events
//! iscsiadm.rs       logins, logouts, discovery                  node_records.rs  open-iscsi's database
//! kept_records.rs   records of others, set aside            database_lock.rs its lock
//! multipath.rs      maps        multipathd.rs  its socket       blacklist.rs its configuration
//! pinned.rs         a device that keeps its name                xfs_twin.rs  two clones with one UUID
//! contents.rs       what a device holds                         filesystem.rs  mkfs, fsck    growth.rs  resize
//! mount.rs          mount, unmount    mountinfo.rs  mounts      openers.rs   who holds a device
//! mount_point.rs    their directories, by open descriptors
//! namespaces.rs     the host's namespaces, from a container     propagation.rs  mounts that reach the host
//! survey.rs         what only a person looks at
//! privacy.rs        no core dumps, no files for others to write
//! connector.rs      what Cinder wants to know of the node       initiator.rs its name, and iscsid
//! ```

mod blacklist;
pub(crate) mod blocking;
mod connector;
mod contents;
mod database_lock;
mod error;
pub mod exec;
mod filesystem;
#[cfg(test)]
mod fixtures;
mod growth;
mod initiator;
mod iscsiadm;
mod kept_records;
mod kernel_session;
mod linux;
mod looks;
mod mount;
mod mount_point;
mod mountinfo;
mod multipath;
mod multipathd;
mod namespaces;
mod node_records;
mod openers;
mod pinned;
mod privacy;
mod propagation;
#[cfg(any(test, feature = "testing"))]
pub mod scripted;
mod scsi;
mod silent_portals;
mod survey;
mod sysfs;
mod uevent;
mod wwid;
mod xfs_twin;

/// What reads text that comes from elsewhere, for [`testing`](crate::testing).
#[cfg(any(test, feature = "testing"))]
pub(crate) mod parsers {
    use crate::model::{Chap, MountEntry, Target};

    use super::{LoginLimits, mountinfo, node_records};
    pub(crate) use super::{
        blacklist::blacklisting_rule, contents::signature, iscsiadm::targets, multipath::states,
        multipathd::judge, uevent::matters, wwid::wwid_of_page83,
    };

    pub(crate) fn mounts(text: &str) -> Vec<MountEntry> {
        mountinfo::parse(text).iter().filter_map(mountinfo::entry).collect()
    }

    /// A node record with attachd's settings; None where the credentials are refused.
    pub(crate) fn node_record(text: &str, target: &Target, chap: &Chap) -> Option<String> {
        let limits = LoginLimits::default();
        let settings = node_records::settings(target, Some(chap), &limits).ok()?;
        Some(node_records::edited(text, &settings))
    }
}

pub(crate) use blacklist::{blacklisting_rule, rule_against_disk};
pub use connector::{AddressSource, Network, NetworkError};
pub use error::HostError;
pub(crate) use initiator::{initiator_name, iscsid_answers};
pub use iscsiadm::LoginLimits;
pub use kept_records::KeptRecords;
pub use linux::{LinuxConfig, LinuxHost};
pub(crate) use multipathd::Client as MultipathdClient;
pub use namespaces::HostNamespaces;
pub use openers::{Process, Users};
pub use privacy::keep_memory_private;
pub(crate) use propagation::Propagation;
pub use sysfs::{IoCounters, Snapshot, Sysfs};

use std::{
    collections::BTreeSet,
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;

use crate::model::{
    Chap, Connector, Contents, DeviceId, DeviceName, Filesystem, Hctl, HostState, Lun, Multipathd,
    Portal, Target, Wwid,
};

/// What the engine asks of the node.
pub trait Host: Send + Sync {
    /// A counter that moves with every block-device, SCSI or iSCSI event of the kernel or udev.
    /// Take it before [`Host::observe`], and no change can be missed between the two.
    fn events(&self) -> watch::Receiver<u64>;

    /// The node's own facts, read anew.
    fn facts(&self) -> impl Future<Output = Result<NodeFacts, HostError>> + Send;

    /// What the kernel shows now.
    fn observe(&self) -> impl Future<Output = Result<Arc<HostState>, HostError>> + Send;

    /// The same, for who decides on these targets: their sessions, and all that hangs on them, as they are
    /// now. Of others, what no event told of may be some seconds old.
    fn observe_targets(
        &self,
        targets: &BTreeSet<Target>,
    ) -> impl Future<Output = Result<Arc<HostState>, HostError>> + Send;

    /// What a device holds; reads it, never writes.
    fn contents(
        &self,
        device: &DeviceId,
    ) -> impl Future<Output = Result<Contents, HostError>> + Send;

    /// What stands at a path that a volume is to be mounted on: below an allowed root, through no
    /// symbolic link.
    fn mount_target(
        &self,
        target: &Path,
    ) -> impl Future<Output = Result<MountTarget, HostError>> + Send;

    /// `SendTargets` discovery: every target and portal that this portal names. Leaves no record behind.
    fn discover(
        &self,
        portal: Portal,
        chap: Option<&Chap>,
    ) -> impl Future<Output = Result<Vec<Target>, HostError>> + Send;

    /// Does one thing. Doing it again is harmless, and says [`Applied::unchanged`] where it can tell.
    fn apply(&self, op: &HostOp) -> impl Future<Output = Result<Applied, HostError>> + Send;
}

/// Facts of the node that an attach depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// What goes to Cinder; `multipath` in it says that multipathd [`Multipathd::Claims`].
    pub connector: Connector,
    /// multipathd's state.
    pub multipathd: Multipathd,
    /// Whether iscsid answers on its socket.
    pub iscsid: bool,
}

/// One change to the node. Lists are worked on side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostOp {
    /// Write node records (`node.startup=manual`, `node.session.scan=manual`, short login limits),
    /// with the credentials, which never stand on a command line.
    WriteNodeRecords {
        /// For which targets.
        targets: Vec<Target>,
        /// CHAP, if the target wants it.
        chap: Option<Chap>,
    },
    /// Log in, to all at once. A portal that doesn't answer is a failure in [`Applied`], not an error.
    Login {
        /// To which targets; their node records exist.
        targets: Vec<Target>,
    },
    /// Have the kernel give iscsid back the connections that iscsid can't set up again: of sessions that
    /// don't work, though their portals answer. Nothing is logged out.
    GiveBackConnections {
        /// Of whose sessions.
        targets: Vec<Target>,
    },
    /// Make the kernel look at exactly one LUN on each of these SCSI hosts.
    ScanLuns {
        /// SCSI host and LUN.
        luns: Vec<(u32, Lun)>,
    },
    /// Make the kernel read size and identity (VPD pages) of these disks anew.
    Rescan {
        /// Which disks.
        devices: Vec<Hctl>,
    },
    /// Ask multipathd for a map over these disks.
    AddMap {
        /// Their identity.
        wwid: Wwid,
        /// The disks.
        devices: Vec<DeviceName>,
    },
    /// Flush a map, remove it and take its WWID off multipath's list. Refuses while it is open.
    RemoveMap {
        /// Its name.
        name: String,
        /// Its identity.
        wwid: Wwid,
    },
    /// Take a WWID off multipath's list where a map was made for it and is gone (by a reboot, say).
    ForgetMap {
        /// Its identity.
        wwid: Wwid,
    },
    /// Flush disks and delete them from the kernel.
    DeleteDevices {
        /// Which; the name and the address must still belong together.
        devices: Vec<(Hctl, DeviceName)>,
    },
    /// Make block devices refuse writes.
    SetReadOnly {
        /// Which.
        devices: Vec<DeviceName>,
    },
    /// Make a file system, after seeing once more that the device is blank.
    Format {
        /// On which device.
        device: DeviceId,
        /// Which.
        filesystem: Filesystem,
        /// A format of attachd's own was cut short on this very attachment: the device may hold its remains.
        resume: bool,
    },
    /// Check and, where that is safe (`e2fsck -p`), repair a file system that isn't mounted.
    CheckFilesystem {
        /// On which device.
        device: DeviceId,
        /// Which.
        filesystem: Filesystem,
    },
    /// Mount.
    Mount {
        /// The device.
        device: DeviceId,
        /// Its file system.
        filesystem: Filesystem,
        /// Where; made if it isn't there.
        target: PathBuf,
        /// Refuse writes.
        read_only: bool,
        /// Mount options as `mount -o` takes them.
        options: Vec<String>,
    },
    /// Have multipathd give a map the size that all its disks have. Never shrinks it.
    ResizeMap {
        /// Its name.
        name: String,
        /// Its identity.
        wwid: Wwid,
        /// The size of each of its disks.
        size_bytes: u64,
    },
    /// Grow a mounted file system to the end of its device, unless it is there already.
    GrowFilesystem {
        /// On which device.
        device: DeviceId,
        /// Which.
        filesystem: Filesystem,
        /// Where it is mounted.
        target: PathBuf,
    },
    /// Have a map fail its I/O where no path is left, instead of keeping it.
    StopQueueing {
        /// Its name.
        name: String,
    },
    /// Delete disks without flushing them, whoever uses them: nothing that is not written yet reaches
    /// the storage by them any more.
    CutDisks {
        /// Which; the name and the address must still belong together.
        devices: Vec<(Hctl, DeviceName)>,
        /// The maps that may sit on them; nothing else may.
        maps: Vec<DeviceName>,
    },
    /// Unmount (never lazily, never by force).
    Unmount {
        /// Where.
        target: PathBuf,
    },
    /// Take a mount out of sight whose users don't go; they keep its file system until they do.
    UnmountLazily {
        /// Where.
        target: PathBuf,
    },
    /// Remove an empty directory that attachd made for a mount; one that isn't empty stays.
    RemoveDirectory {
        /// Which.
        target: PathBuf,
    },
    /// Log out of sessions and delete their node records.
    Logout {
        /// From which targets.
        targets: Vec<Target>,
    },
}

/// What an operation did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Whether anything is other than before.
    pub changed: bool,
    /// Parts of a list that failed, while the others went on: what, and why.
    pub failures: Vec<(String, HostError)>,
}

impl Applied {
    /// Everything was as asked already.
    pub fn unchanged() -> Self {
        Self::default()
    }

    /// Something was changed, and nothing failed.
    pub fn changed() -> Self {
        Self { changed: true, failures: Vec::new() }
    }
}

/// What stands at a mount path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountTarget {
    /// Nothing; its parent directories can be made.
    Absent,
    /// A directory without entries.
    EmptyDirectory,
    /// Something that must not be mounted over.
    Unusable {
        /// Why.
        why: String,
    },
}
