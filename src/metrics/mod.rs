//! What attachd counts and measures, for Prometheus, in the `OpenMetrics` text format.
//!
//! ```text
//!   request workers ─► Metrics ──────────────┐
//!   Measured<Cinder> ──┘                     ├─► Scrape ─► text
//!   ledger, kernel ─► NodeState (per scrape) ┤
//!   /proc/self ─► process ───────────────────┘
//! ```
//!
//! Every label has a closed set of values, but for `volume`: that one lasts as long as the volume is
//! attached to this node, since [`NodeState`] is made anew for each scrape. `docs/metrics.md` has the
//! table; a test compares the two.

mod measured;
mod node;
mod process;
mod scrape;

use std::{fmt, sync::Arc};

use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};
use tokio::time::Instant;

pub use measured::Measured;
pub use node::NodeState;
pub use scrape::Scrape;

use crate::attach::{AttachError, Phase, Progress};

/// The content type of [`Scrape::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// In seconds. A healthy Cinder answers, and a step of the kernel ends, below 0.5; an attach takes 1
/// to 10, a format up to 30; 20 and 60 are time limits of commands and of the patience for devices,
/// 120 that of a Cinder that makes an export.
const BUCKETS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0];

/// `result` of what was done.
const SUCCESS: &str = "success";
/// `result` of an operation that found everything as asked: it says nothing about how fast attaching is.
const UNCHANGED: &str = "unchanged";
/// `result` of a step that failed; why is told by its operation.
const ERROR: &str = "error";

/// What a request has done for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Attach a volume.
    Attach,
    /// Detach it.
    Detach,
    /// Bring back what is missing of an attached one.
    Heal,
}

impl Operation {
    const fn label(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Heal => "heal",
        }
    }
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestState {
    /// Its volume is being attached, or waits for its turn.
    Attaching,
    /// Its volume is attached.
    Attached,
    /// Its volume is being detached, or waits for its turn.
    Detaching,
    /// The last try failed; another comes after a pause or with a change of the request.
    Failed,
}

impl RequestState {
    const ALL: [Self; 4] = [Self::Attaching, Self::Attached, Self::Detaching, Self::Failed];

    const fn label(self) -> &'static str {
        match self {
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    step: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RetryLabels {
    operation: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

fn durations<L: Clone + Eq + std::hash::Hash>() -> Durations<L> {
    Family::new_with_constructor(|| Histogram::new(BUCKETS))
}

/// Counts and measures. Clones share their numbers.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    operations: Durations<OperationLabels>,
    steps: Durations<StepLabels>,
    cinder: Durations<OperationLabels>,
    retries: Family<RetryLabels, Counter>,
    requests: Family<StateLabel, Gauge>,
    queued: Gauge,
    scrape_errors: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Arc::default(),
            operations: durations(),
            steps: durations(),
            cinder: durations(),
            retries: Family::default(),
            requests: Family::default(),
            queued: Gauge::default(),
            scrape_errors: Counter::default(),
        };
        // A series that is there from the start can be told from one that is missing.
        for state in RequestState::ALL {
            metrics.requests.get_or_create(&StateLabel { state: state.label() }).set(0);
        }
        metrics.registry = Arc::new(metrics.registered());
        metrics
    }

    fn registered(&self) -> Registry {
        let mut registry = Registry::with_prefix("attachd");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that runs", version);
        registry.register_with_unit(
            "operation_duration",
            "How long attaches, detaches and heals of requests took, each try by itself",
            Unit::Seconds,
            self.operations.clone(),
        );
        registry.register_with_unit(
            "step_duration",
            "How long the steps of attaches and detaches took",
            Unit::Seconds,
            self.steps.clone(),
        );
        registry.register_with_unit(
            "cinder_request_duration",
            "How long Cinder's answers took, repetitions of the client included",
            Unit::Seconds,
            self.cinder.clone(),
        );
        registry.register(
            "retries",
            "Tries that failed and are followed by another one, by why they failed",
            self.retries.clone(),
        );
        registry.register(
            "requests",
            "Requests that are worked on or served, by where they stand",
            self.requests.clone(),
        );
        registry.register(
            "requests_queued",
            "Requests that wait for their turn, since as many are worked on as may be at once",
            self.queued.clone(),
        );
        registry.register(
            "scrape_errors",
            "Scrapes without the node's attachments, paths and sessions, since the node or the ledger could not be looked at in time",
            self.scrape_errors.clone(),
        );
        registry
    }

    /// Begins to measure an operation.
    pub fn operation(&self, operation: Operation) -> OperationTimer {
        OperationTimer { metrics: self.clone(), operation, began: Instant::now() }
    }

    /// Takes note of a step that ended.
    pub fn observe_progress(&self, progress: &Progress) {
        let (phase, took, result) = match progress {
            Progress::Done { phase, took, .. } => (phase, took, SUCCESS),
            Progress::Failed { phase, took, .. } => (phase, took, ERROR),
            Progress::Lost
            | Progress::GivenUp { .. }
            | Progress::Started { .. }
            | Progress::Waiting { .. }
            | Progress::Warning { .. } => {
                return;
            }
        };
        let labels = StepLabels { step: step(*phase), result };
        self.steps.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a failure that another try follows; `reason` is the word of an error's `reason()`.
    pub fn retry(&self, operation: Operation, reason: &'static str) {
        let labels = RetryLabels { operation: operation.label(), reason };
        self.retries.get_or_create(&labels).inc();
    }

    /// A request that waits for its turn, until this is dropped.
    pub fn queued(&self) -> Queued {
        self.queued.inc();
        Queued(self.queued.clone())
    }

    /// A request that is served, until this is dropped.
    pub fn request(&self, state: RequestState) -> RequestGauge {
        let gauge = RequestGauge { requests: self.requests.clone(), state };
        gauge.now().inc();
        gauge
    }

    fn observe_cinder(&self, operation: &'static str, began: Instant, result: &'static str) {
        let labels = OperationLabels { operation, result };
        self.cinder.get_or_create(&labels).observe(began.elapsed().as_secs_f64());
    }

    /// Everything as `OpenMetrics` text, with the node's state where it is known.
    ///
    /// # Errors
    /// What was counted can't be written as text: a defect.
    pub fn encode(&self, node: Option<&NodeState>) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        if let Some(node) = node {
            encode_registry(&mut text, &node.registered())?;
        }
        encode_registry(&mut text, &process::registered())?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// Measures one operation.
#[derive(Debug)]
#[must_use = "what isn't ended is not measured"]
pub struct OperationTimer {
    metrics: Metrics,
    operation: Operation,
    began: Instant,
}

impl OperationTimer {
    /// The operation ended: well, and whether it changed anything, or not.
    pub fn end(self, changed: Result<bool, &AttachError>) {
        let result = match changed {
            Ok(true) => SUCCESS,
            Ok(false) => UNCHANGED,
            Err(error) => error.reason(),
        };
        let labels = OperationLabels { operation: self.operation.label(), result };
        let took = self.began.elapsed().as_secs_f64();
        self.metrics.operations.get_or_create(&labels).observe(took);
    }
}

/// Counts a request as waiting for its turn.
#[derive(Debug)]
#[must_use = "it is counted only as long as this lives"]
pub struct Queued(Gauge);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts a request where it stands.
#[derive(Debug)]
#[must_use = "it is counted only as long as this lives"]
pub struct RequestGauge {
    requests: Family<StateLabel, Gauge>,
    state: RequestState,
}

impl RequestGauge {
    fn now(&self) -> Gauge {
        self.requests.get_or_create_owned(&StateLabel { state: self.state.label() })
    }

    /// It stands elsewhere now.
    pub fn set(&mut self, state: RequestState) {
        self.now().dec();
        self.state = state;
        self.now().inc();
    }
}

impl Drop for RequestGauge {
    fn drop(&mut self) {
        self.now().dec();
    }
}

const fn step(phase: Phase) -> &'static str {
    match phase {
        Phase::Reserve => "reserve",
        Phase::Update => "update",
        Phase::LogIn => "log_in",
        Phase::Scan => "scan",
        Phase::Verify => "verify",
        Phase::Map => "map",
        Phase::Filesystem => "filesystem",
        Phase::Mount => "mount",
        Phase::Complete => "complete",
        Phase::Cut => "cut",
        Phase::Unmount => "unmount",
        Phase::RemoveMap => "remove_map",
        Phase::DeleteDevices => "delete_devices",
        Phase::LogOut => "log_out",
        Phase::DeleteAttachment => "delete_attachment",
        Phase::Forget => "forget",
    }
}
