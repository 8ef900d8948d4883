"""The archive for somebody who helps: everything is in it, and no secret is."""

from __future__ import annotations

import io
import tarfile

from lablib import guest
from lablib.cases import expect
from lablib.node import Attachd
from lablib.steps import MOUNT, attach, attachments_of, detach, volume

_PLANTED = {"OS_PASSWORD": "planted-password-51", "OS_TOKEN": "planted-token-52"}
_RECORD = "iscsiadm -m node -T iqn.2026-11.dev.attachd.lab:planted -p 10.0.2.2"
_RECORD_SECRET = "planted-chap-53"
_KERNEL_SECRET = "password=planted-in-the-kernel-log-54"
_FILE_SECRET = "planted-in-a-file-55"


def _files(archive: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as bundle:
        members = bundle.getmembers()
        roots = {member.name.partition("/")[0] for member in members}
        expect(len(roots) == 1 and all(member.isfile() and member.mode == 0o600 for member in members), f"{roots}")
        found = {}
        for member in members:
            file = bundle.extractfile(member)
            expect(file is not None, member.name)
            found[member.name.partition("/")[2]] = file.read().decode() if file else ""
        return found


def test_the_support_bundle_has_everything_and_no_secret(node: Attachd) -> None:
    with volume(node) as v:
        attach(node, v, "--mount", MOUNT)
        info = node.cinder.request("GET", f"/attachments/{attachments_of(node, v)[0]['id']}").json()["attachment"]["connection_info"]
        chap = str(info["auth_password"])
        node.shell(f"{_RECORD} -o new; {_RECORD} -o update -n node.session.auth.password -v {_RECORD_SECRET}; "
                   f"echo 'a program said {_KERNEL_SECRET} {_RECORD_SECRET}' > /dev/kmsg; "
                   f"echo '# api_token: {_FILE_SECRET}' >> /etc/multipath.conf")
        made = node.run("support-bundle", "--file", "/run/bundle.tar.gz", **_PLANTED)
        expect(made.code == 0 and "files" in made.stderr, f"{made}")
        expect(node.shell("stat -c %a /run/bundle.tar.gz").strip() == "600", "others can read it")
        again = node.run("support-bundle", "--file", "/run/bundle.tar.gz")
        expect(again.code == 1, "it writes over a file that is there")
        local = node.lab.directory / "bundle.tar.gz"
        guest.copy_out(node.lab, node.record, "/run/bundle.tar.gz", local)
        archive = local.read_bytes()
        files = _files(archive)
        print(f"     {len(archive) >> 10} KiB, {len(files)} files, {made.seconds:.1f} s: {' '.join(sorted(files))[:600]}")
        for secret in (chap, *_PLANTED.values(), _RECORD_SECRET, _KERNEL_SECRET.partition("=")[2], _FILE_SECRET):
            holding = [name for name, text in files.items() if secret in text]
            expect(holding == [], f"{secret} is in {holding}")
        for name, words in {
            "attachd.txt": ["attachd 0.", "OS_PASSWORD=<redacted>", "ATTACHD" if "ATTACHD" in files["attachd.txt"] else "OS_ENDPOINT"],
            "doctor.txt": ["ok        iscsid-running"], "doctor.json": ['"verdict": "ok"'],
            "inspect.txt": [v, MOUNT], "inspect.json": [v], "orphans.txt": [""], "paths.txt": [v[:8]],
            "trace.txt": [v, "log in"], "tools/iscsiadm-session.txt": [v], "tools/multipath.txt": ["dm-"],
            "multipathd/config.txt": ["defaults"], "files/etc/iscsi/nodes.txt": [v, "<redacted>"], "files/proc/1/mountinfo.txt": [MOUNT],
            "state/volumes.txt": [v], "logs/kernel.txt": ["a program said password=<redacted> <redacted>"],
            "files/etc/multipath.conf.txt": ["api_token: <redacted>"],
        }.items():
            expect(name in files, f"{name} is missing: {sorted(files)}")
            for word in words:
                expect(word in files[name], f"{name} lacks {word!r}: {files[name][:1500]}")
        node.shell(f"rm /run/bundle.tar.gz; {_RECORD} -o delete; sed -i '/api_token/d' /etc/multipath.conf")
        local.unlink()
        detach(node, v)
