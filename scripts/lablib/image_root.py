"""The root file system of attachd's container image, as a directory, where there is no container engine.

It is made as the Dockerfile's last stage makes it: the same Debian suite, the certificates, attachd.
"""

from __future__ import annotations

import filecmp
import re
import shutil
from pathlib import Path

from lablib.cache import artefact, cache_dir, content_key, locked
from lablib.commands import run
from lablib.errors import LabError
from lablib.state import PROJECT_DIR

DOCKERFILE = PROJECT_DIR / "Dockerfile"
BINARY = Path("usr/local/bin/attachd")

# What debian:*-slim leaves out, too.
_LEFT_OUT = "/usr/share/doc/* /usr/share/info/* /usr/share/locale/* /usr/share/man/*".split()
# debian:*-slim has apt; nothing in the container uses it.
_PACKAGES = ["ca-certificates"]


def environment() -> dict[str, str]:
    """Return the environment that the image gives to what runs in it."""
    last_stage = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    return dict(re.findall(r"^ENV (\w+)=(.+)$", last_stage, re.MULTILINE))


def suite() -> str:
    """Return the Debian suite that the image is made from."""
    found = re.search(r"^ARG DEBIAN_SUITE=(\w+)$", DOCKERFILE.read_text(), re.MULTILINE)
    if not found:
        raise LabError("the Dockerfile names no DEBIAN_SUITE")
    return found[1]


def root_file_system(binary: Path) -> Path:
    """Return the image's root with this attachd in it: a directory beside the binary, made anew where either changed.

    It needs root, since the files belong to root.
    """
    source = base()
    root = binary.parent / f"image-root-{source.parent.name.rpartition('-')[2]}"
    with locked(cache_dir() / "image-root-copy.lock", "copying the image's root"):
        if not root.is_dir():
            unfinished = root.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            run(["cp", "-a", "--reflink=auto", source, unfinished], timeout=300)
            unfinished.rename(root)
        installed = root / BINARY
        if not installed.exists() or not filecmp.cmp(binary, installed, shallow=False):
            # A new file: the old one may be running.
            fresh = installed.with_name(".attachd")
            shutil.copyfile(binary, fresh)
            fresh.chmod(0o755)
            fresh.rename(installed)
    return root


def base() -> Path:
    """Return the image's root without attachd, for those who mount that themselves; it changes only with the suite."""

    def build(directory: Path) -> None:
        excludes = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
        run(["mmdebstrap", "--quiet", "--mode=root", "--variant=essential", *excludes,
             "--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\"",
             "--include=" + ",".join(_PACKAGES), suite(), directory / "root"],
            timeout=1800, nice=True)

    return artefact("image-root", content_key(suite(), *_PACKAGES, *_LEFT_OUT), build) / "root"
