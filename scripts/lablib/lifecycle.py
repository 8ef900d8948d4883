"""A lab's life: up, status, reboot of a node, down."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable

from lablib import cinder, cinder_old, guest, keystone, kubernetes, storage, target
from lablib.accelerator import accelerator
from lablib.cache import locked
from lablib.commands import tail
from lablib.errors import LabError
from lablib.image import Image, image
from lablib.packages import ensure_packages
from lablib.processes import Process
from lablib.report import say
from lablib.state import PROJECT_ID, STORAGE, Keystone, Lab, Node, Settings, Storage, free_port, has_ipv6_loopback

_LOCK_TIMEOUT = 3600.0


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the user asked of `up`."""

    nodes: int
    fast_failover: bool
    find_multipaths: str | None
    storage_guest: bool = False
    memory: int = 1024  # MiB, of each node


class _Timing:
    """Says how long each part took."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def run(self, what: str, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        result = work()
        say(f"{what}: {time.monotonic() - start:.1f} s")
        return result

    def total(self) -> float:
        return time.monotonic() - self._start


def up(lab: Lab, wishes: Wishes) -> None:
    """Bring the lab to what was wished for; what runs already stays as it is."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root: it unpacks a Debian root file system and runs an iSCSI target")
    with locked(lab.lock_file, f"lab {lab.name}", _LOCK_TIMEOUT):
        timing = _Timing()
        ensure_packages()
        had_processes = set(lab.processes.running())
        try:
            _start(lab, wishes, timing)
        except BaseException as error:
            _show_logs(lab, str(error))
            for name in sorted(set(lab.processes.running()) - had_processes):
                lab.processes.stop(name, at_once=True)
            if not had_processes:
                _forget(lab, keep_logs=True)
                say(f"nothing was left running; the logs are in {lab.logs}")
            raise
        say(f"lab {lab.name} is up after {timing.total():.1f} s")


def _start(lab: Lab, wishes: Wishes, timing: _Timing) -> None:
    if not lab.processes.running():
        _forget(lab, keep_logs=False)  # what a lab that ended without `down` left: its ports may be others' by now
    lab.directory.mkdir(parents=True, exist_ok=True)
    lab.directory.chmod(0o700)
    for directory in (lab.logs, lab.share):
        directory.mkdir(exist_ok=True)
    guest.make_ssh_keys(lab)
    with ThreadPoolExecutor() as pool:
        images = pool.submit(image)
        programs = pool.submit(lambda: (cinder.database(cinder.program()), target.install()))
        settings = _settle(lab, wishes, images)
        work: list[Future[Any]] = [pool.submit(_start_storage, lab, settings, programs, timing)]
        begun = settings.storage if settings.storage and not storage.runs(lab, settings.storage) else None
        if begun:
            programs.result()
            process = storage.launch(lab, settings, begun, images.result())
            work.append(pool.submit(_wait_for_storage_guest, lab, begun, process, timing))
        for node in settings.nodes.values():
            if not lab.processes.find(guest.process_name(node)):
                work.append(pool.submit(_boot, lab, settings, node, images.result(), timing))
            elif settings.storage and (begun or not guest.on_storage_networks(lab, node)):
                say(f"{node.name} was started before the storage guest; join them with: scripts/lab reboot {node.name}")
        for part in work:
            part.result()


def _settle(lab: Lab, wishes: Wishes, images: Future[Image]) -> Settings:
    """Choose ports and record them; keep what was chosen for what runs."""
    settings = lab.load()
    if settings is None:
        cinder_port = free_port([])
        settings = Settings(accelerator(images.result()), cinder_port, free_port([cinder_port]), has_ipv6_loopback(), {})
        port = free_port(settings.ports)
        settings.keystone = Keystone(port, free_port([*settings.ports, port]), keystone.TOKEN_LIFETIME)
    taken = settings.ports
    for number in range(1, wishes.nodes + 1):
        name = f"node{number}"
        node = settings.nodes.get(name)
        if node is None:
            node = Node(name, number, 0, wishes.fast_failover, wishes.find_multipaths, wishes.memory)
            settings.nodes[name] = node
        elif (node.fast_failover, node.find_multipaths) != (wishes.fast_failover, wishes.find_multipaths):
            say(f"{name} exists already and keeps the settings it was made with")
        if not lab.processes.find(guest.process_name(node)):
            node.ssh_port = free_port(taken)
            taken.append(node.ssh_port)
    if wishes.storage_guest and not settings.storage:
        ssh_port = free_port(taken)
        settings.storage = Storage(ssh_port, free_port([*taken, ssh_port]))
    lab.save(settings)
    return settings


def _start_storage(lab: Lab, settings: Settings, programs: Future[Any], timing: _Timing) -> None:
    programs.result()
    if not lab.processes.find(target.PROCESS):
        for name in (cinder.PROCESS, cinder_old.PROCESS):
            cinder.stop(lab, name)  # it exports its volumes again when it starts
        timing.run("iSCSI target", lambda: target.start(lab, settings, target.install(), cinder.volumes_dir(lab)))
    if not lab.processes.find(cinder.PROCESS):
        timing.run("Cinder", lambda: cinder.start(lab, settings))


def _wait_for_storage_guest(lab: Lab, record: Storage, process: Process, timing: _Timing) -> None:
    timing.run("storage guest with its Cinder", lambda: storage.wait_until_ready(lab, record, process))


def _boot(lab: Lab, settings: Settings, node: Node, booted: Image, timing: _Timing) -> None:
    timing.run(node.name, lambda: guest.boot(lab, settings, node, booted))


def reboot(lab: Lab, node: Node, *, hard: bool) -> None:
    """Boot a node again, after an orderly shutdown or after its power was cut."""
    if node.name == STORAGE:
        raise LabError("the storage guest's end is the end of the nodes' networks; restart its Cinder, or the lab")
    with locked(lab.lock_file, f"lab {lab.name}", _LOCK_TIMEOUT):
        timing = _Timing()
        guest.halt(lab, node, power_cut=hard)
        timing.run(f"{node.name} is back", lambda: guest.boot(lab, lab.settings(), node, image()))


def down(lab: Lab) -> None:
    """End the lab's processes and remove its directory; the cache stays."""
    with locked(lab.lock_file, f"lab {lab.name}", _LOCK_TIMEOUT):
        for node in lab.guests().values() if lab.load() else []:
            guest.disconnect(lab, node)
        running = lab.processes.running()
        kubernetes.stop(lab, at_once=True)
        for name in running:
            lab.processes.stop(name, at_once=True)  # nothing of it is kept; and tgtd ignores SIGTERM
        _forget(lab, keep_logs=False)
        say(f"lab {lab.name}: " + (f"ended {', '.join(running)}" if running else "nothing was running"))


def _forget(lab: Lab, *, keep_logs: bool) -> None:
    if not lab.directory.exists():
        return
    for path in lab.directory.iterdir():
        if keep_logs and path == lab.logs:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not keep_logs:
        lab.directory.rmdir()


def status(lab: Lab) -> dict[str, Any]:
    """Describe the lab: what runs, and how to reach it."""
    settings = lab.load()
    if settings is None:
        return {"name": lab.name, "up": False, "state_dir": str(lab.directory)}
    running = lab.processes.running()
    api = running.get(cinder.PROCESS)
    tgtd = running.get(target.PROCESS)
    nodes = {}
    for node in settings.nodes.values():
        machine = running.get(guest.process_name(node))
        nodes[node.name] = {
            "pid": machine.pid if machine else None,
            "ssh_port": node.ssh_port,
            "iqn": node.iqn,
            "address": f"10.0.2.{node.address}",
        }
    return {
        "name": lab.name,
        "up": True,
        "state_dir": str(lab.directory),
        "accelerator": settings.accelerator,
        "cinder": {
            "pid": api.pid if api else None,
            "paused": api.paused() if api else False,
            **_cinder_access(settings.cinder_port, cinder.volume_types(settings)),
        },
        "target": {
            "pid": tgtd.pid if tgtd else None,
            "port": settings.iscsi_port,
            "portals": [f"10.0.2.2:{settings.iscsi_port}", f"10.0.3.2:{settings.iscsi_port}"],
        },
        "cinder_old": _cinder_old_status(settings, running),
        "storage": _storage_status(settings.storage, running) if settings.storage else None,
        "keystone": keystone.status(lab),
        "kubernetes": kubernetes.status(lab),
        "nodes": nodes,
    }


def _cinder_access(port: int, types: Iterable[str]) -> dict[str, Any]:
    return {
        "endpoint": f"http://127.0.0.1:{port}/v3",
        "endpoint_in_guest": f"http://10.0.2.2:{port}/v3",
        "project_id": PROJECT_ID,
        "token": f"admin:{PROJECT_ID}",
        "volume_types": sorted(types),
    }


def _cinder_old_status(settings: Settings, running: Mapping[str, Process]) -> dict[str, Any] | None:
    if settings.cinder_old_port is None:
        return None
    process = running.get(cinder_old.PROCESS)
    return {"pid": process.pid if process else None,
            **_cinder_access(settings.cinder_old_port, cinder.volume_types(settings))}


def _storage_status(record: Storage, running: Mapping[str, Process]) -> dict[str, Any]:
    machine = running.get(guest.process_name(record.guest))
    return {
        "pid": machine.pid if machine else None,
        "ssh_port": record.ssh_port,
        "cinder": _cinder_access(record.cinder_port, storage.volume_types()),
        "target": {"portals": [f"{address}:{storage.TARGET_PORT}" for address in storage.portals(record)]},
    }


def _show_logs(lab: Lab, error: str) -> None:
    """Show the ends of the logs that an error names."""
    for path in sorted(lab.logs.glob("*.log")):
        if str(path) in error and path.stat().st_size:
            say(f"the end of {path}:\n{tail(path.read_text(errors='replace'))}")
