"""What attachd prints: for people, for scripts, and into pipes that end early."""

from __future__ import annotations

import json

from lablib.cases import expect
from lablib.daemon import parse
from lablib.node import BINARY, Attachd
from lablib.steps import MOUNT, attach, detach, in_use_once, volume


def test_the_connector_is_printed_in_every_format_and_they_agree(node: Attachd) -> None:
    facts = node.run("connector", "-o", "json").json()
    for key, value in [("initiator", node.iqn), ("host", node.name), ("ip", "10.0.2.15"), ("os_type", "linux"),
                       ("platform", "x86_64"), ("multipath", True)]:
        expect(facts[key] == value, f"{key} is {facts.get(key)!r}")
    expect(parse(node.run("connector", "-o", "yaml").stdout) == facts, "YAML and JSON differ")
    table = node.run("connector").stdout
    expect(all(str(value).lower() in table.lower() for value in facts.values()), f"the table is {table}")
    expect(node.run("connector", "--node-name", "other", "-o", "json").json()["host"] == "other", "--node-name is ignored")
    for which, address in [("eth1", "10.0.3.15"), ("10.0.3.0/24", "10.0.3.15"), ("192.0.2.7", "192.0.2.7")]:
        ip = node.run("connector", "--connector-address", which, "-o", "json").json()["ip"]
        expect(ip == address, f"--connector-address {which} gives {ip}")
    wrong = node.run("connector", "--connector-address", "nosuch0")
    expect(wrong.code == 5 and "nosuch0" in wrong.stderr, f"--connector-address nosuch0: {wrong}")


def test_plan_tells_what_would_be_done_and_changes_nothing(node: Attachd) -> None:
    with volume(node) as v:
        planned = node.run("plan", "attach", v, "--mount", MOUNT, "-o", "json").json()
        expect(planned["next"] == {"do": f"reserve volume {v}"}, f"the plan is {planned}")
        expect(planned["then"][-1] == "complete the attachment" and "multipath map" in planned["then"], f"the plan is {planned}")
        expect(node.leftovers(volume=v) == [], "planning changed something")
        attach(node, v, "--mount", MOUNT)
        expect(node.run("plan", "attach", v, "--mount", MOUNT, "-o", "json").json()["next"] == "done", "there is more to do")
        refused = node.run("plan", "attach", v, "--block", "-o", "json").json()["next"]
        expect(refused["reason"] == "AttachedDifferently", f"the plan is {refused}")
        planned = node.run("plan", "detach", v)
        expect(f"unmount {MOUNT}" in planned.stdout and "log out" in planned.stdout, f"the plan is {planned.stdout}")
        in_use_once(node, v)
        detach(node, v)


def test_inspect_joins_record_attachment_sessions_disks_map_and_mount(node: Attachd) -> None:
    expect("holds no attachment" in node.run("inspect").stdout, "inspect of an empty node")
    with volume(node) as v:
        attached = attach(node, v, "--mount", MOUNT)
        [chain] = node.run("inspect", "-o", "json").json()["attachments"]
        expect(chain["volume"] == v and chain["attachment"] == attached["attachmentID"], f"the chain is {chain}")
        expect(chain["cinderStatus"] == "attached" and chain["wwid"] == attached["wwid"], f"the chain is {chain}")
        expect(len(chain["paths"]) == 2, f"the chain is {chain}")
        for path in chain["paths"]:
            expect(path["session"]["state"] == "logged-in", f"the path is {path}")
            expect(path["ownSession"] and path["disk"]["wwid"] == attached["wwid"], f"the path is {path}")
        members = {member["device"] for member in chain["map"]["members"]}
        expect(members == {path["disk"]["name"] for path in chain["paths"]}, f"the map is {chain['map']}")
        expect([mount["target"] for mount in chain["mounts"]] == [MOUNT], f"the mounts are {chain['mounts']}")
        expect(chain["disagreements"] == [], f"disagreements: {chain['disagreements']}")
        tree = node.run("inspect", v).stdout
        for word in (v, attached["attachmentID"], attached["wwid"], "10.0.2.2", "10.0.3.2", "active", MOUNT, "all fits together"):
            expect(word in tree, f"{word} is not in the tree:\n{tree}")
        expect("holds no attachment" in node.run("inspect", "00000000-0000-4000-8000-000000000000").stdout, "another volume")

        # Something is amiss: it says what, and attach mends it.
        node.shell(f"umount {MOUNT}")
        tree = node.run("inspect").stdout
        expect(f"not mounted on {MOUNT}" in tree and "something disagrees" in tree, f"the tree is\n{tree}")
        mended = attach(node, v, "--mount", MOUNT)
        expect(mended["changed"], f"the mended attachment is {mended}")
        expect("all fits together" in node.run("inspect").stdout, "it was not mended")
        detach(node, v)


def test_crd_completions_and_manual_are_whole(node: Attachd) -> None:
    crd = node.run("crd").stdout
    expect("kind: CustomResourceDefinition" in crd and "volumeattachrequests" in crd, f"the CRD is {crd[:300]}")
    for shell, word in [("bash", "complete -o"), ("zsh", "#compdef attachd"), ("fish", "complete --keep-order")]:
        script = node.run("completions", shell)
        expect(script.code == 0 and word in script.stdout, f"{shell}: {script.stdout[:1000]}")
    completed = node.execute(["bash", "-c", f"""source <({BINARY} completions bash)
        COMP_WORDS=(attachd ins) COMP_CWORD=1 COMP_TYPE=9; _clap_complete_attachd attachd ins attachd; echo "${{COMPREPLY[@]}}" """])
    expect(completed.stdout == "inspect\n", f"bash completes ins by {completed}")
    page = node.run("man").stdout
    expect(page.startswith(".ie") or ".TH attachd" in page, f"the page is {page[:200]}")
    node.shell(f"{BINARY} man --dir /tmp/man; test -s /tmp/man/attachd.1; test -s /tmp/man/attachd-attach.1; rm -r /tmp/man")
    helped = node.run("--help")
    expect(helped.code == 0 and "Exit codes" in helped.stdout, f"the help is {helped.stdout[-500:]}")
    version = node.run("--version").stdout.split()
    expect(version[0] == "attachd" and len(version) == 2, f"the version is {version}")


def test_a_reader_that_goes_away_is_no_failure(node: Attachd) -> None:
    # Each with a pipe whose reader has gone before anything is written.
    for arguments in ("crd", "man", "completions zsh", "connector", "inspect", "--help", "attach --help", "--version"):
        script = " ".join(node.environment()) + f" {BINARY} {arguments} 2>/tmp/said | true; echo ${{PIPESTATUS[0]}}; cat /tmp/said"
        said = node.shell(script).split("\n", 1)
        expect(said[0] == "0" and "panicked" not in said[1], f"{arguments} | true: {said}")
    with volume(node, "tgt-single") as v:
        for arguments in (f"attach {v} --mount {MOUNT}", f"detach {v}"):
            script = (" ".join(node.environment(ATTACHD_LOG="debug"))
                      + f" {BINARY} {arguments} 2>&1 >/tmp/result | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}; cat /tmp/result")
            said = node.shell(script, timeout=180).split("\n", 1)
            expect(said[0] == "0" and v in said[1], f"{arguments} 2>&1 | head -1: {said}")


def test_logs_are_lines_of_json_or_plain_text_without_colours(node: Attachd) -> None:
    plain = node.run("connector", ATTACHD_LOG="debug")
    expect("DEBUG" in plain.stderr and "\x1b" not in plain.stderr, f"the log is {plain.stderr[:300]!r}")
    lines = node.run("connector", ATTACHD_LOG="debug", ATTACHD_LOG_JSON="true").stderr.splitlines()
    expect(len(lines) > 0 and all("timestamp" in json.loads(line) for line in lines), f"the log is {lines[:3]}")
    wrong = node.run("connector", ATTACHD_LOG="=!=")
    expect(wrong.code == 2 and "is no filter" in wrong.stderr, f"a filter that is none: {wrong}")
