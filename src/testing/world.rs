use std::{
    collections::BTreeMap,
    future::{Future, pending},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::{
    Fault, SimCinder, SimHost, Style, When,
    cinder::CinderState,
    fault::Faults,
    kernel::Kernel,
    storage::{Storage, parsed},
};
use crate::{
    host::NodeFacts,
    model::{Connector, Multipathd, VolumeId},
};

/// Everything that exists, beside attachd and its ledger.
#[derive(Debug)]
pub struct World {
    /// The node's kernel and its daemons.
    pub kernel: Kernel,
    /// The storage.
    pub storage: Storage,
    /// Cinder.
    pub cinder: CinderState,
    /// What happened, in order, for the reader of a failed test.
    pub journal: Vec<String>,
    /// Invariants that were broken.
    pub violations: Vec<String>,
    /// What the last rightful writer left on each volume.
    pub expected: BTreeMap<VolumeId, u64>,
    /// Facts that the node answers.
    pub facts: NodeFacts,
    pub(super) faults: Faults,
    pub(super) calls: BTreeMap<usize, Call>,
    /// Bounds of what an operation takes, in virtual milliseconds, and a generator for it.
    pub(super) latency: (u64, u64),
    pub(super) events: watch::Sender<u64>,
}

impl World {
    /// Says that the kernel or udev has news.
    pub(super) fn event(&self) {
        self.events.send_modify(|count| *count += 1);
    }

    pub(super) fn violation(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.journal.push(format!("VIOLATION: {what}"));
        self.violations.push(what);
    }
}

/// Something that a test wants to happen at a certain point.
pub(super) struct Call(Box<dyn FnOnce(&mut World) + Send>);

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Call")
    }
}

/// A handle to the world, for one life of attachd: after a crash, or a reboot, operations of the
/// old life never end.
#[derive(Debug, Clone)]
pub struct SimWorld {
    state: Arc<Mutex<World>>,
    lives: watch::Sender<u64>,
    life: u64,
}

impl SimWorld {
    /// A node without anything, and a storage without volumes.
    pub fn new(style: Style) -> Self {
        let world = World {
            kernel: Kernel::default(),
            storage: Storage::new(style),
            cinder: CinderState::default(),
            journal: Vec::new(),
            violations: Vec::new(),
            expected: BTreeMap::new(),
            facts: node_facts(),
            faults: Faults::default(),
            calls: BTreeMap::new(),
            latency: (0, 1),
            events: watch::Sender::new(0),
        };
        Self { state: Arc::new(Mutex::new(world)), lives: watch::Sender::new(0), life: 0 }
    }

    /// Looks at the world, or changes it.
    pub fn state(&self) -> MutexGuard<'_, World> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host as the engine sees it, while it works for one volume.
    pub fn host(&self, volume: VolumeId) -> SimHost {
        SimHost { world: self.clone(), volume: Some(volume) }
    }

    /// The host as a daemon's engine sees it, which works for many volumes: the guard takes it that
    /// the volume that an operation reaches is the one that is meant.
    pub fn host_of_all(&self) -> SimHost {
        SimHost { world: self.clone(), volume: None }
    }

    /// Cinder as the engine sees it.
    pub fn cinder(&self) -> SimCinder {
        SimCinder { world: self.clone() }
    }

    /// Lets the operation that comes after `ahead` others go wrong.
    pub fn plan_fault(&self, ahead: usize, fault: Fault) {
        self.state().faults.plan(ahead, fault);
    }

    /// Something that happens just before the operation that comes after `ahead` others.
    pub fn call_at(&self, ahead: usize, what: impl FnOnce(&mut World) + Send + 'static) {
        let mut state = self.state();
        let index = state.faults.count() + ahead;
        state.calls.insert(index, Call(Box::new(what)));
    }

    /// Nothing goes wrong any more.
    pub fn clear_faults(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.calls.clear();
    }

    /// How many operations there were.
    pub fn operations(&self) -> usize {
        self.state().faults.count()
    }

    /// Operations take up to so many virtual milliseconds, in an order that the seed decides.
    pub fn jitter(&self, up_to: u64, seed: u64) {
        self.state().latency = (up_to, seed | 1);
    }

    /// Returns when attachd was killed.
    pub async fn killed(&self) {
        let mut lives = self.lives.subscribe();
        // The sender is in here.
        drop(lives.wait_for(|life| *life != self.life).await);
    }

    /// attachd is started anew.
    #[must_use]
    pub fn restarted(&self) -> Self {
        Self { life: *self.lives.borrow(), ..self.clone() }
    }

    /// attachd is killed.
    pub fn kill(&self) {
        self.lives.send_modify(|life| *life += 1);
    }

    /// Which boot of the node this is, as the kernel names it.
    pub fn boot(&self) -> String {
        format!("boot-{}", self.state().kernel.boot)
    }

    /// What was violated, and the journal up to there.
    ///
    /// # Panics
    /// If anything was.
    pub fn assert_sound(&self) {
        let state = self.state();
        assert!(
            state.violations.is_empty(),
            "invariants were broken: {:#?}\njournal:\n{}",
            state.violations,
            state.journal.join("\n")
        );
    }

    /// One operation, with its effect and whatever goes wrong.
    pub(super) async fn operate<T, E>(
        &self,
        name: String,
        effect: impl FnOnce(&mut World, Option<Fault>) -> Result<T, E> + Send,
        failure: impl FnOnce(Fault) -> E + Send,
    ) -> Result<T, E> {
        self.pause().await;
        let (result, fault) = {
            let mut world = self.state();
            let dead = self.life != *self.lives.borrow();
            let index = world.faults.count();
            if let Some(Call(call)) = world.calls.remove(&index) {
                call(&mut world);
            }
            let fault = if dead { Some(Fault::Hang(When::Before)) } else { world.faults.next() };
            let number = world.faults.count();
            match fault {
                _ if dead => {}
                None => world.journal.push(format!("{number}: {name}")),
                Some(fault) => world.journal.push(format!("{number}: {name} !!! {fault:?}")),
            }
            let happens = !matches!(
                fault,
                Some(
                    Fault::Error(When::Before)
                        | Fault::Crash(When::Before)
                        | Fault::Reboot(When::Before)
                        | Fault::Hang(When::Before)
                        | Fault::Busy
                )
            );
            (happens.then(|| effect(&mut world, fault)), fault)
        };
        match (fault, result) {
            (None | Some(Fault::Partial), Some(result)) => result,
            (Some(fault @ (Fault::Error(_) | Fault::Busy)), _) => Err(failure(fault)),
            (Some(Fault::Crash(_)), _) => {
                self.kill();
                never().await
            }
            (Some(Fault::Reboot(_)), _) => {
                self.reboot();
                never().await
            }
            _ => never().await,
        }
    }

    /// The node restarts: attachd is killed, the kernel's state is gone.
    pub fn reboot(&self) {
        self.kill();
        let mut world = self.state();
        world.journal.push("REBOOT".to_owned());
        world.kernel.reboot();
    }

    async fn pause(&self) {
        let wait = {
            let mut world = self.state();
            let (up_to, seed) = world.latency;
            // Knuth's MMIX generator: the order is all that matters.
            let next = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            world.latency.1 = next;
            // Nothing is done in no time: who looks again and again must see time go by.
            1 + if up_to == 0 { 0 } else { (next >> 33) % up_to }
        };
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
}

fn never<T>() -> impl Future<Output = T> {
    pending()
}

/// Facts of a node that is fit for everything.
pub fn node_facts() -> NodeFacts {
    NodeFacts {
        connector: Connector {
            initiator: parsed("iqn.1993-08.org.debian:01:cad181614cec"),
            ip: parsed("10.0.0.7"),
            host: "worker-3".to_owned(),
            platform: "x86_64".to_owned(),
            os_type: "linux".to_owned(),
            multipath: true,
            do_local_attach: false,
            nqn: None,
            system_uuid: None,
            mountpoint: None,
            mode: None,
        },
        multipathd: Multipathd::Claims,
        iscsid: true,
    }
}
