"""Cinder's Python environment for the storage guest."""

from __future__ import annotations

import shutil
from pathlib import Path

from lablib import cinder, python_squashfs

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
    """Return a squashfs with Cinder in it."""

    def add(tree: Path) -> None:
        shutil.copytree(venv / "etc", tree / "etc")
        (tree / "bin").mkdir()
        (tree / "bin/cinder-rtstool").write_text(_RTSTOOL)
        (tree / "bin/cinder-rtstool").chmod(0o755)

    venv = cinder.install()
    return python_squashfs.squashfs("cinder", venv, MOUNTED_AT, add, Path(__file__))
