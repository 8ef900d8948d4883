use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, future::Either, stream::BoxStream};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{sync::watch, time::Instant};

use super::{
    api::{self, Cluster, Uniqueness},
    selected, stopped,
};
use crate::{
    attach::Engine,
    cinder::BlockStorage,
    crd::{NodeConnector, NodeConnectorStatus},
    host::{Host, HostError, NodeFacts},
    model::{Iqn, Multipathd, Retry},
    projection,
    requests::Refused,
};

/// How often the node's facts are read again: a daemon may end, a name may be changed.
const LOOK: Duration = Duration::from_mins(1);

/// The first pause after a write that failed; doubled each time, up to [`LOOK`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);

type Seen = DeserializeGuard<NodeConnector>;
type Events = BoxStream<'static, Result<watcher::Event<Seen>, watcher::Error>>;

/// Keeps this node's `NodeConnector`, and looks for others with its initiator name.
pub(super) struct NodeConnectors<H, C> {
    engine: Arc<Engine<H, C>>,
    cluster: Arc<Cluster>,
    written: Option<NodeConnectorStatus>,
    /// Nodes with the name that is watched for.
    same: BTreeSet<String>,
    /// Those of a list that isn't complete yet.
    listed: Option<BTreeSet<String>>,
}

impl<H: Host, C: BlockStorage> NodeConnectors<H, C> {
    pub(super) fn new(engine: Arc<Engine<H, C>>, cluster: Arc<Cluster>) -> Self {
        Self { engine, cluster, written: None, same: BTreeSet::new(), listed: None }
    }

    pub(super) async fn serve(mut self, mut stop: watch::Receiver<bool>) {
        let mut events: Option<(Iqn, Events)> = None;
        let mut facts = self.engine.host().facts().await;
        let mut look = Instant::now() + LOOK;
        let mut pause = FIRST_PAUSE;
        loop {
            let written = self.write(&facts).await;
            let own = facts.as_ref().ok().map(|facts| facts.connector.initiator.clone());
            if own.as_ref() != events.as_ref().map(|(name, _)| name) {
                self.cluster.uniqueness().send_replace(Uniqueness::NotCompared);
                events = None;
            }
            // Only once the own one is there can two nodes that start together not miss each other.
            if let (Ok(()), Some(name), None) = (&written, own, &events) {
                events = Some((name.clone(), self.with_name(&name)));
            }
            let again = match written {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    look
                }
                Err(refused) => {
                    tracing::warn!(reason = refused.reason, "{refused}");
                    let again = look.min(Instant::now() + pause);
                    pause = (pause * 2).min(LOOK);
                    again
                }
            };
            let news = match &mut events {
                Some((_, events)) => Either::Left(events.try_next()),
                None => Either::Right(std::future::pending()),
            };
            tokio::select! {
                () = stopped(&mut stop) => return,
                () = tokio::time::sleep_until(again) => {
                    if again == look {
                        facts = self.engine.host().facts().await;
                        look = Instant::now() + LOOK;
                    }
                }
                event = news => match event {
                    Ok(Some(event)) => self.seen(event),
                    Ok(None) => events = None,
                    Err(error) => tracing::warn!("can't watch the NodeConnectors: {}", api::chain(&error)),
                },
            }
        }
    }

    /// All with that name, this node's own among them; the server leaves out the others.
    fn with_name(&self, name: &Iqn) -> Events {
        let connectors: Api<Seen> = Api::all(self.cluster.client());
        let same = format!("status.initiator={name}");
        watcher(connectors, selected(&same)).default_backoff().boxed()
    }

    fn seen(&mut self, event: watcher::Event<Seen>) {
        let own = self.cluster.node_name().to_owned();
        match event {
            watcher::Event::Init => self.listed = Some(BTreeSet::new()),
            watcher::Event::InitApply(connector) => {
                self.listed.get_or_insert_default().insert(connector.name_any());
            }
            watcher::Event::InitDone => self.same = self.listed.take().unwrap_or_default(),
            watcher::Event::Apply(connector) => {
                self.same.insert(connector.name_any());
            }
            watcher::Event::Delete(connector) => {
                self.same.remove(&connector.name_any());
            }
        }
        if self.listed.is_some() {
            return;
        }
        if !self.same.contains(&own) {
            // Its Node was deleted, or somebody deleted it: it is written anew.
            self.written = None;
        }
        let others: Vec<String> = self.same.iter().filter(|name| **name != own).cloned().collect();
        let known =
            if others.is_empty() { Uniqueness::Unique } else { Uniqueness::SharedWith(others) };
        self.cluster.uniqueness().send_if_modified(|before| {
            let changed = *before != known;
            if changed {
                if let Uniqueness::SharedWith(nodes) = &known {
                    tracing::error!(
                        ?nodes,
                        "other nodes have this node's initiator name: nothing new is attached"
                    );
                }
                *before = known;
            }
            changed
        });
    }

    async fn write(&mut self, facts: &Result<NodeFacts, HostError>) -> Result<(), Refused> {
        if self.written.is_none() {
            let Some(uid) = self.cluster.node_uid().await? else {
                return Err(Refused {
                    reason: "NodeNotFound",
                    message: format!(
                        "there is no Node {:?}: its NodeConnector is written when there is",
                        self.cluster.node_name()
                    ),
                    retry: Retry::Backoff,
                });
            };
            // An agent that is started again goes on from what the last one wrote.
            self.written = self.cluster.connector(&uid).await?;
            if self.written.is_none() {
                self.cluster.make_connector(&uid).await?;
            }
        }
        let uniqueness = self.cluster.uniqueness().borrow().clone();
        let status = status(facts, &uniqueness, self.written.as_ref(), Timestamp::now());
        if self.written.as_ref() != Some(&status) {
            self.cluster.connector_status(&status).await?;
            self.written = Some(status);
        }
        Ok(())
    }
}

/// The status of a node's connector. Pure; transition times move only where a condition's status does.
fn status(
    facts: &Result<NodeFacts, HostError>,
    uniqueness: &Uniqueness,
    previous: Option<&NodeConnectorStatus>,
    now: Timestamp,
) -> NodeConnectorStatus {
    let known = previous.map(|previous| previous.conditions.as_slice()).unwrap_or_default();
    let condition = |type_: &str, status: &str, reason: &str, message: String| {
        projection::condition(known, type_, status, reason, message, now)
    };
    let agent_version = Some(env!("CARGO_PKG_VERSION").to_owned());
    let facts = match facts {
        Ok(facts) => facts,
        Err(error) => {
            let (reason, message) = (error.reason(), api::chain(error));
            let mut conditions = Vec::new();
            if reason == "NoInitiatorName" {
                conditions.push(condition(
                    "InitiatorNamePresent",
                    "False",
                    reason,
                    message.clone(),
                ));
            }
            conditions.push(condition("Ready", "False", reason, message));
            return NodeConnectorStatus {
                agent_version,
                conditions,
                ..NodeConnectorStatus::default()
            };
        }
    };
    let text = str::to_owned;
    let unique = match uniqueness {
        Uniqueness::Unique => {
            condition("InitiatorNameUnique", "True", "Unique", text("no other node has this name"))
        }
        Uniqueness::SharedWith(nodes) => {
            let message = format!(
                "{} {} the same initiator name: give each node its own",
                nodes.join(", "),
                if nodes.len() == 1 { "has" } else { "have" }
            );
            condition("InitiatorNameUnique", "False", "DuplicateInitiatorName", message)
        }
        Uniqueness::NotCompared => {
            // What was found of this name before holds until it is compared again.
            let name = facts.connector.initiator.as_str();
            let known = previous
                .filter(|previous| previous.initiator.as_deref() == Some(name))
                .and_then(|previous| {
                    previous.conditions.iter().find(|known| known.type_ == "InitiatorNameUnique")
                });
            known.cloned().unwrap_or_else(|| {
                condition(
                    "InitiatorNameUnique",
                    "Unknown",
                    "NodeConnectorPending",
                    text("the other nodes' names have not been looked at yet"),
                )
            })
        }
    };
    let iscsid = if facts.iscsid {
        condition("IscsidRunning", "True", "Running", text("iscsid answers"))
    } else {
        let message = text("iscsid doesn't answer on this node: systemctl start iscsid");
        condition("IscsidRunning", "False", "IscsidNotRunning", message)
    };
    let multipathd = match &facts.multipathd {
        Multipathd::Claims => condition(
            "MultipathdRunning",
            "True",
            "Claims",
            text("multipathd answers and claims disks"),
        ),
        Multipathd::NotRunning => condition(
            "MultipathdRunning",
            "False",
            "MultipathdNotRunning",
            text("multipathd doesn't answer: volumes are attached over one path"),
        ),
        Multipathd::Blacklisted { pattern } => condition(
            "MultipathdRunning",
            "False",
            "MultipathdBlacklisted",
            format!(
                "multipath.conf keeps multipathd off every disk (blacklist devnode {pattern:?})"
            ),
        ),
    };
    let ready =
        [&unique, &iscsid].into_iter().find(|condition| condition.status != "True").map_or_else(
            || condition("Ready", "True", "Ready", text("volumes can be attached to this node")),
            |why| condition("Ready", why.status.as_str(), &why.reason, why.message.clone()),
        );
    let present = condition(
        "InitiatorNamePresent",
        "True",
        "Present",
        text("the node has an iSCSI initiator name"),
    );
    let connector = &facts.connector;
    NodeConnectorStatus {
        initiator: Some(connector.initiator.to_string()),
        ip: Some(connector.ip.to_string()),
        host: Some(connector.host.clone()),
        platform: Some(connector.platform.clone()),
        os_type: Some(connector.os_type.clone()),
        multipath: Some(connector.multipath),
        agent_version,
        conditions: vec![present, unique, iscsid, multipathd, ready],
    }
}
