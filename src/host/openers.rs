//! Who holds a device or a file system: mounts, and processes by their open files.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::stat::{major, minor};

use crate::model::DeviceNumber;

use super::{blocking, mountinfo};

/// Most names that an error lists.
const MOST: usize = 8;
/// The walk ends by itself after this; it looks at every open file of every process.
const WALK: Duration = Duration::from_secs(2);
/// A `stat` may hang on a file system whose device is gone.
const LIMIT: Duration = Duration::from_secs(4);

/// Finds out who holds something.
#[derive(Debug, Clone)]
pub(crate) struct Openers {
    pub(crate) proc: PathBuf,
    pub(crate) mountinfo: PathBuf,
}

impl Openers {
    /// Mounts of a device and processes that use it, or a file on it: bounded, and best effort.
    pub(crate) async fn of(&self, device: DeviceNumber) -> Vec<String> {
        let openers = self.clone();
        let walk = move || {
            let mut by = openers.mounted(device);
            by.extend(openers.processes(device));
            Ok(by)
        };
        let found = blocking::limited(format!("looking who holds {device}"), LIMIT, walk).await;
        found.unwrap_or_default()
    }

    /// The mounts alone.
    pub(crate) async fn mounts(&self, device: DeviceNumber) -> Vec<String> {
        let openers = self.clone();
        let doing = format!("looking where {device} is mounted");
        let found = blocking::limited(doing, LIMIT, move || Ok(openers.mounted(device))).await;
        found.unwrap_or_default()
    }

    fn mounted(&self, device: DeviceNumber) -> Vec<String> {
        let mounts = mountinfo::mounts(&self.mountinfo).unwrap_or_default();
        let of_device = mounts.into_iter().filter(|mount| mount.number == device);
        of_device.map(|mount| format!("the mount at {}", mount.target.display())).collect()
    }

    fn processes(&self, device: DeviceNumber) -> Vec<String> {
        let began = Instant::now();
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.proc).into_iter().flatten().filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            if found.len() == MOST || began.elapsed() > WALK {
                break;
            }
            if pid != std::process::id() && uses(&entry.path(), device) {
                let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                found.push(format!("process {pid} ({})", name.trim_end()));
            }
        }
        found
    }
}

/// Whether a process has its working or root directory, an open file, or a mapped file there.
fn uses(process: &Path, device: DeviceNumber) -> bool {
    let links = ["cwd", "root"].map(|link| process.join(link));
    let files = fs::read_dir(process.join("fd")).into_iter().flatten();
    let files = files.filter_map(Result::ok).map(|entry| entry.path());
    links.into_iter().chain(files).any(|link| is_on(&link, device)) || maps(process, device)
}

/// Whether what a link leads to lies on the device, or is the device.
fn is_on(link: &Path, device: DeviceNumber) -> bool {
    let Ok(meta) = fs::metadata(link) else { return false };
    let numbers = [meta.dev(), meta.rdev()];
    numbers
        .iter()
        .any(|n| major(*n) == u64::from(device.major) && minor(*n) == u64::from(device.minor))
}

/// A mapped file keeps its file system busy even when it is closed:
/// `7f… r-xp 00000000 fd:00 12 /lib/x`, the device in hexadecimal.
fn maps(process: &Path, device: DeviceNumber) -> bool {
    let wanted = format!("{:02x}:{:02x}", device.major, device.minor);
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    maps.lines().any(|line| line.split_ascii_whitespace().nth(3) == Some(wanted.as_str()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn an_open_file_and_a_mapped_one_make_a_process_a_holder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let _open = File::open(file.path()).unwrap();
        let device = fs::metadata(file.path()).unwrap().dev();
        let number = |device| DeviceNumber {
            major: u32::try_from(major(device)).unwrap(),
            minor: u32::try_from(minor(device)).unwrap(),
        };
        assert!(uses(Path::new("/proc/self"), number(device)));
        let program = fs::metadata("/proc/self/exe").unwrap().dev();
        assert!(maps(Path::new("/proc/self"), number(program)) || major(program) == 0);
        assert!(!uses(Path::new("/proc/self"), DeviceNumber { major: 4095, minor: 77 }));
    }
}
