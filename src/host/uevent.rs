//! The kernel's and udev's events, as a counter that moves.
//!
//! `NETLINK_KOBJECT_UEVENT` has two multicast groups: 1 is the kernel's (`add@/devices/…\0KEY=value\0…`),
//! 2 is what udevd sends once its rules have run (`libudev\0`, a binary header, then the same kind of
//! properties). multipathd works on the second; the first is sooner. Both say `SUBSYSTEM=…`, and
//! more than that is not needed here: whoever waits looks at sysfs itself.

use std::io;

use netlink_sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_KOBJECT_UEVENT,
};
use nix::libc::ENOBUFS;
use tokio::{sync::watch, task::JoinHandle};

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
}

impl Uevents {
    /// Subscribes. Without a socket (no permission, another network namespace) the counter never
    /// moves, and whoever waits for it falls back to its own slow poll.
    pub(crate) fn subscribe() -> Self {
        let (sender, counter) = watch::channel(0);
        let task = match socket() {
            Ok(socket) => Some(tokio::spawn(listen(socket, sender.clone()))),
            Err(error) => {
                tracing::warn!(%error, "no kernel events: changes of block devices are seen by polling only");
                None
            }
        };
        Self { counter, _sender: sender, task }
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

async fn listen(socket: TokioSocket, counter: watch::Sender<u64>) {
    let mut datagram = Vec::with_capacity(LONGEST);
    loop {
        datagram.clear();
        match socket.recv(&mut datagram).await {
            Ok(()) if matters(&datagram) => counter.send_modify(|count| *count += 1),
            Ok(()) => {}
            // Events were lost: one of them may have mattered.
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                counter.send_modify(|count| *count += 1);
            }
            Err(error) => {
                tracing::warn!(%error, "kernel events ended: changes of block devices are seen by polling only");
                return;
            }
        }
    }
}

/// Whether an event, of either sender, is of one of [`SUBSYSTEMS`].
fn matters(datagram: &[u8]) -> bool {
    datagram.split(|byte| *byte == 0).any(|part| {
        part.strip_prefix(b"SUBSYSTEM=")
            .is_some_and(|name| SUBSYSTEMS.iter().any(|known| known.as_bytes() == name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
