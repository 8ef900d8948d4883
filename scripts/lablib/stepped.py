"""Stopping attachd between two lines of its log, and killing it there.

Its log goes to a pipe that takes one line at a time. attachd writes a line before it goes on, so it stands still at the
next one until the first is taken: where it is killed then is known exactly, and nothing in attachd is made for it. The
programs that it has started live on, as they do where the kernel kills a process for its memory.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Optional

from lablib.errors import LabError
from lablib.node import DEBUG, Attachd

_STEPPED = r"""
import fcntl, glob, json, os, select, subprocess, sys, time
lines, more, limit, done, argv = json.loads(sys.argv[1])
F_SETPIPE_SZ = 1031
source, sink = os.pipe2(os.O_DIRECT)
fcntl.fcntl(sink, F_SETPIPE_SZ, 4096)
os.write(sink, b"not attachd's\n")
child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=sink)
os.close(sink)
said, open_ = [], True
def take(seconds):
    global open_
    if open_ and select.select([source], [], [], seconds)[0]:
        packet = os.read(source, 65536)
        if packet:
            said.append(packet.decode(errors="replace"))
        else:
            open_ = False
def stands_still():
    for path in glob.glob(f"/proc/{child.pid}/task/*/syscall"):
        try:
            if open(path).read().split()[:2] == ["1", "0x2"]:
                return True
        except OSError:
            pass
    return False
def is_done():
    return bool(done) and subprocess.run(["bash", "-c", done]).returncode == 0
end = time.monotonic() + limit
how = "limit"
looked = time.monotonic()
while time.monotonic() < end:
    if len(said) < lines + 1 and open_:
        take(0.2)
    elif stands_still():
        how = "stood"
        break
    else:
        time.sleep(0.005)
    if child.poll() is not None:
        how = "ended"
        break
    if time.monotonic() - looked > 1:
        looked = time.monotonic()
        if is_done():
            how = "done"
            break
if how == "stood":
    until = time.monotonic() + more
    while open_ and child.poll() is None and time.monotonic() < until:
        take(max(0, until - time.monotonic()))
    how = "stood" if child.poll() is None else "ended"
if child.poll() is None:
    child.kill()
code = child.wait()
while open_:
    take(1)
print(json.dumps({"how": how, "code": code, "said": said[1:]}))
"""


@dataclasses.dataclass(frozen=True)
class Stop:
    """Where attachd was killed, or how it ended by itself."""

    killed: bool
    # Its exit code, where it ended by itself.
    code: Optional[int]
    # What it had said.
    said: list[str]

    @property
    def after(self) -> str:
        """The last thing that it said."""
        return _message(self.said[-1]) if self.said else "nothing"


def _message(line: str) -> str:
    try:
        fields = json.loads(line)["fields"]
    except ValueError:
        return line.strip()
    known = [fields[key] for key in ("command", "step", "method", "path", "file") if key in fields]
    return " ".join([fields.get("message", ""), *map(str, known)])[:120]


def kill_at(node: Attachd, lines: int, argv: list[str], *, more: float = 0.0, done: str = "", timeout: float = 240) -> Stop:
    """Run attachd until it is about to say one line more than so many, and kill it; with ``more``, so many seconds after.

    It isn't killed where it ends before. ``done`` is a script that tells of a daemon that it has nothing to do any more.
    """
    order = json.dumps([lines, more, timeout, done, argv])
    ran = node.execute(["python3", "-c", _STEPPED, order], timeout=timeout + 60)
    if ran.code != 0:
        raise LabError(f"exit code {ran.code} from the program that runs attachd: {ran.stderr}")
    result = ran.json()
    if result["how"] == "limit":
        raise LabError(f"attachd neither ended nor said {lines + 1} lines in {timeout:.0f} s: {result['said'][-3:]}")
    if result["how"] == "ended":
        return Stop(False, result["code"], result["said"])
    return Stop(result["how"] == "stood", None, result["said"])


def command(node: Attachd, *arguments: str) -> list[str]:
    """The command line of an attachd that says on its standard error all that it does, and nothing but its log."""
    return node.command(*arguments, **DEBUG)
