//! The Cinder client against a real Cinder without authentication, such as `scripts/lab` starts:
//! `ATTACHD_TEST_CINDER` is its endpoint, `ATTACHD_TEST_PROJECT` the project's id. Its volume types are
//! `tgt`, `tgt-nochap`, `tgt-single`, `multiattach` and `other`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use attachd::{
    cinder::{
        AttachmentStatus, Auth, BlockStorage, CinderError, Client, ClientConfig, Deleted,
        ListQuery, Microversion, PREFERRED,
    },
    model::{AccessMode, AttachmentId, ConnectionInfoError, Connector, Retry, VolumeId},
};
use futures::FutureExt;
use serde_json::{Value, json};
use uuid::Uuid;

#[expect(clippy::disallowed_methods, reason = "the test's own configuration")]
fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: this test needs a real Cinder, which scripts/test starts")
    })
}

fn client_up_to(highest_version: Microversion) -> Client {
    let auth =
        Auth::no_auth(&setting("ATTACHD_TEST_CINDER"), &setting("ATTACHD_TEST_PROJECT"), "admin");
    Client::new(auth.unwrap(), ClientConfig { highest_version, ..ClientConfig::default() }).unwrap()
}

fn client() -> Client {
    client_up_to(PREFERRED)
}

fn connector(node: &str) -> Connector {
    serde_json::from_value(json!({
        "initiator": format!("iqn.2026-11.dev.attachd.test:{node}"), "ip": "127.0.0.1",
        "host": node, "platform": "x86_64", "os_type": "linux", "multipath": true,
        "do_local_attach": false,
    }))
    .unwrap()
}

/// What the client under test can't do: make volumes, and break them.
struct Admin {
    http: reqwest::Client,
}

impl Admin {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let project = setting("ATTACHD_TEST_PROJECT");
        let url = format!("{}/v3/{project}{path}", setting("ATTACHD_TEST_CINDER"));
        let mut request = self
            .http
            .request(method.parse().unwrap(), url)
            .timeout(Duration::from_mins(2))
            .header("x-auth-token", format!("admin:{project}"))
            .header("openstack-api-version", "volume 3.54");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
    }

    async fn create_volume(&self, volume_type: &str) -> VolumeId {
        let body =
            json!({"volume": {"size": 1, "name": "attachd test", "volume_type": volume_type}});
        let (status, answer) = self.ask("POST", "/volumes", Some(body)).await;
        assert_eq!(status, 202, "{answer}");
        let id: VolumeId = answer["volume"]["id"].as_str().unwrap().parse().unwrap();
        assert!(self.wait_for(id, "available").await, "the volume did not become available");
        id
    }

    async fn status(&self, id: VolumeId) -> String {
        let (_, answer) = self.ask("GET", &format!("/volumes/{id}"), None).await;
        answer["volume"]["status"].as_str().unwrap_or("gone").to_owned()
    }

    async fn wait_for(&self, id: VolumeId, wanted: &str) -> bool {
        for _ in 0..600 {
            if self.status(id).await == wanted {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        false
    }

    async fn act(&self, id: VolumeId, action: Value) {
        let (status, answer) =
            self.ask("POST", &format!("/volumes/{id}/action"), Some(action)).await;
        assert_eq!(status, 202, "{answer}");
    }

    /// Whatever the test did to it.
    async fn remove(&self, id: VolumeId) {
        let list = format!("/attachments?volume_id={id}");
        for attachment in self.ask("GET", &list, None).await.1["attachments"].as_array().unwrap() {
            let attachment = attachment["id"].as_str().unwrap();
            let (status, _) = self.ask("DELETE", &format!("/attachments/{attachment}"), None).await;
            if status >= 400 {
                let force = json!({"os-force_detach": {"attachment_id": attachment, "connector": connector("node-1")}});
                self.ask("POST", &format!("/volumes/{id}/action"), Some(force)).await;
            }
        }
        let reset =
            json!({"os-reset_status": {"status": "available", "attach_status": "detached"}});
        self.act(id, reset).await;
        let (status, answer) = self.ask("DELETE", &format!("/volumes/{id}"), None).await;
        assert_eq!(status, 202, "{answer}");
        assert!(self.wait_for(id, "gone").await, "the volume could not be deleted");
    }
}

/// Runs a test with a volume of its own, and removes that however the test ends.
async fn with_volume<F, Fut>(volume_type: &str, test: F)
where
    F: FnOnce(Arc<Admin>, VolumeId) -> Fut,
    Fut: Future<Output = ()>,
{
    let admin = Arc::new(Admin::new());
    let volume = admin.create_volume(volume_type).await;
    let ended = AssertUnwindSafe(test(Arc::clone(&admin), volume)).catch_unwind().await;
    admin.remove(volume).await;
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

fn unknown<T: From<Uuid>>() -> T {
    Uuid::new_v4().into()
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn a_volume_is_attached_and_detached() {
    with_volume("tgt", async |_, volume| {
        let cinder = client();
        let before = cinder.volume(volume).await.unwrap().unwrap();
        assert_eq!((before.status.as_str(), before.size_gib), ("available", 1));

        let reserved = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap();
        let id = reserved.summary.id;
        assert_eq!(reserved.summary.status, AttachmentStatus::Reserved);
        assert_eq!(reserved.mode, Some(AccessMode::Rw));
        assert_eq!(reserved.connection_info().unwrap(), None);

        let updated = BlockStorage::update(&cinder, id, &connector("node-1")).await.unwrap();
        let info = updated.connection_info().unwrap().unwrap();
        assert!(info.complete && info.chap.is_some());
        assert_eq!(info.paths.len(), 2);
        let shown = cinder.attachment(id).await.unwrap().unwrap();
        assert_eq!(shown.summary, updated.summary, "what an update leaves is known without asking");
        assert_eq!(shown.mode, updated.mode);
        assert_eq!(shown.connection_info(), updated.connection_info());

        BlockStorage::complete(&cinder, id).await.unwrap();
        BlockStorage::complete(&cinder, id).await.unwrap();
        let shown = cinder.attachment(id).await.unwrap().unwrap();
        assert_eq!(shown.summary.status, AttachmentStatus::Attached);
        let during = cinder.volume(volume).await.unwrap().unwrap();
        assert_eq!(during.status, "in-use");
        assert_eq!(during.attachments[0].attachment_id, id);
        assert_eq!(during.attachments[0].host_name.as_deref(), Some("node-1"));

        BlockStorage::delete(&cinder, id).await.unwrap();
        BlockStorage::delete(&cinder, id).await.unwrap();
        assert!(cinder.attachment(id).await.unwrap().is_none());
        assert_eq!(cinder.volume(volume).await.unwrap().unwrap().status, "available");
        assert_eq!(cinder.version(), PREFERRED, "no version was looked up");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn with_3_27_all_but_complete_works() {
    with_volume("tgt-single", async |_, volume| {
        let cinder = client_up_to(Microversion::ATTACHMENTS);
        let id = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap().summary.id;
        let updated = cinder.update(id, &connector("node-1")).await.unwrap();
        assert_eq!(updated.connection_info().unwrap().unwrap().paths.len(), 1);
        let error = cinder.complete(id).await.unwrap_err();
        assert!(matches!(error, CinderError::TooOld { .. }), "{error:?}");
        assert_eq!(cinder.version(), Microversion::ATTACHMENTS);
        assert_eq!(cinder.show(id).await.unwrap().summary.status, AttachmentStatus::Attaching);
        assert_eq!(cinder.attachments_of(volume).await.unwrap().len(), 1);
        assert!(matches!(cinder.delete(id).await.unwrap(), Deleted::Deleted { .. }));
        assert_eq!(cinder.delete(id).await.unwrap(), Deleted::AlreadyGone);
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn a_version_that_this_cinder_lacks_is_lowered_to_one_that_it_has() {
    let cinder = client_up_to(Microversion::v3(999));
    assert!(cinder.volume(unknown()).await.unwrap().is_none());
    let agreed = cinder.version();
    assert!(agreed >= PREFERRED && agreed < Microversion::v3(999), "{agreed}");
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn a_second_reservation_is_refused_with_the_volumes_status() {
    with_volume("tgt", async |_, volume| {
        let cinder = client();
        cinder.reserve(volume, None, AccessMode::Rw).await.unwrap();
        let error = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap_err();
        assert!(matches!(error, CinderError::Refused(_)), "{error:?}");
        assert!(error.to_string().contains("current status is reserved"), "{error}");
        assert!(error.request_id().unwrap().starts_with("req-"));
        assert!(error.nothing_was_created());
        assert_eq!(cinder.attachments_of(volume).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn what_is_not_there_is_none_gone_or_not_found() {
    let cinder = client();
    let (volume, attachment): (VolumeId, AttachmentId) = (unknown(), unknown());
    assert!(cinder.volume(volume).await.unwrap().is_none());
    assert!(cinder.attachment(attachment).await.unwrap().is_none());
    assert_eq!(cinder.attachments_of(volume).await.unwrap(), []);
    assert_eq!(cinder.delete(attachment).await.unwrap(), Deleted::AlreadyGone);
    let error = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("CinderNotFound", Retry::OnChange));
    assert!(error.to_string().contains(&volume.to_string()), "{error}");
    let error = cinder.update(attachment, &connector("node-1")).await.unwrap_err();
    assert_eq!((error.reason(), error.retry()), ("CinderNotFound", Retry::Now));
    assert_eq!(cinder.complete(attachment).await.unwrap_err().reason(), "CinderNotFound");
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn a_volume_in_error_is_neither_reserved_nor_updated_and_can_be_let_go() {
    with_volume("tgt", async |admin, volume| {
        let cinder = client();
        let id = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap().summary.id;
        admin.act(volume, json!({"os-reset_status": {"status": "error"}})).await;
        let error = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap_err();
        assert!(matches!(error, CinderError::Refused(_)), "{error:?}");
        assert!(error.to_string().contains("error state"), "{error}");
        let error = cinder.update(id, &connector("node-1")).await.unwrap_err();
        assert!(matches!(error, CinderError::Conflict(_)), "{error:?}");
        assert!(matches!(cinder.delete(id).await.unwrap(), Deleted::Deleted { .. }));
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn lists_are_filtered_by_volume_status_and_instance() {
    with_volume("tgt", async |_, volume| {
        let cinder = client();
        let id = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap().summary.id;
        let of_volume = ListQuery { volume_id: Some(volume), ..ListQuery::default() };
        assert_eq!(cinder.list(&of_volume).await.unwrap()[0].id, id);
        assert_eq!(cinder.detail(&of_volume).await.unwrap()[0].summary.id, id);
        let with = |status| ListQuery { attach_status: Some(status), ..of_volume.clone() };
        assert_eq!(cinder.list(&with(AttachmentStatus::Reserved)).await.unwrap().len(), 1);
        assert_eq!(cinder.list(&with(AttachmentStatus::Attached)).await.unwrap(), []);
        let of_nobody = ListQuery { instance_id: Some(Uuid::new_v4().to_string()), ..of_volume };
        assert_eq!(cinder.list(&of_nobody).await.unwrap(), []);
        let all = ListQuery {
            all_tenants: true,
            page_size: Some(1),
            limit: Some(2),
            ..ListQuery::default()
        };
        assert!(!cinder.list(&all).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn a_back_end_that_is_not_iscsi_is_told_by_its_name() {
    with_volume("other", async |_, volume| {
        let cinder = client();
        let id = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap().summary.id;
        let updated = cinder.update(id, &connector("node-1")).await.unwrap();
        let error = updated.connection_info().unwrap_err();
        assert_eq!(error, ConnectionInfoError::NotIscsi { driver: "fibre_channel".to_owned() });
        cinder.delete(id).await.unwrap();
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn an_export_without_chap_has_no_credentials() {
    with_volume("tgt-nochap", async |_, volume| {
        let cinder = client();
        let id = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap().summary.id;
        let updated = cinder.update(id, &connector("node-1")).await.unwrap();
        assert_eq!(updated.connection_info().unwrap().unwrap().chap, None);
        cinder.delete(id).await.unwrap();
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn read_only_holds_by_the_reservation_and_in_older_clouds_by_the_connector() {
    for version in [PREFERRED, Microversion::ATTACHMENTS] {
        with_volume("tgt", async |_, volume| {
            let cinder = client_up_to(version);
            let id = cinder.reserve(volume, None, AccessMode::Ro).await.unwrap().summary.id;
            let connector = Connector { mode: Some(AccessMode::Ro), ..connector("node-1") };
            let updated = cinder.update(id, &connector).await.unwrap();
            let shown = cinder.show(id).await.unwrap();
            assert_eq!((updated.mode, shown.mode), (Some(AccessMode::Ro), Some(AccessMode::Ro)));
            cinder.delete(id).await.unwrap();
        })
        .await;
    }
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn two_nodes_attach_a_multiattach_volume_one_after_the_other() {
    with_volume("multiattach", async |_, volume| {
        let cinder = client();
        let first = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap().summary.id;
        let error = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap_err();
        assert_eq!((error.reason(), error.retry()), ("CinderRefused", Retry::Backoff));
        cinder.update(first, &connector("node-1")).await.unwrap();
        cinder.complete(first).await.unwrap();
        let second = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap().summary.id;
        cinder.update(second, &connector("node-2")).await.unwrap();
        cinder.complete(second).await.unwrap();
        assert!(cinder.show_volume(volume).await.unwrap().multiattach);
        assert_eq!(cinder.attachments_of(volume).await.unwrap().len(), 2);
        cinder.delete(second).await.unwrap();
        assert_eq!(cinder.show_volume(volume).await.unwrap().status, "in-use");
        cinder.delete(first).await.unwrap();
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn a_connected_attachment_with_an_instance_is_held_by_nova() {
    with_volume("tgt", async |_, volume| {
        let cinder = client();
        let instance = Uuid::new_v4();
        let id = cinder.reserve(volume, Some(instance), AccessMode::Rw).await.unwrap().summary.id;
        cinder.update(id, &connector("node-1")).await.unwrap();
        let error = cinder.delete(id).await.unwrap_err();
        assert!(matches!(error, CinderError::HeldByNova { .. }), "{error:?}");
        assert!(error.to_string().contains(&instance.to_string()), "{error}");
    })
    .await;
}
