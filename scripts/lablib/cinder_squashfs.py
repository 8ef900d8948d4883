"""Cinder's Python environment as one file, for a guest that is too slow to unpack or compile it at its start."""

from __future__ import annotations

import shutil
from pathlib import Path

from lablib import cinder
from lablib.cache import artefact, content_key
from lablib.commands import run
from lablib.errors import LabError
from lablib.image import PYTHON
from lablib.packages import SYSTEM_PYTHON

MOUNTED_AT = "/opt/cinder"  # in the guest

# Cinder's own program, but for the import of eventlet by cinder/__init__.py: it doesn't use it, and that is half of
# the time it takes, and an attachment's update runs it five times.
_RTSTOOL = f"""\
#!/usr/bin/python3 -IS
import sys, types
sys.path.insert(0, "{MOUNTED_AT}/site-packages")
package = sys.modules["cinder"] = types.ModuleType("cinder")
package.__path__ = ["{MOUNTED_AT}/site-packages/cinder"]
from cinder.cmd.rtstool import main
sys.exit(main())
"""


def squashfs() -> Path:
    """Return a squashfs with Cinder in it, compiled beforehand: the guest is too slow to do that at its start."""

    def build(directory: Path) -> None:
        tree = directory / "tree"
        shutil.copytree(venv / "lib" / PYTHON / "site-packages", tree / "site-packages", symlinks=True,
                        ignore=shutil.ignore_patterns("pip", "tests", "locale"))
        shutil.copytree(venv / "etc", tree / "etc")
        (tree / "bin").mkdir()
        (tree / "bin/cinder-rtstool").write_text(_RTSTOOL)
        (tree / "bin/cinder-rtstool").chmod(0o755)
        run([SYSTEM_PYTHON, "-m", "compileall", "-q", "-j", "2", "-s", tree, "-p", MOUNTED_AT,
             "--invalidation-mode", "unchecked-hash", tree / "site-packages"], timeout=600, nice=True)
        run(["mksquashfs", tree, directory / "cinder.squashfs", "-noI", "-noD", "-noF", "-noX", "-noappend",
             "-no-progress", "-quiet", "-all-root"], timeout=600, nice=True)
        shutil.rmtree(tree)

    venv = cinder.install()
    if not (venv / "lib" / PYTHON).is_dir():
        raise LabError(f"the storage guest runs Cinder with {PYTHON}, as it is installed here, so {SYSTEM_PYTHON} must be that")
    return artefact("cinder-squashfs", content_key(venv.name, Path(__file__)), build) / "cinder.squashfs"
