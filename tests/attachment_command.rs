//! `attachd attachment …`: the real program against a Cinder that checks every request to the letter.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate, matchers::any};

const PROJECT: &str = "c0ffee00c0ffee00c0ffee00c0ffee00";
const VOLUME: &str = "408c7301-4bec-4442-b377-59ac6ff160e9";
const ID: &str = "ab1b49b3-e5a0-41a5-82cf-85c44a162126";
const OTHER: &str = "c515a547-e252-46b4-baab-7714dd64b174";
const INSTANCE: &str = "93f48792-dba9-4107-846e-6b9bd9a6c541";
const PASSWORD: &str = "m4HvvQQpHzh7HVQZ";

/// One request that must come, and what it gets.
struct Expected {
    request: String,
    version: Option<&'static str>,
    body: Option<Value>,
    status: u16,
    answer: Value,
    /// Whether it may come any number of times more.
    again: bool,
}

/// A request in 3.54 that has no body, and a 200.
fn expect(request: &str, answer: Value) -> Expected {
    let (method, path) = request.split_once(' ').unwrap();
    let request = format!("{method} /v3/{PROJECT}{path}");
    Expected {
        request,
        version: Some("volume 3.54"),
        body: None,
        status: 200,
        answer,
        again: false,
    }
}

impl Expected {
    fn again(self) -> Self {
        Self { again: true, ..self }
    }

    fn body(self, body: Value) -> Self {
        Self { body: Some(body), ..self }
    }

    fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    fn version(self, version: &'static str) -> Self {
        Self { version: Some(version), ..self }
    }
}

#[derive(Clone, Default)]
struct Script(Arc<Mutex<(VecDeque<Expected>, Vec<String>)>>);

impl Respond for Script {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let mut guard = self.0.lock().unwrap();
        let (expected, wrong) = &mut *guard;
        let query = request.url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let got = format!("{} {}{query}", request.method, request.url.path());
        let Some(next) = expected.pop_front() else {
            wrong.push(format!("{got}: nothing more was expected"));
            return ResponseTemplate::new(418);
        };
        let header = |name: &str| request.headers.get(name).map(|value| value.to_str().unwrap());
        if got != next.request {
            wrong.push(format!("{got} came where {} was expected", next.request));
        }
        if header("openstack-api-version") != next.version {
            wrong.push(format!("{got}: version {:?}", header("openstack-api-version")));
        }
        if header("x-auth-token") != Some(&format!("admin:{PROJECT}")) {
            wrong.push(format!("{got}: another token"));
        }
        let body: Option<Value> = serde_json::from_slice(&request.body).ok();
        if body != next.body {
            wrong.push(format!("{got}: sent {body:?}, expected {:?}", next.body));
        }
        let answer = ResponseTemplate::new(next.status)
            .insert_header("x-openstack-request-id", "req-11111111-2222-3333-4444-555555555555");
        let answer = match next.version {
            Some(version) => answer.insert_header("openstack-api-version", version),
            None => answer,
        };
        let answer =
            if next.answer.is_null() { answer } else { answer.set_body_json(&next.answer) };
        if next.again {
            expected.push_front(next);
        }
        answer
    }
}

struct Cinder {
    server: MockServer,
    script: Script,
    state: TempDir,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Cinder {
    async fn of(expected: Vec<Expected>) -> Self {
        // Else a long loop uses up tokio's budget of this task, and the server's drop waits for ever.
        tokio::task::yield_now().await;
        let script = Script::default();
        script.0.lock().unwrap().0 = expected.into();
        let server = MockServer::builder().start().await;
        Mock::given(any()).respond_with(script.clone()).mount(&server).await;
        Self { server, script, state: tempfile::tempdir().unwrap() }
    }

    /// Runs `attachd attachment …`, and checks that all that was expected came, and nothing else.
    fn run(self, arguments: &[&str]) -> Ran {
        let mut command = Command::cargo_bin("attachd").unwrap();
        for (name, _) in std::env::vars() {
            if name.starts_with("ATTACHD_") || name.starts_with("OS_") {
                command.env_remove(name);
            }
        }
        let output = command
            .args(["--os-auth-type", "none", "--os-endpoint", &self.server.uri()])
            .args(["--os-project-id", PROJECT, "--os-username", "admin", "--cinder-timeout", "20"])
            .arg("--state-dir")
            .arg(self.state.path())
            .arg("attachment")
            .args(arguments)
            .output()
            .unwrap();
        let ran = Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        let script = self.script.0.lock().unwrap();
        let left = script.0.iter().filter(|expected| !expected.again);
        let left: Vec<&str> = left.map(|expected| &*expected.request).collect();
        assert!(
            script.1.is_empty() && left.is_empty(),
            "{arguments:?}: {:#?}; never asked: {left:?}; {}",
            script.1,
            ran.stderr
        );
        ran
    }

    fn succeeds(self, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
        ran
    }
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

fn connection_info() -> Value {
    json!({
        "driver_volume_type": "iscsi", "attachment_id": ID, "auth_method": "CHAP",
        "auth_username": "J36jF8SdMPuzUNAHuwZM", "auth_password": PASSWORD, "encrypted": false,
        "target_portals": ["10.0.2.2:3260", "10.0.3.2:3260"], "target_luns": [1, 1],
    })
}

fn attachment(status: &str) -> Value {
    let info = if status == "reserved" { json!({}) } else { connection_info() };
    let mode = if status == "reserved" { "null" } else { "rw" };
    let at = if status == "reserved" { "" } else { "2026-11-22T02:50:40.355224" };
    json!({
        "id": ID, "status": status, "instance": null, "volume_id": VOLUME, "attached_at": at,
        "detached_at": "", "attach_mode": mode, "connection_info": info,
    })
}

fn one(status: &str) -> Value {
    json!({"attachment": attachment(status)})
}

fn summaries() -> Value {
    json!({"attachments": [
        {"id": OTHER, "status": "attached", "instance": INSTANCE, "volume_id": VOLUME},
        {"id": ID, "status": "reserved", "instance": null, "volume_id": VOLUME},
    ]})
}

fn refusal(code: u16, message: &str) -> Value {
    json!({"computeFault": {"code": code, "message": message}})
}

fn creation(fields: &Value) -> Value {
    let mut attachment = json!({"volume_uuid": VOLUME});
    attachment.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({"attachment": attachment})
}

const CONNECTOR: [&str; 12] = [
    "--connector",
    "host=node-1",
    "--connector",
    "initiator=iqn.1993-08.org.debian:01:cad181614cec",
    "--connector",
    "ip=10.0.2.15",
    "--connector",
    "platform=x86_64",
    "--connector",
    "os_type=linux",
    "--connector",
    "multipath=true",
];

fn connector() -> Value {
    json!({
        "host": "node-1", "initiator": "iqn.1993-08.org.debian:01:cad181614cec", "ip": "10.0.2.15",
        "platform": "x86_64", "os_type": "linux", "multipath": true,
    })
}

#[tokio::test]
async fn a_volume_is_reserved_by_every_habit_with_what_was_said_and_nothing_else() {
    for (arguments, fields) in [
        (&["create", "--volume-uuid", VOLUME][..], json!({})),
        (&["create", VOLUME], json!({})),
        (&["create", VOLUME, "--no-connect", "--mode", "null"], json!({})),
        (&["create354", VOLUME, "--mode", "ro"], json!({"mode": "ro"})),
        (
            &["create", "--volume-uuid", VOLUME, "--instance-uuid", INSTANCE],
            json!({"instance_uuid": INSTANCE}),
        ),
        (&["create", VOLUME, "--server", INSTANCE], json!({"instance_uuid": INSTANCE})),
    ] {
        let cinder =
            Cinder::of(vec![expect("POST /attachments", one("reserved")).body(creation(&fields))]);
        let ran = cinder.await.succeeds(arguments);
        assert!(ran.stdout.contains("reserved") && ran.stdout.contains(ID), "{}", ran.stdout);
    }
}

#[tokio::test]
async fn an_attachment_all_at_once_has_the_connector_with_the_types_of_its_fields() {
    let typed = [
        "--connect",
        "--host",
        "node-1",
        "--initiator",
        "iqn.1993-08.org.debian:01:cad181614cec",
        "--ip",
        "10.0.2.15",
        "--platform",
        "x86_64",
        "--os-type",
        "linux",
        "--multipath",
    ];
    let json_habit = [
        "--connector",
        r#"host="node-1""#,
        "--connector",
        r#"initiator="iqn.1993-08.org.debian:01:cad181614cec""#,
        "--connector",
        r#"ip="10.0.2.15""#,
        "--connector",
        r#"platform="x86_64""#,
        "--connector",
        r#"os_type="linux""#,
        "--connector",
        "multipath=true",
    ];
    for arguments in [&CONNECTOR[..], &typed, &json_habit] {
        // Cinder answers with the fields from before.
        let mut stale = attachment("reserved");
        stale["connection_info"] = connection_info();
        let cinder = Cinder::of(vec![
            expect("POST /attachments", json!({"attachment": stale}))
                .body(creation(&json!({"connector": connector()}))),
        ]);
        let arguments = [&["create", VOLUME, "-o", "json"], arguments].concat();
        let shown = cinder.await.succeeds(&arguments).json();
        assert_eq!((&shown["status"], &shown["attach_mode"]), (&json!("attaching"), &json!("rw")));
        assert_eq!(shown["connection_info"]["auth_password"], "<redacted>");
    }
}

#[tokio::test]
async fn a_connector_of_a_file_is_sent_as_it_is_with_single_fields_put_in_their_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("connector.yaml");
    fs::write(&file, "host: node-1\nsan_zone: [a]\nmultipath: true\nip: 10.0.2.15\n").unwrap();
    let file = format!("@{}", file.display());
    let sent = json!({"attachment": {"connector": {
        "host": "node-2", "san_zone": ["a"], "multipath": false, "ip": "10.0.2.15", "mode": "ro",
    }}});
    let cinder =
        Cinder::of(vec![expect(&format!("PUT /attachments/{ID}"), one("reserved")).body(sent)]);
    let arguments =
        ["set", ID, "--connector", &file, "--host", "node-2", "--no-multipath", "--mode", "ro"];
    let ran = cinder.await.succeeds(&arguments);
    assert!(ran.stdout.contains("attaching"), "{}", ran.stdout);
}

#[tokio::test]
async fn an_older_api_is_spoken_where_it_is_asked_for() {
    let created = expect("POST /attachments", one("reserved")).body(creation(&json!({})));
    Cinder::of(vec![created.version("volume 3.27")]).await.succeeds(&["create327", VOLUME]);
    let listed = expect("GET /attachments", summaries()).version("volume 3.30");
    Cinder::of(vec![listed]).await.succeeds(&["--os-volume-api-version", "3.30", "list327"]);
    let listed = expect("GET /attachments", summaries());
    Cinder::of(vec![listed]).await.succeeds(&["list", "--os-volume-api-version", "3"]);
}

fn discovery(highest: &str) -> Expected {
    let versions = json!({"versions": [{"id": "v3.0", "version": highest, "min_version": "3.0"}]});
    let request = "GET /v3/".to_owned();
    Expected { request, version: None, body: None, status: 200, answer: versions, again: false }
}

#[tokio::test]
async fn a_cloud_that_is_too_old_is_told_with_what_is_lost_and_nothing_is_done_by_halves() {
    let refused = || refusal(406, "Version 3.54 is not supported by the API.");
    let cinder = Cinder::of(vec![
        expect("POST /attachments", refused()).body(creation(&json!({"mode": "ro"}))).status(406),
        discovery("3.50"),
    ]);
    let ran = cinder.await.run(&["create", VOLUME, "--mode", "ro"]);
    assert_eq!(ran.code, 4);
    for word in ["3.50", "3.54", "a mode for the attachment", "in the connector", "[CinderTooOld]"]
    {
        assert!(ran.stderr.contains(word), "{word:?}: {}", ran.stderr);
    }
    let complete = format!("POST /attachments/{ID}/action");
    let cinder = Cinder::of(vec![
        expect(&complete, refused()).body(json!({"os-complete": {}})).status(406),
        discovery("3.43"),
    ]);
    let ran = cinder.await.run(&["complete", ID]);
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains("stays attaching"), "{}", ran.stderr);
    let cinder = Cinder::of(vec![
        expect("POST /attachments", refused()).body(creation(&json!({}))).status(406),
        discovery("3.50"),
        expect("POST /attachments", one("reserved"))
            .body(creation(&json!({})))
            .version("volume 3.50"),
    ]);
    cinder.await.succeeds(&["create", VOLUME]);
}

#[tokio::test]
async fn a_failed_creation_with_a_connector_names_what_it_may_have_left_behind() {
    let of_volume = format!("GET /attachments?volume_id={VOLUME}");
    let cinder = Cinder::of(vec![
        expect("POST /attachments", refusal(500, "no export"))
            .body(creation(&json!({"connector": connector()})))
            .status(500),
        expect(&of_volume, summaries()),
    ]);
    let ran = cinder.await.run(&[&["create", VOLUME], &CONNECTOR[..]].concat());
    assert_eq!((ran.code, ran.stdout.as_str()), (4, ""));
    assert!(ran.stderr.contains(&format!("attachd attachment delete {ID}")), "{}", ran.stderr);
    assert!(!ran.stderr.contains(OTHER), "an attachment of an instance: {}", ran.stderr);
    assert!(ran.stderr.contains("create an attachment of volume"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_wait_ends_when_it_is_so_and_with_an_error_when_it_never_will_be() {
    let show = format!("GET /attachments/{ID}");
    let complete = || {
        expect(&format!("POST /attachments/{ID}/action"), Value::Null)
            .body(json!({"os-complete": {}}))
            .status(204)
    };
    let cinder = Cinder::of(vec![
        complete(),
        expect(&show, one("attaching")),
        expect(&show, one("attached")),
    ]);
    let ran = cinder.await.succeeds(&["complete344", ID, "--os-complete", "{}", "--wait"]);
    assert_eq!(ran.stdout, format!("completed attachment {ID}\n"));

    let cinder = Cinder::of(vec![complete(), expect(&show, one("error_attaching"))]);
    let ran = cinder.await.run(&["complete", ID, "--wait"]);
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains("is error_attaching and will not be attached"), "{}", ran.stderr);

    let gone = refusal(404, "x");
    let gone =
        json!({"itemNotFound": {"code": 404, "message": format!("attachment_id = {ID} {gone}")}});
    let cinder = Cinder::of(vec![
        expect(&format!("DELETE /attachments/{ID}"), json!({"attachments": []})),
        expect(&show, one("detached")),
        expect(&show, gone).status(404),
    ]);
    let ran = cinder.await.succeeds(&["delete327", ID, "--wait", "-o", "json"]);
    assert_eq!(ran.json(), json!({"id": ID, "deleted": true, "remaining": []}));

    let created = expect("POST /attachments", one("reserved")).body(creation(&json!({})));
    let cinder = Cinder::of(vec![created, expect(&show, one("reserved"))]);
    cinder.await.succeeds(&["create", VOLUME, "--wait", "--wait-timeout", "5"]);
}

#[tokio::test]
async fn a_wait_has_an_end_and_the_error_names_the_attachment() {
    let show = format!("GET /attachments/{ID}");
    let cinder = Cinder::of(vec![
        expect(&format!("PUT /attachments/{ID}"), one("reserved"))
            .body(json!({"attachment": {"connector": connector()}})),
        expect(&show, one("reserved")).again(),
    ]);
    let arguments = [&["set", ID, "--wait", "--wait-timeout", "1"], &CONNECTOR[..]].concat();
    let ran = cinder.await.run(&arguments);
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains(&format!("{ID} is reserved after 1 s")), "{}", ran.stderr);
}

#[tokio::test]
async fn a_deletion_tells_what_remains_on_the_connection() {
    let delete = format!("DELETE /attachments/{ID}");
    let left = json!({"attachments": [
        {"id": OTHER, "status": "attached", "instance": INSTANCE, "volume_id": VOLUME},
    ]});
    let cinder = Cinder::of(vec![expect(&delete, left)]);
    let ran = cinder.await.succeeds(&["delete", ID]);
    assert_eq!(
        ran.stdout,
        format!(
            "deleted attachment {ID}; these share its connection and remain:\n ID                                    STATUS    VOLUME ID                             INSTANCE\n {OTHER}  attached  {VOLUME}  {INSTANCE}\n"
        )
    );
    let gone = json!({"itemNotFound": {"code": 404, "message": format!("attachment_id = {ID}.")}});
    let cinder = Cinder::of(vec![expect(&delete, gone).status(404)]);
    let ran = cinder.await.succeeds(&["delete", ID, "-o", "json"]);
    assert_eq!(ran.json(), json!({"id": ID, "deleted": false, "remaining": []}));
}

#[tokio::test]
async fn filters_pages_and_order_go_to_cinder_in_the_form_that_works() {
    let volume = format!("volume_id={VOLUME}");
    let instance = format!("instance_id={INSTANCE}");
    let none = || json!({"attachments": []});
    for (arguments, query) in [
        (&["--volume-id", VOLUME][..], volume.as_str()),
        (&["--status", "attached"], "attach_status=attached"),
        (&["--attach-status", "error_attaching"], "attach_status=error_attaching"),
        (&["--instance-id", INSTANCE], &instance),
        (&["--server-id", INSTANCE], &instance),
        (&["--all-tenants"], "all_tenants=1"),
        (&["--all-tenants", "true"], "all_tenants=1"),
        (&["--all-projects"], "all_tenants=1"),
        (&["--project", PROJECT], &format!("project_id={PROJECT}&all_tenants=1")),
        (&["--limit", "7"], "limit=7"),
        (&["--page-size", "7", "--max-items", "3"], "limit=3"),
        (&["--marker", ID, "--offset", "2"], &format!("marker={ID}&offset=2")),
        (&["--sort", "id:asc,created_at"], "sort=id%3Aasc%2Ccreated_at"),
        (&["--sort-key", "id", "--sort-dir", "asc"], "sort=id%3Aasc"),
        (&["--sort-key", "id"], "sort=id%3Adesc"),
    ] {
        let cinder = Cinder::of(vec![expect(&format!("GET /attachments?{query}"), none())]);
        let ran = cinder.await.succeeds(&[&["list", "-o", "value"], arguments].concat());
        assert_eq!(ran.stdout, "", "{arguments:?}");
    }
    Cinder::of(vec![expect("GET /attachments", none())]).await.succeeds(&[
        "list",
        "--all-tenants",
        "false",
    ]);
    let cinder = Cinder::of(Vec::new());
    assert_eq!(
        cinder.await.succeeds(&["list", "--max-items", "0", "-o", "json"]).json(),
        json!([])
    );
}

fn golden(ran: &Ran, expected: &str) {
    let expected = expected.trim_start_matches('\n');
    assert_eq!(ran.stdout, expected, "printed:\n{}", ran.stdout);
}

#[tokio::test]
async fn an_attachment_is_shown_in_every_form() {
    for (arguments, expected) in [
        (
            &["-o", "table"][..],
            "
 FIELD                               VALUE
 id                                  ab1b49b3-e5a0-41a5-82cf-85c44a162126
 status                              attached
 volume_id                           408c7301-4bec-4442-b377-59ac6ff160e9
 instance                            -
 attach_mode                         rw
 attached_at                         2026-11-22T02:50:40.355224
 detached_at                         -
 connection_info.attachment_id       ab1b49b3-e5a0-41a5-82cf-85c44a162126
 connection_info.auth_method         CHAP
 connection_info.auth_password       <redacted>
 connection_info.auth_username       J36jF8SdMPuzUNAHuwZM
 connection_info.driver_volume_type  iscsi
 connection_info.encrypted           false
 connection_info.target_luns         1, 1
 connection_info.target_portals      10.0.2.2:3260, 10.0.3.2:3260
",
        ),
        (
            &["-o", "json", "-f", "id,attach_mode,instance", "--fields", "connection_info"],
            r#"
{
  "attach_mode": "rw",
  "connection_info": {
    "attachment_id": "ab1b49b3-e5a0-41a5-82cf-85c44a162126",
    "auth_method": "CHAP",
    "auth_password": "<redacted>",
    "auth_username": "J36jF8SdMPuzUNAHuwZM",
    "driver_volume_type": "iscsi",
    "encrypted": false,
    "target_luns": [
      1,
      1
    ],
    "target_portals": [
      "10.0.2.2:3260",
      "10.0.3.2:3260"
    ]
  },
  "id": "ab1b49b3-e5a0-41a5-82cf-85c44a162126",
  "instance": null
}
"#,
        ),
        (
            &["-o", "yaml", "-c", "Volume ID", "-c", "Status", "--column", "attached_at"],
            "
attached_at: \"2026-11-22T02:50:40.355224\"
status: attached
volume_id: 408c7301-4bec-4442-b377-59ac6ff160e9
",
        ),
        (
            &["-o", "value"],
            r#"
ab1b49b3-e5a0-41a5-82cf-85c44a162126
attached
408c7301-4bec-4442-b377-59ac6ff160e9
-
rw
2026-11-22T02:50:40.355224
-
{"attachment_id":"ab1b49b3-e5a0-41a5-82cf-85c44a162126","auth_method":"CHAP","auth_password":"<redacted>","auth_username":"J36jF8SdMPuzUNAHuwZM","driver_volume_type":"iscsi","encrypted":false,"target_luns":[1,1],"target_portals":["10.0.2.2:3260","10.0.3.2:3260"]}
"#,
        ),
        (&["-o", "value", "-f", "status"], "attached\n"),
    ] {
        let cinder = Cinder::of(vec![expect(&format!("GET /attachments/{ID}"), one("attached"))]);
        golden(&cinder.await.succeeds(&[&["show", ID], arguments].concat()), expected);
    }
}

#[tokio::test]
async fn a_list_is_printed_in_every_form_and_asks_for_the_details_only_where_they_are_printed() {
    let short = || expect("GET /attachments", summaries());
    let long = || {
        let listed = json!({"attachments": [attachment("attached")]});
        expect("GET /attachments/detail", listed)
    };
    for (arguments, request, expected) in [
        (
            &[][..],
            short(),
            "
 ID                                    STATUS    VOLUME ID                             INSTANCE
 c515a547-e252-46b4-baab-7714dd64b174  attached  408c7301-4bec-4442-b377-59ac6ff160e9  93f48792-dba9-4107-846e-6b9bd9a6c541
 ab1b49b3-e5a0-41a5-82cf-85c44a162126  reserved  408c7301-4bec-4442-b377-59ac6ff160e9  -
",
        ),
        (
            &["-o", "wide"],
            long(),
            "
 ID                                    STATUS    VOLUME ID                             INSTANCE  ATTACH MODE  ATTACHED AT                 DETACHED AT
 ab1b49b3-e5a0-41a5-82cf-85c44a162126  attached  408c7301-4bec-4442-b377-59ac6ff160e9  -         rw           2026-11-22T02:50:40.355224  -
",
        ),
        (
            &["-o", "value", "--sort-column", "status", "--sort-descending"],
            short(),
            "
ab1b49b3-e5a0-41a5-82cf-85c44a162126 reserved 408c7301-4bec-4442-b377-59ac6ff160e9 -
c515a547-e252-46b4-baab-7714dd64b174 attached 408c7301-4bec-4442-b377-59ac6ff160e9 93f48792-dba9-4107-846e-6b9bd9a6c541
",
        ),
        (
            &["-o", "yaml", "-f", "id,instance"],
            short(),
            "
- id: c515a547-e252-46b4-baab-7714dd64b174
  instance: 93f48792-dba9-4107-846e-6b9bd9a6c541
- id: ab1b49b3-e5a0-41a5-82cf-85c44a162126
  instance: null
",
        ),
        (
            &["-o", "value", "-f", "id", "--sort-column", "attached_at"],
            long(),
            "ab1b49b3-e5a0-41a5-82cf-85c44a162126\n",
        ),
    ] {
        let ran = Cinder::of(vec![request]).await.succeeds(&[&["list"], arguments].concat());
        golden(&ran, expected);
    }
    let all = Cinder::of(vec![long()]).await.succeeds(&["list", "-o", "json"]).json();
    assert_eq!(all[0]["connection_info"]["auth_password"], "<redacted>");
    assert_eq!(
        (all[0]["attach_mode"].as_str(), &all[0]["detached_at"]),
        (Some("rw"), &Value::Null)
    );
}

#[tokio::test]
async fn a_planted_secret_is_in_no_form_of_output_unless_it_is_asked_for() {
    let show = format!("GET /attachments/{ID}");
    let talk = ["--debug", "--timing", "--log", "trace"];
    for format in ["table", "wide", "json", "yaml", "value"] {
        let listed = json!({"attachments": [attachment("attached")]});
        let set = expect(&format!("PUT /attachments/{ID}"), one("attaching"))
            .body(json!({"attachment": {"connector": connector()}}));
        let created = expect("POST /attachments", one("attaching"))
            .body(creation(&json!({"connector": connector()})));
        for (expected, arguments) in [
            (expect(&show, one("attached")), vec!["show", ID]),
            (expect("GET /attachments/detail", listed), vec!["list", "-f", "connection_info"]),
            (set, [&["set", ID], &CONNECTOR[..]].concat()),
            (created, [&["create", VOLUME], &CONNECTOR[..]].concat()),
        ] {
            let arguments = [&arguments[..], &["-o", format], &talk].concat();
            let ran = Cinder::of(vec![expected]).await.succeeds(&arguments);
            let all = format!("{}{}", ran.stdout, ran.stderr);
            assert!(ran.stdout.contains("<redacted>"), "{arguments:?}: {}", ran.stdout);
            for secret in [PASSWORD, "admin:c0ffee"] {
                assert!(!all.contains(secret), "{arguments:?} printed {secret}: {all}");
            }
        }
        let cinder = Cinder::of(vec![expect(&show, one("attached"))]);
        let ran = cinder.await.succeeds(&["show", ID, "-o", format, "--show-secrets", "--debug"]);
        assert!(ran.stdout.contains(PASSWORD), "{format}: {}", ran.stdout);
        assert!(!ran.stderr.contains(PASSWORD), "{format}: {}", ran.stderr);
    }
    // The same body where it doesn't belong.
    for status in [400, 409, 500] {
        let cinder = Cinder::of(vec![expect(&show, one("attached")).status(status)]);
        let ran = cinder.await.run(&["show", ID, "--debug", "--log", "trace"]);
        assert_eq!(ran.code, 4);
        assert!(!ran.stderr.contains(PASSWORD), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn debug_says_each_request_as_curl_and_timing_how_long_it_took() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("connector.json");
    fs::write(&file, r#"{"connector": {"host": "node-1", "chap_secret": "PLANTED"}}"#).unwrap();
    let sent = json!({"attachment": {"connector": {"host": "node-1", "chap_secret": "PLANTED"}}});
    let cinder =
        Cinder::of(vec![expect(&format!("PUT /attachments/{ID}"), one("attaching")).body(sent)]);
    let file = format!("@{}", file.display());
    let ran = cinder.await.succeeds(&["--debug", "--timing", "set", ID, "--connector", &file]);
    for words in [
        "curl -sS -X PUT 'http://127.0.0.1:",
        r#"-H "x-auth-token: $OS_TOKEN""#,
        "-H 'openstack-api-version: volume 3.54'",
        r#"--data '{"attachment":{"connector":{"chap_secret":"<redacted>","host":"node-1"}}}'"#,
        "# HTTP 200, req-11111111-2222-3333-4444-555555555555, ",
        &format!("PUT /v3/{PROJECT}/attachments/{ID}"),
        "all requests",
    ] {
        assert!(ran.stderr.contains(words), "{words:?} is not in {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("PLANTED"), "{}", ran.stderr);
}

#[tokio::test]
async fn bad_input_is_named_before_a_request_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        fs::write(directory.path().join(name), text).unwrap();
        format!("@{}", directory.path().join(name).display())
    };
    let wrong_type = file("type.json", r#"{"host": "n1", "multipath": "yes"}"#);
    let null = file("null.yaml", "host: n1\nmode: null\n");
    let no_host = file("nohost.json", r#"{"initiator": "iqn.1993-08.org.debian:01:a"}"#);
    let broken = file("broken.json", r#"{"host": "n1""#);
    let list = file("list.yaml", "- host\n");
    let host = "--connector=host=n1";
    let absent = format!("@{}/absent", directory.path().display());
    for (arguments, words) in [
        (&["create"][..], &["--volume-uuid"][..]),
        (&["create", "nope"], &["\"nope\" is not a volume id"]),
        (&["create", VOLUME, "--volume-uuid", VOLUME], &["cannot be used with", "--volume-uuid"]),
        (
            &["create", "--volume-uuid", VOLUME, "--volume-uuid", VOLUME],
            &["--volume-uuid", "multiple times"],
        ),
        (&["create", VOLUME, "--instance-uuid", "n"], &["--instance-uuid"]),
        (
            &["create", VOLUME, "--instance-uuid", INSTANCE, "--server", INSTANCE],
            &["multiple times"],
        ),
        (&["create", VOLUME, "--mode", "wo"], &["\"wo\"", "rw or ro"]),
        (&["create327", VOLUME, "--mode", "ro"], &["--mode ro needs API 3.54", "mode=ro"]),
        (&["create", VOLUME, "--mode", "rw", "--os-volume-api-version", "3.53"], &["this is 3.53"]),
        (&["create", VOLUME, "--connector", "hostname=n1"], &["no field \"hostname\"", "os_type"]),
        (&["create", VOLUME, "--connector", "multipath=1"], &["multipath", "true or false"]),
        (&["create", VOLUME, "--connector", "host"], &["KEY=VALUE"]),
        (&["create", VOLUME, "--ip", "n1"], &["--ip", "an IP address"]),
        (&["create", VOLUME, host, "--host", "n2"], &["host is given twice", "--host"]),
        (&["create", VOLUME, host, host], &["host is given twice"]),
        (&["create", VOLUME, host], &["lacks initiator", "this-node"]),
        (&["create", VOLUME, "--ip", "10.0.0.1"], &["lacks host"]),
        (&["create", VOLUME, "--connect"], &["--connect needs a connector"]),
        (&["create", VOLUME, "--connect", "--no-connect"], &["cannot be used with"]),
        (
            &["create", VOLUME, "--no-connect", host, "--initiator=iqn.1993-08.org.debian:01:a"],
            &["--no-connect", "contradict"],
        ),
        (
            &[
                "create",
                VOLUME,
                "--mode=rw",
                host,
                "--connector=mode=ro",
                "--initiator=iqn.1993-08.org.debian:01:a",
            ],
            &["--mode", "contradict"],
        ),
        (&["create", VOLUME, "--multipath", "--no-multipath"], &["cannot be used with"]),
        (
            &["create", VOLUME, "--connector", &wrong_type, "--connector", "this-node"],
            &["give one of them"],
        ),
        (&["create", VOLUME, "--wait-timeout", "5"], &["--wait"]),
        (&["create", VOLUME, "--wait", "--wait-timeout", "0"], &["--wait-timeout"]),
        (&["create", VOLUME, "-f", "colour"], &["no field \"colour\"", "attach_mode"]),
        (&["create", VOLUME, "-f", "json"], &["-o json"]),
        (&["set", ID], &["set gives an attachment its connector"]),
        (&["set", ID, "--connector", &wrong_type], &["type.json", "multipath", "true or false"]),
        (&["set", ID, "--connector", &null], &["null.yaml", "mode", "rw or ro"]),
        (&["set", ID, "--connector", &no_host], &["lacks host"]),
        (&["set", ID, "--connector", &broken], &["broken.json", "not JSON", "line 1"]),
        (&["set", ID, "--connector", &list], &["list.yaml", "object of fields"]),
        (&["set", ID, "--connector", &absent], &["absent", "No such file"]),
        (&["set", "nope", "--connector", "this-node"], &["\"nope\" is not an attachment id"]),
        (&["show", "nope"], &["\"nope\" is not an attachment id"]),
        (&["complete", ID, "--os-complete", "[]"], &["--os-complete", "takes nothing"]),
        (&["complete", ID, "--os-volume-api-version", "3.43"], &["needs API 3.44", "3.43"]),
        (&["list", "--os-volume-api-version", "3.26"], &["from 3.27 on"]),
        (&["list", "--os-volume-api-version", "2"], &["\"2\" is not a microversion"]),
        (&["list", "--status", "attached,reserved"], &["--status", "error_detaching", "give one"]),
        (&["list", "--status", "in-use"], &["reserved, attaching"]),
        (&["list", "--volume-id", "x"], &["not a volume id"]),
        (&["list", "--limit", "0"], &["--page-size"]),
        (&["list", "--limit", "5", "--page-size", "5"], &["multiple times"]),
        (&["list", "--sort", "id:up"], &["\"up\" is neither asc nor desc"]),
        (&["list", "--sort", "id", "--sort-key", "id"], &["cannot be used with"]),
        (&["list", "--sort-dir", "asc"], &["--sort-key"]),
        (&["list", "--marker", "1"], &["not an attachment id"]),
        (&["list", "--project", "my project"], &["not a project's id"]),
        (&["list", "--sort-ascending"], &["--sort-column"]),
    ] {
        let ran = Cinder::of(Vec::new()).await.run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.stderr);
        for word in words {
            assert!(ran.stderr.contains(word), "{arguments:?}: {word:?} is not in {}", ran.stderr);
        }
        assert_eq!(ran.stdout, "", "{arguments:?}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_an_error_with_cinders_request_id() {
    let gone = json!({"itemNotFound": {"code": 404, "message": format!("attachment_id = {ID}.")}});
    let cinder = Cinder::of(vec![expect(&format!("GET /attachments/{ID}"), gone).status(404)]);
    let ran = cinder.await.run(&["show", ID]);
    assert_eq!((ran.code, ran.stdout.as_str()), (4, ""));
    for word in ["req-11111111-2222", "show attachment", "[CinderNotFound]"] {
        assert!(ran.stderr.contains(word), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn ids_are_completed_with_what_cinder_has() {
    for (begun, expected) in
        [("", format!("{OTHER}\n{ID}")), ("c5", OTHER.to_owned()), ("ffff", String::new())]
    {
        let cinder = Cinder::of(vec![expect("GET /attachments?limit=200", summaries())]).await;
        let output = Command::cargo_bin("attachd")
            .unwrap()
            .env_clear()
            .env("ATTACHD_COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", "3")
            .env("_CLAP_IFS", "\n")
            .env("OS_AUTH_TYPE", "none")
            .env("OS_ENDPOINT", cinder.server.uri())
            .env("OS_PROJECT_ID", PROJECT)
            .env("OS_USERNAME", "admin")
            .args(["--", "attachd", "attachment", "show", begun])
            .output()
            .unwrap();
        let seen = String::from_utf8(output.stdout).unwrap();
        let ids: Vec<&str> = seen.lines().filter(|line| !line.starts_with('-')).collect();
        assert_eq!(ids.join("\n"), expected, "{begun:?}: {seen}");
        assert!(cinder.script.0.lock().unwrap().1.is_empty());
    }
}

/// The long help of a command, as one line of words.
fn help(command: &str) -> String {
    let output = Command::cargo_bin("attachd").unwrap();
    let output = { output }.args(["attachment", command, "--help"]).output().unwrap();
    assert!(output.status.success(), "{command}");
    String::from_utf8(output.stdout).unwrap()
}

/// Rows of the parity table: command and the option in attachd's column.
fn parity() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/commands.md");
    let text = fs::read_to_string(path).unwrap();
    let mut rows = Vec::new();
    let (_, table) = text.split_once("## Every option").unwrap();
    let table = table.split("\n## ").next().unwrap();
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{line}");
        let command = cells[0].trim_matches('`').to_owned();
        for option in cells[3].split('`').skip(1).step_by(2) {
            rows.push((command.clone(), option.to_owned()));
        }
    }
    assert!(rows.len() > 60, "the table was not found: {rows:?}");
    rows
}

#[test]
fn every_option_of_the_parity_table_is_one_of_the_command() {
    let mut missing = Vec::new();
    for (command, option) in parity() {
        let text = help(&command);
        let word = option.split([' ', '=']).next().unwrap();
        let known =
            text.split(|c: char| c.is_whitespace() || "[],".contains(c)).any(|part| part == word);
        if !known {
            missing.push(format!("{command} {option}"));
        }
    }
    assert!(missing.is_empty(), "docs/commands.md names what is not in the help: {missing:#?}");
}

#[test]
fn every_option_of_the_commands_is_in_the_parity_table() {
    let rows = parity();
    for command in ["create", "list", "show", "set", "complete", "delete"] {
        let text = help(command);
        // Those of the cloud are openstackclient's, by their names.
        let own = text.split("\nCloud:").next().unwrap().split("\nGlobal options:").next().unwrap();
        for line in own.lines().map(str::trim_start).filter(|line| line.starts_with('-')) {
            let option = line.split("--").nth(1).unwrap().split([' ', '=']).next().unwrap();
            let option = format!("--{}", option.trim_end_matches(','));
            let shared = ["--help", "--os-volume-api-version", "--debug", "--timing"];
            let in_table = rows.iter().any(|(row, other)| {
                row == command && other.split([' ', '=']).next() == Some(&option)
            });
            assert!(in_table || shared.contains(&option.as_str()), "{command} {option}");
        }
    }
}
