"""The agent of a node, with the chart's rights and no others."""

from __future__ import annotations

from lablib import kubernetes
from lablib.agent import agent, ask, delete, events, request, rights, wait_ready
from lablib.cases import expect
from lablib.cluster import REQUESTS, Cluster, install_crds
from lablib.commands import wait_until
from lablib.daemon import ready_condition
from lablib.steps import attachments_of, cut_power, daemon_stopped, free, in_use_once, nothing_left, reserve_elsewhere, volume

_MOUNTS = "/var/lib/attachd/mounts"


def test_a_request_becomes_ready_and_is_detached_when_it_is_deleted(cluster: Cluster) -> None:
    with rights(cluster), agent(cluster) as one, volume(one.node) as v:
        begun = int(cluster.api.request("GET", REQUESTS).ok()["metadata"]["resourceVersion"])
        ask(cluster, "db", v)
        ready = wait_ready(one, "db")
        status = ready["status"]
        expect(status["mountPath"] == f"{_MOUNTS}/db" and status["observedGeneration"] == 1, f"the status is {status}")
        expect([path["state"] for path in status["device"]["paths"]] == ["active", "active"], f"the paths are {status['device']['paths']}")
        expect({c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(["Reserved", "Connected", "Mounted", "Ready"], "True"),
               f"the conditions are {status['conditions']}")
        managers = {field["manager"] for field in ready["metadata"]["managedFields"] if field.get("subresource") == "status"}
        expect(managers == {"attachd"}, f"the status was written by {managers}")
        in_use_once(one.node, v)
        result = cluster.kubectl("wait", "--for=condition=Ready", "var/db", "--timeout=5s")
        expect(result.code == 0, f"kubectl wait: {result}")
        columns = cluster.kubectl("get", "var", "db").stdout
        expect("node1" in columns and v in columns and "True" in columns and f"{_MOUNTS}/db" in columns, f"kubectl get: {columns}")
        wait_until(lambda: events(cluster, "db") == [("Normal", "Attached")], timeout=10, what="the event")
        described = cluster.kubectl("describe", "var", "db").stdout
        expect("Attached" in described and "the volume can be used" in described, f"kubectl describe: {described}")
        changes = [e for e in cluster.api.watch(f"{REQUESTS}?resourceVersion={begun}", seconds=1) if e["object"]["metadata"]["name"] == "db"]
        # Created, held, taken up, ready.
        expect(len(changes) == 4, f"{len(changes) - 1} writes from creation to Ready: {[c['object'].get('status') for c in changes]}")
        print(f"     {len(changes) - 1} writes and an event from creation to Ready; the agent has {one.memory() / 1024:.1f} MiB resident")
        one.node.shell(f"echo kept > {_MOUNTS}/db/file")
        delete(one, "db")
        nothing_left(one.node, v)
        expect(events(cluster, "db") == [("Normal", "Attached"), ("Normal", "Detached")], f"the events are {events(cluster, 'db')}")


def test_a_restart_writes_nothing_and_finds_what_changed_meanwhile(cluster: Cluster) -> None:
    with rights(cluster), agent(cluster) as one, volume(one.node) as v, volume(one.node) as w, volume(one.node) as x:
        ask(cluster, "db", v)
        ask(cluster, "gone", w)
        wait_ready(one, "db")
        wait_ready(one, "gone")
        one.end("TERM")
        expect(one.node.execute(["mountpoint", "-q", f"{_MOUNTS}/db"]).code == 0, "the end of the agent took a mount away")
        before = request(cluster, "db")["metadata"]["resourceVersion"]
        cluster.api.request("DELETE", f"{REQUESTS}/gone").ok()
        ask(cluster, "new", x)
        expect(request(cluster, "gone") != {}, "it went without its agent")
        one.start()
        wait_ready(one, "new")
        wait_until(lambda: request(cluster, "gone") == {}, timeout=120, what="the deleted request to go")
        expect(attachments_of(one.node, w) == [], "its attachment is left")
        one.end("KILL")
        one.start()
        wait_until(lambda: one.log().count("Cinder answered") > 0, timeout=30, what="it to work")
        delete(one, "new")
        after = request(cluster, "db")["metadata"]["resourceVersion"]
        expect(before == after, f"db was written: {before}, {after}")
        delete(one, "db")
        expect(one.node.leftovers() == [], f"left: {one.node.leftovers()}")


def test_a_kill_in_the_middle_is_finished_by_the_next_agent(cluster: Cluster) -> None:
    with rights(cluster), agent(cluster) as one, volume(one.node) as v:
        for words in ("format", "log in to", "scan", "multipath map", "mount dm"):
            ask(cluster, "db", v)
            before = one.log().count(f"begin: {words}")
            wait_until(lambda: one.log().count(f"begin: {words}") > before, timeout=120, what=f"it to begin: {words}", interval=0.02)
            one.end("KILL")
            one.start(wait=False)
            wait_ready(one, "db")
            in_use_once(one.node, v)
            before = one.log().count("begin: flush and delete")
            cluster.api.request("DELETE", f"{REQUESTS}/db").ok()
            wait_until(lambda: one.log().count("begin: flush and delete") > before, timeout=120, what="it to detach", interval=0.02)
            one.end("KILL")
            one.start(wait=False)
            wait_until(lambda: request(cluster, "db") == {}, timeout=180, what="the request to go")
            nothing_left(one.node, v)


def test_a_node_that_lost_its_power_gets_its_volumes_back_and_says_so_meanwhile(cluster: Cluster) -> None:
    with rights(cluster), agent(cluster) as one, volume(one.node) as v:
        ask(cluster, "db", v)
        before = wait_ready(one, "db")
        one.node.shell(f"echo kept > {_MOUNTS}/db/file; sync")
        cut_power(one.node)
        one.install_kubeconfig()
        one.start()
        wait_until(lambda: one.log().count("attached") > 0, timeout=120, what="it to attach the volume again")
        again = wait_ready(one, "db")
        changes = cluster.api.watch(f"{REQUESTS}?resourceVersion={before['metadata']['resourceVersion']}", seconds=1)
        said = [ready_condition(change["object"]["status"])["reason"] for change in changes]
        expect(said == ["Attaching", "Attached"], f"it said {said}")
        expect(again["status"]["attachmentID"] == before["status"]["attachmentID"], f"another attachment: {again['status']}")
        expect(one.node.shell(f"cat {_MOUNTS}/db/file") == "kept\n", "the file is gone")
        in_use_once(one.node, v)
        delete(one, "db")
        nothing_left(one.node, v)


def test_the_api_server_may_go_and_come_back(cluster: Cluster) -> None:
    with rights(cluster), agent(cluster) as one, volume(one.node) as v, volume(one.node) as w:
        ask(cluster, "db", v)
        wait_ready(one, "db")
        ask(cluster, "web", w)
        wait_until(lambda: "begin: reserve" in one.log().rpartition("attached")[2], timeout=60, what="web to begin", interval=0.02)
        kubernetes.stop_api_server(cluster.lab)
        kubernetes.stop_etcd(cluster.lab)
        try:
            wait_until(lambda: len(attachments_of(one.node, w)) == 1 and attachments_of(one.node, w)[0]["status"] == "attached",
                       timeout=120, what="web to be attached without an API server")
            expect(one.node.execute(["mountpoint", "-q", f"{_MOUNTS}/db"]).code == 0, "db was unmounted")
        finally:
            kubernetes.start_etcd(cluster.lab)
            kubernetes.start_api_server(cluster.lab)
        wait_ready(one, "web")
        kubernetes.pause_api_server(cluster.lab, True)
        kubernetes.pause_api_server(cluster.lab, False)
        delete(one, "db", "web")
        nothing_left(one.node, v)
        nothing_left(one.node, w)


def test_what_goes_without_being_deleted_stays_attached(cluster: Cluster) -> None:
    merge = "application/merge-patch+json"
    with rights(cluster), agent(cluster) as one, volume(one.node) as v:
        ask(cluster, "db", v)
        wait_ready(one, "db")
        # Somebody takes the finalizer off.
        one.end("TERM")
        cluster.api.request("DELETE", f"{REQUESTS}/db").ok()
        cluster.api.request("PATCH", f"{REQUESTS}/db", {"metadata": {"finalizers": None}}, content_type=merge).ok()
        expect(request(cluster, "db") == {}, "it is still there")
        one.start()
        wait_until(lambda: "its volume stays attached" in one.log(), timeout=60, what="it to say so")
        in_use_once(one.node, v)
        # Asked for again, it is taken up.
        ask(cluster, "db", v)
        wait_ready(one, "db")
        in_use_once(one.node, v)
        # The definition is deleted, and all requests with it.
        cluster.kubectl("delete", "crd", "volumeattachrequests.attachd.dev", "--timeout=60s")
        wait_until(lambda: "the definition of VolumeAttachRequest is being deleted" in one.log(), timeout=60, what="it to say so")
        in_use_once(one.node, v)
        expect(one.node.execute(["mountpoint", "-q", f"{_MOUNTS}/db"]).code == 0, "db was unmounted")
        install_crds(cluster.lab)
        ask(cluster, "db", v)
        wait_ready(one, "db")
        # The Node goes: its connector with it, and nothing else.
        cluster.kubectl("delete", "node", "node1")
        wait_until(lambda: cluster.kubectl("get", "nc", "node1").code != 0, timeout=60, what="the NodeConnector to be collected")
        in_use_once(one.node, v)
        kubernetes.create_node_object(cluster.lab, "node1")
        one.wait_connector("True", "Ready")
        delete(one, "db")
        nothing_left(one.node, v)


def test_what_can_not_be_served_is_told_and_stops_nothing_else(cluster: Cluster) -> None:
    with rights(cluster), agent(cluster) as one, volume(one.node) as v, volume(one.node) as taken:
        unknown = "00000000-0000-4000-8000-000000000000"
        elsewhere = reserve_elsewhere(one.node, taken, "worker-7")
        ask(cluster, "taken", taken)
        ask(cluster, "unknown", unknown)
        ask(cluster, "outside", v, mountPath="/opt/db")
        for name, reason in (("taken", "VolumeNotAvailable"), ("unknown", "VolumeNotFound"), ("outside", "MountPathUnusable")):
            found = wait_ready(one, name, "False", reason)
            wait_until(lambda: ("Warning", reason) in events(cluster, name), timeout=10, what=f"the event of {name}")
            print(f"     {name}: {ready_condition(found['status'])['message'][:150]}")
        ask(cluster, "db", v)
        wait_ready(one, "db")
        # A second one of the same volume on the same node.
        ask(cluster, "twin", v, mountPath="/mnt/twin")
        wait_ready(one, "twin", "False", "OwnedByOther")
        # What is immutable is refused by the API server.
        refused = cluster.kubectl("patch", "var", "db", "--type=merge", "-p", '{"spec": {"volumeID": "' + unknown + '"}}')
        expect(refused.code != 0 and "volumeID is immutable" in refused.stderr, f"patched: {refused}")
        free(one.node, elsewhere["id"], taken)
        wait_ready(one, "taken")
        delete(one, "twin", "unknown", "outside")
        in_use_once(one.node, v)
        delete(one, "taken", "db")
        nothing_left(one.node, v)


def test_a_node_that_is_not_fit_says_why(cluster: Cluster) -> None:
    with rights(cluster), agent(cluster) as one, volume(one.node) as v:
        with daemon_stopped(one.node, "iscsid"):
            found = one.wait_connector("False", "IscsidNotRunning")
            conditions = {c["type"]: c["status"] for c in found["status"]["conditions"]}
            expect(conditions["IscsidRunning"] == "False" and conditions["InitiatorNamePresent"] == "True", f"{conditions}")
            ask(cluster, "db", v)
            wait_ready(one, "db", "False", "IscsidNotRunning")
        wait_ready(one, "db")
        one.wait_connector("True", "Ready")
        delete(one, "db")
        nothing_left(one.node, v)
