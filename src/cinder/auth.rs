use std::net::IpAddr;

use url::{Host, Url};

use super::CinderError;
use crate::model::Secret;

/// Who we are to the cloud, and so: which endpoint, and which token.
///
/// The one seam for identity services. Everything above asks here before each request
/// and holds neither; an identity that renews its tokens is another variant here.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Cinder with `auth_strategy = noauth`: it believes the token, `user:project`.
    NoAuth {
        /// The endpoint of the v3 API, without the project: `https://cloud/volume/v3`.
        endpoint: Url,
        /// The project's id.
        project_id: String,
        /// The user's name.
        user: String,
    },
}

/// What one request needs.
pub(super) struct Access {
    /// Where the version document is: `…/v3/`.
    pub(super) versions: Url,
    /// Where the project's resources are: `…/v3/<project>`.
    pub(super) project: Url,
    pub(super) token: Secret<String>,
}

impl Auth {
    /// Cinder without an identity service. The endpoint may end in `/v3` and in a project, as in a
    /// service catalog: both are put there anyway.
    ///
    /// # Errors
    /// [`CinderError::Configuration`]: the endpoint isn't an http(s) URL or carries credentials;
    /// the project or the user can't be part of a URL or a token.
    pub fn no_auth(endpoint: &str, project_id: &str, user: &str) -> Result<Self, CinderError> {
        let wrong = |what: String| Err(CinderError::Configuration { what });
        if project_id.is_empty()
            || !project_id
                .bytes()
                .all(|b| b == b'-' || b.is_ascii_digit() || b.is_ascii_lowercase())
        {
            return wrong(format!("{project_id:?} is not a project id: expected hex digits"));
        }
        if user.is_empty() || !user.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
            return wrong(format!("{user:?} can't be a user of Cinder without authentication"));
        }
        Ok(Self::NoAuth {
            endpoint: v3_endpoint(endpoint)?,
            project_id: project_id.to_owned(),
            user: user.to_owned(),
        })
    }

    // Async and fallible for the identity services to come: they ask another server.
    #[expect(clippy::unused_async, reason = "identity services ask another server")]
    pub(super) async fn access(&self) -> Result<Access, CinderError> {
        match self {
            Self::NoAuth { endpoint, project_id, user } => Ok(Access {
                versions: below(endpoint, "/"),
                project: below(endpoint, &format!("/{project_id}")),
                token: Secret::new(format!("{user}:{project_id}")),
            }),
        }
    }

    /// Whether the endpoint is plain HTTP, so that no certificate is ever looked at.
    pub(super) fn is_plain_http(&self) -> bool {
        match self {
            Self::NoAuth { endpoint, .. } => endpoint.scheme() == "http",
        }
    }

    /// Whether the endpoint is on this machine, where no proxy can help.
    pub(super) fn is_loopback(&self) -> bool {
        match self {
            Self::NoAuth { endpoint, .. } => match endpoint.host() {
                Some(Host::Ipv4(v4)) => IpAddr::V4(v4).is_loopback(),
                Some(Host::Ipv6(v6)) => IpAddr::V6(v6).is_loopback(),
                Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
                None => false,
            },
        }
    }
}

/// A URL with something put to the end of its path.
pub(super) fn below(url: &Url, path: &str) -> Url {
    let mut below = url.clone();
    below.set_path(&format!("{}{path}", url.path().trim_end_matches('/')));
    below
}

fn v3_endpoint(text: &str) -> Result<Url, CinderError> {
    let wrong = |what: &str| CinderError::Configuration {
        // Not quoted: it may carry a password.
        what: format!("Cinder's endpoint {what}: expected such as https://cloud.example/volume"),
    };
    let mut url = Url::parse(text).map_err(|_| wrong("is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong("is not an http or https URL"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("carries credentials"));
    }
    url.set_query(None);
    url.set_fragment(None);
    let segments: Vec<&str> = url.path().split('/').filter(|s| !s.is_empty()).collect();
    let root = match segments.as_slice() {
        [root @ .., "v3"] | [root @ .., "v3", _] | root => root,
    };
    let path: String = root.iter().chain(&["v3"]).flat_map(|segment| ["/", segment]).collect();
    url.set_path(&path);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_endpoint_is_found_however_it_is_written() {
        for (text, expected) in [
            ("http://127.0.0.1:8776", "http://127.0.0.1:8776/v3/c0ffee"),
            ("http://127.0.0.1:8776/", "http://127.0.0.1:8776/v3/c0ffee"),
            ("http://127.0.0.1:8776/v3/", "http://127.0.0.1:8776/v3/c0ffee"),
            ("http://127.0.0.1:8776/v3/c0ffee", "http://127.0.0.1:8776/v3/c0ffee"),
            ("https://cloud/volume", "https://cloud/volume/v3/c0ffee"),
            ("https://cloud/volume/v3", "https://cloud/volume/v3/c0ffee"),
        ] {
            let access = Auth::no_auth(text, "c0ffee", "admin").unwrap().access().await.unwrap();
            assert_eq!(access.project.as_str(), expected, "{text}");
            assert!(access.versions.path().ends_with("/v3/"), "{}", access.versions);
            assert_eq!(access.token.expose(), "admin:c0ffee");
        }
    }

    #[test]
    fn what_cannot_be_an_endpoint_is_refused_and_its_password_is_not_quoted() {
        for bad in ["", "cloud", "ftp://cloud", "unix:/run/cinder", "http://admin:hunter2@cloud"] {
            let error = Auth::no_auth(bad, "c0ffee", "admin").unwrap_err();
            assert!(matches!(error, CinderError::Configuration { .. }), "{bad}");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
        for project in ["", "../x", "a/b", "A b", "x?y"] {
            assert!(Auth::no_auth("http://cloud", project, "admin").is_err(), "{project:?}");
        }
        for user in ["", "a:b", "a\nb"] {
            assert!(Auth::no_auth("http://cloud", "c0ffee", user).is_err(), "{user:?}");
        }
    }

    #[test]
    fn loopback_is_recognised_in_all_its_forms() {
        for (text, expected) in [
            ("http://127.0.0.1:8776", true),
            ("http://127.8.0.1", true),
            ("http://[::1]:8776", true),
            ("http://localhost", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example", false),
        ] {
            let auth = Auth::no_auth(text, "c0ffee", "admin").unwrap();
            assert_eq!(auth.is_loopback(), expected, "{text}");
        }
    }
}
