//! The connector: what Cinder's drivers want to know of this node.
//!
//! The same facts as os-brick's `get_connector_properties()` gives for iSCSI, by the same names and
//! from the same places, so that every driver recognises them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
    str::FromStr,
    time::Duration,
};

use nix::ifaddrs::getifaddrs;

use crate::model::{Connector, Multipathd};

use super::{HostError, initiator};

const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// Which of the node's addresses is its storage address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressSource {
    /// The one that the kernel would send from to this host and port (Cinder's endpoint, say).
    Towards {
        /// A name or an address.
        host: String,
        /// A port.
        port: u16,
    },
    /// The first one of this interface, IPv4 before IPv6.
    Interface(String),
    /// The first one within this network.
    Network(Network),
    /// This one.
    Fixed(IpAddr),
}

impl std::fmt::Display for AddressSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Towards { host, port } => write!(f, "the way to {host} port {port}"),
            Self::Interface(name) => write!(f, "interface {name}"),
            Self::Network(network) => write!(f, "network {network}"),
            Self::Fixed(address) => write!(f, "address {address}"),
        }
    }
}

/// A network in CIDR notation, such as `10.0.2.0/24` or `fd00:2::/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Not a network in CIDR notation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a network: expected an address and a prefix length, such as 10.0.2.0/24 or fd00:2::/64"
)]
pub struct NetworkError(String);

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let error = || NetworkError(text.chars().take(80).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        let widest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > widest {
            return Err(error());
        }
        Ok(Self { address, prefix })
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    /// Whether an address is within it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let prefix = u32::from(self.prefix);
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
                u32::from(net) & mask == u32::from(ip) & mask
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
                u128::from(net) & mask == u128::from(ip) & mask
            }
            _ => false,
        }
    }
}

/// Finds the node's storage address.
pub(crate) async fn address(source: &AddressSource) -> Result<IpAddr, HostError> {
    let found = match source {
        AddressSource::Towards { host, port } => towards(host, *port).await,
        AddressSource::Interface(name) => first_local(|interface, _| interface == name),
        AddressSource::Network(network) => first_local(|_, ip| network.contains(ip)),
        AddressSource::Fixed(address) => Some(*address),
    };
    found.ok_or_else(|| HostError::NoAddress { source_of_address: source.to_string() })
}

/// The source address that the kernel chooses. Connecting a UDP socket sends nothing.
async fn towards(host: &str, port: u16) -> Option<IpAddr> {
    let bare = host.trim_matches(['[', ']']);
    let lookup = tokio::net::lookup_host((bare, port));
    let peers = tokio::time::timeout(LOOKUP_LIMIT, lookup).await.ok()?.ok()?;
    peers.into_iter().find_map(|peer| {
        let any: IpAddr = match peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(peer).ok()?;
        socket.local_addr().ok().map(|local| local.ip()).filter(|ip| !ip.is_unspecified())
    })
}

/// The first local address that fits; IPv4 first, link-local ones never.
fn first_local(fits: impl Fn(&str, IpAddr) -> bool) -> Option<IpAddr> {
    let mut found: Vec<IpAddr> = getifaddrs()
        .ok()?
        .filter_map(|interface| {
            let address = interface.address?;
            let ip: IpAddr = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => v4.ip().into(),
                (None, Some(v6)) => v6.ip().into(),
                (None, None) => return None,
            };
            fits(&interface.interface_name, ip).then_some(ip)
        })
        .filter(|ip| match ip {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        })
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.first().copied()
}

/// The node's name in connectors: as told, else its host name.
pub(crate) fn node_name(told: Option<&str>) -> String {
    let own_name = || sysinfo::System::host_name().unwrap_or_else(|_| "localhost".to_owned());
    told.map_or_else(own_name, str::to_owned)
}

/// Builds the connector.
///
/// `host_root` is the host's root directory, `sysfs` its `/sys`; `host` overrides the node's own name.
pub(crate) async fn connector(
    host_root: &Path,
    sysfs: &Path,
    host: Option<&str>,
    source: &AddressSource,
    multipathd: &Multipathd,
) -> Result<Connector, HostError> {
    let initiator = initiator::initiator_name(host_root)?;
    let ip = address(source).await?;
    Ok(Connector {
        initiator,
        ip,
        host: node_name(host),
        platform: sysinfo::System::cpu_arch(),
        os_type: "linux".to_owned(),
        multipath: matches!(multipathd, Multipathd::Claims),
        do_local_attach: false,
        nqn: line(&host_root.join("etc/nvme/hostnqn")),
        // os-brick's get_system_uuid() lowers it, too.
        system_uuid: line(&sysfs.join("class/dmi/id/product_uuid")).map(|text| text.to_lowercase()),
        mountpoint: None,
        mode: None,
    })
}

/// A fact that a node may do without.
fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_both_families_are_parsed_and_contain_what_they_should() {
        let in_network = |net: &str, ip: &str| {
            net.parse::<Network>().unwrap().contains(ip.parse::<IpAddr>().unwrap())
        };
        assert!(in_network("10.0.2.0/24", "10.0.2.15"));
        assert!(!in_network("10.0.2.0/24", "10.0.3.15"));
        assert!(in_network("0.0.0.0/0", "192.0.2.1"));
        assert!(!in_network("0.0.0.0/0", "fd00::1"));
        assert!(in_network("10.0.2.2/32", "10.0.2.2"));
        assert!(in_network("fd00:2::/64", "fd00:2::15"));
        assert!(!in_network("fd00:2::/64", "fd00:3::15"));
        assert!(in_network("::/0", "fd00:3::15"));
        for bad in ["", "10.0.2.0", "10.0.2.0/33", "fd00::/129", "10.0.2/24", "10.0.2.0/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad:?} was accepted");
        }
    }

    #[tokio::test]
    async fn the_address_is_found_by_each_source() {
        let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
        let towards = AddressSource::Towards { host: "127.0.0.1".to_owned(), port: 8776 };
        assert_eq!(address(&towards).await.unwrap(), loopback);
        assert_eq!(address(&AddressSource::Interface("lo".to_owned())).await.unwrap(), loopback);
        let network = AddressSource::Network("127.0.0.0/8".parse().unwrap());
        assert_eq!(address(&network).await.unwrap(), loopback);
        let none = AddressSource::Network("240.0.0.0/8".parse().unwrap());
        let error = address(&none).await.unwrap_err();
        assert_eq!(error.to_string(), "no address of this node fits network 240.0.0.0/8");
    }

    #[tokio::test]
    async fn the_connector_has_what_os_brick_sends() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "etc/iscsi/initiatorname.iscsi",
            "InitiatorName=iqn.1993-08.org.debian:01:cad181614cec\n",
        );
        write(
            "etc/nvme/hostnqn",
            "nqn.2014-08.org.nvmexpress:uuid:7a29c609-53cc-4134-830f-6d08a0b9da91\n",
        );
        write("sys/class/dmi/id/product_uuid", "7A29C609-53CC-4134-830F-6D08A0B9DA91\n");
        let connector = connector(
            root.path(),
            &root.path().join("sys"),
            Some("worker-3"),
            &AddressSource::Fixed("10.0.2.15".parse().unwrap()),
            &Multipathd::Claims,
        )
        .await
        .unwrap();
        let mut sent = serde_json::to_value(&connector).unwrap();
        sent["platform"] = "x86_64".into();
        assert_eq!(
            sent,
            serde_json::json!({
                "initiator": "iqn.1993-08.org.debian:01:cad181614cec",
                "ip": "10.0.2.15",
                "host": "worker-3",
                "platform": "x86_64",
                "os_type": "linux",
                "multipath": true,
                "do_local_attach": false,
                "nqn": "nqn.2014-08.org.nvmexpress:uuid:7a29c609-53cc-4134-830f-6d08a0b9da91",
                "system uuid": "7a29c609-53cc-4134-830f-6d08a0b9da91",
            })
        );
    }
}
