//! What attachd did on this node, kept: every run of the engine with its steps, waits, commands and requests
//! to Cinder, below the state directory, in a bounded number of bytes.
//!
//! ```text
//!   spans and events of the engine, the host and the clients (what `--log debug` shows)
//!        │ layer.rs: those within a run, as entries         never blocks, never fails an attach
//!        ▼
//!   a bounded queue ──► a thread of its own (writer.rs) ──► files.rs: one file a volume, a line an entry
//!                                                               │
//!   attachd trace ◄── runs.rs: lines as runs ◄──────────────────┘
//! ```
//!
//! Nothing depends on it: where the disk is slow or full, lines are left out and counted. What is kept is what the
//! log shows, so a secret that never reaches the log never reaches the journal.

mod entry;
mod files;
mod layer;
mod runs;
mod writer;

pub use entry::{Entry, Line};
pub use files::{Files, Limits};
pub use layer::Journal;
pub use runs::{History, Item, Run, Spent};
