//! Requests from the cluster: the agent watches the `VolumeAttachRequest`s of its own node, and only
//! those, and tells the API server what became of them.
//!
//! ```text
//!   watch, filtered by the server ─► workers (crate::requests) ─► status, events, finalizer
//!   facts of the node ─► NodeConnector ─► watch of all with the same initiator name ─► may new requests be served?
//! ```
//!
//! Only a request that is being deleted is detached, never one that merely isn't there any more: a
//! restored etcd, a lost finalizer or a deleted CRD must not pull a volume from under a workload. But
//! what Cinder has no attachment for any more (the node was off, and was evacuated) is not this
//! node's: it goes, before anything new is attached.

mod api;
mod evacuation;
mod node_connector;
mod subject;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

use crate::{
    attach::{Engine, Guard, Origin},
    cinder::BlockStorage,
    crd::VolumeAttachRequest,
    health::Vitals,
    host::Host,
    model::Retry,
    requests::{BEAT, Lookout, Refused, Wanted, Workers},
};
pub use evacuation::{Evacuation, OUT_OF_SERVICE};

use api::Cluster;
use node_connector::NodeConnectors;
use subject::ClusterRequest;

/// The name of the readiness check: the requests are watched.
pub const CHECK: &str = "kubernetes";

/// How often an API server is asked whether it is back.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// After this, readiness tells that the agent waits for another one.
const WAITING: Duration = Duration::from_secs(1);

/// Who writes, as managed fields and events show it.
pub const MANAGER: &str = "attachd";

/// Keeps a request until its volume is detached.
pub const FINALIZER: &str = "attachd.dev/detach";

/// What the controller needs to know.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// The Node object of this node.
    pub node_name: String,
    /// Where requests without a mount path are mounted, each under its name.
    pub mounts_dir: PathBuf,
    /// The longest pause between two tries of one request.
    pub longest_pause: Duration,
    /// Who looks at the node, for all sources of requests.
    pub lookout: Lookout,
    /// What is missing of attached volumes is brought back.
    pub heal: bool,
}

/// Serves the cluster's requests for this node.
pub struct Controller<H, C> {
    engine: Arc<Engine<H, C>>,
    config: ControllerConfig,
    vitals: Vitals,
    cluster: Arc<Cluster>,
    workers: Workers<H, C, ClusterRequest>,
}

type Seen = DeserializeGuard<VolumeAttachRequest>;

impl<H: Host + 'static, C: BlockStorage + 'static> Controller<H, C> {
    /// A controller; nothing happens yet. As many requests are worked on at once as there are permits.
    pub fn new(
        engine: Arc<Engine<H, C>>,
        permits: Arc<Semaphore>,
        client: Client,
        config: ControllerConfig,
        vitals: Vitals,
    ) -> Self {
        let metrics = vitals.metrics.clone();
        let (pause, lookout) = (config.longest_pause, config.lookout.clone());
        let workers =
            Workers::new(Arc::clone(&engine), permits, metrics, pause, lookout, config.heal);
        let cluster = Arc::new(Cluster::new(client, &config.node_name));
        Self { engine, config, vitals, cluster, workers }
    }

    /// Serves until asked to stop; then waits for the steps under way. What is attached stays so. An
    /// API server that is away is waited for.
    pub async fn serve(mut self, stop: watch::Receiver<bool>) {
        let Some(_alone) = self.alone(stop.clone()).await else { return };
        let connectors = NodeConnectors::new(Arc::clone(&self.engine), Arc::clone(&self.cluster));
        let connectors = tokio::spawn(connectors.serve(stop.clone()));
        self.watch(stop).await;
        self.workers.shut_down(&self.vitals.heartbeat).await;
        // It ends by the same word.
        drop(connectors.await);
    }

    /// Waits until no other agent serves the cluster with this ledger. Where a node's agent is replaced,
    /// the old one may still have work: what it knows of a request gets old, and might be meant for one
    /// of the same name that the new agent has attached since.
    async fn alone(&self, mut stop: watch::Receiver<bool>) -> Option<Guard> {
        let locked = async {
            loop {
                match self.engine.ledger().lock_cluster().await {
                    Ok(guard) => return guard,
                    Err(error) => {
                        self.vitals.readiness.set(CHECK, Err(api::chain(&error)));
                        sleep(ASK_AGAIN).await;
                    }
                }
            }
        };
        let waiting = async {
            sleep(WAITING).await;
            let why =
                "another attachd of this node serves the cluster's requests: waiting for its end";
            self.vitals.readiness.set(CHECK, Err(why.to_owned()));
            loop {
                self.vitals.heartbeat.beat();
                sleep(BEAT).await;
            }
        };
        tokio::select! {
            () = stopped(&mut stop) => None,
            guard = locked => Some(guard),
            () = waiting => None,
        }
    }

    async fn watch(&mut self, mut stop: watch::Receiver<bool>) {
        let requests: Api<Seen> = Api::all(self.cluster.client());
        let own = format!("spec.nodeName={}", self.config.node_name);
        let mut events = watcher(requests, selected(&own)).default_backoff().boxed();
        let mut listed = BTreeSet::new();
        // Until the first list is complete, and what was taken away meanwhile is off this node.
        let mut waiting = Some(Vec::new());
        // A watch that goes on after an error says nothing until something changes.
        let mut pause = BEAT;
        loop {
            self.vitals.heartbeat.beat();
            let event = tokio::select! {
                () = stopped(&mut stop) => return,
                () = self.workers.ended() => continue,
                () = sleep(pause) => {
                    if pause == ASK_AGAIN && self.cluster.answers().await {
                        self.vitals.readiness.set(CHECK, Ok(()));
                        pause = BEAT;
                    }
                    continue;
                }
                event = events.try_next() => event,
            };
            pause = if event.is_ok() { BEAT } else { ASK_AGAIN };
            let served = event
                .as_ref()
                .map(drop)
                .map_err(|error| format!("can't watch the requests: {}", api::chain(error)));
            self.vitals.readiness.set(CHECK, served);
            match event {
                Ok(Some(watcher::Event::Init)) => {
                    listed.clear();
                    waiting.iter_mut().for_each(Vec::clear);
                }
                Ok(Some(watcher::Event::InitApply(request))) => {
                    listed.insert(request.name_any());
                    match &mut waiting {
                        Some(waiting) => waiting.push(request),
                        None => self.serve_one(request),
                    }
                }
                Ok(Some(watcher::Event::InitDone)) => {
                    self.see_to_vanished(&listed).await;
                    if let Some(waiting) = waiting.take() {
                        tokio::select! {
                            () = stopped(&mut stop) => return,
                            () = self.cleared() => {}
                        }
                        for request in waiting {
                            self.serve_one(request);
                        }
                    }
                }
                Ok(Some(watcher::Event::Apply(request))) => self.serve_one(request),
                Ok(Some(watcher::Event::Delete(request))) => self.vanished(&request.name_any()),
                Ok(None) => return,
                // The stream waits, longer each time, and goes on by itself; readiness has told why.
                Err(_) => {}
            }
        }
    }

    /// Waits until the volumes of requests that are gone were seen to.
    async fn cleared(&mut self) {
        while !self.workers.is_idle() {
            self.vitals.heartbeat.beat();
            // Which worker ended doesn't matter here.
            let _ = timeout(BEAT, self.workers.ended()).await;
        }
    }

    fn serve_one(&mut self, request: Seen) {
        let name = request.name_any();
        let known = self.workers.subject(&name);
        let subject = ClusterRequest::new(&self.cluster, &request, known.as_ref());
        if request.meta().deletion_timestamp.is_some() {
            // Without it, somebody took it off to have the object go without a detach.
            let held = subject::is_held(&request);
            let force = request.0.as_ref().is_ok_and(|request| request.spec.force_detach);
            let wanted = if held { Wanted::Detached { subject, force } } else { Wanted::Kept };
            self.workers.want(&name, wanted);
            return;
        }
        if subject.lost_hold(&request) | subject.was_taken_for_dead(&request) {
            self.workers.written_over(&name);
        }
        let spec = match request.0 {
            Ok(request) => request
                .spec
                .to_attach_spec(&self.config.mounts_dir.join(&name))
                .map(|spec| (spec, request.spec.size_gib.map(u64::from)))
                .map_err(|error| invalid(&error)),
            Err(error) => Err(invalid(&error)),
        };
        let wanted = match spec {
            Ok((spec, size_gib)) => Wanted::Attached { spec: Box::new(spec), size_gib, subject },
            // What it attached before is kept.
            Err(refused) => Wanted::Told { refused, subject },
        };
        self.workers.want(&name, wanted);
    }

    /// The request is no more. Where its worker let it go, nothing is left to do. Others may have: then
    /// the worker may be in the middle of a detach, or not have begun it.
    fn vanished(&mut self, name: &str) {
        let origin = Origin::Cluster(name.to_owned());
        self.workers.want(name, Wanted::Gone { origin });
    }

    /// Requests that went while nobody watched, by whatever way.
    async fn see_to_vanished(&mut self, listed: &BTreeSet<String>) {
        let mut names: BTreeSet<String> = self.workers.names().into_iter().collect();
        match self.engine.ledger().records().await {
            Ok(records) => {
                for record in records {
                    match record.map(|record| record.origin.clone()) {
                        Ok(Origin::Cluster(name)) => drop(names.insert(name)),
                        Ok(Origin::CommandLine | Origin::RequestsDir(_)) => {}
                        Err(error) => tracing::error!("{}", api::chain(&error)),
                    }
                }
            }
            Err(error) => tracing::error!("can't read the ledger: {}", api::chain(&error)),
        }
        for name in names.difference(listed) {
            self.vanished(name);
        }
    }
}

/// What is watched, out of all there is. Few are selected: one page holds them, and pages of a list
/// are no matter for the API server's cache before Kubernetes 1.34, so that each agent's list would
/// have it read all there is from etcd.
fn selected(fields: &str) -> watcher::Config {
    watcher::Config { page_size: None, ..watcher::Config::default().fields(fields) }
}

fn invalid(error: &dyn std::error::Error) -> Refused {
    Refused { reason: "InvalidRequest", message: api::chain(error), retry: Retry::OnChange }
}

/// Waits until asked to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let asked = stop.wait_for(|stop| *stop).await.is_ok();
    if !asked {
        // Nobody can ask any more.
        std::future::pending::<()>().await;
    }
}
