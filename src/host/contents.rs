//! What a block device holds, told by two witnesses: blkid's signatures, and the bytes themselves.
//!
//! ```text
//! # blkid -p -o export /dev/dm-0
//! DEVNAME=/dev/dm-0
//! UUID=0e2bb9a6-26c1-4bfe-a74d-0fd6ed6d9a33
//! TYPE=ext4
//! USAGE=filesystem
//! ```
//!
//! blkid's exit code 2 says "nothing found" for a blank disk, for an unknown format and for a disk
//! that can't be read, alike. So a device is blank only if it was read, past the page cache, and is
//! zero wherever it was read: at the start, at the end, and at places spread over the rest.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::join;
use nix::{errno::Errno, fcntl::OFlag};

use crate::model::{Contents, DeviceName};

use super::{
    HostError,
    blocking::Blocking,
    exec::{Command, Executor, Exit, Program},
};

const BLKID_LIMIT: Duration = Duration::from_mins(1);
const READ_LIMIT: Duration = Duration::from_mins(2);

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// Read whole: superblocks, partition tables, LVM, LUKS and RAID headers all begin in here.
const HEAD: u64 = 2 * MIB;
/// Read whole: backup GPT, mdadm 0.9/1.0, DDF and other headers that lie at the end.
const TAIL: u64 = MIB;
/// Places in between.
const SAMPLES: u64 = 64;
const SAMPLE: u64 = 4 * KIB;
/// Longest name of what is on a device.
const MAX_NAME: usize = 64;
/// Direct I/O wants memory, offset and length in units of the logical block size, at most this.
const ALIGNMENT: u64 = 4 * KIB;
const ALIGNMENT_IN_MEMORY: usize = 4096;

/// Looks at devices.
#[derive(Debug)]
pub(crate) struct Probe<'a, E> {
    pub(crate) exec: &'a E,
    pub(crate) dev: &'a PathBuf,
    pub(crate) blocking: &'a Blocking,
}

impl<E: Executor> Probe<'_, E> {
    /// What the device holds.
    pub(crate) async fn contents(&self, device: &DeviceName) -> Result<Contents, HostError> {
        let path = self.dev.join(device.as_str());
        let shown = path.display().to_string();
        let command = Command::new(Program::Blkid, BLKID_LIMIT, ["-p", "-o", "export", &shown]);
        let name = device.clone();
        let work = move || match first_byte(&path) {
            Ok(Some(offset)) => Ok(Contents::Data { offset }),
            Ok(None) => Ok(Contents::Blank),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(HostError::EmptyDevice { device: name })
            }
            Err(error) => Err(HostError::io("read", path)(error)),
        };
        let read = self.blocking.once(format!("reading {device}"), READ_LIMIT, work);
        // The two witnesses side by side.
        let (output, read) = join(self.exec.run(command), read).await;
        let output = output?;
        let signature = match output.exit {
            Exit::Code(0) => signature(&output.stdout),
            // Exit code 8: several signatures that contradict each other.
            Exit::Code(8) => Some(Contents::Signature { name: "several signatures".to_owned() }),
            Exit::Code(2) => None,
            Exit::Code(_) | Exit::Signal(_) => {
                return Err(
                    output.into_error(Program::Blkid, format!("looking at what {device} holds"))
                );
            }
        };
        if let Some(found) = signature {
            return Ok(found);
        }
        read
    }
}

/// What blkid found.
pub(crate) fn signature(export: &str) -> Option<Contents> {
    let value = |key: &str| {
        let line = export.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        // What stands on a device was put there by anybody.
        line.map(|word| word.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect::<String>())
    };
    match (value("TYPE"), value("PTTYPE")) {
        (Some(name), _) if value("USAGE").as_deref() == Some("filesystem") => {
            Some(Contents::Filesystem { name })
        }
        (Some(name), _) => Some(Contents::Signature { name }),
        (None, Some(table)) => {
            Some(Contents::Signature { name: format!("{table} partition table") })
        }
        // A name for the device alone is no finding.
        (None, None) => None,
    }
}

/// The offset of the first byte that isn't zero, wherever it is looked for.
///
/// # Errors
/// The device can't be opened or read everywhere, or (`UnexpectedEof`) has no size.
fn first_byte(path: &Path) -> io::Result<Option<u64>> {
    let mut file = open_direct(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    if size == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut buffer = Aligned::new(MIB);
    for (start, length) in places(size) {
        let mut at = start;
        while at < start + length {
            let step = (start + length - at).min(MIB);
            let read = buffer.slice(step);
            file.read_exact_at(read, at)?;
            if let Some(index) = read.iter().position(|byte| *byte != 0) {
                return Ok(Some(at + index as u64));
            }
            at += step;
        }
    }
    Ok(None)
}

/// Where a device of this size is looked at: offsets and lengths, in order.
fn places(size: u64) -> Vec<(u64, u64)> {
    let aligned = |offset: u64| offset / ALIGNMENT * ALIGNMENT;
    if size <= HEAD + TAIL + SAMPLES * SAMPLE {
        return vec![(0, size)];
    }
    let tail = aligned(size - TAIL);
    let between = tail - HEAD - SAMPLE;
    let samples = (0..SAMPLES).map(|n| (HEAD + aligned(between / SAMPLES * n), SAMPLE));
    std::iter::once((0, HEAD)).chain(samples).chain([(tail, size - tail)]).collect()
}

/// Opens for reading past the page cache, which may hold what was there before; where that isn't
/// possible (a file on some file systems), with it.
fn open_direct(path: &Path) -> io::Result<File> {
    let direct = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path);
    match direct {
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => File::open(path),
        result => result,
    }
}

/// A buffer that begins at a multiple of [`ALIGNMENT`].
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(length: u64) -> Self {
        let length = usize::try_from(length + ALIGNMENT).unwrap_or(usize::MAX);
        let bytes = vec![0; length];
        let start = bytes.as_ptr().align_offset(ALIGNMENT_IN_MEMORY);
        Self { bytes, start }
    }

    fn slice(&mut self, length: u64) -> &mut [u8] {
        let end = self.start + usize::try_from(length).unwrap_or(usize::MAX);
        &mut self.bytes[self.start..end]
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::scripted::ScriptedExecutor;

    #[test]
    fn what_blkid_prints_is_told_apart() {
        let named = |text: &str| signature(text);
        assert_eq!(
            named("DEVNAME=/dev/dm-0\nUUID=0e2b\nTYPE=ext4\nUSAGE=filesystem\n"),
            Some(Contents::Filesystem { name: "ext4".to_owned() })
        );
        for (text, name) in [
            ("TYPE=LVM2_member\nUSAGE=raid\n", "LVM2_member"),
            ("TYPE=crypto_LUKS\nUSAGE=crypto\n", "crypto_LUKS"),
            ("TYPE=linux_raid_member\nUSAGE=raid\n", "linux_raid_member"),
            ("TYPE=swap\nUSAGE=other\n", "swap"),
            ("PTUUID=1\nPTTYPE=gpt\n", "gpt partition table"),
        ] {
            assert_eq!(named(text), Some(Contents::Signature { name: name.to_owned() }), "{text}");
        }
        assert_eq!(named("DEVNAME=/dev/dm-0\n"), None);
    }

    #[test]
    fn the_places_lie_within_the_device_in_order_and_cover_both_ends() {
        for size in [512, 4096, MIB, HEAD + TAIL, 4 * MIB, 10 * MIB + 512, 1 << 40, (1 << 44) + 512]
        {
            let places = places(size);
            assert_eq!(places[0].0, 0);
            let (last, length) = places[places.len() - 1];
            assert_eq!(last + length, size);
            for pair in places.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{size}: {pair:?}");
            }
            assert!(places.iter().all(|(offset, _)| offset % ALIGNMENT == 0), "{size}");
        }
    }

    fn looked_at(bytes: &[(u64, u8)], size: u64) -> io::Result<Option<u64>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        for (offset, byte) in bytes {
            file.as_file().write_all_at(&[*byte], *offset).unwrap();
        }
        first_byte(file.path())
    }

    #[test]
    fn one_byte_anywhere_it_is_looked_for_is_seen() {
        let size = 64 * MIB;
        assert_eq!(looked_at(&[], size).unwrap(), None);
        for offset in [0, 1023, HEAD - 1, size - 1, size - TAIL, places(size)[33].0 + 5] {
            assert_eq!(looked_at(&[(offset, 1)], size).unwrap(), Some(offset));
        }
    }

    #[test]
    fn a_device_without_a_size_is_an_error_and_not_blank() {
        assert_eq!(looked_at(&[], 0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    async fn contents(blkid: i32, bytes: Option<&[u8]>) -> Result<Contents, HostError> {
        let directory = tempfile::tempdir().unwrap();
        if let Some(bytes) = bytes {
            fs::write(directory.path().join("dm-0"), bytes).unwrap();
        }
        let argv = format!("blkid -p -o export {}/dm-0", directory.path().display());
        let exec = ScriptedExecutor::new(&[(&argv, blkid, "")]);
        let probe = Probe {
            exec: &exec,
            dev: &directory.path().to_owned(),
            blocking: &Blocking::default(),
        };
        probe.contents(&DeviceName::new("dm-0").unwrap()).await
    }

    #[tokio::test]
    async fn blkid_saying_nothing_is_not_enough_to_be_blank() {
        assert_eq!(contents(2, Some(&[0; 8192])).await.unwrap(), Contents::Blank);
        let mut data = [0; 8192];
        data[5000] = 7;
        assert_eq!(contents(2, Some(&data)).await.unwrap(), Contents::Data { offset: 5000 });
        assert_eq!(contents(2, None).await.unwrap_err().reason(), "HostIoFailed");
        assert_eq!(contents(2, Some(&[])).await.unwrap_err().reason(), "EmptyDevice");
    }

    #[tokio::test]
    async fn blkid_failing_is_an_error_and_several_signatures_are_a_finding() {
        assert_eq!(contents(4, Some(&[0; 8192])).await.unwrap_err().reason(), "CommandFailed");
        let several = contents(8, Some(&[0; 8192])).await.unwrap();
        assert_eq!(several, Contents::Signature { name: "several signatures".to_owned() });
    }
}
