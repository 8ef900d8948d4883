"""Running outside programs: always with a time limit, always with a readable error."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, Union

from lablib.errors import LabError

Argument = Union[str, Path]
_TAIL_LINES = 25


def tail(text: str, lines: int = _TAIL_LINES) -> str:
    """Return the last lines of a program's output."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def run(
    argv: Sequence[Argument],
    *,
    timeout: float,
    nice: bool = False,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    shown: str | None = None,
) -> str:
    """Run a program to its end and return its standard output; raise LabError if it fails.

    ``shown`` stands for the command in the message of an error.
    """
    command = [str(part) for part in argv]
    shown = shown or shlex.join(command)
    if nice:
        command = ["nice", "-n", "10", *command]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, env=env, cwd=cwd)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"no end after {timeout:.0f} s: {shown}") from error
    except OSError as error:
        raise LabError(f"can't run {shown}: {error}") from error
    if done.returncode != 0:
        output = tail((done.stdout + done.stderr).decode(errors="replace"))
        raise LabError(f"exit code {done.returncode} from: {shown}\n{output}")
    return done.stdout.decode(errors="replace")


def wait_until(condition: Callable[[], bool], *, timeout: float, what: str, interval: float = 0.1) -> None:
    """Return as soon as the condition holds; raise LabError when it doesn't within the time limit."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout:.0f} s for {what}")
        time.sleep(interval)
