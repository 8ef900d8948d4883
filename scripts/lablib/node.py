"""attachd on a lab node: run it, look at what it did, and look for what it left."""

from __future__ import annotations

import copy
import dataclasses
import json
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from lablib import guest, storage
from lablib.block_storage import BlockStorage
from lablib.commands import wait_until
from lablib.errors import LabError
from lablib.state import PROJECT_ID, Lab

BINARY = "/usr/local/bin/attachd"

# Makes attachd log every request, process and step, for `Result.events`.
DEBUG = {"ATTACHD_LOG": "attachd=debug", "ATTACHD_LOG_JSON": "true"}

# Runs a program and sends it a signal: `seconds` after the `lines`th line of its standard error, or
# after a program named `program` runs. Prints what came of it.
_SIGNALLED = r"""
import json, os, signal, subprocess, sys, threading, time
number, lines, program, seconds, argv = json.loads(sys.argv[1])
child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
out = []
reader = threading.Thread(target=lambda: out.append(child.stdout.read()))
reader.start()
said = []
def strike():
    time.sleep(seconds)
    if child.poll() is None:
        child.send_signal(number)
# A program may be there for a moment only: those that are older are not looked at.
def seen():
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and int(name) > child.pid and open(f"/proc/{name}/comm").read().strip() == program:
                return True
        except OSError:
            pass
    return False
if program:
    def watch():
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        while child.poll() is None:
            if seen():
                strike()
                return
    threading.Thread(target=watch).start()
elif lines == 0:
    threading.Thread(target=strike).start()
for line in child.stderr:
    said.append(line)
    if len(said) == lines and not program:
        strike()
code = child.wait()
reader.join()
print(json.dumps({"code": code, "stdout": out[0], "stderr": "".join(said)}))
"""

# Everything that an attach makes on a node, a line each. Nothing but this may decide that nothing is left.
_LEFTOVERS = r"""
set +e +o pipefail
for session in /sys/class/iscsi_session/session*; do [ -e "$session" ] && echo "session ${session##*/}"; done
for disk in /sys/block/sd*; do [ -e "$disk" ] && echo "disk ${disk##*/}"; done
for map in /sys/block/dm-*; do [ -e "$map" ] && echo "map $(cat "$map/dm/name")"; done
awk '$1 ~ "^/dev/(sd|dm-|mapper/)" {print "mount " $2}' /proc/mounts
for base in /etc/iscsi /var/lib/iscsi; do
  for kind in nodes send_targets; do find "$base/$kind" -type f -printf "node record %p\n" 2>/dev/null; done
  find "$base/attachd-kept" -printf "node records set aside %p\n" 2>/dev/null
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

    def events(self) -> list[dict[str, Any]]:
        """What attachd logged, where it ran with ``DEBUG``: one object for each event."""
        return [json.loads(line)["fields"] for line in self.stderr.splitlines() if line.startswith('{"timestamp"')]

    def cinder_calls(self) -> list[str]:
        """The methods and paths (below the project) of attachd's requests to Cinder, in their order."""
        events = [event for event in self.events() if event.get("message") in ("Cinder answered", "no answer of Cinder")]
        return [f"{event['method']} {event['path'].partition(PROJECT_ID)[2]}" for event in events]

    def programs(self) -> list[str]:
        """The command lines that attachd ran."""
        return [event["command"] for event in self.events() if event.get("message") == "ran"]

    def json(self) -> Any:
        """Decode the output; raise LabError where it is no JSON."""
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            raise LabError(f"no JSON ({error}): {self.stdout[:400]!r}, stderr {self.stderr[-800:]!r}") from error


class Attachd:
    """attachd on one node, talking to the lab's Cinder."""

    def __init__(self, lab: Lab, node_name: str) -> None:
        self.lab = lab
        self.record = lab.node(node_name)
        settings = lab.settings()
        self.name = node_name
        self.is_release = False
        self.iqn = self.record.iqn
        self.cinder_port = settings.cinder_port
        self.endpoint = f"http://10.0.2.2:{settings.cinder_port}/v3"
        self.project = PROJECT_ID
        self.cinder = BlockStorage(f"http://127.0.0.1:{settings.cinder_port}", PROJECT_ID)

    def on_storage_guest(self) -> Attachd:
        """The same node, talking to the storage guest's Cinder."""
        guest_cinder = self.lab.settings().storage
        if guest_cinder is None:
            raise LabError("the lab has no storage guest; start it with: scripts/lab up --storage-guest")
        other = copy.copy(self)
        other.cinder_port = guest_cinder.cinder_port
        other.endpoint = f"http://10.0.2.2:{guest_cinder.cinder_port}/v3"
        other.cinder = storage.client(guest_cinder)
        return other

    def install(self, binary: Path) -> None:
        """Copy the binary into the node (again after a reboot)."""
        self.is_release = "release" in binary.resolve().parts
        guest.copy_in(self.lab, self.record, binary, f"{BINARY}.new")
        # In one step: the old one may be running.
        self.shell(f"mv -f {BINARY}.new {BINARY}")

    def environment(self, **more: str) -> list[str]:
        """The command prefix that points attachd at this lab's Cinder."""
        settings = {"OS_AUTH_TYPE": "none", "OS_ENDPOINT": self.endpoint, "OS_PROJECT_ID": self.project, **more}
        return ["env", *(f"{key}={value}" for key, value in settings.items())]

    def command(self, *arguments: str, **environment: str) -> list[str]:
        """The command line that runs attachd in the node."""
        return [*self.environment(**environment), BINARY, *arguments]

    def run(self, *arguments: str, timeout: float = 600, echo: bool = False, **environment: str) -> Result:
        """Run attachd; with ``echo`` its talk goes to this process's standard error as it comes."""
        return self.execute(self.command(*arguments, **environment), timeout=timeout, echo=echo)

    def signalled(self, number: signal.Signals, *arguments: str, lines: int = 0, program: str = "",
                  seconds: float = 0.0, timeout: float = 180, **environment: str) -> Result:
        """Run attachd and send it a signal, so many seconds after it has said so many lines on its standard
        error or after it has started such a program. The code is negative where the signal ended it."""
        order = json.dumps([int(number), lines, program, seconds, self.command(*arguments, **environment)])
        ran = self.execute(["python3", "-c", _SIGNALLED, order], timeout=timeout)
        if ran.code != 0:
            raise LabError(f"exit code {ran.code} from the program that runs attachd: {ran.stderr}")
        done = ran.json()
        return Result(done["code"], done["stdout"], done["stderr"], ran.seconds)

    def execute(self, argv: list[str], *, timeout: float = 120, echo: bool = False) -> Result:
        """Run a command in the node, whatever its exit code."""
        start = time.monotonic()
        process = subprocess.Popen(guest.command(self.lab, self.record, argv, timeout=timeout), text=True,
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
        return guest.output(self.lab, self.record, ["bash", "-euo", "pipefail", "-c", script], timeout=timeout)

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
        # A state may be of two words: `i/o pending`.
        return {name: " ".join(states) for name, *states in (line.split() for line in lines)}

    def wait_for_paths(self, active: int, failed: int, *, timeout: float = 120) -> None:
        """Wait until so many paths are active and so many failed."""

        def settled() -> bool:
            states = list(self.path_states().values())
            good = [state for state in states if state == "active ready running"]
            bad = [state for state in states if state.startswith("failed")]
            return (len(good), len(bad)) == (active, failed)

        wait_until(settled, timeout=timeout, what=f"{active} active and {failed} failed paths on {self.name}", interval=0.3)

    def session_ids(self) -> list[str]:
        """The iSCSI sessions of the node."""
        return self.shell("ls /sys/class/iscsi_session 2>/dev/null || true").split()

    def volume(self, volume_id: str) -> dict[str, Any]:
        """Cinder's view of a volume."""
        return dict(self.cinder.request("GET", f"/volumes/{volume_id}").json()["volume"])
