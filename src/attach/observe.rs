//! What the plan looks at, gathered.

use std::{sync::Arc, time::Duration};

use futures::future::{OptionFuture, join};
use tokio::time::timeout;
use tracing::Span;

use super::{
    AttachError, AttachmentView, Attempt, Desired, Engine, Observed, Origin, Others, OwnedTargets,
    Progress, Record, Refusal, Reservation, engine::Run, error::chain,
};
use crate::{
    cinder::BlockStorage,
    host::{Host, HostError},
    model::{AttachmentId, HostState, VolumeId},
};

/// How long a detach waits for Cinder to say whether it still has the attachment.
const ASK_LIMIT: Duration = Duration::from_secs(10);

fn no_look(source: HostError) -> AttachError {
    AttachError::Host { step: "look at the node's devices".to_owned(), source }
}

impl<H: Host, C: BlockStorage> Engine<H, C> {
    pub(super) async fn begin<'a>(
        &self,
        desired: &'a Desired,
        volume_id: VolumeId,
        origin: &'a Origin,
        progress: &'a (dyn Fn(Progress) + Sync),
        caller: Span,
    ) -> Result<Run<'a>, AttachError> {
        let record = self.ledger.load(volume_id).await?;
        if let Some(record) = &record
            && &record.origin != origin
        {
            let owner = record.origin.to_string();
            return Err(AttachError::OwnedByOther { volume: volume_id, owner });
        }
        let mut run = Run {
            desired,
            volume_id,
            origin,
            record,
            facts: None,
            volume: None,
            attachment: AttachmentView::Unknown,
            attachments: Vec::new(),
            others: self.others(volume_id).await?,
            attempt: Attempt::default(),
            made_record: false,
            progress,
            caller,
        };
        run.name_attachment();
        let facts =
            OptionFuture::from(matches!(desired, Desired::Attached(_)).then(|| self.host.facts()));
        let (asked, facts) = join(self.ask_cinder(&mut run), facts).await;
        asked?;
        if let Some(facts) = facts {
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
        let resizing = matches!(run.desired, Desired::Resized { .. });
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
            Some((Reservation::Held(id), completed)) if attaching || resizing => {
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
                if resizing || !completed || run.attachment == AttachmentView::Gone {
                    run.volume = self
                        .cinder
                        .volume(run.volume_id)
                        .await
                        .map_err(cinder("look up volume"))?;
                }
            }
            // Cinder may export the volume, and where to was never recorded.
            Some((Reservation::Held(id), _))
                if run.record.as_ref().is_some_and(|record| record.paths.is_empty()) =>
            {
                let shown =
                    self.cinder.attachment(id).await.map_err(cinder("show the attachment of"))?;
                run.attachment = match shown {
                    None => AttachmentView::Gone,
                    // What can't be understood was never used.
                    Some(attachment) => AttachmentView::Known {
                        info: attachment.connection_info().ok().flatten(),
                        status: attachment.summary.status,
                    },
                };
            }
            Some((Reservation::Held(id), _)) => {
                let force = matches!(run.desired, Desired::Detached { force: true });
                if self.is_gone(id).await {
                    // Of another project's Cinder says the same as of what was never there. While it can't
                    // be told, nothing is written, and nothing given up.
                    let visible = force || self.is_visible(run.volume_id).await?;
                    if !visible {
                        let (attachment, volume) = (id, run.volume_id);
                        return Err(Refusal::NothingVisible { attachment, volume }.into());
                    }
                    run.attachment = AttachmentView::Gone;
                }
            }
        }
        Ok(())
    }

    /// Whether Cinder answers that it has a record's attachment no more.
    pub async fn was_taken_away(&self, record: &Record) -> bool {
        match record.attachment() {
            Some(id) => {
                self.is_gone(id).await
                    && self.is_visible(record.spec.volume).await.is_ok_and(|visible| visible)
            }
            None => false,
        }
    }

    /// Whether Cinder has an attachment no more: then this node must not write another byte, and the
    /// deletion would tell it too late. A detach doesn't depend on the answer.
    async fn is_gone(&self, id: AttachmentId) -> bool {
        match timeout(ASK_LIMIT, self.cinder.attachment(id)).await {
            Ok(Ok(shown)) => shown.is_none(),
            Ok(Err(error)) => {
                tracing::warn!(attachment = %id, "can't ask Cinder before the detach: {}", chain(&error));
                false
            }
            Err(_) => {
                let seconds = ASK_LIMIT.as_secs();
                tracing::warn!(attachment = %id, "Cinder didn't answer before the detach in {seconds} s");
                false
            }
        }
    }

    /// Whether Cinder shows us the volume.
    async fn is_visible(&self, id: VolumeId) -> Result<bool, AttachError> {
        let shown = self.cinder.volume(id).await;
        let shown = shown.map_err(|source| AttachError::Cinder {
            step: format!("look up volume {id}"),
            source,
        })?;
        Ok(shown.is_some())
    }

    /// What the kernel shows.
    pub(super) async fn look(&self) -> Result<Arc<HostState>, AttachError> {
        self.host.observe().await.map_err(no_look)
    }

    /// What the kernel shows of a run's targets, and of all others a moment ago.
    pub(super) async fn look_for(&self, run: &Run<'_>) -> Result<Arc<HostState>, AttachError> {
        self.host.observe_targets(&run.targets()).await.map_err(no_look)
    }

    pub(super) async fn observe(
        &self,
        run: &mut Run<'_>,
        host: Arc<HostState>,
    ) -> Result<Observed, AttachError> {
        let failed =
            |source| AttachError::Host { step: "look at the mount path".to_owned(), source };
        let mount_target = match run.desired {
            Desired::Attached(spec) => match spec.mount_path() {
                Some(path) if host.mount_at(path).is_none() => {
                    let seen = self.host.mount_target(path).await;
                    Some(seen.map_err(failed)?)
                }
                _ => None,
            },
            Desired::Resized { .. } | Desired::Detached { .. } => None,
        };
        let owned_targets = match run.desired {
            Desired::Attached(_) | Desired::Resized { .. } => OwnedTargets::default(),
            Desired::Detached { .. } => self.ledger.owned_among(run.targets()).await?,
        };
        Ok(Observed {
            facts: run.facts.clone(),
            host,
            volume: run.volume.clone(),
            attachment: run.attachment.clone(),
            attachments: run.attachments.clone(),
            mount_target,
            owned_targets,
            others: Arc::clone(&run.others),
            attempt: run.attempt.clone(),
        })
    }

    /// The other volumes' records.
    pub(super) async fn others(&self, volume: VolumeId) -> Result<Arc<Others>, AttachError> {
        let (mut records, mut unreadable) = (Vec::new(), false);
        for record in self.ledger.records().await? {
            match record {
                Ok(record) if record.spec.volume == volume => {}
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!("{error}");
                    unreadable = true;
                }
            }
        }
        Ok(Arc::new(Others { records: records.into(), unreadable }))
    }
}
