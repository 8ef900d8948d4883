"""attachd as the cluster's agent of a node, with the ServiceAccount that the chart gives it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

from lablib import guest, keystone, kubernetes
from lablib.chart import NAMESPACE, RELEASE, Chart
from lablib.cluster import REQUESTS, Cluster, attach_request
from lablib.commands import wait_until
from lablib.daemon import Background, ready_condition
from lablib.errors import LabError
from lablib.pod import Pod
from lablib.pod_template import Surroundings, from_pod_template

_RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
LOG = "/run/attachd-agent.log"
KUBECONFIG = "/run/attachd-agent.kubeconfig"

Object = dict[str, Any]


class Agent(Background):
    """The agent of one node."""

    def __init__(self, cluster: Cluster, node: str = "node1") -> None:
        super().__init__(cluster.agent(node), LOG)
        self.cluster = cluster
        self.node = cluster.agent(node)
        kubernetes.create_node_object(cluster.lab, node)
        self.install_kubeconfig()

    def install_kubeconfig(self) -> None:
        """Give it its account (again after a reboot)."""
        config = kubernetes.service_account_kubeconfig(self.cluster.lab, NAMESPACE, RELEASE, self.node.name, in_node=True)
        guest.copy_in(self.cluster.lab, self.node.record, config, KUBECONFIG)

    def doctor(self, kubeconfig: str = KUBECONFIG) -> dict[str, Object]:
        """What `attachd doctor` finds on its node and in its cluster, by the checks' ids."""
        shown = self.node.run("doctor", "-o", "json", KUBECONFIG=kubeconfig, ATTACHD_NODE_NAME=self.node.name)
        return {check["id"]: check for check in shown.json()["checks"]}

    def start(self, *, wait: bool = True, **environment: str) -> None:
        """Start it, and wait until it has published its node."""
        self.begin(["--kubernetes"], {"KUBECONFIG": KUBECONFIG, "ATTACHD_NODE_NAME": self.node.name, **environment})
        if wait:
            self.wait_connector("True", "Ready")

    def wait_connector(self, status: str, reason: str, *, timeout: float = 90) -> Object:
        """Wait until the node's NodeConnector says this of being ready; give it."""

        def look() -> Object:
            if not self.alive():
                raise LabError(f"the agent ended: {self.log()[-3000:]}")
            answer = self.cluster.api.request("GET", f"/apis/attachd.dev/v1alpha1/nodeconnectors/{self.node.name}")
            found: Object = answer.ok() if answer.status == 200 else {}
            return found

        return _wait_said(self, look, f"the NodeConnector of {self.node.name}", (status, reason), timeout)


class PodAgent(Agent):
    """The agent as the chart's DaemonSet runs it: its rendered Pod, without a container engine."""

    def __init__(self, cluster: Cluster, node: str = "node1") -> None:
        super().__init__(cluster, node)
        self._pod: Optional[Pod] = None

    def begin(self, arguments: list[str], environment: dict[str, str]) -> None:
        """Start it in a new container."""
        lab = self.cluster.lab
        api = urlsplit(kubernetes.endpoint(lab, in_node=True))
        account = {"token": kubernetes.service_account_token(lab, NAMESPACE, RELEASE, self.node.name),
                   "ca.crt": kubernetes.authority(lab).ca.certificate.read_text()}
        around = Surroundings(self.node.name, f"10.0.2.{self.node.record.address}", namespace=NAMESPACE, service_account=account,
                              secrets=self.secrets(), env={"KUBERNETES_SERVICE_HOST": str(api.hostname), "KUBERNETES_SERVICE_PORT": str(api.port)})
        self._pod = Pod(self.node, from_pod_template(self._daemonset()["spec"]["template"], around))
        self._pod.start()
        self.pid = self._pod.pid()

    def values(self) -> tuple[str, dict[str, str]]:
        """The chart's values that lead to the lab's Cinder: a file of tests/chart, and what goes over it."""
        return "minimal", {"cinder.endpoint": self.node.endpoint, "cinder.project": self.node.project}

    def secrets(self) -> dict[str, dict[str, str]]:
        """The Secrets of its namespace."""
        return {}

    def log(self) -> str:
        """What it said."""
        return self._pod.logs() if self._pod else ""

    def _daemonset(self) -> Object:
        """What the chart renders for this lab."""
        file, settings = self.values()
        settings["log.filter"] = "attachd=debug"
        with tempfile.TemporaryDirectory(prefix="attachd-chart-") as scratch:
            return Chart(Path(scratch)).object(file, "DaemonSet", *(f"--set={name}={value}" for name, value in settings.items()))


class CloudPodAgent(PodAgent):
    """The same with an application credential of the lab's Keystone, in a Secret with a clouds.yaml."""

    def values(self) -> tuple[str, dict[str, str]]:
        """The chart's values that lead to the lab's Keystone."""
        return "keystone", {}

    def secrets(self) -> dict[str, dict[str, str]]:
        """The Secrets of its namespace."""
        return {"cloud": {"clouds.yaml": keystone.clouds_file(self.cluster.lab, in_node=True).read_text()}}


def _rights(*flags: str) -> list[Object]:
    """What the chart renders of accounts and roles."""
    with tempfile.TemporaryDirectory(prefix="attachd-chart-") as scratch:
        return [item for item in Chart(Path(scratch)).objects("minimal", *flags)
                if item["kind"] in _RIGHTS and "helm.sh/hook" not in item["metadata"].get("annotations", {})]


@contextmanager
def rights(cluster: Cluster, *flags: str) -> Iterator[None]:
    """The chart's ServiceAccounts and their rights, for the time of a test; agents in it have nothing else."""
    items = json.dumps({"apiVersion": "v1", "kind": "List", "items": _rights(*flags)}).encode()
    cluster.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    kubernetes.kubectl_output(cluster.lab, "apply", "-f", "-", stdin=items)
    yield
    # Not where the test failed: the runner then begins with an empty etcd.
    kubernetes.kubectl_output(cluster.lab, "delete", "nodes", "--all")
    kubernetes.kubectl_output(cluster.lab, "delete", "nodeconnectors", "--all", "--timeout=30s")
    kubernetes.kubectl_output(cluster.lab, "delete", "pods", "--all", "--namespace", NAMESPACE, "--force", "--grace-period=0")
    kubernetes.kubectl_output(cluster.lab, "delete", "-f", "-", "--timeout=60s", stdin=items)
    kubernetes.kubectl_output(cluster.lab, "delete", "namespace", NAMESPACE, "--timeout=60s")
    kubernetes.kubectl_output(cluster.lab, "delete", "events", "--all", "--namespace=default")


@contextmanager
def agent(cluster: Cluster, node: str = "node1", *, wait: bool = True, kind: type[Agent] = Agent) -> Iterator[Agent]:
    """The agent of a node, running, for the time of a test; ready, unless that isn't waited for."""
    running = kind(cluster, node)
    running.node.shell(f"rm -f {LOG}")
    running.start(wait=wait)
    yield running
    if running.alive():
        running.end("TERM")
    running.node.shell(f"rm -f {LOG} {KUBECONFIG}")


def ask(cluster: Cluster, name: str, volume: str, *, node: str = "node1", **spec: Any) -> Object:
    """Create a request."""
    created: Object = cluster.api.request("POST", REQUESTS, attach_request(name, {"nodeName": node, "volumeID": volume, **spec})).ok()
    return created


def request(cluster: Cluster, name: str) -> Object:
    """A request as the API server has it; nothing where there is none."""
    answer = cluster.api.request("GET", f"{REQUESTS}/{name}")
    found: Object = answer.ok() if answer.status == 200 else {}
    return found


def wait_ready(agent: Agent, name: str, status: str = "True", reason: str = "Attached", *, timeout: float = 180) -> Object:
    """Wait until a request says this of being ready; give it."""
    return _wait_said(agent, lambda: request(agent.cluster, name), name, (status, reason), timeout)


def _wait_said(agent: Agent, look: Callable[[], Object], what: str, ready: tuple[str, str], timeout: float) -> Object:
    """Wait until an object says this of being ready: status and reason; give it."""
    found: Object = {}

    def said() -> bool:
        nonlocal found
        found = look()
        condition = ready_condition(found.get("status"))
        return (condition.get("status"), condition.get("reason")) == ready

    try:
        wait_until(said, timeout=timeout, what=f"{what} to be {ready[1]}", interval=0.3)
    except LabError as error:
        raise LabError(f"{error}; its status is {found.get('status')}; the agent's log ends: {agent.log()[-3000:]}") from error
    return found


def delete(agent: Agent, *names: str, timeout: float = 180) -> None:
    """Delete requests, and wait until they are gone."""
    for name in names:
        agent.cluster.api.request("DELETE", f"{REQUESTS}/{name}").ok()
    try:
        wait_until(lambda: all(not request(agent.cluster, name) for name in names), timeout=timeout, what=f"{names} to go", interval=0.3)
    except LabError as error:
        raise LabError(f"{error}; {[request(agent.cluster, name) for name in names]}; the log ends: {agent.log()[-3000:]}") from error


def events(cluster: Cluster, name: str) -> list[tuple[str, str]]:
    """The types and reasons of a request's events, in their order."""
    found = cluster.api.request("GET", "/apis/events.k8s.io/v1/namespaces/default/events").ok()["items"]
    about = [event for event in found if event["regarding"].get("name") == name]
    return [(event["type"], event["reason"]) for event in sorted(about, key=lambda event: str(event["eventTime"]))]
