"""attachd attachment on a node: this node's facts as the connector, and a deletion that asks."""

from __future__ import annotations

import json

from lablib.cases import expect
from lablib.node import Attachd
from lablib.steps import MOUNT, attach, attachments_of, detach, nothing_left, volume

# Runs a program on a terminal of its own and types an answer once it was asked; prints what came of it.
_ASKED = r"""
import json, os, pty, sys, time
answer, argv = json.loads(sys.argv[1])
child, terminal = pty.fork()
if child == 0:
    os.execvp(argv[0], argv)
seen = b""
while True:
    try:
        part = os.read(terminal, 4096)
    except OSError:
        break
    if not part:
        break
    seen += part
    if answer and b"[y/N]" in seen:
        os.write(terminal, answer.encode() + b"\n")
        answer = ""
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps({"code": code, "seen": seen.decode()}))
"""


def _asked(node: Attachd, answer: str, *arguments: str) -> tuple[int, str]:
    """The exit code of attachd on a terminal, and what it said there."""
    order = json.dumps([answer, node.command(*arguments)])
    done = node.execute(["python3", "-c", _ASKED, order]).json()
    return done["code"], done["seen"]


def test_an_attachment_is_made_with_this_nodes_facts_and_single_ones_put_in_their_place(node: Attachd) -> None:
    with volume(node) as v:
        created = node.run("attachment", "create", v, "-o", "json").json()
        result = node.run("attachment", "set", created["id"], "--connector", "this-node", "--no-multipath", "--wait", "-o", "json")
        expect(result.code == 0, f"set: {result.stderr}")
        info = result.json()["connection_info"]
        expect(result.json()["status"] == "attaching" and info["auth_password"] == "<redacted>", f"set gives {result.json()}")
        completed = node.run("attachment", "complete", created["id"], "--wait")
        expect(completed.code == 0, f"complete: {completed.stderr}")
        host = node.volume(v)["attachments"][0]["host_name"]
        expect(host == node.name, f"Cinder has the host {host}")
        deleted = node.run("attachment", "delete", created["id"], "--wait", "-o", "json")
        expect(deleted.code == 0 and deleted.json()["deleted"], f"delete: {deleted}")
        nothing_left(node, v)


def test_a_deletion_asks_while_a_device_is_connected_and_refuses_where_nobody_can_be_asked(node: Attachd) -> None:
    with volume(node) as v:
        id_ = attach(node, v, "--mount", MOUNT)["attachmentID"]
        # By the ledger, and by Cinder's word alone.
        for state in [{}, {"ATTACHD_STATE_DIR": "/run/no-such-state"}]:
            refused = node.run("attachment", "delete", id_, **state)
            expect(refused.code == 3, f"delete of a connected attachment: {refused}")
            for word in ["is connected on this node", f"it is mounted on {MOUNT}", "attachd detach", "--yes"]:
                expect(word in refused.stderr, f"{word!r} is not in {refused.stderr}")
        for answer in ["n", "", "yellow"]:
            code, seen = _asked(node, answer or "\r", "attachment", "delete", id_)
            expect(code == 3 and "Delete attachment" in seen and "is not deleted" in seen, f"answered {answer!r}: {code} {seen}")
        expect(len(attachments_of(node, v)) == 1, "the attachment is gone")
        expect(node.shell("[ -e /run/no-such-state ] && echo made || echo none").strip() == "none", "a look made a ledger")
        code, seen = _asked(node, "y", "attachment", "delete", id_)
        expect(code == 0 and f"deleted attachment {id_}" in seen, f"answered y: {code} {seen}")
        expect(attachments_of(node, v) == [], "the attachment is still there")
        detach(node, v)


def test_with_yes_nothing_is_asked(node: Attachd) -> None:
    with volume(node) as v:
        id_ = attach(node, v, "--block")["attachmentID"]
        deleted = node.run("attachment", "delete", id_, "--yes", "-o", "json")
        expect(deleted.code == 0 and deleted.json()["deleted"], f"delete --yes: {deleted}")
        detach(node, v)
