//! What attachd relies on in Cinder, case by case: played against real ones, as different users, and against
//! what was recorded of them. `docs/conformance.md` has the table.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cinder_replay;
mod conformance;

use attachd::{
    cinder::{
        AttachmentStatus, BlockStorage, CinderError, Deleted, ListQuery, Microversion, PREFERRED,
    },
    model::{AccessMode, AttachmentId, ConnectionInfoError, Connector, Retry, VolumeId},
};
use conformance::{Identity, case, case_with_volume, connector};
use serde_json::json;
use uuid::Uuid;

/// An id of nothing.
const NOBODY: Uuid = Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0001);

/// Only administrators and services are told the host.
#[tokio::test]
async fn a_volume_is_attached_and_detached() {
    case_with_volume("a_volume_is_attached_and_detached", "tgt", async |bench, volume| {
        let cinder = bench.client();
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
        let host = during.attachments[0].host_name.as_deref();
        assert_eq!(host, Some("node-1").filter(|_| bench.identity.is_told_hosts()));

        BlockStorage::delete(&cinder, id).await.unwrap();
        BlockStorage::delete(&cinder, id).await.unwrap();
        assert!(cinder.attachment(id).await.unwrap().is_none());
        assert_eq!(cinder.volume(volume).await.unwrap().unwrap().status, "available");
        assert_eq!(cinder.version(), PREFERRED, "no version was looked up");
    })
    .await;
}

#[tokio::test]
async fn with_3_27_all_but_complete_works() {
    case_with_volume("with_3_27_all_but_complete_works", "tgt-single", async |bench, volume| {
        let cinder = bench.client_up_to(Microversion::ATTACHMENTS);
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
async fn a_version_that_this_cinder_lacks_is_lowered_to_one_that_it_has() {
    case("a_version_that_this_cinder_lacks_is_lowered_to_one_that_it_has", async |bench| {
        let cinder = bench.client_up_to(Microversion::v3(999));
        assert!(cinder.volume(NOBODY.into()).await.unwrap().is_none());
        let agreed = cinder.version();
        assert!(agreed >= PREFERRED && agreed < Microversion::v3(999), "{agreed}");
    })
    .await;
}

#[tokio::test]
async fn a_second_reservation_is_refused_with_the_volumes_status() {
    case_with_volume(
        "a_second_reservation_is_refused_with_the_volumes_status",
        "tgt",
        async |bench, volume| {
            let cinder = bench.client();
            cinder.reserve(volume, None, AccessMode::Rw).await.unwrap();
            let error = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap_err();
            assert!(matches!(error, CinderError::Refused(_)), "{error:?}");
            assert!(error.to_string().contains("current status is reserved"), "{error}");
            assert!(error.request_id().unwrap().starts_with("req-"));
            assert!(error.nothing_was_created());
            assert_eq!(cinder.attachments_of(volume).await.unwrap().len(), 1);
        },
    )
    .await;
}

#[tokio::test]
async fn what_is_not_there_is_none_gone_or_not_found() {
    case("what_is_not_there_is_none_gone_or_not_found", async |bench| {
        let cinder = bench.client();
        let (volume, attachment): (VolumeId, AttachmentId) = (NOBODY.into(), NOBODY.into());
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
    })
    .await;
}

/// Cinder 21 answers 500 where 29 answers 409 to the update; attachd takes both for a refusal.
#[tokio::test]
async fn a_volume_in_error_is_neither_reserved_nor_updated_and_can_be_let_go() {
    case_with_volume(
        "a_volume_in_error_is_neither_reserved_nor_updated_and_can_be_let_go",
        "tgt",
        async |bench, volume| {
            let cinder = bench.client();
            let id = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap().summary.id;
            bench.act(volume, json!({"os-reset_status": {"status": "error"}})).await;
            let error = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap_err();
            assert!(matches!(error, CinderError::Refused(_)), "{error:?}");
            assert!(error.to_string().contains("error state"), "{error}");
            let error = cinder.update(id, &connector("node-1")).await.unwrap_err();
            assert!(matches!(error, CinderError::Conflict(_)), "{error:?}");
            assert!(matches!(cinder.delete(id).await.unwrap(), Deleted::Deleted { .. }));
        },
    )
    .await;
}

#[tokio::test]
async fn lists_are_filtered_by_volume_status_and_instance() {
    case_with_volume(
        "lists_are_filtered_by_volume_status_and_instance",
        "tgt",
        async |bench, volume| {
            let cinder = bench.client();
            let id = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap().summary.id;
            let of_volume = ListQuery { volume_id: Some(volume), ..ListQuery::default() };
            assert_eq!(cinder.list(&of_volume).await.unwrap()[0].id, id);
            assert_eq!(cinder.detail(&of_volume).await.unwrap()[0].summary.id, id);
            let with = |status| ListQuery { attach_status: Some(status), ..of_volume.clone() };
            assert_eq!(cinder.list(&with(AttachmentStatus::Reserved)).await.unwrap().len(), 1);
            assert_eq!(cinder.list(&with(AttachmentStatus::Attached)).await.unwrap(), []);
            let of_nobody = ListQuery { instance_id: Some(NOBODY.to_string()), ..of_volume };
            assert_eq!(cinder.list(&of_nobody).await.unwrap(), []);
            let all = ListQuery {
                all_tenants: true,
                page_size: Some(1),
                limit: Some(2),
                ..ListQuery::default()
            };
            assert!(!cinder.list(&all).await.unwrap().is_empty());
        },
    )
    .await;
}

#[tokio::test]
async fn a_back_end_that_is_not_iscsi_is_told_by_its_name() {
    case_with_volume(
        "a_back_end_that_is_not_iscsi_is_told_by_its_name",
        "other",
        async |bench, volume| {
            let cinder = bench.client();
            let id = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap().summary.id;
            let updated = cinder.update(id, &connector("node-1")).await.unwrap();
            let error = updated.connection_info().unwrap_err();
            assert_eq!(error, ConnectionInfoError::NotIscsi { driver: "fibre_channel".to_owned() });
            cinder.delete(id).await.unwrap();
        },
    )
    .await;
}

#[tokio::test]
async fn an_export_without_chap_has_no_credentials() {
    case_with_volume(
        "an_export_without_chap_has_no_credentials",
        "tgt-nochap",
        async |bench, volume| {
            let cinder = bench.client();
            let id = cinder.reserve(volume, None, AccessMode::Rw).await.unwrap().summary.id;
            let updated = cinder.update(id, &connector("node-1")).await.unwrap();
            assert_eq!(updated.connection_info().unwrap().unwrap().chap, None);
            cinder.delete(id).await.unwrap();
        },
    )
    .await;
}

async fn read_only(name: &str, version: Microversion) {
    case_with_volume(name, "tgt", async |bench, volume| {
        let cinder = bench.client_up_to(version);
        let id = cinder.reserve(volume, None, AccessMode::Ro).await.unwrap().summary.id;
        let connector = Connector { mode: Some(AccessMode::Ro), ..connector("node-1") };
        let updated = cinder.update(id, &connector).await.unwrap();
        let shown = cinder.show(id).await.unwrap();
        assert_eq!((updated.mode, shown.mode), (Some(AccessMode::Ro), Some(AccessMode::Ro)));
        cinder.delete(id).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn read_only_holds_by_the_reservation() {
    read_only("read_only_holds_by_the_reservation", PREFERRED).await;
}

#[tokio::test]
async fn read_only_holds_in_older_clouds_by_the_connector() {
    read_only("read_only_holds_in_older_clouds_by_the_connector", Microversion::ATTACHMENTS).await;
}

#[tokio::test]
async fn two_nodes_attach_a_multiattach_volume_one_after_the_other() {
    case_with_volume(
        "two_nodes_attach_a_multiattach_volume_one_after_the_other",
        "multiattach",
        async |bench, volume| {
            let cinder = bench.client();
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
        },
    )
    .await;
}

/// A service may delete it.
#[tokio::test]
async fn a_connected_attachment_with_an_instance_is_held_by_nova() {
    case_with_volume(
        "a_connected_attachment_with_an_instance_is_held_by_nova",
        "tgt",
        async |bench, volume| {
            let cinder = bench.client();
            let instance = NOBODY;
            let id =
                cinder.reserve(volume, Some(instance), AccessMode::Rw).await.unwrap().summary.id;
            cinder.update(id, &connector("node-1")).await.unwrap();
            if bench.identity == Identity::Service {
                assert!(matches!(cinder.delete(id).await.unwrap(), Deleted::Deleted { .. }));
                return;
            }
            let error = cinder.delete(id).await.unwrap_err();
            assert!(matches!(error, CinderError::HeldByNova { .. }), "{error:?}");
            assert!(error.to_string().contains(&instance.to_string()), "{error}");
        },
    )
    .await;
}
