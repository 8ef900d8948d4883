"""Nodes that are off, and nodes that are taken for it: `attachd evacuate` with the chart's rights, two nodes, real volumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lablib import kubernetes
from lablib.agent import Agent, agent, ask, delete, events, request, rights, wait_ready
from lablib.cases import expect
from lablib.cluster import REQUESTS, Cluster
from lablib.commands import wait_until
from lablib.evacuation import ENABLED, declare_back, declare_off, evacuation
from lablib.node import Attachd
from lablib.steps import attachments_of, in_use_once, nothing_left, path_cut, powered_off, volume
from lablib.writer import Writer, writer

_MOUNTS = "/var/lib/attachd/mounts"
# Outside of the node: it outlives its power.
_NOTES = "/lab/dead-node.acknowledged"
_CLEANED = "what is left on this node goes"


def test_a_node_without_power_gives_its_volume_with_all_that_was_synced_and_cleans_up_when_it_is_back(cluster: Cluster) -> None:
    with rights(cluster, ENABLED), agent(cluster, "node2") as two, evacuation(cluster, "node2"), agent(cluster) as one, \
            volume(one.node) as v, volume(one.node) as w:
        ask(cluster, "here", v)
        wait_ready(one, "here")
        synced = Writer(one.node, f"{_MOUNTS}/here/data", _NOTES)
        synced.start()
        with powered_off(one.node):
            declare_off(cluster, "node1")
            wait_ready(two, "here", "Unknown", "NodeOutOfService")
            in_use_once(two.node, v)
            delete(two, "here")
            expect(attachments_of(two.node, v) == [], f"Cinder has {attachments_of(two.node, v)}")
            expect([("Warning", "NodeOutOfService"), ("Warning", "Evacuated")] == events(cluster, "here")[-2:], f"{events(cluster, 'here')}")
            ask(cluster, "there", v, node="node2")
            wait_ready(two, "there")
            moved = Writer(two.node, f"{_MOUNTS}/there/data", _NOTES).verify()
            expect(moved.lost == [] and moved.acknowledged > 0, f"of {moved.acknowledged} synced blocks are lost: {moved.lost}")
            print(f"     {moved.bytes} bytes were synced before the power went, and are on node2")
        left = one.node.leftovers()
        expect(any("ledger entry" in line for line in left), f"node1 has nothing to clean up: {left}")
        ask(cluster, "new", w)
        with _used(two, "there"):
            one.install_kubeconfig()
            one.start()
            # Still declared off: the agent has the last word.
            wait_ready(one, "new")
            declare_back(cluster, "node1")
            _cleaned_before(one, "new")
        delete(one, "new")
        delete(two, "there")
        for node in (one.node, two.node):
            nothing_left(node, v)
        nothing_left(one.node, w)
        synced.clear_away()


def test_a_node_that_is_off_and_not_declared_so_keeps_its_volume(cluster: Cluster) -> None:
    with rights(cluster, ENABLED), agent(cluster) as one, evacuation(cluster, "node2") as evacuating, volume(one.node) as v, \
            volume(one.node) as other:
        ask(cluster, "here", v)
        said = wait_ready(one, "here")["status"]
        with powered_off(one.node):
            cluster.api.request("DELETE", f"{REQUESTS}/here").ok()
            # When this one goes, the evacuation has seen both.
            kubernetes.create_node_object(cluster.lab, "node3")
            ask(cluster, "declared", other, node="node3")
            _hold(cluster, "declared")
            declare_off(cluster, "node3")
            cluster.api.request("DELETE", f"{REQUESTS}/declared").ok()
            wait_until(lambda: not request(cluster, "declared"), timeout=60, what="the request of node3 to go")
            kept = request(cluster, "here")
            expect(kept and kept["metadata"]["finalizers"] == ["attachd.dev/detach"], f"it is let go: {kept}")
            expect(kept["status"] == said, f"its status became {kept['status']}")
            in_use_once(one.node, v)
            expect("[+] kubernetes: ok" in evacuating.ask("/readyz") and evacuating.ask("/livez"), "the evacuation is not well")
        one.install_kubeconfig()
        one.start()
        wait_until(lambda: not request(cluster, "here"), timeout=120, what="the node that is back to detach it")
        nothing_left(one.node, v)


def test_a_node_that_lives_and_is_declared_off_goes_on_and_what_is_deleted_leaves_it(cluster: Cluster) -> None:
    with rights(cluster, ENABLED), agent(cluster) as one, evacuation(cluster, "node2"), volume(one.node) as v:
        ask(cluster, "here", v)
        wait_ready(one, "here")
        one.node.shell(f"cd {_MOUNTS}/here; head -c 3000000 /dev/urandom > data; sha256sum data > sum; sync data sum .")
        declare_off(cluster, "node1")
        wait_until(lambda: ("Warning", "NodeOutOfService") in events(cluster, "here"), timeout=60, what="the evacuation to say so")
        wait_ready(one, "here")
        one.node.shell(f"cd {_MOUNTS}/here; sha256sum -c sum; echo more > more; sync more")
        in_use_once(one.node, v)
        # Both see to it, and neither waits for the other.
        delete(one, "here")
        wait_until(lambda: one.node.leftovers() == [], timeout=120, what="node1 to be clean", interval=0.5)
        nothing_left(one.node, v)
        ask(cluster, "again", v)
        wait_ready(one, "again")
        one.node.shell(f"cd {_MOUNTS}/again; sha256sum -c sum; grep more more")
        delete(one, "again")
        wait_until(lambda: one.node.leftovers() == [], timeout=120, what="node1 to be clean", interval=0.5)
        nothing_left(one.node, v)


def test_a_node_that_ran_on_while_it_was_taken_for_off_writes_nothing_to_what_another_node_has(cluster: Cluster) -> None:
    with rights(cluster, ENABLED), agent(cluster, "node2") as two, evacuation(cluster, "node2"), agent(cluster) as one, volume(one.node) as v:
        ask(cluster, "here", v)
        wait_ready(one, "here")
        one.node.shell(f"cd {_MOUNTS}/here; echo synced > synced; sync synced .")
        one.end("KILL")
        with path_cut(one.node, 1, 2):
            one.node.shell(f"echo late > {_MOUNTS}/here/late")
            declare_off(cluster, "node1")
            delete(two, "here")
            ask(cluster, "there", v, node="node2")
            wait_ready(two, "there")
            with _used(two, "there"):
                one.start(wait=False)
                wait_until(lambda: "ledger entry" not in _records(one.node), timeout=180, what="node1's agent to clean up", interval=1)
                expect(_CLEANED in one.log(), f"it is gone otherwise: {one.log()[-3000:]}")
                expect(one.node.leftovers() == [], f"left on node1: {one.node.leftovers()}")
        declare_back(cluster, "node1")
        found = two.node.shell(f"ls {_MOUNTS}/there").split()
        expect("synced" in found and "late" not in found, f"on the volume are {found}")
        delete(two, "there")
        nothing_left(two.node, v)


@contextmanager
def _used(here: Agent, name: str) -> Iterator[None]:
    """A volume that is written to for a while, is mounted at the end, and holds what was synced."""
    path = f"{_MOUNTS}/{name}"
    with writer(here.node, f"{path}/used") as running:
        yield
        running.stop()
        here.node.shell(f"mountpoint -q {path}")
        found = running.verify()
        expect(found.lost == [] and running.errors() == [], f"lost: {found.lost}, errors: {running.errors()}")
        print(f"     {found.bytes} bytes synced on {here.node.name} meanwhile")


def _hold(cluster: Cluster, name: str) -> None:
    """Write the finalizer that the node's agent would write."""
    patch = {"metadata": {"finalizers": ["attachd.dev/detach"]}}
    cluster.api.request("PATCH", f"{REQUESTS}/{name}", patch, content_type="application/merge-patch+json").ok()


def _cleaned_before(one: Agent, name: str) -> None:
    """What was left went before anything was done for a request."""
    lines = one.log().splitlines()
    cleaned = [number for number, line in enumerate(lines) if _CLEANED in line]
    begun = [number for number, line in enumerate(lines) if f'"request":"{name}"' in line]
    expect(cleaned and begun and cleaned[0] < begun[0], f"the agent cleaned up at {cleaned[:1]} and began {name} at {begun[:1]}: {lines[:40]}")


def _records(node: Attachd) -> str:
    return node.shell("find /var/lib/attachd/volumes -type f -printf 'ledger entry %p\\n'")
