//! Nodes that are off: their requests are told so, and those that are deleted give their volume back.
//!
//! An agent detaches its own node's volumes; where the node is off, nobody does, and a deleted request
//! would wait for it for ever. Only an administrator can say that a node is off, as Kubernetes has it
//! for its own volumes: by the taint `node.kubernetes.io/out-of-service`.
//!
//! ```text
//!   Nodes (their taints) ──┐                  ┌─► status: NodeOutOfService
//!                          ├─► pass, again ───┤
//!   VolumeAttachRequests ──┘   and again      └─► of a deleted one: attachment in Cinder, then finalizer
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt,
    api::ApiResource,
    core::{NotUsed, Object},
    runtime::{WatchStreamExt as _, events::EventType, watcher},
};
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    ASK_AGAIN, CHECK, Seen,
    api::{self, Cluster, Identity, call},
    stopped,
    subject::is_held,
};
use crate::{
    cinder::{BlockStorage, CinderError},
    crd::{VolumeAttachRequest, VolumeAttachRequestSpec},
    health::{Heartbeat, Readiness},
    model::{AttachmentId, Retry, VolumeId},
    projection,
    requests::{BEAT, Refused},
};

/// By which an administrator states that a node is off.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// How often all is looked at where nothing happens.
const LOOK: Duration = BEAT;

/// The first pause after something failed; doubled each time, up to [`LOOK`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Who says it, in events.
const REPORTER: &str = "evacuate";

/// A Node without all that isn't looked at.
type SlimNode = Object<Taints, NotUsed>;

#[derive(Debug, Clone, Default, Deserialize)]
struct Taints {
    #[serde(default)]
    taints: Vec<Taint>,
}

#[derive(Debug, Clone, Deserialize)]
struct Taint {
    key: String,
}

/// Objects of a kind as the watch has them; `None` until all were listed once.
struct Known<T> {
    listing: BTreeMap<String, T>,
    all: Option<BTreeMap<String, T>>,
    /// Why it isn't watched.
    trouble: Option<String>,
}

impl<T: kube::Resource> Known<T> {
    fn new() -> Self {
        Self { listing: BTreeMap::new(), all: None, trouble: None }
    }

    /// What the watch said; whether it goes on.
    fn heard(
        &mut self,
        what: &str,
        event: Result<Option<watcher::Event<T>>, watcher::Error>,
    ) -> bool {
        self.trouble = event
            .as_ref()
            .err()
            .map(|error| format!("can't watch the {what}: {}", api::chain(error)));
        match event {
            Ok(Some(event)) => self.seen(event),
            Ok(None) => return false,
            // It waits, longer each time, and goes on by itself.
            Err(_) => {}
        }
        true
    }

    /// Whether all of them are known, and what becomes of them.
    fn state(&self, what: &str) -> Result<(), String> {
        match (&self.trouble, &self.all) {
            (Some(trouble), _) => Err(trouble.clone()),
            (None, None) => Err(format!("the {what} are not listed yet")),
            (None, Some(_)) => Ok(()),
        }
    }

    /// It was listed once, and there was an error since.
    fn lost_sight(&self) -> bool {
        self.all.is_some() && self.trouble.is_some()
    }

    fn seen(&mut self, event: watcher::Event<T>) {
        match event {
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(object) => {
                self.listing.insert(object.name_any(), object);
            }
            watcher::Event::InitDone => self.all = Some(std::mem::take(&mut self.listing)),
            watcher::Event::Apply(object) => {
                self.all.get_or_insert_default().insert(object.name_any(), object);
            }
            watcher::Event::Delete(object) => {
                self.all.get_or_insert_default().remove(&object.name_any());
            }
        }
    }
}

/// Whose attachment a request has.
enum Holding {
    /// None is left.
    Nothing,
    /// This one.
    Attachment(AttachmentId),
    /// It can't be told.
    Unsure(String),
}

/// Frees the volumes of nodes that an administrator declared to be off.
pub struct Evacuation<C> {
    cinder: C,
    cluster: Cluster,
    nodes: Known<SlimNode>,
    requests: Known<Seen>,
    /// Requests (by UID) that were told so since their node is out of service. An agent that lives and
    /// says something else has the last word.
    told: BTreeSet<String>,
    readiness: Readiness,
    heartbeat: Heartbeat,
}

impl<C: BlockStorage> Evacuation<C> {
    /// Nothing happens yet.
    pub fn new(cinder: C, client: Client, readiness: Readiness, heartbeat: Heartbeat) -> Self {
        let cluster = Cluster::new(client, REPORTER);
        let (nodes, requests, told) = (Known::new(), Known::new(), BTreeSet::new());
        Self { cinder, cluster, nodes, requests, told, readiness, heartbeat }
    }

    /// Serves until asked to stop. Two that serve at once do the same twice, which is no harm.
    pub async fn serve(mut self, mut stop: watch::Receiver<bool>) {
        let config = || watcher::Config { page_size: None, ..watcher::Config::default() };
        let mut nodes = watcher(self.nodes_api(), config()).default_backoff().boxed();
        let all: Api<Seen> = Api::all(self.cluster.client());
        let mut requests = watcher(all, config()).default_backoff().boxed();
        let mut pause = FIRST_PAUSE;
        let mut again = Instant::now() + LOOK;
        let mut ask = Instant::now();
        let heartbeat = self.heartbeat.clone();
        loop {
            heartbeat.beat();
            let lost_sight = self.nodes.lost_sight() || self.requests.lost_sight();
            if !lost_sight {
                ask = Instant::now() + ASK_AGAIN;
            }
            let news = tokio::select! {
                () = stopped(&mut stop) => return,
                () = sleep_until(again) => true,
                // A watch that goes on after an error says nothing until something changes.
                () = sleep_until(ask), if lost_sight => {
                    if self.cluster.answers().await {
                        (self.nodes.trouble, self.requests.trouble) = (None, None);
                    }
                    ask = Instant::now() + ASK_AGAIN;
                    true
                }
                event = nodes.try_next() => self.nodes.heard("nodes", event),
                event = requests.try_next() => self.requests.heard("requests", event),
            };
            if !news {
                return;
            }
            let watched = self.nodes.state("nodes").and(self.requests.state("requests"));
            self.readiness.set(CHECK, watched);
            let well = tokio::select! {
                () = stopped(&mut stop) => return,
                well = beating(&heartbeat, self.pass()) => well,
            };
            if well {
                pause = FIRST_PAUSE;
                again = Instant::now() + LOOK;
            } else {
                again = Instant::now() + pause;
                pause = (pause * 2).min(LOOK);
            }
        }
    }

    fn nodes_api(&self) -> Api<SlimNode> {
        Api::all_with(self.cluster.client(), &ApiResource::erase::<Node>(&()))
    }

    /// All requests of nodes that are out of service; says whether all went well.
    async fn pass(&mut self) -> bool {
        let (Some(nodes), Some(requests)) = (&self.nodes.all, &self.requests.all) else {
            return true;
        };
        let of_lost_node = |request: &&Seen| {
            let spec = request.0.as_ref().map(|request| &request.spec);
            spec.is_ok_and(|spec| nodes.get(&spec.node_name).is_some_and(is_out_of_service))
        };
        let affected: Vec<Seen> = requests.values().filter(of_lost_node).cloned().collect();
        let uids: BTreeSet<String> = affected.iter().filter_map(ResourceExt::uid).collect();
        self.told.retain(|uid| uids.contains(uid));
        let mut well = true;
        for request in affected {
            if let Err(refused) = self.one(&request).await {
                let name = request.name_any();
                tracing::error!(request = %name, reason = refused.reason, "{refused}");
                well = false;
            }
        }
        well
    }

    async fn one(&mut self, seen: &Seen) -> Result<(), Refused> {
        let Ok(request) = &seen.0 else { return Ok(()) };
        let node = &request.spec.node_name;
        let identity = Identity { name: seen.name_any(), uid: seen.uid().unwrap_or_default() };
        if !self.told.contains(&identity.uid) {
            let message = format!(
                "node {node} is out of service (taint {OUT_OF_SERVICE}): whether the volume is in use there can't be known"
            );
            self.tell(&identity, request, &message).await?;
            self.told.insert(identity.uid.clone());
        }
        if seen.0.as_ref().is_ok_and(|request| request.metadata.deletion_timestamp.is_none())
            || !is_held(seen)
        {
            return Ok(());
        }
        // What the watches told may be old.
        let now = call("look at the node", self.nodes_api().get_opt(node)).await?;
        if !now.as_ref().is_some_and(is_out_of_service) {
            return Ok(());
        }
        let all: Api<Seen> = Api::all(self.cluster.client());
        let Some(now) = call("look at the request", all.get_opt(&identity.name)).await? else {
            return Ok(());
        };
        let Ok(fresh) = &now.0 else { return Ok(()) };
        let same = fresh.metadata.uid.as_deref() == Some(&identity.uid)
            && fresh.metadata.deletion_timestamp.is_some()
            && fresh.spec.node_name == *node;
        if !same || !is_held(&now) {
            return Ok(());
        }
        self.evacuate(&identity, fresh).await
    }

    async fn evacuate(
        &self,
        identity: &Identity,
        request: &VolumeAttachRequest,
    ) -> Result<(), Refused> {
        let node = &request.spec.node_name;
        let what = match self.holding(request).await? {
            Holding::Nothing => {
                format!("node {node} is out of service; Cinder has no attachment of it")
            }
            Holding::Attachment(id) => {
                let done = self.cinder.delete(id).await;
                done.map_err(|error| unanswered(&format!("delete attachment {id}"), &error))?;
                format!("node {node} is out of service; its attachment {id} was deleted in Cinder")
            }
            Holding::Unsure(why) => {
                self.tell(identity, request, &why).await?;
                return Err(Refused {
                    reason: projection::NODE_OUT_OF_SERVICE,
                    message: why,
                    retry: Retry::Backoff,
                });
            }
        };
        tracing::warn!(request = %identity.name, "{what}; the request goes");
        self.cluster.event(identity, EventType::Warning, "Evacuate", "Evacuated", &what).await;
        self.cluster.let_go(identity).await
    }

    /// The attachment that a request of a lost node has: by its status, else by Cinder's list.
    async fn holding(&self, request: &VolumeAttachRequest) -> Result<Holding, Refused> {
        let (volume, recorded) = match ids(&request.spec, request) {
            Ok(ids) => ids,
            Err(why) => return Ok(Holding::Unsure(why)),
        };
        let node = &request.spec.node_name;
        let shown = self.cinder.volume(volume).await;
        let shown = shown.map_err(|error| unanswered(&format!("show volume {volume}"), &error))?;
        let uses = shown.map(|shown| shown.attachments).unwrap_or_default();
        let elsewhere = |id| {
            let host = uses.iter().find(|known| known.attachment_id == id)?.host_name.clone()?;
            (host != *node).then_some(host)
        };
        if let Some(id) = recorded {
            let found = self.cinder.attachment(id).await;
            let found =
                found.map_err(|error| unanswered(&format!("show attachment {id}"), &error))?;
            return Ok(match found {
                None => Holding::Nothing,
                Some(found) if found.summary.volume_id != volume => Holding::Unsure(format!(
                    "attachment {id}, which the request's status names, is not of volume {volume}: delete the right one in Cinder, and take the finalizer {} off",
                    super::FINALIZER
                )),
                Some(_) => match elsewhere(id) {
                    Some(host) => Holding::Unsure(format!(
                        "attachment {id}, which the request's status names, is of host {host:?} in Cinder, not of {node}"
                    )),
                    None => Holding::Attachment(id),
                },
            });
        }
        let all = self.cinder.attachments_of(volume).await;
        let all =
            all.map_err(|error| unanswered(&format!("list attachments of {volume}"), &error))?;
        let of_node: Vec<AttachmentId> = uses
            .iter()
            .filter(|known| known.host_name.as_ref() == Some(node))
            .map(|known| known.attachment_id)
            .collect();
        Ok(match of_node.as_slice() {
            [id] => Holding::Attachment(*id),
            [] if all.iter().all(|found| elsewhere(found.id).is_some()) => Holding::Nothing,
            _ => {
                let ids: Vec<String> = all.iter().map(|found| found.id.to_string()).collect();
                Holding::Unsure(format!(
                    "which attachment of volume {volume} is that of node {node} can't be told ({}): delete it in Cinder, and take the finalizer {} off the request",
                    ids.join(", "),
                    super::FINALIZER
                ))
            }
        })
    }

    /// Says in the request's status that its node is out of service.
    async fn tell(
        &self,
        identity: &Identity,
        request: &VolumeAttachRequest,
        message: &str,
    ) -> Result<(), Refused> {
        let before = request.status.as_ref();
        let now = Timestamp::now();
        let generation = request.metadata.generation;
        let status = projection::out_of_service(before, generation, message, now);
        if before == Some(&status) {
            return Ok(());
        }
        self.cluster.status(identity, &status).await?;
        let reason = projection::NODE_OUT_OF_SERVICE;
        self.cluster.event(identity, EventType::Warning, "Evacuate", reason, message).await;
        Ok(())
    }
}

impl<C> std::fmt::Debug for Evacuation<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evacuation").field("told", &self.told).finish_non_exhaustive()
    }
}

/// Beats as long as work goes on whose every call has a time limit of its own.
async fn beating<T>(heartbeat: &Heartbeat, work: impl Future<Output = T>) -> T {
    let mut work = Box::pin(work);
    loop {
        heartbeat.beat();
        if let Ok(done) = timeout(BEAT, &mut work).await {
            return done;
        }
    }
}

fn is_out_of_service(node: &SlimNode) -> bool {
    node.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

fn ids(
    spec: &VolumeAttachRequestSpec,
    request: &VolumeAttachRequest,
) -> Result<(VolumeId, Option<AttachmentId>), String> {
    let volume = spec.volume_id.parse().map_err(|error| format!("spec.volumeID: {error}"))?;
    let named = request.status.as_ref().and_then(|status| status.attachment_id.as_ref());
    let attachment = named.map(|id| id.parse()).transpose();
    Ok((volume, attachment.map_err(|error| format!("status.attachmentID: {error}"))?))
}

fn unanswered(what: &str, error: &CinderError) -> Refused {
    let message = format!("could not {what}: {}", api::chain(error));
    Refused { reason: error.reason(), message, retry: Retry::Backoff }
}
