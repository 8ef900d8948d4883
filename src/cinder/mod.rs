//! The block-storage client: Cinder's v3 attachments API (microversion 3.27 to 3.54 and later).
//!
//! The engine needs only [`BlockStorage`]; [`Client`] is the real one, over HTTP.
//!
//! ```text
//! client.rs     one method per operation, what each answer is worth
//! list.rs       filters and pages
//!    │ Call
//! transport.rs  agrees on a version when refused, repeats what may be repeated, sends
//!    │ Access     auth.rs: the endpoint and the token, from Keystone or as told
//!    │ Answer
//! answer.rs     an answer becomes a value or an error
//! ```
//!
//! - No `null` is ever sent, and no connector with a reservation: where the back end fails, Cinder
//!   would keep the reservation and not tell its id.
//! - Only a 404 that Cinder itself gave about that object means "gone".
//! - Connection info holds the CHAP password, whoever asks for it: it lives in a [`Secret`](crate::model::Secret),
//!   and no body or token reaches a log or an error.

mod answer;
mod auth;
mod client;
mod error;
mod list;
mod microversion;
mod operation;
mod transport;
mod types;
mod wire;

use std::future::Future;

use uuid::Uuid;

use crate::model::{AccessMode, AttachmentId, Connector, VolumeId};

pub use auth::{Auth, KeystoneAuth, Standalone, service_types};
pub use client::{Client, ClientConfig};
pub use error::{Answered, CinderError};
pub use list::ListQuery;
pub use microversion::{Microversion, MicroversionError, PREFERRED};
pub use operation::Operation;
pub use types::{Attachment, AttachmentStatus, AttachmentSummary, Deleted, Volume, VolumeUse};

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
