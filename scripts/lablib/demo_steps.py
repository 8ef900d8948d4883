"""How a demo tells its story: steps with their times, and claims that are checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lablib.errors import LabError

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


def count() -> int:
    """How many steps there were."""
    return _number
