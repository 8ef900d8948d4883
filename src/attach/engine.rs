use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    AttachError, AttachmentView, Attempt, Desired, Ledger, Next, Observed, Origin, Phase, Plan,
    Record, Reservation, Step, plan as decide, plan::Awaited,
};
use crate::{
    cinder::{AttachmentSummary, BlockStorage, Volume},
    host::{Host, HostError, NodeFacts},
    model::{
        AttachSpec, AttachmentId, DeviceName, HostState, MultipathPolicy, Retry, Target, VolumeId,
        Wwid,
    },
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
        Self { patience: Duration::from_secs(60), fallback_poll: Duration::from_secs(5) }
    }
}

/// What happens, as it happens.
#[derive(Debug, Clone)]
pub enum Progress {
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

/// One way to an attached volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStatus {
    /// The target and its portal.
    pub target: Target,
    /// The LUN there.
    pub lun: u64,
    /// The disk, where there is one.
    pub disk: Option<(String, DeviceName)>,
    /// `active`, or why not.
    pub state: String,
}

/// An attached volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The volume.
    pub volume: VolumeId,
    /// The attachment.
    pub attachment: AttachmentId,
    /// The device to use.
    pub device: PathBuf,
    /// Its identity.
    pub wwid: Wwid,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Where it is mounted.
    pub mount_path: Option<PathBuf>,
    /// Every way to it.
    pub paths: Vec<PathStatus>,
    /// What should be known.
    pub warnings: Vec<String>,
    /// Whether anything had to be done.
    pub changed: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The volume is attached.
    Attached(Box<Attached>),
    /// The volume is not attached to this node; whether anything had to be done.
    Detached {
        /// Whether there was something to detach.
        changed: bool,
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
    pub(super) attempt: Attempt,
    pub(super) progress: &'a (dyn Fn(Progress) + Sync),
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
            Outcome::Detached { .. } => {
                Err(AttachError::NoProgress { step: format!("attach volume {}", spec.volume) })
            }
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
        let before = self.ledger.load(spec.volume).await?;
        let error = match self.attach(spec, origin, progress, stop).await {
            Ok(attached) => return Ok(attached),
            Err(error) => error,
        };
        if before.is_some() || self.ledger.load(spec.volume).await?.is_none() {
            return Err(error);
        }
        progress(Progress::Warning { what: format!("{}; taking it back", error.chain()) });
        let (_keep, never) = watch::channel(false);
        match self.detach(spec.volume, origin, progress, &never).await {
            Ok(_) => Err(error),
            Err(rollback) => Err(AttachError::NotRolledBack {
                volume: spec.volume,
                attach: error.chain(),
                rollback: Box::new(rollback),
            }),
        }
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

    async fn begin<'a>(
        &self,
        desired: &'a Desired,
        volume_id: VolumeId,
        origin: &'a Origin,
        progress: &'a (dyn Fn(Progress) + Sync),
    ) -> Result<Run<'a>, AttachError> {
        let record = self.ledger.load(volume_id).await?;
        let mut run = Run {
            desired,
            volume_id,
            origin,
            record,
            facts: None,
            volume: None,
            attachment: AttachmentView::Unknown,
            attachments: Vec::new(),
            attempt: Attempt::default(),
            progress,
        };
        self.ask_cinder(&mut run).await?;
        if matches!(desired, Desired::Attached(_)) {
            let facts = self.host.facts().await;
            let known = run.record.as_ref().is_some_and(|record| record.completed);
            run.facts = match facts {
                Ok(facts) => Some(facts),
                // What is attached stays attached, whatever became of the node's facts.
                Err(_) if known => None,
                Err(source) => {
                    return Err(AttachError::Host {
                        step: "gather the node's facts".to_owned(),
                        source,
                    });
                }
            };
        }
        Ok(run)
    }

    /// Asks only what the plan will look at: an attach from nothing costs one call here.
    async fn ask_cinder(&self, run: &mut Run<'_>) -> Result<(), AttachError> {
        let attaching = matches!(run.desired, Desired::Attached(_));
        let cinder = |step: &str| {
            let step = format!("{step} {}", run.volume_id);
            move |source| AttachError::Cinder { step, source }
        };
        match run.record.as_ref().map(|record| (record.reservation, record.completed)) {
            None if !attaching => {}
            None => {
                run.volume =
                    self.cinder.volume(run.volume_id).await.map_err(cinder("look up volume"))?;
            }
            Some((Reservation::Asked, _)) => {
                run.volume =
                    self.cinder.volume(run.volume_id).await.map_err(cinder("look up volume"))?;
                run.attachments = self
                    .cinder
                    .attachments_of(run.volume_id)
                    .await
                    .map_err(cinder("list the attachments of volume"))?;
            }
            Some((Reservation::Held(id), completed)) if attaching => {
                let step = format!("show attachment {id}");
                let shown = self.cinder.attachment(id).await;
                let shown =
                    shown.map_err(|source| AttachError::Cinder { step: step.clone(), source })?;
                run.attachment = match shown {
                    None => AttachmentView::Gone,
                    Some(attachment) => AttachmentView::Known {
                        info: attachment
                            .connection_info()
                            .map_err(|source| AttachError::Connection { step, source })?,
                        status: attachment.summary.status,
                    },
                };
                if !completed {
                    run.volume = self
                        .cinder
                        .volume(run.volume_id)
                        .await
                        .map_err(cinder("look up volume"))?;
                }
            }
            // The deletion itself will tell.
            Some((Reservation::Held(_), _)) => {}
        }
        Ok(())
    }

    async fn observe(&self, run: &mut Run<'_>) -> Result<Observed, AttachError> {
        let failed = |step: &str| {
            let step = step.to_owned();
            move |source: HostError| AttachError::Host { step, source }
        };
        let host = self.host.observe().await.map_err(failed("look at the node's devices"))?;
        let mount_target = match run.desired {
            Desired::Attached(spec) => match spec.mount_path() {
                Some(path) if host.mount_at(path).is_none() => {
                    let seen = self.host.mount_target(path).await;
                    Some(seen.map_err(failed("look at the mount path"))?)
                }
                _ => None,
            },
            Desired::Detached => None,
        };
        let (mut shared_targets, mut owned_targets) = (BTreeSet::new(), BTreeSet::new());
        if matches!(run.desired, Desired::Detached) {
            owned_targets = self.ledger.owned_targets().await?;
            for record in self.ledger.records().await? {
                // One that can't be read may name any target: then nothing is logged out.
                let record = record?;
                if record.spec.volume != run.volume_id {
                    shared_targets.extend(record.targets());
                }
            }
        }
        Ok(Observed {
            facts: run.facts.clone(),
            host,
            volume: run.volume.clone(),
            attachment: run.attachment.clone(),
            attachments: run.attachments.clone(),
            mount_target,
            owned_targets,
            shared_targets,
            attempt: run.attempt.clone(),
        })
    }

    async fn run(
        &self,
        desired: &Desired,
        volume: VolumeId,
        origin: &Origin,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &watch::Receiver<bool>,
    ) -> Result<Outcome, AttachError> {
        let _volume_lock = self.ledger.lock_volume(volume).await?;
        let mut run = self.begin(desired, volume, origin, progress).await?;
        if let Some(record) = &run.record
            && &record.origin != origin
        {
            let owner = record.origin.to_string();
            return Err(AttachError::OwnedByOther { volume, owner });
        }
        let mut events = self.host.events();
        let mut targets_lock = None;
        let mut waiting: Option<(Awaited, Instant)> = None;
        let mut last: Option<Step> = None;
        let mut changed = false;
        let mut trouble = None;
        loop {
            events.mark_unchanged();
            let observed = self.observe(&mut run).await?;
            let decision = decide(desired, run.record.as_ref(), &observed);
            match decision.next {
                Next::Done => return Ok(self.outcome(&run, &observed.host, changed)),
                Next::Refuse(refusal) => return Err(refusal.into()),
                Next::Do(step) => {
                    if *stop.borrow() {
                        return Err(AttachError::Stopped { before: step.to_string() });
                    }
                    if step.needs_targets_alone() && targets_lock.is_none() {
                        let targets = run.record.as_ref().map(Record::targets).unwrap_or_default();
                        targets_lock = Some(self.ledger.lock_targets(&targets).await?);
                        // What was seen before the lock may have changed while we waited for it.
                        continue;
                    }
                    if !step.needs_targets_alone() {
                        targets_lock = None;
                    }
                    if last.as_ref() == Some(&step) {
                        return Err(AttachError::NoProgress { step: step.to_string() });
                    }
                    let done = self.timed(&mut run, &step, decision.why).await;
                    changed = true;
                    waiting = None;
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
                    let began = match waiting.take() {
                        Some((before, began)) if before == awaited => began,
                        _ => {
                            progress(Progress::Waiting { what: awaited.to_string() });
                            Instant::now()
                        }
                    };
                    if began.elapsed() >= self.config.patience {
                        overdue(&mut run.attempt, &awaited);
                    } else {
                        self.wait(&mut events, stop, &awaited, began).await?;
                        run.attempt.map_asked = false;
                    }
                    waiting = Some((awaited, began));
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
        let mut stop = stop.clone();
        tokio::select! {
            // An error means that nobody can ask to stop any more: then only the events count.
            Ok(_) = stop.wait_for(|stop| *stop) => {
                Err(AttachError::Stopped { before: format!("{awaited} came") })
            }
            () = next_event(events, left.min(self.config.fallback_poll)) => Ok(()),
        }
    }

    async fn timed(&self, run: &mut Run<'_>, step: &Step, why: String) -> Result<(), AttachError> {
        let (phase, what) = (step.phase(), step.to_string());
        (run.progress)(Progress::Started { phase, what: what.clone(), why });
        let begin = Instant::now();
        let result = self.execute(run, step).await;
        let took = begin.elapsed();
        tracing::debug!(step = %what, ms = took.as_millis(), ok = result.is_ok(), "step");
        (run.progress)(match &result {
            Ok(()) => Progress::Done { phase, what, took },
            Err(_) => Progress::Failed { phase, what, took },
        });
        result
    }

    fn outcome(&self, run: &Run<'_>, host: &HostState, changed: bool) -> Outcome {
        let attached = match (run.desired, run.record.as_ref()) {
            (Desired::Attached(spec), Some(record)) => attached(spec, record, run, host, changed),
            _ => None,
        };
        match attached {
            Some(attached) => Outcome::Attached(Box::new(attached)),
            None => Outcome::Detached { changed },
        }
    }
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

fn attached(
    spec: &AttachSpec,
    record: &Record,
    run: &Run<'_>,
    host: &HostState,
    changed: bool,
) -> Option<Attached> {
    let attachment = record.attachment()?;
    let wwid = record.wwid.clone()?;
    let paths: Vec<PathStatus> = record
        .paths
        .iter()
        .map(|path| {
            let session = host.session(&path.target);
            let disk = session.and_then(|session| {
                host.devices_of(session).find(|disk| disk.hctl.lun == path.lun.0)
            });
            let state = match (session, disk) {
                (_, Some(disk)) if disk.state == crate::model::DeviceState::Running => {
                    "active".to_owned()
                }
                (_, Some(_)) => "failing".to_owned(),
                (Some(_), None) => "no disk".to_owned(),
                (None, None) => match run.attempt.failed_logins.get(&path.target) {
                    Some(why) => format!("no session: {why}"),
                    None => "no session".to_owned(),
                },
            };
            PathStatus {
                target: path.target.clone(),
                lun: path.lun.0,
                disk: disk.map(|disk| (disk.hctl.to_string(), disk.name.clone())),
                state,
            }
        })
        .collect();
    let map = host.maps.iter().find(|map| map.wwid == wwid).filter(|_| record.multipath);
    let (device, size_bytes) = match map {
        Some(map) => (PathBuf::from("/dev/mapper").join(&map.name), map.size_bytes),
        None => {
            let disk = host.devices.iter().find(|disk| disk.wwid.as_ref() == Some(&wwid))?;
            (disk.name.path(), disk.size_bytes)
        }
    };
    let mut warnings = Vec::new();
    if spec.multipath == MultipathPolicy::Auto && !record.multipath {
        warnings.push(
            "one path only: multipathd did not run, or was kept off the disks, when the volume was attached"
                .to_owned(),
        );
    }
    if record.multipath {
        for path in paths.iter().filter(|path| path.state != "active") {
            warnings.push(format!("path {} is missing: {}", path.target, path.state));
        }
    }
    Some(Attached {
        volume: spec.volume,
        attachment,
        device,
        wwid,
        size_bytes,
        mount_path: spec.mount_path().map(ToOwned::to_owned),
        paths,
        warnings,
        changed,
    })
}
