"""What the tests on a node do over and over: volumes, attaches that must work, refusals that must change nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Optional

from lablib import cinder, guest, lifecycle, paths
from lablib.cases import expect
from lablib.commands import wait_until
from lablib.node import BINARY, DEBUG, Attachd, Result
from lablib.proxy import Proxy, before_cinder

MOUNT = "/mnt/t"


@contextmanager
def volume(node: Attachd, type_: Optional[str] = None, size: int = 1) -> Iterator[str]:
    """A volume that exists for the time of a test."""
    created = node.cinder.create_volume(size, type_, "test")
    node.cinder.wait_for_volume(created, 120)
    yield created
    # Not where the test failed: the runner then sweeps everything away.
    node.cinder.delete_volume(created, 120)


def backing_file(node: Attachd, volume_id: str) -> Path:
    """The file on this machine that holds a volume's data."""
    return node.lab.cinder_dir / "volumes" / f"volume-{volume_id}"


def fill(disk: Path, writes: list[tuple[int, bytes]]) -> None:
    """Make a volume all zeros but for this. tgtd reads the file when a node does, so it is cut, not made anew."""
    size = disk.stat().st_size
    with open(disk, "r+b") as file:
        file.truncate(0)
        file.truncate(size)
        for offset, data in writes:
            file.seek(offset)
            file.write(data)


def extents(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Begin and end of each part of a file that isn't a hole."""
    end, at = os.fstat(file.fileno()).st_size, 0
    while True:
        try:
            at = os.lseek(file.fileno(), at, os.SEEK_DATA)
        except OSError:  # only a hole is left
            return
        stop = min(os.lseek(file.fileno(), at, os.SEEK_HOLE), end)
        yield at, stop
        at = stop


def attach(node: Attachd, volume_id: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Attach, which must succeed; give the result."""
    result = node.run("attach", volume_id, "-o", "json", *arguments, **environment)
    expect(result.code == 0, f"attach: exit code {result.code}: {result.stderr}")
    attached: dict[str, Any] = result.json()
    return attached


def detach(node: Attachd, volume_id: str, **environment: str) -> None:
    """Detach, which must succeed and leave nothing."""
    result = node.run("detach", volume_id, **environment)
    expect(result.code == 0, f"detach: exit code {result.code}: {result.stderr}")
    nothing_left(node, volume_id)


def nothing_left(node: Attachd, volume_id: str) -> None:
    """Neither the node nor Cinder holds anything of a volume."""
    left = node.leftovers(volume=volume_id)
    expect(left == [], f"left: {left}")
    status = node.volume(volume_id)["status"]
    expect(status == "available", f"the volume is {status} in Cinder")


def attachments_of(node: Attachd, volume_id: str) -> list[dict[str, Any]]:
    """Cinder's attachments of a volume."""
    return [item for item in node.cinder.attachments() if item["volume_id"] == volume_id]


def in_use_once(node: Attachd, volume_id: str) -> None:
    """Cinder has the volume in use by exactly one complete attachment."""
    statuses = [item["status"] for item in attachments_of(node, volume_id)]
    expect(statuses == ["attached"], f"the attachments in Cinder are {statuses}")
    status = node.volume(volume_id)["status"]
    expect(status == "in-use", f"the volume is {status} in Cinder")


def active_paths(attached: dict[str, Any]) -> int:
    """How many paths of an attach's result are active."""
    return sum(path["state"] == "active" for path in attached["paths"])


def refused(node: Attachd, code: int, words: list[str], *arguments: str, **environment: str) -> Result:
    """attachd must end with this exit code and say these words, and send nothing to Cinder that changes anything."""
    result = failed(node, code, words, *arguments, **environment)
    changing = [call for call in result.cinder_calls() if not call.startswith("GET ")]
    expect(changing == [], f"it was refused after {changing}")
    left = node.leftovers()
    expect(left == [], f"left by what was refused: {left}")
    return result


def failed(node: Attachd, code: int, words: list[str], *arguments: str, **environment: str) -> Result:
    """attachd must end with this exit code and say these words."""
    result = node.run(*arguments, **{**DEBUG, **environment})
    said = "\n".join(line for line in result.stderr.splitlines() if not line.startswith('{"timestamp"'))
    expect(result.code == code, f"exit code {result.code}, expected {code}: {said}")
    for word in words:
        expect(word in said, f"it doesn't say {word!r}: {said}")
    expect("panicked" not in result.stderr, f"a panic: {result.stderr[-2000:]}")
    return result


@contextmanager
def path_cut(node: Attachd, *which: int) -> Iterator[None]:
    """Network paths that are cut for a while."""
    try:
        for path in which:
            paths.cut(node.lab, node.record, path, "drop")
        yield
    finally:
        for path in which:
            paths.restore(node.lab, node.record, path)


@contextmanager
def cinder_stopped(node: Attachd) -> Iterator[None]:
    """Cinder is away for a while: connections are refused."""
    cinder.stop(node.lab)
    try:
        yield
    finally:
        cinder.start(node.lab, node.lab.settings())


@contextmanager
def cinder_paused(node: Attachd) -> Iterator[None]:
    """Cinder takes connections for a while, and answers nothing."""
    cinder.pause(node.lab, True)
    try:
        yield
    finally:
        cinder.pause(node.lab, False)


@contextmanager
def proxied(node: Attachd) -> Iterator[Proxy]:
    """A proxy before Cinder; pass `OS_ENDPOINT=proxy.endpoint_in_node` to attachd."""
    with before_cinder(node.cinder_port) as proxy:
        yield proxy


_RUNNING = {"multipathd": "multipathd show daemon | grep -q pid", "iscsid": "iscsiadm -m session -P0 2>&1 | grep -qv 'connect to iscsid'"}


@contextmanager
def daemon_stopped(node: Attachd, name: str) -> Iterator[None]:
    """multipathd or iscsid is away for a while."""
    # One that is busy with a lost session may not heed the first signal; an init system kills it then, too.
    node.shell(f"pkill -x {name} || true; while [ $SECONDS -lt 60 ]; do pgrep -x {name} > /dev/null || exit 0; "
               f"[ $SECONDS -lt 28 ] || pkill -KILL -x {name}; sleep 0.1; done; exit 1")
    try:
        yield
    finally:
        node.shell(f"{name}")
        wait_until(lambda: node.execute(["bash", "-c", _RUNNING[name]]).code == 0, timeout=60, what=f"{name} to answer")


def reserve_elsewhere(node: Attachd, volume_id: str, host: str, initiator: str = "iqn.2026-11.dev.attachd.lab:other",
                      complete: bool = True) -> dict[str, Any]:
    """Attach a volume in Cinder for somebody else; give the attachment, secrets included."""
    connector = {"host": host, "initiator": initiator, "ip": "10.0.2.99", "platform": "x86_64", "os_type": "linux", "multipath": True}
    body = json.dumps({"attachment": {"volume_uuid": volume_id}})
    created = node.cinder.request("POST", "/attachments", body).json()["attachment"]["id"]
    body = json.dumps({"attachment": {"connector": connector}})
    attachment: dict[str, Any] = node.cinder.request("PUT", f"/attachments/{created}", body).json()["attachment"]
    if complete:
        node.cinder.request("POST", f"/attachments/{created}/action", '{"os-complete": {}}').json()
    return attachment


def free(node: Attachd, attachment_id: str, volume_id: str) -> None:
    """Delete an attachment in Cinder, and wait until the volume is free."""
    node.cinder.request("DELETE", f"/attachments/{attachment_id}").json()
    node.cinder.wait_for_volume(volume_id, 60)


def cut_power(node: Attachd) -> None:
    """Cut the node's power and boot it again; what lies on its own disk survives."""
    with powered_off(node):
        pass


@contextmanager
def powered_off(node: Attachd) -> Iterator[None]:
    """A node whose power is cut for a while; what lies on its own disk survives."""
    kept = Path(node.lab.share) / "attachd"
    node.shell(f"cp {BINARY} /lab/attachd")
    guest.halt(node.lab, node.record, power_cut=True)
    yield
    # Not where the test failed: the runner then makes the node anew.
    lifecycle.reboot(node.lab, node.record, hard=True)
    release = node.is_release
    node.install(kept)
    node.is_release = release
    kept.unlink()
