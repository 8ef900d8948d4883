"""A small client of Cinder's API, for the lab's own commands. Without authentication the token names the project."""

from __future__ import annotations

import dataclasses
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from lablib.commands import wait_until
from lablib.errors import LabError

MICROVERSION = "3.54"


@dataclasses.dataclass(frozen=True)
class Answer:
    """An HTTP answer of Cinder."""

    status: int
    body: str

    def json(self) -> Any:
        """Return the decoded body; raise LabError if Cinder refused."""
        if self.status >= 400:
            raise LabError(f"Cinder answered {self.status}: {self.body}")
        return json.loads(self.body) if self.body else None


class BlockStorage:
    """Cinder's volume API for one project."""

    def __init__(self, endpoint: str, project: str, *, token: str | None = None, service_token: str | None = None) -> None:
        self._endpoint = endpoint
        self._project = project
        self._tokens = {"X-Auth-Token": token or f"admin:{project}"}
        if service_token:
            self._tokens["X-Service-Token"] = service_token

    def request(
        self, method: str, path: str, body: str | None = None, *, microversion: str = MICROVERSION, timeout: float = 60
    ) -> Answer:
        """Send a request; a path that doesn't begin with /v3 is one below the project."""
        if path != "/" and not path.startswith("/v3"):
            path = f"/v3/{self._project}/{path.lstrip('/')}"
        request = urllib.request.Request(self._endpoint + path, method=method.upper(), headers={
            **self._tokens,
            "OpenStack-API-Version": f"volume {microversion}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        }, data=None if body is None else body.encode())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as response:
                return Answer(response.status, response.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode(errors="replace"))
        except OSError as error:
            raise LabError(f"no answer from Cinder at {self._endpoint}: {error}") from error

    def answers(self) -> bool:
        """Tell whether the API is up."""
        try:
            return self.request("GET", "/", timeout=10).status == 300
        except LabError:
            return False

    def pools(self) -> set[str]:
        """Return the back ends that the scheduler knows."""
        answer = self.request("GET", "/scheduler-stats/get_pools")
        if answer.status >= 400:
            return set()
        return {pool["name"].partition("@")[2].partition("#")[0] for pool in answer.json()["pools"]}

    def ensure_types(self, types: Mapping[str, Mapping[str, str]]) -> None:
        """Create the volume types that don't exist."""
        existing = {item["name"] for item in self.request("GET", "/types?is_public=None").json()["volume_types"]}
        for name in sorted(set(types) - existing):
            body = {"volume_type": {"name": name, "extra_specs": types[name]}}
            self.request("POST", "/types", json.dumps(body)).json()

    def lift_quota(self) -> None:
        """Allow any number of volumes: the default is 10."""
        body = {"quota_class_set": {"volumes": -1, "gigabytes": -1, "snapshots": -1}}
        self.request("PUT", "/os-quota-class-sets/default", json.dumps(body)).json()

    def create_volume(self, size: int, volume_type: str | None, name: str | None) -> str:
        """Create a volume and return its id."""
        volume: dict[str, Any] = {"size": size, "volume_type": volume_type, "name": name}
        body = {"volume": {key: value for key, value in volume.items() if value is not None}}
        return str(self.request("POST", "/volumes", json.dumps(body)).json()["volume"]["id"])

    def wait_for_volume(self, volume_id: str, timeout: float) -> None:
        """Wait until a new volume is available."""

        def available() -> bool:
            status = self.request("GET", f"/volumes/{volume_id}").json()["volume"]["status"]
            if status.startswith("error"):
                raise LabError(f"volume {volume_id} is in status {status}; see: scripts/lab logs cinder")
            return bool(status == "available")

        wait_until(available, timeout=timeout, what=f"volume {volume_id} to be available")

    def delete_volume(self, volume_id: str, timeout: float) -> None:
        """Delete a volume and wait until it is gone."""
        self.request("DELETE", f"/volumes/{volume_id}").json()

        def gone() -> bool:
            answer = self.request("GET", f"/volumes/{volume_id}")
            if answer.status == 404:
                return True
            status = answer.json()["volume"]["status"]
            if status.startswith("error"):
                raise LabError(f"volume {volume_id} is in status {status}; see: scripts/lab logs cinder")
            return False

        wait_until(gone, timeout=timeout, what=f"volume {volume_id} to be gone")

    def reset_status(self, volume_id: str, status: str) -> None:
        """Set a volume's status, whatever it is."""
        body = {"os-reset_status": {"status": status, "attach_status": "detached"}}
        self.request("POST", f"/volumes/{volume_id}/action", json.dumps(body)).json()

    def force_delete_volume(self, volume_id: str, timeout: float) -> None:
        """Delete a volume whatever its status."""
        self.reset_status(volume_id, "available")
        self.delete_volume(volume_id, timeout)

    def volumes(self) -> list[dict[str, Any]]:
        """Return all volumes."""
        return list(self.request("GET", "/volumes/detail").json()["volumes"])

    def attachments(self) -> list[dict[str, Any]]:
        """Return all attachments, without their connection info (it holds passwords)."""
        return list(self.request("GET", "/attachments").json()["attachments"])
