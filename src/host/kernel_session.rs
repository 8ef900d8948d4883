//! The kernel's side of an iSCSI session, without iscsid: `NETLINK_ISCSI` (`scsi/iscsi_if.h`).
//!
//! iscsid ends a session with the same three messages. An iscsid that was restarted takes the sessions
//! of the one before over one by one, and waits for the portal of each: those that come after a dead
//! one it doesn't know, and doesn't end.
//!
//! Where a target closes a connection while iscsid sets it up again, the kernel takes that connection
//! over until it is told to stop it. iscsid doesn't tell, and is refused the connection (ENOTCONN) at
//! each of its tries from then on (open-iscsi #387).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ISCSI};

use crate::model::Session;

/// `ISCSI_UEVENT_DESTROY_SESSION`, `…_DESTROY_CONN` and `…_STOP_CONN`.
const DESTROY_SESSION: u16 = 12;
const DESTROY_CONNECTION: u16 = 14;
const STOP_CONNECTION: u16 = 18;

/// `STOP_CONN_TERM`: it isn't to come back.
const FOR_GOOD: u32 = 1;
/// `STOP_CONN_RECOVER`: iscsid will set it up again.
const FOR_RECOVERY: u32 = 3;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// Room for `struct iscsi_uevent`, of which kernels since 2.6 differ in length: they want no less, and
/// leave what is more.
const LENGTH: u16 = 16 + 256;

/// `ISCSI_KEVENT_IF_ERROR`, the answer to what failed.
const FAILED: u32 = 103;

/// Ends a session that carries no disk. Its connection is closed without a word to the target.
///
/// # Errors
/// The kernel's own.
pub(super) fn end(sysfs: &Path, session: &Session) -> io::Result<()> {
    let (socket, handle) = kernel(sysfs)?;
    let sid = session.sid;
    if connection(sysfs, sid).exists() {
        ask(&socket, &message(STOP_CONNECTION, handle, sid, FOR_GOOD))?;
        ask(&socket, &message(DESTROY_CONNECTION, handle, sid, 0))?;
    }
    ask(&socket, &message(DESTROY_SESSION, handle, sid, 0))
}

/// Stops a connection that failed once more, so that iscsid may have it back; says whether it did. One
/// that works, or that iscsid is about to log in with, isn't touched. The session stays, and all that
/// waits in it.
///
/// # Errors
/// The kernel's own.
pub(super) fn give_back(sysfs: &Path, session: &Session) -> io::Result<bool> {
    if fs::read_to_string(connection(sysfs, session.sid).join("state"))?.trim() != "failed" {
        return Ok(false);
    }
    let (socket, handle) = kernel(sysfs)?;
    ask(&socket, &message(STOP_CONNECTION, handle, session.sid, FOR_RECOVERY))?;
    Ok(true)
}

/// open-iscsi gives each session one connection.
fn connection(sysfs: &Path, sid: u32) -> PathBuf {
    sysfs.join(format!("class/iscsi_connection/connection{sid}:0"))
}

/// Whom to ask, and the transport's handle.
fn kernel(sysfs: &Path) -> io::Result<(Socket, u64)> {
    let handle = fs::read_to_string(sysfs.join("class/iscsi_transport/tcp/handle"))?;
    let handle = handle.trim().parse().map_err(io::Error::other)?;
    let mut socket = Socket::new(NETLINK_ISCSI)?;
    socket.bind_auto()?;
    Ok((socket, handle))
}

/// The header, then `type`, `iferror`, `transport_handle`, and a union: `{ sid, cid, conn_handle, flag }`
/// of the stop, of which the others are the beginning. The connection's number is 0.
fn message(what: u16, handle: u64, sid: u32, flag: u32) -> Vec<u8> {
    let mut message = vec![0; usize::from(LENGTH)];
    let mut put = |at: usize, bytes: &[u8]| message[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &u32::from(LENGTH).to_ne_bytes());
    put(4, &what.to_ne_bytes());
    put(6, &REQUEST.to_ne_bytes());
    put(HEADER, &u32::from(what).to_ne_bytes());
    put(HEADER + 8, &handle.to_ne_bytes());
    put(HEADER + 16, &sid.to_ne_bytes());
    put(HEADER + 32, &flag.to_ne_bytes());
    message
}

fn ask(socket: &Socket, message: &[u8]) -> io::Result<()> {
    let sent = socket.send_to(message, &SocketAddr::new(0, 0), 0)?;
    if sent < message.len() {
        return Err(io::Error::other("the kernel took a part of the message only"));
    }
    let (answer, _) = socket.recv_from_full()?;
    judge(&answer)
}

/// The kernel gives the message back, with the error of what failed.
fn judge(answer: &[u8]) -> io::Result<()> {
    let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let (Some(what), Some(error)) = (word(HEADER), word(HEADER + 4)) else {
        return Err(io::Error::other("the kernel's answer is cut short"));
    };
    if what != FAILED {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(error.cast_signed().saturating_abs()))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::model::SessionState;

    #[test]
    fn the_stop_of_a_connection_is_laid_out_as_the_kernel_wants_it() {
        let message = message(STOP_CONNECTION, 0xffff_ffff_c08a_2420, 7, FOR_RECOVERY);
        let word = |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
        assert_eq!(usize::try_from(word(0)).unwrap(), message.len());
        assert_eq!(u16::from_ne_bytes([message[4], message[5]]), 18);
        // The union begins behind type, iferror and handle; the flag behind sid, cid and handle.
        assert_eq!((word(16), word(20)), (18, 0));
        assert_eq!(u64::from_ne_bytes(message[24..32].try_into().unwrap()), 0xffff_ffff_c08a_2420);
        assert_eq!((word(32), word(36), word(48)), (7, 0, 3));
    }

    #[test]
    fn a_connection_that_works_or_that_iscsid_logs_in_with_is_not_stopped() {
        let sysfs = TempDir::new().unwrap();
        let connection = connection(sysfs.path(), 7);
        fs::create_dir_all(&connection).unwrap();
        let session = Session {
            sid: 7,
            host: 2,
            iqn: "iqn.2010-10.org.openstack:volume-1".parse().unwrap(),
            portal: "10.0.3.2:3260".parse().unwrap(),
            tpgt: 1,
            state: SessionState::Failed,
        };
        for state in ["up\n", "bound\n", "down\n", "[unknown]\n"] {
            fs::write(connection.join("state"), state).unwrap();
            assert!(!give_back(sysfs.path(), &session).unwrap(), "{state}");
        }
        // Here there is no such transport to be asked.
        fs::write(connection.join("state"), "failed\n").unwrap();
        give_back(sysfs.path(), &session).unwrap_err();
    }

    #[test]
    fn the_kernels_error_is_told() {
        let mut answer = message(DESTROY_SESSION, 1, 7, 0);
        judge(&answer).unwrap();
        answer[16..20].copy_from_slice(&FAILED.to_ne_bytes());
        answer[20..24].copy_from_slice(&(-16i32).to_ne_bytes());
        assert_eq!(judge(&answer).unwrap_err().raw_os_error(), Some(16));
        assert!(judge(&answer[..20]).is_err());
    }
}
