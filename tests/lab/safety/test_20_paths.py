"""Paths and sessions that go and come back, under a writer that remembers what was acknowledged."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from lablib import cinder, guest, paths, target
from lablib.cases import expect, size, takes_long
from lablib.commands import run, wait_until
from lablib.daemon import Daemon, Status, daemon, ready_condition
from lablib.networks import HOST_NETWORKS
from lablib.node import Attachd
from lablib.steps import MOUNT, nothing_left, path_cut, volume
from lablib.writer import Verified, Writer, writer

# How often multipathd tries a path, each second, before it lets I/O fail where none is left.
_QUEUED = 45

# What the slowest machine needs until all is as it was.
_BACK = 600


@contextmanager
def _queueing(node: Attachd, retries: int | str) -> Iterator[None]:
    """I/O without a path waits for so long, or `queue`: for ever."""
    conf = "/etc/multipath/conf.d/queueing.conf"
    node.shell(f"printf 'overrides {{\\n    no_path_retry {retries}\\n}}\\n' > {conf}; multipathd reconfigure", timeout=60)
    try:
        yield
    finally:
        node.shell(f"rm -f {conf}; multipathd reconfigure", timeout=60)


def _attached(d: Daemon, timeout: float = _BACK) -> Status:
    return d.wait_for("db", "Attached", ready=True, timeout=timeout)


def _whole(node: Attachd, d: Daemon) -> None:
    """Both paths carry I/O, and the status says so."""
    node.wait_for_paths(active=2, failed=0, timeout=_BACK)
    _attached(d)


def _detached(node: Attachd, d: Daemon, v: str) -> None:
    d.remove("db.yaml")
    d.wait_gone("db", timeout=_BACK)
    nothing_left(node, v)


def _verified(w: Writer, at_least: int) -> Verified:
    found = w.verify()
    expect(found.lost == [], f"{len(found.lost)} of {found.acknowledged} acknowledged blocks are lost: {found.lost[:20]}")
    expect(found.acknowledged >= at_least, f"only {found.acknowledged} blocks were acknowledged")
    return found


def _calm(node: Attachd, d: Daemon, what: Callable[[], None]) -> float:
    what()
    start = time.monotonic()
    _whole(node, d)
    return time.monotonic() - start


def _cut(node: Attachd, which: list[int], how: str, seconds: float) -> Callable[[], None]:
    def act() -> None:
        try:
            for path in which:
                paths.cut(node.lab, node.record, path, how)
            time.sleep(seconds)
        finally:
            for path in which:
                paths.restore(node.lab, node.record, path)
    return act


def _log_out(node: Attachd, chance: random.Random) -> Callable[[], None]:
    def act() -> None:
        before = node.session_ids()
        sid = chance.choice(before).removeprefix("session")
        node.shell(f"iscsiadm -m session -r {sid} -u", timeout=60)
        expect(f"session{sid}" not in node.session_ids(), f"session {sid} is still there")
    return act


def _delete_disk(node: Attachd, chance: random.Random) -> Callable[[], None]:
    def act() -> None:
        disk = chance.choice(sorted(node.path_states()))
        node.shell(f"echo 1 > /sys/block/{disk}/device/delete", timeout=60)
    return act


# A portal of the node's own in place of the target's takes the connection, and closes it while iscsid sets it up:
# iscsid is slowed down for that. Where the kernel has taken the connection over, it stays failed.
_HOLD_BACK = '''
import glob, socket, subprocess, sys, time
address, port = sys.argv[1], int(sys.argv[2])
def word(path):
    with open(path) as file:
        return file.read().strip()
[connection] = [path for path in glob.glob("/sys/class/iscsi_connection/*") if word(path + "/persistent_address") == address]
iscsid = subprocess.run(["pgrep", "-n", "-x", "iscsid"], capture_output=True, text=True, check=True).stdout.strip()
slow = subprocess.Popen(["strace", "-qq", "-p", iscsid, "-e", "trace=sendmsg", "-e", "inject=sendmsg:delay_enter=100000", "-o", "/dev/null"])
local = ["ip", "address", "add", address + "/32", "dev", "lo"]
subprocess.run(local, check=True)
try:
    with socket.create_server((address, port)) as server:
        server.settimeout(60)
        client, _ = server.accept()
        end = time.monotonic() + 30
        while word(connection + "/state") != "bound":
            if time.monotonic() > end:
                sys.exit("iscsid bound no connection")
            time.sleep(0.01)
        time.sleep(0.2)
        client.close()
        time.sleep(1)
finally:
    subprocess.run([*local[:2], "delete", *local[3:]], check=True)
    slow.terminate()
    slow.wait()
'''


def _hold_back(node: Attachd, path: int) -> None:
    address, port = f"10.0.{HOST_NETWORKS[path]}.2", str(node.lab.settings().iscsi_port)
    guest.output(node.lab, node.record, ["python3", "-c", _HOLD_BACK, address, port], timeout=120)


def _restart_target(node: Attachd) -> Callable[[], None]:
    def act() -> None:
        lab, settings = node.lab, node.lab.settings()
        process = lab.processes.find(target.PROCESS)
        expect(process is not None, "the target does not run")
        assert process is not None
        process.stop(at_once=True)
        tgt = target.install()
        target.start(lab, settings, tgt, cinder.volumes_dir(lab))
        run([lab.target_dir / "bin/tgt-admin", "--execute"], timeout=60, env=target.environment(lab, tgt))
    return act


def test_no_acknowledged_write_is_lost_however_paths_and_sessions_go_and_come_back(node: Attachd) -> None:
    seed = 20261122
    chance = random.Random(seed)
    end = time.monotonic() + size(0, 30 * 60)
    rounds = size(6, 10_000)
    done: dict[str, int] = {}
    slowest = 0.0
    with _queueing(node, _QUEUED), volume(node) as v, daemon(node) as d:
        d.request("db", v, mountPath=MOUNT, multipath="Required")
        _whole(node, d)
        with writer(node, f"{MOUNT}/blocks") as w:
            for number in range(rounds):
                trials: dict[str, Callable[[], None]] = {
                    "one path dropped": _cut(node, [chance.choice([1, 2])], "drop", chance.uniform(8, 15)),
                    "a session logged out": _log_out(node, chance),
                    "both paths dropped": _cut(node, [1, 2], "drop", chance.uniform(8, 15)),
                    "a disk deleted": _delete_disk(node, chance),
                    "a portal's network taken down": _cut(node, [2], "link", chance.uniform(8, 15)),
                    "the target restarted": _restart_target(node),
                }
                # Each once, then by chance.
                name = list(trials)[number] if number < len(trials) else chance.choice(list(trials))
                before = w.acknowledged()
                took = _calm(node, d, trials[name])
                wait_until(lambda: w.acknowledged() > before, timeout=_BACK, what=f"the writer to go on after: {name}")
                slowest = max(slowest, took)
                done[name] = done.get(name, 0) + 1
                print(f"     {name}: whole again {took:.1f} s later, {w.acknowledged()} blocks", flush=True)
                if number >= len(trials) and time.monotonic() > end:
                    break
            expect(w.errors() == [], f"the writer got the errors {w.errors()} within the queueing time")
            w.stop()
            pause = w.longest_pause()
            # Not what is remembered here: what the storage has.
            _detached(node, d, v)
            d.request("db", v, mountPath=MOUNT, multipath="Required")
            _whole(node, d)
            found = _verified(w, at_least=20)
        _detached(node, d, v)
    print(f"     seed {seed}: {sum(done.values())} trials {done}; {found.bytes} bytes written with fsync and verified, none lost; "
          f"longest wait of a write {pause:.1f} s, slowest return {slowest:.1f} s")


def test_a_session_that_iscsid_can_not_set_up_again_comes_back_by_itself(node: Attachd) -> None:
    with volume(node) as v, daemon(node, ATTACHD_HEAL="off") as d:
        d.request("db", v, mountPath=MOUNT, multipath="Required")
        _whole(node, d)
        before, calls = node.session_ids(), d.cinder_calls()
        _hold_back(node, 2)
        d.wait_for("db", "Degraded", ready=True)
        # iscsid tries every two or three seconds, and its portal answers.
        time.sleep(25)
        expect(d.status("db") is not None and ready_condition(d.status("db"))["reason"] == "Degraded", f"without healing: {d.status('db')}")
        d.end("TERM")
        d.start(ATTACHD_HEAL="on")
        start = time.monotonic()
        node.wait_for_paths(active=2, failed=0, timeout=120)
        took = time.monotonic() - start
        _attached(d)
        expect("the kernel gave it back" in d.log(), "it came back without attachd")
        expect(node.session_ids() == before, f"the sessions were {before}, and are {node.session_ids()}")
        print(f"     held back: whole again {took:.1f} s after a start of a daemon that heals")
        _detached(node, d, v)


def test_beyond_the_queueing_time_the_writer_gets_an_error_and_an_ext4_that_stopped_is_told(node: Attachd) -> None:
    _beyond_the_queueing_time(node, "ext4")


@takes_long
def test_beyond_the_queueing_time_the_writer_gets_an_error_and_an_xfs_that_shut_down_is_told(node: Attachd) -> None:
    _beyond_the_queueing_time(node, "xfs")


def _beyond_the_queueing_time(node: Attachd, filesystem: str) -> None:
    spec = {"mountPath": MOUNT, "multipath": "Required", "filesystem": {"type": filesystem}}
    with _queueing(node, 3), volume(node) as v, daemon(node) as d:
        d.request("db", v, **spec)
        _whole(node, d)
        with writer(node, f"{MOUNT}/blocks") as w:
            with path_cut(node, 1, 2):
                d.wait_for("db", "NoPath", ready=False)
                wait_until(lambda: w.errors() != [], timeout=_BACK, what="the writer to get an error", interval=0.5)
            # As the kernel shows it: see docs/adr/0012-healing.md.
            wait_until(lambda: ready_condition(d.status("db")).get("reason") in ("ReadOnlyFilesystem", "FilesystemErrors"), timeout=_BACK,
                       what="the file system that stopped to be told", interval=1)
            told = ready_condition(d.status("db"))
            expect(told["status"] == "False" and MOUNT in told["message"], f"{told}")
            w.stop()
            # As the message says.
            _detached(node, d, v)
            d.request("db", v, **spec)
            _whole(node, d)
            found = _verified(w, at_least=1)
            node.shell(f"touch {MOUNT}/can-be-written; sync")
            print(f"     {filesystem}: told {told['reason']}; errors {sorted(set(w.errors()))}, longest wait of a write {w.longest_pause():.1f} s, {found.bytes} bytes verified, none lost")
        _detached(node, d, v)


@takes_long
def test_a_portal_that_was_dead_at_the_attach_is_used_when_it_answers_and_without_healing_nothing_is_touched(node: Attachd) -> None:
    with volume(node) as v, daemon(node, ATTACHD_HEAL="off") as d:
        with path_cut(node, 2):
            # Without a file system, that may write something of its own at any time, and would fail.
            d.request("db", v, volumeMode="Block")
            status = d.wait_for("db", "Degraded", ready=True)
            expect("10.0.3.2" in ready_condition(status)["message"], f"{ready_condition(status)}")
        sessions = node.session_ids()
        expect(len(sessions) == 1, f"the sessions are {sessions}")
        calls = d.cinder_calls()
        node.shell(f"iscsiadm -m session -r {sessions[0].removeprefix('session')} -u", timeout=60)
        # Without a disk the map fails what is asked of it.
        status = d.wait_for("db", "NoPath", ready=False)
        time.sleep(20)
        expect(node.session_ids() == [], f"without healing: {node.session_ids()}")
        expect(d.cinder_calls() == calls, "without healing Cinder was asked")
        d.end("TERM")
        d.start(ATTACHD_HEAL="on")
        _whole(node, d)
        # And with it, what goes comes back.
        node.shell(f"iscsiadm -m session -r {node.session_ids()[0].removeprefix('session')} -u", timeout=60)
        wait_until(lambda: len(node.session_ids()) == 2, timeout=_BACK, what="the session to come back", interval=0.5)
        _whole(node, d)
        _detached(node, d, v)


@takes_long
def test_an_attached_volume_that_nothing_happens_to_costs_nothing(node: Attachd) -> None:
    with volume(node) as v, daemon(node) as d:
        d.request("db", v, mountPath=MOUNT)
        _whole(node, d)
        time.sleep(15)
        calls, programs = d.cinder_calls(), d.log().count('"message":"ran"')
        time.sleep(size(30, 300))
        expect(d.cinder_calls() == calls, f"{d.cinder_calls() - calls} calls to Cinder")
        ran = d.log().count('"message":"ran"') - programs
        expect(ran == 0, f"{ran} programs were run")
        _detached(node, d, v)


def test_a_detach_of_a_map_that_queues_for_ever_without_a_path_ends_with_a_result(node: Attachd) -> None:
    with _queueing(node, "queue"), volume(node) as v, daemon(node) as d:
        d.request("db", v, mountPath=MOUNT, multipath="Required")
        _whole(node, d)
        # Nothing is written back by itself meanwhile.
        node.shell("sync; echo 360000 > /proc/sys/vm/dirty_expire_centisecs; echo 0 > /proc/sys/vm/dirty_writeback_centisecs")
        try:
            node.shell(f"head -c 300000 /dev/urandom > {MOUNT}/unwritten")
            with path_cut(node, 1, 2):
                _ends_with_a_result(d)
        finally:
            node.shell("echo 3000 > /proc/sys/vm/dirty_expire_centisecs; echo 500 > /proc/sys/vm/dirty_writeback_centisecs")
        d.start()
        d.wait_gone("db", timeout=_BACK)
        nothing_left(node, v)


def _ends_with_a_result(d: Daemon) -> None:
    d.wait_for("db", "NoPath", ready=False, timeout=_BACK)
    start = time.monotonic()
    d.remove("db.yaml")

    def ended() -> bool:
        return "could not detach" in d.log() or d.status("db") is None

    wait_until(ended, timeout=300, what="the detach to end, or to say what it is stuck on", interval=1)
    took = time.monotonic() - start
    said = ready_condition(d.status("db"))
    print(f"     a detach without a path: a result after {took:.1f} s: {said.get('reason', 'detached')}: {said.get('message', '')[:160]}")
    # The daemon itself hangs on nothing.
    d.end("TERM", timeout=180)
