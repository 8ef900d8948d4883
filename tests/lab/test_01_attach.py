"""Attaching and detaching: transports, credentials, paths, file systems, modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lablib.cases import expect
from lablib.node import Attachd

MOUNT = "/mnt/t"


@contextmanager
def volume(node: Attachd, type_: str | None = None, size: int = 1) -> Iterator[str]:
    """A volume that exists for the time of a test."""
    created = node.cinder.create_volume(size, type_, "test")
    node.cinder.wait_for_volume(created, 120)
    yield created
    node.cinder.delete_volume(created, 120)


def attach(node: Attachd, volume_id: str, *arguments: str) -> dict:
    """Attach, which must succeed; give the result."""
    result = node.run("attach", volume_id, "-o", "json", *arguments)
    expect(result.code == 0, f"attach: exit code {result.code}: {result.stderr}")
    return result.json()


def detach(node: Attachd, volume_id: str) -> None:
    """Detach, which must succeed and leave nothing."""
    result = node.run("detach", volume_id)
    expect(result.code == 0, f"detach: exit code {result.code}: {result.stderr}")
    expect(node.leftovers(volume=volume_id) == [], f"left: {node.leftovers(volume=volume_id)}")


def keeps_data(node: Attachd, volume_id: str, *arguments: str, paths: int) -> None:
    """Attach, write, detach, attach again, read, detach."""
    attached = attach(node, volume_id, "--mount", MOUNT, *arguments)
    states = [path["state"] for path in attached["paths"] if path["device"]]
    expect(states == ["active"] * paths, f"the paths are {attached['paths']}")
    node.shell(f"cd {MOUNT}; dd if=/dev/urandom of=data bs=1M count=4 conv=fsync status=none; sha256sum data > sum; sync")
    detach(node, volume_id)
    attach(node, volume_id, "--mount", MOUNT, *arguments)
    node.shell(f"cd {MOUNT}; sha256sum -c sum")
    detach(node, volume_id)


def test_two_paths_with_chap_and_ext4_keep_their_data(node: Attachd) -> None:
    with volume(node, "tgt") as v:
        keeps_data(node, v, "--fs", "ext4", "--multipath", "required", paths=2)


def test_one_path_with_chap_and_xfs_keeps_its_data(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        keeps_data(node, v, "--fs", "xfs", paths=1)


def test_two_paths_without_chap_keep_their_data(node: Attachd) -> None:
    with volume(node, "tgt-nochap") as v:
        keeps_data(node, v, paths=2)


def test_two_ipv6_portals_with_xfs_keep_their_data(node: Attachd) -> None:
    with volume(node, "tgt-v6") as v:
        keeps_data(node, v, "--fs", "xfs", paths=2)
