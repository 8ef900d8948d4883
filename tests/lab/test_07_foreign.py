"""What an administrator made by hand stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lablib.cases import expect
from lablib.node import Attachd
from lablib.steps import MOUNT, active_paths, attach, free, reserve_elsewhere, volume

_ADMIN = "/mnt/admin"


def _log_in_by_hand(node: Attachd, info: dict[str, Any], portal: str, *, scan: str) -> None:
    """What an administrator types."""
    base = f"iscsiadm -m node -T {info['target_iqn']} -p {portal}"
    node.shell(f"""
{base} -o new >/dev/null
for setting in node.session.auth.authmethod=CHAP node.session.auth.username={info['auth_username']} \
    node.session.auth.password={info['auth_password']} node.session.scan={scan}; do
  {base} -o update -n "${{setting%%=*}}" -v "${{setting#*=}}"
done
{base} --login >/dev/null""")


def _log_out_by_hand(node: Attachd, info: dict[str, Any], portal: str) -> None:
    base = f"iscsiadm -m node -T {info['target_iqn']} -p {portal}"
    node.shell(f"{base} --logout >/dev/null; {base} -o delete")


@contextmanager
def _mounted_by_hand(node: Attachd, volume_id: str) -> Iterator[str]:
    """A volume of the administrator's, mounted and in use by a program; gives the disk's name."""
    attachment = reserve_elsewhere(node, volume_id, "by-hand", node.iqn)
    info = attachment["connection_info"]
    portal = info["target_portals"][0]
    _log_in_by_hand(node, info, portal, scan="auto")
    disk = node.shell("""
for _ in $(seq 300); do
  for disk in /sys/class/iscsi_session/session*/device/target*/*/block/sd*; do [ -e "$disk" ] && { echo "${disk##*/}"; exit 0; }; done
  sleep 0.1
done
exit 1""").strip()
    node.shell(f"udevadm settle; mkfs.ext4 -q -E nodiscard,lazy_itable_init=1 /dev/{disk}; mkdir -p {_ADMIN}; mount /dev/{disk} {_ADMIN}; "
               f"cd {_ADMIN}; setsid sh -c 'exec 3>log; while sleep 0.2; do date >&3 || exit 1; done' >/dev/null 2>&1 & echo $! > /tmp/writer")
    yield disk
    node.shell(f"kill $(cat /tmp/writer); sleep 0.3; umount {_ADMIN}; rmdir {_ADMIN}")
    _log_out_by_hand(node, info, portal)
    free(node, attachment["id"], volume_id)


def _untouched(node: Attachd, disk: str, session: str) -> None:
    expect(session in node.session_ids(), f"the administrator's {session} is gone: {node.session_ids()}")
    node.shell(f"kill -0 $(cat /tmp/writer); findmnt -n -o SOURCE {_ADMIN} | grep -qx /dev/{disk}; touch {_ADMIN}/still-writable; sync")


def test_a_disk_of_the_administrators_is_untouched_by_another_volume(node: Attachd) -> None:
    with volume(node) as theirs, volume(node) as ours:
        with _mounted_by_hand(node, theirs) as disk:
            [session] = node.session_ids()
            attached = attach(node, ours, "--mount", MOUNT, "--multipath", "required")
            expect(disk not in [path["device"] for path in attached["paths"]], f"the paths are {attached['paths']}")
            _untouched(node, disk, session)
            inspected = node.run("inspect", "-o", "json").json()
            others = [other["session"]["sid"] for other in inspected["otherSessions"]]
            expect([f"session{sid}" for sid in others] == [session], f"inspect shows {inspected['otherSessions']}")
            result = node.run("detach", ours)
            expect(result.code == 0, f"detach: {result.stderr}")
            expect(node.session_ids() == [session], f"after the detach: {node.session_ids()}")
            _untouched(node, disk, session)
            # What attachd has not attached it does not detach, even when told its volume.
            result = node.run("detach", theirs)
            expect(result.code == 0 and "nothing to do" in result.stdout, f"detach: {result}")
            _untouched(node, disk, session)


def _by_hand_first(node: Attachd, *, scan: str) -> None:
    with volume(node, "multiattach") as v:
        attachment = reserve_elsewhere(node, v, "by-hand", node.iqn)
        info = attachment["connection_info"]
        portal = info["target_portals"][0]
        _log_in_by_hand(node, info, portal, scan=scan)
        [session] = node.session_ids()
        record = node.shell("find /etc/iscsi/nodes -type f")
        attached = attach(node, v, "--mount", MOUNT, "--multipath", "required")
        expect(active_paths(attached) == 2, f"the paths are {attached['paths']}")
        expect(session in node.session_ids() and len(node.session_ids()) == 2, f"the sessions are {node.session_ids()}")
        node.shell(f"echo x > {MOUNT}/file; sync")
        result = node.run("detach", v)
        expect(result.code == 0, f"detach: {result.stderr}")
        expect(node.session_ids() == [session], f"after the detach: {node.session_ids()}")
        state = node.shell(f"cat /sys/class/iscsi_session/{session}/state").strip()
        expect(state == "LOGGED_IN", f"the session is {state}")
        expect(node.shell("find /etc/iscsi/nodes -type f") == record, "the node records are others than before")
        # attachd's own attachment is gone, the administrator's is not.
        ids = [item["id"] for item in node.cinder.attachments() if item["volume_id"] == v]
        expect(ids == [attachment["id"]], f"the attachments are {ids}")
        _log_out_by_hand(node, info, portal)
        free(node, attachment["id"], v)


def test_a_session_to_the_same_target_that_was_there_before_is_used_and_left_there(node: Attachd) -> None:
    _by_hand_first(node, scan="manual")


def test_a_session_with_a_disk_that_was_there_before_is_used_and_left_there(node: Attachd) -> None:
    _by_hand_first(node, scan="auto")
