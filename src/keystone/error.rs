use std::time::Duration;

use super::{Offered, Wanted};
use crate::{
    http::{Cause, HttpError},
    model::Retry,
};

/// Keystone refused, failed, or could not be asked: there is no token, or it is good for nothing.
/// Carries no secret.
#[derive(Debug, thiserror::Error)]
pub enum KeystoneError {
    /// No HTTP client.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// No connection.
    #[error(
        "cannot reach Keystone at {url}; check auth_url, the network, the proxies and the server's certificate"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// No whole answer within the time limit.
    #[error("Keystone at {url} gave no answer within {limit:.1?}; see its log and its load")]
    NoAnswer {
        /// Where.
        url: String,
        /// The time limit.
        limit: Duration,
        /// Where the time went, or how the connection broke.
        #[source]
        source: Cause,
    },
    /// 401.
    #[error(
        "Keystone at {url} does not accept {who}: {answer}; check the user, the secret, the project and their domains"
    )]
    Unauthorized {
        /// Where.
        url: String,
        /// Who, and for what.
        who: String,
        /// What Keystone said.
        answer: String,
    },
    /// Another 4xx.
    #[error("Keystone at {url} refused to make a token for {who}: {answer}; see its words")]
    Refused {
        /// Where.
        url: String,
        /// Who, and for what.
        who: String,
        /// What Keystone said.
        answer: String,
    },
    /// 5xx, and 429.
    #[error("Keystone at {url} failed to make a token: {answer}; its log has the reason")]
    Failed {
        /// Where.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What Keystone said.
        answer: String,
    },
    /// The answer is not what Keystone's API promises.
    #[error(
        "what answered at {url} is not Keystone's v3 API, or not as documented: {what}; check auth_url and the proxies before it"
    )]
    Nonsense {
        /// Where.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// The catalog lacks what is wanted.
    #[error(
        "Keystone's catalog has no {wanted} that attachd can use: {offered}; {}", offered.advice()
    )]
    NoEndpoint {
        /// What was looked for.
        wanted: Box<Wanted>,
        /// What there is.
        offered: Box<Offered>,
    },
}

impl KeystoneError {
    /// The CamelCase word that conditions, events and metrics use.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Http(error) => error.reason(),
            Self::Unreachable { .. } | Self::NoAnswer { .. } => "KeystoneUnreachable",
            Self::Unauthorized { .. } => "KeystoneUnauthorized",
            Self::Refused { .. } => "KeystoneRefused",
            Self::Failed { .. } => "KeystoneFault",
            Self::Nonsense { .. } => "KeystoneNonsense",
            Self::NoEndpoint { .. } => "NoEndpoint",
        }
    }

    /// When to try again. Refused credentials too: they are read anew, and may have been changed.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Http(_) => Retry::OnChange,
            Self::Unreachable { .. }
            | Self::NoAnswer { .. }
            | Self::Unauthorized { .. }
            | Self::Refused { .. }
            | Self::Failed { .. }
            | Self::Nonsense { .. }
            | Self::NoEndpoint { .. } => Retry::Backoff,
        }
    }

    /// Whether asking again in a moment may help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoAnswer { .. } => true,
            Self::Failed { status, .. } => matches!(status, 429 | 502 | 503 | 504),
            Self::Http(_)
            | Self::Unauthorized { .. }
            | Self::Refused { .. }
            | Self::Nonsense { .. }
            | Self::NoEndpoint { .. } => false,
        }
    }
}
