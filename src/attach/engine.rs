use std::{collections::BTreeMap, future::Future, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    AttachError, Attached, AttachmentView, Attempt, Awaited, Desired, Guard, Ledger, Next, Origin,
    Others, Outcome, Phase, Plan, Record, Step,
    outcome::{attached, is_usable},
    plan as decide,
};
use crate::{
    cinder::{AttachmentSummary, BlockStorage, Volume},
    host::{Host, HostError, NodeFacts},
    model::{AttachSpec, HostState, Retry, VolumeId},
};

/// Time limits of the engine. What single operations may take is their own matter.
#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// How long sessions, disks and maps are waited for, each.
    pub patience: Duration,
    /// How often to look again where no event comes: events may be lost.
    pub fallback_poll: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { patience: Duration::from_mins(1), fallback_poll: Duration::from_secs(5) }
    }
}

/// What happens, as it happens.
#[derive(Debug, Clone)]
pub enum Progress {
    /// What was attached can't be used any more as it was, after a reboot for one. What follows
    /// brings it back.
    Lost,
    /// A step begins.
    Started {
        /// Its station.
        phase: Phase,
        /// In words.
        what: String,
        /// The plan's reason.
        why: String,
    },
    /// It ended well.
    Done {
        /// Its station.
        phase: Phase,
        /// In words.
        what: String,
        /// How long it took.
        took: Duration,
    },
    /// It ended badly.
    Failed {
        /// Its station.
        phase: Phase,
        /// In words.
        what: String,
        /// How long it took.
        took: Duration,
    },
    /// Nothing to do but wait for the kernel or multipathd.
    Waiting {
        /// For what.
        what: String,
    },
    /// Something that doesn't stop the attach, and should be known.
    Warning {
        /// In words.
        what: String,
    },
}

/// Brings volumes to where they were asked to be. Runs for different volumes go side by side.
#[derive(Debug)]
pub struct Engine<H, C> {
    pub(super) host: H,
    pub(super) cinder: C,
    pub(super) ledger: Ledger,
    pub(super) config: EngineConfig,
}

/// What a run knows beside the kernel's state.
pub(super) struct Run<'a> {
    pub(super) desired: &'a Desired,
    pub(super) volume_id: VolumeId,
    pub(super) origin: &'a Origin,
    pub(super) record: Option<Record>,
    pub(super) facts: Option<NodeFacts>,
    pub(super) volume: Option<Volume>,
    pub(super) attachment: AttachmentView,
    pub(super) attachments: Vec<AttachmentSummary>,
    pub(super) others: Others,
    pub(super) attempt: Attempt,
    /// The record was made by this run: what it stands for may be taken back by it.
    pub(super) made_record: bool,
    pub(super) progress: &'a (dyn Fn(Progress) + Sync),
}

impl Run<'_> {
    /// Fills in the field `attachment` of the caller's span, if it has one: from here on, every line
    /// of the log carries it.
    pub(super) fn name_attachment(&self) {
        if let Some(id) = self.record.as_ref().and_then(Record::attachment) {
            tracing::Span::current().record("attachment", tracing::field::display(id));
        }
    }
}

impl<H: Host, C: BlockStorage> Engine<H, C> {
    /// An engine over a host, a Cinder and a ledger.
    pub fn new(host: H, cinder: C, ledger: Ledger, config: EngineConfig) -> Self {
        Self { host, cinder, ledger, config }
    }

    /// The host.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Attaches a volume, or finds that it is attached. What was begun and failed is kept in the
    /// ledger: the same call goes on from there, and [`Engine::detach`] takes it back.
    ///
    /// # Errors
    /// The first thing that stops it.
    pub async fn attach(
        &self,
        spec: &AttachSpec,
        origin: &Origin,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &watch::Receiver<bool>,
    ) -> Result<Attached, AttachError> {
        let desired = Desired::Attached(spec.clone());
        match self.run(&desired, spec.volume, origin, progress, stop).await? {
            Outcome::Attached(attached) => Ok(*attached),
            Outcome::Detached { .. } => Err(not_there(spec.volume)),
        }
    }

    /// [`Engine::attach`] for a caller that won't come back: what this call began and could not
    /// finish is taken back, in the safe order. What was attached before is never touched.
    ///
    /// # Errors
    /// Why it failed; [`AttachError::NotRolledBack`] where something is left.
    pub async fn attach_or_roll_back(
        &self,
        spec: &AttachSpec,
        origin: &Origin,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &watch::Receiver<bool>,
    ) -> Result<Attached, AttachError> {
        let desired = Desired::Attached(spec.clone());
        // Held until everything is taken back: whoever comes next finds it done or undone.
        let _volume_lock = self.lock_volume(spec.volume, stop).await?;
        let mut run = self.begin(&desired, spec.volume, origin, progress).await?;
        let error = match self.drive(&mut run, stop).await {
            Ok(Outcome::Attached(attached)) => return Ok(*attached),
            Ok(Outcome::Detached { .. }) => not_there(spec.volume),
            Err(error) => error,
        };
        if !run.made_record {
            return Err(error);
        }
        progress(Progress::Warning { what: format!("{}; taking it back", error.chain()) });
        match self.take_back(spec.volume, origin, progress).await {
            Ok(_) => Err(error),
            Err(rollback) => Err(AttachError::NotRolledBack {
                volume: spec.volume,
                attach: error.chain(),
                rollback: Box::new(rollback),
            }),
        }
    }

    async fn take_back(
        &self,
        volume: VolumeId,
        origin: &Origin,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Outcome, AttachError> {
        let (_keep, never) = watch::channel(false);
        let mut run = self.begin(&Desired::Detached, volume, origin, progress).await?;
        self.drive(&mut run, &never).await
    }

    /// Detaches a volume; says whether there was anything to do.
    ///
    /// # Errors
    /// The first thing that stops it; the same call goes on from there.
    pub async fn detach(
        &self,
        volume: VolumeId,
        origin: &Origin,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &watch::Receiver<bool>,
    ) -> Result<bool, AttachError> {
        match self.run(&Desired::Detached, volume, origin, progress, stop).await? {
            Outcome::Detached { changed } => Ok(changed),
            Outcome::Attached(_) => {
                Err(AttachError::NoProgress { step: format!("detach volume {volume}") })
            }
        }
    }

    /// What would be done next, and why. Changes nothing.
    ///
    /// # Errors
    /// The node, the ledger or Cinder can't be read.
    pub async fn plan(&self, desired: &Desired, volume: VolumeId) -> Result<Plan, AttachError> {
        let origin = Origin::CommandLine;
        let mut run = self.begin(desired, volume, &origin, &|_| {}).await?;
        let observed = self.observe(&mut run).await?;
        Ok(decide(desired, run.record.as_ref(), &observed))
    }

    async fn run(
        &self,
        desired: &Desired,
        volume: VolumeId,
        origin: &Origin,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &watch::Receiver<bool>,
    ) -> Result<Outcome, AttachError> {
        let _volume_lock = self.lock_volume(volume, stop).await?;
        let mut run = self.begin(desired, volume, origin, progress).await?;
        self.drive(&mut run, stop).await
    }

    async fn lock_volume(
        &self,
        volume: VolumeId,
        stop: &watch::Receiver<bool>,
    ) -> Result<Guard, AttachError> {
        let before = || format!("anything was done: another attachd works on volume {volume}");
        Ok(unless_stopped(stop, before, self.ledger.lock_volume(volume)).await??)
    }

    /// Step after step, until it is as asked. The volume's lock is held.
    async fn drive(
        &self,
        run: &mut Run<'_>,
        stopped: &watch::Receiver<bool>,
    ) -> Result<Outcome, AttachError> {
        let mut events = self.host.events();
        let mut targets_lock = None;
        // Since when each thing was waited for: a step in between, or an event, gives no new patience.
        let mut waiting: BTreeMap<Phase, Instant> = BTreeMap::new();
        let mut last: Option<Step> = None;
        let mut changed = false;
        let mut trouble = None;
        let mut first = true;
        loop {
            events.mark_unchanged();
            let observed = self.observe(run).await?;
            if std::mem::take(&mut first) && is_lost(run, &observed.host) {
                (run.progress)(Progress::Lost);
            }
            let decision = decide(run.desired, run.record.as_ref(), &observed);
            match decision.next {
                Next::Done => return Ok(outcome(run, &observed.host, changed)),
                Next::Refuse(refusal) => return Err(refusal.into()),
                Next::Do(step) => {
                    if *stopped.borrow() {
                        return Err(AttachError::Stopped { before: step.to_string() });
                    }
                    if step.needs_targets_alone() && targets_lock.is_none() {
                        let targets = run.record.as_ref().map(Record::targets).unwrap_or_default();
                        let locked = self.ledger.lock_targets(&targets);
                        let locked = unless_stopped(stopped, || step.to_string(), locked).await?;
                        targets_lock = Some(locked?);
                        // What was seen before the lock may have changed while we waited for it.
                        run.others = self.others(run.volume_id).await?;
                        continue;
                    }
                    if !step.needs_targets_alone() {
                        targets_lock = None;
                    }
                    if last.as_ref() == Some(&step) {
                        return Err(AttachError::NoProgress { step: step.to_string() });
                    }
                    let done = self.timed(run, &step, decision.why).await;
                    changed = true;
                    match done {
                        Err(error) if passing(&step, &error) && since(&mut trouble) < SETTLE => {
                            next_event(&mut events, self.config.fallback_poll).await;
                            last = None;
                            continue;
                        }
                        result => result?,
                    }
                    trouble = None;
                    // Asking multipathd again after an event is progress of another kind.
                    last = (!matches!(step, Step::AddMap { .. })).then_some(step);
                }
                Next::Wait(awaited) => {
                    // Others may need the same targets meanwhile.
                    targets_lock = None;
                    let station = awaited.phase();
                    let began = *waiting.entry(station).or_insert_with(|| {
                        (run.progress)(Progress::Waiting { what: awaited.to_string() });
                        Instant::now()
                    });
                    if began.elapsed() >= self.config.patience {
                        overdue(&mut run.attempt, &awaited);
                    } else {
                        self.wait(&mut events, stopped, &awaited, began).await?;
                        run.attempt.map_asked = false;
                    }
                }
            }
        }
    }

    async fn wait(
        &self,
        events: &mut watch::Receiver<u64>,
        stop: &watch::Receiver<bool>,
        awaited: &Awaited,
        since: Instant,
    ) -> Result<(), AttachError> {
        let left = self.config.patience.saturating_sub(since.elapsed());
        let event = next_event(events, left.min(self.config.fallback_poll));
        unless_stopped(stop, || format!("{awaited} came"), event).await
    }

    async fn timed(&self, run: &mut Run<'_>, step: &Step, why: String) -> Result<(), AttachError> {
        let (phase, what) = (step.phase(), step.to_string());
        (run.progress)(Progress::Started { phase, what: what.clone(), why });
        let begin = Instant::now();
        let result = self.execute(run, step).await;
        let took = begin.elapsed();
        if phase == Phase::Reserve {
            run.name_attachment();
        }
        tracing::debug!(step = %what, ms = took.as_millis(), ok = result.is_ok(), "step");
        (run.progress)(match &result {
            Ok(()) => Progress::Done { phase, what, took },
            Err(_) => Progress::Failed { phase, what, took },
        });
        result
    }
}

fn outcome(run: &Run<'_>, host: &HostState, changed: bool) -> Outcome {
    let there = match (run.desired, run.record.as_ref()) {
        (Desired::Attached(spec), Some(record)) => attached(spec, record, run, host, changed),
        _ => None,
    };
    match there {
        Some(attached) => Outcome::Attached(Box::new(attached)),
        None => Outcome::Detached { changed },
    }
}

/// Waits for something, unless asked to stop. What comes at once counts.
pub(crate) async fn unless_stopped<T>(
    stop: &watch::Receiver<bool>,
    before: impl FnOnce() -> String,
    awaited: impl Future<Output = T>,
) -> Result<T, AttachError> {
    let mut stop = stop.clone();
    tokio::select! {
        biased;
        value = awaited => Ok(value),
        // An error means that nobody can ask to stop any more: then only what is awaited counts.
        Ok(_) = stop.wait_for(|stop| *stop) => Err(AttachError::Stopped { before: before() }),
    }
}

fn is_lost(run: &Run<'_>, host: &HostState) -> bool {
    match (run.desired, run.record.as_ref()) {
        (Desired::Attached(spec), Some(record)) => {
            record.completed && !is_usable(spec, record, host)
        }
        _ => false,
    }
}

fn not_there(volume: VolumeId) -> AttachError {
    AttachError::NoProgress { step: format!("attach volume {volume}") }
}

/// How long a device may stay in use by itself: udev, blkid and multipathd open one for moments
/// after it was closed or changed.
const SETTLE: Duration = Duration::from_secs(15);

/// Whether an error may go by itself, so that looking again is better than failing.
fn passing(step: &Step, error: &AttachError) -> bool {
    let AttachError::Host { source, .. } = error else { return false };
    let in_use = matches!(source, HostError::Busy { .. });
    source.retry() == Retry::Now
        || in_use && matches!(step, Step::RemoveMap { .. } | Step::DeleteDevices { .. })
}

fn since(trouble: &mut Option<Instant>) -> Duration {
    trouble.get_or_insert_with(Instant::now).elapsed()
}

async fn next_event(events: &mut watch::Receiver<u64>, limit: Duration) {
    // The sender lives as long as the host; where it is gone, time alone wakes us.
    if let Ok(Err(_)) = timeout(limit, events.changed()).await {
        tokio::time::sleep(limit).await;
    }
}

fn overdue(attempt: &mut Attempt, awaited: &Awaited) {
    match awaited {
        Awaited::Sessions { .. } => attempt.overdue.sessions = true,
        Awaited::Disks { .. } => attempt.overdue.disks = true,
        Awaited::Map { .. } => attempt.overdue.map = true,
    }
}
