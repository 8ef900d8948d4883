//! Many agents against one real API server, such as `scripts/lab kube start` starts, with the custom
//! resources installed: `ATTACHD_TEST_KUBECONFIG` is an administrator's, `ATTACHD_TEST_NODES` and
//! `ATTACHD_TEST_REQUESTS` (of each node) say how many. The nodes are simulated; the controller, its client
//! and what goes over the wire are real.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss)]

mod fleet;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    panic::{AssertUnwindSafe, resume_unwind},
    time::{Duration, Instant},
};

use attachd::crd::{NodeConnector, VolumeAttachRequest};
use fleet::{
    Node,
    traffic::{Counts, Traffic},
};
use futures::{FutureExt as _, StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Event, Node as NodeObject};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::time::sleep;

/// Of these, what they receive alone is compared with what agents receive among all others.
const FEW: usize = 10;

/// To a request from its creation until it is ready: finalizer, "Attaching", "Ready". An API server
/// that is too slow to answer in time makes an agent say why, or say again what it said.
const WRITES: u64 = 3;
const WRITES_AT_MOST: u64 = 4;

/// How many of all requests may be written to so often.
const SELDOM: f64 = 0.01;

/// How much more an agent may receive among many than among few: bookmarks come with time.
const GROWTH: f64 = 1.2;

/// What the test itself does at once.
const AT_ONCE: usize = 32;

const READY_LIMIT: Duration = Duration::from_mins(15);
const IDLE: Duration = Duration::from_secs(15);
/// A write that is still to come after a start would have come.
const SETTLED: Duration = Duration::from_secs(8);

#[expect(clippy::disallowed_methods, reason = "the test's own configuration")]
fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: this test needs a real API server, which scripts/test kube starts"
        )
    })
}

fn number(name: &str) -> usize {
    let text = setting(name);
    text.parse().unwrap_or_else(|error| panic!("{name} is {text:?}: {error}"))
}

/// The administrator, and the clock.
struct Bench {
    config: Config,
    client: Client,
    begun: Instant,
}

impl Bench {
    async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let path = setting("ATTACHD_TEST_KUBECONFIG");
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(path).unwrap(), &options);
        let config = config.await.unwrap();
        let client = Traffic::default().client(&config, "");
        Self { config, client, begun: Instant::now() }
    }

    fn say(&self, words: &str) {
        println!("{:6.1} s  {words}", self.begun.elapsed().as_secs_f64());
    }

    fn requests(&self) -> Api<VolumeAttachRequest> {
        Api::all(self.client.clone())
    }

    async fn create_node_objects(&self, nodes: &[Node]) {
        let api: Api<NodeObject> = Api::all(self.client.clone());
        let create = async |node: &Node| {
            let object = serde_json::from_value(json!({"metadata": {"name": node.name}})).unwrap();
            api.create(&PostParams::default(), &object).await.unwrap();
        };
        stream::iter(nodes).for_each_concurrent(AT_ONCE, create).await;
    }

    /// Starts the agents, as long before the first request as they need.
    async fn start(&self, nodes: &mut [Node]) {
        for node in nodes.iter_mut() {
            node.start(&self.config);
        }
        let begun = Instant::now();
        let watches = |node: &Node| {
            let reads = node.traffic.so_far().reads;
            ["watch nodeconnectors", "watch volumeattachrequests"]
                .iter()
                .all(|watch| reads.contains_key(*watch))
        };
        while !nodes.iter().all(watches) {
            assert!(begun.elapsed() < READY_LIMIT, "not all agents watch");
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Asks for everything, and waits until all of it is ready.
    async fn attach(&self, nodes: &[Node]) {
        let (api, begun) = (self.requests(), Instant::now());
        let all: Vec<_> = nodes.iter().flat_map(Node::requests).collect();
        let create = async |request| {
            let object = serde_json::from_value(request).unwrap();
            api.create(&PostParams::default(), &object).await.unwrap();
        };
        let count = all.len();
        stream::iter(all).for_each_concurrent(AT_ONCE, create).await;
        self.say(&format!("{count} requests created in {:.1} s", begun.elapsed().as_secs_f64()));
        let ended =
            |node: &Node| node.traffic.so_far().writes("events") >= node.requests().len() as u64;
        while !nodes.iter().all(ended) {
            assert!(
                begun.elapsed() < READY_LIMIT,
                "not ready after {} s: {:?}",
                READY_LIMIT.as_secs(),
                self.readiness().await
            );
            sleep(Duration::from_millis(200)).await;
        }
        sleep(Duration::from_secs(1)).await;
        let seconds = begun.elapsed().as_secs_f64();
        self.say(&format!(
            "{count} ready after {seconds:.1} s: {:.0} a second",
            count as f64 / seconds
        ));
    }

    /// How many requests have which word of condition Ready.
    async fn readiness(&self) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for request in self.requests().list(&ListParams::default()).await.unwrap() {
            let conditions = request.status.map(|status| status.conditions).unwrap_or_default();
            let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
            let word = ready
                .map_or("none".to_owned(), |ready| format!("{} {}", ready.status, ready.reason));
            *found.entry(word).or_default() += 1;
        }
        found
    }

    /// Writes that the API server counted, of attachd's resources and events.
    async fn writes_served(&self) -> f64 {
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let text = self.client.request_text(request).await.unwrap();
        let of_us = |line: &&str| {
            line.starts_with("apiserver_request_total{")
                && ["volumeattachrequests", "nodeconnectors", "events"]
                    .iter()
                    .any(|resource| line.contains(&format!("resource=\"{resource}\"")))
                && ["POST", "PUT", "PATCH", "APPLY", "DELETE"]
                    .iter()
                    .any(|verb| line.contains(&format!("verb=\"{verb}\"")))
        };
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        text.lines().filter(of_us).filter_map(value).sum()
    }

    /// Deletes everything that this test makes, and waits for the requests to go.
    async fn delete_all(&self, nodes: &[Node], limit: Duration) {
        let (api, begun) = (self.requests(), Instant::now());
        let names = nodes.iter().flat_map(|node| {
            let name = |request: serde_json::Value| {
                request["metadata"]["name"].as_str().unwrap().to_owned()
            };
            node.requests().into_iter().map(name).collect::<Vec<_>>()
        });
        let delete = async |name: String| match api.delete(&name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => panic!("could not delete {name}: {error}"),
        };
        stream::iter(names).for_each_concurrent(AT_ONCE, delete).await;
        while !api.list_metadata(&ListParams::default().limit(1)).await.unwrap().items.is_empty() {
            assert!(begun.elapsed() < limit, "requests are left after {} s", limit.as_secs());
            sleep(Duration::from_millis(500)).await;
        }
        self.say(&format!("all deleted in {:.1} s", begun.elapsed().as_secs_f64()));
    }

    /// Takes away what nobody else does.
    async fn clean_up(&self, nodes: &[Node]) {
        let api = self.requests();
        // Left where the test failed: without an agent, the finalizer would hold them for ever.
        let left = api.list_metadata(&ListParams::default()).await.unwrap();
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        let take_away = async |name: String| {
            let _ = api.patch_metadata(&name, &PatchParams::default(), &free).await;
            let _ = api.delete(&name, &DeleteParams::default()).await;
        };
        let names = left.into_iter().filter_map(|left| left.metadata.name);
        stream::iter(names).for_each_concurrent(AT_ONCE, take_away).await;
        let connectors: Api<NodeConnector> = Api::all(self.client.clone());
        let objects: Api<NodeObject> = Api::all(self.client.clone());
        for node in nodes {
            let _ = connectors.delete(&node.name, &DeleteParams::default()).await;
            let _ = objects.delete(&node.name, &DeleteParams::default()).await;
        }
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let ours = ListParams::default().fields("involvedObject.kind=VolumeAttachRequest");
        let _ = events.delete_collection(&DeleteParams::default(), &ours).await;
    }
}

/// What a number of agents counted.
struct Share {
    bytes: f64,
    objects: f64,
    writes: f64,
    most_bytes: f64,
}

/// Per agent, and the most of one; nothing of another node's was among it.
fn share(counts: &[Counts]) -> Share {
    let strangers: u64 = counts.iter().map(|counts| counts.strangers).sum();
    assert_eq!(strangers, 0, "agents received requests of other nodes");
    let mean =
        |of: fn(&Counts) -> u64| counts.iter().map(of).sum::<u64>() as f64 / counts.len() as f64;
    Share {
        bytes: mean(|counts| counts.bytes),
        objects: mean(|counts| counts.objects),
        writes: mean(Counts::all_writes),
        most_bytes: counts.iter().map(|counts| counts.bytes).max().unwrap_or_default() as f64,
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bytes, objects, writes, most_bytes } = self;
        write!(
            f,
            "per agent {:.1} KiB in {objects:.1} objects received (most {:.1} KiB), {writes:.2} writes",
            bytes / 1024.0,
            most_bytes / 1024.0
        )
    }
}

fn all(nodes: &[Node]) -> Vec<Counts> {
    nodes.iter().map(|node| node.traffic.so_far()).collect()
}

fn forget(nodes: &[Node]) {
    for node in nodes {
        node.traffic.take();
    }
}

/// What was written, and what was asked, by all of them.
fn kinds(counts: &[Counts]) -> String {
    let (mut sum, mut errors) = (BTreeMap::new(), BTreeMap::new());
    for counts in counts {
        for (what, count) in &counts.reads {
            *sum.entry(format!("read {what}")).or_insert(0) += count;
        }
        for (what, count) in &counts.writes {
            *sum.entry(format!("write {what}")).or_insert(0) += count;
        }
        for (status, count) in &counts.errors {
            *errors.entry(*status).or_insert(0) += count;
        }
    }
    let mut text = String::new();
    for (what, count) in sum {
        let _ = write!(text, "{what} {count}, ");
    }
    format!("{text}errors {errors:?}")
}

/// From creation to Ready, for each request and in sum.
fn assert_few_writes(nodes: &[Node], requests: usize) {
    let (mut all, mut more) = (0_usize, 0_usize);
    for node in nodes {
        let counts = node.traffic.so_far();
        for (name, writes) in &counts.writes_of {
            all += 1;
            more += usize::from(*writes > WRITES);
            assert!(
                *writes <= WRITES_AT_MOST,
                "{name}: {writes} writes to it from creation to Ready: {:?}",
                counts.writes
            );
        }
        let events = counts.writes("events");
        assert_eq!(
            events, requests as u64,
            "{}: {events} events for {requests} requests",
            node.name
        );
    }
    assert!(
        more as f64 <= SELDOM * all as f64,
        "{more} of {all} requests were written to more than {WRITES} times"
    );
}

async fn restart(bench: &Bench, nodes: &mut [Node]) -> Vec<Counts> {
    for node in nodes.iter() {
        node.stop();
    }
    for node in nodes.iter_mut() {
        node.ended().await;
    }
    forget(nodes);
    let before = bench.writes_served().await;
    bench.start(nodes).await;
    settle(nodes).await;
    let counts = all(nodes);
    bench.say(&format!("restart of {}: {}; {}", nodes.len(), share(&counts), kinds(&counts)));
    let served = bench.writes_served().await - before;
    let writes: u64 = counts.iter().map(Counts::all_writes).sum();
    assert!(
        writes == 0 && served == 0.0,
        "a restart with nothing changed wrote {writes} times, {served} by the API server's count: {}",
        kinds(&counts)
    );
    counts
}

/// Waits until no agent does anything on its node any more.
async fn settle(nodes: &[Node]) {
    let begun = Instant::now();
    let mut done = 0;
    loop {
        let before = done;
        done = nodes.iter().map(Node::operations).sum();
        if done == before && done > 0 {
            return;
        }
        assert!(begun.elapsed() < READY_LIMIT, "the agents find no end");
        sleep(SETTLED).await;
    }
}

fn assert_alike(what: &str, few: &Share, many: &Share) {
    let ratio = (many.bytes / few.bytes).max(many.objects / few.objects);
    assert!(
        ratio <= GROWTH,
        "{what}: an agent's share grows with the number of other nodes, {ratio:.2} times: {few}; {many}"
    );
}

async fn prove(bench: &Bench, nodes: &mut [Node], requests: usize) {
    bench.create_node_objects(nodes).await;
    let memory = resident();
    bench.start(&mut nodes[..FEW]).await;
    bench.attach(&nodes[..FEW]).await;
    let few = share(&all(&nodes[..FEW]));
    bench.say(&format!("{FEW} agents: {few}; {}", kinds(&all(&nodes[..FEW]))));
    assert_few_writes(&nodes[..FEW], requests);
    let few_restarted = share(&restart(bench, &mut nodes[..FEW]).await);

    forget(nodes);
    bench.start(&mut nodes[FEW..]).await;
    bench.attach(&nodes[FEW..]).await;
    for node in nodes.iter() {
        node.assert_attached();
    }
    let (first, others) = (all(&nodes[..FEW]), all(&nodes[FEW..]));
    let (idle, many) = (share(&first), share(&others));
    bench.say(&format!("{} more agents: {many}; {}", others.len(), kinds(&others)));
    bench.say(&format!("the first {FEW} meanwhile: {idle}; {}", kinds(&first)));
    bench.say(&format!(
        "memory: {:.2} MiB an agent, with its simulated node and storage",
        (resident() - memory) / nodes.len() as f64
    ));
    assert_few_writes(&nodes[FEW..], requests);
    assert_alike("attach", &few, &many);
    // An API server that has too much to do cuts watches, and where the news since then are more than it
    // keeps, agents list their own anew: that is the most there may be.
    assert!(
        idle.bytes <= few_restarted.bytes && idle.writes == 0.0,
        "agents with nothing to do had a share in the others' work: {idle}; their own is {few_restarted}"
    );
    assert_eq!(
        bench.readiness().await,
        BTreeMap::from([("True Attached".to_owned(), nodes.len() * requests)])
    );

    forget(nodes);
    let before = bench.writes_served().await;
    sleep(IDLE).await;
    let served = bench.writes_served().await - before;
    let counts = all(nodes);
    bench.say(&format!("idle for {} s: {}; {}", IDLE.as_secs(), share(&counts), kinds(&counts)));
    let writes: u64 = counts.iter().map(Counts::all_writes).sum();
    assert!(
        writes == 0 && served == 0.0,
        "idle agents wrote {writes} times, {served} by the API server's count"
    );

    let restarted = restart(bench, nodes).await;
    let many_restarted = share(&restarted[..FEW]);
    assert_alike("restart", &few_restarted, &many_restarted);

    forget(nodes);
    bench.delete_all(nodes, READY_LIMIT).await;
    let counts = all(nodes);
    bench.say(&format!("deletion: {}; {}", share(&counts), kinds(&counts)));
    for node in nodes.iter_mut() {
        node.ended().await;
        node.assert_nothing_left();
    }
}

/// MiB of this process.
fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib / 1024.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real API server: scripts/test kube"]
async fn an_agents_share_does_not_grow_with_the_cluster() {
    let (count, requests) = (number("ATTACHD_TEST_NODES"), number("ATTACHD_TEST_REQUESTS"));
    assert!(count >= 2 * FEW, "ATTACHD_TEST_NODES must be at least {}", 2 * FEW);
    println!("{count} nodes, {requests} requests each");
    let bench = Bench::new().await;
    let mut nodes: Vec<Node> = (0..count).map(|index| Node::new(index, requests)).collect();
    let result = AssertUnwindSafe(prove(&bench, &mut nodes, requests)).catch_unwind().await;
    for node in &mut nodes {
        node.ended().await;
    }
    bench.clean_up(&nodes).await;
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}
