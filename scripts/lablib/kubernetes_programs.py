"""The programs of the lab's Kubernetes: built once from the Go module beside this file, or those that a test set-up brings."""

from __future__ import annotations

import os
from pathlib import Path

from lablib import golang
from lablib.errors import LabError

_MODULE = Path(__file__).parent / "kubernetes_tools"
_VERSION = "v1.36.4"
_LDFLAGS = f"-X k8s.io/component-base/version.gitVersion={_VERSION}"

_PACKAGES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
# What controller-runtime's envtest keeps in the directory that this variable names.
_ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
_ASSETS = ("etcd", "kube-apiserver", "kubectl")


def program(name: str) -> Path:
    """Return one of etcd, kube-apiserver, kube-controller-manager and kubectl; build it first if it isn't there."""
    assets = os.environ.get(_ASSETS_VARIABLE)
    if assets and name in _ASSETS:
        path = Path(assets).absolute() / name
        if not os.access(path, os.X_OK):
            raise LabError(f"${_ASSETS_VARIABLE} is set, but {path} is no program; install it there, or unset the variable "
                           f"to have the lab build {name} {_VERSION}")
        return path
    return golang.tool(_MODULE, _PACKAGES[name], name, ldflags=_LDFLAGS)
