use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    AccessMode, Chap, Iqn, IqnError, Lun, Portal, PortalError, Secret, Target, TargetPath,
};

/// Largest LUN. Storage that addresses in more than 32 bits isn't known.
const MAX_LUN: u64 = u32::MAX as u64;

/// Longest word of Cinder's that an error quotes.
const MAX_QUOTED: usize = 80;

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
    /// More ways than any storage has.
    #[error(
        "Cinder's connection_info names {count} portals; attachd takes {most}, and no storage has more. See what Cinder's back end is configured to export", most = ConnectionInfo::MAX_PATHS
    )]
    TooManyPaths {
        /// How many.
        count: usize,
    },
    /// A number that no SCSI address holds.
    #[error("Cinder's connection_info names LUN {lun}, which is none: the largest is {MAX_LUN}")]
    Lun {
        /// Which.
        lun: Lun,
    },
    /// No storage listens there.
    #[error(
        "Cinder's connection_info names the portal {portal}, and {why}; set the back end's target_ip_address to the storage's own"
    )]
    PortalAddress {
        /// Which.
        portal: Portal,
        /// Why not.
        why: &'static str,
    },
    /// A name or secret that would change open-iscsi's settings, or be changed there.
    #[error(
        "the {field} of CHAP in Cinder's connection_info can't be used: {why}; change it at the storage (it is not shown here)"
    )]
    Credentials {
        /// `username` or `password`.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
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
    /// Most ways to one volume: arrays have up to 32 portals.
    pub const MAX_PATHS: usize = 128;

    /// Reads Cinder's `connection_info`, flat (as it comes today) or nested under `data` (older).
    ///
    /// # Errors
    /// Another transport than iSCSI, missing keys, names that can't be, an encrypted volume.
    pub fn parse(value: &Value) -> Result<Self, ConnectionInfoError> {
        let missing = |key| ConnectionInfoError::Missing { key };
        let top = value.as_object().ok_or(missing("driver_volume_type"))?;
        let driver = text(top, "driver_volume_type").ok_or(missing("driver_volume_type"))?;
        if driver != "iscsi" {
            return Err(ConnectionInfoError::NotIscsi { driver: quoted(driver) });
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
    if iqns.len() > ConnectionInfo::MAX_PATHS {
        return Err(ConnectionInfoError::TooManyPaths { count: iqns.len() });
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
        check(&path)?;
        if seen.insert(path.clone()) {
            paths.push(path);
        }
    }
    Ok(Some(paths))
}

fn singular(data: &Map<String, Value>) -> Result<TargetPath, ConnectionInfoError> {
    let missing = |key| ConnectionInfoError::Missing { key };
    let path = TargetPath {
        target: Target {
            iqn: text(data, "target_iqn").ok_or(missing("target_iqn"))?.parse()?,
            portal: text(data, "target_portal").ok_or(missing("target_portal"))?.parse()?,
        },
        lun: data.get("target_lun").and_then(lun).ok_or(missing("target_lun"))?,
    };
    check(&path)?;
    Ok(path)
}

fn quoted(word: &str) -> String {
    word.chars().take(MAX_QUOTED).collect()
}

/// What each part may be is settled by its type; this is what only a hostile or broken Cinder names.
fn check(path: &TargetPath) -> Result<(), ConnectionInfoError> {
    let portal = path.target.portal;
    match portal.flaw() {
        Some(why) => Err(ConnectionInfoError::PortalAddress { portal, why }),
        None if path.lun.0 > MAX_LUN => Err(ConnectionInfoError::Lun { lun: path.lun }),
        None => Ok(()),
    }
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
        Some(name) if name.eq_ignore_ascii_case("chap") => {
            let missing = |key| ConnectionInfoError::Missing { key };
            let chap = Chap {
                username: text(data, username).ok_or(missing(username))?.to_owned(),
                password: text(data, password)
                    .map(|secret| Secret::new(secret.to_owned()))
                    .ok_or(missing(password))?,
            };
            match chap.flaw() {
                Some((field, why)) => Err(ConnectionInfoError::Credentials { field, why }),
                None => Ok(Some(chap)),
            }
        }
        Some(other) => Err(ConnectionInfoError::AuthMethod { method: quoted(other) }),
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
    /// The recorded info with one key changed.
    fn with(key: &str, value: Value) -> Value {
        let mut info = recorded();
        info[key] = value;
        info
    }

    #[test]
    fn what_a_hostile_cinder_could_name_is_refused_and_credentials_are_not_quoted() {
        let iqn = "iqn.2010-10.org.openstack:volume-7a29c609-53cc-4134-830f-6d08a0b9da91";
        let iqns = |bad: &str| with("target_iqns", json!([iqn, bad]));
        let portals = |bad: &str| with("target_portals", json!(["10.0.2.2:3260", bad]));
        let many = |number: usize| {
            let mut info = recorded();
            info["target_iqns"] = json!(vec![iqn; number]);
            info["target_portals"] = json!(vec!["10.0.2.2:3260"; number]);
            info["target_luns"] = json!(vec![1; number]);
            info
        };
        let hostile = [
            iqns("--login"),
            iqns("-o"),
            iqns("iqn.2010-10.org/../../../etc/shadow"),
            iqns("iqn.2010-10.org x -o delete"),
            iqns("iqn.2010-10.org\nnode.startup = automatic"),
            iqns("iqn.2010-10.org\0x"),
            iqns("iqn.2010-10.org'x"),
            iqns("iqn.2010-10.org\"x"),
            iqns("iqn.2010-10.org$(reboot)"),
            iqns("iqn.2010-10.org\u{202e}x"),
            iqns("iqn.2010-10.org\u{2028}x"),
            iqns(&format!("iqn.2010-10.org:{}", "x".repeat(300))),
            portals("-p"),
            portals("10.0.2.2:3260 --login"),
            portals("10.0.2.2:3260\n"),
            portals("storage.example:3260"),
            portals("10.0.2.2:3260,1,--login"),
            portals("[fe80::1%eth0]:3260"),
            portals("0.0.0.0:3260"),
            portals("[::]:3260"),
            portals("169.254.169.254:80"),
            portals("[::ffff:169.254.169.254]:80"),
            portals("[fe80::a9fe:a9fe]:80"),
            portals("[fd00:ec2::254]:80"),
            portals("224.0.0.1:3260"),
            portals("255.255.255.255:3260"),
            with("target_luns", json!([1, -1])),
            with("target_luns", json!([1, 1.5])),
            with("target_luns", json!([1, 1e30])),
            with("target_luns", json!([1, u64::MAX])),
            with("target_luns", json!([1, "1 2"])),
            with("target_luns", json!([1, "../1"])),
            many(ConnectionInfo::MAX_PATHS + 1),
            many(1_000_000),
            with("driver_volume_type", json!("x".repeat(1_000_000))),
            with("auth_method", json!("x".repeat(1_000_000))),
        ];
        for info in hostile {
            let error = ConnectionInfo::parse(&info).expect_err(&info.to_string()).to_string();
            assert!(error.len() < 1000, "{} bytes", error.len());
        }
        assert_eq!(ConnectionInfo::parse(&many(ConnectionInfo::MAX_PATHS)).unwrap().paths.len(), 1);
        for key in ["auth_username", "auth_password"] {
            for bad in [
                "U9NXSok\nnode.startup = automatic",
                "U9NXSok\rx",
                "U9NXSok\0x",
                " U9NXSok",
                "U9NXSok\u{85}",
                &"U9NXSok".repeat(100),
            ] {
                let error = ConnectionInfo::parse(&with(key, json!(bad))).unwrap_err();
                assert!(matches!(error, ConnectionInfoError::Credentials { .. }), "{error:?}");
                assert!(!format!("{error} {error:?}").contains("U9NX"), "{error}");
            }
        }
    }

    #[test]
    fn one_portal_is_checked_as_a_list_of_them_is() {
        let alone = |key: &str, value: Value| {
            let mut info = with(key, value);
            for key in ["target_portals", "target_iqns", "target_luns"] {
                info.as_object_mut().unwrap().remove(key);
            }
            ConnectionInfo::parse(&info)
        };
        assert!(alone("cacheable", json!(false)).is_ok());
        for (key, value) in [
            ("target_portal", json!("169.254.169.254:80")),
            ("target_portal", json!("--login")),
            ("target_iqn", json!("-T")),
            ("target_lun", json!(u64::MAX)),
        ] {
            assert!(alone(key, value.clone()).is_err(), "{key}: {value}");
        }
    }
}
