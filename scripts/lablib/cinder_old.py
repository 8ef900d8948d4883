"""An older Cinder beside the lab's, for what clouds of today run: that of Debian 12, unpacked and not installed.

It has no Keystone. It shares tgtd and the project's id with the lab's Cinder, and nothing else.
"""

from __future__ import annotations

from pathlib import Path

from lablib import cinder
from lablib.block_storage import BlockStorage
from lablib.cache import locked
from lablib.commands import run
from lablib.errors import LabError
from lablib.packages import SYSTEM_PYTHON, unpacked
from lablib.state import PROJECT_ID, Lab, free_port

NAME = "old"  # for scripts/lab --cinder
PROCESS = "cinder-old"
_RELEASE = "21."


def start(lab: Lab) -> None:
    """Start it and wait until every back end can take a volume."""
    lab.settings()
    root, program = _install()  # the long part, and no other command of the lab has to wait for it
    cinder.database(program)
    with locked(lab.lock_file, f"lab {lab.name}"):
        if lab.processes.find(PROCESS):
            return
        settings = lab.settings()
        if settings.cinder_old_port is None:
            settings.cinder_old_port = free_port(settings.ports)
            lab.save(settings)
        backends = {
            # As this release calls it.
            name: {**options, "iscsi_secondary_ip_addresses": options["target_secondary_ip_addresses"]}
            for name, options in cinder.backends(settings).items()
        }
        directory = lab.cinder_old_dir
        config = cinder.configuration(f"{root}/etc/cinder", str(directory), ("127.0.0.1", settings.cinder_old_port),
                                      cinder.with_files_in(lab, directory, backends), cinder.DEFAULT_TYPE)
        config["DEFAULT"]["api_paste_config"] = f"{root}/usr/share/cinder-common/api-paste.ini"
        cinder.launch(lab, PROCESS, program, directory, config)
        cinder.prepare(lab, settings, PROCESS, client(lab))


def endpoint(lab: Lab) -> str:
    """Return where it listens; raise LabError if it was never started."""
    port = lab.settings().cinder_old_port
    if port is None:
        raise LabError(f"this lab has no older Cinder; start it with: scripts/lab --name {lab.name} cinder start --cinder {NAME}")
    return f"http://127.0.0.1:{port}"


def client(lab: Lab) -> BlockStorage:
    """Return a client of it."""
    return BlockStorage(endpoint(lab), PROJECT_ID)


def _install() -> tuple[Path, cinder.Program]:
    root = unpacked("cinder-common")
    modules = root / "usr/lib/python3/dist-packages"
    if not list(modules.glob(f"cinder-{_RELEASE}*")):
        raise LabError(f"the older Cinder is release {_RELEASE}x, of Debian 12's packages; this machine's have another: "
                       + (", ".join(path.name for path in modules.glob("cinder-*")) or "none"))
    python = run([SYSTEM_PYTHON, "--version"], timeout=30)
    return root, cinder.Program(f"{root.name} {python}", Path(SYSTEM_PYTHON), (modules,), (root / "usr/lib/x86_64-linux-gnu",))
