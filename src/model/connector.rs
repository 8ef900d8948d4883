use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Iqn;

/// How a volume is attached: Cinder's attachment mode (microversion 3.54).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessMode {
    /// Read and write.
    #[default]
    Rw,
    /// Read only, on the block device and on the mount.
    Ro,
}

impl AccessMode {
    /// Cinder's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rw => "rw",
            Self::Ro => "ro",
        }
    }
}

impl FromStr for AccessMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "rw" => Ok(Self::Rw),
            "ro" => Ok(Self::Ro),
            other => Err(format!("unknown access mode {other:?}: rw or ro")),
        }
    }
}

impl fmt::Display for AccessMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The facts of this node that Cinder needs to export a volume to it: the body of an attachment
/// update. Field names are os-brick's (`get_connector_properties`), as drivers read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connector {
    /// The initiator's iSCSI name; a LIO target's ACL is made for it.
    pub initiator: Iqn,
    /// The address from which the node reaches its storage.
    pub ip: IpAddr,
    /// The node's name.
    pub host: String,
    /// The machine: `x86_64`, `aarch64`, …
    pub platform: String,
    /// Always `linux`.
    pub os_type: String,
    /// Whether all portals are wanted: multipathd answers and is configured to claim devices.
    pub multipath: bool,
    /// Always false: the volume is reached over the network.
    pub do_local_attach: bool,
    /// The `NVMe` host name, where the node has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nqn: Option<String>,
    /// The machine's DMI UUID, where it can be read.
    #[serde(rename = "system uuid", skip_serializing_if = "Option::is_none", default)]
    pub system_uuid: Option<String>,
    /// Where the volume is used on the node; Cinder shows it in the attachment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mountpoint: Option<String>,
    /// The access mode; Cinder before 3.54 takes it from here.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mode: Option<AccessMode>,
}
