//! The agent against an API server in memory: what real ones do rarely, and at the worst moment.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake_api;

use std::{sync::Arc, time::Duration};

use attachd::{
    attach::{Engine, EngineConfig, Ledger},
    controller::{self, Controller, ControllerConfig},
    health::{Liveness, Readiness, Vitals},
    metrics::Metrics,
    model::VolumeId,
    testing::{Fault, SimWorld, Style, When},
};
use fake_api::{FINALIZER, FakeApi};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

struct Node {
    api: FakeApi,
    world: SimWorld,
    volumes: Vec<VolumeId>,
    directory: TempDir,
}

/// An agent that runs.
struct Agent {
    readiness: Readiness,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Agent {
    async fn end(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

impl Node {
    fn new() -> Self {
        let world = SimWorld::new(Style::TargetPerVolume);
        let volumes = (0..3).map(|number| world.state().create_volume(number, 1)).collect();
        let directory = TempDir::with_prefix_in("attachd-controller-", "/dev/shm").unwrap();
        Self { api: FakeApi::default(), world, volumes, directory }
    }

    fn agent(&self) -> Agent {
        let ledger = Ledger::open_in_boot(self.directory.path(), &self.world.boot()).unwrap();
        let (host, cinder) = (self.world.host_of_all(), self.world.cinder());
        let engine = Arc::new(Engine::new(host, cinder, ledger, EngineConfig::default()));
        let config = ControllerConfig {
            node_name: "worker-3".to_owned(),
            mounts_dir: "/var/lib/attachd/mounts".into(),
            longest_pause: Duration::from_mins(1),
        };
        let readiness = Readiness::new(&[controller::CHECK]);
        let vitals = Vitals {
            metrics: Metrics::new(),
            readiness: readiness.clone(),
            heartbeat: Liveness::default().heartbeat(controller::CHECK, Duration::from_mins(3)),
        };
        let (client, permits) = (self.api.client(), Arc::new(Semaphore::new(16)));
        let controller = Controller::new(engine, permits, client, config, vitals);
        let (stop, stopped) = watch::channel(false);
        Agent { readiness, stop, task: tokio::spawn(controller.serve(stopped)) }
    }

    fn spec(&self, volume: usize) -> Value {
        json!({"nodeName": "worker-3", "volumeID": self.volumes[volume].to_string()})
    }

    fn mounts(&self) -> usize {
        self.world.assert_sound();
        self.world.state().kernel.mounts.len()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = timeout(Duration::from_mins(10), async {
            while !holds(self) {
                sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(
            waited.await.is_ok(),
            "it never came to this: {what}: {:?}",
            self.api.request("db")
        );
    }

    async fn until_attached(&self, name: &str) {
        self.until("attached", |node| node.api.ready(name).as_deref() == Some("Attached")).await;
    }

    fn finalizers(&self, name: &str) -> Value {
        self.api.request(name).unwrap()["metadata"]["finalizers"].clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_again_under_its_name_is_another_one() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "first", &node.spec(0));
    node.until_attached("db").await;
    for round in 0..5 {
        let old = node.api.request("db").unwrap()["metadata"]["uid"].clone();
        node.api.delete("db");
        node.until("gone", |node| node.api.request("db").is_none()).await;
        // At once, while the old one's worker ends.
        node.api.create("db", &format!("again-{round}"), &node.spec(round % 2));
        node.until_attached("db").await;
        assert_ne!(node.api.request("db").unwrap()["metadata"]["uid"], old);
        assert_eq!(node.mounts(), 1);
    }
    assert_eq!(node.finalizers("db"), json!([FINALIZER]));
    agent.end().await;
    assert_eq!(node.mounts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_deleted_while_it_is_attached_leaves_nothing() {
    for ahead in 0..40 {
        let node = Node::new();
        let agent = node.agent();
        let api = node.api.clone();
        let held =
            move || api.request("db").is_some_and(|db| db["metadata"]["finalizers"].is_array());
        let api = node.api.clone();
        node.world.call_at(ahead, move |_| {
            if held() {
                api.delete("db");
            }
        });
        node.api.create("db", "one", &node.spec(0));
        node.until("served", |node| match node.api.request("db") {
            None => true,
            Some(db) => {
                let deleted = db["metadata"]["deletionTimestamp"].is_string();
                !deleted && node.api.ready("db").as_deref() == Some("Attached")
            }
        })
        .await;
        if node.api.request("db").is_none() {
            assert_eq!(node.mounts(), 0, "deleted at operation {ahead}");
            let left = node.world.state().left();
            assert!(left.is_empty(), "deleted at operation {ahead}: {left:?}");
        }
        agent.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_went_unseen_is_kept_and_a_new_list_writes_nothing() {
    let node = Node::new();
    let agent = node.agent();
    for (volume, name) in ["db", "lost"].iter().enumerate() {
        node.api.create(name, name, &node.spec(volume));
        node.until_attached(name).await;
    }
    sleep(Duration::from_secs(1)).await;
    let (lists, writes) = (node.api.calls("volumeattachrequests?watch"), node.api.writes());
    node.api.lose_while_away("lost");
    node.until("watched anew", |node| node.api.calls("volumeattachrequests?watch") > lists).await;
    sleep(Duration::from_mins(5)).await;
    assert_eq!(node.mounts(), 2, "a request that is not there any more was detached");
    assert_eq!(node.api.writes(), writes, "the new list was answered by writes");
    // It comes back, as from a backup: with another UID.
    node.api.create("lost", "restored", &node.spec(1));
    node.until_attached("lost").await;
    node.api.delete("lost");
    node.until("gone", |node| node.api.request("lost").is_none()).await;
    assert_eq!(node.mounts(), 1);
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_writes_nothing() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    sleep(Duration::from_mins(5)).await;
    agent.end().await;
    let writes = node.api.writes();
    let agent = node.agent();
    sleep(Duration::from_mins(5)).await;
    agent.end().await;
    assert_eq!(node.api.writes(), writes);
}

#[tokio::test(start_paused = true)]
async fn a_finalizer_is_written_once_however_often_the_attach_fails() {
    let node = Node::new();
    let agent = node.agent();
    assert!(node.world.state().other_node_attaches(node.volumes[0]));
    node.api.create("db", "one", &node.spec(0));
    let told = "VolumeNotAvailable";
    node.until("refused", |node| node.api.ready("db").as_deref() == Some(told)).await;
    let before = node.world.operations();
    sleep(Duration::from_mins(30)).await;
    // The facts alone are looked at once a minute.
    assert!(node.world.operations() > before + 60, "it was not tried again");
    assert_eq!(node.api.calls("PATCH /apis/attachd.dev/v1alpha1/volumeattachrequests/db"), 3);
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_finalizer_that_was_taken_off_is_put_back() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    node.api.change("db", |db| db["metadata"]["finalizers"] = Value::Null);
    node.until("held", |node| node.finalizers("db") == json!([FINALIZER])).await;
    node.api.delete("db");
    node.until("gone", |node| node.api.request("db").is_none()).await;
    assert_eq!(node.mounts(), 0);
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_refuses_to_let_a_request_go_is_not_stormed() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    // As an admission policy, or a stricter schema, does.
    node.api.refuse("PATCH /apis/attachd.dev/v1alpha1/volumeattachrequests/db", 422);
    node.api.delete("db");
    let patches =
        |node: &Node| node.api.calls("PATCH /apis/attachd.dev/v1alpha1/volumeattachrequests/db");
    let before = patches(&node);
    sleep(Duration::from_mins(1)).await;
    let asked = patches(&node) - before;
    assert!((3..30).contains(&asked), "it asked {asked} times in a minute");
    assert_eq!(node.mounts(), 0);
    node.api.accept();
    node.until("gone", |node| node.api.request("db").is_none()).await;
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_agent_of_a_node_waits_for_the_first_to_end() {
    let node = Node::new();
    let first = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    let lists = node.api.calls("volumeattachrequests?watch");
    let second = node.agent();
    node.until("told", |_| second.readiness.report().to_string().contains("another attachd")).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(node.api.calls("volumeattachrequests?watch"), lists, "it watches beside the first");
    assert!(!second.readiness.report().is_well());
    first.end().await;
    node.until("ready", |_| second.readiness.report().is_well()).await;
    node.api.delete("db");
    node.until("gone", |node| node.api.request("db").is_none()).await;
    assert_eq!(node.mounts(), 0);
    second.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_read_is_told_and_stops_nothing_else() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("odd", "odd", &json!({"nodeName": "worker-3", "volumeID": 7}));
    node.api.create("none", "none", &Value::Null);
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    for name in ["odd", "none"] {
        node.until("told", |node| node.api.ready(name).as_deref() == Some("InvalidRequest")).await;
        node.api.delete(name);
        node.until("gone", |node| node.api.request(name).is_none()).await;
    }
    assert_eq!(node.mounts(), 1);
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_is_not_ready_any_more_as_soon_as_its_volume_is_found_lost() {
    let mut node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    agent.end().await;
    node.world.reboot();
    node.world = node.world.restarted();
    node.world.jitter(50, 1);
    let agent = node.agent();
    node.until("told", |node| node.api.ready("db").as_deref() == Some("Attaching")).await;
    assert_eq!(node.mounts(), 0);
    let conditions = node.api.request("db").unwrap()["status"]["conditions"].to_string();
    assert!(conditions.contains("attached again"), "{conditions}");
    node.until_attached("db").await;
    assert_eq!(node.mounts(), 1);
    agent.end().await;
}

/// What the right to patch events is for.
#[tokio::test(start_paused = true)]
async fn an_event_that_comes_again_is_counted_up() {
    let node = Node::new();
    let portals = node.world.state().storage.portals.clone();
    for portal in &portals {
        node.world.state().set_portal(*portal, false);
    }
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    let fails = async |times: usize| {
        let reason = |node: &Node| node.api.ready("db");
        node.until("failed", |node| reason(node).as_deref() == Some("NoPath")).await;
        assert_eq!(node.api.calls("POST /apis/events.k8s.io"), times);
    };
    fails(1).await;
    node.world.plan_fault(0, Fault::Error(When::Before));
    node.until("failed otherwise", |node| node.api.ready("db").as_deref() != Some("NoPath")).await;
    fails(2).await;
    assert_eq!(node.api.calls("PATCH /apis/events.k8s.io"), 1);
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_ends_though_another_program_works_on_the_volume() {
    let node = Node::new();
    let ledger = Ledger::open_in_boot(node.directory.path(), &node.world.boot()).unwrap();
    let locked = ledger.lock_volume(node.volumes[0]).await.unwrap();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until("taken up", |node| node.api.ready("db").is_some()).await;
    let ended = timeout(Duration::from_secs(10), agent.end()).await;
    assert!(ended.is_ok(), "it waits for the volume's lock");
    drop(locked);
}

#[tokio::test(start_paused = true)]
async fn late_news_of_a_request_that_is_gone_harm_nothing() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    node.api.delete("db");
    let old = node.api.request("db").unwrap();
    node.until("gone", |node| node.api.request("db").is_none()).await;
    sleep(Duration::from_secs(1)).await;
    node.api.tell("MODIFIED", &old);
    sleep(Duration::from_secs(5)).await;
    node.api.tell("DELETED", &old);
    node.api.create("db", "two", &node.spec(0));
    node.until_attached("db").await;
    assert_eq!(node.mounts(), 1);
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_fault_at_any_moment_is_told_and_overcome() {
    for ahead in (0..40).step_by(3) {
        let node = Node::new();
        node.world.plan_fault(ahead, Fault::Error(When::After));
        let agent = node.agent();
        node.api.create("db", "one", &node.spec(0));
        node.until_attached("db").await;
        node.api.delete("db");
        node.until("gone", |node| node.api.request("db").is_none()).await;
        assert_eq!(node.mounts(), 0, "fault at {ahead}");
        agent.end().await;
    }
}
