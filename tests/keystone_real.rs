//! The client against a real Cinder behind a real Keystone: `ATTACHD_TEST_CLOUDS` is a clouds.yaml with the
//! clouds `member`, `reader` and `service`, `application-credential` and `application-credential-by-name`, `other` of another
//! project, `other-region`, and `system`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cinder_replay;
mod conformance;

use std::{sync::Arc, time::Duration};

use attachd::{
    cinder::{Auth, CinderError, Client, ClientConfig, ListQuery, service_types},
    cloud::{Cloud, Identity, Places, Settings},
    keystone::{Credentials, KeystoneError, Method, Session, SessionConfig, Wanted},
    model::{AccessMode, Secret},
};
use conformance::with_real_volume;
use futures::future::join_all;

#[expect(clippy::disallowed_methods, reason = "the test's own configuration")]
fn settings(cloud: &str) -> Settings {
    let file = std::env::var("ATTACHD_TEST_CLOUDS").unwrap_or_else(|_| {
        panic!("ATTACHD_TEST_CLOUDS is not set: this test needs a real Keystone, which scripts/test starts")
    });
    Settings {
        os_cloud: Some(cloud.to_owned()),
        os_client_config_file: Some(file),
        ..Settings::default()
    }
}

fn cloud(name: &str) -> Cloud {
    let settings = settings(name);
    Cloud::find(&settings, &Places::usual(&settings)).unwrap()
}

fn client(name: &str) -> Client {
    let auth = cloud(name).auth(&SessionConfig::default(), None).unwrap();
    Client::new(auth, ClientConfig::default()).unwrap()
}

fn credentials(name: &str) -> Credentials {
    match cloud(name).identity {
        Identity::Keystone(credentials) => credentials,
        Identity::Standalone { .. } => panic!("{name} is without Keystone"),
    }
}

#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder"]
async fn every_way_to_prove_who_we_are_lists_attachments() {
    for name in [
        "member",
        "reader",
        "service",
        "other",
        "application-credential",
        "application-credential-by-name",
        "other-region",
        "system",
    ] {
        let listed = client(name).list(&ListQuery::default()).await;
        assert!(listed.is_ok(), "{name}: {listed:?}");
    }
}

#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder"]
async fn only_the_service_is_one() {
    for (name, expected) in
        [("service", true), ("member", false), ("application-credential", false)]
    {
        assert_eq!(client(name).is_service().await.unwrap(), expected, "{name}");
    }
}

#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder"]
async fn a_token_gets_a_token() {
    let config = SessionConfig::default;
    let member = credentials("member");
    let first = Session::new(member.clone(), None, config()).unwrap().token(None).await.unwrap();
    let text = first.header().expose().to_str().unwrap().to_owned();
    let by_token = Credentials { method: Method::Token(Secret::new(text)), ..member };
    let second = Session::new(by_token.clone(), None, config()).unwrap().token(None).await.unwrap();
    assert_eq!(second.project_id(), first.project_id());

    let garbage =
        Credentials { method: Method::Token(Secret::new("garbage".to_owned())), ..by_token };
    let error = Session::new(garbage, None, config()).unwrap().token(None).await.unwrap_err();
    assert!(matches!(*error, KeystoneError::Unauthorized { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real Keystone: scripts/test cinder"]
async fn a_token_that_is_revoked_under_fifty_requests_is_replaced_once_and_none_fails() {
    let credentials = credentials("member");
    let revoke = {
        let url = credentials.auth_url.as_str().trim_end_matches('/');
        format!("{}/v3/auth/tokens", url.trim_end_matches("/v3"))
    };
    let session = Arc::new(Session::new(credentials, None, SessionConfig::default()).unwrap());
    let wanted = Wanted {
        types: service_types(None),
        region: None,
        interface: cloud("member").service.interface,
    };
    let auth = Auth::keystone(Arc::clone(&session), wanted, None).unwrap();
    let config =
        ClientConfig { request_timeout: Duration::from_mins(2), ..ClientConfig::default() };
    let client = Client::new(auth, config).unwrap();
    client.list(&ListQuery::default()).await.unwrap();
    let first = session.last_token().unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let revoked = http
        .delete(revoke)
        .header("x-auth-token", first.header().expose())
        .header("x-subject-token", first.header().expose())
        .send()
        .await
        .unwrap();
    assert_eq!(revoked.status(), 204);
    let one = ListQuery { limit: Some(1), ..ListQuery::default() };
    let all = join_all((0..50).map(|_| client.list(&one))).await;
    assert!(all.iter().all(Result::is_ok), "{:?}", all.iter().find(|one| one.is_err()));
    let second = session.last_token().unwrap();
    assert!(!Arc::ptr_eq(&first, &second), "Cinder still takes a revoked token");
}

#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder"]
async fn a_wrong_password_is_told_in_keystones_words() {
    let settings =
        Settings { os_password: Some(Secret::new("wrong".to_owned())), ..settings("member") };
    let cloud = Cloud::find(&settings, &Places::usual(&settings)).unwrap();
    let auth = cloud.auth(&SessionConfig::default(), None).unwrap();
    let client = Client::new(auth, ClientConfig::default()).unwrap();
    let error = client.list(&ListQuery::default()).await.unwrap_err();
    assert!(matches!(error, CinderError::Keystone(_)), "{error:?}");
    assert_eq!(error.reason(), "KeystoneUnauthorized");
    assert!(error.to_string().contains("requires authentication"), "{error}");
}

#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder"]
async fn a_reader_may_look_and_change_nothing() {
    with_real_volume("tgt", async |bench, volume| {
        let reader = client("reader");
        assert_eq!(reader.show_volume(volume).await.unwrap().status, "available");
        let error = reader.create(volume, None, AccessMode::Rw).await.unwrap_err();
        assert!(matches!(error, CinderError::Forbidden(_)), "{error:?}");
        assert!(error.nothing_was_created() && error.to_string().contains("role"), "{error}");
        let of_volume = ListQuery { volume_id: Some(volume), ..ListQuery::default() };
        assert_eq!(bench.client().list(&of_volume).await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder"]
async fn another_project_does_not_even_see_the_volume() {
    with_real_volume("tgt", async |_, volume| {
        let other = client("other");
        for error in [
            other.show_volume(volume).await.unwrap_err(),
            other.create(volume, None, AccessMode::Rw).await.unwrap_err(),
        ] {
            assert!(matches!(error, CinderError::NotFound(_)), "{error:?}");
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder"]
async fn an_unknown_region_is_told_with_those_there_are() {
    let mut nowhere = cloud("member");
    nowhere.service.region = Some("Atlantis".to_owned());
    let auth = nowhere.auth(&SessionConfig::default(), None).unwrap();
    let client = Client::new(auth, ClientConfig::default()).unwrap();
    let error = client.list(&ListQuery::default()).await.unwrap_err().to_string();
    for words in ["Atlantis", "RegionOne", "RegionTwo"] {
        assert!(error.contains(words), "{error}");
    }
}
