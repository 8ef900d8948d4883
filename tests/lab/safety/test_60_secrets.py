"""The CHAP secret, the password and the token of a daemon are found nowhere but where they must be."""

from __future__ import annotations

import json
import re

from lablib import keystone
from lablib.cases import expect, takes_long
from lablib.commands import wait_until
from lablib.daemon import LOG, Daemon
from lablib.node import Attachd
from lablib.steps import attachments_of, in_use_once, nothing_left, volume

_CLOUDS = "/etc/attachd-lab/clouds.yaml"
_PASSWORD = "lab-secret-of-member"
# Every token of Keystone's begins like this (Fernet, version 0x80).
_TOKEN = "gAAAAA[A-Za-z0-9_-]{40,}"
_LISTEN = "127.0.0.1:9811"
_MOUNT = "/var/lib/attachd/mounts/db"
_SAMPLES = "/run/secrets-sampled"

# What every process shows of itself, each thing once, as often as one process can look; an end on demand, and after ten minutes.
_SAMPLER = f"""
import glob, os, time
seen, end, looks = set(), time.monotonic() + 600, 0
with open("{_SAMPLES}", "wb", buffering=0) as out:
    while time.monotonic() < end and not os.path.exists("/run/secrets-enough"):
        looks += 1
        for name in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
            try:
                text = open(name, "rb").read()
            except OSError:
                continue
            if text and text not in seen:
                seen.add(text)
                out.write(text + b"\\n")
    out.write(b"looks %d\\n" % looks)
"""

# Everything that is written to a disk or could be, without the samples and what the volume itself holds.
_PLACES = "/etc /run /tmp /var /root /home /opt /srv /dev/shm"

_READ_SYSFS = """
import glob, json, os
def read(path):
    try:
        return open(path).read().strip()
    except OSError:
        return None
files = sorted(glob.glob("/sys/class/iscsi_session/session*/password"))
root = [read(file) for file in files]
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(json.dumps({"root": root, "nobody": [read(file) for file in files]}))
"""


class _MemberOfKeystone(Attachd):
    """attachd as a user of Keystone, by a clouds.yaml that root alone can read."""

    def environment(self, **more: str) -> list[str]:
        settings = {"OS_CLIENT_CONFIG_FILE": _CLOUDS, "OS_CLOUD": "member", **more}
        return ["env", *(f"{key}={value}" for key, value in settings.items())]


def _files_with(node: Attachd, pattern: str) -> list[str]:
    found = node.shell(f"grep -rlaE --devices=skip --exclude={_SAMPLES.rsplit('/', 1)[1]} --exclude-dir=mounts -e '{pattern}' {_PLACES} 2>/dev/null || true")
    return found.split()


def _cores(node: Attachd, victim: str, ready: str = "true") -> list[str]:
    """What a crash of a process leaves, written to a file and piped to a program."""
    node.shell("rm -rf /run/cores; mkdir -m 700 /run/cores; printf '#!/bin/sh\\nexec cat > /run/cores/piped.$1\\n' > /run/cores/.take; chmod 700 /run/cores/.take")
    found: list[str] = []
    before = node.shell("cat /proc/sys/kernel/core_pattern")
    try:
        for pattern in ("/run/cores/file.%p", "|/run/cores/.take %p"):
            node.shell(f"echo '{pattern}' > /proc/sys/kernel/core_pattern")
            # Not even where whoever starts it allows any size.
            node.shell(f"ulimit -c unlimited; {victim} & pid=$!; for _ in $(seq 300); do {ready} && break; sleep 0.2; done; "
                       # Not SEGV: Rust's own handler for that takes one that was sent for none.
                       "kill -ABRT $pid; wait $pid || true; for _ in $(seq 20); do [ -e /proc/$pid ] || break; sleep 0.2; done; sleep 1")
            found = node.shell("ls /run/cores").split()
    finally:
        node.shell(f"echo '{before}' > /proc/sys/kernel/core_pattern; rm -rf /run/cores")
    return found


def test_no_secret_of_a_daemon_is_in_a_file_a_log_a_status_a_metric_or_a_process(node: Attachd) -> None:
    keystone.start(node.lab)
    clouds = keystone.clouds_file(node.lab, in_node=True).read_text()
    expect(_PASSWORD in clouds, "there is no password, so this test says nothing")
    node.shell(f"mkdir -p -m 700 {_CLOUDS.rsplit('/', 1)[0]}; umask 077; cat > {_CLOUDS} << 'END'\n{clouds}\nEND\n")
    member = _MemberOfKeystone(node.lab, node.name)
    daemon = Daemon(member)
    try:
        with volume(node) as v:
            node.shell(f"cat > {_SAMPLES}.py << 'END'\n{_SAMPLER}\nEND\nsetsid python3 {_SAMPLES}.py < /dev/null > /dev/null 2>&1 &")
            daemon.start(ATTACHD_LOG="trace", ATTACHD_LISTEN=_LISTEN, ATTACHD_CONNECTOR_ADDRESS="10.0.2.0/24")
            daemon.request("db", v, mountPath=_MOUNT)
            daemon.wait_for("db", "Attached", ready=True, timeout=300)
            in_use_once(node, v)
            attachment = attachments_of(node, v)[0]["id"]
            info = node.cinder.request("GET", f"/attachments/{attachment}").json()["attachment"]["connection_info"]
            chap = info["auth_password"]
            expect(len(chap) >= 12, "there is no CHAP secret, so this test says nothing")
            # As patterns that don't match themselves, since the search's own command line is sampled, too.
            secrets = {"CHAP's secret": f"[{chap[0]}]{chap[1:]}", "the password": f"[{_PASSWORD[0]}]{_PASSWORD[1:]}", "a token": _TOKEN}

            shown = {
                "the log": daemon.log(),
                "the status": node.shell("cat /run/attachd-requests/*.status.yaml"),
                "the metrics": node.shell(f"python3 -c \"import urllib.request as u; print(u.urlopen('http://{_LISTEN}/metrics', timeout=30).read().decode())\""),
                "the daemon's environment": node.shell(f"cat /proc/{daemon.pid}/environ | tr '\\0' '\\n'"),
                "the kernel's log": node.shell("dmesg"),
            }
            for command in (["inspect", "-o", "json"], ["attachment", "show", attachment, "-o", "json"], ["connector", "-o", "json"]):
                result = member.run(*command, ATTACHD_LOG="trace", ATTACHD_CONNECTOR_ADDRESS="10.0.2.0/24")
                expect(result.code == 0, f"{command}: {result.stderr[-2000:]}")
                shown[" ".join(command)] = result.stdout + result.stderr
            expect(shown["the log"].count("\n") > 60, f"there is hardly any log: {shown['the log']}")
            expect("attachd_" in shown["the metrics"], f"no metrics: {shown['the metrics'][:500]}")
            for where, text in shown.items():
                for what, pattern in secrets.items():
                    expect(re.search(pattern, text) is None, f"{where} shows {what}")
            _no_other_file(node, secrets, attached=True)

            # The kernel has it too: its files look open to all, but it gives their contents to CAP_SYS_ADMIN alone.
            read = json.loads(node.shell(f"python3 -c '{_READ_SYSFS}'"))
            expect(read == {"root": [chap] * len(read["root"]), "nobody": [None] * len(read["root"])} and len(read["root"]) >= 2,
                   f"sysfs shows CHAP's secret to others: {read}")
            limits = node.shell(f"grep 'core file' /proc/{daemon.pid}/limits").split()
            expect(limits[4:6] == ["0", "0"], f"the limit of core dumps is {limits}")

            daemon.remove("db.yaml")
            daemon.wait_gone("db", timeout=300)
            nothing_left(node, v)
            node.shell("touch /run/secrets-enough")
            wait_until(lambda: "looks" in node.shell(f"tail -n 1 {_SAMPLES} | tr '\\0' ' '"), timeout=60, what="the samples to end")
            looks = int(node.shell(f"tail -n 1 {_SAMPLES}").split()[1])
            size = int(node.shell(f"stat -c %s {_SAMPLES}"))
            expect(looks >= 20 and size > 5000, f"only {looks} looks at /proc, {size} bytes")
            for what, pattern in secrets.items():
                seen = node.shell(f"grep -acE -e '{pattern}' {_SAMPLES} || true").strip()
                expect(seen == "0", f"a command line or an environment showed {what} {seen} times")
            expect("iscsiadm" in node.shell(f"grep -aom1 'iscsiadm' {_SAMPLES} || true"), "no program of attachd's was seen")
            _no_other_file(node, secrets, attached=False)
            print(f"     {len(shown)} outputs, {len(shown['the log'])} bytes of log, {looks} looks at all processes, {size} bytes of command lines and environments, no secret")
            daemon.end("TERM")
    finally:
        node.shell(f"touch /run/secrets-enough; kill {daemon.pid} 2>/dev/null || true; sleep 1; rm -rf {_CLOUDS.rsplit('/', 1)[0]} {_SAMPLES} {_SAMPLES}.py "
                   f"/run/secrets-enough /run/attachd-requests {LOG}")
        keystone.stop(node.lab)


def _no_other_file(node: Attachd, secrets: dict[str, str], *, attached: bool) -> None:
    """CHAP's secret is in the node records and the password in the clouds.yaml, for root alone; nothing else is anywhere."""
    for what, pattern in secrets.items():
        found = _files_with(node, pattern)
        if what == "CHAP's secret" and attached:
            expect(len(found) >= 2 and all("/iscsi/nodes/" in file for file in found), f"{what} is in {found}")
        elif what == "the password":
            expect(found == [_CLOUDS], f"{what} is in {found}")
        else:
            expect(found == [], f"{what} is in {found}")
        if found:
            modes = set(node.shell(f"stat -c '%a %U' {' '.join(found)}").splitlines())
            expect(modes == {"600 root"}, f"{what} is in files of {modes}")


@takes_long
def test_a_crash_of_attachd_leaves_no_core_dump_with_its_secrets(node: Attachd) -> None:
    # A daemon that waits for requests is as good as any: what it has in memory would be in the core.
    node.shell("mkdir -p /run/attachd-no-requests")
    command = " ".join(node.command("run", "--requests-dir", "/run/attachd-no-requests"))
    expect(sorted(name.split(".")[0] for name in _cores(node, "sleep 60")) == ["file", "piped"], "this node makes no core dumps, so this test says nothing")
    left = _cores(node, command, "grep -qs inotify /proc/$pid/fdinfo/*")
    expect(left == [], f"attachd's crash left {left}")
    node.shell("rmdir /run/attachd-no-requests")


def test_a_state_directory_that_others_can_write_is_refused_before_anything_is_changed(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        node.shell("mkdir -p /var/lib/attachd-open; chmod 777 /var/lib/attachd-open")
        result = node.run("attach", v, "--state-dir", "/var/lib/attachd-open")
        expect(result.code != 0 and "StateDirUnsafe" in result.stderr and "chmod 700" in result.stderr, f"{result}")
        nothing_left(node, v)
        node.shell("rmdir /var/lib/attachd-open")


@takes_long
def test_a_requests_directory_that_everybody_can_write_is_not_served(node: Attachd) -> None:
    node.shell("mkdir -p /run/attachd-open; chmod 777 /run/attachd-open")
    result = node.run("run", "--requests-dir", "/run/attachd-open", timeout=60)
    expect(result.code != 0 and "chmod o-w /run/attachd-open" in result.stderr, f"{result}")
    node.shell("rmdir /run/attachd-open")
