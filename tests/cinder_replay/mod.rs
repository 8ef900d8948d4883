//! Replays recorded exchanges with Cinder, strictly: the client must send exactly these requests,
//! in this order, and gets exactly these answers.
//!
//! A recording is lines that begin with `> ` (request) and `< ` (answer), below a `##### title`.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// Each test program uses a part of it.
#![allow(dead_code)]

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use attachd::{
    cinder::{Auth, Client, ClientConfig, Microversion},
    model::Connector,
};
use serde_json::{Value, json};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate, matchers::any};

pub const PROJECT: &str = "c0ffee00c0ffee00c0ffee00c0ffee00";

/// One request and its answer.
#[derive(Debug, Clone, Default)]
pub struct Exchange {
    pub title: String,
    /// Method and path with its query; `None`: whatever is asked.
    pub asked: Option<(String, String)>,
    pub version: Option<String>,
    pub sent: Option<Value>,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Exchange {
    /// Gives the answer to any request: for answers to requests that this client can't send.
    pub fn for_anything(mut self) -> Self {
        self.asked = None;
        self
    }

    /// The answer as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// What was recorded of a case of `tests/cinder_conformance.rs`.
pub fn conformance_recording(case: &str) -> Vec<Exchange> {
    recording(&format!("conformance/{case}.txt"))
}

/// All exchanges of a recording.
pub fn recording(file: &str) -> Vec<Exchange> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cinder").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut all: Vec<Exchange> = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("##### ") {
            all.push(Exchange { title: title.trim().to_owned(), ..Exchange::default() });
        } else if let Some(rest) = line.strip_prefix('>') {
            request_line(all.last_mut().unwrap(), rest.trim());
        } else if let Some(rest) = line.strip_prefix('<') {
            answer_line(all.last_mut().unwrap(), rest.trim());
        } else {
            assert!(line.is_empty() || line.starts_with("# "), "{file}: {line}");
        }
    }
    all
}

fn request_line(exchange: &mut Exchange, line: &str) {
    if let Some(start) = line.strip_suffix(" HTTP/1.1") {
        let (method, path) = start.split_once(' ').unwrap();
        exchange.asked = Some((method.to_owned(), below_project(path)));
    } else if line.starts_with('{') {
        exchange.sent = Some(serde_json::from_str(line).unwrap());
    } else if let Some(version) = line.strip_prefix("OpenStack-API-Version: ") {
        exchange.version = Some(version.to_owned());
    }
}

fn answer_line(exchange: &mut Exchange, line: &str) {
    if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
        exchange.status = rest[..3].parse().unwrap();
    } else if exchange.body.is_empty() && line.starts_with('{') {
        line.clone_into(&mut exchange.body);
    } else if let Some((name, value)) = line.split_once(": ") {
        exchange.headers.push((name.to_owned(), value.to_owned()));
    }
}

/// The recordings with Keystone have no project in their addresses; this client has.
fn below_project(path: &str) -> String {
    match path.strip_prefix("/v3/") {
        Some(rest) if rest.starts_with("attachments") || rest.starts_with("volumes") => {
            format!("/v3/{PROJECT}/{rest}")
        }
        _ => path.to_owned(),
    }
}

/// The exchange with that title.
pub fn exchange(file: &str, title: &str) -> Exchange {
    let mut found: Vec<Exchange> =
        recording(file).into_iter().filter(|exchange| exchange.title == title).collect();
    assert_eq!(found.len(), 1, "{file} has {} exchanges {title:?}", found.len());
    found.remove(0)
}

/// Some exchanges of one recording, in that order.
pub fn exchanges(file: &str, titles: &[&str]) -> Vec<Exchange> {
    titles.iter().map(|title| exchange(file, title)).collect()
}

/// What this client says beyond what was recorded, and the recordings say beyond it.
fn as_we_send_it(recorded: &Value, version: Option<&str>) -> Value {
    let mut body = recorded.clone();
    if let Some(attachment) = body.get_mut("attachment").and_then(Value::as_object_mut) {
        if let Some(connector) = attachment.get_mut("connector").and_then(Value::as_object_mut) {
            connector.insert("do_local_attach".to_owned(), json!(false));
            // os-brick's, of no use to Cinder.
            connector.remove("uuid");
        } else if version == Some("volume 3.54") {
            attachment.entry("mode").or_insert(json!("rw"));
        }
    }
    body
}

#[derive(Default)]
struct Script {
    expected: VecDeque<Exchange>,
    seen: Vec<String>,
    wrong: Vec<String>,
}

#[derive(Clone, Default)]
struct Player(Arc<Mutex<Script>>);

impl Respond for Player {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let mut script = self.0.lock().unwrap();
        let path = match request.url.query() {
            Some(query) => format!("{}?{query}", request.url.path()),
            None => request.url.path().to_owned(),
        };
        let got = format!("{} {path}", request.method);
        script.seen.push(got.clone());
        let Some(exchange) = script.expected.pop_front() else {
            script.wrong.push(format!("{got}: nothing more was expected"));
            return ResponseTemplate::new(418);
        };
        let header = |name: &str| request.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
        let mut wrong = Vec::new();
        if let Some((method, path_and_query)) = &exchange.asked {
            let expected = format!("{method} {path_and_query}");
            if got != expected {
                wrong.push(format!("{got} came where {expected} was expected"));
            }
            if header("openstack-api-version") != exchange.version {
                wrong.push(format!("{got}: version {:?}", header("openstack-api-version")));
            }
            let sent: Option<Value> = serde_json::from_slice(&request.body).ok();
            let expected =
                exchange.sent.as_ref().map(|sent| as_we_send_it(sent, exchange.version.as_deref()));
            if sent != expected {
                wrong.push(format!("{got}: sent {sent:?}, expected {expected:?}"));
            }
        }
        if header("x-auth-token").as_deref() != Some(&format!("admin:{PROJECT}")) {
            wrong.push(format!("{got}: token {:?}", header("x-auth-token")));
        }
        if !header("x-openstack-request-id").is_some_and(|id| id.starts_with("req-")) {
            wrong.push(format!("{got}: no request id of ours"));
        }
        script.wrong.extend(wrong);
        let mut answer = ResponseTemplate::new(exchange.status);
        for (name, value) in &exchange.headers {
            answer = answer.insert_header(name.as_str(), value.as_str());
        }
        if exchange.body.is_empty() {
            answer
        } else {
            answer.set_body_raw(exchange.body.into_bytes(), "application/json")
        }
    }
}

/// A server that plays exchanges.
pub struct Replay {
    server: MockServer,
    player: Player,
}

impl Replay {
    pub async fn of(exchanges: Vec<Exchange>) -> Self {
        let player = Player::default();
        player.0.lock().unwrap().expected = exchanges.into();
        let server = MockServer::start().await;
        Mock::given(any()).respond_with(player.clone()).mount(&server).await;
        Self { server, player }
    }

    pub fn uri(&self) -> String {
        self.server.uri()
    }

    pub fn client(&self) -> Client {
        self.client_up_to(54)
    }

    pub fn client_up_to(&self, minor: u16) -> Client {
        client_for(&self.server.uri(), Microversion::v3(minor))
    }

    /// Checks that all was asked, and nothing else; gives what was asked.
    pub fn finish(self) -> Vec<String> {
        let script = self.player.0.lock().unwrap();
        assert!(script.wrong.is_empty(), "{:#?}", script.wrong);
        let left: Vec<&str> = script.expected.iter().map(|e| e.title.as_str()).collect();
        assert!(left.is_empty(), "never asked: {left:?}");
        script.seen.clone()
    }
}

/// A client with short limits.
pub fn client_for(endpoint: &str, highest_version: Microversion) -> Client {
    let config = ClientConfig {
        request_timeout: Duration::from_secs(20),
        export_timeout: Duration::from_secs(20),
        first_pause: Duration::from_millis(1),
        highest_version,
        ..ClientConfig::default()
    };
    Client::new(Auth::no_auth(endpoint, PROJECT, "admin").unwrap(), config).unwrap()
}

/// The connector of the recordings.
pub fn connector() -> Connector {
    serde_json::from_value(json!({
        "initiator": "iqn.1993-08.org.debian:01:cad181614cec", "ip": "127.0.0.1",
        "host": "node-1", "platform": "x86_64", "os_type": "linux", "multipath": true,
        "do_local_attach": false,
    }))
    .unwrap()
}
