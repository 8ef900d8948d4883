"""attachd trace: what was done on this node, by whom, how long it took, and what Cinder calls it."""

from __future__ import annotations

import json
from typing import Any

from lablib.cases import expect
from lablib.commands import wait_until
from lablib.daemon import daemon
from lablib.node import Attachd
from lablib.steps import MOUNT, attach, detach, failed, nothing_left, proxied, volume

_JOURNAL = "/var/lib/attachd/journal"

Run = dict[str, Any]


def _traced(node: Attachd, which: str) -> list[Run]:
    """The runs that the journal has of a volume or a request, of which no line may be missing."""
    result = node.run("trace", which, "-o", "json")
    expect(result.code == 0, f"trace {which}: {result}")
    history = result.json()
    bad = {key: history[key] for key in ("lostLines", "brokenLines", "newerLines")}
    expect(set(bad.values()) == {0}, f"lines of {which}: {bad}")
    return list(history["runs"])


def _only(run: Run, kind: str) -> list[dict[str, Any]]:
    return [line for line in run["lines"] if line["kind"] == kind]


def _outcomes(runs: list[Run]) -> list[tuple[str, str]]:
    """What was done, and what came of it."""
    return [(_only(run, "began")[0]["doing"], (_only(run, "ended") or [{"outcome": "no end"}])[0]["outcome"]) for run in runs]


def _times_fit(run: Run) -> None:
    """The parts of a run took no longer than the whole, and every step has its time."""
    steps, spent = _only(run, "stepEnded"), run["spent"]
    expect(len(steps) == len(_only(run, "stepBegan")), f"steps without an end: {run}")
    parts = sum(step["ms"] for step in steps) + sum(wait["ms"] for wait in _only(run, "waited"))
    expect(0 < parts <= spent["allMs"] + 50, f"{parts} ms of steps and waits in {spent}")
    expect(spent["stepsMs"] + spent["waitsMs"] + spent["looksMs"] <= spent["allMs"] + 50, f"spent {spent}")


def _known_to_cinder(node: Attachd, run: Run, calls: int) -> None:
    """Cinder's log has the id of each request."""
    asked = _only(run, "http")
    expect(len(asked) == calls, f"{len(asked)} requests, expected {calls}: {asked}")
    log = (node.lab.logs / "cinder.log").read_text(errors="replace")
    unknown = [call for call in asked if call["requestId"] not in log]
    expect(unknown == [], f"Cinder's log doesn't know {unknown}")


def _fits_the_screen(text: str) -> None:
    wide = [line for line in text.splitlines() if len(line) > 80]
    expect(wide == [] and "\x1b" not in text, f"too wide, or coloured in a pipe: {wide}")


def test_each_attach_and_detach_is_told_with_its_steps_times_commands_and_requests(node: Attachd) -> None:
    with volume(node) as v:
        attach(node, v, "--mount", MOUNT)
        detach(node, v)
        size = int(node.shell(f"stat -c %s {_JOURNAL}/{v}.jsonl"))
        print(f"     {size} bytes for an attach with its detach")
        expect(size < 32 << 10, f"{size} bytes")
        with proxied(node) as proxy:
            def other_password(method: str, _path: str, body: bytes) -> bytes:
                if method != "PUT":
                    return body
                answer = json.loads(body)
                answer["attachment"]["connection_info"]["auth_password"] = "PLANTED-secret"
                return json.dumps(answer).encode()

            proxy.behaviour.rewrite = other_password
            failed(node, 3, ["[NoPath]", "taking it back"], "attach", v, "--mount", MOUNT, OS_ENDPOINT=proxy.endpoint_in_node)
        nothing_left(node, v)

        runs = _traced(node, v)
        expect(_outcomes(runs) == [("attach", "Attached"), ("detach", "Detached"), ("attach", "NoPath")], f"{_outcomes(runs)}")
        good, undone, bad = runs
        for run, calls in ((good, 4), (undone, 2), (bad, 5)):
            _times_fit(run)
            _known_to_cinder(node, run, calls)
        ran = {line["command"].split()[0]: line for line in _only(good, "command")}
        expect({"iscsiadm", "mkfs.ext4"} <= set(ran), f"commands: {sorted(ran)}")
        expect(ran["mkfs.ext4"]["exit"] == "exit code 0" and ran["mkfs.ext4"]["ms"] > 0, f"{ran['mkfs.ext4']}")
        expect(any("add path" in line["command"] for line in _only(good, "multipathd")), "nothing of multipathd")
        complaints = [line for line in _only(bad, "command") if line["exit"] != "exit code 0" and "--login" in line["command"]]
        expect(complaints and all("login" in line["said"] for line in complaints), f"the failed logins say {complaints}")
        expect("refused the login" in _only(bad, "ended")[0]["error"], f"{_only(bad, 'ended')}")

        shown = node.run("trace", v).stdout
        _fits_the_screen(shown)
        for words in [f"attach of volume {v}: Attached", f"attach of volume {v}: NoPath", "exit code 24: ", "asked for by the command line",
                      good["lines"][0]["at"][:10], _only(good, "http")[0]["requestId"]]:
            expect(words in shown, f"{words!r} is not in {shown}")
        last = node.run("trace", v, "--last", "1").stdout
        expect("2 earlier runs" in last and "NoPath" in last and ": Attached" not in last, f"--last 1 shows {last}")

        secret = node.shell(f"grep -rlE 'PLANTED|password' {_JOURNAL} || true")
        expect(secret == "", f"a password is in {secret}")
        modes = node.shell(f"stat -c '%a %n' {_JOURNAL} {_JOURNAL}/*").splitlines()
        expect({mode.split()[0] for mode in modes} == {"700", "600"}, f"the modes are {modes}")


def test_the_daemons_runs_are_told_by_the_requests_name_over_its_end_and_a_kill(node: Attachd) -> None:
    with volume(node) as v, daemon(node) as d:
        name = f"traced-{v[:8]}"  # another one at each run: the journal outlasts the test
        d.request(name, v)
        status = d.wait_for(name, "Attached", ready=True)
        first = d.pid
        node.shell(f"umount {status['mountPath']}")
        wait_until(lambda: node.execute(["mountpoint", "-q", status["mountPath"]]).code == 0, timeout=60, what="the mount to come back")
        wait_until(lambda: ("heal", "Attached") in _outcomes(_traced(node, name)), timeout=60, what="the healing in the journal")
        d.end("KILL")
        d.start()
        wait_until(lambda: _outcomes(_traced(node, name))[-1:] == [("attach", "Attached")] and
                   _only(_traced(node, name)[-1], "began")[0]["pid"] != first, timeout=60, what="the next daemon to look")
        # The command beside the daemon writes into the same file.
        resized = node.run("resize", v)
        expect(resized.code == 0, f"resize: {resized}")
        d.remove(f"{name}.yaml")
        d.wait_gone(name)
        nothing_left(node, v)

        runs = _traced(node, name)
        expect(_outcomes(runs) == [("attach", "Attached"), ("heal", "Attached"), ("attach", "Attached"), ("resize", "Resized"),
                                   ("detach", "Detached")], f"{_outcomes(runs)}")
        expect(len({_only(run, "began")[0]["pid"] for run in runs}) == 3, "two daemons and a command are three processes")
        expect(any("mount" in step["step"] for step in _only(runs[1], "stepEnded")), f"the healing did {runs[1]}")
        expect(runs == _traced(node, v), "of the volume other runs are told than of its request")
        for run in (runs[0], runs[1], runs[4]):
            _times_fit(run)
        shown = node.run("trace", name).stdout
        _fits_the_screen(shown)
        expect(f'asked for by the request "{name}" in' in shown and "there was nothing to do" in shown, shown)


def test_a_run_that_was_killed_shows_where_it_stood(node: Attachd) -> None:
    with volume(node) as v, proxied(node) as proxy:
        proxy.behaviour.delay = lambda method, path: 600.0 if method == "PUT" else 0.0
        node.shell("setsid " + " ".join(node.command("attach", v, "--mount", MOUNT, OS_ENDPOINT=proxy.endpoint_in_node))
                   + " < /dev/null > /dev/null 2>&1 & echo $! > /tmp/traced.pid")
        wait_until(lambda: node.execute(["ls", f"{_JOURNAL}/{v}.jsonl"]).code == 0
                   and any("connector" in step["step"] for run in _traced(node, v) for step in _only(run, "stepBegan")),
                   timeout=60, what="the attach to give Cinder the connector")
        node.shell("kill -KILL $(cat /tmp/traced.pid); rm /tmp/traced.pid")
        shown = node.run("trace", v).stdout
        expect(": no end\n" in shown and "no end: give Cinder the connector" in shown and "was killed" in shown, shown)
        # A crash tears the last line; what comes later is whole.
        node.shell(f"printf '{{\"at\":\"20' >> {_JOURNAL}/{v}.jsonl")
        detach(node, v)
        result = node.run("trace", v, "-o", "json").json()
        expect(_outcomes(result["runs"]) == [("attach", "no end"), ("detach", "Detached")], f"{result}")
        expect(result["brokenLines"] == 1, f"{result['brokenLines']} broken lines")


def test_what_the_journal_does_not_know_it_says_and_a_full_disk_fails_no_attach(node: Attachd) -> None:
    result = node.run("trace", "nobody-asked")
    expect(result.code == 3 and "has nothing of a request or volume \"nobody-asked\"" in result.stderr, f"trace: {result}")
    with volume(node, "tgt-single") as v:
        node.shell(f"mkdir -p {_JOURNAL}; mount -t tmpfs -o size=1M,mode=700 tmpfs {_JOURNAL}")
        try:
            result = node.run("attach", v, "--mount", MOUNT)
            expect(result.code == 0 and "journal can't be written" in result.stderr, f"attach: {result}")
            unknown = node.run("trace", v)
            expect(unknown.code == 3, f"trace: {unknown}")
        finally:
            node.shell(f"umount {_JOURNAL}")
        detach(node, v)
