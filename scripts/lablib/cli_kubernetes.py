"""The commands below `scripts/lab kube`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, Callable, Optional

from lablib import kubernetes
from lablib.errors import LabError
from lablib.report import say
from lablib.state import Lab

_Work = Callable[[Lab, argparse.Namespace], int]
_ETCD, _API_SERVER = "etcd", "api-server"


def _start(lab: Lab, args: argparse.Namespace) -> int:
    if args.part and args.controller_manager:
        raise LabError(f"either {args.part} alone, or --controller-manager")
    if args.part == _ETCD:
        kubernetes.start_etcd(lab)
    elif args.part == _API_SERVER:
        kubernetes.start_api_server(lab)
    else:
        kubernetes.start(lab, controller_manager=args.controller_manager)
    _status(lab, args)
    return 0


def _stop(lab: Lab, args: argparse.Namespace) -> int:
    if args.part == _ETCD:
        stopped = [kubernetes.ETCD] if kubernetes.stop_etcd(lab) else []
    elif args.part == _API_SERVER:
        stopped = [kubernetes.API_SERVER] if kubernetes.stop_api_server(lab) else []
    else:
        stopped = kubernetes.stop(lab)
    say(f"stopped {', '.join(stopped)}" if stopped else "it was not running")
    return 0


def _pause(lab: Lab, args: argparse.Namespace) -> int:
    kubernetes.pause_api_server(lab, True)
    return 0


def _resume(lab: Lab, args: argparse.Namespace) -> int:
    kubernetes.pause_api_server(lab, False)
    return 0


def _status(lab: Lab, args: argparse.Namespace) -> int:
    kubernetes.record(lab)
    status = kubernetes.status(lab)
    assert status is not None
    if getattr(args, "json", False):
        print(json.dumps(status, indent=2))
    else:
        show(status)
    return 0 if status["pid"] and status["etcd_pid"] else 3


def show(status: dict[str, Any]) -> None:
    """Print what `kubernetes.status` tells."""

    def pid(number: Optional[int]) -> str:
        return "not running" if number is None else f"pid {number}"

    print(f"  kube     {pid(status['pid'])}{', paused' if status['paused'] else ''}; etcd {pid(status['etcd_pid'])}; "
          f"controller manager {pid(status['controller_manager_pid'])}")
    print(f"           {status['endpoint']} (in a node: {status['endpoint_in_guest']})")
    print(f"           administrator's kubeconfig: {status['kubeconfig']}")


def _kubectl(lab: Lab, args: argparse.Namespace) -> int:
    argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    command = kubernetes.kubectl_command(lab, argv)
    sys.stdout.flush()
    os.execv(command[0], command)  # terminal, signals and exit code are kubectl's own


def _kubeconfig(lab: Lab, args: argparse.Namespace) -> int:
    if args.service_account is None:
        if args.node:
            raise LabError("--node belongs to --service-account: an administrator has no Node")
        path = kubernetes.admin_kubeconfig(lab, in_node=args.in_node)
    else:
        namespace, _, name = args.service_account.partition("/")
        if not namespace or not name:
            raise LabError(f"{args.service_account!r} is not NAMESPACE/NAME")
        path = kubernetes.service_account_kubeconfig(lab, namespace, name, args.node, in_node=args.in_node)
    print(path)
    return 0


def add_commands(add: Callable[[str, _Work, str], argparse.ArgumentParser]) -> None:
    """Add the commands to a parser."""
    parts: dict[str, Any] = {"nargs": "?", "choices": [_ETCD, _API_SERVER], "help": "only this part (default: all)"}
    start = add("start", _start, "start what doesn't run, and wait until it is ready; what was stored is still there")
    start.add_argument("part", **parts)
    start.add_argument("--controller-manager", action="store_true", help=(
        "with kube-controller-manager: garbage collector, namespaces, service accounts, DaemonSets"))
    add("stop", _stop, "stop it; what was stored stays").add_argument("part", **parts)
    add("pause", _pause, "freeze the API server: it accepts connections and answers nothing")
    add("resume", _resume, "let a frozen API server go on")
    status = add("status", _status, "show what runs and how to reach it; exit code 3 if API server or etcd don't run")
    status.add_argument("--json", action="store_true", help="print JSON")
    kubectl = add("kubectl", _kubectl, "run kubectl as the administrator")
    kubectl.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- ARGUMENT...")
    config = add("kubeconfig", _kubeconfig, "write a kubeconfig, readable by its owner only, and print where it is")
    config.add_argument("--service-account", metavar="NAMESPACE/NAME", help=(
        "with a token of this ServiceAccount, which is made if it is missing (default: the administrator)"))
    config.add_argument("--node", metavar="NODE", help="the token is that of a Pod on this Node, which is made if it is missing")
    config.add_argument("--in-node", action="store_true", help="for use in a lab node, where the API server has another address")
