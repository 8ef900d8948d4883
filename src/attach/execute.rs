//! One step, done. Thin: every decision was made by the plan.

use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    AttachError, AttachmentView, Desired, Engine, FormatProgress, Ownership, Progress, Record,
    Reservation, Step, engine::Run, error::chain,
};
use crate::{
    cinder::{AttachmentStatus, BlockStorage},
    host::{Applied, Host, HostOp, LoginLimits, MountTarget},
    model::{AttachmentId, Chap, Contents, DeviceName, Filesystem, Hctl, Target, VolumeId},
};

/// How often to look whether a login that nobody waits for has ended.
const LOOK: Duration = Duration::from_millis(500);

impl<H: Host, C: BlockStorage> Engine<H, C> {
    pub(super) async fn execute(&self, run: &mut Run<'_>, step: &Step) -> Result<(), AttachError> {
        let words = || step.to_string();
        if step.moves_devices() {
            // The same name may stand for another device afterwards.
            run.attempt.contents = None;
            run.attempt.checked = false;
        }
        match step {
            Step::Reserve { volume } => self.reserve(run, *volume, step).await,
            Step::Adopt { attachment } => {
                self.record(run, |record| record.reservation = Reservation::Held(*attachment))
                    .await?;
                run.attachment =
                    AttachmentView::Known { status: AttachmentStatus::Reserved, info: None };
                Ok(())
            }
            Step::Update { attachment } => self.update(run, *attachment, step).await,
            Step::Discover { portal } => {
                let chap = discovery_chap(&run.attachment);
                let found = self.host.discover(*portal, chap.as_ref()).await;
                run.attempt.discovered =
                    Some(found.map_err(|source| AttachError::Host { step: words(), source })?);
                Ok(())
            }
            Step::RecordPaths { paths } => {
                self.record(run, |record| {
                    record.paths.clone_from(paths);
                    record.released = false;
                })
                .await?;
                // Cinder gives a place away only after it was given up: what was read of other
                // volumes before it answered may be older than that.
                run.others = self.others(run.volume_id).await?;
                Ok(())
            }
            Step::LogIn { targets } => {
                self.logins_ended(targets, step).await?;
                self.turns.take(self.log_in(run, targets, step)).await
            }
            Step::Scan { luns } => {
                run.attempt.scanned.extend(luns.iter().map(|(host, lun)| (*host, lun.0)));
                self.whole(HostOp::ScanLuns { luns: luns.clone() }, step).await
            }
            Step::Reread { devices } => {
                run.attempt.reread.extend(devices.iter().copied());
                self.whole(HostOp::Rescan { devices: devices.clone() }, step).await
            }
            Step::PurgeStale { devices } | Step::DeleteDevices { devices } => {
                self.whole(HostOp::DeleteDevices { devices: devices.clone() }, step).await
            }
            Step::RecordIdentity { wwid } => {
                self.record(run, |record| record.wwid = Some(wwid.clone())).await
            }
            Step::AddMap { wwid, devices } => {
                run.attempt.map_asked = true;
                let op = HostOp::AddMap { wwid: wwid.clone(), devices: devices.clone() };
                self.whole(op, step).await
            }
            Step::SetReadOnly { devices } => {
                self.whole(HostOp::SetReadOnly { devices: devices.clone() }, step).await
            }
            Step::Probe { device } => {
                let contents = self.host.contents(device).await;
                let contents =
                    contents.map_err(|source| AttachError::Host { step: words(), source })?;
                run.attempt.contents = Some((device.clone(), contents));
                Ok(())
            }
            Step::Format { device, filesystem, resume } => {
                self.record(run, |record| record.format = FormatProgress::Started).await?;
                let op = HostOp::Format {
                    device: device.clone(),
                    filesystem: *filesystem,
                    resume: *resume,
                };
                self.whole(op, step).await?;
                self.record(run, |record| record.format = FormatProgress::Done).await?;
                run.attempt.contents = Some((device.clone(), holds(*filesystem)));
                run.attempt.checked = true;
                Ok(())
            }
            Step::Check { device, filesystem } => {
                let op =
                    HostOp::CheckFilesystem { device: device.clone(), filesystem: *filesystem };
                self.whole(op, step).await?;
                run.attempt.checked = true;
                Ok(())
            }
            Step::Mount { device, filesystem, target, read_only, options } => {
                let seen = self.host.mount_target(target).await;
                let seen = seen.map_err(|source| AttachError::Host { step: words(), source })?;
                self.record(run, |record| {
                    record.mounted = true;
                    record.mount_device = Some(device.number);
                    record.made_directory |= seen == MountTarget::Absent;
                })
                .await?;
                let op = HostOp::Mount {
                    device: device.clone(),
                    filesystem: *filesystem,
                    target: target.clone(),
                    read_only: *read_only,
                    options: options.clone(),
                };
                self.whole(op, step).await
            }
            Step::ResizeMap { name, wwid, size_bytes } => {
                let (name, wwid) = (name.clone(), wwid.clone());
                self.whole(HostOp::ResizeMap { name, wwid, size_bytes: *size_bytes }, step).await
            }
            Step::GrowFilesystem { device, filesystem, target } => {
                let op = HostOp::GrowFilesystem {
                    device: device.clone(),
                    filesystem: *filesystem,
                    target: target.clone(),
                };
                let applied = self.apply(op, step).await?;
                run.attempt.grown = Some(applied.changed);
                Ok(())
            }
            Step::Complete { attachment } => {
                let done = self.cinder.complete(*attachment).await;
                done.map_err(|source| AttachError::Cinder { step: words(), source })?;
                if let AttachmentView::Known { status, .. } = &mut run.attachment {
                    *status = AttachmentStatus::Attached;
                }
                self.record(run, |record| record.completed = true).await
            }
            Step::GiveUp { .. } => self.record(run, |record| record.cut = true).await,
            Step::Cut { maps, devices } => self.cut(run, maps, devices, step).await,
            Step::UnmountLazily { target } => {
                self.whole(HostOp::UnmountLazily { target: target.clone() }, step).await
            }
            Step::Unmount { target } => {
                self.whole(HostOp::Unmount { target: target.clone() }, step).await
            }
            Step::RemoveDirectory { target } => {
                self.whole(HostOp::RemoveDirectory { target: target.clone() }, step).await?;
                self.record(run, |record| record.made_directory = false).await
            }
            Step::RemoveMap { name, wwid } => {
                self.whole(HostOp::RemoveMap { name: name.clone(), wwid: wwid.clone() }, step).await
            }
            Step::LogOut { targets } => {
                self.logins_ended(targets, step).await?;
                let logout = self.whole(HostOp::Logout { targets: targets.clone() }, step);
                self.turns.take(logout).await?;
                run.attempt.logged_out.extend(targets.iter().cloned());
                Ok(())
            }
            Step::Release { disown } => {
                let mapped = run.record.as_ref().filter(|record| record.multipath);
                if let Some(wwid) = mapped.and_then(|record| record.wwid.clone()) {
                    self.whole(HostOp::ForgetMap { wwid }, step).await?;
                }
                for target in disown {
                    self.ledger.disown_target(target).await?;
                }
                self.record(run, |record| record.released = true).await
            }
            Step::DeleteAttachment { attachment } => {
                let done = self.cinder.delete(*attachment).await;
                done.map_err(|source| AttachError::Cinder { step: words(), source })?;
                run.attachment = AttachmentView::Gone;
                Ok(())
            }
            Step::Forget { volume } => {
                self.ledger.forget(*volume).await?;
                run.record = None;
                Ok(())
            }
        }
    }

    /// Changes the record, and returns when the change is on the disk.
    async fn record(
        &self,
        run: &mut Run<'_>,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), AttachError> {
        if let Some(record) = &mut run.record {
            change(record);
            self.ledger.store(record).await?;
        }
        Ok(())
    }

    async fn apply(&self, op: HostOp, step: &Step) -> Result<Applied, AttachError> {
        let applied = self.host.apply(&op).await;
        applied.map_err(|source| AttachError::Host { step: step.to_string(), source })
    }

    /// An operation of which no part may fail.
    pub(super) async fn whole(&self, op: HostOp, step: &Step) -> Result<(), AttachError> {
        let applied = self.apply(op, step).await?;
        match applied.failures.into_iter().next() {
            None => Ok(()),
            Some((_, source)) => Err(AttachError::Host { step: step.to_string(), source }),
        }
    }

    /// The disks go whether or not the maps can be told: without disks nothing reaches the volume.
    async fn cut(
        &self,
        run: &mut Run<'_>,
        maps: &[(DeviceName, String)],
        devices: &[(Hctl, DeviceName)],
        step: &Step,
    ) -> Result<(), AttachError> {
        let mut told = Ok(());
        for (device, name) in maps {
            match self.whole(HostOp::StopQueueing { name: name.clone() }, step).await {
                Ok(()) => drop(run.attempt.unqueued.insert(device.clone())),
                Err(error) => told = Err(error),
            }
        }
        if !devices.is_empty() {
            let maps = maps.iter().map(|(device, _)| device.clone()).collect();
            self.whole(HostOp::CutDisks { devices: devices.to_vec(), maps }, step).await?;
        }
        told
    }

    async fn reserve(
        &self,
        run: &mut Run<'_>,
        volume: VolumeId,
        step: &Step,
    ) -> Result<(), AttachError> {
        let Desired::Attached(spec) = run.desired else { return Ok(()) };
        let instance = match spec.instance {
            Some(instance) => Some(instance),
            None => self
                .cinder
                .is_service()
                .await
                .map_err(|source| AttachError::Cinder { step: step.to_string(), source })?
                .then(Uuid::new_v4),
        };
        let made_now = run.record.is_none();
        if made_now {
            let multipath = super::plan::wants_map(spec, run.facts.as_ref());
            run.record = Some(Record::new(spec.clone(), run.origin.clone(), multipath));
        }
        // Before Cinder is asked: what may exist there must be known here.
        let asked = self.record(run, |record| {
            if let Some(instance) = instance.filter(|known| !record.instances.contains(known)) {
                record.instances.push(instance);
            }
        });
        if let Err(error) = asked.await {
            if made_now {
                run.record = None;
            }
            return Err(error);
        }
        run.made_record |= made_now;
        match self.cinder.reserve(volume, instance, spec.mode).await {
            Ok(attachment) => {
                let id = attachment.summary.id;
                let recorded =
                    self.record(run, |record| record.reservation = Reservation::Held(id));
                if let Err(error) = recorded.await {
                    // Nobody else knows the id: without a record it would be lost.
                    if let Err(left) = self.cinder.delete(id).await {
                        let why = format!("attachment {id} can't be recorded nor deleted: {left}");
                        run.note(Progress::Warning { what: why });
                    }
                    return Err(error);
                }
                run.attachment =
                    AttachmentView::Known { status: AttachmentStatus::Reserved, info: None };
                Ok(())
            }
            Err(source) => {
                // An earlier request may still come to be: then its record must be there.
                if made_now && source.nothing_was_created() {
                    self.ledger.forget(volume).await?;
                    run.record = None;
                }
                Err(AttachError::Cinder { step: step.to_string(), source })
            }
        }
    }

    async fn update(
        &self,
        run: &mut Run<'_>,
        id: AttachmentId,
        step: &Step,
    ) -> Result<(), AttachError> {
        let (Desired::Attached(spec), Some(facts)) = (run.desired, &run.facts) else {
            return Ok(());
        };
        let mut connector = facts.connector.clone();
        connector.multipath = run.record.as_ref().is_some_and(|record| record.multipath);
        connector.mountpoint = spec.mount_path().map(|path| path.display().to_string());
        // Before 3.54 Cinder takes the mode from here only.
        connector.mode = Some(spec.mode);
        let updated = self.cinder.update(id, &connector).await;
        let updated =
            updated.map_err(|source| AttachError::Cinder { step: step.to_string(), source })?;
        let info = updated
            .connection_info()
            .map_err(|source| AttachError::Connection { step: step.to_string(), source })?;
        // The answer's own status is that of before the update.
        run.attachment = AttachmentView::Known { status: AttachmentStatus::Attaching, info };
        Ok(())
    }

    async fn log_in(
        &self,
        run: &mut Run<'_>,
        targets: &[Target],
        step: &Step,
    ) -> Result<(), AttachError> {
        self.own(targets.iter().map(|target| (target, Ownership::Record))).await?;
        let chap = match &run.attachment {
            AttachmentView::Known { info: Some(info), .. } => info.chap.clone(),
            _ => None,
        };
        let records = HostOp::WriteNodeRecords { targets: targets.to_vec(), chap };
        self.whole(records, step).await?;
        // From here on the time runs within which the login has ended: `logins_ended`.
        self.own(targets.iter().map(|target| (target, Ownership::LoggingIn))).await?;
        let began = Instant::now();
        let applied = self.apply(HostOp::Login { targets: targets.to_vec() }, step).await?;
        if applied.failures.is_empty() {
            self.turns.learn(began.elapsed());
        }
        for (what, error) in applied.failures {
            let why = chain(&error);
            run.note(Progress::Warning { what: format!("no login to {what}: {why}") });
            // By the operation's contract `what` names the target as the step did.
            if let Some(target) = targets.iter().find(|target| target.to_string() == what) {
                run.attempt.failed_logins.insert(target.clone(), why);
            }
        }
        self.own_sessions(targets, step).await
    }

    /// iscsid goes on with a login when the attachd that asked for it is killed. Before it ends, its
    /// session can't be seen: a logout would miss it, and a login is told that it is there already.
    pub(super) async fn logins_ended(
        &self,
        targets: &[Target],
        step: &Step,
    ) -> Result<(), AttachError> {
        let open = self.ledger.open_logins(targets).await?;
        let Some(youngest) = open.values().min() else { return Ok(()) };
        let until = Instant::now() + LoginLimits::default().overall().saturating_sub(*youngest);
        let targets = open.keys().cloned().collect();
        loop {
            let seen = self.host.observe_targets(&targets).await;
            let host =
                seen.map_err(|source| AttachError::Host { step: step.to_string(), source })?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || open.keys().all(|target| host.session(target).is_some()) {
                return Ok(());
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }

    /// A session that somebody makes after ours is gone looks the same but for its number.
    async fn own_sessions(&self, targets: &[Target], step: &Step) -> Result<(), AttachError> {
        let seen = self.host.observe_targets(&targets.iter().cloned().collect()).await;
        let host = seen.map_err(|source| AttachError::Host { step: step.to_string(), source })?;
        let made = |target| {
            let session = host.session(target);
            session.map_or(Ownership::Record, |session| Ownership::Session(session.sid))
        };
        self.own(targets.iter().map(|target| (target, made(target)))).await
    }

    /// All at once: each is a write that waits for the disk.
    async fn own<'a>(
        &self,
        targets: impl Iterator<Item = (&'a Target, Ownership)>,
    ) -> Result<(), AttachError> {
        let marks = targets.map(|(target, ownership)| self.ledger.own_target(target, ownership));
        try_join_all(marks).await?;
        Ok(())
    }
}

fn discovery_chap(view: &AttachmentView) -> Option<Chap> {
    match view {
        AttachmentView::Known { info: Some(info), .. } => info.discovery_chap.clone(),
        _ => None,
    }
}

fn holds(filesystem: Filesystem) -> Contents {
    Contents::Filesystem { name: filesystem.name().to_owned() }
}
