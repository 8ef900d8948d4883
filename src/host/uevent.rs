//! The kernel's and udev's events, as a counter that moves.
//!
//! `NETLINK_KOBJECT_UEVENT` has two multicast groups: 1 is the kernel's (`add@/devices/…\0KEY=value\0…`),
//! 2 is what udevd sends once its rules have run (`libudev\0`, a binary header, then the same kind of
//! properties). multipathd works on the second; the first is sooner. Both say `SUBSYSTEM=…` and
//! `DEVPATH=…`, and more than that is not needed here: whoever waits looks at sysfs itself.

use std::{
    io, mem,
    sync::{Arc, Mutex, PoisonError},
};

use netlink_sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_KOBJECT_UEVENT,
};
use nix::libc::ENOBUFS;
use tokio::{sync::watch, task::JoinHandle};

use super::sysfs::Scope;

/// Group 1 (kernel) and group 2 (udev), as a bit mask.
const GROUPS: u32 = 0b11;

/// Room for a storm of events (some hundred disks at once) while this task isn't scheduled.
const RECEIVE_BUFFER: u32 = 2 * 1024 * 1024;

/// Longest event that is looked at; the kernel's are at most 4 KiB, udev's may be longer.
const LONGEST: usize = 64 * 1024;

/// Kernel subsystems whose events matter to an attach or a detach.
const SUBSYSTEMS: [&str; 6] =
    ["block", "scsi", "scsi_host", "iscsi_session", "iscsi_connection", "iscsi_host"];

/// The listening task; ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Uevents {
    counter: watch::Receiver<u64>,
    // Kept, so that the receivers don't see the counter closed where there is no socket.
    _sender: watch::Sender<u64>,
    task: Option<JoinHandle<()>>,
    news: Arc<Mutex<Scope>>,
}

impl Uevents {
    /// Subscribes. Without a socket (no permission, another network namespace) the counter never
    /// moves, and whoever waits for it falls back to its own slow poll.
    pub(crate) fn subscribe() -> Self {
        let (sender, counter) = watch::channel(0);
        let news = Arc::new(Mutex::new(Scope::everything()));
        let task = match socket() {
            Ok(socket) => Some(tokio::spawn(listen(socket, sender.clone(), Arc::clone(&news)))),
            Err(error) => {
                tracing::warn!(%error, "no kernel events: changes of block devices are seen by polling only");
                None
            }
        };
        Self { counter, _sender: sender, task, news }
    }

    /// What events told of since this was asked last; everything where nobody listens.
    pub(crate) fn news(&self) -> Scope {
        let listens = self.task.as_ref().is_some_and(|task| !task.is_finished());
        let news = mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner));
        if listens { news } else { Scope::everything() }
    }

    /// The counter.
    pub(crate) fn counter(&self) -> watch::Receiver<u64> {
        self.counter.clone()
    }
}

impl Drop for Uevents {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn socket() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_KOBJECT_UEVENT)?;
    if let Err(error) = socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER) {
        tracing::debug!(%error, "the event socket keeps its receive buffer");
    }
    socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
    Ok(socket)
}

async fn listen(socket: TokioSocket, counter: watch::Sender<u64>, news: Arc<Mutex<Scope>>) {
    // Before the counter moves: whoever it wakes asks for the news.
    let tell = |of: Scope| {
        news.lock().unwrap_or_else(PoisonError::into_inner).add(of);
        counter.send_modify(|count| *count += 1);
    };
    let mut datagram = Vec::with_capacity(LONGEST);
    loop {
        datagram.clear();
        match socket.recv(&mut datagram).await {
            Ok(()) if matters(&datagram) => tell(told_of(&datagram)),
            Ok(()) => {}
            // Events were lost: one of them may have mattered.
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => tell(Scope::everything()),
            Err(error) => {
                tracing::warn!(%error, "kernel events ended: changes of block devices are seen by polling only");
                return;
            }
        }
    }
}

/// Whether an event, of either sender, is of one of [`SUBSYSTEMS`].
pub(crate) fn matters(datagram: &[u8]) -> bool {
    datagram.split(|byte| *byte == 0).any(|part| {
        part.strip_prefix(b"SUBSYSTEM=")
            .is_some_and(|name| SUBSYSTEMS.iter().any(|known| known.as_bytes() == name))
    })
}

/// What an event tells of: a SCSI host by any `host7` in the device's path, or a device of the device
/// mapper. Of anything else the walk reads the names each time.
pub(crate) fn told_of(datagram: &[u8]) -> Scope {
    let mut scope = Scope::default();
    let paths = datagram.split(|byte| *byte == 0).filter_map(|part| part.strip_prefix(b"DEVPATH="));
    for part in paths.flat_map(|path| path.split(|byte| *byte == b'/')) {
        let Ok(part) = str::from_utf8(part) else { continue };
        if let Some(host) = part.strip_prefix("host").and_then(|number| number.parse().ok()) {
            scope.hosts.insert(host);
        } else if part.starts_with("dm-") {
            scope.maps.insert(part.to_owned());
        }
    }
    scope
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_tells_of_its_scsi_host_or_of_its_map() {
        let disk = told_of(b"change@/x\0DEVPATH=/devices/platform/host12/session4/target12:0:0/12:0:0:1/block/sdb\0SUBSYSTEM=block\0");
        assert!(disk.hosts.contains(&12) && disk.maps.is_empty() && !disk.everything);
        let map = told_of(b"libudev\0DEVPATH=/devices/virtual/block/dm-3\0SUBSYSTEM=block\0");
        assert!(map.maps.contains("dm-3") && map.hosts.is_empty());
        let other = told_of(b"add@/x\0DEVPATH=/devices/virtual/block/loop0\0");
        assert!(other.hosts.is_empty() && other.maps.is_empty());
    }

    #[test]
    fn events_of_disks_and_sessions_count_and_others_do_not() {
        let kernel = |subsystem: &str| {
            format!("add@/devices/x\0ACTION=add\0SUBSYSTEM={subsystem}\0SEQNUM=1\0")
        };
        for subsystem in SUBSYSTEMS {
            assert!(matters(kernel(subsystem).as_bytes()), "{subsystem}");
        }
        for subsystem in ["net", "blockish", ""] {
            assert!(!matters(kernel(subsystem).as_bytes()), "{subsystem}");
        }
        assert!(!matters(b""));
    }

    #[test]
    fn udevs_datagrams_are_understood_in_spite_of_their_other_header() {
        let mut datagram = b"libudev\0\xfe\xed\xca\xfe(\0\0\0(\0\0\0\x90\x01\0\0".to_vec();
        datagram.extend_from_slice(&[0x1e, 0x51, 0x2f, 0x5a, 0, 0, 0, 0, 0, 0, 0, 0]);
        datagram.extend_from_slice(b"ACTION=add\0DEVPATH=/devices/x/block/sda\0SUBSYSTEM=block\0");
        assert!(matters(&datagram));
    }

    #[tokio::test]
    async fn the_counter_stays_open_even_without_events() {
        let events = Uevents::subscribe();
        let mut counter = events.counter();
        let waited =
            tokio::time::timeout(std::time::Duration::from_millis(20), counter.changed()).await;
        assert!(waited.is_err() || waited.is_ok_and(|changed| changed.is_ok()));
    }
}
