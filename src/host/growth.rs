//! File systems that are grown while they are mounted, and how large they are.
//!
//! `statfs` leaves out what a file system keeps for itself, so the size is read where it stands: for ext4
//! in the superblock, which the kernel changes in the device's page cache, for XFS in what `xfs_growfs -n`
//! says (its superblock on the device is written later).

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Applied, HostError,
    exec::{Command, Executor, Program},
    filesystem::Filesystems,
};
use crate::model::{DeviceId, DeviceName, Filesystem};

/// ext4 writes tables for each new group.
const GROW_LIMIT: Duration = Duration::from_mins(10);
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// What may be left at a device's end: the last group of blocks is left out where its tables would fill
/// it. Cinder's sizes differ by whole GiB.
const SLACK: u64 = 64 << 20;

const SUPERBLOCK: u64 = 1024;

/// How large a device and the file system on it are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    device: u64,
    filesystem: u64,
}

impl Sizes {
    fn is_full(self) -> bool {
        self.filesystem.saturating_add(SLACK) > self.device
    }
}

impl<E: Executor> Filesystems<'_, E> {
    /// Grows a mounted file system to the end of its device.
    pub(crate) async fn grow(
        &self,
        device: &DeviceId,
        filesystem: Filesystem,
        target: &Path,
    ) -> Result<Applied, HostError> {
        let _pinned = self.pin(device).await?;
        let device = &device.name;
        if self.sizes(device, filesystem, target).await?.is_full() {
            return Ok(Applied::unchanged());
        }
        let mounted = target.display().to_string();
        let (program, args) = match filesystem {
            Filesystem::Ext4 => (Program::Resize2fs, vec![self.path(device)]),
            Filesystem::Xfs => (Program::XfsGrowfs, vec!["-d".to_owned(), mounted.clone()]),
        };
        let output = self.exec.run(Command::new(program, GROW_LIMIT, args)).await?;
        if !output.success() {
            let doing = format!("growing {filesystem} on {device}, mounted on {mounted}");
            return Err(output.into_error(program, doing));
        }
        let sizes = self.sizes(device, filesystem, target).await?;
        if sizes.is_full() {
            return Ok(Applied::changed());
        }
        Err(HostError::NotGrown {
            what: format!("{filesystem} on {mounted}"),
            why: format!(
                "{program} ended well, and it has {} of the {} bytes of {device}",
                sizes.filesystem, sizes.device
            ),
        })
    }

    async fn sizes(
        &self,
        device: &DeviceName,
        filesystem: Filesystem,
        target: &Path,
    ) -> Result<Sizes, HostError> {
        let path = PathBuf::from(self.path(device));
        let doing = format!("reading the size of {device}");
        let (device_bytes, ext4) = self
            .blocking
            .once(doing, LOOK_LIMIT, move || {
                let (size, superblock) =
                    look(&path).map_err(HostError::io("read the size of", &path))?;
                Ok((size, ext4_bytes(&superblock)))
            })
            .await?;
        let found = match filesystem {
            Filesystem::Ext4 => ext4,
            Filesystem::Xfs => {
                let args = ["-n".to_owned(), target.display().to_string()];
                let output =
                    self.exec.run(Command::new(Program::XfsGrowfs, LOOK_LIMIT, args)).await?;
                if !output.success() {
                    let doing = format!("asking for the size of xfs on {}", target.display());
                    return Err(output.into_error(Program::XfsGrowfs, doing));
                }
                xfs_bytes(&output.stdout)
            }
        };
        let filesystem = found.ok_or_else(|| HostError::NotGrown {
            what: format!("{filesystem} on {}", target.display()),
            why: format!("no {filesystem} of a known size is on {device}"),
        })?;
        Ok(Sizes { device: device_bytes, filesystem })
    }
}

/// The size of a device, and where ext4 has its superblock.
fn look(path: &Path) -> io::Result<(u64, [u8; 1024])> {
    let mut file = File::open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(SUPERBLOCK))?;
    let mut superblock = [0; 1024];
    file.read_exact(&mut superblock)?;
    Ok((size, superblock))
}

/// `s_blocks_count` (in two parts where the file system is of 64 bits) times the size of a block.
fn ext4_bytes(superblock: &[u8; 1024]) -> Option<u64> {
    const MAGIC: u16 = 0xEF53;
    const INCOMPAT_64BIT: u32 = 0x80;
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(superblock.get(at..at + 4)?.try_into().ok()?))
    };
    if superblock.get(0x38..0x3A)? != MAGIC.to_le_bytes() {
        return None;
    }
    let high = if word(0x60)? & INCOMPAT_64BIT == 0 { 0 } else { word(0x150)? };
    let blocks = u64::from(high) << 32 | u64::from(word(0x4)?);
    let block = 1024_u64.checked_shl(word(0x18)?).filter(|block| *block != 0)?;
    blocks.checked_mul(block)
}

/// The line `data     =                       bsize=4096   blocks=262144, imaxpct=25`.
fn xfs_bytes(geometry: &str) -> Option<u64> {
    let data = geometry.lines().find(|line| line.starts_with("data"))?;
    let field = |name: &str| -> Option<u64> {
        let (_, rest) = data.split_once(name)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    field(" bsize=")?.checked_mul(field(" blocks=")?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        host::{blocking::Blocking, scripted::ScriptedExecutor, sysfs::Sysfs},
        model::DeviceNumber,
    };

    const MIB: u64 = 1 << 20;

    /// ext4's superblock as far as it is looked at.
    fn superblock(blocks: u64, log: u32, wide: bool) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        let (low, high) =
            (u32::try_from(blocks & 0xFFFF_FFFF).unwrap(), u32::try_from(blocks >> 32).unwrap());
        bytes[0x4..0x8].copy_from_slice(&low.to_le_bytes());
        bytes[0x18..0x1C].copy_from_slice(&log.to_le_bytes());
        bytes[0x38..0x3A].copy_from_slice(&0xEF53_u16.to_le_bytes());
        bytes[0x60..0x64].copy_from_slice(&(u32::from(wide) * 0x80).to_le_bytes());
        bytes[0x150..0x154].copy_from_slice(&high.to_le_bytes());
        bytes
    }

    #[test]
    fn the_size_of_ext4_stands_in_its_superblock_in_two_parts() {
        assert_eq!(ext4_bytes(&superblock(262_144, 2, true)), Some(1 << 30));
        assert_eq!(ext4_bytes(&superblock(1 << 33, 2, true)), Some(1 << 45));
        // Without the feature the upper part is something else.
        assert_eq!(ext4_bytes(&superblock(1 << 32 | 8, 0, false)), Some(8192));
        assert_eq!(ext4_bytes(&superblock(8, 60, true)), None);
        assert_eq!(ext4_bytes(&[0; 1024]), None);
    }

    #[test]
    fn the_size_of_xfs_is_that_of_its_data_section() {
        let geometry = "meta-data=/dev/mapper/mpatha isize=512    agcount=4, agsize=65536 blks\n         =                       sectsz=512   attr=2, projid32bit=1\ndata     =                       bsize=4096   blocks=262144, imaxpct=25\n         =                       sunit=0      swidth=0 blks\nnaming   =version 2              bsize=4096   ascii-ci=0, ftype=1\nlog      =internal log           bsize=4096   blocks=16384, version=2\n";
        assert_eq!(xfs_bytes(geometry), Some(1 << 30));
        assert_eq!(xfs_bytes("data     = nonsense"), None);
        assert_eq!(xfs_bytes(""), None);
    }

    /// A device of 512 MiB with ext4 of so many MiB; each command of the transcript makes it as large as
    /// it says.
    async fn grow(
        before: u64,
        script: &[(&str, i32, &str)],
        after: u64,
    ) -> Result<bool, HostError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dm-0");
        let file = File::create(&path).unwrap();
        file.set_len(512 * MIB).unwrap();
        let write = |path: &Path, mib: u64| {
            use std::os::unix::fs::FileExt as _;
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(&superblock(mib * MIB / 4096, 2, true), SUPERBLOCK).unwrap();
        };
        write(&path, before);
        let shown = path.display().to_string();
        let lines: Vec<_> = script
            .iter()
            .map(|(argv, code, said)| (argv.replace('$', &shown), *code, *said))
            .collect();
        let lines: Vec<_> =
            lines.iter().map(|(argv, code, said)| (argv.as_str(), *code, *said)).collect();
        let exec = ScriptedExecutor::new(&lines).with_effect(move |_| write(&path, after));
        let (dev, blocking) = (directory.path().to_owned(), Blocking::default());
        let sysfs = Sysfs::new(&dev);
        let filesystems =
            Filesystems { exec: &exec, dev: &dev, sysfs: &sysfs, blocking: &blocking };
        let device = DeviceId {
            name: DeviceName::new("dm-0").unwrap(),
            number: DeviceNumber { major: 0, minor: 0 },
            diskseq: None,
        };
        let grown = filesystems.grow(&device, Filesystem::Ext4, Path::new("/mnt/db")).await;
        grown.map(|applied| applied.changed)
    }

    #[tokio::test]
    async fn ext4_is_grown_where_it_is_smaller_than_its_device_and_looked_at_again() {
        assert!(!grow(512, &[], 512).await.unwrap());
        assert!(grow(256, &[("resize2fs $", 0, "")], 512).await.unwrap());
        let error = grow(256, &[("resize2fs $", 0, "")], 256).await.unwrap_err();
        assert_eq!(error.reason(), "NotGrown");
        assert!(error.to_string().contains("268435456 of the 536870912 bytes"), "{error}");
        let error = grow(256, &[("resize2fs $", 1, "resize2fs: no")], 256).await.unwrap_err();
        assert_eq!(error.reason(), "CommandFailed");
    }
}
