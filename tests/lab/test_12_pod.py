"""attachd in a Pod drives the host: its mounts arrive there, its programs are the host's, and it excludes one on the host."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lablib.cases import expect
from lablib.commands import wait_until
from lablib.daemon import DIRECTORY
from lablib.errors import LabError
from lablib.node import BINARY, DEBUG, Attachd
from lablib.pod import Mount, Pod, PodAttachd, PodDaemon, attachd_spec
from lablib.pod_template import Surroundings, from_pod_template
from lablib.steps import MOUNT, attach, attachments_of, detach, in_use_once, nothing_left, refused, volume

_MOUNTS = "/var/lib/attachd/mounts"


def _on_host(node: Attachd, path: str, fs: str) -> bool:
    """Whether process 1 of the node sees a mount."""
    lines = node.shell("cat /proc/1/mountinfo").splitlines()
    return any(line.split()[4] == path and f" - {fs} /dev/mapper/" in line for line in lines)


def _keeps_data(node: Attachd, volume_id: str, fs: str, *arguments: str) -> None:
    """Attach in a Pod, write on the host, detach in a Pod, attach again, read, detach."""
    pod = PodAttachd.beside(node)
    attached = attach(pod, volume_id, "--mount", MOUNT, "--fs", fs, *arguments)
    expect(_on_host(node, MOUNT, fs) == attached["device"].startswith("/dev/mapper/"), f"the result is {attached}")
    in_use_once(node, volume_id)
    node.shell(f"cd {MOUNT}; dd if=/dev/urandom of=data bs=1M count=4 conv=fsync status=none; sha256sum data > sum; sync")
    detach(pod, volume_id)
    attach(pod, volume_id, "--mount", MOUNT, "--fs", fs, *arguments)
    node.shell(f"cd {MOUNT}; sha256sum -c sum")
    detach(pod, volume_id)


def test_a_daemonsets_template_is_run_and_what_is_not_understood_is_refused(node: Attachd) -> None:
    volumes = {"dev": ("/dev", "None"), "state": ("/var/lib/attachd", "Bidirectional"), "mnt": ("/mnt", "Bidirectional")}
    container = {
        "name": "attachd", "image": "attachd:dev", "args": ["inspect", "-o", "json", "--log=$(LEVEL)"],
        "env": [{"name": "ATTACHD_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "ATTACHD_HOST_ROOT", "value": "/proc/1/root"}, {"name": "LEVEL", "value": "attachd=debug"}],
        "securityContext": {"privileged": True, "readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "tls", "mountPath": "/etc/attachd/tls", "readOnly": True},
                         *({"name": name, "mountPath": path, "mountPropagation": mode} for name, (path, mode) in volumes.items())],
    }
    pod = {"hostPID": True, "hostNetwork": True, "serviceAccountName": "attachd", "containers": [container],
           "volumes": [{"name": "tls", "secret": {"secretName": "tls"}},
                       *({"name": name, "hostPath": {"path": path}} for name, (path, _) in volumes.items())]}
    around = Surroundings(node.name, "10.0.2.15", secrets={"tls": {"ca.crt": "x"}})
    spec = from_pod_template({"metadata": {"labels": {"app": "attachd"}}, "spec": pod}, around)
    result = Pod(node, spec).run()
    expect(result.code == 0 and result.json()["otherSessions"] == [], f"inspect: {result}")
    for strange in ({"initContainers": [{"name": "x"}]}, {"hostIPC": True}, {"containers": [{**container, "lifecycle": {"x": {}}}]}):
        try:
            from_pod_template({"spec": {**pod, **strange}}, around)
        except LabError as error:
            expect("pod.py" in str(error), f"it says {error}")
        else:
            expect(False, f"{strange} was taken")


def test_from_a_pod_two_paths_with_chap_and_ext4_keep_their_data(node: Attachd) -> None:
    with volume(node, "tgt") as v:
        _keeps_data(node, v, "ext4", "--multipath", "required")


def test_from_a_pod_xfs_keeps_its_data(node: Attachd) -> None:
    with volume(node, "tgt") as v:
        _keeps_data(node, v, "xfs", "--multipath", "required")


def test_from_a_pod_a_raw_block_device_keeps_its_data_and_read_only_the_kernel_refuses_writes(node: Attachd) -> None:
    pod = PodAttachd.beside(node)
    with volume(node) as v:
        device = attach(pod, v, "--block")["device"]
        node.shell(f"head -c 3000000 /dev/urandom > /tmp/data; dd if=/tmp/data of={device} bs=1M seek=7 conv=fsync status=none")
        detach(pod, v)
        device = attach(pod, v, "--block", "--mode", "ro")["device"]
        node.shell(f"dd if={device} of=/tmp/read bs=1M skip=7 count=3 status=none; cmp -n 3000000 /tmp/read /tmp/data")
        expect(node.shell(f"blockdev --getro {device}").strip() == "1", f"{device} is not read-only")
        detach(pod, v)


def test_from_a_pod_a_read_only_file_system_can_be_read_and_not_written(node: Attachd) -> None:
    pod = PodAttachd.beside(node)
    with volume(node) as v:
        attach(pod, v, "--mount", MOUNT)
        node.shell(f"echo kept > {MOUNT}/file")
        detach(pod, v)
        attach(pod, v, "--mount", MOUNT, "--mode", "ro")
        expect(node.shell(f"cat {MOUNT}/file") == "kept\n", "the file can't be read")
        written = node.execute(["sh", "-c", f"echo lost > {MOUNT}/file"])
        expect(written.code != 0 and "Read-only file system" in written.stderr, f"a write gave {written}")
        detach(pod, v)


@contextmanager
def _pod_daemon(node: Attachd) -> Iterator[PodDaemon]:
    """The daemon in a Pod, with an empty directory."""
    node.shell(f"rm -rf {DIRECTORY}")
    running = PodDaemon(node)
    running.start()
    yield running
    if running.alive():
        running.stop()
    node.shell(f"rm -rf {DIRECTORY}")


def test_the_daemon_in_a_pod_serves_requests_and_ends_and_dies_without_letting_go_of_a_volume(node: Attachd) -> None:
    with volume(node) as v, _pod_daemon(node) as d:
        d.request("db", v)
        status = d.wait_for("db", "Attached", ready=True)
        expect(_on_host(node, f"{_MOUNTS}/db", "ext4"), f"the status is {status}")
        node.shell(f"echo kept > {_MOUNTS}/db/file; sync")
        code = d.stop()
        expect(code == 0, f"after SIGTERM it ended with {code}: {d.log()[-2000:]}")
        expect(_on_host(node, f"{_MOUNTS}/db", "ext4"), "the mount went with the Pod")
        d.start()
        d.kill()
        expect(node.shell(f"cat {_MOUNTS}/db/file") == "kept\n", "the mount went with the Pod")
        # A new container sees the mount that the first one made, and can take it away.
        d.start()
        d.remove("db.yaml")
        d.wait_gone("db")
        nothing_left(node, v)
        zombies = node.shell("ps -e -o stat=,comm= | grep '^Z' || true")
        expect(zombies == "", f"nobody reaps {zombies}")


def test_the_daemon_in_a_pod_and_a_one_off_attachd_on_the_host_exclude_each_other(node: Attachd) -> None:
    with volume(node) as v, _pod_daemon(node) as d:
        d.request("db", v)
        wait_until(lambda: len(attachments_of(node, v)) == 1, timeout=60, what="the attachment", interval=0.05)
        # While the one in the Pod stands still in the middle of it, the host's waits for its lock.
        d.signal("STOP")
        detaching = shlex.join(node.command("detach", v))
        node.shell(f"setsid sh -c '{detaching} > /tmp/detach 2>&1; echo $? > /tmp/detach.code' < /dev/null > /dev/null 2>&1 &")
        wait_until(lambda: "-> FLOCK" in node.shell("cat /proc/locks"), timeout=60, what="the host's attachd to wait for a lock")
        expect(node.execute(["test", "-e", "/tmp/detach.code"]).code != 0, f"it did not wait: {node.shell('cat /tmp/detach')}")
        d.signal("CONT")
        wait_until(lambda: node.execute(["test", "-s", "/tmp/detach.code"]).code == 0, timeout=180, what="the host's attachd to end")
        said = node.shell("cat /tmp/detach.code /tmp/detach; rm /tmp/detach.code /tmp/detach")
        expect(said.startswith("3\n") and "the request \"db\" in the requests directory" in said, f"detach: {said}")
        d.wait_for("db", "Attached", ready=True)
        d.remove("db.yaml")
        d.wait_gone("db")
        nothing_left(node, v)


def test_what_the_host_mounted_a_pod_unmounts_and_the_other_way_round(node: Attachd) -> None:
    pod = PodAttachd.beside(node)
    with volume(node) as v:
        attach(node, v, "--mount", MOUNT)
        again = attach(pod, v, "--mount", MOUNT)
        expect(not again["changed"], f"again: {again}")
        detach(pod, v)
        attach(pod, v, "--mount", MOUNT)
        again = attach(node, v, "--mount", MOUNT)
        expect(not again["changed"], f"again: {again}")
        detach(node, v)


def _without_propagation(pod: PodAttachd, propagation: str) -> PodAttachd:
    def changed(mount: Mount) -> Mount:
        return dataclasses.replace(mount, propagation=propagation) if mount.path == "/mnt" else mount

    other = PodAttachd.beside(pod)
    other.adapt = lambda spec: dataclasses.replace(spec, mounts=[changed(mount) for mount in spec.mounts])
    return other


def test_a_pod_whose_mounts_would_not_reach_the_host_is_told_so_before_anything_is_changed(node: Attachd) -> None:
    with volume(node) as v:
        for propagation in ("None", "HostToContainer"):
            pod = _without_propagation(PodAttachd.beside(node), propagation)
            refused(pod, 3, ["would not reach the host", "mountPropagation: Bidirectional", "[MountPathUnusable]"],
                    "attach", v, "--mount", MOUNT)


def test_an_unmount_that_does_not_reach_the_host_is_an_error(node: Attachd) -> None:
    with volume(node) as v:
        attach(node, v, "--mount", MOUNT)
        for propagation in ("None", "HostToContainer"):
            result = _without_propagation(PodAttachd.beside(node), propagation).run("detach", v)
            expect(result.code == 5 and "[MountNotPropagated]" in result.stderr
                   and "mountPropagation: Bidirectional" in result.stderr, f"detach: {result}")
            expect(_on_host(node, MOUNT, "ext4"), "it went from the host all the same")
        detach(node, v)


def test_a_process_of_the_host_that_holds_the_mount_is_named_to_a_pod(node: Attachd) -> None:
    pod = PodAttachd.beside(node)
    with volume(node) as v:
        attach(pod, v, "--mount", MOUNT)
        node.shell(f"cd {MOUNT}; setsid sleep 600 > /dev/null 2>&1 & echo $! > /tmp/holder")
        try:
            result = pod.run("detach", v)
            holder = node.shell("cat /tmp/holder").strip()
            expect(result.code in (5, 6) and "[Busy]" in result.stderr and f"process {holder} (sleep)" in result.stderr, f"detach: {result}")
            expect(_on_host(node, MOUNT, "ext4"), "it was unmounted all the same")
        finally:
            node.shell("kill $(cat /tmp/holder); rm /tmp/holder")
        detach(pod, v)


def test_a_container_that_keeps_a_copy_of_the_mount_is_named(node: Attachd) -> None:
    pod = PodAttachd.beside(node)
    with volume(node) as v:
        attach(pod, v, "--mount", MOUNT)
        # As a container that uses the volume: a bind of it, which the host's unmount does not reach.
        node.shell("mkdir /run/copy; setsid unshare --mount --propagation private "
                   f"sh -c 'mount --bind {MOUNT} /run/copy; exec sleep 600' > /dev/null 2>&1 & echo $! > /tmp/holder")
        try:
            wait_until(lambda: node.shell("cat /proc/$(cat /tmp/holder)/comm") == "sleep\n", timeout=30, what="the container")
            holder = node.shell("cat /tmp/holder").strip()
            result = pod.run("detach", v)
            words = f"the mount at /run/copy of the container of process {holder} (sleep)"
            expect(result.code in (5, 6) and "[Busy]" in result.stderr and words in result.stderr, f"detach: {result}")
        finally:
            node.shell("kill $(cat /tmp/holder); rm /tmp/holder; sleep 0.3; rmdir /run/copy")
        detach(pod, v)


def test_another_mount_of_the_host_keeps_a_pod_from_detaching(node: Attachd) -> None:
    pod = PodAttachd.beside(node)
    with volume(node) as v:
        device = attach(pod, v, "--mount", MOUNT)["device"]
        # Not below what the Pod has of the host.
        node.shell(f"mkdir -p /run/elsewhere; mount {device} /run/elsewhere")
        try:
            result = pod.run("detach", v)
            expect(result.code == 3 and "/run/elsewhere" in result.stderr, f"detach: {result}")
        finally:
            node.shell("umount /run/elsewhere; rmdir /run/elsewhere")
        detach(pod, v)


def test_what_a_pod_needs_and_lacks_is_named(node: Attachd) -> None:
    spec = attachd_spec(node, [BINARY, "connector"])
    cases = [
        (dataclasses.replace(spec, host_pid=False), "hostPID: true"),
        (dataclasses.replace(spec, host_network=False), "hostNetwork: true"),
        (dataclasses.replace(spec, privileged=False, mounts=[]), "securityContext.privileged: true"),
        (dataclasses.replace(spec, env={**spec.env, "ATTACHD_HOST_ROOT": "/mnt"}), "is not the root of a process, such as /proc/1/root"),
        (dataclasses.replace(spec, env={**spec.env, "ATTACHD_HOST_ROOT": "/proc/self/root"}), "attachd's own mount namespace"),
        (dataclasses.replace(spec, env={**spec.env, "ATTACHD_HOST_ROOT": "/proc/4194303/root"}), "is it a process of the host?"),
    ]
    for lacking, words in cases:
        result = Pod(node, lacking).run()
        expect(result.code == 5 and "[HostRootUnusable]" in result.stderr and words in result.stderr, f"{words}: {result}")
    nameless = {key: value for key, value in spec.env.items() if key != "ATTACHD_NODE_NAME"}
    result = Pod(node, dataclasses.replace(spec, env=nameless)).run()
    expect(result.code == 2 and "ATTACHD_NODE_NAME" in result.stderr, f"without a name: {result}")
    result = node.run("connector", "--host-root", "/proc/1/root")
    expect(result.code == 5 and "leave --host-root out" in result.stderr, f"on the host itself: {result}")


_WITNESS = r"""
path=$(command -v iscsiadm); mv $path $path.real
printf '#!/bin/bash\nprintf "%%s|%%s|%%s\\n" "$(readlink /proc/self/ns/mnt /proc/self/ns/ipc | tr "\\n" " ")" "$(env -0 | tr "\\0" " ")" "$*" >> /tmp/argv\nexec -a "$0" "$0.real" "$@"\n' > $path
chmod 755 $path
"""


def test_from_a_pod_programs_run_in_the_hosts_namespaces_and_no_command_line_holds_the_secret(node: Attachd) -> None:
    pod = PodAttachd.beside(node)
    expect("iscsiadm" not in node.shell("ls /run/pod-image/sbin /run/pod-image/usr/sbin /run/pod-image/usr/bin"), "the image has iscsiadm")
    with volume(node) as v:
        node.shell(_WITNESS)
        try:
            node.shell("setsid bash -c 'while [ ! -e /tmp/enough ]; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ >> /tmp/sampled "
                       "2>/dev/null; done' >/dev/null 2>&1 &")
            result = pod.run("attach", v, "--mount", MOUNT, "-o", "json", **DEBUG)
            node.shell("touch /tmp/enough")
            expect(result.code == 0, f"attach: {result.stderr[-3000:]}")
            attachment = node.cinder.request("GET", f"/attachments/{result.json()['attachmentID']}").json()["attachment"]
            secret = attachment["connection_info"]["auth_password"]
            expect(len(secret) >= 12, "there is no CHAP secret, so this test says nothing")

            seen = node.shell("cat /tmp/argv").splitlines()
            host = node.shell("readlink /proc/1/ns/mnt /proc/1/ns/ipc | tr '\\n' ' '")
            expect(seen and all(line.split("|")[0] == host for line in seen), f"iscsiadm was not in {host}: {seen}")
            expect(all("ATTACHD" not in line and "LC_ALL=C" in line for line in seen), f"its environment was {seen}")
            expect(any(line.endswith("--login") for line in seen), f"the witness saw no login: {seen}")
            # Logged as without a Pod.
            expect(any(line.startswith("iscsiadm -m node ") for line in result.programs()), f"it logged {result.programs()}")
            expect("nsenter" not in json.dumps(result.events()), "the log has the prefix")
            expect(secret not in result.stdout + result.stderr and secret not in "".join(seen), "the secret is seen")
            sampled = node.shell(f"wc -c < /tmp/sampled; grep -acF '{secret}' /tmp/sampled || true").split()
            expect(int(sampled[0]) > 10_000 and sampled[1] == "0", f"of /proc, {sampled}")
            expect("nsenter" not in node.shell("ps -e -o comm="), "an nsenter is left")
            detach(pod, v)
        finally:
            node.shell("touch /tmp/enough; path=$(command -v iscsiadm); mv $path.real $path; rm -f /tmp/argv /tmp/sampled; "
                       "sleep 0.5; rm -f /tmp/enough /tmp/sampled")


def test_from_a_pod_a_program_that_hangs_is_killed_with_all_that_it_started(node: Attachd) -> None:
    pod = PodAttachd.beside(node)
    with volume(node) as v:
        attach(pod, v, "--mount", MOUNT)
        node.shell("path=$(command -v multipath); mv $path $path.real; "
                   "printf '#!/bin/sh\\nsleep 1234\\n' > $path; chmod 755 $path")
        try:
            # `multipath -w` may take 20 s, and is done without.
            result = pod.run("detach", v)
            expect(result.code == 0 and "multipath still remembers the WWID" in result.stderr and "longer than 20 s" in result.stderr,
                   f"detach: {result}")
            left = node.shell("pgrep -fx 'sleep 1234' || true; pgrep -x nsenter || true; ps -e -o stat=,comm= | grep ^Z || true")
            expect(left == "", f"left: {left}")
        finally:
            node.shell("path=$(command -v multipath.real); mv $path ${path%.real}; multipath -W > /dev/null")
        nothing_left(node, v)


def test_from_a_pod_an_attach_that_is_stopped_takes_back_what_it_began(node: Attachd) -> None:
    pod = PodAttachd.beside(node)
    with volume(node) as v:
        result = pod.signalled(signal.SIGTERM, "attach", v, "--mount", MOUNT, program="mkfs.ext4")
        expect(result.code == 130, f"attach: {result}")
        nothing_left(node, v)
