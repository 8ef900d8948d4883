"""Looking at a node: the whole chain from any handle, what is left without a use, and the paths as they live."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lablib.cases import expect, size
from lablib.commands import wait_until
from lablib.daemon import daemon
from lablib.node import BINARY, Attachd
from lablib.steps import (attach, attachments_of, cinder_stopped, detach, free, nothing_left, path_cut, reserve_elsewhere, volume)

_UNFIT = 8
_WIDTH = 80
_END = "=== code "


def _screen(title: str, text: str) -> None:
    """Show what a person sees."""
    print(f"     $ {title}")
    for line in text.rstrip("\n").splitlines():
        print(f"     | {line}")


def _fits(text: str) -> None:
    """No line is wider than a terminal, but for a word that can't be broken."""
    for line in text.splitlines():
        words = line.strip(" │├└─").split("  ")[-1].split()
        expect(len(line) <= _WIDTH or len(words) == 1, f"{len(line)} columns: {line}")


def _inspect_all(node: Attachd, handles: list[str]) -> list[tuple[int, Any]]:
    """Inspect by each handle, in one go; give each exit code and what was printed."""
    inspect = shlex.join(node.command("inspect", "-o", "json"))
    script = f"for handle in {shlex.join(handles)}; do {inspect} \"$handle\" 2>/dev/null; echo '{_END}'$?; done"
    done = node.execute(["bash", "-c", script], timeout=60 + 10 * len(handles))
    results: list[tuple[int, Any]] = []
    text: list[str] = []
    for line in done.stdout.splitlines():
        if line.startswith(_END):
            results.append((int(line.removeprefix(_END)), json.loads("\n".join(text))))
            text = []
        else:
            text.append(line)
    expect(len(results) == len(handles), f"{len(results)} of {len(handles)} ended: {done}")
    return results


def _disks_of(attached: dict[str, Any]) -> list[str]:
    return [path["device"] for path in attached["paths"]]


@contextmanager
def _disk_of_the_administrator(node: Attachd, volume_id: str) -> Iterator[dict[str, Any]]:
    """A volume that an administrator logged in to by hand: its disk and its target."""
    attachment = reserve_elsewhere(node, volume_id, "by-hand", node.iqn)
    info = attachment["connection_info"]
    base = f"iscsiadm -m node -T {info['target_iqn']} -p {info['target_portals'][0]}"
    disk = node.shell(f"""
{base} -o new >/dev/null
for setting in node.session.auth.authmethod=CHAP node.session.auth.username={info['auth_username']} \
    node.session.auth.password={info['auth_password']} node.session.scan=auto; do
  {base} -o update -n "${{setting%%=*}}" -v "${{setting#*=}}"
done
before=$(ls /sys/block)
{base} --login >/dev/null
for _ in $(seq 300); do
  for disk in /sys/block/sd*; do
    grep -qx "${{disk##*/}}" <<< "$before" || {{ [ -e "$disk" ] && echo "${{disk##*/}}" && exit 0; }}
  done
  sleep 0.1
done
exit 1""").strip()
    yield {"disk": disk, "iqn": info["target_iqn"]}
    node.shell(f"udevadm settle; {base} --logout >/dev/null; {base} -o delete")
    free(node, attachment["id"], volume_id)


_BREAKAGES = ["a path cut", "a member gone", "mounted elsewhere", "deleted in Cinder", "logged out", "a request's, whole"]


def _mount_of(number: int) -> str:
    return f"/mnt/t{number}"


def test_inspect_finds_the_chain_from_every_handle_and_marks_what_disagrees(node: Attachd) -> None:
    count = size(6, 20)
    with ExitStack() as stack:
        volumes = [stack.enter_context(volume(node)) for _ in range(count)]
        theirs = stack.enter_context(volume(node))
        d = stack.enter_context(daemon(node, ATTACHD_HEAL="off"))
        d.request("storage-db", volumes[5], mountPath=_mount_of(5))
        attached = {number: attach(node, v, "--mount", _mount_of(number), "--multipath", "required")
                    for number, v in enumerate(volumes) if number != 5}
        d.wait_for("storage-db", "Attached", ready=True)
        by_hand = stack.enter_context(_disk_of_the_administrator(node, theirs))

        # Whole: exit code 0, and who holds it open is named.
        node.shell(f"cd {_mount_of(0)}; setsid sleep 3600 >/dev/null 2>&1 & echo $! > /run/holder")
        pid = node.shell("cat /run/holder").strip()
        for what in (volumes[0], "storage-db"):
            result = node.run("inspect", what)
            expect(result.code == 0 and "all fits together" in result.stdout, f"inspect {what}: {result}")
        holds = node.run("inspect", volumes[0]).stdout
        expect(f"process {pid} (sleep)" in holds, f"the holder is not named:\n{holds}")

        # Each broken in its own way.
        second = _disks_of(attached[0])[1]
        node.shell(f"echo offline > /sys/block/{second}/device/state")
        member = _disks_of(attached[1])[1]
        node.shell(f"multipathd del path {member} >/dev/null; echo 1 > /sys/block/{member}/device/delete")
        node.shell(f"mkdir -p /mnt/elsewhere; mount {attached[2]['device']} /mnt/elsewhere")
        node.cinder.request("DELETE", f"/attachments/{attached[3]['attachmentID']}").json()
        away = next(path for path in attached[4]["paths"] if "10.0.3.2" in path["portal"])
        node.shell(f"iscsiadm -m node -T {away['targetIQN']} -p {away['portal']} --logout >/dev/null")
        wanted = {0: f"{second} fails its I/O", 1: "no disk for LUN", 2: "also mounted on /mnt/elsewhere", 3: "Cinder has no such attachment",
                  4: f"no session to {away['targetIQN']} at {away['portal']}"}

        asked: list[str] = []
        meant: list[int] = []
        for number, result in attached.items():
            dm = node.shell(f"readlink -f {result['device']}").strip()
            handles = [volumes[number], result["attachmentID"], f"/dev/{_disks_of(result)[0]}", dm, dm.removeprefix("/dev/"), result["device"],
                       result["wwid"], result["paths"][0]["targetIQN"], _mount_of(number), f"{_mount_of(number)}/lost+found"]
            # The short run asks for one volume by all handles, and for each other one by some of them in turn.
            turned = handles[3 * number % len(handles):] + handles[:3 * number % len(handles)]
            chosen = turned[:len(handles) if number == 0 else size(3, len(handles) if number < len(wanted) else 2)]
            asked += chosen
            meant += [number] * len(chosen)
        for handle in ("storage-db", "attachd-system/storage-db", _mount_of(5)):
            asked.append(handle)
            meant.append(5)
        wrong = []
        for handle, number, (code, found) in zip(asked, meant, _inspect_all(node, asked)):
            ids = [chain["volume"] for chain in found["attachments"]]
            said = [what for chain in found["attachments"] for what in chain["disagreements"]]
            fits = code == (_UNFIT if number in wanted else 0)
            marked = any(wanted[number] in what for what in said) if number in wanted else said == []
            others = [text for other, text in wanted.items() if other != number and any(text in what for what in said)]
            if ids != [volumes[number]] or not fits or not marked or others:
                wrong.append(f"{handle}: exit code {code}, {ids}, {said}")
        expect(wrong == [], "inspect was wrong: " + "; ".join(wrong))
        print(f"     {count} attachments, {len(wanted)} of them broken: {len(asked)} handles led to their chain")

        for number in wanted:
            shown = node.run("inspect", volumes[number]).stdout
            _fits(shown)
            if number in (0, 4):
                _screen(f"attachd inspect {volumes[number]}   ({_BREAKAGES[number]})", shown)

        # What isn't attachd's is said to be what it is.
        for handle, words in ((f"/dev/{by_hand['disk']}", "is a disk of an iSCSI session"), (by_hand["iqn"], "target that this node has a session to"),
                              ("/", "is no disk of an iSCSI session")):
            result = node.run("inspect", handle)
            text = " ".join(result.stdout.replace("│", " ").split())
            expect(words in text and "holds no attachment" in text and result.code == 0, f"inspect {handle}: {result}")
            _fits(result.stdout)
        _screen(f"attachd inspect /dev/{by_hand['disk']}", node.run("inspect", f"/dev/{by_hand['disk']}").stdout)
        nothing = node.run("inspect", "no-such-thing")
        expect(nothing.code == _UNFIT and "holds no attachment" in nothing.stdout, f"inspect of nothing: {nothing}")
        whole = node.run("inspect")
        expect(whole.stdout.count("volume ") == count and by_hand["iqn"] in whole.stdout, f"inspect:\n{whole.stdout}")
        print(f"     inspect of all {count}: {whole.seconds:.1f} s")

        node.shell(f"kill {pid}; umount /mnt/elsewhere; rmdir /mnt/elsewhere; echo running > /sys/block/{second}/device/state")
        d.remove("storage-db.yaml")
        d.wait_gone("storage-db")
        for number in attached:
            result = node.run("detach", volumes[number], timeout=400)
            expect(result.code == 0, f"detach of {number}: {result}")


def _orphans(node: Attachd, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = node.run("orphans", *arguments, "-o", "json")
    expect(result.stdout.strip() != "", f"orphans {arguments}: {result}")
    return result.code, result.json()


def _kinds(found: dict[str, Any], about: str) -> list[tuple[str, bool]]:
    """What orphans says of a volume or target: each kind, and whether cleaning takes it."""
    return sorted((one["kind"], "byCleaning" in one["freed"]) for one in found["orphans"] if about in one["what"] + " " + one.get("of", ""))


def _forget(node: Attachd, volume_id: str) -> None:
    """The ledger entry is lost."""
    node.shell(f"rm /var/lib/attachd/volumes/{volume_id}.json")


def _strip(node: Attachd, attached: dict[str, Any], *, log_out: bool) -> None:
    """Take the map and the disks away by hand, and the sessions too."""
    disks = " ".join(_disks_of(attached))
    node.shell(f"for _ in $(seq 100); do multipath -f {attached['wwid']} && break; sleep 0.2; done; "
               f"for disk in {disks}; do echo 1 > /sys/block/$disk/device/delete; done")
    if log_out:
        node.shell(f"iscsiadm -m node -T {attached['paths'][0]['targetIQN']} -u >/dev/null")


def _let_go(node: Attachd) -> None:
    """End the process that keeps a device open."""
    node.shell("pid=$(cat /run/holder); kill $pid; for _ in $(seq 100); do kill -0 $pid 2>/dev/null || exit 0; sleep 0.1; done; exit 1")


def _delete_in_cinder(node: Attachd, attached: dict[str, Any], volume_id: str) -> None:
    free(node, attached["attachmentID"], volume_id)


def test_orphans_are_named_one_by_one_and_cleaning_takes_exactly_the_safe_ones(node: Attachd) -> None:
    names = ("control", "killed", "session", "records", "aside", "rebooted", "deleted")
    with ExitStack() as stack:
        v = {name: stack.enter_context(volume(node)) for name in names}
        code, found = _orphans(node)
        expect(code == 0 and found == {"orphans": [], "unknown": []}, f"an empty node: {code} {found}")

        control = attach(node, v["control"], "--mount", "/mnt/control", "--multipath", "required")
        code, found = _orphans(node)
        expect(code == 0 and found["orphans"] == [], f"a sound volume: {code} {found}")

        # An attach that was killed, and one that is at work.
        killed = node.signalled(signal.SIGKILL, "attach", v["killed"], "--block", lines=3)
        expect(killed.code < 0, f"it was not killed: {killed}")
        code, found = _orphans(node)
        expect(_kinds(found, "volume " + v["killed"]) == [("ledger-entry", True)], f"killed: {found}")
        held = node.execute(["bash", "-c", f"flock -x /var/lib/attachd/locks/volume-{v['killed']} {shlex.join(node.command('orphans', '-o', 'json'))}"])
        expect(_kinds(held.json(), "volume " + v["killed"]) == [], f"while another works on it: {held.stdout}")

        # A session of attachd's without a ledger entry: first with its disks, then without.
        lost = attach(node, v["session"], "--block", "--multipath", "required")
        iqn = lost["paths"][0]["targetIQN"]
        _forget(node, v["session"])
        code, found = _orphans(node)
        expect(_kinds(found, iqn) == [("disk", False)] * 2 + [("session", False)] * 2, f"a session with disks: {found}")
        code, found = _orphans(node, "--clean")
        expect([one["outcome"] for one in found["orphans"] if v["killed"] in one["what"] + one.get("of", "")] == ["cleaned"], f"cleaning: {found}")
        nothing_left_of = attachments_of(node, v["killed"])
        expect(nothing_left_of == [], f"cleaned, and Cinder still has {nothing_left_of}")
        expect(all(node.execute(["test", "-e", f"/sys/block/{disk}"]).code == 0 for disk in _disks_of(lost)), "disks without a record were taken")
        # A process keeps the map: it stays without a disk.
        node.shell(f"setsid sleep 3600 3< {lost['device']} >/dev/null 2>&1 & echo $! > /run/holder; "
                   f"for disk in {' '.join(_disks_of(lost))}; do multipathd del path $disk >/dev/null; echo 1 > /sys/block/$disk/device/delete; done")
        code, found = _orphans(node)
        expect(_kinds(found, iqn) == [("session", True)] * 2, f"an empty session: {found}")
        expect(_kinds(found, "volume " + v["session"]) == [("attachment", False)], f"its attachment: {found}")

        # Node records without a session, and one of others that was set aside.
        records = attach(node, v["records"], "--block", "--multipath", "required")
        _forget(node, v["records"])
        _strip(node, records, log_out=True)
        reserved = reserve_elsewhere(node, v["aside"], "by-hand", node.iqn, complete=False)
        aside_iqn, portal = reserved["connection_info"]["target_iqn"], reserved["connection_info"]["target_portals"][0]
        node.shell(f"iscsiadm -m node -T {aside_iqn} -p {portal} -o new >/dev/null")
        theirs = node.shell(f"find /etc/iscsi/nodes/{aside_iqn} -type f -exec sha256sum {{}} +")
        free(node, reserved["id"], v["aside"])
        aside = attach(node, v["aside"], "--block", "--multipath", "required")
        _forget(node, v["aside"])
        _strip(node, aside, log_out=True)
        code, found = _orphans(node)
        expect(_kinds(found, records["paths"][0]["targetIQN"]) == [("node-record", True)] * 2, f"node records: {found}")
        expect(_kinds(found, aside_iqn) == [("node-record", True), ("set-aside-record", True)], f"set-aside: {found}")

        # Complete, and without a device; the same, and Cinder has it no more; a map of nobody's.
        rebooted = attach(node, v["rebooted"], "--block", "--multipath", "required")
        _strip(node, rebooted, log_out=True)
        deleted = attach(node, v["deleted"], "--block", "--multipath", "required")
        _strip(node, deleted, log_out=True)
        _delete_in_cinder(node, deleted, v["deleted"])
        code, found = _orphans(node)
        expect(_kinds(found, "volume " + v["rebooted"]) == [("attachment", False)], f"without a device: {found}")
        expect(_kinds(found, "volume " + v["deleted"]) == [("ledger-entry", True)], f"gone: {found}")
        expect(_kinds(found, lost["wwid"]) == [("map", False)], f"a ghost map: {found}")
        expect(_kinds(found, "volume " + v["control"]) == [] and _kinds(found, control["paths"][0]["targetIQN"]) == [], f"the sound one: {found}")
        expect(code == _UNFIT and found["unknown"] == [], f"orphans: {code} {found}")
        result = node.run("orphans")
        _fits(result.stdout)
        _screen("attachd orphans", result.stdout)

        with cinder_stopped(node):
            code, away = _orphans(node, "--cinder-timeout", "2")
        expect(code == _UNFIT and "what Cinder has of this node" in away["unknown"][0], f"Cinder away: {code} {away}")
        for name in ("rebooted", "deleted", "session"):
            expect(_kinds(away, "volume " + v[name]) == [], f"an orphan without Cinder's word: {away}")

        cleaned = node.run("orphans", "--clean")
        _fits(cleaned.stdout)
        _screen("attachd orphans --clean   (stderr)", cleaned.stderr)
        expect(cleaned.code == _UNFIT and cleaned.stdout.count("now   gone") == 7, f"clean: exit code {cleaned.code}\n{cleaned.stdout}\n{cleaned.stderr}")
        code, found = _orphans(node)
        left = sorted((one["kind"], "byCleaning" in one["freed"]) for one in found["orphans"])
        # The attachments of the three lost ledger entries, the one without a device, and the ghost.
        expect(left == [("attachment", False)] * 4 + [("map", False)], f"left after cleaning: {found}")
        expect(node.shell(f"find /etc/iscsi/nodes/{aside_iqn} -type f -exec sha256sum {{}} +") == theirs, "the administrator's record is not as it was")
        ok = node.run("inspect", v["control"])
        expect(ok.code == 0, f"the sound one after cleaning: {ok.stdout}")
        node.shell("echo x > /mnt/control/file; sync")

        # What is told to be done by hand frees the rest.
        _let_go(node)
        node.shell(f"for _ in $(seq 100); do multipath -f {lost['wwid']} && break; sleep 0.2; done; iscsiadm -m node -T {aside_iqn} -p {portal} -o delete")
        for one in (lost, records, aside):
            result = node.run("attachment", "delete", one["attachmentID"])
            expect(result.code == 0, f"attachment delete: {result}")
        detach_result = node.run("detach", v["rebooted"])
        expect(detach_result.code == 0, f"detach: {detach_result}")
        expect(node.run("detach", v["control"]).code == 0, "the detach of the sound one")
        code, found = _orphans(node)
        expect(code == 0 and found == {"orphans": [], "unknown": []}, f"in the end: {code} {found}")
        node.shell("for wwid in $(grep -v '^#' /etc/multipath/wwids | tr -d /); do multipath -w $wwid >/dev/null; done")
        for name in names:
            node.cinder.wait_for_volume(v[name], 60)


def test_paths_shows_a_cut_and_a_return_as_they_happen_and_ends_when_told(node: Attachd) -> None:
    with volume(node) as v:
        attached = attach(node, v, "--mount", "/mnt/t", "--multipath", "required")
        node.wait_for_paths(active=2, failed=0)
        shown = node.run("paths")
        _fits(shown.stdout)
        expect(shown.code == 0 and shown.stdout.count("running/active") == 2 and shown.stdout.count("logged in") == 2, f"paths: {shown}")
        listed = node.run("paths", v, "-o", "json").json()["paths"]
        expect(sorted(path["disk"] for path in listed) == sorted(_disks_of(attached)), f"paths: {listed}")
        expect(all(path["counters"]["requested"] > 0 and path["session"]["ageSeconds"] is not None for path in listed),
               f"paths: {listed}")

        watch = shlex.join(node.command("paths", "--watch", "-o", "json"))
        people = shlex.join(node.command("paths", "--watch"))
        node.shell(f"setsid {watch} > /run/watch.json 2>/run/watch.err < /dev/null & echo $! > /run/watch.pid\n"
                   f"setsid {people} > /run/watch.txt 2>/dev/null < /dev/null & echo $! > /run/watch2.pid")

        def events() -> list[dict[str, Any]]:
            return [json.loads(line) for line in node.shell("cat /run/watch.json").splitlines()]

        def told(kind: str, portal: str) -> bool:
            return any(event["event"] == kind and event["portal"].startswith(portal) for event in events())

        wait_until(lambda: len(events()) == 2, timeout=60, what="the first look")
        with path_cut(node, 2):
            node.shell("echo x > /mnt/t/file; sync", timeout=240)
            wait_until(lambda: told("cut", "10.0.3.2"), timeout=120, what="the cut to be told")
            node.wait_for_paths(active=1, failed=1)
        node.wait_for_paths(active=2, failed=0)
        wait_until(lambda: told("returned", "10.0.3.2"), timeout=120, what="the return to be told")
        expect(not told("cut", "10.0.2.2"), f"the other path was said to be cut: {events()}")
        pids = node.shell("cat /run/watch.pid /run/watch2.pid").split()
        # The exit code of a process that is not a child can't be had: what it says on its way out can.
        node.shell(f"kill -INT {' '.join(pids)}")
        wait_until(lambda: all(node.execute(["kill", "-0", pid]).code != 0 for pid in pids), timeout=20, what="the watches to end")
        expect(node.shell("cat /run/watch.err") == "", "a watch that was told to end complains")
        screen = node.shell("cat /run/watch.txt")
        _fits(screen)
        _screen("attachd paths --watch", screen)

        ended = node.execute(["bash", "-c", f"set -o pipefail; timeout 60 {people} | head -1"])
        expect(ended.code == 0 and v in ended.stdout, f"a pipe that closed: {ended}")
        interrupted = node.execute(["bash", "-c", f"timeout -s INT --preserve-status 5 {people}"])
        expect(interrupted.code == 0 and interrupted.stderr == "", f"interrupted: {interrupted}")
        print(f"     a watch ended {ended.seconds:.1f} s after its reader")
        node.shell("rm -f /run/watch.*  /run/watch2.pid /run/holder")
        detach(node, v)
