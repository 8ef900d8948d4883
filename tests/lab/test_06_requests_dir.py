"""The daemon and its directory of requests."""

from __future__ import annotations

from contextlib import ExitStack

from lablib.cases import expect
from lablib.commands import wait_until
from lablib.daemon import DIRECTORY, Daemon, daemon, ready_condition
from lablib.node import Attachd
from lablib.steps import attachments_of, cinder_paused, in_use_once, nothing_left, volume

_MOUNTS = "/var/lib/attachd/mounts"


def _mounted(node: Attachd, path: str) -> bool:
    return node.execute(["mountpoint", "-q", path]).code == 0


def _same_inode(node: Attachd, file: str) -> str:
    """What changes when a file is written anew."""
    return node.shell(f"stat -c '%i %Y %Z' {DIRECTORY}/{file}")


def test_a_file_added_attaches_and_a_file_removed_detaches(node: Attachd) -> None:
    with volume(node) as v, daemon(node) as d:
        d.request("db", v)
        status = d.wait_for("db", "Attached", ready=True)
        expect(status["mountPath"] == f"{_MOUNTS}/db" and _mounted(node, f"{_MOUNTS}/db"), f"the status is {status}")
        expect(status["attachmentID"] == attachments_of(node, v)[0]["id"], f"the status is {status}")
        device = status["device"]
        expect(device["path"] == f"/dev/mapper/{device['wwid']}" and device["sizeBytes"] == 1 << 30, f"the device is {device}")
        expect([(path["state"], path["lun"]) for path in device["paths"]] == [("active", 1)] * 2, f"the paths are {device['paths']}")
        conditions = {condition["type"]: condition["status"] for condition in status["conditions"]}
        expect(conditions == {"Reserved": "True", "Connected": "True", "Mounted": "True", "Ready": "True"}, f"{conditions}")
        in_use_once(node, v)
        # The command line sees it, and leaves it to the daemon.
        result = node.run("detach", v)
        expect(result.code == 3 and "the request \"db\" in the requests directory" in result.stderr, f"detach: {result}")
        d.remove("db.yaml")
        d.wait_gone("db")
        nothing_left(node, v)
        expect(d.files() == [], f"the directory holds {d.files()}")


def test_a_broken_file_is_told_so_and_does_not_stop_the_others(node: Attachd) -> None:
    with volume(node) as v, daemon(node) as d:
        d.write("aaa.yaml", "{this is: [no yaml")
        d.write("bbb.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: bbb}\nspec: {nodeName: x, volumeID: y}")
        d.request("ccc", v, mountpath="/mnt/typo")
        d.request("ddd", "not-a-uuid")
        d.request("eee", v, mountPath="relative")
        d.request("db", v, volumeMode="Block")
        attached = d.wait_for("db", "Attached", ready=True)
        for stem, words in [("aaa", "is no VolumeAttachRequest"), ("bbb", "expected attachd.dev/v1alpha1"), ("ccc", "mountpath"),
                            ("ddd", "spec.volumeID"), ("eee", "absolute path")]:
            message = ready_condition(d.wait_for(stem, "InvalidRequest", ready=False))["message"]
            expect(words in message, f"{stem} says {message}")

        # A slip of the pen in a request that is served detaches nothing.
        inode = node.session_ids()
        d.write("db.yaml", "metadata: {name: [")
        d.wait_for("db", "InvalidRequest", ready=False)
        expect(node.session_ids() == inode, "the sessions are others")
        in_use_once(node, v)
        d.request("db", v, volumeMode="Block")
        again = d.wait_for("db", "Attached", ready=True)
        expect(again["attachmentID"] == attached["attachmentID"], f"the status is {again}")

        # What was refused and is taken away leaves no status.
        for stem in ("aaa", "bbb", "ccc", "ddd", "eee", "db"):
            d.remove(f"{stem}.yaml")
        for stem in ("aaa", "bbb", "ccc", "ddd", "eee", "db"):
            d.wait_gone(stem)
        nothing_left(node, v)


def test_what_is_immutable_is_refused_and_stays_attached(node: Attachd) -> None:
    with volume(node, "tgt-single") as v, volume(node, "tgt-single") as other, daemon(node) as d:
        d.request("db", v)
        first = d.wait_for("db", "Attached", ready=True)
        d.request("db", v, mountPath="/mnt/elsewhere")
        changed = d.wait_for("db", "AttachedDifferently", ready=False)
        expect(f"mounted on {_MOUNTS}/db now, /mnt/elsewhere asked" in ready_condition(changed)["message"], f"{changed}")
        expect(_mounted(node, f"{_MOUNTS}/db") and not _mounted(node, "/mnt/elsewhere"), "it is mounted elsewhere")
        # Another volume under the same name: the first stays, the second is not attached beside it.
        d.request("db", other)
        changed = d.wait_for("db", "AttachedDifferently", ready=False)
        expect(v in ready_condition(changed)["message"], f"the message is {ready_condition(changed)}")
        expect(attachments_of(node, other) == [], "the other volume was reserved")
        in_use_once(node, v)
        d.request("db", v, nodeName=node.name)
        again = d.wait_for("db", "Attached", ready=True)
        expect(again["attachmentID"] == first["attachmentID"], f"the status is {again}")
        d.remove("db.yaml")
        d.wait_gone("db")
        nothing_left(node, v)


def test_a_request_for_another_node_and_a_second_one_of_a_name_are_not_served(node: Attachd) -> None:
    with volume(node, "tgt-single") as v, volume(node, "tgt-single") as other, daemon(node) as d:
        d.request("theirs", v, node_name="another-node")
        status = d.wait_for("theirs", "OtherNode", ready=False)
        expect("another-node" in ready_condition(status)["message"], f"the status is {status}")
        expect(attachments_of(node, v) == [], "it was reserved")
        d.remove("theirs.yaml")
        d.wait_gone("theirs")

        d.request("db", v, file="first.yaml")
        d.wait_for("first", "Attached", ready=True)
        d.request("db", other, file="second.yaml")
        d.wait_for("second", "DuplicateName", ready=False)
        expect(attachments_of(node, other) == [], "the second was reserved")
        d.remove("second.yaml")
        d.wait_gone("second")
        in_use_once(node, v)

        # Renamed, it is the same request still.
        node.shell(f"mv {DIRECTORY}/first.yaml {DIRECTORY}/renamed.yaml")
        status = d.wait_for("renamed", "Attached", ready=True)
        d.wait_gone("first")
        in_use_once(node, v)
        d.remove("renamed.yaml")
        d.wait_gone("renamed")
        nothing_left(node, v)


def test_the_daemon_may_end_and_start_again_at_any_time(node: Attachd) -> None:
    with volume(node) as v, volume(node, "tgt-single") as gone, daemon(node) as d:
        d.request("db", v)
        d.request("gone", gone, file="another-file-name.yaml")
        d.wait_for("db", "Attached", ready=True)
        d.wait_for("another-file-name", "Attached", ready=True)
        sessions, written = node.session_ids(), _same_inode(node, "db.status.yaml")

        d.end("TERM")
        expect(node.session_ids() == sessions and _mounted(node, f"{_MOUNTS}/db"), "something was detached at the end")
        d.start()
        node.shell(f"echo kept > {_MOUNTS}/db/file")
        d.end("KILL")
        d.remove("another-file-name.yaml")
        calls = d.cinder_calls()
        d.start()
        # The one whose file went meanwhile is detached.
        d.wait_gone("another-file-name")
        wait_until(lambda: attachments_of(node, gone) == [], timeout=120, what="the volume to be detached")
        expect(not _mounted(node, f"{_MOUNTS}/gone"), "it is still mounted")
        # And the other one is seen to be as it should: not written anew, and at the cost of one call, after the detach's two.
        wait_until(lambda: d.cinder_calls() >= calls + 3, timeout=60, what="the daemon to look at both")
        expect(d.cinder_calls() == calls + 3, f"{d.cinder_calls() - calls} calls to Cinder for two requests")
        expect(_same_inode(node, "db.status.yaml") == written, "the status was written anew without a change")
        expect(node.shell(f"cat {_MOUNTS}/db/file") == "kept\n", "the file is gone")
        d.remove("db.yaml")
        d.wait_gone("db")
        nothing_left(node, v)
        nothing_left(node, gone)


def test_the_daemon_ends_in_time_while_it_works(node: Attachd) -> None:
    with volume(node, "tgt-single") as v, daemon(node, ATTACHD_CINDER_TIMEOUT="10") as d:
        with cinder_paused(node):
            d.request("db", v)
            wait_until(lambda: node.execute(["ls", f"/var/lib/attachd/locks/volume-{v}"]).code == 0, timeout=60,
                       what="the daemon to begin", interval=0.3)
            d.end("TERM", timeout=10 * 2 + 30)
        expect(attachments_of(node, v) == [], f"attachments: {attachments_of(node, v)}")
        d.start()
        d.wait_for("db", "Attached", ready=True)
        d.remove("db.yaml")
        d.wait_gone("db")
        nothing_left(node, v)


def test_a_request_that_can_not_be_served_yet_is_served_when_it_can(node: Attachd) -> None:
    with volume(node, "tgt-single") as v, daemon(node) as d:
        node.cinder.reset_status(v, "maintenance")
        d.request("db", v)
        d.wait_for("db", "VolumeNotAvailable", ready=False)
        node.cinder.reset_status(v, "available")
        d.wait_for("db", "Attached", ready=True)
        d.remove("db.yaml")
        d.wait_gone("db")
        nothing_left(node, v)


def test_many_requests_at_once_and_the_memory_they_take(node: Attachd) -> None:
    names = ["one", "two", "three"]
    with ExitStack() as stack:
        volumes = {name: stack.enter_context(volume(node, "tgt" if name == "one" else "tgt-single")) for name in names}
        d: Daemon = stack.enter_context(daemon(node))
        for name, v in volumes.items():
            d.request(name, v)
        for name in names:
            d.wait_for(name, "Attached", ready=True)
        own = d.own_memory()
        print(f"     with three attachments the daemon has {d.memory() / 1024:.1f} MiB resident, {own / 1024:.1f} MiB of it its own")
        calls = d.cinder_calls()
        expect(calls == 4 * len(names), f"{calls} calls to Cinder")
        # Of its file between 7 and 12 MiB are resident, as the kernel likes.
        if node.is_release:
            expect(own < 12 << 10, f"the daemon's own memory is {own} KiB")
        for name in names:
            d.remove(f"{name}.yaml")
        for name in names:
            d.wait_gone(name)
        for v in volumes.values():
            nothing_left(node, v)
