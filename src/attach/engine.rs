use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tracing::{Instrument as _, Span};

use super::{
    AttachError, Attached, AttachmentView, Attempt, Awaited, Desired, Guard, Ledger, Next, Origin,
    Others, Outcome, Phase, Plan, Record, Resized, Step,
    last_look::LastLook,
    plan as decide,
    turns::Turns,
    verdict::{attached, device, is_usable},
};
use crate::{
    cinder::{AttachmentSummary, BlockStorage, Volume},
    host::{Host, HostError, HostOp, NodeFacts},
    model::{AttachSpec, HostState, Retry, Target, VolumeId},
};

/// iscsid has a session back within seconds of its portal's return. Giving back what nothing holds is
/// harmless.
pub(crate) const LEFT_TO_ISCSID: Duration = Duration::from_secs(15);

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
    /// What was not written to the volume is given up.
    GivenUp {
        /// Why.
        why: String,
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
    pub(super) turns: Turns,
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
    pub(super) others: Arc<Others>,
    pub(super) attempt: Attempt,
    /// The record was made by this run: what it stands for may be taken back by it.
    pub(super) made_record: bool,
    pub(super) progress: &'a (dyn Fn(Progress) + Sync),
    /// The caller's span.
    pub(super) caller: Span,
}

impl Run<'_> {
    /// Those of the volume, as far as they are recorded.
    pub(super) fn targets(&self) -> BTreeSet<Target> {
        self.record.as_ref().map(Record::targets).unwrap_or_default()
    }

    /// Fills in the field `attachment` of the caller's span, if it has one: from here on, every line
    /// of the log carries it.
    pub(super) fn name_attachment(&self) {
        if let Some(id) = self.record.as_ref().and_then(Record::attachment) {
            self.caller.record("attachment", tracing::field::display(id));
        }
    }

    /// Tells what is no step's begin or end, the log too.
    pub(super) fn note(&self, progress: Progress) {
        match &progress {
            Progress::Lost => {
                tracing::debug!(what = "it can't be used any more as it was", "noted");
            }
            Progress::GivenUp { why } => {
                let what = format!("what was not written to the volume is given up: {why}");
                tracing::debug!(what, "noted");
            }
            Progress::Warning { what } => tracing::debug!(what, "noted"),
            Progress::Started { .. }
            | Progress::Done { .. }
            | Progress::Failed { .. }
            | Progress::Waiting { .. } => {}
        }
        (self.progress)(progress);
    }
}

impl<H: Host, C: BlockStorage> Engine<H, C> {
    /// An engine over a host, a Cinder and a ledger.
    pub fn new(host: H, cinder: C, ledger: Ledger, config: EngineConfig) -> Self {
        Self { host, cinder, ledger, config, turns: Turns::default() }
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
        let work = async |caller: Span| {
            // Held until everything is taken back: whoever comes next finds it done or undone.
            let _volume_lock = self.lock_volume(spec.volume, stop).await?;
            let mut run =
                self.begin(&desired, spec.volume, origin, progress, caller.clone()).await?;
            let error = match self.drive(&mut run, stop).await {
                Ok(Outcome::Attached(attached)) => return Ok(*attached),
                Ok(Outcome::Detached { .. }) => not_there(spec.volume),
                Err(error) => error,
            };
            if !run.made_record {
                return Err(error);
            }
            tracing::debug!(what = "it failed; taking back what was begun", "noted");
            progress(Progress::Warning { what: format!("{}; taking it back", error.chain()) });
            match self.take_back(spec.volume, origin, progress, caller).await {
                Ok(_) => Err(error),
                Err(rollback) => Err(AttachError::NotRolledBack {
                    volume: spec.volume,
                    attach: error.chain(),
                    rollback: Box::new(rollback),
                }),
            }
        };
        as_one_run(&desired, spec.volume, origin, work).await
    }

    async fn take_back(
        &self,
        volume: VolumeId,
        origin: &Origin,
        progress: &(dyn Fn(Progress) + Sync),
        caller: Span,
    ) -> Result<Outcome, AttachError> {
        let (_keep, never) = watch::channel(false);
        let desired = Desired::Detached { force: false };
        let mut run = self.begin(&desired, volume, origin, progress, caller).await?;
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
        let desired = Desired::Detached { force: false };
        self.detach_as(&desired, volume, origin, progress, stop).await
    }

    /// [`Engine::detach`] that ends where that one can't: what can't be written is given up, and
    /// [`Progress::GivenUp`] says so. It refuses all that the other does for the sake of others.
    ///
    /// # Errors
    /// The first thing that stops it; the same call goes on from there.
    pub async fn detach_by_force(
        &self,
        volume: VolumeId,
        origin: &Origin,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &watch::Receiver<bool>,
    ) -> Result<bool, AttachError> {
        let desired = Desired::Detached { force: true };
        self.detach_as(&desired, volume, origin, progress, stop).await
    }

    async fn detach_as(
        &self,
        desired: &Desired,
        volume: VolumeId,
        origin: &Origin,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &watch::Receiver<bool>,
    ) -> Result<bool, AttachError> {
        match self.run(desired, volume, origin, progress, stop).await? {
            Outcome::Detached { changed } => Ok(changed),
            Outcome::Attached(_) => {
                Err(AttachError::NoProgress { step: format!("detach volume {volume}") })
            }
        }
    }

    /// Grows an attached volume that was extended in Cinder: its disks, its map, its file system. It
    /// changes nothing of the request, so it doesn't matter who attached the volume.
    ///
    /// # Errors
    /// The first thing that stops it; the same call goes on from there.
    pub async fn resize(
        &self,
        volume: VolumeId,
        at_least_gib: Option<u64>,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &watch::Receiver<bool>,
    ) -> Result<Resized, AttachError> {
        let desired = Desired::Resized { volume, at_least_gib };
        let work = async |caller| {
            let _volume_lock = self.lock_volume(volume, stop).await?;
            let origin = self.owner(volume).await?;
            let mut run = self.begin(&desired, volume, &origin, progress, caller).await?;
            let before_bytes = self.device_bytes(&run).await?;
            let outcome = self.drive(&mut run, stop).await?;
            let (Outcome::Attached(mut attached), Some(before_bytes)) = (outcome, before_bytes)
            else {
                return Err(AttachError::NoProgress { step: format!("resize volume {volume}") });
            };
            let filesystem_grown = run.attempt.grown == Some(true);
            attached.changed = filesystem_grown || attached.size_bytes != before_bytes;
            Ok(Resized { attached: *attached, before_bytes, filesystem_grown })
        };
        as_one_run(&desired, volume, &self.owner(volume).await?, work).await
    }

    /// Who asked for a volume that is attached.
    async fn owner(&self, volume: VolumeId) -> Result<Origin, AttachError> {
        let known = self.ledger.load(volume).await?;
        Ok(known.map_or(Origin::CommandLine, |record| record.origin))
    }

    async fn device_bytes(&self, run: &Run<'_>) -> Result<Option<u64>, AttachError> {
        let host = self.look_for(run).await?;
        let Some(record) = &run.record else { return Ok(None) };
        let device = record.wwid.as_ref().and_then(|wwid| device(record, wwid, &host));
        Ok(device.map(|(_, size_bytes)| size_bytes))
    }

    /// What would be done next, and why. Changes nothing.
    ///
    /// # Errors
    /// The node, the ledger or Cinder can't be read.
    pub async fn plan(&self, desired: &Desired, volume: VolumeId) -> Result<Plan, AttachError> {
        let origin = Origin::CommandLine;
        let mut run = self.begin(desired, volume, &origin, &|_| {}, Span::current()).await?;
        let host = self.look_for(&run).await?;
        let observed = self.observe(&mut run, host).await?;
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
        let work = async |caller| {
            let _volume_lock = self.lock_volume(volume, stop).await?;
            let mut run = self.begin(desired, volume, origin, progress, caller).await?;
            self.drive(&mut run, stop).await
        };
        as_one_run(desired, volume, origin, work).await
    }

    pub(super) async fn lock_volume(
        &self,
        volume: VolumeId,
        stop: &watch::Receiver<bool>,
    ) -> Result<Guard, AttachError> {
        let before = || format!("anything was done: another attachd works on volume {volume}");
        let turn = self.ledger.lock_volume(volume);
        let turn = waited("the lock of this volume", turn);
        Ok(unless_stopped(stop, before, turn).await??)
    }

    /// Step after step, until it is as asked. The volume's lock is held.
    pub(super) async fn drive(
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
        let mut given_back = false;
        let mut last_look = LastLook::none();
        loop {
            let host = last_look.again_or(self.look_for(run), &mut events).await?;
            let observed = self.observe(run, host).await?;
            let first = std::mem::take(&mut first);
            if first && is_lost(run, &observed.host) {
                run.note(Progress::Lost);
            }
            let decision = decide(run.desired, run.record.as_ref(), &observed);
            if let Some(why) = given_up(run, first, &decision) {
                run.note(Progress::GivenUp { why });
            }
            match decision.next {
                Next::Done => return Ok(outcome(run, &observed.host, changed)),
                Next::Refuse(refusal) => return Err(refusal.into()),
                Next::Do(step) => {
                    if *stopped.borrow() {
                        return Err(AttachError::Stopped { before: step.to_string() });
                    }
                    if step.needs_targets_alone() && targets_lock.is_none() {
                        let targets = run.targets();
                        let turn = self.ledger.lock_targets(&targets);
                        let turn = waited("the locks of the targets", turn);
                        let turn = unless_stopped(stopped, || step.to_string(), turn).await?;
                        targets_lock = Some(turn?);
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
                        Err(error)
                            if passing(&step, &error)
                                && since(&mut trouble) < self.grace(&step) =>
                        {
                            run.attempt.contents = None;
                            let event = next_event(&mut events, self.config.fallback_poll);
                            waited("what keeps it from being done to go", event).await;
                            last = None;
                            continue;
                        }
                        Err(error) if way_around(run, &step, &error) => {
                            let what = format!("{}; going on without it", error.chain());
                            run.note(Progress::Warning { what });
                            trouble = None;
                            last = None;
                            continue;
                        }
                        result => result?,
                    }
                    trouble = None;
                    if step.leaves_the_node() {
                        last_look.keep(observed.host);
                    }
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
                    if let Awaited::Sessions { targets } = &awaited
                        && began.elapsed() >= LEFT_TO_ISCSID
                        && !std::mem::replace(&mut given_back, true)
                    {
                        for what in self.give_back_connections(targets.clone()).await {
                            run.note(Progress::Warning { what });
                        }
                    } else if began.elapsed() >= self.config.patience {
                        overdue(&mut run.attempt, &awaited);
                    } else {
                        self.wait(&mut events, stopped, &awaited, began).await?;
                        // Events of one cause come in bursts: they don't keep the node looking all the time.
                        tokio::time::sleep(last_look.took().min(LONGEST_REST)).await;
                        run.attempt.map_asked = false;
                    }
                }
            }
        }
    }

    /// Has the kernel give iscsid the connections of sessions back that iscsid can't set up again, and
    /// says what came of it. Nothing is logged out.
    pub(crate) async fn give_back_connections(&self, targets: Vec<Target>) -> Vec<String> {
        if targets.is_empty() {
            return Vec::new();
        }
        let named = targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let applied = match self.host.apply(&HostOp::GiveBackConnections { targets }).await {
            Ok(applied) => applied,
            Err(error) => return vec![format!("{named}: {error}")],
        };
        let failures = applied.failures.iter().map(|(target, error)| format!("{target}: {error}"));
        let given = applied.changed.then(|| {
            format!(
                "iscsid could not log in again, though the portal answers: the kernel gave it back what it held of {named}"
            )
        });
        given.into_iter().chain(failures).collect()
    }

    /// How long a device may be in use, or not be read, before that is an error.
    fn grace(&self, step: &Step) -> Duration {
        if writes_a_file_system(step) { self.config.patience } else { SETTLE }
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
        let event = waited(awaited, event);
        unless_stopped(stop, || format!("{awaited} came"), event).await
    }

    async fn timed(&self, run: &mut Run<'_>, step: &Step, why: String) -> Result<(), AttachError> {
        let (phase, what) = (step.phase(), step.to_string());
        tracing::debug!(why, "begin: {what}");
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

/// Does what is one run for the journal: within a span of its own, of which it is given the caller's, and with
/// its end told.
pub(super) async fn as_one_run<T>(
    desired: &Desired,
    volume: VolumeId,
    origin: &Origin,
    work: impl AsyncFnOnce(Span) -> Result<T, AttachError>,
) -> Result<T, AttachError> {
    let (doing, done) = match desired {
        Desired::Attached(_) => ("attach", "Attached"),
        Desired::Detached { force: false } => ("detach", "Detached"),
        Desired::Detached { force: true } => ("detach by force", "Detached"),
        Desired::Resized { .. } => ("resize", "Resized"),
    };
    let caller = Span::current();
    // At the lowest level, so that it is in nobody's log: that has the caller's span.
    let span = tracing::trace_span!("run", doing, %volume, %origin, request = origin.request());
    async {
        let begin = Instant::now();
        let result = work(caller).await;
        let ms = begin.elapsed().as_millis();
        match &result {
            Ok(_) => tracing::debug!(outcome = done, ms, "run ended"),
            Err(error) => {
                tracing::debug!(outcome = error.reason(), error = error.chain(), ms, "run ended");
            }
        }
        result
    }
    .instrument(span)
    .await
}

/// What takes less is no wait: on a slow node, a lock that is free takes this long.
const NO_WAIT: Duration = Duration::from_millis(50);

/// Waits, and tells the log how long it took.
async fn waited<T>(what: impl std::fmt::Display, awaited: impl Future<Output = T>) -> T {
    let begin = Instant::now();
    let came = awaited.await;
    let took = begin.elapsed();
    if took >= NO_WAIT {
        tracing::debug!(%what, ms = took.as_millis(), "waited");
    }
    came
}

fn outcome(run: &Run<'_>, host: &HostState, changed: bool) -> Outcome {
    let there = match (run.desired, run.record.as_ref()) {
        (Desired::Attached(spec), Some(record)) => {
            attached(spec, record, host, &run.attempt.failed_logins, changed)
        }
        (Desired::Resized { .. }, Some(record)) => {
            attached(&record.spec, record, host, &run.attempt.failed_logins, changed)
        }
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

/// Why what was not written is given up: by this step, or since a run before this one.
fn given_up(run: &Run<'_>, first: bool, plan: &Plan) -> Option<String> {
    if let Next::Do(Step::GiveUp { .. }) = plan.next {
        return Some(plan.why.clone());
    }
    let detaching = matches!(run.desired, Desired::Detached { .. });
    let cut = run.record.as_ref().is_some_and(|record| record.cut);
    (first && detaching && cut).then(|| "an earlier detach had to cut the volume off".to_owned())
}

fn not_there(volume: VolumeId) -> AttachError {
    AttachError::NoProgress { step: format!("attach volume {volume}") }
}

/// How long a device may stay in use by itself, or without a path: udev, blkid and multipathd open one
/// for moments after it was closed or changed.
const SETTLE: Duration = Duration::from_secs(15);

/// Between an event and the look that it is worth.
const LONGEST_REST: Duration = Duration::from_millis(200);

/// Whether an error may go by itself, so that looking again is better than failing.
fn passing(step: &Step, error: &AttachError) -> bool {
    let AttachError::Host { source, .. } = error else { return false };
    let in_use = matches!(source, HostError::Busy { .. });
    // All paths may fail for a moment: the storage exports the volume anew, a portal restarts.
    let unreadable = matches!(source, HostError::Io { .. });
    source.retry() == Retry::Now
        || unreadable && matches!(step, Step::Probe { .. })
        || in_use && matches!(step, Step::RemoveMap { .. } | Step::DeleteDevices { .. })
        || in_use && writes_a_file_system(step)
}

/// A format or a check that outlived the attachd that began it still has the device.
fn writes_a_file_system(step: &Step) -> bool {
    matches!(step, Step::Format { .. } | Step::Check { .. })
}

/// Whether the plan has another way where a step of a detach failed; notes that it is needed.
fn way_around(run: &mut Run<'_>, step: &Step, error: &AttachError) -> bool {
    let AttachError::Host { source, .. } = error else { return false };
    let force = matches!(run.desired, Desired::Detached { force: true });
    let cut = run.record.as_ref().is_some_and(|record| record.cut);
    match step {
        Step::Unmount { .. } if cut => {
            let busy = matches!(source, HostError::Busy { .. });
            run.attempt.mount_busy |= busy;
            busy
        }
        Step::RemoveMap { name, .. } if cut => {
            run.attempt.held_maps.insert(name.clone(), source.to_string());
            true
        }
        Step::Unmount { .. } | Step::RemoveMap { .. } | Step::DeleteDevices { .. }
            if force && !cut && run.attempt.blocked.is_none() =>
        {
            run.attempt.blocked = Some(error.chain());
            true
        }
        // An empty session doesn't keep the volume from other nodes. It stays attachd's own, an orphan.
        Step::LogOut { .. } if force => match source {
            HostError::SessionNotTakenOver { target } => {
                run.attempt.left_sessions.insert(target.clone());
                true
            }
            _ => false,
        },
        _ => false,
    }
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
