"""All tests, in tiers from pure to real, with one line for each tier at the end."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lablib import cases, chart, cinder_old, conformance, guest, keystone, kubernetes
from lablib.build import build, cargo
from lablib.cache import artefact, content_key
from lablib.cluster import ClusterBench
from lablib.commands import run
from lablib.errors import LabError
from lablib.lifecycle import Wishes, down, up
from lablib.node import Attachd
from lablib.packages import apt_get
from lablib.state import PROJECT_DIR, PROJECT_ID, Lab

_DENY_VERSION = "0.18.9"
_FUZZ_VERSION = "0.13.2"
# Of each parser, in seconds: a short look, and what --long takes.
_FUZZ_SECONDS = (20, 300)
# The tests of the host layer take one minute, up to three where other work is on the machine.
_HOST_SECONDS = 400
_LAB = os.environ.get("ATTACHD_LAB_NAME", "test")

# How many random histories of the simulated node are lived through where there is time.
_HISTORIES = "20000"

_SCALE = "cluster_scale"
# What takes about a minute; docs/performance.md has the full size.
_SCALE_SIZES = {"ATTACHD_TEST_NODES": "20", "ATTACHD_TEST_REQUESTS": "20"}


@dataclasses.dataclass
class Tally:
    """What a tier found."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)

    def check(self, what: str, argv: list[str], *, timeout: float = 3600) -> None:
        """Run a command as one test."""
        code = _show(argv, timeout)
        self.count(code == 0, what)

    def count(self, good: bool, what: str) -> None:
        """Count one test."""
        if good:
            self.passed += 1
        else:
            self.failed += 1
            self.notes.append(what)


def _show(argv: list[str], timeout: float, env: dict[str, str] | None = None) -> int:
    print("+ " + " ".join(argv), flush=True)
    try:
        return subprocess.run(argv, cwd=PROJECT_DIR, timeout=timeout, env={**os.environ, **(env or {})}).returncode
    except subprocess.TimeoutExpired:
        print(f"no end after {timeout:.0f} s", flush=True)
        return 124


def _cargo_tests(tally: Tally, arguments: list[str], env: dict[str, str] | None = None) -> dict[str, bool]:
    """Run cargo test; tell which tests passed."""
    return _count(tally, [cargo(), "test", "--locked", "--all-features", "--no-fail-fast", *arguments], "cargo test", env)


def _count(tally: Tally, argv: list[str], what: str, env: dict[str, str] | None = None) -> dict[str, bool]:
    """Run Rust's test programs and add up what they say of themselves; tell which tests passed."""
    print("+ " + " ".join(argv), flush=True)
    process = subprocess.Popen(argv, cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
    results, passed = 0, {}
    assert process.stdout
    for line in process.stdout:
        print(line, end="", flush=True)
        found = re.match(r"test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", line)
        if found:
            results += 1
            tally.passed += int(found[1])
            tally.failed += int(found[2])
        test = re.match(r"test (\S+) \.\.\. (ok|FAILED)", line)
        if test:
            passed[test[1]] = test[2] == "ok"
    code = process.wait()
    if results == 0 or (code != 0 and tally.failed == 0):
        tally.count(False, f"{what} ended with {code} after {results} test programs")
    tally.notes.extend(name for name, ok in passed.items() if not ok)
    return passed


def lint() -> Tally:
    """Format, clippy, shell scripts, Python."""
    tally = Tally()
    tally.check("cargo fmt", [cargo(), "fmt", "--check"])
    tally.check("clippy", [cargo(), "clippy", "--locked", "--all-targets", "--all-features", "--", "-D", "warnings"])
    tally.check("documentation", ["env", "RUSTDOCFLAGS=-D warnings", cargo(), "doc", "--locked", "--no-deps", "--document-private-items"])
    if not _installed("shellcheck"):
        apt_get(["install", "-y", "--no-install-recommends", "shellcheck"])
    tally.check("shellcheck", ["shellcheck", "scripts/lab", "scripts/demo", "scripts/test", "scripts/bench", "scripts/kubectl-attachd", ".ci/run", "scripts/lablib/guest/init", "scripts/lablib/bench/bare_tools.sh",
                               "charts/attachd/files/check-installation.sh"])
    sources = sorted(str(path) for path in [*Path(PROJECT_DIR, "scripts").rglob("*.py"), *Path(PROJECT_DIR, "tests").rglob("*.py")])
    tally.check("python", [sys.executable, "-B", "-c", "import ast,sys\nfor f in sys.argv[1:]: ast.parse(open(f).read(), f)", *sources])
    return tally


def _installed(program: str) -> bool:
    return subprocess.run(["sh", "-c", f"command -v {program}"], stdout=subprocess.DEVNULL, timeout=30).returncode == 0


def policy() -> Tally:
    """Licences, bans and sources of the dependencies."""

    def install(directory: Path) -> None:
        run([cargo(), "install", "--quiet", "--locked", "--root", directory, "--version", _DENY_VERSION, "cargo-deny"], timeout=2400, nice=True)

    deny = artefact("cargo-deny", content_key(_DENY_VERSION), install) / "bin/cargo-deny"
    tally = Tally()
    tally.check("cargo deny", [str(deny), "check", "licenses", "bans", "sources"])
    return tally


def fuzz() -> Tally:
    """Every reader of foreign text, by cargo-fuzz: tests/fuzz. Runs only where it is named, or with --long."""

    def install(directory: Path) -> None:
        run([cargo(), "install", "--quiet", "--locked", "--root", directory, "--version", _FUZZ_VERSION, "cargo-fuzz"], timeout=2400, nice=True)

    program = artefact("cargo-fuzz", content_key(_FUZZ_VERSION), install) / "bin/cargo-fuzz"
    # Instrumentation is no more than flags of the compiler, which a stable one has too. Without a
    # sanitizer: there is no unsafe code to watch.
    fuzzer = ["env", "RUSTC_BOOTSTRAP=1", str(program), "fuzz"]
    common = ["--fuzz-dir", "tests/fuzz", "--target-dir", "target/fuzz", "--sanitizer", "none"]
    tally = Tally()
    tally.check("cargo fuzz build", [*fuzzer, "build", *common], timeout=7200)
    seconds = cases.size(*_FUZZ_SECONDS)
    for source in sorted(Path(PROJECT_DIR, "tests/fuzz/fuzz_targets").glob("*.rs")):
        if tally.failed:
            break
        target = source.stem
        found = Path(PROJECT_DIR, "tests/fuzz/artifacts/found", target)
        found.mkdir(parents=True, exist_ok=True)
        # New text goes into the first directory: the corpus in the tree changes only on purpose.
        argv = [*fuzzer, "run", *common, target, str(found), f"tests/fuzz/corpus/{target}", "--",
                f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=16384", "-print_final_stats=1"]
        tally.check(f"fuzzing {target}", argv, timeout=seconds + 1800)
    return tally


def pure() -> Tally:
    """Everything that needs neither root nor a lab: unit tests, goldens, transcripts, the simulated node."""
    tally = Tally()
    _cargo_tests(tally, [])
    if os.environ.get(cases.LONG):
        env = {"ATTACHD_SIM_CASES": os.environ.get("ATTACHD_SIM_CASES", _HISTORIES)}
        _cargo_tests(tally, ["--test", "simulated_histories", "--", "--nocapture"], env)
    return tally


def _lab(*, nodes: int = 1, storage_guest: bool = False) -> Lab:
    lab = Lab(_LAB)
    running = lab.load()
    if running and storage_guest and not running.storage:
        down(lab)  # a node is joined to the storage guest's networks when it boots
    up(lab, Wishes(nodes=nodes, fast_failover=False, find_multipaths=None, storage_guest=storage_guest))
    return lab


def real_cinder() -> Tally:
    """The Cinder client against a real Cinder, and what it can be given besides: tests/lab/cinder."""
    lab = _lab()
    keystone.start(lab)
    cinder_old.start(lab)
    tally = _on_the_bench(cases.CinderBench(lab), "tests/lab/cinder", None)
    env = {
        "ATTACHD_TEST_CINDER": f"http://127.0.0.1:{lab.settings().cinder_port}",
        "ATTACHD_TEST_CINDER_OLD": cinder_old.endpoint(lab),
        "ATTACHD_TEST_PROJECT": PROJECT_ID,
        "ATTACHD_TEST_CLOUDS": str(keystone.clouds_file(lab)),
    }
    _cargo_tests(tally, ["--test", "keystone_real", "--test", "attachment_real", "--", "--ignored"], env)
    seen = {}
    for identity in conformance.IDENTITIES:
        asked = {} if identity == "recorded" else {**env, "ATTACHD_TEST_IDENTITY": identity}
        seen[identity] = _cargo_tests(tally, ["--test", "cinder_conformance"], asked)
    difference = conformance.difference(seen)
    tally.count(not difference, difference or "the table of conformance")
    return tally


def real_host() -> Tally:
    """The host layer on a real kernel, with the kernel's own target: tests/linux_host.rs."""
    node = Attachd(_lab(), "node1")
    program = _test_program("linux_host")
    guest.copy_in(node.lab, node.record, program, "/run/linux_host")
    tally = Tally()
    argv = guest.command(node.lab, node.record, ["/run/linux_host", "--ignored", "--test-threads=1"], timeout=_HOST_SECONDS)
    _count(tally, argv, "linux_host")
    if tally.failed:
        # What hangs in the kernel can't be killed: where it is.
        print(node.shell("echo w > /proc/sysrq-trigger; dmesg | tail -n 300"))
    node.shell("rm /run/linux_host")
    left = node.leftovers()
    tally.count(not left, "left behind: " + ", ".join(left))
    return tally


def _test_program(name: str) -> Path:
    """Build one of the test programs, and return where it is."""
    argv = [cargo(), "test", "--locked", "--all-features", "--no-run", "--test", name, "--message-format", "json-render-diagnostics"]
    for line in run(argv, timeout=3600, cwd=PROJECT_DIR).splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == name and message["executable"]:
            return Path(message["executable"])
    raise LabError(f"cargo built no test program {name}")


def real_node(only: str | None = None, binary: Path | None = None) -> Tally:
    """attachd on a real kernel, with tgt: tests/lab."""
    return _on_the_bench(cases.NodeBench(_lab(), binary or build()), "tests/lab", only)


def real_safety(only: str | None = None, binary: Path | None = None) -> Tally:
    """What must not lose data or leak, on a real kernel: crashes, reused LUNs, path cuts, force; tests/lab/safety."""
    return _on_the_bench(cases.NodeBench(_lab(), binary or build()), "tests/lab/safety", only)


def real_lio(only: str | None = None, binary: Path | None = None) -> Tally:
    """attachd on a real kernel, with Cinder's own LVM and LIO drivers: tests/lab/lio."""
    return _on_the_bench(cases.NodeBench(_lab(storage_guest=True), binary or build()), "tests/lab/lio", only)


def real_kube(only: str | None = None, binary: Path | None = None) -> Tally:
    """The custom resources and attachd against a real Kubernetes API server: tests/lab/kube, tests/cluster_scale.rs."""
    lab = _lab(nodes=2)
    kubernetes.start(lab, controller_manager=True)
    tally = _on_the_bench(ClusterBench(lab, lambda: binary or build()), "tests/lab/kube", only)
    if only is None or only in _SCALE:
        sizes = {name: os.environ.get(name, size) for name, size in _SCALE_SIZES.items()}
        env = {"ATTACHD_TEST_KUBECONFIG": str(kubernetes.admin_kubeconfig(lab)), **sizes}
        _cargo_tests(tally, ["--test", _SCALE, "--", "--ignored", "--nocapture"], env)
    return tally


def _on_the_bench(bench: cases.Bench, directory: str, only: str | None) -> Tally:
    tally = Tally()
    for name, error in cases.run_all(bench, PROJECT_DIR / directory, only):
        tally.count(error is None, name)
    return tally


def helm_chart() -> Tally:
    """The Helm chart and the Dockerfile, without a cluster: tests/chart."""
    tally = Tally()
    for name, error in chart.run_all():
        tally.count(error is None, name)
    return tally


def demo() -> Tally:
    """The demos, as a user runs them."""
    tally = Tally()
    tally.check("scripts/demo", ["scripts/demo"])
    tally.check("scripts/demo --kubernetes", ["scripts/demo", "--kubernetes"])
    return tally


_TIERS: dict[str, Callable[..., Tally]] = {
    "lint": lint, "policy": policy, "pure": pure, "chart": helm_chart, "cinder": real_cinder, "host": real_host,
    "node": real_node, "safety": real_safety, "lio": real_lio, "kube": real_kube, "demo": demo, "fuzz": fuzz,
}
_ONLY_LONG = ("fuzz",)
_IN_LAB = ("node", "safety", "lio", "kube")


def main() -> int:
    """Run the tiers; the exit code is 0 only if nothing failed, and in CI only if nothing was skipped."""
    parser = argparse.ArgumentParser(prog="scripts/test", description=__doc__)
    parser.add_argument("tiers", nargs="*", metavar="TIER", help=f"only these: {', '.join(_TIERS)}")
    parser.add_argument("--only", metavar="TEXT", help=f"of the tiers {', '.join(_IN_LAB)}, only the tests whose file or name contains this")
    parser.add_argument("--binary", type=Path, help=f"of the tiers {', '.join(_IN_LAB)}: test this attachd instead of building one")
    parser.add_argument("--long", action="store_true", help="the whole size of the tests of safety, instead of a short, seeded one: hours (docs/safety.md)")
    parser.add_argument("--keep", action="store_true", help=f"leave the lab running: scripts/lab --name {_LAB} status")
    options = parser.parse_args()
    wrong = set(options.tiers) - set(_TIERS)
    if wrong:
        parser.error(f"no such tier: {', '.join(sorted(wrong))}")
    chosen = options.tiers or [name for name in _TIERS if options.long or name not in _ONLY_LONG]
    if options.long:
        os.environ[cases.LONG] = "1"
    lines, total = [], Tally()
    try:
        for name, tier in _TIERS.items():
            if name not in chosen:
                continue
            print(f"\n=== {name}: {tier.__doc__}", flush=True)
            start = time.monotonic()
            try:
                tally = tier(options.only, options.binary) if name in _IN_LAB else tier()
            except LabError as error:
                # A tier that can't run is no pass: the reason is shown, and it counts as skipped.
                print(f"✗ {error}", flush=True)
                tally = Tally(skipped=1, notes=[str(error).splitlines()[0]])
            notes = f"  ({'; '.join(tally.notes)})" if tally.notes else ""
            lines.append(f"{name:8} {tally.passed:4} passed {tally.failed:3} failed {tally.skipped:3} skipped"
                         f" {time.monotonic() - start:6.0f} s{notes}")
            total.passed += tally.passed
            total.failed += tally.failed
            total.skipped += tally.skipped
    finally:
        if not options.keep:
            down(Lab(_LAB))
    print("\n" + "\n".join(lines))
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped", flush=True)
    return 1 if total.failed or total.passed == 0 or total.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
