"""A stand-in before the lab's Cinder: passes requests on and counts them, or delays, loses or falsifies the answers."""

from __future__ import annotations

import dataclasses
import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Callable, Optional

_NOT_PASSED_ON = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the proxy answers in Cinder's place."""

    # 0 closes the connection without an answer.
    status: int
    body: bytes = b""
    content_type: str = "text/html"


@dataclasses.dataclass
class Behaviour:
    """What a request gets. Every field may be changed while the proxy runs."""

    # Gives the reply to send instead of asking Cinder, or None to pass the request on.
    instead: Optional[Callable[[str, str], Optional[Reply]]] = None
    # How long Cinder's answer to a request is kept back, in seconds.
    delay: Callable[[str, str], float] = lambda method, path: 0.0
    # Makes another body of Cinder's.
    rewrite: Callable[[str, str, bytes], bytes] = lambda method, path, body: body


class Proxy:
    """The running proxy: its port on this machine's loopback, and what passed through it."""

    def __init__(self, cinder_port: int) -> None:
        self.behaviour = Behaviour()
        self.requests: list[tuple[str, str]] = []
        self.answered: list[tuple[str, str]] = []
        # Bytes of what was passed on, without headers: a request's body and its answer's.
        self.sizes: list[int] = []
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, cinder_port))
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the proxy; answers that are kept back are dropped."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def wait(self, seconds: float) -> None:
        """Keep an answer back, but not longer than the proxy lives."""
        if seconds > 0:
            self._closing.wait(seconds)

    @property
    def endpoint_in_node(self) -> str:
        """What a node is told instead of Cinder's endpoint."""
        return f"http://10.0.2.2:{self.port}/v3"

    def writes(self) -> list[tuple[str, str]]:
        """The requests that may have changed something."""
        return [request for request in self.requests if request[0] != "GET"]


def _handler(proxy: Proxy, cinder_port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _handle(self) -> None:
            path = self.path.partition("?")[0]
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.requests.append((self.command, path))
            reply = proxy.behaviour.instead(self.command, path) if proxy.behaviour.instead else None
            if reply is not None and reply.status == 0:
                self.close_connection = True
                return
            if reply is not None:
                self._send(reply.status, [("Content-Type", reply.content_type)], reply.body)
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
            cinder = http.client.HTTPConnection("127.0.0.1", cinder_port, timeout=60)
            try:
                cinder.request(self.command, self.path, body=body or None, headers=headers)
                answer = cinder.getresponse()
                content = answer.read()
            finally:
                cinder.close()
            proxy.answered.append((self.command, path))
            proxy.sizes.append(len(body) + len(content))
            proxy.wait(proxy.behaviour.delay(self.command, path))
            content = proxy.behaviour.rewrite(self.command, path, content)
            self._send(answer.status, answer.getheaders(), content)

        def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            try:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in _NOT_PASSED_ON:
                        self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if status != 204 else b"")
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # who asked has gone

        do_GET = do_POST = do_PUT = do_DELETE = _handle

    return Handler


@contextmanager
def before_cinder(cinder_port: int) -> Iterator[Proxy]:
    """A proxy for the time of a test."""
    proxy = Proxy(cinder_port)
    try:
        yield proxy
    finally:
        proxy.close()


def wait_for(proxy: Proxy, method: str, suffix: str, timeout: float) -> None:
    """Wait until Cinder has answered such a request (which its sender may not know yet)."""
    deadline = time.monotonic() + timeout
    while not any(m == method and p.endswith(suffix) for m, p in list(proxy.answered)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {method} …{suffix} passed within {timeout:.0f} s: {proxy.requests}")
        time.sleep(0.02)
