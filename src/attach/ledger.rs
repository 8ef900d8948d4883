use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    files::{blocking, read, read_all, remove, temporary, write},
    lock::{Guard, Locks},
};
use crate::model::{
    AttachSpec, AttachmentId, DeviceNumber, Retry, Session, Target, TargetPath, VolumeId, Wwid,
};

/// Who asked for a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// `attachd attach`.
    CommandLine,
    /// A file of the requests directory, by the request's name.
    RequestsDir(String),
    /// A `VolumeAttachRequest` of the cluster, by its name.
    Cluster(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the command line"),
            Self::RequestsDir(name) => write!(f, "the request {name:?} in the requests directory"),
            Self::Cluster(name) => write!(f, "the VolumeAttachRequest {name:?} of the cluster"),
        }
    }
}

/// How far the reservation got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reservation {
    /// Cinder is about to be asked, or was; its answer is not recorded.
    Asked,
    /// Cinder answered with this id.
    Held(AttachmentId),
}

/// How far a format got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FormatProgress {
    /// attachd hasn't formatted this device.
    #[default]
    NotStarted,
    /// The device was seen to be blank and mkfs was about to run.
    Started,
    /// mkfs ended well.
    Done,
}

/// What is known of one attachment of this node and can't be observed again. No secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "facts that come about one by one")]
pub struct Record {
    /// The request.
    pub spec: AttachSpec,
    /// Who made it.
    pub origin: Origin,
    /// The reservation.
    pub reservation: Reservation,
    /// Whether a multipath map is used; settled before the reservation.
    pub multipath: bool,
    /// Every way to the volume that Cinder (or discovery) named.
    #[serde(default)]
    pub paths: Vec<TargetPath>,
    /// The detach took the disks away and decided on the sessions: this attachment doesn't need them
    /// any more, so that of two detaches at once the last one logs out.
    #[serde(default)]
    pub released: bool,
    /// The identity that all paths were seen to share.
    #[serde(default)]
    pub wwid: Option<Wwid>,
    /// The format.
    #[serde(default)]
    pub format: FormatProgress,
    /// attachd made, or was about to make, the mount path's directory.
    #[serde(default)]
    pub made_directory: bool,
    /// A mount was about to happen, or did.
    #[serde(default)]
    pub mounted: bool,
    /// The device that was mounted: where it is lost, its mount is known by it.
    #[serde(default)]
    pub mount_device: Option<DeviceNumber>,
    /// Cinder took the completion.
    #[serde(default)]
    pub completed: bool,
}

impl Record {
    /// A record for a request that is about to be served.
    pub fn new(spec: AttachSpec, origin: Origin, multipath: bool) -> Self {
        Self {
            spec,
            origin,
            reservation: Reservation::Asked,
            multipath,
            paths: Vec::new(),
            released: false,
            wwid: None,
            format: FormatProgress::NotStarted,
            made_directory: false,
            mounted: false,
            mount_device: None,
            completed: false,
        }
    }

    /// The attachment's id, once Cinder's answer was recorded.
    pub fn attachment(&self) -> Option<AttachmentId> {
        match self.reservation {
            Reservation::Asked => None,
            Reservation::Held(id) => Some(id),
        }
    }

    /// Whether one of its paths leads to the same logical unit.
    pub fn names_unit_of(&self, path: &TargetPath) -> bool {
        self.paths.iter().any(|own| own.is_same_unit(path))
    }

    /// The targets of all paths.
    pub fn targets(&self) -> BTreeSet<Target> {
        self.paths.iter().map(|path| path.target.clone()).collect()
    }
}

/// The ledger can't be read or written. Nothing is changed on the node without it.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// An operation of the file system failed.
    #[error(
        "{doing} {path} failed; attachd changes nothing without its ledger: see that the directory is there, writable and not full"
    )]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// A file holds something else.
    #[error(
        "the ledger entry {path} can't be understood; it was not written by this version of attachd. Look at it, and move it away only when nothing of that volume is left on this node (attachd inspect)"
    )]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Another process works on the volume or target.
    #[error(
        "{what} is locked by another attachd for more than {seconds} s; wait for it to end, or see what it hangs on"
    )]
    Locked {
        /// Which volume or target.
        what: String,
        /// How long was waited.
        seconds: u64,
    },
}

impl LedgerError {
    /// The CamelCase word that conditions, events and metrics use.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "LedgerUnavailable",
            Self::Malformed { .. } => "LedgerMalformed",
            Self::Locked { .. } => "Locked",
        }
    }

    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Io { .. } | Self::Locked { .. } => Retry::Backoff,
            Self::Malformed { .. } => Retry::OnChange,
        }
    }
}

/// One small file per attachment, and one per target that attachd logged in to, each written to a
/// temporary file, synced, and renamed into place.
#[derive(Debug, Clone)]
pub struct Ledger {
    root: PathBuf,
    boot: String,
    locks: Locks,
}

/// What attachd has at a target that it logged in to: a node record, a file, and maybe a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ownership {
    /// A login was about to happen: whatever session is there is its.
    #[default]
    LoggingIn,
    /// The session with this number.
    Session(u32),
    /// The node record alone: the login failed, or the node was restarted since. A session that is
    /// there was made by somebody else.
    Record,
}

impl Ownership {
    /// Whether a session is attachd's.
    pub fn of_session(self, session: &Session) -> bool {
        match self {
            Self::LoggingIn => true,
            Self::Session(sid) => sid == session.sid,
            Self::Record => false,
        }
    }
}

/// The targets that attachd logged in to.
pub type OwnedTargets = BTreeMap<Target, Ownership>;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Mark {
    #[serde(flatten)]
    target: Target,
    /// In which boot of the node: a session doesn't outlive it.
    #[serde(default)]
    boot: String,
    #[serde(default)]
    ownership: Ownership,
}

impl Ledger {
    /// Opens the ledger in a directory; makes it (mode 0700) where it isn't there.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn open(root: &Path) -> Result<Self, LedgerError> {
        // Where it can't be read, every boot looks the same.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self::open_in_boot(root, boot.trim())
    }

    /// [`Ledger::open`], for a node that names its boots otherwise: a simulated one.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn open_in_boot(root: &Path, boot: &str) -> Result<Self, LedgerError> {
        for directory in ["volumes", "targets", "locks"] {
            let path = root.join(directory);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| LedgerError::Io { doing: "making", path, source })?;
        }
        Ok(Self { root: root.to_owned(), boot: boot.to_owned(), locks: Locks::default() })
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn volume_path(&self, volume: VolumeId) -> PathBuf {
        self.root.join("volumes").join(format!("{volume}.json"))
    }

    fn target_path(&self, target: &Target) -> PathBuf {
        self.root.join("targets").join(format!("{}.json", key(target)))
    }

    /// The record of a volume.
    ///
    /// # Errors
    /// It is there and can't be read.
    pub async fn load(&self, volume: VolumeId) -> Result<Option<Record>, LedgerError> {
        let path = self.volume_path(volume);
        blocking(move || read(&path)).await
    }

    /// Writes a record; returns when it is on the disk.
    ///
    /// # Errors
    /// It may or may not have been written.
    pub async fn store(&self, record: &Record) -> Result<(), LedgerError> {
        let path = self.volume_path(record.spec.volume);
        let record = record.clone();
        blocking(move || write(&path, &record)).await
    }

    /// Removes a volume's record; none there is fine.
    ///
    /// # Errors
    /// It may or may not have been removed.
    pub async fn forget(&self, volume: VolumeId) -> Result<(), LedgerError> {
        let path = self.volume_path(volume);
        blocking(move || remove(&path)).await
    }

    /// All records. One that can't be read is an error in its place and doesn't hide the others.
    ///
    /// # Errors
    /// The directory can't be read.
    pub async fn records(&self) -> Result<Vec<Result<Record, LedgerError>>, LedgerError> {
        let directory = self.root.join("volumes");
        blocking(move || read_all(&directory)).await
    }

    /// Remembers, before a login, that it is attachd's own, and after it which session that is.
    ///
    /// # Errors
    /// It may or may not have been written.
    pub async fn own_target(
        &self,
        target: &Target,
        ownership: Ownership,
    ) -> Result<(), LedgerError> {
        let path = self.target_path(target);
        let mark = Mark { target: target.clone(), boot: self.boot.clone(), ownership };
        blocking(move || write(&path, &mark)).await
    }

    /// Forgets it, after the logout.
    ///
    /// # Errors
    /// It may or may not have been removed.
    pub async fn disown_target(&self, target: &Target) -> Result<(), LedgerError> {
        let path = self.target_path(target);
        blocking(move || remove(&path)).await
    }

    /// All targets that attachd logged in to.
    ///
    /// # Errors
    /// The directory or one of its files can't be read.
    pub async fn owned_targets(&self) -> Result<OwnedTargets, LedgerError> {
        let directory = self.root.join("targets");
        let marks = blocking(move || read_all::<Mark>(&directory)).await?;
        marks
            .into_iter()
            .map(|mark| {
                let mark = mark?;
                let now = mark.boot == self.boot;
                Ok((mark.target, if now { mark.ownership } else { Ownership::Record }))
            })
            .collect()
    }

    /// Excludes every other attachd from this volume until the guard is dropped.
    ///
    /// # Errors
    /// Another holds it for longer than the limit.
    pub async fn lock_volume(&self, volume: VolumeId) -> Result<Guard, LedgerError> {
        let path = self.root.join("locks").join(format!("volume-{volume}"));
        let guard = self.locks.acquire(path, format!("volume {volume}")).await?;
        let record = self.volume_path(volume);
        blocking(move || remove(&temporary(&record))).await?;
        Ok(guard)
    }

    /// Excludes every other attachd from serving the cluster's requests with this ledger.
    ///
    /// # Errors
    /// Another does for longer than the limit.
    pub async fn lock_cluster(&self) -> Result<Guard, LedgerError> {
        let path = self.root.join("locks").join("cluster");
        self.locks.acquire(path, "serving the cluster's requests".to_owned()).await
    }

    /// Excludes every other attachd from these targets, one by one in their order, so that two can't
    /// wait for each other.
    ///
    /// # Errors
    /// Another holds one for longer than the limit.
    pub async fn lock_targets(
        &self,
        targets: &BTreeSet<Target>,
    ) -> Result<Vec<Guard>, LedgerError> {
        let mut guards = Vec::with_capacity(targets.len());
        for target in targets {
            let path = self.root.join("locks").join(format!("target-{}", key(target)));
            guards.push(self.locks.acquire(path, format!("target {target}")).await?);
            let ownership = self.target_path(target);
            blocking(move || remove(&temporary(&ownership))).await?;
        }
        Ok(guards)
    }
}

/// A file name for a target: a name of 223 bytes and an address don't fit into one.
fn key(target: &Target) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{} {}", target.iqn, target.portal).as_bytes())
}
