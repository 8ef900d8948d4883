use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    cinder::{AttachmentStatus, AttachmentSummary, Volume},
    host::{MountTarget, NodeFacts},
    model::{
        AccessMode, ConnectionInfo, Contents, DeviceName, Filesystem, Hctl, HostState, Target,
        VolumeId,
    },
};

/// What was asked of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Desired {
    /// Attached to this node, as the spec says.
    Attached(AttachSpec),
    /// Not attached to this node.
    Detached,
}

/// How a volume is to be attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachSpec {
    /// Which volume.
    pub volume: VolumeId,
    /// Read and write, or read only.
    pub mode: AccessMode,
    /// File system or raw block.
    pub usage: Usage,
    /// Whether a multipath map is wanted.
    pub multipath: MultipathPolicy,
    /// Cinder's `instance_uuid`. Setting it makes Cinder ask Nova at delete, unless the caller holds
    /// the role `service`; so it is left out by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Uuid>,
}

impl AttachSpec {
    /// Where the volume is to be mounted; `None` for raw block.
    pub fn mount_path(&self) -> Option<&Path> {
        match &self.usage {
            Usage::Filesystem { mount_path, .. } => Some(mount_path),
            Usage::Block => None,
        }
    }
}

/// What a volume is used as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Usage {
    /// A file system, mounted.
    Filesystem {
        /// Which.
        filesystem: Filesystem,
        /// Whether a blank device may be formatted.
        format: FormatPolicy,
        /// Where; absolute.
        mount_path: PathBuf,
        /// Mount options.
        options: Vec<String>,
    },
    /// The block device itself.
    Block,
}

macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    other => Err(format!("unknown value {other:?}: {}", [$($word),+].join(" or "))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }
    };
}

word_enum! {
    /// Whether a blank device may be formatted. A device that isn't blank never is.
    FormatPolicy {
        /// If nothing is on it.
        IfBlank = "if-blank",
        /// Not at all.
        Never = "never",
    }
}

word_enum! {
    /// Whether a multipath map is wanted.
    MultipathPolicy {
        /// A map where multipathd claims disks on this node; else one path, with a warning.
        Auto = "auto",
        /// A map, or no attach.
        Required = "required",
        /// One path.
        Disabled = "disabled",
    }
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
    /// What the device holds.
    pub contents: Option<(DeviceName, Contents)>,
    /// The file system was checked in this run.
    pub checked: bool,
    /// multipathd was asked for the map since the last event.
    pub map_asked: bool,
    /// What was waited for in vain.
    pub overdue: Overdue,
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
    pub host: HostState,
    /// The volume; `None` where Cinder has none of that id, or was not asked.
    pub volume: Option<Volume>,
    /// The recorded attachment.
    pub attachment: AttachmentView,
    /// All attachments of the volume; read only where a reservation's id may have been lost.
    pub attachments: Vec<AttachmentSummary>,
    /// The mount path, where the request has one.
    pub mount_target: Option<MountTarget>,
    /// Targets that attachd logged in to.
    pub owned_targets: BTreeSet<Target>,
    /// Targets that other volumes' records name.
    pub shared_targets: BTreeSet<Target>,
    /// This run's memory.
    pub attempt: Attempt,
}
