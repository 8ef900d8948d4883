use std::fmt;

use serde_json::{Value, json};
use url::Url;

use crate::model::Secret;

/// Which Keystone, as whom, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Where Keystone is, with or without `/v3`.
    pub auth_url: Url,
    /// How we prove who we are.
    pub method: Method,
    /// What the token is for.
    pub scope: Scope,
}

/// How we prove who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// A user's password.
    Password {
        /// The user.
        user: User,
        /// The password.
        password: Secret<String>,
    },
    /// An application credential, which has its own project and roles.
    ApplicationCredential {
        /// Which one.
        which: ApplicationCredential,
        /// Its secret.
        secret: Secret<String>,
    },
    /// A token that somebody else got. It can't be renewed beyond its own end.
    Token(Secret<String>),
}

/// A domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Domain {
    /// By its id.
    Id(String),
    /// By its name.
    Name(String),
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// By its id.
    Id(String),
    /// By its name, which is unique in its domain only.
    Name {
        /// The name.
        name: String,
        /// Its domain.
        domain: Domain,
    },
}

/// A project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Project {
    /// By its id.
    Id(String),
    /// By its name, which is unique in its domain only.
    Name {
        /// The name.
        name: String,
        /// Its domain.
        domain: Domain,
    },
}

/// An application credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplicationCredential {
    /// By its id.
    Id(String),
    /// By its name, which is unique for its user only.
    Name {
        /// The name.
        name: String,
        /// Its user.
        user: User,
    },
}

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// What Keystone chooses: the application credential's project, or the user's default one.
    Unsaid,
    /// A project.
    Project(Project),
    /// A domain.
    Domain(Domain),
    /// The whole system.
    System,
}

impl Credentials {
    /// Where tokens are made.
    pub(super) fn tokens_url(&self) -> Url {
        let mut segments: Vec<&str> =
            self.auth_url.path().split('/').filter(|segment| !segment.is_empty()).collect();
        if matches!(segments.last(), Some(&("v3" | "v2.0"))) {
            segments.pop();
        }
        segments.extend(["v3", "auth", "tokens"]);
        let path: String = segments.iter().flat_map(|segment| ["/", segment]).collect();
        let mut url = self.auth_url.clone();
        url.set_path(&path);
        url
    }

    /// The request's body. It holds the secret.
    pub(super) fn body(&self) -> Secret<Value> {
        let identity = match &self.method {
            Method::Password { user, password } => {
                let mut user = user.body();
                user["password"] = json!(password.expose());
                json!({"methods": ["password"], "password": {"user": user}})
            }
            Method::ApplicationCredential { which, secret } => {
                let mut credential = match which {
                    ApplicationCredential::Id(id) => json!({"id": id}),
                    ApplicationCredential::Name { name, user } => {
                        json!({"name": name, "user": user.body()})
                    }
                };
                credential["secret"] = json!(secret.expose());
                json!({"methods": ["application_credential"], "application_credential": credential})
            }
            Method::Token(token) => {
                json!({"methods": ["token"], "token": {"id": token.expose()}})
            }
        };
        let mut auth = json!({"identity": identity});
        let scope = match &self.scope {
            Scope::Unsaid => None,
            Scope::Project(Project::Id(id)) => Some(json!({"project": {"id": id}})),
            Scope::Project(Project::Name { name, domain }) => {
                Some(json!({"project": {"name": name, "domain": domain.body()}}))
            }
            Scope::Domain(domain) => Some(json!({"domain": domain.body()})),
            Scope::System => Some(json!({"system": {"all": true}})),
        };
        if let Some(scope) = scope {
            auth["scope"] = scope;
        }
        Secret::new(json!({"auth": auth}))
    }

    /// What the user proves it with.
    pub(crate) fn secret(&self) -> &str {
        match &self.method {
            Method::Password { password: secret, .. }
            | Method::ApplicationCredential { secret, .. }
            | Method::Token(secret) => secret.expose(),
        }
    }
}

impl Domain {
    fn body(&self) -> Value {
        match self {
            Self::Id(id) => json!({"id": id}),
            Self::Name(name) => json!({"name": name}),
        }
    }
}

impl User {
    fn body(&self) -> Value {
        match self {
            Self::Id(id) => json!({"id": id}),
            Self::Name { name, domain } => json!({"name": name, "domain": domain.body()}),
        }
    }
}

/// Who asks, and for what; without the secret.
impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.method {
            Method::Password { user, .. } => write!(f, "{user}")?,
            Method::ApplicationCredential { which: ApplicationCredential::Id(id), .. } => {
                write!(f, "application credential {id}")?;
            }
            Method::ApplicationCredential {
                which: ApplicationCredential::Name { name, user },
                ..
            } => write!(f, "application credential {name:?} of {user}")?,
            Method::Token(_) => f.write_str("the given token")?,
        }
        match &self.scope {
            Scope::Unsaid => Ok(()),
            Scope::Project(Project::Id(id)) => write!(f, " for project {id}"),
            Scope::Project(Project::Name { name, domain }) => {
                write!(f, " for project {name:?} ({domain})")
            }
            Scope::Domain(domain) => write!(f, " for {domain}"),
            Scope::System => f.write_str(" for the system"),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "user {id}"),
            Self::Name { name, domain } => write!(f, "user {name:?} ({domain})"),
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "domain {id}"),
            Self::Name(name) => write!(f, "domain {name:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(method: Method, scope: Scope) -> Credentials {
        Credentials { auth_url: "https://cloud/identity".parse().unwrap(), method, scope }
    }

    fn password(user: User) -> Method {
        Method::Password { user, password: Secret::new("devstacker".to_owned()) }
    }

    fn demo() -> User {
        User::Name { name: "demo".to_owned(), domain: Domain::Name("Default".to_owned()) }
    }

    #[test]
    fn bodies_are_those_of_the_identity_api_reference() {
        let project = Scope::Project(Project::Name {
            name: "admin".to_owned(),
            domain: Domain::Id("default".to_owned()),
        });
        let secret = Secret::new("rEaqvJka48mpv".to_owned());
        let by_name = ApplicationCredential::Name { name: "monitoring".to_owned(), user: demo() };
        for (method, scope, expected) in [
            (
                password(User::Id("ee4dfb6e5540447cb3741905149d9b6e".to_owned())),
                Scope::Unsaid,
                json!({"auth": {"identity": {"methods": ["password"], "password": {"user": {
                    "id": "ee4dfb6e5540447cb3741905149d9b6e", "password": "devstacker"}}}}}),
            ),
            (
                password(User::Id("ee4dfb6e".to_owned())),
                Scope::System,
                json!({"auth": {
                    "identity": {"methods": ["password"], "password": {"user": {"id": "ee4dfb6e", "password": "devstacker"}}},
                    "scope": {"system": {"all": true}}}}),
            ),
            (
                password(User::Id("ee4dfb6e".to_owned())),
                Scope::Domain(Domain::Id("default".to_owned())),
                json!({"auth": {
                    "identity": {"methods": ["password"], "password": {"user": {"id": "ee4dfb6e", "password": "devstacker"}}},
                    "scope": {"domain": {"id": "default"}}}}),
            ),
            (
                password(demo()),
                project,
                json!({"auth": {
                    "identity": {"methods": ["password"], "password": {"user": {
                        "name": "demo", "domain": {"name": "Default"}, "password": "devstacker"}}},
                    "scope": {"project": {"name": "admin", "domain": {"id": "default"}}}}}),
            ),
            (
                Method::ApplicationCredential {
                    which: ApplicationCredential::Id("aa809205ed614a0e854bac92c0768bb9".to_owned()),
                    secret: secret.clone(),
                },
                Scope::Unsaid,
                json!({"auth": {"identity": {"methods": ["application_credential"], "application_credential": {
                    "id": "aa809205ed614a0e854bac92c0768bb9", "secret": "rEaqvJka48mpv"}}}}),
            ),
            (
                Method::ApplicationCredential { which: by_name, secret },
                Scope::Unsaid,
                json!({"auth": {"identity": {"methods": ["application_credential"], "application_credential": {
                    "name": "monitoring", "secret": "rEaqvJka48mpv",
                    "user": {"name": "demo", "domain": {"name": "Default"}}}}}}),
            ),
            (
                Method::Token(Secret::new("$OS_TOKEN".to_owned())),
                Scope::Project(Project::Id("5b50efd009b540559104ee3c03bbb2b7".to_owned())),
                json!({"auth": {
                    "identity": {"methods": ["token"], "token": {"id": "$OS_TOKEN"}},
                    "scope": {"project": {"id": "5b50efd009b540559104ee3c03bbb2b7"}}}}),
            ),
        ] {
            let credentials = credentials(method, scope);
            assert_eq!(*credentials.body().expose(), expected, "{credentials}");
        }
    }

    #[test]
    fn tokens_are_made_below_v3_however_the_url_is_written() {
        for (text, expected) in [
            ("http://cloud:5000", "http://cloud:5000/v3/auth/tokens"),
            ("http://cloud:5000/", "http://cloud:5000/v3/auth/tokens"),
            ("http://cloud:5000/v3", "http://cloud:5000/v3/auth/tokens"),
            ("http://cloud:5000/v3/", "http://cloud:5000/v3/auth/tokens"),
            ("http://cloud:5000/v2.0", "http://cloud:5000/v3/auth/tokens"),
            ("https://cloud/identity", "https://cloud/identity/v3/auth/tokens"),
            ("https://cloud/identity/v3/", "https://cloud/identity/v3/auth/tokens"),
        ] {
            let mut credentials = credentials(password(demo()), Scope::Unsaid);
            credentials.auth_url = text.parse().unwrap();
            assert_eq!(credentials.tokens_url().as_str(), expected, "{text}");
        }
    }

    #[test]
    fn who_asks_is_told_without_the_secret() {
        let project = Scope::Project(Project::Id("c0ffee".to_owned()));
        let shown = credentials(password(demo()), project);
        assert_eq!(shown.to_string(), "user \"demo\" (domain \"Default\") for project c0ffee");
        assert!(!format!("{shown:?}").contains("devstacker"));
    }
}
