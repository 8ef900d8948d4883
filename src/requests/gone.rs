use tokio::sync::watch;

use super::{Subject, worker::Worker};
use crate::{
    attach::{AttachError, Origin, Record},
    cinder::BlockStorage,
    host::Host,
};

impl<H: Host, C: BlockStorage, S: Subject> Worker<H, C, S> {
    /// Detaches what a request that is no more had attached, where Cinder has the attachment no more:
    /// another node may have the volume. What Cinder still has stays attached.
    pub(super) async fn clear(&self, origin: &Origin, over: &watch::Receiver<bool>) {
        let records = match self.records(origin).await {
            Ok(records) => records,
            Err(error) => {
                tracing::error!(reason = error.reason(), "{}", error.chain());
                return;
            }
        };
        for record in records {
            match self.clear_one(&record, over).await {
                Ok(()) => {}
                Err(AttachError::Stopped { .. }) => return,
                Err(error) => tracing::error!(
                    volume = %record.spec.volume,
                    reason = error.reason(),
                    "something of a volume that this node has no more is left: {}",
                    error.chain()
                ),
            }
        }
    }

    async fn clear_one(
        &self,
        record: &Record,
        over: &watch::Receiver<bool>,
    ) -> Result<(), AttachError> {
        let volume = record.spec.volume;
        if !self.engine.was_taken_away(record).await {
            tracing::warn!(%volume,
                "the request is gone without having been deleted, and its volume stays attached: create the \
                 request again, and delete it to have it detached");
            return Ok(());
        }
        tracing::warn!(%volume,
            "the request is gone, and Cinder has its attachment no more: what is left on this node goes");
        let _permit = self.permit(over).await?;
        self.engine.detach(volume, &record.origin, &|progress| self.log(progress), over).await?;
        Ok(())
    }
}
