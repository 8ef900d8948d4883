//! File systems: made on a blank device only, checked before a mount.

use std::{path::PathBuf, time::Duration};

use crate::model::{Contents, DeviceId, DeviceName, Filesystem};

use super::{
    Applied, HostError,
    blocking::{self, Blocking},
    contents::Probe,
    exec::{Command, Executor, Exit, Program, gist},
    pinned::{Pinned, pin},
    scsi,
    sysfs::Sysfs,
};

/// Without discard and with lazy initialisation it takes seconds, however large the volume is.
const MKFS_LIMIT: Duration = Duration::from_mins(10);
/// A full check of a large file system, after a crash.
const FSCK_LIMIT: Duration = Duration::from_hours(1);
/// The open of a device reads nothing.
const PIN_LIMIT: Duration = Duration::from_secs(30);
const BLOCKDEV_LIMIT: Duration = Duration::from_secs(30);
const OPEN_LIMIT: Duration = Duration::from_secs(30);

/// Makes and checks file systems.
#[derive(Debug)]
pub(crate) struct Filesystems<'a, E> {
    pub(crate) exec: &'a E,
    pub(crate) dev: &'a PathBuf,
    pub(crate) sysfs: &'a Sysfs,
    pub(crate) blocking: &'a Blocking,
}

impl<E: Executor> Filesystems<'_, E> {
    /// What a device holds.
    pub(crate) async fn contents(&self, device: &DeviceId) -> Result<Contents, HostError> {
        let _pinned = self.pin(device).await?;
        self.read(&device.name).await
    }

    /// Holds a device while a tool works on its name.
    pub(crate) async fn pin(&self, device: &DeviceId) -> Result<Pinned, HostError> {
        let (dev, sysfs, meant) = (self.dev.clone(), self.sysfs.clone(), device.clone());
        blocking::limited(format!("opening {device}"), PIN_LIMIT, move || pin(&dev, &sysfs, &meant))
            .await
    }

    async fn read(&self, device: &DeviceName) -> Result<Contents, HostError> {
        Probe { exec: self.exec, dev: self.dev, blocking: self.blocking }.contents(device).await
    }

    /// Makes a file system on a device that was seen to be blank just now; with `resume` also over
    /// the remains of the same kind of file system, or over data without a signature.
    pub(crate) async fn format(
        &self,
        device: &DeviceId,
        filesystem: Filesystem,
        resume: bool,
    ) -> Result<Applied, HostError> {
        let _pinned = self.pin(device).await?;
        let device = &device.name;
        self.unclaimed(device).await?;
        let found = self.read(device).await?;
        let allowed = match &found {
            Contents::Blank => true,
            Contents::Data { .. } => resume,
            Contents::Filesystem { name } => resume && name == filesystem.name(),
            Contents::Signature { .. } => false,
        };
        if !allowed {
            return Err(HostError::NotBlank { device: device.clone(), found });
        }
        let (program, mut args) = match filesystem {
            // No discard: the device was seen to be zero. No blocks for root alone.
            Filesystem::Ext4 => (
                Program::MkfsExt4,
                vec!["-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"],
            ),
            Filesystem::Xfs => (Program::MkfsXfs, vec!["-q", "-K"]),
        };
        if resume {
            // Without it both refuse a device with a signature: a third witness.
            args.push(match filesystem {
                Filesystem::Ext4 => "-F",
                Filesystem::Xfs => "-f",
            });
        }
        let path = self.path(device);
        args.push(&path);
        let output = self.exec.run(Command::new(program, MKFS_LIMIT, args)).await?;
        if !output.success() {
            return Err(output.into_error(program, format!("making {filesystem} on {device}")));
        }
        Ok(Applied::changed())
    }

    /// Checks a file system that isn't mounted.
    ///
    /// XFS needs none: the kernel replays its log at the mount, and `fsck.xfs` does nothing on purpose
    /// (`fsck.xfs(8)`); `xfs_repair` is for a person.
    pub(crate) async fn check(
        &self,
        device: &DeviceId,
        filesystem: Filesystem,
    ) -> Result<Applied, HostError> {
        if filesystem == Filesystem::Xfs {
            return Ok(Applied::unchanged());
        }
        let _pinned = self.pin(device).await?;
        let device = &device.name;
        self.unclaimed(device).await?;
        let command = Command::new(Program::E2fsck, FSCK_LIMIT, ["-p", &self.path(device)]);
        let output = self.exec.run(command).await?;
        match output.exit {
            Exit::Code(0) => Ok(Applied::unchanged()),
            // Bit 0: errors were corrected. Bit 1: reboot, meant for a mounted root.
            Exit::Code(1..=3) => {
                tracing::warn!(%device, said = gist(&output.stdout), "e2fsck corrected the file system");
                Ok(Applied::changed())
            }
            // Bit 2: errors were left.
            Exit::Code(code) if code & 4 != 0 && code & !7 == 0 => {
                Err(HostError::FilesystemDamaged {
                    device: device.clone(),
                    filesystem: filesystem.name(),
                    output: gist(&format!("{}{}", output.stdout, output.stderr)),
                })
            }
            Exit::Code(_) | Exit::Signal(_) => {
                Err(output
                    .into_error(Program::E2fsck, format!("checking {filesystem} on {device}")))
            }
        }
    }

    /// Makes block devices refuse writes.
    pub(crate) async fn set_read_only(&self, devices: &[DeviceName]) -> Result<Applied, HostError> {
        if devices.is_empty() {
            return Ok(Applied::unchanged());
        }
        let paths = devices.iter().map(|device| self.path(device));
        let args = std::iter::once("--setro".to_owned()).chain(paths);
        let output = self.exec.run(Command::new(Program::Blockdev, BLOCKDEV_LIMIT, args)).await?;
        if output.success() {
            return Ok(Applied::changed());
        }
        let names: Vec<&str> = devices.iter().map(DeviceName::as_str).collect();
        Err(output.into_error(Program::Blockdev, format!("setting {} read-only", names.join(", "))))
    }

    /// Nobody has claimed the device: no mount of another namespace, and no format that outlived the
    /// attachd that began it.
    async fn unclaimed(&self, device: &DeviceName) -> Result<(), HostError> {
        let path = self.dev.join(device.as_str());
        let work = move || {
            let opened = scsi::open_unclaimed(&path)?;
            opened.map(drop).map_err(HostError::io("open", path))
        };
        self.blocking.once(format!("opening {device}"), OPEN_LIMIT, work).await
    }

    pub(crate) fn path(&self, device: &DeviceName) -> String {
        self.dev.join(device.as_str()).display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{host::scripted::ScriptedExecutor, model::DeviceNumber};

    struct Node {
        directory: tempfile::TempDir,
    }

    impl Node {
        fn with(bytes: &[u8]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("dm-0"), bytes).unwrap();
            Self { directory }
        }

        /// `$` in a line stands for the device.
        async fn run<T>(
            &self,
            lines: &[(&str, i32, &str)],
            work: impl AsyncFnOnce(Filesystems<'_, ScriptedExecutor>, DeviceId) -> T,
        ) -> T {
            let device = self.directory.path().join("dm-0").display().to_string();
            let lines: Vec<_> = lines
                .iter()
                .map(|(argv, code, text)| (argv.replace('$', &device), *code, *text))
                .collect();
            let lines: Vec<_> =
                lines.iter().map(|(argv, code, text)| (argv.as_str(), *code, *text)).collect();
            let exec = ScriptedExecutor::new(&lines);
            let dev = self.directory.path().to_owned();
            let blocking = Blocking::default();
            let sysfs = Sysfs::new(&dev);
            let filesystems =
                Filesystems { exec: &exec, dev: &dev, sysfs: &sysfs, blocking: &blocking };
            let name = DeviceName::new("dm-0").unwrap();
            let number = DeviceNumber { major: 0, minor: 0 };
            work(filesystems, DeviceId { name, number, diskseq: None }).await
        }
    }

    const BLKID: &str = "blkid -p -o export $";
    const EXT4: &str = "mkfs.ext4 -q -m 0 -E nodiscard,lazy_itable_init=1,lazy_journal_init=1";

    #[tokio::test]
    async fn a_blank_device_is_formatted_without_force() {
        let node = Node::with(&[0; 8192]);
        let argv = format!("{EXT4} $");
        node.run(&[(BLKID, 2, ""), (&argv, 0, "")], async |fs, device| {
            assert!(fs.format(&device, Filesystem::Ext4, false).await.unwrap().changed);
        })
        .await;
        node.run(&[(BLKID, 2, ""), ("mkfs.xfs -q -K $", 0, "")], async |fs, device| {
            assert!(fs.format(&device, Filesystem::Xfs, false).await.unwrap().changed);
        })
        .await;
    }

    #[tokio::test]
    async fn a_device_that_holds_anything_is_never_formatted() {
        let data = Node::with(&[1; 8192]);
        let blank = Node::with(&[0; 8192]);
        for (node, code, export) in [
            (&data, 2, ""),
            (&blank, 0, "TYPE=ext4\nUSAGE=filesystem\n"),
            (&blank, 0, "TYPE=crypto_LUKS\nUSAGE=crypto\n"),
            (&blank, 8, ""),
        ] {
            let error = node
                .run(&[(BLKID, code, export)], async |fs, device| {
                    fs.format(&device, Filesystem::Ext4, false).await.unwrap_err()
                })
                .await;
            assert_eq!(error.reason(), "NotBlank", "{export}");
        }
    }

    #[tokio::test]
    async fn a_format_that_was_cut_short_is_resumed_but_never_over_another_signature() {
        let remains = Node::with(&[1; 8192]);
        let argv = format!("{EXT4} -F $");
        for (code, export) in [(2, ""), (0, "TYPE=ext4\nUSAGE=filesystem\n")] {
            remains
                .run(&[(BLKID, code, export), (&argv, 0, "")], async |fs, device| {
                    assert!(fs.format(&device, Filesystem::Ext4, true).await.unwrap().changed);
                })
                .await;
        }
        for export in ["TYPE=xfs\nUSAGE=filesystem\n", "TYPE=LVM2_member\nUSAGE=raid\n"] {
            let error = remains
                .run(&[(BLKID, 0, export)], async |fs, device| {
                    fs.format(&device, Filesystem::Ext4, true).await.unwrap_err()
                })
                .await;
            assert_eq!(error.reason(), "NotBlank");
        }
    }

    #[tokio::test]
    async fn e2fsck_may_correct_what_is_safe_and_leaves_the_rest_to_a_person() {
        let node = Node::with(&[0; 512]);
        for (code, reason) in [
            (0, None),
            (1, None),
            (2, None),
            (4, Some("FilesystemDamaged")),
            (8, Some("CommandFailed")),
        ] {
            let result = node
                .run(&[("e2fsck -p $", code, "x: UNEXPECTED INCONSISTENCY")], async |fs, device| {
                    fs.check(&device, Filesystem::Ext4).await
                })
                .await;
            assert_eq!(result.err().map(|error| error.reason()), reason, "{code}");
        }
        let xfs = node.run(&[], async |fs, device| fs.check(&device, Filesystem::Xfs).await).await;
        assert!(!xfs.unwrap().changed);
    }
}
