use std::fmt::Write as _;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::Level;

/// Most that is kept of one text.
const LONGEST_TEXT: usize = 2000;

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When; for what took time, its end.
    pub at: Timestamp,
    /// In which run; none for what belongs to no run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// What.
    #[serde(flatten)]
    pub entry: Entry,
}

/// What a line tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Entry {
    /// A run begins.
    Began {
        /// `attach`, `detach`, `detach by force`, `resize`, `heal`.
        doing: String,
        /// Who asked for the attachment, in words.
        origin: String,
        /// The request's name, if it was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<String>,
        /// The process.
        pid: u32,
        /// Its version.
        version: String,
    },
    /// A step begins.
    StepBegan {
        /// In words.
        step: String,
        /// The plan's reason.
        why: String,
    },
    /// It ended.
    StepEnded {
        /// In words.
        step: String,
        /// How long it took.
        ms: u64,
        /// Whether it ended well.
        ok: bool,
    },
    /// A program ran, or could not.
    Command {
        /// The argv.
        command: String,
        /// How it ended; none where it did not by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<String>,
        /// The end of what it complained about, or why there is no end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        said: Option<String>,
        /// How long it took.
        ms: u64,
    },
    /// multipathd was asked.
    Multipathd {
        /// What.
        command: String,
        /// Why it did not; none where it did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refusal: Option<String>,
        /// How long it took.
        ms: u64,
    },
    /// Cinder or Keystone was asked.
    Http {
        /// `Cinder` or `Keystone`.
        service: String,
        /// `GET`, `POST`, …
        method: String,
        /// The path, or the whole address.
        path: String,
        /// The HTTP status; none where no answer came.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u64>,
        /// Why none came.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// The server's request id, or ours where no answer came.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        /// How long it took.
        ms: u64,
    },
    /// Something was waited for.
    Waited {
        /// What.
        what: String,
        /// How long.
        ms: u64,
    },
    /// Something else that should be known.
    Note {
        /// In words.
        text: String,
    },
    /// The run ended.
    Ended {
        /// `Attached`, `Detached`, `Resized`, or the reason of the error.
        outcome: String,
        /// The error with its causes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// How long the run took.
        ms: u64,
    },
    /// Lines of this process are missing, in this file or another: the disk was slow or full.
    Lost {
        /// How many.
        lines: u64,
    },
    /// Of a newer attachd.
    #[serde(other)]
    Newer,
}

impl Entry {
    /// An event of the log as an entry; none for what the journal doesn't keep.
    pub(super) fn of(level: Level, mut fields: Fields) -> Option<Self> {
        let message = fields.text("message").unwrap_or_default();
        if let Some(step) = message.strip_prefix("begin: ") {
            let why = fields.text("why").unwrap_or_default();
            return Some(Self::StepBegan { step: step.to_owned(), why });
        }
        Some(match message.as_str() {
            "step" => Self::StepEnded {
                step: fields.text("step")?,
                ms: fields.number("ms")?,
                ok: fields.flag("ok")?,
            },
            "ran" | "did not run to its end" => Self::Command {
                command: fields.text("command")?,
                exit: fields.text("exit"),
                said: fields.text("said").or_else(|| fields.text("error")),
                ms: fields.number("ms")?,
            },
            "asked multipathd" => Self::Multipathd {
                command: fields.text("command")?,
                refusal: fields.text("refusal"),
                ms: fields.number("ms")?,
            },
            "Cinder answered" | "no answer of Cinder" => fields.http("Cinder")?,
            "Keystone answered" | "no answer of Keystone" => fields.http("Keystone")?,
            "waited" => Self::Waited { what: fields.text("what")?, ms: fields.number("ms")? },
            "noted" => Self::Note { text: fields.text("what")? },
            "run ended" => Self::Ended {
                outcome: fields.text("outcome")?,
                error: fields.text("error"),
                ms: fields.number("ms")?,
            },
            _ if level <= Level::INFO => Self::Note { text: fields.in_words(message) },
            _ => return None,
        })
    }
}

/// What an event or a span carries.
#[derive(Debug, Default)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        match self.0.remove(name)? {
            Value::String(text) => Some(text),
            other => Some(other.to_string()),
        }
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.0.get(name)?.as_u64()
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.0.get(name)?.as_bool()
    }

    fn http(&mut self, service: &str) -> Option<Entry> {
        Some(Entry::Http {
            service: service.to_owned(),
            // A token is always asked for in one way.
            method: self.text("method").unwrap_or_else(|| "POST".to_owned()),
            path: self.text("path").or_else(|| self.text("url"))?,
            status: self.number("status"),
            reason: self.text("reason"),
            request_id: self.text("request_id").filter(|id| !id.is_empty()),
            ms: self.number("ms")?,
        })
    }

    fn in_words(&self, mut message: String) -> String {
        for (name, value) in &self.0 {
            let separator = if message.is_empty() { "" } else { ", " };
            let _ = match value {
                Value::String(text) => write!(message, "{separator}{name} {text}"),
                other => write!(message, "{separator}{name} {other}"),
            };
        }
        shortened(message)
    }

    fn put(&mut self, field: &tracing::field::Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.put(field, shortened(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        self.put(field, shortened(value.to_owned()));
    }

    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        self.put(field, value);
    }

    fn record_u128(&mut self, field: &tracing::field::Field, value: u128) {
        self.put(field, u64::try_from(value).unwrap_or(u64::MAX));
    }

    fn record_i64(&mut self, field: &tracing::field::Field, value: i64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &tracing::field::Field, value: bool) {
        self.put(field, value);
    }
}

/// The start of a text; its end is left out where it is too long.
fn shortened(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        text.push_str(" …");
    }
    text
}
