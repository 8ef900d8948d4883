//! Metrics, probes and logs of a daemon on a simulated node.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod openmetrics;
mod simulation;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use attachd::{
    attach::{AttachError, Engine, EngineConfig, Origin},
    cinder::BlockStorage as _,
    metrics::{Measured, Metrics, Operation, RequestState, Scrape},
    model::AccessMode,
    testing::{Fault, SimCinder, SimHost, When},
};
use openmetrics::Exposition;
use simulation::{Node, STYLES};
use tokio::sync::watch;

type Measuring = Engine<SimHost, Measured<SimCinder>>;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn engine(node: &Node, metrics: &Metrics) -> Arc<Measuring> {
    let cinder = Measured::new(node.world.cinder(), metrics.clone());
    let host = node.world.host(node.volumes[0]);
    Arc::new(Engine::new(host, cinder, node.ledger.clone(), EngineConfig::default()))
}

async fn attach(node: &Node, engine: &Measuring, metrics: &Metrics) -> Result<bool, AttachError> {
    let (_keep, stop) = watch::channel(false);
    let timer = metrics.operation(Operation::Attach);
    let report = |progress| metrics.observe_progress(&progress);
    let result = engine.attach(&node.spec(0), &Origin::CommandLine, &report, &stop).await;
    let result = result.map(|attached| attached.changed);
    timer.end(result.as_ref().copied());
    result
}

async fn detach(node: &Node, engine: &Measuring, metrics: &Metrics) -> Result<bool, AttachError> {
    let (_keep, stop) = watch::channel(false);
    let timer = metrics.operation(Operation::Detach);
    let report = |progress| metrics.observe_progress(&progress);
    let result = engine.detach(node.volumes[0], &Origin::CommandLine, &report, &stop).await;
    timer.end(result.as_ref().copied());
    result
}

async fn scraped(metrics: &Metrics, engine: &Arc<Measuring>) -> Exposition {
    let scrape = Scrape::new(metrics.clone(), Arc::clone(engine));
    Exposition::parse(&scrape.text().await.unwrap())
}

fn about(value: Option<f64>, expected: f64) -> bool {
    value.is_some_and(|value| (value - expected).abs() < 0.01)
}

#[tokio::test(start_paused = true)]
async fn an_attach_and_a_detach_are_counted_with_their_steps_and_calls() {
    let node = Node::new(STYLES[0]);
    let metrics = Metrics::new();
    let engine = engine(&node, &metrics);
    let volume = node.volumes[0].to_string();
    assert!(attach(&node, &engine, &metrics).await.unwrap());
    assert!(!attach(&node, &engine, &metrics).await.unwrap());
    let seen = scraped(&metrics, &engine).await;
    let operations = |result| {
        let labels = [("operation", "attach"), ("result", result)];
        seen.value("attachd_operation_duration_seconds_count", &labels)
    };
    assert!(about(operations("success"), 1.0) && about(operations("unchanged"), 1.0));
    for step in ["reserve", "update", "log_in", "scan", "verify", "map", "mount", "complete"] {
        let labels = [("step", step), ("result", "success")];
        let count = seen.value("attachd_step_duration_seconds_count", &labels);
        assert!(count.is_some_and(|count| count >= 1.0), "{step}: {count:?}");
    }
    for call in ["show_volume", "reserve", "update", "complete", "show_attachment"] {
        let labels = [("operation", call), ("result", "success")];
        let count = seen.value("attachd_cinder_request_duration_seconds_count", &labels);
        assert!(about(count, 1.0), "{call}: {count:?}");
    }
    let paths =
        |state| seen.value("attachd_paths", &[("volume", volume.as_str()), ("state", state)]);
    assert!(about(paths("active"), 2.0) && about(paths("failing"), 0.0));
    assert!(about(seen.value("attachd_attachments", &[("state", "attached")]), 1.0));
    assert!(about(seen.value("attachd_sessions", &[("state", "logged_in")]), 2.0));

    assert!(detach(&node, &engine, &metrics).await.unwrap());
    let seen = scraped(&metrics, &engine).await;
    assert!(seen.values_of("volume").is_empty(), "{:?}", seen.values_of("volume"));
    assert!(about(seen.value("attachd_attachments", &[("state", "attached")]), 0.0));
    assert!(about(seen.value("attachd_sessions", &[("state", "logged_in")]), 0.0));
    for step in
        ["unmount", "remove_map", "delete_devices", "log_out", "delete_attachment", "forget"]
    {
        let labels = [("step", step), ("result", "success")];
        let count = seen.value("attachd_step_duration_seconds_count", &labels);
        assert!(count.is_some_and(|count| count >= 1.0), "{step}: {count:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_path_shows_as_degraded_and_without_a_session() {
    let node = Node::new(STYLES[0]);
    let metrics = Metrics::new();
    let engine = engine(&node, &metrics);
    attach(&node, &engine, &metrics).await.unwrap();
    let target = node.paths(0)[1].target.clone();
    node.world.state().somebody_logs_out(&target);
    let seen = scraped(&metrics, &engine).await;
    let volume = node.volumes[0].to_string();
    let paths =
        |state| seen.value("attachd_paths", &[("volume", volume.as_str()), ("state", state)]);
    assert!(about(paths("active"), 1.0) && about(paths("no_session"), 1.0), "{seen:?}");
    assert!(about(seen.value("attachd_attachments", &[("state", "degraded")]), 1.0));
    assert!(about(seen.value("attachd_attachments", &[("state", "attached")]), 0.0));
}

/// The reasons in the manual's table; `tests/documents.rs` compares them with the code.
fn reasons() -> BTreeSet<String> {
    let manual = read("docs/operations.md");
    let rows = manual.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let words = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let found: BTreeSet<String> = words
        .filter(|word| {
            word.starts_with(char::is_uppercase) && word.chars().all(char::is_alphanumeric)
        })
        .map(ToOwned::to_owned)
        .collect();
    assert!(found.len() > 50, "{found:?}");
    found
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_and_wherever_no_label_is_out_of_its_closed_set() {
    let metrics = Metrics::new();
    let mut failures = 0;
    let mut last = None;
    for fault in [Fault::Error(When::Before), Fault::Error(When::After), Fault::Busy] {
        for ahead in 0..40 {
            let node = Node::new(STYLES[0]);
            let engine = engine(&node, &metrics);
            node.world.plan_fault(ahead, fault);
            if let Err(error) = attach(&node, &engine, &metrics).await {
                metrics.retry(Operation::Attach, error.reason());
                failures += 1;
            }
            if let Err(error) = detach(&node, &engine, &metrics).await {
                metrics.retry(Operation::Detach, error.reason());
            }
            last = Some((node, engine));
        }
    }
    assert!(failures > 20, "{failures} attaches failed");
    let (_node, engine) = last.unwrap();
    let seen = scraped(&metrics, &engine).await;
    let mut results = reasons();
    let reasons = seen.values_of("reason");
    assert!(reasons.len() > 2 && reasons.is_subset(&results), "{reasons:?}");
    results.extend(["success", "unchanged", "error"].map(ToOwned::to_owned));
    let seen_results = seen.values_of("result");
    assert!(seen_results.is_subset(&results), "{seen_results:?}");
    // What the table in the manual lists, and nothing else.
    let table = read("docs/metrics.md");
    for label in ["operation", "step", "state"] {
        for value in seen.values_of(label) {
            assert!(table.contains(&format!("`{value}`")), "docs/metrics.md lacks {label} {value}");
        }
    }
}

#[tokio::test]
async fn each_call_of_cinder_is_measured_under_its_name_with_its_result() {
    let node = Node::new(STYLES[0]);
    let metrics = Metrics::new();
    let cinder = Measured::new(node.world.cinder(), metrics.clone());
    let volume = node.volumes[0];
    cinder.volume(volume).await.unwrap();
    let id = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap().summary.id;
    cinder.update(id, &attachd::testing::node_facts().connector).await.unwrap();
    cinder.complete(id).await.unwrap();
    cinder.attachment(id).await.unwrap();
    cinder.attachments_of(volume).await.unwrap();
    cinder.reserve(volume, None, AccessMode::Rw).await.unwrap_err();
    node.world.plan_fault(0, Fault::Error(When::Before));
    cinder.delete(id).await.unwrap_err();
    cinder.delete(id).await.unwrap();
    cinder.complete(id).await.unwrap_err();
    let seen = Exposition::parse(&metrics.encode(None).unwrap());
    let family = &seen.0["attachd_cinder_request_duration_seconds"];
    let counts: BTreeMap<(&str, &str), f64> = family
        .samples
        .iter()
        .filter(|(name, _, _)| name.ends_with("_count"))
        .map(|(_, labels, value)| ((&*labels["operation"], &*labels["result"]), *value))
        .collect();
    let expected = [
        ("complete", "CinderNotFound"),
        ("complete", "success"),
        ("delete", "CinderFault"),
        ("delete", "success"),
        ("list_attachments", "success"),
        ("reserve", "CinderRefused"),
        ("reserve", "success"),
        ("show_attachment", "success"),
        ("show_volume", "success"),
        ("update", "success"),
    ];
    assert!(counts.keys().eq(expected.iter()), "{counts:?}");
    assert!(counts.values().all(|count| about(Some(*count), 1.0)), "{counts:?}");
}

#[tokio::test]
async fn a_request_is_counted_where_it_stands_and_only_while_it_is_there() {
    let metrics = Metrics::new();
    let value = |sample: &str, labels: &[(&str, &str)]| {
        Exposition::parse(&metrics.encode(None).unwrap()).value(sample, labels).unwrap()
    };
    let of = |state| value("attachd_requests", &[("state", state)]);
    let mut request = metrics.request(RequestState::Attaching);
    let other = metrics.request(RequestState::Attaching);
    assert!(about(Some(of("attaching")), 2.0));
    request.set(RequestState::Attached);
    assert!(about(Some(of("attaching")), 1.0) && about(Some(of("attached")), 1.0));
    drop((request, other));
    assert!(about(Some(of("attaching")), 0.0) && about(Some(of("attached")), 0.0));
    let queued = metrics.queued();
    assert!(about(Some(value("attachd_requests_queued", &[])), 1.0));
    drop(queued);
    assert!(about(Some(value("attachd_requests_queued", &[])), 0.0));
}

#[tokio::test(start_paused = true)]
async fn the_table_in_the_documents_is_what_a_scrape_shows() {
    let node = Node::new(STYLES[0]);
    let metrics = Metrics::new();
    let engine = engine(&node, &metrics);
    attach(&node, &engine, &metrics).await.unwrap();
    metrics.retry(Operation::Attach, AttachError::NoProgress { step: String::new() }.reason());
    let shown: BTreeSet<String> = scraped(&metrics, &engine)
        .await
        .0
        .iter()
        .map(|(name, family)| {
            let labels: Vec<String> =
                family.label_names().iter().map(|label| format!("`{label}`")).collect();
            let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
            format!("| `{name}` | {} | {labels} |", family.kind)
        })
        .collect();
    let table = read("docs/metrics.md");
    let rows = table
        .lines()
        .filter(|row| row.starts_with("| `attachd_") || row.starts_with("| `process_"));
    let told: BTreeSet<String> = rows
        .map(|row| row.match_indices('|').nth(3).map(|(at, _)| row[..=at].to_owned()).unwrap())
        .collect();
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| -> Vec<String> {
        a.difference(b).cloned().collect()
    };
    assert_eq!(
        shown,
        told,
        "shown only: {:#?}, told only: {:#?}",
        only(&shown, &told),
        only(&told, &shown)
    );
}
