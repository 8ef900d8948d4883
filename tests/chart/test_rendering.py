"""What the chart renders to: whether Kubernetes takes it, and whether it is what it was."""

from __future__ import annotations

import difflib
import os
import re
import tarfile

from lablib import image_root
from lablib.cases import expect
from lablib.chart import DIRECTORY, TESTS, VALUES, Chart, hadolint, kubeconform
from lablib.commands import run
from lablib.kubernetes_schemas import CUSTOM_LAYOUT, LAYOUT, documents, schemas, versions, write_custom
from lablib.state import PROJECT_DIR

CRDS = sorted((PROJECT_DIR / "crds").glob("*.yaml"))


def test_helm_finds_no_fault(chart: Chart) -> None:
    for values in VALUES:
        chart.helm("lint", "--strict", DIRECTORY, "--values", TESTS / f"{values}.yaml")


def _conforms(chart: Chart, yaml: str, version: str) -> None:
    write_custom([document for path in CRDS for document in documents(path.read_text())], chart.scratch)
    locations = [f"{schemas()}/{LAYOUT}", f"{schemas()}/{CUSTOM_LAYOUT}", f"{chart.scratch}/{CUSTOM_LAYOUT}"]
    flags = [flag for location in locations for flag in ("-schema-location", location)]
    output = run([kubeconform(), "-strict", "-summary", "-kubernetes-version", version, *flags, "-"], timeout=300,
                 stdin=yaml.encode())
    found = re.search(r"(\d+) resources? found .* Valid: (\d+), Invalid: 0, Errors: 0, Skipped: 0", output)
    expect(found and found[1] == found[2] == str(len(documents(yaml))), f"Kubernetes {version}: {output}")


def test_every_supported_kubernetes_takes_what_is_rendered(chart: Chart) -> None:
    expect(len(versions()) >= 6 and versions()[0] == "1.32.0", f"there are schemas of {versions()}")
    for version in versions():
        for values in VALUES:
            _conforms(chart, chart.render(values, "--include-crds", version=version), version)


def test_an_older_kubernetes_is_refused(chart: Chart) -> None:
    said = chart.refusal(*chart.template("minimal", version="1.31.9"))
    expect(said and "kubeVersion: >=1.32.0-0" in said, f"helm says: {said}")


def test_a_field_that_kubernetes_does_not_know_would_be_noticed(chart: Chart) -> None:
    """The check above checks something."""
    for old, new in (("hostNetwork:", "hostNetworks:"), ("nodeSelector:", "nodeSelektor:"), ("verbs:", "verb:"),
                     ("interval:", "intervall:"), ("matchConditions:", "matchCondition:")):
        yaml = chart.render("everything")
        expect(old in yaml, f"{old} is not in what is rendered")
        try:
            _conforms(chart, yaml.replace(old, new), versions()[-1])
        except Exception as error:
            expect(new.rstrip(":") in str(error), f"it is refused for another reason: {error}")
        else:
            expect(False, f"{new} is not noticed")


def test_it_renders_to_what_it_was(chart: Chart) -> None:
    for values in VALUES:
        golden = TESTS / "golden" / f"{values}.yaml"
        text = chart.render(values)
        if "ATTACHD_BLESS" in os.environ:
            golden.write_text(text)
        known = golden.read_text().splitlines() if golden.exists() else []
        difference = "\n".join(difflib.unified_diff(known, text.splitlines(), str(golden.name), "rendered", lineterm="", n=1))
        expect(not difference, f"{golden.name} differs; ATTACHD_BLESS=1 rewrites it\n{difference}")


def test_the_package_holds_the_custom_resource_definitions_as_generated(chart: Chart) -> None:
    chart.helm("package", DIRECTORY, "--destination", chart.scratch)
    with tarfile.open(next(chart.scratch.glob("attachd-*.tgz"))) as archive:
        members = {member.name: member for member in archive if member.name.startswith("attachd/crds/")}
        expect(len(members) == len(CRDS) and CRDS, f"the package has {sorted(members)}")
        for path in CRDS:
            member = members.get(f"attachd/crds/{path.name}")
            packed = archive.extractfile(member) if member and member.isfile() else None
            expect(packed and packed.read() == path.read_bytes(), f"{path.name} differs in the package, or isn't there")


def test_the_versions_are_those_of_the_program(_: Chart) -> None:
    cargo = re.search(r'^version = "(.+)"$', (PROJECT_DIR / "Cargo.toml").read_text(), re.MULTILINE)
    [about] = documents((DIRECTORY / "Chart.yaml").read_text())
    dockerfile = re.search(r"^ARG VERSION=(.+)$", (PROJECT_DIR / "Dockerfile").read_text(), re.MULTILINE)
    expect(cargo and dockerfile, "Cargo.toml or the Dockerfile names no version")
    expect(cargo[1] == about["appVersion"] == dockerfile[1], f"{cargo[1]}, {about['appVersion']}, {dockerfile[1]}")
    rust = re.search(r'^rust-version = "(.+)"$', (PROJECT_DIR / "Cargo.toml").read_text(), re.MULTILINE)
    expect(rust and f"rust:{rust[1]}-" in (PROJECT_DIR / "Dockerfile").read_text(), "the Dockerfile builds with another Rust")


def test_requests_in_the_documents_are_valid(chart: Chart) -> None:
    """The README's of the chart, and the one that helm prints after an installation."""
    notes = chart.helm("install", "attachd", DIRECTORY, "--dry-run=client", "--namespace", "attachd-system",
                       "--values", TESTS / "minimal.yaml")
    for name, text in (("README.md", (DIRECTORY / "README.md").read_text()), ("NOTES.txt", notes.partition("\nNOTES:")[2])):
        examples = re.findall(r"^( *)(apiVersion: attachd\.dev/.*?)^ *(?:EOF|```)$", text, re.MULTILINE | re.DOTALL)
        expect(examples, f"{name} has no example")
        for indent, example in examples:
            yaml = re.sub(f"^{indent}", "", example, flags=re.MULTILINE)
            yaml = yaml.replace("UUID-OF-THE-VOLUME", "5c2f7a1e-03d4-4b7e-9c7a-2f1f0f6f2a10")
            _conforms(chart, yaml, versions()[-1])


def test_the_image_starts_attachd_where_the_chart_and_the_lab_expect_it(_: Chart) -> None:
    stage = (PROJECT_DIR / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    expect('\nENTRYPOINT ["attachd"]\n' in stage and f" /{image_root.BINARY}\n" in stage, f"the last stage is {stage}")
    expect("BASE_IMAGE=debian:${DEBIAN_SUITE}-slim\n" in (PROJECT_DIR / "Dockerfile").read_text(), "the lab's image is Debian's")
    expect(image_root.suite(), "the Dockerfile names no suite")
    expect("GLIBC_TUNABLES" in image_root.environment(), "the Dockerfile leaves glibc as it is")


def test_hadolint_finds_no_fault_in_the_dockerfile(_: Chart) -> None:
    run([hadolint(), "--no-color", PROJECT_DIR / "Dockerfile"], timeout=120)
