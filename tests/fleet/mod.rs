//! Agents of many nodes in one process: each is the real controller over a simulated node, with a client
//! of its own to a real API server.

pub mod traffic;

use std::{sync::Arc, time::Duration};

use attachd::{
    attach::{Engine, EngineConfig, Ledger},
    controller::{self, Controller, ControllerConfig},
    health::{Liveness, Readiness, Vitals},
    metrics::Metrics,
    requests::Lookout,
    testing::{SimWorld, Style},
};
use kube::Config;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use traffic::Traffic;

/// A node with its storage, its ledger and, while it runs, its agent.
pub struct Node {
    pub name: String,
    pub traffic: Traffic,
    requests: usize,
    world: SimWorld,
    directory: TempDir,
    agent: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

impl Node {
    /// A node with so many volumes for as many requests. No agent runs.
    pub fn new(index: usize, requests: usize) -> Self {
        let world = SimWorld::new(Style::TargetPerVolume);
        {
            let mut state = world.state();
            let initiator = format!("iqn.2026-11.dev.attachd.test:{index}");
            state.facts.connector.initiator = initiator.parse().unwrap();
            for number in 0..requests {
                state.create_volume((index * requests + number) as u128, 1);
            }
        }
        let directory = TempDir::with_prefix_in("attachd-fleet-", "/dev/shm").unwrap();
        let (name, traffic) = (format!("scale-{index:03}"), Traffic::default());
        Self { name, traffic, requests, world, directory, agent: None }
    }

    /// What is asked of this node.
    pub fn requests(&self) -> Vec<Value> {
        let state = self.world.state();
        assert_eq!(state.cinder.volumes.len(), self.requests, "volumes of {}", self.name);
        let volumes = state.cinder.volumes.keys().enumerate();
        volumes
            .map(|(number, volume)| {
                json!({
                    "apiVersion": "attachd.dev/v1alpha1", "kind": "VolumeAttachRequest",
                    "metadata": {"name": format!("{}-{number:02}", self.name)},
                    "spec": {"nodeName": self.name, "volumeID": volume.to_string()},
                })
            })
            .collect()
    }

    /// Starts the agent, as `attachd run --kubernetes` does.
    pub fn start(&mut self, config: &Config) {
        let ledger = Ledger::open_in_boot(self.directory.path(), &self.world.boot()).unwrap();
        let (host, cinder) = (self.world.host_of_all(), self.world.cinder());
        let engine = Arc::new(Engine::new(host, cinder, ledger, EngineConfig::default()));
        let heartbeat = |name| Liveness::default().heartbeat(name, Duration::from_mins(3));
        let settings = ControllerConfig {
            node_name: self.name.clone(),
            mounts_dir: "/var/lib/attachd/mounts".into(),
            longest_pause: Duration::from_mins(1),
            lookout: Lookout::start(Arc::clone(&engine), heartbeat("lookout")),
            heal: true,
        };
        let vitals = Vitals {
            metrics: Metrics::new(),
            readiness: Readiness::new(&[controller::CHECK]),
            heartbeat: heartbeat(controller::CHECK),
        };
        let client = self.traffic.client(config, &self.name);
        let permits = Arc::new(Semaphore::new(16));
        let controller = Controller::new(engine, permits, client, settings, vitals);
        let (stop, stopped) = watch::channel(false);
        self.agent = Some((stop, tokio::spawn(controller.serve(stopped))));
    }

    /// Asks the agent to end; [`Node::ended`] waits.
    pub fn stop(&self) {
        if let Some((stop, _)) = &self.agent {
            stop.send_replace(true);
        }
    }

    pub async fn ended(&mut self) {
        self.stop();
        if let Some((_, task)) = self.agent.take() {
            task.await.unwrap();
        }
    }

    /// How much was done on the node, beside looking at it: that goes on.
    pub fn operations(&self) -> usize {
        let looks = |line: &String| line.ends_with(": observe") || line.ends_with(": facts");
        self.world.state().journal.iter().filter(|line| !looks(line)).count()
    }

    /// Every volume is attached.
    pub fn assert_attached(&self) {
        self.world.assert_sound();
        let state = self.world.state();
        assert_eq!(state.kernel.mounts.len(), self.requests, "mounts of {}", self.name);
    }

    /// Nothing is left on the node, in Cinder or in the ledger.
    pub fn assert_nothing_left(&self) {
        self.world.assert_sound();
        let mut left = self.world.state().left();
        let records = std::fs::read_dir(self.directory.path().join("volumes")).unwrap();
        left.extend(records.map(|record| record.unwrap().path().display().to_string()));
        assert!(left.is_empty(), "left of {}: {left:#?}", self.name);
    }
}
