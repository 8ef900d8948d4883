"""`kubectl attachd`: from a request's name to the command in the Pod of the right node."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lablib import guest, kubernetes
from lablib.agent import KUBECONFIG, Agent, PodAgent, agent, ask, delete, rights, wait_ready
from lablib.cases import expect
from lablib.chart import NAMESPACE
from lablib.cluster import Cluster
from lablib.state import PROJECT_DIR
from lablib.steps import nothing_left, volume

_PLUGIN = PROJECT_DIR / "scripts" / "kubectl-attachd"

# There is no kubelet to take an exec: it is done as a container engine does it, in the Pod's own namespaces and environment.
# All else goes to the real API server.
_KUBECTL = r"""#!/usr/bin/env python3
import json, os, shlex, sys
order = json.load(open(os.environ["EXEC_ORDER"]))
arguments = sys.argv[1:]
if "exec" not in arguments:
    os.execv(order["kubectl"][0], [*order["kubectl"], *arguments])
at, end = arguments.index("exec"), arguments.index("--")
print("EXEC", json.dumps(arguments[at + 1:end]), file=sys.stderr, flush=True)
os.execvp(order["ssh"][0], [*order["ssh"], shlex.join([*order["enter"], *arguments[end + 1:]])])
"""


@contextmanager
def _plugin_path(one: Agent) -> Iterator[dict[str, str]]:
    """An environment in which kubectl finds the plugin, and reaches the agent's container."""
    lab = one.cluster.lab
    enter = ["bash", "-c", f"mapfile -d '' env < /proc/{one.pid}/environ; exec env -i \"${{env[@]}}\" nsenter -t {one.pid} -m -r -w \"$@\"", "exec"]
    with tempfile.TemporaryDirectory(prefix="attachd-plugin-") as scratch:
        directory = Path(scratch)
        order = {"kubectl": kubernetes.kubectl_command(lab, []), "enter": enter,
                 "ssh": guest.command(lab, one.node.record, [], timeout=120)[:-1]}
        (directory / "order").write_text(json.dumps(order))
        kubectl = directory / "kubectl"
        kubectl.write_text(_KUBECTL)
        kubectl.chmod(0o755)
        yield {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "EXEC_ORDER": str(directory / "order")}


def _run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(_PLUGIN), *arguments], env=environment, capture_output=True, text=True, timeout=180)


def _shown_as_running(one: Agent) -> str:
    """What the controllers and the kubelet would write of the agent's Pod; gives its name."""
    api = one.cluster.api
    pods = api.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods").ok()["items"]
    name = next(str(pod["metadata"]["name"]) for pod in pods if pod["spec"].get("nodeName") == one.node.name)
    labels = {"metadata": {"labels": {"app.kubernetes.io/name": "attachd"}}}
    for path, change in (("", labels), ("/status", {"status": {"phase": "Running"}})):
        kubernetes.kubectl_output(one.cluster.lab, "patch", "pod", name, "--namespace", NAMESPACE, "--type=merge",
                                  *(["--subresource=status"] if path else []), "--patch", json.dumps(change))
    return name


def test_the_plugin_finds_the_node_of_a_request_and_runs_the_command_in_its_pod(cluster: Cluster) -> None:
    with rights(cluster), agent(cluster, kind=PodAgent) as one, volume(one.node) as v, _plugin_path(one) as environment:
        none = _run(environment, "--node", "node1", "doctor")
        expect(none.returncode == 1 and "no agent of attachd runs on the node node1" in none.stderr, f"{none}")
        pod = _shown_as_running(one)
        ask(cluster, "db", v)
        wait_ready(one, "db")

        doctor = _run(environment, "db", "doctor", "-o", "json")
        expect(doctor.stdout.startswith("{"), f"doctor: {doctor}")
        expect(f'"{pod}"' in doctor.stderr and f'"{NAMESPACE}"' in doctor.stderr, f"{doctor.stderr}")
        checks = {check["id"]: check for check in json.loads(doctor.stdout)["checks"]}
        wrong = {name: check["saw"] for name, check in checks.items() if check["verdict"] in ("warning", "unknown", "failed")}
        expect(wrong == {} and doctor.returncode == 0, f"exit code {doctor.returncode}; in a Pod of a healthy node: {wrong}")
        left_out = {name: check["saw"] for name, check in checks.items() if check["verdict"] == "leftOut"}
        expect(left_out == {}, f"nothing needs to be left out in a Pod: {left_out}")
        print(f"     doctor in the Pod: {len(checks)} checks, all ok")

        inspected = _run(environment, "db", "inspect")
        print(inspected.stdout)
        expect(inspected.returncode == 0 and v in inspected.stdout, f"{inspected}")
        whole = _run(environment, "--node=node1", "inspect", v, "-o", "json")
        expect(whole.returncode == 0 and v in whole.stdout, f"{whole}")

        # The same checks where the cluster is not as it should be.
        one.node.shell(f"sed -E 's|https://[^\" ]+|https://10.0.2.2:1|' {KUBECONFIG} > /run/nowhere")
        away = one.doctor("/run/nowhere")
        expect(away["api-server"]["verdict"] == "failed" and away["custom-resources"]["verdict"] == "leftOut", f"{away['api-server']}")

        unknown = _run(environment, "nonsense", "inspect")
        expect(unknown.returncode == 1 and "no VolumeAttachRequest nonsense" in unknown.stderr, f"{unknown}")
        expect(_run(environment, "db").returncode == 2, "without a command")
        delete(one, "db")
        nothing_left(one.node, v)
