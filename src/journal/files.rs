use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg, OFlag},
    sys::statvfs::fstatvfs,
};

use crate::model::VolumeId;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of a volume; it has two files, and loses the older one's lines where the newer one is full.
    pub bytes_of_a_file: u64,
    /// How many volumes; the one that was written to the longest ago goes first.
    pub volumes: usize,
    /// What is left free on the disk: the ledger needs it more.
    pub spare_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_of_a_file: 256 << 10, volumes: 128, spare_bytes: 16 << 20 }
    }
}

/// A volume's lines on the disk, in two files. Any number of processes may write and read at once.
#[derive(Debug, Clone)]
pub struct Files {
    directory: PathBuf,
    limits: Limits,
}

impl Files {
    /// The journal below a state directory. The ledger makes its directory and keeps others out.
    pub fn below(state_dir: &Path, limits: Limits) -> Self {
        Self { directory: state_dir.join("journal"), limits }
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn newer(&self, volume: VolumeId) -> PathBuf {
        self.directory.join(format!("{volume}.jsonl"))
    }

    fn older(&self, volume: VolumeId) -> PathBuf {
        self.directory.join(format!("{volume}.older.jsonl"))
    }

    /// Adds whole lines; `sync` waits until they outlast a power cut. Blocks, as long as another process writes.
    ///
    /// # Errors
    /// None of them was added, or they are there and may not outlast a power cut.
    pub fn append(&self, volume: VolumeId, lines: &[u8], sync: bool) -> io::Result<()> {
        let alone = self.lock()?;
        let free = fstatvfs(&*alone)?;
        if free.blocks_available().saturating_mul(free.fragment_size()) < self.limits.spare_bytes {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "what is left of the disk is the ledger's",
            ));
        }
        let path = self.newer(volume);
        let mut file = open(&path)?;
        let mut length = file.metadata()?.len();
        let added = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if length > 0 && length.saturating_add(added) > self.limits.bytes_of_a_file {
            fs::rename(&path, self.older(volume))?;
            (file, length) = (open(&path)?, 0);
        }
        if length == 0 {
            self.make_room()?;
        }
        // A crash may have left half a line.
        let mut last = *b"\n";
        if length > 0 {
            file.read_exact_at(&mut last, length - 1)?;
        }
        let separator: &[u8] = if last == *b"\n" { b"" } else { b"\n" };
        if let Err(error) = file.write_all(separator).and_then(|()| file.write_all(lines)) {
            file.set_len(length)?;
            return Err(error);
        }
        if sync { file.sync_data() } else { Ok(()) }
    }

    /// What was added, the oldest first. Half a line may stand at the end.
    ///
    /// # Errors
    /// It is there and can't be read.
    pub fn read(&self, volume: VolumeId) -> io::Result<Vec<u8>> {
        // Whoever writes may put the newer file in the older one's place in between: then that is read twice,
        // which its number tells.
        loop {
            let newer = opened(&self.newer(volume))?;
            let older = opened(&self.older(volume))?;
            let same = match (&newer, &older) {
                (Some(newer), Some(older)) => newer.metadata()?.ino() == older.metadata()?.ino(),
                _ => false,
            };
            if same {
                continue;
            }
            let mut text = Vec::new();
            for mut file in [older, newer].into_iter().flatten() {
                file.read_to_end(&mut text)?;
                if text.last().is_some_and(|last| *last != b'\n') {
                    text.push(b'\n');
                }
            }
            return Ok(text);
        }
    }

    /// The volumes of which there are lines.
    ///
    /// # Errors
    /// The directory can't be read. One that isn't there is empty.
    pub fn volumes(&self) -> io::Result<Vec<VolumeId>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut volumes = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let volume = name.to_str().and_then(|name| name.strip_suffix(".jsonl"));
            let volume = volume.map(|name| name.strip_suffix(".older").unwrap_or(name));
            volumes.extend(volume.and_then(|name| name.parse::<VolumeId>().ok()));
        }
        volumes.sort_unstable();
        volumes.dedup();
        Ok(volumes)
    }

    /// Forgets the volumes that nothing was written of for the longest time, where there are too many.
    fn make_room(&self) -> io::Result<()> {
        let mut volumes = Vec::new();
        for volume in self.volumes()? {
            let written = fs::metadata(self.newer(volume)).and_then(|file| file.modified());
            // Without a newer file: a process ended between the two.
            volumes.push((written.ok(), volume));
        }
        volumes.sort_unstable();
        let over = volumes.len().saturating_sub(self.limits.volumes);
        for (_, volume) in volumes.into_iter().take(over) {
            for path in [self.older(volume), self.newer(volume)] {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> io::Result<Flock<File>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(self.directory.join("lock"))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
}

fn opened(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt as _,
        thread,
        time::{Duration, SystemTime},
    };

    use super::*;

    fn volume(number: u128) -> VolumeId {
        uuid::Uuid::from_u128(number).into()
    }

    /// Files in a directory that is there, as the ledger makes it.
    fn files(limits: Limits) -> (tempfile::TempDir, Files) {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(state.path().join("journal")).unwrap();
        let files = Files::below(state.path(), Limits { spare_bytes: 0, ..limits });
        (state, files)
    }

    fn read(files: &Files, number: u128) -> Vec<String> {
        let text = String::from_utf8(files.read(volume(number)).unwrap()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_volume_never_takes_more_than_two_files_and_loses_its_oldest_lines() {
        let (_state, files) = files(Limits { bytes_of_a_file: 1000, ..Limits::default() });
        for number in 0..500 {
            files.append(volume(1), format!("{number:09}\n").as_bytes(), false).unwrap();
            let (newer, older) = (files.newer(volume(1)), files.older(volume(1)));
            for path in [newer, older].iter().filter(|path| path.exists()) {
                let file = fs::metadata(path).unwrap();
                assert!(file.len() <= 1000);
                assert_eq!(file.permissions().mode() & 0o777, 0o600);
            }
        }
        let lines: Vec<u32> = read(&files, 1).iter().map(|line| line.parse().unwrap()).collect();
        assert!(lines.len() > 100, "{} lines", lines.len());
        assert_eq!(lines, (500 - u32::try_from(lines.len()).unwrap()..500).collect::<Vec<_>>());
    }

    #[test]
    fn the_volumes_that_were_written_to_the_longest_ago_are_forgotten() {
        let (_state, files) = files(Limits { volumes: 3, bytes_of_a_file: 5, ..Limits::default() });
        for number in 1..=5 {
            for _ in 0..2 {
                files.append(volume(number), b"line\n", false).unwrap();
            }
            // The clock of some file systems has coarse steps.
            let written =
                SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(number).unwrap());
            open(&files.newer(volume(number))).unwrap().set_modified(written).unwrap();
        }
        assert_eq!(files.volumes().unwrap(), [volume(3), volume(4), volume(5)]);
        assert_eq!(fs::read_dir(files.directory()).unwrap().count(), 3 * 2 + 1);
    }

    #[test]
    fn half_a_line_that_a_crash_left_spoils_no_other() {
        let (_state, files) = files(Limits::default());
        files.append(volume(1), b"one\n", false).unwrap();
        open(&files.newer(volume(1))).unwrap().write_all(b"tor").unwrap();
        assert_eq!(read(&files, 1), ["one", "tor"]);
        files.append(volume(1), b"two\n", true).unwrap();
        assert_eq!(read(&files, 1), ["one", "tor", "two"]);
    }

    #[test]
    fn what_is_left_of_a_disk_is_left_to_the_ledger() {
        let (state, files) = files(Limits::default());
        files.append(volume(1), b"one\n", false).unwrap();
        let full = Limits { spare_bytes: u64::MAX, ..Limits::default() };
        let error = Files::below(state.path(), full).append(volume(1), b"two\n", false);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(read(&files, 1), ["one"]);
        Files::below(state.path(), full).append(volume(2), b"two\n", false).unwrap_err();
        assert_eq!(files.volumes().unwrap(), [volume(1)]);
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_not_followed() {
        let (state, files) = files(Limits::default());
        let elsewhere = state.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, files.newer(volume(1))).unwrap();
        assert!(files.append(volume(1), b"one\n", false).is_err());
        assert!(!elsewhere.exists());
    }

    #[test]
    fn many_writers_and_a_reader_at_once_lose_and_mix_nothing() {
        let (_state, files) = files(Limits { bytes_of_a_file: 40_000, ..Limits::default() });
        let lines = 400;
        thread::scope(|scope| {
            for writer in 0..4 {
                let files = files.clone();
                scope.spawn(move || {
                    for number in 0..lines {
                        let line = format!("{writer} {number:04} {}\n", "x".repeat(30));
                        files.append(volume(1), line.as_bytes(), false).unwrap();
                    }
                });
            }
            for _ in 0..200 {
                let seen = read(&files, 1);
                for writer in 0..4 {
                    let own =
                        seen.iter().filter_map(|line| line.strip_prefix(&format!("{writer} ")));
                    let numbers: Vec<u32> = own.filter_map(|l| l[..4].parse().ok()).collect();
                    assert!(numbers.is_sorted(), "{numbers:?}");
                }
            }
        });
        let all = read(&files, 1);
        assert_eq!(all.len(), 4 * lines);
        assert!(all.iter().all(|line| line.len() == 37), "mixed");
    }

    #[test]
    fn of_a_directory_that_is_not_there_nothing_is_known_and_none_is_made() {
        let state = tempfile::tempdir().unwrap();
        let files = Files::below(state.path(), Limits::default());
        assert!(files.volumes().unwrap().is_empty());
        assert!(files.append(volume(1), b"one\n", false).is_err());
        assert!(!files.directory().exists());
    }
}
