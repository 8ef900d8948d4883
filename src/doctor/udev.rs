use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    Check, Finding,
    node::{Node, stopped, text, unread},
};
use crate::host::Sysfs;

pub(super) const RUNNING: Check = Check {
    id: "udev-running",
    looks_at: "udev's socket, its process, and events that it hasn't finished",
    why: "multipathd takes a disk only after udev has finished with it, and device links are udev's.",
};
pub(super) const DATABASE: Check = Check {
    id: "udev-database",
    looks_at: "/run/udev/data: udev's word for each iSCSI disk (ID_SERIAL)",
    why: "multipathd knows a disk by this word. A disk without it gets no map.",
};

/// udev needs a second or two for a disk.
const LATE: Duration = Duration::from_secs(30);

pub(super) async fn running(node: &Node) -> Finding {
    let (run, proc) = (node.host("run/udev"), node.host("proc"));
    let look = move || {
        let stopped = stopped(&proc, &["systemd-udevd", "udevd", "(udev-worker)"]);
        let queue = fs::metadata(run.join("queue")).and_then(|data| data.modified()).ok();
        let waits = queue.map(|since| SystemTime::now().duration_since(since).unwrap_or_default());
        (listens(&run.join("control")), stopped, waits)
    };
    let restart = || node.restart("systemd-udevd", "systemd-udevd");
    match node.read("udev's state", look).await {
        Ok((_, Some(pids), _)) => {
            Finding::failed(format!("udev (process {pids}) was stopped by a signal"))
                .run(format!("kill -CONT {pids}"))
        }
        Ok((Err(error), ..)) => {
            Finding::failed(format!("nobody listens on /run/udev/control: {error}"))
                .mend(node.start("systemd-udevd", "/lib/systemd/systemd-udevd --daemon"))
        }
        Ok((Ok(()), None, Some(waits))) if waits > LATE => {
            Finding::warning(format!("udev works on events since {} s", waits.as_secs()))
                .advise("see what it waits for: udevadm monitor, and stuck-processes")
                .mend(restart())
        }
        Ok((Ok(()), ..)) => Finding::ok("it listens, and has no old events"),
        Err(error) => unread(&error),
    }
}

/// Whether anybody takes connections there; nothing is sent.
fn listens(control: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(control)?) {
        // Its queue is full: it is there.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        result => result,
    }
}

pub(super) async fn database(node: &Node) -> Finding {
    let (run, sysfs) = (node.host("run/udev"), node.config.sysfs.clone());
    let look =
        move || {
            if !run.is_dir() {
                return None;
            }
            let devices = Sysfs::new(&sysfs).snapshot().map(|snapshot| snapshot.devices);
            let named = |number: String| -> bool {
                let record: PathBuf = run.join(format!("data/b{number}"));
                text(&record).lines().any(|line| line.starts_with("E:ID_SERIAL="))
            };
            let missing = |device: &crate::model::ScsiDevice| {
                (!named(device.number.to_string())).then(|| device.name.to_string())
            };
            Some(devices.map(|devices| {
                (devices.iter().filter_map(missing).collect::<Vec<_>>(), devices.len())
            }))
        };
    match node.read("udev's database", look).await {
        Ok(None) => Finding::failed("/run/udev is not there")
            .advise("in a container: mount the host's /run/udev, or give --host-root; on the host: start udev"),
        Ok(Some(Ok((missing, _)))) if !missing.is_empty() => {
            let devices = missing.join(", ");
            let trigger = missing.iter().map(|device| format!("udevadm trigger --settle --name-match={device}"));
            Finding::warning(format!("udev has no ID_SERIAL of {devices}")).run(trigger.collect::<Vec<_>>().join("; "))
        }
        Ok(Some(Ok((_, 0)))) => Finding::ok("it is there; there are no iSCSI disks"),
        Ok(Some(Ok((_, count)))) => Finding::ok(format!("it has all {count} iSCSI disks")),
        Ok(Some(Err(error))) | Err(error) => unread(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_asked_whether_anybody_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        assert!(listens(&path).is_err());
        let server = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        server.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        assert!(listens(&path).is_err());
        server.listen(1).unwrap();
        assert!(listens(&path).is_ok());
    }
}
