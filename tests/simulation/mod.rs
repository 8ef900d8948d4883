//! A simulated node with attachd on it: what the tests of the engine start from.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{path::PathBuf, time::Duration};

use attachd::{
    attach::{AttachError, Attached, Engine, EngineConfig, Ledger, Next, Origin},
    model::{
        AccessMode, AttachSpec, Filesystem, FormatPolicy, Lun, MultipathPolicy, Target, TargetPath,
        Usage, VolumeId,
    },
    testing::{SimCinder, SimHost, SimWorld, Style, secrets_in},
};
use tempfile::TempDir;
use tokio::sync::watch;

pub const STYLES: [Style; 3] = [Style::TargetPerVolume, Style::LunPool, Style::UniqueWwids];

/// How a run ended that did not end well.
#[derive(Debug)]
pub enum End {
    /// With an error.
    Error(AttachError),
    /// attachd was killed.
    Killed,
    /// It hung, and was cancelled.
    Cancelled,
}

impl End {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Error(error) => error.reason(),
            Self::Killed => "Killed",
            Self::Cancelled => "Cancelled",
        }
    }
}

pub struct Node {
    pub world: SimWorld,
    pub ledger: Ledger,
    pub volumes: Vec<VolumeId>,
    pub directory: TempDir,
}

impl Node {
    /// A node and three blank volumes.
    pub fn new(style: Style) -> Self {
        let world = SimWorld::new(style);
        let volumes = (0..3).map(|number| world.state().create_volume(number, 1)).collect();
        let memory = PathBuf::from("/dev/shm");
        let root = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let directory = TempDir::with_prefix_in("attachd-sim-", root).unwrap();
        let ledger = Ledger::open_in_boot(directory.path(), &world.boot()).unwrap();
        Self { world, ledger, volumes, directory }
    }

    pub fn engine(&self, volume: VolumeId) -> Engine<SimHost, SimCinder> {
        let (host, cinder) = (self.world.host(volume), self.world.cinder());
        Engine::new(host, cinder, self.ledger.clone(), EngineConfig::default())
    }

    /// A node that shows the journal where a test fails.
    pub fn journal(&self) -> String {
        self.world.state().journal.join("\n")
    }

    pub fn spec(&self, index: usize) -> AttachSpec {
        AttachSpec {
            volume: self.volumes[index],
            mode: AccessMode::Rw,
            usage: Usage::Filesystem {
                filesystem: Filesystem::Ext4,
                format: FormatPolicy::IfBlank,
                mount_path: mount_path(index),
                options: Vec::new(),
            },
            multipath: MultipathPolicy::Auto,
            instance: None,
        }
    }

    pub async fn attach(&mut self, spec: &AttachSpec) -> Result<Attached, End> {
        let (_keep, stop) = watch::channel(false);
        let engine = self.engine(spec.volume);
        let origin = Origin::CommandLine;
        let result = guarded(&self.world, engine.attach(spec, &origin, &|_| {}, &stop)).await;
        self.restart_if_killed(&result);
        result
    }

    pub async fn attach_or_roll_back(&mut self, spec: &AttachSpec) -> Result<Attached, End> {
        let (_keep, stop) = watch::channel(false);
        let engine = self.engine(spec.volume);
        let origin = Origin::CommandLine;
        let run = engine.attach_or_roll_back(spec, &origin, &|_| {}, &stop);
        let result = guarded(&self.world, run).await;
        self.restart_if_killed(&result);
        result
    }

    pub async fn detach(&mut self, volume: VolumeId) -> Result<bool, End> {
        let (_keep, stop) = watch::channel(false);
        let engine = self.engine(volume);
        let origin = Origin::CommandLine;
        let result = guarded(&self.world, engine.detach(volume, &origin, &|_| {}, &stop)).await;
        self.restart_if_killed(&result);
        result
    }

    pub async fn detach_by_force(&mut self, volume: VolumeId) -> Result<bool, End> {
        let (_keep, stop) = watch::channel(false);
        let engine = self.engine(volume);
        let origin = Origin::CommandLine;
        let run = engine.detach_by_force(volume, &origin, &|_| {}, &stop);
        let result = guarded(&self.world, run).await;
        self.restart_if_killed(&result);
        result
    }

    /// What would be done next for an attach.
    pub async fn next(&self, spec: &AttachSpec) -> Next {
        let desired = attachd::attach::Desired::Attached(spec.clone());
        self.engine(spec.volume).plan(&desired, spec.volume).await.unwrap().next
    }

    pub fn restart_if_killed<T>(&mut self, result: &Result<T, End>) {
        if matches!(result, Err(End::Killed)) {
            self.restart();
        }
    }

    pub fn restart(&mut self) {
        self.world = self.world.restarted();
        self.ledger = Ledger::open_in_boot(self.directory.path(), &self.world.boot()).unwrap();
    }

    pub fn reboot(&mut self) {
        self.world.reboot();
        self.restart();
    }

    /// The ways to a volume while it is exported.
    pub fn paths(&self, index: usize) -> Vec<TargetPath> {
        let state = self.world.state();
        let (iqn, lun) = state.storage.address_of(self.volumes[index]).unwrap();
        let portals = state.storage.portals.iter();
        portals
            .map(|portal| TargetPath {
                target: Target { portal: *portal, iqn: iqn.clone() },
                lun: Lun(lun),
            })
            .collect()
    }

    /// Everything that is left of attachd: on the node, in Cinder, in the ledger.
    pub fn left(&self) -> Vec<String> {
        let mut left = self.world.state().left();
        for directory in ["volumes", "targets"] {
            let entries = std::fs::read_dir(self.directory.path().join(directory)).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
        }
        left
    }

    pub fn assert_nothing_left(&self) {
        self.world.assert_sound();
        let left = self.left();
        assert!(left.is_empty(), "left: {left:#?}\njournal:\n{}", self.journal());
    }

    /// No invariant was broken, no secret is in the ledger, no data is lost.
    pub fn assert_sound(&self) {
        self.world.assert_sound();
        let secrets = secrets_in(self.directory.path());
        assert!(secrets.is_empty(), "secrets in {secrets:?}");
        let lost = self.world.state().lost_data();
        assert!(lost.is_empty(), "data of {lost:?} is lost\njournal:\n{}", self.journal());
    }

    /// The volume is mounted, its files can be written, and nothing is left to do.
    pub async fn assert_usable(&self, spec: &AttachSpec, marker: u64) {
        if let Some(path) = spec.mount_path() {
            assert!(self.world.state().application_writes(path, marker), "it can't be written");
        }
        self.assert_sound();
        let next = self.next(spec).await;
        assert_eq!(next, Next::Done, "journal:\n{}", self.journal());
    }
}

pub fn mount_path(index: usize) -> PathBuf {
    PathBuf::from(format!("/var/lib/attachd/volumes/{index}"))
}

/// Runs until the end, until attachd is killed, or until it has hung for hours (of virtual time).
pub async fn guarded<T>(
    world: &SimWorld,
    run: impl Future<Output = Result<T, AttachError>>,
) -> Result<T, End> {
    tokio::select! {
        biased;
        () = world.killed() => Err(End::Killed),
        result = run => result.map_err(End::Error),
        () = tokio::time::sleep(Duration::from_hours(3)) => Err(End::Cancelled),
    }
}

/// How many random cases are tried: `ATTACHD_SIM_CASES`, or what ends in seconds.
#[expect(clippy::disallowed_methods, reason = "a test's own setting")]
pub fn cases(usual: u64) -> u64 {
    std::env::var("ATTACHD_SIM_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}
