//! open-iscsi's database of node records, as files.
//!
//! `iscsiadm` takes a CHAP secret on its command line only, where every user of the node can read
//! it. So attachd edits the record that `iscsiadm -o new` made, with mode 0600, atomically, and under
//! the lock that every iscsiadm takes:
//!
//! ```text
//! /etc/iscsi/nodes (Debian, upstream's default before 2.1.10) or /var/lib/iscsi/nodes (Red Hat, SUSE)
//!   <target>/<address>,<port>                    made without a portal group, as attachd does
//!   <target>/<address>,<port>,<tpgt>/<interface> made by discovery
//! /run/lock/iscsi/lock, lock.write               locked: the second is a hard link to the first
//! ```
//!
//! An IPv6 address stands there without brackets. A line is `name = value`; blanks around the value
//! don't count; a line that starts with `#` is a comment (`idbm_recinfo_config()` in `idbm.c`).

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::model::{Chap, Portal, Target};

use super::{HostError, LoginLimits, blocking};

/// Directories of the database, below the host's root.
const ROOTS: [&str; 2] = ["etc/iscsi", "var/lib/iscsi"];
const LOCK_DIRECTORY: &str = "run/lock/iscsi";
/// How often the lock is tried, as in `idbm_lock()`.
const LOCK_STEP: Duration = Duration::from_millis(10);
/// How long the lock is waited for; iscsiadm itself waits 30 s.
const LOCK_LIMIT: Duration = Duration::from_secs(15);
/// A lock that is older, and without a living iscsiadm, was left behind by one that was killed.
/// iscsiadm holds it for milliseconds.
const LOCK_STALE: Duration = Duration::from_secs(10);
const WRITE_LIMIT: Duration = Duration::from_secs(20);
/// Longest CHAP name or secret, without its NUL (`AUTH_STR_MAX_LEN`).
const LONGEST_CREDENTIAL: usize = 255;

/// The database.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    host_root: PathBuf,
}

/// One setting of a record.
type Setting = (&'static str, String);

impl Database {
    pub(crate) fn new(host_root: impl Into<PathBuf>) -> Self {
        Self { host_root: host_root.into() }
    }

    /// All records of a target behind a portal, whoever made them.
    pub(crate) fn records(&self, target: &Target) -> Result<Vec<PathBuf>, HostError> {
        let mut records = Vec::new();
        for root in ROOTS {
            let directory = self.host_root.join(root).join("nodes").join(target.iqn.as_str());
            for path in list(&directory)? {
                if !is_of(&path, target.portal) {
                    continue;
                }
                if path.is_dir() {
                    records.extend(list(&path)?.into_iter().filter(|file| file.is_file()));
                } else {
                    records.push(path);
                }
            }
        }
        Ok(records)
    }

    /// Where [`Database::records`] looks, for an error message.
    pub(crate) fn searched(&self) -> String {
        let places =
            ROOTS.map(|root| self.host_root.join(root).join("nodes").display().to_string());
        places.join(" and ")
    }

    /// Writes settings into records, each atomically; says whether any of them changed.
    pub(crate) async fn write(
        &self,
        records: Vec<PathBuf>,
        settings: Vec<Setting>,
    ) -> Result<bool, HostError> {
        let lock = self.lock().await?;
        blocking::limited("writing node records".to_owned(), WRITE_LIMIT, move || {
            let _lock = lock;
            let mut changed = false;
            for record in records {
                changed |= rewrite(&record, &settings)?;
            }
            Ok(changed)
        })
        .await
    }

    /// Removes records that were made without a portal group (nothing else refers to those), and
    /// says whether other ones are left, which iscsiadm must remove.
    pub(crate) async fn remove_plain(&self, target: &Target) -> Result<bool, HostError> {
        let records = self.records(target)?;
        let (plain, other): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| is_of(record, target.portal));
        if !plain.is_empty() {
            let lock = self.lock().await?;
            blocking::limited("removing node records".to_owned(), WRITE_LIMIT, move || {
                let _lock = lock;
                plain.iter().try_for_each(|record| remove(record))
            })
            .await?;
        }
        Ok(!other.is_empty())
    }

    /// Takes the database's lock.
    pub(crate) async fn lock(&self) -> Result<Lock, HostError> {
        let directory = self.host_root.join(LOCK_DIRECTORY);
        let (file, link) = (directory.join("lock"), directory.join("lock.write"));
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(HostError::io("make", directory)(error));
            }
            _ => {}
        }
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .map_err(HostError::io("open", &file))?;
        let attempts = async {
            loop {
                match fs::hard_link(&file, &link) {
                    Ok(()) => return Ok(Lock(link.clone())),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(HostError::io("lock", &link)(error)),
                }
                self.break_stale(&link);
                tokio::time::sleep(LOCK_STEP).await;
            }
        };
        match tokio::time::timeout(LOCK_LIMIT, attempts).await {
            Ok(result) => result,
            Err(_) => Err(HostError::DatabaseLocked { path: link, seconds: LOCK_LIMIT.as_secs() }),
        }
    }

    /// Removes a lock that nobody holds any more. Its inode's change time is the time of the link.
    fn break_stale(&self, link: &Path) {
        let age = fs::metadata(link).ok().and_then(|meta| {
            let taken = u64::try_from(meta.ctime()).ok().map(Duration::from_secs)?;
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + taken).ok()
        });
        if age.is_some_and(|age| age > LOCK_STALE) && self.no_iscsiadm_runs() {
            tracing::warn!(path = %link.display(), "removing a lock that a killed iscsiadm left behind");
            let _ = fs::remove_file(link);
        }
    }

    /// Whether the node's processes can be seen (iscsid is among them), and none is an iscsiadm.
    fn no_iscsiadm_runs(&self) -> bool {
        let names: Vec<String> = list(&self.host_root.join("proc"))
            .unwrap_or_default()
            .iter()
            .filter_map(|process| fs::read_to_string(process.join("comm")).ok())
            .collect();
        let runs = |name| names.iter().any(|comm| comm.trim_end() == name);
        runs("iscsid") && !runs("iscsiadm")
    }

    /// Writes a record for authenticated discovery, which iscsiadm can't make without the secret on
    /// its command line. It is removed with the guard. `None` where the same one is there already.
    pub(crate) async fn discovery_record(
        &self,
        portal: Portal,
        chap: &Chap,
        limits: &LoginLimits,
    ) -> Result<Vec<DiscoveryRecord>, HostError> {
        check_credentials(chap, &portal.to_string())?;
        let text = discovery_text(portal, chap, limits);
        let _lock = self.lock().await?;
        let mut made = Vec::new();
        for root in ROOTS.map(|root| self.host_root.join(root)).iter().filter(|root| root.is_dir())
        {
            let directory =
                root.join("send_targets").join(format!("{},{}", portal.address(), portal.port()));
            let path = directory.join("st_config");
            match fs::read_to_string(&path) {
                Ok(there) if auth_of(&there) == auth_of(&text) => continue,
                Ok(_) => return Err(HostError::ForeignDiscoveryRecord { portal, path }),
                Err(_) => {}
            }
            fs::create_dir_all(&directory).map_err(HostError::io("make", &directory))?;
            let record = DiscoveryRecord { directory, path };
            replace(&record.path, &record.directory, &text)?;
            made.push(record);
        }
        Ok(made)
    }
}

/// The database's lock, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Lock(PathBuf);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A discovery record of attachd's own, gone again when this is dropped.
#[derive(Debug)]
pub(crate) struct DiscoveryRecord {
    directory: PathBuf,
    path: PathBuf,
}

impl Drop for DiscoveryRecord {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_dir(&self.directory);
    }
}

/// What attachd wants in every node record of its own.
pub(crate) fn settings(
    target: &Target,
    chap: Option<&Chap>,
    limits: &LoginLimits,
) -> Result<Vec<Setting>, HostError> {
    let mut settings = vec![
        ("node.startup", "manual".to_owned()),
        ("node.conn[0].startup", "manual".to_owned()),
        ("node.session.scan", "manual".to_owned()),
        ("node.conn[0].timeo.login_timeout", limits.each.as_secs().max(1).to_string()),
        ("node.session.initial_login_retry_max", limits.tries.max(1).to_string()),
    ];
    if let Some(chap) = chap {
        check_credentials(chap, &target.to_string())?;
        settings.extend([
            ("node.session.auth.authmethod", "CHAP".to_owned()),
            ("node.session.auth.username", chap.username.clone()),
            ("node.session.auth.password", chap.password.expose().clone()),
        ]);
    }
    Ok(settings)
}

/// A name or secret that the record's format would change or cut is refused.
fn check_credentials(chap: &Chap, object: &str) -> Result<(), HostError> {
    for (field, value) in [("username", &chap.username), ("password", chap.password.expose())] {
        let why = if value.is_empty() {
            "it is empty"
        } else if value.len() > LONGEST_CREDENTIAL {
            "it is longer than 255 bytes"
        } else if value.chars().any(char::is_control) {
            "it has a control character"
        } else if value.trim() != value {
            "it starts or ends with a blank"
        } else {
            continue;
        };
        return Err(HostError::UnusableCredentials { field, object: object.to_owned(), why });
    }
    Ok(())
}

/// Whether a directory entry `address,port[,tpgt]` belongs to a portal.
fn is_of(path: &Path, portal: Portal) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let mut parts = name.split(',');
    let address = parts.next().and_then(|text| text.parse::<IpAddr>().ok());
    let port = parts.next().and_then(|text| text.parse::<u16>().ok());
    address == Some(portal.address()) && port == Some(portal.port())
}

/// A record's text with other settings, the rest as it was.
fn edited(text: &str, settings: &[Setting]) -> String {
    let name_of = |line: &str| line.split(['=', ' ', '\t']).next().unwrap_or_default().to_owned();
    let is_set =
        |line: &&str| !settings.iter().any(|(name, _)| name_of(line.trim_start()) == *name);
    let (end, kept): (Vec<&str>, Vec<&str>) =
        text.lines().filter(is_set).partition(|line| line.starts_with("# END RECORD"));
    let set = settings.iter().map(|(name, value)| format!("{name} = {value}"));
    let mut lines: Vec<String> = kept.into_iter().map(str::to_owned).collect();
    lines.extend(set);
    lines.extend(end.into_iter().map(str::to_owned));
    lines.join("\n") + "\n"
}

fn rewrite(record: &Path, settings: &[Setting]) -> Result<bool, HostError> {
    let before = fs::read_to_string(record).map_err(HostError::io("read", record))?;
    let after = edited(&before, settings);
    let mode = fs::metadata(record).map_err(HostError::io("read", record))?.permissions().mode();
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    // The order of lines says nothing. Six zero bits: nothing for the group, nothing for others.
    if sorted(&before) == sorted(&after) && mode.trailing_zeros() >= 6 {
        return Ok(false);
    }
    // Not beside a record in a portal's directory: every file in there is taken for a record.
    let target = match record.parent() {
        Some(parent)
            if parent.file_name().is_some_and(|name| name.to_string_lossy().contains(',')) =>
        {
            parent.parent().unwrap_or(parent)
        }
        Some(parent) => parent,
        None => Path::new("/"),
    };
    replace(record, target, &after)?;
    Ok(true)
}

/// Writes a file anew, mode 0600: all of it, or nothing. The temporary file's name has no comma, so
/// that iscsiadm doesn't take it for a portal.
fn replace(path: &Path, beside: &Path, text: &str) -> Result<(), HostError> {
    let temporary = beside.join(format!(".attachd-{}", uuid::Uuid::new_v4()));
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(parent) => fs::File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        HostError::io("write", path)(error)
    })
}

fn remove(record: &Path) -> Result<(), HostError> {
    match fs::remove_file(record) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(HostError::io("remove", record)(error));
        }
        _ => {}
    }
    // The target's directory, unless other portals have records in it.
    if let Some(parent) = record.parent() {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, HostError> {
    match fs::read_dir(directory) {
        Ok(entries) => {
            let mut paths: Vec<_> =
                entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
            paths.sort();
            Ok(paths)
        }
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(HostError::io("read", directory)(error)),
    }
}

fn discovery_text(portal: Portal, chap: &Chap, limits: &LoginLimits) -> String {
    format!(
        "discovery.startup = manual\n\
         discovery.type = sendtargets\n\
         discovery.sendtargets.address = {address}\n\
         discovery.sendtargets.port = {port}\n\
         discovery.sendtargets.auth.authmethod = CHAP\n\
         discovery.sendtargets.auth.username = {username}\n\
         discovery.sendtargets.auth.password = {password}\n\
         discovery.sendtargets.timeo.login_timeout = {seconds}\n\
         discovery.sendtargets.reopen_max = {tries}\n",
        address = portal.address(),
        port = portal.port(),
        username = chap.username,
        password = chap.password.expose(),
        seconds = limits.each.as_secs().max(1),
        tries = limits.tries.max(1),
    )
}

/// The lines of a discovery record that say how to authenticate.
fn auth_of(record: &str) -> Vec<&str> {
    let wanted = ["auth.authmethod", "auth.username =", "auth.password ="];
    let mut lines: Vec<&str> =
        record.lines().filter(|line| wanted.iter().any(|key| line.contains(key))).collect();
    lines.sort_unstable();
    lines
}
