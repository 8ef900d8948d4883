//! Random histories of one node: requests, faults, restarts, and what everybody else does meanwhile.
//! Nothing may ever break an invariant, and once the trouble ends everything must be as asked.
#![allow(clippy::unwrap_used)]

mod simulation;

use std::{cell::Cell, collections::BTreeSet};

use attachd::{
    attach::{AttachError, Ownership, Refusal},
    model::{AttachSpec, MultipathPolicy, Portal, Target, Usage, VolumeId},
    testing::{Content, Fault, Style, When, World},
};
use proptest::{prelude::*, sample::select, test_runner::TestRunner};
use simulation::{End, Node, STYLES, guarded, mount_path};
use tokio::sync::watch;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Act {
    Attach(usize),
    AttachOrRollBack(usize),
    Detach(usize),
    /// Two requests at once; `true` attaches.
    AtOnce((usize, bool), (usize, bool)),
    /// The operation that comes after so many goes wrong.
    Fault(usize, Fault),
    /// Something happens just before the operation that comes after so many.
    Meanwhile(usize, Other),
    Other(Other),
    Reboot,
}

/// What everybody else does.
#[derive(Debug, Clone)]
enum Other {
    TakesByForce(usize),
    Attaches(usize),
    Reserves(usize),
    Writes(usize, u64),
    Formats(usize, u64),
    Detaches(usize),
    Portal(usize, bool),
    Late(usize, u32),
    UdevLag(u32),
    LogsIn(usize),
    LogsOut(usize),
    Scans(usize, u64),
    Leaves,
    Extends(usize),
}

/// What a history starts from.
#[derive(Debug, Clone)]
struct Start {
    style: Style,
    one_portal: bool,
    is_service: bool,
    jitter: u64,
    seed: u64,
    usages: Vec<(bool, bool, bool)>,
}

fn volume() -> impl Strategy<Value = usize> {
    0..3_usize
}

fn when() -> impl Strategy<Value = When> {
    select(vec![When::Before, When::During, When::After])
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => when().prop_map(Fault::Error),
        2 => Just(Fault::Partial),
        1 => Just(Fault::Busy),
        4 => when().prop_map(Fault::Crash),
        2 => when().prop_map(Fault::Reboot),
        1 => when().prop_map(Fault::Hang),
    ]
}

/// What may happen within a run. Not a login or a scan by hand: nothing can exclude one between a
/// look at the kernel and the step that follows.
fn harmless_other() -> impl Strategy<Value = Other> {
    prop_oneof![
        3 => volume().prop_map(Other::Attaches),
        1 => volume().prop_map(Other::Reserves),
        3 => (0..2_usize, any::<bool>()).prop_map(|(portal, works)| Other::Portal(portal, works)),
        1 => (0..2_usize, 0..8_u32).prop_map(|(portal, late)| Other::Late(portal, late)),
        1 => (0..4_u32).prop_map(Other::UdevLag),
        1 => volume().prop_map(Other::Extends),
    ]
}

fn other() -> impl Strategy<Value = Other> {
    prop_oneof![
        6 => harmless_other(),
        2 => volume().prop_map(Other::TakesByForce),
        2 => (volume(), 1..1000_u64).prop_map(|(volume, marker)| Other::Writes(volume, marker)),
        2 => (volume(), 1..1000_u64).prop_map(|(volume, marker)| Other::Formats(volume, marker)),
        2 => volume().prop_map(Other::Detaches),
        2 => (0..2_usize).prop_map(Other::LogsIn),
        1 => (0..2_usize, 1..5_u64).prop_map(|(portal, lun)| Other::Scans(portal, lun)),
        1 => (0..2_usize).prop_map(Other::LogsOut),
        1 => Just(Other::Leaves),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => volume().prop_map(Act::Attach),
        2 => volume().prop_map(Act::AttachOrRollBack),
        5 => volume().prop_map(Act::Detach),
        3 => ((volume(), any::<bool>()), (volume(), any::<bool>()))
            .prop_map(|(first, second)| Act::AtOnce(first, second)),
        6 => (0..45_usize, fault()).prop_map(|(ahead, fault)| Act::Fault(ahead, fault)),
        2 => (0..45_usize, harmless_other()).prop_map(|(ahead, other)| Act::Meanwhile(ahead, other)),
        5 => other().prop_map(Act::Other),
        1 => Just(Act::Reboot),
    ]
}

fn start() -> impl Strategy<Value = Start> {
    let usage = (any::<bool>(), any::<bool>(), any::<bool>());
    (
        select(STYLES.to_vec()),
        any::<bool>(),
        any::<bool>(),
        prop_oneof![Just(0_u64), Just(40_u64)],
        any::<u64>(),
        proptest::collection::vec(usage, 3),
    )
        .prop_map(|(style, one_portal, is_service, jitter, seed, usages)| Start {
            style,
            one_portal,
            is_service,
            jitter,
            seed,
            usages,
        })
}

/// A history while it is lived through.
struct History {
    node: Node,
    specs: Vec<AttachSpec>,
    wanted: BTreeSet<usize>,
    marker: u64,
}

impl History {
    fn new(start: &Start) -> Self {
        let node = Node::new(start.style);
        node.world.jitter(start.jitter, start.seed);
        node.world.state().cinder.one_portal = start.one_portal;
        node.world.state().cinder.is_service = start.is_service;
        let specs = start
            .usages
            .iter()
            .enumerate()
            .map(|(index, (block, single, instance))| {
                let mut spec = node.spec(index);
                if *block {
                    spec.usage = Usage::Block;
                }
                if *single {
                    spec.multipath = MultipathPolicy::Disabled;
                }
                spec.instance = instance.then(|| uuid::Uuid::from_u128(100 + index as u128));
                spec
            })
            .collect();
        Self { node, specs, wanted: BTreeSet::new(), marker: 1000 }
    }

    async fn live(&mut self, act: &Act) {
        match act {
            Act::Attach(index) => {
                let spec = self.specs[*index].clone();
                self.wanted.insert(*index);
                if self.node.attach(&spec).await.is_ok() {
                    self.write(*index);
                }
            }
            Act::AttachOrRollBack(index) => {
                let spec = self.specs[*index].clone();
                let result = self.node.attach_or_roll_back(&spec).await;
                if result.is_ok() {
                    self.wanted.insert(*index);
                    self.write(*index);
                }
            }
            Act::Detach(index) => {
                self.wanted.remove(index);
                drop(self.node.detach(self.specs[*index].volume).await);
            }
            Act::AtOnce(first, second) => {
                for (index, attaches) in [first, second] {
                    if *attaches {
                        self.wanted.insert(*index);
                    } else {
                        self.wanted.remove(index);
                    }
                }
                let killed = {
                    let (one, two) = (self.one(*first), self.one(*second));
                    let (one, two) = tokio::join!(one, two);
                    [one, two].into_iter().find(|end| matches!(end, Err(End::Killed)))
                };
                if let Some(end) = killed {
                    self.node.restart_if_killed(&end);
                }
            }
            Act::Fault(ahead, fault) => self.node.world.plan_fault(*ahead, *fault),
            Act::Meanwhile(ahead, other) => {
                let (other, volumes) = (other.clone(), self.node.volumes.clone());
                self.node.world.call_at(*ahead, move |world| others(world, &volumes, &other));
            }
            // attachd was killed between its intent and its login: what then logs in looks like it.
            Act::Other(Other::LogsIn(_)) if self.is_about_to_log_in().await => {}
            Act::Other(other) => others(&mut self.node.world.state(), &self.node.volumes, other),
            Act::Reboot => self.node.reboot(),
        }
    }

    async fn is_about_to_log_in(&self) -> bool {
        let owned = self.node.ledger.owned_targets().await.unwrap();
        owned.values().any(|ownership| *ownership == Ownership::LoggingIn)
    }

    async fn one(&self, (index, attaches): (usize, bool)) -> Result<(), End> {
        let (_keep, stop) = watch::channel(false);
        let spec = &self.specs[index];
        let engine = self.node.engine(spec.volume);
        let origin = attachd::attach::Origin::CommandLine;
        if attaches {
            let run = engine.attach(spec, &origin, &|_| {}, &stop);
            guarded(&self.node.world, run).await.map(drop)
        } else {
            let run = engine.detach(spec.volume, &origin, &|_| {}, &stop);
            guarded(&self.node.world, run).await.map(drop)
        }
    }

    /// The application starts when the volume is there.
    fn write(&mut self, index: usize) {
        if let Usage::Filesystem { .. } = self.specs[index].usage {
            self.marker += 1;
            self.node.world.state().application_writes(&mount_path(index), self.marker);
        }
    }

    /// The trouble ends, and an administrator does what the refusals say. Volumes that hold what
    /// must not be formatted stay detached.
    async fn converge(&mut self) {
        self.node.world.clear_faults();
        {
            let mut state = self.node.world.state();
            state.kernel.late.clear();
            state.kernel.udev_lag = 0;
            for disk in &mut state.kernel.disks {
                (disk.appears_in, disk.udev_lag) = (0, 0);
            }
            let portals = state.storage.portals.clone();
            for portal in portals {
                state.set_portal(portal, true);
            }
            let volumes = self.node.volumes.clone();
            for volume in volumes {
                state.other_nodes_detach(volume);
            }
            state.everybody_else_leaves();
        }
        let unwanted: Vec<usize> = (0..3).filter(|index| !self.wanted.contains(index)).collect();
        for index in unwanted {
            self.detach(index).await;
        }
        for _ in 0..3 {
            for index in self.wanted.clone() {
                self.attach(index).await;
            }
        }
        for index in self.wanted.clone() {
            self.marker += 1;
            self.node.assert_usable(&self.specs[index], self.marker).await;
        }
    }

    async fn detach(&mut self, index: usize) {
        let volume = self.specs[index].volume;
        for _ in 0..3 {
            match self.node.detach(volume).await {
                Ok(_) => return,
                Err(end) if end.reason() == "LostReservation" => {
                    self.node.world.state().free_reservations(volume);
                }
                Err(End::Error(AttachError::Refused(Refusal::AddressTaken { by, .. }))) => {
                    let other = self.node.volumes.iter().position(|known| *known == by).unwrap();
                    Box::pin(self.detach(other)).await;
                }
                Err(end) => panic!("detach {index}: {end:?}\n{}", self.node.journal()),
            }
        }
        panic!("the detach of {index} did not end\n{}", self.node.journal());
    }

    async fn attach(&mut self, index: usize) {
        let spec = self.specs[index].clone();
        for _ in 0..6 {
            let end = match self.node.attach(&spec).await {
                // What failed in passing is healed by the next request.
                Ok(attached) if attached.warnings.is_empty() || !attached.changed => return,
                Ok(_) => continue,
                Err(end) => end,
            };
            match &end {
                End::Error(AttachError::Refused(refusal)) => {
                    if self.advised(index, refusal).await {
                        return;
                    }
                }
                _ => panic!("attach {index}: {end:?}\n{}", self.node.journal()),
            }
        }
        panic!("the attach of {index} did not end\n{}", self.node.journal());
    }

    /// Does what a refusal says; true where the volume can't be attached as asked, and rightly so.
    async fn advised(&mut self, index: usize, refusal: &Refusal) -> bool {
        let volume = self.specs[index].volume;
        match refusal {
            Refusal::LostReservation { .. } => {
                self.node.world.state().free_reservations(volume);
                false
            }
            Refusal::AddressTaken { by, .. } => {
                let other = self.node.volumes.iter().position(|known| known == by).unwrap();
                self.detach(other).await;
                false
            }
            Refusal::NotBlank { .. } | Refusal::OtherFilesystem { .. } => {
                let content = self.node.world.state().storage.contents[&volume].clone();
                let rightly = match &content {
                    Content::Raw { .. } | Content::Remains { .. } => true,
                    Content::Filesystem { name, .. } => name != "ext4",
                    Content::Blank => false,
                };
                assert!(rightly, "{refusal}, on {content:?}\n{}", self.node.journal());
                self.wanted.remove(&index);
                self.detach(index).await;
                true
            }
            Refusal::AttachmentGone { .. }
            | Refusal::MountPath { .. }
            | Refusal::InUse { .. }
            | Refusal::Identity { .. } => {
                self.detach(index).await;
                false
            }
            other => panic!("attach {index}: {other}\n{}", self.node.journal()),
        }
    }

    /// Everything is detached at last, and nothing is left anywhere.
    async fn end(&mut self) {
        for index in 0..3 {
            self.detach(index).await;
        }
        // A session that carried somebody else's disk was kept, and goes with the next detach.
        let left = self.node.left();
        if left.iter().any(|what| what.starts_with("session") || what.starts_with("node record")) {
            let mut spec = self.specs[0].clone();
            spec.usage = Usage::Block;
            spec.multipath = MultipathPolicy::Auto;
            self.node.world.state().cinder.one_portal = false;
            self.node.attach(&spec).await.unwrap_or_else(|end| panic!("{end:?}"));
            self.detach(0).await;
        }
        self.node.assert_sound();
        self.node.assert_nothing_left();
    }
}

fn others(world: &mut World, volumes: &[VolumeId], other: &Other) {
    let shared = |world: &World, portal: usize| {
        let iqn = world.storage.target_of(volumes[0]);
        Target { portal: world.storage.portals[portal], iqn }
    };
    world.journal.push(format!("-- {other:?}"));
    match other {
        Other::TakesByForce(index) => world.take_by_force(volumes[*index]),
        Other::Attaches(index) => drop(world.other_node_attaches(volumes[*index])),
        Other::Reserves(index) => drop(world.other_node_reserves(volumes[*index])),
        Other::Writes(index, marker) => {
            world.other_node_writes(volumes[*index], Content::Raw { marker: *marker });
        }
        Other::Formats(index, marker) => {
            let name = if marker % 2 == 0 { "ext4" } else { "xfs" }.to_owned();
            let content = Content::Filesystem { name, marker: *marker };
            world.other_node_writes(volumes[*index], content);
        }
        Other::Detaches(index) => world.other_nodes_detach(volumes[*index]),
        Other::Portal(index, works) => {
            let portal: Portal = world.storage.portals[*index];
            world.set_portal(portal, *works);
        }
        Other::Late(index, late) => {
            let portal = world.storage.portals[*index];
            world.kernel.late.insert(portal, *late);
        }
        Other::UdevLag(lag) => world.kernel.udev_lag = *lag,
        Other::LogsIn(index) => {
            let target = shared(world, *index);
            world.somebody_logs_in(&target);
        }
        Other::LogsOut(index) => {
            let target = shared(world, *index);
            world.somebody_logs_out(&target);
        }
        Other::Scans(index, lun) => {
            let target = shared(world, *index);
            world.somebody_scans(&target, *lun);
        }
        Other::Leaves => world.everybody_else_leaves(),
        Other::Extends(index) => {
            let size = world.storage.sizes[&volumes[*index]] + 1;
            world.extend(volumes[*index], size);
        }
    }
}

async fn live_through(start: &Start, acts: &[Act]) {
    let mut history = History::new(start);
    for act in acts {
        history.node.world.state().journal.push(format!("== {act:?}"));
        Box::pin(history.live(act)).await;
        history.node.assert_sound();
    }
    history.node.world.state().journal.push("== the trouble ends".to_owned());
    history.converge().await;
    history.end().await;
}

#[test]
fn whatever_happens_no_invariant_is_broken_and_everything_comes_right_in_the_end() {
    let cases = u32::try_from(simulation::cases(256)).unwrap();
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let acts = proptest::collection::vec(act(), 1..24);
    let (histories, happened) = (Cell::new(0), Cell::new(0));
    let result = TestRunner::new(config).run(&(start(), acts), |(start, acts)| {
        runtime.block_on(Box::pin(live_through(&start, &acts)));
        histories.set(histories.get() + 1);
        happened.set(happened.get() + acts.len());
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    println!("{} histories, in which {} things happened", histories.get(), happened.get());
}
