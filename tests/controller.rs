//! The agent against an API server in memory: what real ones do rarely, and at the worst moment.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake_api;

use std::{sync::Arc, time::Duration};

use attachd::{
    attach::{Engine, EngineConfig, Ledger},
    controller::{self, Controller, ControllerConfig},
    health::{Liveness, Readiness, Vitals},
    metrics::Metrics,
    model::{Target, VolumeId},
    requests::Lookout,
    testing::{Fault, SimWorld, Style, When},
};
use fake_api::{FINALIZER, FakeApi, Trouble};
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
        self.agent_that_heals(true)
    }

    fn agent_that_heals(&self, heal: bool) -> Agent {
        let ledger = Ledger::open_in_boot(self.directory.path(), &self.world.boot()).unwrap();
        let (host, cinder) = (self.world.host_of_all(), self.world.cinder());
        let engine = Arc::new(Engine::new(host, cinder, ledger, EngineConfig::default()));
        let heartbeat = |name| Liveness::default().heartbeat(name, Duration::from_mins(3));
        let config = ControllerConfig {
            node_name: "worker-3".to_owned(),
            mounts_dir: "/var/lib/attachd/mounts".into(),
            longest_pause: Duration::from_mins(1),
            lookout: Lookout::start(Arc::clone(&engine), heartbeat("lookout")),
            heal,
        };
        let readiness = Readiness::new(&[controller::CHECK]);
        let vitals = Vitals {
            metrics: Metrics::new(),
            readiness: readiness.clone(),
            heartbeat: heartbeat(controller::CHECK),
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
        self.api.until(what, || holds(self)).await;
    }

    /// The targets of the first volume.
    fn targets(&self) -> Vec<Target> {
        let state = self.world.state();
        let (iqn, _) = state.storage.address_of(self.volumes[0]).unwrap();
        let portals = state.storage.portals.iter();
        portals.map(|portal| Target { portal: *portal, iqn: iqn.clone() }).collect()
    }

    fn set_portals(&self, which: &[usize], works: bool) {
        let mut state = self.world.state();
        for portal in which.iter().map(|index| state.storage.portals[*index]).collect::<Vec<_>>() {
            state.set_portal(portal, works);
        }
    }

    /// How often something was done that has these words in the journal.
    fn done(&self, words: &str) -> usize {
        self.world.state().journal.iter().filter(|line| line.contains(words)).count()
    }

    async fn until_told(&self, reason: &str) {
        self.until(reason, |node| node.api.ready("db").as_deref() == Some(reason)).await;
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
    // One of them may meet the look at the node that follows a login.
    for ahead in 0..2 {
        node.world.plan_fault(ahead, Fault::Error(When::Before));
    }
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

const STATUSES: [u16; 10] = [400, 401, 403, 409, 410, 422, 429, 500, 503, 504];

/// What may go wrong with one call.
fn troubles() -> Vec<Trouble> {
    let refused = STATUSES.map(Trouble::Refused);
    let lost = STATUSES.map(Trouble::Lost);
    [refused.as_slice(), lost.as_slice(), &[Trouble::Silence]].concat()
}

/// A request's life while something goes wrong with some calls: it is attached and detached all the same.
async fn live_through(calls: std::ops::Range<usize>, trouble: Trouble) -> usize {
    let node = Node::new();
    node.api.trouble(calls, trouble);
    let agent = node.agent();
    node.api.create("db", "first", &node.spec(0));
    node.until_attached("db").await;
    assert_eq!(node.mounts(), 1);
    node.api.delete("db");
    node.until("gone", |node| node.api.request("db").is_none()).await;
    node.until("detached", |node| node.mounts() == 0).await;
    assert!(node.world.state().cinder.attachments.is_empty());
    let calls = node.api.calls("");
    agent.end().await;
    calls
}

#[tokio::test(start_paused = true)]
async fn each_call_to_the_api_server_may_go_wrong_in_every_way() {
    let calls = live_through(0..0, Trouble::Silence).await;
    for index in 0..calls {
        for trouble in troubles() {
            println!("call {index}: {trouble:?}");
            live_through(index..index + 1, trouble).await;
        }
    }
    println!("{calls} calls, each in {} ways", troubles().len());
}

#[tokio::test(start_paused = true)]
async fn the_api_server_may_go_at_each_call_and_come_back_after_many() {
    let calls = live_through(0..0, Trouble::Silence).await;
    for index in 0..calls {
        for trouble in [Trouble::Refused(503), Trouble::Lost(500), Trouble::Refused(401)] {
            println!("calls from {index} on: {trouble:?}");
            live_through(index..index + 12, trouble).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_undisturbed_request_is_written_three_times_and_asks_cinder_nothing_more() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    sleep(Duration::from_secs(5)).await;
    let (asked, changes) = (node.done("Cinder: "), node.done("] "));
    sleep(Duration::from_hours(1)).await;
    assert_eq!(node.api.calls("PATCH /apis/attachd.dev/v1alpha1/volumeattachrequests/db"), 3);
    assert_eq!((node.done("Cinder: "), node.done("] ")), (asked, changes));
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_somebody_logged_out_comes_back_by_itself() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    let targets = node.targets();
    for round in 1..=5 {
        node.world.state().somebody_logs_out(&targets[round % 2]);
        let began = tokio::time::Instant::now();
        node.until("back", |node| node.world.state().kernel.sessions.len() == 2).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        node.until_attached("db").await;
        assert_eq!(node.done("Login {"), 1 + round);
    }
    assert_eq!((node.done("Logout"), node.done("DeleteDevices")), (0, 0));
    assert_eq!(node.mounts(), 1);
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_healing_what_went_is_told_and_nothing_is_done() {
    let node = Node::new();
    let agent = node.agent_that_heals(false);
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    sleep(Duration::from_secs(20)).await;
    let (asked, changes) = (node.done("Cinder: "), node.done("] "));
    let targets = node.targets();
    node.world.state().somebody_logs_out(&targets[0]);
    node.until_told("Degraded").await;
    node.world.state().somebody_logs_out(&targets[1]);
    node.until_told("NoPath").await;
    let mounts: Vec<_> = std::mem::take(&mut node.world.state().kernel.mounts);
    node.set_portals(&[0], true);
    node.until_told("NotMounted").await;
    node.world.state().kernel.mounts = mounts;
    node.set_portals(&[0], true);
    node.until_told("NoPath").await;
    sleep(Duration::from_hours(1)).await;
    assert_eq!((node.done("Cinder: "), node.done("] ")), (asked, changes));
    // Somebody brings them back by hand.
    for target in &targets {
        assert!(node.world.state().somebody_logs_in(target));
        let lun = node.world.state().storage.address_of(node.volumes[0]).unwrap().1;
        assert!(node.world.state().somebody_scans(target, lun));
    }
    node.until_attached("db").await;
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn paths_that_fail_and_recover_are_told_and_left_to_iscsid() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    sleep(Duration::from_secs(20)).await;
    let (asked, changes) = (node.done("Cinder: "), node.done("] "));
    // Asked for where a session stays away, in vain: its portal doesn't answer.
    let changes_now = || node.done("] ") - node.done("GiveBackConnections");
    node.set_portals(&[0], false);
    node.until_told("Degraded").await;
    node.set_portals(&[1], false);
    node.until_told("NoPath").await;
    let status = node.api.request("db").unwrap()["status"].clone();
    assert_eq!(status["device"]["paths"][0]["state"], "failing", "{status}");
    assert!(status["mountPath"].is_string(), "{status}");
    sleep(Duration::from_mins(10)).await;
    node.set_portals(&[0], true);
    node.until_told("Degraded").await;
    node.set_portals(&[1], true);
    node.until_attached("db").await;
    sleep(Duration::from_mins(10)).await;
    assert_eq!((node.done("Cinder: "), changes_now()), (asked, changes));
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_iscsid_can_not_set_up_again_is_given_back() {
    for (heal, restarted) in [(true, false), (true, true), (false, false)] {
        let node = Node::new();
        let mut agent = node.agent_that_heals(heal);
        node.api.create("db", "one", &node.spec(0));
        node.until_attached("db").await;
        sleep(Duration::from_secs(20)).await;
        let mut asked = node.done("Cinder: ");
        let targets = node.targets();
        for target in &targets {
            node.world.state().kernel.held_back.insert(target.clone());
        }
        // Whoever looks sees them from now on.
        node.set_portals(&[0, 1], true);
        node.until_told("NoPath").await;
        let began = tokio::time::Instant::now();
        if heal {
            if restarted {
                agent.end().await;
                agent = node.agent();
                // It asks for the attachment, and waits for the sessions.
                asked += 1;
            }
            node.until_attached("db").await;
            let took = began.elapsed();
            assert!((10..30).contains(&took.as_secs()), "iscsid comes first: {took:?}");
        } else {
            sleep(Duration::from_hours(1)).await;
            assert_eq!(node.done("GiveBackConnections"), 0);
        }
        assert_eq!((node.done("Logout"), node.done("Cinder: ")), (0, asked));
        agent.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_portal_that_stays_away_is_not_stormed_and_costs_no_readiness() {
    let node = Node::new();
    node.set_portals(&[1], false);
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_told("Degraded").await;
    let (writes, logins) = (node.api.writes(), node.done("Login {"));
    sleep(Duration::from_mins(30)).await;
    let tried = node.done("Login {") - logins;
    assert!((25..45).contains(&tried), "{tried} logins in half an hour");
    assert_eq!(node.api.writes(), writes, "nothing was new");
    node.set_portals(&[1], true);
    node.until_attached("db").await;
    assert_eq!(node.done("Logout"), 0);
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_works_stays_ready_though_cinder_can_not_be_asked() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    sleep(Duration::from_secs(20)).await;
    // Of what comes now the look is the first, and the question to Cinder among the next.
    for ahead in 1..4 {
        node.world.plan_fault(ahead, Fault::Error(When::Before));
    }
    let targets = node.targets();
    node.world.state().somebody_logs_out(&targets[0]);
    node.until("told", |node| {
        let conditions = node.api.request("db").unwrap()["status"]["conditions"].to_string();
        conditions.contains("not back yet")
    })
    .await;
    assert_eq!(node.api.ready("db").as_deref(), Some("Degraded"));
    node.until_attached("db").await;
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_works_stays_ready_over_a_restart_while_cinder_is_away() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    agent.end().await;
    let writes = node.api.writes();
    node.world.state().cinder.away = true;
    let agent = node.agent();
    sleep(Duration::from_mins(5)).await;
    assert_eq!((node.api.ready("db").as_deref(), node.api.writes()), (Some("Attached"), writes));
    // It is looked after all the same, as far as that goes without Cinder.
    let targets = node.targets();
    node.world.state().somebody_logs_out(&targets[0]);
    node.until("told", |node| node.api.ready("db").as_deref() == Some("Degraded")).await;
    node.world.state().cinder.away = false;
    node.until_attached("db").await;
    assert_eq!(node.targets().len(), targets.len());
    // What was taken away meanwhile is found out when Cinder can be asked.
    agent.end().await;
    node.world.state().cinder.away = true;
    let agent = node.agent();
    sleep(Duration::from_mins(1)).await;
    node.world.state().take_by_force(node.volumes[0]);
    node.world.state().cinder.away = false;
    node.until_told("AttachmentGone").await;
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_file_system_that_went_read_only_is_told_and_left_alone() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    sleep(Duration::from_secs(20)).await;
    let changes = node.done("] ");
    let path = node.world.state().kernel.mounts[0].target.clone();
    node.world.state().goes_read_only(&path);
    let began = tokio::time::Instant::now();
    node.until_told("ReadOnlyFilesystem").await;
    assert!(began.elapsed() < Duration::from_secs(70), "{:?}", began.elapsed());
    sleep(Duration::from_mins(10)).await;
    assert_eq!(node.done("] "), changes);
    node.api.delete("db");
    node.until("gone", |node| node.api.request("db").is_none()).await;
    node.api.create("db", "two", &node.spec(0));
    node.until_attached("db").await;
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_taken_away_by_force_is_told_and_not_fought() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    let targets = node.targets();
    node.world.state().take_by_force(node.volumes[0]);
    node.world.state().somebody_logs_out(&targets[0]);
    node.until_told("AttachmentGone").await;
    let asked = node.done("Cinder: ");
    assert!(asked > 0);
    sleep(Duration::from_hours(1)).await;
    assert!(node.done("Cinder: ") <= asked + 2, "{} questions more", node.done("Cinder: ") - asked);
    assert_eq!(node.done("Login {"), 1);
    agent.end().await;
}

/// The node was off, was evacuated, and comes back: attachd, or the whole node, was away meanwhile.
#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_gives_up_what_was_taken_away_before_it_attaches_anything() {
    for rebooted in [true, false] {
        let mut node = Node::new();
        let agent = node.agent();
        node.api.create("db", "one", &node.spec(0));
        node.until_attached("db").await;
        node.world
            .state()
            .application_writes_without_sync(std::path::Path::new("/var/lib/attachd/mounts/db"), 9);
        agent.end().await;
        node.api.lose_while_away("db");
        {
            let mut state = node.world.state();
            state.take_by_force(node.volumes[0]);
            assert!(state.other_node_attaches(node.volumes[0]));
        }
        if rebooted {
            node.world.reboot();
            node.world = node.world.restarted();
        }
        node.api.create("new", "two", &node.spec(1));
        let before = node.world.state().journal.len();
        let agent = node.agent();
        node.until_attached("new").await;
        let cleared = std::fs::read_dir(node.directory.path().join("volumes")).unwrap().count();
        assert_eq!((cleared, node.mounts()), (1, 1), "only the new one is there");
        let journal = node.world.state().journal[before..].to_vec();
        let at = |words: &str| journal.iter().position(|line| line.contains(words));
        let (reserve, log_out) = (at("Cinder: reserve").unwrap(), at("Logout").unwrap());
        assert!(log_out < reserve, "{journal:#?}");
        assert!(at("Cinder: delete").is_none(), "{journal:#?}");
        agent.end().await;
    }
}

/// The node was taken for dead and lives: the evacuation deletes the attachment, and lets the request go.
#[tokio::test(start_paused = true)]
async fn what_is_evacuated_while_its_agent_lives_leaves_the_node_however_far_the_detach_was() {
    let mut midway = 0;
    for steps in 0..24 {
        for (deleted, at_once) in [(false, false), (true, false), (false, true), (true, true)] {
            let node = Node::new();
            let agent = node.agent();
            node.api.create("db", "one", &node.spec(0));
            node.until_attached("db").await;
            let before = node.world.state().journal.len();
            if deleted {
                node.api.delete("db");
            }
            let reached = |node: &Node| node.world.state().journal.len() >= before + steps;
            node.until("so far", |node| {
                !deleted || reached(node) || node.api.request("db").is_none()
            })
            .await;
            if node.api.request("db").is_some() {
                midway += usize::from(deleted);
                node.world.state().take_by_force(node.volumes[0]);
                node.api.delete("db");
                node.api.change("db", |db| db["metadata"]["finalizers"] = Value::Null);
            }
            let clean = |node: &Node| {
                let records = std::fs::read_dir(node.directory.path().join("volumes")).unwrap();
                records.count() == 0 && node.mounts() == 0
            };
            if at_once {
                // The name is another volume's, though its worker isn't done yet.
                node.api.create("db", "two", &node.spec(1));
                node.until_attached("db").await;
                node.api.delete("db");
            }
            node.until("clean", clean).await;
            agent.end().await;
        }
    }
    assert!(midway > 5, "only {midway} times it was in the middle of a detach");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_goes_without_its_detach_keeps_its_volume_attached() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    node.api.delete("db");
    node.api.change("db", |db| db["metadata"]["finalizers"] = Value::Null);
    sleep(Duration::from_mins(10)).await;
    assert_eq!(node.mounts(), 1);
    assert_eq!(node.world.state().cinder.attachments.len(), 1);
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_keeps_what_cinder_still_has_or_can_not_tell() {
    for away in [false, true] {
        let node = Node::new();
        let agent = node.agent();
        node.api.create("db", "one", &node.spec(0));
        node.until_attached("db").await;
        agent.end().await;
        node.api.lose_while_away("db");
        if away {
            node.world.state().take_by_force(node.volumes[0]);
            // The question to Cinder, whether it comes before or after a look at the node's facts.
            node.world.plan_fault(0, Fault::Error(When::Before));
            node.world.plan_fault(1, Fault::Error(When::Before));
        }
        let agent = node.agent();
        node.api.create("new", "two", &node.spec(1));
        node.until_attached("new").await;
        assert_eq!(node.mounts(), 2);
        agent.end().await;
    }
}

/// Somebody took a node for dead that lives.
#[tokio::test(start_paused = true)]
async fn an_agent_that_lives_has_the_last_word_over_its_requests_status() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    node.api.change("db", |db| {
        let ready = json!({"type": "Ready", "status": "Unknown", "reason": "NodeOutOfService",
            "message": "off", "lastTransitionTime": "2026-11-22T08:00:00Z"});
        db["status"]["conditions"] = json!([ready]);
    });
    assert_eq!(node.api.ready("db").as_deref(), Some("NodeOutOfService"));
    node.until_attached("db").await;
    agent.end().await;
}

#[tokio::test(start_paused = true)]
async fn force_is_read_when_the_request_is_deleted_and_told_by_an_event() {
    let node = Node::new();
    let agent = node.agent();
    node.api.create("db", "one", &node.spec(0));
    node.until_attached("db").await;
    node.world.state().set_busy(node.volumes[0], true);
    node.api.delete("db");
    node.until("refused", |node| node.api.ready("db").as_deref() == Some("Busy")).await;
    node.api.change("db", |db| {
        db["spec"]["forceDetach"] = json!(true);
        db["metadata"]["generation"] = json!(2);
    });
    node.until("forced", |node| node.api.ready("db").as_deref() == Some("StillHeld")).await;
    assert!(node.world.state().cinder.attachments.is_empty());
    node.world.state().set_busy(node.volumes[0], false);
    node.until("gone", |node| node.api.request("db").is_none()).await;
    assert_eq!(node.mounts(), 0);
    agent.end().await;
}
