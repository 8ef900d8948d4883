"""Two nodes of one cluster, and one volume."""

from __future__ import annotations

from lablib.agent import agent, ask, delete, rights, wait_ready
from lablib.cases import expect
from lablib.cluster import Cluster
from lablib.daemon import ready_condition
from lablib.steps import nothing_left, volume

_MOUNT = "/var/lib/attachd/mounts"
_NAME = "/etc/iscsi/initiatorname.iscsi"


def test_a_volume_moves_from_node_to_node_with_its_data(cluster: Cluster) -> None:
    with rights(cluster), agent(cluster, "node1") as one, agent(cluster, "node2") as two, volume(one.node) as v:
        ask(cluster, "here", v, node="node1")
        wait_ready(one, "here")
        one.node.shell(f"cd {_MOUNT}/here; head -c 3000000 /dev/urandom > data; sha256sum data > sum; sync")
        # It is in use: the other node says by whom, and waits.
        ask(cluster, "there", v, node="node2")
        refused = ready_condition(wait_ready(two, "there", "False", "VolumeNotAvailable")["status"])
        expect('"in-use"' in refused["message"] and '"node1"' in refused["message"], f"the message is {refused['message']}")
        print(f"     there: {refused['message'][:160]}")
        delete(one, "here")
        expect(one.node.leftovers() == [], f"left on node1: {one.node.leftovers()}")
        wait_ready(two, "there")
        two.node.shell(f"cd {_MOUNT}/there; sha256sum -c sum")
        delete(two, "there")
        nothing_left(two.node, v)


def test_two_nodes_with_one_initiator_name_attach_nothing_new(cluster: Cluster) -> None:
    with rights(cluster), agent(cluster, "node1") as one, volume(one.node) as v, volume(one.node) as w:
        ask(cluster, "before", v)
        wait_ready(one, "before")
        two = cluster.agent("node2")
        # A node that was made as a copy of the other one.
        own = one.node.shell(f"cat {_NAME}")
        two.shell(f"cp {_NAME} /tmp/name; cat > {_NAME} << 'END'\n{own}END")
        try:
            with agent(cluster, "node2", wait=False) as other:
                for agent_, name in ((one, "node2"), (other, "node1")):
                    found = agent_.wait_connector("False", "DuplicateInitiatorName")
                    expect(name in ready_condition(found["status"])["message"], f"it doesn't name {name}: {found['status']}")
                    unique = agent_.doctor()["initiator-unique"]
                    expect(unique["verdict"] == "failed" and name in unique["saw"][0], f"doctor: {unique}")
                ask(cluster, "new", w)
                ask(cluster, "copy", w, node="node2")
                wait_ready(one, "new", "False", "DuplicateInitiatorName")
                wait_ready(other, "copy", "False", "DuplicateInitiatorName")
                # What was attached before stays so.
                expect(one.node.execute(["mountpoint", "-q", f"{_MOUNT}/before"]).code == 0, "it was unmounted")
                other.end("TERM")
                two.shell(f"cat /tmp/name > {_NAME}")
                other.start()
                one.wait_connector("True", "Ready")
                delete(other, "copy")
                wait_ready(one, "new")
                delete(one, "new", "before")
        finally:
            two.shell(f"cat /tmp/name > {_NAME}; rm /tmp/name")

