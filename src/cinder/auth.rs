use std::sync::Arc;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::CinderError;
use crate::{
    http::Watch,
    keystone::{KeystoneError, Session, Token, Wanted},
    model::Secret,
};

const AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
const SERVICE_TOKEN: HeaderName = HeaderName::from_static("x-service-token");

/// Who we are to the cloud, and so: which endpoint, and which token.
///
/// Everything above asks here before each request and holds neither.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Cinder with `auth_strategy = noauth`: it believes the token, `user:project`.
    NoAuth(Standalone),
    /// The same behind a proxy that asks for a password (HTTP basic).
    Basic {
        /// Which Cinder.
        standalone: Standalone,
        /// The password of its user.
        password: Secret<String>,
    },
    /// Keystone: a token, and a catalog.
    Keystone(KeystoneAuth),
}

/// A Cinder without Keystone.
#[derive(Debug, Clone)]
pub struct Standalone {
    /// The endpoint of the v3 API, without the project: `https://cloud/volume/v3`.
    endpoint: Url,
    project_id: String,
    user: String,
}

/// Cinder in a cloud with Keystone.
#[derive(Debug, Clone)]
pub struct KeystoneAuth {
    session: Arc<Session>,
    wanted: Wanted,
    /// Instead of the catalog's.
    endpoint: Option<Url>,
}

/// What one request needs.
pub(super) struct Access {
    /// Where the version document is: `…/v3/`.
    pub(super) versions: Url,
    /// Where the project's resources are: `…/v3/<project>`.
    pub(super) project: Url,
    /// Who we are, in headers that are marked as sensitive.
    pub(super) headers: HeaderMap,
    /// User and password of HTTP basic authentication.
    pub(super) basic: Option<(String, Secret<String>)>,
    /// The token, where there may be another one.
    pub(super) token: Option<Arc<Token>>,
}

impl Auth {
    /// Cinder without an identity service. The endpoint may end in `/v3` and in a project, as in a
    /// service catalog: both are put there anyway.
    ///
    /// # Errors
    /// [`CinderError::Configuration`]: the endpoint isn't an http(s) URL or carries credentials;
    /// the project or the user can't be part of a URL or a token.
    pub fn no_auth(endpoint: &str, project_id: &str, user: &str) -> Result<Self, CinderError> {
        Standalone::new(endpoint, project_id, user).map(Self::NoAuth)
    }

    /// Cinder without an identity service, behind HTTP basic authentication. Cinder itself still takes the
    /// token of [`Auth::no_auth`].
    ///
    /// # Errors
    /// As [`Auth::no_auth`].
    pub fn basic(
        endpoint: &str,
        project_id: &str,
        user: &str,
        password: Secret<String>,
    ) -> Result<Self, CinderError> {
        let standalone = Standalone::new(endpoint, project_id, user)?;
        Ok(Self::Basic { standalone, password })
    }

    /// Cinder in a cloud with Keystone, at the wanted endpoint of the catalog, or at the one given.
    ///
    /// # Errors
    /// [`CinderError::Configuration`]: the given endpoint isn't an http(s) URL or carries credentials.
    pub fn keystone(
        session: Arc<Session>,
        wanted: Wanted,
        endpoint: Option<&str>,
    ) -> Result<Self, CinderError> {
        let endpoint = endpoint.map(parse).transpose()?;
        Ok(Self::Keystone(KeystoneAuth { session, wanted, endpoint }))
    }

    /// What the next request needs; another token than that which was refused.
    pub(super) async fn access(&self, refused: Option<&Arc<Token>>) -> Result<Access, CinderError> {
        match self {
            Self::NoAuth(standalone) => standalone.access(),
            Self::Basic { standalone, password } => {
                let mut access = standalone.access()?;
                access.basic = Some((standalone.user.clone(), password.clone()));
                Ok(access)
            }
            Self::Keystone(keystone) => keystone.access(refused).await,
        }
    }

    /// Whether our token goes along as `X-Service-Token`: Keystone gave its user the role `service`.
    pub(super) async fn is_service(&self) -> Result<bool, CinderError> {
        match self {
            Self::NoAuth(_) | Self::Basic { .. } => Ok(false),
            Self::Keystone(keystone) => {
                let token = keystone.session.token(None).await.map_err(CinderError::Keystone)?;
                Ok(token.is_service())
            }
        }
    }

    /// Lets somebody look on at the requests for tokens.
    pub(super) fn watch(&self, watch: &Arc<dyn Watch>) {
        match self {
            Self::NoAuth(_) | Self::Basic { .. } => {}
            Self::Keystone(keystone) => keystone.session.watched_by(watch),
        }
    }

    /// The endpoint, where it is known without asking.
    pub(super) fn endpoint(&self) -> Option<&Url> {
        match self {
            Self::NoAuth(standalone) | Self::Basic { standalone, .. } => Some(&standalone.endpoint),
            Self::Keystone(keystone) => keystone.endpoint.as_ref(),
        }
    }
}

impl Standalone {
    fn new(endpoint: &str, project_id: &str, user: &str) -> Result<Self, CinderError> {
        let wrong = |what: String| Err(CinderError::Configuration { what });
        if !is_project_id(project_id) {
            return wrong(format!("{project_id:?} is not a project id: expected hex digits"));
        }
        if user.is_empty() || !user.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
            return wrong(format!("{user:?} can't be a user of Cinder without authentication"));
        }
        Ok(Self {
            endpoint: V3::of(&parse(endpoint)?).url,
            project_id: project_id.to_owned(),
            user: user.to_owned(),
        })
    }

    fn access(&self) -> Result<Access, CinderError> {
        let token = sensitive(&format!("{}:{}", self.user, self.project_id))?;
        Ok(Access {
            versions: below(&self.endpoint, "/"),
            project: below(&self.endpoint, &format!("/{}", self.project_id)),
            headers: HeaderMap::from_iter([(AUTH_TOKEN, token)]),
            basic: None,
            token: None,
        })
    }
}

impl KeystoneAuth {
    async fn access(&self, refused: Option<&Arc<Token>>) -> Result<Access, CinderError> {
        let token = self.session.token(refused).await.map_err(CinderError::Keystone)?;
        let endpoint = match &self.endpoint {
            Some(endpoint) => V3::of(endpoint),
            None => V3::of(&self.in_catalog(&token)?),
        };
        // The catalog's own, else the token's. A token without a project has none; Cinder takes that
        // from 3.67 on.
        let project = endpoint.project.or_else(|| token.project_id().map(str::to_owned));
        let mut headers = HeaderMap::from_iter([(AUTH_TOKEN, token.header().expose().clone())]);
        if token.is_service() {
            // Without the role it would be a 401.
            headers.insert(SERVICE_TOKEN, token.header().expose().clone());
        }
        Ok(Access {
            versions: below(&endpoint.url, "/"),
            project: match project {
                Some(project) => below(&endpoint.url, &format!("/{project}")),
                None => endpoint.url,
            },
            headers,
            basic: None,
            token: Some(token),
        })
    }

    fn in_catalog(&self, token: &Token) -> Result<Url, CinderError> {
        token.catalog().find(&self.wanted, is_not_older).map_err(|offered| {
            CinderError::Keystone(Arc::new(KeystoneError::NoEndpoint {
                wanted: Box::new(self.wanted.clone()),
                offered: Box::new(offered),
            }))
        })
    }
}

/// The types under which a catalog may have Cinder, the best first, where the user names one or none.
/// The official one and its aliases are one service (the service types authority).
pub fn service_types(named: Option<&str>) -> Vec<String> {
    const NAMES: [&str; 5] = ["block-storage", "volumev3", "volume", "block-store", "volumev2"];
    let mut types: Vec<String> = named.into_iter().map(str::to_owned).collect();
    if named.is_none_or(|named| NAMES.contains(&named)) {
        types.extend(
            NAMES.iter().filter(|name| Some(**name) != named).map(|name| (*name).to_owned()),
        );
    }
    types
}

/// A URL with something put to the end of its path.
pub(super) fn below(url: &Url, path: &str) -> Url {
    let mut below = url.clone();
    below.set_path(&format!("{}{path}", url.path().trim_end_matches('/')));
    below
}

/// A header that no HTTP library's log shows.
fn sensitive(text: &str) -> Result<HeaderValue, CinderError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| CinderError::Configuration {
        what: "the user can't be part of an HTTP header".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn is_project_id(text: &str) -> bool {
    let is_hex_like = |b: u8| b == b'-' || b.is_ascii_digit() || b.is_ascii_lowercase();
    !text.is_empty() && text.bytes().all(is_hex_like)
}

fn parse(text: &str) -> Result<Url, CinderError> {
    let wrong = |what: &str| CinderError::Configuration {
        // Not quoted: it may carry a password.
        what: format!("Cinder's endpoint {what}: expected such as https://cloud.example/volume"),
    };
    let url = Url::parse(text).map_err(|_| wrong("is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong("is not an http or https URL"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("carries credentials"));
    }
    Ok(url)
}

/// Cinder's older APIs have no attachments; a catalog may still name them.
fn is_not_older(url: &Url) -> bool {
    !url.path().split('/').any(|segment| matches!(segment, "v1" | "v2"))
}

/// An endpoint, taken apart.
struct V3 {
    /// Up to `/v3`.
    url: Url,
    /// What stands behind it.
    project: Option<String>,
}

impl V3 {
    fn of(endpoint: &Url) -> Self {
        let mut url = endpoint.clone();
        url.set_query(None);
        url.set_fragment(None);
        let segments: Vec<&str> = url.path().split('/').filter(|s| !s.is_empty()).collect();
        let (root, project) = match segments.as_slice() {
            [root @ .., "v3"] => (root, None),
            [root @ .., "v3", project] => (root, Some((*project).to_owned())),
            root => (root, None),
        };
        let path: String = root.iter().chain(&["v3"]).flat_map(|segment| ["/", segment]).collect();
        url.set_path(&path);
        Self { url, project }
    }
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
            let auth = Auth::no_auth(text, "c0ffee", "admin").unwrap();
            let access = auth.access(None).await.unwrap();
            assert_eq!(access.project.as_str(), expected, "{text}");
            assert!(access.versions.path().ends_with("/v3/"), "{}", access.versions);
            assert_eq!(access.headers[AUTH_TOKEN], "admin:c0ffee");
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

    #[tokio::test]
    async fn http_basic_goes_along_with_the_token_of_a_cinder_without_keystone() {
        let password = Secret::new("open sesame".to_owned());
        let auth = Auth::basic("http://cloud", "c0ffee", "Aladdin", password).unwrap();
        let access = auth.access(None).await.unwrap();
        assert_eq!(access.basic.as_ref().unwrap().1.expose(), "open sesame");
        assert_eq!(access.headers[AUTH_TOKEN], "Aladdin:c0ffee");
        assert!(!auth.is_service().await.unwrap());
        let shown = format!("{auth:?} {:?} {:?}", access.headers, access.basic);
        assert!(!shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn a_service_type_stands_for_all_its_names_with_the_named_one_first() {
        let all = ["block-storage", "volumev3", "volume", "block-store", "volumev2"];
        assert_eq!(service_types(None), all);
        assert_eq!(service_types(Some("volume"))[..2], ["volume", "block-storage"]);
        assert_eq!(service_types(Some("volume")).len(), 5);
        assert_eq!(service_types(Some("my-volumes")), ["my-volumes"]);
    }
}
