"""Rules for what the chart renders, whatever else changes in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

from lablib.cases import expect
from lablib.chart import DIRECTORY, NAMESPACE, TESTS, VALUES, Chart
from lablib.kubernetes_schemas import documents
from lablib.state import PROJECT_DIR

METRICS = {
    "attachd_operation_duration_seconds": "histogram", "attachd_step_duration_seconds": "histogram",
    "attachd_cinder_request_duration_seconds": "histogram", "attachd_attachments": "gauge", "attachd_paths": "gauge",
    "attachd_sessions": "gauge", "attachd_requests_queued": "gauge", "attachd_retries_total": "counter",
}
_SERIES = {"histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "counter": ("",)}

# What the agent may do in the cluster; a wider list is a decision to be made here, too.
CLUSTER_RULES = {
    ("attachd.dev", "volumeattachrequests"): "get list patch watch",
    ("attachd.dev", "volumeattachrequests/status"): "patch",
    ("attachd.dev", "nodeconnectors"): "create get list patch watch",
    ("attachd.dev", "nodeconnectors/status"): "patch",
    ("", "nodes"): "get",
    ("apiextensions.k8s.io", "customresourcedefinitions"): "get",
}
# What the evacuation may do.
EVACUATION_RULES = {
    ("", "nodes"): "get list watch",
    ("attachd.dev", "volumeattachrequests"): "get list patch watch",
    ("attachd.dev", "volumeattachrequests/status"): "patch",
}
EVENT_RULES = {("events.k8s.io", "events"): "create patch"}


def _pod(chart: Chart, values: str, *arguments: str) -> dict[str, Any]:
    return chart.object(values, "DaemonSet", *arguments)["spec"]["template"]["spec"]


def _agent(chart: Chart, values: str, *arguments: str) -> dict[str, Any]:
    [container] = _pod(chart, values, *arguments)["containers"]
    return container


def _environment(chart: Chart, values: str, *arguments: str) -> dict[str, Any]:
    return {item["name"]: item.get("value") for item in _agent(chart, values, *arguments)["env"]}


def _rules(role: dict[str, Any]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                expect((group, resource) not in found, f"two rules for {resource}")
                found[group, resource] = " ".join(sorted(rule["verbs"]))
    return found


def test_wrong_values_are_refused_with_a_reason(chart: Chart) -> None:
    table = json.loads((TESTS / "refused.json").read_text())
    expect(len(table) > 30, "the table of wrong values is nearly empty")
    for row in table:
        flags = [flag for value in row["set"] for flag in ("--set", value)]
        said = chart.refusal(*chart.template("minimal", *flags))
        expect(said is not None, f"{row['set']} is taken")
        for word in row["says"]:
            expect(word in said, f"{row['set']}: it doesn't say {word!r}: {said}")


def test_what_has_no_default_is_asked_for_by_name(chart: Chart) -> None:
    said = chart.refusal("template", "attachd", DIRECTORY)
    for word in ("at '/image': missing property 'repository'", "at '/cinder': missing properties 'endpoint', 'project'"):
        expect(said and word in said, f"it doesn't say {word!r}: {said}")


def test_the_schema_knows_every_value_and_refuses_others_everywhere(_: Chart) -> None:
    [values] = documents((DIRECTORY / "values.yaml").read_text())
    schema = json.loads((DIRECTORY / "values.schema.json").read_text())
    missing = set(values) - set(schema["properties"])
    expect(not missing, f"values.schema.json lacks {missing}")
    unused = set(schema["properties"]) - set(values) - {"global"}
    expect(not unused, f"values.yaml lacks {unused}")

    def closed(part: Any, path: str) -> None:
        if isinstance(part, dict):
            if part.get("type") == "object" and "properties" in part:
                expect(part.get("additionalProperties") is False, f"{path} takes unknown values")
            for key, value in part.items():
                if key not in ("if", "then"):
                    closed(value, f"{path}/{key}")

    closed(schema, "")


def test_the_agent_has_every_variable_and_option_that_it_gets(chart: Chart) -> None:
    places = [PROJECT_DIR / "src/config.rs", PROJECT_DIR / "src/cloud/settings.rs", *PROJECT_DIR.glob("src/cli/*.rs")]
    source = "".join(path.read_text() for path in places)
    expect(re.search(r"\bkubernetes: bool,", source), "attachd run has no --kubernetes")
    known = set(re.findall(r'env = "((?:ATTACHD|OS)_\w+)"', source))
    used = {name for values in VALUES for name in _environment(chart, values) if name.startswith(("ATTACHD_", "OS_"))}
    expect(used <= known, f"attachd has no {sorted(used - known)}")
    expect(len(used) >= 12, f"only {sorted(used)} are set")


def test_no_secret_is_in_the_environment_or_the_arguments(chart: Chart) -> None:
    for values in VALUES:
        agent = _agent(chart, values)
        for item in agent["env"]:
            expect("secretKeyRef" not in item.get("valueFrom", {}), f"{item['name']} is a secret in the environment")
            expect(not re.search(r"PASSWORD|SECRET|TOKEN|CREDENTIAL", item["name"]), f"{item['name']} looks like a secret")
        expect("envFrom" not in agent, "variables come from somewhere else")
        expect(agent["args"] == ["run", "--kubernetes"], f"the arguments are {agent['args']}")
        kinds = {item["kind"] for item in chart.objects(values)}
        expect("Secret" not in kinds, "the chart makes a Secret")


def test_the_cloud_s_credentials_are_a_file_that_root_alone_reads(chart: Chart) -> None:
    pod, agent = _pod(chart, "everything"), _agent(chart, "everything")
    [volume] = [item for item in pod["volumes"] if "secret" in item]
    expect(volume["secret"] == {"secretName": "openstack", "defaultMode": 0o400,
                                "items": [{"key": "production.yaml", "path": "clouds.yaml"}]}, str(volume))
    [mount] = [item for item in agent["volumeMounts"] if item["name"] == volume["name"]]
    expect(mount["readOnly"] and "subPath" not in mount, f"{mount}: a change of the Secret must arrive")
    environment = _environment(chart, "everything")
    expect(environment["OS_CLIENT_CONFIG_FILE"] == f"{mount['mountPath']}/clouds.yaml", str(environment))
    expect(environment["OS_CLOUD"] == "storage" and "OS_ENDPOINT" not in environment, str(environment))
    alone = _environment(chart, "minimal")
    expect(alone["OS_AUTH_TYPE"] == "none" and "OS_CLIENT_CONFIG_FILE" not in alone, str(alone))


def test_the_agent_sees_the_node_and_no_more(chart: Chart) -> None:
    """Whoever adds a directory of the node gives the reason here and in the template."""
    for values, state, roots in (("minimal", "/var/lib/attachd", []), ("everything", "/var/mnt/attachd", ["/mnt/volumes", "/srv"])):
        pod, agent = _pod(chart, values), _agent(chart, values)
        expect(pod["hostNetwork"] and pod["hostPID"] and "hostIPC" not in pod, "network and PID namespaces, and no other, are the node's")
        expect(agent["securityContext"] == {"privileged": True, "readOnlyRootFilesystem": True}, str(agent["securityContext"]))
        paths = {item["name"]: item["hostPath"]["path"] for item in pod["volumes"] if "hostPath" in item}
        expect(sorted(paths.values()) == sorted(["/dev", state, *roots]), f"the node's {sorted(paths.values())} are mounted")
        for mount in agent["volumeMounts"]:
            if mount["name"] in paths:
                expect(mount["mountPath"] == paths[mount["name"]], f"{mount} is elsewhere on the node: {paths[mount['name']]}")
                wanted = None if mount["name"] == "dev" else "Bidirectional"
                expect(mount.get("mountPropagation") == wanted, f"{mount}: {wanted} is what it needs")
        expect(len(agent["volumeMounts"]) == len(pod["volumes"]), "a volume is not mounted")
        environment = _environment(chart, values)
        expect(environment["ATTACHD_STATE_DIR"] == state, "the agent's state directory isn't mounted")
        expect(environment["ATTACHD_ALLOWED_ROOTS"].split(":") == (roots or [f"{state}/mounts"]), "the allowed roots aren't mounted")
        expect(environment["ATTACHD_HOST_ROOT"] == "/proc/1/root", "the node's root is elsewhere")


def test_every_directory_of_the_node_is_explained_in_the_template(_: Chart) -> None:
    lines = (DIRECTORY / "templates/daemonset.yaml").read_text().splitlines()
    volumes = [number for number, line in enumerate(lines) if re.match(r" +hostPath:", line)]
    expect(len(volumes) == 3, f"{len(volumes)} directories of the node are in the template")
    for number in volumes:
        expect(lines[number - 2].strip().startswith("# "), f"no comment says why: {lines[number - 1].strip()}")
    for word in ("hostNetwork: true", "hostPID: true", "privileged: true"):
        [number] = [number for number, line in enumerate(lines) if line.strip() == word]
        expect(lines[number - 1].strip().startswith("# "), f"no comment says why: {word}")


def test_every_rule_says_why(_: Chart) -> None:
    lines = (DIRECTORY / "templates/rbac.yaml").read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("  - apiGroups:")]
    expect(len(starts) == len(CLUSTER_RULES) + len(EVENT_RULES), f"{len(starts)} rules are in the template")
    for number in starts:
        expect(lines[number - 1].strip().startswith("# "), f"no comment says why: {lines[number + 1].strip()}")


def test_the_agent_may_do_what_it_must_and_no_more(chart: Chart) -> None:
    for values in VALUES:
        role = chart.object(values, "ClusterRole")
        expect(_rules(role) == CLUSTER_RULES, f"the agent may do {_rules(role)}")
        [crd] = [rule for rule in role["rules"] if rule["resources"] == ["customresourcedefinitions"]]
        expect(crd["resourceNames"] == ["volumeattachrequests.attachd.dev"], f"it may read {crd}")
        events = chart.object(values, "Role")
        expect(events["metadata"]["namespace"] == "default" and _rules(events) == EVENT_RULES, f"the agent may do {events}")
        account = chart.object(values, "ServiceAccount")["metadata"]["name"]
        expect(_pod(chart, values)["serviceAccountName"] == account, "the agent runs as somebody else")
        for kind in ("ClusterRoleBinding", "RoleBinding"):
            binding = chart.object(values, kind)
            expect(binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}], str(binding))
            expect(binding["roleRef"]["name"] == chart.object(values, binding["roleRef"]["kind"])["metadata"]["name"], str(binding))


def test_evacuation_is_off_by_default_and_may_touch_no_node(chart: Chart) -> None:
    expect(all("-evacuation" not in item["metadata"]["name"] for item in chart.objects("minimal")), "it is on by default")
    role = chart.object("everything", "ClusterRole", part="evacuation")
    expect(_rules(role) == EVACUATION_RULES, f"it may do {_rules(role)}")
    account = chart.object("everything", "ServiceAccount", part="evacuation")["metadata"]["name"]
    expect(account != chart.object("everything", "ServiceAccount")["metadata"]["name"], "it has the agent's rights")
    for kind in ("ClusterRoleBinding", "RoleBinding"):
        binding = chart.object("everything", kind, part="evacuation")
        expect(binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}], str(binding))
    deployment = chart.object("everything", "Deployment", part="evacuation")["spec"]
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    expect(pod["serviceAccountName"] == account and container["args"] == ["evacuate"], f"{pod}")
    expect(not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), "it is in the node's namespaces")
    expect(all("hostPath" not in volume for volume in pod["volumes"]), f"it has the node's files: {pod['volumes']}")
    security = container["securityContext"]
    expect(not security.get("privileged") and not security["allowPrivilegeEscalation"] and security["capabilities"] == {"drop": ["ALL"]},
           f"{security}")
    expect(pod["securityContext"]["runAsNonRoot"] and security["readOnlyRootFilesystem"], f"{pod['securityContext']}, {security}")
    selected = deployment["selector"]["matchLabels"]
    agent = chart.object("everything", "DaemonSet")["spec"]["selector"]["matchLabels"]
    expect(selected != agent and selected.items() <= deployment["template"]["metadata"]["labels"].items(), f"{selected}")
    names = {item["name"] for item in container["env"]}
    expect("OS_CLIENT_CONFIG_FILE" in names and not any("PASSWORD" in name or "SECRET" in name for name in names), f"{names}")
    [cloud] = [volume for volume in pod["volumes"] if volume["name"] == "cloud"]
    expect(cloud["secret"]["secretName"] == "evacuation", f"{cloud}")


def test_the_policies_are_for_the_agent_s_own_account_and_cover_what_it_may_write(chart: Chart) -> None:
    objects = chart.objects("everything")
    account = chart.object("everything", "ServiceAccount")["metadata"]["name"]
    covered: set[tuple[str, str]] = set()
    policies = [item for item in objects if item["kind"] == "ValidatingAdmissionPolicy"]
    for policy in policies:
        [condition] = policy["spec"]["matchConditions"]
        expect(condition["expression"] == f"request.userInfo.username == 'system:serviceaccount:{NAMESPACE}:{account}'", condition["expression"])
        expect(policy["spec"]["failurePolicy"] == "Fail", "what can't be judged is allowed")
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]:
            covered |= {(resource, verb) for resource in rule["resources"] for verb in rule["operations"]}
        [binding] = [item for item in objects if item["kind"] == "ValidatingAdmissionPolicyBinding"
                     and item["spec"]["policyName"] == policy["metadata"]["name"]]
        expect(binding["spec"]["validationActions"] == ["Deny"], "the policy doesn't deny")
    operations = {"create": "CREATE", "patch": "UPDATE", "update": "UPDATE", "delete": "DELETE", "deletecollection": "DELETE"}
    for (group, resource), verbs in CLUSTER_RULES.items():
        for verb in set(verbs.split()) & set(operations):
            expect((resource, operations[verb]) in covered, f"no policy limits {verb} of {resource} in {group}")
    kinds = {item["kind"] for item in chart.objects("minimal")}
    expect("ValidatingAdmissionPolicy" not in kinds, "the policy isn't off by default")


def _seconds(text: str) -> int:
    unit, number = re.fullmatch(r"from_(secs|mins|hours)\((\d+)\)", text).groups()
    return int(number) * {"secs": 1, "mins": 60, "hours": 3600}[unit]


def test_an_agent_that_ends_has_time_for_its_longest_step(chart: Chart) -> None:
    limits = [_seconds(text) for path in (PROJECT_DIR / "src/host").glob("*.rs")
              for text in re.findall(r"const \w*LIMIT\w*: Duration = Duration::(from_\w+\(\d+\))", path.read_text())]
    expect(len(limits) > 15, f"only {len(limits)} limits were found")
    grace = _pod(chart, "minimal")["terminationGracePeriodSeconds"]
    expect(grace >= max(limits) + 60, f"{grace} s are less than the longest step may take, {max(limits)} s")


def test_kubelet_asks_how_the_agent_is(chart: Chart) -> None:
    for values in VALUES:
        agent = _agent(chart, values)
        [port] = agent["ports"]
        listen = _environment(chart, values)["ATTACHD_LISTEN"]
        expect(listen.endswith(f":{port['containerPort']}"), f"it listens on {listen}, and is asked on {port}")
        for kind, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            request = agent[kind]["httpGet"]
            expect(request["path"] == path and request["port"] == port["name"] and "host" not in request, f"{kind}: {request}")


def test_kubelet_asks_how_the_evacuation_is_in_the_pod_s_own_network(chart: Chart) -> None:
    for address, listen in (("0.0.0.0", "0.0.0.0:9809"), ("127.0.0.1", "0.0.0.0:9809"), ("::", "[::]:9809"), ("::1", "[::]:9809")):
        flags = ("--set=evacuation.enabled=true", "--set-string", f"http.bindAddress={address}")
        pod = chart.object("minimal", "Deployment", *flags, part="evacuation")["spec"]["template"]["spec"]
        [container] = pod["containers"]
        [found] = [item["value"] for item in container["env"] if item["name"] == "ATTACHD_LISTEN"]
        [port] = container["ports"]
        expect(found == listen and found.endswith(f":{port['containerPort']}"), f"with {address} it listens on {found}")
        for kind, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            expect(container[kind]["httpGet"] == {"path": path, "port": port["name"]}, f"{kind}: {container[kind]}")


def test_an_address_is_listened_on_as_it_is_written(chart: Chart) -> None:
    for address, listen, host in (("0.0.0.0", "0.0.0.0:9809", None), ("::", "[::]:9809", None),
                                  ("127.0.0.1", "127.0.0.1:9809", "127.0.0.1"), ("::1", "[::1]:9809", "::1")):
        flags = ("--set-string", f"http.bindAddress={address}")
        expect(_environment(chart, "minimal", *flags)["ATTACHD_LISTEN"] == listen, f"{address} is not {listen}")
        asked = _agent(chart, "minimal", *flags)["readinessProbe"]["httpGet"].get("host")
        expect(asked == host, f"kubelet asks {asked} where the agent listens on {address}")


def test_every_object_is_named_and_labelled_alike(chart: Chart) -> None:
    for values, name in (("minimal", "attachd"), ("everything", "cinder-agent")):
        for item in chart.objects(values):
            metadata = item["metadata"]
            expect(metadata["name"].startswith(name), f"{item['kind']} {metadata['name']}")
            expect(metadata["labels"]["app.kubernetes.io/instance"] == "attachd", f"{item['kind']} lacks the labels")
        daemons = chart.object(values, "DaemonSet")["spec"]
        labels = daemons["template"]["metadata"]["labels"].items()
        selectors = [daemons["selector"]["matchLabels"], chart.object(values, "Service")["spec"]["selector"]]
        expect(all(selector.items() <= labels for selector in selectors), f"{selectors} don't select the agents")


def test_the_dashboard_asks_for_metrics_that_exist(chart: Chart) -> None:
    text = chart.object("everything", "ConfigMap")["data"]["attachd.json"]
    expect(text == (DIRECTORY / "dashboards/attachd.json").read_text().strip(), "the ConfigMap has another dashboard")
    dashboard = json.loads(text)
    series = {name + ending: name for name, kind in METRICS.items() for ending in _SERIES[kind]}
    asked: set[str] = set()
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [item["query"]["query"] for item in dashboard["templating"]["list"] if isinstance(item["query"], dict)]
    for query in queries:
        found = re.findall(r"\battachd_\w+", query)
        expect(found, f"no metric is in {query}")
        for name in found:
            expect(name in series, f"{query}: attachd has no {name}")
            asked.add(series[name])
    expect(asked == set(METRICS), f"the dashboard doesn't show {set(METRICS) - asked}")
    ids = [panel["id"] for panel in dashboard["panels"]]
    expect(len(ids) == len(set(ids)), "two panels have one id")


_KUBECTL = """#!/bin/sh
case "$*" in
*"get volumeattachrequests"*) exit "$CRD" ;;
*"rollout status"*) exit "$ROLLOUT" ;;
*"get pods"*) printf "$PODS" ;;
*"get nodeconnectors"*) printf "$CONNECTORS" ;;
*) echo "what is $*?" >&2; exit 9 ;;
esac
"""


def test_helm_test_notices_what_is_wrong(chart: Chart) -> None:
    """With a kubectl that answers from variables."""
    pod = next(item for item in chart.objects("minimal") if item["kind"] == "Pod")
    [container] = pod["spec"]["containers"]
    bin_ = chart.scratch / "bin"
    bin_.mkdir()
    (bin_ / "kubectl").write_text(_KUBECTL)
    (bin_ / "kubectl").chmod(0o755)
    good = {"CRD": "0", "ROLLOUT": "0", "PODS": r"a\nb\n", "CONNECTORS": r"b\na\n"}
    for change, code, says in (({}, 0, "node b: its NodeConnector is there"), ({"CRD": "1"}, 1, ""), ({"ROLLOUT": "1"}, 1, ""),
                               ({"PODS": ""}, 1, "no agent runs anywhere"), ({"CONNECTORS": r"ab\nb\n"}, 1, "there is no NodeConnector a"),
                               ({"CONNECTORS": ""}, 1, "there is no NodeConnector b")):
        own = {item["name"]: item["value"] for item in container["env"]}
        done = subprocess.run([*container["command"], *container["args"]], capture_output=True, text=True, timeout=60,
                              env={**own, **good, **change, "PATH": f"{bin_}:{os.environ['PATH']}"})
        said = done.stdout + done.stderr
        expect(done.returncode == code and says in said, f"{change}: exit code {done.returncode}: {said}")
