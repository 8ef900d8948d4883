"""The guests' networks: two user networks of QEMU's to this machine's loopback, two real ones to the storage guest.

A network N is 10.0.N.0/24 and fd00:N::/64. Each of a node's two paths is one network of either kind.
The storage guest's QEMU is the hub of the real ones: it has a unix socket for each node on each of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from lablib.state import Lab, Node

MAX_NODES = 8
HOST_NETWORKS = {1: 2, 2: 3}  # path -> network
STORAGE_NETWORKS = {1: 4, 2: 5}

# Frames as storage networks have them: an emulated machine pays for each.
_JUMBO = 9000
_LISTENING = 0x10000  # a unix socket's flag, in /proc/net/unix


@dataclasses.dataclass(frozen=True)
class Card:
    """A guest's network card and what is behind it: QEMU's back ends, the first of them the card's own."""

    network: int
    netdevs: list[str]
    mtu: int | None = None

    def arguments(self, address: int) -> list[str]:
        """Return QEMU's arguments for the card of the guest with that address."""
        device = f"virtio-net-pci,netdev=net{self.network},romfile=,mac=52:54:00:00:{self.network:02x}:{address:02x}"
        if self.mtu:
            device += f",host_mtu={self.mtu}"
        return [*(part for netdev in self.netdevs for part in ("-netdev", netdev)), "-device", device]


def to_host(network: int, node: Node, forwards: Mapping[int, int]) -> Card:
    """Return a card on a user network, where this machine's loopback is 10.0.N.2; `forwards`: port here -> in the guest."""
    options = f"user,id=net{network},net=10.0.{network}.0/24,ipv6-prefix=fd00:{network}::,ipv6-host=fd00:{network}::2"
    for outside, inside in forwards.items():
        options += f",hostfwd=tcp:127.0.0.1:{outside}-10.0.{network}.{node.address}:{inside}"
    return Card(network, [options])


def to_storage(lab: Lab, network: int, node: Node) -> Card:
    """Return a node's card on a network of the storage guest."""
    socket = _socket(lab, network, node.number)
    return Card(network, [f"stream,id=net{network},server=off,addr.type=unix,addr.path={socket}"], _JUMBO)


def of_storage(lab: Lab, network: int) -> Card:
    """Return the storage guest's card on a network of its own, with room for every node there can be."""
    netdevs = [f"hubport,id=net{network},hubid={network}"]
    for number in range(1, MAX_NODES + 1):
        end = f"net{network}-node{number}"
        netdevs.append(f"stream,id={end},server=on,addr.type=unix,addr.path={_socket(lab, network, number)}")
        netdevs.append(f"hubport,id=hub-{end},hubid={network},netdev={end}")
    return Card(network, netdevs, _JUMBO)


def storage_listens(lab: Lab) -> bool:
    """Tell whether a node can be started: QEMU tries only once to connect its cards."""
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    listening = {fields[7] for fields in sockets if len(fields) > 7 and int(fields[3], 16) & _LISTENING}
    return all(str(_socket(lab, network, number)) in listening
               for network in STORAGE_NETWORKS.values() for number in range(1, MAX_NODES + 1))


def _socket(lab: Lab, network: int, number: int) -> Path:
    return lab.links_dir / f"{network}-{number}"
