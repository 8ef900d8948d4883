//! What every reader of foreign text must keep to, whatever the text: it never panics, what it accepts
//! prints and reads again as the same and could not be taken for an option, and a secret stays one.
//!
//! `tests/fuzz` looks for text that breaks this; `tests/parsers.rs` replays what it found.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is how each of them says that a rule is broken"
)]

use std::{fs, path::Path, time::Instant};

use reqwest::{
    StatusCode,
    header::{HeaderMap, HeaderValue},
};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    attach::Record,
    cinder, cloud,
    host::{Sysfs, parsers},
    journal::History,
    keystone::Token,
    model::{
        Chap, ConnectionInfo, Contents, DeviceName, DeviceNumber, Hctl, Iqn, MountEntry, Portal,
        Secret, Target, Usage, VolumeId, Wwid, mount_option_flaw,
    },
    requests_dir,
};

/// A reader, by the name of its corpus.
pub type Parser = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Parser; 14] = [
    ("blkid", blkid),
    ("cinder_attachment", cinder_attachment),
    ("clouds_yaml", clouds_yaml),
    ("connection_info", connection_info),
    ("iscsiadm_discovery", iscsiadm_discovery),
    ("journal_lines", journal_lines),
    ("keystone_token", keystone_token),
    ("ledger_record", ledger_record),
    ("mountinfo", mountinfo),
    ("multipathd", multipathd),
    ("node_record", node_record),
    ("request_yaml", request_yaml),
    ("sysfs", sysfs),
    ("uevent", uevent),
];

/// Longest message of an error that is made from foreign text.
const LONGEST_MESSAGE: usize = 8000;

fn plain_argument(text: &str) {
    assert!(!text.is_empty() && !text.starts_with('-'), "an option: {text:?}");
    assert!(!text.contains(|c: char| c.is_control() || c.is_whitespace()), "{text:?}");
}

/// It reads what it wrote as the same.
macro_rules! same_again {
    ($kind:ty, $value:expr) => {{
        let value: &$kind = $value;
        let text = value.to_string();
        assert_eq!(text.parse::<$kind>().as_ref().ok(), Some(value), "{text:?}");
        text
    }};
}

fn proper_target(target: &Target) {
    plain_argument(&same_again!(Iqn, &target.iqn));
    plain_argument(&same_again!(Portal, &target.portal));
    assert!(!target.iqn.as_str().contains('/') && target.portal.port() != 0);
}

fn fits_a_message(text: &str) {
    assert!(text.len() < LONGEST_MESSAGE, "{} bytes", text.len());
    assert!(!text.contains(char::is_control), "{text:?}");
}

/// All texts of a value but those below these keys.
fn other_text(value: &Value, secret: &[&str], found: &mut String) {
    match value {
        Value::String(text) => found.push_str(text),
        Value::Array(items) => items.iter().for_each(|item| other_text(item, secret, found)),
        Value::Object(fields) => {
            for (key, value) in fields {
                found.push_str(key);
                if !secret.contains(&key.as_str()) {
                    other_text(value, secret, found);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The secrets of a connection info that stand nowhere else in it.
fn secrets(info: &Value) -> Vec<String> {
    const KEYS: [&str; 2] = ["auth_password", "discovery_auth_password"];
    let mut elsewhere = String::new();
    other_text(info, &KEYS, &mut elsewhere);
    let data = info.get("data").filter(|data| data.is_object()).unwrap_or(info);
    let secret = |key| data.get(key).and_then(Value::as_str).map(str::to_owned);
    let long = |secret: &String| secret.chars().count() >= 8 && !elsewhere.contains(secret);
    // Field names that `Debug` shows.
    let own = "Some(ConnectionInfo { paths: [] }) missing usable username password Credentials ";
    KEYS.into_iter().filter_map(secret).filter(long).filter(|text| !own.contains(text)).collect()
}

/// Cinder's `connection_info`.
pub fn connection_info(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    let parsed = ConnectionInfo::parse(&value);
    let shown = match &parsed {
        Ok(info) => format!("{info:?}"),
        Err(error) => {
            fits_a_message(&error.to_string());
            format!("{error} {error:?}")
        }
    };
    for secret in secrets(&value) {
        assert!(!shown.contains(&secret), "{shown}");
    }
    let Ok(info) = parsed else { return };
    assert!(!info.paths.is_empty() && info.paths.len() <= ConnectionInfo::MAX_PATHS);
    for path in &info.paths {
        proper_target(&path.target);
        assert_eq!(path.target.portal.flaw(), None);
        assert!(u32::try_from(path.lun.0).is_ok());
    }
    for chap in [&info.chap, &info.discovery_chap].into_iter().flatten() {
        assert_eq!(chap.flaw(), None);
    }
}

/// Cinder's answer about one attachment, good or bad: the status, a line end, the body.
pub fn cinder_attachment(data: &[u8]) {
    let (status, body) = data.split_at(data.len().min(3));
    let status = StatusCode::from_bytes(status).unwrap_or(StatusCode::OK);
    let secrets: Vec<String> = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|answer| answer.get("attachment")?.get("connection_info").map(secrets))
        .unwrap_or_default();
    let whole: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut elsewhere = String::new();
    other_text(&whole, &["auth_password", "discovery_auth_password"], &mut elsewhere);
    let answered = cinder::attachment_of(Uuid::nil().into(), status, body.to_vec());
    let shown = match answered {
        Ok(attachment) => format!("{attachment:?} {}", attachment.shown_connection_info()),
        Err(error) => {
            fits_a_message(&error.to_string());
            format!("{error} {error:?}")
        }
    };
    for secret in secrets.iter().filter(|secret| !elsewhere.contains(*secret)) {
        assert!(!shown.contains(secret), "{shown}");
    }
}

/// Keystone's answer to a request for a token.
pub fn keystone_token(data: &[u8]) {
    const TOKEN: &str = "gAAAAAB-a-token-to-be-kept";
    let mut headers = HeaderMap::new();
    headers.insert("x-subject-token", HeaderValue::from_static(TOKEN));
    if let Ok(token) = Token::read(&headers, data, Instant::now()) {
        assert!(!format!("{token:?}").contains(TOKEN));
        let wanted = crate::keystone::Wanted {
            types: vec!["volumev3".to_owned(), "block-storage".to_owned()],
            region: None,
            interface: crate::keystone::Interface::Public,
        };
        match token.catalog().find(&wanted, |_| true) {
            Ok(url) => assert!(matches!(url.scheme(), "http" | "https") && url.host().is_some()),
            Err(offered) => assert!(!offered.to_string().is_empty()),
        }
    }
}

/// `iscsiadm`'s answer to a discovery.
pub fn iscsiadm_discovery(data: &[u8]) {
    let targets = parsers::targets(&String::from_utf8_lossy(data));
    targets.iter().for_each(proper_target);
    let line = |target: &Target| format!("{},1 {}", target.portal, target.iqn);
    let written: Vec<String> = targets.iter().map(line).collect();
    assert_eq!(parsers::targets(&written.join("\n")), targets);
}

/// multipathd's answers.
pub fn multipathd(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    for device in parsers::states(&text).keys() {
        plain_argument(device.as_str());
        assert_eq!(DeviceName::new(device.as_str()).as_ref(), Some(device));
    }
    if let Some(rule) = parsers::blacklisting_rule(&text) {
        assert!(text.contains(&rule), "{rule:?}");
    }
    let _ = parsers::judge(text);
}

/// The kernel's list of mounts.
pub fn mountinfo(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mounts = parsers::mounts(&text);
    assert!(mounts.len() <= text.lines().count());
    let written: String = mounts.iter().map(line).collect();
    let again: Vec<_> = parsers::mounts(&written).iter().map(place).collect();
    assert_eq!(again, mounts.iter().map(place).collect::<Vec<_>>(), "{written}");
}

fn place(mount: &MountEntry) -> (DeviceNumber, std::path::PathBuf, bool) {
    (mount.number, mount.target.clone(), mount.read_only)
}

/// As the kernel writes it.
fn line(mount: &MountEntry) -> String {
    let escaped: String =
        mount.target.as_os_str().as_encoded_bytes().iter().fold(String::new(), |text, byte| {
            match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'\r' | 0x0b | 0x0c | 0x80.. => {
                    text + &format!("\\{byte:03o}")
                }
                byte => text + &char::from(*byte).to_string(),
            }
        });
    let mode = if mount.read_only { "ro" } else { "rw" };
    format!("1 0 {} / {escaped} {mode} - ext4 none {mode}\n", mount.number)
}

/// One event of the kernel or of udev.
pub fn uevent(data: &[u8]) {
    let _ = parsers::matters(data);
}

/// blkid's findings.
pub fn blkid(data: &[u8]) {
    let found = parsers::signature(&String::from_utf8_lossy(data));
    if let Some(Contents::Filesystem { name } | Contents::Signature { name }) = &found {
        fits_a_message(name);
    }
    assert_ne!(found, Some(Contents::Blank), "a finding is never blank");
}

/// A node record of open-iscsi's, before attachd changes it; the first line is the secret.
pub fn node_record(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (secret, before) = text.split_once('\n').unwrap_or(("a secret", &text));
    let chap = Chap { username: "user".to_owned(), password: Secret::new(secret.to_owned()) };
    let (Ok(iqn), Ok(portal)) = ("iqn.2010-10.org.openstack:v".parse(), "192.0.2.1".parse()) else {
        return;
    };
    let target = Target { portal, iqn };
    let Some(after) = parsers::node_record(before, &target, &chap) else {
        assert!(chap.flaw().is_some());
        return;
    };
    let value = |key: &str| -> Vec<String> {
        let of = |line: &str| {
            line.trim_start().split_once(" = ").map(|(k, v)| (k.to_owned(), v.to_owned()))
        };
        after.lines().filter_map(of).filter(|(k, _)| k == key).map(|(_, v)| v).collect()
    };
    assert_eq!(value("node.startup"), ["manual"]);
    assert_eq!(value("node.session.auth.password"), [secret]);
    assert_eq!(parsers::node_record(&after, &target, &chap).as_ref(), Some(&after));
}

/// A file of the requests directory.
pub fn request_yaml(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (name, spec) = match requests_dir::request(&text) {
        Ok(request) => request,
        Err(error) => return fits_a_message(&error),
    };
    plain_argument(&name);
    assert!(!name.contains('/') && !name.starts_with('.'));
    match spec.to_attach_spec(&Path::new("/var/lib/attachd/mounts").join(&name)) {
        Err(error) => fits_a_message(&error.to_string()),
        Ok(spec) => {
            same_again!(VolumeId, &spec.volume);
            if let Usage::Filesystem { mount_path, options, .. } = &spec.usage {
                assert!(mount_path.is_absolute());
                let parts = mount_path.components().skip(1);
                assert!(parts.clone().all(|part| matches!(part, std::path::Component::Normal(_))));
                assert!(!mount_path.to_string_lossy().contains(char::is_control));
                assert!(options.iter().all(|option| mount_option_flaw(option).is_none()));
            }
            let written = serde_json::to_string(&spec).unwrap_or_default();
            assert_eq!(serde_json::from_str(&written).ok(), Some(spec), "{written}");
        }
    }
}

/// A `clouds.yaml`.
pub fn clouds_yaml(data: &[u8]) {
    const SECRET: &str = "a-secret-to-be-kept";
    let text = String::from_utf8_lossy(data);
    match cloud::depth(&text) {
        Ok(depth) => assert!(depth > 0),
        Err(error) => {
            let (shown, debug) = (error.to_string(), format!("{error:?}"));
            // A key that stands twice is named, and a key is no secret.
            let is_key = text.contains(&format!("{SECRET}:")) || shown.contains("duplicate");
            assert!(is_key || !(shown + &debug).contains(SECRET), "{debug}");
        }
    }
}

/// A file of the ledger.
pub fn ledger_record(data: &[u8]) {
    let Ok(record) = serde_json::from_slice::<Record>(data) else { return };
    for target in record.targets() {
        proper_target(&target);
    }
    let written = serde_json::to_vec(&record).unwrap_or_default();
    assert_eq!(serde_json::from_slice::<Record>(&written).ok(), Some(record));
}

/// A file of the journal: its runs are told in some order whatever is broken in it.
pub fn journal_lines(data: &[u8]) {
    let volume = VolumeId::from(Uuid::nil());
    let history = History::of(volume, data);
    let mut written = Vec::new();
    for run in &history.runs {
        assert!(run.items().len() <= run.lines.len());
        for line in &run.lines {
            written.extend(serde_json::to_vec(line).unwrap_or_default());
            written.push(b'\n');
        }
    }
    let again = History::of(volume, &written);
    assert_eq!((again.broken_lines, again.newer_lines, again.lost_lines), (0, 0, 0));
    assert_eq!(again.runs.len(), history.runs.len());
}

/// Values of sysfs: VPD page 0x83, and words; then a whole tree of them, each in its file.
pub fn sysfs(data: &[u8]) {
    if let Some(wwid) = parsers::wwid_of_page83(data) {
        plain_argument(&same_again!(Wwid, &wwid));
    }
    let values: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    for text in values.iter().filter_map(|value| std::str::from_utf8(value).ok()) {
        if let Ok(number) = text.parse::<DeviceNumber>() {
            same_again!(DeviceNumber, &number);
        }
        if let Ok(address) = text.parse::<Hctl>() {
            same_again!(Hctl, &address);
        }
        if let Ok(wwid) = text.parse::<Wwid>() {
            plain_argument(&same_again!(Wwid, &wwid));
        }
        if let Ok(iqn) = text.parse::<Iqn>() {
            plain_argument(&same_again!(Iqn, &iqn));
        }
        if let Ok(portal) = text.parse::<Portal>() {
            plain_argument(&same_again!(Portal, &portal));
        }
    }
    let own = format!("attachd-sysfs-{}-{:?}", std::process::id(), std::thread::current().id());
    let tree = std::env::temp_dir().join(own);
    if values.len() >= FILES.len() && lay_out(&tree, &values).is_ok() {
        let snapshot = Sysfs::new(&tree).snapshot();
        let _ = fs::remove_dir_all(&tree);
        assert!(snapshot.is_ok(), "{snapshot:?}");
    }
}

/// A session, its disk and its map.
const FILES: [&str; 13] = [
    "class/iscsi_session/session1/targetname",
    "class/iscsi_session/session1/tpgt",
    "class/iscsi_session/session1/state",
    "class/iscsi_connection/connection1:0/persistent_address",
    "class/iscsi_connection/connection1:0/persistent_port",
    "block/dm-0/dm/uuid",
    "block/dm-0/dm/name",
    "block/dm-0/dev",
    "block/dm-0/size",
    "block/dm-0/ro",
    "class/iscsi_session/session1/device/target2:0:0/2:0:0:1/state",
    "class/iscsi_session/session1/device/target2:0:0/2:0:0:1/vpd_pg83",
    "class/iscsi_session/session1/device/target2:0:0/2:0:0:1/block/sda/size",
];

fn lay_out(tree: &Path, values: &[&[u8]]) -> std::io::Result<()> {
    for (file, value) in FILES.iter().zip(values) {
        let path = tree.join(file);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(path, value)?;
    }
    Ok(())
}
