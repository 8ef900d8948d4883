//! The host's namespaces, seen from a container.
//!
//! A container that drives the host shares its PID, network and user namespace, and enters its mount
//! and IPC namespace for each program that it runs (`setns(2)`, by nsenter).

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use procfs::process::Process;

use super::{
    HostError,
    exec::{NSENTER, SEARCH_PATH},
};

/// Namespaces that attachd itself must share with the host, and the Pod's field for each: iscsid's and
/// multipathd's sockets and kernel events are the network namespace's, processes are named by their id.
const SHARED: [(&str, &str); 3] =
    [("pid", "hostPID: true"), ("net", "hostNetwork: true"), ("user", "hostUsers: true")];

/// What `setns(2)` to a mount namespace and looking into other processes take (`capabilities(7)`).
const CAPABILITIES: [(&str, u32); 3] =
    [("CAP_SYS_CHROOT", 18), ("CAP_SYS_PTRACE", 19), ("CAP_SYS_ADMIN", 21)];

/// The namespaces of one of the host's processes, such as `/proc/1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNamespaces {
    process: PathBuf,
}

impl HostNamespaces {
    /// The namespaces that a host root belongs to: `/proc/1/root` is in those of `/proc/1/ns`. None for
    /// `/`: attachd runs on the host itself.
    ///
    /// # Errors
    /// It is no such directory, or attachd can't do its work from where it is.
    pub fn of(root: &Path) -> Result<Option<Self>, HostError> {
        if root == Path::new("/") {
            return Ok(None);
        }
        let unusable = |why| HostError::HostRoot { root: root.to_owned(), why };
        Self::seen_from(Path::new("/proc/self"), root).map(Some).map_err(unusable)
    }

    fn seen_from(own: &Path, root: &Path) -> Result<Self, String> {
        let process = match (root.file_name(), root.parent()) {
            (Some(name), Some(parent)) if name == "root" && root.is_absolute() => parent,
            _ => return Err("it is not the root of a process, such as /proc/1/root".to_owned()),
        };
        let host = Self { process: process.to_owned() };
        may_enter(own)?;
        if host.is_shared(own, "mnt")? {
            return Err(
                "that is attachd's own mount namespace; a Pod needs hostPID: true, and on the host itself leave --host-root out"
                    .to_owned(),
            );
        }
        for (namespace, field) in SHARED {
            if !host.is_shared(own, namespace)? {
                return Err(format!(
                    "attachd is not in the host's {namespace} namespace; the Pod needs {field}"
                ));
            }
        }
        if !SEARCH_PATH.split(':').any(|directory| Path::new(directory).join(NSENTER).is_file()) {
            return Err(format!(
                "{NSENTER} is not installed in this container (looked in {SEARCH_PATH}); it is in util-linux"
            ));
        }
        Ok(host)
    }

    #[cfg(test)]
    pub(crate) fn of_process(process: impl Into<PathBuf>) -> Self {
        Self { process: process.into() }
    }

    /// The file of a namespace.
    pub(crate) fn path(&self, namespace: &str) -> PathBuf {
        self.process.join("ns").join(namespace)
    }

    /// The host's root directory.
    pub(crate) fn root(&self) -> PathBuf {
        self.process.join("root")
    }

    /// The host's mounts.
    pub(crate) fn mountinfo(&self) -> PathBuf {
        self.process.join("mountinfo")
    }

    fn is_shared(&self, own: &Path, namespace: &str) -> Result<bool, String> {
        let read = |path: PathBuf| {
            fs::read_link(&path).map_err(|error| {
                let hint = match error.kind() {
                    ErrorKind::NotFound => "is it a process of the host? A Pod needs hostPID: true",
                    _ => "a Pod needs securityContext.privileged: true",
                };
                format!("could not read {}: {error}; {hint}", path.display())
            })
        };
        Ok(read(self.path(namespace))? == read(own.join("ns").join(namespace))?)
    }
}

/// Whether this process may do what the kernel asks of one that enters a mount namespace.
fn may_enter(own: &Path) -> Result<(), String> {
    let status = Process::new_with_root(own.to_owned()).and_then(|process| process.status());
    let effective = status.map_err(|error| format!("could not read its own status: {error}"))?.capeff;
    match CAPABILITIES.iter().find(|(_, bit)| effective & (1 << bit) == 0) {
        None => Ok(()),
        Some((name, _)) => Err(format!(
            "attachd lacks {name}; run it as root, in a Pod with securityContext.privileged: true"
        )),
    }
}
