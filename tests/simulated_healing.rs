//! What is missing of attached volumes is brought back, whatever goes wrong meanwhile, and nothing is
//! ever taken away for it.
#![allow(clippy::unwrap_used)]

mod simulation;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use attachd::{
    attach::{Attached, Engine, EngineConfig, Loss, PathState, Record, Trouble, Verdict, judge},
    health::Liveness,
    host::Host as _,
    model::{AccessMode, AttachSpec, MultipathPolicy, Usage},
    requests::Lookout,
    testing::{Fault, Style, When},
};
use proptest::{prelude::*, sample::select, test_runner::TestRunner};
use simulation::{End, Node, STYLES, mount_path};
use tokio::time::sleep;

/// What happens to an attached volume.
#[derive(Debug, Clone)]
enum Trial {
    LogsOut(usize, usize),
    Deletes(usize, usize),
    Portal(usize, bool),
    GoesReadOnly(usize),
    SomebodyLogsIn(usize, usize),
    SomebodyScans(usize, usize),
    Extends(usize),
    Late(usize, u32),
    UdevLag(u32),
    TakesByForce(usize),
    Reboot,
    Restart,
}

/// What goes wrong while it is brought back, and at which operation.
type Mishap = Option<(usize, Fault)>;

fn trial() -> impl Strategy<Value = Trial> {
    let (volume, portal) = (0..2_usize, 0..2_usize);
    prop_oneof![
        6 => (volume.clone(), portal.clone()).prop_map(|(v, p)| Trial::LogsOut(v, p)),
        5 => (volume.clone(), portal.clone()).prop_map(|(v, p)| Trial::Deletes(v, p)),
        4 => (portal.clone(), any::<bool>()).prop_map(|(p, works)| Trial::Portal(p, works)),
        1 => volume.clone().prop_map(Trial::GoesReadOnly),
        2 => (volume.clone(), portal.clone()).prop_map(|(v, p)| Trial::SomebodyLogsIn(v, p)),
        2 => (volume.clone(), portal.clone()).prop_map(|(v, p)| Trial::SomebodyScans(v, p)),
        1 => volume.clone().prop_map(Trial::Extends),
        1 => (portal, 0..6_u32).prop_map(|(p, late)| Trial::Late(p, late)),
        1 => (0..4_u32).prop_map(Trial::UdevLag),
        1 => volume.prop_map(Trial::TakesByForce),
        1 => Just(Trial::Reboot),
        1 => Just(Trial::Restart),
    ]
}

fn mishap() -> impl Strategy<Value = Mishap> {
    let when = || select(vec![When::Before, When::During, When::After]);
    let fault = prop_oneof![
        3 => when().prop_map(Fault::Error),
        2 => Just(Fault::Partial),
        1 => Just(Fault::Busy),
        4 => when().prop_map(Fault::Crash),
        2 => when().prop_map(Fault::Reboot),
        1 => when().prop_map(Fault::Hang),
    ];
    proptest::option::of((0..30_usize, fault))
}

/// Some trials, then a try to bring back what is missing, of this volume first.
type Round = (Vec<Trial>, Mishap, usize);

struct History {
    node: Node,
    specs: Vec<AttachSpec>,
    /// Their attachments were deleted by an administrator.
    taken: [bool; 2],
    /// A volume was extended.
    extended: bool,
}

impl History {
    async fn new(style: Style, block: bool, single: bool) -> Self {
        let mut node = Node::new(style);
        let mut specs = vec![node.spec(0), node.spec(1)];
        if block {
            specs[1].usage = Usage::Block;
        }
        if single {
            specs[1].multipath = MultipathPolicy::Disabled;
        }
        for spec in &specs {
            node.attach(spec).await.unwrap();
        }
        Self { node, specs, taken: [false; 2], extended: false }
    }

    fn act(&mut self, trial: &Trial) {
        let paths = |node: &Node, volume: usize| {
            let known = node.world.state().storage.address_of(node.volumes[volume]).is_some();
            if known { node.paths(volume) } else { Vec::new() }
        };
        match trial {
            Trial::LogsOut(volume, portal) => {
                if let Some(path) = paths(&self.node, *volume).get(*portal) {
                    self.node.world.state().somebody_logs_out(&path.target);
                }
            }
            Trial::Deletes(volume, portal) => {
                let volume = self.node.volumes[*volume];
                let mut state = self.node.world.state();
                let disks = state.kernel.disks.iter().filter(|disk| disk.seen == volume);
                let names: Vec<_> = disks.map(|disk| disk.name.clone()).collect();
                if let Some(name) = names.get(*portal) {
                    state.somebody_deletes(name);
                }
            }
            Trial::Portal(index, works) => {
                let portal = self.node.world.state().storage.portals[*index];
                self.node.world.state().set_portal(portal, *works);
            }
            Trial::GoesReadOnly(volume) => {
                self.node.world.state().goes_read_only(&mount_path(*volume));
            }
            Trial::SomebodyLogsIn(volume, portal) => {
                if let Some(path) = paths(&self.node, *volume).get(*portal) {
                    self.node.world.state().somebody_logs_in(&path.target);
                }
            }
            Trial::SomebodyScans(volume, portal) => {
                if let Some(path) = paths(&self.node, *volume).get(*portal) {
                    self.node.world.state().somebody_scans(&path.target, path.lun.0);
                }
            }
            Trial::Extends(volume) => {
                let volume = self.node.volumes[*volume];
                self.node.world.state().extend(volume, 2);
                self.extended = true;
            }
            Trial::Late(index, late) => {
                let mut state = self.node.world.state();
                let portal = state.storage.portals[*index];
                state.kernel.late.insert(portal, *late);
            }
            Trial::UdevLag(lag) => self.node.world.state().kernel.udev_lag = *lag,
            Trial::TakesByForce(volume) => {
                let id = self.node.volumes[*volume];
                self.node.world.state().take_by_force(id);
                self.taken[*volume] = true;
            }
            Trial::Reboot => self.node.reboot(),
            Trial::Restart => {
                self.node.world.kill();
                self.node.restart();
            }
        }
    }

    /// By a look of its own, as the lookout's.
    async fn verdict(&self, index: usize) -> Verdict {
        let spec = &self.specs[index];
        let host = self.node.world.host(spec.volume).observe().await.unwrap();
        let record = self.node.ledger.load(spec.volume).await.unwrap().unwrap();
        judge(spec, &record, &host, &BTreeMap::new()).unwrap()
    }

    /// One try, as a worker makes it: where something is missing.
    async fn heal(&mut self, index: usize, mishap: &Mishap) -> Result<Option<Attached>, End> {
        if !self.verdict(index).await.missing {
            return Ok(None);
        }
        if let Some((ahead, fault)) = mishap {
            self.node.world.plan_fault(*ahead, *fault);
        }
        let begin = self.node.world.state().journal.len();
        let spec = self.specs[index].clone();
        let result = self.node.attach(&spec).await;
        let taken: Vec<String> = {
            let state = self.node.world.state();
            // A map without a disk is made anew where its volume outgrew it and nothing uses it.
            let anew = |line: &str| self.extended && line.contains("RemoveMap {");
            let done = state.journal[begin..].iter().filter(|line| takes_away(line) && !anew(line));
            done.cloned().collect()
        };
        assert!(taken.is_empty(), "healing took away: {taken:#?}\n{}", self.node.journal());
        self.node.world.clear_faults();
        self.node.assert_sound();
        result.map(Some)
    }

    /// What each of the two comes to once nothing stands in the way any more.
    async fn settles(&mut self) {
        {
            let mut state = self.node.world.state();
            let portals = state.storage.portals.clone();
            for portal in portals {
                state.set_portal(portal, true);
            }
        }
        for index in 0..2 {
            let mut last = None;
            for _ in 0..8 {
                match self.heal(index, &None).await {
                    Ok(None) => break,
                    Ok(Some(_)) => {}
                    Err(end) => last = Some(end),
                }
            }
            self.came_to(index, last).await;
        }
    }

    async fn came_to(&self, index: usize, last: Option<End>) {
        let verdict = self.verdict(index).await;
        let journal = || self.node.journal();
        if self.taken[index] {
            // Cinder no longer has it: whatever is left is told, and waits for the detach.
            return;
        }
        match &verdict.state {
            Ok(attached) if verdict.missing => {
                panic!("{index} is not whole: {attached:#?}, {last:?}\n{}", journal())
            }
            Ok(attached) => match &attached.trouble {
                None => {}
                Some(Trouble::ReadOnlyFilesystem { .. } | Trouble::FilesystemErrors { .. }) => {
                    assert_eq!(self.specs[index].mode, AccessMode::Rw);
                }
                Some(Trouble::NoPath) => {
                    let outgrown = attached.paths.iter().any(|p| p.state == PathState::OtherSize);
                    assert!(outgrown, "{index} has no path\n{}", journal());
                }
            },
            // Without a map nothing can take the place of a disk under a mount.
            Err(Loss::DeviceGone { .. }) => {
                assert_eq!(self.specs[index].multipath, MultipathPolicy::Disabled, "{}", journal());
            }
            Err(loss) => panic!("{index}: {loss}, {last:?}\n{}", journal()),
        }
    }
}

/// What an attach of something attached must never come to, as the journal has it.
const TAKES_AWAY: [&str; 9] = [
    "Logout {",
    "DeleteDevices {",
    "RemoveMap {",
    "ForgetMap {",
    "Unmount {",
    "RemoveDirectory {",
    "Format {",
    "Cinder: delete",
    "Cinder: reserve",
];

fn takes_away(line: &str) -> bool {
    TAKES_AWAY.iter().any(|word| line.contains(word))
}

#[test]
fn what_healing_must_not_do_is_what_a_first_attach_and_a_detach_do() {
    live(async {
        let mut history = History::new(Style::UniqueWwids, false, false).await;
        for volume in [history.specs[0].volume, history.specs[1].volume] {
            history.node.detach(volume).await.unwrap();
        }
        let journal = history.node.journal();
        let unseen: Vec<_> = TAKES_AWAY.iter().filter(|word| !journal.contains(*word)).collect();
        assert!(unseen.is_empty(), "{unseen:?} can't be found in a journal");
    });
}

fn live<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(work)
}

#[test]
fn healing_converges_whatever_goes_wrong_and_takes_nothing_away() {
    let start = (select(STYLES.to_vec()), any::<bool>(), any::<bool>());
    let rounds = proptest::collection::vec(
        (proptest::collection::vec(trial(), 1..4), mishap(), 0..2_usize),
        1..6,
    );
    let config = ProptestConfig {
        cases: u32::try_from(simulation::cases(150)).unwrap(),
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    };
    let lives = |((style, block, single), rounds): (_, Vec<Round>)| {
        live(async {
            let mut history = History::new(style, block, single).await;
            for (trials, mishap, first) in &rounds {
                for trial in trials {
                    history.act(trial);
                }
                for index in [*first, 1 - *first] {
                    // A crash is followed by a start, which comes to the same.
                    let _ = history.heal(index, mishap).await;
                }
            }
            history.settles().await;
        });
        Ok(())
    };
    TestRunner::new(config).run(&(start, rounds), lives).unwrap();
}

/// A lookout, as long as the handle lives.
fn lookout(node: &Node) -> Lookout {
    let (host, cinder) = (node.world.host_of_all(), node.world.cinder());
    let engine = Engine::new(host, cinder, node.ledger.clone(), EngineConfig::default());
    let heartbeat = Liveness::default().heartbeat("lookout", Duration::from_mins(3));
    Lookout::start(Arc::new(engine), heartbeat)
}

/// An event of the kernel that changes nothing.
fn event(node: &Node) {
    let portal = node.world.state().storage.portals[0];
    node.world.state().set_portal(portal, true);
}

#[test]
fn a_burst_of_events_is_one_look_and_a_quiet_node_is_looked_at_once_a_minute() {
    live(async {
        let node = Node::new(Style::UniqueWwids);
        let _lookout = lookout(&node);
        sleep(Duration::from_mins(10)).await;
        let quiet = node.world.operations();
        assert!((9..=10).contains(&quiet), "{quiet} looks in ten minutes");
        for _ in 0..20 {
            event(&node);
            sleep(Duration::from_millis(100)).await;
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!(node.world.operations(), quiet + 1);
        // Once more, since not all that follows from an event tells of itself.
        sleep(Duration::from_secs(11)).await;
        assert_eq!(node.world.operations(), quiet + 2);
        sleep(Duration::from_secs(40)).await;
        assert_eq!(node.world.operations(), quiet + 2);
    });
}

#[test]
fn a_storm_of_events_does_not_keep_the_node_from_being_looked_at() {
    live(async {
        let node = Node::new(Style::UniqueWwids);
        let _lookout = lookout(&node);
        for _ in 0..300 {
            event(&node);
            sleep(Duration::from_millis(100)).await;
        }
        let looks = node.world.operations();
        assert!((4..=7).contains(&looks), "{looks} looks in half a minute");
    });
}

#[test]
fn nobody_looks_for_nobody() {
    live(async {
        let node = Node::new(Style::UniqueWwids);
        drop(lookout(&node));
        event(&node);
        sleep(Duration::from_mins(5)).await;
        assert_eq!(node.world.operations(), 0);
    });
}

#[test]
fn each_loss_is_told_by_its_own_word() {
    live(async {
        let mut history = History::new(Style::UniqueWwids, false, true).await;
        let sound = history.verdict(0).await;
        assert!(!sound.missing);
        assert_eq!(sound.state.unwrap().trouble, None);

        let paths = history.node.paths(0);
        history.node.world.state().somebody_logs_out(&paths[1].target);
        let degraded = history.verdict(0).await;
        let attached = degraded.state.unwrap();
        assert!(degraded.missing && attached.trouble.is_none());
        assert_eq!(attached.paths[1].state, PathState::NoSession { why: None });
        assert_eq!(attached.warnings.len(), 1, "{:?}", attached.warnings);

        // Over a map of the old size a path that comes back waits for the resize.
        let volume = history.node.volumes[0];
        history.node.world.state().extend(volume, 2);
        history.heal(0, &None).await.unwrap();
        let outgrown = history.verdict(0).await;
        assert!(!outgrown.missing);
        assert_eq!(outgrown.state.unwrap().paths[1].state, PathState::OtherSize);
        let (_keep, stop) = tokio::sync::watch::channel(false);
        history.node.engine(volume).resize(volume, None, &|_| {}, &stop).await.unwrap();

        // A session that recovers is iscsid's; nothing is missing that attachd could bring back.
        history.heal(0, &None).await.unwrap();
        history.act(&Trial::Portal(0, false));
        let failing = history.verdict(0).await;
        assert!(!failing.missing);
        assert_eq!(failing.state.unwrap().paths[0].state, PathState::Failing);
        history.act(&Trial::Portal(1, false));
        let dead = history.verdict(0).await;
        assert!(!dead.missing);
        assert_eq!(dead.state.unwrap().trouble, Some(Trouble::NoPath));
        history.act(&Trial::Portal(0, true));
        history.act(&Trial::Portal(1, true));

        let path = mount_path(0);
        history.node.world.state().meets_errors(&path);
        let errors = Trouble::FilesystemErrors { path: path.clone() };
        assert_eq!(history.verdict(0).await.state.unwrap().trouble, Some(errors));
        history.act(&Trial::GoesReadOnly(0));
        let read_only = Trouble::ReadOnlyFilesystem { path: path.clone() };
        assert_eq!(history.verdict(0).await.state.unwrap().trouble, Some(read_only));
        history.specs[0].mode = AccessMode::Ro;
        assert_eq!(history.verdict(0).await.state.unwrap().trouble, None);
        history.specs[0].mode = AccessMode::Rw;

        history.node.world.state().kernel.mounts.retain(|mount| mount.target != path);
        let verdict = history.verdict(0).await;
        assert_eq!((verdict.state, verdict.missing), (Err(Loss::NotMounted { path }), true));

        // One path, mounted: no other disk can take the place of this one.
        history.act(&Trial::Deletes(1, 0));
        let verdict = history.verdict(1).await;
        let gone = Loss::DeviceGone { path: mount_path(1) };
        assert_eq!((verdict.state, verdict.missing), (Err(gone), false));
    });
}

#[test]
fn nothing_is_said_of_what_is_not_attached_yet_or_is_being_detached() {
    live(async {
        let history = History::new(Style::UniqueWwids, false, false).await;
        let spec = &history.specs[0];
        let host = history.node.world.host(spec.volume).observe().await.unwrap();
        let record = history.node.ledger.load(spec.volume).await.unwrap().unwrap();
        let incomplete = Record { completed: false, ..record.clone() };
        let released = Record { released: true, ..record };
        for record in [incomplete, released] {
            assert_eq!(judge(spec, &record, &host, &BTreeMap::new()), None);
        }
    });
}
