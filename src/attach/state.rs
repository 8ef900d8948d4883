use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{OwnedTargets, Record};
use crate::{
    cinder::{AttachmentStatus, AttachmentSummary, Volume},
    host::{MountTarget, NodeFacts},
    model::{
        AttachSpec, ConnectionInfo, Contents, DeviceId, DeviceName, Hctl, HostState, SharedVec,
        Target, VolumeId,
    },
};

/// What was asked of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Desired {
    /// Attached to this node, as the spec says.
    Attached(AttachSpec),
    /// Attached as it is, and grown to the size that Cinder states.
    Resized {
        /// Which volume.
        volume: VolumeId,
        /// Whoever asked counts on this size.
        at_least_gib: Option<u64>,
    },
    /// Not attached to this node.
    Detached {
        /// Where the ordinary road can't be gone, give up what could not be written, and only that.
        force: bool,
    },
}

/// What Cinder says of the attachment that the ledger names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachmentView {
    /// Cinder was not asked, or can't be reached.
    Unknown,
    /// Cinder has none of that id.
    Gone,
    /// It exists.
    Known {
        /// Its status.
        status: AttachmentStatus,
        /// Its connection info, once it has a connector.
        info: Option<ConnectionInfo>,
    },
}

/// What the ledger says of other volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    /// Their records.
    pub records: SharedVec<Record>,
    /// Some record can't be read: it may name any target.
    pub unreadable: bool,
}

/// What happened in this run, and can't be seen in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempt {
    /// Targets that refused or didn't answer, and what they said.
    pub failed_logins: BTreeMap<Target, String>,
    /// SCSI hosts whose LUN was scanned while no disk was there: a disk there now is fresh.
    pub scanned: BTreeSet<(u32, u64)>,
    /// Disks that the kernel read anew in this run.
    pub reread: BTreeSet<Hctl>,
    /// What discovery named.
    pub discovered: Option<Vec<Target>>,
    /// Targets that were logged out of: a session there now would be one that didn't go.
    pub logged_out: BTreeSet<Target>,
    /// Targets whose sessions are left by force, since iscsid can't end them.
    pub left_sessions: BTreeSet<Target>,
    /// What the device holds.
    pub contents: Option<(DeviceId, Contents)>,
    /// The file system was checked in this run.
    pub checked: bool,
    /// The file system was told to fill its device, and whether it grew by that.
    pub grown: Option<bool>,
    /// multipathd was asked for the map since the last event.
    pub map_asked: bool,
    /// What was waited for in vain.
    pub overdue: Overdue,
    /// Why the ordinary road back can't be gone.
    pub blocked: Option<String>,
    /// Maps that were told to let I/O fail rather than wait for a path.
    pub unqueued: BTreeSet<DeviceName>,
    /// Processes keep the mount of a volume that is cut off.
    pub mount_busy: bool,
    /// Maps of a volume that is cut off which can't go, and why.
    pub held_maps: BTreeMap<String, String>,
}

/// What was waited for until its time limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overdue {
    /// Sessions that didn't recover.
    pub sessions: bool,
    /// Disks that didn't appear.
    pub disks: bool,
    /// A map that wasn't made, or lacks disks.
    pub map: bool,
}

/// Everything that the plan looks at, beside the request and the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The node; `None` where a detach is planned, which doesn't depend on it.
    pub facts: Option<NodeFacts>,
    /// The kernel's state.
    pub host: Arc<HostState>,
    /// The volume; `None` where Cinder has none of that id, or was not asked.
    pub volume: Option<Volume>,
    /// The recorded attachment.
    pub attachment: AttachmentView,
    /// All attachments of the volume; read only where a reservation's id may have been lost.
    pub attachments: Vec<AttachmentSummary>,
    /// The mount path, where the request has one.
    pub mount_target: Option<MountTarget>,
    /// Targets that attachd logged in to.
    pub owned_targets: OwnedTargets,
    /// Other volumes' records.
    pub others: Arc<Others>,
    /// This run's memory.
    pub attempt: Attempt,
}
