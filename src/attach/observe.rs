//! What the plan looks at, gathered.

use super::{
    AttachError, AttachmentView, Attempt, Desired, Engine, Observed, Origin, Others, OwnedTargets,
    Progress, Reservation, engine::Run,
};
use crate::{
    cinder::BlockStorage,
    host::{Host, HostError},
    model::VolumeId,
};

impl<H: Host, C: BlockStorage> Engine<H, C> {
    pub(super) async fn begin<'a>(
        &self,
        desired: &'a Desired,
        volume_id: VolumeId,
        origin: &'a Origin,
        progress: &'a (dyn Fn(Progress) + Sync),
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
        };
        run.name_attachment();
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
            // The deletion itself will tell.
            Some((Reservation::Held(_), _)) => {}
        }
        Ok(())
    }

    pub(super) async fn observe(&self, run: &mut Run<'_>) -> Result<Observed, AttachError> {
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
        let owned_targets = match run.desired {
            Desired::Attached(_) => OwnedTargets::default(),
            Desired::Detached => self.ledger.owned_targets().await?,
        };
        Ok(Observed {
            facts: run.facts.clone(),
            host,
            volume: run.volume.clone(),
            attachment: run.attachment.clone(),
            attachments: run.attachments.clone(),
            mount_target,
            owned_targets,
            others: run.others.clone(),
            attempt: run.attempt.clone(),
        })
    }

    /// The other volumes' records.
    pub(super) async fn others(&self, volume: VolumeId) -> Result<Others, AttachError> {
        let mut others = Others::default();
        for record in self.ledger.records().await? {
            match record {
                Ok(record) if record.spec.volume == volume => {}
                Ok(record) => others.records.push(record),
                Err(error) => {
                    tracing::warn!("{error}");
                    others.unreadable = true;
                }
            }
        }
        Ok(others)
    }
}
