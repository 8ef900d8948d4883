//! Multipath maps: made and removed by multipathd, judged by sysfs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::model::{DeviceName, DeviceNumber, MultipathMap, Multipathd, Wwid};

use super::{
    Applied, HostError,
    blacklist::blacklisting_rule,
    blocking::{self, Blocking},
    exec::{Command, Executor, Program},
    multipathd::{Answer, Client},
    openers::Openers,
    scsi::flush,
    sysfs::Sysfs,
};

const SYSFS_LIMIT: Duration = Duration::from_secs(10);
/// The write-out of a map's page cache.
const FLUSH_LIMIT: Duration = Duration::from_mins(1);
/// How long udev may keep a map open, and how often that is looked at.
const UDEV_LIMIT: Duration = Duration::from_secs(10);
const UDEV_STEP: Duration = Duration::from_millis(100);
/// `multipath -w`: reads the configuration, changes one byte of a file.
const FORGET_LIMIT: Duration = Duration::from_secs(20);
/// A page of a file; longer where the disk is busy with others' writes.
const SYNC_LIMIT: Duration = Duration::from_secs(30);

/// The answer to `show paths raw format "%d %t"`.
pub(crate) fn states(text: &str) -> BTreeMap<DeviceName, String> {
    let state = |line: &str| {
        let (device, state) = line.trim().split_once(' ')?;
        Some((DeviceName::new(device)?, state.trim().to_owned()))
    };
    text.lines().filter_map(state).collect()
}

/// multipath on this node.
#[derive(Debug)]
pub(crate) struct Multipath<'a, E> {
    pub(crate) exec: &'a E,
    pub(crate) client: &'a Client,
    pub(crate) sysfs: &'a Sysfs,
    pub(crate) dev: &'a PathBuf,
    pub(crate) blocking: &'a Blocking,
    pub(crate) openers: &'a Openers,
    /// `/run/udev/data`
    pub(crate) udev_records: PathBuf,
    /// `/etc/multipath/wwids`: a line `/WWID/` for each.
    pub(crate) wwids: PathBuf,
}

impl<E: Executor> Multipath<'_, E> {
    /// Whether multipathd is there and may have iSCSI disks.
    pub(crate) async fn state(&self) -> Multipathd {
        match self.client.show("show blacklist").await {
            Err(error) => {
                tracing::debug!(%error, "multipathd is not available");
                Multipathd::NotRunning
            }
            Ok(report) => blacklisting_rule(&report)
                .map_or(Multipathd::Claims, |pattern| Multipathd::Blacklisted { pattern }),
        }
    }

    /// multipathd's opinion of each path: `active`, `failed`, `undef`.
    pub(crate) async fn path_states(&self) -> Result<BTreeMap<DeviceName, String>, HostError> {
        let text = self.client.show("show paths raw format \"%d %t\"").await?;
        Ok(states(&text))
    }

    /// Has multipathd take the disks and make the map, unless it is there with all of them.
    ///
    /// A disk that udev hasn't finished with can't be multipathd's yet: nothing changes then, and udev's
    /// event for it is the time to try again. The map is made of all disks at once, since a disk that
    /// comes later has to wait until udev has finished with the map, too.
    pub(crate) async fn add(
        &self,
        wwid: &Wwid,
        devices: &[DeviceName],
    ) -> Result<Applied, HostError> {
        let (before, udev_is_done) = self.members_and_udev(devices).await?;
        let missing = |there: &BTreeSet<DeviceName>| -> Vec<DeviceName> {
            devices.iter().filter(|device| !there.contains(*device)).cloned().collect()
        };
        if !udev_is_done || missing(&before).is_empty() {
            return Ok(Applied::unchanged());
        }
        for device in missing(&before) {
            self.add_by(&format!("add path {device}"), device.as_str()).await?;
        }
        let (mut after, _) = self.members_and_udev(devices).await?;
        // `find_multipaths` (strict by default) keeps multipathd from making a map by itself; asked for
        // by its WWID, it makes one, even of a single path.
        if after.is_empty() {
            let known_as = self.known_as(wwid, devices).await?;
            self.add_by(&format!("add map {known_as}"), &known_as).await?;
            after = self.members_and_udev(devices).await?.0;
        }
        Ok(Applied { changed: after != before, failures: Vec::new() })
    }

    /// Asks multipathd to add something; that it can't yet is no error.
    async fn add_by(&self, command: &str, what: &str) -> Result<(), HostError> {
        match self.client.ask(command).await? {
            Answer::Done(_) | Answer::Failed(_) => Ok(()),
            Answer::Blacklisted => Err(HostError::Blacklisted { what: what.to_owned() }),
        }
    }

    /// The WWID that multipathd has for these disks. It takes udev's word (`ID_SERIAL`), which depends
    /// on udev's rules where a disk has no better designator than a locally assigned NAA one.
    async fn known_as(&self, wwid: &Wwid, devices: &[DeviceName]) -> Result<String, HostError> {
        let text = self.client.show("show paths raw format \"%d %w\"").await?;
        let of_ours = text.lines().find_map(|line| {
            let (device, wwid) = line.trim().split_once(' ')?;
            devices.iter().any(|ours| ours.as_str() == device).then(|| wwid.trim().parse().ok())?
        });
        Ok(of_ours.unwrap_or_else(|| wwid.clone()).to_string())
    }

    /// Which of the disks are in the (one) map that has the first of them, and whether udev has
    /// finished with all of them: it has then written its own record of each, `b<major>:<minor>`. Where
    /// udev's records can't be seen, it is taken for granted, and multipathd will say.
    async fn members_and_udev(
        &self,
        devices: &[DeviceName],
    ) -> Result<(BTreeSet<DeviceName>, bool), HostError> {
        let (sysfs, devices) = (self.sysfs.clone(), devices.to_vec());
        let records = self.udev_records.clone();
        blocking::limited("reading sysfs".to_owned(), SYSFS_LIMIT, move || {
            let (mut map, mut done) = (None, true);
            for device in &devices {
                if map.is_none() {
                    map = sysfs.map_over(device)?;
                }
                let number = sysfs.number(device)?;
                done &= number.is_some_and(|number| records.join(format!("b{number}")).exists());
            }
            let members = map.into_iter().flat_map(|map| map.members).map(|member| member.device);
            let ours = members.filter(|device| devices.contains(device)).collect();
            Ok((ours, done || !records.is_dir()))
        })
        .await
    }

    /// Flushes a map, removes it, and takes its WWID off multipath's list.
    pub(crate) async fn remove(&self, name: &str, wwid: &Wwid) -> Result<Applied, HostError> {
        let Some(map) = self.map(wwid).await?.filter(|map| map.name == name) else {
            self.forget(wwid).await;
            return Ok(Applied::unchanged());
        };
        let sitting = map.holders.iter().map(|device| format!("device {device}"));
        let mut by: Vec<String> = sitting.chain(self.openers.mounts(map.number).await).collect();
        if by.is_empty() {
            by = self.openers.other_namespaces(map.number).await;
        }
        if !by.is_empty() {
            return Err(busy(&map, by));
        }
        self.stop_queueing_without_paths(&map).await?;
        let device = self.dev.join(map.device.as_str());
        self.blocking
            .once(format!("flushing map {name}"), FLUSH_LIMIT, move || flush(&device))
            .await?;
        self.delete_map(&map).await?;
        self.forget(wwid).await;
        Ok(Applied::changed())
    }

    /// Has multipathd take over the size of a map's disks. It asks one of them only.
    pub(crate) async fn resize(
        &self,
        name: &str,
        wwid: &Wwid,
        size_bytes: u64,
    ) -> Result<Applied, HostError> {
        let not_grown = |why: String| HostError::NotGrown { what: format!("map {name}"), why };
        let before = self.size_and_others(name, wwid, size_bytes).await?;
        let (size, others) = before.ok_or_else(|| not_grown("it is gone".to_owned()))?;
        if let Some((disk, other)) = others.first() {
            return Err(not_grown(format!("its disk {disk} has {other} bytes, not {size_bytes}")));
        }
        if size == size_bytes {
            return Ok(Applied::unchanged());
        }
        if size > size_bytes {
            return Err(not_grown(format!("{size} bytes would shrink to {size_bytes}")));
        }
        let command = format!("resize map {name}");
        match self.client.ask(&command).await? {
            Answer::Done(_) => {}
            answer => return Err(refused(command, &answer)),
        }
        match self.size_and_others(name, wwid, size_bytes).await? {
            Some((size, _)) if size == size_bytes => Ok(Applied::changed()),
            Some((size, _)) => {
                Err(not_grown(format!("multipathd agreed, and it has {size} bytes")))
            }
            None => Err(not_grown("it is gone".to_owned())),
        }
    }

    /// A map's size, and which of its disks have another than `size_bytes`.
    async fn size_and_others(
        &self,
        name: &str,
        wwid: &Wwid,
        size_bytes: u64,
    ) -> Result<Option<(u64, Vec<(DeviceName, u64)>)>, HostError> {
        let (sysfs, name, wwid) = (self.sysfs.clone(), name.to_owned(), wwid.clone());
        blocking::limited("reading sysfs".to_owned(), SYSFS_LIMIT, move || {
            let snapshot = sysfs.snapshot()?;
            let is = |map: &&MultipathMap| map.name == name && map.wwid == wwid;
            let Some(map) = snapshot.maps.iter().find(is) else { return Ok(None) };
            let mut others = Vec::new();
            for member in &map.members {
                let disk = snapshot.devices.iter().find(|disk| disk.name == member.device);
                // One that is none of a session's counts as one of another size.
                let size = disk.map_or(0, |disk| disk.size_bytes);
                if size != size_bytes {
                    others.push((member.device.clone(), size));
                }
            }
            Ok(Some((map.size_bytes, others)))
        })
        .await
    }

    /// `del map`, until sysfs shows no map.
    async fn delete_map(&self, map: &MultipathMap) -> Result<(), HostError> {
        let command = format!("del map {}", map.name);
        let began = Instant::now();
        let mut orphan = false;
        loop {
            let answer = self.client.ask(&command).await?;
            if !self.is_left(map).await? {
                return Ok(());
            }
            let by = self.openers.of(map.number).await;
            if by.is_empty() && !orphan {
                orphan = true;
                if self.remove_orphan(map).await? {
                    return Ok(());
                }
            }
            // udev looks at a map whenever something that had it open for writing closes it.
            let only_udev = by.iter().all(|holder| holder.contains("udev"));
            if !only_udev || began.elapsed() > UDEV_LIMIT {
                return Err(if by.is_empty() { refused(command, &answer) } else { busy(map, by) });
            }
            tokio::time::sleep(UDEV_STEP).await;
        }
    }

    /// A map that multipathd doesn't know is left to `multipath -f`, which refuses open ones as well.
    async fn remove_orphan(&self, map: &MultipathMap) -> Result<bool, HostError> {
        let flush = Command::new(Program::Multipath, FLUSH_LIMIT, ["-f", map.name.as_str()]);
        self.exec.run(flush).await?;
        Ok(!self.is_left(map).await?)
    }

    async fn is_left(&self, map: &MultipathMap) -> Result<bool, HostError> {
        Ok(self.map(&map.wwid).await?.is_some_and(|left| left.device == map.device))
    }

    /// With `queue_if_no_path` and no path left, whatever writes waits for ever. Then lets I/O fail, and
    /// says that it did.
    pub(crate) async fn stop_queueing_without_paths(
        &self,
        map: &MultipathMap,
    ) -> Result<bool, HostError> {
        let states = self.path_states().await?;
        let active =
            |device: &DeviceName| states.get(device).is_some_and(|state| state == "active");
        if map.members.iter().any(|member| active(&member.device)) {
            return Ok(false);
        }
        tracing::warn!(map = map.name, "no path is left: I/O that waits for one will fail");
        self.stop_queueing(&map.name).await?;
        Ok(true)
    }

    /// Lets I/O fail where no path is left.
    pub(crate) async fn stop_queueing(&self, name: &str) -> Result<Applied, HostError> {
        // A map that multipathd doesn't know (an orphan) makes it say `fail`.
        self.client.ask(&format!("disablequeueing map {name}")).await?;
        Ok(Applied::changed())
    }

    /// Takes a WWID off multipath's list, so that a later disk with the same one isn't claimed for it.
    async fn forget(&self, wwid: &Wwid) {
        let command = Command::new(Program::Multipath, FORGET_LIMIT, ["-w", wwid.as_str()]);
        match self.exec.run(command).await {
            Ok(output) if output.success() => {}
            Ok(output) => {
                tracing::debug!(%wwid, exit = %output.exit, "multipath did not know the WWID");
            }
            Err(error) => tracing::warn!(%wwid, %error, "multipath still remembers the WWID"),
        }
    }

    /// The same, where it is on the list and no map is there, and for good: multipath overwrites one byte
    /// of the list and leaves it in memory, so that a power cut would bring the WWID back.
    pub(crate) async fn forget_gone(&self, wwid: &Wwid) -> Result<Applied, HostError> {
        let list = tokio::fs::read_to_string(&self.wwids).await.unwrap_or_default();
        let is_listed = list.lines().any(|line| line.trim_matches('/') == wwid.as_str());
        if is_listed {
            if self.map(wwid).await?.is_some() {
                return Ok(Applied::unchanged());
            }
            self.forget(wwid).await;
        }
        let list = self.wwids.clone();
        blocking::limited("syncing multipath's list".to_owned(), SYNC_LIMIT, move || {
            match File::open(&list).and_then(|file| file.sync_data()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(HostError::io("sync", list)(error))
                }
                _ => Ok(()),
            }
        })
        .await?;
        Ok(if is_listed { Applied::changed() } else { Applied::unchanged() })
    }

    async fn map(&self, wwid: &Wwid) -> Result<Option<MultipathMap>, HostError> {
        let (sysfs, wwid) = (self.sysfs.clone(), wwid.clone());
        let find = move || sysfs.map_of(&wwid);
        blocking::limited("reading sysfs".to_owned(), SYSFS_LIMIT, find).await
    }

    /// The map with a device number.
    pub(crate) async fn numbered(
        &self,
        number: DeviceNumber,
    ) -> Result<Option<MultipathMap>, HostError> {
        let sysfs = self.sysfs.clone();
        let find = move || match sysfs.name_of(number) {
            Some(device) => sysfs.map_named(&device),
            None => Ok(None),
        };
        blocking::limited("reading sysfs".to_owned(), SYSFS_LIMIT, find).await
    }
}

fn refused(command: String, answer: &Answer) -> HostError {
    let reply = match answer {
        Answer::Done(text) | Answer::Failed(text) => text.trim_end().to_owned(),
        Answer::Blacklisted => "blacklisted".to_owned(),
    };
    HostError::MultipathdRefused { command, reply }
}

fn busy(map: &MultipathMap, by: Vec<String>) -> HostError {
    HostError::Busy { what: format!("map {} ({})", map.name, map.device), by }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::*;
    use crate::host::{fixtures, multipathd, scripted::ScriptedExecutor};

    const WWID: &str = "36e0afa839db0b2600447d09eda0f9451";
    const DM: &str = "devices/virtual/block/dm-0";

    /// The captured node; its map is `there` or not, and udev is done with some disks.
    fn node(there: bool, udev: &[&str]) -> tempfile::TempDir {
        let tree = fixtures::sysfs("two-paths");
        for directory in ["dev", "proc", "udev"] {
            fs::create_dir(tree.path().join(directory)).unwrap();
        }
        fs::write(tree.path().join("dev/dm-0"), "").unwrap();
        fs::write(tree.path().join("mountinfo"), "").unwrap();
        for record in udev {
            fs::write(tree.path().join("udev").join(record), "").unwrap();
        }
        if !there {
            hide(tree.path());
        }
        tree
    }

    fn hide(tree: &Path) {
        fs::rename(tree.join("block/dm-0"), tree.join("hidden")).unwrap();
    }

    fn show(tree: &Path) {
        fs::rename(tree.join("hidden"), tree.join("block/dm-0")).unwrap();
    }

    type Lines = &'static [(&'static str, &'static str)];

    async fn run<T>(
        tree: &tempfile::TempDir,
        daemon: Lines,
        effect: impl Fn(&Path, &str) + Send + 'static,
        tools: &[(&str, i32, &str)],
        work: impl AsyncFnOnce(Multipath<'_, ScriptedExecutor>) -> T,
    ) -> T {
        let root = tree.path().to_owned();
        let (_socket, client) =
            multipathd::tests::scripted(daemon, move |command| effect(&root, command));
        let openers =
            Openers { proc: tree.path().join("proc"), mountinfo: tree.path().join("mountinfo") };
        let multipath = Multipath {
            exec: &ScriptedExecutor::new(tools),
            client: &client,
            sysfs: &Sysfs::new(tree.path()),
            dev: &tree.path().join("dev"),
            blocking: &Blocking::default(),
            openers: &openers,
            udev_records: tree.path().join("udev"),
            wwids: tree.path().join("wwids"),
        };
        work(multipath).await
    }

    fn disks() -> [DeviceName; 2] {
        ["sda", "sdb"].map(|name| DeviceName::new(name).unwrap())
    }

    fn wwid() -> Wwid {
        WWID.parse().unwrap()
    }

    #[tokio::test]
    async fn a_map_is_made_of_all_disks_once_udev_is_done_with_them() {
        let tree = node(false, &["b8:0", "b8:16"]);
        let daemon: Lines = &[
            ("add path sda", "ok\n"),
            ("add path sdb", "ok\n"),
            ("show paths raw format \"%d %w\"", "sda 36e0afa839db0b2600447d09eda0f9451\n"),
            ("add map 36e0afa839db0b2600447d09eda0f9451", "ok\n"),
        ];
        let made = |tree: &Path, command: &str| {
            if command.starts_with("add map") {
                show(tree);
            }
        };
        let applied =
            run(&tree, daemon, made, &[], async |multipath| multipath.add(&wwid(), &disks()).await)
                .await;
        assert!(applied.unwrap().changed);
    }

    #[tokio::test]
    async fn before_udev_is_done_multipathd_is_not_even_asked() {
        let tree = node(false, &["b8:0"]);
        let applied = run(
            &tree,
            &[],
            |_, _| (),
            &[],
            async |multipath| multipath.add(&wwid(), &disks()).await,
        )
        .await;
        assert!(!applied.unwrap().changed);
    }

    #[tokio::test]
    async fn a_map_that_has_all_disks_is_left_as_it_is() {
        let tree = node(true, &["b8:0", "b8:16"]);
        let applied = run(
            &tree,
            &[],
            |_, _| (),
            &[],
            async |multipath| multipath.add(&wwid(), &disks()).await,
        )
        .await;
        assert!(!applied.unwrap().changed);
    }

    #[tokio::test]
    async fn a_disk_that_the_map_lacks_is_added_to_it() {
        let tree = node(true, &["b8:0", "b8:16"]);
        let slave = tree.path().join(DM).join("slaves/sdb");
        let link = fs::read_link(&slave).unwrap();
        fs::remove_file(&slave).unwrap();
        let joined =
            move |tree: &Path, _: &str| symlink(&link, tree.join(DM).join("slaves/sdb")).unwrap();
        let daemon: Lines = &[("add path sdb", "ok\n")];
        let applied = run(&tree, daemon, joined, &[], async |multipath| {
            multipath.add(&wwid(), &disks()).await
        })
        .await;
        assert!(applied.unwrap().changed);
    }

    #[tokio::test]
    async fn a_disk_that_multipath_may_not_have_is_an_error_and_one_it_has_not_yet_is_none() {
        let tree = node(false, &["b8:0", "b8:16"]);
        let daemon: Lines = &[("add path sda", "blacklisted\n")];
        let refused = run(
            &tree,
            daemon,
            |_, _| (),
            &[],
            async |multipath| multipath.add(&wwid(), &disks()).await,
        )
        .await;
        assert_eq!(refused.unwrap_err().reason(), "MultipathBlacklisted");
        let daemon: Lines = &[
            ("add path sda", "fail\n"),
            ("add path sdb", "fail\n"),
            ("show paths raw format \"%d %w\"", ""),
            ("add map 36e0afa839db0b2600447d09eda0f9451", "fail\n"),
        ];
        let applied = run(
            &tree,
            daemon,
            |_, _| (),
            &[],
            async |multipath| multipath.add(&wwid(), &disks()).await,
        )
        .await;
        assert!(!applied.unwrap().changed);
    }

    const STATES: &str = "show paths raw format \"%d %t\"";
    const DEL: &str = "del map 36e0afa839db0b2600447d09eda0f9451";

    #[tokio::test]
    async fn a_map_is_flushed_removed_and_forgotten() {
        let tree = node(true, &[]);
        let daemon: Lines = &[(STATES, "sda active\nsdb failed\n"), (DEL, "ok\n")];
        let gone = |tree: &Path, command: &str| {
            if command == DEL {
                hide(tree);
            }
        };
        let forget = format!("multipath -w {WWID}");
        let tools = [(forget.as_str(), 0, "")];
        let applied = run(&tree, daemon, gone, &tools, async |multipath| {
            multipath.remove(WWID, &wwid()).await
        })
        .await;
        assert!(applied.unwrap().changed);
    }

    #[tokio::test]
    async fn without_a_path_queueing_ends_before_the_flush() {
        let tree = node(true, &[]);
        let daemon: Lines = &[
            (STATES, "sda failed\nsdb failed\nsdc active\n"),
            ("disablequeueing map 36e0afa839db0b2600447d09eda0f9451", "ok\n"),
            (DEL, "ok\n"),
        ];
        let gone = |tree: &Path, command: &str| {
            if command == DEL {
                hide(tree);
            }
        };
        let forget = format!("multipath -w {WWID}");
        let tools = [(forget.as_str(), 1, "")];
        let applied = run(&tree, daemon, gone, &tools, async |multipath| {
            multipath.remove(WWID, &wwid()).await
        })
        .await;
        assert!(applied.unwrap().changed);
    }

    #[tokio::test]
    async fn a_mounted_or_held_map_is_refused_with_the_holders_name() {
        let tree = node(true, &[]);
        let mount = "42 1 253:0 / /mnt/v rw - ext4 /dev/dm-0 rw\n";
        fs::write(tree.path().join("mountinfo"), mount).unwrap();
        fs::create_dir_all(tree.path().join(DM).join("holders/dm-7")).unwrap();
        let refused = run(
            &tree,
            &[],
            |_, _| (),
            &[],
            async |multipath| multipath.remove(WWID, &wwid()).await,
        )
        .await;
        let text = refused.unwrap_err().to_string();
        assert_eq!(
            text,
            format!("map {WWID} (dm-0) is in use by device dm-7, the mount at /mnt/v")
        );
    }

    #[tokio::test]
    async fn an_orphan_that_multipathd_does_not_know_is_left_to_multipath() {
        let tree = node(true, &[]);
        let daemon: Lines = &[(STATES, "sda active\n"), (DEL, "fail\n")];
        let (flush, forget) = (format!("multipath -f {WWID}"), format!("multipath -w {WWID}"));
        let root = tree.path().to_owned();
        let (_socket, client) = multipathd::tests::scripted(daemon, |_| ());
        let exec =
            ScriptedExecutor::new(&[(&flush, 0, ""), (&forget, 0, "")]).with_effect(move |argv| {
                if argv.contains("-f") {
                    hide(&root);
                }
            });
        let openers =
            Openers { proc: tree.path().join("proc"), mountinfo: tree.path().join("mountinfo") };
        let multipath = Multipath {
            exec: &exec,
            client: &client,
            sysfs: &Sysfs::new(tree.path()),
            dev: &tree.path().join("dev"),
            blocking: &Blocking::default(),
            openers: &openers,
            udev_records: tree.path().join("udev"),
            wwids: tree.path().join("wwids"),
        };
        assert!(multipath.remove(WWID, &wwid()).await.unwrap().changed);
    }

    #[tokio::test]
    async fn a_map_that_is_gone_is_only_forgotten() {
        let tree = node(false, &[]);
        let forget = format!("multipath -w {WWID}");
        let tools = [(forget.as_str(), 0, "")];
        let applied = run(
            &tree,
            &[],
            |_, _| (),
            &tools,
            async |multipath| multipath.remove(WWID, &wwid()).await,
        )
        .await;
        assert!(!applied.unwrap().changed);
    }

    #[tokio::test]
    async fn multipathds_state_and_its_paths_are_read() {
        let tree = node(true, &[]);
        let daemon: Lines = &[(
            "show blacklist",
            "device node rules:\n- blacklist:\n        (config file rule) ^sd\n",
        )];
        let state =
            run(&tree, daemon, |_, _| (), &[], async |multipath| multipath.state().await).await;
        assert_eq!(state, Multipathd::Blacklisted { pattern: "^sd".to_owned() });
        let daemon: Lines = &[(STATES, "sda active\nsdb failed\n")];
        let states =
            run(&tree, daemon, |_, _| (), &[], async |multipath| multipath.path_states().await)
                .await;
        let states: Vec<_> = states.unwrap().into_values().collect();
        assert_eq!(states, ["active", "failed"]);
    }
}
