use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::lock::{Guard, acquire};
use crate::model::{AttachSpec, AttachmentId, Retry, Target, TargetPath, VolumeId, Wwid};

/// Who asked for a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// `attachd attach`.
    CommandLine,
    /// A file of the requests directory, by the request's name.
    RequestsDir(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the command line"),
            Self::RequestsDir(name) => write!(f, "the request {name:?} in the requests directory"),
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
            wwid: None,
            format: FormatProgress::NotStarted,
            made_directory: false,
            mounted: false,
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
}

impl Ledger {
    /// Opens the ledger in a directory; makes it (mode 0700) where it isn't there.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn open(root: &Path) -> Result<Self, LedgerError> {
        for directory in ["volumes", "targets", "locks"] {
            let path = root.join(directory);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| LedgerError::Io { doing: "making", path, source })?;
        }
        Ok(Self { root: root.to_owned() })
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

    /// Remembers, before a login, that the session to this target will be attachd's own.
    ///
    /// # Errors
    /// It may or may not have been written.
    pub async fn own_target(&self, target: &Target) -> Result<(), LedgerError> {
        let path = self.target_path(target);
        let target = target.clone();
        blocking(move || write(&path, &target)).await
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
    pub async fn owned_targets(&self) -> Result<BTreeSet<Target>, LedgerError> {
        let directory = self.root.join("targets");
        blocking(move || read_all(&directory)?.into_iter().collect()).await
    }

    /// Excludes every other attachd from this volume until the guard is dropped.
    ///
    /// # Errors
    /// Another holds it for longer than the limit.
    pub async fn lock_volume(&self, volume: VolumeId) -> Result<Guard, LedgerError> {
        let path = self.root.join("locks").join(format!("volume-{volume}"));
        acquire(path, format!("volume {volume}")).await
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
            guards.push(acquire(path, format!("target {target}")).await?);
        }
        Ok(guards)
    }
}

/// A file name for a target: a name of 223 bytes and an address don't fit into one.
fn key(target: &Target) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{} {}", target.iqn, target.portal).as_bytes())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, LedgerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(LedgerError::Io {
            doing: "working on",
            path: PathBuf::from("the ledger"),
            source: io::Error::other(error),
        }),
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, LedgerError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(LedgerError::Io { doing: "reading", path: path.to_owned(), source });
        }
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| LedgerError::Malformed { path: path.to_owned(), source })
}

fn read_all<T: serde::de::DeserializeOwned>(
    directory: &Path,
) -> Result<Vec<Result<T, LedgerError>>, LedgerError> {
    let io = |source| LedgerError::Io { doing: "listing", path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths.iter().filter_map(|path| read(path).transpose()).collect())
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), LedgerError> {
    let io = |doing| move |source| LedgerError::Io { doing, path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(value)
        .map_err(|source| LedgerError::Malformed { path: path.to_owned(), source })?;
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io("writing"))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(io("writing"))?;
    fs::rename(&temporary, path).map_err(io("renaming"))?;
    sync_directory(path)
}

fn remove(path: &Path) -> Result<(), LedgerError> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(LedgerError::Io { doing: "removing", path: path.to_owned(), source }),
    }
}

/// A rename or removal is on the disk only when its directory is.
fn sync_directory(path: &Path) -> Result<(), LedgerError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| LedgerError::Io { doing: "syncing", path: directory.to_owned(), source })
}
