"""The command line of scripts/lab."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

from lablib import cinder, cinder_old, cli_kubernetes, guest, keystone, lifecycle, networks, paths, storage
from lablib.block_storage import MICROVERSION, BlockStorage
from lablib.commands import tail
from lablib.errors import LabError
from lablib.report import say
from lablib.state import STORAGE, Lab, Storage

_Work = Callable[[Lab, argparse.Namespace], int]
_SECRETS = re.compile(r'("(?:auth_password|discovery_auth_password|secret)"\s*:\s*)"[^"]*"')


def _up(lab: Lab, args: argparse.Namespace) -> int:
    lifecycle.up(lab, lifecycle.Wishes(args.nodes, args.fast_failover, args.find_multipaths, args.storage_guest))
    return _status(lab, args)


def _status(lab: Lab, args: argparse.Namespace) -> int:
    status = lifecycle.status(lab)
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        _print_status(status)
    return 0 if status["up"] else 3


def _print_status(status: dict[str, Any]) -> None:
    def pid(of: dict[str, Any]) -> str:
        return "not running" if of["pid"] is None else f"pid {of['pid']}"

    def access(api: dict[str, Any]) -> None:
        print(f"           {api['endpoint']} (in a node: {api['endpoint_in_guest']})")
        print(f"           project {api['project_id']}, token {api['token']}")
        print(f"           volume types: {' '.join(api['volume_types'])}")

    if not status["up"]:
        print(f"lab {status['name']}: down")
        return
    api, target = status["cinder"], status["target"]
    print(f"lab {status['name']} ({status['accelerator']}), files in {status['state_dir']}")
    print(f"  cinder   {pid(api)}{', paused' if api['paused'] else ''}")
    access(api)
    print(f"  target   {pid(target)}, portals in a node: {' '.join(target['portals'])}")
    if status["cinder_old"]:
        print(f"  old      {pid(status['cinder_old'])}, an older Cinder:")
        access(status["cinder_old"])
    if status["storage"]:
        print(f"  storage  {pid(status['storage'])}, ssh port {status['storage']['ssh_port']}; its Cinder:")
        access(status["storage"]["cinder"])
        print(f"           portals in a node: {' '.join(status['storage']['target']['portals'])}")
    if status["keystone"]:
        _print_keystone(status["keystone"])
    if status["kubernetes"]:
        cli_kubernetes.show(status["kubernetes"])
    for name, node in status["nodes"].items():
        print(f"  {name:8} {pid(node)}, {node['address']}, {node['iqn']}, ssh port {node['ssh_port']}")


def _print_keystone(status: dict[str, Any]) -> None:
    running = "not running" if status["pid"] is None else f"pid {status['pid']}"
    print(f"  keystone {running}, tokens of {status['token_lifetime']} s")
    print(f"           {status['auth_url']} (in a node: {status['auth_url_in_guest']})")
    print(f"           {status['cinder']}: the same Cinder, for those who bring a token")
    print(f"           {status['clouds_file']} (for a node: {status['clouds_file_in_guest']})")
    print(f"           clouds: {' '.join(status['clouds'])}")


def _down(lab: Lab, args: argparse.Namespace) -> int:
    lifecycle.down(lab)
    return 0


def _exec(lab: Lab, args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise LabError("which command? scripts/lab exec NODE -- COMMAND...")
    return guest.execute(lab, lab.guest(args.node), command, timeout=args.timeout, stdin=sys.stdin.fileno())


def _cp(lab: Lab, args: argparse.Namespace) -> int:
    nodes = lab.guests()
    source_node, _, source = args.source.partition(":")
    target_node, _, target = args.destination.partition(":")
    if target_node in nodes and target and source_node not in nodes:
        guest.copy_in(lab, nodes[target_node], Path(args.source), target)
    elif source_node in nodes and source and target_node not in nodes:
        guest.copy_out(lab, nodes[source_node], source, Path(args.destination))
    else:
        raise LabError(f"exactly one of the two must be NODE:PATH; the guests are: {' '.join(nodes)}")
    return 0


def _cut(lab: Lab, args: argparse.Namespace) -> int:
    paths.cut(lab, lab.node(args.node), args.path, args.how)
    return 0


def _restore(lab: Lab, args: argparse.Namespace) -> int:
    paths.restore(lab, lab.node(args.node), args.path)
    return 0


def _reboot(lab: Lab, args: argparse.Namespace) -> int:
    lifecycle.reboot(lab, lab.guest(args.node), hard=args.hard)
    return 0


def _storage(lab: Lab) -> Storage:
    record = lab.settings().storage
    if record is None:
        raise LabError("this lab has no storage guest; start it with: scripts/lab up --storage-guest")
    return record


def _client(lab: Lab, args: argparse.Namespace) -> BlockStorage:
    if args.cinder == STORAGE:
        return storage.client(_storage(lab))
    return cinder_old.client(lab) if args.cinder == cinder_old.NAME else cinder.client(lab.settings())


def _process(args: argparse.Namespace) -> str:
    return cinder_old.PROCESS if args.cinder == cinder_old.NAME else cinder.PROCESS


def _cinder_stop(lab: Lab, args: argparse.Namespace) -> int:
    if args.cinder == STORAGE:
        storage.control(lab, _storage(lab), "stop")
    else:
        say("Cinder stopped" if cinder.stop(lab, _process(args)) else "Cinder was not running")
    return 0


def _cinder_start(lab: Lab, args: argparse.Namespace) -> int:
    if args.cinder == STORAGE:
        storage.start_cinder(lab, _storage(lab))
    elif args.cinder == cinder_old.NAME:
        cinder_old.start(lab)
    else:
        cinder.start(lab, lab.settings())
    return 0


def _cinder_pause(lab: Lab, args: argparse.Namespace) -> int:
    if args.cinder == STORAGE:
        storage.control(lab, _storage(lab), "pause")
    else:
        cinder.pause(lab, True, _process(args))
    return 0


def _cinder_resume(lab: Lab, args: argparse.Namespace) -> int:
    if args.cinder == STORAGE:
        storage.control(lab, _storage(lab), "resume")
    else:
        cinder.pause(lab, False, _process(args))
    return 0


def _keystone_start(lab: Lab, args: argparse.Namespace) -> int:
    keystone.start(lab, token_lifetime=args.token_lifetime)
    status = keystone.status(lab)
    assert status is not None
    _print_keystone(status)
    return 0


def _keystone_stop(lab: Lab, args: argparse.Namespace) -> int:
    say("Keystone stopped" if keystone.stop(lab) else "Keystone was not running")
    return 0


def _keystone_clouds(lab: Lab, args: argparse.Namespace) -> int:
    path = keystone.clouds_file(lab, in_node=args.in_node)
    if not path.exists():
        raise LabError(f"Keystone was never started in this lab; start it with: scripts/lab --name {lab.name} keystone start")
    print(path)
    return 0


def _keystone_token(lab: Lab, args: argparse.Namespace) -> int:
    print(keystone.token(lab, args.cloud))
    return 0


def _request(lab: Lab, args: argparse.Namespace) -> int:
    answer = _client(lab, args).request(
        args.method, args.path, args.body, microversion=args.microversion, timeout=args.timeout)
    print(f"HTTP {answer.status}", file=sys.stderr)
    if answer.body:
        print(answer.body if args.show_secrets else _SECRETS.sub(r'\1"<redacted>"', answer.body))
    return 0 if answer.status < 400 else 1


def _volume_create(lab: Lab, args: argparse.Namespace) -> int:
    api = _client(lab, args)
    volume = api.create_volume(args.size, args.type, args.volume_name)
    print(volume, flush=True)
    if args.wait:
        api.wait_for_volume(volume, args.timeout)
    return 0


def _volume_delete(lab: Lab, args: argparse.Namespace) -> int:
    _client(lab, args).delete_volume(args.id, args.timeout)
    return 0


def _volume_list(lab: Lab, args: argparse.Namespace) -> int:
    for volume in _client(lab, args).volumes():
        print(volume["id"], volume["status"], f"{volume['size']}G", volume["volume_type"], volume["name"] or "-")
    return 0


def _attachments(lab: Lab, args: argparse.Namespace) -> int:
    for item in _client(lab, args).attachments():
        print(item["id"], item["status"], "volume", item["volume_id"], "instance", item["instance"] or "-")
    return 0


def _logs(lab: Lab, args: argparse.Namespace) -> int:
    found = sorted(lab.logs.glob(f"{args.which}*.log" if args.which else "*.log"))
    if not found:
        raise LabError(f"no such log in {lab.logs}")
    for path in found:
        print(f"==> {path}\n{tail(path.read_text(errors='replace'), args.lines)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/lab", description=(
        "Linux nodes in QEMU, an iSCSI target, a real Cinder and a real Kubernetes API, all on this machine's loopback."))
    parser.add_argument("--name", default=os.environ.get("ATTACHD_LAB_NAME", "default"),
                        help="which lab; several can run at once (default: %(default)s)")
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")

    def add(name: str, work: _Work, text: str, into: Any = commands) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = into.add_parser(name, help=text, description=text)
        command.set_defaults(work=work)
        return command

    def group(name: str, text: str) -> Any:
        return commands.add_parser(name, help=text, description=text).add_subparsers(required=True, metavar="COMMAND")

    def limited(command: argparse.ArgumentParser, seconds: float) -> None:
        command.add_argument("--timeout", type=float, default=seconds, metavar="SECONDS",
                             help="time limit (default: %(default)s)")

    up = add("up", _up, "start the lab; what runs already stays, what is missing is built or installed")
    up.add_argument("--nodes", type=int, default=1, metavar="N", choices=range(1, networks.MAX_NODES + 1),
                    help=f"how many nodes, 1 to {networks.MAX_NODES} (default: 1)")
    up.add_argument("--fast-failover", action="store_true", help="new nodes give a dead path up after 3 s, not 15 s")
    up.add_argument("--find-multipaths", choices=["strict", "yes", "no", "greedy", "smart"],
                    help="multipath's setting in new nodes (default: Debian's)")
    up.add_argument("--storage-guest", action="store_true", help=(
        "add the guest `storage`: a second Cinder, real LVM and the kernel's LIO target on two networks of its own"))
    up.add_argument("--json", action="store_true", help="print the status as JSON")
    status = add("status", _status, "show what runs and how to reach it; exit code 3 if the lab is down")
    status.add_argument("--json", action="store_true", help="print JSON")
    add("down", _down, "end the lab and forget its volumes and nodes; what was built stays in the cache")

    execute = add("exec", _exec, "run a command in a node; input, output and exit code are its own (124: time limit)")
    limited(execute, 600)
    execute.add_argument("node", metavar="NODE")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...")
    for name in ("cp", "push"):
        copy = add(name, _cp, "copy a file or directory: FILE NODE:PATH, or NODE:PATH FILE")
        copy.add_argument("source", metavar="SOURCE")
        copy.add_argument("destination", metavar="DESTINATION")
    reboot = add("reboot", _reboot, "boot a node again; /etc/iscsi, /etc/multipath and /var/lib/attachd survive")
    reboot.add_argument("node", metavar="NODE")
    reboot.add_argument("--hard", action="store_true", help="cut its power; without this it is shut down in order")

    cut = add("cut-path", _cut, "cut a node's network path 1 or 2 to its storage, that of the storage guest too")
    cut.add_argument("--how", choices=["drop", "link"], default="drop", help=(
        "lose the iSCSI packets both ways, or take the links down (not eth0, which carries ssh and the API too, "
        "so path 1 to this machine's target stays)"))
    restore = add("restore-path", _restore, "heal a path, however it was cut")
    for command in (cut, restore):
        command.add_argument("node", metavar="NODE")
        command.add_argument("path", type=int, choices=[1, 2])

    def asking(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command.add_argument("--cinder", choices=["host", STORAGE, cinder_old.NAME], default="host", help=(
            "which one: this machine's (the default), that of the storage guest, or an older one (Debian 12's, on this "
            f"machine; `cinder start --cinder {cinder_old.NAME}` brings it)"))
        return command

    control = group("cinder", "control Cinder, or ask it something")
    asking(add("stop", _cinder_stop, "stop Cinder; volumes and targets stay", control))
    asking(add("start", _cinder_start, "start Cinder and wait until it is ready", control))
    asking(add("pause", _cinder_pause, "freeze Cinder: it accepts connections and answers nothing", control))
    asking(add("resume", _cinder_resume, "let a frozen Cinder go on", control))
    request = asking(add("request", _request,
                         "send a request; the body goes to standard output, the status to standard error", control))
    limited(request, 60)
    request.add_argument("--microversion", default=MICROVERSION, help="default: %(default)s")
    request.add_argument("--show-secrets", action="store_true", help="print passwords too")
    request.add_argument("method", metavar="METHOD")
    request.add_argument("path", metavar="PATH", help="below the project, like /attachments; or from /v3/")
    request.add_argument("body", nargs="?", metavar="JSON")

    identity = group("keystone", "a real Keystone, and the same Cinder for those who bring a token of it")
    begin = add("start", _keystone_start, "start Keystone and wait until it is ready; who there is was made beforehand", identity)
    begin.add_argument("--token-lifetime", type=int, default=keystone.TOKEN_LIFETIME, metavar="SECONDS",
                       help="how long its tokens last (default: %(default)s); one that runs with another is started again")
    add("stop", _keystone_stop, "stop Keystone; Cinder answers 503 to every token", identity)
    clouds = add("clouds", _keystone_clouds, (
        "print where the clouds.yaml is, readable by its owner only: a cloud for each user, scope and method"), identity)
    give = add("token", _keystone_token, "print a new token of one of the clouds", identity)
    give.add_argument("cloud", metavar="CLOUD")
    clouds.add_argument("--in-node", action="store_true", help="that for use in a lab node, where Keystone has another address")

    volume = group("volume", "create, delete or list volumes")
    create = asking(add("create", _volume_create, "create a volume and print its id", volume))
    create.add_argument("--size", type=int, default=1, metavar="GIB", help="default: 1")
    create.add_argument("--type", help="volume type; `scripts/lab status` names them")
    create.add_argument("--name", dest="volume_name", help="the volume's name")
    create.add_argument("--wait", action="store_true", help="wait until it is available")
    delete = asking(add("delete", _volume_delete, "delete a volume and wait until it is gone", volume))
    delete.add_argument("id", metavar="ID")
    for command in (create, delete):
        limited(command, 120)
    asking(add("list", _volume_list, "list all volumes", volume))
    asking(add("attachments", _attachments, "list all attachments"))

    kube = group("kube", "a real Kubernetes API: etcd, kube-apiserver, kubectl, service accounts' tokens")
    cli_kubernetes.add_commands(lambda name, work, text: add(name, work, text, kube))

    logs = add("logs", _logs, "show the ends of the logs")
    logs.add_argument("which", nargs="?", metavar="NAME", help="only those whose name begins so: cinder, keystone, tgtd, node1, storage, kube")
    logs.add_argument("-n", "--lines", type=int, default=40)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of the lab and return its exit code."""
    args = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that an ended `up` cleans up
    try:
        result: int = args.work(Lab(args.name), args)
        return result
    except LabError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
