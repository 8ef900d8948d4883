//! From what was said of a cloud to its Cinder.

use std::sync::Arc;

use tracing::warn;

use super::{Cloud, Identity, Places, Settings};
use crate::{
    cinder::{Auth, CinderError, service_types},
    keystone::{Reload, Session, SessionConfig, Wanted},
};

impl Cloud {
    /// Who we are to this cloud's Cinder. Nothing is sent yet; the certificates are the cloud's.
    ///
    /// # Errors
    /// [`CinderError`]: certificates can't be read, or what was said can't be part of a request.
    pub fn auth(self, config: &SessionConfig, reload: Option<Reload>) -> Result<Auth, CinderError> {
        let Self { identity, service, tls } = self;
        match identity {
            Identity::Standalone { endpoint, project_id, user, password: None } => {
                Auth::no_auth(&endpoint, &project_id, &user)
            }
            Identity::Standalone { endpoint, project_id, user, password: Some(password) } => {
                Auth::basic(&endpoint, &project_id, &user, password)
            }
            Identity::Keystone(credentials) => {
                let config = SessionConfig { tls, ..config.clone() };
                let session = Arc::new(Session::new(credentials, reload, config)?);
                let wanted = Wanted {
                    types: service_types(service.service_type.as_deref()),
                    region: service.region,
                    interface: service.interface,
                };
                Auth::keystone(session, wanted, service.endpoint.as_deref())
            }
        }
    }

    /// Reads the usual files anew: credentials may be rotated under a daemon.
    pub fn reload(settings: &Settings) -> Reload {
        let settings = settings.clone();
        Arc::new(move || match Self::find(&settings, &Places::usual(&settings)) {
            Ok(Self { identity: Identity::Keystone(credentials), .. }) => Some(credentials),
            Ok(Self { identity: Identity::Standalone { .. }, .. }) => {
                warn!(
                    "the cloud's files name no Keystone any more: restart attachd to follow them"
                );
                None
            }
            Err(error) => {
                warn!("the credentials can't be read anew: {error}");
                None
            }
        })
    }
}
