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
//!
//! redact.rs     what may be shown of a body, to whoever looks on
//! ```
//!
//! # Use from Rust
//!
//! The whole life of an attachment. The [`Client`] repeats what may be repeated, keeps its time limits, and
//! asks for the highest version of the API that both sides have.
//!
//! ```no_run
//! use attachd::cinder::{Auth, CinderError, Client, ClientConfig, Deleted, ListQuery};
//! use attachd::model::{AccessMode, Connector, VolumeId};
//!
//! # async fn attach(volume: VolumeId, connector: Connector) -> Result<(), Box<dyn std::error::Error>> {
//! let auth = Auth::no_auth("http://127.0.0.1:8776", "c0ffee00c0ffee00c0ffee00c0ffee00", "admin")?;
//! let cinder = Client::new(auth, ClientConfig::default())?;
//!
//! // First the reservation alone: its id is known before the back end is asked, which may fail.
//! let reserved = match cinder.create(volume, None, AccessMode::Rw).await {
//!     Ok(attachment) => attachment.summary.id,
//!     Err(error) if error.nothing_was_created() => return Err(error.into()),
//!     Err(error) => {
//!         let of_volume = ListQuery { volume_id: Some(volume), ..ListQuery::default() };
//!         eprintln!("one of these may be ours: {:?}", cinder.list(&of_volume).await?);
//!         return Err(error.into());
//!     }
//! };
//! let updated = cinder.update(reserved, &connector).await?;
//! for path in updated.connection_info()?.into_iter().flat_map(|info| info.paths) {
//!     println!("log in to {}, LUN {}", path.target, path.lun);
//! }
//! match cinder.complete(reserved).await {
//!     // The volume works all the same, but is never "in-use".
//!     Ok(()) | Err(CinderError::TooOld { .. }) => {}
//!     Err(error) => return Err(error.into()),
//! }
//! // … and when no device of it is left on the node:
//! if let Deleted::Deleted { remaining } = cinder.delete(reserved).await? {
//!     println!("{} attachments share the connection", remaining.len());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Errors are [`CinderError`]: [`reason()`](CinderError::reason) is a word for programs,
//! [`retry()`](CinderError::retry) tells whether time helps, [`request_id()`](CinderError::request_id) is
//! what Cinder's log has it under.
//!
//! # What holds everywhere
//!
//! - No `null` is ever sent. The engine sends no connector with a reservation: where the back end fails,
//!   Cinder would keep the reservation and not tell its id.
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
mod redact;
mod transport;
mod types;
mod wire;

use std::future::Future;

use uuid::Uuid;

use crate::model::{AccessMode, AttachmentId, Connector, VolumeId};

pub use crate::http::{Asked, Heard, Watch};
pub use auth::{Auth, KeystoneAuth, Standalone, service_types};
pub use client::{Client, ClientConfig};
pub use error::{Answered, CinderError};
pub use list::ListQuery;
pub use microversion::{Microversion, MicroversionError, PREFERRED};
pub use operation::Operation;
pub use types::{
    Attachment, AttachmentStatus, AttachmentSummary, ConnectorRef, Deleted, NewAttachment, Volume,
    VolumeUse,
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

    /// Whether our user holds the role `service`. Only then an attachment may carry an instance that Nova
    /// doesn't know: Cinder asks Nova before it deletes one, unless a service does (CVE-2023-2088).
    fn is_service(&self) -> impl Future<Output = Result<bool, CinderError>> + Send;

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

/// What an answer to `GET /attachments/ID` says, for [`testing`](crate::testing).
#[cfg(any(test, feature = "testing"))]
pub(crate) fn attachment_of(
    id: crate::model::AttachmentId,
    status: reqwest::StatusCode,
    body: Vec<u8>,
) -> Result<Attachment, CinderError> {
    let headers = reqwest::header::HeaderMap::new();
    let received = crate::http::Received { status, headers, body: Some(body) };
    let answer = answer::Answer::new(Operation::Show(id), None, received).success()?;
    answer.json::<wire::AttachmentAnswer>().map(Attachment::from)
}
