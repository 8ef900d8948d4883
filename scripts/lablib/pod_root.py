"""The root file system of attachd's container image: Debian's libraries, nsenter and certificates, nothing else of the host's.

The packages are unpacked, not configured, as those of a node (image.py).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lablib.cache import artefact, content_key
from lablib.commands import run
from lablib.image import SUITE

_PACKAGES = ["base-files", "ca-certificates", "libc6", "util-linux"]
_LEFT_OUT = ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/bash-completion/*"]
# What a maintainer script makes of the packages' certificates.
_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"


def root_file_system() -> Path:
    """Return it packed (squashfs), built if there is none for the present inputs."""

    def build(directory: Path) -> None:
        root = directory / "root"
        run(["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT),
             "--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\"",
             "--include=" + ",".join(_PACKAGES), SUITE, root], timeout=900, nice=True)
        bundle = root / _CERTIFICATES
        bundle.parent.mkdir(parents=True, exist_ok=True)
        bundle.write_bytes(b"".join(path.read_bytes() for path in sorted((root / "usr/share/ca-certificates").rglob("*.crt"))))
        run(["mksquashfs", root, directory / "root.squashfs", "-comp", "zstd", "-noappend", "-no-progress", "-quiet"],
            timeout=300, nice=True)
        shutil.rmtree(root)

    return artefact("pod-root", content_key(Path(__file__)), build) / "root.squashfs"
