use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::redact;
use crate::model::{
    AccessMode, AttachmentId, ConnectionInfo, ConnectionInfoError, Connector, ConnectorFields,
    Secret, VolumeId,
};

/// A connector to send: this node's facts, or whatever was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ConnectorRef<'a> {
    /// This node's.
    Facts(&'a Connector),
    /// Any.
    Fields(&'a ConnectorFields),
}

impl<'a> From<&'a Connector> for ConnectorRef<'a> {
    fn from(connector: &'a Connector) -> Self {
        Self::Facts(connector)
    }
}

impl<'a> From<&'a ConnectorFields> for ConnectorRef<'a> {
    fn from(fields: &'a ConnectorFields) -> Self {
        Self::Fields(fields)
    }
}

impl ConnectorRef<'_> {
    pub(super) fn mode(self) -> Option<AccessMode> {
        match self {
            Self::Facts(connector) => connector.mode,
            Self::Fields(fields) => fields.mode(),
        }
    }
}

/// What [`Client::create_with`](super::Client::create_with) is to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewAttachment<'a> {
    /// Of which volume.
    pub volume: VolumeId,
    /// Cinder's `instance_uuid`; it asks Nova about such an attachment before it lets it go.
    pub instance: Option<Uuid>,
    /// The mode, from 3.54 on; Cinder takes the volume's own where nothing is said.
    pub mode: Option<AccessMode>,
    /// The connector; without one the volume is only reserved.
    pub connector: Option<ConnectorRef<'a>>,
}

/// A volume, as far as attaching needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name; may be empty.
    pub name: String,
    /// Cinder's word: `available`, `reserved`, `attaching`, `in-use`, `error`, …
    pub status: String,
    /// Its size in GiB, as Cinder states it.
    pub size_gib: u64,
    /// Whether more than one attachment may exist.
    pub multiattach: bool,
    /// Who has it: completed and connected attachments.
    pub attachments: Vec<VolumeUse>,
}

/// An entry of a volume's `attachments`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeUse {
    /// The attachment.
    pub attachment_id: AttachmentId,
    /// The connector's host, where Cinder shows it.
    pub host_name: Option<String>,
    /// The instance, where there is one.
    pub server_id: Option<String>,
}

/// An attachment without its connection info, as `index` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AttachmentSummary {
    /// Its id.
    pub id: AttachmentId,
    /// Its volume.
    pub volume_id: VolumeId,
    /// Its status.
    pub status: AttachmentStatus,
    /// The instance, where one was given.
    pub instance: Option<String>,
}

/// An attachment. Its connection info holds the CHAP password, even when it is only shown.
///
/// Cinder answers `create` and `update` with fields from before the change. Where it is known what
/// the change leaves behind, the client says that instead: an update that succeeded leaves
/// [`Attaching`](AttachmentStatus::Attaching), whatever the answer says (even where the attachment was
/// completed: complete it again). What isn't known, such as `attached_at` then, is `None`.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// What `index` would list.
    pub summary: AttachmentSummary,
    /// `rw` or `ro`, as Cinder recorded it; `None` where it says `null` (reserved without a mode).
    pub mode: Option<AccessMode>,
    /// When a connector was given, in Cinder's words (UTC).
    pub attached_at: Option<String>,
    /// When it was detached, in Cinder's words (UTC).
    pub detached_at: Option<String>,
    pub(super) connection_info: Secret<Value>,
}

impl Attachment {
    /// An attachment with the connection info as Cinder gives it (`null` before the update).
    pub const fn new(
        summary: AttachmentSummary,
        mode: Option<AccessMode>,
        connection_info: Secret<Value>,
    ) -> Self {
        Self { summary, mode, attached_at: None, detached_at: None, connection_info }
    }

    /// Cinder's `connection_info` as it is, whatever the transport; `null` or empty while no connector
    /// was given.
    pub const fn raw_connection_info(&self) -> &Secret<Value> {
        &self.connection_info
    }

    /// The same with everything left out that may be secret: good to be shown.
    pub fn shown_connection_info(&self) -> Value {
        redact::shown(self.connection_info.expose())
    }

    /// The connection info; `None` while no connector was given.
    ///
    /// # Errors
    /// Where it can't be used ([`ConnectionInfoError`]).
    pub fn connection_info(&self) -> Result<Option<ConnectionInfo>, ConnectionInfoError> {
        match self.connection_info.expose() {
            Value::Null => Ok(None),
            Value::Object(map) if map.is_empty() => Ok(None),
            value => ConnectionInfo::parse(value).map(Some),
        }
    }
}

/// An attachment's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum AttachmentStatus {
    /// Without a connector.
    Reserved,
    /// With a connector.
    Attaching,
    /// Completed.
    Attached,
    /// Deleted, or about to be.
    Detached,
    /// The backend failed to export the volume.
    ErrorAttaching,
    /// The backend failed to withdraw the export.
    ErrorDetaching,
    /// Anything newer.
    Other(String),
}

impl AttachmentStatus {
    /// Cinder's word for it.
    pub fn name(&self) -> &str {
        match self {
            Self::Reserved => "reserved",
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::ErrorAttaching => "error_attaching",
            Self::ErrorDetaching => "error_detaching",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for AttachmentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<String> for AttachmentStatus {
    fn from(text: String) -> Self {
        match text.as_str() {
            "reserved" => Self::Reserved,
            "attaching" => Self::Attaching,
            "attached" => Self::Attached,
            "detached" => Self::Detached,
            "error_attaching" => Self::ErrorAttaching,
            "error_detaching" => Self::ErrorDetaching,
            _ => Self::Other(text),
        }
    }
}

impl From<AttachmentStatus> for String {
    fn from(status: AttachmentStatus) -> Self {
        status.name().to_owned()
    }
}

/// What a deletion did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Deleted {
    /// It was there. What else uses the same connection, where the back end shares connections.
    Deleted {
        /// The attachments that remain.
        remaining: Vec<AttachmentSummary>,
    },
    /// It was gone already.
    AlreadyGone,
}
