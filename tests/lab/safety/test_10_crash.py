"""attachd is killed, or the node's power is cut, at any moment of an attach and of a detach: what is asked next is reached."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional, Protocol

from lablib.cases import chance, expect, size, takes_long
from lablib.commands import wait_until
from lablib.daemon import DIRECTORY, Daemon, daemon, ready_condition
from lablib.node import Attachd
from lablib.stepped import Stop, command, kill_at
from lablib.steps import MOUNT, attach, attachments_of, backing_file, cut_power, detach, free, in_use_once, nothing_left, path_cut, volume

_WAIT = 400.0
# What the storage's program and a loaded machine need for an attach that stands still at each line of its log.
_STEPPED = 400.0


@dataclasses.dataclass(frozen=True)
class _Case:
    """One volume, and how it is used."""

    type_: str = "tgt"
    mode: str = "ext4"
    paths: int = 2

    @property
    def arguments(self) -> list[str]:
        return ["--block"] if self.mode == "block" else ["--mount", MOUNT, "--fs", self.mode]

    @property
    def spec(self) -> dict[str, Any]:
        if self.mode == "block":
            return {"volumeMode": "Block"}
        return {"mountPath": MOUNT, "filesystem": {"type": self.mode}}


class _Road(Protocol):
    """How attachd is asked: by a command that comes again, or by a request to a daemon."""

    def kill(self, to: str, lines: int, more: float) -> Stop:
        """Ask for an attach or a detach, and kill attachd."""

    def go_on(self, to: str) -> Optional[str]:
        """Ask once more, until the end; give what it says where only an administrator can help."""


class _Command:
    """`attachd attach` and `attachd detach`."""

    def __init__(self, node: Attachd, volume_id: str, case: _Case) -> None:
        self._node, self._volume, self._case = node, volume_id, case

    def _arguments(self, to: str) -> list[str]:
        return [to, self._volume, "--quiet", *(self._case.arguments if to == "attach" else [])]

    def kill(self, to: str, lines: int, more: float) -> Stop:
        stop = kill_at(self._node, lines, command(self._node, *self._arguments(to)), more=more, timeout=_STEPPED)
        expect(stop.killed or stop.code == 0, f"{to}: exit code {stop.code}: {stop.said[-3:]}")
        return stop

    def go_on(self, to: str) -> Optional[str]:
        result = self._node.run(*self._arguments(to), timeout=_WAIT)
        if result.code == 3 and "LostReservation" in result.stderr:
            return result.stderr
        expect(result.code == 0, f"{to} after a kill: exit code {result.code}: {result.stderr}")
        return None


class _Requests:
    """`attachd run` with a directory of requests, started again each time."""

    def __init__(self, node: Attachd, d: Daemon, volume_id: str, case: _Case) -> None:
        self._node, self._d, self._volume, self._case = node, d, volume_id, case

    def _ask(self, to: str) -> None:
        if to == "attach":
            self._d.request("db", self._volume, **self._case.spec)
        else:
            self._node.shell(f"rm -f {DIRECTORY}/db.yaml")

    def kill(self, to: str, lines: int, more: float) -> Stop:
        self._ask(to)
        status = f"{DIRECTORY}/db.status.yaml"
        done = f"! test -e {status}" if to == "detach" else f"grep -q 'reason: Attached' {status}"
        argv = command(self._node, "run", "--requests-dir", DIRECTORY)
        return kill_at(self._node, lines, argv, more=more, done=done, timeout=_STEPPED)

    def go_on(self, to: str) -> Optional[str]:
        self._ask(to)
        self._d.start()
        try:
            told: list[str] = []

            def reached() -> bool:
                condition = ready_condition(self._d.status("db"))
                there = [item["status"] for item in attachments_of(self._node, self._volume)]
                if condition.get("reason") == "LostReservation" and there == ["reserved"]:
                    told.append(condition["message"])
                    return True
                if to == "detach":
                    return condition == {} and there == []
                return condition.get("reason") == "Attached" and there == ["attached"] and _is_there(self._node, self._case)

            wait_until(reached, timeout=_WAIT, what=f"the daemon to {to}; it says {self._d.status('db')}", interval=0.5)
            return told[0] if told else None
        finally:
            self._d.end("TERM", timeout=_WAIT)


def _is_there(node: Attachd, case: _Case) -> bool:
    left = node.leftovers()
    mounts = sum(line == f"mount {MOUNT}" for line in left)
    return mounts == (case.mode != "block") and sum(line.startswith("disk ") for line in left) == case.paths


class _Crashes:
    """Kills on one volume; what was written to it is looked for after each."""

    def __init__(self, node: Attachd, volume_id: str, case: _Case, road: _Road) -> None:
        self.node, self.volume, self.case, self.road = node, volume_id, case, road
        self.written: Optional[str] = None
        self.points: dict[str, list[str]] = {"attach": [], "detach": []}
        self.told = 0

    def blank(self) -> None:
        """Make the volume as new, so that the next attach formats it. tgtd reads the file when a node does."""
        disk = backing_file(self.node, self.volume)
        length = disk.stat().st_size
        with open(disk, "r+b") as file:
            file.truncate(0)
            file.truncate(length)
        self.written = None

    def sign(self, number: int) -> None:
        """Write to the volume what only it has."""
        text = f"{self.volume} {number}"
        if self.case.mode == "block":
            self.node.shell(f"echo {text} | dd of={self._device()} bs=512 conv=sync,fsync,nocreat oflag=direct status=none")
        else:
            self.node.shell(f"echo {text} > {MOUNT}/signature; sync {MOUNT}/signature")
        self.written = text

    def _device(self) -> str:
        return self.node.shell("for map in /dev/mapper/3*; do echo $map; done").strip()

    def attached(self, number: int) -> None:
        """It is attached once, by all paths, with what was written to it."""
        in_use_once(self.node, self.volume)
        left = self.node.leftovers()
        for kind, count in (("session", self.case.paths), ("disk", self.case.paths), ("map", 1)):
            found = [line for line in left if line.startswith(f"{kind} ")]
            expect(len(found) == count, f"{count} of {kind} expected: {left}")
        if self.case.mode != "block":
            expect(f"mount {MOUNT}" in left, f"it is not mounted: {left}")
        if self.written:
            read = (f"dd if={self._device()} bs=512 count=1 iflag=direct status=none | tr -d '\\0'" if self.case.mode == "block"
                    else f"cat {MOUNT}/signature")
            found_text = self.node.shell(read).strip()
            expect(found_text == self.written, f"{self.written!r} was written, and {found_text!r} is there")
        self.sign(number)

    def kill(self, to: str, lines: int, more: float = 0.0) -> bool:
        """Kill it on the way; false where it got there first."""
        stop = self.road.kill(to, lines, more)
        if stop.killed:
            # What the storage numbers anew at each attach makes no other point.
            self.points[to].append(re.sub(r"[0-9a-f-]{32,36}", "…", stop.after))
        return stop.killed

    def go_on(self, to: str, number: int) -> None:
        """Get there, and see that it is there."""
        told = self.road.go_on(to)
        if told is not None:
            # attachd asked for a reservation and never learned its id: it must not take another's for it.
            lost = [item for item in attachments_of(self.node, self.volume) if item["status"] == "reserved"]
            expect(len(lost) == 1 and lost[0]["id"] in told, f"it says {told}, the attachments are {lost}")
            free(self.node, lost[0]["id"], self.volume)
            self.told += 1
            expect(self.road.go_on(to) is None, "the reservation is still lost")
        if to == "attach":
            self.attached(number)
        else:
            nothing_left(self.node, self.volume)

    def count(self) -> str:
        kills = {to: f"{len(set(points))} places, {len(points)} kills" for to, points in self.points.items()}
        return f"attach {kills['attach']}; detach {kills['detach']}; {self.told} lost reservations told"


@contextmanager
def _crashes(node: Attachd, case: _Case, by: str) -> Iterator[_Crashes]:
    with volume(node, case.type_) as v:
        if by == "command":
            yield _Crashes(node, v, case, _Command(node, v, case))
        else:
            with daemon(node) as d:
                d.end("TERM", timeout=_WAIT)
                yield _Crashes(node, v, case, _Requests(node, d, v, case))


def _places(crashes: _Crashes, to: str) -> int:
    """How many lines it says on the way, when nobody kills it."""
    before = crashes.road.kill(to, 1_000_000, 0.0)
    expect(not before.killed and before.said, f"{to}: {before}")
    return len(before.said)


def _killed_everywhere(node: Attachd, case: _Case, by: str, rounds: int, stride: int, draw: random.Random) -> None:
    """Kill at each `stride`th line; odd rounds go on to what was asked, even ones to its opposite."""
    with _crashes(node, case, by) as crashes:
        lines = {"attach": _places(crashes, "attach")}
        crashes.go_on("attach", 0)
        lines["detach"] = _places(crashes, "detach")
        crashes.go_on("detach", 0)
        number = 0
        for round_ in range(rounds):
            # A new volume is formatted; one that was used must be found as it was left.
            points = {to: list(range(draw.randrange(stride), lines[to], stride)) for to in lines}
            in_detach = itertools.cycle(points["detach"])
            for index, point in enumerate(points["attach"]):
                number += 1
                on = (index + round_) % 2 == 1
                if on:
                    crashes.blank()
                more = draw.choice([0.0, 0.0, draw.uniform(0.01, 0.6)])
                crashes.kill("attach", point, more)
                crashes.go_on("attach" if on else "detach", number)
                if on:
                    crashes.kill("detach", next(in_detach), more)
                    if index % 4 < 2:
                        crashes.go_on("attach", number)
                    crashes.go_on("detach", number)
        print(f"     {case.type_}, {case.mode}, by {by}: of {lines} lines in {rounds} rounds: {crashes.count()}; "
              "all reached what was asked", flush=True)
        expect(crashes.points["attach"] and crashes.points["detach"], f"it was never killed: {crashes.points}")


def test_a_command_that_is_killed_at_any_step_leaves_what_the_next_one_brings_to_its_end(node: Attachd) -> None:
    _killed_everywhere(node, _Case(), "command", size(1, 2), size(16, 1), chance("crash command"))


@takes_long
def test_a_daemon_that_is_killed_at_any_step_goes_on_when_it_starts_again(node: Attachd) -> None:
    draw = chance("crash daemon")
    for case, rounds, stride in [(_Case("tgt-single", "ext4", 1), 1, size(25, 2)), (_Case(), 2, 1)][:size(1, 2)]:
        _killed_everywhere(node, case, "daemon", rounds, stride, draw)


@takes_long
def test_kills_while_other_kinds_of_volumes_come_and_go_leave_nothing_either(node: Attachd) -> None:
    draw = chance("crash kinds")
    kinds = [_Case("tgt-single", "block", 1), _Case("tgt", "xfs"), _Case("tgt", "block"), _Case("tgt-nochap", "ext4"), _Case("tgt-single", "ext4", 1)]
    for case in kinds[:size(1, len(kinds))]:
        _killed_everywhere(node, case, "command", 1, size(20, 2), draw)


def test_after_a_power_cut_at_any_step_the_next_command_gets_there(node: Attachd) -> None:
    draw = chance("power")
    with _crashes(node, _Case(), "command") as crashes:
        opposite = {"attach": "detach", "detach": "attach"}
        cuts = 0
        # The way to an attach in the short run, both ways in the long one.
        for to in ["attach", "detach"][:size(1, 2)]:
            lines = _places(crashes, to)
            crashes.go_on(to, 0)
            every = size(lines, 3)
            for line in range(draw.randrange(every), lines, every):
                crashes.go_on(opposite[to], cuts)
                if crashes.kill(to, line):
                    cut_power(node)
                    cuts += 1
                    expect(node.session_ids() == [], f"the node logged in by itself: {node.session_ids()}")
                    crashes.go_on(to if draw.random() < 0.5 else opposite[to], cuts)
        crashes.go_on("detach", cuts)
        print(f"     {cuts} power cuts on the way: {crashes.count()}; all reached what was asked", flush=True)
        expect(cuts >= 1, "the power was never cut")


def test_a_power_cut_after_a_detach_brings_no_wwid_back_to_multipaths_list(node: Attachd) -> None:
    with volume(node) as v:
        attach(node, v, "--block")
        node.shell("sync")
        detach(node, v)
        cut_power(node)
        nothing_left(node, v)


def test_what_fsync_had_taken_before_a_power_cut_is_there_after_it(node: Attachd) -> None:
    files = size(8, 64)
    for case in [_Case(), _Case("tgt", "xfs"), _Case("tgt", "block")][:size(1, 3)]:
        with _crashes(node, case, "command") as crashes:
            data = os.urandom(32).hex()
            attach(node, crashes.volume, *case.arguments)
            crashes.sign(1)
            if case.mode != "block":
                node.shell(f"for n in $(seq {files}); do echo {data} $n > {MOUNT}/file$n; done; sync -f {MOUNT}; "
                           f"(while :; do echo x >> {MOUNT}/unsynced; done) > /dev/null 2>&1 & sleep 1")
            cut_power(node)
            crashes.go_on("attach", 2)
            if case.mode != "block":
                node.shell(f"for n in $(seq {files}); do [ \"$(cat {MOUNT}/file$n)\" = \"{data} $n\" ]; done")
            crashes.go_on("detach", 2)
            print(f"     {case.mode}: what fsync had taken before a power cut was there after it", flush=True)


def _killed_in_its_login(node: Attachd, volume_id: str) -> None:
    """One portal does not answer, and iscsid still tries when attachd is gone."""
    stop = kill_at(node, 10_000, command(node, "attach", volume_id, "--quiet", "--block"), timeout=_STEPPED,
                   done="pgrep -x -a iscsiadm | grep -q -e '--login' && grep -qs LOGGED_IN /sys/class/iscsi_session/*/state")
    expect(not stop.killed and stop.code is None and attachments_of(node, volume_id) != [], f"it was not killed in its login: {stop}")


@takes_long
def test_a_login_that_outlives_its_attachd_leaves_no_session(node: Attachd) -> None:
    for to in ["detach", "attach"]:
        with volume(node) as v:
            with path_cut(node, 2):
                _killed_in_its_login(node, v)
                result = node.run(to, v, *(["--block"] if to == "attach" else []), timeout=_WAIT)
                expect(result.code == 0, f"{to} while a login is under way: exit code {result.code}: {result.stderr}")
            # Packets come through again: what is under way now has its end within the limit of a login.
            time.sleep(15)
            if to == "attach":
                attach(node, v, "--block")
                in_use_once(node, v)
                result = node.run("detach", v, timeout=_WAIT)
                expect(result.code == 0, f"detach: exit code {result.code}: {result.stderr}")
            nothing_left(node, v)


def test_a_format_that_outlives_its_attachd_is_waited_for(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        argv = ["attach", v, "--mount", MOUNT]
        killed = node.signalled(signal.SIGKILL, *argv, program="mkfs.ext4", timeout=_WAIT)
        expect(killed.code == -signal.SIGKILL, f"attachd was not killed in its format: {killed}")
        result = node.run(*argv, timeout=_WAIT)
        expect(result.code == 0, f"the next attach: exit code {result.code}: {result.stderr}")
        node.shell(f"echo kept > {MOUNT}/file; umount {MOUNT}; e2fsck -fn $(readlink -f /dev/mapper/3*)")
        attach(node, v, "--mount", MOUNT)
        expect(node.shell(f"cat {MOUNT}/file") == "kept\n", "the file is gone")
        result = node.run("detach", v, timeout=_WAIT)
        expect(result.code == 0, f"detach: exit code {result.code}: {result.stderr}")
        nothing_left(node, v)
