"""A Pod without a container engine: attachd in a lab node as the DaemonSet runs it, see pod_container.py."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Optional

from lablib import guest, image_root, pod_root
from lablib.commands import wait_until
from lablib.daemon import DIRECTORY, Daemon
from lablib.errors import LabError
from lablib.node import BINARY, Attachd, Result
from lablib.state import Lab

_RUNNER = "/project/scripts/lablib/pod_container.py"
_IMAGE = "/run/pod-image"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_numbers = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Mount:
    """What is mounted at a path of the container: a path of the host, or files that live as long as the container."""

    path: str
    host_path: Optional[str] = None
    type: str = ""  # of a hostPath
    propagation: str = "None"  # None, HostToContainer, Bidirectional
    read_only: bool = False
    files: Mapping[str, tuple[str, int]] = dataclasses.field(default_factory=dict)  # name -> content and mode


@dataclasses.dataclass(frozen=True)
class PodSpec:
    """The part of a Pod that a container engine acts on."""

    command: Sequence[str]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mounts: Sequence[Mount] = ()
    privileged: bool = False
    host_network: bool = False
    host_pid: bool = False
    read_only_root: bool = False
    grace_seconds: int = 30


def host(path: str, propagation: str = "None", **more: str) -> Mount:
    """A hostPath volume at the same path in the container."""
    return Mount(path, path, propagation=propagation, **more)


def attachd_spec(node: Attachd, command: Sequence[str], **env: str) -> PodSpec:
    """attachd with all that it needs to drive the host."""
    settings = {"OS_AUTH_TYPE": "none", "OS_ENDPOINT": node.endpoint, "OS_PROJECT_ID": node.project,
                "ATTACHD_HOST_ROOT": "/proc/1/root", "ATTACHD_NODE_NAME": node.name, "ATTACHD_ALLOWED_ROOTS": "/mnt", **env}
    mounts = [host("/dev"), host("/var/lib/attachd", "Bidirectional", type="DirectoryOrCreate"),
              host("/mnt", "Bidirectional", type="Directory"),
              host(DIRECTORY, type="DirectoryOrCreate")]
    return PodSpec(command, settings, mounts, privileged=True, host_network=True, host_pid=True)


def install_image(node: Attachd) -> None:
    """Mount the image's root file system in the node, unless it is there."""
    if node.execute(["mountpoint", "-q", _IMAGE]).code == 0:
        return
    guest.copy_in(node.lab, node.record, pod_root.root_file_system(), "/run/pod-image.squashfs")
    node.shell(f"modprobe loop; mkdir -p {_IMAGE}; mount -t squashfs -o loop,ro /run/pod-image.squashfs {_IMAGE}; mount --make-private {_IMAGE}")


class Pod:
    """A container in a node: run to its end, or started and stopped."""

    def __init__(self, node: Attachd, spec: PodSpec) -> None:
        self.node = node
        self.spec = spec
        # One name for one container, also of several runs of the lab.
        self.name = f"pod-{os.getpid()}-{next(_numbers)}"
        self._files = f"/run/{self.name}"

    def command(self) -> list[str]:
        """The command line that runs it in the node, once. Secrets are in a file, not in it."""
        install_image(self.node)
        directory = self.node.lab.share / "pods"
        directory.mkdir(mode=0o700, exist_ok=True)
        order = {
            "name": self.name, "command": list(self.spec.command), "env": {"PATH": _PATH, **image_root.environment(), **self.spec.env},
            "mounts": [dataclasses.asdict(mount) for mount in self.spec.mounts], "privileged": self.spec.privileged,
            "host_network": self.spec.host_network, "host_pid": self.spec.host_pid, "read_only_root": self.spec.read_only_root,
            # The image's attachd is the one that is tested.
            "binary": [BINARY, BINARY],
        }
        file = directory / f"{self.name}.json"
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            json.dump(order, out)
        return ["python3", "-B", _RUNNER, f"/lab/pods/{self.name}.json"]

    def run(self, *, timeout: float = 180, echo: bool = False) -> Result:
        """Run the container to its end."""
        return self.node.execute(self.command(), timeout=timeout, echo=echo)

    def start(self) -> None:
        """Start the container."""
        runner = shlex.join(self.command())
        self.node.shell(f"mkdir {self._files}; cd {self._files}; "
                        f"setsid bash -c '{runner} > log 2>&1; echo $? > code.new; mv code.new code' < /dev/null > /dev/null 2>&1 &")
        wait_until(lambda: self.exit_code() is not None or self.pid() is not None, timeout=60, what=f"{self.name} to start")

    def pid(self) -> Optional[int]:
        """The process of its program, by the host's number; None where it has ended."""
        text = self.node.shell(f"cat /run/pods/{self.name}.pid 2>/dev/null || true").strip()
        return int(text) if text else None

    def exit_code(self) -> Optional[int]:
        """How it ended, 128 + the signal where it was one; None while it runs."""
        text = self.node.shell(f"cat {self._files}/code 2>/dev/null || true").strip()
        return int(text) if text else None

    def logs(self) -> str:
        """What it said."""
        return self.node.shell(f"cat {self._files}/log 2>/dev/null || true")

    def signal(self, name: str) -> None:
        """Send its program a signal."""
        self.node.shell(f"kill -{name} $(cat /run/pods/{self.name}.pid)")

    def stop(self) -> int:
        """End it as kubelet does: SIGTERM, and SIGKILL after the time of grace; give the exit code."""
        if self.exit_code() is None:
            self.signal("TERM")
            try:
                wait_until(lambda: self.exit_code() is not None, timeout=self.spec.grace_seconds, what=f"{self.name} to end")
            except LabError:
                return self.kill()
        return self._ended()

    def kill(self) -> int:
        """End it by SIGKILL; give the exit code."""
        self.signal("KILL")
        wait_until(lambda: self.exit_code() is not None, timeout=30, what=f"{self.name} to end after SIGKILL")
        return self._ended()

    def _ended(self) -> int:
        code = self.exit_code()
        assert code is not None
        return code

    def remove(self) -> None:
        """Forget its logs and its exit code."""
        self.node.shell(f"rm -rf {self._files}")


class PodAttachd(Attachd):
    """attachd on one node, run in a Pod; everything else is as on the node itself."""

    def __init__(self, lab: Lab, node_name: str) -> None:
        super().__init__(lab, node_name)
        self.adapt: Callable[[PodSpec], PodSpec] = lambda spec: spec

    @classmethod
    def beside(cls, node: Attachd) -> PodAttachd:
        """The same node by way of Pods."""
        return cls(node.lab, node.name)

    def command(self, *arguments: str, **environment: str) -> list[str]:
        """The command line that runs attachd in a container of its own."""
        return Pod(self, self.adapt(attachd_spec(self, [BINARY, *arguments], **environment))).command()


class PodDaemon(Daemon):
    """attachd as the DaemonSet runs it, serving a directory of requests."""

    def __init__(self, node: Attachd) -> None:
        super().__init__(node)
        self._pod: Optional[Pod] = None

    def start(self, **environment: str) -> None:
        """Start it in a new container."""
        env = {"ATTACHD_LOG": "attachd=debug", "ATTACHD_LOG_JSON": "true", **environment}
        self._pod = Pod(self._node, attachd_spec(self._node, [BINARY, "run", "--requests-dir", DIRECTORY], **env))
        self._pod.start()
        self.pid = self._pod.pid()
        wait_until(self._serves, timeout=60, what="the daemon to serve; see its log")

    def stop(self) -> int:
        """End its container as kubelet does; give the exit code."""
        return self._running().stop()

    def kill(self) -> int:
        """End its container by SIGKILL; give the exit code."""
        return self._running().kill()

    def signal(self, name: str) -> None:
        """Send it a signal."""
        self._running().signal(name)

    def log(self) -> str:
        """What it said."""
        return self._running().logs()

    def _running(self) -> Pod:
        if self._pod is None:
            raise LabError("the daemon was not started")
        return self._pod
