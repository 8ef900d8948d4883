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
        let own = Path::new("/proc/self");
        let checked = Self::by_name(root).and_then(|host| {
            may_enter(own)?;
            host.fits(own)?;
            nsenter_is_there()?;
            Ok(Some(host))
        });
        checked.map_err(|why| HostError::HostRoot { root: root.to_owned(), why })
    }

    fn by_name(root: &Path) -> Result<Self, String> {
        match (root.file_name(), root.parent()) {
            (Some(name), Some(process)) if name == "root" && root.is_absolute() => {
                Ok(Self { process: process.to_owned() })
            }
            _ => Err("it is not the root of a process, such as /proc/1/root".to_owned()),
        }
    }

    /// It is another mount namespace than attachd's, and the others are attachd's, too.
    fn fits(&self, own: &Path) -> Result<(), String> {
        if self.is_shared(own, "mnt")? {
            return Err(
                "that is attachd's own mount namespace; a Pod needs hostPID: true, and on the host itself leave --host-root out"
                    .to_owned(),
            );
        }
        for (namespace, field) in SHARED {
            if !self.is_shared(own, namespace)? {
                return Err(format!(
                    "attachd is not in the host's {namespace} namespace; the Pod needs {field}"
                ));
            }
        }
        Ok(())
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

fn nsenter_is_there() -> Result<(), String> {
    if SEARCH_PATH.split(':').any(|directory| Path::new(directory).join(NSENTER).is_file()) {
        return Ok(());
    }
    Err(format!(
        "{NSENTER} is not installed in this container (looked in {SEARCH_PATH}); it is in util-linux"
    ))
}

/// Whether this process may do what the kernel asks of one that enters a mount namespace.
fn may_enter(own: &Path) -> Result<(), String> {
    let status = Process::new_with_root(own.to_owned()).and_then(|process| process.status());
    let effective =
        status.map_err(|error| format!("could not read its own status: {error}"))?.capeff;
    match CAPABILITIES.iter().find(|(_, bit)| effective & (1 << bit) == 0) {
        None => Ok(()),
        Some((name, _)) => Err(format!(
            "attachd lacks {name}; run it as root, in a Pod with securityContext.privileged: true"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A process as `/proc` shows it, in these namespaces.
    fn process(directory: &Path, name: &str, namespaces: &[(&str, u32)]) -> PathBuf {
        let process = directory.join(name);
        fs::create_dir_all(process.join("ns")).unwrap();
        for (namespace, number) in namespaces {
            let is = format!("{namespace}:[{number}]");
            symlink(is, process.join("ns").join(namespace)).unwrap();
        }
        process
    }

    #[test]
    fn on_the_host_itself_there_is_nothing_to_enter() {
        assert_eq!(HostNamespaces::of(Path::new("/")).unwrap(), None);
    }

    #[test]
    fn only_the_root_of_a_process_tells_its_namespaces() {
        for root in ["/host", "proc/1/root", "/proc/1/root/mnt", ".."] {
            let error = HostNamespaces::of(Path::new(root)).unwrap_err();
            assert_eq!(error.reason(), "HostRootUnusable");
            assert!(error.to_string().contains("such as /proc/1/root"), "{error}");
        }
        let host = HostNamespaces::by_name(Path::new("/proc/1/root")).unwrap();
        assert_eq!(host.path("mnt"), Path::new("/proc/1/ns/mnt"));
        assert_eq!(host.root(), Path::new("/proc/1/root"));
        assert_eq!(host.mountinfo(), Path::new("/proc/1/mountinfo"));
    }

    #[test]
    fn what_a_pod_lacks_is_told_by_its_namespaces() {
        let directory = tempfile::tempdir().unwrap();
        let all = |mnt, pid, net, user| [("mnt", mnt), ("pid", pid), ("net", net), ("user", user)];
        let host = process(directory.path(), "1", &all(1, 1, 1, 1));
        let host = HostNamespaces::of_process(host);
        for (number, (namespaces, words)) in [
            (all(2, 1, 1, 1), None),
            (all(1, 1, 1, 1), Some("own mount namespace")),
            (all(2, 2, 1, 1), Some("hostPID: true")),
            (all(2, 1, 2, 1), Some("hostNetwork: true")),
            (all(2, 1, 1, 2), Some("hostUsers: true")),
        ]
        .into_iter()
        .enumerate()
        {
            let own = process(directory.path(), &format!("own-{number}"), &namespaces);
            let why = host.fits(&own).err();
            match words {
                None => assert_eq!(why, None),
                Some(words) => assert!(why.unwrap().contains(words), "{words}"),
            }
        }
        let gone = HostNamespaces::of_process(directory.path().join("none"));
        let own = process(directory.path(), "own", &all(2, 1, 1, 1));
        assert!(gone.fits(&own).unwrap_err().contains("is it a process of the host?"));
    }
}
