//! An API server in memory, as far as an agent uses one, that a test can make do what real ones do rarely.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

pub const FINALIZER: &str = "attachd.dev/detach";
const REQUESTS: &str = "/apis/attachd.dev/v1alpha1/volumeattachrequests";
const NODES: &str = "/api/v1/nodes";
const CONNECTORS: &str = "/apis/attachd.dev/v1alpha1/nodeconnectors";

type Lines = UnboundedSender<Result<Bytes, std::io::Error>>;

/// Clones share it.
#[derive(Clone, Default)]
pub struct FakeApi(Arc<Mutex<Objects>>);

#[derive(Default)]
struct Objects {
    version: u64,
    requests: BTreeMap<String, Value>,
    connector: Option<Value>,
    /// What happened to requests, for watches that begin after it.
    history: Vec<(u64, Value)>,
    watches: Vec<Lines>,
    connector_watches: Vec<Lines>,
    nodes: BTreeMap<String, Value>,
    node_watches: Vec<Lines>,
    calls: Vec<String>,
    /// Calls that are refused: what they contain, and how.
    refused: Option<(String, u16)>,
    /// What goes wrong with calls, by how many came before.
    trouble: Option<(Range<usize>, Trouble)>,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It is refused with this status.
    Refused(u16),
    /// It is done, and the answer is this status all the same.
    Lost(u16),
    /// Nobody answers for five minutes.
    Silence,
}

impl FakeApi {
    pub fn client(&self) -> Client {
        Client::new(Router::new().fallback(answer).with_state(self.clone()), "default")
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.0.lock().unwrap()
    }

    pub fn create(&self, name: &str, uid: &str, spec: &Value) {
        let mut objects = self.lock();
        let metadata = json!({"name": name, "uid": uid, "generation": 1});
        let request = json!({
            "apiVersion": "attachd.dev/v1alpha1", "kind": "VolumeAttachRequest",
            "metadata": metadata, "spec": spec,
        });
        objects.put(name, request, "ADDED");
    }

    /// A node with a taint, or without.
    pub fn node(&self, name: &str, taint: Option<&str>) {
        let node = self.node_untold(name, taint);
        for watch in &self.lock().node_watches {
            let event = json!({"type": "MODIFIED", "object": node});
            let _ = watch.unbounded_send(Ok(line(&event)));
        }
    }

    /// The same, and the watches learn it late.
    pub fn node_untold(&self, name: &str, taint: Option<&str>) -> Value {
        let mut objects = self.lock();
        objects.version += 1;
        let taints: Vec<Value> =
            taint.iter().map(|key| json!({"key": key, "effect": "NoExecute"})).collect();
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "uid": format!("of-{name}"), "resourceVersion": objects.version.to_string()},
            "spec": {"taints": taints}});
        objects.nodes.insert(name.to_owned(), node.clone());
        node
    }

    pub fn request(&self, name: &str) -> Option<Value> {
        self.lock().requests.get(name).cloned()
    }

    /// Waits until something holds; it shows the request "db" where that never comes.
    pub async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let waited = timeout(Duration::from_mins(10), async {
            while !holds() {
                sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_ok(), "it never came to this: {what}: {:?}", self.request("db"));
    }

    /// The word of a request's condition Ready.
    pub fn ready(&self, name: &str) -> Option<String> {
        let request = self.request(name)?;
        let conditions = request["status"]["conditions"].as_array()?.clone();
        let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready")?;
        Some(ready["reason"].as_str()?.to_owned())
    }

    pub fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut objects = self.lock();
        let mut request = objects.requests[name].clone();
        change(&mut request);
        objects.put(name, request, "MODIFIED");
    }

    pub fn delete(&self, name: &str) {
        self.change(name, |request| {
            request["metadata"]["deletionTimestamp"] = json!("2026-11-22T08:00:00Z");
        });
    }

    /// It is gone, and nobody is told: the watches were cut meanwhile, and what they missed is no more
    /// to be had.
    pub fn lose_while_away(&self, name: &str) {
        let mut objects = self.lock();
        objects.requests.remove(name);
        objects.version += 1;
        let gone = json!({"type": "ERROR", "object": {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "too old resource version", "reason": "Expired", "code": 410}});
        objects.tell(&gone);
        objects.watches.clear();
        objects.history.clear();
    }

    /// A change that a watch tells late, or again.
    pub fn tell(&self, event: &str, request: &Value) {
        self.lock().tell(&json!({"type": event, "object": request}));
    }

    /// Refuses calls such as "PATCH …/volumeattachrequests/db".
    pub fn refuse(&self, call: &str, status: u16) {
        self.lock().refused = Some((call.to_owned(), status));
    }

    pub fn accept(&self) {
        self.lock().refused = None;
    }

    /// Something goes wrong with each call that so many others came before.
    pub fn trouble(&self, calls: Range<usize>, trouble: Trouble) {
        self.lock().trouble = Some((calls, trouble));
    }

    /// How many calls contained this.
    pub fn calls(&self, text: &str) -> usize {
        self.lock().calls.iter().filter(|call| call.contains(text)).count()
    }

    /// Calls that write, whatever they wrote.
    pub fn writes(&self) -> usize {
        self.lock().calls.iter().filter(|call| !call.starts_with("GET ")).count()
    }
}

impl Objects {
    fn put(&mut self, name: &str, mut object: Value, event: &str) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let metadata = &object["metadata"];
        let held = metadata["finalizers"].as_array().is_some_and(|all| !all.is_empty());
        let event = if metadata["deletionTimestamp"].is_string() && !held {
            self.requests.remove(name);
            "DELETED"
        } else {
            self.requests.insert(name.to_owned(), object.clone());
            event
        };
        let event = json!({"type": event, "object": object});
        self.tell(&event);
        self.history.push((self.version, event));
    }

    /// A watch of all that happens to requests after a version.
    fn watch(&mut self, query: &str) -> Response {
        let version = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let version: u64 = version.unwrap_or_default().parse().unwrap();
        let response = stream(&mut self.watches);
        for (_, event) in self.history.iter().filter(|(at, _)| *at > version) {
            let _ = self.watches[self.watches.len() - 1].unbounded_send(Ok(line(event)));
        }
        response
    }

    fn tell(&self, event: &Value) {
        for watch in &self.watches {
            let _ = watch.unbounded_send(Ok(line(event)));
        }
    }

    fn patch(&mut self, name: &str, status: bool, patch: &Value) -> Result<Value, u16> {
        let Some(mut object) = self.requests.get(name).cloned() else {
            return Err(if patch["metadata"]["uid"].is_string() { 409 } else { 404 });
        };
        if patch.is_array() {
            let uid = &patch[0]["value"];
            if *uid != object["metadata"]["uid"] {
                return Err(422);
            }
            let finalizers = object["metadata"]["finalizers"].as_array_mut().ok_or(422_u16)?;
            finalizers.retain(|name| name != FINALIZER);
        } else if patch["metadata"]["uid"] != object["metadata"]["uid"] {
            return Err(409);
        } else if status {
            object["status"] = patch["status"].clone();
        } else {
            object["metadata"]["finalizers"] = patch["metadata"]["finalizers"].clone();
        }
        if object != self.requests[name] {
            self.put(name, object.clone(), "MODIFIED");
        }
        Ok(object)
    }
}

async fn answer(State(api): State<FakeApi>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default());
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let trouble = api.lock().called(&parts.method, &path, query);
    match trouble {
        Some(Trouble::Refused(status)) => failure(status),
        Some(Trouble::Silence) => {
            sleep(Duration::from_mins(5)).await;
            failure(504)
        }
        Some(Trouble::Lost(status)) => {
            let _unheard = api.lock().done(&parts.method, &path, query, body);
            failure(status)
        }
        None => api.lock().done(&parts.method, &path, query, body),
    }
}

impl Objects {
    /// Counts a call, and tells what goes wrong with it.
    fn called(&mut self, method: &Method, path: &str, query: &str) -> Option<Trouble> {
        let watch = if query.contains("watch=true") { "?watch" } else { "" };
        let (call, before) = (format!("{method} {path}{watch}"), self.calls.len());
        let refused = self.refused.as_ref().filter(|(refused, _)| call.ends_with(refused));
        let refused = refused.map(|(_, status)| Trouble::Refused(*status));
        let trouble = self.trouble.as_ref().filter(|(calls, _)| calls.contains(&before));
        let trouble = trouble.map(|(_, trouble)| *trouble);
        self.calls.push(call);
        refused.or(trouble)
    }

    fn done(&mut self, method: &Method, path: &str, query: &str, body: Value) -> Response {
        let objects = self;
        let watch = query.contains("watch=true");
        let name = path.trim_start_matches(REQUESTS).trim_start_matches('/').to_owned();
        let found = match (method, path) {
            (&Method::GET, REQUESTS) if watch => return objects.watch(query),
            (&Method::GET, CONNECTORS) if watch => return stream(&mut objects.connector_watches),
            (&Method::GET, NODES) if watch => return stream(&mut objects.node_watches),
            (&Method::GET, NODES) => list(objects.version, objects.nodes.values()),
            (&Method::GET, path)
                if path
                    .strip_prefix("/api/v1/nodes/")
                    .is_some_and(|name| objects.nodes.contains_key(name)) =>
            {
                objects.nodes[path.trim_start_matches("/api/v1/nodes/")].clone()
            }
            (&Method::GET, REQUESTS) => list(objects.version, objects.requests.values()),
            (&Method::GET, CONNECTORS) => list(objects.version, objects.connector.iter()),
            (&Method::GET, path) if path.starts_with(REQUESTS) => match objects.requests.get(&name)
            {
                Some(request) => request.clone(),
                None => return failure(404),
            },
            (&Method::GET, path) if path.starts_with(CONNECTORS) => match &objects.connector {
                Some(connector) => connector.clone(),
                None => return failure(404),
            },
            (&Method::PATCH, path) if path.starts_with(CONNECTORS) => {
                let mut connector = objects.connector.take().unwrap_or_else(|| body.clone());
                connector["status"] = body["status"].clone();
                objects.connector.insert(connector).clone()
            }
            (&Method::PATCH, _) => {
                let (name, status) = match name.split_once('/') {
                    Some((name, _)) => (name, true),
                    None => (name.as_str(), false),
                };
                match objects.patch(name, status, &body) {
                    Ok(object) => object,
                    Err(status) => return failure(status),
                }
            }
            // Nodes, definitions, the version; events are given back.
            (&Method::GET, _) => json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": "any", "uid": "of-any"}, "major": "1", "minor": "36",
                "gitVersion": "", "gitCommit": "", "gitTreeState": "", "buildDate": "",
                "goVersion": "", "compiler": "", "platform": ""}),
            _ => body,
        };
        found.to_string().into_response()
    }
}

fn list<'a>(version: u64, items: impl Iterator<Item = &'a Value>) -> Value {
    json!({"apiVersion": "attachd.dev/v1alpha1", "kind": "List",
        "metadata": {"resourceVersion": version.to_string()}, "items": items.collect::<Vec<_>>()})
}

fn line(event: &Value) -> Bytes {
    format!("{event}\n").into()
}

fn stream(watches: &mut Vec<Lines>) -> Response {
    let (sender, receiver): (_, UnboundedReceiver<Result<Bytes, std::io::Error>>) = unbounded();
    watches.push(sender);
    Body::from_stream(receiver).into_response()
}

fn failure(code: u16) -> Response {
    let reason = match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "refused by the test", "reason": reason, "code": code});
    (StatusCode::from_u16(code).unwrap(), status.to_string()).into_response()
}
