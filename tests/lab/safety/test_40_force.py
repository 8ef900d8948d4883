"""What a detach gives up and what it must not touch, on a real kernel with real multipath."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from lablib.cases import expect, takes_long
from lablib.node import Attachd, Result
from lablib.proxy import Reply
from lablib.steps import (MOUNT, attach, attachments_of, backing_file, detach, failed, free, in_use_once, nothing_left, path_cut, proxied,
                          reserve_elsewhere, volume)

# The kernel writes nothing out by itself, nor does ext4's journal.
_HELD_BACK = ("--mount", MOUNT, "--mount-options", "commit=900")
_SLOW = 400


@contextmanager
def nothing_written_by_itself(node: Attachd) -> Iterator[None]:
    """The kernel keeps what applications write until somebody has it write it out."""
    keys = ("dirty_writeback_centisecs", "dirty_expire_centisecs")
    before = [node.shell(f"sysctl -n vm.{key}").strip() for key in keys]
    node.shell("sysctl -q vm.dirty_writeback_centisecs=0 vm.dirty_expire_centisecs=360000")
    try:
        yield
    finally:
        for key, value in zip(keys, before):
            node.shell(f"sysctl -q vm.{key}={value}")


def write_unsynced(node: Attachd, mib: int = 8) -> None:
    """An application writes, and nothing of it has left the page cache."""
    node.shell(f"dd if=/dev/urandom of={MOUNT}/unwritten bs=1M count={mib} status=none")
    dirty = int(node.shell("awk '/^Dirty:/ {print $2}' /proc/meminfo"))
    expect(dirty > mib * 900, f"only {dirty} KiB are held back")


def contents(node: Attachd, volume_id: str) -> str:
    """The checksum of all that the storage has of a volume."""
    digest = hashlib.sha256()
    with backing_file(node, volume_id).open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def forced(node: Attachd, volume_id: str, code: int = 0, **environment: str) -> Result:
    """Detach by force, which must say what it gives up."""
    result = node.run("detach", "--force", volume_id, timeout=_SLOW, **environment)
    expect(result.code == code, f"detach --force: exit code {result.code}: {result.stderr}")
    expect("what was not written to the volume is given up" in result.stderr, f"it says {result.stderr}")
    return result


def test_force_ends_a_detach_that_no_path_is_left_for_and_keeps_what_was_written_before(node: Attachd) -> None:
    with volume(node) as v, nothing_written_by_itself(node):
        attach(node, v, *_HELD_BACK, "--multipath", "required")
        node.wait_for_paths(active=2, failed=0)
        node.shell(f"echo kept > {MOUNT}/file; sync")
        with path_cut(node, 1, 2):
            node.wait_for_paths(active=0, failed=2)
            write_unsynced(node)
            result = forced(node, v)
            print(f"     detach --force without a path, 8 MiB not written: {result.seconds:.1f} s")
            nothing_left(node, v)
        attach(node, v, "--mount", MOUNT)
        expect(node.shell(f"cat {MOUNT}/file") == "kept\n", "what was written before is gone")
        detach(node, v)


@takes_long
def test_force_gives_up_nothing_where_all_can_be_written(node: Attachd) -> None:
    with volume(node) as v, nothing_written_by_itself(node):
        attach(node, v, *_HELD_BACK)
        write_unsynced(node)
        wanted = node.shell(f"sha256sum < {MOUNT}/unwritten")
        result = node.run("detach", "--force", v, timeout=_SLOW)
        expect(result.code == 0 and "given up" not in result.stderr, f"detach --force: {result}")
        nothing_left(node, v)
        attach(node, v, "--mount", MOUNT)
        expect(node.shell(f"sha256sum < {MOUNT}/unwritten") == wanted, "it was not written")
        detach(node, v)


def test_a_mount_that_a_process_keeps_is_given_up_by_force_and_finished_when_the_process_is_gone(node: Attachd) -> None:
    for multipath in ("required", "disabled"):
        with volume(node) as v:
            attach(node, v, "--mount", MOUNT, "--multipath", multipath)
            node.shell(f"echo kept > {MOUNT}/file; sync")
            holder = node.shell(f"setsid sleep 900 > {MOUNT}/open < /dev/null 2> /dev/null & echo $!").strip()
            failed(node, 5, ["is in use by", "sleep", "[Busy]"], "detach", v)
            in_use_once(node, v)
            # A single disk goes at once; a map stays until nobody holds it.
            code = 6 if multipath == "required" else 0
            result = forced(node, v, code)
            print(f"     {multipath}: detach --force with a busy mount: exit code {result.code}, {result.seconds:.1f} s")
            expect(code == 0 or ("[StillHeld]" in result.stderr and "sleep" in result.stderr), f"it says {result.stderr}")
            left = [word for word in node.leftovers(volume=v) if word.startswith(("session", "disk", "mount", "attachment"))]
            expect(left == [], f"left while the process lives: {left}")
            expect(node.volume(v)["status"] == "available", f"the volume is {node.volume(v)['status']}")
            before = contents(node, v)
            elsewhere = reserve_elsewhere(node, v, "worker-7")
            # What the process writes reaches nobody.
            node.execute(["bash", "-c", f"echo lost > /proc/{holder}/fd/1; sync"], timeout=60)
            if code:
                failed(node, 3, ["[AttachmentGone]"], "attach", v, "--mount", MOUNT, "--multipath", multipath)
                failed(node, 6, ["[StillHeld]"], "detach", v)
            node.shell(f"kill {holder}; while [ -d /proc/{holder} ]; do sleep 0.1; done")
            expect(node.run("detach", v, timeout=_SLOW).code == 0, "the detach was not finished")
            expect(contents(node, v) == before, "this node wrote to a volume that is another's")
            free(node, elsewhere["id"], v)
            nothing_left(node, v)
            attach(node, v, "--mount", MOUNT)
            expect(node.shell(f"cat {MOUNT}/file") == "kept\n", "what was written before is gone")
            detach(node, v)


@takes_long
def test_force_refuses_what_others_use_though_no_path_is_left(node: Attachd) -> None:
    with volume(node) as v:
        attach(node, v, "--mount", MOUNT, "--multipath", "required")
        node.wait_for_paths(active=2, failed=0)
        node.shell(f"mkdir -p /srv/copy; mount --bind {MOUNT} /srv/copy")
        with path_cut(node, 1, 2):
            node.wait_for_paths(active=0, failed=2)
            failed(node, 3, ["/srv/copy", "[InUse]"], "detach", "--force", v)
        node.wait_for_paths(active=2, failed=0)
        expect(node.execute(["mountpoint", "-q", MOUNT]).code == 0, "it was unmounted")
        in_use_once(node, v)
        node.shell("umount /srv/copy; rmdir /srv/copy")
        detach(node, v)
        # Something sits on the device: LVM, LUKS or, here, a map of somebody's own.
        device = attach(node, v, "--block", "--multipath", "required")["device"]
        node.shell(f"echo 0 2048 linear {device} 0 | dmsetup create held")
        with path_cut(node, 1, 2):
            node.wait_for_paths(active=0, failed=2)
            failed(node, 3, ["is in use by dm-", "[InUse]"], "detach", "--force", v)
        node.wait_for_paths(active=2, failed=0)
        in_use_once(node, v)
        node.shell("dmsetup remove held")
        detach(node, v)


def _gone(method: str, path: str) -> Optional[Reply]:
    if method == "GET" and "/attachments/" in path:
        words = f"Volume attachment could not be found with filter: attachment_id = {path.rpartition('/')[2]}."
        return Reply(404, json.dumps({"itemNotFound": {"code": 404, "message": words}}).encode(), "application/json")
    return None


@takes_long
def test_a_detach_writes_nothing_where_the_attachment_is_gone_though_every_path_works(node: Attachd) -> None:
    # Cinder says that it is gone, and the storage still lets this node write: the worst that can be.
    for multipath in ("required", "disabled"):
        with volume(node) as v, nothing_written_by_itself(node), proxied(node) as proxy:
            attached = attach(node, v, *_HELD_BACK, "--multipath", multipath)
            node.shell("sync")
            write_unsynced(node)
            before = contents(node, v)
            proxy.behaviour.instead = _gone
            result = node.run("detach", v, timeout=_SLOW, OS_ENDPOINT=proxy.endpoint_in_node)
            print(f"     {multipath}: detach of what is gone, 8 MiB not written, every path works: {result.seconds:.1f} s")
            expect(result.code == 0 and "another node's by now" in result.stderr, f"detach: {result}")
            expect(contents(node, v) == before, "the detach wrote to the volume")
            left = [word for word in node.leftovers() if not word.startswith("attachment")]
            expect(left == [], f"left: {left}")
            free(node, attached["attachmentID"], v)


def test_a_detach_writes_nothing_to_a_volume_that_another_node_was_given(node: Attachd) -> None:
    with volume(node) as v, nothing_written_by_itself(node):
        attached = attach(node, v, *_HELD_BACK, "--multipath", "required")
        node.shell("sync")
        write_unsynced(node)
        node.cinder.request("DELETE", f"/attachments/{attached['attachmentID']}").json()
        node.cinder.wait_for_volume(v, 60)
        elsewhere = reserve_elsewhere(node, v, "worker-7")
        before = contents(node, v)
        result = node.run("detach", v, timeout=_SLOW)
        print(f"     detach of a volume that another node has, 8 MiB not written: {result.seconds:.1f} s")
        expect(result.code == 0 and "another node's by now" in result.stderr, f"detach: {result}")
        expect(contents(node, v) == before, "the detach wrote to the other node's volume")
        expect([item["id"] for item in attachments_of(node, v)] == [elsewhere["id"]], f"{attachments_of(node, v)}")
        left = node.leftovers()
        expect(left == [], f"left: {left}")
        free(node, elsewhere["id"], v)
