//! Mounts, as `/proc/<pid>/mountinfo` lists them (`proc_pid_mountinfo(5)`).
//!
//! ```text
//! 36 35 98:0 /mnt1 /mnt2\040a rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//! ```

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use procfs::process::MountInfo;

use crate::model::MountEntry;

use super::HostError;

/// All mounts of block devices, in the order in which they were made.
pub(crate) fn mounts(mountinfo: &Path) -> Result<Vec<MountEntry>, HostError> {
    Ok(of_block_devices(&infos(mountinfo)?))
}

/// Those of block devices.
pub(crate) fn of_block_devices<'a>(
    mounts: impl IntoIterator<Item = &'a MountInfo>,
) -> Vec<MountEntry> {
    // Major 0: no block device (tmpfs, overlay, network file systems).
    mounts.into_iter().filter_map(entry).filter(|mount| mount.number.major != 0).collect()
}

/// All mounts of any kind, in the order in which they were made.
pub(crate) fn all(mountinfo: &Path) -> Result<Vec<MountEntry>, HostError> {
    Ok(infos(mountinfo)?.iter().filter_map(entry).collect())
}

/// The lines, with everything that they say; names are escaped.
pub(crate) fn infos(mountinfo: &Path) -> Result<Vec<MountInfo>, HostError> {
    let text = fs::read(mountinfo).map_err(HostError::io("read", mountinfo))?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

pub(super) fn parse(text: &str) -> Vec<MountInfo> {
    text.lines().filter_map(|line| MountInfo::from_line(line).ok()).collect()
}

pub(super) fn entry(info: &MountInfo) -> Option<MountEntry> {
    let number: crate::model::DeviceNumber = info.majmin.parse().ok()?;
    // ext4 after an error: `ro` up to Linux 6.11, then `emergency_ro`; `shutdown` where it was told to.
    let refuses = |option: &&str| info.super_options.contains_key(*option);
    let read_only = info.mount_options.contains_key("ro")
        || ["ro", "emergency_ro", "shutdown"].iter().any(refuses);
    Some(MountEntry {
        number,
        // Without a source the kernel writes `none`, which procfs takes away.
        source: unescaped(info.mount_source.as_deref().unwrap_or("none").as_bytes())
            .to_string_lossy()
            .into_owned(),
        target: unescaped_path(&info.mount_point),
        fs_type: info.fs_type.clone(),
        read_only,
        // The list doesn't tell.
        errors: false,
    })
}

/// A path, as it is.
pub(crate) fn unescaped_path(path: &Path) -> PathBuf {
    PathBuf::from(unescaped(path.as_os_str().as_encoded_bytes()))
}

/// The kernel writes blank, tab, newline and backslash as `\` and three octal digits (`mangle_path()`).
fn unescaped(text: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] if *first == b'\\' => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
22 1 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
96 28 253:0 / /var/lib/attachd/volumes/my\\040data\\134x rw,noatime shared:1 master:3 - ext4 /dev/mapper/mpatha rw
97 28 253:1 /sub /mnt/b ro,relatime - xfs /dev/dm-1 rw,attr2
98 28 253:2 / /mnt/c rw,relatime unbindable - xfs /dev/dm-2 ro,attr2
99 28 253:3 / /mnt/d rw,relatime - ext4 /dev/dm-3 rw,emergency_ro
nonsense
";

    #[test]
    fn mounts_of_block_devices_are_read_with_their_escapes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), TEXT).unwrap();
        let mounts = mounts(file.path()).unwrap();
        assert_eq!(mounts.len(), 5);
        assert_eq!(all(file.path()).unwrap()[0].fs_type, "sysfs");
        assert_eq!(mounts[1].target, PathBuf::from("/var/lib/attachd/volumes/my data\\x"));
        assert_eq!(mounts[1].number.to_string(), "253:0");
        assert_eq!(
            (mounts[1].source.as_str(), mounts[1].fs_type.as_str()),
            ("/dev/mapper/mpatha", "ext4")
        );
    }

    #[test]
    fn a_mount_is_read_only_by_either_set_of_options_or_after_an_error() {
        let entries = parse(TEXT).into_iter().filter_map(|info| entry(&info));
        let read_only: Vec<bool> = entries.map(|mount| mount.read_only).collect();
        assert_eq!(read_only, [false, false, false, true, true, true]);
    }

    #[test]
    fn this_machines_own_mounts_can_be_read() {
        mounts(Path::new("/proc/self/mountinfo")).unwrap();
    }
}
