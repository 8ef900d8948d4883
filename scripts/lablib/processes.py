"""Daemons of the lab: started in the background, recorded, and ended only if they are still ours."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lablib.commands import wait_until
from lablib.errors import LabError


@dataclasses.dataclass(frozen=True)
class Process:
    """A recorded process. A pid alone may be another program's by now; with start time and argv it is ours."""

    pid: int
    started: int
    argv: list[str]

    def alive(self) -> bool:
        """Tell whether exactly this process still runs."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            argv = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")[:-1]
        except OSError:
            return False
        state, started = fields[0], int(fields[19])
        return state not in "ZX" and started == self.started and argv == [part.encode() for part in self.argv]

    def paused(self) -> bool:
        """Tell whether it is stopped by SIGSTOP."""
        return self.alive() and "\nState:\tT" in Path(f"/proc/{self.pid}/status").read_text()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        if self.alive():
            os.kill(self.pid, number)

    def stop(self, *, at_once: bool = False, patience: float = 10.0) -> None:
        """End the process: ask first (unless ``at_once``), then kill; return when it is gone."""
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if not self.alive():
                return
            if not at_once:
                self.send(signal.SIGTERM)
                self.send(signal.SIGCONT)
                if _ended(handle, patience):
                    return
            self.send(signal.SIGKILL)
            if not _ended(handle, 30.0):
                raise LabError(f"process {self.pid} did not end after SIGKILL: {self.argv[0]}")
        finally:
            os.close(handle)


def _ended(handle: int, timeout: float) -> bool:
    """Wait for the end itself: a dying process looks dead in /proc before its files and ports are free."""
    return bool(select.select([handle], [], [], timeout)[0])


class ProcessTable:
    """The records of a lab's processes, one small file each, so that any later command finds them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a daemon in a session of its own and record it."""
        with open(log, "ab") as output:
            try:
                child = subprocess.Popen(list(argv), stdin=subprocess.DEVNULL, stdout=output,
                                         stderr=subprocess.STDOUT, env=env, cwd="/", start_new_session=True)
            except OSError as error:
                raise LabError(f"can't start {name}: {error}") from error
        started = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
        process = Process(child.pid, started, list(argv))
        # The kernel shows a new program's arguments a moment after it has begun.
        wait_until(lambda: process.alive() or child.poll() is not None, timeout=30, what=f"{name} to start", interval=0.01)
        self._directory.mkdir(parents=True, exist_ok=True)
        record = self._record(name)
        unfinished = record.with_suffix(".tmp")
        unfinished.write_text(json.dumps(dataclasses.asdict(process)))
        unfinished.replace(record)
        return process

    def find(self, name: str) -> Process | None:
        """Return the process of that name if it runs."""
        process = self._load(self._record(name))
        return process if process and process.alive() else None

    def running(self) -> dict[str, Process]:
        """Return all processes that run, by name."""
        names = sorted(path.stem for path in self._directory.glob("*.json"))
        found = {name: self.find(name) for name in names}
        return {name: process for name, process in found.items() if process}

    def stop(self, name: str, *, at_once: bool = False) -> bool:
        """End the process of that name; tell whether there was one."""
        process = self.find(name)
        if process:
            process.stop(at_once=at_once)
        self._record(name).unlink(missing_ok=True)
        return process is not None

    def _record(self, name: str) -> Path:
        return self._directory / f"{name}.json"

    @staticmethod
    def _load(path: Path) -> Process | None:
        try:
            return Process(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
