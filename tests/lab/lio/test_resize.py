"""Volumes that are extended in Cinder while they are used: every path, the map and the file system follow."""

from __future__ import annotations

import json
from typing import Any

from lablib.cases import expect, takes_long
from lablib.commands import wait_until
from lablib.daemon import Daemon, daemon, ready_condition
from lablib.errors import LabError
from lablib.node import Attachd, Result
from lablib.steps import MOUNT, attach, detach, nothing_left, path_cut, volume

_GIB = 1 << 30

# Sizes in bytes: of each disk, of each map, of the mounted file system as `statfs` has it.
_SIZES = rf"""
for disk in /sys/block/sd*; do echo "disk $(( $(cat $disk/size) * 512 ))"; done
for map in /sys/block/dm-*; do [ -e $map ] && echo "map $(( $(cat $map/size) * 512 ))"; done
mountpoint -q {MOUNT} && echo "files $(( $(stat -f -c '%b * %S' {MOUNT}) ))"
true
"""


def _sizes(node: Attachd, what: str) -> list[int]:
    return [int(size) for kind, size in (line.split() for line in node.shell(_SIZES).splitlines()) if kind == what]


def _extend(node: Attachd, volume_id: str, size: int) -> None:
    """What `openstack volume set --size` does to a volume in use."""
    body = json.dumps({"os-extend": {"new_size": size}})
    node.cinder.request("POST", f"/volumes/{volume_id}/action", body, microversion="3.42").json()
    wait_until(lambda: (lambda v: (v["size"], v["status"]) == (size, "in-use"))(node.volume(volume_id)),
               timeout=120,
               what=f"volume {volume_id} to have {size} GiB")


def _resize(node: Attachd, volume_id: str) -> dict[str, Any]:
    result = node.run("resize", volume_id, "-o", "json")
    expect(result.code == 0, f"resize: exit code {result.code}: {result.stderr}")
    resized: dict[str, Any] = result.json()
    return resized


def _refused(result: Result, *words: str) -> None:
    expect(result.code == 3, f"resize: exit code {result.code}: {result.stdout} {result.stderr}")
    for word in (*words, "[SizeDiffers]"):
        expect(word in result.stderr, f"it doesn't say {word!r}: {result.stderr}")


def _grown_in_use(node: Attachd, filesystem: str) -> None:
    storage = node.on_storage_guest()
    with volume(storage, "lio") as v:
        attach(storage, v, "--mount", MOUNT, "--fs", filesystem, "--multipath", "required")
        storage.shell(f"cd {MOUNT}; dd if=/dev/urandom of=data bs=1M count=16 conv=fsync status=none; sha256sum data > sum; sync")
        before = _sizes(storage, "files")[0]
        expect(_resize(storage, v)["changed"] is False, "a volume that was not extended was resized")
        _extend(storage, v, 2)
        # The file stays open and is written on, so that it is in use for sure.
        storage.shell(f"(exec 3>>{MOUNT}/log; for n in $(seq 600); do echo $n >&3; sleep 0.05; done) >/dev/null 2>&1 & echo $! > /run/writer")
        resized = _resize(storage, v)
        expect(resized["changed"] and resized["filesystemGrown"], f"it says that nothing grew: {resized}")
        expect((resized["sizeBytesBefore"], resized["sizeBytes"]) == (_GIB, 2 * _GIB), f"from and to: {resized}")
        disks, maps, files = (_sizes(storage, what) for what in ("disk", "map", "files"))
        expect(disks == [2 * _GIB, 2 * _GIB] and maps == [2 * _GIB], f"disks {disks}, maps {maps}")
        expect(files[0] - before > 0.9 * _GIB, f"the file system had {before} bytes and has {files[0]}")
        storage.shell(f"kill $(cat /run/writer); rm /run/writer; cd {MOUNT}; echo 3 > /proc/sys/vm/drop_caches; sha256sum -c sum; fallocate -l 1100M more; rm more")
        expect(_resize(storage, v)["changed"] is False, "a second resize found something to do")
        print(f"     {filesystem}: disks {disks}, map {maps}, file system {before} -> {files[0]} bytes", flush=True)
        storage.shell(f"while fuser -s {MOUNT}/log 2>/dev/null; do sleep 0.1; done")
        detach(storage, v)


def test_ext4_over_two_paths_grows_while_it_is_written(node: Attachd) -> None:
    _grown_in_use(node, "ext4")


@takes_long
def test_xfs_over_two_paths_grows_while_it_is_written(node: Attachd) -> None:
    _grown_in_use(node, "xfs")


@takes_long
def test_raw_block_grows_with_and_without_a_map(node: Attachd) -> None:
    storage = node.on_storage_guest()
    for multipath in ("required", "disabled"):
        with volume(storage, "lio") as v:
            attached = attach(storage, v, "--block", "--multipath", multipath)
            storage.shell(f"head -c 1M /dev/urandom > /run/data; dd if=/run/data of={attached['device']} bs=1M oflag=direct status=none")
            _extend(storage, v, 2)
            resized = _resize(storage, v)
            expect(resized["changed"] and not resized["filesystemGrown"], f"what grew: {resized}")
            size = int(storage.shell(f"blockdev --getsize64 {attached['device']}"))
            expect(size == 2 * _GIB, f"{attached['device']} has {size} bytes")
            storage.shell(f"cmp -n 1048576 /run/data {attached['device']}; rm /run/data")
            detach(storage, v)


@takes_long
def test_read_only_grows_without_its_file_system(node: Attachd) -> None:
    storage = node.on_storage_guest()
    with volume(storage, "lio") as v:
        attach(storage, v, "--mount", MOUNT, "--multipath", "required")
        detach(storage, v)
        attach(storage, v, "--mount", MOUNT, "--mode", "ro", "--multipath", "required")
        before = _sizes(storage, "files")
        _extend(storage, v, 2)
        resized = _resize(storage, v)
        expect(resized["sizeBytes"] == 2 * _GIB and not resized["filesystemGrown"], f"what grew: {resized}")
        expect(_sizes(storage, "files") == before, "a read-only file system was changed")
        detach(storage, v)


@takes_long
def test_a_resize_with_a_path_cut_is_refused_and_done_when_it_is_back(node: Attachd) -> None:
    storage = node.on_storage_guest()
    with volume(storage, "lio") as v:
        attach(storage, v, "--mount", MOUNT, "--multipath", "required")
        storage.shell(f"cd {MOUNT}; dd if=/dev/urandom of=data bs=1M count=4 conv=fsync status=none; sha256sum data > sum; sync")
        with path_cut(storage, 2):
            storage.wait_for_paths(1, 1)
            _extend(storage, v, 2)

            def names_the_path() -> bool:
                # Till the kernel gives the session up, it is the disk that is told of.
                result = storage.run("resize", v)
                _refused(result, "Cinder states 2 GiB", "done once all of them work")
                return "not logged in" in result.stderr
            wait_until(names_the_path, timeout=120, what="the resize to name the session")
            expect(_sizes(storage, "map") == [_GIB], "the map was resized with a path away")
        storage.wait_for_paths(2, 0, timeout=240)
        resized = _resize(storage, v)
        expect(resized["filesystemGrown"], f"what grew: {resized}")
        disks, maps = _sizes(storage, "disk"), _sizes(storage, "map")
        expect(disks == [2 * _GIB, 2 * _GIB] and maps == [2 * _GIB], f"disks {disks}, maps {maps}")
        storage.shell(f"cd {MOUNT}; sha256sum -c sum")
        detach(storage, v)


@takes_long
def test_a_size_that_changes_in_a_request_is_taken_up_without_a_detach(node: Attachd) -> None:
    storage = node.on_storage_guest()
    with volume(storage, "lio") as v, daemon(storage) as d:
        d.request("db", v, multipath="Required", sizeGiB=1)
        d.wait_for("db", "Attached", ready=True)
        _wait_for_size(d, _GIB, ("True", "Resized"))
        sessions = storage.session_ids()
        d.request("db", v, multipath="Required", sizeGiB=2)
        _wait_for_size(d, _GIB, ("False", "SizeDiffers"))
        _extend(storage, v, 2)
        _wait_for_size(d, 2 * _GIB, ("True", "Resized"))
        expect(storage.session_ids() == sessions, "it was attached anew")
        expect(_sizes(storage, "map") == [2 * _GIB], f"map {_sizes(storage, 'map')}")
        d.remove("db.yaml")
        d.wait_gone("db")
        nothing_left(storage, v)


def _wait_for_size(d: Daemon, size: int, resized: tuple[str, str]) -> None:
    """Wait until the volume is Ready, has this size, and the condition Resized says this."""

    def there() -> bool:
        status = d.status("db") or {}
        said = [(c["status"], c["reason"]) for c in status.get("conditions", []) if c["type"] == "Resized"]
        device = status.get("device") or {}
        return device.get("sizeBytes") == size and said == [resized] and ready_condition(status).get("status") == "True"

    try:
        wait_until(there, timeout=180, what=f"{size} bytes and Resized {resized}", interval=0.5)
    except LabError as error:
        raise LabError(f"{error}; the status is {d.status('db')}; the log ends: {d.log()[-3000:]}") from error
