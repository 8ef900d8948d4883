use super::{LedgerError, Refusal};
use crate::{
    cinder::CinderError,
    host::HostError,
    model::{ConnectionInfoError, Retry, VolumeId},
};

/// Why a volume is not as asked.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The plan refuses to go on; nothing was changed by the refusal.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Cinder didn't do its part.
    #[error("could not {step}")]
    Cinder {
        /// The step, in words.
        step: String,
        /// What came back.
        source: CinderError,
    },
    /// The node didn't do its part.
    #[error("could not {step}")]
    Host {
        /// The step, in words.
        step: String,
        /// What came back.
        source: HostError,
    },
    /// Cinder's answer can't be used.
    #[error("could not {step}")]
    Connection {
        /// The step, in words.
        step: String,
        /// Why.
        source: ConnectionInfoError,
    },
    /// The ledger.
    #[error("could not keep the ledger")]
    Ledger(#[from] LedgerError),
    /// A step was done, and everything looks as before.
    #[error("{step}: done, and nothing changed by it; attachd stops rather than doing it for ever")]
    NoProgress {
        /// The step, in words.
        step: String,
    },
    /// Somebody asked to stop.
    #[error("stopped as asked, before: {before}")]
    Stopped {
        /// What would have come next.
        before: String,
    },
    /// Another requester has the volume on this node.
    #[error("volume {volume} was attached to this node by {owner}, and is only detached by it")]
    OwnedByOther {
        /// Which volume.
        volume: VolumeId,
        /// Who.
        owner: String,
    },
    /// The attach failed, and so did taking it back.
    #[error(
        "the attach failed ({attach}), and taking it back did too; what is left is in the ledger: run attachd detach {volume}"
    )]
    NotRolledBack {
        /// Which volume.
        volume: VolumeId,
        /// The first error, with its chain.
        attach: String,
        /// Why it could not be taken back.
        #[source]
        rollback: Box<AttachError>,
    },
}

impl AttachError {
    /// The CamelCase word that conditions, events and metrics use.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.reason(),
            Self::Cinder { source, .. } => source.reason(),
            Self::Host { source, .. } => source.reason(),
            Self::Connection { .. } => "UnsupportedConnection",
            Self::Ledger(error) => error.reason(),
            Self::NoProgress { .. } => "NoProgress",
            Self::Stopped { .. } => "Stopped",
            Self::OwnedByOther { .. } => "OwnedByOther",
            Self::NotRolledBack { .. } => "NotRolledBack",
        }
    }

    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Refused(refusal) => refusal.retry(),
            Self::Cinder { source, .. } => source.retry(),
            Self::Host { source, .. } => source.retry(),
            Self::Ledger(error) => error.retry(),
            Self::NoProgress { .. } | Self::NotRolledBack { .. } => Retry::Backoff,
            Self::Stopped { .. } | Self::OwnedByOther { .. } | Self::Connection { .. } => {
                Retry::OnChange
            }
        }
    }

    /// The error with all its causes, in one line.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
