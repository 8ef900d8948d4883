use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    AccessMode, Chap, Iqn, IqnError, Lun, Portal, PortalError, Secret, Target, TargetPath,
};

/// Connection info that attachd can't use. Never carries a secret: credentials are not quoted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionInfoError {
    /// Another transport.
    #[error("the volume's driver exports it by {driver:?}, and attachd attaches iSCSI only")]
    NotIscsi {
        /// `driver_volume_type`.
        driver: String,
    },
    /// A key is missing or has another type.
    #[error("Cinder's connection_info has no usable {key:?}")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// The plural target lists don't belong together.
    #[error(
        "Cinder's connection_info names {iqns} target_iqns, {portals} target_portals and {luns} target_luns; they must be as many"
    )]
    UnevenLists {
        /// How many names.
        iqns: usize,
        /// How many portals.
        portals: usize,
        /// How many LUNs.
        luns: usize,
    },
    /// A target's name is none.
    #[error("Cinder's connection_info")]
    Iqn(#[from] IqnError),
    /// A portal is none.
    #[error("Cinder's connection_info")]
    Portal(#[from] PortalError),
    /// An authentication method that open-iscsi has, but attachd doesn't do.
    #[error("the target wants authentication by {method:?}; attachd does CHAP")]
    AuthMethod {
        /// `auth_method`.
        method: String,
    },
    /// LUKS below Cinder; attachd would show the ciphertext.
    #[error(
        "the volume is encrypted by Cinder (connection_info.encrypted); attachd does not unlock it"
    )]
    Encrypted,
}

/// How to reach a volume: what an attachment update answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Every way to the volume that Cinder named, in its order, without repeats; never empty.
    pub paths: Vec<TargetPath>,
    /// Whether `paths` is Cinder's whole list (the plural keys), or one portal that discovery may add to.
    pub complete: bool,
    /// Credentials for the sessions.
    pub chap: Option<Chap>,
    /// Credentials for discovery, where they differ.
    pub discovery_chap: Option<Chap>,
    /// What the target allows.
    pub access_mode: AccessMode,
    /// Whether the backend reports that discard frees space.
    pub discard: bool,
}

impl ConnectionInfo {
    /// Reads Cinder's `connection_info`, flat (as it comes today) or nested under `data` (older).
    ///
    /// # Errors
    /// Another transport than iSCSI, missing keys, names that can't be, an encrypted volume.
    pub fn parse(value: &Value) -> Result<Self, ConnectionInfoError> {
        let missing = |key| ConnectionInfoError::Missing { key };
        let top = value.as_object().ok_or(missing("driver_volume_type"))?;
        let driver = text(top, "driver_volume_type").ok_or(missing("driver_volume_type"))?;
        if driver != "iscsi" {
            return Err(ConnectionInfoError::NotIscsi { driver: driver.to_owned() });
        }
        let data = top.get("data").and_then(Value::as_object).unwrap_or(top);
        if data.get("encrypted").and_then(Value::as_bool) == Some(true) {
            return Err(ConnectionInfoError::Encrypted);
        }
        let (paths, complete) = match plural(data)? {
            Some(paths) => (paths, true),
            None => (vec![singular(data)?], false),
        };
        Ok(Self {
            paths,
            complete,
            chap: chap(data, "auth_method", "auth_username", "auth_password")?,
            discovery_chap: chap(
                data,
                "discovery_auth_method",
                "discovery_auth_username",
                "discovery_auth_password",
            )?,
            access_mode: match text(data, "access_mode") {
                Some("ro") => AccessMode::Ro,
                _ => AccessMode::Rw,
            },
            discard: data.get("discard").and_then(Value::as_bool).unwrap_or(false),
        })
    }
}

fn text<'a>(data: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    data.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Some drivers write a LUN as text.
fn lun(value: &Value) -> Option<Lun> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).map(Lun)
}

fn plural(data: &Map<String, Value>) -> Result<Option<Vec<TargetPath>>, ConnectionInfoError> {
    let list = |key| data.get(key).and_then(Value::as_array).filter(|list| !list.is_empty());
    let (Some(iqns), Some(portals), Some(luns)) =
        (list("target_iqns"), list("target_portals"), list("target_luns"))
    else {
        return Ok(None);
    };
    if iqns.len() != portals.len() || portals.len() != luns.len() {
        return Err(ConnectionInfoError::UnevenLists {
            iqns: iqns.len(),
            portals: portals.len(),
            luns: luns.len(),
        });
    }
    let missing = |key| ConnectionInfoError::Missing { key };
    let mut seen = BTreeSet::new();
    let mut paths = Vec::new();
    for ((iqn, portal), number) in iqns.iter().zip(portals).zip(luns) {
        let path = TargetPath {
            target: Target {
                iqn: iqn.as_str().ok_or(missing("target_iqns"))?.parse::<Iqn>()?,
                portal: portal.as_str().ok_or(missing("target_portals"))?.parse::<Portal>()?,
            },
            lun: lun(number).ok_or(missing("target_luns"))?,
        };
        if seen.insert(path.clone()) {
            paths.push(path);
        }
    }
    Ok(Some(paths))
}

fn singular(data: &Map<String, Value>) -> Result<TargetPath, ConnectionInfoError> {
    let missing = |key| ConnectionInfoError::Missing { key };
    Ok(TargetPath {
        target: Target {
            iqn: text(data, "target_iqn").ok_or(missing("target_iqn"))?.parse()?,
            portal: text(data, "target_portal").ok_or(missing("target_portal"))?.parse()?,
        },
        lun: data.get("target_lun").and_then(lun).ok_or(missing("target_lun"))?,
    })
}

fn chap(
    data: &Map<String, Value>,
    method: &'static str,
    username: &'static str,
    password: &'static str,
) -> Result<Option<Chap>, ConnectionInfoError> {
    match text(data, method) {
        None => Ok(None),
        Some(name) if name.eq_ignore_ascii_case("none") => Ok(None),
        Some(name) if name.eq_ignore_ascii_case("chap") => Ok(Some(Chap {
            username: text(data, username)
                .ok_or(ConnectionInfoError::Missing { key: username })?
                .to_owned(),
            password: text(data, password)
                .map(|secret| Secret::new(secret.to_owned()))
                .ok_or(ConnectionInfoError::Missing { key: password })?,
        })),
        Some(other) => Err(ConnectionInfoError::AuthMethod { method: other.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn recorded() -> Value {
        json!({
            "target_discovered": false,
            "target_portals": ["10.0.2.2:3260", "10.0.3.2:3260"],
            "target_iqns": ["iqn.2010-10.org.openstack:volume-7a29c609-53cc-4134-830f-6d08a0b9da91",
                            "iqn.2010-10.org.openstack:volume-7a29c609-53cc-4134-830f-6d08a0b9da91"],
            "target_luns": [1, 1],
            "target_portal": "10.0.2.2:3260",
            "target_iqn": "iqn.2010-10.org.openstack:volume-7a29c609-53cc-4134-830f-6d08a0b9da91",
            "target_lun": 1,
            "auth_method": "CHAP", "auth_username": "8Ek5Wu5ps7ccX2HV4Lc6", "auth_password": "U9NXSokWDwu4nkjk",
            "encrypted": false, "qos_specs": null, "access_mode": "rw", "cacheable": false,
            "driver_volume_type": "iscsi", "attachment_id": "f0fa358c-fa3f-4cfd-84cb-c160f82fceed"
        })
    }

    #[test]
    fn what_cinder_29_sends_is_read_with_both_paths_and_chap() {
        let info = ConnectionInfo::parse(&recorded()).unwrap();
        assert_eq!(info.paths.len(), 2);
        assert!(info.complete);
        assert_eq!(info.paths[1].target.portal.to_string(), "10.0.3.2:3260");
        assert_eq!(info.chap.as_ref().unwrap().password.expose(), "U9NXSokWDwu4nkjk");
        assert!(!format!("{info:?}").contains("U9NX"));
    }

    #[test]
    fn an_older_cinder_that_nests_under_data_is_read_alike() {
        let mut data = recorded();
        data.as_object_mut().unwrap().remove("driver_volume_type");
        let nested = json!({"driver_volume_type": "iscsi", "data": data});
        assert_eq!(ConnectionInfo::parse(&nested), ConnectionInfo::parse(&recorded()));
    }

    #[test]
    fn without_the_plural_lists_there_is_one_path_and_the_list_is_not_complete() {
        let mut value = recorded();
        for key in ["target_portals", "target_iqns", "target_luns"] {
            value.as_object_mut().unwrap().remove(key);
        }
        let info = ConnectionInfo::parse(&value).unwrap();
        assert_eq!((info.paths.len(), info.complete), (1, false));
    }

    #[test]
    fn another_transport_is_refused_by_its_name() {
        let error =
            ConnectionInfo::parse(&json!({"driver_volume_type": "rbd", "data": {}})).unwrap_err();
        assert!(error.to_string().contains("\"rbd\""), "{error}");
    }

    #[test]
    fn nonsense_is_an_error_and_never_a_panic() {
        for bad in [
            json!(null),
            json!([]),
            json!({}),
            json!({"driver_volume_type": "iscsi"}),
            json!({"driver_volume_type": "iscsi", "target_iqns": ["iqn.2010-10.org.x:a"], "target_portals": [], "target_luns": [1]}),
            json!({"driver_volume_type": "iscsi", "target_iqns": [1], "target_portals": [2], "target_luns": [3]}),
            json!({"driver_volume_type": "iscsi", "target_iqn": "x", "target_portal": "y", "target_lun": "z"}),
        ] {
            assert!(ConnectionInfo::parse(&bad).is_err(), "{bad}");
        }
        let mut value = recorded();
        value["target_luns"] = json!([1]);
        assert!(matches!(
            ConnectionInfo::parse(&value),
            Err(ConnectionInfoError::UnevenLists { .. })
        ));
        let mut value = recorded();
        value["auth_method"] = json!("KRB5");
        assert!(matches!(
            ConnectionInfo::parse(&value),
            Err(ConnectionInfoError::AuthMethod { .. })
        ));
        let mut value = recorded();
        value["encrypted"] = json!(true);
        assert_eq!(ConnectionInfo::parse(&value), Err(ConnectionInfoError::Encrypted));
    }
}
