//! What to do next, and why. Pure: no I/O, no clock, no async.
//!
//! ```text
//! attach.rs   request, reservation, export     detach.rs   the road back
//! resize.rs   an attached volume that was extended
//! disks.rs    sessions, disks, identity
//! usage.rs    map, file system, mount
//! ```

mod attach;
mod detach;
mod disks;
mod resize;
mod usage;

use std::fmt;

pub(super) use attach::wants_map;

use super::{Desired, Observed, Phase, Record, Refusal, Step};
use crate::model::{Target, Wwid};

/// The next thing to do, its reason, and what is expected to come after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What to do.
    pub next: Next,
    /// Why, in words for an operator.
    pub why: String,
    /// The stations that are still ahead, as far as can be told now.
    pub then: Vec<Phase>,
}

/// What the engine does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Do this, then look again.
    Do(Step),
    /// Wait for the kernel, then look again.
    Wait(Awaited),
    /// Go no further.
    Refuse(Refusal),
    /// It is as asked.
    Done,
}

/// What must come by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Awaited {
    /// Sessions that are there and not logged in (recovering).
    Sessions {
        /// To which targets.
        targets: Vec<Target>,
    },
    /// Disks that were scanned for.
    Disks {
        /// From which targets.
        targets: Vec<Target>,
    },
    /// A map that multipathd makes once udev has handled the disks.
    Map {
        /// Its identity.
        wwid: Wwid,
    },
}

/// The end of a line of questions: the first that isn't settled decides.
type Settled<T = ()> = Result<T, Box<(Next, String)>>;

fn step<T>(step: Step, why: impl Into<String>) -> Settled<T> {
    Err(Box::new((Next::Do(step), why.into())))
}

fn wait<T>(awaited: Awaited, why: impl Into<String>) -> Settled<T> {
    Err(Box::new((Next::Wait(awaited), why.into())))
}

fn refuse<T>(refusal: Refusal) -> Settled<T> {
    let why = refusal.reason().to_owned();
    Err(Box::new((Next::Refuse(refusal), why)))
}

/// Decides the next step for one volume.
pub fn plan(desired: &Desired, record: Option<&Record>, observed: &Observed) -> Plan {
    let settled = match desired {
        Desired::Attached(spec) => attach::settle(spec, record, observed),
        Desired::Resized { volume, at_least_gib } => {
            resize::settle(*volume, *at_least_gib, record, observed)
        }
        Desired::Detached { force } => detach::settle(*force, record, observed),
    };
    let (next, why) = match settled {
        Ok(()) => (Next::Done, "everything is as asked".to_owned()),
        Err(decision) => *decision,
    };
    let then = match (&next, desired) {
        (Next::Done | Next::Refuse(_), _) => Vec::new(),
        (_, Desired::Attached(spec)) => {
            let multipath =
                record.map_or_else(|| wants_map(spec, observed.facts.as_ref()), |r| r.multipath);
            attach::phases_after(&next, spec, multipath)
        }
        (_, Desired::Resized { .. }) => resize::phases_after(&next, record),
        (_, Desired::Detached { .. }) => detach::phases_after(&next, record),
    };
    Plan { next, why, then }
}

/// The station that a decision stands at.
fn phase_of(next: &Next) -> Option<Phase> {
    match next {
        Next::Do(step) => Some(step.phase()),
        Next::Wait(awaited) => Some(awaited.phase()),
        Next::Refuse(_) | Next::Done => None,
    }
}

impl Awaited {
    /// The station that it belongs to.
    pub const fn phase(&self) -> Phase {
        match self {
            Self::Sessions { .. } => Phase::LogIn,
            Self::Disks { .. } => Phase::Scan,
            Self::Map { .. } => Phase::Map,
        }
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |targets: &[Target]| {
            targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        match self {
            Self::Sessions { targets } => write!(f, "the sessions to {}", list(targets)),
            Self::Disks { targets } => write!(f, "the disks of {}", list(targets)),
            Self::Map { wwid } => write!(f, "the multipath map {wwid}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.next {
            Next::Do(step) => writeln!(f, "next: {step}")?,
            Next::Wait(awaited) => writeln!(f, "next: wait for {awaited}")?,
            Next::Refuse(refusal) => {
                return writeln!(f, "refused ({}): {refusal}", refusal.reason());
            }
            Next::Done => return writeln!(f, "nothing to do: {}", self.why),
        }
        writeln!(f, "why:  {}", self.why)?;
        if !self.then.is_empty() {
            let words: Vec<&str> = self.then.iter().map(|phase| phase.words()).collect();
            writeln!(f, "then: {}", words.join(" → "))?;
        }
        Ok(())
    }
}
