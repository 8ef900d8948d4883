use std::{sync::Arc, time::Duration};

use reqwest::{Method, StatusCode};
use tracing::warn;
use uuid::Uuid;

use super::{
    Attachment, AttachmentStatus, AttachmentSummary, Auth, BlockStorage, CinderError, ConnectorRef,
    Deleted, ListQuery, Microversion, NewAttachment, Operation, PREFERRED, Volume, Watch,
    answer::Answer,
    transport::{Call, Transport},
    wire::{AttachmentAnswer, AttachmentsAnswer, Body, VolumeAnswer, WireSummary},
};
use crate::{
    http::Tls,
    model::{AccessMode, AttachmentId, Connector, VolumeId},
};

/// Limits of a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// For a connection to be there.
    pub connect_timeout: Duration,
    /// For one request, until its answer is read. A call ends within twice that, repeats included
    /// (its version may have to be looked up, which is another call), and what Keystone takes for a token.
    pub request_timeout: Duration,
    /// The same for a creation with a connector, an update and a delete, in which the storage back end makes or takes away the
    /// volume's export: seconds to a minute (Cinder's own `rpc_response_timeout` is 60 s).
    pub export_timeout: Duration,
    /// Certificates.
    pub tls: Tls,
    /// How often a request is sent that may be repeated. A reservation is sent once.
    pub tries: u32,
    /// The pause after the first try; it doubles from there.
    pub first_pause: Duration,
    /// The highest API version to ask for.
    pub highest_version: Microversion,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            export_timeout: Duration::from_mins(2),
            tls: Tls::default(),
            tries: 3,
            first_pause: Duration::from_millis(250),
            highest_version: PREFERRED,
        }
    }
}

impl ClientConfig {
    pub(super) fn limit(&self, operation: Operation) -> Duration {
        match operation {
            Operation::Create(_) | Operation::Update(_) | Operation::Delete(_) => {
                self.export_timeout
            }
            Operation::Discover
            | Operation::ShowVolume(_)
            | Operation::Reserve(_)
            | Operation::Complete(_)
            | Operation::Show(_)
            | Operation::List => self.request_timeout,
        }
    }
}

/// Cinder over HTTP. Cheap to share by reference; connections are re-used.
#[derive(Debug)]
pub struct Client {
    pub(super) transport: Transport,
}

impl Client {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// [`CinderError::Http`]: certificates can't be read, or the machine has none.
    pub fn new(auth: Auth, config: ClientConfig) -> Result<Self, CinderError> {
        Ok(Self { transport: Transport::new(auth, config)? })
    }

    /// The same client, which asks for no higher version than this one.
    #[must_use]
    pub fn up_to(mut self, version: Microversion) -> Self {
        self.transport.up_to(version);
        self
    }

    /// The same client, which shows each request and answer to somebody.
    #[must_use]
    pub fn watched_by(self, watch: &Arc<dyn Watch>) -> Self {
        self.transport.watch(watch);
        self
    }

    /// The API version in use: the wanted one, until the cloud refused it.
    pub fn version(&self) -> Microversion {
        self.transport.version()
    }

    /// Whether we are a service to Cinder: its own kind of token goes along with each request, and it
    /// deletes attachments that name an instance without asking Nova.
    ///
    /// # Errors
    /// [`CinderError::Keystone`]: there is no token.
    pub async fn is_service(&self) -> Result<bool, CinderError> {
        self.transport.is_service().await
    }

    async fn send(
        &self,
        operation: Operation,
        method: Method,
        path: String,
        body: Body<'_>,
    ) -> Result<Answer, CinderError> {
        self.transport.send(Call { operation, method, path, query: Vec::new(), body }).await
    }

    /// Shows a volume.
    ///
    /// # Errors
    /// [`CinderError::NotFound`] where there is none of that id, and all others.
    pub async fn show_volume(&self, id: VolumeId) -> Result<Volume, CinderError> {
        let path = format!("/volumes/{id}");
        let answer = self.send(Operation::ShowVolume(id), Method::GET, path, Body::None).await?;
        let volume: Volume = answer.json::<VolumeAnswer>()?.into();
        same(&answer, "volume", &volume.id, &id)?;
        Ok(volume)
    }

    /// Creates an attachment without a connector. It is sent once, whatever happens: see
    /// [`CinderError::nothing_was_created`].
    ///
    /// Before 3.54 Cinder takes the mode from the connector only: put it there too.
    ///
    /// # Errors
    /// [`CinderError::Refused`] while the volume's status does not allow it, and all others.
    pub async fn create(
        &self,
        volume: VolumeId,
        instance: Option<Uuid>,
        mode: AccessMode,
    ) -> Result<Attachment, CinderError> {
        let body = Body::Reserve { volume, instance, mode };
        let operation = Operation::Reserve(volume);
        let answer = self.send(operation, Method::POST, "/attachments".to_owned(), body).await?;
        if mode == AccessMode::Ro && self.version() < Microversion::MODE {
            warn!(
                %volume,
                version = %self.version(),
                "this Cinder takes no access mode with a reservation (from 3.54 on): it records read-only only once the connector says so"
            );
        }
        let attachment: Attachment = answer.json::<AttachmentAnswer>()?.into();
        same(&answer, "volume", &attachment.summary.volume_id, &volume)?;
        Ok(attachment)
    }

    /// Creates an attachment, with its connector at once where one is given. It is sent once, whatever
    /// happens: see [`CinderError::nothing_was_created`].
    ///
    /// With a connector a failure of the back end ([`CinderError::ServerFault`]) leaves the reservation
    /// behind, and the answer doesn't tell its id. [`create`](Self::create) and then
    /// [`update`](Self::update) do the same without that risk.
    ///
    /// # Errors
    /// [`CinderError::TooOld`] where a mode is given to a Cinder before 3.54,
    /// [`CinderError::Refused`] while the volume's status does not allow it, and all others.
    pub async fn create_with(&self, new: NewAttachment<'_>) -> Result<Attachment, CinderError> {
        let operation = match new.connector {
            Some(_) => Operation::Create(new.volume),
            None => Operation::Reserve(new.volume),
        };
        let path = "/attachments".to_owned();
        let answer = self.send(operation, Method::POST, path, Body::Create(new)).await?;
        let mut attachment: Attachment = answer.json::<AttachmentAnswer>()?.into();
        same(&answer, "volume", &attachment.summary.volume_id, &new.volume)?;
        if let Some(connector) = new.connector {
            connected(&mut attachment, connector);
        }
        Ok(attachment)
    }

    /// Gives an attachment the connector, and gets the connection info.
    ///
    /// # Errors
    /// [`CinderError::Conflict`] where the volume is in error or this node has it already,
    /// [`CinderError::ServerFault`] where the back end failed (the attachment stays), and all others.
    pub async fn update<'a>(
        &self,
        id: AttachmentId,
        connector: impl Into<ConnectorRef<'a>>,
    ) -> Result<Attachment, CinderError> {
        let connector = connector.into();
        let body = Body::Update(connector);
        let path = format!("/attachments/{id}");
        let answer = self.send(Operation::Update(id), Method::PUT, path, body).await?;
        let mut attachment: Attachment = answer.json::<AttachmentAnswer>()?.into();
        same(&answer, "attachment", &attachment.summary.id, &id)?;
        connected(&mut attachment, connector);
        Ok(attachment)
    }

    /// Marks an attachment as in use. Cinder does not check that it has a connector.
    ///
    /// # Errors
    /// [`CinderError::TooOld`] before 3.44, and all others.
    pub async fn complete(&self, id: AttachmentId) -> Result<(), CinderError> {
        let path = format!("/attachments/{id}/action");
        let answer = self.send(Operation::Complete(id), Method::POST, path, Body::Complete).await?;
        if answer.is_empty() { Ok(()) } else { Err(answer.nonsense("it has a body")) }
    }

    /// Shows an attachment, with its connection info.
    ///
    /// # Errors
    /// [`CinderError::NotFound`] where there is none of that id, and all others.
    pub async fn show(&self, id: AttachmentId) -> Result<Attachment, CinderError> {
        let path = format!("/attachments/{id}");
        let answer = self.send(Operation::Show(id), Method::GET, path, Body::None).await?;
        let attachment: Attachment = answer.json::<AttachmentAnswer>()?.into();
        same(&answer, "attachment", &attachment.summary.id, &id)?;
        Ok(attachment)
    }

    /// Deletes an attachment: withdraws the export and frees the volume.
    ///
    /// # Errors
    /// [`CinderError::HeldByNova`] where it names an instance and Nova did not consent, and all others.
    pub async fn delete(&self, id: AttachmentId) -> Result<Deleted, CinderError> {
        let path = format!("/attachments/{id}");
        match self.send(Operation::Delete(id), Method::DELETE, path, Body::None).await {
            Ok(answer) if answer.status == StatusCode::NO_CONTENT => {
                Ok(Deleted::Deleted { remaining: Vec::new() })
            }
            Ok(answer) => {
                let left: AttachmentsAnswer<WireSummary> = answer.json()?;
                let remaining = left.attachments.into_iter().map(AttachmentSummary::from).collect();
                Ok(Deleted::Deleted { remaining })
            }
            Err(CinderError::NotFound(_)) => Ok(Deleted::AlreadyGone),
            Err(error) => Err(self.explain_refused_delete(id, error).await),
        }
    }

    /// Cinder asks Nova about connected attachments that name an instance, and a failure to ask is
    /// a bare 500: only the attachment tells that this may be why.
    async fn explain_refused_delete(&self, id: AttachmentId, error: CinderError) -> CinderError {
        let answered = match error {
            CinderError::Conflict(answered) | CinderError::ServerFault(answered)
                if matches!(answered.status, 409 | 500) =>
            {
                answered
            }
            other => return other,
        };
        let instance = match self.show(id).await {
            Ok(Attachment { summary, .. }) if summary.status != AttachmentStatus::Reserved => {
                summary.instance
            }
            Ok(_) | Err(_) => None,
        };
        match (instance, answered.status) {
            (Some(instance), _) => CinderError::HeldByNova { instance, answered },
            (None, 409) => CinderError::Conflict(answered),
            (None, _) => CinderError::ServerFault(answered),
        }
    }
}

/// All but the connection info of the answer is from before the connector; this is what it leaves.
fn connected(attachment: &mut Attachment, connector: ConnectorRef<'_>) {
    attachment.summary.status = AttachmentStatus::Attaching;
    attachment.attached_at = None;
    attachment.mode = attachment.mode.or(connector.mode()).or(Some(AccessMode::default()));
}

/// An answer about something else is worse than none.
fn same<T: PartialEq + std::fmt::Display>(
    answer: &Answer,
    what: &str,
    got: &T,
    asked: &T,
) -> Result<(), CinderError> {
    if got == asked {
        Ok(())
    } else {
        Err(answer.nonsense(format!("it is about {what} {got}, not {asked}")))
    }
}

/// `None` for what isn't there.
fn found<T>(result: Result<T, CinderError>) -> Result<Option<T>, CinderError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(CinderError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl BlockStorage for Client {
    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, CinderError> {
        found(self.show_volume(id).await)
    }

    async fn reserve(
        &self,
        volume: VolumeId,
        instance: Option<Uuid>,
        mode: AccessMode,
    ) -> Result<Attachment, CinderError> {
        self.create(volume, instance, mode).await
    }

    async fn is_service(&self) -> Result<bool, CinderError> {
        self.is_service().await
    }

    async fn update(
        &self,
        id: AttachmentId,
        connector: &Connector,
    ) -> Result<Attachment, CinderError> {
        self.update(id, connector).await
    }

    async fn complete(&self, id: AttachmentId) -> Result<(), CinderError> {
        self.complete(id).await
    }

    async fn attachment(&self, id: AttachmentId) -> Result<Option<Attachment>, CinderError> {
        found(self.show(id).await)
    }

    async fn attachments_of(
        &self,
        volume: VolumeId,
    ) -> Result<Vec<AttachmentSummary>, CinderError> {
        self.list(&ListQuery { volume_id: Some(volume), ..ListQuery::default() }).await
    }

    async fn delete(&self, id: AttachmentId) -> Result<(), CinderError> {
        self.delete(id).await.map(drop)
    }
}
