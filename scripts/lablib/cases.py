"""Runs the tests of tests/lab: functions named test_*, each on a clean bench, each leaving it clean."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional, Protocol

from lablib import cinder, cinder_old, guest, lifecycle
from lablib.block_storage import BlockStorage
from lablib.errors import LabError
from lablib.node import Attachd
from lablib.state import Lab

Test = Callable[[Any], None]

# Set by scripts/test --long.
LONG = "ATTACHD_TEST_LONG"

SEED = "ATTACHD_TEST_SEED"


class Bench(Protocol):
    """What a directory's tests are run on."""

    def subject(self) -> Any:
        """What a test gets."""

    def left_behind(self) -> list[str]:
        """What is there, and must not be between two tests."""

    def renew(self) -> None:
        """Make it as new, whatever state it is in."""


class Failure(AssertionError):
    """A test's claim does not hold."""


def expect(holds: Any, what: str) -> None:
    """Fail the test where a claim does not hold."""
    if not holds:
        raise Failure(what)


def size(short: int, long: int) -> int:
    """How much of something a test does: the short run's number, or that of scripts/test --long."""
    return long if os.environ.get(LONG) else short


def takes_long(test: Test) -> Test:
    """Mark a test that runs with scripts/test --long, or where it is named, and not beside all others."""
    test.takes_long = True  # type: ignore[attr-defined]
    return test


def chance(test: str) -> random.Random:
    """The chance of a test that tries what it does in no order: the same one at each run, or that of $ATTACHD_TEST_SEED."""
    return random.Random(f"{test} {os.environ.get(SEED, '1')}")


def find(directory: Path, only: Optional[str]) -> Iterator[tuple[str, Callable[[Any], None]]]:
    """Load the tests of a directory: the name of each, as a sentence, and the test."""
    left_out = 0
    for path in sorted(directory.glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise LabError(f"can't load {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        for name, test in vars(module).items():
            if name.startswith("test_") and callable(test):
                shown = name.removeprefix("test_").replace("_", " ")
                if only and only not in shown and only not in path.stem:
                    continue
                if hasattr(test, "takes_long") and not only and not os.environ.get(LONG):
                    left_out += 1
                    continue
                yield shown, test
    if left_out:
        print(f"     {left_out} more tests run with scripts/test --long, or by name with --only", flush=True)


class NodeBench:
    """A node with attachd, and the Cinder that it talks to."""

    def __init__(self, lab: Lab, binary: Path) -> None:
        self._node = Attachd(lab, "node1")
        self._binary = binary
        self._node.install(binary)

    def subject(self) -> Attachd:
        """The node."""
        return self._node

    def left_behind(self) -> list[str]:
        """What is on the node or in Cinder."""
        return self._node.leftovers() + left_in_cinder(self._node)

    def renew(self) -> None:
        """Cut the node's power, make its disk anew, and delete what Cinder holds."""
        renew_node(self._node)
        self._node.install(self._binary)


class CinderBench:
    """A lab with Keystone and the older Cinder."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def subject(self) -> Lab:
        """The lab."""
        return self._lab

    def left_behind(self) -> list[str]:
        """What any of its Cinders holds."""
        return [f"volume {volume['id']} in Cinder" for api in self._cinders() for volume in api.volumes()]

    def renew(self) -> None:
        """Delete what they hold."""
        for api in self._cinders():
            for attachment in api.attachments():
                api.request("DELETE", f"/attachments/{attachment['id']}")
            for volume in api.volumes():
                api.force_delete_volume(volume["id"], 120)

    def _cinders(self) -> list[BlockStorage]:
        return [cinder.client(self._lab.settings()), cinder_old.client(self._lab)]


def left_in_cinder(node: Attachd) -> list[str]:
    """Name everything that the node's Cinder holds."""
    attachments = [f"attachment {item['id']} in Cinder" for item in node.cinder.attachments()]
    return attachments + [f"volume {item['id']} ({item['status']}) in Cinder" for item in node.cinder.volumes()]


def renew_node(node: Attachd) -> None:
    """A node as new: its power is cut, its disk made anew, and what Cinder holds is deleted."""
    guest.halt(node.lab, node.record, power_cut=True)
    (node.lab.node_dir(node.name) / "disk.img").unlink(missing_ok=True)
    lifecycle.reboot(node.lab, node.record, hard=True)
    for attachment in node.cinder.attachments():
        node.cinder.request("DELETE", f"/attachments/{attachment['id']}")
    for volume in node.cinder.volumes():
        node.cinder.force_delete_volume(volume["id"], 120)


def _run_one(bench: Bench, test: Test) -> Optional[str]:
    try:
        test(bench.subject())
        left = bench.left_behind()
        return None if not left else "left behind: " + ", ".join(left)
    except Exception as error:  # a test's mistake must not hide the other tests
        where = traceback.extract_tb(error.__traceback__)
        lines = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in where if "tests/lab" in frame.filename]
        kind = "" if isinstance(error, (LabError, AssertionError)) else f"{type(error).__name__}: "
        return f"{kind}{error} (at {' '.join(lines)})"


def run_all(bench: Bench, directory: Path, only: Optional[str]) -> Iterator[tuple[str, Optional[str]]]:
    """Run every test; give each one's name, and what is wrong or None."""
    if bench.left_behind():
        bench.renew()
    for name, test in find(directory, only):
        start = time.monotonic()
        wrong = _run_one(bench, test)
        print(f"{'ok  ' if wrong is None else 'FAIL'} {time.monotonic() - start:6.1f} s  {name}"
              + (f"\n     {wrong}" if wrong else ""), flush=True)
        if wrong is not None:
            bench.renew()  # the next test must not suffer from this one
        yield name, wrong
