use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use futures::future::join_all;
use nix::ifaddrs::getifaddrs;
use tokio::net::TcpStream;

use super::{
    Check, Finding, icmp,
    node::{Node, text, unread},
};
use crate::{attach::Ledger, host::Sysfs, model::Portal};

pub(super) const PORTALS: Check = Check {
    id: "portals",
    looks_at: "a TCP connection to each portal of this node's volumes and sessions, and how long it takes",
    why: "A portal that doesn't answer is a path that is missing; the last one that goes takes the volume along.",
};
pub(super) const MTU: Check = Check {
    id: "portal-mtu",
    looks_at: "whether packets of the interface's full size come through to each portal (ICMP echo, don't fragment)",
    why: "Where large packets are lost, logins work and the first real read or write hangs: the worst kind of a dead path.",
};

const CONNECT: Duration = Duration::from_millis(1300);
/// More than this is no storage network; one slow answer of a busy node is no sign.
const SLOW: Duration = Duration::from_millis(250);
const TRIES: usize = 3;
const ECHO: Duration = Duration::from_secs(1);

/// Those of the ledger's volumes, and of the sessions, whoever made them.
async fn portals(node: &Node) -> BTreeSet<Portal> {
    let mut portals = BTreeSet::new();
    // The ledger has a check of its own.
    if let Some(ledger) = Ledger::look(node.state_dir())
        && let Ok(records) = ledger.records().await
    {
        let targets = records.into_iter().flatten().flat_map(|record| record.targets());
        portals.extend(targets.map(|target| target.portal));
    }
    let sysfs = node.config.sysfs.clone();
    let sessions = node.read("sessions", move || Sysfs::new(&sysfs).snapshot()).await;
    if let Ok(Ok(snapshot)) = sessions {
        portals.extend(snapshot.sessions.iter().map(|session| session.portal));
    }
    portals
}

fn address(portal: Portal) -> SocketAddr {
    SocketAddr::new(portal.address(), portal.port())
}

pub(super) const CHECKS: [&Check; 2] = [&PORTALS, &MTU];

pub(super) async fn look(node: &Node) -> Vec<(&'static Check, Finding)> {
    let portals = portals(node).await;
    if portals.is_empty() {
        let nowhere = Finding::left_out("this node has no volumes and no sessions");
        return CHECKS.into_iter().map(|check| (check, nowhere.clone())).collect();
    }
    let addresses = portals.iter().map(Portal::address).collect();
    let reached = join_all(portals.into_iter().map(reach));
    let (reached, mtu) = futures::future::join(reached, mtu(node, addresses)).await;
    vec![(&PORTALS, Finding::all(reached)), (&MTU, mtu)]
}

async fn reach(portal: Portal) -> Finding {
    let mut best = None;
    for _ in 0..TRIES {
        let began = Instant::now();
        match tokio::time::timeout(CONNECT, TcpStream::connect(address(portal))).await {
            Ok(Ok(_)) => best = Some(best.unwrap_or(CONNECT).min(began.elapsed())),
            Ok(Err(error)) => return away(portal, &error.to_string()),
            Err(_) => return away(portal, &format!("no answer in {CONNECT:.1?}")),
        }
        if best <= Some(SLOW) {
            break;
        }
    }
    let took = best.unwrap_or(CONNECT);
    let said = format!("{portal} in {:.1} ms", took.as_secs_f64() * 1000.0);
    if took > SLOW {
        Finding::warning(format!("{said}: slow for a storage network"))
            .advise("see the load of the node, the network and the target")
    } else {
        Finding::ok(said)
    }
}

fn away(portal: Portal, why: &str) -> Finding {
    Finding::failed(format!("{portal}: {why}")).advise(format!(
        "see the way there: ip route get {}; then the storage network, its firewall and the target's service",
        portal.address()
    ))
}

async fn mtu(node: &Node, addresses: BTreeSet<IpAddr>) -> Finding {
    let mut ways = BTreeMap::new();
    for to in addresses {
        if let Some(interface) = interface_towards(to) {
            let mtu =
                text(&node.sysfs(&format!("class/net/{interface}/mtu"))).trim().parse::<usize>();
            ways.insert(to, (interface, mtu.unwrap_or(1500)));
        }
    }
    let echoes = ways.into_iter().map(|(to, (interface, mtu))| async move {
        let look = move || {
            // Loopback takes anything.
            let full = icmp::echo(to, mtu.min(9000), ECHO)?;
            Ok::<_, std::io::Error>((full, full || icmp::echo(to, 576, ECHO)?))
        };
        match node.read("an echo", look).await {
            Ok(Ok((true, _))) => {
                Finding::ok(format!("{to} by {interface}: {} bytes", mtu.min(9000)))
            }
            Ok(Ok((false, true))) => Finding::failed(format!(
                "{to} by {interface}: packets of {mtu} bytes are lost, small ones come through"
            ))
            .run(format!("ip link set dev {interface} mtu 1500"))
            .advise("or let every switch and the storage take packets of that size"),
            Ok(Ok((false, false))) => Finding::left_out(format!("{to} answers no ICMP echo")),
            Ok(Err(error)) => Finding::failed(format!(
                "{to} by {interface}: packets of {mtu} bytes can't be sent: {error}"
            ))
            .run(format!("ip link set dev {interface} mtu 1500")),
            Err(error) => unread(&error),
        }
    });
    Finding::all(join_all(echoes).await)
}

/// The interface that the kernel would send by. Connecting a UDP socket sends nothing.
fn interface_towards(to: IpAddr) -> Option<String> {
    let any: SocketAddr =
        if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(SocketAddr::new(to, 3260)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    getifaddrs().ok()?.find_map(|interface| {
        let address = interface.address?;
        let ip: IpAddr = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => v4.ip().into(),
            (None, Some(v6)) => v6.ip().into(),
            (None, None) => return None,
        };
        (ip == own).then_some(interface.interface_name)
    })
}
