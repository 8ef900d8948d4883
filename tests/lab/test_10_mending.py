"""What others took away, and what a reboot leaves, is mended by asking again; a detach ends in any case."""

from __future__ import annotations

from lablib.cases import expect
from lablib.commands import wait_until
from lablib.node import Attachd
from lablib.steps import (MOUNT, active_paths, attach, attachments_of, cut_power, daemon_stopped, detach, failed, in_use_once, nothing_left, path_cut,
                          volume)


def test_after_a_power_cut_nothing_comes_by_itself_and_asking_again_brings_it_back(node: Attachd) -> None:
    with volume(node) as v:
        first = attach(node, v, "--mount", MOUNT)
        node.shell(f"echo kept > {MOUNT}/file; sync; echo lost > {MOUNT}/other")
        cut_power(node)
        expect(node.session_ids() == [], f"the node logged in by itself: {node.session_ids()}")
        tree = node.run("inspect").stdout
        expect("no session to" in tree and "something disagrees" in tree, f"inspect shows\n{tree}")
        again = attach(node, v, "--mount", MOUNT)
        expect(again["changed"] and again["attachmentID"] == first["attachmentID"], f"again: {again}")
        expect(again["device"] == first["device"] and active_paths(again) == 2, f"again: {again}")
        expect(node.shell(f"cat {MOUNT}/file") == "kept\n", "the file is gone")
        in_use_once(node, v)
        cut_power(node)
        detach(node, v)


def test_a_session_a_map_or_a_mount_that_somebody_took_away_comes_back(node: Attachd) -> None:
    with volume(node) as v:
        first = attach(node, v, "--mount", MOUNT, "--multipath", "required")
        node.shell(f"echo kept > {MOUNT}/file; sync")
        second = next(path for path in first["paths"] if "10.0.3.2" in path["portal"])
        node.shell(f"iscsiadm -m node -T {second['targetIQN']} -p {second['portal']} --logout > /dev/null")
        again = attach(node, v, "--mount", MOUNT, "--multipath", "required")
        expect(again["changed"] and active_paths(again) == 2, f"after a logout: {again}")
        node.wait_for_paths(active=2, failed=0)

        node.shell(f"umount {MOUNT}; for _ in $(seq 100); do multipath -f {first['wwid']} && exit 0; sleep 0.2; done; exit 1")
        again = attach(node, v, "--mount", MOUNT, "--multipath", "required")
        expect(again["changed"] and again["device"] == first["device"], f"without the map: {again}")
        expect(node.shell(f"cat {MOUNT}/file") == "kept\n", "the file is gone")

        node.shell(f"umount {MOUNT}; for _ in $(seq 100); do multipath -f {first['wwid']} && break; sleep 0.2; done; "
                   "iscsiadm -m node -u > /dev/null; iscsiadm -m node -o delete")
        again = attach(node, v, "--mount", MOUNT, "--multipath", "required")
        expect(again["changed"] and active_paths(again) == 2, f"without anything: {again}")
        expect(node.shell(f"cat {MOUNT}/file") == "kept\n", "the file is gone")
        in_use_once(node, v)
        detach(node, v)


def test_an_attachment_that_somebody_deleted_is_told_and_can_be_detached(node: Attachd) -> None:
    with volume(node) as v:
        attached = attach(node, v, "--mount", MOUNT)
        node.shell(f"touch {MOUNT}/file; sync")
        node.cinder.request("DELETE", f"/attachments/{attached['attachmentID']}").json()
        failed(node, 3, ["was deleted in Cinder by somebody else", "[AttachmentGone]"], "attach", v, "--mount", MOUNT)
        tree = node.run("inspect").stdout
        expect("Cinder has no such attachment" in tree, f"inspect shows\n{tree}")
        result = node.run("detach", v, timeout=400)
        expect(result.code == 0, f"detach: exit code {result.code}: {result.stderr}")
        nothing_left(node, v)


def test_a_detach_without_multipathd_or_iscsid_says_so_and_is_finished_later(node: Attachd) -> None:
    with volume(node) as v:
        for name in ("multipathd", "iscsid"):
            attach(node, v, "--mount", MOUNT, "--multipath", "required")
            with daemon_stopped(node, name):
                result = node.run("detach", v, timeout=400)
                print(f"     detach without {name}: exit code {result.code}, {result.seconds:.1f} s: "
                      + result.stderr.strip().splitlines()[-1])
                expect(result.code == 0 or (result.code == 5 and name in result.stderr), f"without {name}: {result}")
                if result.code != 0:
                    expect(len(attachments_of(node, v)) == 1, "the attachment was deleted before the node was clean")
            # iscsid connects its sessions anew, and does not log out meanwhile.
            wait_until(lambda: node.run("detach", v, timeout=400).code == 0, timeout=60, what="the detach to end well")
            nothing_left(node, v)


def test_mount_options_are_used_and_a_wrong_one_is_taken_back(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        attach(node, v, "--mount", MOUNT, "--mount-options", "noatime,nosuid,_netdev,commit=30")
        options = node.shell(f"findmnt -n -o OPTIONS {MOUNT}").strip().split(",")
        expect({"noatime", "nosuid", "commit=30"} <= set(options), f"the options are {options}")
        detach(node, v)
        failed(node, 5, ["an option that ext4 doesn't know", "[MountFailed]", "taking it back"],
               "attach", v, "--mount", MOUNT, "--mount-options", "nosuchoption")
        nothing_left(node, v)


def test_without_its_ledger_attachd_changes_nothing(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        failed(node, 7, ["attachd changes nothing without its ledger", "[LedgerUnavailable]"],
               "attach", v, "--mount", MOUNT, "--state-dir", "/proc/attachd")
        # And where it becomes full on the way, what was begun is taken back.
        node.shell("mkdir -p /run/full; mount -t tmpfs -o size=32k,nr_inodes=9,mode=700 none /run/full")
        try:
            result = node.run("attach", v, "--mount", MOUNT, "--state-dir", "/run/full")
            print(f"     with a full ledger: exit code {result.code}: " + result.stderr.strip().splitlines()[-1][:160])
            expect(result.code in (0, 6, 7), f"with a full ledger: {result}")
            node.shell("mount -o remount,size=1m,nr_inodes=100 /run/full")
            result = node.run("detach", v, "--state-dir", "/run/full")
            expect(result.code == 0, f"detach: {result}")
            nothing_left(node, v)
        finally:
            node.shell("umount /run/full; rmdir /run/full")


def test_a_detach_ends_sessions_that_no_iscsid_knows(node: Attachd) -> None:
    with volume(node) as first, volume(node) as second:
        for one in (first, second):
            attach(node, one)
        with path_cut(node, 1, 2):
            node.wait_for_paths(0, 4)
            # It takes the sessions over one by one, and waits for the first.
            with daemon_stopped(node, "iscsid"):
                pass
            waits, unknown = _in_the_order_of_their_takeover(node, first, second)
            result = node.run("detach", unknown, timeout=400)
            expect(result.code == 0 and "the kernel ends it" in result.stderr, f"detach: {result}")
            result = node.run("detach", waits, timeout=400)
            expect(result.code == 5 and "[SessionNotTakenOver]" in result.stderr, f"detach: {result}")
            print("     " + result.stderr.strip().splitlines()[-1])
            expect(len(attachments_of(node, waits)) == 1, "the attachment was deleted before the node was clean")
            # As the message says.
            with daemon_stopped(node, "iscsid"):
                detach(node, waits)
        for one in (first, second):
            nothing_left(node, one)
            attach(node, one)
            detach(node, one)


def test_a_forced_detach_leaves_a_session_that_iscsid_waits_for(node: Attachd) -> None:
    with volume(node) as v:
        attach(node, v)
        with path_cut(node, 1, 2):
            node.wait_for_paths(0, 2)
            with daemon_stopped(node, "iscsid"):
                pass
            result = node.run("detach", v, "--force", timeout=400)
            expect(result.code == 0 and "going on without it" in result.stderr, f"detach --force: {result}")
            expect(attachments_of(node, v) == [], "Cinder still has the attachment")
            left = node.leftovers(volume=v)
            expect(left and all(line.startswith(("session", "node record", "ledger entry /var/lib/attachd/targets")) for line in left), f"left: {left}")
            orphans = node.run("orphans")
            expect(orphans.code == 8 and "session" in orphans.stdout, f"orphans: {orphans}")
            with daemon_stopped(node, "iscsid"):
                result = node.run("orphans", "--clean")
                expect(result.code == 0, f"orphans --clean: {result}")
        nothing_left(node, v)


def _in_the_order_of_their_takeover(node: Attachd, *volumes: str) -> list[str]:
    """The volume of the session whose portal iscsid waits for, then those that it knows nothing of."""
    said = node.shell("for s in /sys/class/iscsi_session/session*; do iscsiadm -m session -r $s -P1; done")
    sessions = [text for text in said.split("Target: ") if "Internal iscsid Session State: REOPEN" in text]
    waits = [one for one in volumes if any(one in text for text in sessions)]
    expect(len(waits) == 1, f"iscsid waits for portals of {waits}: {said}")
    return waits + [one for one in volumes if one not in waits]
