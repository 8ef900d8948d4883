"""Runs in a node: makes a container as an engine would (runc's way, without runc), and becomes its program.

    pod_container.py SPEC       SPEC is a file with what pod.py wrote; it is removed as soon as it is read

The root file system is a copy-on-write one, private; the mounts come from the host with the propagation that the Pod
asks for; namespaces that the Pod does not share with the host are new.
"""

import ctypes
import json
import os
import signal
import stat
import subprocess
import sys

RUN = "/run/pods"  # where the containers' root file systems are mounted, on the host
IMAGE = "/run/pod-image"

_MS = {"rdonly": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "remount": 32, "bind": 4096, "rec": 16384, "private": 1 << 18,
       "slave": 1 << 19, "shared": 1 << 20}
_PROPAGATION = {"None": "private", "HostToContainer": "slave", "Bidirectional": "shared"}
_CLONE = {"mnt": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000, "pid": 0x20000000, "net": 0x40000000}
_SYS_PIVOT_ROOT = 155  # x86_64
_PR_CAPBSET_DROP = 24
# What an unprivileged container has: containerd's and CRI-O's default.
_CAPABILITIES = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31}
_LAST_CAPABILITY = "/proc/sys/kernel/cap_last_cap"
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result, what):
    if result < 0:
        code = ctypes.get_errno()
        raise SystemExit(f"pod_container: {what}: {os.strerror(code)}")


def _mount(source, target, kind, *flags, data=""):
    number = sum(_MS[flag] for flag in flags)
    _checked(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(number), data.encode()),
             f"mount {source} on {target} ({kind} {' '.join(flags)})")


def _is_shared(path):
    """Whether the mount that a path lies on is shared, as an engine insists for propagation."""
    best, shared = "", False
    for line in open("/proc/self/mountinfo"):
        fields = line.split()
        point = fields[4]
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, shared = point, any(field.startswith("shared:") for field in fields[6:fields.index("-")])
    return shared


def _root(spec, base):
    """On the host, as containerd does it: the image below, a layer of the container's own above."""
    _mount("tmpfs", base, "tmpfs", "nosuid", "nodev")
    _mount("none", base, "", "private")
    for name in ("upper", "work", "root"):
        os.mkdir(f"{base}/{name}")
    layers = f"lowerdir={IMAGE},upperdir={base}/upper,workdir={base}/work"
    _mount("overlay", f"{base}/root", "overlay", data=layers)
    _mount("none", f"{base}/root", "", "private")
    return f"{base}/root"


def _within(root, path):
    """Where a path of the container lies; a link leads to what the container would find there."""
    at = root
    for part in path.strip("/").split("/"):
        at = f"{at}/{part}"
        if os.path.islink(at):
            target = os.readlink(at)
            at = _within(root, target) if target.startswith("/") else os.path.normpath(f"{os.path.dirname(at)}/{target}")
    return at


def _mount_point(root, path, source_is_file):
    at = _within(root, path)
    if source_is_file:
        os.makedirs(os.path.dirname(at), exist_ok=True)
        open(at, "a").close()
    else:
        os.makedirs(at, exist_ok=True)
    return at


def _host_path(spec):
    path, kind = spec["host_path"], spec["type"]
    if kind == "DirectoryOrCreate":
        os.makedirs(path, mode=0o755, exist_ok=True)
    elif kind == "FileOrCreate":
        open(path, "a").close()
    if not os.path.exists(path):
        raise SystemExit(f"pod_container: hostPath {path} does not exist")
    wrong = {"Directory": not os.path.isdir(path), "File": not os.path.isfile(path)}.get(kind, False)
    if wrong:
        raise SystemExit(f"pod_container: hostPath {path} is no {kind}")
    return path


def _volume(root, spec):
    propagation = _PROPAGATION[spec["propagation"]]
    if spec["host_path"] is not None:
        source = _host_path(spec)
        if propagation == "shared" and not spec["privileged"]:
            raise SystemExit("pod_container: Bidirectional mount propagation is for privileged containers only")
        if propagation != "private" and not _is_shared(source):
            raise SystemExit(f"pod_container: path {source} is mounted on the host, but it is not a shared mount")
        at = _mount_point(root, spec["path"], not os.path.isdir(source))
        _mount(source, at, "", "bind", "rec")
    else:
        at = _mount_point(root, spec["path"], False)
        _mount("tmpfs", at, "tmpfs", "nosuid", "nodev", data="mode=0755")
        for name, (text, mode) in spec["files"].items():
            os.makedirs(os.path.dirname(f"{at}/{name}"), exist_ok=True)
            with open(os.open(f"{at}/{name}", os.O_WRONLY | os.O_CREAT, mode), "w") as file:
                file.write(text)
    if spec["read_only"]:
        _mount("none", at, "", "bind", "remount", "rdonly")
    # The copy of a shared mount is its peer: shared it is already.
    _mount("none", at, "", propagation, "rec")


def _system_mounts(root, spec):
    _mount("proc", _mount_point(root, "/proc", False), "proc", "nosuid", "nodev", "noexec")
    _mount("tmpfs", _mount_point(root, "/dev", False), "tmpfs", "nosuid", data="mode=0755")
    for name, number in _DEVICES.items():
        os.mknod(f"{root}/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(*number))
    access = [] if spec["privileged"] else ["rdonly"]
    _mount("sysfs", _mount_point(root, "/sys", False), "sysfs", "nosuid", "nodev", "noexec", *access)
    for name in ("hosts", "resolv.conf", "hostname"):
        if os.path.exists(f"/etc/{name}"):
            _mount(f"/etc/{name}", _mount_point(root, f"/etc/{name}", True), "", "bind")
            _mount("none", f"{root}/etc/{name}", "", "private")


def _pivot(root, spec):
    os.mkdir(f"{root}/.old")
    _checked(_libc.syscall(_SYS_PIVOT_ROOT, root.encode(), f"{root}/.old".encode()), "pivot_root")
    os.chdir("/")
    # Else the host would lose its mounts with the container's view of them.
    _mount("none", "/.old", "", "slave", "rec")
    _checked(_libc.umount2(b"/.old", 2), "leaving the host's root")
    os.rmdir("/.old")
    if spec["read_only_root"]:
        _mount("none", "/", "", "bind", "remount", "rdonly")


def _drop_privileges():
    with open(_LAST_CAPABILITY) as file:
        last = int(file.read())
    for capability in set(range(last + 1)) - _CAPABILITIES:
        _checked(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), f"dropping capability {capability}")


def _become(spec):
    """In the namespaces: see only what the container sees, then run its program."""
    root = f"{spec['base']}/root"
    _system_mounts(root, spec)
    for volume in sorted(spec["mounts"], key=lambda volume: volume["path"]):
        _volume(root, {**volume, "privileged": spec["privileged"]})
    if spec["binary"]:
        inside, outside = spec["binary"]
        _mount(outside, _mount_point(root, inside, True), "", "bind")
    _pivot(root, spec)
    if not spec["privileged"]:
        _drop_privileges()
    try:
        os.execvpe(spec["command"][0], spec["command"], spec["env"])
    except OSError as error:
        raise SystemExit(f"pod_container: {spec['command'][0]}: {error.strerror}")


def _forward_signals(process):
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: os.kill(process, received))


def main():
    """Make the container, run its program in it, and take the container away again."""
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    os.unlink(sys.argv[1])
    base = spec["base"] = f"{RUN}/{spec['name']}"
    os.makedirs(base)
    _root(spec, base)
    new = {"mnt", "ipc", "cgroup"} | ({"net", "uts"} if not spec["host_network"] else set())
    if not spec["host_pid"]:
        new.add("pid")
    child = os.fork()
    if child == 0:
        os.setsid()
        _checked(_libc.unshare(sum(_CLONE[name] for name in new)), "new namespaces")
        # In a PID namespace of its own the program is its process 1.
        inner = os.fork() if "pid" in new else 0
        if inner == 0:
            _become(spec)
        _forward_signals(inner)
        _, status = os.waitpid(inner, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    with open(f"{base}.pid", "w") as file:
        file.write(str(child))
    _forward_signals(child)
    _, status = os.waitpid(child, 0)
    # As an engine does at the end of the container's first process.
    subprocess.run(["pkill", "-KILL", "-s", str(child)], stdin=subprocess.DEVNULL)
    for mounted in (f"{base}/root", base):
        _checked(_libc.umount2(mounted.encode(), 2), f"taking away {mounted}")
    os.rmdir(base)
    os.unlink(f"{base}.pid")
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
