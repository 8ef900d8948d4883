use tokio::time::Instant;
use uuid::Uuid;

use super::{Metrics, SUCCESS};
use crate::{
    cinder::{Attachment, AttachmentSummary, BlockStorage, CinderError, Volume},
    model::{AccessMode, AttachmentId, Connector, VolumeId},
};

/// A Cinder whose answers are measured.
#[derive(Debug, Clone)]
pub struct Measured<C> {
    cinder: C,
    metrics: Metrics,
}

impl<C> Measured<C> {
    /// Measures each call.
    pub fn new(cinder: C, metrics: Metrics) -> Self {
        Self { cinder, metrics }
    }

    async fn call<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, CinderError>>,
    ) -> Result<T, CinderError> {
        let began = Instant::now();
        let answer = call.await;
        let result = answer.as_ref().map_or_else(CinderError::reason, |_| SUCCESS);
        self.metrics.observe_cinder(operation, began, result);
        answer
    }
}

impl<C: BlockStorage> BlockStorage for Measured<C> {
    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, CinderError> {
        self.call("show_volume", self.cinder.volume(id)).await
    }

    async fn reserve(
        &self,
        volume: VolumeId,
        instance: Option<Uuid>,
        mode: AccessMode,
    ) -> Result<Attachment, CinderError> {
        self.call("reserve", self.cinder.reserve(volume, instance, mode)).await
    }

    async fn is_service(&self) -> Result<bool, CinderError> {
        // Asks Keystone at most, which is counted where it is asked.
        self.cinder.is_service().await
    }

    async fn update(
        &self,
        id: AttachmentId,
        connector: &Connector,
    ) -> Result<Attachment, CinderError> {
        self.call("update", self.cinder.update(id, connector)).await
    }

    async fn complete(&self, id: AttachmentId) -> Result<(), CinderError> {
        self.call("complete", self.cinder.complete(id)).await
    }

    async fn attachment(&self, id: AttachmentId) -> Result<Option<Attachment>, CinderError> {
        self.call("show_attachment", self.cinder.attachment(id)).await
    }

    async fn attachments_of(
        &self,
        volume: VolumeId,
    ) -> Result<Vec<AttachmentSummary>, CinderError> {
        self.call("list_attachments", self.cinder.attachments_of(volume)).await
    }

    async fn delete(&self, id: AttachmentId) -> Result<(), CinderError> {
        self.call("delete", self.cinder.delete(id)).await
    }
}
