//! The journal of runs on the simulated node, and of what the real clients and programs say in between.
#![allow(clippy::unwrap_used)]

mod simulation;

use std::{
    fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use attachd::{
    attach::{AttachError, Engine, EngineConfig, Origin},
    cinder::{Auth, Client, ClientConfig},
    journal::{Entry, Files, History, Journal, Limits, Line, Run},
    model::VolumeId,
    testing::{Fault, Style, When, secrets_in},
};
use simulation::{End, Node, STYLES};
use tokio::sync::watch;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt as _;
use wiremock::{Mock, MockServer, ResponseTemplate, matchers::any};

/// More than any of these tests needs on the slowest machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A journal of what this thread does. One at a time: what tracing records depends on the threads beside it.
struct Kept {
    journal: Journal,
    _subscriber: DefaultGuard,
    _alone: MutexGuard<'static, ()>,
}

fn keep(node: &Node, limits: Limits) -> Kept {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let journal = Journal::below(node.directory.path(), limits);
    let subscriber = tracing_subscriber::registry().with(journal.layer());
    let subscriber = tracing::subscriber::set_default(subscriber);
    Kept { journal, _subscriber: subscriber, _alone: alone }
}

fn history(node: &Node, kept: &Kept) -> History {
    kept.journal.finish(LIMIT);
    let volume = node.volumes[0];
    let files = Files::below(node.directory.path(), Limits::default());
    History::of(volume, &files.read(volume).unwrap())
}

/// What a run did, in words: `attach`, its steps, its outcome.
fn told(run: &Run) -> Vec<String> {
    let words = |line: &Line| match &line.entry {
        Entry::Began { doing, .. } => Some(doing.clone()),
        Entry::StepEnded { step, ok, .. } => {
            let first = step.split(' ').next().unwrap_or_default();
            Some(format!("{}{first}", if *ok { "" } else { "failed " }))
        }
        Entry::Ended { outcome, .. } => Some(outcome.clone()),
        _ => None,
    };
    run.lines.iter().filter_map(words).collect()
}

#[tokio::test(start_paused = true)]
async fn an_attach_and_a_detach_are_told_with_every_step_and_its_time() {
    for style in STYLES {
        let mut node = Node::new(style);
        let kept = keep(&node, Limits::default());
        let spec = node.spec(0);
        node.attach(&spec).await.unwrap();
        node.attach(&spec).await.unwrap();
        node.detach(spec.volume).await.unwrap();
        let history = history(&node, &kept);
        let [attach, again, detach] = &history.runs[..] else { panic!("{history:?}") };
        let steps = told(attach);
        assert_eq!(
            (&*steps[0], &*steps[1], &*steps[steps.len() - 1]),
            ("attach", "reserve", "Attached")
        );
        assert!(steps.iter().any(|step| step == "mount"), "{steps:?}");
        assert_eq!(told(again), ["attach", "Attached"]);
        let steps = told(detach);
        assert_eq!(
            (&*steps[0], &*steps[1], &*steps[steps.len() - 1]),
            ("detach", "unmount", "Detached")
        );
        for run in [attach, detach] {
            let begun =
                run.lines.iter().filter(|line| matches!(line.entry, Entry::StepBegan { .. }));
            assert_eq!(begun.count(), told(run).len() - 2);
            assert!(run.items().iter().all(|item| item.ok), "{:#?}", run.items());
        }
        assert_eq!((history.lost_lines, history.broken_lines, history.newer_lines), (0, 0, 0));
        assert_eq!(secrets_in(node.directory.path()), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_another_that_works_on_the_volume_is_told_to_have_waited() {
    let node = Node::new(Style::TargetPerVolume);
    let kept = keep(&node, Limits::default());
    node.world.jitter(200, 7);
    let (spec, origin) = (node.spec(0), Origin::RequestsDir("db".to_owned()));
    let (_keep, stop) = watch::channel(false);
    let (one, other) = (node.engine(spec.volume), node.engine(spec.volume));
    let (first, second) = tokio::join!(
        one.attach(&spec, &origin, &|_| {}, &stop),
        other.attach(&spec, &origin, &|_| {}, &stop)
    );
    assert!(first.unwrap().changed && !second.unwrap().changed);
    let history = history(&node, &kept);
    let waits = |run: &Run| {
        let waits = run.lines.iter().filter_map(|line| match &line.entry {
            Entry::Waited { what, ms } => Some((what.clone(), *ms)),
            _ => None,
        });
        waits.collect::<Vec<_>>()
    };
    let waits: Vec<_> = history.runs.iter().flat_map(waits).collect();
    assert_eq!(waits.len(), 1, "{waits:?}");
    assert!(waits[0].0.contains("the lock of this volume") && waits[0].1 > 100, "{waits:?}");
    assert!(history.runs.iter().all(|run| run.request() == Some("db")));
}

#[tokio::test(start_paused = true)]
async fn an_attach_that_fails_at_any_step_is_told_with_the_step_and_the_reason() {
    let mut node = Node::new(Style::TargetPerVolume);
    let spec = node.spec(0);
    node.attach(&spec).await.unwrap();
    for at in 0..node.world.operations() {
        let mut node = Node::new(Style::TargetPerVolume);
        let kept = keep(&node, Limits::default());
        let spec = node.spec(0);
        node.world.plan_fault(at, Fault::Error(When::Before));
        let result = node.attach_or_roll_back(&spec).await;
        let history = history(&node, &kept);
        let [run] = &history.runs[..] else { panic!("{history:?}") };
        let outcome = match &result {
            Ok(_) => "Attached",
            Err(End::Error(error)) => error.reason(),
            Err(end) => panic!("{end:?}"),
        };
        let Some(Entry::Ended { outcome: ended, error, .. }) = run.lines.last().map(|l| &l.entry)
        else {
            panic!("operation {at}: {run:?}");
        };
        assert_eq!((ended.as_str(), error.is_some()), (outcome, result.is_err()), "operation {at}");
        assert_eq!(secrets_in(node.directory.path()), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_cut_short_anywhere_is_told_and_the_next_one_after_it() {
    let mut node = Node::new(Style::TargetPerVolume);
    let spec = node.spec(0);
    node.attach(&spec).await.unwrap();
    for at in 0..node.world.operations() {
        let mut node = Node::new(Style::TargetPerVolume);
        let kept = keep(&node, Limits::default());
        let spec = node.spec(0);
        node.world.plan_fault(at, Fault::Crash(When::After));
        assert!(matches!(node.attach(&spec).await, Err(End::Killed)), "operation {at}");
        let next = match node.attach(&spec).await {
            Ok(_) => "Attached",
            Err(end) => end.reason(),
        };
        let history = history(&node, &kept);
        let [cut, whole] = &history.runs[..] else { panic!("operation {at}: {history:?}") };
        assert_eq!(told(cut).last().unwrap(), "Abandoned", "operation {at}");
        assert_eq!(told(whole).last().unwrap(), next, "operation {at}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_fails_no_attach_and_what_is_missing_is_counted() {
    let mut node = Node::new(Style::TargetPerVolume);
    let spec = node.spec(0);
    {
        let full = Limits { spare_bytes: u64::MAX, ..Limits::default() };
        let kept = keep(&node, full);
        node.attach(&spec).await.unwrap();
        let history = history(&node, &kept);
        assert!(history.runs.is_empty(), "{history:?}");
    }
    // The directory away, for any reason.
    fs::remove_dir_all(node.directory.path().join("journal")).unwrap();
    let kept = keep(&node, Limits::default());
    node.detach(spec.volume).await.unwrap();
    kept.journal.finish(LIMIT);
    fs::create_dir(node.directory.path().join("journal")).unwrap();
    node.attach(&spec).await.unwrap();
    let history = history(&node, &kept);
    assert!(history.lost_lines > 10, "{history:?}");
    assert_eq!(told(&history.runs[0]).last().unwrap(), "Attached");
}

/// What a failing Cinder is told of: its answers' ids, and no token.
#[tokio::test]
async fn requests_to_cinder_are_told_with_their_ids_and_without_secrets() {
    let server = MockServer::start().await;
    let answer = ResponseTemplate::new(500)
        .insert_header("x-openstack-request-id", "req-of-cinder")
        .set_body_string(r#"{"computeFault": {"message": "no", "code": 500}}"#);
    Mock::given(any()).respond_with(answer).mount(&server).await;
    let node = Node::new(Style::TargetPerVolume);
    let kept = keep(&node, Limits::default());
    let auth = Auth::basic(&server.uri(), "project", "user", "PLANTED".to_owned().into()).unwrap();
    let client = Client::new(auth, ClientConfig::default()).unwrap();
    let spec = node.spec(0);
    let engine = Engine::new(
        node.world.host(spec.volume),
        client,
        node.ledger.clone(),
        EngineConfig::default(),
    );
    let (_keep, stop) = watch::channel(false);
    let origin = Origin::Cluster("db".to_owned());
    let failed = engine.attach(&spec, &origin, &|_| {}, &stop).await;
    assert!(matches!(failed, Err(AttachError::Cinder { .. })), "{failed:?}");
    let history = history(&node, &kept);
    let run = &history.runs[0];
    assert_eq!(run.request(), Some("db"));
    let asked = run.lines.iter().find_map(|line| match &line.entry {
        Entry::Http { service, method, path, status, request_id, .. } => {
            Some((&**service, &**method, path.clone(), *status, request_id.clone()))
        }
        _ => None,
    });
    let (service, method, path, status, id) = asked.unwrap();
    assert_eq!(
        (service, method, status, id.as_deref()),
        ("Cinder", "GET", Some(500), Some("req-of-cinder"))
    );
    assert!(path.contains(&spec.volume.to_string()), "{path}");
    assert_eq!(told(run), ["attach", "CinderFault"]);
    let text = fs::read_to_string(newer(node.directory.path(), spec.volume)).unwrap();
    // Plainly, or as it goes over the wire.
    assert!(!text.contains("PLANTED") && !text.contains("dXNlcjpQTEFO"), "{text}");
}

fn newer(state: &Path, volume: VolumeId) -> std::path::PathBuf {
    state.join("journal").join(format!("{volume}.jsonl"))
}

/// Prints what it costs: bytes, and time as seen by the one who attaches.
#[tokio::test(start_paused = true)]
async fn an_attach_with_its_detach_costs_few_bytes_and_little_time() {
    let mut node = Node::new(Style::TargetPerVolume);
    let runs = 40;
    let mut took = [Duration::ZERO; 2];
    for number in 0..2 * runs {
        let kept = number % 2;
        let journal = (kept == 1).then(|| keep(&node, Limits::default()));
        let spec = node.spec(0);
        let begin = Instant::now();
        node.attach(&spec).await.unwrap();
        node.detach(spec.volume).await.unwrap();
        took[kept] += begin.elapsed();
        if let Some(kept) = &journal {
            kept.journal.finish(LIMIT);
        }
    }
    let files = Files::below(node.directory.path(), Limits::default());
    let bytes = files.read(node.volumes[0]).unwrap().len() / runs;
    let [without, with] = took.map(|took| took / u32::try_from(runs).unwrap());
    println!("{bytes} bytes a pair, {with:?} with the journal, {without:?} without");
    assert!(bytes > 1000 && bytes < 16 << 10, "{bytes} bytes");
}
