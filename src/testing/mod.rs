//! A simulated node, storage and Cinder, with faults, for tests.
//!
//! ```text
//!   Engine ──► SimHost ───┐                    ┌─► Kernel   sessions, disks, maps, mounts, node records
//!          └─► SimCinder ─┴─► SimWorld (Mutex) ┼─► Storage  which volume a (target, LUN) shows now
//!                             │ faults, guard  └─► Ledgered attachments, as Cinder keeps them
//!   a test ── others.rs ──────┘  what other nodes, other tools and administrators do meanwhile
//! ```
//!
//! The fakes have state and behave as the real ones do where it hurts: a disk appears only by a scan
//! of exactly its LUN, and remembers the identity and size of that moment, while what is read and
//! written goes to whatever volume stands behind its target and LUN *now*.
//!
//! `guard.rs` watches the invariants of the design at the moment of each operation. A violation is
//! recorded in the world; a test asserts that there is none.

mod cinder;
mod effects;
mod fault;
mod guard;
mod host;
mod kernel;
mod others;
pub mod parsers;
mod storage;
mod world;

pub use cinder::{CinderState, SimAttachment, SimCinder, SimVolume};
pub use fault::{Fault, When};
pub use host::SimHost;
pub use kernel::{Kernel, Maker, SimDisk, SimMap, SimMount, SimSession};
pub use others::secrets_in;
pub use storage::{Content, Storage, Style};
pub use world::{SimWorld, World, node_facts};
