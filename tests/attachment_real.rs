//! `attachd attachment …` against a real Cinder without authentication: such as `scripts/lab`
//! starts. `ATTACHD_TEST_CINDER` is its endpoint, `ATTACHD_TEST_PROJECT` the project's id.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use assert_cmd::Command;
use serde_json::{Value, json};

const CONNECTOR: [&str; 12] = [
    "--host",
    "node-1",
    "--initiator",
    "iqn.2026-11.dev.attachd.test:node-1",
    "--ip",
    "127.0.0.1",
    "--platform",
    "x86_64",
    "--os-type",
    "linux",
    "--connector",
    "multipath=true",
];

#[expect(clippy::disallowed_methods, reason = "the test's own configuration")]
fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: this test needs a real Cinder, which scripts/test starts")
    })
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs `attachd attachment …` in `-o json`, away from the node's own ledger.
fn attachd(arguments: &[&str]) -> Ran {
    let state = tempfile::tempdir().unwrap();
    let output = Command::cargo_bin("attachd")
        .unwrap()
        .env_clear()
        .args(["--os-auth-type", "none", "--os-endpoint", &setting("ATTACHD_TEST_CINDER")])
        .args(["--os-project-id", &setting("ATTACHD_TEST_PROJECT"), "--os-username", "admin"])
        .arg("--state-dir")
        .arg(state.path())
        .args(["-o", "json", "attachment"])
        .args(arguments)
        .output()
        .unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn done(arguments: &[&str]) -> Value {
    let ran = attachd(arguments);
    assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

async fn ask(method: &str, path: &str, body: Option<Value>) -> Value {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let project = setting("ATTACHD_TEST_PROJECT");
    let url = format!("{}/v3/{project}{path}", setting("ATTACHD_TEST_CINDER"));
    let mut request = http
        .request(method.parse().unwrap(), url)
        .timeout(Duration::from_mins(1))
        .header("x-auth-token", format!("admin:{project}"));
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default()
}

async fn volume_in(id: &str, status: &str) {
    for _ in 0..300 {
        let shown = ask("GET", &format!("/volumes/{id}"), None).await;
        if shown["volume"]["status"].as_str().unwrap_or("gone") == status {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("volume {id} did not become {status}");
}

async fn new_volume() -> String {
    let body = json!({"volume": {"size": 1, "name": "attachd test", "volume_type": "tgt"}});
    let made = ask("POST", "/volumes", Some(body)).await;
    let id = made["volume"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    volume_in(&id, "available").await;
    id
}

#[tokio::test]
#[ignore = "needs a real Cinder: scripts/test starts one"]
async fn the_whole_life_of_an_attachment_goes_through_the_command_line() {
    let volume = new_volume().await;
    let created = done(&["create", "--volume-uuid", &volume, "--mode", "rw", "--wait"]);
    let id = created["id"].as_str().unwrap();
    assert_eq!((&created["status"], &created["attach_mode"]), (&json!("reserved"), &json!("rw")));
    let again = attachd(&["create", &volume]);
    assert_eq!(again.code, 4);
    assert!(again.stderr.contains("current status is reserved"), "{}", again.stderr);

    let set = done(&[&["set", id, "--wait", "--debug"], &CONNECTOR[..]].concat());
    assert_eq!(set["status"], "attaching");
    assert_eq!(set["connection_info"]["target_portals"].as_array().unwrap().len(), 2);
    assert_eq!(set["connection_info"]["auth_password"], "<redacted>");
    let shown = done(&["show", id]);
    assert_eq!(set, shown, "what set prints is what Cinder shows");
    let whole = done(&["show", id, "--show-secrets"]);
    let password = whole["connection_info"]["auth_password"].as_str().unwrap();
    assert!(password.len() > 8);
    let talk = attachd(&["list", "--volume-id", &volume, "--debug", "--timing", "--log", "trace"]);
    assert!(talk.stderr.contains("curl -sS -X GET") && talk.stderr.contains("# HTTP 200, req-"));
    assert!(!format!("{}{}", talk.stdout, talk.stderr).contains(password));

    assert_eq!(done(&["complete", id, "--wait"]), json!({"id": id, "completed": true}));
    volume_in(&volume, "in-use").await;
    for (filter, found) in [
        (&["--status", "attached"][..], 1),
        (&["--status", "reserved"], 0),
        (&["--instance-id", &uuid::Uuid::new_v4().to_string()], 0),
        (&["--all-tenants"], 1),
        (&["--project", &setting("ATTACHD_TEST_PROJECT")], 1),
        (&["--project", "c0ffee99c0ffee99c0ffee99c0ffee99"], 0),
        (&["--sort", "id:asc", "--limit", "1"], 1),
    ] {
        let listed = done(&[&["list", "--volume-id", &volume], filter].concat());
        assert_eq!(listed.as_array().unwrap().len(), found, "{filter:?}: {listed}");
    }
    let deleted = done(&["delete", id, "--wait"]);
    assert_eq!(deleted, json!({"id": id, "deleted": true, "remaining": []}));
    assert_eq!(done(&["delete", id])["deleted"], false);
    assert_eq!(attachd(&["show", id]).code, 4);
    volume_in(&volume, "available").await;

    let at_once = done(&[&["create", &volume, "--mode", "ro"], &CONNECTOR[..]].concat());
    let id = at_once["id"].as_str().unwrap();
    let shown = done(&["show", id]);
    for field in ["status", "attach_mode", "connection_info"] {
        assert_eq!(at_once[field], shown[field], "what a creation leaves is known: {field}");
    }
    assert_eq!((&shown["status"], &shown["attach_mode"]), (&json!("attaching"), &json!("ro")));
    done(&["delete", id]);
    let old = done(&["create327", &volume]);
    assert_eq!(old["attach_mode"], Value::Null);
    done(&["--os-volume-api-version", "3.27", "delete", old["id"].as_str().unwrap()]);
    volume_in(&volume, "available").await;
    ask("DELETE", &format!("/volumes/{volume}"), None).await;
    volume_in(&volume, "gone").await;
}
