//! Keystone's tokens against a real Keystone and Cinder, such as `scripts/test cinder` starts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cinder_replay;
mod conformance;

use std::sync::Arc;

use attachd::{
    cinder::{CinderError, Client, ListQuery, PREFERRED},
    cloud::{Cloud, Identity, Settings},
    keystone::Session,
    model::{AccessMode, Secret},
};
use conformance::{case_with_volume, client_of, cloud};
use futures::future::join_all;

fn of(name: &str) -> Cloud {
    cloud(Settings { os_cloud: Some(name.to_owned()), ..Settings::default() })
}

fn client(name: &str) -> (Client, Arc<Session>) {
    client_of(of(name), PREFERRED)
}

#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder starts one"]
async fn a_reader_may_look_and_change_nothing() {
    case_with_volume("reader", "tgt", async |bench, volume| {
        let (reader, _) = client("reader");
        assert_eq!(reader.show_volume(volume).await.unwrap().status, "available");
        let error = reader.create(volume, None, AccessMode::Rw).await.unwrap_err();
        assert!(matches!(error, CinderError::Forbidden(_)), "{error:?}");
        assert!(error.nothing_was_created() && error.to_string().contains("role"), "{error}");
        let all = bench.client().list(&ListQuery::default()).await.unwrap();
        assert!(all.iter().all(|attachment| attachment.volume_id != volume), "{all:?}");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder starts one"]
async fn another_project_does_not_even_see_the_volume() {
    case_with_volume("other", "tgt", async |_, volume| {
        let (other, _) = client("other");
        let error = other.show_volume(volume).await.unwrap_err();
        assert!(matches!(error, CinderError::NotFound(_)), "{error:?}");
        let error = other.create(volume, None, AccessMode::Rw).await.unwrap_err();
        assert_eq!(error.reason(), "CinderNotFound");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder starts one"]
async fn every_way_to_say_who_we_are_works() {
    for name in ["member", "reader", "application-credential", "application-credential-by-name"] {
        let (cinder, session) = client(name);
        cinder.list(&ListQuery::default()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!session.last_token().unwrap().is_service(), "{name}");
    }
    let (cinder, session) = client("service");
    cinder.list(&ListQuery::default()).await.unwrap();
    assert!(session.last_token().unwrap().is_service());

    let token = Arc::clone(&session).token(None).await.unwrap();
    let token = token.header().expose().to_str().unwrap().to_owned();
    let settings = Settings {
        os_cloud: Some("member".to_owned()),
        os_auth_type: Some("v3token".to_owned()),
        os_token: Some(Secret::new(token)),
        ..Settings::default()
    };
    let (cinder, _) = client_of(cloud(settings), PREFERRED);
    cinder.list(&ListQuery::default()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder starts one"]
async fn the_region_chooses_the_endpoint_and_an_unknown_one_is_told_with_what_there_is() {
    let (cinder, _) = client("other-region");
    cinder.list(&ListQuery::default()).await.unwrap();
    let mut nowhere = of("member");
    nowhere.service.region = Some("Atlantis".to_owned());
    let error = client_of(nowhere, PREFERRED).0.list(&ListQuery::default()).await.unwrap_err();
    for words in ["Atlantis", "RegionOne", "RegionTwo"] {
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder starts one"]
async fn a_wrong_password_is_told_without_it() {
    let mut wrong = of("member");
    let Identity::Keystone(credentials) = &mut wrong.identity else { panic!("no Keystone") };
    let attachd::keystone::Method::Password { password, .. } = &mut credentials.method else {
        panic!("no password")
    };
    *password = Secret::new("hunter2-hunter2".to_owned());
    let error = client_of(wrong, PREFERRED).0.list(&ListQuery::default()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("member") && !format!("{text} {error:?}").contains("hunter2"), "{text}");
}

/// Revoked while 50 requests are on their way.
#[tokio::test]
#[ignore = "needs a real Keystone: scripts/test cinder starts one"]
async fn a_token_that_ends_in_the_middle_is_replaced_once_and_no_request_fails() {
    let cloud = of("member");
    let Identity::Keystone(credentials) = &cloud.identity else { panic!("no Keystone") };
    let tokens = format!("{}/auth/tokens", credentials.auth_url.as_str().trim_end_matches('/'));
    let (cinder, session) = client_of(cloud, PREFERRED);
    let all = ListQuery::default();
    cinder.list(&all).await.unwrap();
    let revoked = session.last_token().unwrap();
    let asked = join_all((0..50).map(|number| {
        let (cinder, all, tokens, revoked) = (&cinder, &all, &tokens, &revoked);
        async move {
            if number == 10 {
                let header = revoked.header().expose();
                let http = reqwest::Client::builder().no_proxy().build().unwrap();
                let request = http.delete(tokens).header("x-auth-token", header);
                let answer = request.header("x-subject-token", header).send().await.unwrap();
                assert_eq!(answer.status().as_u16(), 204);
            }
            cinder.list(all).await
        }
    }));
    for answer in asked.await {
        answer.unwrap();
    }
    // Some may have been answered before the token was revoked; none is any more.
    join_all((0..50).map(|_| cinder.list(&all)))
        .await
        .into_iter()
        .for_each(|answer| drop(answer.unwrap()));
    let next = session.last_token().unwrap();
    assert!(!Arc::ptr_eq(&next, &revoked), "the revoked token is still in use");
}
