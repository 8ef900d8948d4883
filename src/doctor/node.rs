use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Finding, Mend, Repair};
use crate::{
    host::{
        HostError, HostNamespaces, LinuxConfig, LinuxHost, MultipathdClient, Propagation, blocking,
        exec::{Command, Executor as _, Output, Program, RealExecutor, SEARCH_PATH},
        initiator_name,
    },
    model::{DeviceName, Iqn},
};

/// One look at files. They may lie on a file system that doesn't answer.
const READ_LIMIT: Duration = Duration::from_secs(3);
/// multipathd works on one question at a time.
const MULTIPATHD_LIMIT: Duration = Duration::from_secs(3);
/// A tool that is only asked for its version.
const TOOL_LIMIT: Duration = Duration::from_secs(3);
/// No file that is read here is longer; a log is read from its end.
const LONGEST: u64 = 1 << 20;

/// This node: where its things are, and who may read them.
#[derive(Debug)]
pub struct Node {
    pub(super) config: LinuxConfig,
    pub(super) namespaces: Option<HostNamespaces>,
    state_dir: PathBuf,
    name: String,
    exec: RealExecutor,
    multipathd: MultipathdClient,
    linux: LinuxHost,
}

impl Node {
    /// `namespaces` are the host's, where attachd is in a container.
    pub fn new(
        config: LinuxConfig,
        namespaces: Option<HostNamespaces>,
        exec: RealExecutor,
        state_dir: &Path,
    ) -> Self {
        let own_name = || sysinfo::System::host_name().unwrap_or_else(|_| "localhost".to_owned());
        Self {
            multipathd: MultipathdClient::new(&config.root),
            name: config.host.clone().unwrap_or_else(own_name),
            state_dir: state_dir.to_owned(),
            linux: LinuxHost::new(config.clone(), exec.clone()),
            config,
            namespaces,
            exec,
        }
    }

    /// Its name, as Cinder gets it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    pub(super) fn initiator_name(&self) -> Option<Iqn> {
        initiator_name(&self.config.root).ok()
    }

    /// A path of the host.
    pub(super) fn host(&self, path: &str) -> PathBuf {
        self.config.root.join(path)
    }

    pub(super) fn sysfs(&self, path: &str) -> PathBuf {
        self.config.sysfs.join(path)
    }

    /// What the engine sees of it.
    pub(super) fn linux(&self) -> &LinuxHost {
        &self.linux
    }

    /// Reads files on a thread of its own.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HostError> {
        blocking::limited(format!("reading {what}"), READ_LIMIT, move || Ok(work())).await
    }

    /// What multipathd answers; None in its place where nobody listens.
    pub(super) async fn multipathd(&self, question: &str) -> Asked {
        match tokio::time::timeout(MULTIPATHD_LIMIT, self.multipathd.show(question)).await {
            Ok(Ok(answer)) => Asked::Answered(answer),
            Ok(Err(HostError::MultipathdUnreachable { .. })) => Asked::Nobody,
            Ok(Err(error)) => Asked::Refused(error.to_string()),
            Err(_) => Asked::Silent,
        }
    }

    /// multipathd's opinion of each path, where it gives one in time.
    pub(super) async fn path_states(&self) -> BTreeMap<DeviceName, String> {
        let states = tokio::time::timeout(MULTIPATHD_LIMIT, self.linux().path_states()).await;
        states.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// The same for a person.
    pub(crate) async fn multipathd_says(&self, question: &str) -> String {
        match self.multipathd(question).await {
            Asked::Answered(answer) => answer,
            Asked::Refused(why) => why,
            Asked::Nobody => "nobody listens on multipathd's socket\n".to_owned(),
            Asked::Silent => "multipathd doesn't answer\n".to_owned(),
        }
    }

    /// What a tool says.
    pub(crate) async fn tool(&self, program: Program, args: &[&str]) -> Result<Output, HostError> {
        self.exec.run(Command::new(program, TOOL_LIMIT, args.iter().copied())).await
    }

    /// What starts a daemon of the host.
    pub(super) fn start(&self, unit: &'static str, daemon: &str) -> Mend {
        if self.has_systemd() {
            Mend::Repair(Repair::Start(unit))
        } else {
            Mend::Command(daemon.to_owned())
        }
    }

    /// What starts a daemon of the host anew.
    pub(super) fn restart(&self, unit: &str, daemon: &str) -> Mend {
        Mend::Command(if self.has_systemd() {
            format!("systemctl restart {unit}")
        } else {
            format!("pkill -x {daemon}; {daemon}")
        })
    }

    fn has_systemd(&self) -> bool {
        self.host("run/systemd/system").is_dir()
    }

    /// Does a repair on the host.
    ///
    /// # Errors
    /// The host refused.
    pub async fn repair(&self, repair: &Repair) -> Result<(), HostError> {
        repair.apply(&self.exec).await
    }

    pub(super) fn propagation(&self) -> Propagation {
        let host = self.config.mountinfo.clone();
        Propagation { own: self.config.own_mountinfo.clone().unwrap_or_else(|| host.clone()), host }
    }
}

/// multipathd's side of a question.
pub(super) enum Asked {
    Answered(String),
    Refused(String),
    /// Nobody listens.
    Nobody,
    /// It listens, and doesn't answer.
    Silent,
}

/// A file's text, or the last of it; empty where it can't be read.
pub(super) fn text(path: &Path) -> String {
    tail(path).unwrap_or_default()
}

/// Whether the host has a program, where attachd would look for it. Links are the host's own: an
/// absolute one leads elsewhere from a container.
pub(super) fn installed(root: &Path, program: &str) -> bool {
    let mut places = SEARCH_PATH.split(':').map(|place| root.join(&place[1..]).join(program));
    places.any(|path| path.symlink_metadata().is_ok())
}

/// A file's text, or the last of it.
pub(crate) fn tail(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    if length > LONGEST {
        file.seek(io::SeekFrom::Start(length - LONGEST))?;
    }
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The entries of a directory, in order; none where it can't be read.
pub(super) fn entries(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The files below a directory, not deeper than so many levels; links are not followed.
pub(crate) fn files_below(directory: &Path, depth: usize) -> Vec<PathBuf> {
    let below = |path: PathBuf| match path.symlink_metadata() {
        Ok(data) if data.is_file() => vec![path],
        Ok(data) if data.is_dir() && depth > 0 => files_below(&path, depth - 1),
        Ok(_) | Err(_) => Vec::new(),
    };
    entries(directory).into_iter().flat_map(below).collect()
}

/// A process of the host.
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) comm: String,
    pub(super) directory: PathBuf,
}

/// The processes below a `/proc`, kernel threads left out.
pub(super) fn processes(proc: &Path) -> Vec<Process> {
    let numbered = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
    let process = |directory: PathBuf| {
        let pid: u32 = numbered(&directory)?;
        // A kernel thread has no program; a zombie has none any more.
        fs::read_link(directory.join("exe")).ok()?;
        Some(Process { pid, comm: text(&directory.join("comm")).trim().to_owned(), directory })
    };
    entries(proc).into_iter().filter_map(process).collect()
}

/// Those of a name that were stopped by a signal, as arguments of `kill`.
pub(super) fn stopped(proc: &Path, names: &[&str]) -> Option<String> {
    let is_stopped = |process: &Process| {
        let status = text(&process.directory.join("status"));
        let state = status.lines().find_map(|line| line.strip_prefix("State:"));
        names.contains(&process.comm.as_str())
            && state.is_some_and(|state| state.trim().starts_with('T'))
    };
    let stopped = processes(proc).into_iter().filter(is_stopped);
    let pids: Vec<String> = stopped.map(|process| process.pid.to_string()).collect();
    (!pids.is_empty()).then(|| pids.join(" "))
}

/// The settings of an open-iscsi file: `name = value`, without comments.
pub(super) fn settings(text: &str) -> Vec<(&str, &str)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect()
}

/// What can't be read is unknown, not well.
pub(super) fn unread(error: &HostError) -> Finding {
    Finding::unknown(error.to_string())
}
