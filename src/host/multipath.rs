//! Multipath maps: made and removed by multipathd, judged by sysfs.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::model::{DeviceName, MultipathMap, Multipathd, Wwid};

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
        Ok(text
            .lines()
            .filter_map(|line| {
                let (device, state) = line.trim().split_once(' ')?;
                Some((DeviceName::new(device)?, state.trim().to_owned()))
            })
            .collect())
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
        let (before, udev_is_done) = self.map_and_udev(wwid, devices).await?;
        let missing = |map: &Option<MultipathMap>| -> Vec<DeviceName> {
            let has = |device: &DeviceName| {
                map.as_ref().is_some_and(|map| map.members.iter().any(|m| &m.device == device))
            };
            devices.iter().filter(|device| !has(device)).cloned().collect()
        };
        if !udev_is_done || missing(&before).is_empty() {
            return Ok(Applied::unchanged());
        }
        for device in missing(&before) {
            match self.client.ask(&format!("add path {device}")).await? {
                Answer::Done(_) => {}
                Answer::Blacklisted => {
                    return Err(HostError::Blacklisted { what: device.to_string() });
                }
                Answer::Failed(reply) => {
                    tracing::debug!(%device, reply, "multipathd has not taken the disk");
                }
            }
        }
        let mut after = self.map(wwid).await?;
        // `find_multipaths` (strict by default) keeps multipathd from making a map by itself; asked for
        // by its WWID, it makes one, even of a single path.
        if after.is_none() {
            match self.client.ask(&format!("add map {wwid}")).await? {
                Answer::Done(_) => after = self.map(wwid).await?,
                Answer::Blacklisted => {
                    return Err(HostError::Blacklisted { what: wwid.to_string() });
                }
                Answer::Failed(reply) => tracing::debug!(%wwid, reply, "multipathd made no map"),
            }
        }
        let changed = missing(&after) != missing(&before);
        Ok(Applied { changed, failures: Vec::new() })
    }

    /// The map of a WWID, and whether udev has finished with all these disks: it has then written its
    /// own record of each, `/run/udev/data/b<major>:<minor>`. Where udev's records can't be seen, it is
    /// taken for granted, and multipathd will say.
    async fn map_and_udev(
        &self,
        wwid: &Wwid,
        devices: &[DeviceName],
    ) -> Result<(Option<MultipathMap>, bool), HostError> {
        let (sysfs, wwid, devices) = (self.sysfs.clone(), wwid.clone(), devices.to_vec());
        let records = self.udev_records.clone();
        blocking::limited("reading sysfs".to_owned(), SYSFS_LIMIT, move || {
            let map = sysfs.snapshot()?.maps.into_iter().find(|map| map.wwid == wwid);
            let mut done = true;
            for device in &devices {
                let number = sysfs.number(device)?;
                done &= number.is_some_and(|number| records.join(format!("b{number}")).exists());
            }
            Ok((map, done || !records.is_dir()))
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
        let by: Vec<String> = sitting.chain(self.openers.mounts(map.number).await).collect();
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

    /// With `queue_if_no_path` and no path left, a flush would wait for ever: then let I/O fail.
    async fn stop_queueing_without_paths(&self, map: &MultipathMap) -> Result<(), HostError> {
        let states = self.path_states().await?;
        let active =
            |device: &DeviceName| states.get(device).is_some_and(|state| state == "active");
        if map.members.iter().any(|member| active(&member.device)) {
            return Ok(());
        }
        tracing::warn!(map = map.name, "no path is left: I/O that waits for one will fail");
        // A map that multipathd doesn't know (an orphan) makes it say `fail`.
        self.client.ask(&format!("disablequeueing map {}", map.name)).await.map(drop)
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

    async fn map(&self, wwid: &Wwid) -> Result<Option<MultipathMap>, HostError> {
        let (sysfs, wwid) = (self.sysfs.clone(), wwid.clone());
        blocking::limited("reading sysfs".to_owned(), SYSFS_LIMIT, move || {
            Ok(sysfs.snapshot()?.maps.into_iter().find(|map| map.wwid == wwid))
        })
        .await
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
