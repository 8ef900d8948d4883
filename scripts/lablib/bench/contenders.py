"""The three in the node, each with a process that runs and times it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any, Optional

from lablib import guest, image_root, python_squashfs
from lablib.errors import LabError
from lablib.node import BINARY, Attachd
from lablib.packages import virtual_environment

OS_BRICK = "7.1.1"
_HERE = Path(__file__).parent
_OS_BRICK_AT = "/opt/os-brick"
_LIMIT = 2700.0

NAMES = ("attachd", "attachd command", "bare tools", "os-brick")


@dataclasses.dataclass(frozen=True)
class Lap:
    """What one order took."""

    seconds: float
    # Of the whole node, in seconds of processor time, and how many processes were started there.
    cpu: float
    processes: int
    # Of the contender's own process: processor time in seconds, memory in KiB.
    own: float
    memory: int
    peak: int
    pid: int


class Contender:
    """One of them."""

    def __init__(self, node: Attachd, name: str, endpoint: Optional[str] = None) -> None:
        self.name = name
        # Some portal is: a volume can't have all its paths.
        self.portals_dead = False
        place = {"endpoint": endpoint or node.endpoint, "project": node.project, "initiator": node.iqn,
                 "address": f"10.0.2.{node.record.address}", "node": node.name, "binary": BINARY, "requests": "/run/bench-requests",
                 "bare_tools": "/run/bench/bare_tools.sh",
                 "environment": {**image_root.environment(), "OS_AUTH_TYPE": "none", "OS_ENDPOINT": endpoint or node.endpoint, "OS_PROJECT_ID": node.project}}
        argv = ["env", f"PYTHONPATH={_OS_BRICK_AT}/site-packages", "PYTHONDONTWRITEBYTECODE=1", "python3", "/run/bench/racer.py", name, json.dumps(place)]
        self._process = subprocess.Popen(guest.command(node.lab, node.record, argv, timeout=24 * 3600), text=True, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE)

    def do(self, what: str, volumes: list[str], multipath: bool = True) -> Lap:
        """Have it done; raise LabError where it fails."""
        assert self._process.stdin and self._process.stdout
        order = json.dumps({"do": what, "volumes": volumes, "multipath": multipath, "portals_dead": self.portals_dead})
        try:
            print(order, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # there is no answer then, either
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"{self.name} ended with exit code {self._process.wait(timeout=60)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LabError(f"{self.name}: {what} {len(volumes)}: {answer['error']}")
        return Lap(answer["seconds"], answer["cpu"], answer["processes"], answer["own"], answer.get("VmRSS", 0), answer.get("VmHWM", 0), answer["pid"])

    def close(self) -> None:
        """End its process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=120)


def install(node: Attachd) -> None:
    """Bring what they need into the node."""
    venv = virtual_environment("os-brick", OS_BRICK, _HERE / "constraints.txt")
    packed = python_squashfs.squashfs("os-brick", venv, _OS_BRICK_AT, lambda tree: None)
    guest.copy_in(node.lab, node.record, packed, "/run/os-brick.squashfs")
    node.shell(f"mkdir -p /run/bench {_OS_BRICK_AT}; modprobe loop; mount -t squashfs -o loop,ro /run/os-brick.squashfs {_OS_BRICK_AT}")
    for name in ("racer.py", "bare_tools.sh"):
        guest.copy_in(node.lab, node.record, _HERE / name, f"/run/bench/{name}")
    node.shell("chmod 755 /run/bench/bare_tools.sh")
