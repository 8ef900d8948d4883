"""What Kubernetes does with VolumeAttachRequests: selection by node, status, columns, explanation."""

from __future__ import annotations

from typing import Any

from lablib.cases import expect
from lablib.cluster import REQUESTS, Cluster, attach_request

_VOLUME = "5c2f7a1e-03d4-4b7e-9c7a-2f1f0f6f2a10"
_NOW = "2026-11-22T10:00:00Z"


def _create(cluster: Cluster, name: str, node: str, **spec: Any) -> dict[str, Any]:
    body = attach_request(name, {"nodeName": node, "volumeID": _VOLUME, **spec})
    created: dict[str, Any] = cluster.api.request("POST", REQUESTS, body).ok()
    return created


def _delete(cluster: Cluster, *names: str) -> None:
    for name in names:
        cluster.api.request("DELETE", f"{REQUESTS}/{name}").ok()


def _condition(kind: str, status: str = "True") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": "Attached", "message": "", "lastTransitionTime": _NOW, "observedGeneration": 1}


_STATUS: dict[str, Any] = {
    "observedGeneration": 1, "attachmentID": "9b392185-2e24-4bf5-93ce-94e8af1b256d", "mountPath": "/mnt/db",
    "device": {"path": "/dev/mapper/36e0f", "wwid": "36e0f", "sizeBytes": 1 << 40, "paths": [
        {"portal": "10.0.2.2:3260", "targetIQN": "iqn.2010-10.org.openstack:volume-1", "lun": 1, "hctl": "0:0:0:1", "device": "sda", "state": "active"},
        {"portal": "[fd00:2::2]:3260", "targetIQN": "iqn.2010-10.org.openstack:volume-1", "lun": 1, "state": "no session"}]},
    "conditions": [_condition("Reserved"), _condition("Connected"), _condition("Mounted"), _condition("Ready")],
}


def test_a_node_lists_only_its_own_requests(cluster: Cluster) -> None:
    for name, node in [("a", "node1"), ("b", "node2"), ("c", "node1")]:
        _create(cluster, name, node)
    for node, names in [("node1", ["a", "c"]), ("node2", ["b"]), ("node", [])]:
        found = cluster.api.request("GET", f"{REQUESTS}?fieldSelector=spec.nodeName%3D{node}").ok()["items"]
        expect([item["metadata"]["name"] for item in found] == names, f"{node} lists {found}")
    result = cluster.kubectl("get", "var", "--field-selector=spec.nodeName=node2", "-o", "name")
    expect(result.stdout == "volumeattachrequest.attachd.dev/b\n", f"kubectl: {result}")
    other = cluster.api.request("GET", f"{REQUESTS}?fieldSelector=spec.volumeID%3D{_VOLUME}")
    expect(other.status == 400 and "field label not supported" in other.message(), f"another field: {other}")
    _delete(cluster, "a", "b", "c")


def test_a_node_is_told_only_of_its_own_requests(cluster: Cluster) -> None:
    version = cluster.api.request("GET", REQUESTS).ok()["metadata"]["resourceVersion"]
    _create(cluster, "b", "node2")
    created = _create(cluster, "a", "node1")
    created["status"] = _STATUS
    cluster.api.request("PUT", f"{REQUESTS}/a/status", created).ok()
    _delete(cluster, "b", "a")
    watched = f"{REQUESTS}?fieldSelector=spec.nodeName%3Dnode1&resourceVersion={version}"
    events = [(event["type"], event["object"]["metadata"]["name"]) for event in cluster.api.watch(watched, seconds=2)]
    expect(events == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")], f"the events are {events}")


def test_status_and_spec_are_written_apart(cluster: Cluster) -> None:
    created = _create(cluster, "db", "node1")
    expect("status" not in created, f"a new request has a status: {created}")

    # What comes by the status's door changes the status only.
    written = {**created, "status": _STATUS, "spec": {**created["spec"], "nodeName": "node2"}}
    written["metadata"] = {**created["metadata"], "labels": {"by": "status"}}
    stored = cluster.api.request("PUT", f"{REQUESTS}/db/status", written).ok()
    expect(stored["status"] == _STATUS, f"the status is {stored['status']}")
    expect(stored["spec"] == created["spec"] and "labels" not in stored["metadata"], f"a status write changed more: {stored}")
    expect(stored["metadata"]["generation"] == 1, f"the generation is {stored['metadata']['generation']}")

    # And the other way round.
    written = {**stored, "status": {"attachmentID": "forged"}}
    written["metadata"] = {**stored["metadata"], "labels": {"by": "main"}}
    stored = cluster.api.request("PUT", f"{REQUESTS}/db", written).ok()
    expect(stored["status"] == _STATUS and stored["metadata"]["labels"] == {"by": "main"}, f"a spec write changed the status: {stored}")
    forged = {**attach_request("forged", created["spec"]), "status": {"attachmentID": "forged"}}
    stored = cluster.api.request("POST", REQUESTS, forged).ok()
    expect("status" not in stored, f"it was created with a status: {stored}")
    _delete(cluster, "db", "forged")


def test_a_status_that_is_none_is_refused(cluster: Cluster) -> None:
    _create(cluster, "db", "node1")
    wrong = []
    for status, words in [
        ({"observedGeneration": "one"}, "observedGeneration in body must be of type integer"),
        ({"conditions": [_condition("Ready"), _condition("Ready", "False")]}, 'status.conditions[1]: Duplicate value: {"type":"Ready"}'),
        ({"conditions": [{"type": "Ready"}]}, "status.conditions[0].status: Required value"),
        ({"device": {"path": "/dev/sda"}}, "status.device.wwid: Required value"),
        ({"device": {**_STATUS["device"], "sizeBytes": -1}}, "status.device.sizeBytes"),
    ]:
        answer = cluster.api.request("PATCH", f"{REQUESTS}/db/status", {"status": status}, content_type="application/merge-patch+json")
        if answer.status != 422 or words not in answer.message():
            wrong.append(f"{status}: {answer.status} {answer.message()}, expected {words!r}")
    expect(not wrong, "\n     ".join(["not refused so:", *wrong]))
    _delete(cluster, "db")


def test_two_owners_of_conditions_leave_each_others_alone(cluster: Cluster) -> None:
    _create(cluster, "db", "node1")
    for owner, kind in [("attachd", "Ready"), ("somebody", "Approved"), ("attachd", "Ready")]:
        body = {"apiVersion": "attachd.dev/v1alpha1", "kind": "VolumeAttachRequest", "metadata": {"name": "db"},
                "status": {"conditions": [_condition(kind)]}}
        cluster.api.request("PATCH", f"{REQUESTS}/db/status?fieldManager={owner}", body, content_type="application/apply-patch+yaml").ok()
    stored = cluster.api.request("GET", f"{REQUESTS}/db").ok()
    kinds = sorted(condition["type"] for condition in stored["status"]["conditions"])
    expect(kinds == ["Approved", "Ready"], f"the conditions are {kinds}")
    _delete(cluster, "db")


def test_kubectl_shows_node_volume_ready_device_mount_and_age(cluster: Cluster) -> None:
    created = _create(cluster, "db", "node1")
    header, row = (line.split() for line in cluster.kubectl("get", "var").stdout.splitlines())
    expect(header == ["NAME", "NODE", "VOLUME", "READY", "DEVICE", "MOUNT", "AGE"], f"the columns are {header}")
    expect(row[:3] == ["db", "node1", _VOLUME] and len(row) == 4, f"the row is {row}")
    created["status"] = _STATUS
    cluster.api.request("PUT", f"{REQUESTS}/db/status", created).ok()
    row = cluster.kubectl("get", "volumeattachrequests", "--no-headers").stdout.split()
    expect(row[:6] == ["db", "node1", _VOLUME, "True", "/dev/mapper/36e0f", "/mnt/db"] and len(row) == 7, f"the row is {row}")
    waited = cluster.kubectl("wait", "--for=condition=Ready", "--timeout=10s", "var/db")
    expect(waited.code == 0, f"kubectl wait: {waited}")
    _delete(cluster, "db")


def test_kubectl_explains_every_field(cluster: Cluster) -> None:
    told = cluster.kubectl("explain", "var.spec.mountPath")
    expect(told.code == 0 and "absolute path below a root that the agent allows" in " ".join(told.stdout.split()), f"mountPath: {told}")
    told = cluster.kubectl("explain", "var", "--recursive")
    for field in ("nodeName", "volumeID", "mountOptions", "instanceUUID", "attachmentID", "targetIQN", "conditions"):
        expect(field in told.stdout, f"{field} is not explained: {told}")


def test_kubectl_refuses_a_misspelt_field(cluster: Cluster) -> None:
    text = (f"apiVersion: attachd.dev/v1alpha1\nkind: VolumeAttachRequest\nmetadata: {{name: db}}\n"
            f"spec: {{nodeName: node1, volumeID: {_VOLUME}, mountpath: /mnt/db}}\n")
    result = cluster.kubectl("apply", "-f", "-", stdin=text.encode())
    expect(result.code == 1 and 'unknown field "spec.mountpath"' in result.stderr, f"kubectl: {result}")
