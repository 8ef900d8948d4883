"""The first container of a Pod template, as pod.py runs it. What isn't understood is refused, not ignored."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from lablib.errors import LabError
from lablib.pod import Mount, PodSpec

Object = dict[str, Any]

# The kubelet's and the scheduler's business, or without a meaning here.
_POD_WITHOUT_EFFECT = {
    "affinity", "dnsPolicy", "enableServiceLinks", "imagePullSecrets", "nodeSelector", "preemptionPolicy", "priority",
    "priorityClassName", "restartPolicy", "schedulerName", "serviceAccount", "serviceAccountName", "tolerations",
    "topologySpreadConstraints",
}
_CONTAINER_WITHOUT_EFFECT = {
    "image", "imagePullPolicy", "livenessProbe", "name", "ports", "readinessProbe", "resources", "startupProbe",
    "terminationMessagePath", "terminationMessagePolicy",
}
_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a Pod gets from its cluster. Files are by the name of their Secret or ConfigMap, then by their key."""

    node_name: str
    host_ip: str
    namespace: str = "attachd"
    pod_name: str = "attachd-0"
    entrypoint: Sequence[str] = ("/usr/local/bin/attachd",)
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)  # the image's, and the cluster's address
    secrets: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    config_maps: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    service_account: Mapping[str, str] = dataclasses.field(default_factory=dict)  # token, ca.crt


def from_pod_template(template: Object, around: Surroundings) -> PodSpec:
    """Read a Pod template (the `template` of a DaemonSet, as parsed JSON)."""
    _only(template, {"metadata", "spec"}, "the template")
    pod = template["spec"]
    _only(pod, _POD_WITHOUT_EFFECT | {"automountServiceAccountToken", "containers", "hostIPC", "hostNetwork", "hostPID", "hostUsers",
                                      "securityContext", "terminationGracePeriodSeconds", "volumes"}, "the Pod")
    _is(pod.get("hostIPC", False), False, "hostIPC")
    _is(pod.get("hostUsers", True), True, "hostUsers")
    _root_user(pod.get("securityContext", {}), {"fsGroup"}, "the Pod's securityContext")
    container = pod["containers"][0]
    _only(container, _CONTAINER_WITHOUT_EFFECT | {"args", "command", "env", "securityContext", "volumeMounts"}, "the container")
    security = container.get("securityContext", {})
    _root_user(security, {"allowPrivilegeEscalation", "privileged", "readOnlyRootFilesystem"}, "the container's securityContext")
    env = _environment(container.get("env", []), around)
    words = [*container.get("command", around.entrypoint), *container.get("args", [])]
    return PodSpec(
        command=[_expanded(word, env) for word in words], env=env, mounts=_mounts(pod, container, around),
        privileged=security.get("privileged", False), host_network=pod.get("hostNetwork", False), host_pid=pod.get("hostPID", False),
        read_only_root=security.get("readOnlyRootFilesystem", False), grace_seconds=pod.get("terminationGracePeriodSeconds", 30))


def _only(given: Object, known: set[str], where: str) -> None:
    unknown = sorted(key for key, value in given.items() if key not in known and value not in (None, [], {}))
    if unknown:
        raise LabError(f"pod.py does not understand {', '.join(unknown)} of {where}")


def _is(given: Any, wanted: Any, where: str) -> None:
    if given != wanted:
        raise LabError(f"pod.py can't do {where}: {given!r}")


def _root_user(security: Object, known: set[str], where: str) -> None:
    _only(security, known | {"runAsGroup", "runAsNonRoot", "runAsUser"}, where)
    for field, wanted in (("runAsUser", 0), ("runAsGroup", 0), ("runAsNonRoot", False)):
        _is(security.get(field, wanted), wanted, f"{where}.{field}")


def _expanded(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)`, as the kubelet replaces it: only what is known, and `$$` is a dollar sign."""
    return _REFERENCE.sub(lambda found: "$" if found[0] == "$$" else env.get(found[1], found[0]), text)


def _environment(items: list[Object], around: Surroundings) -> dict[str, str]:
    fields = {"spec.nodeName": around.node_name, "metadata.name": around.pod_name, "metadata.namespace": around.namespace,
              "status.hostIP": around.host_ip, "status.podIP": around.host_ip}
    env = dict(around.env)
    for item in items:
        name = item["name"]
        _only(item, {"name", "value", "valueFrom"}, f"the variable {name}")
        source = item.get("valueFrom")
        if source is None:
            env[name] = _expanded(item.get("value", ""), env)
            continue
        _only(source, {"fieldRef", "secretKeyRef", "configMapKeyRef"}, f"valueFrom of the variable {name}")
        if "fieldRef" in source:
            path = source["fieldRef"]["fieldPath"]
            if path not in fields:
                raise LabError(f"pod.py does not know the field {path} of the variable {name}")
            env[name] = fields[path]
            continue
        kind, reference = ("Secret", source["secretKeyRef"]) if "secretKeyRef" in source else ("ConfigMap", source["configMapKeyRef"])
        files = _named(kind, reference["name"], reference.get("optional", False), around)
        if reference["key"] in files:
            env[name] = files[reference["key"]]
        elif not reference.get("optional", False):
            raise LabError(f"{kind} {reference['name']} has no key {reference['key']}")
    return env


def _named(kind: str, name: str, optional: bool, around: Surroundings) -> Mapping[str, str]:
    known = around.secrets if kind == "Secret" else around.config_maps
    if name not in known and not optional:
        raise LabError(f"there is no {kind} {name}")
    return known.get(name, {})


def _mounts(pod: Object, container: Object, around: Surroundings) -> list[Mount]:
    volumes = {volume["name"]: volume for volume in pod.get("volumes") or []}
    mounts = []
    for mount in container.get("volumeMounts") or []:
        _only(mount, {"name", "mountPath", "mountPropagation", "readOnly", "recursiveReadOnly"}, f"the mount {mount['mountPath']}")
        _is(mount.get("recursiveReadOnly", "Disabled"), "Disabled", f"recursiveReadOnly of {mount['mountPath']}")
        base = Mount(mount["mountPath"], propagation=mount.get("mountPropagation", "None"), read_only=mount.get("readOnly", False))
        mounts.append(_with_source(base, volumes[mount["name"]], around))
    if pod.get("automountServiceAccountToken", True) and around.service_account and all(m.path != _SERVICE_ACCOUNT for m in mounts):
        files = {"namespace": around.namespace, **around.service_account}
        mounts.append(Mount(_SERVICE_ACCOUNT, read_only=True, files={name: (text, 0o644) for name, text in files.items()}))
    return mounts


def _with_source(mount: Mount, volume: Object, around: Surroundings) -> Mount:
    where = f"the volume {volume['name']}"
    _only(volume, {"name", "hostPath", "emptyDir", "secret", "configMap", "projected"}, where)
    if "hostPath" in volume:
        _only(volume["hostPath"], {"path", "type"}, where)
        kind = volume["hostPath"].get("type") or ""
        if kind not in ("", "Directory", "DirectoryOrCreate", "File", "FileOrCreate"):
            raise LabError(f"pod.py can't do a hostPath of type {kind}")
        return dataclasses.replace(mount, host_path=volume["hostPath"]["path"], type=kind)
    if "emptyDir" in volume:
        _only(volume["emptyDir"] or {}, {"medium", "sizeLimit"}, where)
        return mount
    if "projected" in volume:
        projected = volume["projected"]
        _only(projected, {"defaultMode", "sources"}, where)
        files = {}
        for source in projected["sources"]:
            files.update(_projected(source, projected.get("defaultMode", 0o644), where, around))
        return dataclasses.replace(mount, files=files)
    return dataclasses.replace(mount, files=_keys(volume, "secretName", 0o644, where, around))


def _projected(source: Object, mode: int, where: str, around: Surroundings) -> dict[str, tuple[str, int]]:
    _only(source, {"serviceAccountToken", "secret", "configMap", "downwardAPI"}, where)
    if "serviceAccountToken" in source:
        token = source["serviceAccountToken"]
        _only(token, {"audience", "expirationSeconds", "path"}, where)
        if "token" not in around.service_account:
            raise LabError(f"{where} wants a service account's token, and none was given")
        return {token["path"]: (around.service_account["token"], mode)}
    if "downwardAPI" in source:
        items = source["downwardAPI"]["items"]
        for item in items:
            _only(item, {"path", "fieldRef"}, where)
            _is(item["fieldRef"]["fieldPath"], "metadata.namespace", f"{where}, fieldRef")
        return {item["path"]: (around.namespace, mode) for item in items}
    return _keys(source, "name", mode, where, around)


def _keys(source: Object, name_field: str, mode: int, where: str, around: Surroundings) -> dict[str, tuple[str, int]]:
    """The files of a Secret or a ConfigMap: all keys, or those that are listed."""
    kind, of = ("Secret", source["secret"]) if "secret" in source else ("ConfigMap", source["configMap"])
    name = of[name_field] if kind == "Secret" else of["name"]
    _only(of, {"name", "secretName", "items", "defaultMode", "optional"}, where)
    mode = of.get("defaultMode", mode)
    there = _named(kind, name, of.get("optional", False), around)
    items: Optional[list[Object]] = of.get("items")
    if items is None:
        return {key: (text, mode) for key, text in there.items()}
    for item in items:
        _only(item, {"key", "mode", "path"}, where)
        if item["key"] not in there:
            raise LabError(f"{kind} {name} has no key {item['key']}")
    return {item["path"]: (there[item["key"]], item.get("mode", mode)) for item in items}
