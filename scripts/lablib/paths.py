"""Cutting one of a node's two network paths to its storage, and healing it.

A path has a network to the target on this machine, and one to the storage guest where there is one.
"""

from __future__ import annotations

from lablib import guest, storage
from lablib.errors import LabError
from lablib.networks import HOST_NETWORKS, STORAGE_NETWORKS
from lablib.state import Lab, Node, Settings

_TIMEOUT = 60


def _table(settings: Settings, path: int) -> str:
    portals = [(HOST_NETWORKS[path], 2, settings.iscsi_port)]
    if settings.storage:
        portals.append((STORAGE_NETWORKS[path], settings.storage.guest.address, storage.TARGET_PORT))

    def rules(address: str, port: str) -> str:
        return "\n".join(f"        {family} {address} {prefix}{host} tcp {port} {number} drop"
                         for network, host, number in portals
                         for family, prefix in (("ip", f"10.0.{network}."), ("ip6", f"fd00:{network}::")))

    return f"""
table inet lab_path{path} {{
    chain out {{
        type filter hook output priority 0;
{rules("daddr", "dport")}
    }}
    chain in {{
        type filter hook input priority 0;
{rules("saddr", "sport")}
    }}
}}
"""


def _emptied(path: int) -> str:
    return f"table inet lab_path{path}\ndelete table inet lab_path{path}\n"


def _links(lab: Lab, node: Node, path: int) -> list[str]:
    """Return a path's network cards, but not the one that carries ssh and the API too."""
    links = ["eth1"] if path == 2 else []
    if guest.on_storage_networks(lab, node):
        links.append(f"eth{path + 1}")
    return links


def cut(lab: Lab, node: Node, path: int, how: str) -> None:
    """Cut a path: `drop` loses the iSCSI packets in both directions, `link` takes the network cards down."""
    if how == "link":
        links = _links(lab, node, path)
        if not links:
            raise LabError("path 1 carries ssh and Cinder's API too, so its link stays up; cut it with --how drop")
        guest.output(lab, node, ["ip", "-batch", "-"], timeout=_TIMEOUT, stdin=_set(links, "down"))
        return
    rules = _emptied(path) + _table(lab.settings(), path)
    guest.output(lab, node, ["nft", "-f", "-"], timeout=_TIMEOUT, stdin=rules.encode())


def restore(lab: Lab, node: Node, path: int) -> None:
    """Heal a path, however it was cut."""
    guest.output(lab, node, ["nft", "-f", "-"], timeout=_TIMEOUT, stdin=_emptied(path).encode())
    guest.output(lab, node, ["ip", "-batch", "-"], timeout=_TIMEOUT, stdin=_set(_links(lab, node, path), "up"))


def _set(links: list[str], state: str) -> bytes:
    return "".join(f"link set {link} {state}\n" for link in links).encode()
