"""How a demo tells its story: steps with their times, and claims that are checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lablib.errors import LabError
from lablib.node import Attachd

T = TypeVar("T")
_number = 0


def tell(what: str) -> None:
    """Print a line of the story."""
    print(f"   {what}", flush=True)


def step(what: str, work: Callable[[], T]) -> T:
    """Announce a step, do it, and say how long it took."""
    global _number
    _number += 1
    print(f"\n{_number}. {what}", flush=True)
    start = time.monotonic()
    result = work()
    print(f"   ✓ {time.monotonic() - start:.2f} s", flush=True)
    return result


def check(holds: bool, what: str) -> None:
    """Say that something holds, or end the demo."""
    if not holds:
        raise LabError(f"it does not hold that {what}")
    tell(f"checked: {what}")


def nothing_left(node: Attachd, volume: str) -> None:
    """Check that a detach left nothing, and freed the volume."""
    left = node.leftovers(volume=volume)
    check(left == [], "no session, disk, map, mount, node record, ledger entry or attachment is left"
          + "".join(f"\n     left: {line}" for line in left))
    check(node.volume(volume)["status"] == "available", "the volume is available again")


def count() -> int:
    """How many steps there were."""
    return _number
