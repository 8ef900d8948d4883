//! What may be shown of a body. A list of what is harmless, not of what is secret: a driver's own keys
//! (`keyring`, `serverToken`, mount options with a password) are secret until somebody looked at them.

use reqwest::Body;
use serde_json::{Map, Value};

use crate::model::Secret;

/// Keys whose value is shown as it is.
const HARMLESS: &[&str] = &[
    // Requests.
    "volume_uuid",
    "instance_uuid",
    "host",
    "initiator",
    "ip",
    "platform",
    "os_type",
    "multipath",
    "enforce_multipath",
    "mountpoint",
    "mode",
    "do_local_attach",
    "nqn",
    "nvme_hostid",
    "nvme_native_multipath",
    "wwpns",
    "wwnns",
    "uuid",
    "system uuid",
    // Connection info of every transport.
    "driver_volume_type",
    "attachment_id",
    "volume_id",
    "access_mode",
    "discard",
    "encrypted",
    "qos_specs",
    "cacheable",
    "device_path",
    "multipath_id",
    // iSCSI. The name of CHAP says who, and goes over the wire in the clear.
    "target_discovered",
    "target_portal",
    "target_portals",
    "target_iqn",
    "target_iqns",
    "target_lun",
    "target_luns",
    "auth_method",
    "auth_username",
    "discovery_auth_method",
    "discovery_auth_username",
    // Fibre Channel.
    "target_wwn",
    "target_wwns",
    "initiator_target_map",
    "initiator_target_lun_map",
    // NVMe over fabrics.
    "target_nqn",
    "transport_type",
    "target_port",
    "portals",
    "vol_uuid",
    "volume_nguid",
    "ns_id",
    "host_nqn",
    "alias",
    "replica_count",
    "max_namespaces",
    // Ceph.
    "name",
    "hosts",
    "ports",
    "cluster_name",
    "auth_enabled",
    "secret_type",
    // NFS. Not its options: they may hold a password.
    "export",
    "format",
    "mount_point_base",
];

/// Keys below which the same holds again.
const ENVELOPES: &[&str] = &["attachment", "connector", "data", "os-complete"];

/// The value with everything left out that isn't known to be harmless. Numbers, truths and what is
/// empty are no secrets.
pub(super) fn shown(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(shown_fields(fields)),
        other => hidden(other),
    }
}

fn shown_fields(fields: &Map<String, Value>) -> Map<String, Value> {
    let field = |(key, value): (&String, &Value)| {
        let value = if HARMLESS.contains(&key.as_str()) {
            value.clone()
        } else if ENVELOPES.contains(&key.as_str()) && value.is_object() {
            shown(value)
        } else {
            hidden(value)
        };
        (key.clone(), value)
    };
    fields.iter().map(field).collect()
}

fn hidden(value: &Value) -> Value {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        Value::String(text) if text.is_empty() => value.clone(),
        Value::Array(list) if list.is_empty() => value.clone(),
        Value::Object(fields) if fields.is_empty() => value.clone(),
        Value::String(_) | Value::Array(_) | Value::Object(_) => {
            Value::String(Secret::new(()).to_string())
        }
    }
}

/// The same of a request's body.
pub(super) fn shown_of(body: &Body) -> String {
    let json = body.as_bytes().and_then(|bytes| serde_json::from_slice(bytes).ok());
    json.map_or_else(|| Secret::new(()).to_string(), |json| shown(&json).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_left_out_wherever_they_stand_and_the_rest_is_shown() {
        let info = json!({
            "driver_volume_type": "iscsi", "target_iqns": ["iqn.2010-10.org.x:a"], "target_lun": 1,
            "auth_method": "CHAP", "auth_username": "J36j", "auth_password": "SECRET-1",
            "discovery_auth_password": "SECRET-2", "encrypted": false, "qos_specs": null,
            "data": {"target_portal": "10.0.2.2:3260", "auth_password": "SECRET-3"},
            "keyring": "SECRET-4", "options": "-o username=a,password=SECRET-5",
            "config": {"vmware_host_password": "SECRET-6"}, "tokens": ["SECRET-7"], "serial": 7, "x": "",
        });
        let seen = shown(&info);
        assert!(!seen.to_string().contains("SECRET"), "{seen}");
        assert_eq!(seen["auth_password"], "<redacted>");
        assert_eq!(seen["data"]["target_portal"], "10.0.2.2:3260");
        for key in [
            "driver_volume_type",
            "target_iqns",
            "target_lun",
            "auth_username",
            "encrypted",
            "qos_specs",
            "serial",
            "x",
        ] {
            assert_eq!(seen[key], info[key], "{key}");
        }
        assert_eq!(shown(&json!("SECRET")), "<redacted>");
    }

    #[test]
    fn of_a_request_only_what_is_harmless_is_shown() {
        let body = r#"{"attachment": {"connector": {"host": "n1", "chap": "SECRET-3"}}}"#;
        let text = shown_of(&body.into());
        assert!(text.contains("\"host\":\"n1\"") && !text.contains("SECRET"), "{text}");
        assert_eq!(shown_of(&"SECRET-4".into()), "<redacted>");
    }
}
