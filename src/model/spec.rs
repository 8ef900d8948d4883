use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{AccessMode, Filesystem, VolumeId};

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

/// Why a mount option isn't let through, for those that reach beyond the volume that is mounted.
/// Options that a file system doesn't know are refused by the kernel.
pub fn mount_option_flaw(option: &str) -> Option<&'static str> {
    let name = option.split_once('=').map_or(option, |(name, _)| name);
    if option.is_empty()
        || option.contains(|c: char| c == ',' || c.is_whitespace() || c.is_control())
    {
        return Some("it must be one option, without commas and spaces");
    }
    match name {
        "journal_dev" | "journal_path" | "logdev" | "rtdev" => {
            Some("it would have another device than the volume written to")
        }
        "loop" | "offset" | "sizelimit" | "encryption" => {
            Some("attachd mounts the volume itself, not a file or a part of it")
        }
        "bind" | "rbind" | "move" | "remount" | "shared" | "rshared" | "slave" | "rslave"
        | "private" | "rprivate" | "unbindable" | "runbindable" | "helper" | "uhelper" => {
            Some("it asks for something else than to mount the volume")
        }
        _ => None,
    }
}
