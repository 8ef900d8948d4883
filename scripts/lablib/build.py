"""Building attachd, and what that needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from lablib.cache import cache_dir, locked
from lablib.commands import tail
from lablib.errors import LabError
from lablib.packages import apt_get
from lablib.report import say
from lablib.state import PROJECT_DIR

_BUILD_TIMEOUT = 3600.0


def rust_version() -> tuple[int, int]:
    """Return the Rust version that Cargo.toml asks for."""
    found = re.search(r'^rust-version = "(\d+)\.(\d+)', (PROJECT_DIR / "Cargo.toml").read_text(), re.MULTILINE)
    if not found:
        raise LabError("Cargo.toml names no rust-version")
    return int(found[1]), int(found[2])


def cargo() -> str:
    """Return a cargo that is new enough; install Rust's own by rustup where there is none."""
    os.environ["PATH"] += os.pathsep + str(Path.home() / ".cargo/bin")
    wanted = rust_version()
    with locked(cache_dir() / "apt.lock", "installing packages"):
        if not shutil.which("cc"):
            say("installing with apt-get: gcc libc6-dev")
            apt_get(["install", "-y", "--no-install-recommends", "gcc", "libc6-dev"])
        if not shutil.which("cargo"):
            _install_rust()
    program = shutil.which("cargo")
    if not program:
        raise LabError("cargo is still not to be found after rustup")
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=300, cwd=PROJECT_DIR)
    found = re.search(r"cargo (\d+)\.(\d+)", shown.stdout)
    if not found or (int(found[1]), int(found[2])) < wanted:
        raise LabError(
            f"attachd needs Rust {wanted[0]}.{wanted[1]} or newer, and this is {shown.stdout.strip() or shown.stderr.strip()}; "
            "update it with: rustup update stable")
    return program


def _install_rust() -> None:
    say("there is no cargo: installing Rust with rustup (https://rustup.rs) into ~/.cargo and ~/.rustup")
    if not shutil.which("curl"):
        apt_get(["install", "-y", "--no-install-recommends", "curl", "ca-certificates"])
    script = "curl --proto '=https' --tlsv1.2 -sSf --retry 3 https://sh.rustup.rs | sh -s -- -y --profile minimal --no-modify-path"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=1800)
    if done.returncode != 0:
        raise LabError(f"rustup failed; install Rust yourself and try again\n{tail(done.stdout + done.stderr)}")


def build() -> Path:
    """Build the release binary (nothing to do where it is up to date) and return where it is."""
    program = cargo()
    start = time.monotonic()
    done = subprocess.run(
        [program, "build", "--release", "--locked", "--message-format", "short"],
        cwd=PROJECT_DIR, timeout=_BUILD_TIMEOUT, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise LabError(f"cargo build failed\n{tail(done.stderr, 40)}")
    target = Path(os.environ.get("CARGO_TARGET_DIR", PROJECT_DIR / "target"))
    say(f"attachd is built: {time.monotonic() - start:.1f} s")
    return target / "release" / "attachd"
