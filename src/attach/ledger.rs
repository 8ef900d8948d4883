use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    files::{Known, age, blocking, read, read_all, read_all_anew, remove, temporary, write},
    lock::{Guard, Locks},
};
use crate::model::{
    AttachSpec, AttachmentId, DeviceNumber, Retry, Session, Target, TargetPath, VolumeId, Wwid,
};

/// Another text after each boot of the kernel (`random(4)`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

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

impl Origin {
    /// The request's name, where it is one.
    pub fn request(&self) -> Option<&str> {
        match self {
            Self::CommandLine => None,
            Self::RequestsDir(name) | Self::Cluster(name) => Some(name),
        }
    }
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
    /// Under which instances it was asked for: a reservation that carries one is this record's, also where
    /// the answer was lost. Another for each time it is asked: Cinder lets one instance reserve twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<Uuid>,
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
    /// Nothing of this node may reach the volume any more: what was not written yet is given up, and
    /// the disks go before anything that could write to them.
    #[serde(default)]
    pub cut: bool,
}

impl Record {
    /// A record for a request that is about to be served.
    pub fn new(spec: AttachSpec, origin: Origin, multipath: bool) -> Self {
        Self {
            spec,
            origin,
            reservation: Reservation::Asked,
            instances: Vec::new(),
            multipath,
            paths: Vec::new(),
            released: false,
            wwid: None,
            format: FormatProgress::NotStarted,
            made_directory: false,
            mounted: false,
            mount_device: None,
            completed: false,
            cut: false,
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
    /// Somebody else could write the ledger.
    #[error(
        "{path} can't be used for the ledger: {why}; whoever writes there decides what is unmounted and deleted on this node. See that nothing in there is somebody else's, then: chown root {path}; chmod 700 {path}", path = path.display()
    )]
    Unsafe {
        /// Which directory.
        path: PathBuf,
        /// Why.
        why: String,
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
            Self::Unsafe { .. } => "StateDirUnsafe",
            Self::Malformed { .. } => "LedgerMalformed",
            Self::Locked { .. } => "Locked",
        }
    }

    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Io { .. } | Self::Locked { .. } => Retry::Backoff,
            Self::Unsafe { .. } | Self::Malformed { .. } => Retry::OnChange,
        }
    }
}

/// Each record, or why it can't be read. Who has read one that is as it was has the same.
pub type Records = Vec<Result<Arc<Record>, LedgerError>>;

/// One small file per attachment, and one per target that attachd logged in to, each written to a
/// temporary file, synced, and renamed into place.
#[derive(Debug, Clone)]
pub struct Ledger {
    root: PathBuf,
    boot: String,
    locks: Locks,
    /// The records as they were read last.
    known: Arc<Mutex<Known<Record>>>,
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
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        Self::open_in_boot(root, boot.trim())
    }

    /// [`Ledger::open`], for a node that names its boots otherwise: a simulated one.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn open_in_boot(root: &Path, boot: &str) -> Result<Self, LedgerError> {
        private_directory(root, Others::MayRead)?;
        // The journal's files are not the ledger's, but nobody else may write there either.
        for directory in ["volumes", "targets", "locks", "journal"] {
            private_directory(&root.join(directory), Others::Nothing)?;
        }
        Ok(Self::at(root, boot))
    }

    /// The ledger in a directory, for a look that must change nothing; none where none was ever made.
    pub fn look(root: &Path) -> Option<Self> {
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        let there = root.join("volumes").is_dir();
        there.then(|| Self::at(root, &boot))
    }

    fn at(root: &Path, boot: &str) -> Self {
        let (locks, known) = (Locks::default(), Arc::default());
        Self { root: root.to_owned(), boot: boot.to_owned(), locks, known }
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
        put(path, record.clone()).await
    }

    /// Removes a volume's record; none there is fine.
    ///
    /// # Errors
    /// It may or may not have been removed.
    pub async fn forget(&self, volume: VolumeId) -> Result<(), LedgerError> {
        take_away(self.volume_path(volume)).await
    }

    /// All records. One that can't be read is an error in its place and doesn't hide the others.
    ///
    /// # Errors
    /// The directory can't be read.
    pub async fn records(&self) -> Result<Records, LedgerError> {
        let (directory, known) = (self.root.join("volumes"), Arc::clone(&self.known));
        blocking(move || {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            read_all_anew(&directory, &mut known)
        })
        .await
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
        put(path, mark).await
    }

    /// Forgets it, after the logout.
    ///
    /// # Errors
    /// It may or may not have been removed.
    pub async fn disown_target(&self, target: &Target) -> Result<(), LedgerError> {
        take_away(self.target_path(target)).await
    }

    /// All targets that attachd logged in to.
    ///
    /// # Errors
    /// The directory or one of its files can't be read.
    pub async fn owned_targets(&self) -> Result<OwnedTargets, LedgerError> {
        let directory = self.root.join("targets");
        let marks = blocking(move || read_all::<Mark>(&directory)).await?;
        marks.into_iter().map(|mark| Ok(self.owned(mark?))).collect()
    }

    /// Those of these targets that attachd logged in to.
    ///
    /// # Errors
    /// A file can't be read.
    pub async fn owned_among(
        &self,
        targets: BTreeSet<Target>,
    ) -> Result<OwnedTargets, LedgerError> {
        let files: Vec<_> = targets.iter().map(|target| self.target_path(target)).collect();
        let marks = blocking(move || {
            files
                .iter()
                .filter_map(|file| read::<Mark>(file).transpose())
                .collect::<Result<Vec<_>, _>>()
        });
        Ok(marks.await?.into_iter().map(|mark| self.owned(mark)).collect())
    }

    fn owned(&self, mark: Mark) -> (Target, Ownership) {
        let now = mark.boot == self.boot;
        (mark.target, if now { mark.ownership } else { Ownership::Record })
    }

    /// Logins to these targets of which nobody recorded an end, since their attachd was killed: how long
    /// ago each was begun. For whoever holds the targets' lock.
    ///
    /// # Errors
    /// A file can't be read.
    pub async fn open_logins(
        &self,
        targets: &[Target],
    ) -> Result<BTreeMap<Target, Duration>, LedgerError> {
        let files: Vec<_> =
            targets.iter().map(|target| (target.clone(), self.target_path(target))).collect();
        let boot = self.boot.clone();
        blocking(move || {
            let mut open = BTreeMap::new();
            for (target, path) in files {
                let mark = read::<Mark>(&path)?;
                if mark.is_some_and(|m| m.boot == boot && m.ownership == Ownership::LoggingIn) {
                    open.insert(target, age(&path)?);
                }
            }
            Ok(open)
        })
        .await
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

    /// Whether an attachd, this one included, works on a volume now.
    ///
    /// # Errors
    /// The lock can't be looked at.
    pub async fn is_locked(&self, volume: VolumeId) -> Result<bool, LedgerError> {
        let path = self.root.join("locks").join(format!("volume-{volume}"));
        blocking(move || Locks::is_held(&path)).await
    }

    /// How long ago attachd had logged in to a target, where it has recorded a session there in this boot.
    ///
    /// # Errors
    /// The record of it can't be read.
    pub async fn logged_in_since(&self, target: &Target) -> Result<Option<Duration>, LedgerError> {
        let (path, boot) = (self.target_path(target), self.boot.clone());
        blocking(move || {
            let mark = read::<Mark>(&path)?;
            let is_session =
                |mark: &Mark| mark.boot == boot && matches!(mark.ownership, Ownership::Session(_));
            mark.filter(is_session).map(|_| age(&path)).transpose()
        })
        .await
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

/// What users beside attachd's own may do with a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    /// An administrator may let them through to the mounts.
    MayRead,
    Nothing,
}

/// Makes a directory, and refuses one that others could put ledger entries into: what stands there says
/// which disks are deleted and what is unmounted.
fn private_directory(path: &Path, others: Others) -> Result<(), LedgerError> {
    let io = |doing| move |source| LedgerError::Io { doing, path: path.to_owned(), source };
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).map_err(io("making"))?;
    // The state directory itself may be reached through a link, its parts may not.
    let seen = match others {
        Others::MayRead => fs::metadata(path),
        Others::Nothing => fs::symlink_metadata(path),
    };
    let seen = seen.map_err(io("looking at"))?;
    let unsafe_ = |why: String| Err(LedgerError::Unsafe { path: path.to_owned(), why });
    if !seen.is_dir() {
        return unsafe_("it is a symbolic link; name the directory itself".to_owned());
    }
    let own = geteuid().as_raw();
    if seen.uid() != own && seen.uid() != 0 {
        return unsafe_(format!("it belongs to user {}, not to attachd's ({own})", seen.uid()));
    }
    let mode = seen.permissions().mode() & 0o777;
    if mode & 0o022 != 0 {
        return unsafe_(format!("others may write to it (mode {mode:o})"));
    }
    if others == Others::Nothing && mode & 0o077 != 0 && seen.uid() == own {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io("closing"))?;
    }
    Ok(())
}

async fn put(path: PathBuf, value: impl Serialize + Send + 'static) -> Result<(), LedgerError> {
    let file = path.display().to_string();
    blocking(move || write(&path, &value)).await?;
    tracing::debug!(file, "recorded");
    Ok(())
}

async fn take_away(path: PathBuf) -> Result<(), LedgerError> {
    let file = path.display().to_string();
    blocking(move || remove(&path)).await?;
    tracing::debug!(file, "no longer recorded");
    Ok(())
}

/// A file name for a target: a name of 223 bytes and an address don't fit into one.
fn key(target: &Target) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{} {}", target.iqn, target.portal).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[tokio::test]
    async fn what_the_ledger_makes_is_for_its_own_user_alone() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("state");
        let ledger = Ledger::open(&root).unwrap();
        let volume = VolumeId::from(Uuid::nil());
        let guard = ledger.lock_volume(volume).await.unwrap();
        let (iqn, portal) = ("iqn.2010-10.org.openstack:v", "192.0.2.1:3260");
        let target = Target { iqn: iqn.parse().unwrap(), portal: portal.parse().unwrap() };
        ledger.own_target(&target, Ownership::Record).await.unwrap();
        drop(guard);
        for directory in ["", "volumes", "targets", "locks", "journal"] {
            assert_eq!(mode(&root.join(directory)), 0o700, "{directory}");
        }
        assert_eq!(mode(&root.join(format!("locks/volume-{volume}"))), 0o600);
        assert_eq!(mode(&ledger.target_path(&target)), 0o600);
    }

    #[test]
    fn a_state_directory_that_others_can_write_is_refused_and_a_readable_one_is_closed_inside() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("state");
        Ledger::open(&root).unwrap();
        for (path, bad) in [("", 0o777), ("", 0o720), ("volumes", 0o702), ("locks", 0o770)] {
            set_mode(&root.join(path), bad);
            let error = Ledger::open(&root).unwrap_err();
            assert_eq!(error.reason(), "StateDirUnsafe", "{path} {bad:o}");
            assert!(error.to_string().contains(&format!("mode {bad:o}")), "{error}");
            set_mode(&root.join(path), 0o700);
        }
        set_mode(&root, 0o755);
        set_mode(&root.join("targets"), 0o755);
        Ledger::open(&root).unwrap();
        assert_eq!((mode(&root), mode(&root.join("targets"))), (0o755, 0o700));
    }

    #[test]
    fn a_link_in_the_place_of_a_directory_of_the_ledger_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (base.path().join("state"), base.path().join("elsewhere"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        symlink(&elsewhere, root.join("volumes")).unwrap();
        assert_eq!(Ledger::open(&root).unwrap_err().reason(), "StateDirUnsafe");
        fs::remove_file(root.join("volumes")).unwrap();
        symlink(&root, base.path().join("link")).unwrap();
        Ledger::open(&base.path().join("link")).unwrap();
    }
}
