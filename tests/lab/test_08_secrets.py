"""The CHAP secret is seen by nobody."""

from __future__ import annotations

from lablib.cases import expect
from lablib.node import Attachd
from lablib.steps import MOUNT, attach, detach, volume

_PROGRAMS = "iscsiadm multipath blkid blockdev mkfs.ext4 mkfs.xfs e2fsck"

# Every program that attachd may run writes its command line down before it begins.
_WITNESSES = rf"""
touch /tmp/argv
for program in {_PROGRAMS}; do
  path=$(PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v $program)
  mv "$path" "$path.real"
  printf '#!/bin/bash\nprintf "%%s\\\\n" "$0 $* $(env | tr "\\\\n" " ")" >> /tmp/argv\nexec -a "$0" "$0.real" "$@"\n' > "$path"
  chmod 755 "$path"
done
"""
_NO_WITNESSES = rf"""
for program in {_PROGRAMS}; do
  path=$(PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v $program)
  mv "$path.real" "$path"
done
rm -f /tmp/argv
"""


def test_the_chap_secret_is_in_no_output_no_ledger_no_command_line_and_no_open_file(node: Attachd) -> None:
    with volume(node) as v:
        node.shell(_WITNESSES)
        try:
            # Whatever runs, as often as one can look.
            node.shell("setsid bash -c 'while [ ! -e /tmp/enough ]; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ >> /tmp/sampled 2>/dev/null; "
                       "done' >/dev/null 2>&1 &")
            result = node.run("attach", v, "--mount", MOUNT, "-o", "json", ATTACHD_LOG="trace", ATTACHD_LOG_JSON="false")
            node.shell("touch /tmp/enough")
            expect(result.code == 0, f"attach: {result.stderr[-3000:]}")
            attachment = result.json()["attachmentID"]
            info = node.cinder.request("GET", f"/attachments/{attachment}").json()["attachment"]["connection_info"]
            secret = info["auth_password"]
            expect(len(secret) >= 12, "there is no CHAP secret, so this test says nothing")

            expect(len(result.stderr.splitlines()) > 40, f"there is hardly any trace: {result.stderr}")
            expect(secret not in result.stdout + result.stderr, "the output holds the secret")
            inspected = node.run("inspect", "-o", "json", ATTACHD_LOG="trace")
            expect(secret not in inspected.stdout + inspected.stderr, "inspect shows the secret")
            planned = node.run("plan", "attach", v, "--mount", MOUNT, ATTACHD_LOG="trace")
            expect(secret not in planned.stdout + planned.stderr, "plan shows the secret")

            seen = node.shell("cat /tmp/argv")
            expect("--login" in seen and "mkfs.ext4" in seen, f"the witnesses saw nothing: {seen}")
            expect(secret not in seen, "a command line or an environment holds the secret")
            sampled = node.shell(f"wc -c < /tmp/sampled; grep -acF '{secret}' /tmp/sampled || true").split()
            expect(int(sampled[0]) > 10_000 and sampled[1] == "0", f"of /proc, {sampled}")

            # Where it is: in open-iscsi's records, for root alone.
            found = node.shell(f"grep -rlF '{secret}' /etc /var /run /root /tmp --exclude=sampled 2>/dev/null || true").split()
            expect(len(found) == 2 and all("/etc/iscsi/nodes/" in file for file in found), f"the secret is in {found}")
            modes = set(node.shell(f"stat -c '%a %U' {' '.join(found)}").splitlines())
            expect(modes == {"600 root"}, f"the node records are {modes}")
            detach(node, v)
            found = node.shell(f"grep -rlF '{secret}' /etc /var /run /root /tmp --exclude=sampled 2>/dev/null || true").split()
            expect(found == [], f"after the detach the secret is in {found}")
        finally:
            node.shell(f"touch /tmp/enough; {_NO_WITNESSES} rm -f /tmp/sampled; sleep 0.5; rm -f /tmp/enough /tmp/sampled")


def test_no_file_that_attachd_keeps_can_be_read_by_others(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        attach(node, v, "--mount", MOUNT)
        readable = node.shell("find /var/lib/attachd -path /var/lib/attachd/mounts -prune -o -type f -perm /077 -print -o "
                              "-mindepth 1 -maxdepth 1 -type d -perm /077 -print")
        expect(readable == "", f"others may read {readable}")
        detach(node, v)
