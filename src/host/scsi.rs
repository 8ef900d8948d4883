//! SCSI disks: find one LUN, read a disk's identity anew, delete a disk.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::join_all;
use nix::{fcntl::OFlag, libc};

use crate::model::{DeviceName, Hctl, Lun};

use super::{Applied, HostError, blocking::Blocking, sysfs::Sysfs};

/// INQUIRY, REPORT LUNS and READ CAPACITY of one LUN, with the kernel's own retries.
const SCAN_LIMIT: Duration = Duration::from_secs(30);
/// The write-out of a disk's cache; longer while a session recovers (`replacement_timeout`).
const FLUSH_LIMIT: Duration = Duration::from_secs(30);
/// The kernel sends SYNCHRONIZE CACHE before it lets a disk go.
const DELETE_LIMIT: Duration = Duration::from_mins(1);

/// The SCSI disks of this node.
#[derive(Debug, Clone)]
pub(crate) struct Scsi {
    pub(crate) sysfs: Sysfs,
    pub(crate) dev: PathBuf,
    pub(crate) blocking: Blocking,
}

impl Scsi {
    /// Makes each host look at one LUN: `0 <target> <LUN>` into its `scan` file.
    pub(crate) async fn scan(&self, luns: &[(u32, Lun)]) -> Applied {
        let scans = luns.iter().map(|&(host, lun)| {
            let sysfs = self.sysfs.clone();
            let what = format!("LUN {lun} of SCSI host {host}");
            let work = self.blocking.once(format!("scanning {what}"), SCAN_LIMIT, move || {
                let (file, target) = sysfs.scan_file(host)?;
                // The SCSI device is there after the write; its disk comes a little later, with an event.
                let address = format!("{host}:{}:{lun}", target.replace(' ', ":")).parse::<Hctl>();
                let known = || address.as_ref().is_ok_and(|hctl| sysfs.scsi_device(*hctl).exists());
                let before = known();
                poke(&file, &format!("{target} {lun}"))
                    .map_err(HostError::io("write to", &file))?;
                Ok(known() != before)
            });
            async move { (what, work.await) }
        });
        gather(join_all(scans).await)
    }

    /// Makes the kernel read size and VPD pages of disks anew.
    pub(crate) async fn rescan(&self, devices: &[Hctl]) -> Applied {
        let rescans = devices.iter().map(|&hctl| {
            let file = self.sysfs.scsi_device(hctl).join("rescan");
            let work = self.blocking.once(format!("rescanning {hctl}"), SCAN_LIMIT, move || {
                match poke(&file, "1") {
                    Err(error) if gone(&error) => Ok(false),
                    result => result.map(|()| true).map_err(HostError::io("write to", file)),
                }
            });
            async move { (hctl.to_string(), work.await) }
        });
        gather(join_all(rescans).await)
    }

    /// Flushes disks and deletes them, each only while it is the disk that is meant.
    pub(crate) async fn delete(&self, devices: &[(Hctl, DeviceName)]) -> Applied {
        let deletions = devices.iter().map(|(hctl, name)| async move {
            (format!("{name} ({hctl})"), self.delete_one(*hctl, name).await)
        });
        gather(join_all(deletions).await)
    }

    async fn delete_one(&self, hctl: Hctl, name: &DeviceName) -> Result<bool, HostError> {
        let (scsi, expected) = (self.clone(), name.clone());
        let flush = move || {
            if !scsi.is_still(hctl, &expected, &[])? {
                return Ok(false);
            }
            flush(&scsi.dev.join(expected.as_str())).map(|()| true)
        };
        if !self.blocking.once(format!("flushing {name}"), FLUSH_LIMIT, flush).await? {
            return Ok(false);
        }
        let (scsi, expected) = (self.clone(), name.clone());
        let delete = move || {
            if !scsi.is_still(hctl, &expected, &[])? {
                return Ok(false);
            }
            let file = scsi.sysfs.scsi_device(hctl).join("delete");
            match poke(&file, "1") {
                Err(error) if gone(&error) => Ok(false),
                result => result.map(|()| true).map_err(HostError::io("write to", file)),
            }
        };
        self.blocking.once(format!("deleting {name} ({hctl})"), DELETE_LIMIT, delete).await
    }

    /// Deletes disks without flushing them. First all of them refuse I/O, so that none carries on
    /// while another one goes.
    pub(crate) async fn cut(&self, devices: &[(Hctl, DeviceName)], maps: &[DeviceName]) -> Applied {
        let each = |doing: &'static str, file: &'static str, text: &'static str| {
            let cuts = devices.iter().map(move |(hctl, name)| {
                let (scsi, hctl, expected, maps) =
                    (self.clone(), *hctl, name.clone(), maps.to_vec());
                let what = format!("{name} ({hctl})");
                let work = move || {
                    if !scsi.is_still(hctl, &expected, &maps)? {
                        return Ok(false);
                    }
                    let file = scsi.sysfs.scsi_device(hctl).join(file);
                    match poke(&file, text) {
                        Err(error) if gone(&error) => Ok(false),
                        result => result.map(|()| true).map_err(HostError::io("write to", file)),
                    }
                };
                let work = self.blocking.once(format!("{doing} {what}"), DELETE_LIMIT, work);
                async move { (what, work.await) }
            });
            join_all(cuts)
        };
        for (what, result) in each("taking offline", "state", "offline").await {
            // One whose session was given up fails its I/O already, and can't be told so.
            if let Err(error) = result {
                tracing::debug!(disk = what, "could not take it offline: {error}");
            }
        }
        gather(each("deleting", "delete", "1").await)
    }

    /// Whether the address still has that disk (`false`: neither of them is there), and nobody sits on
    /// it but these.
    fn is_still(
        &self,
        hctl: Hctl,
        expected: &DeviceName,
        but: &[DeviceName],
    ) -> Result<bool, HostError> {
        match self.sysfs.disk_at(hctl)? {
            Some(found) if &found == expected => {}
            None if !self.sysfs.scsi_device(hctl).exists() => return Ok(false),
            found => {
                return Err(HostError::DeviceChanged { hctl, expected: expected.clone(), found });
            }
        }
        let mut holders = self.sysfs.holders(expected)?;
        holders.retain(|holder| !but.contains(holder));
        if holders.is_empty() {
            return Ok(true);
        }
        let by = holders.iter().map(ToString::to_string).collect();
        Err(HostError::Busy { what: expected.to_string(), by })
    }
}

/// Writes out what the kernel holds back for a block device that nobody has claimed, and has the disk
/// empty its cache.
///
/// `O_EXCL` on a block device (`open(2)`) fails while a file system, a map or a format has claimed it.
/// That tells more than mountinfo: a mount of another namespace, or a file system that still writes
/// while its mount is gone from the list already. The device is opened for reading, so that udev sees
/// no change of it. A disk that can't do I/O any more has nothing to flush it to: its file system was
/// unmounted, or its map flushed, before.
pub(crate) fn flush(device: &Path) -> Result<(), HostError> {
    match open_unclaimed(device)?.and_then(|file| file.sync_all()) {
        Err(error) if gone(&error) || error.raw_os_error() == Some(libc::EIO) => {
            tracing::warn!(device = %device.display(), %error, "could not flush a device that fails its I/O");
            Ok(())
        }
        result => result.map_err(HostError::io("flush", device)),
    }
}

/// Opens a block device that nobody has claimed.
pub(crate) fn open_unclaimed(device: &Path) -> Result<io::Result<File>, HostError> {
    let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_EXCL.bits()).open(device);
    match opened {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(HostError::Busy {
            what: device.display().to_string(),
            by: vec![
                "a file system, a format, a map or another claim within the kernel".to_owned(),
            ],
        }),
        opened => Ok(opened),
    }
}

/// The file or the device behind it is away. An offline disk gives ENXIO.
fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO))
}

/// Writes to a file of sysfs that is there; never makes one.
fn poke(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

/// Results of a list, worked on side by side, as one [`Applied`].
pub(crate) fn gather(results: Vec<(String, Result<bool, HostError>)>) -> Applied {
    let mut applied = Applied::unchanged();
    for (what, result) in results {
        match result {
            Ok(changed) => applied.changed |= changed,
            Err(error) => applied.failures.push((what, error)),
        }
    }
    applied
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::fixtures;

    /// The captured node, with files for disks that can be flushed.
    struct Node {
        tree: tempfile::TempDir,
        scsi: Scsi,
    }

    fn node() -> Node {
        let tree = fixtures::sysfs("two-paths");
        let dev = tree.path().join("dev");
        fs::create_dir(&dev).unwrap();
        for (name, host, session) in [("sdb", 0, 4), ("sda", 1, 5)] {
            fs::write(dev.join(name), "").unwrap();
            let disk = format!(
                "devices/platform/host{host}/session{session}/target{host}:0:0/{host}:0:0:1"
            );
            let holders = tree.path().join(disk).join("block").join(name).join("holders");
            fs::remove_dir_all(holders).unwrap();
        }
        let scsi = Scsi { sysfs: Sysfs::new(tree.path()), dev, blocking: Blocking::default() };
        Node { tree, scsi }
    }

    impl Node {
        fn written(&self, path: &str) -> String {
            fs::read_to_string(self.tree.path().join(path)).unwrap()
        }
    }

    fn disk(hctl: &str, name: &str) -> (Hctl, DeviceName) {
        (hctl.parse().unwrap(), DeviceName::new(name).unwrap())
    }

    #[tokio::test]
    async fn exactly_one_lun_is_scanned_on_each_host() {
        let node = node();
        let applied = node.scsi.scan(&[(0, Lun(5)), (1, Lun(300))]).await;
        assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        assert_eq!(node.written("class/scsi_host/host0/scan"), "0 0 5");
        assert_eq!(node.written("class/scsi_host/host1/scan"), "0 0 300");
        let applied = node.scsi.scan(&[(9, Lun(1))]).await;
        assert_eq!(applied.failures[0].0, "LUN 1 of SCSI host 9");
    }

    #[tokio::test]
    async fn disks_that_are_still_the_ones_meant_are_deleted() {
        let node = node();
        let disks = [disk("0:0:0:1", "sdb"), disk("1:0:0:1", "sda")];
        let applied = node.scsi.delete(&disks).await;
        assert!(applied.changed && applied.failures.is_empty(), "{:?}", applied.failures);
        assert_eq!(node.written("class/scsi_device/0:0:0:1/device/delete"), "1");
        assert_eq!(node.written("class/scsi_device/1:0:0:1/device/delete"), "1");
    }

    #[tokio::test]
    async fn a_disk_that_has_another_name_or_a_holder_now_is_left_alone() {
        let node = node();
        let applied = node.scsi.delete(&[disk("0:0:0:1", "sdc")]).await;
        assert_eq!(applied.failures[0].1.to_string(), "0:0:0:1 is no longer sdc but sdb");
        let holders =
            node.scsi.sysfs.scsi_device("1:0:0:1".parse().unwrap()).join("block/sda/holders");
        fs::create_dir_all(holders.join("md0")).unwrap();
        let applied = node.scsi.delete(&[disk("1:0:0:1", "sda")]).await;
        assert_eq!(applied.failures[0].1.to_string(), "sda is in use by md0");
        assert_eq!(node.written("class/scsi_device/0:0:0:1/device/delete"), "");
        assert_eq!(node.written("class/scsi_device/1:0:0:1/device/delete"), "");
    }

    #[tokio::test]
    async fn disks_that_are_cut_off_are_offline_before_one_of_them_goes_and_only_their_map_may_sit_on_them()
     {
        let node = node();
        let disks = [disk("0:0:0:1", "sdb"), disk("1:0:0:1", "sda")];
        let holders =
            node.scsi.sysfs.scsi_device("1:0:0:1".parse().unwrap()).join("block/sda/holders");
        fs::create_dir_all(holders.join("dm-0")).unwrap();
        let refused = node.scsi.cut(&disks[1..], &[]).await;
        assert_eq!(refused.failures[0].1.to_string(), "sda is in use by dm-0");
        assert_eq!(node.written("class/scsi_device/1:0:0:1/device/delete"), "");
        let applied = node.scsi.cut(&disks, &[DeviceName::new("dm-0").unwrap()]).await;
        assert!(applied.changed && applied.failures.is_empty(), "{:?}", applied.failures);
        for address in ["0:0:0:1", "1:0:0:1"] {
            let device = format!("class/scsi_device/{address}/device");
            assert!(node.written(&format!("{device}/state")).starts_with("offline"));
            assert_eq!(node.written(&format!("{device}/delete")), "1");
        }
    }

    #[tokio::test]
    async fn a_disk_that_is_gone_is_deleted_already() {
        let node = node();
        let applied = node.scsi.delete(&[disk("7:0:0:1", "sdq")]).await;
        assert!(!applied.changed && applied.failures.is_empty(), "{:?}", applied.failures);
        let applied = node.scsi.rescan(&["7:0:0:1".parse().unwrap()]).await;
        assert!(!applied.changed && applied.failures.is_empty(), "{:?}", applied.failures);
    }

    #[tokio::test]
    async fn a_rescan_reads_each_disk_anew() {
        let node = node();
        assert!(node.scsi.rescan(&["0:0:0:1".parse().unwrap()]).await.changed);
        assert_eq!(node.written("class/scsi_device/0:0:0:1/device/rescan"), "1");
    }
}
