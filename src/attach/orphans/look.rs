//! What orphans are judged by, gathered. Changes nothing.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use tokio::time::timeout;

use super::{InCinder, Scene, Standing, Stranger};
use crate::{
    attach::{Ledger, LedgerError, Record, Records, error::chain},
    cinder::{AttachmentStatus, BlockStorage, Client, ListQuery},
    host::{Host as _, HostError, LinuxHost, exec::Executor},
    model::{AttachmentId, VolumeId},
};

/// How many questions to Cinder go on at once.
const AT_ONCE: usize = 8;

/// For all questions about other attachments: each volume of the project that the ledger doesn't know is
/// one.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// For the questions about one ledger entry.
const ASK_ONE_LIMIT: Duration = Duration::from_secs(10);

/// The ledger or the node can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The node.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl Scene {
    /// Looks at the ledger, the node and, where there is a client, Cinder. Without Cinder's word, what it
    /// would decide is unknown.
    ///
    /// # Errors
    /// The ledger or the node can't be read.
    pub async fn look<E: Executor>(
        ledger: &Ledger,
        host: &LinuxHost<E>,
        cinder: Option<&Client>,
    ) -> Result<Self, LookError> {
        // The order counts: what is begun meanwhile is in the ledger before anything comes of it, and
        // what is taken away leaves the ledger last.
        let (before, _) = sorted(ledger.records().await?);
        let mut scene = Self { before, ..Self::default() };
        let known: BTreeSet<AttachmentId> =
            scene.before.iter().filter_map(Record::attachment).collect();
        let mut answers = cinder;
        match cinder {
            None => scene.unknown.push("Cinder was not asked".to_owned()),
            Some(cinder) => {
                let node = host.node_name();
                match timeout(ASK_LIMIT, strangers(cinder, &node, &known)).await {
                    Ok(Ok((strangers, untold))) => {
                        scene.strangers = strangers;
                        scene.unknown.extend(untold);
                    }
                    Ok(Err(why)) => {
                        // It need not be asked for each volume again.
                        answers = None;
                        scene.unknown.push(format!("what Cinder has of this node: {why}"));
                    }
                    Err(_) => scene.unknown.push(format!(
                        "which other attachments Cinder has for this node: it did not tell in {} s",
                        ASK_LIMIT.as_secs()
                    )),
                }
            }
        }
        scene.host = Arc::unwrap_or_clone(host.observe().await?);
        scene.owned = ledger.owned_targets().await?;
        match host.kept_records().await {
            Ok(kept) => scene.kept = kept,
            Err(error) => scene.unknown.push(format!("the node records: {}", chain(&error))),
        }
        let (records, unreadable) = sorted(ledger.records().await?);
        scene.unreadable = unreadable;
        let standings = records.into_iter().map(|record| stand(ledger, answers, record));
        let mut standings = stream::iter(standings).buffered(AT_ONCE);
        while let Some((standing, why)) = standings.next().await {
            scene.records.push(standing?);
            scene.unknown.extend(why);
        }
        Ok(scene)
    }
}

fn sorted(all: Records) -> (Vec<Record>, Vec<String>) {
    let (mut records, mut unreadable) = (Vec::new(), Vec::new());
    for record in all {
        match record {
            Ok(record) => records.push(Arc::unwrap_or_clone(record)),
            Err(error) => unreadable.push(error.to_string()),
        }
    }
    (records, unreadable)
}

/// How a record stands, and why Cinder's side of it is unknown.
async fn stand(
    ledger: &Ledger,
    cinder: Option<&Client>,
    record: Record,
) -> (Result<Standing, LedgerError>, Option<String>) {
    let volume = record.spec.volume;
    let (asked, why) = match cinder {
        None => (InCinder::Unknown, None),
        Some(cinder) => {
            let answer = match timeout(ASK_ONE_LIMIT, ask(cinder, &record)).await {
                Ok(Ok(InCinder::Unknown)) => {
                    Err("Cinder shows neither it nor its attachment; is it another project's?"
                        .to_owned())
                }
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(chain(&error)),
                Err(_) => Err(format!("no answer of Cinder in {} s", ASK_ONE_LIMIT.as_secs())),
            };
            match answer {
                Ok(answer) => (answer, None),
                Err(why) => (InCinder::Unknown, Some(format!("volume {volume}: {why}"))),
            }
        }
    };
    // Whoever worked on it when it was read may have ended since.
    let at_work = async {
        Ok(ledger.is_locked(volume).await? || ledger.load(volume).await?.as_ref() != Some(&record))
    };
    let at_work = at_work.await;
    (at_work.map(|at_work| Standing { record, cinder: asked, at_work }), why)
}

/// Whether Cinder has what a record stands for.
pub(super) async fn ask<C: BlockStorage>(
    cinder: &C,
    record: &Record,
) -> Result<InCinder, crate::cinder::CinderError> {
    let volume = record.spec.volume;
    Ok(match record.attachment() {
        None => cinder.volume(volume).await.map(|_| InCinder::There)?,
        Some(id) if cinder.attachment(id).await?.is_some() => InCinder::There,
        // Of another project Cinder says the same as of what was never there.
        Some(_) if cinder.volume(volume).await?.is_some() => InCinder::Gone,
        Some(_) => InCinder::Unknown,
    })
}

/// Attachments that Cinder has for a node beside the known ones, and what it doesn't tell of them.
/// Cinder can't be asked by node: only a volume shows on which node its attachments are.
async fn strangers(
    cinder: &Client,
    node: &str,
    known: &BTreeSet<AttachmentId>,
) -> Result<(Vec<Stranger>, Option<String>), String> {
    let words = |error: crate::cinder::CinderError| chain(&error);
    let all = cinder.list(&ListQuery::default()).await.map_err(words)?;
    let volumes: BTreeSet<VolumeId> = all
        .iter()
        .filter(|one| !known.contains(&one.id) && one.status != AttachmentStatus::Detached)
        .map(|one| one.volume_id)
        .collect();
    let mut shown =
        stream::iter(volumes).map(|volume| cinder.volume(volume)).buffer_unordered(AT_ONCE);
    let (mut found, mut untold) = (Vec::new(), 0_usize);
    while let Some(volume) = shown.next().await {
        let Some(volume) = volume.map_err(words)? else { continue };
        for one in volume.attachments.iter().filter(|one| !known.contains(&one.attachment_id)) {
            match one.host_name.as_deref() {
                Some(host) if host == node => {
                    let attachment = cinder.attachment(one.attachment_id).await.map_err(words)?;
                    let Some(attachment) = attachment else { continue };
                    let info = attachment.connection_info().ok().flatten();
                    found.push(Stranger {
                        attachment: one.attachment_id,
                        volume: volume.id,
                        paths: info.map(|info| info.paths).unwrap_or_default(),
                    });
                }
                Some(_) => {}
                None => untold += 1,
            }
        }
    }
    let untold = (untold > 0)
        .then(|| format!("Cinder does not tell on which node {untold} other attachments are"));
    Ok((found, untold))
}
