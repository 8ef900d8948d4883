"""Cutting one of a node's two network paths to its storage, and healing it."""

from __future__ import annotations

from lablib import guest
from lablib.errors import LabError
from lablib.state import Lab, Node

_TIMEOUT = 60


def _table(path: int, port: int) -> str:
    v4, v6 = f"10.0.{path + 1}.2", f"fd00:{path + 1}::2"
    return f"""
table inet lab_path{path} {{
    chain out {{
        type filter hook output priority 0;
        ip daddr {v4} tcp dport {port} drop
        ip6 daddr {v6} tcp dport {port} drop
    }}
    chain in {{
        type filter hook input priority 0;
        ip saddr {v4} tcp sport {port} drop
        ip6 saddr {v6} tcp sport {port} drop
    }}
}}
"""


def _emptied(path: int) -> str:
    return f"table inet lab_path{path}\ndelete table inet lab_path{path}\n"


def cut(lab: Lab, node: Node, path: int, how: str) -> None:
    """Cut a path: `drop` loses the iSCSI packets in both directions, `link` takes the network card down."""
    if how == "link":
        if path == 1:
            raise LabError("path 1 carries ssh and Cinder's API too, so its link stays up; cut it with --how drop")
        guest.output(lab, node, ["ip", "link", "set", "eth1", "down"], timeout=_TIMEOUT)
        return
    rules = _emptied(path) + _table(path, lab.settings().iscsi_port)
    guest.output(lab, node, ["nft", "-f", "-"], timeout=_TIMEOUT, stdin=rules.encode())


def restore(lab: Lab, node: Node, path: int) -> None:
    """Heal a path, however it was cut."""
    guest.output(lab, node, ["nft", "-f", "-"], timeout=_TIMEOUT, stdin=_emptied(path).encode())
    guest.output(lab, node, ["ip", "link", "set", f"eth{path - 1}", "up"], timeout=_TIMEOUT)
