"""The iSCSI target: a tgtd of the lab's own, on loopback, that no other tgtd on this machine can meet."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from lablib.commands import wait_until
from lablib.errors import LabError
from lablib.packages import unpacked
from lablib.state import Lab, Settings

PROCESS = "tgtd"


def install() -> Path:
    """Return the directory with tgt unpacked: its Debian package would start a daemon on every address."""
    return unpacked("tgt")


def environment(lab: Lab, tgt: Path) -> dict[str, str]:
    """Return the environment in which tgt's programs find each other, their libraries and the lab's tgtd."""
    libraries = [str(path) for path in (tgt / "usr/lib/x86_64-linux-gnu", tgt / "lib/x86_64-linux-gnu") if path.is_dir()]
    return {
        **os.environ,
        "LC_ALL": "C",
        "TGT_IPC_SOCKET": str(lab.target_dir / "control"),
        "PERL5LIB": str(tgt / "usr/share/perl5"),
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PATH": f"{lab.target_dir / 'bin'}:{tgt / 'usr/sbin'}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
    }


def start(lab: Lab, settings: Settings, tgt: Path, volumes: Path) -> None:
    """Start tgtd and wait until it listens; the targets described in ``volumes`` are Cinder's."""
    programs = lab.target_dir / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    config = lab.target_dir / "targets.conf"
    config.write_text(f"include {volumes}/*\n")
    # Cinder runs `tgt-admin` without saying which configuration: this one, not /etc/tgt/targets.conf.
    wrapper = programs / "tgt-admin"
    wrapper.write_text(f'#!/bin/sh\nexec perl "{tgt}/usr/sbin/tgt-admin" --conf "{config}" "$@"\n')
    wrapper.chmod(0o755)

    portals = [f"portal=127.0.0.1:{settings.iscsi_port}"]
    if settings.ipv6:
        portals.append(f"portal=[::1]:{settings.iscsi_port}")
    log = lab.logs / "tgtd.log"
    process = lab.processes.start(
        PROCESS, [str(tgt / "usr/sbin/tgtd"), "-f", "--iscsi", ",".join(portals)],
        log=log, env=environment(lab, tgt))

    def listening() -> bool:
        if not process.alive():
            raise LabError(f"tgtd ended; see {log}")
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", settings.iscsi_port)) == 0

    wait_until(listening, timeout=60, what=f"tgtd to listen on port {settings.iscsi_port}; see {log}")
