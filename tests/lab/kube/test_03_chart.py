"""The Helm chart on a real API server: it is taken, and the agents may do what they must and no more."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lablib import kubernetes
from lablib.cases import expect
from lablib.chart import DIRECTORY, NAMESPACE, RELEASE, TESTS, Chart
from lablib.cluster import REQUESTS, Cluster, attach_request
from lablib.commands import wait_until
from lablib.kubernetes_api import Answer, KubernetesApi

_CONNECTORS = REQUESTS.replace("volumeattachrequests", "nodeconnectors")
_VOLUMES = {"node-a": "5c2f7a1e-03d4-4b7e-9c7a-2f1f0f6f2a10", "node-b": "5c2f7a1e-03d4-4b7e-9c7a-2f1f0f6f2a11"}


@contextlib.contextmanager
def _installed(cluster: Cluster, *flags: str) -> Iterator[None]:
    """The chart's release, with two nodes and a request for each; none of it is left."""
    with tempfile.TemporaryDirectory() as scratch:
        chart = Chart(Path(scratch))
        where = ["--namespace", NAMESPACE, "--kubeconfig", kubernetes.admin_kubeconfig(cluster.lab)]
        chart.helm("install", RELEASE, DIRECTORY, *where, "--create-namespace", "--values", TESTS / "minimal.yaml", *flags)
        for node, volume in _VOLUMES.items():
            kubernetes.create_node_object(cluster.lab, node)
            cluster.api.request("POST", REQUESTS, attach_request(node, {"nodeName": node, "volumeID": volume})).ok()
        yield
        chart.helm("uninstall", RELEASE, *where)
    for node in _VOLUMES:
        cluster.api.request("PATCH", f"{REQUESTS}/{node}", {"metadata": {"finalizers": None}}, content_type="application/merge-patch+json")
        for path in (f"{REQUESTS}/{node}", f"{_CONNECTORS}/{node}", f"/api/v1/nodes/{node}",
                     f"/api/v1/namespaces/{NAMESPACE}/pods/{RELEASE}-{node}?gracePeriodSeconds=0"):
            cluster.api.request("DELETE", path)
    cluster.api.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}")
    wait_until(lambda: cluster.api.request("GET", f"/api/v1/namespaces/{NAMESPACE}").status == 404, timeout=60, what="the namespace to go")


def _agent(cluster: Cluster, node: str | None) -> KubernetesApi:
    """The API as the agent of a node sees it."""
    return kubernetes.client(cluster.lab, token=kubernetes.service_account_token(cluster.lab, NAMESPACE, RELEASE, node))


def _merge(api: KubernetesApi, path: str, patch: dict[str, Any]) -> Answer:
    return api.request("PATCH", path, patch, content_type="application/merge-patch+json")


def _writes(api: KubernetesApi, node: str) -> dict[str, Answer]:
    """What an agent writes: its finalizer, the status of a request, and its NodeConnector."""
    return {
        "request": _merge(api, f"{REQUESTS}/{node}", {"metadata": {"finalizers": ["attachd.dev/detach"]}}),
        "request's status": _merge(api, f"{REQUESTS}/{node}/status", {"status": {"mountPath": "/mnt/x"}}),
        "connector": api.request("PATCH", f"{_CONNECTORS}/{node}?fieldManager=attachd", {
            "apiVersion": "attachd.dev/v1alpha1", "kind": "NodeConnector", "metadata": {"name": node}, "spec": {}},
            content_type="application/apply-patch+yaml"),
        "connector's status": _merge(api, f"{_CONNECTORS}/{node}/status", {"status": {"initiator": f"iqn.2026-11.dev.attachd:{node}"}}),
    }


def _allowed(answers: dict[str, Answer]) -> list[str]:
    return [what for what, answer in answers.items() if answer.status < 400]


def _event(api: KubernetesApi, namespace: str) -> Answer:
    return api.request("POST", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", {
        "metadata": {"name": f"attachd-{namespace}", "namespace": namespace}, "eventTime": "2026-11-22T10:00:00.000000Z",
        "action": "Attach", "reason": "Attached", "type": "Normal", "reportingController": "attachd.dev", "reportingInstance": "node-a",
        "regarding": {"apiVersion": "attachd.dev/v1alpha1", "kind": "VolumeAttachRequest", "name": "node-a"}})


def test_every_node_gets_an_agent_whatever_keeps_others_away(cluster: Cluster) -> None:
    with _installed(cluster):
        taints = [{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}, {"key": "dedicated", "value": "x", "effect": "NoSchedule"}]
        cluster.api.request("POST", "/api/v1/nodes", {
            "metadata": {"name": "tainted", "labels": {"kubernetes.io/os": "linux"}}, "spec": {"taints": taints, "unschedulable": True}}).ok()
        cluster.api.request("POST", "/api/v1/nodes", {"metadata": {"name": "other", "labels": {"kubernetes.io/os": "windows"}}}).ok()
        wanted = sorted([*_VOLUMES, "tainted"])
        wait_until(lambda: _nodes_with_an_agent(cluster) == wanted, timeout=60, what=f"agents on {wanted}")
        for node in ("tainted", "other"):
            cluster.api.request("DELETE", f"/api/v1/nodes/{node}").ok()


def _nodes_with_an_agent(cluster: Cluster) -> list[str]:
    """Where the controller wants Pods; there is no scheduler to put them there."""
    pods = cluster.api.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name%3Dattachd").ok()["items"]
    terms = [pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] for pod in pods]
    return sorted(term["matchFields"][0]["values"][0] for [term] in terms)


def test_an_agent_may_do_what_it_must(cluster: Cluster) -> None:
    with _installed(cluster):
        agent = _agent(cluster, "node-a")
        written = _writes(agent, "node-a")
        expect(_allowed(written) == list(written), f"an agent is refused what it must do: {written}")
        for path in (REQUESTS, f"{REQUESTS}?fieldSelector=spec.nodeName%3Dnode-a", _CONNECTORS, f"{_CONNECTORS}/node-a", "/api/v1/nodes/node-a",
                     "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/volumeattachrequests.attachd.dev"):
            agent.request("GET", path).ok()
        _event(agent, "default").ok()
        cluster.api.request("DELETE", "/apis/events.k8s.io/v1/namespaces/default/events/attachd-default").ok()


def test_an_agent_may_do_no_more_than_it_must(cluster: Cluster) -> None:
    with _installed(cluster):
        agent = _agent(cluster, "node-a")
        for method, path in (("DELETE", f"{REQUESTS}/node-a"), ("DELETE", _CONNECTORS), ("POST", REQUESTS), ("GET", "/api/v1/nodes"),
                             ("GET", "/api/v1/secrets"), ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets"), ("GET", "/api/v1/pods"),
                             ("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")):
            body = attach_request("x", {"nodeName": "node-a", "volumeID": _VOLUMES["node-a"]}) if method == "POST" else None
            answer = agent.request(method, path, body)
            expect(answer.status == 403, f"{method} {path} is answered {answer.status}")
        expect(_event(agent, "kube-system").status == 403, "an agent may write events in other namespaces")


def test_with_the_policy_an_agent_writes_only_what_is_its_nodes(cluster: Cluster) -> None:
    with _installed(cluster, "--set", "admissionPolicy.enabled=true"):
        agent = _agent(cluster, "node-a")
        other = f"{REQUESTS}/node-b/status"
        # A policy is in force a moment after it was made.
        wait_until(lambda: _merge(agent, other, {"status": {"mountPath": "/mnt/x"}}).status == 403, timeout=60, what="the policy")
        written = _writes(agent, "node-a")
        expect(_allowed(written) == list(written), f"an agent is refused what it must do: {written}")
        # So that it is the policy that refuses a change of it, and not that there is none.
        cluster.api.request("POST", _CONNECTORS, {"apiVersion": "attachd.dev/v1alpha1", "kind": "NodeConnector",
                                                  "metadata": {"name": "node-b"}, "spec": {}}).ok()
        wait_until(lambda: _writes(agent, "node-b")["connector's status"].status == 403, timeout=60, what="the policy")
        for what, answer in _writes(agent, "node-b").items():
            expect(answer.status == 403 and "the agent of node node-a may not" in answer.message(), f"another node's {what}: {answer}")
        for what, answer in _writes(_agent(cluster, None), "node-a").items():
            expect("token names no node" in answer.message(), f"{what}, with a token of no node: {answer}")


def test_without_the_policy_an_agent_may_change_another_nodes_requests(cluster: Cluster) -> None:
    """What the chart's README warns of; if this ever fails, the warning can go."""
    with _installed(cluster):
        written = _writes(_agent(cluster, "node-a"), "node-b")
        expect(_allowed(written) == list(written), f"RBAC alone refuses: {written}")


def test_helm_leaves_the_definitions_alone(cluster: Cluster) -> None:
    """`helm install` leaves definitions that are there alone, and `helm uninstall` too."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/volumeattachrequests.attachd.dev"
    before = cluster.api.request("GET", path).ok()["metadata"]
    with _installed(cluster):
        pass
    after = cluster.api.request("GET", path).ok()["metadata"]
    expect((before["uid"], before["generation"]) == (after["uid"], after["generation"]), f"{before} became {after}")
