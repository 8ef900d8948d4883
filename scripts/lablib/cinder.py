"""A real Cinder for the lab: its Python environment, configuration, start and stop."""

from __future__ import annotations

import configparser
import dataclasses
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from lablib import keystone, target
from lablib.block_storage import BlockStorage
from lablib.cache import artefact, content_key
from lablib.commands import run, wait_until
from lablib.errors import LabError
from lablib.packages import virtual_environment
from lablib.state import PROJECT_ID, Lab, Settings

PROCESS = "cinder"
_VERSION = "29.0.0"
_SERVICE = Path(__file__).parent / "cinder_service"
_CONSTRAINTS = _SERVICE / "constraints.txt"

_PATHS = ["10.0.2.2", "10.0.3.2"]
_PATHS_V6 = ["fd00:2::2", "fd00:3::2"]
DEFAULT_TYPE = "tgt"


@dataclasses.dataclass(frozen=True)
class Program:
    """An installed Cinder: the Python that runs it, and where that finds modules and libraries beyond its own."""

    key: str
    python: Path
    modules: tuple[Path, ...] = ()
    libraries: tuple[Path, ...] = ()

    def argv(self, config: Path, *options: str) -> list[str]:
        """Return the command line of the lab's service."""
        return [str(self.python), str(_SERVICE / "serve.py"), "--config-file", str(config), *options]

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return an environment for it."""
        libraries = [base.get("LD_LIBRARY_PATH", ""), *map(str, self.libraries)]
        return {
            **base,
            "PYTHONPATH": ":".join(map(str, (_SERVICE, *self.modules))),
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def install() -> Path:
    """Return the virtual environment with Cinder in it."""
    return virtual_environment("cinder", _VERSION, _CONSTRAINTS)


def program() -> Program:
    """Return the Cinder that everything is tested with."""
    venv = install()
    return Program(venv.name, venv / "bin/python")


def database(installed: Program) -> Path:
    """Return an empty database with Cinder's tables: making them takes longer than all else at the start."""

    def build(directory: Path) -> None:
        config = directory / "cinder.conf"
        config.write_text(f"[database]\nconnection = sqlite:///{directory}/cinder.sqlite\n"
                          f"[DEFAULT]\ntransport_url = fake:/\nstate_path = {directory}\n")
        run(installed.argv(config, "--only-database"), timeout=300, nice=True, env=installed.environment(os.environ))

    built = artefact("cinder-database", content_key(installed.key, _SERVICE / "serve.py"), build)
    return built / "cinder.sqlite"


def backends(settings: Settings) -> dict[str, dict[str, str]]:
    """Return the options of each back end; a volume type of the same name selects it."""

    def tgt(driver: str, addresses: list[str]) -> dict[str, str]:
        return {
            "volume_driver": f"lab_drivers.{driver}",
            "target_helper": "tgtadm",
            "target_protocol": "iscsi",
            "target_ip_address": addresses[0],
            "target_secondary_ip_addresses": ",".join(addresses[1:]),
            "target_port": str(settings.iscsi_port),
            "report_discard_supported": "true",
        }

    options = {
        "tgt": tgt("FileLVMDriver", _PATHS),
        "tgt-single": tgt("FileLVMDriver", _PATHS[:1]),
        "tgt-nochap": tgt("FileLVMWithoutChapDriver", _PATHS),
        "other": tgt("FibreChannelOnlyDriver", _PATHS),
    }
    if settings.ipv6:
        options["tgt-v6"] = tgt("FileLVMDriver", _PATHS_V6)
    return options


def volume_types(settings: Settings) -> dict[str, dict[str, str]]:
    """Return the extra specs of each volume type."""
    types = {name: {"volume_backend_name": name} for name in backends(settings)}
    types["multiattach"] = {"volume_backend_name": "tgt", "multiattach": "<is> True"}
    return types


def volumes_dir(lab: Lab) -> Path:
    """Return where Cinder describes its targets for tgt-admin."""
    return lab.cinder_dir / "targets"


def client(settings: Settings) -> BlockStorage:
    """Return a client of the lab's Cinder."""
    return BlockStorage(f"http://127.0.0.1:{settings.cinder_port}", PROJECT_ID)


def configuration(
    installed: str, state: str, listen: tuple[str, int], backends: Mapping[str, Mapping[str, str]], default_type: str
) -> configparser.ConfigParser:
    """Return a configuration; `installed` is where the environment's etc/cinder is, `state` a directory to write to."""
    config = configparser.ConfigParser(interpolation=None)
    config["DEFAULT"] = {
        "auth_strategy": "noauth",
        "transport_url": "fake:/",
        "api_paste_config": f"{installed}/api-paste.ini",
        "resource_query_filters_file": f"{installed}/resource_filters.json",
        "rootwrap_config": f"{installed}/rootwrap.conf",
        "state_path": state,
        "my_ip": "127.0.0.1",
        "host": "lab",
        "osapi_volume_listen": listen[0],
        "osapi_volume_listen_port": str(listen[1]),
        "osapi_volume_workers": "1",
        "enabled_backends": ",".join(backends),
        "default_volume_type": default_type,
        # The services of one process share a heartbeat: a late one must not count as a dead service.
        "service_down_time": "315360000",
    }
    config["database"] = {"connection": f"sqlite:///{state}/cinder.sqlite"}
    config["oslo_concurrency"] = {"lock_path": f"{state}/locks"}
    config["coordination"] = {"backend_url": f"file://{state}/coordination"}
    for name, options in backends.items():
        config[name] = {"volume_backend_name": name, "volume_clear": "none", **options}
    return config


def with_files_in(
    lab: Lab, directory: Path, backends: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Return the back ends' options with where their volumes are, and where their targets are described for tgt-admin."""
    volumes = {
        "volume_group": os.path.relpath(directory / "volumes", "/dev"),  # the driver puts "/dev/" before it
        "volumes_dir": str(volumes_dir(lab)),
    }
    return {name: {**volumes, **options} for name, options in backends.items()}


def start(lab: Lab, settings: Settings) -> None:
    """Start Cinder and wait until every back end can take a volume."""
    if lab.processes.find(PROCESS):
        return
    directory = lab.cinder_dir
    config = configuration(f"{install()}/etc/cinder", str(directory), ("127.0.0.1", settings.cinder_port),
                           with_files_in(lab, directory, backends(settings)), DEFAULT_TYPE)
    if settings.keystone:
        config["lab"] = {"keystone_listen_port": str(settings.keystone.cinder_port)}
        config["keystone_authtoken"] = keystone.middleware(settings.keystone)
    launch(lab, PROCESS, program(), directory, config)
    prepare(lab, settings, PROCESS, client(settings))


def launch(lab: Lab, name: str, installed: Program, directory: Path, config: configparser.ConfigParser) -> None:
    """Start a Cinder whose files are in a directory."""
    for part in (volumes_dir(lab), *(directory / part for part in ("volumes", "locks", "coordination"))):
        part.mkdir(parents=True, exist_ok=True)
    if not (directory / "cinder.sqlite").exists():
        shutil.copyfile(database(installed), directory / "cinder.sqlite")
    path = directory / "cinder.conf"
    with open(path, "w") as file:
        config.write(file)
    environment = installed.environment(target.environment(lab, target.install()))
    lab.processes.start(name, installed.argv(path), log=lab.logs / f"{name}.log", env=environment)


def prepare(lab: Lab, settings: Settings, name: str, api: BlockStorage) -> None:
    """Wait until every back end can take a volume, and make the volume types."""
    log = lab.logs / f"{name}.log"
    names = set(backends(settings))

    def ready() -> bool:
        if not lab.processes.find(name):
            raise LabError(f"Cinder ended; see {log}")
        return api.answers() and names <= api.pools()

    wait_until(ready, timeout=240, what=f"Cinder's back ends ({' '.join(sorted(names))}); see {log}")
    api.ensure_types(volume_types(settings))
    api.lift_quota()


def stop(lab: Lab, name: str = PROCESS) -> bool:
    """Stop Cinder; its volumes, and their targets in tgtd, stay."""
    return lab.processes.stop(name)


def pause(lab: Lab, paused: bool, name: str = PROCESS) -> None:
    """Freeze Cinder (it accepts connections and answers nothing), or let it go on."""
    process = lab.processes.find(name)
    if process is None:
        raise LabError("Cinder does not run; start it with: scripts/lab cinder start")
    process.send(signal.SIGSTOP if paused else signal.SIGCONT)
