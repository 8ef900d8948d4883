"""Asking twice, asking from two sides at once, and being killed or interrupted on the way."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor

from lablib.cases import expect
from lablib.node import Attachd
from lablib.proxy import wait_for
from lablib.steps import MOUNT, attach, attachments_of, detach, in_use_once, nothing_left, proxied, volume


def test_attaching_and_detaching_again_changes_nothing(node: Attachd) -> None:
    with volume(node) as v:
        first = attach(node, v, "--mount", MOUNT)
        node.shell(f"echo kept > {MOUNT}/file")
        sessions = node.session_ids()
        again = attach(node, v, "--mount", MOUNT)
        expect(first["changed"] and not again["changed"], f"first {first}, again {again}")
        differences = [key for key in first if key != "changed" and first[key] != again[key]]
        expect(differences == [], f"the results differ in {differences}")
        expect(node.session_ids() == sessions, "there are other sessions than before")
        in_use_once(node, v)

        other = node.run("attach", v, "--mount", "/mnt/elsewhere")
        expect(other.code == 3 and "mounted on /mnt/t now, /mnt/elsewhere asked" in other.stderr, f"elsewhere: {other}")
        expect(node.shell(f"cat {MOUNT}/file") == "kept\n", "the file is gone")

        detach(node, v)
        result = node.run("detach", v, "-o", "json")
        expect(result.code == 0 and result.json()["changed"] is False, f"the second detach: {result}")


def test_two_attaches_of_one_volume_at_once_both_succeed_and_make_one_attachment(node: Attachd) -> None:
    with volume(node) as v, ThreadPoolExecutor() as pool:
        runs = [pool.submit(attach, node, v, "--mount", MOUNT) for _ in range(3)]
        results = [run.result() for run in runs]
        expect(sorted(result["changed"] for result in results) == [False, False, True], f"the results are {results}")
        expect(len({result["attachmentID"] for result in results}) == 1, f"the results are {results}")
        in_use_once(node, v)
        both = [pool.submit(node.run, "detach", v, "-o", "json") for _ in range(2)]
        detached = [run.result() for run in both]
        expect(all(result.code == 0 for result in detached), f"the detaches: {detached}")
        expect(sorted(result.json()["changed"] for result in detached) == [False, True], f"the detaches: {detached}")
        nothing_left(node, v)


def test_two_volumes_attach_and_detach_side_by_side(node: Attachd) -> None:
    with volume(node) as one, volume(node, "tgt-single") as two, ThreadPoolExecutor() as pool:
        def whole(v: str, mount: str) -> None:
            attach(node, v, "--mount", mount)
            node.shell(f"echo {v} > {mount}/id; sync")
            result = node.run("detach", v)
            expect(result.code == 0, f"detach: {result}")
            expect(node.leftovers(volume=v).count(f"mount {mount}") == 0, f"{mount} is still mounted")

        for run in [pool.submit(whole, one, "/mnt/one"), pool.submit(whole, two, "/mnt/two")]:
            run.result()
        nothing_left(node, one)
        nothing_left(node, two)


def test_a_format_that_is_cut_short_is_done_again(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        result = node.signalled(signal.SIGKILL, "attach", v, "--mount", MOUNT, program="mkfs.ext4")
        expect(result.code == -signal.SIGKILL, f"attachd was not killed in its format: {result}")
        node.shell("pkill -KILL -x mkfs.ext4 || true")
        attach(node, v, "--mount", MOUNT)
        node.shell(f"echo kept > {MOUNT}/file; umount {MOUNT}; e2fsck -fn $(blkid -t TYPE=ext4 -o device | grep -E 'mapper|sd' | head -1)")
        attach(node, v, "--mount", MOUNT)
        expect(node.shell(f"cat {MOUNT}/file") == "kept\n", "the file is gone")
        detach(node, v)


def test_an_interrupted_attach_is_taken_back(node: Attachd) -> None:
    with volume(node) as v:
        for number, code, lines in [(signal.SIGINT, 130, 1), (signal.SIGTERM, 130, 4), (signal.SIGINT, 130, 8)]:
            result = node.signalled(number, "attach", v, "--mount", MOUNT, lines=lines)
            expect(result.code == code, f"after line {lines}: exit code {result.code}: {result.stderr}")
            expect("taking it back" in result.stderr, f"it doesn't say that it takes it back: {result.stderr}")
            nothing_left(node, v)


def test_a_reservation_whose_answer_was_lost_is_named_or_found_again_by_its_instance(node: Attachd) -> None:
    with volume(node) as v, proxied(node) as proxy, ThreadPoolExecutor() as pool:
        proxy.behaviour.delay = lambda method, path: 600.0 if method == "POST" and path.endswith("/attachments") else 0.0

        def killed_while_it_reserves(*arguments: str) -> None:
            proxy.answered.clear()
            run = pool.submit(node.run, "attach", v, "--mount", MOUNT, *arguments,
                              OS_ENDPOINT=proxy.endpoint_in_node)
            wait_for(proxy, "POST", "/attachments", 90)
            node.shell("pkill -KILL -x attachd")
            expect(run.result().code == 137, f"attachd was not killed: {run.result()}")
            expect([item["status"] for item in attachments_of(node, v)] == ["reserved"], f"{attachments_of(node, v)}")

        killed_while_it_reserves()
        lost = attachments_of(node, v)[0]["id"]
        # It can't tell this reservation from somebody else's: it must not use it, nor delete it.
        for command in (["attach", v, "--mount", MOUNT], ["detach", v]):
            result = node.run(*command)
            expect(result.code == 3 and lost in result.stderr and "LostReservation" in result.stderr, f"{command}: {result}")
        node.cinder.request("DELETE", f"/attachments/{lost}").json()
        detach(node, v)

        instance = "5c2f0000-0000-4000-8000-000000000001"
        killed_while_it_reserves("--instance", instance)
        lost = attachments_of(node, v)[0]["id"]
        result = node.run("detach", v)
        expect(result.code == 0, f"the detach: {result}")
        nothing_left(node, v)


def test_a_record_of_another_version_stops_attachd_and_is_not_overwritten(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        path = f"/var/lib/attachd/volumes/{v}.json"
        foreign = json.dumps({"version": 99, "what": "something else"})
        node.shell(f"mkdir -p /var/lib/attachd/volumes; echo '{foreign}' > {path}")
        for command in (["attach", v, "--mount", MOUNT], ["detach", v]):
            result = node.run(*command)
            expect(result.code == 7 and path in result.stderr and "LedgerMalformed" in result.stderr, f"{command}: {result}")
        expect(node.shell(f"cat {path}").strip() == foreign, "the record was overwritten")
        node.shell(f"rm {path}")
