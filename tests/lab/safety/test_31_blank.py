"""What is not blank is not formatted: refused by its name, with every byte as it was."""

from __future__ import annotations

import hashlib
import os
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lablib import signatures
from lablib.cases import chance, expect, size, takes_long
from lablib.node import Attachd
from lablib.signatures import Signature
from lablib.steps import attach, backing_file, detach, extents, failed, fill, nothing_left, proxied, volume

_MIB = 1 << 20
# Side by side: most of an attach is waiting.
_AT_ONCE = 3


def _data(disk: Path) -> str:
    """A digest of all of a file that isn't a hole, and of where it lies."""
    digest = hashlib.sha256()
    with open(disk, "rb") as file:
        for at, stop in extents(file):
            digest.update(f"{at} {stop} ".encode() + os.pread(file.fileno(), stop - at, at))
    return digest.hexdigest()


def _refused(node: Attachd, volume_id: str, mount: str, filesystem: str, words: list[str]) -> None:
    disk = backing_file(node, volume_id)
    before = _data(disk)
    failed(node, 3, words, "attach", volume_id, "--mount", mount, "--fs", filesystem, "--multipath", "disabled")
    expect(_data(disk) == before, f"{words}: the device was written")


@contextmanager
def _no_array_assembled(node: Attachd) -> Iterator[None]:
    """udev's rules may make an array of a disk with a RAID's signature, which then can't be taken back: attachd says so, and leaves it."""
    rule = "/run/udev/rules.d/64-md-raid-assembly.rules"
    node.shell(f"mkdir -p $(dirname {rule}); ln -s /dev/null {rule}; udevadm control --reload")
    try:
        yield
    finally:
        node.shell(f"rm {rule}; udevadm control --reload")


def _share(node: Attachd, number: int, mine: list[Signature]) -> int:
    """Try some signatures, on a volume of their own."""
    with volume(node, "tgt-single") as v:
        disk = backing_file(node, v)
        for signature in mine:
            fill(disk, [])
            signatures.put(disk, signature.writes(disk.stat().st_size))
            wanted = chance(signature.name).choice(["ext4", "xfs"])
            _refused(node, v, f"/mnt/{number}", wanted, signature.refusal(wanted))
    return len(mine)


def test_whatever_is_on_a_device_is_called_by_its_name_and_not_formatted(node: Attachd) -> None:
    every = [*signatures.ALL]
    chance("blank").shuffle(every)
    chosen = every[:size(6, len(every))]
    with _no_array_assembled(node), ThreadPoolExecutor(_AT_ONCE) as pool:
        tried = sum(pool.map(lambda number: _share(node, number, chosen[number::_AT_ONCE]), range(_AT_ONCE)))
    expect(tried == len(chosen), f"{tried} of {len(chosen)} were tried")
    left = node.leftovers()
    expect(left == [], f"left: {left}")
    print(f"     {tried} of {len(every)} signatures: {', '.join(signature.name for signature in chosen)}; all refused, none written")


def test_what_the_real_tools_make_is_called_by_its_name_and_not_formatted(node: Attachd) -> None:
    made = [
        ("ext2", "mke2fs -q -t ext2", "ext4", ["holds ext2, but ext4 was asked for", "[OtherFilesystem]"]),
        ("xfs", "mkfs.xfs -q", "ext4", ["holds xfs, but ext4 was asked for", "[OtherFilesystem]"]),
        ("ext3", "mke2fs -q -t ext3", "ext4", ["holds ext3, but ext4 was asked for", "[OtherFilesystem]"]),
        ("ext4", "mke2fs -q -t ext4", "xfs", ["holds ext4, but xfs was asked for", "[OtherFilesystem]"]),
        ("swap", "mkswap", "ext4", ["swap", "is not formatted", "[NotBlank]"]),
        ("a table of sfdisk's", "echo 'label: gpt\n,' | sfdisk -q", "ext4", ["gpt partition table", "is not formatted", "[NotBlank]"]),
        ("minix", "mkfs.minix", "ext4", ["holds minix, but ext4 was asked for", "[OtherFilesystem]"]),
        ("a physical volume of LVM's", "_loop pvcreate -q", "ext4", ["LVM2_member", "is not formatted", "[NotBlank]"]),
    ]
    for what, tool, filesystem, words in made[:size(1, len(made))]:
        with volume(node, "tgt-single") as v:
            disk = backing_file(node, v)
            shared = Path(node.lab.share) / "image"
            node.shell(f"""
_loop() {{ modprobe loop; loop=$(losetup -f --show "${{@: -1}}"); "${{@:1:$#-1}}" "$loop"; sync; losetup -d "$loop"; }}
rm -f /tmp/image; truncate -s {disk.stat().st_size} /tmp/image
{tool} /tmp/image > /dev/null
cp --sparse=always /tmp/image /lab/image; rm /tmp/image""")
            fill(disk, [])
            signatures.put(disk, _written(shared))
            shared.unlink()
            _refused(node, v, "/mnt/t", filesystem, words)
            nothing_left(node, v)
        print(f"     {what}, made by its own tool: refused, not written")


def _written(path: Path) -> signatures.Writes:
    """All of a file that is not a hole."""
    with open(path, "rb") as file:
        return [(at, os.pread(file.fileno(), stop - at, at)) for at, stop in extents(file)]


def test_a_device_that_can_not_be_read_everywhere_is_not_taken_for_blank(node: Attachd) -> None:
    # The target has the size that the volume had when it was exported; what is cut off after that can't be read.
    for what, kept in [("nothing but the first MiB can be read", _MIB), ("the last MiB can't be read", 1023 * _MIB)][:size(1, 2)]:
        with volume(node) as v, proxied(node) as proxy:
            disk = backing_file(node, v)
            length = disk.stat().st_size

            def cut(method: str, path: str, body: bytes, kept: int = kept, disk: Path = disk) -> bytes:
                if method == "PUT":
                    os.truncate(disk, kept)
                return body

            proxy.behaviour.rewrite = cut
            failed(node, 5, ["taking it back"], "attach", v, "--mount", "/mnt/t", OS_ENDPOINT=proxy.endpoint_in_node)
            expect(disk.stat().st_size == kept and _data(disk) == hashlib.sha256().hexdigest(), f"{what}: it was written")
            os.truncate(disk, length)
            nothing_left(node, v)
        print(f"     {what}: refused, not written")


# Reads a device as the blank check does, past the page cache, and tells the seconds.
_READ = r"""
import mmap, os, sys, time
device, samples, whole = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
file = os.open(device, os.O_RDONLY | os.O_DIRECT)
size = os.lseek(file, 0, os.SEEK_END)
page, large = mmap.mmap(-1, 4096), mmap.mmap(-1, 1 << 20)
began = time.monotonic()
for sample in range(samples):
    os.preadv(file, [page], size // samples * sample // 4096 * 4096)
for offset in range(0, whole, 1 << 20):
    os.preadv(file, [large], offset)
print(time.monotonic() - began)
"""


@takes_long
def test_a_blank_volume_is_formatted_and_what_more_certainty_would_cost_is_told(node: Attachd) -> None:
    with volume(node) as v:
        device = attach(node, v, "--block")["device"]
        whole = size(16, 1024)
        costs = {}
        for what, samples, length in [("64 samples", 64, 0), ("512 samples", 512, 0), (f"{whole} MiB whole", 0, whole * _MIB)]:
            costs[what] = f"{float(node.shell(f'python3 -c {shlex.quote(_READ)} {device} {samples} {length}', timeout=600)):.2f} s"
        detach(node, v)
        begin = time.monotonic()
        attach(node, v, "--mount", "/mnt/t")
        print(f"     reading {costs}; an attach with a format: {time.monotonic() - begin:.1f} s")
        detach(node, v)
