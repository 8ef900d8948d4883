"""One lab's directory and its record: names, ports and options that were chosen when it was started."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import socket
from pathlib import Path

from lablib.errors import LabError
from lablib.processes import ProcessTable

PROJECT_DIR = Path(__file__).resolve().parents[2]
PROJECT_ID = "a77ac4d0" * 4  # Cinder takes only [0-9a-f-] for a project
STORAGE = "storage"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
# Below the range from which the kernel takes ports for outgoing connections (from 32768).
_PORTS = range(20000, 32000)


@dataclasses.dataclass
class Node:
    """What is recorded of a guest node."""

    name: str
    number: int
    ssh_port: int
    fast_failover: bool
    find_multipaths: str | None
    memory: int = 1024  # MiB

    @property
    def iqn(self) -> str:
        """The node's initiator name."""
        return f"iqn.2026-11.dev.attachd.lab:{self.name}"

    @property
    def address(self) -> int:
        """The last part of the node's addresses, 10.0.2.X to 10.0.5.X."""
        return 14 + self.number


@dataclasses.dataclass
class Storage:
    """What is recorded of the guest that is a storage node: Cinder with LVM and LIO."""

    ssh_port: int
    cinder_port: int

    @property
    def guest(self) -> Node:
        """Return it as a guest like the others."""
        return Node(STORAGE, 0, self.ssh_port, fast_failover=False, find_multipaths=None)


@dataclasses.dataclass
class Kubernetes:
    """What is recorded of the Kubernetes API: the ports, all of them on loopback."""

    api_port: int
    etcd_port: int
    controller_manager_port: int


@dataclasses.dataclass
class Keystone:
    """What is recorded of Keystone: its port, and that of Cinder's API for those who bring a token of it."""

    port: int
    cinder_port: int
    token_lifetime: int


@dataclasses.dataclass
class Settings:
    """The part of the lab's record that is written to its directory."""

    accelerator: str
    cinder_port: int
    iscsi_port: int
    ipv6: bool
    nodes: dict[str, Node]
    storage: Storage | None = None
    kubernetes: Kubernetes | None = None
    keystone: Keystone | None = None
    cinder_old_port: int | None = None

    @property
    def ports(self) -> list[int]:
        """The ports that are taken, whether what listens on them runs or not."""
        taken = [self.cinder_port, self.iscsi_port, *(node.ssh_port for node in self.nodes.values())]
        if self.storage:
            taken += [self.storage.ssh_port, self.storage.cinder_port]
        if self.kubernetes:
            taken += [self.kubernetes.api_port, self.kubernetes.etcd_port, self.kubernetes.controller_manager_port]
        if self.keystone:
            taken += [self.keystone.port, self.keystone.cinder_port]
        if self.cinder_old_port:
            taken.append(self.cinder_old_port)
        return taken


class Lab:
    """A lab by name: where its files are and what is recorded about it."""

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise LabError(f"{name!r} is not a lab name: small letters, digits and '-', up to 31")
        base = Path(os.environ.get("ATTACHD_LAB_STATE") or "/var/tmp/attachd-lab").absolute()
        self.name = name
        self.directory = base / name
        self.lock_file = base / f".{name}.lock"
        self.logs = self.directory / "logs"
        self.ssh_dir = self.directory / "ssh"
        self.share = self.directory / "share"
        self.cinder_dir = self.directory / "cinder"
        self.cinder_old_dir = self.directory / "cinder-old"
        self.target_dir = self.directory / "target"
        self.links_dir = self.directory / "links"
        self.kubernetes_dir = self.directory / "kubernetes"
        self.keystone_dir = self.directory / "keystone"
        self.processes = ProcessTable(self.directory / "processes")
        self._settings_file = self.directory / "lab.json"

    def node_dir(self, name: str) -> Path:
        """Return where a node's disk is."""
        return self.directory / "nodes" / name

    def load(self) -> Settings | None:
        """Return the lab's record, or None if it isn't up."""
        try:
            record = json.loads(self._settings_file.read_text())
        except FileNotFoundError:
            return None
        record["nodes"] = {name: Node(**node) for name, node in record["nodes"].items()}
        storage = record.get("storage")
        record["storage"] = Storage(**storage) if storage else None
        kubernetes = record.get("kubernetes")
        record["kubernetes"] = Kubernetes(**kubernetes) if kubernetes else None
        keystone = record.get("keystone")
        record["keystone"] = Keystone(**keystone) if keystone else None
        return Settings(**record)

    def settings(self) -> Settings:
        """Return the lab's record; raise LabError if it isn't up."""
        settings = self.load()
        if settings is None:
            raise LabError(f"the lab {self.name!r} is not up; start it with: scripts/lab up")
        return settings

    def save(self, settings: Settings) -> None:
        """Write the record, whole or not at all."""
        unfinished = self._settings_file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(dataclasses.asdict(settings), indent=2))
        unfinished.replace(self._settings_file)

    def guests(self) -> dict[str, Node]:
        """Return the records of all guests by their names: the nodes, and the storage guest if there is one."""
        settings = self.settings()
        return settings.nodes | ({STORAGE: settings.storage.guest} if settings.storage else {})

    def guest(self, name: str) -> Node:
        """Return a guest's record by its name."""
        guests = self.guests()
        if name not in guests:
            raise LabError(f"no guest {name!r} in the lab {self.name!r}; it has: {' '.join(guests)}")
        return guests[name]

    def node(self, name: str) -> Node:
        """Return a node's record by its name."""
        nodes = self.settings().nodes
        if name not in nodes:
            raise LabError(f"no node {name!r} in the lab {self.name!r}; it has: {' '.join(nodes)}")
        return nodes[name]


def has_ipv6_loopback() -> bool:
    """Tell whether this machine can listen on [::1]."""
    return _free("::1", 0)


def free_port(taken: list[int]) -> int:
    """Choose a port that is free on loopback, IPv4 and (where there is one) IPv6."""
    addresses = ["127.0.0.1"] + (["::1"] if has_ipv6_loopback() else [])
    for port in random.sample(_PORTS, 200):
        if port not in taken and all(_free(address, port) for address in addresses):
            return port
    raise LabError("no free port found on loopback")


def _free(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, port))
    except OSError:
        return False
    return True
