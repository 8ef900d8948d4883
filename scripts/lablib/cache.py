"""Artefacts that are built once and kept by the hash of what they are made from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

from lablib.commands import wait_until
from lablib.errors import LabError
from lablib.report import say

_LOCK_TIMEOUT = 3600.0


def cache_dir() -> Path:
    """Return the directory where all labs of this user keep their artefacts."""
    chosen = os.environ.get("ATTACHD_LAB_CACHE")
    if chosen:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).absolute() / "attachd-lab"


def content_key(*inputs: str | bytes | Path) -> str:
    """Hash the inputs of an artefact; a Path stands for the content of that file."""
    digest = hashlib.sha256()
    for item in inputs:
        data = item.read_bytes() if isinstance(item, Path) else item.encode() if isinstance(item, str) else item
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


@contextmanager
def locked(path: Path, what: str, timeout: float = _LOCK_TIMEOUT) -> Iterator[None]:
    """Hold an exclusive lock on a file; it goes away with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:

        def acquired() -> bool:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not acquired():
            say(f"waiting for another run of the lab: {what}")
            wait_until(acquired, timeout=timeout, what=f"the lock {path} ({what})")
        yield


def artefact(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the directory of an artefact; build it first if it isn't there.

    It is built under another name and renamed, so what has the final name is complete, and two
    runs at once build it once.
    """
    final = cache_dir() / f"{kind}-{key}"
    if final.is_dir():
        return final
    with locked(cache_dir() / f"{kind}.lock", f"building {kind}"):
        if final.is_dir():
            return final
        say(f"building {kind} (once; kept in {final})")
        start = time.monotonic()
        unfinished = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=cache_dir()))
        try:
            build(unfinished)
            unfinished.chmod(0o755)
            os.rename(unfinished, final)
        except LabError as error:
            raise LabError(f"building {kind}: {error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        say(f"built {kind} in {time.monotonic() - start:.1f} s")
    return final
