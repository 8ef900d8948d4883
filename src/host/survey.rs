//! What only a person, or a check, looks at: nothing of it decides what is done to the node.

use std::{
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::stat::{major, minor};

use crate::model::{DeviceName, DeviceNumber, Hctl, MountEntry};

use super::{
    HostError, IoCounters, KeptRecords, LinuxHost, Users, blocking, connector, exec::Executor,
    mountinfo,
};

/// Reads of sysfs, of small files and of a list; none waits for a device.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

impl<E: Executor> LinuxHost<E> {
    /// The node's name in connectors.
    pub fn node_name(&self) -> String {
        connector::node_name(self.config.host.as_deref())
    }

    /// Targets for which attachd has a node record, whether or not anything needs it.
    ///
    /// # Errors
    /// open-iscsi's database can't be read.
    pub async fn kept_records(&self) -> Result<Vec<KeptRecords>, HostError> {
        let database = self.database.clone();
        let work = move || database.all_kept();
        blocking::limited("reading node records".to_owned(), LOOK_LIMIT, work).await
    }

    /// For each device which processes and containers hold it, beside its mounts. A process that ends or
    /// begins meanwhile may be missed.
    ///
    /// # Errors
    /// It took too long.
    pub async fn users(&self, devices: Vec<DeviceNumber>) -> Result<Vec<Users>, HostError> {
        self.openers.users(devices).await
    }

    /// The block device that a path below `/dev` leads to.
    ///
    /// # Errors
    /// It took too long.
    pub async fn block_device(&self, path: &Path) -> Result<Option<DeviceNumber>, HostError> {
        let below = path.strip_prefix("/dev").unwrap_or(path);
        let path = self.config.dev.join(below);
        let work = move || {
            let seen =
                std::fs::metadata(path).ok().filter(|seen| seen.file_type().is_block_device());
            Ok(seen.and_then(|seen| {
                Some(DeviceNumber {
                    major: u32::try_from(major(seen.rdev())).ok()?,
                    minor: u32::try_from(minor(seen.rdev())).ok()?,
                })
            }))
        };
        blocking::limited("looking at a device's path".to_owned(), LOOK_LIMIT, work).await
    }

    /// The name that a block device's number has now.
    pub fn device_name(&self, number: DeviceNumber) -> Option<DeviceName> {
        self.sysfs.name_of(number)
    }

    /// The mount that a path lies on, of whatever kind; by the list of mounts alone, since a look at the
    /// path may hang. Symbolic links are not followed.
    ///
    /// # Errors
    /// The list can't be read.
    pub async fn mount_above(&self, path: PathBuf) -> Result<Option<MountEntry>, HostError> {
        let mountinfo = self.config.mountinfo.clone();
        let work = move || {
            let above = mountinfo::all(&mountinfo)?.into_iter();
            let above = above.filter(|mount| path.starts_with(&mount.target));
            // Of those at one place the last one made is on top, and is the last of the longest.
            Ok(above.max_by_key(|mount| mount.target.components().count()))
        };
        blocking::limited("reading the list of mounts".to_owned(), LOOK_LIMIT, work).await
    }

    /// What the kernel counted at each disk; none for one that has gone.
    ///
    /// # Errors
    /// It took too long.
    pub async fn io_counters(
        &self,
        disks: Vec<Hctl>,
    ) -> Result<Vec<Option<IoCounters>>, HostError> {
        let sysfs = self.sysfs.clone();
        let work = move || disks.into_iter().map(|disk| sysfs.io_counters(disk)).collect();
        blocking::limited("reading the disks' counters".to_owned(), LOOK_LIMIT, work).await
    }
}
