"""The whole road on a real kernel with a real Cinder, told step by step; every claim is checked."""

from __future__ import annotations

import argparse
import sys
import time

from lablib import demo_kubernetes
from lablib.build import build
from lablib.demo_steps import check, count, nothing_left, step, tell
from lablib.paths import cut, restore
from lablib.errors import LabError
from lablib.lifecycle import Wishes, down, up
from lablib.node import Attachd
from lablib.state import Lab

_MOUNT = "/mnt/demo"


class Demo:
    """One run."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node = Attachd(lab, "node1")

    def facts(self) -> None:
        result = self.node.run("connector")
        check(result.code == 0, "attachd finds this node's connector facts")
        for line in result.stdout.splitlines():
            tell(line)
        facts = self.node.run("connector", "-o", "json").json()
        check(facts["initiator"] == self.node.iqn, "the initiator name is the node's own")
        check(facts["multipath"] is True, "multipathd answers and claims disks")

    def plan(self, volume: str) -> None:
        result = self.node.run("plan", "attach", volume, "--mount", _MOUNT)
        check(result.code == 0, "a plan can be made")
        for line in result.stdout.splitlines():
            tell(line)
        check(self.node.leftovers(volume=volume) == [], "planning changed nothing")

    def attach(self, volume: str, *, formats: bool) -> None:
        sys.stdout.flush()
        result = self.node.run("attach", volume, "--mount", _MOUNT, "--multipath", "required", "-o", "json", echo=True)
        check(result.code == 0, "attachd attach ended with exit code 0")
        attached = result.json()
        check([path["state"] for path in attached["paths"]] == ["active", "active"], "both portals carry an active path")
        check(attached["device"] == f"/dev/mapper/{attached['wwid']}", f"the device is the multipath map {attached['wwid']}")
        mounted = self.node.shell(f"findmnt -n -o SOURCE,FSTYPE {_MOUNT}").split()
        check(mounted == [attached["device"], "ext4"], f"{mounted[0]} is mounted on {_MOUNT} as {mounted[1]}")
        check(self.node.volume(volume)["status"] == "in-use", "Cinder says that the volume is in use")
        statuses = [item["status"] for item in self.node.cinder.attachments() if item["volume_id"] == volume]
        check(statuses == ["attached"], "Cinder says that the attachment is complete")
        state = "new" if formats else "as it was"
        files = self.node.shell(f"ls -A {_MOUNT}").split()
        check(("data" in files) != formats, f"the file system is {state}: {' '.join(files)}")

    def inspect(self) -> None:
        for line in self.node.run("inspect").stdout.splitlines():
            tell(line)

    def write(self, name: str, mebibytes: int) -> None:
        self.node.shell(
            f"cd {_MOUNT}; dd if=/dev/urandom of={name} bs=1M count={mebibytes} conv=fsync status=none; "
            f"sha256sum {name} > {name}.sha256; sync", timeout=300)
        tell(f"{mebibytes} MiB written to {_MOUNT}/{name} and synced, checksum kept beside it")

    def verify(self, name: str) -> None:
        self.node.shell(f"echo 3 > /proc/sys/vm/drop_caches; cd {_MOUNT}; sha256sum -c {name}.sha256", timeout=300)
        tell(f"{_MOUNT}/{name} read back from the volume, and its checksum is right")

    def cut(self) -> None:
        cut(self.lab, self.lab.node("node1"), 2, "drop")
        self.write("data-on-one-path", 8)
        self.verify("data-on-one-path")
        self.verify("data")
        self.node.wait_for_paths(active=1, failed=1)
        check(True, "one path is failed, the other carries everything")

    def restore(self) -> None:
        restore(self.lab, self.lab.node("node1"), 2)
        self.node.wait_for_paths(active=2, failed=0)
        check(True, "both paths are active again")

    def detach(self, volume: str) -> None:
        sys.stdout.flush()
        result = self.node.run("detach", volume, echo=True)
        check(result.code == 0, "attachd detach ended with exit code 0")


def run(lab: Lab) -> None:
    """Tell the story from an empty machine to an empty machine."""
    binary = step("Build attachd", build)
    step("Start a real Cinder, a real iSCSI target with two portals, and a node with a real kernel",
         lambda: up(lab, Wishes(nodes=1, fast_failover=True, find_multipaths=None)))
    demo = Demo(lab)
    step("Copy attachd to the node", lambda: demo.node.install(binary))
    check(demo.node.leftovers() == [], "the node has no session, disk, map, mount or record")
    volume = step("Create a volume of 1 GiB in Cinder", lambda: demo.node.cinder.create_volume(1, None, "demo"))
    demo.node.cinder.wait_for_volume(volume, 120)
    tell(f"volume {volume}")
    step("Gather the node's connector facts", demo.facts)
    step("Ask attachd what it would do", lambda: demo.plan(volume))
    step("Attach the volume through both portals, format it since it is blank, mount it",
         lambda: demo.attach(volume, formats=True))
    step("Look at the whole chain", demo.inspect)
    step("Write data with a checksum", lambda: demo.write("data", 32))
    step("Cut the network of path 2, and go on writing and reading", demo.cut)
    step("Restore the network of path 2", demo.restore)
    step("Detach", lambda: demo.detach(volume))
    step("Prove that nothing is left", lambda: nothing_left(demo.node, volume))
    step("Attach again", lambda: demo.attach(volume, formats=False))
    step("Find the data", lambda: (demo.verify("data"), demo.verify("data-on-one-path")))
    step("Detach again", lambda: demo.detach(volume))
    step("Prove again that nothing is left", lambda: nothing_left(demo.node, volume))
    step("Delete the volume", lambda: demo.node.cinder.delete_volume(volume, 120))


def main() -> int:
    """Run the demo; the exit code is 0 only if every check held."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the lab running: look around with scripts/lab --name demo")
    parser.add_argument("--kubernetes", action="store_true",
                        help="on Kubernetes: a real API server, and the agent as the chart's DaemonSet runs it")
    options = parser.parse_args()
    lab = Lab("demo")
    start = time.monotonic()
    try:
        (demo_kubernetes.run if options.kubernetes else run)(lab)
    except LabError as error:
        print(f"\n✗ {error}\n\nThe demo failed after {time.monotonic() - start:.0f} s.", flush=True)
        return 1
    finally:
        if not options.keep:
            down(lab)
    print(f"\nAll of it was checked. {count()} steps, {time.monotonic() - start:.0f} s.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
