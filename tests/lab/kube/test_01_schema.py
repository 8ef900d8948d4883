"""What the API server itself accepts and refuses of a VolumeAttachRequest, by its schema and rules."""

from __future__ import annotations

import copy
from typing import Any, Optional

from lablib.cases import expect
from lablib.cluster import CRDS, REQUESTS, Cluster, attach_request

_VOLUME = "5c2f7a1e-03d4-4b7e-9c7a-2f1f0f6f2a10"
_OTHER = "00000000-0000-4000-8000-000000000000"
_MINIMAL = {"nodeName": "node1", "volumeID": _VOLUME}
_FULL = {**_MINIMAL, "mode": "ro", "volumeMode": "Filesystem", "filesystem": {"type": "xfs", "format": "Never", "mountOptions": ["noatime"]},
         "mountPath": "/mnt/db", "multipath": "Required", "instanceUUID": _OTHER}
_DEFAULTS = {"forceDetach": False, "mode": "rw", "volumeMode": "Filesystem", "multipath": "Auto"}
_REMOVED = "(removed)"

Spec = dict[str, Any]

_ACCEPTED: list[Spec] = [
    {},
    _FULL,
    {"nodeName": "n" * 253}, {"nodeName": "node-1.example.org"}, {"nodeName": "1"},
    {"mode": "rw"}, {"mode": "ro"}, {"mode": None},
    {"volumeMode": "Filesystem"}, {"volumeMode": "Block"}, {"volumeMode": "Block", "filesystem": None, "mountPath": None},
    {"multipath": "Auto"}, {"multipath": "Required"}, {"multipath": "Disabled"},
    {"filesystem": {}}, {"filesystem": None},
    {"filesystem": {"type": "ext4", "format": "IfBlank"}}, {"filesystem": {"type": "xfs", "format": "Never"}},
    {"filesystem": {"mountOptions": []}}, {"filesystem": {"mountOptions": ["data=ordered", "x" * 128]}},
    {"filesystem": {"mountOptions": ["noatime"] * 32}},
    {"mountPath": "/a"}, {"mountPath": "/mnt/a b"}, {"mountPath": "/mnt/..a/b../.c/..."}, {"mountPath": "/" + "a" * 1023},
    {"mountPath": None},
    {"instanceUUID": _OTHER}, {"instanceUUID": None},
    {"sizeGiB": 1}, {"sizeGiB": 65536}, {"sizeGiB": None},
]

# What is written over the smallest request -> what the API server says.
_REFUSED: list[tuple[Spec, str]] = [
    ({"nodeName": _REMOVED}, "spec.nodeName: Required value"),
    ({"nodeName": ""}, "spec.nodeName: Invalid value"),
    ({"nodeName": "n" * 254}, "spec.nodeName: Too long"),
    ({"nodeName": "Node1"}, "spec.nodeName in body should match"),
    ({"nodeName": "node1 "}, "spec.nodeName in body should match"),
    ({"nodeName": "node1."}, "spec.nodeName in body should match"),
    ({"nodeName": "node1\n"}, "spec.nodeName in body should match"),
    ({"nodeName": None}, "spec.nodeName: Required value"),
    ({"volumeID": _REMOVED}, "spec.volumeID: Required value"),
    ({"volumeID": ""}, "spec.volumeID in body should match"),
    ({"volumeID": "db"}, "spec.volumeID in body should match"),
    ({"volumeID": _VOLUME.upper()}, "spec.volumeID in body should match"),
    ({"volumeID": _VOLUME + "\n"}, "spec.volumeID in body should match"),
    ({"volumeID": f" {_VOLUME}"}, "spec.volumeID in body should match"),
    ({"volumeID": 5}, "spec.volumeID in body must be of type string"),
    ({"mode": "rwx"}, 'spec.mode: Unsupported value: "rwx"'),
    ({"mode": "RO"}, 'spec.mode: Unsupported value: "RO"'),
    ({"volumeMode": "block"}, 'spec.volumeMode: Unsupported value: "block"'),
    ({"multipath": "Yes"}, 'spec.multipath: Unsupported value: "Yes"'),
    ({"filesystem": "ext4"}, "spec.filesystem in body must be of type object"),
    ({"filesystem": {"type": "btrfs"}}, 'spec.filesystem.type: Unsupported value: "btrfs"'),
    ({"filesystem": {"format": "Always"}}, 'spec.filesystem.format: Unsupported value: "Always"'),
    ({"filesystem": {"fsType": "xfs"}}, 'unknown field "spec.filesystem.fsType"'),
    ({"filesystem": {"mountOptions": [""]}}, "spec.filesystem.mountOptions[0]"),
    ({"filesystem": {"mountOptions": ["ro,noatime"]}}, "spec.filesystem.mountOptions[0] in body should match"),
    ({"filesystem": {"mountOptions": ["noatime", "a b"]}}, "spec.filesystem.mountOptions[1] in body should match"),
    ({"filesystem": {"mountOptions": ["a\nb"]}}, "spec.filesystem.mountOptions[0] in body should match"),
    ({"filesystem": {"mountOptions": ["a\x0bb"]}}, "spec.filesystem.mountOptions[0] in body should match"),
    ({"filesystem": {"mountOptions": ["a\u00a0b"]}}, "spec.filesystem.mountOptions[0] in body should match"),
    ({"filesystem": {"mountOptions": ["a\x01"]}}, "spec.filesystem.mountOptions[0] in body should match"),
    ({"filesystem": {"mountOptions": ["x" * 129]}}, "spec.filesystem.mountOptions[0]: Too long"),
    ({"filesystem": {"mountOptions": ["noatime"] * 33}}, "spec.filesystem.mountOptions: Too many"),
    ({"mountPath": ""}, "spec.mountPath"),
    ({"mountPath": "/"}, "spec.mountPath"),
    ({"mountPath": "mnt/db"}, "spec.mountPath in body should match"),
    ({"mountPath": "/mnt/db/"}, "spec.mountPath in body should match"),
    ({"mountPath": "//mnt"}, "spec.mountPath in body should match"),
    ({"mountPath": "/mnt//db"}, "spec.mountPath in body should match"),
    ({"mountPath": "/mnt/\x00"}, "spec.mountPath in body should match"),
    ({"mountPath": "/" + "a" * 1024}, "spec.mountPath: Too long"),
    ({"mountPath": "/.."}, "mountPath must not contain . or .."),
    ({"mountPath": "/mnt/../etc"}, "mountPath must not contain . or .."),
    ({"mountPath": "/mnt/./db"}, "mountPath must not contain . or .."),
    ({"mountPath": "/mnt/."}, "mountPath must not contain . or .."),
    ({"volumeMode": "Block", "mountPath": "/mnt/db"}, "filesystem and mountPath belong to volumeMode Filesystem"),
    ({"volumeMode": "Block", "filesystem": {}}, "filesystem and mountPath belong to volumeMode Filesystem"),
    ({"instanceUUID": ""}, "spec.instanceUUID in body should match"),
    ({"instanceUUID": "server-1"}, "spec.instanceUUID in body should match"),
    ({"sizeGiB": 0}, "spec.sizeGiB"), ({"sizeGiB": -1}, "spec.sizeGiB"), ({"sizeGiB": 1.5}, "spec.sizeGiB"), ({"sizeGiB": "1Gi"}, "spec.sizeGiB"),
    ({"mountpath": "/mnt/db"}, 'unknown field "spec.mountpath"'),
]

# What is there, what is written over it -> what the API server says; None where it accepts.
_UPDATES: list[tuple[Spec, Spec, Optional[str]]] = [
    (_FULL, {}, None),
    (_FULL, {"nodeName": "node2"}, "nodeName is immutable"),
    (_FULL, {"volumeID": _OTHER}, "volumeID is immutable"),
    (_FULL, {"mode": "rw"}, "mode is immutable"),
    (_FULL, {"mode": _REMOVED}, "mode is immutable"),
    (_FULL, {"volumeMode": "Block", "filesystem": _REMOVED, "mountPath": _REMOVED}, "volumeMode is immutable"),
    (_FULL, {"volumeMode": _REMOVED}, None),
    (_FULL, {"multipath": "Auto"}, "multipath is immutable"),
    (_FULL, {"multipath": _REMOVED}, "multipath is immutable"),
    (_FULL, {"filesystem": {"type": "ext4", "format": "Never", "mountOptions": ["noatime"]}}, "filesystem is immutable"),
    (_FULL, {"filesystem": {"type": "xfs", "format": "IfBlank", "mountOptions": ["noatime"]}}, "filesystem is immutable"),
    (_FULL, {"filesystem": {"type": "xfs", "format": "Never"}}, "filesystem is immutable"),
    (_FULL, {"filesystem": {"type": "xfs", "format": "Never", "mountOptions": ["noatime", "sync"]}}, "filesystem is immutable"),
    (_FULL, {"filesystem": _REMOVED}, "mountPath and filesystem can be neither added nor removed"),
    (_FULL, {"filesystem": None}, "mountPath and filesystem can be neither added nor removed"),
    (_FULL, {"mountPath": "/mnt/other"}, "mountPath is immutable"),
    (_FULL, {"mountPath": _REMOVED}, "mountPath and filesystem can be neither added nor removed"),
    (_FULL, {"mountPath": None}, "mountPath and filesystem can be neither added nor removed"),
    (_FULL, {"instanceUUID": _VOLUME}, "instanceUUID is immutable"),
    (_FULL, {"instanceUUID": _REMOVED}, "instanceUUID can be neither added nor removed"),
    (_FULL, {"instanceUUID": None}, "instanceUUID can be neither added nor removed"),
    (_MINIMAL, {"forceDetach": True}, None),
    (_MINIMAL, {"sizeGiB": 1}, None),
    ({**_MINIMAL, "sizeGiB": 2}, {"sizeGiB": 3}, None),
    ({**_MINIMAL, "sizeGiB": 2}, {"sizeGiB": 2}, None),
    ({**_MINIMAL, "sizeGiB": 2}, {"sizeGiB": 1}, "sizeGiB can only grow"),
    ({**_MINIMAL, "sizeGiB": 2}, {"sizeGiB": _REMOVED}, "sizeGiB can't be removed"),
    ({**_MINIMAL, "sizeGiB": 2}, {"sizeGiB": None}, "sizeGiB can't be removed"),
    (_MINIMAL, _DEFAULTS, None),
    (_MINIMAL, {"filesystem": {}}, "mountPath and filesystem can be neither added nor removed"),
    (_MINIMAL, {"mountPath": "/mnt/db"}, "mountPath and filesystem can be neither added nor removed"),
    (_MINIMAL, {"mountPath": None, "filesystem": None, "instanceUUID": None}, None),
    (_MINIMAL, {"instanceUUID": _OTHER}, "instanceUUID can be neither added nor removed"),
    (_MINIMAL, {"volumeMode": "Block"}, "volumeMode is immutable"),
    ({**_MINIMAL, "volumeMode": "Block"}, {"volumeMode": "Filesystem"}, "volumeMode is immutable"),
    # The same with an explicit null before.
    ({**_MINIMAL, "mountPath": None}, {"mountPath": "/mnt/db"}, "mountPath and filesystem can be neither added nor removed"),
    ({**_MINIMAL, "filesystem": None}, {"filesystem": {}}, "mountPath and filesystem can be neither added nor removed"),
    ({**_MINIMAL, "instanceUUID": None}, {"instanceUUID": _OTHER}, "instanceUUID can be neither added nor removed"),
    ({**_MINIMAL, "mountPath": None, "filesystem": None, "instanceUUID": None},
     {"mountPath": _REMOVED, "filesystem": _REMOVED, "instanceUUID": _REMOVED}, None),
]


def _over(spec: Spec, change: Spec) -> Spec:
    return {key: value for key, value in {**copy.deepcopy(spec), **change}.items() if value != _REMOVED}


def test_the_api_server_takes_every_definition_without_a_warning(cluster: Cluster) -> None:
    files = sorted(CRDS.glob("*.yaml"))
    expect(files, "there is no custom resource definition")
    for file in files:
        result = cluster.kubectl("apply", "--server-side", "--force-conflicts", "-o", "json", "--filename", str(file))
        expect(result.code == 0 and result.stderr == "", f"{file.name}: {result}")
        conditions = {condition["type"]: condition["status"] for condition in result.json()["status"]["conditions"]}
        expect(conditions.get("NamesAccepted") == "True" and conditions.get("Established") == "True", f"{file.name}: {conditions}")
        # Only a definition that has none of these lacks them.
        expect(not conditions.keys() & {"NonStructuralSchema", "KubernetesAPIApprovalPolicyConformant"}, f"{file.name}: {conditions}")


def test_what_the_schema_accepts(cluster: Cluster) -> None:
    wrong = []
    for change in _ACCEPTED:
        answer = cluster.api.request("POST", f"{REQUESTS}?dryRun=All&fieldValidation=Strict", attach_request("db", _over(_MINIMAL, change)))
        if answer.status != 201 or answer.warnings:
            wrong.append(f"{str(change)[:200]}: {answer.status} {answer.message()[:400]} {answer.warnings}")
    expect(not wrong, "\n     ".join(["not accepted:", *wrong]))


def test_what_the_schema_refuses_and_what_it_says(cluster: Cluster) -> None:
    wrong = []
    for change, words in _REFUSED:
        answer = cluster.api.request("POST", f"{REQUESTS}?dryRun=All&fieldValidation=Strict", attach_request("db", _over(_MINIMAL, change)))
        if answer.status not in (400, 422) or words not in answer.message():
            wrong.append(f"{str(change)[:200]}: {answer.status} {answer.message()[:400]}, expected {words!r}")
    expect(not wrong, "\n     ".join(["not refused so:", *wrong]))


def test_a_request_without_a_spec_is_refused(cluster: Cluster) -> None:
    body = attach_request("db", {})
    cases: list[tuple[Any, str]] = [(None, "spec: Required value"), ({}, "spec.nodeName: Required value")]
    for spec, words in cases:
        body["spec"] = spec
        answer = cluster.api.request("POST", f"{REQUESTS}?dryRun=All", body)
        expect(answer.status == 422 and words in answer.message(), f"{spec}: {answer}")
    del body["spec"]
    answer = cluster.api.request("POST", f"{REQUESTS}?dryRun=All", body)
    expect(answer.status == 422 and "spec: Required value" in answer.message(), f"no spec: {answer}")


def test_defaults_are_filled_in(cluster: Cluster) -> None:
    stored = cluster.api.request("POST", f"{REQUESTS}?dryRun=All", attach_request("db", _MINIMAL)).ok()
    expect(stored["spec"] == {**_MINIMAL, **_DEFAULTS}, f"the spec is {stored['spec']}")
    stored = cluster.api.request("POST", f"{REQUESTS}?dryRun=All", attach_request("db", {**_MINIMAL, "filesystem": {}})).ok()
    expect(stored["spec"]["filesystem"] == {"type": "ext4", "format": "IfBlank"}, f"the spec is {stored['spec']}")


def test_nothing_of_a_spec_can_be_changed_but_force_and_the_size_that_only_grows(cluster: Cluster) -> None:
    wrong = []
    for number, (before, change, words) in enumerate(_UPDATES):
        path = f"{REQUESTS}/update-{number}"
        stored = cluster.api.request("POST", REQUESTS, attach_request(f"update-{number}", before)).ok()
        stored["spec"] = _over(stored["spec"], change)
        answer = cluster.api.request("PUT", f"{path}?dryRun=All", stored)
        accepted = answer.status == 200 and words is None
        refused = answer.status == 422 and words is not None and words in answer.message()
        if not accepted and not refused:
            wrong.append(f"{before} then {change}: {answer.status} {answer.message()[:400]}, expected {words!r}")
        cluster.api.request("DELETE", path).ok()
    expect(not wrong, "\n     ".join(["not answered so:", *wrong]))


def test_metadata_can_be_changed(cluster: Cluster) -> None:
    stored = cluster.api.request("POST", REQUESTS, attach_request("db", _FULL)).ok()
    stored["metadata"].update(labels={"a": "b"}, annotations={"c": "d"}, finalizers=["attachd.dev/detach"])
    stored = cluster.api.request("PUT", f"{REQUESTS}/db", stored).ok()
    expect(stored["metadata"]["generation"] == 1, f"the generation is {stored['metadata']['generation']}")
    cluster.api.request("DELETE", f"{REQUESTS}/db").ok()
    stored = cluster.api.request("GET", f"{REQUESTS}/db").ok()
    expect("deletionTimestamp" in stored["metadata"], f"a finalizer doesn't hold it: {stored['metadata']}")
    stored["metadata"]["finalizers"] = []
    cluster.api.request("PUT", f"{REQUESTS}/db", stored).ok()
    expect(cluster.api.request("GET", f"{REQUESTS}/db").status == 404, "it is still there")
