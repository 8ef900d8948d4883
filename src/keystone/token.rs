use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::header::{HeaderMap, HeaderValue};
use serde::Deserialize;

use super::Catalog;
use crate::model::Secret;

/// The role of services among themselves.
const SERVICE_ROLE: &str = "service";

/// A token, and what Keystone said of it.
#[derive(Debug)]
pub struct Token {
    /// Marked as sensitive, so that no HTTP library's log shows it.
    header: Secret<HeaderValue>,
    lifetime: Duration,
    ends: Instant,
    project_id: Option<String>,
    is_service: bool,
    catalog: Catalog,
}

#[derive(Deserialize)]
struct Answer {
    token: Body,
}

#[derive(Deserialize)]
struct Body {
    expires_at: Timestamp,
    issued_at: Timestamp,
    project: Option<Named>,
    #[serde(default)]
    roles: Vec<Role>,
    #[serde(default)]
    catalog: Catalog,
}

#[derive(Deserialize)]
struct Named {
    id: String,
}

#[derive(Deserialize)]
struct Role {
    name: String,
}

impl Token {
    /// Reads Keystone's answer; else what is wrong with it, without quoting it.
    pub(crate) fn read(
        headers: &HeaderMap,
        body: &[u8],
        asked: Instant,
    ) -> Result<Self, &'static str> {
        let mut header = headers
            .get("x-subject-token")
            .filter(|value| !value.is_empty())
            .ok_or("it has no header X-Subject-Token")?
            .clone();
        header.set_sensitive(true);
        // serde_json's own words could quote what stands there.
        let Answer { token } = serde_json::from_slice(body)
            .map_err(|_| "its body is not the JSON that describes a token")?;
        // The difference of Keystone's own times: its clock may differ from this node's.
        let lifetime = token.expires_at.duration_since(token.issued_at);
        let lifetime = lifetime.try_into().map_err(|_| "the token ends before it begins")?;
        let ends = asked.checked_add(lifetime).ok_or("the token's end is not a date")?;
        Ok(Self {
            header: Secret::new(header),
            lifetime,
            ends,
            project_id: token.project.map(|project| project.id),
            is_service: token.roles.iter().any(|role| role.name == SERVICE_ROLE),
            catalog: token.catalog,
        })
    }

    /// The value of `X-Auth-Token`.
    pub fn header(&self) -> &Secret<HeaderValue> {
        &self.header
    }

    /// The project that it is for.
    pub fn project_id(&self) -> Option<&str> {
        self.project_id.as_deref()
    }

    /// Whether its user has the role `service` there: then it may go along as `X-Service-Token`.
    pub fn is_service(&self) -> bool {
        self.is_service
    }

    /// What it can reach.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(super) fn has_ended(&self) -> bool {
        Instant::now() >= self.ends
    }

    /// Whether it ends within that time, or within a quarter of its life where that is shorter.
    pub(super) fn ends_within(&self, margin: Duration) -> bool {
        Instant::now() + margin.min(self.lifetime / 4) >= self.ends
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn headers(token: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("x-subject-token", token.parse().unwrap());
        headers
    }

    fn body() -> Value {
        json!({"token": {
            "issued_at": "2026-11-22T02:55:54.000000Z", "expires_at": "2026-11-22T03:55:54.000000Z",
            "methods": ["password"], "user": {"id": "u", "name": "demo"},
            "project": {"id": "c0ffee", "name": "demo", "domain": {"id": "default", "name": "Default"}},
            "roles": [{"id": "1", "name": "member"}, {"id": "2", "name": "service"}],
        }})
    }

    fn read(body: &Value) -> Result<Token, &'static str> {
        Token::read(&headers("gAAAAAB"), body.to_string().as_bytes(), Instant::now())
    }

    #[test]
    fn a_token_lives_as_long_as_keystones_two_times_are_apart() {
        let token = read(&body()).unwrap();
        assert_eq!(token.lifetime, Duration::from_hours(1));
        assert!(!token.ends_within(Duration::from_mins(5)) && !token.has_ended());
        assert!(!token.ends_within(Duration::from_hours(2)), "at least three quarters are used");
        assert_eq!(token.project_id(), Some("c0ffee"));
        assert!(token.is_service());
        assert!(!format!("{token:?}").contains("gAAAAAB"));

        let mut short = body();
        short["token"]["expires_at"] = json!("2026-11-22T02:55:54.000000Z");
        assert!(read(&short).unwrap().has_ended());
    }

    #[test]
    fn roles_project_and_catalog_may_be_missing() {
        let mut unscoped = body();
        for key in ["project", "roles"] {
            unscoped["token"].as_object_mut().unwrap().remove(key);
        }
        let token = read(&unscoped).unwrap();
        assert!(token.project_id().is_none() && !token.is_service());
    }

    #[test]
    fn what_is_no_token_is_described_and_never_quoted() {
        let mut backwards = body();
        backwards["token"]["expires_at"] = json!("2026-11-22T02:55:53Z");
        for (wrong, what) in [
            (backwards, "ends before it begins"),
            (json!({"token": {"expires_at": "hunter2"}}), "not the JSON"),
            (json!({}), "not the JSON"),
        ] {
            let error = read(&wrong).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
        let text = body().to_string();
        let error = Token::read(&HeaderMap::new(), text.as_bytes(), Instant::now()).unwrap_err();
        assert!(error.contains("X-Subject-Token"), "{error}");
    }
}
