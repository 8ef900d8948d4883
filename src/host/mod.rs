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
//!                                                              database_lock.rs its lock
//! multipath.rs      maps        multipathd.rs  its socket       blacklist.rs its configuration
//! contents.rs       what a device holds                         filesystem.rs  mkfs, fsck
//! mount.rs          mount, unmount    mountinfo.rs  mounts      openers.rs   who holds a device
//! namespaces.rs     the host's namespaces, from a container     propagation.rs  mounts that reach the host
//! connector.rs      what Cinder wants to know of the node       initiator.rs its name, and iscsid
//! ```

mod blacklist;
mod blocking;
mod connector;
mod contents;
mod database_lock;
mod error;
pub mod exec;
mod filesystem;
#[cfg(test)]
mod fixtures;
mod initiator;
mod iscsiadm;
mod linux;
mod mount;
mod mountinfo;
mod multipath;
mod multipathd;
mod namespaces;
mod node_records;
mod openers;
mod propagation;
#[cfg(any(test, feature = "testing"))]
pub mod scripted;
mod scsi;
mod sysfs;
mod uevent;
mod wwid;

pub use connector::{AddressSource, Network, NetworkError};
pub use error::HostError;
pub use iscsiadm::LoginLimits;
pub use linux::{LinuxConfig, LinuxHost};
pub use namespaces::HostNamespaces;
pub use sysfs::{Snapshot, Sysfs};

use std::{
    future::Future,
    path::{Path, PathBuf},
};

use tokio::sync::watch;

use crate::model::{
    Chap, Connector, Contents, DeviceName, Filesystem, Hctl, HostState, Lun, Multipathd, Portal,
    Target, Wwid,
};

/// What the engine asks of the node.
pub trait Host: Send + Sync {
    /// A counter that moves with every block-device, SCSI or iSCSI event of the kernel or udev.
    /// Take it before [`Host::observe`], and no change can be missed between the two.
    fn events(&self) -> watch::Receiver<u64>;

    /// The node's own facts, read anew.
    fn facts(&self) -> impl Future<Output = Result<NodeFacts, HostError>> + Send;

    /// What the kernel shows now.
    fn observe(&self) -> impl Future<Output = Result<HostState, HostError>> + Send;

    /// What a device holds; reads it, never writes.
    fn contents(
        &self,
        device: &DeviceName,
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
        device: DeviceName,
        /// Which.
        filesystem: Filesystem,
        /// A format of attachd's own was cut short on this very attachment: the device may hold its remains.
        resume: bool,
    },
    /// Check and, where that is safe (`e2fsck -p`), repair a file system that isn't mounted.
    CheckFilesystem {
        /// On which device.
        device: DeviceName,
        /// Which.
        filesystem: Filesystem,
    },
    /// Mount.
    Mount {
        /// The device.
        device: DeviceName,
        /// Its file system.
        filesystem: Filesystem,
        /// Where; made if it isn't there.
        target: PathBuf,
        /// Refuse writes.
        read_only: bool,
        /// Mount options as `mount -o` takes them.
        options: Vec<String>,
    },
    /// Unmount (never lazily, never by force).
    Unmount {
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
