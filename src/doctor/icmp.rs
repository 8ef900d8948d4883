//! Echo requests of a given size that routers must not take apart (`ping -M do -s SIZE`).

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

/// RFC 792, RFC 4443.
const ECHO_REQUEST: (u8, u8) = (8, 128);
const ECHO_REPLY: (u8, u8) = (0, 129);
const HEADER: usize = 8;

/// Sends one packet of `size` bytes, the IP header included, and waits for its echo. A raw socket sets
/// "don't fragment" unless the node is told otherwise (`ip_no_pmtu_disc`, `ip(7)`).
pub(super) fn echo(to: IpAddr, size: usize, limit: Duration) -> io::Result<bool> {
    let (domain, protocol, ip_header) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 20),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 40),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    let id = std::process::id().to_be_bytes();
    let request = message(to, [id[2], id[3]], size.saturating_sub(ip_header));
    socket.send(&request)?;
    let deadline = Instant::now() + limit;
    let mut buffer = vec![0; size.max(1024) + 64];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        match (&socket).read(&mut buffer) {
            Ok(length) if is_reply(to, &buffer[..length], &request) => return Ok(true),
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
}

fn message(to: IpAddr, id: [u8; 2], size: usize) -> Vec<u8> {
    let mut message = vec![0x61; size.max(HEADER)];
    let kind = if to.is_ipv4() { ECHO_REQUEST.0 } else { ECHO_REQUEST.1 };
    message[..HEADER].copy_from_slice(&[kind, 0, 0, 0, id[0], id[1], 0, 1]);
    // The kernel does it for IPv6.
    if to.is_ipv4() {
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
    }
    message
}

/// RFC 1071.
fn checksum(message: &[u8]) -> u16 {
    let words = message
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// An IPv4 raw socket gives the IP header, too.
fn is_reply(from: IpAddr, packet: &[u8], request: &[u8]) -> bool {
    let (kind, reply) = match from {
        IpAddr::V4(_) => {
            let header = usize::from(packet.first().unwrap_or(&0) & 0x0f) * 4;
            (ECHO_REPLY.0, packet.get(header..).unwrap_or_default())
        }
        IpAddr::V6(_) => (ECHO_REPLY.1, packet),
    };
    reply.first() == Some(&kind)
        && reply.len() == request.len()
        && reply.get(4..HEADER) == request.get(4..HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_size_asked_for_and_a_checksum_that_adds_up() {
        let to: IpAddr = "10.0.2.2".parse().unwrap();
        let message = message(to, [1, 2], 1480);
        assert_eq!(message.len(), 1480);
        assert_eq!(checksum(&message), 0);
        let mut reply = vec![0x45; 20];
        reply.extend_from_slice(&message);
        assert!(!is_reply(to, &reply, &message));
        reply[20] = 0;
        assert!(is_reply(to, &reply, &message));
        assert!(!is_reply(to, &reply[..1000], &message) && !is_reply(to, &[], &message));
    }
}
