use std::{
    fmt, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Serialize, Serializer};

use crate::host::{
    HostError, blocking,
    exec::{Command, Executor, Program, RealExecutor},
};

/// systemd waits for a daemon to be ready.
const LIMIT: Duration = Duration::from_mins(2);
const FILE_LIMIT: Duration = Duration::from_secs(5);

/// What `attachd doctor --fix` may do: none of it takes anything from anybody, whatever else is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repair {
    /// Load a kernel module.
    LoadModule(&'static str),
    /// Start a service that doesn't run.
    Start(&'static str),
    /// Keep others out of a directory of attachd's own.
    Protect(PathBuf),
    /// Keep others from reading a file with a secret in it.
    ProtectFile(PathBuf),
}

impl fmt::Display for Repair {
    /// The same as a command of the shell.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoadModule(module) => write!(f, "modprobe {module}"),
            Self::Start(unit) => write!(f, "systemctl start {unit}"),
            Self::Protect(path) => write!(f, "chmod 0700 {}", path.display()),
            Self::ProtectFile(path) => write!(f, "chmod 0600 {}", path.display()),
        }
    }
}

impl Serialize for Repair {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Repair {
    pub(super) async fn apply(&self, exec: &RealExecutor) -> Result<(), HostError> {
        match self {
            Self::LoadModule(module) => run(exec, Program::Modprobe, &[module], self).await,
            Self::Start(unit) => run(exec, Program::Systemctl, &["start", unit], self).await,
            Self::Protect(path) => mode(path, 0o700).await,
            Self::ProtectFile(path) => mode(path, 0o600).await,
        }
    }
}

async fn run(
    exec: &RealExecutor,
    program: Program,
    args: &[&str],
    doing: &Repair,
) -> Result<(), HostError> {
    let output = exec.run(Command::new(program, LIMIT, args.iter().copied())).await?;
    if output.success() { Ok(()) } else { Err(output.into_error(program, doing.to_string())) }
}

async fn mode(path: &Path, mode: u32) -> Result<(), HostError> {
    let path = path.to_owned();
    blocking::limited("changing a mode".to_owned(), FILE_LIMIT, move || {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .map_err(HostError::io("change the mode of", &path))
    })
    .await
}
