"""What may be on a device that must never be formatted: the first words of everything, as its documentation puts them on a disk."""

from __future__ import annotations

import dataclasses
import struct
import uuid
import zlib
from pathlib import Path
from typing import Callable

_KIB = 1 << 10
_MIB = 1 << 20
_ID = uuid.UUID("7e5a2d0c-91c3-4f5d-8a1e-3b1f0c6d2a90").bytes

Writes = list[tuple[int, bytes]]


@dataclasses.dataclass(frozen=True)
class Signature:
    """One thing that is put on a blank device, and what a refusal must call it."""

    name: str
    writes: Callable[[int], Writes]
    called: str
    # A file system may be what was asked for: then it is another one.
    is_filesystem: bool = False

    def refusal(self, wanted: str) -> list[str]:
        """The words of the refusal where a file system was asked for."""
        if self.is_filesystem:
            return [f"holds {self.called}, but {wanted} was asked for", "[OtherFilesystem]"]
        return [f"holds {self.called}", "is not formatted", "[NotBlank]"]


def put(path: Path, writes: Writes) -> None:
    """Write this to a device or its file."""
    with open(path, "r+b") as file:
        for offset, data in writes:
            file.seek(offset)
            file.write(data)


def gpt(size: int, *, backup: bool = False) -> Writes:
    """A GUID partition table, of which the backup lies at the end."""
    entries = struct.pack("<16s16sQQQ72s", b"\xa2\xa0\xd0\xeb\xe5\xb93D\x87\xc0h\xb6\xb7&\x99\xc7", b"1" * 16, 2048, 4095, 0, b"x")
    entries = entries.ljust(128 * 128, b"\0")
    last = size // 512 - 1
    own, other, table = (last, 1, last - 32) if backup else (1, last, 2)

    def header(crc: int) -> bytes:
        return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, crc, 0, own, other, 34, last - 33, b"2" * 16, table, 128, 128,
                           zlib.crc32(entries))

    whole = [(own * 512, header(zlib.crc32(header(0)))), (table * 512, entries)]
    if backup:
        return whole
    protective = bytearray(512)
    protective[446:462] = struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0xEE, 255, 255, 255, 1, last)
    protective[510:] = b"\x55\xaa"
    return [(0, bytes(protective)), *whole, *gpt(size, backup=True)]


def mbr(_: int) -> Writes:
    """A DOS partition table."""
    sector = bytearray(512)
    sector[446:462] = struct.pack("<BBBBBBBBII", 0x80, 0, 2, 0, 0x83, 255, 255, 255, 2048, 4096)
    sector[510:] = b"\x55\xaa"
    return [(0, bytes(sector))]


def lvm(_: int) -> Writes:
    """An LVM2 physical volume: the label in its second sector."""
    rest = struct.pack("<I8s32s", 32, b"LVM2 001", b"7e5a2d0c91c34f5d8a1e3b1f0c6d2a90").ljust(512 - 20, b"\0")
    checksum = zlib.crc32(rest, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return [(512, b"LABELONE" + struct.pack("<QI", 1, checksum) + rest)]


def _luks(version: int) -> bytes:
    if version == 1:
        return struct.pack(">6sH32s32s32sII20s32sI40s", b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 4096, 64, b"d" * 20, b"s" * 32,
                           1000, b"7e5a2d0c-91c3-4f5d-8a1e-3b1f0c6d2a90")
    return struct.pack(">6sHQQ48s32s64s40s48sQ", b"LUKS\xba\xbe", 2, 16 * _KIB, 1, b"label", b"sha256", b"salt",
                       b"7e5a2d0c-91c3-4f5d-8a1e-3b1f0c6d2a90", b"", 0)


def luks2_backup(_: int) -> Writes:
    """The second header of LUKS2, where the first one is lost."""
    return [(16 * _KIB, b"SKUL\xba\xbe" + _luks(2)[6:])]


def md_old(size: int) -> Writes:
    """A member of a RAID with metadata 0.90: in the last 64 KiB that are whole."""
    offset = (size & ~(64 * _KIB - 1)) - 64 * _KIB
    block = struct.pack("<16I", 0xA92B4EFC, 0, 90, 0, 0, 0x0C2D5A7E, 1700000000, 1, size // 1024 - 64, 2, 2, 0, 0, 1, 2, 3)
    return [(offset, block.ljust(4096, b"\0"))]


def md(minor: int) -> Callable[[int], Writes]:
    """A member of a RAID with metadata 1.0 (at the end), 1.1 (at the start) or 1.2 (4 KiB after it)."""

    def writes(size: int) -> Writes:
        sector = {0: (size // 512 - 16) & ~7, 1: 0, 2: 8}[minor]
        block = bytearray(struct.pack("<4I16s32sQIIQII", 0xA92B4EFC, 1, 0, 0, _ID, b"node:0", 1700000000, 1, 0, size // 512, 0, 2).ljust(256, b"\0"))
        block[128:168] = struct.pack("<QQQQII", 2048, size // 512 - 2048, sector, 0, 0, 0)
        block[216:220] = struct.pack("<I", 0)
        total = sum(struct.unpack("<64I", block))
        block[216:220] = struct.pack("<I", ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
        return [(sector * 512, bytes(block))]

    return writes


def _crc64(data: bytes) -> int:
    value = 0xFFFFFFFFFFFFFFFF
    for byte in data:
        value ^= byte << 56
        for _ in range(8):
            value = (value << 1 ^ (0x42F0E1EBA9EA3693 if value >> 63 else 0)) & 0xFFFFFFFFFFFFFFFF
    return value ^ 0xFFFFFFFFFFFFFFFF


def bcache(_: int) -> Writes:
    """A backing device of bcache."""
    magic = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
    rest = struct.pack("<QQ16s16s16s", 8, 1, magic, _ID, _ID).ljust(208 - 8, b"\0")
    return [(4096, struct.pack("<Q", _crc64(rest)) + rest)]


def zfs(labels: list[int]) -> Callable[[int], Writes]:
    """A disk of a ZFS pool, with these of its four labels: two at the start, two at the end."""

    def writes(size: int) -> Writes:
        whole = size // (256 * _KIB) * 256 * _KIB
        starts = [0, 256 * _KIB, whole - 512 * _KIB, whole - 256 * _KIB]
        block = struct.pack("<5Q", 0x00BAB10C, 5000, 12, 0, 1700000000)
        return [(starts[label] + 128 * _KIB + slot * _KIB, block) for label in labels for slot in range(16)]

    return writes


def swap(_: int) -> Writes:
    """Swap space."""
    page = bytearray(4096)
    page[1024:1036] = struct.pack("<III", 1, 262143, 0)
    page[4086:] = b"SWAPSPACE2"
    return [(0, bytes(page))]


def iso(_: int) -> Writes:
    """ISO 9660: its first 32 KiB are zero."""
    descriptor = struct.pack("<B5sBB32s32s", 1, b"CD001", 1, 0, b"LINUX", b"DATA")
    return [(32 * _KIB, descriptor.ljust(2048, b"\0")), (34 * _KIB, b"\xffCD001\x01".ljust(2048, b"\0"))]


def btrfs(size: int) -> Writes:
    """btrfs: 64 KiB after the start."""
    block = struct.pack("<32s16sQQ8sQQQQQQQQQIIIII", b"", _ID, 64 * _KIB, 1, b"_BHRfS_M", 5, 1 << 22, 1 << 21, 0, 0, size, 1 << 17, 6, 1,
                        4096, 16384, 16384, 4096, 97)
    return [(64 * _KIB, block.ljust(4096, b"\0"))]


def f2fs(_: int) -> Writes:
    """F2FS."""
    return [(1024, struct.pack("<IHHIIIIII", 0xF2F52010, 1, 14, 9, 3, 12, 9, 1, 1).ljust(3072, b"\0"))]


def fat(size: int) -> Writes:
    """FAT32."""
    sector = bytearray(512)
    sector[0:90] = struct.pack("<3s8sHBHBHHBHHHIIIHHIHH12sBBBI11s8s", b"\xeb\x58\x90", b"mkfs.fat", 512, 8, 32, 2, 0, 0, 0xF8, 0, 63, 255, 0,
                               size // 512, 2048, 0, 0, 2, 1, 6, b"", 0x80, 0, 0x29, 0x1234ABCD, b"DATA       ", b"FAT32   ")
    sector[510:] = b"\x55\xaa"
    return [(0, bytes(sector)), (32 * 512, b"\xf8\xff\xff\x0f\xff\xff\xff\x0f\xf8\xff\xff\x0f")]


def ntfs(size: int) -> Writes:
    """NTFS."""
    sector = bytearray(512)
    sector[0:84] = struct.pack("<3s8sHB7sBHHHIIIQQQbBBBbBBBQI", b"\xeb\x52\x90", b"NTFS    ", 512, 8, b"", 0xF8, 0, 63, 255, 0, 0,
                               0x800080, size // 512 - 1, 4, size // 8192, -10, 0, 0, 0, 1, 0, 0, 0, 0x1234ABCD5678EF01, 0)
    sector[510:] = b"\x55\xaa"
    return [(0, bytes(sector)), (4 * 4096, b"FILE".ljust(1024, b"\0")), (4 * 4096 + 3 * 1024, b"FILE".ljust(1024, b"\0"))]


def drbd(size: int) -> Writes:
    """DRBD with internal metadata: its last 4 KiB."""
    block = struct.pack(">QQQQQQ4sIIIIIII", size // 512, 1, 2, 3, 4, 5, b"\0\0\0\0", 0x8374026B, 8, 4096, 1, 0xFFFFFFF8, 1, 0)
    return [(size - 4096, block[:60].ljust(60, b"\0") + struct.pack(">I", 0x8374026B) + b"\0" * (4096 - 64))]


def at(offset: int, length: int) -> Callable[[int], Writes]:
    """Data without any signature; an offset below zero counts from the end."""
    return lambda size: [(offset % size, b"row of a table. " * (length // 16))]


ALL = [
    Signature("GPT", gpt, "gpt partition table"),
    Signature("the backup of a GPT", lambda size: gpt(size, backup=True), "data"),
    Signature("MBR", mbr, "dos partition table"),
    Signature("LVM2", lvm, "LVM2_member"),
    Signature("LUKS1", lambda _: [(0, _luks(1))], "crypto_LUKS"),
    Signature("LUKS2", lambda _: [(0, _luks(2))], "crypto_LUKS"),
    Signature("the second header of LUKS2", luks2_backup, "crypto_LUKS"),
    Signature("md 0.90", md_old, "linux_raid_member"),
    Signature("md 1.0", md(0), "linux_raid_member"),
    Signature("md 1.1", md(1), "linux_raid_member"),
    Signature("md 1.2", md(2), "linux_raid_member"),
    Signature("bcache", bcache, "bcache"),
    Signature("ZFS", zfs([0, 1, 2, 3]), "zfs_member", True),
    Signature("ZFS, its start wiped", zfs([2, 3]), "zfs_member", True),
    Signature("swap", swap, "swap"),
    Signature("ISO 9660", iso, "iso9660", True),
    Signature("btrfs", btrfs, "btrfs", True),
    Signature("F2FS", f2fs, "f2fs", True),
    Signature("FAT32", fat, "vfat", True),
    Signature("NTFS", ntfs, "ntfs", True),
    Signature("DRBD", drbd, "drbd"),
    Signature("Ceph's BlueStore", lambda _: [(0, b"bluestore block device\n7e5a2d0c-91c3-4f5d-8a1e-3b1f0c6d2a90\n")], "ceph_bluestore"),
    Signature("Oracle ASM", lambda _: [(0, bytes(32) + b"ORCLDISKDATA01")], "oracleasm", True),
    Signature("a database whose first MiB is zero", at(_MIB, 64 * _KIB), "data"),
    Signature("data past the first 2 MiB", at(2 * _MIB, 8 * _MIB), "data"),
    Signature("one byte where nothing is known to lie", lambda _: [(1_500_000, b"x")], "data (the first byte that is not zero is at 1500000)"),
    Signature("data in the last MiB only", at(-_MIB, 512), "data"),
    Signature("one byte in the last sector", lambda size: [(size - 1, b"x")], "data"),
    Signature("data in the middle", at(500 * _MIB, 32 * _MIB), "data"),
]
