//! SCSI disks: find one LUN, read a disk's identity anew, delete a disk.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::join_all;
use nix::libc;

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
            if !scsi.is_still(hctl, &expected)? {
                return Ok(false);
            }
            flush(&scsi.dev.join(expected.as_str())).map(|()| true)
        };
        if !self.blocking.once(format!("flushing {name}"), FLUSH_LIMIT, flush).await? {
            return Ok(false);
        }
        let (scsi, expected) = (self.clone(), name.clone());
        let delete = move || {
            if !scsi.is_still(hctl, &expected)? {
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

    /// Whether the address still has that disk (`false`: neither of them is there), and nobody sits on it.
    fn is_still(&self, hctl: Hctl, expected: &DeviceName) -> Result<bool, HostError> {
        match self.sysfs.disk_at(hctl)? {
            Some(found) if &found == expected => {}
            None if !self.sysfs.scsi_device(hctl).exists() => return Ok(false),
            found => {
                return Err(HostError::DeviceChanged { hctl, expected: expected.clone(), found });
            }
        }
        let holders = self.sysfs.holders(expected)?;
        if holders.is_empty() {
            return Ok(true);
        }
        let by = holders.iter().map(ToString::to_string).collect();
        Err(HostError::Busy { what: expected.to_string(), by })
    }
}

/// Writes out what the kernel holds back for a block device, and has the disk empty its cache.
///
/// The device is opened for reading, so that udev sees no change of it. A disk that can't do I/O any
/// more has nothing to flush it to: its file system was unmounted, or its map flushed, before.
pub(crate) fn flush(device: &Path) -> Result<(), HostError> {
    let synced = File::open(device).and_then(|file| file.sync_all());
    match synced {
        Err(error) if gone(&error) || error.raw_os_error() == Some(libc::EIO) => {
            tracing::warn!(device = %device.display(), %error, "could not flush a device that fails its I/O");
            Ok(())
        }
        result => result.map_err(HostError::io("flush", device)),
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
