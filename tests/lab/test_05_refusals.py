"""What can't be done is said clearly, and before anything is changed; what went wrong later is taken back."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

from lablib.cases import expect, takes_long
from lablib.commands import run
from lablib.node import DEBUG, Attachd
from lablib.proxy import Reply, wait_for
from lablib.steps import (MOUNT, attach, attachments_of, backing_file, cinder_paused, cinder_stopped, daemon_stopped, detach, extents, failed,
                          fill, free, in_use_once, nothing_left, proxied, refused, reserve_elsewhere, volume)

_UNKNOWN = "00000000-0000-4000-8000-000000000000"


def test_a_wrong_command_line_is_refused_with_exit_code_2(node: Attachd) -> None:
    for words, arguments in [
        (["not-a-uuid"], ["attach", "not-a-uuid"]),
        (["--fs", "btrfs", "ext4"], ["attach", _UNKNOWN, "--fs", "btrfs"]),
        (["--mode", "rx"], ["attach", _UNKNOWN, "--mode", "rx"]),
        (["--block", "--mount"], ["attach", _UNKNOWN, "--block", "--mount", MOUNT]),
        (["must be an absolute path"], ["attach", _UNKNOWN, "--mount", "relative/path"]),
        (["must be an absolute path"], ["attach", _UNKNOWN, "--mount", "/mnt/../etc"]),
        (["--cinder-timeout"], ["attach", _UNKNOWN, "--cinder-timeout", "0"]),
        (["not-a-uuid"], ["detach", "not-a-uuid"]),
    ]:
        refused(node, 2, words, *arguments)
    nowhere = node.execute(["/usr/local/bin/attachd", "attach", _UNKNOWN])
    expect(nowhere.code == 2 and "--os-endpoint" in nowhere.stderr, f"without a cloud: {nowhere}")


def test_a_volume_that_is_not_there_or_not_available_is_refused(node: Attachd) -> None:
    refused(node, 3, [f"Cinder has no volume {_UNKNOWN}", "[VolumeNotFound]"], "attach", _UNKNOWN, "--mount", MOUNT)
    with volume(node, "tgt-single") as v:
        node.cinder.reset_status(v, "error")
        refused(node, 3, ["is \"error\"", "[VolumeNotAvailable]"], "attach", v, "--mount", MOUNT)
        node.cinder.reset_status(v, "available")

        elsewhere = reserve_elsewhere(node, v, "worker-7")
        refused(node, 3, ["is \"in-use\"", "host \"worker-7\"", elsewhere["id"]], "attach", v, "--mount", MOUNT)
        # And what this node doesn't hold, it doesn't detach.
        result = node.run("detach", v)
        expect(result.code == 0 and "nothing to do" in result.stdout, f"detach: {result}")
        in_use_once(node, v)
        free(node, elsewhere["id"], v)

        reserved = node.cinder.request("POST", "/attachments", json.dumps({"attachment": {"volume_uuid": v}})).json()["attachment"]["id"]
        refused(node, 3, ["is \"reserved\"", "delete the attachment that holds it"], "attach", v, "--mount", MOUNT)
        free(node, reserved, v)


def test_a_mount_path_that_must_not_be_mounted_on_is_refused(node: Attachd) -> None:
    node.shell("mkdir -p /mnt/full /mnt/tmpfs /mnt/disk /tmp/outside; touch /mnt/full/file /mnt/plain; ln -sfn /tmp/outside /mnt/link; "
               "mount -t tmpfs none /mnt/tmpfs; mount --bind /persist /mnt/disk")
    try:
        with volume(node, "tgt-single") as v:
            for path, words in [
                ("/opt/v", ["not below an allowed root", "/mnt"]),
                ("/mnt", ["not below an allowed root"]),
                ("/mntx/v", ["not below an allowed root"]),
                ("/mnt/link", ["symbolic link"]),
                ("/mnt/link/v", ["/mnt/link is a symbolic link"]),
                ("/mnt/full", ["not empty"]),
                ("/mnt/tmpfs", ["none (tmpfs) is mounted there"]),
                ("/mnt/disk", ["/dev/vdb is mounted there"]),
                ("/mnt/plain", ["not a directory"]),
                ("/mnt/plain/v", ["/mnt/plain is not a directory"]),
            ]:
                refused(node, 3, [f"can't be mounted on {path}", *words, "[MountPathUnusable]"], "attach", v, "--mount", path)
    finally:
        node.shell("umount /mnt/tmpfs /mnt/disk; rmdir /mnt/tmpfs /mnt/disk; rm -r /mnt/full /mnt/link /mnt/plain /tmp/outside")


def test_a_node_without_iscsid_or_without_a_name_is_refused(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        with daemon_stopped(node, "iscsid"):
            refused(node, 3, ["iscsid doesn't answer", "[IscsidNotRunning]"], "attach", v, "--mount", MOUNT)
        name = "/etc/iscsi/initiatorname.iscsi"
        node.shell(f"mv {name} {name}.away")
        try:
            refused(node, 5, [name, "[NoInitiatorName]"], "attach", v, "--mount", MOUNT)
            node.shell(f"echo '# InitiatorName=' > {name}")
            refused(node, 5, ["holds no InitiatorName", "iscsi-iname"], "attach", v, "--mount", MOUNT)
        finally:
            node.shell(f"mv {name}.away {name}")


def test_a_cinder_that_is_away_frozen_or_not_cinder_is_told_apart(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        with cinder_stopped(node):
            result = node.run("attach", v, "--mount", MOUNT)
            expect(result.code == 4 and "cannot reach Cinder at" in result.stderr, f"stopped: {result}")
        with cinder_paused(node):
            result = node.run("attach", v, "--mount", MOUNT, "--cinder-timeout", "3")
            expect(result.code == 4 and "did not answer our request" in result.stderr, f"paused: {result}")
            expect(result.seconds < 3 * 2 + 20, f"with a limit of 3 s a request it took {result.seconds:.0f} s")
        expect(node.leftovers(volume=v) == [], f"left: {node.leftovers(volume=v)}")
        with proxied(node) as proxy:
            for reply, words in [
                (Reply(200, b"<html>Welcome to nginx!</html>"), ["is not Cinder's API", "an HTML page"]),
                (Reply(200, b'{"volume": ', "application/json"), ["cut off"]),
                (Reply(200, b'{"volume": {"id": 3}}', "application/json"), ["another"]),
                (Reply(404, b"default backend - 404", "text/plain"), ["not JSON"]),
                (Reply(502, b"<html>Bad Gateway</html>"), ["HTTP 502"]),
                (Reply(401, b'{"error": {"code": 401, "title": "Unauthorized", "message": "no."}}', "application/json"),
                 ["does not accept our credentials"]),
            ]:
                proxy.behaviour.instead = lambda method, path, reply=reply: reply
                refused(node, 4, words, "attach", v, "--mount", MOUNT, OS_ENDPOINT=proxy.endpoint_in_node)
            expect(proxy.writes() == [], f"requests that change something: {proxy.writes()}")
        nothing_left(node, v)


def test_a_volume_that_is_not_iscsi_is_named_and_its_attachment_taken_back(node: Attachd) -> None:
    with volume(node, "other") as v:
        failed(node, 3, ["fibre_channel", "[UnsupportedConnection]", "taking it back"], "attach", v, "--mount", MOUNT)
        nothing_left(node, v)


def test_a_storage_that_fails_or_lies_leaves_nothing_behind(node: Attachd) -> None:
    with volume(node) as v, proxied(node) as proxy:
        through = {"OS_ENDPOINT": proxy.endpoint_in_node}
        fault = Reply(500, b'{"computeFault": {"code": 500, "message": "The server has either erred"}}', "application/json")

        # The back end fails when it is asked to export.
        proxy.behaviour.instead = lambda method, path: fault if method == "PUT" else None
        failed(node, 4, ["[CinderFault]", "taking it back"], "attach", v, "--mount", MOUNT, **through)
        nothing_left(node, v)

        # Cinder fails at the very end, when everything is mounted.
        proxy.behaviour.instead = lambda method, path: fault if path.endswith("/action") else None
        failed(node, 4, ["[CinderFault]", "taking it back"], "attach", v, "--mount", MOUNT, **through)
        nothing_left(node, v)
        proxy.behaviour.instead = None

        def lie(key: str, value: object) -> Callable[[str, str, bytes], bytes]:
            def rewrite(method: str, path: str, body: bytes) -> bytes:
                if method != "PUT":
                    return body
                answer = json.loads(body)
                answer["attachment"]["connection_info"][key] = value
                return json.dumps(answer).encode()
            return rewrite

        for key, value, words in [
            ("auth_password", "not the password", ["refused the login", "[NoPath]"]),
            ("target_luns", [7, 7], ["no target shows the LUN", "[LunMissing]"]),
            ("target_portals", ["10.0.2.2:9", "10.0.3.2:9"], ["[NoPath]"]),
            ("target_portals", ["10.0.2.2:9"], ["[UnsupportedConnection]"]),
            ("target_iqns", ["iqn.2010-10.org.openstack:nobody"] * 2, ["[NoPath]"]),
        ]:
            proxy.behaviour.rewrite = lie(key, value)
            failed(node, 3, [*words, "taking it back"], "attach", v, "--mount", MOUNT, ATTACHD_PATIENCE="3", **through)
            nothing_left(node, v)


def test_what_could_not_be_taken_back_is_in_the_ledger_and_detach_goes_on(node: Attachd) -> None:
    with volume(node, "tgt-single") as v, proxied(node) as proxy:
        through = {"OS_ENDPOINT": proxy.endpoint_in_node}
        fault = Reply(500, b'{"computeFault": {"code": 500, "message": "The server has either erred"}}', "application/json")
        proxy.behaviour.instead = lambda method, path: fault if method in ("PUT", "DELETE") else None
        failed(node, 6, ["taking it back did too", f"attachd detach {v}", "[NotRolledBack]"], "attach", v, "--mount", MOUNT, **through)
        expect([item["status"] for item in attachments_of(node, v)] == ["reserved"], f"{attachments_of(node, v)}")
        detach(node, v)


def test_a_reservation_without_an_answer_is_reported_as_left(node: Attachd) -> None:
    with volume(node, "tgt-single") as v, proxied(node) as proxy, ThreadPoolExecutor() as pool:
        proxy.behaviour.delay = lambda method, path: 600.0 if method == "POST" else 0.0
        through = {"OS_ENDPOINT": proxy.endpoint_in_node, "ATTACHD_CINDER_TIMEOUT": "5"}
        run_ = pool.submit(node.run, "attach", v, "--mount", MOUNT, **through)
        wait_for(proxy, "POST", "/attachments", 90)
        result = run_.result()
        lost = attachments_of(node, v)[0]["id"]
        expect(result.code == 6 and lost in result.stderr and "NotRolledBack" in result.stderr, f"it ended with {result}")
        free(node, lost, v)
        detach(node, v)


def test_a_disk_of_another_size_than_cinder_states_is_not_used(node: Attachd) -> None:
    with volume(node) as v:
        os.truncate(backing_file(node, v), 3 << 30)
        failed(node, 3, ["Cinder states 1 GiB", "[Identity", "nothing was written"], "attach", v, "--mount", MOUNT)
        os.truncate(backing_file(node, v), 1 << 30)
        nothing_left(node, v)


def _gpt(size: int) -> list[tuple[int, bytes]]:
    entries = struct.pack("<16s16sQQQ72s", b"\xa2\xa0\xd0\xeb\xe5\xb93D\x87\xc0h\xb6\xb7&\x99\xc7", b"1" * 16, 2048, 4095, 0, b"x")
    entries = entries.ljust(128 * 128, b"\0")
    last = size // 512 - 1

    def header(crc: int) -> bytes:
        return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, crc, 0, 1, last, 34, last - 33, b"2" * 16, 2, 128, 128,
                           zlib.crc32(entries))

    protective = bytearray(512)
    protective[446:462] = struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0xEE, 255, 255, 255, 1, last)
    protective[510:] = b"\x55\xaa"
    return [(0, bytes(protective)), (512, header(zlib.crc32(header(0)))), (1024, entries)]


def _mbr() -> bytes:
    sector = bytearray(512)
    sector[446:462] = struct.pack("<BBBBBBBBII", 0x80, 0, 2, 0, 0x83, 255, 255, 255, 2048, 4096)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def _swap() -> bytes:
    page = bytearray(4096)
    page[1024:1036] = struct.pack("<III", 1, 262143, 0)
    page[4086:] = b"SWAPSPACE2"
    return bytes(page)


@takes_long
def test_a_device_that_is_not_blank_is_not_formatted(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        disk = backing_file(node, v)
        size = disk.stat().st_size
        luks = (b"LUKS\xba\xbe\x00\x02" + struct.pack(">Q", 16384)).ljust(4096, b"\0")
        lvm = b"LABELONE" + struct.pack("<QII8s", 1, 0, 32, b"LVM2 001")
        for what, writes, words in [
            ("GPT", _gpt(size), ["gpt partition table"]),
            ("MBR", [(0, _mbr())], ["dos partition table"]),
            ("LUKS", [(0, luks)], ["crypto_LUKS"]),
            ("LVM", [(512, lvm)], ["holds "]),
            ("swap", [(0, _swap())], ["swap"]),
            ("one byte in the last sector", [(size - 1, b"x")], ["data", str(size - 1)]),
            ("one byte where nothing is known to lie", [(1_500_000, b"x")], ["data", "1500000"]),
        ]:
            fill(disk, writes)
            before = _digest(disk)
            failed(node, 3, [*words, "is not formatted", "[NotBlank]"], "attach", v, "--mount", MOUNT, "--multipath", "disabled")
            expect(_digest(disk) == before, f"{what}: the device was written")
            nothing_left(node, v)

        run(["mkfs.ext4", "-q", "-F", disk], timeout=120)
        before = _digest(disk)
        failed(node, 3, ["holds ext4, but xfs was asked for", "[OtherFilesystem]"],
               "attach", v, "--mount", MOUNT, "--fs", "xfs", "--multipath", "disabled")
        expect(_digest(disk) == before, "ext4: the device was written")
        nothing_left(node, v)


def test_data_in_the_middle_of_a_device_is_found_where_it_is_not_tiny(node: Attachd) -> None:
    # The check reads the first 2 MiB, the last MiB and 64 samples in between: what lies between two samples of a
    # large volume, without any signature at its ends, is not seen.
    with volume(node, "tgt-single") as v:
        disk = backing_file(node, v)
        fill(disk, [(500 << 20, os.urandom(32 << 20))])
        failed(node, 3, ["is not formatted", "[NotBlank]"], "attach", v, "--mount", MOUNT, "--multipath", "disabled")
        expect(disk.read_bytes()[500 << 20:532 << 20].count(0) < 1 << 20, "the data was overwritten")
        nothing_left(node, v)


def _digest(disk: Path) -> str:
    """A digest of all of a file that isn't zero, and of where it lies."""
    digest = hashlib.sha256()
    with open(disk, "rb") as file:
        for at, stop in extents(file):
            for offset in range(at - at % 4096, stop, 4096):
                block = os.pread(file.fileno(), 4096, offset)
                if block.count(0) != len(block):
                    digest.update(f"{offset}".encode() + block)
    return digest.hexdigest()


def test_a_device_that_somebody_else_uses_is_neither_detached_nor_used(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        attached = attach(node, v, "--mount", MOUNT)
        node.shell(f"mkdir -p /mnt/second; mount {attached['device']} /mnt/second")
        result = node.run("detach", v, **DEBUG)
        expect(result.code == 3 and "a mount on /mnt/second" in result.stderr, f"with a second mount: {result}")
        asked = [f"GET /attachments/{item['id']}" for item in attachments_of(node, v)]
        expect(result.cinder_calls() == asked, f"calls: {result.cinder_calls()}")
        expect(node.execute(["mountpoint", "-q", MOUNT]).code == 0, "the first mount was taken away")
        node.shell("umount /mnt/second; rmdir /mnt/second")

        # What somebody mounted over it is not unmounted in its place.
        for mount, code in ((f"mount -t tmpfs none {MOUNT}", 5), (f"mount --bind /persist {MOUNT}", 3)):
            node.shell(mount)
            result = node.run("detach", v)
            expect(result.code == code and "mounted over it" in result.stderr, f"after {mount}: {result}")
            node.shell(f"[ $(grep -c ' {MOUNT} ' /proc/mounts) = 2 ]; umount {MOUNT}; mountpoint -q {MOUNT}")
        in_use_once(node, v)

        node.shell(f"cd {MOUNT}; setsid sleep 600 >/dev/null 2>&1 & echo $! > /tmp/sleeper")
        result = node.run("detach", v)
        expect(result.code == 5 and "in use by" in result.stderr and "sleep" in result.stderr, f"with a busy mount: {result}")
        in_use_once(node, v)
        node.shell("kill $(cat /tmp/sleeper)")
        detach(node, v)
