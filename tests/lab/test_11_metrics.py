"""What the daemon answers to probes and scrapes."""

from __future__ import annotations

import re

from lablib.cases import expect
from lablib.commands import wait_until
from lablib.daemon import daemon
from lablib.node import Attachd
from lablib.steps import daemon_stopped, in_use_once, nothing_left, path_cut, volume

_PORT = 9808
_LISTEN = {"ATTACHD_LISTEN": f"127.0.0.1:{_PORT}"}


def _get(node: Attachd, path: str) -> tuple[int, str]:
    """Ask from within the node, by nothing but bash; give status and body."""
    answer = node.shell(f"exec 3<>/dev/tcp/127.0.0.1/{_PORT}; printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3; cat <&3")
    head, _, body = answer.replace("\r\n", "\n").partition("\n\n")
    return int(head.split()[1]), body


def _value(node: Attachd, sample: str) -> float:
    status, text = _get(node, "/metrics")
    expect(status == 200 and text.endswith("# EOF\n"), f"/metrics answers {status}: {text[-400:]}")
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    expect(found is not None, f"{sample} is not in {text}")
    assert found is not None
    return float(found.group(1))


def _wait_ready(node: Attachd, ready: bool) -> str:
    last = (0, "")

    def seen() -> bool:
        nonlocal last
        last = _get(node, "/readyz")
        return last[0] == (200 if ready else 503)

    wait_until(seen, timeout=60, what=f"/readyz to say ready={ready}", interval=1)
    return last[1]


def test_a_scrape_tells_of_an_attach_a_lost_path_and_a_detach(node: Attachd) -> None:
    with volume(node) as v, daemon(node, **_LISTEN) as d:
        _wait_ready(node, True)
        expect(_get(node, "/livez")[0] == 200, "it is not alive")
        expect(_value(node, 'attachd_attachments{state="attached"}') == 0, "something is attached")
        d.request("db", v)
        d.wait_for("db", "Attached", ready=True)
        in_use_once(node, v)
        for sample, expected in [
            ('attachd_operation_duration_seconds_count{operation="attach",result="success"}', 1),
            ('attachd_step_duration_seconds_count{step="log_in",result="success"}', 1),
            ('attachd_cinder_request_duration_seconds_count{operation="reserve",result="success"}', 1),
            ('attachd_requests{state="attached"}', 1),
            ("attachd_requests_queued", 0),
            ("attachd_scrape_errors_total", 0),
        ]:
            found = _value(node, sample)
            expect(found == expected, f"{sample} is {found}")
        paths = f'attachd_paths{{volume="{v}",state="%s"}}'
        wait_until(lambda: _value(node, 'attachd_attachments{state="attached"}') == 1, timeout=30, what="the attachment to be counted")
        expect(_value(node, paths % "active") == 2, "there are not two active paths")
        expect(_value(node, 'attachd_sessions{state="logged_in"}') == 2, "there are not two sessions")
        memory = _value(node, "process_resident_memory_bytes") / 1024
        expect(0.5 < memory / d.memory() < 2, f"{memory} KiB are said to be resident, and {d.memory()} are")
        with path_cut(node, 2):
            wait_until(lambda: _value(node, paths % "failing") == 1, timeout=120, what="the path to be counted as failing", interval=2)
            expect(_value(node, 'attachd_attachments{state="degraded"}') == 1, "the attachment is not degraded")
        wait_until(lambda: _value(node, paths % "active") == 2, timeout=120, what="the path to be counted again", interval=2)

        d.remove("db.yaml")
        d.wait_gone("db")
        wait_until(lambda: "attachd_paths{" not in _get(node, "/metrics")[1], timeout=30, what="the volume to be gone from the metrics")
        expect(_value(node, 'attachd_operation_duration_seconds_count{operation="detach",result="success"}') == 1, "no detach was counted")
        expect(_value(node, 'attachd_attachments{state="attached"}') == 0, "it is still attached")
        nothing_left(node, v)


def test_readiness_says_that_iscsid_is_away_and_liveness_stays(node: Attachd) -> None:
    with daemon(node, **_LISTEN):
        _wait_ready(node, True)
        with daemon_stopped(node, "iscsid"):
            said = _wait_ready(node, False)
            expect("[-] node: iscsid doesn't answer" in said and "[+] requests-dir: ok" in said, f"/readyz says {said}")
            expect(_get(node, "/livez")[0] == 200, "it is not alive without iscsid")
        _wait_ready(node, True)


def test_an_address_that_is_taken_ends_the_daemon_with_words(node: Attachd) -> None:
    with daemon(node, **_LISTEN):
        second = node.execute([*node.environment(**_LISTEN), "/usr/local/bin/attachd", "run", "--requests-dir", "/tmp"])
        expect(second.code == 1 and f"can't listen on 127.0.0.1:{_PORT}" in second.stderr, f"the second daemon: {second}")
