"""Misconfigurations and faults, planted one at a time: `attachd doctor` names each, nothing else, and what mends it."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from lablib.cases import expect
from lablib.commands import wait_until
from lablib.node import Attachd
from lablib.proxy import Reply
from lablib.steps import MOUNT, attach, cinder_paused, cinder_stopped, detach, path_cut, proxied, volume

_CODES = {"ok": 0, "leftOut": 0, "warning": 10, "unknown": 11, "failed": 12}
_SEVERE = ("warning", "unknown", "failed")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    what: str
    check: str
    verdict: str
    plant: str
    # What an administrator does where doctor can only advise; None: doctor's own commands mend it.
    undo: Optional[str] = None
    # What follows from it, and is named, too.
    follows: tuple[str, ...] = ()
    # How doctor is run while it is there.
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    # Puts back what neither of both does.
    after: str = ""


def _doctor(node: Attachd, *arguments: str, **environment: str) -> dict[str, Any]:
    """Its report; it must be quick, and its exit code the worst verdict's."""
    result = node.run("doctor", "-o", "json", *arguments, **environment)
    expect(result.code in _CODES.values(), f"exit code {result.code}: {result.stderr}")
    checks = {check["id"]: check for check in result.json()["checks"]}
    worst = max(_CODES[check["verdict"]] for check in checks.values())
    expect(result.code == worst, f"exit code {result.code} where the worst is {worst}")
    # Its own time under emulation; the connection to the node is not its.
    expect(result.seconds < 15, f"it took {result.seconds:.1f} s")
    return checks


def _wrong(checks: dict[str, Any]) -> dict[str, str]:
    return {name: check["verdict"] for name, check in checks.items() if check["verdict"] in _SEVERE}


def _well(node: Attachd, what: str) -> None:
    checks = _doctor(node)
    wrong = _wrong(checks)
    expect(wrong == {}, f"{what}: {[(name, checks[name]['saw']) for name in wrong]}")


def _named(node: Attachd, what: str, check: str, verdict: str, *arguments: str, follows: tuple[str, ...] = (), **environment: str) -> dict[str, Any]:
    """Doctor must name it so, and nothing else but what follows from it."""
    checks = _doctor(node, *arguments, **environment)
    found: dict[str, Any] = checks[check]
    print(f"     {what:42} {found['verdict']:8} {check:20} {'; '.join(found['saw'])[:90]}")
    wrong = _wrong(checks)
    expect(wrong.get(check) == verdict, f"{what}: {check} is {found}; {wrong}")
    others = set(wrong) - {check, *follows}
    expect(not others, f"{what}: also {[(name, checks[name]['verdict'], checks[name]['saw']) for name in others]}")
    for mend in found["mends"][:1]:
        print(f"     {'':42} {mend['kind'] + ':':8} {mend['text'][:112]}")
    expect(found["why"] and found["looksAt"], f"{what}: {found}")
    return found


def _passes(node: Attachd, what: str, *checks: str) -> None:
    wait_until(lambda: not set(checks) & set(_wrong(_doctor(node))), timeout=90, what=f"{what}: {checks} to pass after it was mended")


def _try(node: Attachd, fault: Fault) -> None:
    node.shell(fault.plant)
    found = _named(node, fault.what, fault.check, fault.verdict, *fault.arguments, follows=fault.follows, **fault.environment)
    expect(found["mends"], f"{fault.what}: nothing is said to mend it")
    if any(mend["kind"] == "repair" for mend in found["mends"]):
        fixed = node.run("doctor", "--fix", "--yes", *fault.arguments, **fault.environment)
        expect("✓" in fixed.stderr, f"{fault.what}: --fix: {fixed.stderr}")
    for mend in found["mends"]:
        if fault.undo is None and mend["kind"] == "command":
            # As a person does it: in the host's shell, as it stands there.
            node.shell(f"set +e\n{mend['text']}")
    if fault.undo is not None:
        node.shell(fault.undo)
    _passes(node, fault.what, fault.check)
    if fault.after:
        node.shell(fault.after)


_CONF = "/etc/multipath/conf.d/planted.conf"
_ISCSID_CONF = "/etc/iscsi/iscsid.conf"
_LEDGER = "(umask 077; mkdir -p /var/lib/attachd/volumes /var/lib/attachd/targets /var/lib/attachd/locks)"
_NAME = "/etc/iscsi/initiatorname.iscsi"
_RECORD = "iscsiadm -m node -T iqn.2026-11.dev.attachd.lab:planted -p 10.0.2.2"


def _multipath(what: str, check: str, verdict: str, text: str) -> Fault:
    return Fault(what, check, verdict, f"printf '{text}' > {_CONF}; multipathd reconfigure; sleep 1",
                 undo=f"rm {_CONF}; multipathd reconfigure; sleep 1")


def _setting(what: str, line: str) -> Fault:
    name = line.partition("=")[0].strip().replace("[", "\\[")
    return Fault(what, "iscsid-conf", "warning", f"cp {_ISCSID_CONF} /tmp/iscsid.conf; sed -i '/^{name} *=/d' {_ISCSID_CONF}; echo '{line}' >> {_ISCSID_CONF}",
                 after=f"cp /tmp/iscsid.conf {_ISCSID_CONF}")


def _moved(what: str, check: str, verdict: str, path: str) -> Fault:
    return Fault(what, check, verdict, f"mv {path} {path}.away", undo=f"mv {path}.away {path}")


def _without(program: str, verdict: str) -> Fault:
    return Fault(f"{program} is missing", "programs", verdict, f"p=$(command -v {program}); echo $p > /tmp/program; mv $p $p.away",
                 undo="p=$(cat /tmp/program); mv $p.away $p")


# With nothing attached.
_FAULTS = [
    Fault("iscsid doesn't run", "iscsid-running", "failed", "pkill -x iscsid; while pgrep -x iscsid; do sleep 0.1; done"),
    Fault("iscsid was stopped by a signal", "iscsid-running", "failed", "pkill -STOP -x iscsid"),
    Fault("iscsid was upgraded and not restarted", "iscsi-versions", "warning",
          "p=$(command -v iscsid); cp -p $p $p.new; mv -f $p.new $p"),
    Fault("iscsiadm is of another version", "iscsi-versions", "failed",
          "p=$(command -v iscsiadm); mv $p $p.away; printf '#!/bin/sh\\necho iscsiadm version 2.0-874\\n' > $p; chmod +x $p",
          undo="p=$(command -v iscsiadm); mv -f $p.away $p"),
    Fault("the node has no initiator name", "initiator-name", "failed", f"mv {_NAME} /tmp/name", after=f"cat /tmp/name > {_NAME}; pkill -x iscsid; sleep 1; iscsid"),
    Fault("the initiator name is no iSCSI name", "initiator-name", "failed", f"cp {_NAME} /tmp/name; echo InitiatorName=worker-1 > {_NAME}",
          after=f"cat /tmp/name > {_NAME}; pkill -x iscsid; sleep 1; iscsid"),
    Fault("a record logs in at boot", "node-records", "warning",
          f"{_RECORD} -o new; {_RECORD} -o update -n node.startup -v automatic", after=f"{_RECORD} -o delete"),
    Fault("others may read a record's secret", "node-records", "warning",
          f"{_RECORD} -o new; {_RECORD} -o update -n node.session.auth.password -v planted-secret-1; chmod 644 /etc/iscsi/nodes/*planted/*/* || chmod 644 /etc/iscsi/nodes/*planted/10*",
          after=f"{_RECORD} -o delete"),
    _setting("dead paths are not looked for", "node.conn[0].timeo.noop_out_interval = 0"),
    _setting("I/O of a lost session waits for ever", "node.session.timeo.replacement_timeout = -1"),
    _setting("I/O fails at once", "node.session.timeo.replacement_timeout = 0"),
    _setting("every target is offered CHAP", "node.session.auth.authmethod = CHAP"),
    _moved("iscsid.conf is gone", "iscsid-conf", "warning", _ISCSID_CONF),
    Fault("a killed iscsiadm left its lock", "iscsi-lock", "warning",
          "touch /run/lock/iscsi/lock; ln -f /run/lock/iscsi/lock /run/lock/iscsi/lock.write; sleep 11"),
    Fault("multipathd doesn't run", "multipathd-running", "warning", "pkill -x multipathd; while pgrep -x multipathd; do sleep 0.1; done"),
    Fault("multipathd was stopped by a signal", "multipathd-running", "failed", "pkill -STOP -x multipathd"),
    _multipath("all disks are blacklisted by name", "multipath-blacklist", "failed", "blacklist {\\n devnode \"^sd\"\\n}\\n"),
    _multipath("all disks are blacklisted by vendor", "multipath-blacklist", "failed", "blacklist {\\n device {\\n  vendor \".*\"\\n  product \".*\"\\n }\\n}\\n"),
    _multipath("maps queue for ever", "multipath-queueing", "warning", "defaults {\\n no_path_retry queue\\n}\\n"),
    _multipath("maps queue for ever by a feature", "multipath-queueing", "warning", "defaults {\\n features \"1 queue_if_no_path\"\\n}\\n"),
    _multipath("an override queues for ever", "multipath-queueing", "warning", "overrides {\\n no_path_retry queue\\n}\\n"),
    _multipath("a dead path is left late", "multipath-config", "warning", "defaults {\\n fast_io_fail_tmo off\\n}\\n"),
    _multipath("maps are changed while they are used", "multipath-config", "warning", "defaults {\\n reassign_maps yes\\n}\\n"),
    _multipath("disks are known by their place", "multipath-config", "warning", "defaults {\\n uid_attribute ID_PATH\\n}\\n"),
    Fault("udev doesn't run", "udev-running", "failed", "pkill -x systemd-udevd; while pgrep -x systemd-udevd; do sleep 0.1; done"),
    Fault("udev was stopped by a signal", "udev-running", "failed", "pkill -STOP -o -x systemd-udevd"),
    Fault("the host's /run/udev can't be seen", "udev-database", "failed", "mv /run/udev /run/udev.away", undo="mv /run/udev.away /run/udev",
          follows=("udev-running",)),
    Fault("sysfs is read-only", "sysfs-writable", "failed", "mount -o remount,ro /sys"),
    Fault("device-mapper has no device", "device-mapper", "failed", "rm /dev/mapper/control"),
    Fault("mounts don't reach Pods", "mount-propagation", "warning", "mount --make-private /"),
    _without("mkfs.xfs", "warning"),
    _without("blkid", "failed"),
    Fault("modprobe is told not to load iscsi_tcp", "kernel-modules", "failed",
          "modprobe -r iscsi_tcp; echo 'install iscsi_tcp /bin/false' > /etc/modprobe.d/hardening.conf"),
    Fault("iscsi_tcp is not installed", "kernel-modules", "failed",
          "modprobe -r iscsi_tcp; sed -i.away '/iscsi_tcp.ko/d' /lib/modules/*/modules.dep", undo="for dep in /lib/modules/*/modules.dep; do mv $dep.away $dep; done; modprobe iscsi_tcp"),
    Fault("dm_multipath is not loaded", "kernel-modules", "warning",
          "pkill -x multipathd; while pgrep -x multipathd; do sleep 0.1; done; modprobe -r dm_service_time; modprobe -r dm_multipath",
          follows=("multipathd-running",), after="modprobe dm_service_time; multipathd; sleep 1"),
    Fault("the ledger lies on a tmpfs", "state-dir", "warning", "mkdir -p /tmp/ledger", undo="true", arguments=("--state-dir", "/tmp/ledger")),
    Fault("others may write into the state directory", "state-dir", "failed", "chmod 777 /var/lib/attachd", after="chmod 755 /var/lib/attachd"),
    Fault("others may look into the ledger", "state-dir", "warning", f"{_LEDGER}; chmod 755 /var/lib/attachd/volumes"),
    Fault("the ledger's disk is full", "ledger-space", "failed", "mkdir -p /run/small; mount -t tmpfs -o size=1M small /run/small",
          undo="umount /run/small", follows=("state-dir",), arguments=("--state-dir", "/run/small")),
    Fault("a record can't be read", "ledger", "failed",
          f"{_LEDGER}; echo '{{\"spec\":' > /var/lib/attachd/volumes/6a1c4e7e-0000-4000-8000-000000000001.json",
          undo="rm /var/lib/attachd/volumes/6a1c4e7e-0000-4000-8000-000000000001.json"),
    Fault("the cloud's address is nonsense", "cloud-settings", "failed", "true", undo="true", environment={"OS_ENDPOINT": "cinder.example:8776"}),
    Fault("no cloud is named", "cloud-settings", "unknown", "true", undo="true", environment={"OS_AUTH_TYPE": "", "OS_ENDPOINT": "", "OS_PROJECT_ID": ""}),
    Fault("nobody listens at Cinder's address", "cinder-reachable", "failed", "true", undo="true", environment={"OS_ENDPOINT": "http://10.0.2.2:1/v3"}),
    Fault("the clock is wrong", "clock", "failed", "date -s '+10 minutes'", undo="date -s '-10 minutes'"),
    Fault("SELinux denies iscsid something", "security-denials", "warning",
          "mkdir -p /var/log/audit; echo \"type=AVC msg=audit($(date +%s).123:45): avc:  denied  { read write } for  pid=7 comm=\\\"iscsid\\\" path=\\\"/dev/sdb\\\"\" > /var/log/audit/audit.log",
          undo="rm -r /var/log/audit"),
]


def test_doctor_names_each_fault_and_nothing_else_and_what_mends_it(node: Attachd) -> None:
    _well(node, "a healthy node gives a false alarm")
    for fault in _FAULTS:
        _try(node, fault)
    _well(node, "after all was mended")
    print(f"     {len(_FAULTS)} faults planted, {len(_FAULTS)} named, {len(_FAULTS)} mended")


_ATTACHED = [
    Fault("the initiator's name was changed", "initiator-name", "warning", f"cp {_NAME} /tmp/name; echo InitiatorName=iqn.2026-11.dev.attachd.lab:other > {_NAME}",
          undo=f"cat /tmp/name > {_NAME}"),
    Fault("udev has forgotten a disk", "udev-database", "warning",
          "rm /run/udev/data/b$(cat /sys/class/iscsi_session/session*/device/target*/*/block/*/dev | head -1)"),
    Fault("the volume is mounted a second time", "volumes", "failed", f"mkdir -p /mnt/second; mount --bind {MOUNT} /mnt/second",
          undo="umount /mnt/second; rmdir /mnt/second"),
]


def test_doctor_names_what_is_wrong_with_attached_volumes(node: Attachd) -> None:
    with volume(node) as v:
        attach(node, v, "--mount", MOUNT)
        node.wait_for_paths(2, 0)
        _well(node, "with a volume attached")
        for fault in _ATTACHED:
            _try(node, fault)

        node.shell("iscsiadm -m session -r $(ls /sys/class/iscsi_session | sed 's/session//' | head -1) -u; sleep 1")
        _named(node, "a path lost its session", "volumes", "failed")
        attach(node, v, "--mount", MOUNT)
        node.wait_for_paths(2, 0)
        _passes(node, "a path lost its session", "volumes")

        with path_cut(node, 2):
            node.wait_for_paths(1, 1)
            _named(node, "a path is cut", "portals", "failed", follows=("volumes", "portal-mtu"))
        node.wait_for_paths(2, 0)
        _passes(node, "a path is cut", "portals", "volumes")

        node.shell("ip link set dev eth1 mtu 9000")
        found = _named(node, "large packets are lost on one path", "portal-mtu", "failed")
        for mend in found["mends"]:
            if mend["kind"] == "command":
                node.shell(mend["text"])
        _passes(node, "large packets are lost on one path", "portal-mtu")
        detach(node, v)


def test_doctor_names_a_process_that_hangs(node: Attachd) -> None:
    with volume(node, "tgt-single") as v:
        attach(node, v, "--mount", MOUNT)
        with path_cut(node, 1):
            node.shell(f"setsid dd if=/dev/urandom of={MOUNT}/data bs=1M count=4 oflag=direct < /dev/null > /dev/null 2>&1 & sleep 2")
            _named(node, "a process hangs in the kernel", "stuck-processes", "warning", follows=("portals", "portal-mtu", "volumes"))
        _passes(node, "a process hangs in the kernel", "stuck-processes", "portals", "volumes")
        detach(node, v)


def test_doctor_tells_apart_how_cinder_fails(node: Attachd) -> None:
    with proxied(node) as proxy:
        for what, check, reply in [
            ("Cinder doesn't know the user", "credentials", Reply(401)),
            ("Cinder's policy refuses the user", "cinder-rights", Reply(403)),
            ("something else answers for Cinder", "cinder-reachable", Reply(200, b"<html>Welcome to nginx!</html>")),
            ("Cinder fails", "cinder-reachable", Reply(500)),
            ("connections to Cinder break", "cinder-reachable", Reply(0)),
        ]:
            proxy.behaviour.instead = lambda method, path, reply=reply: reply
            _named(node, what, check, "failed", OS_ENDPOINT=proxy.endpoint_in_node)
    with cinder_paused(node):
        _named(node, "Cinder hangs", "cinder-reachable", "failed")
    with cinder_stopped(node):
        _named(node, "Cinder is away", "cinder-reachable", "failed")


def test_doctor_prints_for_a_person_within_80_columns(node: Attachd) -> None:
    node.shell("pkill -x iscsid; while pgrep -x iscsid; do sleep 0.1; done")
    shown = node.run("doctor")
    print(shown.stdout)
    expect(shown.code == 12, f"exit code {shown.code}")
    # A command is never broken: it is there to be copied.
    wide = [line for line in shown.stdout.splitlines() if len(line) > 80 and " run: " not in line]
    expect(wide == [], f"too wide: {wide}")
    expect("\x1b" not in shown.stdout, "there are colours in a file")
    explained = node.run("doctor", "--explain", "iscsid-running")
    print(explained.stdout)
    expect(explained.code == 12 and "iscsid makes the sessions" in explained.stdout, f"{explained}")
    # Nobody is at the terminal, so nothing is done.
    node.shell("chmod 755 /var/lib/attachd/volumes 2>/dev/null || mkdir -p -m 755 /var/lib/attachd/volumes")
    asked = node.run("doctor", "--fix")
    expect("chmod 0700 /var/lib/attachd/volumes" in asked.stderr and "Nothing was changed" in asked.stderr, f"{asked.stderr}")
    node.shell("[ $(stat -c %a /var/lib/attachd/volumes) = 755 ]; chmod 700 /var/lib/attachd/volumes; iscsid")
    refused = node.run("doctor", "--explain", "nonsense")
    expect(refused.code == 2 and "iscsid-running" in refused.stderr, f"{refused}")
