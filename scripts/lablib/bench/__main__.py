"""attachd beside os-brick and the bare tools on one node, in turns: what each takes, and what it costs."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lablib.bench.contenders import NAMES, OS_BRICK, Contender, Lap, install
from lablib.build import build
from lablib.errors import LabError
from lablib.lifecycle import Wishes, down, up
from lablib.node import Attachd
from lablib.paths import cut, restore
from lablib.state import Lab
from lablib.steps import proxied

# Of each node, in MiB: 200 volumes over two paths need about 2000.
_MEMORY = 3072
_MANY = 40


class Bench:
    """One run."""

    def __init__(self, node: Attachd, rounds: int) -> None:
        self.node = node
        self.rounds = rounds
        self.contenders = {name: Contender(node, name) for name in NAMES}
        # Of each case, what is done and by whom.
        self.laps: dict[str, dict[tuple[str, str], list[Lap]]] = {}
        self.figures: dict[str, object] = {}
        self._volumes: dict[str, list[str]] = {}

    def volumes(self, count: int, type_: str = "tgt") -> list[str]:
        """So many volumes; those that were made for another case are used again."""
        made = self._volumes.setdefault(type_, [])
        while len(made) < count:
            made.append(self.node.cinder.create_volume(1, type_, "bench"))
            self.node.cinder.wait_for_volume(made[-1], 120)
        return made[:count]

    def lap(self, case: str, what: str, who: str, volumes: list[str], multipath: bool = True) -> Lap:
        """Time one order."""
        lap = self.contenders[who].do(what, volumes, multipath)
        self.laps.setdefault(case, {}).setdefault((what, who), []).append(lap)
        return lap

    def race(self, case: str, volumes: list[str], names: tuple[str, ...], multipath: bool = True, rounds: int = 0) -> None:
        """Each of them attaches and detaches them, in turns."""
        before = self._sessions()
        for _ in range(rounds or self.rounds):
            for who in names:
                for what in ("attach", "detach"):
                    self.lap(case, what, who, volumes, multipath)
                if self._sessions() != before:
                    raise LabError(f"{case}: {who} left something: {self.node.leftovers()[:20]}")
        self.tell(case)

    def tell(self, case: str) -> None:
        """Print what a case took."""
        for (what, who), laps in self.laps[case].items():
            print(f"     {case}, {what}: {who} {' '.join(f'{lap.seconds:.2f}' for lap in laps)} s", flush=True)

    def _sessions(self) -> int:
        return len(self.node.session_ids())


_ALL = ("attachd", "attachd command", "bare tools", "os-brick")
_SEVERAL = ("attachd", "bare tools", "os-brick")


def _one(bench: Bench) -> None:
    bench.race("one volume, one path", bench.volumes(1, "tgt-single"), _ALL, multipath=False)
    bench.race("one volume, two paths", bench.volumes(1), _ALL)


def _sessions_there(bench: Bench) -> None:
    """The disks and the map are gone, the sessions are not: after a storage's hiccup, or with a target that others use, too."""
    case, volumes = "one volume, its sessions are there", bench.volumes(1)
    for _ in range(bench.rounds):
        for who in ("attachd command", "bare tools", "os-brick"):
            bench.contenders[who].do("attach", volumes)
            bench.node.shell("udevadm settle; for disk in /sys/block/sd*; do echo 1 > $disk/device/delete; done; udevadm settle; "
                             "for map in /sys/block/dm-*; do [ ! -e $map ] || dmsetup remove --retry $(< $map/dm/name); done; udevadm settle")
            bench.lap(case, "again", who, volumes)
            bench.contenders[who].do("detach", volumes)
    bench.tell(case)


def _eight(bench: Bench) -> None:
    bench.race("8 volumes at once", bench.volumes(8), _SEVERAL, rounds=min(bench.rounds, 3))


def _many(bench: Bench) -> None:
    bench.race("32 volumes at once", bench.volumes(32), _SEVERAL, rounds=min(bench.rounds, 2))


def _dead_portal(bench: Bench) -> None:
    """Of two portals one doesn't answer."""
    cut(bench.node.lab, bench.node.record, 2, "drop")
    for contender in bench.contenders.values():
        contender.portals_dead = True
    try:
        bench.race("one volume, one of two portals dead", bench.volumes(1), _ALL, rounds=min(bench.rounds, 2))
    finally:
        restore(bench.node.lab, bench.node.record, 2)
        for contender in bench.contenders.values():
            contender.portals_dead = False


def _beside(bench: Bench, count: int) -> None:
    """One more, where so many are attached already; and what the daemon is like with them."""
    everything = bench.volumes(count + 1)
    one, others = everything[:1], everything[1:]
    started = bench.contenders["attachd"].do("attach", others)
    print(f"     {count} attached in {started.seconds:.1f} s", flush=True)
    bench.race(f"one more beside {count}", one, _ALL, rounds=min(bench.rounds, 3))
    _idle(bench, count)
    bench.contenders["attachd"].do("detach", others)


def _idle(bench: Bench, count: int) -> None:
    """What the daemon has, and does in a minute in which nothing happens."""
    daemon = bench.contenders["attachd"].do("attach", [])
    bench.figures[f"memory of the daemon with {count} attached: now and at most, in KiB"] = (daemon.memory, daemon.peak)
    pid = daemon.pid
    calls = bench.node.shell(f"timeout --signal=INT 60 strace -f -c -p {pid} -o /run/bench/idle || true; cat /run/bench/idle", timeout=150)
    # Each return of epoll_wait or futex is a thread that was woken.
    bench.figures[f"idle daemon, {count} attached, in a minute: system calls"] = calls


def _at_the_start(bench: Bench) -> None:
    """A node starts, and so many requests wait for it."""
    volumes, case = bench.volumes(_MANY), f"{_MANY} volumes, all at the node's start"
    for _ in range(min(bench.rounds, 2)):
        for who in _SEVERAL:
            if who == "attachd":
                bench.contenders[who].do("stop", [])
                bench.laps.setdefault(case, {}).setdefault(("attach", who), []).append(bench.contenders[who].do("start", volumes))
            else:
                bench.lap(case, "attach", who, volumes)
            bench.lap(case, "detach", who, volumes)
    bench.tell(case)


def _calls(bench: Bench) -> None:
    """What each asks of Cinder."""
    for who in ("attachd command", "bare tools", "os-brick"):
        with proxied(bench.node) as proxy:
            contender = Contender(bench.node, who, proxy.endpoint_in_node)
            for what in ("attach", "detach"):
                before = len(proxy.sizes)
                contender.do(what, bench.volumes(1))
                sizes = proxy.sizes[before:]
                bench.figures[f"calls to Cinder and bytes of their bodies, both ways: {what}, {who}"] = (len(sizes), sum(sizes))
            contender.close()


def _where_the_time_goes(bench: Bench) -> None:
    """One attach and detach, step by step."""
    volume = bench.volumes(1)[0]
    bare = f"/run/bench/bare_tools.sh attach {volume} - 10.0.2.2 {bench.node.cinder_port} {bench.node.project} {bench.node.iqn} 10.0.2.{bench.node.record.address}"
    for number in range(bench.rounds):
        for what in (["attach", volume, "--block", "--multipath", "required"], ["detach", volume]):
            result = bench.node.run(*what)
            bench.figures[f"steps of attachd {what[0]}, {number + 1}"] = result.stderr
        bench.node.shell(f"rm -f /run/bench/laps; LAPS=/run/bench/laps {bare}")
        bench.figures[f"steps of the bare tools, {number + 1}"] = bench.node.shell("awk 'last { printf \"%s %.2f s\\n\", $1, $2 - last } { last = $2 }' /run/bench/laps")
        bench.contenders["bare tools"].do("detach", [volume])


_CASES: dict[str, Callable[[Bench], None]] = {
    "one": _one, "sessions-there": _sessions_there, "eight": _eight, "dead-portal": _dead_portal, "many": _many, "calls": _calls,
    "steps": _where_the_time_goes, "at-the-start": _at_the_start, **{f"beside-{count}": partial(_beside, count=count) for count in (32, 100, 200)},
}


def _table(bench: Bench) -> str:
    """Medians, the least and the most, and how attachd stands to the others, in Markdown."""
    lines = ["| case | " + " | ".join(f"{name}, s" for name in NAMES) + " | of the bare tools | os-brick takes |",
             "|---|" + "---|" * (len(NAMES) + 2)]
    for case, laps in bench.laps.items():
        for what in dict.fromkeys(what for what, _ in laps):
            seconds = {who: [lap.seconds for lap in of] for (did, who), of in laps.items() if did == what}
            cells = [f"{statistics.median(of):.2f} ({min(of):.2f}–{max(of):.2f})" if (of := seconds.get(name)) else "–" for name in NAMES]
            medians = {name: statistics.median(of) for name, of in seconds.items()}
            ours = medians.get("attachd", medians.get("attachd command"))
            bare, brick = medians.get("bare tools"), medians.get("os-brick")
            ratios = [f"{ours / bare:.2f}" if ours and bare else "–", f"{brick / ours:.1f} times as long" if ours and brick else "–"]
            lines.append(f"| {case}: {what} | " + " | ".join(cells + ratios) + " |")
    return "\n".join(lines)


def _costs(bench: Bench) -> str:
    """Processor time of the whole node, and processes, for each volume."""
    counts = {"one volume, one path": 1, "one volume, two paths": 1, "8 volumes at once": 8, "32 volumes at once": 32}
    lines = ["| case | " + " | ".join(f"{name}: CPU s, processes" for name in NAMES) + " |", "|---|" + "---|" * len(NAMES)]
    for case, laps in bench.laps.items():
        for what in dict.fromkeys(what for what, _ in laps):
            if case in counts:
                cells = [f"{statistics.median(lap.cpu for lap in of) / counts[case]:.2f}, {statistics.median(lap.processes for lap in of) / counts[case]:.0f}"
                         if (of := laps.get((what, name))) else "–" for name in NAMES]
                lines.append(f"| {case}: {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _own(bench: Bench) -> str:
    """What the processes that stay cost: their own processor time, and the most memory that they ever had."""
    lines = []
    for case, laps in bench.laps.items():
        if daemon := [f"{what} {statistics.median(lap.own for lap in of):.2f} s" for (what, by), of in laps.items() if by == "attachd"]:
            lines.append(f"the daemon's own processor time, {case}: " + ", ".join(daemon))
        most = {who: max(lap.peak for (_, by), of in laps.items() if by == who for lap in of) for who in ("attachd", "os-brick")
                if any(by == who for _, by in laps)}
        lines.append(f"most memory, {case}: " + ", ".join(f"{who} {peak / 1024:.1f} MiB" for who, peak in most.items()))
    return "\n".join(lines)


@contextmanager
def _running(node: Attachd, rounds: int) -> Iterator[Bench]:
    bench = Bench(node, rounds)
    bench.contenders["attachd"].do("start", [])
    time.sleep(5)
    idle = bench.contenders["attachd"].do("attach", [])
    bench.figures["memory of the daemon with 0 attached: now and at most, in KiB"] = (idle.memory, idle.peak)
    yield bench
    bench.contenders["attachd"].do("stop", [])
    for contender in bench.contenders.values():
        contender.close()


def main() -> int:
    """Run the cases and print the tables."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[[], *_CASES], help="only these: " + ", ".join(_CASES))
    parser.add_argument("--rounds", type=int, default=5, help="how often each has its turn (fewer with many volumes); 5 unless told")
    parser.add_argument("--binary", type=Path, help="measure this attachd instead of building one")
    args = parser.parse_args()
    lab = Lab(os.environ.get("ATTACHD_LAB_NAME", "bench"))
    try:
        binary = args.binary or build()
        up(lab, Wishes(nodes=1, fast_failover=False, find_multipaths=None, memory=_MEMORY))
        node = Attachd(lab, "node1")
        node.install(binary)
        install(node)
        load = os.getloadavg()[0]
        with _running(node, args.rounds) as bench:
            try:
                for name in args.cases or _CASES:
                    print(f"=== {name}", flush=True)
                    _CASES[name](bench)
            finally:
                print(f"\n{_machine(lab)}; load before {load:.1f}; os-brick {OS_BRICK}; {args.rounds} rounds\n\n{_table(bench)}\n\n{_costs(bench)}\n\n{_own(bench)}\n")
                for what, figure in bench.figures.items():
                    print(f"{what}: {figure}")
        return 0
    except LabError as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    finally:
        down(lab)


def _machine(lab: Lab) -> str:
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    return f"{os.cpu_count()} processors ({model}), node under QEMU's {lab.settings().accelerator} with 2 processors"


if __name__ == "__main__":
    sys.exit(main())
