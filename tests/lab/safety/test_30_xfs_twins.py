"""Two XFS file systems with one UUID: a clone of a volume, beside the volume itself."""

from __future__ import annotations

import shutil

from lablib.cases import expect
from lablib.node import Attachd
from lablib.steps import MOUNT, attach, backing_file, detach, failed, volume

_TWIN = "/mnt/twin"


def test_an_xfs_clone_beside_its_original_is_told_and_mounts_with_nouuid(node: Attachd) -> None:
    with volume(node) as original, volume(node) as clone:
        attach(node, original, "--mount", MOUNT, "--fs", "xfs")
        node.shell(f"echo original > {MOUNT}/file; sync")
        detach(node, original)
        shutil.copyfile(backing_file(node, original), backing_file(node, clone))
        attach(node, original, "--mount", MOUNT, "--fs", "xfs")
        uuid = node.shell(f"findmnt -n -o UUID {MOUNT} || true").strip()
        words = ["[XfsTwin]", f"mounted on {MOUNT}", "--mount-options nouuid", "xfs_admin -U generate", *([uuid] if uuid else [])]
        failed(node, 5, words, "attach", clone, "--mount", _TWIN, "--fs", "xfs")
        expect(node.volume(clone)["status"] == "available", "what was refused was not taken back")
        node.shell(f"cat {MOUNT}/file; mountpoint -q {MOUNT}")
        attach(node, clone, "--mount", _TWIN, "--fs", "xfs", "--mount-options", "nouuid")
        node.shell(f"grep -qx original {_TWIN}/file; echo clone > {_TWIN}/file; sync; grep -qx original {MOUNT}/file")
        expect(node.run("detach", clone).code == 0, "the clone can't be detached")
        detach(node, original)
