//! Neither the password nor a token reaches a log, an error or a print, whatever Keystone and Cinder say.
//!
//! In a program of its own, since what tracing records depends on the threads beside it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod captured;

use std::{sync::Arc, time::Duration};

use attachd::{
    cinder::{Auth, BlockStorage, Client, ClientConfig, service_types},
    keystone::{Credentials, Interface, Method, Scope, Session, SessionConfig, User, Wanted},
    model::{Secret, VolumeId},
};
use captured::{Captured, show};
use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{any, path},
};

const PASSWORD: &str = "correct-horse-battery";
const TOKEN: &str = "gAAAAABqThisIsTheToken";

fn token(url: &str) -> Value {
    json!({"token": {
        "issued_at": "2026-11-22T02:55:54Z", "expires_at": "2026-11-22T03:55:54Z",
        "project": {"id": "c0ffee"}, "roles": [{"name": "service"}],
        "catalog": [{"type": "block-storage", "endpoints": [{"interface": "public", "region": "one", "url": url}]}],
    }})
}

/// Asks for a volume where Keystone and Cinder say that.
async fn ask(keystone: ResponseTemplate, cinder: ResponseTemplate) -> String {
    let server = MockServer::start().await;
    Mock::given(path("/v3/auth/tokens")).respond_with(keystone).mount(&server).await;
    Mock::given(any()).respond_with(cinder).mount(&server).await;
    let credentials = Credentials {
        auth_url: server.uri().parse().unwrap(),
        method: Method::Password {
            user: User::Id("u".to_owned()),
            password: Secret::new(PASSWORD.to_owned()),
        },
        scope: Scope::Unsaid,
    };
    let wanted = Wanted { types: service_types(None), region: None, interface: Interface::Public };
    let mut shown = format!("{credentials} {credentials:?}");
    let config =
        SessionConfig { first_pause: Duration::from_millis(1), ..SessionConfig::default() };
    let session = Arc::new(Session::new(credentials, None, config).unwrap());
    let endpoint = format!("{}/volume", server.uri());
    let auth = Auth::keystone(Arc::clone(&session), wanted, Some(&endpoint)).unwrap();
    shown = format!("{shown} {auth:?}");
    let config = ClientConfig { first_pause: Duration::from_millis(1), ..ClientConfig::default() };
    let client = Client::new(auth, config).unwrap();
    let volume: VolumeId = "7a29c609-53cc-4134-830f-6d08a0b9da91".parse().unwrap();
    match client.volume(volume).await {
        Ok(volume) => shown = format!("{shown} {volume:?}"),
        Err(error) => shown = format!("{shown} {}", show(&error)),
    }
    format!("{shown} {session:?} {client:?}")
}

#[tokio::test]
async fn no_password_and_no_token_reaches_a_log_an_error_or_a_debug_print() {
    let log = Captured::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // One thread: the requests run where the subscriber is.
    let guard = tracing::subscriber::set_default(subscriber);
    let made = |body: Value| {
        ResponseTemplate::new(201).insert_header("x-subject-token", TOKEN).set_body_json(body)
    };
    let fault = |status: u16, text: &str| {
        ResponseTemplate::new(status).set_body_json(json!({"error": {"message": text}}))
    };
    let echo = format!("{PASSWORD} and {TOKEN} are wrong");
    let volume = json!({"volume": {"id": "7a29c609-53cc-4134-830f-6d08a0b9da91", "name": "", "status": "available", "size": 1}});
    let good = ResponseTemplate::new(200).set_body_json(volume);
    let mut shown = Vec::new();
    for (keystone, cinder) in [
        (made(token("http://127.0.0.1:1")), good.clone()),
        (made(token("http://127.0.0.1:1")), fault(401, "no")),
        (made(json!({"token": TOKEN, "password": PASSWORD})), good.clone()),
        (ResponseTemplate::new(201).set_body_json(json!({"token": TOKEN})), good.clone()),
        (fault(401, &format!("{PASSWORD} is wrong")), good.clone()),
        (fault(400, &format!("'{PASSWORD}' is too long")), good.clone()),
        (fault(500, &format!("could not check {PASSWORD}")), good.clone()),
        (ResponseTemplate::new(200).set_body_string(echo), good),
    ] {
        shown.push(ask(keystone, cinder).await);
    }
    drop(guard);

    let logged = log.text();
    for word in ["Keystone answered", "Cinder answered", "no token: "] {
        assert!(logged.contains(word), "the log was not captured: {logged}");
    }
    for (place, text) in [("a log", &logged), ("a print", &shown.concat())] {
        for secret in [PASSWORD, TOKEN] {
            assert!(!text.contains(secret), "{secret} reached {place}: {text}");
        }
    }
}
