//! Who holds a device or a file system: mounts, and processes by their open files.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use serde::Serialize;

use crate::model::DeviceNumber;

use super::{HostError, blocking, mountinfo};

/// Most names that an error lists.
const MOST: usize = 8;
/// A walk ends by itself after this, where some names are as good as all; it looks at every open file of
/// every process.
const WALK: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(4);
/// Where none may be missed.
const WHOLE_WALK: Duration = Duration::from_secs(20);
const WHOLE_LIMIT: Duration = Duration::from_secs(25);

/// A process that uses a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its number on the host.
    pub pid: u32,
    /// Its program's name.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// Who holds a device, beside its mounts on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Users {
    /// Processes that have it open, or a file on it.
    pub processes: Vec<Process>,
    /// Mounts of it in containers that are none of the host's.
    pub containers: Vec<String>,
}

const USERS_OF_DISKS: &str = "looking who uses disks";

/// What a walk found.
struct Holders {
    /// For each device its processes, at most [`MOST`].
    of_each: Vec<Vec<Process>>,
    /// It got to its end.
    are_all: bool,
}

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
            let processes = openers.processes(&[device], true, WALK).of_each.remove(0);
            by.extend(processes.iter().map(Process::to_string));
            Ok(by)
        };
        let found = blocking::limited(format!("looking who holds {device}"), LIMIT, walk).await;
        found.unwrap_or_default()
    }

    /// For each disk the processes that use it itself, found in one walk; those that let go by
    /// themselves left out. An error where the walk did not get to its end: a user may have been missed.
    pub(crate) async fn users_of_disks(
        &self,
        disks: Vec<DeviceNumber>,
    ) -> Result<Vec<Vec<String>>, HostError> {
        let openers = self.clone();
        let walk = move || openers.users_of_disks_within(&disks, WHOLE_WALK);
        blocking::limited(USERS_OF_DISKS.to_owned(), WHOLE_LIMIT, walk).await
    }

    fn users_of_disks_within(
        &self,
        disks: &[DeviceNumber],
        limit: Duration,
    ) -> Result<Vec<Vec<String>>, HostError> {
        let users = self.processes(disks, false, limit);
        if !users.are_all {
            let doing = USERS_OF_DISKS.to_owned();
            return Err(HostError::TimedOut { doing, seconds: limit.as_secs() });
        }
        let words = |by: Vec<Process>| {
            by.iter().filter(|user| !self.lets_go(user)).map(Process::to_string).collect()
        };
        Ok(users.of_each.into_iter().map(words).collect())
    }

    /// For each device who holds it, found in one walk; those that let go by themselves left out.
    pub(crate) async fn users(&self, devices: Vec<DeviceNumber>) -> Result<Vec<Users>, HostError> {
        let openers = self.clone();
        let walk = move || {
            let containers = openers.mounted_elsewhere(&devices).into_iter();
            let processes = openers.processes(&devices, true, WALK).of_each.into_iter();
            let users = processes.zip(containers).map(|(mut processes, containers)| {
                processes.retain(|user| !openers.lets_go(user));
                Users { processes, containers }
            });
            Ok(users.collect())
        };
        blocking::limited("looking who holds devices".to_owned(), LIMIT, walk).await
    }

    /// The mounts alone.
    pub(crate) async fn mounts(&self, device: DeviceNumber) -> Vec<String> {
        let openers = self.clone();
        let doing = format!("looking where {device} is mounted");
        let found = blocking::limited(doing, LIMIT, move || Ok(openers.mounted(device))).await;
        found.unwrap_or_default()
    }

    /// Containers that have the device mounted, by a process of each: a mount that isn't shared with the
    /// host's outlives it. Best effort.
    pub(crate) async fn other_namespaces(&self, device: DeviceNumber) -> Vec<String> {
        let openers = self.clone();
        let doing = format!("looking which containers have {device} mounted");
        let walk = move || Ok(openers.mounted_elsewhere(&[device]).remove(0));
        blocking::limited(doing, LIMIT, walk).await.unwrap_or_default()
    }

    fn mounted_elsewhere(&self, devices: &[DeviceNumber]) -> Vec<Vec<String>> {
        let namespace = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
        let host = self.mountinfo.parent().and_then(namespace);
        let own = namespace(Path::new("/proc/self"));
        let mut seen: BTreeSet<PathBuf> = host.into_iter().chain(own).collect();
        let began = Instant::now();
        let mut found = vec![Vec::new(); devices.len()];
        for entry in fs::read_dir(&self.proc).into_iter().flatten().filter_map(Result::ok) {
            if began.elapsed() > WALK || found.iter().all(|by| by.len() == MOST) {
                break;
            }
            let (process, name) = (entry.path(), entry.file_name());
            // One without is no process, or none that may be seen.
            if !namespace(&process).is_some_and(|namespace| seen.insert(namespace)) {
                continue;
            }
            let mounts = mountinfo::mounts(&process.join("mountinfo")).unwrap_or_default();
            for (device, by) in devices.iter().zip(&mut found) {
                let mount = mounts.iter().find(|mount| mount.number == *device);
                if let Some(mount) = mount.filter(|_| by.len() < MOST) {
                    let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
                    by.push(format!(
                        "the mount at {} of the container of process {} ({})",
                        mount.target.display(),
                        name.display(),
                        comm.trim_end()
                    ));
                }
            }
        }
        found
    }

    fn mounted(&self, device: DeviceNumber) -> Vec<String> {
        let mounts = mountinfo::mounts(&self.mountinfo).unwrap_or_default();
        let of_device = mounts.into_iter().filter(|mount| mount.number == device);
        of_device.map(|mount| format!("the mount at {}", mount.target.display())).collect()
    }

    /// For each device the processes that use it; `mapped`: also those that only map a file on it.
    fn processes(&self, devices: &[DeviceNumber], mapped: bool, limit: Duration) -> Holders {
        let began = Instant::now();
        let mut found = vec![Vec::new(); devices.len()];
        for entry in fs::read_dir(&self.proc).into_iter().flatten().filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            if began.elapsed() > limit {
                return Holders { of_each: found, are_all: false };
            }
            if pid == std::process::id() {
                continue;
            }
            let mut used = open_devices(&entry.path());
            if mapped {
                used.extend(mapped_devices(&entry.path()));
            }
            for (device, by) in devices.iter().zip(&mut found) {
                if used.contains(device) && by.len() < MOST {
                    let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                    by.push(Process { pid, name: name.trim_end().to_owned() });
                }
            }
        }
        Holders { of_each: found, are_all: true }
    }

    /// multipathd keeps every disk open for its checks; udev, and whatever its rules run, looks at one
    /// whenever it changes. They let go by themselves, and a process that has ended did.
    fn lets_go(&self, process: &Process) -> bool {
        let mut pid = process.pid;
        while pid > 1 {
            let Some((name, parent)) = name_and_parent(&self.proc.join(pid.to_string())) else {
                return true;
            };
            if ["multipathd", "systemd-udevd", "udevd", "(udev-worker)"].contains(&name.as_str()) {
                return true;
            }
            pid = parent;
        }
        false
    }
}

/// The devices that a process is on or has open: of its working and root directory and of its open
/// files, both what they lie on and what they are.
fn open_devices(process: &Path) -> BTreeSet<DeviceNumber> {
    let links = ["cwd", "root"].map(|link| process.join(link));
    let files = fs::read_dir(process.join("fd")).into_iter().flatten();
    let files = files.filter_map(Result::ok).map(|entry| entry.path());
    links.into_iter().chain(files).filter_map(|link| devices_of(&link)).flatten().collect()
}

/// What a file lies on, and what it is. Without asking a server that may be gone for it (`statx(2)`: a
/// network's file system answers from what it has).
fn devices_of(file: &Path) -> Option<[DeviceNumber; 2]> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let seen = statx(CWD, file, flags, StatxFlags::TYPE).ok()?;
    Some([
        DeviceNumber { major: seen.stx_dev_major, minor: seen.stx_dev_minor },
        DeviceNumber { major: seen.stx_rdev_major, minor: seen.stx_rdev_minor },
    ])
}

/// A mapped file keeps its file system busy even when it is closed:
/// `7f… r-xp 00000000 fd:00 12 /lib/x`, the device in hexadecimal.
fn mapped_devices(process: &Path) -> BTreeSet<DeviceNumber> {
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    let devices = maps.lines().filter_map(|line| line.split_ascii_whitespace().nth(3));
    let number = |text: &str| {
        let (major, minor) = text.split_once(':')?;
        let hex = |part| u32::from_str_radix(part, 16).ok();
        Some(DeviceNumber { major: hex(major)?, minor: hex(minor)? })
    };
    devices.filter_map(number).collect()
}

/// What a process is called, and the process that started it: `Name:` and `PPid:` of `proc_pid_status(5)`.
fn name_and_parent(process: &Path) -> Option<(String, u32)> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((field("Name:")?.to_owned(), field("PPid:")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_mount_of_another_namespace_is_told_once_and_none_of_the_hosts_own() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, namespace, device) in
            [(1, "1", "8:1"), (20, "2", "8:1"), (21, "2", "8:1"), (30, "3", "8:2")]
        {
            let process = proc.path().join(pid.to_string());
            fs::create_dir_all(process.join("ns")).unwrap();
            std::os::unix::fs::symlink(format!("mnt:[{namespace}]"), process.join("ns/mnt"))
                .unwrap();
            let line = format!("9 1 {device} / /data rw - ext4 /dev/sda rw\n");
            fs::write(process.join("mountinfo"), line).unwrap();
            fs::write(process.join("comm"), "db\n").unwrap();
        }
        let openers =
            Openers { proc: proc.path().to_owned(), mountinfo: proc.path().join("1/mountinfo") };
        let by = openers.mounted_elsewhere(&[DeviceNumber { major: 8, minor: 1 }]).remove(0);
        assert_eq!(by.len(), 1, "{by:?}");
        assert!(by[0].starts_with("the mount at /data of the container of process 2"), "{by:?}");
    }

    #[test]
    fn udev_and_what_it_runs_and_multipathd_let_go_by_themselves_and_nobody_else() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, name, parent) in [
            (1, "systemd", 0),
            (2, "systemd-udevd", 1),
            (3, "(udev-worker)", 2),
            // Between fork and exec; then the program of a rule, and a program of its own.
            (4, "(spawn)", 3),
            (5, "sh", 3),
            (6, "scsi_id", 5),
            (7, "multipathd", 1),
            (8, "bash", 1),
            (9, "dd", 8),
        ] {
            let process = proc.path().join(pid.to_string());
            fs::create_dir_all(&process).unwrap();
            let status = format!("Name:\t{name}\nUmask:\t0022\nPid:\t{pid}\nPPid:\t{parent}\n");
            fs::write(process.join("status"), status).unwrap();
        }
        let openers = Openers { proc: proc.path().to_owned(), mountinfo: PathBuf::new() };
        let lets_go = |pid: u32| openers.lets_go(&Process { pid, name: String::new() });
        assert_eq!((1..=9).filter(|pid| lets_go(*pid)).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7]);
        assert!(lets_go(10), "it has ended");
    }

    #[test]
    fn a_walk_that_did_not_get_to_its_end_says_of_no_disk_that_nobody_uses_it() {
        let proc = tempfile::tempdir().unwrap();
        let process = proc.path().join("4");
        fs::create_dir_all(process.join("fd")).unwrap();
        std::os::unix::fs::symlink("/dev/null", process.join("fd/3")).unwrap();
        fs::write(process.join("comm"), "dd\n").unwrap();
        fs::write(process.join("status"), "Name:\tdd\nPPid:\t1\n").unwrap();
        fs::create_dir_all(proc.path().join("1")).unwrap();
        fs::write(proc.path().join("1/status"), "Name:\tinit\nPPid:\t0\n").unwrap();
        let openers = Openers { proc: proc.path().to_owned(), mountinfo: PathBuf::new() };
        // `null(4)`
        let disks = [DeviceNumber { major: 1, minor: 3 }, DeviceNumber { major: 1, minor: 99 }];
        let seen = openers.users_of_disks_within(&disks, WHOLE_WALK).unwrap();
        assert_eq!(seen, [vec!["process 4 (dd)".to_owned()], vec![]]);
        let cut = openers.users_of_disks_within(&disks, Duration::ZERO);
        assert!(matches!(cut, Err(HostError::TimedOut { .. })), "{cut:?}");
    }

    #[test]
    fn an_open_file_and_a_mapped_one_make_a_process_a_holder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let _open = File::open(file.path()).unwrap();
        let [device, _] = devices_of(file.path()).unwrap();
        assert!(open_devices(Path::new("/proc/self")).contains(&device));
        let [program, _] = devices_of(Path::new("/proc/self/exe")).unwrap();
        let mapped = mapped_devices(Path::new("/proc/self"));
        assert!(mapped.contains(&program) || program.major == 0);
        let none = DeviceNumber { major: 4095, minor: 77 };
        assert!(!open_devices(Path::new("/proc/self")).contains(&none));
        assert!(!mapped.contains(&none));
    }
}
