use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::StateLabel;
use crate::{
    attach::{Chain, Inventory, OwnedTargets, PathChain, Record, Records},
    model::{DeviceState, HostState, SessionState, VolumeId},
};

const ATTACHMENTS: [&str; 5] = ["attaching", "attached", "degraded", "detaching", "unreadable"];
const PATHS: [&str; 4] = ["active", "failing", "no_disk", "no_session"];
const SESSIONS: [&str; 3] = ["logged_in", "failed", "free"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabels {
    volume: String,
    state: &'static str,
}

type Counts = BTreeMap<&'static str, i64>;

/// What is attached to this node and how it stands, counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeState {
    attachments: Counts,
    /// Of attached volumes.
    paths: BTreeMap<VolumeId, Counts>,
    sessions: Counts,
}

fn none(states: &[&'static str]) -> Counts {
    states.iter().map(|state| (*state, 0)).collect()
}

fn count(counts: &mut Counts, state: &'static str) {
    *counts.entry(state).or_default() += 1;
}

impl NodeState {
    /// Counts what the ledger holds against what the kernel shows.
    pub fn new(records: Records, owned: &OwnedTargets, host: &HostState) -> Self {
        let known: BTreeMap<VolumeId, Arc<Record>> =
            records.iter().flatten().map(|record| (record.spec.volume, record.clone())).collect();
        let inventory = Inventory::join(records, owned, host);
        let mut state = Self {
            attachments: none(&ATTACHMENTS),
            paths: BTreeMap::new(),
            sessions: none(&SESSIONS),
        };
        state.attachments.insert("unreadable", count_of(inventory.unreadable.len()));
        let mut sids = BTreeSet::new();
        for chain in &inventory.attachments {
            sids.extend(chain.paths.iter().filter_map(|path| Some(path.session.as_ref()?.sid)));
            let Some(record) = known.get(&chain.volume) else { continue };
            let standing = standing(record, chain);
            count(&mut state.attachments, standing);
            if matches!(standing, "attached" | "degraded") {
                let mut paths = none(&PATHS);
                // Without a map, one path is used, and the others are not logged in to.
                let used = if record.multipath { chain.paths.len() } else { 1 };
                for path in chain.paths.iter().take(used) {
                    count(&mut paths, path_state(path));
                }
                state.paths.insert(chain.volume, paths);
            }
        }
        for session in &host.sessions {
            // One that attachd made and no record names any more is left over: it counts.
            let own = |(target, mark): (_, &crate::attach::Ownership)| {
                session.is_to(target) && mark.of_session(session)
            };
            if sids.contains(&session.sid) || owned.iter().any(own) {
                count(
                    &mut state.sessions,
                    match session.state {
                        SessionState::LoggedIn => "logged_in",
                        SessionState::Failed => "failed",
                        SessionState::Free => "free",
                    },
                );
            }
        }
        state
    }

    pub(super) fn registered(&self) -> Registry {
        let mut registry = Registry::with_prefix("attachd");
        registry.register(
            "attachments",
            "Attachments of this node in the ledger, by how the kernel shows them",
            gauges(&self.attachments),
        );
        let paths = Family::<PathLabels, Gauge>::default();
        for (volume, counts) in &self.paths {
            for (state, number) in counts {
                let labels = PathLabels { volume: volume.to_string(), state };
                paths.get_or_create(&labels).set(*number);
            }
        }
        registry.register("paths", "Paths of attached volumes, by how they stand", paths);
        registry.register(
            "sessions",
            "iSCSI sessions that attachd uses or has made",
            gauges(&self.sessions),
        );
        registry
    }
}

fn gauges(counts: &Counts) -> Family<StateLabel, Gauge> {
    let family = Family::<StateLabel, Gauge>::default();
    for (state, number) in counts {
        family.get_or_create(&StateLabel { state }).set(*number);
    }
    family
}

fn count_of(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn standing(record: &Record, chain: &Chain) -> &'static str {
    match (record.released, record.completed) {
        (true, _) => "detaching",
        (false, false) => "attaching",
        (false, true) if chain.disagreements.is_empty() => "attached",
        (false, true) => "degraded",
    }
}

fn path_state(path: &PathChain) -> &'static str {
    match (&path.session, &path.disk) {
        (None, _) => "no_session",
        (Some(_), None) => "no_disk",
        (Some(session), Some(disk))
            if session.state == SessionState::LoggedIn && disk.state == DeviceState::Running =>
        {
            "active"
        }
        (Some(_), Some(_)) => "failing",
    }
}
