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
//! ```
//!
//! An IPv6 address stands there without brackets. A line is `name = value`; blanks around the value
//! don't count; a line that starts with `#` is a comment (`idbm_recinfo_config()` in `idbm.c`).

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::model::{Chap, Iqn, Portal, Target};

use super::{
    HostError, LoginLimits, blocking,
    database_lock::{self, Lock},
    kept_records::{self, Kept, KeptRecords},
};

/// Directories of the database, below the host's root.
const ROOTS: [&str; 2] = ["etc/iscsi", "var/lib/iscsi"];
const WRITE_LIMIT: Duration = Duration::from_secs(20);

/// The database.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    host_root: PathBuf,
}

/// How the names of unfinished files begin.
const TEMPORARY: &str = ".attachd-";

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

    /// Whether each of these portals of a target has a record, and no other portal of it has one.
    pub(crate) fn has_only(&self, name: &Iqn, targets: &[&Target]) -> bool {
        let has_one = |target: &&Target| self.records(target).is_ok_and(|found| !found.is_empty());
        let is_known = |path: &PathBuf| targets.iter().any(|target| is_of(path, target.portal));
        let only_known = |root| {
            let directory = self.host_root.join(root).join("nodes").join(name.as_str());
            list(&directory).is_ok_and(|paths| paths.iter().all(is_known))
        };
        targets.iter().all(has_one) && ROOTS.into_iter().all(only_known)
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

    /// Sets aside what others have for a target behind a portal, unless that was done before: what is
    /// there from now on is attachd's own.
    pub(crate) async fn set_aside(&self, target: &Target) -> Result<(), HostError> {
        let kept = self.kept(target);
        if kept.iter().all(Kept::is_set_aside) {
            return Ok(());
        }
        let lock = self.lock().await?;
        blocking::limited("setting node records aside".to_owned(), WRITE_LIMIT, move || {
            let _lock = lock;
            kept.iter().try_for_each(Kept::set_aside)
        })
        .await
    }

    /// Removes attachd's own record (made without a portal group, so that nothing else refers to it),
    /// and gives back what others had there.
    pub(crate) async fn give_back(&self, target: &Target) -> Result<(), HostError> {
        let (kept, lock) = (self.kept(target), self.lock().await?);
        blocking::limited("removing node records".to_owned(), WRITE_LIMIT, move || {
            let _lock = lock;
            kept.iter().try_for_each(Kept::give_back)
        })
        .await
    }

    /// Every target that attachd has a node record for, or had begun to make one.
    pub(crate) fn all_kept(&self) -> Result<Vec<KeptRecords>, HostError> {
        let mut found = Vec::new();
        for root in ROOTS {
            kept_records::add_all(&self.host_root.join(root), &mut found)?;
        }
        Ok(found)
    }

    fn kept(&self, target: &Target) -> Vec<Kept> {
        let roots = ROOTS.map(|root| self.host_root.join(root)).into_iter();
        roots.filter(|root| root.is_dir()).map(|root| Kept::new(&root, target)).collect()
    }

    /// Takes the database's lock.
    pub(crate) async fn lock(&self) -> Result<Lock, HostError> {
        database_lock::take(&self.host_root).await
    }

    /// Removes a lock that a killed iscsiadm left behind.
    pub(crate) fn remove_stale_lock(&self) {
        database_lock::remove_stale(&self.host_root);
    }

    /// Writes a record for authenticated discovery, which iscsiadm can't make without the secret on
    /// its command line. The records are removed with the
    /// guards; none are made where the same one is there already.
    pub(crate) async fn discovery_record(
        &self,
        portal: Portal,
        chap: &Chap,
        limits: &LoginLimits,
    ) -> Result<Vec<DiscoveryRecord>, HostError> {
        check_credentials(chap, &portal.to_string())?;
        let text = discovery_text(portal, chap, limits);
        let _lock = self.lock().await?;
        let roots = ROOTS.map(|root| self.host_root.join(root));
        // Which one this open-iscsi uses is not told before it has written something.
        let used = |root: &&PathBuf| {
            ["nodes", "ifaces", "send_targets"].iter().any(|d| root.join(d).exists())
        };
        let some_used = roots.iter().any(|root| used(&root));
        let mut made = Vec::new();
        for root in roots.iter().filter(|root| if some_used { used(root) } else { root.is_dir() }) {
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
        // Unless others have records in there.
        let _ = self.directory.parent().map(fs::remove_dir);
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
    if let Some((field, why)) = chap.flaw() {
        return Err(HostError::UnusableCredentials { field, object: object.to_owned(), why });
    }
    Ok(())
}

/// Whether a directory entry `address,port[,tpgt]` belongs to a portal.
pub(super) fn is_of(path: &Path, portal: Portal) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let mut parts = name.split(',');
    let address = parts.next().and_then(|text| text.parse::<IpAddr>().ok());
    let port = parts.next().and_then(|text| text.parse::<u16>().ok());
    address == Some(portal.address()) && port == Some(portal.port())
}

/// A record's text with other settings, the rest as it was.
pub(super) fn edited(text: &str, settings: &[Setting]) -> String {
    let name_of = |line: &str| line.split(['=', ' ', '\t']).next().unwrap_or_default().to_owned();
    let is_set =
        |line: &&str| !settings.iter().any(|(name, _)| name_of(line.trim_start()) == *name);
    let (end, kept): (Vec<&str>, Vec<&str>) = text
        .split_terminator('\n')
        .filter(is_set)
        .partition(|line| line.starts_with("# END RECORD"));
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
    sweep(beside);
    let temporary = beside.join(format!("{TEMPORARY}{}", uuid::Uuid::new_v4()));
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

/// Removes what an attachd that was killed in [`replace`] left behind: it may hold a secret. Whoever
/// writes in here has the database's lock, so it is nobody's now.
fn sweep(directory: &Path) {
    let is_left = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY))
    };
    for left in list(directory).unwrap_or_default().into_iter().filter(is_left) {
        let _ = fs::remove_file(left);
    }
}

pub(super) fn remove(record: &Path) -> Result<(), HostError> {
    match fs::remove_file(record) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(HostError::io("remove", record)(error));
        }
        _ => {}
    }
    // The target's directory, unless other portals have records in it.
    if let Some(parent) = record.parent() {
        sweep(parent);
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>, HostError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::fixtures, model::Secret};

    const IQN: &str = "iqn.2010-10.org.openstack:volume-afa839db-b260-447d-9eda-f9451ad99398";

    struct Node {
        root: tempfile::TempDir,
        database: Database,
    }

    impl Node {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            for directory in ["etc/iscsi", "run/lock", "proc/1"] {
                fs::create_dir_all(root.path().join(directory)).unwrap();
            }
            fs::write(root.path().join("proc/1/comm"), "iscsid\n").unwrap();
            let database = Database::new(root.path());
            Self { root, database }
        }

        fn record(&self, path: &str) -> PathBuf {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, fixtures::text("open-iscsi/node-record-2.1.8")).unwrap();
            path
        }
    }

    fn target(portal: &str) -> Target {
        Target { portal: portal.parse().unwrap(), iqn: IQN.parse().unwrap() }
    }

    fn chap(password: &str) -> Chap {
        Chap { username: "user".to_owned(), password: Secret::new(password.to_owned()) }
    }

    fn wanted(password: &str) -> Vec<Setting> {
        let limits = LoginLimits::default();
        settings(&target("10.0.2.2:3260"), Some(&chap(password)), &limits).unwrap()
    }

    #[test]
    fn records_of_all_kinds_and_places_are_found_and_others_are_not() {
        let node = Node::new();
        let plain = node.record(&format!("etc/iscsi/nodes/{IQN}/10.0.2.2,3260"));
        let grouped = node.record(&format!("var/lib/iscsi/nodes/{IQN}/10.0.2.2,3260,1/default"));
        let v6 = node.record(&format!("etc/iscsi/nodes/{IQN}/fd00:2::2,3260"));
        node.record(&format!("etc/iscsi/nodes/{IQN}/10.0.2.2,3261"));
        node.record("etc/iscsi/nodes/iqn.2010-10.org.openstack:other/10.0.2.2,3260");
        assert_eq!(node.database.records(&target("10.0.2.2:3260")).unwrap(), [plain, grouped]);
        assert_eq!(node.database.records(&target("[fd00:2::2]:3260")).unwrap(), [v6]);
        assert!(node.database.records(&target("10.0.9.9:3260")).unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_record_gets_attachds_settings_once_and_is_private() {
        let node = Node::new();
        let path = node.record(&format!("etc/iscsi/nodes/{IQN}/10.0.2.2,3260"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(node.database.write(vec![path.clone()], wanted("first-secret")).await.unwrap());
        let text = fs::read_to_string(&path).unwrap();
        for line in [
            "node.startup = manual",
            "node.session.scan = manual",
            "node.session.auth.authmethod = CHAP",
            "node.session.auth.username = user",
            "node.session.auth.password = first-secret",
            "node.session.initial_login_retry_max = 1",
            "node.conn[0].timeo.login_timeout = 10",
            "node.conn[0].timeo.logout_timeout = 15",
        ] {
            let name = line.split(' ').next().unwrap();
            let of_name: Vec<&str> =
                text.lines().filter(|l| l.split(' ').next() == Some(name)).collect();
            assert_eq!(of_name, [line]);
        }
        assert!(text.starts_with("# BEGIN RECORD 2.1.8\n") && text.ends_with("# END RECORD\n"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!node.database.write(vec![path.clone()], wanted("first-secret")).await.unwrap());
        assert!(node.database.write(vec![path.clone()], wanted("second-secret")).await.unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("second-secret") && !text.contains("first-secret"));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a file was left");
    }

    #[tokio::test]
    async fn what_a_killed_attachd_left_unfinished_goes_with_the_next_write_and_the_removal() {
        let node = Node::new();
        let path = node.record(&format!("etc/iscsi/nodes/{IQN}/10.0.2.2,3260"));
        let left = path.with_file_name(".attachd-7a29c609");
        fs::write(&left, "node.session.auth.password = secret\n").unwrap();
        node.database.write(vec![path.clone()], wanted("secret")).await.unwrap();
        assert!(!left.exists());
        fs::write(&left, "node.session.auth.password = secret\n").unwrap();
        let target = target("10.0.2.2:3260");
        fs::create_dir_all(
            node.root.path().join(format!("etc/iscsi/attachd-kept/{IQN}/kept-10.0.2.2,3260")),
        )
        .unwrap();
        node.database.give_back(&target).await.unwrap();
        assert!(!path.parent().unwrap().exists());
    }

    #[tokio::test]
    async fn a_record_of_somebody_else_is_untouched_by_writes_and_by_the_removal() {
        let node = Node::new();
        let target = target("10.0.2.2:3260");
        for theirs in ["10.0.2.2,3260", "10.0.2.2,3260,1/default"] {
            let theirs = node.record(&format!("etc/iscsi/nodes/{IQN}/{theirs}"));
            let before = fs::read_to_string(&theirs).unwrap();
            node.database.set_aside(&target).await.unwrap();
            let own = node.record(&format!("etc/iscsi/nodes/{IQN}/10.0.2.2,3260"));
            assert_eq!(node.database.records(&target).unwrap(), std::slice::from_ref(&own));
            node.database.write(vec![own], wanted("secret")).await.unwrap();
            node.database.give_back(&target).await.unwrap();
            assert_eq!(node.database.records(&target).unwrap(), std::slice::from_ref(&theirs));
            assert_eq!(fs::read_to_string(&theirs).unwrap(), before);
            fs::remove_dir_all(node.root.path().join("etc/iscsi/nodes")).unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_set_aside_is_told_once_for_a_target_in_whichever_place_it_lies() {
        let node = Node::new();
        fs::create_dir_all(node.root.path().join("var/lib/iscsi")).unwrap();
        assert_eq!(node.database.all_kept().unwrap(), []);
        let (with, without) = (target("10.0.2.2:3260"), target("[fd00:2::2]:3260"));
        node.record(&format!("etc/iscsi/nodes/{IQN}/10.0.2.2,3260"));
        for target in [&with, &without] {
            node.database.set_aside(target).await.unwrap();
        }
        let mut kept = node.database.all_kept().unwrap();
        kept.sort_by_key(|kept| !kept.holds_others);
        let expected = [(with.clone(), true), (without.clone(), false)]
            .map(|(target, holds_others)| KeptRecords { target, holds_others });
        assert_eq!(kept, expected);
        for target in [&with, &without] {
            node.database.give_back(target).await.unwrap();
        }
        assert_eq!(node.database.all_kept().unwrap(), []);
    }

    #[test]
    fn credentials_that_the_format_would_change_are_refused_without_quoting_them() {
        for bad in ["", " leading", "trailing ", "new\nline", &"x".repeat(256)] {
            let error =
                settings(&target("10.0.2.2:3260"), Some(&chap(bad)), &LoginLimits::default());
            let error = error.unwrap_err();
            assert_eq!(error.reason(), "UnusableCredentials");
            assert!(bad.is_empty() || !error.to_string().contains(bad), "{error}");
        }
        check_credentials(&chap("with # and = and blank inside"), "x").unwrap();
    }

    #[tokio::test]
    async fn a_discovery_record_is_private_and_goes_with_its_guard() {
        let node = Node::new();
        let portal = "10.0.2.2:3260".parse().unwrap();
        let limits = LoginLimits::default();
        let path = node.root.path().join("etc/iscsi/send_targets/10.0.2.2,3260/st_config");
        let guard = node.database.discovery_record(portal, &chap("secret"), &limits).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(&path).unwrap().contains("auth.password = secret\n"));
        let same = node.database.discovery_record(portal, &chap("secret"), &limits).await.unwrap();
        assert!(same.is_empty());
        let other = node.database.discovery_record(portal, &chap("another"), &limits).await;
        assert_eq!(other.unwrap_err().reason(), "ForeignDiscoveryRecord");
        drop(guard);
        assert!(!node.root.path().join("etc/iscsi/send_targets").exists());
    }
}
