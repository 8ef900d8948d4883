//! An attached volume, looked after: its status follows what the node shows, and what is missing is
//! brought back.

use std::{collections::BTreeMap, mem, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::Instrument as _;

use super::{
    Subject,
    lookout::Sight,
    worker::{FIRST_PAUSE, Worker},
};
use crate::{
    attach::{
        AttachError, Attached, LEFT_TO_ISCSID, Loss, PathState, Record, Verdict, judge,
        unless_stopped,
    },
    cinder::BlockStorage,
    host::Host,
    metrics::{Operation, RequestGauge, RequestState},
    model::{AttachSpec, Retry, SessionState, Target},
    projection::Standing,
};

/// A path that comes and goes must not storm the API server.
const BETWEEN_NEWS: Duration = Duration::from_secs(2);

/// What is known of an attached volume.
pub(super) struct Care {
    record: Record,
    /// What was seen before is older than what was done.
    since: Instant,
    state: Result<Attached, Loss>,
    /// Why what is missing could not be brought back.
    failure: Option<Failure>,
    /// The state and the failure were told.
    told: bool,
    tell_again: Pause,
    heal: Pause,
    /// Something is missing that an attach may bring back.
    missing: bool,
    /// By the last look since the last try.
    seen: Option<Verdict>,
    /// Sessions that are there and don't work, and until when they are left to iscsid.
    broken: BTreeMap<Target, Instant>,
}

struct Failure {
    reason: &'static str,
    message: String,
    may_pass: bool,
}

/// A pause that grows with each try.
struct Pause {
    length: Duration,
    /// The last try.
    last: Instant,
    /// Time enough, whatever its length.
    over: Instant,
}

impl Pause {
    fn new() -> Self {
        let now = Instant::now();
        Self { length: FIRST_PAUSE, last: now, over: now }
    }

    fn tried(&mut self, longest: Duration) {
        self.last = Instant::now();
        self.over = self.last + self.length;
        self.length = (self.length * 2).min(longest);
    }

    /// What failed may go well now. Who changes all the time is not followed without a pause.
    fn cut_short(&mut self) {
        self.over = self.over.min(self.last + FIRST_PAUSE);
    }
}

impl Care {
    /// `since`: when the attach had ended that gave this, and was told.
    pub(super) fn new(record: Record, mut attached: Attached, since: Instant) -> Self {
        attached.changed = false;
        // On a node that nothing happens to, the first look may be a minute away.
        let failing = attached.paths.iter().filter(|path| path.state == PathState::Failing);
        let broken = failing.map(|path| (path.target.clone(), since + LEFT_TO_ISCSID)).collect();
        Self {
            missing: attached.is_incomplete(&record),
            record,
            since,
            state: Ok(attached),
            failure: None,
            told: true,
            tell_again: Pause::new(),
            heal: Pause { over: since + FIRST_PAUSE, ..Pause::new() },
            seen: None,
            broken,
        }
    }

    fn is_attached(&mut self, mut attached: Attached, since: Instant) {
        attached.changed = false;
        self.missing = attached.is_incomplete(&self.record);
        (self.since, self.seen, self.failure, self.told) = (since, None, None, false);
        self.state = Ok(attached);
    }

    /// What the last logins came to, where there is no session.
    fn refusals(&self) -> BTreeMap<Target, String> {
        let paths = self.state.iter().flat_map(|attached| &attached.paths);
        paths
            .filter_map(|path| match &path.state {
                PathState::NoSession { why: Some(why) } => Some((path.target.clone(), why.clone())),
                _ => None,
            })
            .collect()
    }

    fn see(&mut self, spec: &AttachSpec, sight: &Sight) {
        let targets = self.record.paths.iter().map(|path| &path.target);
        let fails = |target: &&Target| {
            let session = sight.host.session(target);
            session.is_some_and(|session| session.state != SessionState::LoggedIn)
        };
        let known = mem::take(&mut self.broken);
        let until = |target| known.get(target).copied().unwrap_or(sight.began + LEFT_TO_ISCSID);
        self.broken = targets.filter(fails).map(|target| (target.clone(), until(target))).collect();
        let Some(verdict) = judge(spec, &self.record, &sight.host, &self.refusals()) else {
            return;
        };
        if self.seen.as_ref().is_some_and(|seen| *seen != verdict) {
            self.told &= self.failure.take().is_none();
            self.heal.cut_short();
        }
        self.told &= self.state == verdict.state;
        self.state.clone_from(&verdict.state);
        self.missing = verdict.missing;
        if !self.missing {
            self.told &= self.failure.take().is_none();
            self.heal = Pause::new();
        }
        self.seen = Some(verdict);
    }

    fn failed(&mut self, error: &AttachError, since: Instant) {
        self.failure = Some(Failure {
            reason: error.reason(),
            message: error.chain(),
            may_pass: error.retry() != Retry::OnChange,
        });
        (self.since, self.seen, self.told) = (since, None, false);
    }

    /// When something is to be done that no look asks for.
    fn due(&self, healing: bool) -> Option<Instant> {
        let tell = (!self.told).then_some(self.tell_again.over);
        let heal = self.wants_heal(healing).then_some(self.heal.over);
        let reconnect = self.broken.values().min().filter(|_| healing).copied();
        tell.into_iter().chain(heal).chain(reconnect).min()
    }

    /// The sessions that iscsid had its time for, which begins anew.
    fn not_left_to_iscsid(&mut self, again: Duration) -> Vec<Target> {
        let now = Instant::now();
        let due = self.broken.iter_mut().filter(|(_, until)| **until <= now);
        due.map(|(target, until)| {
            *until = now + again;
            target.clone()
        })
        .collect()
    }

    fn wants_heal(&self, healing: bool) -> bool {
        let in_vain = self.failure.as_ref().is_some_and(|failure| !failure.may_pass);
        healing && self.missing && !in_vain
    }

    fn request_state(&self) -> RequestState {
        let usable = self.state.as_ref().is_ok_and(|attached| attached.trouble.is_none());
        let may_pass = self.failure.as_ref().is_none_or(|failure| failure.may_pass);
        if usable && may_pass { RequestState::Attached } else { RequestState::Failed }
    }
}

impl<H: Host, C: BlockStorage, S: Subject> Worker<H, C, S> {
    /// Looks after an attached volume until something else is wished, or it is time to serve the request
    /// again; false where nobody can wish any more.
    pub(super) async fn look_after(
        &mut self,
        spec: &AttachSpec,
        subject: &S,
        over: &watch::Receiver<bool>,
        care: &mut Care,
        again: Option<Instant>,
        standing: &mut RequestGauge,
    ) -> bool {
        loop {
            let due = care.due(self.heal);
            let sight = tokio::select! {
                wished = self.wish.changed() => return wished.is_ok(),
                sight = self.lookout.next(care.since) => Some(sight),
                () = until(due) => None,
                () = until(again) => return true,
            };
            if let Some(sight) = sight {
                care.see(spec, &sight);
            }
            self.tell(subject, care).await;
            if care.wants_heal(self.heal) && care.heal.over <= Instant::now() {
                if care.state.is_err() {
                    standing.set(RequestState::Attaching);
                }
                Box::pin(self.bring_back(spec, subject, over, care)).await;
                self.tell(subject, care).await;
            }
            if self.heal {
                // What an attach can't bring back: the session is there.
                let targets = care.not_left_to_iscsid(self.longest_pause.max(LEFT_TO_ISCSID));
                for said in Box::pin(self.engine.give_back_connections(targets)).await {
                    tracing::warn!("{said}");
                }
            }
            standing.set(care.request_state());
        }
    }

    /// Goes the way of an attach, which does what is missing and nothing else.
    async fn bring_back(
        &self,
        spec: &AttachSpec,
        subject: &S,
        over: &watch::Receiver<bool>,
        care: &mut Care,
    ) {
        let result = self.healed(spec, subject, over).await;
        let ended = Instant::now();
        care.heal.tried(self.longest_pause);
        match result {
            Ok((attached, record)) => {
                if attached.changed {
                    tracing::info!("brought back what was missing, as far as it could be");
                }
                care.record = record.unwrap_or_else(|| care.record.clone());
                care.is_attached(attached, ended);
            }
            // The next wish is there already.
            Err(AttachError::Stopped { .. }) => {}
            Err(error) => {
                let (reason, message) = (error.reason(), error.chain());
                tracing::error!(reason, "could not bring back what is missing: {message}");
                self.metrics.retry(Operation::Heal, reason);
                care.failed(&error, ended);
            }
        }
    }

    async fn healed(
        &self,
        spec: &AttachSpec,
        subject: &S,
        over: &watch::Receiver<bool>,
    ) -> Result<(Attached, Option<Record>), AttachError> {
        let turn = self.lookout.heals.acquire();
        let _permit = unless_stopped(over, || "its turn came".to_owned(), turn).await?;
        let report = |progress| self.log(progress);
        let timer = self.metrics.operation(Operation::Heal);
        let origin = subject.origin();
        let attach = self.engine.attach(spec, &origin, &report, over);
        // The journal tells it from an attach.
        let result = attach.instrument(tracing::trace_span!("heal")).await;
        timer.end(result.as_ref().map(|attached| attached.changed));
        Ok((result?, self.engine.ledger().load(spec.volume).await?))
    }

    /// Says how the volume stands, where that is news. Not cut short: a write that is given up might
    /// still arrive, after later ones.
    async fn tell(&self, subject: &S, care: &mut Care) {
        if care.told || care.tell_again.over > Instant::now() {
            return;
        }
        let told = match (&care.state, &care.failure) {
            (Ok(attached), None) => subject.report(Standing::Attached(attached)).await,
            // What works goes on, though Cinder is away.
            (Ok(attached), Some(failure)) if failure.may_pass => {
                let mut attached = attached.clone();
                let warning = format!("what is missing is not back yet: {}", failure.message);
                attached.warnings.push(warning);
                subject.report(Standing::Attached(&attached)).await
            }
            (Err(_), None) if self.heal && care.missing => subject.report(Standing::Lost).await,
            (Err(loss), None) => {
                let (record, message) = (Some(&care.record), loss.to_string());
                let reason = loss.reason();
                subject.report(Standing::Unfinished { record, reason, message: &message }).await
            }
            (_, Some(Failure { reason, message, .. })) => {
                let record = Some(&care.record);
                subject.report(Standing::Unfinished { record, reason, message }).await
            }
        };
        match told {
            Ok(()) => {
                care.told = true;
                care.tell_again = Pause::new();
                care.tell_again.over += BETWEEN_NEWS;
            }
            Err(refused) => {
                tracing::warn!(reason = refused.reason, "{refused}");
                care.tell_again.tried(self.longest_pause);
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
