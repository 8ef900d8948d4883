"""How often Cinder is asked and how many programs are run."""

from __future__ import annotations

from lablib.cases import expect
from lablib.node import DEBUG, Attachd
from lablib.steps import MOUNT, volume


def test_an_attach_costs_four_calls_a_detach_two_and_looking_again_one(node: Attachd) -> None:
    with volume(node) as v:
        result = node.run("attach", v, "--mount", MOUNT, "-o", "json", **DEBUG)
        expect(result.code == 0, f"attach: {result.stderr}")
        attachment = result.json()["attachmentID"]
        expect(result.cinder_calls() == [
            f"GET /volumes/{v}", "POST /attachments", f"PUT /attachments/{attachment}", f"POST /attachments/{attachment}/action",
        ], f"the calls are {result.cinder_calls()}")
        programs = result.programs()
        iscsiadm = [command for command in programs if command.startswith("iscsiadm ")]
        expect(len(iscsiadm) == 2 + 1, f"for two new portals of one target: {iscsiadm}")
        expect(len(programs) <= 6, f"the programs are {programs}")
        print(f"     attach: {len(result.cinder_calls())} calls to Cinder, {len(programs)} programs, {len(iscsiadm)} of them iscsiadm")

        result = node.run("attach", v, "--mount", MOUNT, **DEBUG)
        expect(result.code == 0, f"attach again: {result.stderr}")
        expect(result.cinder_calls() == [f"GET /attachments/{attachment}"], f"the calls are {result.cinder_calls()}")
        expect(result.programs() == [], f"the programs are {result.programs()}")

        result = node.run("detach", v, **DEBUG)
        expect(result.code == 0, f"detach: {result.stderr}")
        expect(result.cinder_calls() == [f"GET /attachments/{attachment}", f"DELETE /attachments/{attachment}"], f"the calls are {result.cinder_calls()}")
        programs = sorted(command.split()[0] for command in result.programs())
        expect(programs == ["iscsiadm", "iscsiadm", "multipath"], f"the programs of a detach are {result.programs()}")

        result = node.run("detach", v, **DEBUG)
        expect(result.code == 0 and result.cinder_calls() == [] and result.programs() == [], f"detach again: {result}")
