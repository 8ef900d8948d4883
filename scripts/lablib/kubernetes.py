"""A real Kubernetes API for the lab: etcd, kube-apiserver and, where wished for, kube-controller-manager.

There is no scheduler and no kubelet: a Node is an object that a test makes, and a Pod stays what was written.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from lablib.cache import locked
from lablib.commands import run, tail, wait_until
from lablib.errors import LabError
from lablib.kubernetes_api import KubernetesApi
from lablib.kubernetes_credentials import Authority, client_certificate, write_kubeconfig
from lablib.kubernetes_programs import program
from lablib.node import Result
from lablib.processes import Process
from lablib.report import say
from lablib.state import Kubernetes, Lab, free_port

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"

_HOST = "127.0.0.1"
_HOST_IN_NODE = "10.0.2.2"
# Owners and their dependents, namespaces' contents, the service account `default`, the Pods of a DaemonSet.
_CONTROLLERS = ("garbage-collector-controller", "namespace-controller", "serviceaccount-controller", "daemonset-controller")
_READY_TIMEOUT = 240.0
_KUBECTL_TIMEOUT = 60.0
_ADMIN = "admin"


def start(lab: Lab, *, controller_manager: bool = False) -> None:
    """Start what doesn't run yet of etcd, API server and (if wished for) controller manager; return when they are ready.

    The garbage collector notices a new kind of objects, such as that of a CRD, up to half a minute after it appeared.
    """
    lab.settings()
    for name in (ETCD, API_SERVER, "kubectl", *((CONTROLLER_MANAGER,) if controller_manager else ())):
        program(name)  # the long part, and no other command of the lab has to wait for it
    with locked(lab.lock_file, f"lab {lab.name}"):
        _settle(lab)
        start_etcd(lab)
        start_api_server(lab)
        if controller_manager:
            _start_controller_manager(lab)


def stop(lab: Lab, *, at_once: bool = False) -> list[str]:
    """End all of it and return what ran; the data stays for the next start."""
    # An API server without its etcd doesn't end in order.
    return [name for name in (CONTROLLER_MANAGER, API_SERVER, ETCD) if lab.processes.stop(name, at_once=at_once)]


def reset(lab: Lab) -> None:
    """End all of it and forget what was stored: the next start begins with an empty cluster."""
    stop(lab, at_once=True)
    shutil.rmtree(lab.kubernetes_dir / "etcd", ignore_errors=True)


def start_etcd(lab: Lab) -> None:
    """Start etcd with the data that it had, and wait until it answers."""
    url = f"http://{_HOST}:{record(lab).etcd_port}"

    def healthy() -> bool:
        return b'"true"' in _get(f"{url}/health")

    _start(lab, ETCD, [
        f"--data-dir={lab.kubernetes_dir / 'etcd'}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls=http://{_HOST}:0",  # it has no peers
        "--unsafe-no-fsync",  # only the end of this machine could lose something
        "--log-level=warn",
    ], healthy)


def stop_etcd(lab: Lab) -> bool:
    """Stop etcd and tell whether it ran; its data stays. The API server goes on, and answers with errors."""
    return lab.processes.stop(ETCD)


def start_api_server(lab: Lab) -> None:
    """Start the API server and wait until it is ready. It needs etcd."""
    if not lab.processes.find(ETCD):
        raise LabError("the API server needs etcd, which doesn't run; start it with: scripts/lab kube start etcd")
    ports, keys = record(lab), authority(lab)
    _start(lab, API_SERVER, [
        f"--etcd-servers=http://{_HOST}:{ports.etcd_port}",
        f"--bind-address={_HOST}",
        f"--advertise-address={_HOST}",
        f"--secure-port={ports.api_port}",
        f"--tls-cert-file={keys.server.certificate}",
        f"--tls-private-key-file={keys.server.key}",
        f"--client-ca-file={keys.ca.certificate}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={keys.service_account_public_key}",
        f"--service-account-signing-key-file={keys.service_account_key}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--authorization-mode=RBAC",
        "--allow-privileged=true",
        "--endpoint-reconciler-type=none",  # the Service `kubernetes` leads nowhere: there is no network of Pods
    ], lambda: ready(lab))


def stop_api_server(lab: Lab) -> bool:
    """Stop the API server and tell whether it ran: connections are refused from now on."""
    return lab.processes.stop(API_SERVER)


def pause_api_server(lab: Lab, paused: bool) -> None:
    """Freeze the API server (it accepts connections and answers nothing), or let it go on."""
    process = lab.processes.find(API_SERVER)
    if process is None:
        raise LabError("the API server does not run; start it with: scripts/lab kube start")
    process.send(signal.SIGSTOP if paused else signal.SIGCONT)


def ready(lab: Lab) -> bool:
    """Tell whether the API server says that it is ready."""
    try:
        return client(lab).request("GET", "/readyz", timeout=10).status == 200
    except LabError:
        return False


def _start_controller_manager(lab: Lab) -> None:
    port, keys = record(lab).controller_manager_port, authority(lab)
    anybody = KubernetesApi(f"https://{_HOST}:{port}", keys.ca.certificate)

    def healthy() -> bool:
        with contextlib.suppress(LabError):
            return anybody.request("GET", "/healthz", timeout=10).status == 200
        return False

    _start(lab, CONTROLLER_MANAGER, [
        f"--kubeconfig={_kubeconfig(lab, _ADMIN)}",
        f"--controllers={','.join(_CONTROLLERS)}",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={keys.service_account_key}",
        f"--root-ca-file={keys.ca.certificate}",
        f"--tls-cert-file={keys.server.certificate}",
        f"--tls-private-key-file={keys.server.key}",
        f"--bind-address={_HOST}",
        f"--secure-port={port}",
        "--leader-elect=false",
    ], healthy)


def client(lab: Lab, *, token: Optional[str] = None) -> KubernetesApi:
    """Return a client of the API: the owner of a token, or the administrator."""
    keys = authority(lab)
    certificate = None if token else keys.admin
    return KubernetesApi(endpoint(lab), keys.ca.certificate, certificate=certificate, token=token)


def kubectl(lab: Lab, *argv: str, stdin: bytes = b"", kubeconfig: Optional[Path] = None,
            timeout: float = _KUBECTL_TIMEOUT) -> Result:
    """Run kubectl, as the administrator or with another kubeconfig, whatever its exit code."""
    command = kubectl_command(lab, argv, kubeconfig)
    begun = time.monotonic()
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"no end after {timeout:.0f} s: kubectl {' '.join(argv)}") from error
    return Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"),
                  time.monotonic() - begun)


def kubectl_command(lab: Lab, argv: Sequence[str], kubeconfig: Optional[Path] = None) -> list[str]:
    """Return the command line of kubectl."""
    record(lab)
    return [str(program("kubectl")), f"--kubeconfig={kubeconfig or _kubeconfig(lab, _ADMIN)}",
            f"--cache-dir={lab.kubernetes_dir / 'kubectl-cache'}", *argv]


def kubectl_output(lab: Lab, *argv: str, stdin: bytes = b"") -> str:
    """Run kubectl as the administrator and return its output; raise LabError if it fails."""
    return run(kubectl_command(lab, argv), timeout=_KUBECTL_TIMEOUT, stdin=stdin, shown=f"kubectl {' '.join(argv)}")


def admin_kubeconfig(lab: Lab, *, in_node: bool = False) -> Path:
    """Write a kubeconfig of the administrator and return where it is; ``in_node`` is for use in a lab node."""
    return _write_kubeconfig(lab, _ADMIN, client_certificate(authority(lab).admin), "default", in_node)


def service_account_kubeconfig(lab: Lab, namespace: str, name: str, node: Optional[str] = None, *, in_node: bool = False) -> Path:
    """Write a kubeconfig with a token of a ServiceAccount and return where it is.

    With a node, the token is that of a Pod on this Node, as a kubelet gives it: it names the Node, and is void when the
    Pod is gone. Namespace, ServiceAccount and Pod are made where they are missing; the Node is not.
    ``in_node`` is for use in a lab node, where the API server has another address.
    """
    token = service_account_token(lab, namespace, name, node)
    stem = f"{namespace}.{name}" + (f".{node}" if node else "")
    return _write_kubeconfig(lab, stem, {"token": token}, namespace, in_node)


def service_account_token(lab: Lab, namespace: str, name: str, node: Optional[str] = None) -> str:
    """Return a new token of a ServiceAccount; see `service_account_kubeconfig`."""
    api = client(lab)
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    _ensure(api, "/api/v1/namespaces", {"metadata": {"name": namespace}})
    _ensure(api, account, {"metadata": {"name": name}})
    spec: dict[str, Any] = {"expirationSeconds": 24 * 3600}
    if node:
        pod = _ensure(api, f"/api/v1/namespaces/{namespace}/pods", {
            "metadata": {"name": f"{name}-{node}"},
            "spec": {"serviceAccountName": name, "nodeName": node, "containers": [{"name": "none", "image": "none"}]}})
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    answer = api.request("POST", f"{account}/{name}/token", {"spec": spec}).ok()
    return str(answer["status"]["token"])


def create_node_object(lab: Lab, name: str) -> dict[str, Any]:
    """Make the object of a Node, ready and without taints (nobody else would say so), and return it."""
    api = client(lab)
    _ensure(api, "/api/v1/nodes", {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}}})
    patch = "application/merge-patch+json"
    api.request("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, content_type=patch).ok()
    ready_now = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "made by the lab"}
    node = api.request("PATCH", f"/api/v1/nodes/{name}/status", {"status": {"conditions": [ready_now]}}, content_type=patch).ok()
    return dict(node)


def endpoint(lab: Lab, *, in_node: bool = False) -> str:
    """Return the URL of the API server, for this machine or for a lab node."""
    return f"https://{_HOST_IN_NODE if in_node else _HOST}:{record(lab).api_port}"


def authority(lab: Lab) -> Authority:
    """Return the lab's certificate authority and what it has signed."""
    return Authority(lab.kubernetes_dir / "pki")


def record(lab: Lab) -> Kubernetes:
    """Return what is recorded of the lab's Kubernetes API; raise LabError if it was never started."""
    found = lab.settings().kubernetes
    if found is None:
        raise LabError(f"the lab {lab.name!r} has no Kubernetes API; start it with: scripts/lab --name {lab.name} kube start")
    return found


def status(lab: Lab) -> Optional[dict[str, Any]]:
    """Describe it: what runs, and how to reach it; None if it was never started."""
    if lab.settings().kubernetes is None:
        return None

    def pid(name: str) -> Optional[int]:
        process = lab.processes.find(name)
        return process.pid if process else None

    process = lab.processes.find(API_SERVER)
    return {
        "pid": pid(API_SERVER),
        "paused": process.paused() if process else False,
        "etcd_pid": pid(ETCD),
        "controller_manager_pid": pid(CONTROLLER_MANAGER),
        "endpoint": endpoint(lab),
        "endpoint_in_guest": endpoint(lab, in_node=True),
        "kubeconfig": str(_kubeconfig(lab, _ADMIN)),
    }


def _settle(lab: Lab) -> None:
    """Choose ports and make keys, once in the life of a lab."""
    settings = lab.settings()
    if settings.kubernetes is None:
        ports: list[int] = []
        for _ in range(3):
            ports.append(free_port(settings.ports + ports))
        settings.kubernetes = Kubernetes(*ports)
        lab.save(settings)
    lab.kubernetes_dir.mkdir(exist_ok=True)
    authority(lab).make([_HOST, _HOST_IN_NODE])
    admin_kubeconfig(lab)


def _start(lab: Lab, name: str, options: Sequence[str], is_ready: Callable[[], bool]) -> None:
    if lab.processes.find(name):
        return
    log = lab.logs / f"{name}.log"
    before = log.stat().st_size if log.exists() else 0
    begun = time.monotonic()
    process = lab.processes.start(name, [str(program(name)), *options], log=log)
    try:
        wait_until(lambda: _alive(name, process) and is_ready(), timeout=_READY_TIMEOUT, what=f"{name} to be ready")
    except LabError as error:
        lab.processes.stop(name, at_once=True)
        raise LabError(f"{error}; the end of {log}:\n{tail(log.read_bytes()[before:].decode(errors='replace'))}") from error
    say(f"{name}: {time.monotonic() - begun:.1f} s")


def _alive(name: str, process: Process) -> bool:
    if not process.alive():
        raise LabError(f"{name} ended")
    return True


def _get(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as response:
            return bytes(response.read())
    except OSError:
        return b""


def _ensure(api: KubernetesApi, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Create an object unless there is one of its name, and return what there is."""
    answer = api.request("POST", path, body)
    if answer.status == 409 and isinstance(answer.body, dict) and answer.body.get("reason") == "AlreadyExists":
        answer = api.request("GET", f"{path}/{body['metadata']['name']}")
    return dict(answer.ok())


def _kubeconfig(lab: Lab, stem: str) -> Path:
    return lab.kubernetes_dir / "kubeconfigs" / f"{stem}.yaml"


def _write_kubeconfig(lab: Lab, stem: str, user: dict[str, str], namespace: str, in_node: bool) -> Path:
    path = _kubeconfig(lab, stem + (".in-node" if in_node else ""))
    write_kubeconfig(path, endpoint(lab, in_node=in_node), authority(lab).ca.certificate, user, namespace)
    return path
