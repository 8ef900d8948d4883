//! What the settings mean together.

use std::path::PathBuf;

use tracing::warn;
use url::Url;

use super::{
    Cloud, CloudError, Identity, Service,
    layers::{Layers, Value, near_auth_key},
};
use crate::{
    http::Tls,
    keystone::{
        ApplicationCredential, Credentials, Domain, Interface, Method, Project, Scope, User,
    },
    model::Secret,
};

/// The domain that every Keystone begins with, and that openstackclient takes where none is named.
const DEFAULT_DOMAIN: &str = "default";

/// The user's name towards a Cinder that believes any.
const NOBODY: &str = "attachd";

#[derive(Clone, Copy, PartialEq, Eq)]
enum AuthType {
    Password,
    ApplicationCredential,
    Token,
    None,
    HttpBasic,
}

pub(super) fn resolve(layers: &Layers) -> Result<Cloud, CloudError> {
    let auth_type = layers.auth_type()?;
    if let Some((key, origin)) = layers.unknown.first() {
        let what = match near_auth_key(key) {
            Some(meant) => format!("attachd does not know this key; is it meant to be {meant:?}?"),
            None => "attachd does not know this key".to_owned(),
        };
        let (origin, key) = (origin.clone(), format!("auth.{key}"));
        return Err(CloudError::Wrong { origin, key, what });
    }
    let service = layers.service()?;
    let identity = match auth_type {
        AuthType::None | AuthType::HttpBasic => layers.standalone(auth_type, &service)?,
        AuthType::Password | AuthType::ApplicationCredential | AuthType::Token => {
            Identity::Keystone(layers.credentials(auth_type, &service)?)
        }
    };
    Ok(Cloud { identity, service, tls: layers.tls()? })
}

impl Value {
    fn wrong(&self, key: &str, what: impl Into<String>) -> CloudError {
        CloudError::Wrong { origin: self.origin.clone(), key: key.to_owned(), what: what.into() }
    }

    fn flag(&self, key: &str) -> Result<bool, CloudError> {
        match self.text().to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" | "1" => Ok(true),
            "false" | "no" | "off" | "n" | "0" => Ok(false),
            _ => Err(self.wrong(key, "expected true or false")),
        }
    }

    /// Not quoted in the error: it may carry a password.
    fn url(&self, key: &str) -> Result<Url, CloudError> {
        let such = "expected such as https://cloud.example.org:5000/v3";
        let url = Url::parse(self.text())
            .map_err(|_| self.wrong(key, format!("this is not a URL: {such}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(self.wrong(key, format!("this is not an http or https URL: {such}")));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(self.wrong(key, format!("a URL here must not carry credentials: {such}")));
        }
        Ok(url)
    }
}

impl Layers {
    fn get(&self, key: &'static str) -> Option<&Value> {
        self.values.get(key)
    }

    fn text(&self, key: &'static str) -> Option<String> {
        self.get(key).map(|value| value.text().to_owned())
    }

    fn missing(&self, what: &str) -> CloudError {
        match &self.missing_profile {
            Some(profile) => profile.wrong(
                "profile",
                format!(
                    "no clouds-public.yaml has {:?}, and attachd knows no vendors by itself; without it this cloud lacks {what}",
                    profile.text()
                ),
            ),
            None => CloudError::Missing { of: self.of.clone(), what: what.to_owned() },
        }
    }

    fn auth_type(&self) -> Result<AuthType, CloudError> {
        if let Some(version) = self.get("identity_api_version")
            && !version.text().starts_with('3')
        {
            return Err(version.wrong("identity_api_version", "attachd speaks version 3 only"));
        }
        let Some(named) = self.get("auth_type") else {
            let has = |key| self.get(key).is_some();
            return Ok(if has("application_credential_id") || has("application_credential_name") {
                AuthType::ApplicationCredential
            } else if has("token") && !has("password") {
                AuthType::Token
            } else {
                AuthType::Password
            });
        };
        match named.text() {
            "password" | "v3password" => Ok(AuthType::Password),
            "v3applicationcredential" => Ok(AuthType::ApplicationCredential),
            "token" | "v3token" => Ok(AuthType::Token),
            "none" | "None" | "noauth" => Ok(AuthType::None),
            "http_basic" => Ok(AuthType::HttpBasic),
            other => {
                let other: String = other.chars().take(40).collect();
                Err(named.wrong(
                    "auth_type",
                    format!(
                        "attachd does not know {other:?}: expected password, v3applicationcredential, v3token, none or http_basic"
                    ),
                ))
            }
        }
    }

    fn service(&self) -> Result<Service, CloudError> {
        let mut service = Service {
            service_type: self.text("block_storage_service_type"),
            region: self.text("block_storage_region_name").or_else(|| self.text("region_name")),
            ..Service::default()
        };
        for key in ["interface", "block_storage_interface"] {
            if let Some(value) = self.get(key) {
                service.interface = value
                    .text()
                    .parse::<Interface>()
                    .map_err(|error| value.wrong(key, error.to_string()))?;
            }
        }
        for key in ["endpoint", "block_storage_endpoint_override"] {
            if let Some(value) = self.get(key) {
                value.url(key)?;
                service.endpoint = Some(value.text().to_owned());
            }
        }
        Ok(service)
    }

    fn tls(&self) -> Result<Tls, CloudError> {
        let path = |key| self.get(key).map(|value| self.places.expand(value.text()));
        let flag = |key| self.get(key).map(|value| value.flag(key)).transpose();
        let certificate: Option<PathBuf> = path("cert");
        if let Some(key) = self.get("key").filter(|_| certificate.is_none()) {
            return Err(key.wrong("key", "a key without its certificate (cert) is of no use"));
        }
        Ok(Tls {
            insecure: flag("insecure")?.unwrap_or(false) || flag("verify")? == Some(false),
            ca: path("cacert"),
            certificate,
            key: path("key"),
        })
    }

    fn standalone(&self, auth_type: AuthType, service: &Service) -> Result<Identity, CloudError> {
        let endpoint = service.endpoint.clone().ok_or_else(|| {
            self.missing("Cinder's endpoint (--os-endpoint, OS_ENDPOINT, or endpoint under auth)")
        })?;
        let project_id = self.text("project_id").ok_or_else(|| {
            self.missing(
                "the project's id, which a Cinder without Keystone is told (--os-project-id, OS_PROJECT_ID, or project_id under auth)",
            )
        })?;
        let user = self.text("username").or_else(|| self.text("user_id"));
        let password = self.text("password").map(Secret::new);
        let (user, password) = match (auth_type, user, password) {
            (AuthType::HttpBasic, Some(user), Some(password)) => (user, Some(password)),
            (AuthType::HttpBasic, ..) => {
                return Err(self.missing(
                    "the user and the password of http_basic (OS_USERNAME and OS_PASSWORD, or username and password under auth)",
                ));
            }
            (_, user, _) => (user.unwrap_or_else(|| NOBODY.to_owned()), None),
        };
        Ok(Identity::Standalone { endpoint, project_id, user, password })
    }

    fn credentials(
        &self,
        auth_type: AuthType,
        service: &Service,
    ) -> Result<Credentials, CloudError> {
        let mut auth_url = self.get("auth_url").cloned().ok_or_else(|| {
            self.missing(
                "Keystone's address (--os-auth-url, OS_AUTH_URL, or auth_url under auth); a Cinder without Keystone takes auth_type none",
            )
        })?;
        if let Some(region) = &service.region {
            // Vendors' profiles have it so.
            let text = auth_url.text().replace("{region_name}", region);
            auth_url.text = Secret::new(text);
        }
        let auth_url = auth_url.url("auth_url")?;
        let (method, scope) = match auth_type {
            AuthType::ApplicationCredential => {
                for key in ["project_id", "project_name"] {
                    if let Some(value) = self.get(key) {
                        warn!(origin = %value.origin, key, "an application credential has its own project: this is not heeded");
                    }
                }
                (self.application_credential()?, Scope::Unsaid)
            }
            AuthType::Token => {
                let token = self
                    .text("token")
                    .ok_or_else(|| self.missing("the token (OS_TOKEN, or token under auth)"))?;
                (Method::Token(Secret::new(token)), self.scope()?)
            }
            AuthType::Password | AuthType::None | AuthType::HttpBasic => {
                let password = self.text("password").ok_or_else(|| {
                    self.missing("the password (OS_PASSWORD, or password under auth in clouds.yaml or secure.yaml)")
                })?;
                let method =
                    Method::Password { user: self.user()?, password: Secret::new(password) };
                (method, self.scope()?)
            }
        };
        Ok(Credentials { auth_url, method, scope })
    }

    fn application_credential(&self) -> Result<Method, CloudError> {
        let secret = self.text("application_credential_secret").ok_or_else(|| {
            self.missing(
                "the application credential's secret (OS_APPLICATION_CREDENTIAL_SECRET, or application_credential_secret under auth)",
            )
        })?;
        let id = self.text("application_credential_id");
        let which = match (id, self.text("application_credential_name")) {
            (Some(id), _) => ApplicationCredential::Id(id),
            (None, Some(name)) => ApplicationCredential::Name { name, user: self.user()? },
            (None, None) => {
                return Err(self.missing(
                    "the application credential's id or name (OS_APPLICATION_CREDENTIAL_ID, or application_credential_id under auth)",
                ));
            }
        };
        Ok(Method::ApplicationCredential { which, secret: Secret::new(secret) })
    }

    fn user(&self) -> Result<User, CloudError> {
        match (self.text("user_id"), self.text("username")) {
            (Some(id), _) => Ok(User::Id(id)),
            (None, Some(name)) => {
                Ok(User::Name { name, domain: self.domain("user_domain_id", "user_domain_name") })
            }
            (None, None) => Err(self.missing(
                "the user (--os-username, OS_USERNAME, or username or user_id under auth)",
            )),
        }
    }

    /// Where project and user are of one domain, many a file names it once.
    fn domain(&self, id: &'static str, name: &'static str) -> Domain {
        let shared = self.names_project();
        let pairs = [
            (id, name, true),
            ("domain_id", "domain_name", shared),
            ("default_domain_id", "default_domain_name", true),
        ];
        for (id, name, counts) in pairs {
            match (self.text(id), self.text(name)) {
                (Some(id), _) if counts => return Domain::Id(id),
                (None, Some(name)) if counts => return Domain::Name(name),
                _ => {}
            }
        }
        Domain::Id(self.text("default_domain").unwrap_or_else(|| DEFAULT_DOMAIN.to_owned()))
    }

    fn names_project(&self) -> bool {
        self.get("project_id").or_else(|| self.get("project_name")).is_some()
    }

    fn scope(&self) -> Result<Scope, CloudError> {
        if let Some(system) = self.get("system_scope") {
            if system.text() != "all" {
                return Err(system.wrong("system_scope", "expected all"));
            }
            let other = ["project_id", "project_name", "domain_id", "domain_name"]
                .into_iter()
                .find_map(|key| Some((key, self.get(key)?)));
            return match other {
                Some((key, value)) => Err(system.wrong(
                    "system_scope",
                    format!("a token is for one thing, and {key} is said too ({})", value.origin),
                )),
                None => Ok(Scope::System),
            };
        }
        if let Some(id) = self.text("project_id") {
            return Ok(Scope::Project(Project::Id(id)));
        }
        if let Some(name) = self.text("project_name") {
            let domain = self.domain("project_domain_id", "project_domain_name");
            return Ok(Scope::Project(Project::Name { name, domain }));
        }
        Ok(match (self.text("domain_id"), self.text("domain_name")) {
            (Some(id), _) => Scope::Domain(Domain::Id(id)),
            (None, Some(name)) => Scope::Domain(Domain::Name(name)),
            (None, None) => Scope::Unsaid,
        })
    }
}
