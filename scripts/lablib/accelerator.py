"""Whether this machine can really run a guest with KVM: that /dev/kvm exists does not prove it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lablib.cache import artefact, content_key
from lablib.image import Image

_PROBE_TIMEOUT = 15.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine(accelerator: str) -> list[str]:
    """Return QEMU's arguments for the machine itself."""
    if accelerator == "kvm":
        speed = ["-accel", "kvm", "-cpu", "host"]
    else:
        speed = ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"]
    return ["-M", "q35", *speed, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]


def accelerator(image: Image) -> str:
    """Return `kvm` if the guest's kernel gets through its boot with it, else `tcg`; tried once per boot of the host."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"

    def build(directory: Path) -> None:
        (directory / "result").write_text("kvm" if _kvm_boots(image) else "tcg")

    key = content_key(image.kernel.parent.name, _BOOT_ID)
    return (artefact("kvm-trial", key, build) / "result").read_text()


def _kvm_boots(image: Image) -> bool:
    command = ["qemu-system-x86_64", *machine("kvm"), "-m", "256", "-serial", "stdio", "-kernel", str(image.kernel),
               "-initrd", str(image.initramfs), "-append", "console=ttyS0 panic=-1 lab.probe"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              timeout=_PROBE_TIMEOUT)
    except subprocess.TimeoutExpired:
        return False
    return b"LAB-PROBE-OK" in done.stdout
