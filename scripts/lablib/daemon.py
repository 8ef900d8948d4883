"""attachd as a daemon in a node."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

from lablib.commands import wait_until
from lablib.errors import LabError
from lablib.node import BINARY, Attachd

DIRECTORY = "/run/attachd-requests"
LOG = "/run/attachd-requests.log"

Status = dict[str, Any]


class Background:
    """`attachd run` in one node. It may be started, ended and started again."""

    def __init__(self, node: Attachd, log_file: str) -> None:
        self._node = node
        self._log = log_file
        self.pid: Optional[int] = None

    def begin(self, arguments: list[str], environment: dict[str, str]) -> None:
        """Start it; it may not have come far when this returns."""
        prefix = self._node.environment(**{"ATTACHD_LOG": "attachd=debug", "ATTACHD_LOG_JSON": "true", **environment})
        argv = shlex.join([*prefix, BINARY, "run", *arguments])
        self.pid = int(self._node.shell(f"setsid {argv} < /dev/null >> {self._log} 2>&1 & echo $!"))

    def alive(self) -> bool:
        """Tell whether it runs."""
        return self._node.execute(["kill", "-0", str(self.pid)]).code == 0

    def end(self, number: str, *, timeout: float = 60) -> None:
        """Send a signal that ends it, and wait until it has ended."""
        self._node.shell(f"kill -{number} {self.pid}")
        wait_until(lambda: not self.alive(), timeout=timeout, what=f"the daemon to end after SIG{number}")

    def log(self) -> str:
        """What it said."""
        return self._node.shell(f"cat {self._log} 2>/dev/null || true")

    def memory(self) -> int:
        """Its resident memory in KiB."""
        return self._status("VmRSS")

    def own_memory(self) -> int:
        """What of it is not pages of the program's file, in KiB."""
        return self._status("RssAnon")

    def _status(self, field: str) -> int:
        return int(self._node.shell(f"awk '/^{field}:/ {{print $2}}' /proc/{self.pid}/status"))

    def cinder_calls(self) -> int:
        """How often it has asked Cinder so far."""
        return int(self._node.shell(f"grep -c 'Cinder answered' {self._log} || true"))


class Daemon(Background):
    """The daemon of one node, serving a directory of requests."""

    def __init__(self, node: Attachd) -> None:
        super().__init__(node, LOG)

    def start(self, **environment: str) -> None:
        """Start it."""
        self._node.shell(f"mkdir -p {DIRECTORY}")
        self.begin(["--requests-dir", DIRECTORY], environment)
        wait_until(self._serves, timeout=60, what="the daemon to serve; see its log")

    def _serves(self) -> bool:
        if not self.alive():
            raise LabError(f"the daemon ended: {self.log()}")
        # It has looked at the directory before it says anything else.
        return "READY" in self._node.shell(
            f"grep -q inotify /proc/{self.pid}/fdinfo/* 2>/dev/null && echo READY || true")

    def write(self, file: str, text: str) -> None:
        """Put a file into the directory, whole at once."""
        self._node.shell(f"cat > {DIRECTORY}/.new << 'END'\n{text}\nEND\nmv {DIRECTORY}/.new {DIRECTORY}/{file}")

    def request(self, name: str, volume: str, *, file: Optional[str] = None, node_name: Optional[str] = None, **spec: Any) -> None:
        """Put a request into the directory. JSON is YAML."""
        self.write(file or f"{name}.yaml", json.dumps({
            "apiVersion": "attachd.dev/v1alpha1", "kind": "VolumeAttachRequest", "metadata": {"name": name},
            "spec": {"nodeName": node_name or self._node.name, "volumeID": volume, **spec}}))

    def remove(self, file: str) -> None:
        """Take a file out of the directory."""
        self._node.shell(f"rm {DIRECTORY}/{file}")

    def files(self) -> list[str]:
        """What lies in the directory."""
        return self._node.shell(f"ls {DIRECTORY}").split()

    def status(self, stem: str) -> Optional[Status]:
        """The status that the daemon wrote for a file, without its header; None where there is none."""
        text = self._node.shell(f"cat {DIRECTORY}/{stem}.status.yaml 2>/dev/null || true")
        return None if text.strip() == "" else parse(text)["status"]

    def wait_for(self, stem: str, reason: str, *, ready: bool, timeout: float = 180) -> Status:
        """Wait until the condition Ready of a status says this; give the status."""
        last: Optional[Status] = None

        def said() -> bool:
            nonlocal last
            last = self.status(stem)
            condition = ready_condition(last)
            return (condition.get("status"), condition.get("reason")) == ("True" if ready else "False", reason)

        try:
            wait_until(said, timeout=timeout, what=f"{stem} to be {reason}", interval=0.5)
        except LabError as error:
            raise LabError(f"{error}; its status is {last}; the log ends: {self.log()[-3000:]}") from error
        assert last is not None
        return last

    def wait_gone(self, stem: str, *, timeout: float = 180) -> None:
        """Wait until a status is gone: its request was detached."""
        try:
            wait_until(lambda: self.status(stem) is None, timeout=timeout, what=f"the status of {stem} to go", interval=0.5)
        except LabError as error:
            raise LabError(f"{error}; it is {self.status(stem)}; the log ends: {self.log()[-3000:]}") from error


def ready_condition(status: Optional[Status]) -> dict[str, str]:
    """The condition Ready of a status, or nothing."""
    conditions = (status or {}).get("conditions", [])
    found: dict[str, str] = next((condition for condition in conditions if condition["type"] == "Ready"), {})
    return found


@contextmanager
def daemon(node: Attachd, **environment: str) -> Iterator[Daemon]:
    """A daemon for the time of a test, with an empty directory."""
    node.shell(f"rm -rf {DIRECTORY} {LOG}")
    running = Daemon(node)
    running.start(**environment)
    yield running
    if running.alive():
        running.end("TERM")
    node.shell(f"rm -rf {DIRECTORY} {LOG}")


def parse(text: str) -> Any:
    """Read the YAML that attachd writes: block mappings and sequences of plain, quoted, folded and literal scalars."""
    lines = [line for line in text.splitlines() if line.strip() and line.strip() != "---"]
    value, rest = _block(lines, 0)
    if rest != len(lines):
        raise LabError(f"can't read this status: {text}")
    return value


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _block(lines: list[str], at: int) -> tuple[Any, int]:
    indent = _indent(lines[at])
    if lines[at].lstrip().startswith("- "):
        items = []
        while at < len(lines) and _indent(lines[at]) == indent and lines[at].lstrip().startswith("- "):
            # The first key of the item stands where the others will.
            lines[at] = " " * (indent + 2) + lines[at].lstrip()[2:]
            item, at = _block(lines, at)
            items.append(item)
        return items, at
    mapping: dict[str, Any] = {}
    while at < len(lines) and _indent(lines[at]) == indent and not lines[at].lstrip().startswith("- "):
        key, _, scalar = lines[at].strip().partition(":")
        at += 1
        if scalar.strip() in (">-", "|-", ">", "|"):
            folded = []
            while at < len(lines) and _indent(lines[at]) > indent:
                folded.append(lines[at].strip())
                at += 1
            mapping[key] = (" " if ">" in scalar else "\n").join(folded)
        elif scalar.strip():
            mapping[key] = _scalar(scalar.strip())
        elif at < len(lines) and (_indent(lines[at]) > indent or lines[at].lstrip().startswith("- ")):
            mapping[key], at = _block(lines, at)
        else:
            mapping[key] = None
    return mapping, at


def _scalar(text: str) -> Any:
    if text[:1] == '"':
        return json.loads(text)
    if text[:1] == "'":
        return text[1:-1].replace("''", "'")
    if text in ("null", "~"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if text in ("[]", "{}"):
        return json.loads(text)
    return int(text) if text.lstrip("-").isdigit() else text
