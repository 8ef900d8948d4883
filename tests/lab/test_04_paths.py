"""Network paths that are dead before, during and after."""

from __future__ import annotations

from lablib.cases import expect
from lablib.commands import wait_until
from lablib.daemon import daemon
from lablib.node import Attachd
from lablib.steps import MOUNT, active_paths, attach, detach, failed, in_use_once, nothing_left, path_cut, volume

# One login attempt of 10 s, and what else an attach takes on a slow machine.
_WITH_A_DEAD_PORTAL = 75


def test_with_one_portal_dead_the_attach_uses_the_other_and_says_so(node: Attachd) -> None:
    with volume(node) as v:
        with path_cut(node, 2):
            result = node.run("attach", v, "--mount", MOUNT, "-o", "json")
            expect(result.code == 0, f"attach: {result.stderr}")
            print(f"     with one portal dead: {result.seconds:.1f} s")
            expect(result.seconds < _WITH_A_DEAD_PORTAL, f"it took {result.seconds:.0f} s")
            attached = result.json()
            expect(active_paths(attached) == 1, f"the paths are {attached['paths']}")
            expect(any("10.0.3.2" in warning for warning in attached["warnings"]), f"the warnings are {attached['warnings']}")
            expect("no login to" in result.stderr and "10.0.3.2" in result.stderr, f"it says {result.stderr}")
            expect(attached["device"].startswith("/dev/mapper/"), f"the device is {attached['device']}")
            in_use_once(node, v)
            node.shell(f"echo kept > {MOUNT}/file; sync")
        # Asked again, attachd brings what is missing.
        healed = attach(node, v, "--mount", MOUNT)
        expect(active_paths(healed) == 2 and healed["changed"] and healed["warnings"] == [], f"healed: {healed}")
        node.wait_for_paths(active=2, failed=0)
        expect(node.shell(f"cat {MOUNT}/file") == "kept\n", "the file is gone")
        detach(node, v)


def test_only_the_first_of_many_volumes_waits_for_a_dead_portal(node: Attachd) -> None:
    with volume(node) as first, volume(node) as second, daemon(node) as d:
        def logins(v: str) -> list[str]:
            return [line for line in d.log().splitlines() if "--login" in line and v in line and "10.0.2.2" not in line]

        with path_cut(node, 2):
            for name, v in (("first", first), ("second", second)):
                d.request(name, v, volumeMode="Block")
                d.wait_for(name, "Degraded", ready=True)
            expect(logins(first) != [] and logins(second) == [], f"logins at the dead portal: {logins(first)}, {logins(second)}")
        # It answers again, and is logged in to.
        for name in ("first", "second"):
            d.wait_for(name, "Attached", ready=True)
            d.remove(f"{name}.yaml")
            d.wait_gone(name)


def test_what_was_attached_over_one_portal_can_be_detached_without_the_other(node: Attachd) -> None:
    with volume(node) as v:
        with path_cut(node, 2):
            attach(node, v, "--block")
            detach(node, v)


def test_a_path_that_dies_and_comes_back_does_not_stop_the_work(node: Attachd) -> None:
    with volume(node) as v:
        attached = attach(node, v, "--mount", MOUNT, "--multipath", "required")
        node.wait_for_paths(active=2, failed=0)
        with path_cut(node, 2):
            node.shell(f"cd {MOUNT}; dd if=/dev/urandom of=data bs=1M count=4 conv=fsync status=none; sha256sum data > sum; sync", timeout=240)
            node.wait_for_paths(active=1, failed=1)
            node.shell(f"echo 3 > /proc/sys/vm/drop_caches; cd {MOUNT}; sha256sum -c sum; echo more > more; sync", timeout=240)
            # Asked again while a path is dead: nothing to be done, and nothing breaks.
            again = node.run("attach", v, "--mount", MOUNT, "--multipath", "required", "-o", "json")
            expect(again.code == 0 and again.json()["device"] == attached["device"], f"again: {again}")
        node.wait_for_paths(active=2, failed=0)
        again = attach(node, v, "--mount", MOUNT, "--multipath", "required")
        expect(active_paths(again) == 2 and again["warnings"] == [], f"after it came back: {again}")
        node.shell(f"cd {MOUNT}; sha256sum -c sum")
        detach(node, v)


def test_a_detach_with_one_path_dead_ends_well(node: Attachd) -> None:
    with volume(node) as v:
        attach(node, v, "--mount", MOUNT, "--multipath", "required")
        node.wait_for_paths(active=2, failed=0)
        with path_cut(node, 2):
            node.shell(f"echo x > {MOUNT}/file")
            result = node.run("detach", v, timeout=400)
            print(f"     detach with one path dead: exit code {result.code}, {result.seconds:.1f} s")
            expect(result.code == 0, f"detach: exit code {result.code}: {result.stderr}")
            nothing_left(node, v)


def test_a_detach_with_all_paths_dead_ends_and_is_finished_later(node: Attachd) -> None:
    with volume(node) as v:
        attach(node, v, "--mount", MOUNT, "--multipath", "required")
        node.wait_for_paths(active=2, failed=0)
        node.shell("sync")
        with path_cut(node, 1, 2):
            result = node.run("detach", v, timeout=600)
            print(f"     detach with all paths dead: exit code {result.code}, {result.seconds:.1f} s: "
                  + " | ".join(result.stderr.strip().splitlines()[-2:]))
            expect(result.code in (0, 5), f"detach: exit code {result.code}: {result.stderr}")
        wait_until(lambda: node.run("detach", v, timeout=400).code == 0, timeout=300, what="the detach to end well")
        nothing_left(node, v)


def test_data_that_a_detach_can_not_write_out_is_not_lost_in_silence(node: Attachd) -> None:
    with volume(node) as v:
        attach(node, v, "--mount", MOUNT, "--multipath", "required")
        node.wait_for_paths(active=2, failed=0)
        # Nothing is written back by itself meanwhile.
        node.shell("sync; echo 360000 > /proc/sys/vm/dirty_expire_centisecs; echo 0 > /proc/sys/vm/dirty_writeback_centisecs")
        try:
            node.shell(f"head -c 300000 /dev/urandom > {MOUNT}/unwritten")
            with path_cut(node, 1, 2):
                result = node.run("detach", v, timeout=600)
                print(f"     detach with unwritten data and no path: exit code {result.code}, {result.seconds:.1f} s")
                expect("could not write out the file system" in result.stderr, f"it ends with {result.code} and says {result.stderr}")
                expect(result.code in (0, 5), f"detach: exit code {result.code}: {result.stderr}")
            wait_until(lambda: node.run("detach", v, timeout=400).code == 0, timeout=300, what="the detach to end well")
            nothing_left(node, v)
        finally:
            node.shell("echo 3000 > /proc/sys/vm/dirty_expire_centisecs; echo 500 > /proc/sys/vm/dirty_writeback_centisecs")


def test_with_all_portals_dead_the_attach_is_taken_back(node: Attachd) -> None:
    with volume(node) as v:
        with path_cut(node, 1, 2):
            result = failed(node, 3, ["no portal of volume", "10.0.2.2", "10.0.3.2", "[NoPath]"], "attach", v, "--mount", MOUNT)
            print(f"     attach with both portals dead: {result.seconds:.1f} s")
            nothing_left(node, v)
