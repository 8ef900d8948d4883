//! Keystone 30's own answers, and what we ask for them: each request is compared with the recorded one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cinder_replay;

use std::sync::Arc;

use attachd::{
    keystone::{
        ApplicationCredential, Credentials, Domain, Interface, KeystoneError, Method, Project,
        Scope, Session, SessionConfig, Token, User, Wanted,
    },
    model::Secret,
};
use cinder_replay::{Exchange, exchange};
use serde_json::Value;
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{body_json, method, path},
};

const AUTH: &str = "../keystone/auth.txt";
const REFUSALS: &str = "../keystone/refusals.txt";
const PROJECT_ID: &str = "a77ac4d0a77ac4d0a77ac4d0a77ac4d0";
const CREDENTIAL_ID: &str = "c4ede471a1c4ede471a1c4ede471a100";

fn default() -> Domain {
    Domain::Name("Default".to_owned())
}

fn user(name: &str) -> User {
    User::Name { name: name.to_owned(), domain: default() }
}

fn password(user: User, password: &str) -> Method {
    Method::Password { user, password: Secret::new(password.to_owned()) }
}

fn member() -> Method {
    password(user("member"), "PASSWORD-OF-MEMBER")
}

fn admin() -> Method {
    password(user("admin"), "PASSWORD-OF-ADMIN")
}

fn credential(which: ApplicationCredential, secret: &str) -> Method {
    Method::ApplicationCredential { which, secret: Secret::new(secret.to_owned()) }
}

fn credential_id(id: &str) -> ApplicationCredential {
    ApplicationCredential::Id(id.to_owned())
}

fn token(text: &str) -> Method {
    Method::Token(Secret::new(text.to_owned()))
}

fn project(name: &str) -> Scope {
    Scope::Project(Project::Name { name: name.to_owned(), domain: default() })
}

/// Asks a Keystone that answers so, to exactly that request, and to no other.
async fn ask(
    recorded: &Exchange,
    by: Method,
    scope: Scope,
) -> Result<Arc<Token>, Arc<KeystoneError>> {
    let server = MockServer::start().await;
    let mut answer = ResponseTemplate::new(recorded.status);
    for (name, value) in &recorded.headers {
        answer = answer.insert_header(name.as_str(), value.as_str());
    }
    let (verb, address) = recorded.asked.clone().unwrap();
    Mock::given(method(verb.as_str()))
        .and(path(address.as_str()))
        .and(body_json(recorded.sent.as_ref().unwrap()))
        .respond_with(answer.set_body_raw(recorded.body.clone(), "application/json"))
        .expect(1)
        .mount(&server)
        .await;
    let auth_url = format!("{}/v3", server.uri()).parse().unwrap();
    let credentials = Credentials { auth_url, method: by, scope };
    Session::new(credentials, None, SessionConfig::default()).unwrap().token(None).await
}

#[tokio::test]
async fn every_method_and_scope_is_asked_for_as_recorded_and_gets_its_token() {
    let secret = "SECRET-OF-THE-APPLICATION-CREDENTIAL";
    let by_name = ApplicationCredential::Name { name: "node".to_owned(), user: user("member") };
    let member_id = User::Id("999ecd5d8393435ca56650e8668e0024".to_owned());
    let k8s = Scope::Project(Project::Id(PROJECT_ID.to_owned()));
    for (title, by, scope) in [
        ("password, project by name", member(), project("k8s")),
        ("password, project by id", password(member_id, "PASSWORD-OF-MEMBER"), k8s),
        ("password, no scope", member(), Scope::Unsaid),
        ("password, domain by name", admin(), Scope::Domain(default())),
        ("password, domain by id", admin(), Scope::Domain(Domain::Id("default".to_owned()))),
        ("password, system", admin(), Scope::System),
        (
            "password, user with the role service",
            password(user("service"), "PASSWORD-OF-SERVICE"),
            project("k8s"),
        ),
        ("password, reader", password(user("reader"), "PASSWORD-OF-READER"), project("k8s")),
        (
            "application credential by id",
            credential(credential_id(CREDENTIAL_ID), secret),
            Scope::Unsaid,
        ),
        ("application credential by name", credential(by_name, secret), Scope::Unsaid),
        ("token, project by name", token("TOKEN-WITHOUT-SCOPE"), project("k8s")),
    ] {
        let recorded = exchange(AUTH, title);
        let got =
            ask(&recorded, by, scope).await.unwrap_or_else(|error| panic!("{title}: {error}"));
        let body: Value = recorded.json();
        assert_eq!(got.project_id(), body["token"]["project"]["id"].as_str(), "{title}");
        assert_eq!(got.is_service(), title.contains("role service"), "{title}");
        let subject = recorded.headers.iter().find(|(name, _)| name == "X-Subject-Token");
        assert_eq!(got.header().expose(), &subject.unwrap().1, "{title}");
    }
}

#[tokio::test]
async fn the_recorded_catalog_has_cinder_in_each_region_under_another_name() {
    let recorded = exchange(AUTH, "password, project by name");
    let token = ask(&recorded, member(), project("k8s")).await.unwrap();
    let find = |name: &str, region: &str, interface| {
        let types = vec![name.to_owned()];
        let wanted = Wanted { types, region: Some(region.to_owned()), interface };
        token.catalog().find(&wanted, |_| true)
    };
    let one = find("block-storage", "RegionOne", Interface::Public).unwrap();
    assert!(one.path().ends_with("/v3"), "{one}");
    let two = find("volumev3", "RegionTwo", Interface::Internal).unwrap();
    assert!(two.path().ends_with(&format!("/v3/{PROJECT_ID}")), "{two}");
    let none = find("block-storage", "RegionTwo", Interface::Public).unwrap_err().to_string();
    assert!(none.contains("block-storage public in RegionOne (/v3)"), "{none}");
}

#[tokio::test]
async fn every_refusal_names_who_was_refused_in_keystones_words() {
    let wrong = "The request you have made requires authentication";
    let nowhere =
        User::Name { name: "member".to_owned(), domain: Domain::Name("Nowhere".to_owned()) };
    let by_name = ApplicationCredential::Name { name: "nothing".to_owned(), user: user("member") };
    for (title, by, scope, words) in [
        (
            "wrong password",
            password(user("member"), "not-it"),
            project("k8s"),
            ["user \"member\"", wrong],
        ),
        (
            "unknown user",
            password(user("nobody"), "PASSWORD-OF-NOBODY"),
            project("k8s"),
            ["user \"nobody\"", wrong],
        ),
        (
            "unknown domain of the user",
            password(nowhere, "PASSWORD-OF-MEMBER"),
            project("k8s"),
            ["domain \"Nowhere\"", wrong],
        ),
        ("unknown project", member(), project("nowhere"), ["project \"nowhere\"", wrong]),
        ("no role on the project", member(), project("other"), ["project \"other\"", wrong]),
        ("no role on the system", member(), Scope::System, ["for the system", wrong]),
        (
            "no role on the domain",
            member(),
            Scope::Domain(default()),
            ["for domain \"Default\"", wrong],
        ),
        (
            "wrong secret of the application credential",
            credential(credential_id(CREDENTIAL_ID), "not-it"),
            Scope::Unsaid,
            [CREDENTIAL_ID, "HTTP 401"],
        ),
        (
            "unknown application credential",
            credential(credential_id(&"0".repeat(32)), "SECRET-OF-THE-APPLICATION-CREDENTIAL"),
            Scope::Unsaid,
            ["application credential 0000", "HTTP 404"],
        ),
        (
            "unknown name of the application credential",
            credential(by_name, "SECRET-OF-THE-APPLICATION-CREDENTIAL"),
            Scope::Unsaid,
            ["\"nothing\" of user \"member\"", "HTTP 401"],
        ),
        (
            "application credential with a scope",
            credential(credential_id(CREDENTIAL_ID), "SECRET-OF-THE-APPLICATION-CREDENTIAL"),
            project("k8s"),
            [CREDENTIAL_ID, "cannot request a scope"],
        ),
        (
            "garbage token",
            token("garbage"),
            project("k8s"),
            ["the given token", "Could not recognize Fernet token"],
        ),
        (
            "revoked token",
            token("TOKEN-OF-MEMBER"),
            project("k8s"),
            ["the given token", "Failed to validate token"],
        ),
        (
            "expired token",
            token("EXPIRED-TOKEN"),
            project("k8s"),
            ["the given token", "Failed to validate token"],
        ),
        (
            "disabled user",
            password(user("other"), "PASSWORD-OF-OTHER"),
            project("other"),
            ["user \"other\"", wrong],
        ),
    ] {
        let error = ask(&exchange(REFUSALS, title), by, scope).await.unwrap_err();
        assert_eq!(error.reason(), "KeystoneUnauthorized", "{title}: {error}");
        let text = error.to_string();
        for word in words.into_iter().chain(["req-", "/v3/auth/tokens"]) {
            assert!(text.contains(word), "{title}: {word} is not in {text}");
        }
        assert!(!text.contains("not-it"), "{text}");
    }
    let delegated = exchange(REFUSALS, "token of an application credential, project by name");
    let by = token("TOKEN-OF-THE-APPLICATION-CREDENTIAL");
    let error = ask(&delegated, by, project("k8s")).await.unwrap_err();
    assert_eq!(error.reason(), "KeystoneRefused");
    assert!(error.to_string().contains("delegated token"), "{error}");
}
