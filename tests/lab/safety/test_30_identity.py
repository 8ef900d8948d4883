"""A storage that gives LUN numbers and WWIDs to the next volume, and what others leave on the node: never the wrong volume."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Optional

from lablib.cases import chance, expect, size
from lablib.commands import run
from lablib.node import Attachd
from lablib.pool import IQN, Pool, pool
from lablib.steps import backing_file, volume

_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class _Volume:
    """A volume that says of itself which one it is."""

    id: str
    mount: Optional[str]

    def sign(self, disk: Path) -> None:
        """Make it: a file system with its name in it, or its name at the start of the device."""
        if self.mount:
            with tempfile.TemporaryDirectory() as directory:
                (Path(directory) / "signature").write_text(self.id)
                run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", "-d", directory, disk], timeout=120)
        else:
            with open(disk, "r+b") as file:
                file.write(self.id.encode())

    def signature(self, disk: Path) -> str:
        """What its file says, whatever the node did."""
        if self.mount:
            return run(["debugfs", "-R", "cat /signature", disk], timeout=60)
        with open(disk, "rb") as file:
            return file.read(len(self.id)).decode(errors="replace")


class _Rounds:
    """Attaches over and over of a few volumes that share a target, its LUNs and their WWIDs."""

    def __init__(self, node: Attachd, storage: Pool, volumes: list[_Volume]) -> None:
        self.node, self.storage, self.volumes = node, storage, volumes
        self.chance = chance("identity")
        self.right = 0
        self.refused: dict[str, int] = {}
        self.wwids: dict[int, str] = {}

    def attach(self, volume_: _Volume) -> Optional[str]:
        """Attach; it must be this volume, or a refusal, of which the reason is given."""
        usage = ["--mount", volume_.mount, "--format", "never"] if volume_.mount else ["--block"]
        result = self.node.run("attach", volume_.id, "--quiet", "-o", "json", *usage, OS_ENDPOINT=self.storage.endpoint, timeout=400)
        if result.code != 0:
            # What is not taken back, since another volume's disk stands at its place, a detach takes back later.
            expect(result.code in (3, 6), f"attach: exit code {result.code}: {result.stderr}")
            [reason] = re.findall(r"\[([A-Z]\w+)\]", result.stderr)[-1:]
            self.refused[reason] = self.refused.get(reason, 0) + 1
            return str(reason)
        attached = result.json()
        self.wwids.update({lun: attached["wwid"] for lun, held in self.storage.luns.items() if held == volume_.id})
        read = f"cat {volume_.mount}/signature" if volume_.mount else f"dd if={attached['device']} bs=512 count=1 iflag=direct status=none"
        found = self.node.shell(read)[:len(volume_.id)]
        expect(found == volume_.id, f"THE WRONG VOLUME: {volume_.id} was asked for, {found!r} is there: {attached}")
        self.right += 1
        return None

    def attach_and_detach(self, volume_: _Volume) -> None:
        if self.attach(volume_) in (None, "NotRolledBack"):
            self.detach(volume_)

    def must_attach(self, volume_: _Volume) -> None:
        reason = self.attach(volume_)
        expect(reason is None, f"with nothing in its way it is refused: {reason}")

    def detach(self, *volumes: _Volume) -> None:
        for volume_ in volumes:
            result = self.node.run("detach", volume_.id, "--quiet", OS_ENDPOINT=self.storage.endpoint, timeout=400)
            expect(result.code == 0, f"detach: exit code {result.code}: {result.stderr}")

    # Rounds: each begins and ends with nothing attached

    def one_after_the_other(self) -> None:
        """The next volume gets the LUN and the WWID of the last, while a third one keeps the session."""
        first, second, third = self.chance.sample(self.volumes, 3)
        self.must_attach(first)
        self.must_attach(second)
        self.detach(first)
        self.must_attach(third)
        left = [second, third]
        self.chance.shuffle(left)
        self.detach(*left)

    def taken_away_and_given_to_another(self) -> None:
        """Somebody deletes an attachment that is in use, and the storage gives its LUN away while the disk still stands."""
        # Not a mounted one: what its file system writes then, the storage writes to the other volume.
        first, second = [volume_ for volume_ in self.volumes if not volume_.mount][:2]
        self.must_attach(first)
        [item] = [item for item in self.node.cinder.attachments() if item["volume_id"] == first.id]
        self.node.cinder.request("DELETE", f"/attachments/{item['id']}").json()
        self.storage.withdraw_volume(first.id)
        if self.attach(second) is None:
            self.detach(second)
        # What stood in the way is told, and goes by a detach.
        self.detach(first)
        self.must_attach(second)
        self.detach(second)

    def left_by_hand(self) -> None:
        """An administrator's session keeps the disk of a volume that is gone; its LUN is another's by now."""
        old, new = self.chance.sample(self.volumes, 2)
        lun = self.storage.export(old.id)
        self._log_in()
        self.storage.withdraw(lun)
        self.attach_and_detach(new)
        self._log_out()
        self.must_attach(new)
        self.detach(new)

    def a_ghost(self) -> None:
        """A map of the WWID is left, without a disk."""
        new = self.chance.choice(self.volumes)
        self._map("ghost", 1, "0 0 0 0")
        self.attach_and_detach(new)
        self._unmap("ghost")
        self.must_attach(new)
        self.detach(new)

    def a_map_of_two(self) -> None:
        """A map holds disks of two volumes."""
        first, second = self.chance.sample(self.volumes, 2)
        luns = [self.storage.export(first.id), self.storage.export(second.id)]
        self._log_in()
        disks = [self.node.shell(f"lsblk -dno NAME,HCTL | awk '$2 ~ /:{lun}$/ {{print \"/dev/\" $1}}' | head -1").strip() for lun in luns]
        # With multipathd awake, it takes the foreign disk out.
        self.node.shell("pkill -STOP -x multipathd")
        self._map("mixed", luns[0], f"0 0 1 1 round-robin 0 2 1 {disks[0]} 1 {disks[1]} 1")
        self.node.shell("pkill -CONT -x multipathd")
        self.attach_and_detach(first)
        self._unmap("mixed")
        self._log_out()
        self.storage.withdraw_volume(first.id)
        self.storage.withdraw_volume(second.id)
        self.must_attach(first)
        self.detach(first)

    def another_size(self) -> None:
        """The volume is not as long as Cinder says."""
        new = self.chance.choice(self.volumes)
        disk = backing_file(self.node, new.id)
        os.truncate(disk, 2 * _GIB)
        expect(self.attach(new) is not None, "a volume of twice the size was taken")
        os.truncate(disk, _GIB)
        self.must_attach(new)
        self.detach(new)

    def a_twin(self) -> None:
        """Another disk of the node has the same WWID."""
        new, twin = self.chance.sample(self.volumes, 2)
        lun = self.storage.export(twin.id, 7, wwid_of=1)
        self._log_in()
        self.attach_and_detach(new)
        self._log_out()
        self.storage.withdraw(lun)
        self.must_attach(new)
        self.detach(new)

    # What others do on the node

    def _log_in(self) -> None:
        for portal in self.storage.portals:
            self.node.shell(f"iscsiadm -m node -T {IQN} -p {portal} -o new > /dev/null; iscsiadm -m node -T {IQN} -p {portal} --login > /dev/null; "
                            "for _ in $(seq 200); do ls /sys/block | grep -q ^sd && break; sleep 0.1; done; udevadm settle", timeout=240)

    def _log_out(self) -> None:
        self.node.shell(f"iscsiadm -m node -T {IQN} --logout > /dev/null; iscsiadm -m node -T {IQN} -o delete", timeout=240)

    def _map(self, name: str, lun: int, table: str) -> None:
        wwid = self.wwids.get(lun, "3600000000000000000e00000000010001")
        self.node.shell(f"dmsetup create {name} -u mpath-{wwid} --table '0 {_GIB // 512} multipath {table}'; udevadm settle", timeout=240)

    def _unmap(self, name: str) -> None:
        """What attachd has not removed (or did, under the name that multipathd gave it)."""
        self.node.shell(f"dmsetup info {name} > /dev/null 2>&1 || exit 0; for _ in $(seq 50); do dmsetup remove {name} && exit 0; sleep 0.2; done; exit 1",
                        timeout=240)

    def live(self, rounds: int) -> dict[str, int]:
        """So many rounds, each kind in its turn, in another order each time."""
        kinds: list[Callable[[], None]] = [self.one_after_the_other, self.taken_away_and_given_to_another, self.left_by_hand, self.a_ghost,
                                           self.a_map_of_two, self.another_size, self.a_twin]
        done: dict[str, int] = {}
        # It is known from here on which WWID the first LUN has.
        self.one_after_the_other()
        turn: list[Callable[[], None]] = []
        for _ in range(rounds):
            if not turn:
                turn = self.chance.sample(kinds, len(kinds))
            kind = turn.pop()
            name = kind.__name__.replace("_", " ")
            try:
                kind()
            except Exception as error:
                raise AssertionError(f"in round {sum(done.values()) + 1} ({name}), after {done}: {error}") from error
            done[name] = done.get(name, 0) + 1
            print(f"     {name}: {self.right} right so far, refused {self.refused}", flush=True)
            left = [line for line in self.node.leftovers() if not line.startswith("multipath wwid")]
            expect(left == [] and self.storage.luns == {}, f"left after a round ({name}): {left}, {self.storage.luns}")
        return done


def test_with_luns_and_wwids_used_again_it_is_never_the_wrong_volume(node: Attachd) -> None:
    with ExitStack() as stack:
        volumes = []
        for number in range(4):
            id_ = stack.enter_context(volume(node, "tgt-nochap"))
            volumes.append(_Volume(id_, f"/mnt/v{number}" if number < 2 else None))
            volumes[-1].sign(backing_file(node, id_))
        rounds = _Rounds(node, stack.enter_context(pool(node)), volumes)
        done = rounds.live(size(4, 210))
        for volume_ in volumes:
            found = volume_.signature(backing_file(node, volume_.id))
            expect(found == volume_.id, f"volume {volume_.id} holds {found!r} now")
        print(f"     rounds: {done}; {rounds.right} attaches of the right volume, refused: {rounds.refused}; never the wrong one, and all "
              f"{len(volumes)} signatures whole")
