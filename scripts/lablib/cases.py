"""Runs the tests of tests/lab: functions named test_*, each on a clean node, each leaving it clean."""

from __future__ import annotations

import importlib.util
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

from lablib import guest, lifecycle
from lablib.errors import LabError
from lablib.node import Attachd
from lablib.state import Lab

Test = Callable[[Attachd], None]


class Failure(AssertionError):
    """A test's claim does not hold."""


def expect(holds: Any, what: str) -> None:
    """Fail the test where a claim does not hold."""
    if not holds:
        raise Failure(what)


def _find(directory: Path, only: Optional[str]) -> Iterator[tuple[str, Test]]:
    for path in sorted(directory.glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise LabError(f"can't load {path}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, test in vars(module).items():
            if name.startswith("test_") and callable(test):
                shown = name.removeprefix("test_").replace("_", " ")
                if not only or only in shown or only in path.stem:
                    yield shown, test


def _left_behind(node: Attachd) -> list[str]:
    """What is on the node or in Cinder, which both must be empty between two tests."""
    attachments = [f"attachment {item['id']} in Cinder" for item in node.cinder.attachments()]
    volumes = [f"volume {item['id']} ({item['status']}) in Cinder" for item in node.cinder.volumes()]
    return node.leftovers() + attachments + volumes


def _run_one(node: Attachd, test: Test) -> Optional[str]:
    try:
        test(node)
        left = _left_behind(node)
        return None if not left else "left behind: " + ", ".join(left)
    except Exception as error:  # a test's mistake must not hide the other tests
        where = traceback.extract_tb(error.__traceback__)
        lines = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in where if "tests/lab" in frame.filename]
        kind = "" if isinstance(error, (LabError, AssertionError)) else f"{type(error).__name__}: "
        return f"{kind}{error} (at {' '.join(lines)})"


def run_all(lab: Lab, binary: Path, directory: Path, only: Optional[str]) -> Iterator[tuple[str, Optional[str]]]:
    """Run every test; give each one's name, and what is wrong or None."""
    node = Attachd(lab, "node1")
    node.install(binary)
    if _left_behind(node):
        _fresh(lab, node, binary)
    for name, test in _find(directory, only):
        start = time.monotonic()
        wrong = _run_one(node, test)
        print(f"{'ok  ' if wrong is None else 'FAIL'} {time.monotonic() - start:6.1f} s  {name}"
              + (f"\n     {wrong}" if wrong else ""), flush=True)
        if wrong is not None:
            # The next test must not suffer from this one.
            _fresh(lab, node, binary)
        yield name, wrong


def _fresh(lab: Lab, node: Attachd, binary: Path) -> None:
    """A node as new: its power is cut, its disk made anew, and what Cinder holds is deleted."""
    record = lab.node(node.name)
    guest.halt(lab, record, power_cut=True)
    (lab.node_dir(node.name) / "disk.img").unlink(missing_ok=True)
    lifecycle.reboot(lab, record, hard=True)
    for attachment in node.cinder.attachments():
        node.cinder.request("DELETE", f"/attachments/{attachment['id']}")
    for volume in node.cinder.volumes():
        node.cinder.force_delete_volume(volume["id"], 120)
    node.install(binary)
