"""What the tests of tests/lab/kube stand on: a Kubernetes API with attachd's custom resources, and nodes with attachd."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from lablib import cases, kubernetes
from lablib.kubernetes_api import KubernetesApi
from lablib.node import Attachd, Result
from lablib.state import PROJECT_DIR, Lab

CRDS = PROJECT_DIR / "crds"
REQUESTS = "/apis/attachd.dev/v1alpha1/volumeattachrequests"
_NAMESPACES = {"default", "kube-system", "kube-public", "kube-node-lease"}


def attach_request(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Return a VolumeAttachRequest, as it is sent to the API."""
    return {"apiVersion": "attachd.dev/v1alpha1", "kind": "VolumeAttachRequest", "metadata": {"name": name}, "spec": spec}


class Cluster:
    """What a test gets. `lablib.kubernetes` has more: `service_account_kubeconfig`, `create_node_object`, `stop_etcd` …"""

    def __init__(self, lab: Lab, binary: Callable[[], Path]) -> None:
        self.lab = lab
        self.agents: dict[str, Attachd] = {}
        self._binary = binary

    @property
    def api(self) -> KubernetesApi:
        """The API, as the administrator sees it."""
        return kubernetes.client(self.lab)

    def kubectl(self, *argv: str, stdin: bytes = b"") -> Result:
        """Run kubectl as the administrator, whatever its exit code."""
        return kubernetes.kubectl(self.lab, *argv, stdin=stdin)

    def agent(self, node: str = "node1") -> Attachd:
        """A lab node with attachd on it."""
        if node not in self.agents:
            agent = Attachd(self.lab, node)
            agent.install(self._binary())
            self.agents[node] = agent
        return self.agents[node]


class ClusterBench:
    """A cluster that is clean between two tests: no custom resource, no Node, no namespace, nothing on a used node."""

    def __init__(self, lab: Lab, binary: Callable[[], Path]) -> None:
        self._cluster = Cluster(lab, binary)
        install_crds(lab)

    def subject(self) -> Cluster:
        """The cluster."""
        return self._cluster

    def left_behind(self) -> list[str]:
        """What is in the API, on the nodes that tests have used, or in Cinder."""
        api = self._cluster.api
        left = [f"{item['kind']} {item['metadata']['name']}" for path in _custom_resources(api) for item in _items(api, path)]
        left += [f"Node {item['metadata']['name']}" for item in _items(api, "/api/v1/nodes")]
        left += [f"namespace {item['metadata']['name']}" for item in _items(api, "/api/v1/namespaces")
                 if item["metadata"]["name"] not in _NAMESPACES]
        for agent in self._cluster.agents.values():
            left += [f"{line} on {agent.name}" for line in agent.leftovers()]
        return left + cases.left_in_cinder(Attachd(self._cluster.lab, "node1"))

    def renew(self) -> None:
        """Begin with an empty etcd, and make the nodes that tests have used anew."""
        for agent in self._cluster.agents.values():
            cases.renew_node(agent)
        self._cluster.agents.clear()
        kubernetes.reset(self._cluster.lab)
        kubernetes.start(self._cluster.lab, controller_manager=True)
        install_crds(self._cluster.lab)


def install_crds(lab: Lab) -> None:
    """Install attachd's custom resource definitions, and wait until the API server serves them."""
    kubernetes.kubectl_output(lab, "apply", "--server-side", "--filename", str(CRDS))
    kubernetes.kubectl_output(lab, "wait", "--for=condition=Established", "--timeout=50s", "--filename", str(CRDS))


def _custom_resources(api: KubernetesApi) -> list[str]:
    crds = _items(api, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")
    return [f"/apis/{crd['spec']['group']}/{crd['spec']['versions'][0]['name']}/{crd['spec']['names']['plural']}"
            for crd in crds if crd["spec"]["group"] == "attachd.dev"]


def _items(api: KubernetesApi, path: str) -> list[dict[str, Any]]:
    body = api.request("GET", path).ok()
    return [{"kind": body["kind"].removesuffix("List"), **item} for item in body["items"]]
