"""The demo on Kubernetes: a real API server, and the agent as the chart's DaemonSet runs it."""

from __future__ import annotations

from lablib import kubernetes
from lablib.agent import PodAgent, ask, rights, wait_ready
from lablib.build import build
from lablib.cluster import Cluster, install_crds
from lablib.commands import wait_until
from lablib.demo_steps import check, nothing_left, step, tell
from lablib.lifecycle import Wishes, up
from lablib.state import Lab

_MOUNT = "/var/lib/attachd/mounts/db"


class Demo:
    """One run."""

    def __init__(self, cluster: Cluster, agent: PodAgent) -> None:
        self.cluster = cluster
        self.agent = agent
        self.node = agent.node

    def show(self, *arguments: str) -> None:
        """Run kubectl before everybody's eyes."""
        tell("$ kubectl " + " ".join(arguments))
        result = self.cluster.kubectl(*arguments)
        for line in (result.stdout + result.stderr).rstrip().splitlines():
            tell(line)
        check(result.code == 0, "kubectl ended with exit code 0")

    def apply(self, volume: str) -> None:
        ask(self.cluster, "db", volume)
        self.show("wait", "--for=condition=Ready", "var/db", "--timeout=120s")
        wait_ready(self.agent, "db")
        mounted = self.node.shell(f"findmnt -n -o SOURCE,FSTYPE {_MOUNT}").split()
        check(mounted[1] == "ext4", f"the node itself sees {mounted[0]} mounted on {_MOUNT}")
        check(self.node.volume(volume)["status"] == "in-use", "Cinder says that the volume is in use")

    def look(self) -> None:
        self.show("get", "var")
        wait_until(lambda: "Attached" in self.cluster.kubectl("get", "events").stdout, timeout=30, what="the event")
        self.show("get", "events")

    def write(self) -> None:
        self.node.shell(f"cd {_MOUNT}; dd if=/dev/urandom of=data bs=1M count=8 conv=fsync status=none; sha256sum data > data.sha256; sync")
        tell(f"8 MiB written to {_MOUNT}/data, checksum kept beside it")

    def restart(self) -> None:
        before = self.cluster.kubectl("get", "var", "db", "-o", "jsonpath={.metadata.resourceVersion}").stdout
        self.agent.end("KILL")
        self.node.shell(f"cd {_MOUNT}; sha256sum -c data.sha256")
        check(True, "the volume stays mounted without the agent, its data intact")
        self.agent.start()
        after = self.cluster.kubectl("get", "var", "db", "-o", "jsonpath={.metadata.resourceVersion}").stdout
        check(before == after, "the new agent found nothing to do and wrote nothing")

    def delete(self, volume: str) -> None:
        self.show("delete", "var", "db", "--timeout=120s")
        self.show("get", "events")
        nothing_left(self.node, volume)


def run(lab: Lab) -> None:
    """Tell the story from an empty machine to an empty machine."""
    binary = step("Build attachd", build)
    step("Start a real Cinder, a real iSCSI target with two portals, and a node with a real kernel",
         lambda: up(lab, Wishes(nodes=1, fast_failover=True, find_multipaths=None)))
    step("Start a real Kubernetes API server with etcd", lambda: kubernetes.start(lab, controller_manager=True))
    cluster = Cluster(lab, lambda: binary)
    step("Install the custom resource definitions, and the chart's ServiceAccount and roles", lambda: install_crds(lab))
    with rights(cluster):
        agent = PodAgent(cluster)
        demo = Demo(cluster, agent)
        step("Start the agent from the chart's DaemonSet, in a container on the node", agent.start)
        step("See what the agent says of its node", lambda: demo.show("get", "nodeconnectors"))
        volume = step("Create a volume of 1 GiB in Cinder", lambda: agent.node.cinder.create_volume(1, None, "demo"))
        agent.node.cinder.wait_for_volume(volume, 120)
        step("Ask for the volume, and wait until it is ready", lambda: demo.apply(volume))
        step("Look at the request", demo.look)
        step("Write data with a checksum", demo.write)
        step("Kill the agent and start another one", demo.restart)
        step("Delete the request, and prove that nothing is left", lambda: demo.delete(volume))
        step("Delete the volume", lambda: agent.node.cinder.delete_volume(volume, 120))
        agent.end("TERM")
