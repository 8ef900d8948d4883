"""Programs of this machine that the lab needs, and how to get those that are missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Optional

from lablib.cache import artefact, cache_dir, content_key, locked
from lablib.commands import run
from lablib.errors import LabError
from lablib.report import say

# program or file -> Debian package
_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mksquashfs": "squashfs-tools",
    "cpio": "cpio",
    "mkfs.ext4": "e2fsprogs",
    "perl": "perl",
    "ssh": "openssh-client",
    "openssl": "openssl",
}
_FILES = {"/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring"}
_APT_OPTIONS = ["-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]

# A system Python where there is one: a private one (pyenv, conda) may lack ensurepip or move away.
SYSTEM_PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else (shutil.which("python3") or "python3")


def missing_packages() -> list[str]:
    """Name the Debian packages that have to be installed."""
    missing = [package for program, package in _PROGRAMS.items() if not shutil.which(program)]
    missing += [package for path, package in _FILES.items() if not os.path.exists(path)]
    venv = subprocess.run([SYSTEM_PYTHON, "-c", "import ensurepip, venv"], stderr=subprocess.DEVNULL, timeout=60)
    if venv.returncode != 0:
        missing.append("python3-venv")
    return missing


def ensure_packages() -> None:
    """Install what is missing, and say so; where that can't be done, say what is needed."""
    if not missing_packages():
        return
    with locked(cache_dir() / "apt.lock", "installing packages"):
        missing = missing_packages()
        if not missing:
            return
        wanted = " ".join(missing)
        if not shutil.which("apt-get"):
            raise LabError(f"needed, and there is no apt-get to install it: {wanted} (Debian's names)")
        say(f"installing with apt-get: {wanted}")
        apt_get(["install", *_APT_OPTIONS, *missing])


def apt_get(arguments: list[str], *, cwd: Optional[Path] = None) -> str:
    """Run apt-get; if it fails, once more with fresh package lists."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        return run(["apt-get", *arguments], timeout=1200, env=env, cwd=cwd)
    except LabError:
        run(["apt-get", "update"], timeout=300, env=env)
        return run(["apt-get", *arguments], timeout=1200, env=env, cwd=cwd)


def unpacked(package: str) -> Path:
    """Return a directory with a package, and those it depends on that aren't installed, unpacked in it.

    For packages whose installation would start a daemon on this machine.
    """

    def build(directory: Path) -> None:
        plan = apt_get(["install", "--simulate", *_APT_OPTIONS, package])
        names = sorted({package, *re.findall(r"^Inst (\S+)", plan, re.MULTILINE)})
        downloads = directory / "downloads"
        downloads.mkdir()
        apt_get(["download", "-o", "APT::Sandbox::User=root", *names], cwd=downloads)
        for archive in sorted(downloads.glob("*.deb")):
            run(["dpkg", "-x", archive, directory], timeout=120)
        shutil.rmtree(downloads)

    return artefact(package, content_key(package, Path("/etc/os-release")), build)


def virtual_environment(name: str, version: str, constraints: Path) -> Path:
    """Return a virtual environment with a package of PyPI in it, and what that needs in the versions of a file."""

    def build(directory: Path) -> None:
        run([SYSTEM_PYTHON, "-m", "venv", directory], timeout=120, nice=True)
        run([directory / "bin/pip", "install", "--quiet", "--disable-pip-version-check",
             "--constraint", constraints, f"{name}=={version}"], timeout=1800, nice=True)

    python = run([SYSTEM_PYTHON, "--version"], timeout=30)
    return artefact(name, content_key(version, constraints, python), build)
