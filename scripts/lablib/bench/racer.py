"""Runs in the node: attaches and detaches volumes by one of the three, and says how long it took and what it cost.

Orders are lines of JSON on standard input, answers lines of JSON on standard output. What is timed begins with the first call to
Cinder, or the first process, and ends where the device is usable and Cinder says so.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlsplit

_READY = re.compile(r'reason: (Attached|Degraded)\n    status: "True"\n    type: Ready')
_LIMIT = 2400.0


class Place:
    """Where things are: the arguments of this program."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.endpoint: str = given["endpoint"]
        self.project: str = given["project"]
        self.initiator: str = given["initiator"]
        self.address: str = given["address"]
        self.node: str = given["node"]
        self.binary: str = given["binary"]
        self.environment: dict[str, str] = given["environment"]
        self.requests = Path(given["requests"])
        self.portals_dead = False
        self.bare_tools: str = given["bare_tools"]


class AttachdCommand:
    """`attachd attach`: a process for each volume."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def attach(self, volumes: list[str], multipath: bool) -> None:
        _all([[self._place.binary, "attach", v, "--block", "--quiet", "--multipath", "required" if multipath else "disabled"] for v in volumes],
             self._place.environment)

    again = attach

    def detach(self, volumes: list[str], multipath: bool) -> None:
        _all([[self._place.binary, "detach", v, "--quiet"] for v in volumes], self._place.environment)


class AttachdDaemon:
    """The daemon, which serves a directory."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def _file(self, volume: str, kind: str) -> Path:
        return self._place.requests / f"{volume}.{kind}"

    def _lay(self, volumes: list[str], multipath: bool) -> None:
        for volume in volumes:
            spec = {"nodeName": self._place.node, "volumeID": volume, "volumeMode": "Block", "multipath": "Required" if multipath else "Disabled"}
            self._file(volume, "new").write_text(json.dumps({"apiVersion": "attachd.dev/v1alpha1", "kind": "VolumeAttachRequest",
                                                             "metadata": {"name": volume}, "spec": spec}))
            self._file(volume, "new").rename(self._file(volume, "yaml"))

    def start(self, volumes: list[str], multipath: bool) -> None:
        """Start the daemon, with requests that wait for it."""
        self._place.requests.mkdir(exist_ok=True)
        self._lay(volumes, multipath)
        log = open(f"{self._place.requests}.log", "ab")
        self._daemon = subprocess.Popen([self._place.binary, "run", "--requests-dir", str(self._place.requests)], stdin=subprocess.DEVNULL,
                                        stdout=log, stderr=log, env={**os.environ, **self._place.environment})
        self._wait_ready(volumes)

    def stop(self, volumes: list[str], multipath: bool) -> None:
        self._daemon.terminate()
        self._daemon.wait(timeout=60)

    @property
    def pid(self) -> int:
        return self._daemon.pid

    def attach(self, volumes: list[str], multipath: bool) -> None:
        self._lay(volumes, multipath)
        self._wait_ready(volumes)

    def _wait_ready(self, volumes: list[str]) -> None:
        def is_ready(volume: str) -> bool:
            try:
                ready = _READY.search(self._file(volume, "status.yaml").read_text())
            except FileNotFoundError:
                return False
            # With fewer paths than there are it isn't done, unless there are no more.
            return ready is not None and (ready[1] == "Attached" or self._place.portals_dead)

        _wait(volumes, is_ready)

    def detach(self, volumes: list[str], multipath: bool) -> None:
        for volume in volumes:
            self._file(volume, "yaml").unlink()
        _wait(volumes, lambda volume: not self._file(volume, "status.yaml").exists())


class BareTools:
    """A script, a process for each volume."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def _run(self, what: str, volumes: list[str], multipath: bool) -> None:
        where = urlsplit(self._place.endpoint)
        tail = ["-", str(where.hostname), str(where.port), self._place.project, self._place.initiator, self._place.address]
        _all([[self._place.bare_tools, what, v, *tail] for v in volumes], {"MULTIPATH": "true" if multipath else "false"})

    def attach(self, volumes: list[str], multipath: bool) -> None:
        self._run("attach", volumes, multipath)

    def again(self, volumes: list[str], multipath: bool) -> None:
        self._run("again", volumes, multipath)

    def detach(self, volumes: list[str], multipath: bool) -> None:
        self._run("detach", volumes, multipath)


class OsBrick:
    """os-brick in this process, as in a service that uses it: a thread for each volume."""

    def __init__(self, place: Place) -> None:
        import os_brick
        from os_brick import privileged
        from os_brick.initiator import connector
        from oslo_concurrency import lockutils
        from oslo_config import cfg

        lockutils.set_defaults("/run/os-brick-locks")
        cfg.CONF([], project="bench")
        os_brick.setup(cfg.CONF)
        privileged.default.set_client_mode(False)  # this is root already
        self._factory = connector.InitiatorConnector.factory
        self._place = place
        self._attached: dict[str, tuple[str, dict[str, Any], Any]] = {}

    def _cinder(self, method: str, path: str, body: Any = None) -> Any:
        where = urlsplit(self._place.endpoint)
        connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=120)
        headers = {"X-Auth-Token": f"admin:{self._place.project}", "OpenStack-API-Version": "volume 3.54", "Content-Type": "application/json"}
        connection.request(method, f"/v3/{self._place.project}{path}", None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text!r}")
        return json.loads(text) if text else None

    def _connector(self, multipath: bool) -> Any:
        return self._factory("ISCSI", None, use_multipath=multipath, enforce_multipath=multipath, device_scan_attempts=5)

    def _attach(self, volume: str, multipath: bool) -> None:
        created = self._cinder("POST", "/attachments", {"attachment": {"volume_uuid": volume, "mode": "rw"}})["attachment"]["id"]
        facts = {"host": self._place.node, "initiator": self._place.initiator, "ip": self._place.address, "platform": "x86_64",
                 "os_type": "linux", "multipath": multipath, "mode": "rw"}
        info = self._cinder("PUT", f"/attachments/{created}", {"attachment": {"connector": facts}})["attachment"]["connection_info"]
        device = self._connector(multipath).connect_volume(info)
        self._cinder("POST", f"/attachments/{created}/action", {"os-complete": {}})
        self._attached[volume] = (created, info, device)

    def _detach(self, volume: str, multipath: bool) -> None:
        created, info, device = self._attached.pop(volume)
        self._connector(multipath).disconnect_volume(info, device)
        self._cinder("DELETE", f"/attachments/{created}")

    def attach(self, volumes: list[str], multipath: bool) -> None:
        _threads(volumes, lambda volume: self._attach(volume, multipath))

    def again(self, volumes: list[str], multipath: bool) -> None:
        _threads(volumes, lambda volume: self._connector(multipath).connect_volume(self._attached[volume][1]))

    def detach(self, volumes: list[str], multipath: bool) -> None:
        _threads(volumes, lambda volume: self._detach(volume, multipath))


def _all(commands: list[list[str]], environment: dict[str, str]) -> None:
    running = [subprocess.Popen(argv, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True) for argv in commands]
    said = [process.communicate(timeout=_LIMIT)[1] for process in running]
    wrong = [f"{argv}: exit code {process.returncode}: {text[-800:]}" for argv, process, text in zip(commands, running, said) if process.returncode]
    if wrong:
        raise RuntimeError("; ".join(wrong))


def _threads(volumes: list[str], one: Callable[[str], None]) -> None:
    wrong: list[BaseException] = []

    def work(volume: str) -> None:
        try:
            one(volume)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(volume,)) for volume in volumes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


def _wait(volumes: list[str], done: Callable[[str], bool]) -> None:
    left, until = list(volumes), time.monotonic() + _LIMIT
    while left:
        began = time.thread_time()
        left = [volume for volume in left if not done(volume)]
        if left:
            if time.monotonic() > until:
                raise RuntimeError(f"{len(left)} are still not done: {left[:5]}")
            # Looking at many must not take the time of what is measured: at most a twentieth of a processor, however long a look
            # waits for one.
            time.sleep(max(0.02, 20 * (time.thread_time() - began)))


def _node() -> tuple[float, int]:
    """The processor time of the whole node in seconds, and how many processes were started."""
    text = Path("/proc/stat").read_text()
    user, nice, system, _, _, irq, soft, *_ = (int(word) for word in text.split("\n", 1)[0].split()[1:])
    started = re.search(r"^processes (\d+)$", text, re.MULTILINE)
    assert started
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK"), int(started[1])


def _own(pid: int) -> float:
    """The processor time of a process that is there, without those that it started, in seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> dict[str, int]:
    """The memory that a process has, and the most that it ever had, in KiB."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return {}
    return {name: int(size) for name, size in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", text, re.MULTILINE)}


_CONTENDERS = {"attachd": AttachdDaemon, "attachd command": AttachdCommand, "bare tools": BareTools, "os-brick": OsBrick}


def main() -> None:
    """Serve until standard input ends."""
    place = Place(json.loads(sys.argv[2]))
    who = _CONTENDERS[sys.argv[1]](place)
    for line in sys.stdin:
        order = json.loads(line)
        place.portals_dead = order["portals_dead"]
        try:
            cpu, processes = _node()
            before = getattr(who, "pid", os.getpid())
            own = _own(before)
            began = time.monotonic()
            getattr(who, order["do"])(order["volumes"], order["multipath"])
            seconds = time.monotonic() - began
            cpu_after, processes_after = _node()
            pid = getattr(who, "pid", os.getpid())
            answer = {"seconds": seconds, "cpu": cpu_after - cpu, "own": _own(pid) - (own if pid == before else 0), "processes": processes_after - processes, "pid": pid,
                      **_memory(pid)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
