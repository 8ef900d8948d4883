use std::{fmt, sync::Arc, time::Duration};

use super::{Microversion, Operation};
use crate::{
    http::{Cause, HttpError},
    keystone::KeystoneError,
    model::Retry,
};

/// Cinder refused, failed, or could not be asked. Carries no secret: neither tokens nor bodies.
#[derive(Debug, thiserror::Error)]
pub enum CinderError {
    /// The settings can't be used; nothing was sent.
    #[error("{what}")]
    Configuration {
        /// What is wrong.
        what: String,
    },
    /// No HTTP client can be made.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Keystone gave no token, or no endpoint; nothing was sent to Cinder.
    #[error(transparent)]
    Keystone(Arc<KeystoneError>),
    /// No connection; nothing was sent.
    #[error(
        "cannot reach Cinder at {url} to {operation}; check the endpoint, the network and the server's certificate"
    )]
    Unreachable {
        /// What was asked.
        operation: Operation,
        /// Where.
        url: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// The connection broke before the answer was complete.
    #[error(
        "the connection to Cinder at {url} broke before it answered our request {request_id} to {operation}; see Cinder's and its proxy's log for that id"
    )]
    Disconnected {
        /// What was asked.
        operation: Operation,
        /// Where.
        url: String,
        /// The id that we gave the request.
        request_id: String,
        /// How it broke.
        #[source]
        source: Cause,
    },
    /// No answer within the time limit.
    #[error(
        "Cinder at {url} did not answer our request {request_id} to {operation} within {limit:.1?}; see its log for that id, and the state of the volume's back end"
    )]
    TimedOut {
        /// What was asked.
        operation: Operation,
        /// Where.
        url: String,
        /// The id that we gave the request.
        request_id: String,
        /// The time limit.
        limit: Duration,
        /// Where the time went.
        #[source]
        source: Cause,
    },
    /// 401.
    #[error("Cinder does not accept our credentials to {0}; check user, project and secret")]
    Unauthorized(Box<Answered>),
    /// 403.
    #[error(
        "Cinder's policy does not let us {0}; give the user the role member in the volume's project"
    )]
    Forbidden(Box<Answered>),
    /// 404, from Cinder itself.
    #[error("Cinder finds nothing to {0}; check the id and that it belongs to our project")]
    NotFound(Box<Answered>),
    /// 400 and other refusals: the request is wrong, or the volume's status does not allow it now.
    #[error("Cinder refused to {0}; see the volume's status and its other attachments")]
    Refused(Box<Answered>),
    /// 409.
    #[error("Cinder refused to {0}; see the volume's status and its other attachments")]
    Conflict(Box<Answered>),
    /// Cinder asks Nova before it deletes a connected attachment that names an instance
    /// (CVE-2023-2088), and got no consent: 409 where Nova uses it, 500 where Nova could not tell.
    #[error("Cinder did not get Nova's consent to {answered}; {}", nova_advice(answered.status, instance))]
    HeldByNova {
        /// The instance that the attachment names.
        instance: String,
        /// What Cinder said.
        answered: Box<Answered>,
    },
    /// 429, 413 and 503: not now.
    #[error("Cinder is too busy to {answered}; try again later, and see its limits and its load")]
    Overloaded {
        /// How long Cinder wants us to wait.
        retry_after: Option<Duration>,
        /// What Cinder said.
        answered: Box<Answered>,
    },
    /// 5xx.
    #[error("Cinder failed to {0}; its log has the reason under the request id")]
    ServerFault(Box<Answered>),
    /// The answer is not what Cinder's API promises.
    #[error(
        "what answered our request to {answered} is not Cinder's API, or not as documented: {what}; check the endpoint and the proxies before it"
    )]
    Nonsense {
        /// What is wrong with it.
        what: String,
        /// What came.
        answered: Box<Answered>,
    },
    /// The cloud lacks the microversion.
    #[error("this Cinder is too old to {operation}: it offers API {offered} at most, and {} needs {needs}; {}", needs_for(*needs), too_old_advice(*needs))]
    TooOld {
        /// What was asked.
        operation: Operation,
        /// The version that it takes.
        needs: Microversion,
        /// The highest that the cloud (or our configuration) offers.
        offered: Microversion,
    },
}

fn nova_advice(status: u16, instance: &str) -> String {
    if status == 409 {
        format!(
            "detach the volume from server {instance} with Nova: openstack server remove volume"
        )
    } else {
        format!(
            "the attachment names the instance {instance}, and Cinder could not ask Nova about it: use credentials with the role service, or see that Nova answers"
        )
    }
}

fn needs_for(needs: Microversion) -> &'static str {
    match needs {
        Microversion::MODE => "a mode for the attachment",
        Microversion::COMPLETE => "os-complete",
        _ => "attaching without Nova",
    }
}

fn too_old_advice(needs: Microversion) -> &'static str {
    match needs {
        Microversion::MODE => {
            "leave it out and give it in the connector, which every version reads; or upgrade to Rocky or later"
        }
        Microversion::COMPLETE => {
            "the volume works but stays attaching in Cinder, never in-use; upgrade to Queens or later"
        }
        _ => "upgrade the cloud to Ocata or later",
    }
}

/// An answer of Cinder (or of what stands in its place), as far as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// What was asked.
    pub operation: Operation,
    /// The HTTP status.
    pub status: u16,
    /// Cinder's own words on one bounded line; empty where it gave none.
    pub message: String,
    /// Cinder's request id, to find it in its log.
    pub request_id: Option<String>,
}

/// `reserve volume …: <message> (HTTP 400, req-…)`.
impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message.trim_end_matches('.'))?;
        }
        write!(f, " (HTTP {}", self.status)?;
        match &self.request_id {
            Some(id) => write!(f, ", {id})"),
            None => f.write_str(")"),
        }
    }
}

impl CinderError {
    /// The CamelCase word that conditions, events and metrics use.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Configuration { .. } => "CinderMisconfigured",
            Self::Http(error) => error.reason(),
            Self::Keystone(error) => error.reason(),
            Self::Unreachable { .. } => "CinderUnreachable",
            Self::Disconnected { .. } => "CinderDisconnected",
            Self::TimedOut { .. } => "CinderTimedOut",
            Self::Unauthorized(_) => "CinderUnauthorized",
            Self::Forbidden(_) => "CinderForbidden",
            Self::NotFound(_) => "CinderNotFound",
            Self::Refused(_) => "CinderRefused",
            Self::Conflict(_) => "CinderConflict",
            Self::HeldByNova { .. } => "HeldByNova",
            Self::Overloaded { .. } => "CinderOverloaded",
            Self::ServerFault(_) => "CinderFault",
            Self::Nonsense { .. } => "CinderNonsense",
            Self::TooOld { .. } => "CinderTooOld",
        }
    }

    /// When to try again. A refusal may be the state of the volume, which changes without telling
    /// us, so it is worth a later try; a lack of rights isn't.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Configuration { .. }
            | Self::Http(_)
            | Self::TooOld { .. } => Retry::OnChange,
            Self::Keystone(error) => error.retry(),
            Self::NotFound(answered) => match answered.operation {
                // The volume: somebody must name another one.
                Operation::Discover
                | Operation::ShowVolume(_)
                | Operation::Reserve(_)
                | Operation::Create(_) => Retry::OnChange,
                // The attachment (or a page's marker) went away while we looked.
                Operation::Update(_)
                | Operation::Complete(_)
                | Operation::Show(_)
                | Operation::List
                | Operation::Delete(_) => Retry::Now,
            },
            Self::Unreachable { .. }
            | Self::Disconnected { .. }
            | Self::TimedOut { .. }
            // Tokens and credentials are renewed, roles given.
            | Self::Unauthorized(_)
            | Self::Forbidden(_)
            | Self::Refused(_)
            | Self::Conflict(_)
            | Self::HeldByNova { .. }
            | Self::Overloaded { .. }
            | Self::ServerFault(_)
            | Self::Nonsense { .. } => Retry::Backoff,
        }
    }

    /// Whether Cinder certainly did not do what was asked. Where it may have done it all the same, a
    /// reservation may exist whose id nobody knows.
    pub fn nothing_was_created(&self) -> bool {
        match self {
            Self::Configuration { .. }
            | Self::Http(_)
            | Self::Keystone(_)
            | Self::Unreachable { .. }
            | Self::Unauthorized(_)
            | Self::Forbidden(_)
            | Self::NotFound(_)
            | Self::Refused(_)
            | Self::Conflict(_)
            | Self::HeldByNova { .. }
            | Self::Overloaded { .. }
            | Self::TooOld { .. } => true,
            Self::Disconnected { .. } | Self::TimedOut { .. } | Self::ServerFault(_) => false,
            // A refusal that isn't Cinder's came from somebody before it.
            Self::Nonsense { answered, .. } => (300..500).contains(&answered.status),
        }
    }

    /// What was answered, where something was.
    pub fn answered(&self) -> Option<&Answered> {
        match self {
            Self::Unauthorized(answered)
            | Self::Forbidden(answered)
            | Self::NotFound(answered)
            | Self::Refused(answered)
            | Self::Conflict(answered)
            | Self::ServerFault(answered)
            | Self::HeldByNova { answered, .. }
            | Self::Overloaded { answered, .. }
            | Self::Nonsense { answered, .. } => Some(answered),
            Self::Configuration { .. }
            | Self::Http(_)
            | Self::Keystone(_)
            | Self::Unreachable { .. }
            | Self::Disconnected { .. }
            | Self::TimedOut { .. }
            | Self::TooOld { .. } => None,
        }
    }

    /// The request id to look for in Cinder's log: Cinder's own, or ours where none came back.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::Disconnected { request_id, .. } | Self::TimedOut { request_id, .. } => {
                Some(request_id)
            }
            _ => self.answered()?.request_id.as_deref(),
        }
    }
}
