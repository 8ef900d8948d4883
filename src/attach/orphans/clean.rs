//! Taking orphans away: the detach's own steps, under the detach's own locks.

use std::collections::BTreeSet;

use tokio::{sync::watch, time::Instant};
use tracing::Span;

use super::{AtTarget, Freed, InCinder, Remedy, at_target, look::ask, of_record};
use crate::{
    attach::{
        AttachError, AttachmentView, Desired, Engine, Origin, Progress, Step,
        engine::{as_one_run, unless_stopped},
    },
    cinder::BlockStorage,
    host::{Host, HostOp},
    model::{Target, VolumeId},
};

/// What became of an orphan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cleaned {
    /// It is gone.
    Gone,
    /// Under its lock it was seen to be no orphan, or none that can be taken.
    Left {
        /// Why.
        because: String,
    },
}

impl Cleaned {
    fn left(because: impl Into<String>) -> Self {
        Self::Left { because: because.into() }
    }
}

impl<H: Host, C: BlockStorage> Engine<H, C> {
    /// Takes one orphan away. What it was judged by may have changed since: it is judged anew under the
    /// lock that whoever could change it needs too.
    ///
    /// # Errors
    /// The first thing that stops it.
    pub async fn clean(
        &self,
        remedy: &Remedy,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &watch::Receiver<bool>,
    ) -> Result<Cleaned, AttachError> {
        match remedy {
            Remedy::Detach(volume) => self.clean_volume(*volume, progress, stop).await,
            Remedy::LogOut(target) => self.clean_target(target, progress, stop).await,
        }
    }

    async fn clean_volume(
        &self,
        volume: VolumeId,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &watch::Receiver<bool>,
    ) -> Result<Cleaned, AttachError> {
        if self.ledger.is_locked(volume).await? {
            return Ok(Cleaned::left("another attachd works on the volume"));
        }
        let _volume_lock = self.lock_volume(volume, stop).await?;
        let Some(record) = self.ledger.load(volume).await? else {
            return Ok(Cleaned::left("its ledger entry is gone"));
        };
        let asked = ask(&self.cinder, &record).await.map_err(|source| AttachError::Cinder {
            step: format!("look up volume {volume}"),
            source,
        })?;
        let host = self.look().await?;
        match of_record(&record, asked, &host).map(|orphan| orphan.freed) {
            Some(Freed::ByCleaning(_)) => {}
            Some(Freed::ByHand { because, .. }) => return Ok(Cleaned::left(because)),
            None => return Ok(Cleaned::left("it is no orphan any more")),
        }
        let desired = Desired::Detached { force: false };
        let (origin, caller) = (Origin::CommandLine, Span::current());
        let mut run = self.begin(&desired, volume, &origin, progress, caller).await?;
        if run.attachment == AttachmentView::Gone && asked != InCinder::Gone {
            return Ok(Cleaned::left("its attachment went away in Cinder just now"));
        }
        let work = async |_| self.drive(&mut run, stop).await;
        as_one_run(&desired, volume, &origin, work).await?;
        Ok(Cleaned::Gone)
    }

    async fn clean_target(
        &self,
        target: &Target,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &watch::Receiver<bool>,
    ) -> Result<Cleaned, AttachError> {
        let targets = BTreeSet::from([target.clone()]);
        let logout = Step::LogOut { targets: vec![target.clone()] };
        let turn = self.ledger.lock_targets(&targets);
        let _target_lock = unless_stopped(stop, || logout.to_string(), turn).await??;
        for record in self.ledger.records().await? {
            match record {
                Ok(record) if record.targets().contains(target) => {
                    return Ok(Cleaned::left(format!("volume {} needs it", record.spec.volume)));
                }
                Ok(_) => {}
                Err(_) => {
                    return Ok(Cleaned::left(
                        "a ledger entry can't be read, and may name the target",
                    ));
                }
            }
        }
        // A login that outlived its attachd may still bring a session.
        self.logins_ended(std::slice::from_ref(target), &logout).await?;
        let owned = self.ledger.owned_targets().await?;
        match at_target(target, &owned, &*self.look().await?) {
            AtTarget::Nothing | AtTarget::Idle => {}
            AtTarget::Carries(disks) => {
                return Ok(Cleaned::left(format!("it carries {}", disks.join(", "))));
            }
            AtTarget::Foreign => {
                return Ok(Cleaned::left("a session that attachd did not make goes there"));
            }
        }
        let (phase, what) = (logout.phase(), logout.to_string());
        let why = "no ledger entry names the target".to_owned();
        progress(Progress::Started { phase, what: what.clone(), why });
        let begin = Instant::now();
        let result = self.whole(HostOp::Logout { targets: vec![target.clone()] }, &logout).await;
        let took = begin.elapsed();
        progress(match &result {
            Ok(()) => Progress::Done { phase, what, took },
            Err(_) => Progress::Failed { phase, what, took },
        });
        result?;
        // A mark without its session would make the next one attachd's.
        let owned = self.ledger.owned_targets().await?;
        if at_target(target, &owned, &*self.look().await?) != AtTarget::Nothing {
            return Ok(Cleaned::left("it was logged out of, and a session is there"));
        }
        self.ledger.disown_target(target).await?;
        Ok(Cleaned::Gone)
    }
}
