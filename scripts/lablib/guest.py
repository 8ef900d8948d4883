"""Guests: a virtual machine each, with a small disk that survives a reboot, reached by ssh."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lablib.accelerator import machine
from lablib.commands import run, wait_until
from lablib.errors import LabError
from lablib.image import Image
from lablib.networks import HOST_NETWORKS, STORAGE_NETWORKS, Card, to_host, to_storage
from lablib.processes import Process
from lablib.report import say
from lablib.state import PROJECT_DIR, Lab, Node, Settings

_DISK_SIZE = 256 << 20
_BOOT_TIMEOUT = 300.0
_TIMED_OUT = 124

_MULTIPATH_CONF = """\
# polling_interval: seconds between checks of a path. Put your own settings in /etc/multipath/conf.d/*.conf:
# that directory survives a reboot of the node, this file is written anew.
defaults {
    user_friendly_names no
    polling_interval 1
    max_polling_interval 2
}
"""


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What differs from guest to guest."""

    cards: list[Card]
    memory: int = 1024  # MiB
    drives: Sequence[str] = ()  # QEMU's options of further disks: /dev/vdc and on
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)  # path on a new disk -> content
    kernel_arguments: str = ""


def node_hardware(lab: Lab, settings: Settings, node: Node) -> Hardware:
    """Return the hardware of a node."""
    cards = [to_host(network, node, {node.ssh_port: 22} if path == 1 else {}) for path, network in HOST_NETWORKS.items()]
    if settings.storage:
        cards += [to_storage(lab, network, node) for network in STORAGE_NETWORKS.values()]
    return Hardware(cards, node.memory)


def on_storage_networks(lab: Lab, node: Node) -> bool:
    """Tell whether a node runs with the cards that lead to the storage guest."""
    process = lab.processes.find(process_name(node))
    return process is not None and all(part in process.argv for network in STORAGE_NETWORKS.values()
                                       for part in to_storage(lab, network, node).netdevs)


def process_name(node: Node) -> str:
    """Return the name under which a node's QEMU is recorded."""
    return f"node-{node.name}"


def console_log(lab: Lab, node: Node) -> Path:
    """Return the file with the node's kernel messages and those of its init."""
    return lab.logs / f"{node.name}.console.log"


def qemu_log(lab: Lab, node: Node) -> Path:
    """Return the file with what the node's QEMU says."""
    return lab.logs / f"{node.name}.qemu.log"


def make_ssh_keys(lab: Lab) -> None:
    """Make the lab's own key for its user and one for its nodes, known to ssh by the name `lab-node`."""
    if (lab.ssh_dir / "known_hosts").exists():
        return
    lab.ssh_dir.mkdir(parents=True, exist_ok=True)
    for name in ("user_key", "host_key"):
        (lab.ssh_dir / name).unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"attachd-lab-{lab.name}", "-f", lab.ssh_dir / name],
            timeout=60)
    host_key = (lab.ssh_dir / "host_key.pub").read_text()
    (lab.ssh_dir / "known_hosts").write_text(f"lab-node {host_key}")


def _iscsid_conf(node: Node) -> str:
    # Under load an emulated node answers late, so the usual timeouts are not the fastest possible.
    replacement, interval, timeout = (3, 1, 2) if node.fast_failover else (15, 5, 5)
    return (
        "node.startup = manual\n"
        "node.leading_login = No\n"
        f"node.session.timeo.replacement_timeout = {replacement}\n"
        f"node.conn[0].timeo.noop_out_interval = {interval}\n"
        f"node.conn[0].timeo.noop_out_timeout = {timeout}\n"
        "node.conn[0].timeo.login_timeout = 15\n"
        "node.conn[0].timeo.logout_timeout = 15\n"
        "node.session.initial_login_retry_max = 8\n"
        "node.session.cmds_max = 128\n"
        "node.session.queue_depth = 32\n"
        "node.session.iscsi.FastAbort = Yes\n"
        "node.session.scan = auto\n"
    )


def _make_disk(lab: Lab, node: Node, files: Mapping[str, Path]) -> Path:
    """Return the guest's disk; a new one holds its identity and its configuration."""
    disk = lab.node_dir(node.name) / "disk.img"
    if disk.exists():
        return disk
    disk.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=disk.parent) as name:
        tree = Path(name)
        tree.chmod(0o755)
        for directory in ("etc/iscsi", "etc/multipath/conf.d", "var/lib/attachd", "var/lib/iscsi", "ssh"):
            (tree / directory).mkdir(parents=True)
        (tree / "etc/iscsi/initiatorname.iscsi").write_text(f"InitiatorName={node.iqn}\n")
        (tree / "etc/iscsi/iscsid.conf").write_text(_iscsid_conf(node))
        (tree / "etc/multipath.conf").write_text(_MULTIPATH_CONF)
        if node.find_multipaths:
            (tree / "etc/multipath/conf.d/find-multipaths.conf").write_text(
                f"defaults {{\n    find_multipaths {node.find_multipaths}\n}}\n")
        shutil.copy2(lab.ssh_dir / "host_key", tree / "ssh/host_key")
        shutil.copy2(lab.ssh_dir / "user_key.pub", tree / "ssh/authorized_keys")
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(content, tree / path)
        unfinished = disk.with_suffix(".tmp")
        with open(unfinished, "wb") as file:
            file.truncate(_DISK_SIZE)
        run(["mkfs.ext4", "-q", "-F", "-L", "persist", "-d", tree, unfinished], timeout=60)
        unfinished.rename(disk)
    return disk


def _qemu(lab: Lab, settings: Settings, node: Node, image: Image, disk: Path, hardware: Hardware) -> list[str]:
    networks = ",".join(str(card.network) for card in hardware.cards)
    # To zero what the kernel allocates is a tenth of all work where the processor is emulated.
    arguments = (f"console=ttyS0 loglevel=4 panic=-1 net.ifnames=0 mitigations=off init_on_alloc=0 lab.node={node.name} "
                 f"lab.address={node.address} lab.networks={networks} {hardware.kernel_arguments}")
    command = [
        shutil.which("qemu-system-x86_64") or "qemu-system-x86_64",
        "-name", f"attachd-lab-{lab.name}-{node.name}", *machine(settings.accelerator),
        "-m", str(hardware.memory), "-smp", "2", "-serial", f"file:{console_log(lab, node)}",
        "-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", arguments.strip(),
        "-fsdev", f"local,id=lab,path={lab.share},security_model=none", "-device", "virtio-9p-pci,fsdev=lab,mount_tag=lab",
        "-fsdev", f"local,id=project,path={PROJECT_DIR},security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=project,mount_tag=project",
        "-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random",
    ]
    drives = [f"file={image.root},format=raw,readonly=on", f"file={disk},format=raw", *hardware.drives]
    for number, drive in enumerate(drives):
        command += ["-drive", f"if=none,id=disk{number},{drive}", "-device", f"virtio-blk-pci,drive=disk{number}"]
    for card in hardware.cards:
        command += card.arguments(node.address)
    return command


def launch(lab: Lab, settings: Settings, node: Node, image: Image, hardware: Hardware) -> Process:
    """Start a guest's virtual machine."""
    disk = _make_disk(lab, node, hardware.files)
    console = console_log(lab, node)
    if console.exists():
        console.replace(console.with_suffix(".previous.log"))
    return lab.processes.start(process_name(node), _qemu(lab, settings, node, image, disk, hardware), log=qemu_log(lab, node))


def wait_until_up(lab: Lab, node: Node, process: Process) -> None:
    """Wait until a guest's daemons run and ssh answers."""
    console, log = console_log(lab, node), qemu_log(lab, node)

    def ready() -> bool:
        if not process.alive():
            raise LabError(f"the virtual machine of {node.name} ended; see {console} and {log}")
        return console.exists() and " READY" in console.read_text(errors="replace")

    wait_until(ready, timeout=_BOOT_TIMEOUT, what=f"{node.name} to boot; see {console}")
    wait_until(lambda: execute(lab, node, ["true"], timeout=60) == 0, timeout=60, what=f"ssh in {node.name}; see {console}")


def boot(lab: Lab, settings: Settings, node: Node, image: Image) -> None:
    """Start a node and wait until it is up."""
    wait_until_up(lab, node, launch(lab, settings, node, image, node_hardware(lab, settings, node)))


def _ssh(lab: Lab, node: Node) -> list[str]:
    return [
        "ssh", "-F", "/dev/null", "-q", "-p", str(node.ssh_port), "-i", str(lab.ssh_dir / "user_key"),
        "-o", f"UserKnownHostsFile={lab.ssh_dir / 'known_hosts'}", "-o", "HostKeyAlias=lab-node",
        "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30",
        "-o", "ControlMaster=auto", "-o", "ControlPersist=60",
        "-o", f"ControlPath={lab.ssh_dir / node.name}.control", "root@127.0.0.1",
    ]


def _remote(argv: Sequence[str], timeout: float) -> str:
    # The shell stays, so that a command killed by a signal gives 128 + the signal, as in any shell.
    return f"timeout --kill-after=5 {timeout:g} {shlex.join(argv)}; exit $?"


def command(lab: Lab, node: Node, argv: Sequence[str], *, timeout: float) -> list[str]:
    """Return the command line that runs a command in the node."""
    return [*_ssh(lab, node), _remote(argv, timeout)]


def execute(lab: Lab, node: Node, argv: Sequence[str], *, timeout: float, stdin: int = subprocess.DEVNULL) -> int:
    """Run a command in the node with this process's output; return its exit code, 124 after the time limit."""
    try:
        return subprocess.run([*_ssh(lab, node), _remote(argv, timeout)], stdin=stdin, timeout=timeout + 45).returncode
    except subprocess.TimeoutExpired:
        say(f"{node.name} does not answer")
        return _TIMED_OUT


def output(lab: Lab, node: Node, argv: Sequence[str], *, timeout: float, stdin: bytes = b"") -> str:
    """Run a command in the node and return its output; raise LabError if it fails."""
    return run([*_ssh(lab, node), _remote(argv, timeout)], timeout=timeout + 45, stdin=stdin,
               shown=f"{shlex.join(argv)} (in {node.name})")


def copy_in(lab: Lab, node: Node, source: Path, destination: str) -> None:
    """Copy a file or directory into the node, by way of the shared directory."""
    if not source.exists():
        raise LabError(f"no such file: {source}")
    with tempfile.TemporaryDirectory(dir=lab.share) as name:
        run(["cp", "-a", source, Path(name) / "item"], timeout=300)
        script = 'if [ -d "$2" ]; then set -- "$1" "$2/$3" "$3"; fi; mkdir -p "$(dirname "$2")"; cp -a "$1" "$2"'
        output(lab, node, ["sh", "-euc", script, "sh", f"/lab/{Path(name).name}/item", destination, source.name], timeout=300)


def copy_out(lab: Lab, node: Node, source: str, destination: Path) -> None:
    """Copy a file or directory out of the node, by way of the shared directory."""
    with tempfile.TemporaryDirectory(dir=lab.share) as name:
        output(lab, node, ["cp", "-a", source, f"/lab/{Path(name).name}/item"], timeout=300)
        if destination.is_dir():
            destination = destination / os.path.basename(source.rstrip("/"))
        run(["cp", "-a", Path(name) / "item", destination], timeout=300)


def disconnect(lab: Lab, node: Node) -> None:
    """End the ssh connection that is kept open for the next command."""
    if (lab.ssh_dir / f"{node.name}.control").exists():
        subprocess.run([*_ssh(lab, node), "-O", "exit"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30)


def halt(lab: Lab, node: Node, *, power_cut: bool) -> None:
    """Shut a node down in order, or cut its power: what it has not written to its disk is lost."""
    process = lab.processes.find(process_name(node))
    if process and not power_cut:
        execute(lab, node, ["kill", "-TERM", "1"], timeout=10)
        disconnect(lab, node)
        try:
            wait_until(lambda: not process.alive(), timeout=60, what=f"{node.name} to shut down")
        except LabError as error:
            say(f"{error}; cutting its power")
    disconnect(lab, node)
    lab.processes.stop(process_name(node), at_once=True)
