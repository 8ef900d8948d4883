"""Cinder's own LVM and LIO drivers: LUN 0, an ACL for the initiator's name, ALUA, a WWID that proves nothing."""

from __future__ import annotations

from lablib.cases import expect
from lablib.node import Attachd
from lablib.steps import MOUNT, active_paths, attach, detach, nothing_left, volume

_NAME = "/etc/iscsi/initiatorname.iscsi"


def test_lio_over_two_paths_with_chap_keeps_its_data(node: Attachd) -> None:
    storage = node.on_storage_guest()
    with volume(storage, "lio") as v:
        attached = attach(storage, v, "--mount", MOUNT, "--multipath", "required")
        expect([path["lun"] for path in attached["paths"]] == [0, 0], f"not LUN 0 on both paths: {attached['paths']}")
        expect(active_paths(attached) == 2, f"not two active paths: {attached['paths']}")
        maps = storage.shell("multipath -ll")
        expect("alua" in maps and "LIO-ORG" in maps, f"no ALUA map over LIO: {maps}")
        storage.shell(f"cd {MOUNT}; dd if=/dev/urandom of=data bs=1M count=4 conv=fsync status=none; sha256sum data > sum; sync")
        detach(storage, v)
        attach(storage, v, "--mount", MOUNT, "--multipath", "required")
        storage.shell(f"cd {MOUNT}; sha256sum -c sum")
        detach(storage, v)


def test_lio_raw_block_over_one_path_read_only_refuses_writes(node: Attachd) -> None:
    storage = node.on_storage_guest()
    with volume(storage, "lio") as v:
        attached = attach(storage, v, "--block", "--mode", "ro", "--multipath", "disabled")
        expect(attached["device"].startswith("/dev/sd"), f"the device is {attached['device']}")
        written = storage.execute(["dd", "if=/dev/zero", f"of={attached['device']}", "bs=4096", "count=1", "oflag=direct"])
        expect(written.code != 0, "a read-only block device took a write")
        detach(storage, v)


def test_an_initiator_name_that_the_acl_does_not_know_is_refused_and_taken_back(node: Attachd) -> None:
    storage = node.on_storage_guest()
    with volume(storage, "lio") as v:
        # iscsid keeps the name that it was started with, and Cinder makes the ACL for the file's.
        storage.shell(f"cp {_NAME} /tmp/name; echo InitiatorName=iqn.2026-11.dev.attachd.lab:another > {_NAME}")
        try:
            result = storage.run("attach", v, "--mount", MOUNT, timeout=300)
        finally:
            storage.shell(f"cat /tmp/name > {_NAME}")
        expect(result.code == 3, f"exit code {result.code}: {result.stderr}")
        for words in ("refused the login", "[NoPath]"):
            expect(words in result.stderr, f"it doesn't say {words!r}: {result.stderr}")
        nothing_left(storage, v)
