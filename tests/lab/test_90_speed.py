"""attachd against the bare tools, in the same node, in turns. Only the ratio says something: machines and their load differ."""

from __future__ import annotations

import os
import statistics

from lablib import guest
from lablib.cases import expect, takes_long
from lablib.node import BINARY, Attachd
from lablib.state import PROJECT_DIR
from lablib.steps import MOUNT, backing_file, nothing_left, volume

_ROUNDS = 3
_MOST = 1.3


def _attachd(node: Attachd, what: str, v: str) -> float:
    arguments = f"{what} {v}" + (f" --mount {MOUNT} --multipath required" if what == "attach" else "")
    command = " ".join(node.environment()) + f" {BINARY} {arguments} --quiet > /dev/null"
    return float(node.shell(f"began=$EPOCHREALTIME; {command}; awk -v a=$began -v b=$EPOCHREALTIME 'BEGIN {{print b - a}}'", timeout=300))


def _bare(node: Attachd, what: str, v: str) -> float:
    return float(node.shell(f"/run/bare_tools.sh {what} {v} {MOUNT} 10.0.2.2 {node.cinder_port} {node.project} {node.iqn} 10.0.2.15",
                            timeout=300))


def _blank(node: Attachd, v: str) -> None:
    disk = backing_file(node, v)
    size = disk.stat().st_size
    os.truncate(disk, 0)
    os.truncate(disk, size)


@takes_long
def test_attachd_is_about_as_fast_as_the_bare_tools(node: Attachd) -> None:
    guest.copy_in(node.lab, node.record, PROJECT_DIR / "scripts/lablib/bench/bare_tools.sh", "/run/bare_tools.sh")
    node.shell("chmod 755 /run/bare_tools.sh")
    times: dict[tuple[str, str], list[float]] = {}
    with volume(node) as v:
        for _ in range(_ROUNDS):
            for who, run in (("attachd", _attachd), ("bare tools", _bare)):
                _blank(node, v)
                for what in ("attach", "detach"):
                    times.setdefault((what, who), []).append(run(node, what, v))
                nothing_left(node, v)
    node.shell("rm /run/bare_tools.sh")
    for what in ("attach", "detach"):
        ours, theirs = times[what, "attachd"], times[what, "bare tools"]
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(f"     {what}: attachd {statistics.median(ours):.2f} s ({' '.join(f'{t:.2f}' for t in ours)}), "
              f"bare tools {statistics.median(theirs):.2f} s ({' '.join(f'{t:.2f}' for t in theirs)}), ratio {ratio:.2f}")
        if what == "attach" and node.is_release:
            expect(ratio <= _MOST, f"attachd takes {ratio:.2f} times as long as the bare tools")
