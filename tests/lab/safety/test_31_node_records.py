"""open-iscsi's node records: those of others come back, and one that is deleted keeps no session."""

from __future__ import annotations

import signal

from lablib.cases import expect, takes_long
from lablib.node import Attachd
from lablib.steps import MOUNT, attach, detach, volume

_RECORDS = "cd /etc/iscsi/nodes 2>/dev/null && find . -type f | sort | xargs -r sha256sum || true"


def _by_hand(node: Attachd, volume_id: str) -> list[str]:
    """The records that an administrator made for a volume's target, one behind each portal."""
    target = f"iqn.2010-10.org.openstack:volume-{volume_id}"
    bases = [f"iscsiadm -m node -T {target} -p {portal}" for portal in ("10.0.2.2:3260", "10.0.3.2:3260")]
    node.shell("\n".join(f"{base} -o new >/dev/null; {base} -o update -n node.startup -v automatic" for base in bases))
    return bases


def test_a_node_record_that_somebody_made_is_as_it_was_after_the_detach_and_after_a_kill(node: Attachd) -> None:
    with volume(node) as v:
        bases = _by_hand(node, v)
        before = node.shell(_RECORDS)
        expect(before.count("10.0.") == 2, f"the records are {before}")
        attach(node, v, "--mount", MOUNT)
        expect(node.shell(_RECORDS) != before, "attachd logged in by the administrator's records")
        expect(node.run("detach", v).code == 0, "it can't be detached")
        expect(node.shell(_RECORDS) == before, "the records are others than before")
        node.signalled(signal.SIGKILL, "attach", v, "--mount", MOUNT, program="iscsiadm")
        result = node.run("detach", v)
        expect(result.code == 0, f"detach: {result.stderr}")
        expect(node.shell(_RECORDS) == before, "after a kill in the login the records are others than before")
        node.shell("\n".join(f"{base} -o delete" for base in bases))


@takes_long
def test_a_session_whose_node_record_was_deleted_goes_with_the_detach(node: Attachd) -> None:
    with volume(node) as v:
        attach(node, v, "--mount", MOUNT)
        node.shell("rm -r /etc/iscsi/nodes/*")
        detach(node, v)
