"""What the other tests build on: the lab's API server keeps its data, knows who asks, and is reached from a node."""

from __future__ import annotations

import base64
import json

from lablib import guest, kubernetes
from lablib.cases import expect
from lablib.cluster import Cluster
from lablib.commands import wait_until
from lablib.errors import LabError

_MAPS = "/api/v1/namespaces/default/configmaps"


def _map(cluster: Cluster) -> str:
    return str(cluster.api.request("GET", f"{_MAPS}/kept").ok()["data"]["a"])


def test_etcd_and_api_server_come_back_with_their_data(cluster: Cluster) -> None:
    cluster.api.request("POST", _MAPS, {"metadata": {"name": "kept"}, "data": {"a": "b"}}).ok()
    expect(kubernetes.stop_api_server(cluster.lab), "the API server did not run")
    try:
        _map(cluster)
        raise AssertionError("a stopped API server answered")
    except LabError as error:
        expect("no answer from the API server" in str(error), str(error))
    expect(kubernetes.stop_etcd(cluster.lab), "etcd did not run")
    kubernetes.start_etcd(cluster.lab)
    kubernetes.start_api_server(cluster.lab)
    expect(_map(cluster) == "b", "the data is lost")

    # etcd alone: the API server goes on, and finds it again.
    kubernetes.stop_etcd(cluster.lab)
    expect(not kubernetes.ready(cluster.lab), "it is ready without etcd")
    kubernetes.start_etcd(cluster.lab)
    wait_until(lambda: kubernetes.ready(cluster.lab), timeout=60, what="the API server to find etcd again")
    expect(_map(cluster) == "b", "the data is lost")
    cluster.api.request("DELETE", f"{_MAPS}/kept").ok()


def test_a_frozen_api_server_answers_nothing_and_goes_on(cluster: Cluster) -> None:
    kubernetes.pause_api_server(cluster.lab, True)
    try:
        cluster.api.request("GET", "/readyz", timeout=2)
        raise AssertionError("a frozen API server answered")
    except LabError as error:
        expect("timed out" in str(error), str(error))
    finally:
        kubernetes.pause_api_server(cluster.lab, False)
    wait_until(lambda: kubernetes.ready(cluster.lab), timeout=60, what="the API server to go on")


def test_a_service_account_may_do_what_its_roles_say_and_no_more(cluster: Cluster) -> None:
    config = kubernetes.service_account_kubeconfig(cluster.lab, "default", "reader", "node1")
    expect(config.stat().st_mode & 0o777 == 0o600, f"its mode is {config.stat().st_mode:o}")

    def may(*argv: str) -> bool:
        result = kubernetes.kubectl(cluster.lab, *argv, kubeconfig=config)
        expect(result.code == 0 or "Forbidden" in result.stderr, f"kubectl: {result}")
        return result.code == 0

    reader = "system:serviceaccount:default:reader"
    expect(not may("get", "var"), "it may read without a role")
    kubernetes.kubectl_output(cluster.lab, "create", "clusterrole", "reader", "--verb=get,list", "--resource=volumeattachrequests")
    kubernetes.kubectl_output(cluster.lab, "create", "clusterrolebinding", "reader", "--clusterrole=reader", f"--user={reader}")
    wait_until(lambda: may("get", "var"), timeout=30, what="the role to count")
    expect(not may("delete", "var", "db"), "it may delete")
    expect(not may("get", "secrets"), "it may read secrets")
    kubernetes.kubectl_output(cluster.lab, "delete", "clusterrole,clusterrolebinding", "reader")
    kubernetes.kubectl_output(cluster.lab, "delete", "pod", "reader-node1", "--force", "--grace-period=0")
    kubernetes.kubectl_output(cluster.lab, "delete", "serviceaccount", "reader")


def test_a_token_names_its_node_and_is_void_without_its_pod(cluster: Cluster) -> None:
    node = kubernetes.create_node_object(cluster.lab, "node1")
    expect("taints" not in node["spec"] and node["status"]["conditions"][0]["status"] == "True", f"the node is {node}")
    token = kubernetes.service_account_token(cluster.lab, "default", "agent", "node1")
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["kubernetes.io"]
    expect(claims["node"] == {"name": "node1", "uid": node["metadata"]["uid"]}, f"the claims are {claims}")

    agent = kubernetes.client(cluster.lab, token=token)
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    user = agent.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review).ok()["status"]["userInfo"]
    expect(user["username"] == "system:serviceaccount:default:agent", f"the user is {user}")
    expect(user["extra"]["authentication.kubernetes.io/node-name"] == ["node1"], f"the user is {user}")

    kubernetes.kubectl_output(cluster.lab, "delete", "pod", "agent-node1", "--force", "--grace-period=0")
    wait_until(lambda: agent.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review).status == 401, timeout=60,
               what="the token to be void", interval=0.5)
    kubernetes.kubectl_output(cluster.lab, "delete", "node/node1", "serviceaccount/agent")


def test_a_lab_node_reaches_the_api_server_by_its_certificate(cluster: Cluster) -> None:
    url = kubernetes.endpoint(cluster.lab, in_node=True)
    node = cluster.lab.node("node1")
    guest.copy_in(cluster.lab, node, kubernetes.authority(cluster.lab).ca.certificate, "/run/lab-ca.crt")
    script = ("import ssl, sys, urllib.request; "
              "print(urllib.request.urlopen(sys.argv[1], timeout=30, context=ssl.create_default_context(cafile='/run/lab-ca.crt')).read().decode())")
    answer = guest.output(cluster.lab, node, ["python3", "-c", script, f"{url}/readyz"], timeout=60)
    expect(answer.strip() == "ok", f"it answers {answer}")
    guest.output(cluster.lab, node, ["rm", "/run/lab-ca.crt"], timeout=30)


def test_what_a_node_owns_goes_with_it(cluster: Cluster) -> None:
    node = kubernetes.create_node_object(cluster.lab, "node9")
    owner = {"apiVersion": "v1", "kind": "Node", "name": "node9", "uid": node["metadata"]["uid"]}
    cluster.api.request("POST", _MAPS, {"metadata": {"name": "owned", "ownerReferences": [owner]}}).ok()
    cluster.api.request("DELETE", "/api/v1/nodes/node9").ok()
    wait_until(lambda: cluster.api.request("GET", f"{_MAPS}/owned").status == 404, timeout=120, what="the garbage collector", interval=0.5)


def test_a_daemon_set_makes_a_pod_on_every_node(cluster: Cluster) -> None:
    nodes = ["node8", "node9"]
    for name in nodes:
        kubernetes.create_node_object(cluster.lab, name)
    labels = {"app": "agent"}
    sets, pods = "/apis/apps/v1/namespaces/default/daemonsets", "/api/v1/namespaces/default/pods?labelSelector=app%3Dagent"
    cluster.api.request("POST", sets, {"metadata": {"name": "agent"}, "spec": {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [
            {"name": "agent", "image": "none", "securityContext": {"privileged": True}}]}}}}).ok()

    def made() -> int:
        return len(cluster.api.request("GET", pods).ok()["items"])

    wait_until(lambda: made() == 2, timeout=120, what="two Pods", interval=0.5)
    cluster.api.request("DELETE", f"{sets}/agent?propagationPolicy=Foreground").ok()
    wait_until(lambda: made() == 0, timeout=120, what="the Pods to go", interval=0.5)
    for name in nodes:
        cluster.api.request("DELETE", f"/api/v1/nodes/{name}").ok()
