//! The Cinder client against what a real Cinder 29 answered: recorded, and replayed strictly.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cinder_replay;

use std::collections::BTreeSet;

use attachd::{
    cinder::{
        AttachmentStatus, BlockStorage, CinderError, Client, Deleted, ListQuery, Microversion,
    },
    model::{AccessMode, AttachmentId, Connector, Retry, VolumeId},
};
use cinder_replay::{Exchange, Replay, connector, exchange, exchanges, recording};
use serde_json::{Value, json};
use uuid::Uuid;

fn volume(text: &str) -> VolumeId {
    text.parse().unwrap()
}

fn attachment(text: &str) -> AttachmentId {
    text.parse().unwrap()
}

fn instance(text: &str) -> Uuid {
    text.parse().unwrap()
}

/// A fault as Cinder would say it.
fn fault(status: u16, headers: &[(&str, &str)], message: &str) -> Exchange {
    Exchange {
        status,
        headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        body: json!({"fault": {"code": status, "message": message}}).to_string(),
        ..Exchange::default()
    }
}

const VOLUME: &str = "408c7301-4bec-4442-b377-59ac6ff160e9";
const ATTACHMENT: &str = "ab1b49b3-e5a0-41a5-82cf-85c44a162126";

// ── The operations ──

#[tokio::test]
async fn an_attachment_is_reserved_updated_shown_and_deleted_with_one_request_each() {
    let replay = Replay::of(exchanges(
        "attach.txt",
        &["volume while available", "reserve", "update", "show after the update", "delete"],
    ))
    .await;
    let cinder = replay.client();
    let found = cinder.volume(volume(VOLUME)).await.unwrap().unwrap();
    assert_eq!((found.status.as_str(), found.size_gib, found.name.as_str()), ("available", 1, "x"));
    assert!(!found.multiattach && found.attachments.is_empty());

    let reserved = cinder.reserve(volume(VOLUME), None, AccessMode::Rw).await.unwrap();
    assert_eq!(reserved.summary.id, attachment(ATTACHMENT));
    assert_eq!(reserved.summary.status, AttachmentStatus::Reserved);
    assert_eq!(reserved.connection_info().unwrap(), None);

    let updated = cinder.update(attachment(ATTACHMENT), &connector()).await.unwrap();
    let info = updated.connection_info().unwrap().unwrap();
    assert_eq!(info.paths.len(), 2);
    assert_eq!(info.chap.unwrap().password.expose(), "m4HvvQQpHzh7HVQZ");

    let shown = cinder.attachment(attachment(ATTACHMENT)).await.unwrap().unwrap();
    assert_eq!(shown.summary.status, AttachmentStatus::Attaching);
    assert!(shown.attached_at.is_some() && shown.detached_at.is_none());

    BlockStorage::delete(&cinder, attachment(ATTACHMENT)).await.unwrap();
    replay.finish();
}

#[tokio::test]
async fn a_cloud_of_3_27_gets_requests_of_3_27_without_a_mode() {
    let replay = Replay::of(recording("old.txt")).await;
    let cinder = replay.client_up_to(27);
    let id = volume("7a29c609-53cc-4134-830f-6d08a0b9da91");
    let server = Some(instance("b0d7b40c-0320-4fd4-95a6-6aa9af1312e9"));
    let reserved = cinder.reserve(id, server, AccessMode::Rw).await.unwrap();
    let connector = Connector {
        multipath: false,
        system_uuid: Some("c946bedb-ad02-46b2-b617-799d9239da42".to_owned()),
        ..connector()
    };
    let updated = cinder.update(reserved.summary.id, &connector).await.unwrap();
    // The plural keys come even without multipath.
    assert!(updated.connection_info().unwrap().unwrap().complete);
    replay.finish();
}

#[tokio::test]
async fn a_read_only_reservation_stays_read_only_through_the_update() {
    let replay = Replay::of(recording("read-only.txt")).await;
    let cinder = replay.client();
    let id = volume("e4aea947-06a5-4a2f-ac3d-71a6e2ab6641");
    let reserved = cinder.reserve(id, None, AccessMode::Ro).await.unwrap();
    assert_eq!(reserved.mode, Some(AccessMode::Ro));
    let updated = cinder.update(reserved.summary.id, &connector()).await.unwrap();
    let shown = cinder.show(reserved.summary.id).await.unwrap();
    assert_eq!((updated.mode, shown.mode), (Some(AccessMode::Ro), Some(AccessMode::Ro)));
    // The connection info does not say so: nobody may read the mode from there.
    assert_eq!(updated.connection_info().unwrap().unwrap().access_mode, AccessMode::Rw);
    replay.finish();
}

// ── The traps ──

/// Trap 1.
#[tokio::test]
async fn the_stale_fields_of_an_update_are_what_a_show_says_afterwards() {
    for (file, update, show) in [
        ("attach.txt", "update", "show after the update"),
        ("complete.txt", "update after complete", "show after update"),
        ("read-only.txt", "update of mode=ro reserve", "show read-only"),
    ] {
        let both = exchanges(file, &[update, show]);
        let id = both[0].json()["attachment"]["id"].as_str().unwrap().to_owned();
        let stale = both[0].json()["attachment"]["status"].clone();
        assert!(stale != json!("attaching"), "{file}: the recording shows no stale field");
        let replay = Replay::of(both).await;
        let cinder = replay.client();
        let updated = cinder.update(attachment(&id), &connector()).await.unwrap();
        let shown = cinder.show(attachment(&id)).await.unwrap();
        assert_eq!(updated.summary, shown.summary, "{file}");
        assert_eq!(updated.mode, shown.mode, "{file}");
        assert_eq!(updated.connection_info(), shown.connection_info(), "{file}");
        assert_eq!(updated.attached_at, None, "{file}: not known without asking");
        replay.finish();
    }
}

/// Trap 2: what a create with a connector leaves behind, and why this client never sends one.
#[tokio::test]
async fn a_reservation_that_leaked_is_found_by_its_volume() {
    let replay = Replay::of(exchanges(
        "connector.txt",
        &["volume after the leak", "attachments after the leak"],
    ))
    .await;
    let cinder = replay.client();
    let id = volume("e4aea947-06a5-4a2f-ac3d-71a6e2ab6641");
    assert_eq!(cinder.volume(id).await.unwrap().unwrap().status, "reserved");
    let left = cinder.attachments_of(id).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!((&left[0].status, &left[0].instance), (&AttachmentStatus::Reserved, &None));
    replay.finish();
}

/// Trap 3.
#[tokio::test]
async fn a_delete_that_waits_for_nova_says_so_and_what_to_do() {
    let cases = [
        (
            "nova says 401",
            "show while Nova answers 401",
            "7b82aeda-88a8-41c2-9e0c-cbac2f4e0db6",
            "role service",
        ),
        (
            "nova says: this very attachment",
            "show of the attachment that Nova uses (made from the one above: it was not recorded)",
            "97bb7f9b-1f5e-4135-9b7d-291b4b0ff337",
            "openstack server remove volume",
        ),
    ];
    for (refused, show, server, advice) in cases {
        let both = exchanges("nova.txt", &[refused, show]);
        let id = attachment(both[1].json()["attachment"]["id"].as_str().unwrap());
        let replay = Replay::of(both).await;
        let error = replay.client().delete(id).await.unwrap_err();
        let CinderError::HeldByNova { instance, answered } = &error else { panic!("{error:?}") };
        assert_eq!(instance, server);
        assert!(answered.request_id.as_ref().unwrap().starts_with("req-"));
        assert!(error.to_string().contains(advice), "{error}");
        assert_eq!((error.reason(), error.retry()), ("HeldByNova", Retry::Backoff));
        replay.finish();
    }
}

/// Trap 3.
#[tokio::test]
async fn a_failed_delete_of_an_attachment_without_an_instance_does_not_blame_nova() {
    let mut failed = exchange("nova.txt", "nova down").for_anything();
    failed.body = failed.body.replace("394637e9-891d-469e-9b29-28a689f21fa0", ATTACHMENT);
    let show = exchange("attach.txt", "show after the update");
    let replay = Replay::of(vec![failed, show]).await;
    let error = replay.client().delete(attachment(ATTACHMENT)).await.unwrap_err();
    assert!(matches!(error, CinderError::ServerFault(_)), "{error:?}");
    replay.finish();
}

/// Trap 4 and trap 9.
#[tokio::test]
async fn a_second_reservation_is_refused_in_cinders_words_and_worth_a_later_try() {
    let normal = "ff1b7fa0-30b8-49ac-85cb-20d12141625f";
    let other = Some(instance("dbd34eec-8535-44c5-98fc-0f824f174dad"));
    let multi = "72d3b1e9-94fb-4e09-b3af-b16affe8368e";
    for (title, id, instance, words) in [
        ("second reserve, other instance", normal, other, "current status is reserved"),
        ("second reserve, no instance", normal, None, "current status is reserved"),
        ("multiattach: 2nd reserve while reserved", multi, None, "current status is reserved"),
        ("multiattach: 2nd reserve while attaching", multi, None, "current status is attaching"),
        ("reserve in error", VOLUME, None, "error state"),
        ("reserve while deleting", VOLUME, None, "current status is deleting"),
    ] {
        let replay = Replay::of(vec![exchange("reserve.txt", title)]).await;
        let error =
            replay.client().reserve(volume(id), instance, AccessMode::Rw).await.unwrap_err();
        assert!(matches!(error, CinderError::Refused(_)), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.retry(), Retry::Backoff);
        assert!(error.nothing_was_created());
        replay.finish();
    }
}

/// Trap 4: the one case where Cinder gives a second one.
#[tokio::test]
async fn the_same_instance_gets_a_second_reservation_and_a_delete_tells_what_remains() {
    let replay =
        Replay::of(exchanges("reserve.txt", &["second reserve, same instance", "delete second"]))
            .await;
    let cinder = replay.client();
    let id = volume("ff1b7fa0-30b8-49ac-85cb-20d12141625f");
    let server = Some(instance("ab537f67-9125-4f4a-bb7e-b24b64d9576f"));
    let second = cinder.reserve(id, server, AccessMode::Rw).await.unwrap();
    let Deleted::Deleted { remaining } = cinder.delete(second.summary.id).await.unwrap() else {
        panic!("it was there")
    };
    assert_eq!(remaining[0].id, attachment("edbbe6ad-ce79-4dd3-b883-7aa116e22127"));
    replay.finish();
}

/// Trap 4 and trap 8.
#[tokio::test]
async fn an_update_that_conflicts_says_why() {
    for (title, id, words) in [
        (
            "update while the volume is in error",
            "11a3b2da-1be8-40be-9742-4f27c0648516",
            "error state",
        ),
        (
            "update by a node that has it",
            "eb8baa15-a709-4ea9-9b0a-cdf44d75f754",
            "duplicate connectors",
        ),
    ] {
        let replay = Replay::of(vec![exchange("reserve.txt", title)]).await;
        let error = replay.client().update(attachment(id), &connector()).await.unwrap_err();
        assert!(matches!(error, CinderError::Conflict(_)), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        replay.finish();
    }
}

/// Trap 5.
#[tokio::test]
async fn complete_says_nothing_about_the_connection_and_an_update_takes_it_back() {
    let replay = Replay::of(recording("complete.txt")).await;
    let cinder = replay.client();
    let id = volume("e4aea947-06a5-4a2f-ac3d-71a6e2ab6641");
    let reserved = cinder.reserve(id, None, AccessMode::Rw).await.unwrap().summary.id;
    cinder.complete(reserved).await.unwrap();
    let shown = cinder.show(reserved).await.unwrap();
    assert_eq!(shown.summary.status, AttachmentStatus::Attached);
    assert_eq!(shown.connection_info().unwrap(), None, "attached, and to nothing");
    assert_eq!(cinder.show_volume(id).await.unwrap().status, "in-use");
    let updated = cinder.update(reserved, &connector()).await.unwrap();
    assert_eq!(updated.summary.status, AttachmentStatus::Attaching);
    assert_eq!(cinder.show(reserved).await.unwrap().summary.status, AttachmentStatus::Attaching);
    assert_eq!(cinder.show_volume(id).await.unwrap().status, "attaching");
    cinder.complete(reserved).await.unwrap();
    assert_eq!(cinder.delete(reserved).await.unwrap(), Deleted::Deleted { remaining: vec![] });
    assert_eq!(cinder.delete(reserved).await.unwrap(), Deleted::AlreadyGone);
    assert_eq!(cinder.show_volume(id).await.unwrap().status, "available");
    replay.finish();
}

/// Trap 6: this client can't send such connectors; drivers may still miss what they need.
#[tokio::test]
async fn a_connector_that_the_back_end_finds_incomplete_is_refused_in_its_words() {
    let id = attachment("edbbe6ad-ce79-4dd3-b883-7aa116e22127");
    for (title, reason, words) in [
        ("update: no initiator", "CinderRefused", "information: initiator"),
        ("update: no host", "CinderFault", "Unable to update the attachment"),
    ] {
        let replay = Replay::of(vec![exchange("connector.txt", title).for_anything()]).await;
        let error = replay.client().update(id, &connector()).await.unwrap_err();
        assert_eq!(error.reason(), reason);
        assert!(error.to_string().contains(words), "{error}");
        replay.finish();
    }
}

/// Trap 7: none of what Cinder refused in the recordings can come from this client.
#[tokio::test]
async fn no_request_holds_a_null_or_nothing_where_cinder_wants_something() {
    for title in
        ["mode null", "instance null", "no body", "mode at 3.53", "instance_uuid not a uuid"]
    {
        let refused = exchange("connector.txt", title);
        assert!(refused.status >= 400);
        let minor = if title == "mode at 3.53" { 53 } else { 54 };
        let id = volume("ff1b7fa0-30b8-49ac-85cb-20d12141625f");
        let mut made = refused.clone();
        let read_only = (minor == 54).then_some(("mode", json!("ro")));
        let body: serde_json::Map<String, Value> = [("volume_uuid", json!(id))]
            .into_iter()
            .chain(read_only)
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        made.sent = Some(json!({"attachment": body}));
        assert_ne!(made.sent, refused.sent, "{title}");
        let replay = Replay::of(vec![made]).await;
        replay.client_up_to(minor).reserve(id, None, AccessMode::Ro).await.unwrap_err();
        replay.finish();
    }
}

/// Trap 8.
#[tokio::test]
async fn a_back_end_that_fails_leaves_the_attachment_reserved_and_a_later_update_works() {
    let replay = Replay::of(exchanges(
        "attach.txt",
        &["update while the back end fails", "show after the failure", "update"],
    ))
    .await;
    let cinder = replay.client();
    let id = attachment(ATTACHMENT);
    let error = cinder.update(id, &connector()).await.unwrap_err();
    assert!(matches!(error, CinderError::ServerFault(_)), "{error:?}");
    assert!(error.to_string().contains("Create export for volume failed"), "{error}");
    assert_eq!(error.retry(), Retry::Backoff);
    assert_eq!(cinder.show(id).await.unwrap().summary.status, AttachmentStatus::Reserved);
    cinder.update(id, &connector()).await.unwrap();
    replay.finish();
}

/// Trap 9.
#[tokio::test]
async fn a_multiattach_volume_can_be_reserved_again_once_it_is_in_use() {
    let replay = Replay::of(exchanges(
        "reserve.txt",
        &["volume with both attached", "third reserve when in-use"],
    ))
    .await;
    let cinder = replay.client();
    let id = volume("72d3b1e9-94fb-4e09-b3af-b16affe8368e");
    let found = cinder.show_volume(id).await.unwrap();
    assert!(found.multiattach);
    let hosts: Vec<&str> =
        found.attachments.iter().filter_map(|a| a.host_name.as_deref()).collect();
    assert_eq!(hosts, ["node-1", "node-2"]);
    cinder.reserve(id, None, AccessMode::Rw).await.unwrap();
    replay.finish();
}

// ── Lists ──

#[tokio::test]
async fn a_list_is_asked_for_by_the_filters_that_work() {
    let multi = volume("72d3b1e9-94fb-4e09-b3af-b16affe8368e");
    let server = "93f48792-dba9-4107-846e-6b9bd9a6c541".to_owned();
    let cases = [
        ("list ?volume_id", ListQuery { volume_id: Some(multi), ..ListQuery::default() }, 2),
        (
            "list ?instance_id=93f",
            ListQuery { instance_id: Some(server), ..ListQuery::default() },
            1,
        ),
        ("list ?offset=1", ListQuery { offset: Some(1), ..ListQuery::default() }, 6),
        (
            "list ?sort=id:asc",
            ListQuery { sort: Some("id:asc".to_owned()), ..ListQuery::default() },
            7,
        ),
    ];
    for (title, query, expected) in cases {
        let mut recorded = exchange("lists.txt", title);
        // Written as it is in the recording; percent-encoded by this client. The server can't tell.
        let (_, path) = recorded.asked.as_mut().unwrap();
        *path = path.replace("id:asc", "id%3Aasc");
        let replay = Replay::of(vec![recorded]).await;
        assert_eq!(replay.client().list(&query).await.unwrap().len(), expected, "{title}");
        replay.finish();
    }
}

#[tokio::test]
async fn a_cloud_that_ignores_a_filter_does_not_get_its_other_attachments_through() {
    let everything = exchange("lists.txt", "an unknown filter at 3.27").for_anything();
    let asked = volume("5fe10ada-7ebf-40ad-bb90-e8f5e07eab85");
    let count = everything.json()["attachments"].as_array().unwrap().len();
    let replay = Replay::of(vec![everything.clone(), everything.clone(), everything]).await;
    let cinder = replay.client();
    let listed = cinder.attachments_of(asked).await.unwrap();
    assert!(!listed.is_empty() && listed.len() < count);
    assert!(listed.iter().all(|item| item.volume_id == asked));
    let nobody = ListQuery { instance_id: Some("x".to_owned()), ..ListQuery::default() };
    assert_eq!(cinder.list(&nobody).await.unwrap(), []);
    let none =
        ListQuery { attach_status: Some(AttachmentStatus::Reserved), ..ListQuery::default() };
    assert_eq!(cinder.list(&none).await.unwrap(), []);
    replay.finish();
}

#[tokio::test]
async fn pages_follow_the_last_marker_until_there_is_enough() {
    let pages = exchanges("lists.txt", &["list ?limit=2", "list ?limit=2&marker"]);
    let replay = Replay::of(pages).await;
    let query = ListQuery { page_size: Some(2), limit: Some(4), ..ListQuery::default() };
    let listed = replay.client().list(&query).await.unwrap();
    let ids: BTreeSet<AttachmentId> = listed.iter().map(|item| item.id).collect();
    assert_eq!(ids.len(), 4);
    replay.finish();
}

#[tokio::test]
async fn a_page_that_the_cloud_may_have_cut_is_followed_by_another() {
    let all = exchange("lists.txt", "admin: all_tenants");
    let items = all.json()["attachments"].as_array().unwrap().clone();
    let mut end = Exchange { body: json!({"attachments": []}).to_string(), ..all.clone() };
    let (_, path) = end.asked.as_mut().unwrap();
    *path = format!("{path}&marker={}", items.last().unwrap()["id"].as_str().unwrap());
    let replay = Replay::of(vec![all, end]).await;
    let query = ListQuery { all_tenants: true, ..ListQuery::default() };
    assert_eq!(replay.client().list(&query).await.unwrap().len(), items.len());
    replay.finish();
}

#[tokio::test]
async fn a_server_that_ignores_the_marker_does_not_make_us_ask_for_ever() {
    let page = exchange("lists.txt", "list ?limit=2").for_anything();
    let replay = Replay::of(vec![page.clone(), page]).await;
    let query = ListQuery { page_size: Some(2), ..ListQuery::default() };
    let error = replay.client().list(&query).await.unwrap_err();
    assert!(error.to_string().contains("pages repeat"), "{error}");
    replay.finish();
}

#[tokio::test]
async fn a_bad_sort_key_is_refused_and_an_unknown_marker_is_worth_a_new_start() {
    let replay =
        Replay::of(vec![exchange("lists.txt", "list ?sort=nope:asc").for_anything()]).await;
    let query = ListQuery { sort: Some("nope:asc".to_owned()), ..ListQuery::default() };
    let error = replay.client().list(&query).await.unwrap_err();
    assert!(matches!(error, CinderError::Refused(_)), "{error:?}");
    let replay = Replay::of(vec![exchange("lists.txt", "list ?marker=unknown")]).await;
    let marker = Some(attachment("cda472a1-afef-4562-bafb-24b743f3b37c"));
    let error =
        replay.client().list(&ListQuery { marker, ..ListQuery::default() }).await.unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("CinderNotFound", Retry::Now));
    replay.finish();
}

// ── Versions and addresses ──

#[tokio::test]
async fn a_version_that_is_too_new_is_looked_up_once_and_remembered() {
    let mut first = exchange("versions.txt", "GET list at 3.99");
    let mut second = exchange("versions.txt", "GET list at 3.27");
    first.version = Some("volume 3.99".to_owned());
    second.version = Some("volume 3.71".to_owned());
    let replay =
        Replay::of(vec![first, exchange("versions.txt", "v3 root"), second.clone(), second]).await;
    let cinder = replay.client_up_to(99);
    for _ in 0..2 {
        assert_eq!(cinder.list(&ListQuery::default()).await.unwrap().len(), 1);
        assert_eq!(cinder.version(), Microversion::v3(71));
    }
    replay.finish();
}

/// The recorded version document, as an older cloud has it.
fn root_up_to(version: &str) -> Exchange {
    let mut root = exchange("versions.txt", "v3 root");
    root.body = root.body.replace("3.71", version);
    root
}

#[tokio::test]
async fn a_cloud_without_attachments_is_too_old_and_the_error_says_both_versions() {
    let refused = exchange("versions.txt", "GET list at 3.99").for_anything();
    let replay = Replay::of(vec![refused, root_up_to("3.26")]).await;
    let error = replay.client().list(&ListQuery::default()).await.unwrap_err();
    assert!(matches!(error, CinderError::TooOld { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("3.26") && text.contains("3.27") && text.contains("Ocata"), "{text}");
    assert_eq!(error.retry(), Retry::OnChange);
    replay.finish();
}

#[tokio::test]
async fn complete_before_3_44_is_never_sent_and_the_error_says_what_is_lost() {
    let replay = Replay::of(vec![root_up_to("3.43")]).await;
    let error = replay.client_up_to(43).complete(attachment(ATTACHMENT)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("3.44") && text.contains("stays attaching"), "{text}");
    assert_eq!(replay.finish(), ["GET /v3/"]);
}

#[tokio::test]
async fn a_proxy_that_drops_the_version_header_never_makes_an_attachment_seem_gone() {
    // What Cinder answers without the header: a 404, in version 3.0.
    let unversioned = exchange("versions.txt", "GET list at None").for_anything();
    let replay = Replay::of(vec![unversioned, exchange("versions.txt", "v3 root")]).await;
    let error = replay.client().delete(attachment(ATTACHMENT)).await.unwrap_err();
    assert!(matches!(error, CinderError::Nonsense { .. }), "{error:?}");
    assert!(error.to_string().contains("drops the header OpenStack-API-Version"), "{error}");
    replay.finish();
}

#[tokio::test]
async fn a_wrong_address_never_makes_an_attachment_seem_gone() {
    let unrouted = exchange("versions.txt", "v2 root").for_anything();
    let html = Exchange { status: 404, body: "<html>404</html>".to_owned(), ..Exchange::default() };
    for nowhere in [unrouted, html] {
        let replay =
            Replay::of(vec![nowhere.clone(), nowhere.clone(), nowhere.clone(), nowhere]).await;
        let cinder = replay.client();
        let error = cinder.delete(attachment(ATTACHMENT)).await.unwrap_err();
        assert!(matches!(error, CinderError::Nonsense { .. }), "{error:?}");
        assert!(error.to_string().contains("check the endpoint"), "{error}");
        cinder.attachment(attachment(ATTACHMENT)).await.unwrap_err();
        replay.finish();
    }
}

#[tokio::test]
async fn a_project_that_is_not_the_tokens_is_refused_in_cinders_words() {
    let replay =
        Replay::of(vec![exchange("versions.txt", "other project id in path").for_anything()]).await;
    let error = replay.client().list(&ListQuery::default()).await.unwrap_err();
    assert!(error.to_string().contains("Malformed request url"), "{error}");
    replay.finish();
}

// ── Rights ──

#[tokio::test]
async fn rights_that_are_missing_are_told_apart_and_not_retried() {
    let show = attachment("992f6e90-3455-46ee-8cd7-100e480de890");
    let id = volume("67016d2e-2597-4607-9e38-090cb7c7b113");
    let ask = async |titles: &[&str], cinder: &dyn Fn(&Replay) -> Client| {
        let replay = Replay::of(exchanges("rights.txt", titles)).await;
        (cinder(&replay), replay)
    };
    let (cinder, replay) = ask(
        &["reader: create", "reader: update", "reader: complete", "reader: delete"],
        &Replay::client,
    )
    .await;
    for error in [
        cinder.reserve(id, None, AccessMode::Rw).await.map(drop).unwrap_err(),
        cinder.update(show, &connector()).await.map(drop).unwrap_err(),
        cinder.complete(show).await.unwrap_err(),
        cinder.delete(show).await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, CinderError::Forbidden(_)), "{error:?}");
        assert!(error.to_string().contains("Policy doesn't allow volume:attachment_"), "{error}");
        assert_eq!(error.retry(), Retry::Backoff);
    }
    replay.finish();

    let replay = Replay::of(vec![exchange("rights.txt", "garbage token")]).await;
    let error = replay.client().list(&ListQuery::default()).await.unwrap_err();
    assert!(matches!(error, CinderError::Unauthorized(_)), "{error:?}");
    assert_eq!(error.retry(), Retry::Backoff, "it may be another token by then");
    replay.finish();
}

#[tokio::test]
async fn another_projects_attachment_is_as_if_it_were_not_there() {
    let id = attachment("992f6e90-3455-46ee-8cd7-100e480de890");
    let replay = Replay::of(exchanges(
        "rights.txt",
        &["other: show", "other: create", "other: update", "other: complete", "other: delete"],
    ))
    .await;
    let cinder = replay.client();
    assert!(cinder.attachment(id).await.unwrap().is_none());
    let theirs = volume("67016d2e-2597-4607-9e38-090cb7c7b113");
    let error = cinder.reserve(theirs, None, AccessMode::Rw).await.unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("CinderNotFound", Retry::OnChange));
    let error = cinder.update(id, &connector()).await.unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("CinderNotFound", Retry::Now));
    assert_eq!(cinder.complete(id).await.unwrap_err().reason(), "CinderNotFound");
    assert_eq!(cinder.delete(id).await.unwrap(), Deleted::AlreadyGone);
    replay.finish();
}

#[tokio::test]
async fn a_volume_that_is_not_there_is_none_and_a_reservation_of_it_names_it() {
    let unknown = exchange("reserve.txt", "volume_uuid unknown");
    let id = "472f3b1d-2453-4cb4-86cc-3a04644aa9f9";
    let replay = Replay::of(vec![unknown.clone(), unknown.for_anything()]).await;
    let cinder = replay.client();
    let server = Some(instance("ab537f67-9125-4f4a-bb7e-b24b64d9576f"));
    let error = cinder.reserve(volume(id), server, AccessMode::Rw).await.unwrap_err();
    assert!(error.to_string().contains(id) && error.request_id().is_some(), "{error}");
    assert!(cinder.volume(volume(id)).await.unwrap().is_none());
    replay.finish();
}

// ── What may be repeated ──

#[tokio::test]
async fn passing_failures_are_repeated_where_a_second_time_does_no_harm() {
    for status in [429, 502, 503, 504] {
        let mut script =
            vec![fault(status, &[], "busy"), fault(status, &[("Retry-After", "0")], "busy")];
        script.push(exchange("attach.txt", "update"));
        let replay = Replay::of(script).await;
        replay.client().update(attachment(ATTACHMENT), &connector()).await.unwrap();
        assert_eq!(replay.finish().len(), 3);
    }
}

#[tokio::test]
async fn a_reservation_is_sent_once_whatever_happens() {
    for (status, reason, nothing_was_created) in [
        (429, "CinderOverloaded", true),
        (500, "CinderFault", false),
        (502, "CinderFault", false),
        (503, "CinderOverloaded", true),
        (504, "CinderFault", false),
    ] {
        let replay = Replay::of(vec![fault(status, &[], "no")]).await;
        let error =
            replay.client().reserve(volume(VOLUME), None, AccessMode::Rw).await.unwrap_err();
        assert_eq!((error.reason(), error.nothing_was_created()), (reason, nothing_was_created));
        replay.finish();
    }
}

#[tokio::test]
async fn the_tries_are_counted_and_a_long_retry_after_is_left_to_the_caller() {
    let busy = fault(503, &[("X-Openstack-Request-Id", "req-busy")], "busy");
    let replay = Replay::of(vec![busy.clone(), busy.clone(), busy]).await;
    let error = replay.client().show(attachment(ATTACHMENT)).await.unwrap_err();
    assert_eq!((error.reason(), error.request_id()), ("CinderOverloaded", Some("req-busy")));
    replay.finish();
    let replay = Replay::of(vec![fault(429, &[("Retry-After", "3600")], "later")]).await;
    let error = replay.client().show(attachment(ATTACHMENT)).await.unwrap_err();
    let CinderError::Overloaded { retry_after, .. } = error else { panic!("{error:?}") };
    assert_eq!(retry_after.unwrap().as_secs(), 3600);
    replay.finish();
}

#[tokio::test]
async fn an_answer_about_something_else_is_worse_than_none() {
    let other = "00000000-0000-4000-8000-000000000000";
    let answers = |title: &str| exchange("attach.txt", title).for_anything();
    let replay = Replay::of(
        ["reserve", "update", "show after the update", "volume while available"]
            .map(answers)
            .to_vec(),
    )
    .await;
    let cinder = replay.client();
    for error in [
        cinder.reserve(volume(other), None, AccessMode::Rw).await.map(drop).unwrap_err(),
        cinder.update(attachment(other), &connector()).await.map(drop).unwrap_err(),
        cinder.show(attachment(other)).await.map(drop).unwrap_err(),
        cinder.show_volume(volume(other)).await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, CinderError::Nonsense { .. }), "{error:?}");
        assert!(error.to_string().contains(other), "{error}");
    }
    replay.finish();
}

// ── An older Cinder ──

#[tokio::test]
async fn what_release_21_wraps_in_a_500_is_the_refusal_that_it_is() {
    for title in [
        "connector without initiator",
        "update of the second for the same instance",
        "update in error",
    ] {
        let replay = Replay::of(vec![exchange("release-21.txt", title).for_anything()]).await;
        let asked = attachment("fad62984-c551-42c3-a2e5-ade08f457d04");
        let error = replay.client().update(asked, &connector()).await.unwrap_err();
        assert!(matches!(error, CinderError::Conflict(_)), "{title}: {error:?}");
        assert!(error.to_string().contains("Invalid"), "{error}");
        replay.finish();
    }
}
