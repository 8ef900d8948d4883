"""What a guest boots: a kernel, a small initramfs and a read-only root, made from Debian's packages.

The packages are unpacked, not configured: no maintainer script runs. What those would have done, as
far as a node needs it, is in `_finish_root`.
"""

from __future__ import annotations

import dataclasses
import lzma
import shutil
from collections.abc import Iterable
from pathlib import Path

from lablib.cache import artefact, content_key
from lablib.commands import run
from lablib.errors import LabError

SUITE = "bookworm"
PYTHON = "python3.11"  # what the suite has
_GUEST_FILES = Path(__file__).parent / "guest"

_PACKAGES = """
    linux-image-amd64 libc-bin base-files netbase kmod udev iproute2 iputils-ping nftables open-iscsi
    multipath-tools dmsetup lvm2 thin-provisioning-tools mdadm e2fsprogs xfsprogs sg3-utils mount
    util-linux fdisk procps psmisc strace openssh-server openssh-sftp-server python3 busybox-static
""".split()

_LEFT_OUT = """
    /usr/share/man/* /usr/share/doc/* /usr/share/locale/* /boot/System.map-* /lib/modules/*/kernel/sound/*
    /lib/modules/*/kernel/drivers/gpu/* /lib/modules/*/kernel/drivers/media/*
    /lib/modules/*/kernel/drivers/infiniband/* /lib/modules/*/kernel/drivers/net/wireless/*
    /lib/modules/*/kernel/drivers/net/ethernet/* /lib/modules/*/kernel/drivers/usb/*
""".split()

_INITRAMFS_MODULES = "virtio_pci virtio_blk virtio_rng squashfs overlay".split()

_ROOT_MODULES = [
    *"9p 9pnet_virtio virtio_net dummy veth bridge loop fuse".split(),
    *"sd_mod sg scsi_debug iscsi_tcp scsi_dh_alua scsi_dh_rdac scsi_dh_emc".split(),
    *"dm_mod dm_multipath dm_round_robin dm_service_time dm_queue_length".split(),
    *"dm_crypt dm_snapshot dm_thin_pool dm_delay dm_flakey raid1".split(),
    *"target_core_mod target_core_file target_core_iblock target_core_user iscsi_target_mod configfs".split(),
    *"ext4 xfs vfat crc32c_generic crc32c_intel crct10dif_pclmul".split(),
    *"nf_tables nft_ct nft_log nft_reject_inet sch_netem sch_prio sch_tbf cls_u32".split(),
]


@dataclasses.dataclass(frozen=True)
class Image:
    """The files that QEMU boots a node from."""

    kernel: Path
    initramfs: Path
    root: Path


def image() -> Image:
    """Return the node image, built if there is none for the present inputs."""
    base = _base()
    key = content_key(base.name, repr((_INITRAMFS_MODULES, _ROOT_MODULES)), Path(__file__),
                      *sorted(path for path in _GUEST_FILES.iterdir() if path.is_file()))
    built = artefact("image", key, lambda directory: _build_image(base, directory))
    return Image(built / "vmlinux", built / "initramfs", built / "root.squashfs")


def _base() -> Path:
    """Return the tree of unpacked packages, the slow part, which changes only with the package list."""

    def build(directory: Path) -> None:
        excludes = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
        run(["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", *excludes,
             "--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\"",
             "--include=?essential", "--include=" + ",".join(_PACKAGES), SUITE, directory / "root"],
            timeout=1800, nice=True)

    return artefact("packages", content_key(SUITE, *_PACKAGES, *_LEFT_OUT), build)


def _build_image(base: Path, directory: Path) -> None:
    root = directory / "root"
    run(["cp", "-a", base / "root", root], timeout=300, nice=True)
    release = next((root / "lib/modules").iterdir()).name
    _write_kernel(next((root / "boot").glob("vmlinuz-*")), directory / "vmlinux")
    run(["chroot", root, "/sbin/depmod", release], timeout=120, nice=True)
    _write_initramfs(root, release, directory)
    _finish_root(root, release)
    run(["mksquashfs", root, directory / "root.squashfs", "-comp", "zstd", "-Xcompression-level", "3",
         "-noappend", "-no-progress", "-quiet"], timeout=900, nice=True)
    shutil.rmtree(root)


def _write_kernel(packed: Path, target: Path) -> None:
    """Take the ELF file out of the compressed kernel: emulated, a guest needs seconds to unpack it."""
    data = packed.read_bytes()
    start = data.find(b"\xfd7zXZ\0")
    while start >= 0:
        try:
            kernel = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data[start:])
        except lzma.LZMAError:
            kernel = b""
        if kernel.startswith(b"\x7fELF"):
            target.write_bytes(kernel)
            return
        start = data.find(b"\xfd7zXZ\0", start + 1)
    raise LabError(f"no xz-compressed ELF file in {packed.name}")


def _module_files(root: Path, release: str, names: Iterable[str]) -> list[str]:
    """Return the files of kernel modules and of those they depend on, in loading order."""
    files: list[str] = []
    for name in names:
        output = run(["chroot", root, "/sbin/modprobe", "-S", release, "--show-depends", name], timeout=30)
        for line in output.splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "insmod" and rest.split()[0] not in files:
                files.append(rest.split()[0])
    return files


def _write_initramfs(root: Path, release: str, directory: Path) -> None:
    tree = directory / "initramfs-tree"
    for name in ("bin", "modules", "proc", "sys", "dev", "ro", "rw"):
        (tree / name).mkdir(parents=True)
    shutil.copy2(root / "bin/busybox", tree / "bin/busybox")
    for applet in ("sh", "mount", "umount", "insmod", "switch_root", "mkdir", "sleep", "poweroff"):
        (tree / "bin" / applet).symlink_to("busybox")
    files = _module_files(root, release, _INITRAMFS_MODULES)
    for file in files:
        shutil.copy2(root / file.lstrip("/"), tree / "modules")
    (tree / "modules/order").write_text("".join(f"{Path(file).name}\n" for file in files))
    shutil.copy2(_GUEST_FILES / "initramfs-init", tree / "init")
    (tree / "init").chmod(0o755)
    names = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
    run(["cpio", "--quiet", "--create", "--format=newc", "--owner=+0:+0", "--directory", tree,
         "--file", directory / "initramfs"], timeout=60, stdin=names.encode())
    shutil.rmtree(tree)


def _finish_root(root: Path, release: str) -> None:
    """Do what the packages' scripts would have done, and add what makes it a node of the lab."""
    for name in ("passwd", "group"):
        shutil.copyfile(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    with open(root / "etc/passwd", "a") as passwd:
        passwd.write("sshd:x:110:65534::/run/sshd:/usr/sbin/nologin\n")
    with open(root / "etc/group", "a") as group:
        group.write("input:x:104:\nsgx:x:105:\nkvm:x:106:\nrender:x:107:\n")  # named by udev's rules
    (root / "etc/shadow").write_text("root:*:19000:0:99999:7:::\n")
    (root / "etc/fstab").write_text("")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    (root / "usr/bin/awk").unlink(missing_ok=True)
    (root / "usr/bin/awk").symlink_to("mawk")
    run(["chroot", root, "/sbin/ldconfig"], timeout=60)

    # What a removed volume held must not be found on the next one: Cinder's clearing is off, for speed.
    lvm = root / "etc/lvm/lvm.conf"
    before = lvm.read_text()
    lvm.write_text(before.replace("# issue_discards = 0", "issue_discards = 1"))
    if lvm.read_text() == before:
        raise LabError("lvm.conf has no line for issue_discards")

    modules = root / "lib/modules" / release
    wanted = {root / file.lstrip("/") for file in _module_files(root, release, _ROOT_MODULES)}
    for path in [path for path in (modules / "kernel").rglob("*.ko*") if path not in wanted]:
        path.unlink()
    run(["chroot", root, "/sbin/depmod", release], timeout=120)
    shutil.rmtree(root / "boot")

    for name in ("lab", "project", "persist", "mnt", "usr/local/bin", "usr/local/sbin", "etc/multipath", "etc/target",
                 "opt/cinder", "var/lib/attachd", "var/lib/iscsi"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy2(_GUEST_FILES / "init", root / "lab-init")
    (root / "lab-init").chmod(0o755)
    shutil.copy2(_GUEST_FILES / "lab-cinder", root / "usr/local/sbin/lab-cinder")
    (root / "usr/local/sbin/lab-cinder").chmod(0o755)
