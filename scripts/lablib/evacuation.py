"""`attachd evacuate` in a lab node: the command, the variables, the user and the rights of the chart's Deployment."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lablib import guest, kubernetes
from lablib.chart import NAMESPACE, Chart
from lablib.cluster import Cluster
from lablib.commands import wait_until
from lablib.daemon import Background
from lablib.errors import LabError
from lablib.node import BINARY

ENABLED = "--set=evacuation.enabled=true"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"

_LOG = "/run/attachd-evacuation.log"
_KUBECONFIG = "/run/attachd-evacuation.kubeconfig"

Object = dict[str, Any]


class Evacuation(Background):
    """The program, where its Pod would run: on a node that is not off."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        super().__init__(cluster.agent(node), _LOG)
        self._cluster = cluster
        kubernetes.create_node_object(cluster.lab, node)  # its Pod's token names it
        self._deployment = _deployment(cluster.agent(node).endpoint, cluster.agent(node).project)

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        pod = self._deployment["spec"]["template"]["spec"]
        [container] = pod["containers"]
        user, group = (pod["securityContext"][key] for key in ("runAsUser", "runAsGroup"))
        config = kubernetes.service_account_kubeconfig(self._cluster.lab, NAMESPACE, pod["serviceAccountName"], self._node.name, in_node=True)
        guest.copy_in(self._cluster.lab, self._node.record, config, _KUBECONFIG)
        self._node.shell(f"chown {user} {_KUBECONFIG}")
        variables = [f"{item['name']}={item['value']}" for item in container["env"]]
        argv = shlex.join([
            "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs",
            "env", "--ignore-environment", f"KUBECONFIG={_KUBECONFIG}", *variables, BINARY, *container["args"]])
        self.pid = int(self._node.shell(f"setsid {argv} < /dev/null > {_LOG} 2>&1 & echo $!"))
        ready = container["readinessProbe"]["httpGet"]["path"]
        wait_until(lambda: self._is_ready(ready), timeout=60, what="the evacuation to be ready; see its log")

    def ask(self, path: str) -> str:
        """What it answers over HTTP, as kubelet asks it; nothing where that isn't `200`."""
        [port] = [port["containerPort"] for port in self._deployment["spec"]["template"]["spec"]["containers"][0]["ports"]]
        script = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{port}{path}', timeout=20).read().decode(), end='')"
        return self._node.execute(["python3", "-c", script]).stdout

    def _is_ready(self, path: str) -> bool:
        if not self.alive():
            raise LabError(f"the evacuation ended: {self.log()[-3000:]}")
        return self.ask(path) != ""


@contextmanager
def evacuation(cluster: Cluster, node: str) -> Iterator[Evacuation]:
    """The evacuation on a node, for the time of a test. It needs `rights(cluster, ENABLED)`."""
    running = Evacuation(cluster, node)
    running.start()
    yield running
    running.end("TERM")
    cluster.agent(node).shell(f"rm {_LOG} {_KUBECONFIG}")


def declare_off(cluster: Cluster, node: str) -> None:
    """Say of a node that it is off, as an administrator does."""
    kubernetes.kubectl_output(cluster.lab, "taint", "nodes", node, f"{OUT_OF_SERVICE}=nodeshutdown:NoExecute")


def declare_back(cluster: Cluster, node: str) -> None:
    """Say that it is back."""
    kubernetes.kubectl_output(cluster.lab, "taint", "nodes", node, f"{OUT_OF_SERVICE}-")


def _deployment(endpoint: str, project: str) -> Object:
    """What the chart renders for this lab."""
    with tempfile.TemporaryDirectory(prefix="attachd-chart-") as scratch:
        flags = (ENABLED, f"--set=cinder.endpoint={endpoint}", f"--set=cinder.project={project}", "--set=log.filter=attachd=debug")
        return Chart(Path(scratch)).object("minimal", "Deployment", *flags, part="evacuation")
