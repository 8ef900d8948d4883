//! Two XFS file systems with one UUID, which a clone of a volume has: the kernel mounts one of them, and
//! says "invalid argument" of the other.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{mountinfo, sysfs::Sysfs};
use crate::model::DeviceNumber;

/// Where the file system with the same UUID as that on `device` is mounted, and the UUID. What can't be
/// read is none.
pub(super) fn mounted_twin(
    dev: &Path,
    sysfs: &Sysfs,
    mounts: &Path,
    device: &Path,
    number: DeviceNumber,
) -> Option<(Uuid, PathBuf)> {
    let uuid = uuid_of(device).ok()??;
    let mounts = mountinfo::all(mounts).ok()?;
    let others =
        mounts.into_iter().filter(|mount| mount.fs_type == "xfs" && mount.number != number);
    others
        .filter_map(|mount| Some((sysfs.name_of(mount.number)?, mount.target)))
        .find(|(name, _)| uuid_of(&dev.join(name.as_str())).is_ok_and(|found| found == Some(uuid)))
        .map(|(_, target)| (uuid, target))
}

/// `sb_uuid` of an XFS superblock; none where there is no such superblock.
fn uuid_of(device: &Path) -> io::Result<Option<Uuid>> {
    let mut superblock = [0; 512];
    File::open(device)?.read_exact(&mut superblock)?;
    let bytes = superblock.get(32..48).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    Ok(bytes.filter(|_| superblock.starts_with(b"XFSB")).map(Uuid::from_bytes))
}
