"""A small client of the Kubernetes API, for the lab's tests: where kubectl starts a program, this sends a request."""

from __future__ import annotations

import dataclasses
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from lablib.errors import LabError
from lablib.kubernetes_credentials import KeyPair

_TIMEOUT = 60.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """An HTTP answer of the API server."""

    status: int
    body: Any  # decoded JSON; text where the answer is none
    warnings: list[str]

    def ok(self) -> Any:
        """Return the body; raise LabError if the API server refused."""
        if self.status >= 400:
            raise LabError(f"the API server answered {self.status}: {self.message()}")
        return self.body

    def message(self) -> str:
        """What the API server says of a refusal; nothing where it accepts."""
        if self.status < 400:
            return ""
        return str(self.body.get("message", self.body) if isinstance(self.body, dict) else self.body)


class KubernetesApi:
    """The API, as one user sees it: the owner of a client certificate, of a token, or nobody."""

    def __init__(self, endpoint: str, ca: Path, *, certificate: Optional[KeyPair] = None, token: Optional[str] = None) -> None:
        self._endpoint = endpoint
        self._token = token
        context = ssl.create_default_context(cafile=str(ca))
        if certificate:
            context.load_cert_chain(certificate.certificate, certificate.key)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))

    def request(self, method: str, path: str, body: Any = None, *, content_type: str = "application/json",
                timeout: float = _TIMEOUT) -> Answer:
        """Send a request; ``path`` is as in ``/apis/attachd.dev/v1alpha1/volumeattachrequests?dryRun=All``.

        A request that the API server puts off (429: for a moment after its start, or after a CRD's) is sent again, as
        kubectl does.
        """
        deadline = time.monotonic() + timeout
        while True:
            answer = self._request(method, path, body, content_type, timeout)
            if answer.status != 429 or time.monotonic() > deadline:
                return answer
            time.sleep(0.2)

    def _request(self, method: str, path: str, body: Any, content_type: str, timeout: float) -> Answer:
        try:
            with self._open(method, path, body, content_type, timeout) as response:
                return self._answer(response.status, response)
        except urllib.error.HTTPError as error:
            return self._answer(error.code, error)
        except OSError as error:
            raise LabError(f"{method} {path}: no answer from the API server at {self._endpoint}: {error}") from error

    def watch(self, path: str, *, seconds: int) -> Iterator[dict[str, Any]]:
        """Give the events of a watch as they come, and end after so many seconds."""
        joint = "&" if "?" in path else "?"
        try:
            with self._open("GET", f"{path}{joint}watch=true&timeoutSeconds={seconds}", None, "", seconds + _TIMEOUT) as response:
                for line in response:
                    yield json.loads(line)
        except OSError as error:
            raise LabError(f"watch of {path} at {self._endpoint}: {error}") from error

    def _open(self, method: str, path: str, body: Any, content_type: str, timeout: float) -> Any:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._endpoint + path, method=method, headers=headers, data=data)
        return self._opener.open(request, timeout=timeout)

    @staticmethod
    def _answer(status: int, response: Any) -> Answer:
        text = response.read().decode(errors="replace")
        try:
            body = json.loads(text)
        except ValueError:
            body = text
        return Answer(status, body, response.headers.get_all("Warning") or [])
