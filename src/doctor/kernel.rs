use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::statvfs::{FsFlags, statvfs},
};

use super::{
    Check, Finding, Mend, Repair,
    node::{Node, entries, installed, processes, text, unread},
};

pub(super) const MODULES: Check = Check {
    id: "kernel-modules",
    looks_at: "iscsi_tcp, sd_mod and dm_multipath: loaded, built in, or there to be loaded",
    why: "Without iscsi_tcp every login fails (NoTransport), without sd_mod no disk appears, without dm_multipath no map.",
};
pub(super) const DEVICE_MAPPER: Check = Check {
    id: "device-mapper",
    looks_at: "/dev/mapper/control",
    why: "multipathd and attachd make, resize and remove maps by this device.",
};
pub(super) const SYSFS: Check = Check {
    id: "sysfs-writable",
    looks_at: "whether /sys is mounted for writing",
    why: "Disks are scanned, rescanned and deleted by writing to sysfs.",
};
pub(super) const STUCK: Check = Check {
    id: "stuck-processes",
    looks_at: "processes that wait in the kernel and make no progress (state D)",
    why: "They wait for a device that doesn't answer, can't be killed, and keep volumes from being unmounted.",
};
pub(super) const DENIALS: Check = Check {
    id: "security-denials",
    looks_at: "denials by SELinux and AppArmor of the last hour, of the storage programs and of attachd",
    why: "A denied open or mount looks like a broken disk to the program that it happens to.",
};

const NEEDED: [&str; 3] = ["iscsi_tcp", "sd_mod", "dm_multipath"];

#[derive(Debug, PartialEq, Eq)]
enum Module {
    Loaded,
    /// Whoever needs it first loads it.
    Loadable,
    /// modprobe was told not to load it, in this file.
    Forbidden(PathBuf),
    Missing,
}

pub(super) async fn modules(node: &Node) -> Finding {
    let (root, sysfs) = (node.config.root.clone(), node.config.sysfs.clone());
    let release = sysinfo::System::kernel_version().unwrap_or_default();
    let look = move || {
        let multipath = installed(&root, "multipathd");
        let wanted = NEEDED.into_iter().filter(|name| multipath || *name != "dm_multipath");
        let states: Vec<_> =
            wanted.map(|name| (name, module(&root, &sysfs, &release, name))).collect();
        (release, states)
    };
    let (release, states) = match node.read("kernel modules", look).await {
        Ok(found) => found,
        Err(error) => return unread(&error),
    };
    Finding::all(states.into_iter().map(|(name, state)| match state {
        Module::Loaded => Finding::ok(format!("{name} is there")),
        Module::Loadable if name == "dm_multipath" => {
            Finding::warning("dm_multipath is not loaded; multipathd loads it only when it starts")
                .mend(Mend::Repair(Repair::LoadModule(name)))
        }
        Module::Loadable => Finding::ok(format!("{name} is loaded when it is needed")),
        Module::Forbidden(file) => Finding::failed(format!("{} forbids to load {name}", file.display()))
            .run(format!("sed -i '/{name}/d' {} && modprobe {name}", below(&file)))
            ,
        Module::Missing => Finding::failed(format!("{name} is not in /lib/modules/{release}"))
            .advise(format!("install the kernel's package with the module {name}, or run the kernel whose modules are installed (reboot)")),
    }))
}

/// A path of the host as the host names it.
fn below(path: &Path) -> String {
    let path = path.to_string_lossy();
    path.strip_prefix("/proc/1/root").unwrap_or(&path).to_owned()
}

fn module(root: &Path, sysfs: &Path, release: &str, name: &str) -> Module {
    if sysfs.join("module").join(name).is_dir() {
        return Module::Loaded;
    }
    let directory = root.join("lib/modules").join(release);
    // Either sign may stand in a file name; modprobe takes them for one.
    let is_it = |line: &str| {
        let file =
            line.split(':').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        file.split('.').next().unwrap_or_default().replace('-', "_") == name
    };
    if text(&directory.join("modules.builtin")).lines().any(is_it) {
        return Module::Loaded;
    }
    if let Some(file) = forbidding(root, name) {
        return Module::Forbidden(file);
    }
    if text(&directory.join("modules.dep")).lines().any(is_it) {
        Module::Loadable
    } else {
        Module::Missing
    }
}

/// A file of `modprobe.d(5)` that replaces the loading of a module by nothing. `blacklist` alone doesn't:
/// it only keeps aliases from loading it.
fn forbidding(root: &Path, name: &str) -> Option<PathBuf> {
    let files = ["etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"]
        .into_iter()
        .flat_map(|directory| entries(&root.join(directory)));
    let forbids = |file: &PathBuf| {
        text(file).lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("install")
                && words.next().is_some_and(|word| word.replace('-', "_") == name)
                && words
                    .next()
                    .is_some_and(|word| word.ends_with("/false") || word.ends_with("/true"))
        })
    };
    files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "conf")).find(forbids)
}

pub(super) async fn device_mapper(node: &Node) -> Finding {
    let (control, loaded) = (node.config.dev.join("mapper/control"), node.sysfs("module/dm_mod"));
    let look = move || {
        let is_device = fs::metadata(&control).is_ok_and(|data| data.file_type().is_char_device());
        (is_device, loaded.is_dir())
    };
    match node.read("/dev/mapper", look).await {
        Ok((true, _)) => Finding::ok("/dev/mapper/control is there"),
        Ok((false, false)) => Finding::left_out("device-mapper is not loaded; see kernel-modules"),
        Ok((false, true)) => {
            Finding::failed("device-mapper is loaded, and /dev/mapper/control is not there")
                .run("dmsetup mknodes")
        }
        Err(error) => unread(&error),
    }
}

pub(super) async fn sysfs(node: &Node) -> Finding {
    let path = node.config.sysfs.clone();
    match node.read("/sys", move || statvfs(&path)).await {
        Ok(Ok(stat)) if stat.flags().contains(FsFlags::ST_RDONLY) => Finding::failed(
            "/sys is mounted read-only",
        )
        .run("mount -o remount,rw /sys")
        .advise(
            "in a Pod: securityContext.privileged: true, and the host's /sys as a hostPath volume",
        ),
        Ok(Ok(_)) => Finding::ok("/sys can be written to"),
        Ok(Err(error)) => Finding::unknown(format!("/sys can't be looked at: {error}")),
        Err(error) => unread(&error),
    }
}

/// Between the two looks at processes.
const PATIENCE: Duration = Duration::from_millis(1500);

pub(super) async fn stuck(node: &Node) -> Finding {
    let proc = node.host("proc");
    let look = || {
        let proc = proc.clone();
        node.read("/proc", move || waiting(&proc))
    };
    let first = match look().await {
        Ok(first) if first.is_empty() => return Finding::ok("no process hangs in the kernel"),
        Ok(first) => first,
        Err(error) => return unread(&error),
    };
    tokio::time::sleep(PATIENCE).await;
    let second = match look().await {
        Ok(second) => second,
        Err(error) => return unread(&error),
    };
    let stuck: Vec<String> = second
        .into_iter()
        .filter(|(pid, (_, switches))| first.get(pid).is_some_and(|(_, before)| before == switches))
        .map(|(pid, (comm, _))| format!("process {pid} ({comm}) hangs in the kernel"))
        .collect();
    if stuck.is_empty() {
        return Finding::ok("no process hangs in the kernel");
    }
    let parts = stuck.into_iter().take(8).map(Finding::warning);
    Finding::all(parts).run("attachd paths").advise(
        "bring a path of the volume back, or let its I/O fail: attachd detach --force VOLUME",
    )
}

/// Processes in state D, with how often they were switched away from the processor.
fn waiting(proc: &Path) -> BTreeMap<u32, (String, String)> {
    let waiting = |process: &super::node::Process| {
        let status = text(&process.directory.join("status"));
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim_start_matches(':').trim().to_owned())
        };
        field("State")?.starts_with('D').then_some(())?;
        let switches = format!(
            "{:?} {:?}",
            field("voluntary_ctxt_switches"),
            field("nonvoluntary_ctxt_switches")
        );
        Some((process.pid, (process.comm.clone(), switches)))
    };
    processes(proc).iter().filter_map(waiting).collect()
}

/// Programs whose denials concern volumes.
const CONCERNED: [&str; 16] = [
    "attachd",
    "iscsid",
    "iscsiadm",
    "multipathd",
    "multipath",
    "mount",
    "umount",
    "systemd-udevd",
    "(udev-worker)",
    "blkid",
    "e2fsck",
    "resize2fs",
    "xfs_growfs",
    "mkfs.ext4",
    "mkfs.xfs",
    "xfs_repair",
];
const LAST: Duration = Duration::from_hours(1);

pub(super) async fn denials(node: &Node) -> Finding {
    let (kmsg, audit) = (node.config.dev.join("kmsg"), node.host("var/log/audit/audit.log"));
    let uptime = node.host("proc/uptime");
    let look = move || {
        let uptime = text(&uptime).split('.').next().and_then(|seconds| seconds.parse().ok());
        let since = Duration::from_secs(uptime.unwrap_or(0)).saturating_sub(LAST);
        let messages = kernel_log(&kmsg, since).into_iter();
        let mut lines: Vec<String> = messages.map(|(_, line)| line).collect();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        lines.extend(audit_log(&text(&audit), now.unwrap_or_default().saturating_sub(LAST)));
        lines.iter().filter_map(|line| denied(line)).collect::<Vec<_>>()
    };
    match node.read("the kernel's log", look).await {
        Ok(found) if found.is_empty() => Finding::ok("none in the last hour"),
        Ok(mut found) => {
            found.dedup();
            Finding::all(found.into_iter().rev().take(5).map(Finding::warning))
                .advise("allow it in the policy (SELinux: ausearch -m avc -ts recent | audit2allow -M local; AppArmor: aa-logprof), or run the agent's Pod unconfined as the chart does")
        }
        Err(error) => unread(&error),
    }
}

/// The kernel's messages since a time after the boot, each with its time. A record a read (`Documentation/ABI/testing/dev-kmsg`).
pub(crate) fn kernel_log(kmsg: &Path, since: Duration) -> Vec<(Duration, String)> {
    let mut options = fs::OpenOptions::new();
    let opened = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(kmsg);
    let Ok(mut file) = opened else { return Vec::new() };
    let (mut lines, mut record) = (Vec::new(), [0; 8192]);
    loop {
        match file.read(&mut record) {
            Ok(length) if length > 0 => {
                let text = String::from_utf8_lossy(&record[..length]);
                let Some((prefix, message)) = text.split_once(';') else { continue };
                let at = prefix.split(',').nth(2).and_then(|micros| micros.parse().ok());
                let at = Duration::from_micros(at.unwrap_or(0));
                if at >= since {
                    lines.push((at, message.lines().next().unwrap_or_default().to_owned()));
                }
            }
            // Overwritten before it was read: the next read is the oldest that is left.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            Ok(_) | Err(_) => return lines,
        }
    }
}

/// auditd's log: `type=AVC msg=audit(1700000000.123:45): …`
fn audit_log(text: &str, since: Duration) -> Vec<String> {
    let recent = |line: &&str| {
        let at = line
            .split_once("msg=audit(")
            .and_then(|(_, rest)| rest.split('.').next()?.parse().ok());
        at.is_some_and(|seconds| Duration::from_secs(seconds) >= since)
    };
    text.lines().filter(recent).map(ToOwned::to_owned).collect()
}

fn denied(line: &str) -> Option<String> {
    let by = if line.contains("apparmor=\"DENIED\"") {
        "AppArmor"
    } else if line.contains("avc:") && line.contains("denied") {
        "SELinux"
    } else {
        return None;
    };
    let value = |name: &str| {
        let (_, rest) = line.split_once(&format!("{name}=\""))?;
        rest.split('"').next().filter(|value| value.len() < 100)
    };
    let program = value("comm")?;
    CONCERNED.contains(&program).then_some(())?;
    let what = value("operation").or_else(|| {
        let (_, rest) = line.split_once('{')?;
        rest.split('}').next().map(str::trim)
    });
    let on = value("name").or_else(|| value("path")).unwrap_or("something");
    Some(format!("{by} denied {program}: {} on {on}", what.unwrap_or("something")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_loaded_built_in_loadable_forbidden_or_missing() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("sys/module/sd_mod/refcnt", "1");
        write("lib/modules/6.1/modules.builtin", "kernel/drivers/md/dm-multipath.ko\n");
        write(
            "lib/modules/6.1/modules.dep",
            "kernel/drivers/scsi/iscsi_tcp.ko.xz: kernel/drivers/scsi/libiscsi.ko.xz\n",
        );
        let of = |name| module(root.path(), &root.path().join("sys"), "6.1", name);
        assert_eq!(of("sd_mod"), Module::Loaded);
        assert_eq!(of("dm_multipath"), Module::Loaded);
        assert_eq!(of("iscsi_tcp"), Module::Loadable);
        assert_eq!(of("libiscsi"), Module::Missing);
        write("etc/modprobe.d/cis.conf", "# install iscsi_tcp /bin/true\nblacklist iscsi_tcp\n");
        assert_eq!(of("iscsi_tcp"), Module::Loadable);
        write("etc/modprobe.d/cis.conf", "install iscsi-tcp /bin/true\n");
        assert!(matches!(of("iscsi_tcp"), Module::Forbidden(_)));
    }

    #[test]
    fn denials_of_storage_programs_are_told_and_those_of_others_are_not() {
        let apparmor = r#"audit: type=1400 audit(1700000000.1:9): apparmor="DENIED" operation="open" class="file" profile="x" name="/dev/sdb" pid=7 comm="iscsid""#;
        assert_eq!(denied(apparmor).unwrap(), "AppArmor denied iscsid: open on /dev/sdb");
        let selinux = r#"type=AVC msg=audit(1700000000.1:9): avc:  denied  { read write } for  pid=7 comm="multipathd" path="/dev/mapper/control" dev="devtmpfs""#;
        assert_eq!(
            denied(selinux).unwrap(),
            "SELinux denied multipathd: read write on /dev/mapper/control"
        );
        assert_eq!(denied(&selinux.replace("multipathd", "firefox")), None);
        assert_eq!(denied(&apparmor.replace("DENIED", "ALLOWED")), None);
        let text = format!("{selinux}\n");
        assert_eq!(audit_log(&text, Duration::from_secs(1_700_000_000)).len(), 1);
        assert!(audit_log(&text, Duration::from_secs(1_700_000_001)).is_empty());
    }
}
