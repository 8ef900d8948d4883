"""The root file system of attachd's container image, packed as a node takes it."""

from __future__ import annotations

from pathlib import Path

from lablib import image_root
from lablib.cache import artefact, content_key
from lablib.commands import run


def root_file_system() -> Path:
    """Return it, without attachd, as a squashfs; built if there is none for the present inputs."""
    base = image_root.base()

    def build(directory: Path) -> None:
        run(["mksquashfs", base, directory / "root.squashfs", "-comp", "zstd", "-noappend", "-no-progress", "-quiet"],
            timeout=300, nice=True)

    return artefact("pod-root", content_key(str(base), Path(__file__)), build) / "root.squashfs"
