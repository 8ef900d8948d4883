use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::files::StatusFile;
use crate::{
    attach::{AttachError, Attached, Engine, Origin, Progress},
    cinder::BlockStorage,
    host::Host,
    model::{AttachSpec, Retry, VolumeId},
    projection::Standing,
};

const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What a request's worker is to bring about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Attached(Box<AttachSpec>),
    Detached,
    /// Leave everything as it is, and end.
    Shutdown,
}

pub(super) struct Worker<H, C> {
    pub(super) engine: Arc<Engine<H, C>>,
    pub(super) name: String,
    pub(super) wanted: watch::Receiver<Wanted>,
    pub(super) reset: watch::Sender<bool>,
    pub(super) interrupted: watch::Receiver<bool>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) longest_pause: Duration,
    pub(super) status: StatusFile,
    /// What a detach is for: the volume of the request, once it was seen.
    pub(super) volume: Option<VolumeId>,
}

impl<H: Host, C: BlockStorage> Worker<H, C> {
    /// Works until the request is gone and detached, or until shutdown; gives back its name.
    pub(super) async fn run(mut self) -> String {
        let mut pause = FIRST_PAUSE;
        loop {
            // In this order: a change that comes between the two interrupts the run below.
            self.reset.send_replace(false);
            let wanted = self.wanted.borrow_and_update().clone();
            let result = match &wanted {
                Wanted::Shutdown => return self.name,
                Wanted::Attached(spec) => {
                    self.volume = Some(spec.volume);
                    self.attach(spec).await
                }
                Wanted::Detached => match self.detach().await {
                    Ok(()) => {
                        self.status.remove().await;
                        return self.name;
                    }
                    Err(error) => Err(error),
                },
            };
            let rest = match result {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    None
                }
                Err(AttachError::Stopped { .. }) if self.wanted.has_changed().unwrap_or(true) => {
                    continue;
                }
                Err(error) => {
                    self.failed(&error, wanted == Wanted::Detached).await;
                    match error.retry() {
                        Retry::OnChange => None,
                        Retry::Now | Retry::Backoff => {
                            let rest = pause;
                            pause = (pause * 2).min(self.longest_pause);
                            Some(rest)
                        }
                    }
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
            None => self.wanted.changed().await.is_ok(),
            Some(rest) => !matches!(timeout(rest, self.wanted.changed()).await, Ok(Err(_))),
        }
    }

    async fn attach(&self, spec: &AttachSpec) -> Result<(), AttachError> {
        let origin = Origin::RequestsDir(self.name.clone());
        let attached = {
            let _permit = self.permits.acquire().await;
            self.engine
                .attach(spec, &origin, &|progress| self.log(progress), &self.interrupted)
                .await?
        };
        self.attached(&attached).await;
        Ok(())
    }

    async fn detach(&self) -> Result<(), AttachError> {
        let Some(volume) = self.volume else { return Ok(()) };
        let origin = Origin::RequestsDir(self.name.clone());
        let _permit = self.permits.acquire().await;
        match self
            .engine
            .detach(volume, &origin, &|progress| self.log(progress), &self.interrupted)
            .await
        {
            // This request never had the volume.
            Err(AttachError::OwnedByOther { .. }) => Ok(()),
            result => result.map(|_| ()),
        }
    }

    async fn attached(&self, attached: &Attached) {
        if attached.changed {
            let device = attached.device.display();
            tracing::info!(request = %self.name, volume = %attached.volume, %device, "attached");
        }
        self.status.write(Standing::Attached(attached)).await;
    }

    async fn failed(&self, error: &AttachError, detaching: bool) {
        let message = error.chain();
        let what = if detaching { "detach" } else { "attach" };
        tracing::error!(request = %self.name, reason = error.reason(), "could not {what}: {message}");
        let record = match self.volume {
            Some(volume) => self.engine.ledger().load(volume).await.ok().flatten(),
            None => None,
        };
        let standing = Standing::Unfinished {
            record: record.as_ref(),
            reason: error.reason(),
            message: &message,
        };
        self.status.write(standing).await;
    }

    fn log(&self, progress: Progress) {
        let request = &self.name;
        match progress {
            Progress::Started { what, why, .. } => tracing::debug!(%request, why, "begin: {what}"),
            Progress::Done { what, took, .. } => {
                tracing::info!(%request, ms = took.as_millis(), "{what}");
            }
            Progress::Failed { what, took, .. } => {
                tracing::warn!(%request, ms = took.as_millis(), "failed: {what}");
            }
            Progress::Waiting { what } => tracing::info!(%request, "waiting for {what}"),
            Progress::Warning { what } => tracing::warn!(%request, "{what}"),
        }
    }
}
