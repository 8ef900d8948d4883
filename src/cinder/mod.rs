//! The block-storage client: Cinder's v3 attachments API (microversion 3.27 to 3.54 and later).
//!
//! The engine needs only [`BlockStorage`]; [`Client`] is the real one, over HTTP.

use std::future::Future;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::model::{
    AccessMode, AttachmentId, ConnectionInfo, ConnectionInfoError, Connector, Secret, VolumeId,
};

/// What the engine asks of Cinder.
///
/// Every call ends within the client's time limit, with an answer or with a [`CinderError`] that
/// carries Cinder's request id.
pub trait BlockStorage: Send + Sync {
    /// Shows a volume; `None` where Cinder has none of that id.
    fn volume(
        &self,
        id: VolumeId,
    ) -> impl Future<Output = Result<Option<Volume>, CinderError>> + Send;

    /// Reserves a volume: creates an attachment without a connector. Not repeatable: a second one
    /// is refused, or is another reservation of a multiattach volume. So it is never retried here.
    fn reserve(
        &self,
        volume: VolumeId,
        instance: Option<Uuid>,
        mode: AccessMode,
    ) -> impl Future<Output = Result<Attachment, CinderError>> + Send;

    /// Gives an attachment the connector and gets the connection info. May be repeated.
    fn update(
        &self,
        id: AttachmentId,
        connector: &Connector,
    ) -> impl Future<Output = Result<Attachment, CinderError>> + Send;

    /// Marks an attachment as in use (`os-complete`). May be repeated.
    fn complete(&self, id: AttachmentId) -> impl Future<Output = Result<(), CinderError>> + Send;

    /// Shows an attachment; `None` where it is gone.
    fn attachment(
        &self,
        id: AttachmentId,
    ) -> impl Future<Output = Result<Option<Attachment>, CinderError>> + Send;

    /// All attachments of a volume that the caller may see, without connection info.
    fn attachments_of(
        &self,
        volume: VolumeId,
    ) -> impl Future<Output = Result<Vec<AttachmentSummary>, CinderError>> + Send;

    /// Deletes an attachment; one that is gone already is a success.
    fn delete(&self, id: AttachmentId) -> impl Future<Output = Result<(), CinderError>> + Send;
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
#[derive(Debug, Clone)]
pub struct Attachment {
    /// What `index` would list.
    pub summary: AttachmentSummary,
    /// `rw` or `ro`; `None` where Cinder says `null` (before the update).
    pub mode: Option<AccessMode>,
    connection_info: Secret<Value>,
}

impl Attachment {
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
#[serde(rename_all = "snake_case")]
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
    #[serde(untagged)]
    Other(String),
}

/// Cinder refused, failed, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CinderError {
    /// PLACEHOLDER
    #[error("{0}")]
    Placeholder(String),
}

impl CinderError {
    /// The CamelCase word that conditions, events and metrics use.
    pub fn reason(&self) -> &'static str {
        "Placeholder"
    }

    /// Whether Cinder certainly did not do what was asked.
    pub fn nothing_was_created(&self) -> bool {
        false
    }

    /// When to try again.
    pub fn retry(&self) -> crate::model::Retry {
        crate::model::Retry::Backoff
    }
}
