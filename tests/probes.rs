//! A daemon on a simulated node, seen from outside: probes, scrapes and the log.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod captured;
mod openmetrics;
mod simulation;

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use attachd::{
    attach::{Engine, EngineConfig},
    health::{Endpoints, Liveness, Readiness, Server, Vitals},
    metrics::{CONTENT_TYPE, Measured, Metrics, Scrape},
    requests::{BEAT, Lookout},
    requests_dir::{self, RequestsDir, RequestsDirConfig},
    testing::{SimCinder, SimHost},
};
use captured::Captured;
use openmetrics::Exposition;
use serde_json::Value;
use simulation::{Node, STYLES};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{oneshot, watch},
    task::{JoinHandle, LocalSet, spawn_local},
    time::{Instant, sleep, timeout},
};

fn engine(node: &Node, metrics: &Metrics) -> Arc<Engine<SimHost, Measured<SimCinder>>> {
    let cinder = Measured::new(node.world.cinder(), metrics.clone());
    let host = node.world.host(node.volumes[0]);
    Arc::new(Engine::new(host, cinder, node.ledger.clone(), EngineConfig::default()))
}

struct Served {
    address: SocketAddr,
    readiness: Readiness,
    liveness: Liveness,
    end: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

async fn serve() -> Served {
    let node = Node::new(STYLES[0]);
    let metrics = Metrics::new();
    let scrape = Some(Scrape::new(metrics.clone(), engine(&node, &metrics)));
    let (readiness, liveness) = (Readiness::new(&["node"]), Liveness::default());
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = server.address().unwrap();
    let endpoints = Endpoints { liveness: liveness.clone(), readiness: readiness.clone(), scrape };
    let (end, ended) = oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        let _node = node;
        server.serve(endpoints, async { ended.await.unwrap_or_default() }).await;
    });
    Served { address, readiness, liveness, end, server }
}

/// Status, headers (in lower case) and body.
async fn ask(address: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{request}\r\nHost: node\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    // To the end: the server hangs up.
    timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

async fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    ask(address, &format!("GET {path} HTTP/1.1")).await
}

#[tokio::test]
async fn probes_say_by_status_and_line_what_is_well_and_what_is_not() {
    let served = serve().await;
    let heart = served.liveness.heartbeat("serving", Duration::from_millis(200));
    let (status, _, body) = get(served.address, "/readyz").await;
    assert_eq!((status, &*body), (503, "[-] node: not looked at yet\nfailed\n"));
    served.readiness.set("node", Err("iscsid doesn't answer; start it".to_owned()));
    let (status, _, body) = get(served.address, "/readyz").await;
    assert_eq!((status, &*body), (503, "[-] node: iscsid doesn't answer; start it\nfailed\n"));
    served.readiness.set("node", Ok(()));
    let (status, head, body) = get(served.address, "/readyz?verbose").await;
    assert_eq!((status, &*body), (200, "[+] node: ok\nok\n"));
    assert!(head.contains("content-type: text/plain"), "{head}");

    heart.beat();
    assert_eq!(get(served.address, "/livez").await.0, 200);
    sleep(Duration::from_millis(400)).await;
    let (status, _, body) = get(served.address, "/livez").await;
    assert!(status == 503 && body.starts_with("[-] serving: it stands still"), "{status} {body}");
    heart.beat();
    assert_eq!(get(served.address, "/livez").await.0, 200);
}

#[tokio::test]
async fn a_scrape_is_openmetrics_and_other_paths_and_methods_are_told_so() {
    let served = serve().await;
    let began = Instant::now();
    let (status, head, body) = get(served.address, "/metrics").await;
    assert_eq!(status, 200);
    assert!(head.contains(&format!("content-type: {CONTENT_TYPE}")), "{head}");
    let seen = Exposition::parse(&body);
    assert!(seen.0.contains_key("attachd_build") && seen.0.contains_key("attachd_attachments"));
    let (status, _, body) = get(served.address, "/").await;
    assert!(status == 404 && body.contains("/readyz"), "{status} {body}");
    assert_eq!(ask(served.address, "POST /metrics HTTP/1.1").await.0, 405);
    assert_eq!(ask(served.address, "HEAD /livez HTTP/1.1").await.0, 200);
    // Nobody waits for the end of a connection.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let mut nonsense = TcpStream::connect(served.address).await.unwrap();
    nonsense.write_all(&[0xff; 4096]).await.unwrap();
    assert_eq!(get(served.address, "/livez").await.0, 200);
}

#[tokio::test]
async fn a_program_that_measures_nothing_answers_probes_and_has_no_metrics() {
    let (readiness, liveness) = (Readiness::new(&["kubernetes"]), Liveness::default());
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = server.address().unwrap();
    let endpoints = Endpoints { liveness, readiness: readiness.clone(), scrape: None };
    let (_end, ended) = oneshot::channel::<()>();
    tokio::spawn(server.serve(endpoints, async { ended.await.unwrap_or_default() }));
    assert_eq!(get(address, "/livez").await.0, 200);
    assert_eq!(get(address, "/readyz").await.0, 503);
    readiness.set("kubernetes", Ok(()));
    assert_eq!(get(address, "/readyz").await.0, 200);
    let (status, _, body) = get(address, "/metrics").await;
    assert_eq!((status, &*body), (404, "try /livez or /readyz\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_clients_that_hang_nor_many_at_once_keep_a_probe_out() {
    let served = serve().await;
    served.readiness.set("node", Ok(()));
    let mut hanging = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"GET /metrics HT").await.unwrap();
        hanging.push(stream);
    }
    let began = Instant::now();
    assert_eq!(get(served.address, "/readyz").await.0, 200);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let many = (0..40).map(|index| {
        let path = ["/livez", "/readyz", "/metrics"][index % 3];
        let address = served.address;
        tokio::spawn(async move { get(address, path).await.0 })
    });
    for status in futures::future::join_all(many).await {
        assert_eq!(status.unwrap(), 200);
    }
}

#[tokio::test]
async fn the_server_ends_when_it_is_told_to() {
    let served = serve().await;
    assert_eq!(get(served.address, "/livez").await.0, 200);
    served.end.send(()).unwrap();
    timeout(Duration::from_secs(5), served.server).await.unwrap().unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
}

/// The logged lines of work on requests.
fn of_work(log: &Captured) -> Vec<Value> {
    let text = log.text();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let work = ["attachd::attach", "attachd::requests::worker"];
    let of_work = |line: &Value| {
        let target = line["target"].as_str().unwrap();
        work.iter().any(|start| target.starts_with(start))
    };
    lines.filter(of_work).collect()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("{what} never came");
}

fn request(directory: &Path, node: &Node) {
    let volume = node.volumes[0];
    let text = format!(
        "apiVersion: attachd.dev/v1alpha1\nkind: VolumeAttachRequest\nmetadata: {{name: db}}\nspec: {{nodeName: n1, volumeID: {volume}}}\n"
    );
    fs::write(directory.join("db.yaml"), text).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_request_is_followed_through_log_metrics_and_readiness() {
    // On this thread, where the log is caught.
    LocalSet::new().run_until(follow_a_request()).await;
}

async fn follow_a_request() {
    let log = Captured::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .finish();
    let _default = tracing::subscriber::set_default(subscriber);

    let node = Node::new(STYLES[0]);
    let metrics = Metrics::new();
    let engine = engine(&node, &metrics);
    let directory = tempfile::tempdir().unwrap();
    let (readiness, liveness) = (Readiness::new(&[requests_dir::CHECK]), Liveness::default());
    let config = RequestsDirConfig {
        directory: directory.path().to_owned(),
        node_name: "n1".to_owned(),
        mounts_dir: "/var/lib/attachd/mounts".into(),
        longest_pause: Duration::from_mins(1),
        lookout: Lookout::start(Arc::clone(&engine), liveness.heartbeat("lookout", BEAT * 3)),
        heal: true,
    };
    let heartbeat = liveness.heartbeat("serving", BEAT * 3);
    let vitals = Vitals { metrics: metrics.clone(), readiness: readiness.clone(), heartbeat };
    let (stop, stopped) = watch::channel(false);
    let permits = Arc::new(tokio::sync::Semaphore::new(1));
    let serving =
        spawn_local(RequestsDir::new(Arc::clone(&engine), permits, config, vitals).serve(stopped));
    let scrape = || {
        let scrape = Scrape::new(metrics.clone(), Arc::clone(&engine));
        async move { Exposition::parse(&scrape.text().await.unwrap()) }
    };
    let status = || fs::read_to_string(directory.path().join("db.status.yaml")).unwrap_or_default();

    until("readiness", || readiness.report().is_well()).await;
    node.world.state().reset_status(node.volumes[0], "maintenance");
    request(directory.path(), &node);
    until("the refusal", || status().contains("VolumeNotAvailable")).await;
    let seen = scrape().await;
    assert!(seen.value("attachd_requests", &[("state", "failed")]).unwrap() > 0.5);
    let retries = [("operation", "attach"), ("reason", "VolumeNotAvailable")];
    assert!(seen.value("attachd_retries_total", &retries).unwrap() > 0.5);

    node.world.state().reset_status(node.volumes[0], "available");
    until("the attach", || status().contains("reason: Attached")).await;
    let seen = scrape().await;
    assert!(seen.value("attachd_requests", &[("state", "attached")]).unwrap() > 0.5);
    assert!(seen.value("attachd_attachments", &[("state", "attached")]).unwrap() > 0.5);
    fs::remove_file(directory.path().join("db.yaml")).unwrap();
    until("the detach", || status().is_empty()).await;
    sleep(Duration::from_secs(10)).await;
    let seen = scrape().await;
    for state in ["attaching", "attached", "detaching", "failed"] {
        assert!(seen.value("attachd_requests", &[("state", state)]).unwrap() < 0.5, "{state}");
    }
    for operation in ["attach", "detach"] {
        let labels = [("operation", operation), ("result", "success")];
        let count = seen.value("attachd_operation_duration_seconds_count", &labels);
        assert!(count.is_some_and(|count| count > 0.5), "{operation}: {count:?}");
    }
    assert!(liveness.report().is_well());
    fs::remove_dir(directory.path()).unwrap();
    until("the trouble", || !readiness.report().is_well()).await;
    let report = readiness.report().to_string();
    assert!(report.contains("[-] requests-dir: reading"), "{report}");
    stop.send_replace(true);
    serving.await.unwrap().unwrap();

    let (volume, lines) = (node.volumes[0].to_string(), of_work(&log));
    assert!(lines.len() > 30, "{} lines", lines.len());
    let mut attachment = None;
    for line in &lines {
        let span = &line["span"];
        assert_eq!((&span["name"], &span["request"]), (&"request".into(), &"db".into()), "{line}");
        assert_eq!(span["volume"], *volume, "{line}");
        let message = line["fields"]["message"].as_str().unwrap();
        if message.starts_with("reserve volume") {
            attachment = span["attachment"].as_str().map(ToOwned::to_owned);
            assert!(attachment.is_some(), "{line}");
        }
        if attachment.is_some() {
            assert_eq!(span["attachment"].as_str(), attachment.as_deref(), "{line}");
        }
    }
    assert!(attachment.is_some());
}
