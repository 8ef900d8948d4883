//! A block device that is held open, so that the kernel gives its name and number to no other.
//!
//! Between a look at a device and what is done to it, it can go, and another can come that is called the
//! same. An open device is not freed, and its number and name are not given again until it is closed. So:
//! open it, see that it is the one that is meant, run the tool on its name, close it.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use nix::{
    fcntl::OFlag,
    sys::stat::{major, minor},
};

use super::{HostError, sysfs::Sysfs};
use crate::model::DeviceId;

/// A device that keeps its name until this is dropped.
#[derive(Debug)]
pub(crate) struct Pinned(Option<File>);

impl Drop for Pinned {
    fn drop(&mut self) {
        let file = self.0.take();
        // The last close of a device writes out what is left of its cache, and may wait for its target.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

/// Opens a device that must still be the one that is meant.
pub(super) fn pin(dev: &Path, sysfs: &Sysfs, device: &DeviceId) -> Result<Pinned, HostError> {
    let path = dev.join(device.name.as_str());
    let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(&path)
        .map_err(HostError::io("open", &path))?;
    let rdev = file.metadata().map_err(HostError::io("look at", &path))?.rdev();
    let number = (u64::from(device.number.major), u64::from(device.number.minor));
    let seen = sysfs.diskseq(&device.name)?;
    if (major(rdev), minor(rdev)) != number || device.diskseq.is_some() && seen != device.diskseq {
        return Err(HostError::DeviceReplaced { device: device.name.clone() });
    }
    Ok(Pinned(Some(file)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::{DeviceName, DeviceNumber};

    #[test]
    fn a_device_of_the_same_name_that_came_later_is_not_the_one_that_is_meant() {
        let root = tempfile::tempdir().unwrap();
        let block = root.path().join("block/dm-0");
        fs::create_dir_all(&block).unwrap();
        fs::write(root.path().join("dm-0"), "").unwrap();
        fs::write(block.join("diskseq"), "41\n").unwrap();
        let sysfs = Sysfs::new(root.path());
        let device = |minor, diskseq| DeviceId {
            name: DeviceName::new("dm-0").unwrap(),
            // What a plain file has.
            number: DeviceNumber { major: 0, minor },
            diskseq,
        };
        let reason = |device| pin(root.path(), &sysfs, &device).err().map(|error| error.reason());
        assert_eq!(reason(device(0, Some(41))), None);
        assert_eq!(reason(device(0, None)), None);
        assert_eq!(reason(device(1, Some(41))), Some("DeviceChanged"));
        fs::write(block.join("diskseq"), "42\n").unwrap();
        assert_eq!(reason(device(0, Some(41))), Some("DeviceChanged"));
        fs::remove_file(block.join("diskseq")).unwrap();
        assert_eq!(reason(device(0, Some(41))), Some("DeviceChanged"));
        fs::remove_file(root.path().join("dm-0")).unwrap();
        assert_eq!(reason(device(0, None)), Some("HostIoFailed"));
    }
}
