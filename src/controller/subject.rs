use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::{Resource as _, ResourceExt as _, runtime::events::EventType};
use tokio::time::{Duration, timeout};

use super::{
    FINALIZER, Seen,
    api::{Cluster, Identity, Uniqueness},
};
use crate::{
    attach::{Origin, Record},
    crd::VolumeAttachRequestStatus,
    model::Retry,
    projection::{self, Standing},
    requests::{End, Refused, Subject},
};

/// The first list of connectors may still be on its way, and an API server that has all agents of a
/// cluster start at once takes its time: nothing is said of it before a call may take no longer.
const COMPARE_LIMIT: Duration = Duration::from_secs(30);

/// A `VolumeAttachRequest` of the cluster, at one generation.
#[derive(Debug, Clone)]
pub(super) struct ClusterRequest {
    cluster: Arc<Cluster>,
    identity: Identity,
    generation: Option<i64>,
    deleting: bool,
    /// Shared by all generations.
    written: Arc<Mutex<Written>>,
}

/// What the API server has of a request. The watch may be behind what this agent wrote.
#[derive(Debug)]
struct Written {
    /// The finalizer.
    held: bool,
    status: Option<VolumeAttachRequestStatus>,
}

impl PartialEq for ClusterRequest {
    /// What is served is the same.
    fn eq(&self, other: &Self) -> bool {
        (&self.identity, self.generation, self.deleting)
            == (&other.identity, other.generation, other.deleting)
    }
}

impl ClusterRequest {
    pub(super) fn new(cluster: &Arc<Cluster>, request: &Seen, known: Option<&Self>) -> Self {
        let identity =
            Identity { name: request.name_any(), uid: request.uid().unwrap_or_default() };
        let known = known.filter(|known| known.identity == identity);
        let written = || {
            let status = request.0.as_ref().ok().and_then(|request| request.status.clone());
            Arc::new(Mutex::new(Written { held: is_held(request), status }))
        };
        Self {
            cluster: Arc::clone(cluster),
            identity,
            generation: request.meta().generation,
            deleting: request.meta().deletion_timestamp.is_some(),
            written: known.map_or_else(written, |known| Arc::clone(&known.written)),
        }
    }

    /// The finalizer is not there, and this agent wrote it or saw it: somebody took it off. It is to be
    /// written again.
    pub(super) fn lost_hold(&self, request: &Seen) -> bool {
        !is_held(request) && std::mem::take(&mut self.written().held)
    }

    /// Somebody took this node for dead, and said so in the status. This agent lives: it is to say its
    /// own again.
    pub(super) fn was_taken_for_dead(&self, request: &Seen) -> bool {
        let status = request.0.as_ref().ok().and_then(|request| request.status.as_ref());
        let Some(status) = status.filter(|status| projection::is_out_of_service(status)) else {
            return false;
        };
        let mut written = self.written();
        let news = written.status.as_ref() != Some(status);
        written.status = Some(status.clone());
        news
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell(&self, standing: Standing<'_>) -> Result<(), Refused> {
        let before = self.written().status.clone();
        let status =
            projection::status(standing, self.generation, before.as_ref(), Timestamp::now());
        if before.as_ref() == Some(&status) {
            return Ok(());
        }
        self.cluster.status(&self.identity, &status).await?;
        self.written().status = Some(status.clone());
        self.announce(before.as_ref(), &status).await;
        Ok(())
    }

    /// An event where the request became usable, or what keeps it from that is another thing now.
    async fn announce(
        &self,
        before: Option<&VolumeAttachRequestStatus>,
        now: &VolumeAttachRequestStatus,
    ) {
        let Some(ready) = projection::ready(now) else { return };
        let word = |condition: &Condition| (condition.status.clone(), condition.reason.clone());
        let same =
            before.and_then(projection::ready).is_some_and(|before| word(before) == word(ready));
        if same || ready.reason == projection::ATTACHING {
            return;
        }
        let action = if self.deleting { "Detach" } else { "Attach" };
        let type_ = match (ready.status.as_str(), ready.reason.as_str()) {
            ("True", projection::ATTACHED) => EventType::Normal,
            _ => EventType::Warning,
        };
        let note = match (&now.device, &now.mount_path) {
            (Some(device), Some(path)) => {
                format!("{}: {} mounted on {path}", ready.message, device.path)
            }
            (Some(device), None) => format!("{}: {}", ready.message, device.path),
            (None, _) => ready.message.clone(),
        };
        self.cluster.event(&self.identity, type_, action, &ready.reason, &note).await;
    }
}

/// Whether the finalizer is there.
pub(super) fn is_held(request: &Seen) -> bool {
    request.finalizers().iter().any(|name| name == FINALIZER)
}

impl Subject for ClusterRequest {
    fn origin(&self) -> Origin {
        Origin::Cluster(self.identity.name.clone())
    }

    async fn admit(&self, record: Option<&Record>) -> Result<(), Refused> {
        // What is attached already stays usable; a second node with the name comes to nothing new.
        if record.is_none() {
            self.own_name().await?;
        }
        let held = self.written().held;
        if !held {
            self.cluster.hold(&self.identity).await?;
            self.written().held = true;
        }
        Ok(())
    }

    async fn report(&self, standing: Standing<'_>) -> Result<(), Refused> {
        // Who reports lasts as long as the request; this is large.
        Box::pin(self.tell(standing)).await
    }

    async fn wants_detach(&self) -> Result<bool, Refused> {
        let defined = self.cluster.is_defined().await?;
        if !defined {
            tracing::warn!(request = %self.identity.name,
                "the definition of VolumeAttachRequest is being deleted, and all requests with it: the volume \
                 stays attached; create the request again, or detach it on this node");
        }
        Ok(defined)
    }

    async fn release(&self, end: &End) -> Result<(), Refused> {
        let (type_, reason, note) = match end {
            End::Detached => (
                EventType::Normal,
                "Detached",
                "nothing of the volume is left on the node".to_owned(),
            ),
            End::GivenUp { why } => {
                let note = format!(
                    "nothing of the volume is left on the node; what was not written to it is given up: {why}"
                );
                (EventType::Warning, "DetachedByForce", note)
            }
            End::Kept => {
                let note = "the volume stays attached: the definition of VolumeAttachRequest is being deleted";
                (EventType::Normal, "Kept", note.to_owned())
            }
        };
        self.cluster.event(&self.identity, type_, "Detach", reason, &note).await;
        self.cluster.let_go(&self.identity).await
    }
}

impl ClusterRequest {
    /// Two nodes with one initiator name would be let in to each other's volumes by every target.
    async fn own_name(&self) -> Result<(), Refused> {
        let mut uniqueness = self.cluster.uniqueness().subscribe();
        let compared = uniqueness.wait_for(|known| *known != Uniqueness::NotCompared);
        let known = match timeout(COMPARE_LIMIT, compared).await {
            Ok(Ok(known)) => known.clone(),
            _ => Uniqueness::NotCompared,
        };
        match known {
            Uniqueness::Unique => Ok(()),
            Uniqueness::SharedWith(nodes) => Err(Refused {
                reason: "DuplicateInitiatorName",
                message: format!(
                    "this node's iSCSI initiator name is also that of {}: give each node its own in \
                     /etc/iscsi/initiatorname.iscsi (iscsi-iname makes one) and restart iscsid",
                    nodes.join(", ")
                ),
                retry: Retry::Backoff,
            }),
            Uniqueness::NotCompared => Err(Refused {
                reason: "NodeConnectorPending",
                message: "this node's initiator name could not be compared with the other nodes' yet: see its NodeConnector"
                    .to_owned(),
                retry: Retry::Backoff,
            }),
        }
    }
}
