//! Trap 10: Cinder shows the CHAP password to whoever asks; this client never does.
//!
//! In a program of its own, since what tracing records depends on the threads beside it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod captured;
mod cinder_replay;

use std::collections::BTreeSet;

use attachd::{
    cinder::{Attachment, ListQuery},
    model::AttachmentId,
};
use captured::{Captured, show};
use cinder_replay::{Exchange, Replay, connector, exchange, exchanges, recording};
use serde_json::json;

const ATTACHMENT: &str = "ab1b49b3-e5a0-41a5-82cf-85c44a162126";

fn attachment(text: &str) -> AttachmentId {
    text.parse().unwrap()
}

/// Every CHAP password of the recordings.
fn passwords() -> BTreeSet<String> {
    let files = [
        "attach.txt",
        "complete.txt",
        "lists.txt",
        "nova.txt",
        "old.txt",
        "read-only.txt",
        "rights.txt",
    ];
    let found: BTreeSet<String> = files
        .iter()
        .flat_map(|file| recording(file))
        .flat_map(|exchange| {
            let parts: Vec<String> =
                exchange.body.split("\"auth_password\": \"").skip(1).map(str::to_owned).collect();
            parts
        })
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect();
    assert!(found.len() >= 4, "{}", found.len());
    found
}

#[tokio::test]
async fn no_chap_password_and_no_token_reaches_a_log_an_error_or_a_debug_print() {
    let log = Captured::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // One thread: the requests run where the subscriber is.
    let guard = tracing::subscriber::set_default(subscriber);
    let mut shown = Vec::new();
    let mut see = |attachment: &Attachment| {
        shown.push(format!("{attachment:?} {attachment:#?} {:?}", attachment.connection_info()));
    };

    let replay = Replay::of(exchanges("attach.txt", &["update", "show after the update"])).await;
    let cinder = replay.client();
    see(&cinder.update(attachment(ATTACHMENT), &connector()).await.unwrap());
    see(&cinder.show(attachment(ATTACHMENT)).await.unwrap());
    replay.finish();
    let replay = Replay::of(vec![exchange("lists.txt", "detail")]).await;
    for item in &replay.client().detail(&ListQuery::default()).await.unwrap() {
        assert!(item.connection_info().unwrap().unwrap().chap.is_some());
        see(item);
    }
    replay.finish();

    // The same bodies where they must not be: cut off, under another status, in another place.
    let whole = exchange("attach.txt", "show after the update").for_anything();
    let cut = Exchange { body: whole.body[..whole.body.len() - 20].to_owned(), ..whole.clone() };
    let refused = Exchange { status: 400, ..whole.clone() };
    let failed = Exchange { status: 500, ..whole.clone() };
    let text = Exchange { body: json!({"attachment": whole.body}).to_string(), ..whole.clone() };
    let texts =
        Exchange { body: json!({"attachments": [whole.body]}).to_string(), ..whole.clone() };
    let replay = Replay::of(vec![cut, refused, failed, text, texts, whole]).await;
    let cinder = replay.client();
    for error in [
        cinder.show(attachment(ATTACHMENT)).await.map(drop).unwrap_err(),
        cinder.show(attachment(ATTACHMENT)).await.map(drop).unwrap_err(),
        cinder.show(attachment(ATTACHMENT)).await.map(drop).unwrap_err(),
        cinder.show(attachment(ATTACHMENT)).await.map(drop).unwrap_err(),
        cinder.detail(&ListQuery::default()).await.map(drop).unwrap_err(),
        cinder.complete(attachment(ATTACHMENT)).await.unwrap_err(),
    ] {
        shown.push(show(&error));
    }
    replay.finish();
    drop(guard);

    let logged = log.text();
    assert!(logged.contains("Cinder answered"), "the log was not captured: {logged}");
    for (place, text) in [("a log", &logged), ("a print", &shown.concat())] {
        for password in passwords() {
            assert!(!text.contains(&password), "{password} reached {place}");
        }
        let token = format!("admin:{}", cinder_replay::PROJECT);
        assert!(!text.contains(&token), "the token reached {place}");
    }
}
