"""Many volumes on one target: some come while others go, and what else is on it stays as it is."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from lablib.cases import chance, expect, size
from lablib.node import Attachd
from lablib.pool import IQN, pool
from lablib.steps import MOUNT, attach, attachments_of, backing_file, detach, nothing_left, volume


def _disks(node: Attachd) -> list[str]:
    """The SCSI addresses of all disks."""
    return node.shell("for disk in /sys/block/sd*; do [ -e $disk ] && basename $(readlink $disk/device); done; true").split()


def test_volumes_that_come_while_others_go_on_one_target_are_never_mixed_up(node: Attachd) -> None:
    rounds, at_once, random = size(4, 100), 3, chance("one target")
    with ExitStack() as stack:
        volumes = [stack.enter_context(volume(node)) for _ in range(5)]
        shared = stack.enter_context(pool(node))
        threads = stack.enter_context(ThreadPoolExecutor())
        attached: set[str] = set()
        signed: set[str] = set()
        given: set[tuple[int, str]] = set()
        attaches = 0

        def comes(v: str) -> None:
            result = attach(node, v, "--mount", f"/mnt/{v}", "--format", "never" if v in signed else "if-blank", OS_ENDPOINT=shared.endpoint)
            given.update((lun, held) for lun, held in list(shared.luns.items()) if held == v)
            found = node.shell(f"cat /mnt/{v}/id 2>/dev/null || true").strip()
            expect(found == (v if v in signed else ""), f"THE WRONG VOLUME: {v} shows {found!r}: {result}")
            node.shell(f"echo {v} > /mnt/{v}/id; sync -f /mnt/{v}/id")
            signed.add(v)

        def goes(v: str) -> None:
            result = node.run("detach", v, OS_ENDPOINT=shared.endpoint)
            expect(result.code == 0, f"detach {v}: {result}")

        for _ in range(rounds):
            leaving = [v for v in sorted(attached) if random.random() < 0.6]
            room = at_once - len(attached) + len(leaving)
            coming = random.sample(sorted(set(volumes) - attached), k=min(2, room, len(volumes) - len(attached)))
            for run in [threads.submit(goes, v) for v in leaving] + [threads.submit(comes, v) for v in coming]:
                run.result()
            attached = (attached - set(leaving)) | set(coming)
            attaches += len(coming)
        for v in sorted(attached):
            goes(v)
        # Which numbers were used again is the threads' luck; this one is.
        first = min(lun for lun, _ in given)
        another = next(v for v in volumes if (first, v) not in given)
        comes(another)
        goes(another)
        for v in volumes:
            nothing_left(node, v)
        numbers = {lun for lun, _ in given}
        print(f"     {attaches + 1} attaches of {len(volumes)} volumes in {rounds} rounds over {len(numbers)} LUN numbers, "
              f"{len(given)} pairs of number and volume; 0 wrong")
        expect(len(given) > len(numbers), "no number was used again")


def test_a_lun_of_somebody_else_on_the_same_target_never_appears_by_itself(node: Attachd) -> None:
    with volume(node) as v, volume(node) as theirs, pool(node) as shared:
        shared.export(theirs, 9)
        attach(node, v, "--mount", MOUNT, OS_ENDPOINT=shared.endpoint)
        disks = _disks(node)
        expect(len(disks) == 2 and all(disk.endswith(":1") for disk in disks), f"the disks are {disks}")
        detach(node, v, OS_ENDPOINT=shared.endpoint)


def test_a_session_that_carries_somebody_elses_disk_stays_when_the_last_volume_goes(node: Attachd) -> None:
    with volume(node) as v, volume(node) as theirs, pool(node) as shared:
        attach(node, v, "--mount", MOUNT, OS_ENDPOINT=shared.endpoint)
        shared.export(theirs, 9)
        host = _disks(node)[0].split(":")[0]
        node.shell(f"echo 0 0 9 > /sys/class/scsi_host/host{host}/scan; udevadm settle")
        disk = node.shell(f"basename /sys/class/scsi_device/{host}:0:0:9/device/block/*").strip()
        # multipathd makes a map of a disk that comes by hand, too.
        device = node.shell(f"for holder in /sys/block/{disk}/holders/*; do [ -e $holder ] && basename $holder && exit 0; done; echo {disk}").strip()
        node.shell(f"mkfs.ext4 -q -E nodiscard /dev/{device}; mkdir -p /mnt/admin; mount /dev/{device} /mnt/admin; echo kept > /mnt/admin/file")
        result = node.run("detach", v, OS_ENDPOINT=shared.endpoint)
        expect(result.code == 0 and attachments_of(node, v) == [], f"detach: {result}")
        expect(len(node.session_ids()) == 1, f"the sessions are {node.session_ids()}")
        node.shell("sync; echo 3 > /proc/sys/vm/drop_caches; grep -qx kept /mnt/admin/file; touch /mnt/admin/still-writable; sync")
        # What the administrator does at last.
        node.shell(f"umount /mnt/admin; rmdir /mnt/admin; [ {device} = {disk} ] || multipath -f $(cat /sys/block/{device}/dm/name); "
                   f"multipath -w /dev/{disk} > /dev/null || true; echo 1 > /sys/block/{disk}/device/delete; "
                   f"iscsiadm -m node -T {IQN} -u > /dev/null; iscsiadm -m node -T {IQN} -o delete || true")
        cleaned = node.run("orphans", "--clean", OS_ENDPOINT=shared.endpoint)
        expect(cleaned.code == 0, f"orphans --clean: {cleaned}")
        shared.withdraw(9)
        with open(backing_file(node, theirs), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            expect(content.find(b"kept\n") > 0, "what the administrator wrote is gone")
