"""Attaching and detaching: transports, credentials, paths, file systems, modes."""

from __future__ import annotations

from lablib.cases import expect
from lablib.node import Attachd
from lablib.steps import MOUNT, active_paths, attach, daemon_stopped, detach, in_use_once, refused, volume


def keeps_data(node: Attachd, volume_id: str, *arguments: str, paths: int) -> None:
    """Attach, write, detach, attach again, read, detach."""
    attached = attach(node, volume_id, "--mount", MOUNT, *arguments)
    states = [path["state"] for path in attached["paths"] if path["device"]]
    expect(states == ["active"] * paths, f"the paths are {attached['paths']}")
    expect(attached["changed"] and attached["warnings"] == [], f"the result is {attached}")
    in_use_once(node, volume_id)
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


def test_a_raw_block_device_keeps_its_data_and_read_only_the_kernel_refuses_writes(node: Attachd) -> None:
    with volume(node) as v:
        attached = attach(node, v, "--block")
        device = attached["device"]
        expect(attached["mountPath"] is None, f"the result is {attached}")
        node.shell(f"head -c 3000000 /dev/urandom > /tmp/data; dd if=/tmp/data of={device} bs=1M seek=7 conv=fsync status=none")
        detach(node, v)

        attached = attach(node, v, "--block", "--mode", "ro")
        device = attached["device"]
        node.shell(f"dd if={device} of=/tmp/read bs=1M skip=7 count=3 status=none; cmp -n 3000000 /tmp/read /tmp/data")
        written = node.execute(["dd", "if=/dev/zero", f"of={device}", "bs=4096", "count=1", "oflag=direct"])
        expect(written.code != 0, "a read-only block device took a write")
        for name in [device, *(f"/dev/{path['device']}" for path in attached["paths"])]:
            expect(node.shell(f"blockdev --getro {name}").strip() == "1", f"{name} is not read-only")
        mode = node.cinder.request("GET", f"/attachments/{attached['attachmentID']}").json()["attachment"]["attach_mode"]
        expect(mode == "ro", f"Cinder has the attachment as {mode}")
        detach(node, v)


def test_a_read_only_file_system_can_be_read_and_not_written(node: Attachd) -> None:
    for fs in ("ext4", "xfs"):
        with volume(node, "tgt-single") as v:
            attach(node, v, "--mount", MOUNT, "--fs", fs)
            node.shell(f"echo kept > {MOUNT}/file")
            detach(node, v)
            attached = attach(node, v, "--mount", MOUNT, "--fs", fs, "--mode", "ro")
            expect(node.shell(f"cat {MOUNT}/file") == "kept\n", "the file can't be read")
            written = node.execute(["sh", "-c", f"echo lost > {MOUNT}/file"])
            expect(written.code != 0 and "Read-only file system" in written.stderr, f"a write gave {written}")
            expect(node.shell(f"blockdev --getro {attached['device']}").strip() == "1", "the device is not read-only")
            detach(node, v)


def test_a_blank_volume_is_neither_formatted_read_only_nor_where_that_was_ruled_out(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        for arguments in (["--mode", "ro"], ["--format", "never"]):
            result = node.run("attach", v, "--mount", MOUNT, *arguments)
            expect(result.code == 3 and "is blank and may not be formatted" in result.stderr, f"{arguments}: {result}")
            expect(node.leftovers(volume=v) == [], f"left: {node.leftovers(volume=v)}")


def test_without_multipath_the_device_is_a_disk_and_there_is_no_map(node: Attachd) -> None:
    with volume(node) as v:
        attached = attach(node, v, "--mount", MOUNT, "--multipath", "disabled")
        expect(attached["device"].startswith("/dev/sd"), f"the device is {attached['device']}")
        expect(node.shell("ls /sys/block | grep dm- || true") == "", "there is a map")
        expect(len(node.session_ids()) == 1, f"sessions: {node.session_ids()}")
        expect(active_paths(attached) == 1, f"the paths are {attached['paths']}")
        detach(node, v)


def test_without_multipathd_auto_uses_one_path_and_says_so_and_required_refuses(node: Attachd) -> None:
    with volume(node) as v:
        with daemon_stopped(node, "multipathd"):
            refused(node, 3, ["multipath is required, but multipathd doesn't answer"],
                    "attach", v, "--mount", MOUNT, "--multipath", "required")
            attached = attach(node, v, "--mount", MOUNT)
            expect(attached["device"].startswith("/dev/sd"), f"the device is {attached['device']}")
            expect(any("one path only" in warning for warning in attached["warnings"]), f"the warnings are {attached['warnings']}")
        # multipathd is back, and must not disturb what is attached.
        again = attach(node, v, "--mount", MOUNT)
        expect(again["device"] == attached["device"] and not again["changed"], f"again: {again}")
        node.shell(f"echo x > {MOUNT}/file; sync")
        detach(node, v)
