"""attachd on a lab node: run it, look at what it did, and look for what it left."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

from lablib import guest
from lablib.block_storage import BlockStorage
from lablib.commands import wait_until
from lablib.errors import LabError
from lablib.state import PROJECT_ID, Lab

BINARY = "/usr/local/bin/attachd"

# Everything that an attach makes on a node, a line each. Nothing but this may decide that nothing is left.
_LEFTOVERS = r"""
set +e +o pipefail
for session in /sys/class/iscsi_session/session*; do [ -e "$session" ] && echo "session ${session##*/}"; done
for disk in /sys/block/sd*; do [ -e "$disk" ] && echo "disk ${disk##*/}"; done
for map in /sys/block/dm-*; do [ -e "$map" ] && echo "map $(cat "$map/dm/name")"; done
awk '$1 ~ "^/dev/(sd|dm-|mapper/)" {print "mount " $2}' /proc/mounts
for base in /etc/iscsi /var/lib/iscsi; do
  for kind in nodes send_targets; do find "$base/$kind" -type f -printf "node record %p\n" 2>/dev/null; done
done
grep -v '^#' /etc/multipath/wwids 2>/dev/null | sed 's/^/multipath wwid /'
find /var/lib/attachd/volumes /var/lib/attachd/targets -type f -printf 'ledger entry %p\n' 2>/dev/null
find /var/lib/attachd/mounts -mindepth 1 -printf 'mount directory %p\n' 2>/dev/null
true
"""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command in the node gave back."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    def json(self) -> Any:
        """Decode the output; raise LabError where it is no JSON."""
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            raise LabError(f"no JSON ({error}): {self.stdout[:400]!r}, stderr {self.stderr[-800:]!r}") from error


class Attachd:
    """attachd on one node, talking to the lab's Cinder."""

    def __init__(self, lab: Lab, node_name: str) -> None:
        self._lab = lab
        self._node = lab.node(node_name)
        settings = lab.settings()
        self.name = node_name
        self.iqn = self._node.iqn
        self.endpoint = f"http://10.0.2.2:{settings.cinder_port}/v3"
        self.project = PROJECT_ID
        self.cinder = BlockStorage(f"http://127.0.0.1:{settings.cinder_port}", PROJECT_ID)

    def install(self, binary: Path) -> None:
        """Copy the binary into the node (again after a reboot)."""
        guest.copy_in(self._lab, self._node, binary, BINARY)

    def environment(self, **more: str) -> list[str]:
        """The command prefix that points attachd at this lab's Cinder."""
        settings = {"ATTACHD_CINDER_ENDPOINT": self.endpoint, "ATTACHD_CINDER_PROJECT": self.project, **more}
        return ["env", *(f"{key}={value}" for key, value in settings.items())]

    def run(self, *arguments: str, timeout: float = 180, echo: bool = False, **environment: str) -> Result:
        """Run attachd; with ``echo`` its talk goes to this process's standard error as it comes."""
        argv = [*self.environment(**environment), BINARY, *arguments]
        return self.execute(argv, timeout=timeout, echo=echo)

    def execute(self, argv: list[str], *, timeout: float = 120, echo: bool = False) -> Result:
        """Run a command in the node, whatever its exit code."""
        start = time.monotonic()
        process = subprocess.Popen(guest.command(self._lab, self._node, argv, timeout=timeout), text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=None if echo else subprocess.PIPE)
        try:
            stdout, stderr = process.communicate(timeout=timeout + 45)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise LabError(f"{self.name} does not answer: {shlex.join(argv)}") from error
        return Result(process.returncode, stdout, stderr or "", time.monotonic() - start)

    def shell(self, script: str, *, timeout: float = 120) -> str:
        """Run a script in the node; raise LabError if it fails."""
        return guest.output(self._lab, self._node, ["bash", "-euo", "pipefail", "-c", script], timeout=timeout)

    def leftovers(self, *, volume: str | None = None) -> list[str]:
        """Name everything of an attachment that is on the node, or in Cinder for the volume."""
        found = self.shell(_LEFTOVERS).splitlines()
        if volume:
            found += [f"attachment {item['id']} ({item['status']}) in Cinder"
                      for item in self.cinder.attachments() if item["volume_id"] == volume]
        return found

    def path_states(self) -> dict[str, str]:
        """The kernel's and multipathd's word for each path, by the disk's name."""
        lines = self.shell("multipathd show paths raw format '%d %t %T %o'", timeout=30).splitlines()
        return {name: f"{dm} {checker} {device}" for name, dm, checker, device in (line.split() for line in lines)}

    def wait_for_paths(self, active: int, failed: int, *, timeout: float = 120) -> None:
        """Wait until so many paths are active and so many failed."""

        def settled() -> bool:
            states = list(self.path_states().values())
            good = [state for state in states if state == "active ready running"]
            bad = [state for state in states if state.startswith("failed")]
            return (len(good), len(bad)) == (active, failed)

        wait_until(settled, timeout=timeout, what=f"{active} active and {failed} failed paths on {self.name}", interval=0.3)

    def volume(self, volume_id: str) -> dict[str, Any]:
        """Cinder's view of a volume."""
        return dict(self.cinder.request("GET", f"/volumes/{volume_id}").json()["volume"])
