//! From an error to words on stderr and an exit code.

use std::{io, process::ExitCode};

use super::output;
use crate::{
    attach::{AttachError, LedgerError, Refusal, orphans::LookError},
    cinder::CinderError,
    cloud::CloudError,
    doctor::Verdict,
    host::HostError,
};

/// What every command's long help and the manual say.
pub(super) const HELP: &str = "\
Exit codes:
    0  done, or nothing to do
    1  another failure
    2  the command line or the cloud's settings are wrong
    3  refused: the volume, the node or the request does not allow it; nothing was changed, or it was taken back
    4  Cinder or Keystone failed, refused or could not be reached
    5  the node failed: a device, a session, a map, a mount
    6  something is left half done and is in the ledger; attachd detach VOLUME goes on from there
    7  the ledger can't be used, or another attachd works on the volume
    8  inspect, orphans: something doesn't fit, is left or could not be told; the output says what
   10  doctor: warnings
   11  doctor: something could not be seen
   12  doctor: something failed
  130  stopped by a signal; what was begun was taken back or is in the ledger";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Attach(Box<AttachError>),
    #[error(transparent)]
    Cinder(#[from] CinderError),
    #[error(transparent)]
    Cloud(#[from] CloudError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("{0}")]
    Usage(String),
    /// Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// Cinder answered, and what was waited for did not come.
    #[error("{0}")]
    Unsettled(String),
    #[error("{0}")]
    Other(String),
    /// What was looked at is printed, and not well.
    #[error("{}", .0.name())]
    Found(Verdict),
    /// What was printed says it all.
    #[error("something doesn't fit")]
    Unfit,
    #[error("could not write the result")]
    Write(#[from] io::Error),
}

impl From<LookError> for Failure {
    fn from(error: LookError) -> Self {
        match error {
            LookError::Ledger(error) => Self::Ledger(error),
            LookError::Host(error) => Self::Host(error),
        }
    }
}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        Self::Attach(Box::new(error))
    }
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Attach(error) => code_of(error),
            Self::Refused(_) => 3,
            Self::Cinder(_) | Self::Unsettled(_) => 4,
            Self::Host(_) => 5,
            Self::Ledger(_) => 7,
            Self::Unfit => 8,
            Self::Cloud(_) | Self::Usage(_) => 2,
            Self::Found(Verdict::Warning) => 10,
            Self::Found(Verdict::Unknown) => 11,
            Self::Found(Verdict::Failed) => 12,
            Self::Found(Verdict::Ok | Verdict::LeftOut) => 0,
            Self::Other(_) | Self::Write(_) => 1,
        }
    }

    fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Attach(error) => Some(error.reason()),
            Self::Cinder(error) => Some(error.reason()),
            Self::Cloud(error) => Some(error.reason()),
            Self::Host(error) => Some(error.reason()),
            Self::Ledger(error) => Some(error.reason()),
            Self::Usage(_)
            | Self::Refused(_)
            | Self::Unsettled(_)
            | Self::Found(_)
            | Self::Unfit
            | Self::Other(_)
            | Self::Write(_) => None,
        }
    }

    /// Prints the error and its causes, and gives the exit code. A reader that went away is no failure.
    pub(super) fn report(&self) -> ExitCode {
        match self {
            Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            Self::Found(_) | Self::Unfit => return ExitCode::from(self.code()),
            _ => {}
        }
        match self.reason() {
            Some(reason) => output::say(&format!("attachd: {self} [{reason}]")),
            None => output::say(&format!("attachd: {self}")),
        }
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            output::say(&format!("  because: {error}"));
            cause = error.source();
        }
        ExitCode::from(self.code())
    }
}

fn code_of(error: &AttachError) -> u8 {
    match error {
        AttachError::Refused(Refusal::StillHeld { .. }) | AttachError::NotRolledBack { .. } => 6,
        AttachError::Refused(_)
        | AttachError::Connection { .. }
        | AttachError::OwnedByOther { .. } => 3,
        AttachError::Cinder { .. } => 4,
        AttachError::Host { .. } => 5,
        AttachError::Ledger(_) => 7,
        AttachError::Stopped { .. } => 130,
        AttachError::NoProgress { .. } => 1,
    }
}

/// A wrong command line.
pub(super) fn usage(what: &str) -> ExitCode {
    Failure::Usage(what.to_owned()).report()
}
