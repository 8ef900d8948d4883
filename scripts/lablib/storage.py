"""The storage guest: a whole Cinder on a machine of its own, with its LVM driver and the kernel's own target, LIO."""

from __future__ import annotations

from pathlib import Path

from lablib import cinder, guest
from lablib.block_storage import BlockStorage
from lablib.cinder_squashfs import MOUNTED_AT, squashfs
from lablib.commands import wait_until
from lablib.errors import LabError
from lablib.image import Image
from lablib.networks import HOST_NETWORKS, STORAGE_NETWORKS, of_storage, storage_listens, to_host
from lablib.processes import Process
from lablib.state import PROJECT_ID, Lab, Settings, Storage

TARGET_PORT = 3260
_API_PORT = 8776
_MEMORY = 1536
_VOLUMES_SIZE = 64 << 30
_READY_TIMEOUT = 600.0
_BACKEND = "lio"

_STATE = "/persist/cinder"


def portals(storage: Storage) -> list[str]:
    """Return the addresses of the target's two portals."""
    return [f"10.0.{network}.{storage.guest.address}" for network in STORAGE_NETWORKS.values()]


def volume_types() -> dict[str, dict[str, str]]:
    """Return the extra specs of each volume type."""
    backend = {"volume_backend_name": _BACKEND}
    return {"lio": backend, "multiattach": {**backend, "multiattach": "<is> True"}}


def client(storage: Storage) -> BlockStorage:
    """Return a client of the storage guest's Cinder."""
    return BlockStorage(f"http://127.0.0.1:{storage.cinder_port}", PROJECT_ID)


def log(lab: Lab) -> Path:
    """Return Cinder's log, which the guest writes to the shared directory."""
    return lab.logs / "storage.cinder.log"


def _hardware(lab: Lab, storage: Storage) -> guest.Hardware:
    node = storage.guest
    directory = lab.node_dir(node.name)
    volumes = directory / "volumes.img"
    with open(volumes, "ab") as file:
        file.truncate(_VOLUMES_SIZE)
    return guest.Hardware(
        cards=[to_host(HOST_NETWORKS[1], node, {storage.ssh_port: 22, storage.cinder_port: _API_PORT}),
               *(of_storage(lab, network) for network in STORAGE_NETWORKS.values())],
        memory=_MEMORY,
        # Only the end of this machine could lose what a guest has flushed, so the host need not write it to its disk.
        drives=[f"file={volumes},format=raw,cache=unsafe,discard=unmap", f"file={squashfs()},format=raw,readonly=on"],
        files={"cinder/cinder.conf": _write_config(directory, storage),
               "cinder/cinder.sqlite": cinder.database(cinder.program())},
        kernel_arguments="lab.role=storage",
    )


def _write_config(directory: Path, storage: Storage) -> Path:
    first, *others = portals(storage)
    config = cinder.configuration(f"{MOUNTED_AT}/etc/cinder", _STATE, ("0.0.0.0", _API_PORT), {_BACKEND: {
        "volume_driver": "cinder.volume.drivers.lvm.LVMVolumeDriver",
        "volume_group": "cinder-volumes",
        "lvm_type": "default",
        "target_helper": "lioadm",
        "target_protocol": "iscsi",
        "target_ip_address": first,
        "target_secondary_ip_addresses": ",".join(others),
        "target_port": str(TARGET_PORT),
        "report_discard_supported": "true",
    }}, _BACKEND)
    config["DEFAULT"]["rpc_response_timeout"] = "300"  # an update of an attachment takes long here
    path = directory / "cinder.conf"
    with open(path, "w") as file:
        config.write(file)
    return path


def runs(lab: Lab, storage: Storage) -> bool:
    """Tell whether the virtual machine runs."""
    return lab.processes.find(guest.process_name(storage.guest)) is not None


def launch(lab: Lab, settings: Settings, storage: Storage, image: Image) -> Process:
    """Start the virtual machine; when this returns, nodes can be started beside it."""
    lab.node_dir(storage.guest.name).mkdir(parents=True, exist_ok=True)
    lab.links_dir.mkdir(exist_ok=True)
    written = lab.share / log(lab).name
    written.touch()
    if not log(lab).is_symlink():
        log(lab).symlink_to(written)
    process = guest.launch(lab, settings, storage.guest, image, _hardware(lab, storage))

    def listening() -> bool:
        if not process.alive():
            raise LabError(f"the virtual machine of {storage.guest.name} ended; see {guest.qemu_log(lab, storage.guest)}")
        return storage_listens(lab)

    wait_until(listening, timeout=60, what="the storage guest's networks")
    return process


def wait_until_ready(lab: Lab, storage: Storage, process: Process) -> None:
    """Wait until the storage guest's Cinder can take a volume."""
    guest.wait_until_up(lab, storage.guest, process)
    _wait_for_cinder(lab, storage, process)


def _wait_for_cinder(lab: Lab, storage: Storage, process: Process) -> None:
    api = client(storage)

    def ready() -> bool:
        if not process.alive():
            raise LabError(f"the virtual machine of {storage.guest.name} ended; see {guest.console_log(lab, storage.guest)}")
        if (lab.share / "storage.cinder.ended").exists():
            raise LabError(f"Cinder in the storage guest ended; see {log(lab)}")
        return api.answers() and _BACKEND in api.pools()

    wait_until(ready, timeout=_READY_TIMEOUT, interval=1.0, what=f"Cinder in the storage guest; see {log(lab)}")
    api.ensure_types(volume_types())
    api.lift_quota()


def start_cinder(lab: Lab, storage: Storage) -> None:
    """Start Cinder in the storage guest and wait until it is ready."""
    process = lab.processes.find(guest.process_name(storage.guest))
    if process is None:
        raise LabError("the storage guest does not run; start it with: scripts/lab up --storage-guest")
    control(lab, storage, "start")
    _wait_for_cinder(lab, storage, process)


def control(lab: Lab, storage: Storage, action: str) -> None:
    """Let Cinder `start`, `stop`, `pause` or `resume` in the storage guest; its volumes and their targets stay."""
    guest.output(lab, storage.guest, ["lab-cinder", action], timeout=60)
