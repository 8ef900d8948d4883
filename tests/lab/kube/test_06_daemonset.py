"""The agent as the chart's DaemonSet runs it: its rendered Pod, with the ServiceAccount's token, in a container of its own."""

from __future__ import annotations

from typing import Any

from lablib import keystone
from lablib.agent import LOG, Agent, CloudPodAgent, PodAgent, agent, ask, delete, request, rights, wait_ready
from lablib.cases import expect
from lablib.chart import NAMESPACE, RELEASE
from lablib.cluster import REQUESTS, Cluster
from lablib.commands import wait_until
from lablib.daemon import ready_condition
from lablib.steps import in_use_once, nothing_left, volume

_ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"

_MOUNT = "/var/lib/attachd/mounts/db"


def test_the_rendered_pod_serves_requests_and_answers_probes(cluster: Cluster) -> None:
    with rights(cluster), agent(cluster, kind=PodAgent) as one, volume(one.node) as v:
        ask(cluster, "db", v)
        wait_ready(one, "db")
        one.node.shell(f"grep ' {_MOUNT} ' /proc/1/mountinfo; echo kept > {_MOUNT}/file")
        expect(_get(one, "/livez").startswith("[+]"), f"livez: {_get(one, '/livez')}")
        ready = _get(one, "/readyz")
        expect("[+] kubernetes: ok" in ready and "[+] node: ok" in ready, f"readyz: {ready}")
        metrics = _get(one, "/metrics")
        expect('attachd_attachments{state="attached"} 1' in metrics and 'attachd_paths{' in metrics, f"metrics: {metrics[:3000]}")
        print(f"     the agent in its Pod has {one.memory() / 1024:.1f} MiB resident")
        # A new Pod of a rolling update finds everything, and what was mounted never went.
        one.end("TERM")
        one.node.shell(f"cat {_MOUNT}/file")
        one.start()
        delete(one, "db")
        nothing_left(one.node, v)


def test_the_pod_speaks_keystone_by_the_clouds_yaml_of_a_secret(cluster: Cluster) -> None:
    keystone.start(cluster.lab)
    with rights(cluster), agent(cluster, kind=CloudPodAgent) as one, volume(one.node) as v:
        ask(cluster, "db", v)
        wait_ready(one, "db")
        in_use_once(one.node, v)
        one.node.shell(f"grep ' {_MOUNT} ' /proc/1/mountinfo")
        environment = one.node.shell(f"tr '\\0' '\\n' < /proc/{one.pid}/environ")
        expect("OS_CLIENT_CONFIG_FILE=" in environment, f"the environment is {environment}")
        for text in (environment, one.log(), one.node.shell(f"cat /proc/{one.pid}/cmdline")):
            expect("lab-secret-of" not in text, f"a secret is shown: {text[-3000:]}")
        delete(one, "db")
        nothing_left(one.node, v)
    keystone.stop(cluster.lab)


def test_each_of_its_rights_is_needed_and_a_missing_one_is_named(cluster: Cluster) -> None:
    with rights(cluster), agent(cluster) as one, volume(one.node) as v:
        role = cluster.api.request("GET", f"{_ROLES}/{RELEASE}").ok()
        asked = 0
        for place, rule in enumerate(role["rules"]):
            for verb in rule["verbs"]:
                one.end("TERM")
                cluster.kubectl("delete", "nc", one.node.name)
                less = [verb_ for verb_ in rule["verbs"] if verb_ != verb]
                rules = [*role["rules"][:place], *([{**rule, "verbs": less}] if less else []), *role["rules"][place + 1:]]
                _allow(cluster, rules, verb, rule["resources"][0], "no")
                one.start(wait=False)
                ask(cluster, "db", v)
                # Only an agent that could hold it has something to do when it is deleted.
                wait_until(lambda: _ready(cluster) or _named(one, verb, rule), timeout=90, what=f"db, or a word about {verb} {rule['resources']}")
                cluster.api.request("DELETE", f"{REQUESTS}/db").ok()
                wait_until(lambda: _named(one, verb, rule), timeout=90, what=f"the agent to miss {verb} {rule['resources']}")
                _allow(cluster, role["rules"], verb, rule["resources"][0], "yes")
                one.end("TERM")
                one.start()
                wait_until(lambda: not request(cluster, "db"), timeout=120, what="db to go")
                one.node.shell(f": > {LOG}")
                asked += 1
        print(f"     {asked} rights, each of them missed")
        expect(asked >= 10, f"only {asked} rights were looked at")
        nothing_left(one.node, v)


def _allow(cluster: Cluster, rules: list[Any], verb: str, resource: str, then: str) -> None:
    """Give the agents' role these rules, and wait until they count."""
    patch = [{"op": "replace", "path": "/rules", "value": rules}]
    cluster.api.request("PATCH", f"{_ROLES}/{RELEASE}", patch, content_type="application/json-patch+json").ok()
    name, _, part = resource.partition("/")
    group = {"nodes": "", "customresourcedefinitions": ".apiextensions.k8s.io"}.get(name, ".attachd.dev")
    what = [f"{name}{group}" + ("/volumeattachrequests.attachd.dev" if name.startswith("custom") else ""), *([f"--subresource={part}"] if part else [])]
    who = f"--as=system:serviceaccount:{NAMESPACE}:{RELEASE}"
    wait_until(lambda: cluster.kubectl("auth", "can-i", verb, *what, who).stdout.strip() == then, timeout=30,
               what=f"{verb} {resource} to be {then}", interval=0.3)


def _named(one: Agent, verb: str, rule: dict[str, Any]) -> bool:
    return any(f"cannot {verb} resource \\\"{resource}\\\"" in one.log() for resource in rule["resources"])


def _ready(cluster: Cluster) -> bool:
    return ready_condition(request(cluster, "db").get("status")).get("status") == "True"


def _get(one: Agent, path: str) -> str:
    """Ask the agent over HTTP, from its node."""
    script = ("import urllib.request, urllib.error, sys\n"
              f"try: print(urllib.request.urlopen('http://127.0.0.1:9809{path}', timeout=20).read().decode())\n"
              "except urllib.error.HTTPError as error: print(error.read().decode())\n")
    return one.node.shell(f"python3 -c \"{script}\"")
