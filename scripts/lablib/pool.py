"""A storage that gives everything again: one target for all volumes, the lowest free LUN, a WWID that belongs to the LUN.

A bare tgtd does so by itself. It is made of the lab's tgtd by hand, and of a proxy before Cinder: what Cinder tells a node
of its own target, the proxy replaces by the pool's.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lablib import target
from lablib.commands import wait_until
from lablib.errors import LabError
from lablib.node import Attachd
from lablib.proxy import Proxy, before_cinder
from lablib.steps import backing_file

IQN = "iqn.2026-11.dev.attachd.lab:pool"
# Far from those that Cinder's tgt-admin gives.
_TID = "900"


class Pool:
    """The target, and which volume has which LUN."""

    def __init__(self, node: Attachd, proxy: Proxy) -> None:
        self._node = node
        self.endpoint = proxy.endpoint_in_node
        self.luns: dict[int, str] = {}
        # Which volume an attachment that the node knows is for.
        self._attachments: dict[str, str] = {}
        # Requests of several attachds come at once.
        self._turn = threading.Lock()
        proxy.behaviour.rewrite = self._rewrite

    @property
    def portals(self) -> list[str]:
        """Its two portals, as a node reaches them."""
        port = self._node.lab.settings().iscsi_port
        return [f"10.0.2.2:{port}", f"10.0.3.2:{port}"]

    def export(self, volume_id: str, lun: int | None = None, *, wwid_of: int | None = None) -> int:
        """Give a volume a LUN: the lowest free one, or this one."""
        number = lun or next(number for number in range(1, 250) if number not in self.luns)
        self._lun("new", number, "--backing-store", str(backing_file(self._node, volume_id)))
        # tgtd makes the WWID of this: of the target and the LUN, and of nothing that is the volume's.
        identity = f"pool{wwid_of or number:08d}"
        self._lun("update", number, "--params", f"scsi_id={identity},scsi_sn={identity}")
        self.luns[number] = volume_id
        return number

    def withdraw(self, lun: int) -> str:
        """Take a LUN away, whoever uses it; give the volume that had it."""
        wait_until(lambda: self._deleted(lun), timeout=60, what=f"no command to be under way on LUN {lun}", interval=0.3)
        return self.luns.pop(lun)

    def _deleted(self, lun: int) -> bool:
        try:
            self._lun("delete", lun)
        except LabError as error:
            if "still active" in str(error):
                return False
            raise
        return True

    def withdraw_volume(self, volume_id: str) -> None:
        """Take a volume's LUNs away."""
        for lun in [lun for lun, held in self.luns.items() if held == volume_id]:
            self.withdraw(lun)

    def _lun(self, op: str, lun: int, *more: str) -> None:
        _tgtadm(self._node, "--op", op, "--mode", "logicalunit", "--tid", _TID, "--lun", str(lun), *more)

    def _rewrite(self, method: str, path: str, body: bytes) -> bytes:
        with self._turn:
            return self._rewritten(method, path, body)

    def _rewritten(self, method: str, path: str, body: bytes) -> bytes:
        attachment = path.rpartition("/attachments/")[2]
        if method == "DELETE":
            # As a storage does: what was exported for it goes with it.
            self.withdraw_volume(self._attachments.pop(attachment, ""))
        if b"connection_info" not in body:
            return body
        answer = json.loads(body)
        info = answer.get("attachment", {}).get("connection_info")
        if not info:
            return body
        volume_id = self._attachments.setdefault(attachment, info["volume_id"])
        held = next((lun for lun, volume in self.luns.items() if volume == volume_id), None)
        lun = held or self.export(volume_id)
        for key in [key for key in info if key.startswith("auth_")]:
            del info[key]
        info.update(target_iqn=IQN, target_portal=self.portals[0], target_lun=lun, target_discovered=False,
                    target_iqns=[IQN] * 2, target_portals=self.portals, target_luns=[lun] * 2)
        return json.dumps(answer).encode()


@contextmanager
def pool(node: Attachd) -> Iterator[Pool]:
    """The storage for the time of a test; pass `OS_ENDPOINT=pool.endpoint` to attachd."""
    _tgtadm(node, "--op", "new", "--mode", "target", "--tid", _TID, "--targetname", IQN)
    try:
        _tgtadm(node, "--op", "bind", "--mode", "target", "--tid", _TID, "--initiator-address", "ALL")
        with before_cinder(node.cinder_port) as proxy:
            yield Pool(node, proxy)
    finally:
        _tgtadm(node, "--op", "delete", "--mode", "target", "--tid", _TID, "--force")


def _tgtadm(node: Attachd, *arguments: str) -> None:
    tgt: Path = target.install()
    done = subprocess.run([str(tgt / "usr/sbin/tgtadm"), "--lld", "iscsi", *arguments], env=target.environment(node.lab, tgt),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise LabError(f"tgtadm {' '.join(arguments)}: {done.stderr.strip()}")

