use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::Secret;

/// The port of an iSCSI portal where none is written (RFC 7143, IANA 3260).
pub const DEFAULT_ISCSI_PORT: u16 = 3260;

/// Where clouds tell their instances secrets.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Longest name or secret of CHAP in bytes: open-iscsi's fields have room for that.
const MAX_CREDENTIAL: usize = 255;

/// Longest iSCSI name in bytes (RFC 7143 section 4.2.7.1).
const MAX_NAME: usize = 223;

/// Not a valid iSCSI name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an iSCSI name: expected iqn.YYYY-MM.reversed.domain[:name], eui.<16 hex> or naa.<16 or 32 hex>"
)]
pub struct IqnError(String);

/// An iSCSI name, of an initiator or of a target: `iqn.`, `eui.` or `naa.` (RFC 7143 section 4.2.7).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Iqn(String);

impl Iqn {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_iqn(rest: &str) -> bool {
    let bytes = rest.as_bytes();
    let digits = |range: std::ops::Range<usize>| {
        bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit))
    };
    digits(0..4)
        && bytes.get(4) == Some(&b'-')
        && digits(5..7)
        && bytes.get(7) == Some(&b'.')
        && bytes.len() > 8
}

impl FromStr for Iqn {
    type Err = IqnError;

    fn from_str(text: &str) -> Result<Self, IqnError> {
        let error = || IqnError(text.chars().take(MAX_NAME + 1).collect());
        // The name becomes a file name and an argument: no space, slash or control character.
        let plain = |c: char| {
            c.is_alphanumeric()
                || matches!(c, '-' | '.' | ':' | '_' | '@' | '+' | ',' | '=' | '%' | '~')
        };
        if text.len() > MAX_NAME || !text.chars().all(plain) {
            return Err(error());
        }
        let valid = match text.split_once('.') {
            Some(("iqn", rest)) => is_iqn(rest),
            Some(("eui", rest)) => rest.len() == 16 && is_hex(rest),
            Some(("naa", rest)) => matches!(rest.len(), 16 | 32) && is_hex(rest),
            _ => false,
        };
        if valid { Ok(Self(text.to_owned())) } else { Err(error()) }
    }
}

impl TryFrom<String> for Iqn {
    type Error = IqnError;

    fn try_from(text: String) -> Result<Self, IqnError> {
        text.parse()
    }
}

impl From<Iqn> for String {
    fn from(iqn: Iqn) -> String {
        iqn.0
    }
}

impl fmt::Display for Iqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Not `address:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an iSCSI portal: expected 192.0.2.10:3260 or [2001:db8::10]:3260")]
pub struct PortalError(String);

/// Where a target listens: an IP address and a TCP port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Portal(SocketAddr);

impl Portal {
    /// A portal from its parts.
    pub const fn new(address: IpAddr, port: u16) -> Self {
        Self(SocketAddr::new(address, port))
    }

    /// The IP address.
    pub const fn address(&self) -> IpAddr {
        self.0.ip()
    }

    /// The TCP port.
    pub const fn port(&self) -> u16 {
        self.0.port()
    }

    /// Why no storage can listen there, where that is plain: whoever names such a portal wants the
    /// node to talk to something else. Loopback can be right: a Cinder beside its only node exports there.
    pub fn flaw(&self) -> Option<&'static str> {
        match self.address().to_canonical() {
            address if address.is_unspecified() => Some("it is no address of a host"),
            address if address.is_multicast() => Some("it is a multicast address"),
            IpAddr::V4(v4) if v4.is_broadcast() => Some("it is a broadcast address"),
            address if METADATA.contains(&address) => Some("it is a cloud's metadata service"),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }
}

impl FromStr for Portal {
    type Err = PortalError;

    /// Accepts `address:port` and a bare address (port 3260), and drops a trailing `,TPGT`.
    /// An IPv6 address with a port must stand in brackets: without them the text is ambiguous.
    fn from_str(text: &str) -> Result<Self, PortalError> {
        let error = || PortalError(text.chars().take(120).collect());
        let bare = match text.split_once(',') {
            Some((portal, tpgt)) if tpgt.parse::<u16>().is_ok() => portal,
            Some(_) => return Err(error()),
            None => text,
        };
        match bare.parse::<SocketAddr>() {
            // A zone is a matter of one node, and of no name in open-iscsi's database.
            Ok(SocketAddr::V6(v6)) if v6.scope_id() != 0 || v6.flowinfo() != 0 => {
                return Err(error());
            }
            Ok(socket) if socket.port() == 0 => return Err(error()),
            Ok(socket) => return Ok(Self(socket)),
            Err(_) => {}
        }
        let unbracketed = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = match unbracketed {
            Some(v6) => v6.parse::<Ipv6Addr>().map(IpAddr::V6),
            None => bare.parse::<IpAddr>(),
        };
        match address {
            Ok(address) => Ok(Self::new(address, DEFAULT_ISCSI_PORT)),
            Err(_) => Err(error()),
        }
    }
}

impl TryFrom<String> for Portal {
    type Error = PortalError;

    fn try_from(text: String) -> Result<Self, PortalError> {
        text.parse()
    }
}

impl From<Portal> for String {
    fn from(portal: Portal) -> String {
        portal.to_string()
    }
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A logical unit number, as the kernel writes it (decimal).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lun(pub u64);

impl fmt::Display for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One end point of sessions: a target behind a portal. Sessions, node records and locks belong to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Target {
    /// Where.
    pub portal: Portal,
    /// Who.
    pub iqn: Iqn,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.iqn, self.portal)
    }
}

/// One way to a volume: a LUN of a target behind a portal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TargetPath {
    /// The target and its portal.
    #[serde(flatten)]
    pub target: Target,
    /// The logical unit on that target.
    pub lun: Lun,
}

impl TargetPath {
    /// Whether both lead to the same logical unit, be it through another portal.
    pub fn is_same_unit(&self, other: &Self) -> bool {
        self.target.iqn == other.target.iqn && self.lun == other.lun
    }
}

impl fmt::Display for TargetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} LUN {}", self.target, self.lun)
    }
}

/// Credentials for CHAP, one way: the target checks the initiator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chap {
    /// The user's name; not a secret.
    pub username: String,
    /// The shared secret.
    pub password: Secret<String>,
}

impl Chap {
    /// The field, and why a file of open-iscsi's can't hold it: a line break would be a setting of its
    /// own, and blanks at the ends would be lost.
    pub fn flaw(&self) -> Option<(&'static str, &'static str)> {
        [("username", &self.username), ("password", self.password.expose())].into_iter().find_map(
            |(field, value)| {
                let why = if value.is_empty() {
                    "it is empty"
                } else if value.len() > MAX_CREDENTIAL {
                    "it is longer than 255 bytes"
                } else if value.chars().any(char::is_control) {
                    "it has a control character"
                } else if value.trim() != value {
                    "it starts or ends with a blank"
                } else {
                    return None;
                };
                Some((field, why))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_three_kinds_are_accepted_and_nonsense_is_not() {
        for good in [
            "iqn.2010-10.org.openstack:volume-7a29c609-53cc-4134-830f-6d08a0b9da91",
            "iqn.1993-08.org.debian:01:cad181614cec",
            "eui.02004567A425678D",
            "naa.52004567BA64678D",
        ] {
            assert_eq!(good.parse::<Iqn>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "iqn.",
            "iqn.2010-10",
            "iqn.20a0-10.org",
            "iqn.2010-10.org/../../etc",
            "iqn.2010-10.org x",
            "eui.1",
            "host1",
        ] {
            assert!(bad.parse::<Iqn>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn portals_of_both_families_are_read_and_written() {
        for (text, shown) in [
            ("10.0.2.2:3260", "10.0.2.2:3260"),
            ("10.0.2.2:13260,1", "10.0.2.2:13260"),
            ("10.0.2.2", "10.0.2.2:3260"),
            ("[fd00:2::2]:3261", "[fd00:2::2]:3261"),
            ("[fd00:2::2]", "[fd00:2::2]:3260"),
            ("fd00:2::2", "[fd00:2::2]:3260"),
        ] {
            assert_eq!(text.parse::<Portal>().unwrap().to_string(), shown, "{text}");
        }
        for bad in [
            "",
            "host:3260",
            "10.0.2.2:0",
            "10.0.2.2:99999",
            "10.0.2.2:3260,x",
            "[10.0.2.2]:3260",
            "[fe80::1%2]:3260",
        ] {
            assert!(bad.parse::<Portal>().is_err(), "{bad:?} was accepted");
        }
    }
}
