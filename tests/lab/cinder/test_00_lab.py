"""What tests of the client build on: the lab's Keystone knows who comes, Cinder believes it, and an older Cinder is older."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from lablib import cinder, cinder_old, guest, keystone
from lablib.cases import expect
from lablib.commands import wait_until
from lablib.errors import LabError
from lablib.state import PROJECT_ID, Lab

_INSTANCE = "ada641b9-cf3f-43fe-adf1-0de8dd6b7901"
_CONNECTOR = {"host": "lab-test", "initiator": "iqn.2026-11.dev.attachd.test:lab", "ip": "127.0.0.1",
              "platform": "x86_64", "os_type": "linux", "multipath": True}


@contextmanager
def _volume(lab: Lab) -> Iterator[str]:
    """A volume that Cinder without authentication made."""
    api = cinder.client(lab.settings())
    volume = api.create_volume(1, "tgt", "lab test")
    try:
        api.wait_for_volume(volume, 120)
        yield volume
    finally:
        api.force_delete_volume(volume, 120)


def _status(lab: Lab, cloud: str, method: str, path: str, body: object = None) -> int:
    api = keystone.client(lab, keystone.token(lab, cloud))
    return api.request(method, path, json.dumps(body) if body else None).status


def test_a_volume_made_without_authentication_is_the_projects_and_nobody_elses(lab: Lab) -> None:
    with _volume(lab) as volume:
        for cloud, expected in [("member", 200), ("reader", 200), ("service", 200), ("application-credential", 200),
                                ("application-credential-by-name", 200), ("other", 400)]:
            status = _status(lab, cloud, "GET", f"/volumes/{volume}")
            expect(status == expected, f"{cloud} gets {status} for the project's volume")
        status = _status(lab, "other", "GET", f"/v3/volumes/{volume}")
        expect(status == 404, f"another project gets {status} for the volume")
        status = _status(lab, "reader", "POST", "/attachments", {"attachment": {"volume_uuid": volume}})
        expect(status == 403, f"a reader gets {status} for a reservation")


def test_every_cloud_of_the_clouds_yaml_gets_a_token_and_only_its_owner_reads_the_file(lab: Lab) -> None:
    status = keystone.status(lab)
    assert status is not None
    text = keystone.clouds_file(lab).read_text()
    expect(len(status["clouds"]) == 10, f"the clouds are {status['clouds']}")
    for cloud in status["clouds"]:
        expect(f"\n  {cloud}:\n" in text, f"the file has no {cloud}")
        expect(keystone.token(lab, cloud).startswith("gAAAA"), f"{cloud} gets no token")
    for path in (keystone.clouds_file(lab), keystone.clouds_file(lab, in_node=True)):
        mode = path.stat().st_mode & 0o777
        expect(mode == 0o600, f"the mode of {path} is {mode:o}")


def test_a_service_token_counts_only_with_the_role_service(lab: Lab) -> None:
    with _volume(lab) as volume:
        member, service = (keystone.token(lab, cloud) for cloud in ("member", "service"))
        api = keystone.client(lab, member)
        body = {"attachment": {"volume_uuid": volume, "instance_uuid": _INSTANCE, "connector": _CONNECTOR}}
        attachment = api.request("POST", "/attachments", json.dumps(body)).json()["attachment"]["id"]
        for service_token, expected in [(None, 500), (member, 401), (service, 200)]:
            answer = keystone.client(lab, member, service_token=service_token).request("DELETE", f"/attachments/{attachment}")
            expect(answer.status == expected, f"the deletion is {answer.status} where {expected} was expected: {answer.body}")


def test_a_token_lasts_as_long_as_was_asked_for(lab: Lab) -> None:
    keystone.start(lab, token_lifetime=2)
    try:
        api = keystone.client(lab, keystone.token(lab, "member"))
        expect(api.request("GET", "/attachments").status == 200, "a new token is refused")
        wait_until(lambda: api.request("GET", "/attachments").status == 401, timeout=10, what="the token to expire")
    finally:
        keystone.start(lab)


def test_without_keystone_cinder_answers_503_to_tokens_and_goes_on_without_authentication(lab: Lab) -> None:
    token = keystone.token(lab, "member")
    keystone.stop(lab)
    try:
        status = keystone.client(lab, token).request("GET", "/attachments").status
        expect(status == 503, f"Cinder answers {status}")
        expect(cinder.client(lab.settings()).attachments() == [], "Cinder without authentication lists something")
        try:
            keystone.token(lab, "member")
            raise AssertionError("a stopped Keystone gave a token")
        except LabError as error:
            expect("no token from Keystone" in str(error), str(error))
    finally:
        keystone.start(lab)
    expect(keystone.client(lab, token).request("GET", "/attachments").status == 200, "it forgot its tokens")


def test_a_node_reaches_keystone_and_cinder_where_its_clouds_yaml_and_the_catalog_say(lab: Lab) -> None:
    record = lab.settings().keystone
    assert record is not None
    url = keystone.auth_url(record, in_node=True)
    expect(url in keystone.clouds_file(lab, in_node=True).read_text(), f"the node's clouds.yaml lacks {url}")
    internal = [url for _, _, interface, url in keystone.endpoints(record) if interface == "internal"]
    expect(url in internal, f"the catalog lacks {url}")
    for port in (record.port, record.cinder_port):
        script = f"exec 3<>/dev/tcp/10.0.2.2/{port} && printf 'GET /v3/ HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3"
        answer = guest.output(lab, lab.node("node1"), ["bash", "-c", script], timeout=60)
        expect(" 200 " in answer or " 401 " in answer, f"port {port} says {answer!r}")


def test_the_older_cinder_is_of_debian_12_and_sees_other_volumes(lab: Lab) -> None:
    old = cinder_old.client(lab)
    [version] = old.request("GET", "/v3/").json()["versions"]
    expect(version["version"] == "3.70", f"its highest version is {version['version']}")
    with _volume(lab) as volume:
        expect(old.request("GET", f"/v3/{PROJECT_ID}/volumes/{volume}").status == 404, "it sees the other's volume")
