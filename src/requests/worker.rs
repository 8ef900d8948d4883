use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout},
};
use tracing::{Instrument as _, Span, field};

use super::{End, Lookout, Refused, Subject, Wanted, care::Care};
use crate::{
    attach::{
        AttachError, Attached, Engine, Origin, Progress, Record, Refusal, judge, unless_stopped,
    },
    cinder::BlockStorage,
    host::Host,
    metrics::{Metrics, Operation, RequestState},
    model::{AttachSpec, Retry, VolumeId},
    projection::Standing,
};

pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What is wanted, and whether that is over. Both in one, so that the end of one wish can't be taken for
/// the end of the next.
#[derive(Debug)]
pub(super) struct Wish<S> {
    pub(super) wanted: Wanted<S>,
    pub(super) over: watch::Receiver<bool>,
}

pub(super) struct Worker<H, C, S> {
    pub(super) engine: Arc<Engine<H, C>>,
    pub(super) name: String,
    pub(super) wish: watch::Receiver<Wish<S>>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) metrics: Metrics,
    pub(super) longest_pause: Duration,
    pub(super) lookout: Lookout,
    /// What is missing of an attached volume is brought back.
    pub(super) heal: bool,
}

/// A request that was served.
struct Served {
    /// To look after what is attached.
    care: Option<Care>,
    /// Why it could not be grown to the size that is asked for, or Cinder could not be asked about it.
    unfinished: Option<AttachError>,
}

#[derive(Debug, thiserror::Error)]
enum WorkError {
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The source doesn't let the request be served.
    #[error(transparent)]
    Held(Refused),
    /// The source can't be told.
    #[error(transparent)]
    Untold(Refused),
}

impl WorkError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Attach(error) => error.reason(),
            Self::Held(refused) | Self::Untold(refused) => refused.reason,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Attach(error) => error.retry(),
            Self::Held(refused) => refused.retry,
            Self::Untold(_) => Retry::Backoff,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Attach(error) => error.chain(),
            Self::Held(refused) | Self::Untold(refused) => refused.message.clone(),
        }
    }
}

impl<H: Host, C: BlockStorage, S: Subject> Worker<H, C, S> {
    /// Works until the request is gone and detached, or until shutdown; gives back its name, and what
    /// it didn't see of what is wished.
    pub(super) async fn run(mut self) -> (String, watch::Receiver<Wish<S>>) {
        self.work().await;
        (self.name, self.wish)
    }

    /// What is large is boxed: this lasts as long as the request.
    async fn work(&mut self) {
        let mut pause = FIRST_PAUSE;
        let mut standing = self.metrics.request(RequestState::Attaching);
        loop {
            let (wanted, over) = {
                let wish = self.wish.borrow_and_update();
                (wish.wanted.clone(), wish.over.clone())
            };
            let span = self.span(&wanted);
            let (result, subject) = match &wanted {
                Wanted::Kept => return,
                Wanted::Gone { origin } => {
                    standing.set(RequestState::Detaching);
                    return Box::pin(self.clear(origin, &over)).instrument(span).await;
                }
                Wanted::Attached { spec, size_gib, subject } => {
                    standing.set(RequestState::Attaching);
                    let attach = Box::pin(self.attach(spec, *size_gib, subject, &over));
                    (attach.instrument(span.clone()).await, subject)
                }
                Wanted::Told { refused, subject } => {
                    (Err(WorkError::Held(refused.clone())), subject)
                }
                Wanted::Detached { subject, force } => {
                    standing.set(RequestState::Detaching);
                    let detach = Box::pin(self.detach(subject, *force, &over));
                    match detach.instrument(span.clone()).await {
                        Ok(()) => return,
                        Err(error) => (Err(error), subject),
                    }
                }
            };
            let rest = match result {
                Ok(Served { care, unfinished }) => {
                    standing.set(RequestState::Attached);
                    let again = match unfinished {
                        None => {
                            pause = FIRST_PAUSE;
                            None
                        }
                        Some(error) if error.retry() == Retry::OnChange => None,
                        Some(_) => {
                            let rest = pause;
                            pause = (pause * 2).min(self.longest_pause);
                            Some(Instant::now() + rest)
                        }
                    };
                    if let (Wanted::Attached { spec, .. }, Some(mut care)) = (&wanted, care) {
                        let cared =
                            self.look_after(spec, subject, &over, &mut care, again, &mut standing);
                        if cared.instrument(span).await {
                            continue;
                        }
                        return;
                    }
                    None
                }
                // There is another wish already.
                Err(WorkError::Attach(AttachError::Stopped { .. })) => continue,
                Err(error) => {
                    standing.set(RequestState::Failed);
                    let detaching = matches!(wanted, Wanted::Detached { .. });
                    let told = self.failed(&error, subject, detaching).instrument(span).await;
                    let rest = match error.retry() {
                        Retry::OnChange if told && !detaching => None,
                        // The request is gone: nothing will change but the node.
                        Retry::OnChange if told => Some(self.longest_pause),
                        Retry::OnChange | Retry::Now | Retry::Backoff => {
                            let rest = pause;
                            pause = (pause * 2).min(self.longest_pause);
                            Some(rest)
                        }
                    };
                    if rest.is_some() {
                        let operation =
                            if detaching { Operation::Detach } else { Operation::Attach };
                        self.metrics.retry(operation, error.reason());
                    }
                    rest
                }
            };
            if !self.changed(rest).await {
                return;
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

    /// Attaches; gives what keeps an attached volume from its size.
    async fn attach(
        &self,
        spec: &AttachSpec,
        size_gib: Option<u64>,
        subject: &S,
        over: &watch::Receiver<bool>,
    ) -> Result<Served, WorkError> {
        let origin = subject.origin();
        let records = self.records(&origin).await?;
        // What this request had attached before its volume was changed must not be forgotten over it.
        if let Some(other) = records.iter().find(|record| record.spec.volume != spec.volume) {
            let volume = other.spec.volume;
            let difference = format!("volume {volume} now, {} asked", spec.volume);
            return Err(
                AttachError::from(Refusal::AttachedDifferently { volume, difference }).into()
            );
        }
        subject.admit(records.first().map(Arc::as_ref)).await.map_err(WorkError::Held)?;
        subject.report(Standing::Begun).await.map_err(WorkError::Untold)?;
        let (attached, since) = {
            let _permit = self.permit(over).await?;
            let (lost, is_lost) = watch::channel(false);
            let attach = async {
                let lost = lost;
                let timer = self.metrics.operation(Operation::Attach);
                let report = |progress| {
                    if matches!(progress, Progress::Lost) {
                        lost.send_replace(true);
                    }
                    self.log(progress);
                };
                let attach = Box::pin(self.engine.attach(spec, &origin, &report, over));
                let result = attach.await;
                timer.end(result.as_ref().map(|attached| attached.changed));
                result.map(|attached| (attached, Instant::now()))
            };
            // Neither is cut short: a write that is given up might still arrive, after later ones.
            match tokio::join!(attach, self.lost(is_lost, subject)).0 {
                Ok(done) => done,
                Err(error) => return self.as_it_was(spec, subject, error).await,
            }
        };
        self.attached(&attached, subject).await?;
        let (attached, not_resized, since) = match size_gib {
            None => (attached, None, since),
            Some(size_gib) => {
                let (attached, not_resized) =
                    self.resize(attached, size_gib, subject, over).await?;
                (attached, not_resized, Instant::now())
            }
        };
        let record = self.engine.ledger().load(spec.volume).await.map_err(AttachError::from)?;
        Ok(Served {
            care: record.map(|record| Care::new(record, attached, since)),
            unfinished: not_resized,
        })
    }

    /// What was attached before works on while Cinder can't be asked: it is looked after as it is, until
    /// Cinder can be asked again.
    async fn as_it_was(
        &self,
        spec: &AttachSpec,
        subject: &S,
        error: AttachError,
    ) -> Result<Served, WorkError> {
        let may_pass = error.retry() != Retry::OnChange;
        let (AttachError::Cinder { .. }, true) = (&error, may_pass) else {
            return Err(error.into());
        };
        let record = self.engine.ledger().load(spec.volume).await.ok().flatten();
        let Some(record) = record.filter(|record| record.completed && record.spec == *spec) else {
            return Err(error.into());
        };
        let since = Instant::now();
        let Ok(host) = self.engine.host().observe().await else { return Err(error.into()) };
        let verdict = judge(spec, &record, &host, &BTreeMap::new());
        let Some(Ok(attached)) = verdict.map(|verdict| verdict.state) else {
            return Err(error.into());
        };
        tracing::warn!(reason = error.reason(), "attached as before, and {}", error.chain());
        self.attached(&attached, subject).await?;
        Ok(Served { care: Some(Care::new(record, attached, since)), unfinished: Some(error) })
    }

    /// Grows what is attached; that it can't be grown now doesn't make it less usable.
    async fn resize(
        &self,
        attached: Attached,
        size_gib: u64,
        subject: &S,
        over: &watch::Receiver<bool>,
    ) -> Result<(Attached, Option<AttachError>), WorkError> {
        let resized = {
            let _permit = self.permit(over).await?;
            let report = |progress| self.log(progress);
            self.engine.resize(attached.volume, Some(size_gib), &report, over).await
        };
        let (attached, error) = match resized {
            Ok(resized) => {
                let size = resized.attached.size_bytes;
                if resized.attached.changed {
                    tracing::info!(before = resized.before_bytes, now = size, "resized");
                }
                (resized.attached, None)
            }
            Err(error @ AttachError::Stopped { .. }) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(reason = error.reason(), "could not resize: {}", error.chain());
                (attached, Some(error))
            }
        };
        let standing = match &error {
            None => Standing::Resized { attached: &attached },
            Some(error) => Standing::NotResized {
                attached: &attached,
                reason: error.reason(),
                message: &error.chain(),
            },
        };
        subject.report(standing).await.map_err(WorkError::Untold)?;
        Ok((attached, error))
    }

    /// Says that the volume is lost as soon as it is known, until there is nobody to find out.
    async fn lost(&self, mut is_lost: watch::Receiver<bool>, subject: &S) {
        if is_lost.wait_for(|lost| *lost).await.is_ok()
            && let Err(refused) = subject.report(Standing::Lost).await
        {
            tracing::warn!(reason = refused.reason, "{refused}");
        }
    }

    /// Detaches all that this request has attached.
    async fn detach(
        &self,
        subject: &S,
        force: bool,
        over: &watch::Receiver<bool>,
    ) -> Result<(), WorkError> {
        let wanted = subject.wants_detach().await.map_err(WorkError::Untold)?;
        let end = Mutex::new(if wanted { End::Detached } else { End::Kept });
        if wanted {
            let origin = subject.origin();
            for record in self.records(&origin).await? {
                let _permit = self.permit(over).await?;
                let report = |progress| {
                    if let Progress::GivenUp { why } = &progress {
                        let given_up = End::GivenUp { why: why.clone() };
                        *end.lock().unwrap_or_else(PoisonError::into_inner) = given_up;
                    }
                    self.log(progress);
                };
                let volume = record.spec.volume;
                Span::current().record("volume", field::display(volume));
                let timer = self.metrics.operation(Operation::Detach);
                let result = if force {
                    self.engine.detach_by_force(volume, &origin, &report, over).await
                } else {
                    self.engine.detach(volume, &origin, &report, over).await
                };
                timer.end(result.as_ref().copied());
                result?;
            }
        }
        let end = end.into_inner().unwrap_or_else(PoisonError::into_inner);
        subject.release(&end).await.map_err(WorkError::Untold)
    }

    /// What every log line of the work on this request carries, whatever level is logged. The engine
    /// fills in the attachment.
    fn span(&self, wanted: &Wanted<S>) -> Span {
        let volume: Option<VolumeId> = match wanted {
            Wanted::Attached { spec, .. } => Some(spec.volume),
            Wanted::Told { .. } | Wanted::Detached { .. } | Wanted::Gone { .. } | Wanted::Kept => {
                None
            }
        };
        let volume = volume.map(field::display);
        tracing::error_span!("request", request = %self.name, volume, attachment = field::Empty)
    }

    /// Waits for its turn. The semaphore is never closed.
    pub(super) async fn permit(
        &self,
        over: &watch::Receiver<bool>,
    ) -> Result<Option<SemaphorePermit<'_>>, AttachError> {
        let _queued = self.metrics.queued();
        let turn = self.permits.acquire();
        Ok(unless_stopped(over, || "its turn came".to_owned(), turn).await?.ok())
    }

    /// The records that this request made.
    pub(super) async fn records(&self, origin: &Origin) -> Result<Vec<Arc<Record>>, AttachError> {
        let records = self.engine.ledger().records().await?;
        // Those that can't be read are logged by the source.
        Ok(records.into_iter().flatten().filter(|record| &record.origin == origin).collect())
    }

    async fn attached(&self, attached: &Attached, subject: &S) -> Result<(), WorkError> {
        if attached.changed {
            let device = attached.device.display();
            tracing::info!(%device, "attached");
        }
        subject.report(Standing::Attached(attached)).await.map_err(WorkError::Untold)
    }

    /// Says what went wrong; `false` where the source can't be told.
    async fn failed(&self, error: &WorkError, subject: &S, detaching: bool) -> bool {
        let message = error.text();
        let what = if detaching { "detach" } else { "attach" };
        tracing::error!(reason = error.reason(), "could not {what}: {message}");
        if matches!(error, WorkError::Untold(_)) {
            return false;
        }
        let records = self.records(&subject.origin()).await.unwrap_or_default();
        let standing = Standing::Unfinished {
            record: records.first().map(Arc::as_ref),
            reason: error.reason(),
            message: &message,
        };
        match subject.report(standing).await {
            Ok(()) => true,
            Err(refused) => {
                tracing::warn!(reason = refused.reason, "{refused}");
                false
            }
        }
    }

    pub(super) fn log(&self, progress: Progress) {
        self.metrics.observe_progress(&progress);
        match progress {
            Progress::Lost => tracing::warn!("the volume can't be used any more as it was"),
            // The engine logs each step's begin.
            Progress::Started { .. } => {}
            Progress::Done { what, took, .. } => tracing::info!(ms = took.as_millis(), "{what}"),
            Progress::Failed { what, took, .. } => {
                tracing::warn!(ms = took.as_millis(), "failed: {what}");
            }
            Progress::Waiting { what } => tracing::info!("waiting for {what}"),
            Progress::GivenUp { why } => {
                tracing::warn!("what was not written to the volume is given up: {why}");
            }
            Progress::Warning { what } => tracing::warn!("{what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cinder::Client, host::LinuxHost};

    #[derive(Debug, Clone, PartialEq)]
    struct Asked;

    impl Subject for Asked {
        fn origin(&self) -> Origin {
            Origin::Cluster(String::new())
        }
        async fn admit(&self, _: Option<&Record>) -> Result<(), Refused> {
            Ok(())
        }
        async fn report(&self, _: Standing<'_>) -> Result<(), Refused> {
            Ok(())
        }
        async fn wants_detach(&self) -> Result<bool, Refused> {
            Ok(true)
        }
        async fn release(&self, _: &End) -> Result<(), Refused> {
            Ok(())
        }
    }

    fn bytes_of<A, F: Future>(_: impl Fn(A) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_request_keeps_no_more_than_5_kib_between_its_runs() {
        let bytes = bytes_of(Worker::<LinuxHost, Client, Asked>::run);
        assert!(bytes <= 5 << 10, "{bytes} bytes: box what is large");
    }
}
