use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tracing::{Event, Id, Level, Metadata, Subscriber, span::Attributes};
use tracing_subscriber::{Layer, filter::filter_fn, layer::Context, registry::LookupSpan};
use uuid::Uuid;

use super::{Entry, Files, Limits, Line, entry::Fields, writer::Writer};
use crate::model::VolumeId;

/// The span of the engine that is a run: what is logged within it is kept.
const RUN: &str = "run";

/// The span around a run that brings back what went away.
const HEAL: &str = "heal";

/// The modules whose events are kept. What others say of a run, they say of what these said.
const KEPT: [&str; 5] = ["attach", "cinder", "host", "http", "keystone"];

/// Keeps what attachd does.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: Files,
    /// Begins with the first line: most commands have none.
    writer: OnceLock<Writer>,
}

impl Journal {
    /// The journal below a state directory.
    pub fn below(state_dir: &Path, limits: Limits) -> Self {
        let files = Files::below(state_dir, limits);
        Self(Arc::new(Shared { files, writer: OnceLock::new() }))
    }

    /// What takes it from the log, whatever level is logged.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        Recorder(self.clone()).with_filter(filter_fn(is_kept))
    }

    /// Waits until everything is on its way to the disk, and no longer than this. Blocks.
    pub fn finish(&self, limit: Duration) {
        if let Some(writer) = self.0.writer.get() {
            writer.finish(limit);
        }
    }

    /// Never call it with a span's extensions in hand: it may log.
    fn write(&self, run: RunId, entry: Entry) {
        let line = Line { at: Timestamp::now(), run: Some(run.id), entry };
        self.0.writer.get_or_init(|| Writer::start(self.0.files.clone())).write(run.volume, &line);
    }
}

fn is_kept(of: &Metadata<'_>) -> bool {
    let mut path = of.target().split("::");
    let ours = path.next() == Some(env!("CARGO_CRATE_NAME"));
    if of.is_span() {
        return ours && [RUN, HEAL].contains(&of.name());
    }
    ours && *of.level() <= Level::DEBUG && path.next().is_some_and(|module| KEPT.contains(&module))
}

struct Recorder(Journal);

#[derive(Clone)]
struct RunId {
    volume: VolumeId,
    id: String,
}

/// Which run a span is.
struct RunOf {
    id: RunId,
    began: Instant,
    ended: bool,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().name() != RUN {
            return;
        }
        let (Some(span), mut fields) = (context.span(id), Fields::default()) else { return };
        attributes.record(&mut fields);
        let Some(volume) = fields.text("volume").and_then(|id| id.parse().ok()) else { return };
        let heals = span.scope().skip(1).any(|outer| outer.name() == HEAL);
        let doing = fields.text("doing").unwrap_or_default();
        let began = Entry::Began {
            doing: if heals { HEAL.to_owned() } else { doing },
            origin: fields.text("origin").unwrap_or_default(),
            request: fields.text("request"),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let name = Uuid::new_v4().simple().to_string()[..12].to_owned();
        let id = RunId { volume, id: name };
        let run = RunOf { id: id.clone(), began: Instant::now(), ended: false };
        span.extensions_mut().insert(run);
        self.0.write(id, began);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut spans = context.event_scope(event).into_iter().flatten();
        let Some(span) = spans.find(|span| span.extensions().get::<RunOf>().is_some()) else {
            return;
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Some(entry) = Entry::of(*event.metadata().level(), fields) else { return };
        let ends = matches!(entry, Entry::Ended { .. });
        let run = span.extensions_mut().get_mut::<RunOf>().map(|run| {
            run.ended |= ends;
            run.id.clone()
        });
        if let Some(run) = run {
            self.0.write(run, entry);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let cut_short = context.span(&id).and_then(|span| {
            let extensions = span.extensions();
            let run = extensions.get::<RunOf>().filter(|run| !run.ended)?;
            Some((run.id.clone(), run.began.elapsed()))
        });
        if let Some((run, took)) = cut_short {
            let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            self.0.write(run, Entry::Ended { outcome: "Abandoned".to_owned(), error: None, ms });
        }
    }
}
