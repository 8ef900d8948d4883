use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::timeout,
};
use tracing::{Instrument as _, Span, field};

use super::files::StatusFile;
use crate::{
    attach::{AttachError, Attached, Engine, Origin, Progress, Record, Refusal},
    cinder::BlockStorage,
    host::Host,
    metrics::{Metrics, Operation, RequestState},
    model::{AttachSpec, Retry, VolumeId},
    projection::Standing,
};

const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What a request's worker is to bring about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Attached {
        spec: Box<AttachSpec>,
        /// Beside the file that asks for it, which may be renamed.
        status: StatusFile,
    },
    Detached,
    /// Leave everything as it is, and end.
    Shutdown,
}

/// What is wanted, and whether that is over. Both in one, so that the end of one wish can't be taken for
/// the end of the next.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) wanted: Wanted,
    pub(super) over: watch::Receiver<bool>,
}

pub(super) struct Worker<H, C> {
    pub(super) engine: Arc<Engine<H, C>>,
    pub(super) name: String,
    pub(super) wish: watch::Receiver<Wish>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) longest_pause: Duration,
    pub(super) status: StatusFile,
    pub(super) metrics: Metrics,
}

impl<H: Host, C: BlockStorage> Worker<H, C> {
    /// Works until the request is gone and detached, or until shutdown; gives back its name.
    pub(super) async fn run(mut self) -> String {
        let mut pause = FIRST_PAUSE;
        let mut standing = self.metrics.request(RequestState::Attaching);
        loop {
            let (wanted, over) = {
                let wish = self.wish.borrow_and_update();
                (wish.wanted.clone(), wish.over.clone())
            };
            let span = self.span(&wanted);
            let result = match &wanted {
                Wanted::Shutdown => return self.name,
                Wanted::Attached { spec, status } => {
                    self.status = status.clone();
                    standing.set(RequestState::Attaching);
                    self.attach(spec, &over).instrument(span.clone()).await
                }
                Wanted::Detached => {
                    standing.set(RequestState::Detaching);
                    let detached = self.detach(&over).instrument(span.clone()).await;
                    if detached.is_ok() {
                        self.status.remove().instrument(span).await;
                        return self.name;
                    }
                    detached
                }
            };
            let rest = match result {
                Ok(()) => {
                    standing.set(RequestState::Attached);
                    pause = FIRST_PAUSE;
                    None
                }
                // There is another wish already.
                Err(AttachError::Stopped { .. }) => continue,
                Err(error) => {
                    let detaching = wanted == Wanted::Detached;
                    standing.set(RequestState::Failed);
                    self.failed(&error, detaching).instrument(span).await;
                    let rest = match error.retry() {
                        Retry::OnChange if !detaching => None,
                        // Its file is gone: nothing will change but the node.
                        Retry::OnChange => Some(self.longest_pause),
                        Retry::Now | Retry::Backoff => {
                            let rest = pause;
                            pause = (pause * 2).min(self.longest_pause);
                            Some(rest)
                        }
                    };
                    if rest.is_some() {
                        let operation =
                            if detaching { Operation::Detach } else { Operation::Attach };
                        self.metrics.retry(operation, &error);
                    }
                    rest
                }
            };
            if !self.changed(rest).await {
                return self.name;
            }
        }
    }

    /// Waits for another wish, or for the pause to end; false where nobody can wish any more.
    async fn changed(&mut self, rest: Option<Duration>) -> bool {
        match rest {
            None => self.wish.changed().await.is_ok(),
            Some(rest) => !matches!(timeout(rest, self.wish.changed()).await, Ok(Err(_))),
        }
    }

    async fn attach(
        &self,
        spec: &AttachSpec,
        over: &watch::Receiver<bool>,
    ) -> Result<(), AttachError> {
        // What this request had attached before its volume was changed must not be forgotten over it.
        let other = self.records().await?.into_iter().find(|r| r.spec.volume != spec.volume);
        if let Some(other) = other {
            let volume = other.spec.volume;
            let difference = format!("volume {volume} now, {} asked", spec.volume);
            return Err(Refusal::AttachedDifferently { volume, difference }.into());
        }
        let attached = {
            let _permit = self.permit().await;
            let timer = self.metrics.operation(Operation::Attach);
            let report = |progress| self.log(progress);
            let result = self.engine.attach(spec, &self.origin(), &report, over).await;
            timer.end(result.as_ref().map(|attached| attached.changed));
            result?
        };
        self.attached(&attached).await;
        Ok(())
    }

    /// Detaches all that this request has attached.
    async fn detach(&self, over: &watch::Receiver<bool>) -> Result<(), AttachError> {
        for record in self.records().await? {
            let _permit = self.permit().await;
            let report = |progress| self.log(progress);
            let volume = record.spec.volume;
            Span::current().record("volume", field::display(volume));
            let timer = self.metrics.operation(Operation::Detach);
            let result = self.engine.detach(volume, &self.origin(), &report, over).await;
            timer.end(result.as_ref().copied());
            result?;
        }
        Ok(())
    }

    /// What every log line of the work on this request carries, whatever level is logged. The engine
    /// fills in the attachment.
    fn span(&self, wanted: &Wanted) -> Span {
        let volume: Option<VolumeId> = match wanted {
            Wanted::Attached { spec, .. } => Some(spec.volume),
            Wanted::Detached | Wanted::Shutdown => None,
        };
        let volume = volume.map(field::display);
        tracing::error_span!("request", request = %self.name, volume, attachment = field::Empty)
    }

    /// Waits for its turn. The semaphore is never closed.
    async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        let _queued = self.metrics.queued();
        self.permits.acquire().await.ok()
    }

    fn origin(&self) -> Origin {
        Origin::RequestsDir(self.name.clone())
    }

    /// The records that this request made.
    async fn records(&self) -> Result<Vec<Record>, AttachError> {
        let origin = self.origin();
        let records = self.engine.ledger().records().await?;
        // Those that can't be read are logged at every scan.
        Ok(records.into_iter().flatten().filter(|record| record.origin == origin).collect())
    }

    async fn attached(&self, attached: &Attached) {
        if attached.changed {
            let device = attached.device.display();
            tracing::info!(%device, "attached");
        }
        self.status.write(Standing::Attached(attached)).await;
    }

    async fn failed(&self, error: &AttachError, detaching: bool) {
        let message = error.chain();
        let what = if detaching { "detach" } else { "attach" };
        tracing::error!(reason = error.reason(), "could not {what}: {message}");
        let record = self.records().await.ok().and_then(|records| records.into_iter().next());
        let standing = Standing::Unfinished {
            record: record.as_ref(),
            reason: error.reason(),
            message: &message,
        };
        self.status.write(standing).await;
    }

    fn log(&self, progress: Progress) {
        self.metrics.observe_progress(&progress);
        match progress {
            Progress::Started { what, why, .. } => tracing::debug!(why, "begin: {what}"),
            Progress::Done { what, took, .. } => tracing::info!(ms = took.as_millis(), "{what}"),
            Progress::Failed { what, took, .. } => {
                tracing::warn!(ms = took.as_millis(), "failed: {what}");
            }
            Progress::Waiting { what } => tracing::info!("waiting for {what}"),
            Progress::Warning { what } => tracing::warn!("{what}"),
        }
    }
}
