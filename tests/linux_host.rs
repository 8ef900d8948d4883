//! The host layer on a real kernel, with the real iscsid, multipathd, udevd and a LIO target.
//!
//! Run as root on a node that may be thrown away (the lab's, for example), one test at a time:
//! `linux_host --ignored --test-threads=1`. The target is the node's own LIO, on two addresses of the
//! loopback interface.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use attachd::{
    host::{AddressSource, Host, HostOp, LinuxConfig, LinuxHost, MountTarget, exec::RealExecutor},
    model::{
        Chap, Contents, DeviceId, DeviceName, Filesystem, Hctl, HostState, Lun, MultipathMap,
        ScsiDevice, Secret, Target,
    },
};

const LUN: Lun = Lun(7);
/// mkfs.xfs wants 300 MiB.
const SIZE: u64 = 320 << 20;
const PORTALS: [&str; 2] = ["127.0.1.1:3260", "127.0.2.1:3260"];
const PASSWORD: &str = "a-secret-of-16-b";
const TARGETS: &str = "/sys/kernel/config/target";

/// A LIO target with one file-backed LUN behind two portals.
struct Lio {
    iqn: String,
    name: String,
    chap: Option<Chap>,
    /// The loop device between the image and the target, where the size is to change: the target keeps
    /// that of a plain file.
    device: Option<String>,
}

impl Lio {
    fn with_chap(name: &str) -> Self {
        Self::new(name, Some(chap(PASSWORD)))
    }

    fn new(name: &str, chap: Option<Chap>) -> Self {
        Self::of_size(name, chap, SIZE, false)
    }

    fn of_size(name: &str, chap: Option<Chap>, size: u64, grows: bool) -> Self {
        for module in ["target_core_mod", "target_core_file", "iscsi_target_mod", "loop"] {
            #[expect(clippy::disallowed_methods, reason = "the test's own target")]
            let loaded = std::process::Command::new("modprobe").arg(module).status().unwrap();
            assert!(loaded.success(), "this kernel has no {module}");
        }
        let iqn = format!("iqn.2026-11.dev.attachd.test:{name}");
        let mut lio = Self { iqn, name: name.to_owned(), chap, device: None };
        let (image, disk) = (lio.image(), lio.disk());
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        fs::create_dir_all(&disk).unwrap();
        let mut backing = image.display().to_string();
        if grows {
            backing = losetup(&["--find", "--show", &backing]);
            lio.device = Some(backing.clone());
        }
        let control = format!("fd_dev_name={backing},fd_dev_size={size}");
        write(&disk.join("control"), &control);
        write(&disk.join("wwn/vpd_unit_serial"), &format!("attachd-{name}"));
        write(&disk.join("enable"), "1");
        let group = lio.group();
        fs::create_dir_all(group.parent().unwrap()).unwrap();
        fs::create_dir(&group).unwrap();
        let lun = group.join(format!("lun/lun_{LUN}"));
        fs::create_dir(&lun).unwrap();
        symlink(&disk, lun.join("disk")).unwrap();
        for (attribute, value) in [
            ("authentication", if lio.chap.is_some() { "1" } else { "0" }),
            ("generate_node_acls", "1"),
            ("demo_mode_write_protect", "0"),
            ("cache_dynamic_acls", "1"),
        ] {
            write(&group.join("attrib").join(attribute), value);
        }
        if lio.chap.is_some() {
            write(&group.join("auth/userid"), "user");
            write(&group.join("auth/password"), PASSWORD);
        }
        for portal in PORTALS {
            fs::create_dir(group.join("np").join(portal)).unwrap();
        }
        write(&group.join("enable"), "1");
        lio
    }

    /// What an extension of a volume is to its target.
    fn extend(&self, size: u64) {
        fs::File::options().write(true).open(self.image()).unwrap().set_len(size).unwrap();
        losetup(&["--set-capacity", self.device.as_ref().unwrap()]);
    }

    fn image(&self) -> PathBuf {
        std::env::temp_dir().join(format!("attachd-{}.img", self.name))
    }

    fn disk(&self) -> PathBuf {
        Path::new(TARGETS).join("core/fileio_7").join(&self.name)
    }

    fn group(&self) -> PathBuf {
        Path::new(TARGETS).join("iscsi").join(&self.iqn).join("tpgt_1")
    }

    fn targets(&self) -> Vec<Target> {
        let target = |portal: &&str| Target {
            portal: portal.parse().unwrap(),
            iqn: self.iqn.parse().unwrap(),
        };
        PORTALS.iter().map(target).collect()
    }
}

impl Drop for Lio {
    fn drop(&mut self) {
        let group = self.group();
        let _ = fs::write(group.join("enable"), "0");
        for portal in PORTALS {
            let _ = fs::remove_dir(group.join("np").join(portal));
        }
        let lun = group.join(format!("lun/lun_{LUN}"));
        let _ = fs::remove_file(lun.join("disk"));
        for directory in [lun, group.clone(), group.parent().unwrap().to_owned(), self.disk()] {
            let _ = fs::remove_dir(directory);
        }
        if let Some(device) = &self.device {
            losetup(&["--detach", device]);
        }
        let _ = fs::remove_file(self.image());
    }
}

fn losetup(arguments: &[&str]) -> String {
    #[expect(clippy::disallowed_methods, reason = "the test's own target")]
    let done = std::process::Command::new("losetup").args(arguments).output().unwrap();
    assert!(done.status.success(), "losetup {arguments:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn host() -> LinuxHost {
    let address = AddressSource::Network("127.0.0.0/8".parse().unwrap());
    let config = LinuxConfig::here(address, vec![std::env::temp_dir()]);
    LinuxHost::new(config, RealExecutor::here())
}

fn chap(password: &str) -> Chap {
    Chap { username: "user".to_owned(), password: Secret::new(password.to_owned()) }
}

/// Applies, and fails the test at any failure.
async fn apply(host: &LinuxHost, op: HostOp) -> bool {
    let applied = host.apply(&op).await.unwrap_or_else(|error| panic!("{op:?}: {error:?}"));
    assert!(applied.failures.is_empty(), "{op:?}: {:?}", applied.failures);
    applied.changed
}

/// Waits by events, as the engine does.
async fn until<T>(host: &LinuxHost, what: &str, found: impl Fn(&HostState) -> Option<T>) -> T {
    let mut events = host.events();
    for _ in 0..300 {
        events.borrow_and_update();
        if let Some(found) = found(&host.observe().await.unwrap()) {
            return found;
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), events.changed()).await;
    }
    panic!("never: {what}");
}

fn disks(state: &HostState, targets: &[Target]) -> Vec<ScsiDevice> {
    let sessions = targets.iter().filter_map(|target| state.session(target));
    sessions.flat_map(|session| state.devices_of(session)).cloned().collect()
}

/// Records, logins, scan, disks.
async fn connect(host: &LinuxHost, lio: &Lio) -> Vec<ScsiDevice> {
    let targets = &lio.targets();
    let records = HostOp::WriteNodeRecords { targets: targets.clone(), chap: lio.chap.clone() };
    assert!(apply(host, records.clone()).await);
    assert!(!apply(host, records).await);
    let login = HostOp::Login { targets: targets.clone() };
    assert!(apply(host, login.clone()).await);
    assert!(!apply(host, login).await);
    let state = host.observe().await.unwrap();
    assert!(disks(&state, targets).is_empty(), "scanned by itself");
    let luns = targets.iter().map(|target| (state.session(target).unwrap().host, LUN)).collect();
    assert!(apply(host, HostOp::ScanLuns { luns }).await);
    until(host, "both disks", |state| Some(disks(state, targets)).filter(|disks| disks.len() == 2))
        .await
}

async fn map(host: &LinuxHost, disks: &[ScsiDevice]) -> MultipathMap {
    let wwid = disks[0].wwid.clone().unwrap();
    let devices: Vec<DeviceName> = disks.iter().map(|disk| disk.name.clone()).collect();
    let mut events = host.events();
    for _ in 0..300 {
        events.borrow_and_update();
        apply(host, HostOp::AddMap { wwid: wwid.clone(), devices: devices.clone() }).await;
        let state = host.observe().await.unwrap();
        if let Some(map) = state.map_of(&disks[0]).filter(|map| map.members.len() == 2) {
            assert_eq!(map.wwid, wwid, "sysfs and multipathd disagree");
            return map.clone();
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), events.changed()).await;
    }
    panic!("no map");
}

fn id_of_map(map: &MultipathMap) -> DeviceId {
    DeviceId { name: map.device.clone(), number: map.number, diskseq: map.diskseq }
}

fn id_of(disk: &ScsiDevice) -> DeviceId {
    DeviceId { name: disk.name.clone(), number: disk.number, diskseq: disk.diskseq }
}

async fn disconnect(host: &LinuxHost, targets: &[Target], disks: &[ScsiDevice]) {
    let devices: Vec<(Hctl, DeviceName)> = disks.iter().map(|d| (d.hctl, d.name.clone())).collect();
    assert!(apply(host, HostOp::DeleteDevices { devices: devices.clone() }).await);
    assert!(!apply(host, HostOp::DeleteDevices { devices }).await);
    assert!(apply(host, HostOp::Logout { targets: targets.to_vec() }).await);
    assert!(!apply(host, HostOp::Logout { targets: targets.to_vec() }).await);
    let state = host.observe().await.unwrap();
    assert!(targets.iter().all(|target| state.session(target).is_none()));
    for root in ["/etc/iscsi/nodes", "/var/lib/iscsi/nodes"] {
        assert!(!Path::new(root).join(targets[0].iqn.as_str()).exists(), "a record was left");
    }
}

#[tokio::test]
#[ignore = "needs root, iscsid, multipathd and LIO on a node that may be thrown away"]
async fn a_volume_is_attached_formatted_mounted_and_detached_without_a_trace() {
    for (filesystem, chap) in [(Filesystem::Ext4, Some(chap(PASSWORD))), (Filesystem::Xfs, None)] {
        let lio = Lio::new(filesystem.name(), chap);
        let (host, targets) = (host(), lio.targets());
        let disks = connect(&host, &lio).await;
        let map = map(&host, &disks).await;
        let device = id_of_map(&map);
        assert_eq!(host.contents(&device).await.unwrap(), Contents::Blank);
        let format = HostOp::Format { device: device.clone(), filesystem, resume: false };
        assert!(apply(&host, format.clone()).await);
        assert_eq!(host.apply(&format).await.unwrap_err().reason(), "NotBlank");
        apply(&host, HostOp::CheckFilesystem { device: device.clone(), filesystem }).await;

        let target = std::env::temp_dir().join("attachd-test/volume with blanks");
        let mount = HostOp::Mount {
            device,
            filesystem,
            target: target.clone(),
            read_only: false,
            options: vec!["noatime,nodiratime".to_owned(), "_netdev".to_owned()],
        };
        let read_only_mount = match mount.clone() {
            HostOp::Mount { device, filesystem, target, options, .. } => {
                HostOp::Mount { device, filesystem, target, read_only: true, options }
            }
            other => other,
        };
        assert!(apply(&host, mount.clone()).await);
        assert!(!apply(&host, mount).await);
        let mounted = host.observe().await.unwrap().mount_at(&target).cloned().unwrap();
        assert_eq!((mounted.number, mounted.read_only), (map.number, false));
        fs::write(target.join("file"), "data").unwrap();

        let remove = HostOp::RemoveMap { name: map.name.clone(), wwid: map.wwid.clone() };
        let unmount = HostOp::Unmount { target: target.clone() };
        assert_eq!(host.apply(&remove).await.unwrap_err().reason(), "Busy");
        let held = host
            .apply(&HostOp::DeleteDevices { devices: vec![(disks[0].hctl, disks[0].name.clone())] })
            .await
            .unwrap();
        assert_eq!(held.failures[0].1.reason(), "Busy");
        let (device, filesystem) = (id_of_map(&map), Filesystem::Ext4);
        for op in [
            HostOp::Format { device: device.clone(), filesystem, resume: true },
            HostOp::CheckFilesystem { device, filesystem },
        ] {
            assert_eq!(host.apply(&op).await.unwrap_err().reason(), "Busy");
        }
        assert!(apply(&host, unmount.clone()).await);
        assert!(!apply(&host, unmount.clone()).await);
        assert!(apply(&host, HostOp::RemoveDirectory { target: target.clone() }).await);
        assert_eq!(host.mount_target(&target).await.unwrap(), MountTarget::Absent);

        let mut devices: Vec<DeviceName> = disks.iter().map(|disk| disk.name.clone()).collect();
        devices.push(map.device.clone());
        apply(&host, HostOp::SetReadOnly { devices }).await;
        let state = host.observe().await.unwrap();
        assert!(
            state.map_of(&disks[0]).unwrap().read_only && state.devices.iter().all(|d| d.read_only)
        );
        assert!(apply(&host, read_only_mount).await);
        assert!(host.observe().await.unwrap().mount_at(&target).unwrap().read_only);
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "data");
        assert!(fs::write(target.join("other"), "data").is_err());
        assert!(apply(&host, unmount).await);

        assert!(apply(&host, remove.clone()).await);
        assert!(!apply(&host, remove).await);
        disconnect(&host, &targets, &disks).await;
    }
}

#[tokio::test]
#[ignore = "needs root, iscsid, multipathd and LIO on a node that may be thrown away"]
async fn a_busy_mount_is_refused_by_the_name_of_who_holds_it() {
    let lio = Lio::with_chap("busy");
    let (host, targets) = (host(), lio.targets());
    let disks = connect(&host, &lio).await;
    let map = map(&host, &disks).await;
    let (device, filesystem) = (id_of_map(&map), Filesystem::Ext4);
    apply(&host, HostOp::Format { device: device.clone(), filesystem, resume: false }).await;
    let target = std::env::temp_dir().join("attachd-test-busy");
    let (read_only, options) = (false, Vec::new());
    apply(&host, HostOp::Mount { device, filesystem, target: target.clone(), read_only, options })
        .await;
    #[expect(clippy::disallowed_methods, reason = "the test's own holder")]
    let mut holder =
        std::process::Command::new("sleep").arg("600").current_dir(&target).spawn().unwrap();
    let unmount = HostOp::Unmount { target };
    let busy = host.apply(&unmount).await.unwrap_err().to_string();
    assert!(busy.contains(&format!("process {} (sleep)", holder.id())), "{busy}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(apply(&host, unmount).await);
    assert!(apply(&host, HostOp::RemoveMap { name: map.name, wwid: map.wwid }).await);
    disconnect(&host, &targets, &disks).await;
}

#[tokio::test]
#[ignore = "needs root, iscsid, multipathd and LIO on a node that may be thrown away"]
async fn a_mount_that_does_not_reach_the_host_is_undone() {
    let lio = Lio::with_chap("propagation");
    let (host, targets) = (host(), lio.targets());
    let disks = connect(&host, &lio).await;
    let map = map(&host, &disks).await;
    let (device, filesystem) = (id_of_map(&map), Filesystem::Ext4);
    apply(&host, HostOp::Format { device: device.clone(), filesystem, resume: false }).await;
    let target = std::env::temp_dir().join("attachd-test-propagation");
    // A host whose list of mounts never changes.
    let frozen = tempfile::NamedTempFile::new().unwrap();
    fs::copy("/proc/self/mountinfo", frozen.path()).unwrap();
    let address = AddressSource::Network("127.0.0.0/8".parse().unwrap());
    let mut config = LinuxConfig::here(address, vec![std::env::temp_dir()]);
    config.own_mountinfo = Some(std::mem::replace(&mut config.mountinfo, frozen.path().to_owned()));
    let elsewhere = LinuxHost::new(config, RealExecutor::here());

    let (read_only, options) = (false, Vec::new());
    let mount = HostOp::Mount { device, filesystem, target: target.clone(), read_only, options };
    let error = elsewhere.apply(&mount).await.unwrap_err();
    assert_eq!(error.reason(), "MountNotPropagated", "{error}");
    assert!(error.to_string().contains("mountPropagation: Bidirectional"), "{error}");
    assert!(!error.to_string().contains("could not be undone"), "{error}");
    assert_eq!(host.observe().await.unwrap().mount_at(&target), None);
    fs::remove_dir(target).unwrap();
    assert!(apply(&host, HostOp::RemoveMap { name: map.name, wwid: map.wwid }).await);
    disconnect(&host, &targets, &disks).await;
}

#[tokio::test]
#[ignore = "needs root, iscsid, multipathd and LIO on a node that may be thrown away"]
async fn wrong_credentials_are_told_and_corrected_ones_replace_them() {
    let lio = Lio::with_chap("chap");
    let (host, targets) = (host(), lio.targets());
    let wrong = HostOp::WriteNodeRecords {
        targets: targets.clone(),
        chap: Some(chap("not-the-secret-16")),
    };
    apply(&host, wrong).await;
    let applied = host.apply(&HostOp::Login { targets: targets.clone() }).await.unwrap();
    let reasons: Vec<_> = applied.failures.iter().map(|(_, error)| error.reason()).collect();
    assert_eq!(reasons, ["AuthRejected", "AuthRejected"]);
    let disks = connect(&host, &lio).await;
    disconnect(&host, &targets, &disks).await;
}

#[tokio::test]
#[ignore = "needs root, iscsid, multipathd and LIO on a node that may be thrown away"]
async fn discovery_names_both_portals_and_leaves_no_record() {
    let lio = Lio::with_chap("discovery");
    let found = host().discover(lio.targets()[0].portal, None).await.unwrap();
    assert!(lio.targets().iter().all(|target| found.contains(target)), "{found:?}");
    for root in ["/etc/iscsi/nodes", "/var/lib/iscsi/nodes"] {
        assert!(!Path::new(root).join(&lio.iqn).exists(), "a record was left");
    }
}

#[tokio::test]
#[ignore = "needs root, iscsid, multipathd and LIO on a node that may be thrown away"]
async fn a_disk_that_came_by_the_name_of_another_is_neither_read_nor_formatted_nor_mounted() {
    let lio = Lio::with_chap("swapped");
    let (host, targets) = (host(), lio.targets());
    let before = connect(&host, &lio).await;
    let meant = id_of(&before[0]);
    assert!(meant.diskseq.is_some(), "this kernel has no diskseq");
    assert_eq!(host.contents(&meant).await.unwrap(), Contents::Blank);
    // Between the look and the effect both go, and come again by the same names.
    let devices = before.iter().map(|disk| (disk.hctl, disk.name.clone())).collect();
    assert!(apply(&host, HostOp::DeleteDevices { devices }).await);
    // A name is free once udev, too, has closed the disk that had it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let luns: Vec<(u32, Lun)> = before.iter().map(|disk| (disk.hctl.host, LUN)).collect();
    let mut after = Vec::new();
    for lun in luns {
        assert!(apply(&host, HostOp::ScanLuns { luns: vec![lun] }).await);
        let come = after.len() + 1;
        after = until(&host, "the disk", |state| {
            Some(disks(state, &targets)).filter(|disks| disks.len() == come)
        })
        .await;
    }
    let names = |disks: &[ScsiDevice]| -> std::collections::BTreeSet<DeviceName> {
        disks.iter().map(|disk| disk.name.clone()).collect()
    };
    assert_eq!(names(&before), names(&after), "the kernel gave other names");
    assert!(after.iter().all(|disk| disk.diskseq > meant.diskseq), "{after:?}");
    assert_eq!(host.contents(&meant).await.unwrap_err().reason(), "DeviceChanged");
    let (device, filesystem) = (meant.clone(), Filesystem::Ext4);
    let target = std::env::temp_dir().join("attachd-test-swapped");
    for op in [
        HostOp::Format { device: device.clone(), filesystem, resume: false },
        HostOp::CheckFilesystem { device: device.clone(), filesystem },
        HostOp::Mount {
            device,
            filesystem,
            target: target.clone(),
            read_only: false,
            options: Vec::new(),
        },
    ] {
        let error = host.apply(&op).await.unwrap_err();
        assert_eq!(error.reason(), "DeviceChanged", "{op:?}: {error}");
    }
    let now = id_of(after.iter().find(|disk| disk.name == meant.name).unwrap());
    assert_eq!(host.contents(&now).await.unwrap(), Contents::Blank);
    let _ = fs::remove_dir(target);
    disconnect(&host, &targets, &after).await;
}

#[tokio::test]
#[ignore = "needs root, iscsid, multipathd and LIO on a node that may be thrown away"]
async fn a_session_whose_node_record_was_deleted_is_logged_out() {
    let lio = Lio::with_chap("unrecorded");
    let (host, targets) = (host(), lio.targets());
    let disks = connect(&host, &lio).await;
    let devices = disks.iter().map(|disk| (disk.hctl, disk.name.clone())).collect();
    assert!(apply(&host, HostOp::DeleteDevices { devices }).await);
    for root in ["/etc/iscsi/nodes", "/var/lib/iscsi/nodes"] {
        let _ = fs::remove_dir_all(Path::new(root).join(&lio.iqn));
    }
    assert!(apply(&host, HostOp::Logout { targets: targets.clone() }).await);
    let state = host.observe().await.unwrap();
    assert!(targets.iter().all(|target| state.session(target).is_none()));
    for root in ["/etc/iscsi", "/var/lib/iscsi"] {
        for directory in ["nodes", "attachd-kept"] {
            let left = Path::new(root).join(directory).join(&lio.iqn);
            assert!(!left.exists(), "{} was left", left.display());
        }
    }
}

#[tokio::test]
#[ignore = "needs root, iscsid, multipathd and LIO on a node that may be thrown away"]
async fn a_node_record_of_somebody_else_is_as_it_was_after_the_logout() {
    let lio = Lio::with_chap("theirs");
    let (host, targets) = (host(), lio.targets());
    // What an administrator's discovery leaves, with automatic logins.
    #[expect(clippy::disallowed_methods, reason = "the test's own administrator")]
    let discovered = std::process::Command::new("iscsiadm")
        .args(["-m", "discovery", "-t", "sendtargets", "-p", PORTALS[0]])
        .output()
        .unwrap();
    assert!(discovered.status.success(), "{discovered:?}");
    let records = || {
        let mut found = Vec::new();
        let mut left = vec![Path::new("/etc/iscsi/nodes").join(&lio.iqn)];
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else if let Ok(text) = fs::read_to_string(&path) {
                found.push((path, text));
            }
        }
        found.sort();
        found
    };
    let before = records();
    assert_eq!(before.len(), 2, "{before:?}");
    let disks = connect(&host, &lio).await;
    assert_ne!(records(), before, "attachd logged in by their record");
    let devices = disks.iter().map(|disk| (disk.hctl, disk.name.clone())).collect();
    assert!(apply(&host, HostOp::DeleteDevices { devices }).await);
    assert!(apply(&host, HostOp::Logout { targets: targets.clone() }).await);
    assert_eq!(records(), before);
    fs::remove_dir_all(Path::new("/etc/iscsi/nodes").join(&lio.iqn)).unwrap();
    let _ = fs::remove_dir_all("/etc/iscsi/send_targets");
}

/// Swaps two names until told to stop.
fn swap(a: &Path, b: &Path, enough: &AtomicBool) {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    while !enough.load(Ordering::Relaxed) {
        renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE).unwrap();
    }
}

fn mounts_of(number: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|fields| fields[2] == number).map(|fields| PathBuf::from(fields[4])).collect()
}

#[tokio::test]
#[ignore = "needs root, iscsid, multipathd and LIO on a node that may be thrown away"]
async fn a_directory_that_is_swapped_for_another_or_a_link_takes_no_mount_elsewhere() {
    let lio = Lio::with_chap("race");
    let (host, targets) = (host(), lio.targets());
    let disks = connect(&host, &lio).await;
    let map = map(&host, &disks).await;
    let (device, filesystem) = (id_of_map(&map), Filesystem::Ext4);
    apply(&host, HostOp::Format { device: device.clone(), filesystem, resume: false }).await;
    let number = map.number.to_string();
    let base = std::env::temp_dir().join("attachd-test-race");
    let outside = PathBuf::from("/run/attachd-test-outside");
    fs::create_dir_all(outside.join("volume")).unwrap();
    for to_link in [true, false] {
        fs::create_dir_all(base.join("a/volume")).unwrap();
        if to_link {
            symlink(&outside, base.join("b")).unwrap();
        } else {
            fs::create_dir_all(base.join("b/volume")).unwrap();
        }
        let mount = HostOp::Mount {
            device: device.clone(),
            filesystem,
            target: base.join("a/volume"),
            read_only: false,
            options: Vec::new(),
        };
        let enough = Arc::new(AtomicBool::new(false));
        let swapping = {
            let (a, b, enough) = (base.join("a"), base.join("b"), Arc::clone(&enough));
            std::thread::spawn(move || swap(&a, &b, &enough))
        };
        let (mut mounted, mut refused, mut unmounts) = (0, 0, 0);
        for _ in 0..50 {
            match host.apply(&mount).await {
                Ok(_) => mounted += 1,
                Err(error) => {
                    assert_eq!(error.reason(), "UnusableMountPoint", "{error:?}");
                    refused += 1;
                }
            }
            let there = mounts_of(&number);
            assert!(there.iter().all(|at| at.starts_with(&base)), "mounted on {there:?}");
            assert!(there.len() <= 1, "mounted twice: {there:?}");
            // Under the name that it has at the moment; the same race the other way.
            while let Some(target) = mounts_of(&number).pop() {
                let _ = host.apply(&HostOp::Unmount { target }).await;
                unmounts += 1;
                assert!(unmounts < 10_000, "it can't be unmounted");
            }
        }
        enough.store(true, Ordering::Relaxed);
        swapping.join().unwrap();
        println!("to a link: {to_link}; {mounted} mounted, {refused} refused, {unmounts} unmounts");
        assert!(mounted > 0 && refused > 0, "no race");
        assert_eq!(fs::read_dir(outside.join("volume")).unwrap().count(), 0);
        fs::remove_dir_all(&base).unwrap();
    }
    fs::remove_dir_all(outside).unwrap();
    assert!(apply(&host, HostOp::RemoveMap { name: map.name, wwid: map.wwid }).await);
    disconnect(&host, &targets, &disks).await;
}

#[tokio::test]
#[ignore = "needs root, iscsid, multipathd and LIO on a node that may be thrown away"]
async fn a_map_and_the_file_system_on_it_grow_while_they_are_mounted() {
    let (before, after) = (512 << 20, 1 << 30);
    for filesystem in [Filesystem::Ext4, Filesystem::Xfs] {
        let lio = Lio::of_size(&format!("grow-{filesystem}"), None, before, true);
        let (host, targets) = (host(), lio.targets());
        let disks = connect(&host, &lio).await;
        let map = map(&host, &disks).await;
        let (device, target) = (id_of_map(&map), std::env::temp_dir().join("attachd-test-grow"));
        apply(&host, HostOp::Format { device: device.clone(), filesystem, resume: false }).await;
        let mount = HostOp::Mount {
            device: device.clone(),
            filesystem,
            target: target.clone(),
            read_only: false,
            options: Vec::new(),
        };
        apply(&host, mount).await;
        fs::write(target.join("file"), "data").unwrap();
        let grow = HostOp::GrowFilesystem { device, filesystem, target: target.clone() };
        assert!(!apply(&host, grow.clone()).await, "it is as large as its device");
        let was = blocks(&target);

        lio.extend(after);
        let resize =
            HostOp::ResizeMap { name: map.name.clone(), wwid: map.wwid.clone(), size_bytes: after };
        // The kernel has read the new size on one path only.
        apply(&host, HostOp::Rescan { devices: vec![disks[0].hctl] }).await;
        let error = host.apply(&resize).await.unwrap_err();
        assert_eq!(error.reason(), "NotGrown");
        assert!(error.to_string().contains(disks[1].name.as_str()), "{error}");
        assert_eq!(host.observe().await.unwrap().map_of(&disks[0]).unwrap().size_bytes, before);
        apply(&host, HostOp::Rescan { devices: vec![disks[1].hctl] }).await;
        assert!(apply(&host, resize.clone()).await);
        assert!(!apply(&host, resize).await);
        let state = host.observe().await.unwrap();
        let grown = self::disks(&state, &targets);
        let sizes: Vec<u64> = grown.iter().map(|disk| disk.size_bytes).collect();
        assert_eq!(sizes, [after, after]);
        assert_eq!(state.map_of(&disks[0]).unwrap().size_bytes, after);
        let shrink = HostOp::ResizeMap {
            name: map.name.clone(),
            wwid: map.wwid.clone(),
            size_bytes: before,
        };
        assert_eq!(host.apply(&shrink).await.unwrap_err().reason(), "NotGrown");
        assert_eq!(blocks(&target), was);
        assert!(apply(&host, grow.clone()).await);
        assert!(!apply(&host, grow).await);
        assert!(blocks(&target) > was * 17 / 10, "{was} blocks became {}", blocks(&target));
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "data");

        apply(&host, HostOp::Unmount { target: target.clone() }).await;
        apply(&host, HostOp::RemoveDirectory { target }).await;
        apply(&host, HostOp::RemoveMap { name: map.name, wwid: map.wwid }).await;
        disconnect(&host, &targets, &disks).await;
    }
}

/// The size of the file system that is mounted there, in its blocks.
fn blocks(mounted: &Path) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the test's own look")]
    let seen = std::process::Command::new("stat")
        .args(["--file-system", "--format=%b"])
        .arg(mounted)
        .output()
        .unwrap();
    String::from_utf8(seen.stdout).unwrap().trim().parse().unwrap()
}
