//! Passes everything on to a real Cinder, and writes down what was said.

use std::{
    fmt::Write as _,
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::Response,
};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::cinder_replay::PROJECT;

/// The request id of what isn't the client's under test.
pub const ADMIN: &str = "req-admin";

/// Headers of answers that a client may look at.
const KEPT: [&str; 4] =
    ["content-type", "openstack-api-version", "x-openstack-request-id", "retry-after"];

/// One request and its answer, as they were.
struct Exchange {
    by_admin: bool,
    request: String,
    text: String,
}

struct Wire {
    http: reqwest::Client,
    real: String,
    project: String,
    exchanges: Mutex<Vec<Exchange>>,
}

pub struct Recorder {
    wire: Arc<Wire>,
    uri: String,
}

impl Recorder {
    pub async fn start(real: &str, project: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let wire = Arc::new(Wire {
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            real: real.to_owned(),
            project: project.to_owned(),
            exchanges: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(pass).with_state(Arc::clone(&wire));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { wire, uri }
    }

    pub fn uri(&self) -> String {
        self.uri.clone()
    }

    /// Writes what was said into the case's file.
    pub fn write(self, name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/cinder/conformance")
            .join(format!("{name}.txt"));
        let mut text = "# Recorded by `ATTACHD_BLESS=1 scripts/test cinder`.\n".to_owned();
        let exchanges = self.wire.exchanges.lock().unwrap();
        for (place, exchange) in exchanges.iter().enumerate() {
            // Of a status that was waited for only the last look is kept.
            let again = exchanges.get(place + 1).is_some_and(|next| {
                next.by_admin && exchange.by_admin && next.request == exchange.request
            });
            if !again {
                text.push_str(&self.neutral(&exchange.text));
            }
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }

    /// Without what was this lab's own.
    fn neutral(&self, text: &str) -> String {
        let host = |uri: &str| uri.trim_start_matches("http://").to_owned();
        text.replace(&self.wire.project, PROJECT)
            .replace(&host(&self.uri), "127.0.0.1:8776")
            .replace(&host(&self.wire.real), "127.0.0.1:8776")
    }
}

async fn pass(State(wire): State<Arc<Wire>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().unwrap().to_string();
    let sent = to_bytes(body, usize::MAX).await.unwrap();
    let header = |name: &str| parts.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
    let mut forward =
        wire.http.request(parts.method.clone(), format!("{}{path}", wire.real)).body(sent.clone());
    let mut text = format!("\n##### {} {path}\n> {} {path} HTTP/1.1\n", parts.method, parts.method);
    for name in ["x-auth-token", "openstack-api-version", "content-type", "x-openstack-request-id"]
    {
        let Some(value) = header(name) else { continue };
        forward = forward.header(name, &value);
        if name == "openstack-api-version" {
            let _ = writeln!(text, "> OpenStack-API-Version: {value}");
        }
    }
    let _ = writeln!(text, ">\n> {}", String::from_utf8_lossy(&sent));
    let answer = forward.send().await.unwrap();
    let status = answer.status();
    let headers = answer.headers().clone();
    let bytes = answer.bytes().await.unwrap();
    let _ = writeln!(text, "< HTTP/1.1 {}", status.as_u16());
    let mut response = Response::builder().status(status);
    for name in KEPT {
        let Some(value) = headers.get(name) else { continue };
        let _ = writeln!(text, "< {name}: {}", value.to_str().unwrap());
        response = response.header(name, value);
    }
    let _ = writeln!(text, "<\n< {}", without_secrets(&bytes));
    let request = format!("{} {path}", parts.method);
    let is_look = request.starts_with("GET ");
    let by_admin = is_look && header("x-openstack-request-id").as_deref() == Some(ADMIN);
    wire.exchanges.lock().unwrap().push(Exchange { by_admin, request, text });
    response.body(Body::from(bytes)).unwrap()
}

/// An answer's body on one line, its passwords replaced.
fn without_secrets(body: &[u8]) -> String {
    fn redact(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if name == "auth_password" && value.is_string() {
                        *value = Value::from("recorded-password");
                    }
                    redact(value);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(redact),
            _ => {}
        }
    }
    let Ok(mut value) = serde_json::from_slice::<Value>(body) else {
        return String::from_utf8_lossy(body).replace('\n', " ");
    };
    redact(&mut value);
    value.to_string()
}
