//! Which cloud, and as whom: `clouds.yaml`, the environment's `OS_*`, and `--os-*`.
//!
//! ```text
//! settings.rs   what was said by option or variable (an option wins)
//! places.rs     where the files are
//! document.rs   a YAML file as a tree that knows its lines
//! layers.rs     profile, clouds.yaml, secure.yaml, region, settings: the later wins
//! resolve.rs    what that means, or which key of which line can't mean anything
//! auth.rs       the way to its Cinder
//! ```
//!
//! As openstackclient has it: the cloud is that of `--os-cloud` or `OS_CLOUD`; without one and without
//! any other setting it is the only one of the file. Single options and variables go over what the
//! file says of the cloud. All that is wrong is said before anything is sent.

mod auth;
mod document;
mod error;
mod layers;
mod places;
mod resolve;
mod settings;

use url::Url;

use crate::{
    http::Tls,
    keystone::{Credentials, Interface},
    model::Secret,
};

pub use error::{CloudError, Origin};
pub use places::Places;
pub use settings::Settings;

/// A cloud, and who we are to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloud {
    /// Who we are.
    pub identity: Identity,
    /// Which of its block-storage services.
    pub service: Service,
    /// Certificates.
    pub tls: Tls,
}

/// Who we are to a cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A Cinder without Keystone.
    Standalone {
        /// Cinder's endpoint.
        endpoint: String,
        /// The project's id.
        project_id: String,
        /// The user's name.
        user: String,
        /// The user's password, where Cinder is behind HTTP basic authentication.
        password: Option<Secret<String>>,
    },
    /// A user, application credential or token of Keystone.
    Keystone(Credentials),
}

/// Which block-storage service of the catalog.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its type, where another one than the official is wanted first.
    pub service_type: Option<String>,
    /// Its region.
    pub region: Option<String>,
    /// Its interface.
    pub interface: Interface,
    /// Its endpoint, instead of the catalog's.
    pub endpoint: Option<String>,
}

impl Cloud {
    /// What the settings and the files say.
    ///
    /// # Errors
    /// [`CloudError`], with file, line and key where it is about one.
    pub fn find(settings: &Settings, places: &Places) -> Result<Self, CloudError> {
        resolve::resolve(&layers::layers(settings, places)?)
    }

    /// What must be found nowhere else.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let secret = match &self.identity {
            Identity::Standalone { password, .. } => {
                password.as_ref().map(|it| it.expose().as_str())
            }
            Identity::Keystone(credentials) => Some(credentials.secret()),
        };
        secret.into_iter().map(ToOwned::to_owned).collect()
    }

    /// An address of the cloud that is known before it is asked: Cinder's, else Keystone's.
    pub fn address(&self) -> Option<Url> {
        let endpoint = match &self.identity {
            Identity::Standalone { endpoint, .. } => Some(endpoint),
            Identity::Keystone(_) => self.service.endpoint.as_ref(),
        };
        match (endpoint, &self.identity) {
            (Some(endpoint), _) => Url::parse(endpoint).ok(),
            (None, Identity::Keystone(credentials)) => Some(credentials.auth_url.clone()),
            (None, Identity::Standalone { .. }) => None,
        }
    }
}

/// How deep a `clouds.yaml` that can be read goes, for [`testing`](crate::testing).
#[cfg(any(test, feature = "testing"))]
pub(crate) fn depth(text: &str) -> Result<usize, CloudError> {
    fn of(node: &document::Node) -> usize {
        1 + match &node.kind {
            document::Kind::Nothing | document::Kind::Text(_) => 0,
            document::Kind::List(items) => items.iter().map(of).max().unwrap_or_default(),
            document::Kind::Map(entries) => {
                entries.iter().map(|(_, _, value)| of(value)).max().unwrap_or_default()
            }
        }
    }
    let path = std::path::Path::new("clouds.yaml");
    document::Document::parse(path, text).map(|document| of(&document.root))
}
