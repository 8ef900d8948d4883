"""A real Keystone for the lab: who there is, its Python environment, its database, start and stop.

The project `k8s` has the id of the project that Cinder without authentication serves, so both see the same volumes.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lablib.block_storage import BlockStorage
from lablib.cache import artefact, content_key, locked
from lablib.commands import run, tail, wait_until
from lablib.errors import LabError
from lablib.packages import virtual_environment
from lablib.state import PROJECT_ID, Keystone, Lab, Settings

PROCESS = "keystone"
TOKEN_LIFETIME = 3600
_VERSION = "30.0.0"
_SERVICE = Path(__file__).parent / "keystone_service"
_CONSTRAINTS = _SERVICE / "constraints.txt"

_HOST = "127.0.0.1"
_HOST_IN_NODE = "10.0.2.2"
_READY_TIMEOUT = 120.0

_PROJECT = "k8s"
_OTHER_PROJECT = "other"
_DOMAIN = "Default"
_REGION, _OTHER_REGION = "RegionOne", "RegionTwo"


def _secret(name: str) -> str:
    """Return the password of a user. It guards nothing; its form lets a test find it wherever it must not be."""
    return f"lab-secret-of-{name}"


def _user(name: str, project: str, *roles: str) -> dict[str, Any]:
    return {"name": name, "password": _secret(name), "project": project, "roles": roles}


_ADMIN = _user("admin", "admin", "admin")
_CINDER = _user("cinder", "service", "service")
_MEMBER = _user("member", _PROJECT, "member")
_CREDENTIAL = {
    "id": "c4ede471a1" * 3 + "00",
    "name": "node",
    "secret": _secret("application-credential"),
    "user": _MEMBER["name"],
    "project": _PROJECT,
    "roles": ["member", "reader"],  # Keystone's API adds the roles that a role implies when it makes one
}
_USERS = [
    _CINDER,
    _MEMBER,
    _user("reader", _PROJECT, "reader"),
    _user("service", _PROJECT, "member", "service"),
    _user("other", _OTHER_PROJECT, "member"),
]
_IDENTITIES = {
    "admin": _ADMIN,
    "projects": {_PROJECT: PROJECT_ID, _OTHER_PROJECT: "07e4" * 8, "service": "5e41" * 8},
    "users": _USERS,
    "application_credential": _CREDENTIAL,
    "services": [
        {"type": "identity", "name": "keystone"},
        {"type": "block-storage", "name": "cinder"},
        {"type": "volumev3", "name": "cinderv3"},
    ],
    "regions": [_REGION, _OTHER_REGION],
}


def install() -> Path:
    """Return the virtual environment with Keystone in it."""
    return virtual_environment("keystone", _VERSION, _CONSTRAINTS)


def database(venv: Path) -> Path:
    """Return a directory with keys, and a database with all projects, users and services, but without their endpoints."""

    def build(directory: Path) -> None:
        config = directory / "keystone.conf"
        _write_config(config, directory, TOKEN_LIFETIME)
        run([venv / "bin/python", _SERVICE / "seed.py", config], timeout=300, nice=True, stdin=identities.encode())
        config.unlink()  # it names a directory that is about to be renamed

    identities = json.dumps(_IDENTITIES)
    return artefact("keystone-database", content_key(venv.name, _SERVICE / "seed.py", identities), build)


def endpoints(record: Keystone) -> list[tuple[str, str, str, str]]:
    """Return the catalog: service type, region, interface and URL of each endpoint.

    A client has to choose: `internal` is the way from inside of a node, and the other region has Cinder under its
    older type, with the project in the URL.
    """
    cinder, identity = f":{record.cinder_port}/v3", f":{record.port}/v3"
    services = [
        ("identity", _REGION, identity),
        ("identity", _OTHER_REGION, identity),
        ("block-storage", _REGION, cinder),
        ("volumev3", _OTHER_REGION, f"{cinder}/%(project_id)s"),
    ]
    hosts = {"public": _HOST, "internal": _HOST_IN_NODE}
    return [(service, region, interface, f"http://{host}{rest}")
            for service, region, rest in services for interface, host in hosts.items()]


def middleware(record: Keystone) -> dict[str, str]:
    """Return how Cinder checks tokens: the options of its section `keystone_authtoken`."""
    return {
        "www_authenticate_uri": auth_url(record),
        "auth_url": auth_url(record),
        "auth_type": "password",
        "username": _CINDER["name"],
        "password": _CINDER["password"],
        "project_name": _CINDER["project"],
        "user_domain_name": _DOMAIN,
        "project_domain_name": _DOMAIN,
        "interface": "public",
        "service_token_roles": "service",
        "service_token_roles_required": "true",
        "token_cache_time": "-1",  # so that a token is refused as soon as it is revoked
    }


def auth_url(record: Keystone, *, in_node: bool = False) -> str:
    """Return the URL of Keystone, for this machine or for a lab node."""
    return f"http://{_HOST_IN_NODE if in_node else _HOST}:{record.port}/v3"


def clouds_file(lab: Lab, *, in_node: bool = False) -> Path:
    """Return where the clouds.yaml is, for use on this machine or in a lab node."""
    return lab.keystone_dir / ("clouds.in-node.yaml" if in_node else "clouds.yaml")


def start(lab: Lab, *, token_lifetime: int = TOKEN_LIFETIME) -> None:
    """Start Keystone and wait until it, and Cinder's API for its tokens, answer. One of another lifetime is replaced.

    The lifetime is that of the tokens that it gives from now on.
    """
    lab.settings()
    venv = install()  # the long part, and no other command of the lab has to wait for it
    seeded = database(venv)
    with locked(lab.lock_file, f"lab {lab.name}"):
        settings = lab.settings()
        record = _record(settings)
        if lab.processes.find(PROCESS) and record.token_lifetime == token_lifetime:
            return
        stop(lab)
        record.token_lifetime = token_lifetime
        lab.save(settings)
        state = lab.keystone_dir / "state"
        if not state.exists():
            shutil.copytree(seeded, state)
        config = lab.keystone_dir / "keystone.conf"
        _write_config(config, state, token_lifetime)
        _write_clouds(clouds_file(lab), record, in_node=False)
        _write_clouds(clouds_file(lab, in_node=True), record, in_node=True)
        _launch(lab, venv, config, record)


def token(lab: Lab, cloud: str) -> str:
    """Return a new token of one of the clouds of the clouds.yaml."""
    record = _record(lab.settings())
    clouds = _clouds(record, in_node=False)
    if cloud not in clouds:
        raise LabError(f"no cloud {cloud!r}; there are: {' '.join(clouds)}")
    body = json.dumps({"auth": _auth(clouds[cloud]["auth"])})
    request = urllib.request.Request(f"{auth_url(record)}/auth/tokens", method="POST", data=body.encode(),
                                     headers={"Content-Type": "application/json"})
    try:
        with _opener().open(request, timeout=30) as response:
            return str(response.headers["X-Subject-Token"])
    except OSError as error:
        raise LabError(f"no token from Keystone at {auth_url(record)} for {cloud}: {error}") from error


def client(lab: Lab, token: str, *, service_token: str | None = None) -> BlockStorage:
    """Return a client of Cinder that brings a token."""
    port = _record(lab.settings()).cinder_port
    return BlockStorage(f"http://{_HOST}:{port}", PROJECT_ID, token=token, service_token=service_token)


def stop(lab: Lab) -> bool:
    """Stop Keystone and tell whether it ran; who there is stays. Cinder then answers 503 to every token."""
    return lab.processes.stop(PROCESS)


def status(lab: Lab) -> dict[str, Any] | None:
    """Describe it: what runs, and how to reach it; None if it was never started."""
    record = lab.settings().keystone
    if record is None or not clouds_file(lab).exists():
        return None
    process = lab.processes.find(PROCESS)
    return {
        "pid": process.pid if process else None,
        "auth_url": auth_url(record),
        "auth_url_in_guest": auth_url(record, in_node=True),
        "token_lifetime": record.token_lifetime,
        "clouds_file": str(clouds_file(lab)),
        "clouds_file_in_guest": str(clouds_file(lab, in_node=True)),
        "clouds": sorted(_clouds(record, in_node=False)),
        "cinder": f"http://{_HOST}:{record.cinder_port}/v3",
    }


def _record(settings: Settings) -> Keystone:
    if settings.keystone is None:
        raise LabError("this lab was started before labs knew Keystone; start it anew: scripts/lab down, scripts/lab up")
    return settings.keystone


def _launch(lab: Lab, venv: Path, config: Path, record: Keystone) -> None:
    log = lab.logs / "keystone.log"
    before = log.stat().st_size if log.exists() else 0
    process = lab.processes.start(
        PROCESS,
        [str(venv / "bin/python"), str(_SERVICE / "serve.py"), str(config), str(record.port), json.dumps(endpoints(record))],
        log=log)

    def ready() -> bool:
        if not process.alive():
            raise LabError("Keystone ended")
        return _answers(auth_url(record), 200)

    try:
        wait_until(ready, timeout=_READY_TIMEOUT, what="Keystone to answer")
        # Without a token it is 401: that, and not 503, says that Cinder has found Keystone.
        wait_until(lambda: _answers(f"http://{_HOST}:{record.cinder_port}/v3/types", 401), timeout=60,
                   what=f"Cinder's API with Keystone to answer on port {record.cinder_port}")
    except LabError as error:
        stop(lab)
        raise LabError(f"{error}; the end of {log}:\n{tail(log.read_bytes()[before:].decode(errors='replace'))}") from error


def _answers(url: str, status: int) -> bool:
    with contextlib.suppress(OSError):
        try:
            with _opener().open(url, timeout=10) as response:
                return bool(response.status == status)
        except urllib.error.HTTPError as error:
            return error.code == status
    return False


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _write_config(path: Path, state: Path, token_lifetime: int) -> None:
    config = configparser.ConfigParser(interpolation=None)
    config["database"] = {"connection": f"sqlite:///{state}/keystone.sqlite"}
    config["token"] = {"expiration": str(token_lifetime)}
    config["fernet_tokens"] = {"key_repository": f"{state}/fernet"}
    config["fernet_receipts"] = {"key_repository": f"{state}/fernet"}
    config["credential"] = {"key_repository": f"{state}/credential"}
    config["cache"] = {"enabled": "true", "backend": "dogpile.cache.memory"}
    config["identity"] = {"password_hash_rounds": "4"}  # what is slow on purpose
    with open(path, "w") as file:
        config.write(file)


def _clouds(record: Keystone, *, in_node: bool) -> dict[str, dict[str, Any]]:
    """Return the clouds of a clouds.yaml: one for each way to come."""
    url = auth_url(record, in_node=in_node)

    def cloud(auth: Mapping[str, str], **more: str) -> dict[str, Any]:
        return {"auth": {"auth_url": url, **auth}, "region_name": _REGION, "interface": "internal" if in_node else "public",
                **more}

    def who(user: Mapping[str, Any]) -> dict[str, str]:
        return {"username": user["name"], "user_domain_name": _DOMAIN, "password": user["password"]}

    def on_project(user: Mapping[str, Any]) -> dict[str, Any]:
        return cloud({**who(user), "project_name": user["project"], "project_domain_name": _DOMAIN})

    secret = {"application_credential_secret": _CREDENTIAL["secret"]}
    return {
        **{user["name"]: on_project(user) for user in (_ADMIN, *_USERS) if user is not _CINDER},
        "application-credential": cloud(
            {"application_credential_id": _CREDENTIAL["id"], **secret}, auth_type="v3applicationcredential"),
        "application-credential-by-name": cloud(
            {"application_credential_name": _CREDENTIAL["name"], "username": _MEMBER["name"],
             "user_domain_name": _DOMAIN, **secret}, auth_type="v3applicationcredential"),
        "other-region": {**on_project(_MEMBER), "region_name": _OTHER_REGION},
        "system": cloud({**who(_ADMIN), "system_scope": "all"}),
        "domain": cloud({**who(_ADMIN), "domain_name": _DOMAIN}),
    }


def _auth(cloud: Mapping[str, str]) -> dict[str, Any]:
    """Return what a cloud's `auth` is in a request for a token."""
    domain = {"domain": {"name": cloud.get("user_domain_name", "")}}
    secret = cloud.get("application_credential_secret")
    if secret:
        which: dict[str, Any] = {"id": cloud.get("application_credential_id")}
        if "application_credential_name" in cloud:
            which = {"name": cloud["application_credential_name"], "user": {"name": cloud["username"], **domain}}
        return {"identity": {"methods": ["application_credential"], "application_credential": {**which, "secret": secret}}}
    if "system_scope" in cloud:
        scope: dict[str, Any] = {"system": {"all": True}}
    elif "domain_name" in cloud:
        scope = {"domain": {"name": cloud["domain_name"]}}
    else:
        scope = {"project": {"name": cloud["project_name"], "domain": {"name": cloud["project_domain_name"]}}}
    user = {"name": cloud["username"], "password": cloud["password"], **domain}
    return {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}


def _write_clouds(path: Path, record: Keystone, *, in_node: bool) -> None:
    path.touch(mode=0o600)
    path.write_text("\n".join(_yaml({"clouds": _clouds(record, in_node=in_node)}, "")) + "\n")


def _yaml(values: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}:", *_yaml(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {json.dumps(value)}")
    return lines
