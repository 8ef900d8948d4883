"""Who is who at the lab's API server: its own authority, keys and certificates, and kubeconfig files."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lablib.commands import run

_TIMEOUT = 60.0
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
_DAYS = "3650"


@dataclasses.dataclass(frozen=True)
class KeyPair:
    """A certificate, and the key that belongs to it."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority in a directory, with what it has signed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ca = self._pair("ca")
        self.server = self._pair("kube-apiserver")
        self.admin = self._pair("admin")
        self.service_account_key = directory / "service-accounts.key"
        self.service_account_public_key = directory / "service-accounts.pub"

    def make(self, addresses: Sequence[str]) -> None:
        """Make everything, unless it is there; the server has these addresses."""
        if self._directory.exists():
            return
        unfinished = Authority(self._directory.with_suffix(".new"))
        shutil.rmtree(unfinished._directory, ignore_errors=True)
        unfinished._directory.mkdir(parents=True, mode=0o700)
        names = ",".join(["DNS:localhost", *(f"IP:{address}" for address in addresses)])
        unfinished._sign(unfinished.ca, "/CN=attachd-lab", ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"], [])
        for pair, subject, extensions in (
            (unfinished.server, "/CN=kube-apiserver", ["extendedKeyUsage=serverAuth", f"subjectAltName={names}"]),
            (unfinished.admin, "/O=system:masters/CN=admin", ["extendedKeyUsage=clientAuth"]),
        ):
            unfinished._sign(pair, subject, ["basicConstraints=critical,CA:FALSE", *extensions],
                             ["-CA", str(unfinished.ca.certificate), "-CAkey", str(unfinished.ca.key)])
        run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-out", unfinished.service_account_key], timeout=_TIMEOUT)
        run(["openssl", "pkey", "-in", unfinished.service_account_key, "-pubout",
             "-out", unfinished.service_account_public_key], timeout=_TIMEOUT)
        unfinished._directory.rename(self._directory)

    def _pair(self, name: str) -> KeyPair:
        return KeyPair(self._directory / f"{name}.crt", self._directory / f"{name}.key")

    @staticmethod
    def _sign(pair: KeyPair, subject: str, extensions: Sequence[str], issuer: Sequence[str]) -> None:
        # Without a configuration, which would add extensions of its own.
        run(["openssl", "req", "-config", "/dev/null", "-x509", *issuer, *_KEY, "-days", _DAYS, "-subj", subject,
             "-keyout", pair.key, "-out", pair.certificate,
             *(part for extension in extensions for part in ("-addext", extension))], timeout=_TIMEOUT)


def client_certificate(pair: KeyPair) -> dict[str, str]:
    """Return a kubeconfig's user who shows a certificate."""
    return {"client-certificate-data": _encoded(pair.certificate), "client-key-data": _encoded(pair.key)}


def write_kubeconfig(path: Path, server: str, ca: Path, user: dict[str, str], namespace: str) -> None:
    """Write a kubeconfig that stands alone, for its owner's eyes only."""
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority-data": _encoded(ca)}}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user", "namespace": namespace}}],
        "current-context": "lab",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    number, unfinished = tempfile.mkstemp(dir=path.parent)  # with mode 0600
    with open(number, "w") as file:
        json.dump(content, file, indent=2)  # JSON is YAML
    os.replace(unfinished, path)


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
