//! Bodies as they stand on the wire. What leaves never holds a `null` (Cinder answers 400).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Attachment, AttachmentStatus, AttachmentSummary, ConnectorRef, Microversion, NewAttachment,
    Volume, VolumeUse, microversion::Offer,
};
use crate::{
    http::one_line,
    model::{AccessMode, AttachmentId, Secret, VolumeId},
};

/// What is sent.
#[derive(Clone, Copy)]
pub(super) enum Body<'a> {
    None,
    /// The mode is said where it can be.
    Reserve {
        volume: VolumeId,
        instance: Option<Uuid>,
        mode: AccessMode,
    },
    /// The mode is said, where one is given.
    Create(NewAttachment<'a>),
    Update(ConnectorRef<'a>),
    Complete,
}

#[derive(Serialize)]
struct Enveloped<T> {
    attachment: T,
}

#[derive(Serialize)]
struct Creation<'a> {
    volume_uuid: VolumeId,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_uuid: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<AccessMode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connector: Option<ConnectorRef<'a>>,
}

#[derive(Serialize)]
struct Update<'a> {
    connector: ConnectorRef<'a>,
}

impl Body<'_> {
    /// The lowest version that takes it.
    pub(super) fn needs(&self) -> Microversion {
        match self {
            Self::Create(NewAttachment { mode: Some(_), .. }) => Microversion::MODE,
            Self::None
            | Self::Reserve { .. }
            | Self::Create(_)
            | Self::Update(_)
            | Self::Complete => Microversion::v3(0),
        }
    }

    /// The body in that version's form. A reservation's mode is always said where it can be: then
    /// Cinder's answer tells which one holds (a volume may be read-only), and no connector overrides it.
    pub(super) fn render(&self, version: Microversion) -> serde_json::Result<Option<Vec<u8>>> {
        match *self {
            Self::None => Ok(None),
            Self::Reserve { volume, instance, mode } => {
                let mode = (version >= Microversion::MODE).then_some(mode);
                let attachment = Creation {
                    volume_uuid: volume,
                    instance_uuid: instance,
                    mode,
                    connector: None,
                };
                serde_json::to_vec(&Enveloped { attachment }).map(Some)
            }
            Self::Create(NewAttachment { volume, instance, mode, connector }) => {
                let attachment =
                    Creation { volume_uuid: volume, instance_uuid: instance, mode, connector };
                serde_json::to_vec(&Enveloped { attachment }).map(Some)
            }
            Self::Update(connector) => {
                serde_json::to_vec(&Enveloped { attachment: Update { connector } }).map(Some)
            }
            Self::Complete => Ok(Some(br#"{"os-complete":{}}"#.to_vec())),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct VolumeAnswer {
    volume: WireVolume,
}

#[derive(Deserialize)]
struct WireVolume {
    id: VolumeId,
    name: Option<String>,
    status: String,
    size: u64,
    #[serde(default)]
    multiattach: bool,
    #[serde(default)]
    attachments: Vec<WireUse>,
}

#[derive(Deserialize)]
struct WireUse {
    attachment_id: AttachmentId,
    host_name: Option<String>,
    server_id: Option<String>,
}

impl From<VolumeAnswer> for Volume {
    fn from(VolumeAnswer { volume }: VolumeAnswer) -> Self {
        Self {
            id: volume.id,
            name: one_line(&volume.name.unwrap_or_default()),
            status: one_line(&volume.status),
            size_gib: volume.size,
            multiattach: volume.multiattach,
            attachments: volume.attachments.into_iter().map(VolumeUse::from).collect(),
        }
    }
}

impl From<WireUse> for VolumeUse {
    fn from(wire: WireUse) -> Self {
        Self {
            attachment_id: wire.attachment_id,
            host_name: said(wire.host_name),
            server_id: said(wire.server_id),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct AttachmentAnswer {
    attachment: WireAttachment,
}

#[derive(Deserialize)]
pub(super) struct AttachmentsAnswer<T> {
    pub(super) attachments: Vec<T>,
}

#[derive(Deserialize)]
pub(super) struct WireSummary {
    id: AttachmentId,
    volume_id: VolumeId,
    status: AttachmentStatus,
    instance: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct WireAttachment {
    #[serde(flatten)]
    summary: WireSummary,
    attach_mode: Option<String>,
    attached_at: Option<String>,
    detached_at: Option<String>,
    connection_info: Option<Secret<Value>>,
}

impl From<AttachmentAnswer> for Attachment {
    fn from(answer: AttachmentAnswer) -> Self {
        answer.attachment.into()
    }
}

impl From<WireSummary> for AttachmentSummary {
    fn from(wire: WireSummary) -> Self {
        Self {
            id: wire.id,
            volume_id: wire.volume_id,
            status: match wire.status {
                AttachmentStatus::Other(name) => AttachmentStatus::Other(one_line(&name)),
                known => known,
            },
            instance: said(wire.instance),
        }
    }
}

impl From<WireAttachment> for Attachment {
    fn from(wire: WireAttachment) -> Self {
        Self {
            summary: wire.summary.into(),
            // "null" (as text) before the update.
            mode: wire.attach_mode.and_then(|text| text.parse().ok()),
            attached_at: said(wire.attached_at),
            detached_at: said(wire.detached_at),
            connection_info: wire.connection_info.unwrap_or(Secret::new(Value::Null)),
        }
    }
}

/// Cinder writes "" for what isn't there. What is there ends up in messages: one bounded line.
fn said(text: Option<String>) -> Option<String> {
    text.map(|text| one_line(&text)).filter(|text| !text.is_empty())
}

#[derive(Deserialize)]
pub(super) struct VersionsAnswer {
    versions: Vec<WireVersion>,
}

#[derive(Deserialize)]
struct WireVersion {
    #[serde(default)]
    version: String,
    #[serde(default)]
    min_version: String,
}

impl VersionsAnswer {
    /// The range of the v3 API, where there is one. Older APIs beside it have no microversions.
    pub(super) fn offer(&self) -> Option<Offer> {
        self.versions.iter().find_map(|entry| {
            Some(Offer {
                lowest: entry.min_version.parse().ok()?,
                highest: entry.version.parse().ok()?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Connector, ConnectorFields};

    fn rendered(body: Body<'_>, minor: u16) -> Value {
        let bytes = body.render(Microversion::v3(minor)).unwrap().unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn a_reservation_never_sends_null_nor_a_connector_nor_a_mode_before_3_54() {
        let volume = "7a29c609-53cc-4134-830f-6d08a0b9da91".parse().unwrap();
        let bare = Body::Reserve { volume, instance: None, mode: AccessMode::Ro };
        let id = volume.to_string();
        assert_eq!(rendered(bare, 53), json!({"attachment": {"volume_uuid": id}}));
        assert_eq!(rendered(bare, 54), json!({"attachment": {"volume_uuid": id, "mode": "ro"}}));
        let named = Body::Reserve { volume, instance: Some(Uuid::nil()), mode: AccessMode::Rw };
        assert_eq!(
            rendered(named, 54),
            json!({"attachment": {"volume_uuid": id, "instance_uuid": Uuid::nil(), "mode": "rw"}})
        );
    }

    #[test]
    fn an_attachment_all_at_once_carries_what_was_given_and_nothing_else() {
        let volume = "7a29c609-53cc-4134-830f-6d08a0b9da91".parse().unwrap();
        let fields = ConnectorFields::from_json(json!({"host": "n1"})).unwrap();
        let mut new = NewAttachment {
            volume,
            instance: None,
            mode: None,
            connector: Some(ConnectorRef::from(&fields)),
        };
        assert_eq!(
            rendered(Body::Create(new), 27),
            json!({"attachment": {"volume_uuid": volume, "connector": {"host": "n1"}}})
        );
        assert!(Body::Create(new).needs() < Microversion::ATTACHMENTS);
        new.mode = Some(AccessMode::Ro);
        assert_eq!(rendered(Body::Create(new), 54)["attachment"]["mode"], "ro");
        assert_eq!(Body::Create(new).needs(), Microversion::MODE);
    }

    #[test]
    fn a_connector_never_sends_null() {
        let connector: Connector = serde_json::from_value(json!({
            "initiator": "iqn.1993-08.org.debian:01:cad181614cec", "ip": "127.0.0.1",
            "host": "node-1", "platform": "x86_64", "os_type": "linux", "multipath": true,
            "do_local_attach": false
        }))
        .unwrap();
        let body = rendered(Body::Update((&connector).into()), 54);
        assert!(!body.to_string().contains("null"), "{body}");
        assert_eq!(body["attachment"]["connector"]["host"], "node-1");
    }

    #[test]
    fn the_v3_range_is_found_beside_older_apis() {
        let answer: VersionsAnswer = serde_json::from_value(json!({"versions": [
            {"id": "v2.0", "status": "DEPRECATED", "version": "", "min_version": ""},
            {"id": "v3.0", "status": "CURRENT", "version": "3.71", "min_version": "3.0"}
        ]}))
        .unwrap();
        let offer = answer.offer().unwrap();
        assert_eq!((offer.lowest, offer.highest), (Microversion::v3(0), Microversion::v3(71)));
        let none: VersionsAnswer =
            serde_json::from_value(json!({"versions": [{"id": "v2.0"}]})).unwrap();
        assert!(none.offer().is_none());
    }

    #[test]
    fn a_status_that_is_newer_than_we_are_is_kept_as_it_is() {
        for (text, expected) in [
            ("attached", AttachmentStatus::Attached),
            ("error_attaching", AttachmentStatus::ErrorAttaching),
            ("levitating", AttachmentStatus::Other("levitating".to_owned())),
        ] {
            let status: AttachmentStatus = serde_json::from_value(json!(text)).unwrap();
            assert_eq!(status, expected);
            assert_eq!(status.name(), text);
        }
    }

    #[test]
    fn words_of_a_hostile_cinder_are_bounded_and_can_not_drive_a_terminal() {
        let bad = format!("in-use\u{1b}[2J\nReady {}", "x".repeat(1_000_000));
        let id = "7a29c609-53cc-4134-830f-6d08a0b9da91";
        let volume: VolumeAnswer = serde_json::from_value(json!({"volume": {
            "id": id, "name": bad, "status": bad, "size": u64::MAX,
            "attachments": [{"attachment_id": id, "host_name": bad, "server_id": bad}]
        }}))
        .unwrap();
        let volume = Volume::from(volume);
        let attachment: AttachmentAnswer = serde_json::from_value(json!({"attachment": {
            "id": id, "volume_id": id, "status": bad, "instance": bad, "attach_mode": bad,
            "attached_at": bad, "connection_info": {"auth_password": bad}
        }}))
        .unwrap();
        let shown = format!("{volume:?} {:?}", Attachment::from(attachment));
        assert!(shown.len() < 8000 && !shown.contains("\\u{1b}"), "{} bytes", shown.len());
    }
}
