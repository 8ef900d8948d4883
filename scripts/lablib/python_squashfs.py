"""A Python environment as one file, for a guest that is too slow to unpack or compile it at its start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from lablib.cache import artefact, content_key
from lablib.commands import run
from lablib.errors import LabError
from lablib.image import PYTHON
from lablib.packages import SYSTEM_PYTHON


def squashfs(name: str, venv: Path, mounted_at: str, add: Callable[[Path], None], *inputs: Path | str) -> Path:
    """Return a squashfs with an environment's `site-packages`, compiled, and what `add` (made of `inputs`) puts beside it."""

    def build(directory: Path) -> None:
        tree = directory / "tree"
        shutil.copytree(venv / "lib" / PYTHON / "site-packages", tree / "site-packages", symlinks=True,
                        ignore=shutil.ignore_patterns("pip", "tests", "locale"))
        add(tree)
        run([SYSTEM_PYTHON, "-m", "compileall", "-q", "-j", "2", "-s", tree, "-p", mounted_at,
             "--invalidation-mode", "unchecked-hash", tree / "site-packages"], timeout=600, nice=True)
        run(["mksquashfs", tree, directory / f"{name}.squashfs", "-noI", "-noD", "-noF", "-noX", "-noappend",
             "-no-progress", "-quiet", "-all-root"], timeout=600, nice=True)
        shutil.rmtree(tree)

    if not (venv / "lib" / PYTHON).is_dir():
        raise LabError(f"a guest runs {name} with {PYTHON}, as it is installed here, so {SYSTEM_PYTHON} must be that")
    return artefact(f"{name}-squashfs", content_key(venv.name, Path(__file__), *inputs), build) / f"{name}.squashfs"
