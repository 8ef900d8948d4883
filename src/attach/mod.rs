//! The engine: it brings one volume from what is to what was asked, one step at a time.
//!
//! ```text
//!            Desired (a request)      Recorded (the ledger)
//!                     \                 /
//!   observe ─────────► plan (pure: no I/O, no clock) ──► Do(step) ─► execute ─► ledger ─┐
//!   kernel, Cinder       │                                                              │
//!      ▲                 ├──► Wait(events) ─────────────────────────────────────────────┤
//!      │                 ├──► Refuse(why)                                               │
//!      │                 └──► Done                                                      │
//!      └────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! State is computed anew at every pass from the kernel, multipathd and Cinder. Only what can't be
//! observed again is recorded in the [`Ledger`]. It knows neither HTTP nor argv nor Kubernetes.

mod engine;
mod error;
mod execute;
mod files;
mod identity;
mod inventory;
mod last_look;
mod ledger;
mod lock;
mod observe;
pub mod orphans;
mod outcome;
mod plan;
mod refusal;
mod state;
mod step;
mod turns;
mod verdict;

pub use engine::{Engine, EngineConfig, Progress};
pub(crate) use engine::{LEFT_TO_ISCSID, unless_stopped};
pub use error::AttachError;
pub(crate) use error::chain;
pub use inventory::{Chain, Foreign, Handle, Inventory, OtherSession, PathChain, Resolved};
pub use ledger::{
    FormatProgress, Ledger, LedgerError, Origin, OwnedTargets, Ownership, Record, Records,
    Reservation,
};
pub use lock::Guard;
pub use outcome::{Outcome, Resized};
pub use plan::{Awaited, Next, Plan, plan};
pub use refusal::Refusal;
pub use state::{AttachmentView, Attempt, Desired, Observed, Others, Overdue};
pub use step::{Phase, Step};
pub use verdict::{Attached, Loss, PathState, PathStatus, Trouble, Verdict, judge};
