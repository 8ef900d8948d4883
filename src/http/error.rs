use std::path::PathBuf;

/// What the HTTP client says, for the chain of causes only: what matters of it is in the variant.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// No HTTP client can be made; nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A certificate's file can't be read.
    #[error("cannot read {what} {path}; check the path and its rights", path = path.display())]
    Unreadable {
        /// Which one.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A certificate's file holds something else.
    #[error("{what} {path} can't be used: expected {expected} in PEM", path = path.display())]
    NotPem {
        /// Which one.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The client can't be made.
    #[error("cannot make an HTTP client; are CA certificates installed (ca-certificates)?")]
    NoClient(#[source] Cause),
}

impl HttpError {
    /// The CamelCase word that conditions, events and metrics use.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } | Self::NotPem { .. } => "UnusableCertificate",
            Self::NoClient(_) => "NoHttpClient",
        }
    }
}
