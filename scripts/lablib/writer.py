"""A program in a node that writes to a volume and remembers what was acknowledged, and one that checks it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager

from lablib.commands import wait_until
from lablib.node import Attachd

BLOCK = 4096

_PROGRAM = "/run/lab-writer.py"
_ACKNOWLEDGED = "/run/lab-writer.acknowledged"
_STOP = "/run/lab-writer.stop"

# Block number n of the file holds n and a checksum, and is never written again once its fsync succeeded: then n goes
# into the list, which lies outside of the volume. What fails is tried again, and noted with its errno.
_SOURCE = r"""
import hashlib, json, os, random, struct, sys, time

BLOCK = 4096

def block(number):
    payload = random.Random(number).randbytes(BLOCK - 40)
    head = struct.pack("<Q", number)
    return head + hashlib.sha256(head + payload).digest() + payload

def write(path, acknowledged, stop, pause):
    number = 0
    with open(acknowledged, "w", buffering=1) as notes:
        notes.write(json.dumps({"started": time.time()}) + "\n")
        while not os.path.exists(stop):
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    data = block(number)
                    if os.pwrite(handle, data, number * BLOCK) != BLOCK:
                        raise OSError(5, "short write")
                    os.fsync(handle)
                finally:
                    os.close(handle)
            except OSError as error:
                notes.write(json.dumps({"errno": error.errno, "at": time.time()}) + "\n")
                time.sleep(0.5)
                continue
            notes.write(json.dumps({"block": number, "at": time.time()}) + "\n")
            number += 1
            time.sleep(pause)

def verify(path, acknowledged):
    with open(acknowledged) as notes:
        blocks = [note["block"] for note in map(json.loads, notes) if "block" in note]
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    lost = [number for number in blocks if os.pread(handle, BLOCK, number * BLOCK) != block(number)]
    print(json.dumps({"acknowledged": len(blocks), "lost": lost}))

if sys.argv[1] == "write":
    write(sys.argv[2], sys.argv[3], sys.argv[4], float(sys.argv[5]))
else:
    verify(sys.argv[2], sys.argv[3])
"""


@dataclasses.dataclass(frozen=True)
class Verified:
    """What a check found."""

    acknowledged: int
    lost: list[int]

    @property
    def bytes(self) -> int:
        """How much was acknowledged, and is there unless it is lost."""
        return (self.acknowledged - len(self.lost)) * BLOCK


class Writer:
    """The program, while it writes. Its notes outlive the node where they are in the lab's shared directory, `/lab`."""

    def __init__(self, node: Attachd, path: str, notes: str = _ACKNOWLEDGED) -> None:
        self._node = node
        self._path = path
        self._notes = notes
        self._pid = 0

    def start(self, pause: float = 0.02) -> None:
        """Begin with an empty list; returns when the first block is acknowledged."""
        self._install()
        self._node.shell(f"rm -f {_STOP}; : > {self._notes}")
        argv = f"python3 {_PROGRAM} write {self._path} {self._notes} {_STOP} {pause}"
        self._pid = int(self._node.shell(f"setsid {argv} < /dev/null > /run/lab-writer.log 2>&1 & echo $!"))
        wait_until(lambda: self.acknowledged() > 0, timeout=60, what="the writer to write", interval=0.5)

    def acknowledged(self) -> int:
        """How many blocks were acknowledged so far."""
        return int(self._node.shell(f"grep -c block {self._notes} || true"))

    def errors(self) -> list[int]:
        """The error numbers that it got, in their order."""
        lines = self._node.shell(f"grep errno {self._notes} || true").splitlines()
        return [json.loads(line)["errno"] for line in lines]

    def longest_pause(self) -> float:
        """The longest time in seconds between two notes: a write that waited."""
        lines = self._node.shell(f"cat {self._notes}").splitlines()
        times = [note.get("at", note.get("started")) for note in map(json.loads, lines)]
        return max((after - before for before, after in zip(times, times[1:])), default=0.0)

    def stop(self, timeout: float = 120) -> None:
        """End it after its write; it must come to an end."""
        self._node.shell(f"touch {_STOP}")
        wait_until(lambda: self._node.execute(["kill", "-0", str(self._pid)]).code != 0, timeout=timeout,
                   what="the writer to end", interval=0.5)

    def verify(self) -> Verified:
        """Read from the device what was acknowledged; the file system must be mounted at the same place."""
        self._install()
        self._node.shell("sync; echo 3 > /proc/sys/vm/drop_caches")
        found = json.loads(self._node.shell(f"python3 {_PROGRAM} verify {self._path} {self._notes}", timeout=600))
        return Verified(found["acknowledged"], found["lost"])

    def _install(self) -> None:
        self._node.shell(f"cat > {_PROGRAM} << 'END'\n{_SOURCE}\nEND")

    def clear_away(self) -> None:
        """Remove its files from the node."""
        self._node.shell(f"rm -f {_PROGRAM} {_STOP} {self._notes} /run/lab-writer.log")


@contextmanager
def writer(node: Attachd, path: str) -> Iterator[Writer]:
    """A writer that is cleared away afterwards."""
    running = Writer(node, path)
    running.start()
    yield running
    running.clear_away()
