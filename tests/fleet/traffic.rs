//! What one client asks of the API server, and what it is answered.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::{Client, Config, client::ClientBuilder};
use serde_json::Value;
use tower::util::{MapRequestLayer, MapResponseLayer};

/// Counts of one agent, over all clients it had.
#[derive(Debug, Default, Clone)]
pub struct Traffic(Arc<Mutex<Counts>>);

#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Of response bodies.
    pub bytes: u64,
    /// Requests, custom resources and others, as answers, in lists and in watches.
    pub objects: u64,
    /// `VolumeAttachRequest`s of other nodes.
    pub strangers: u64,
    /// Requests that don't write, by what they ask for.
    pub reads: BTreeMap<String, u64>,
    /// Requests that write, by what they write.
    pub writes: BTreeMap<String, u64>,
    /// The same for each `VolumeAttachRequest`, without events.
    pub writes_of: BTreeMap<String, u64>,
    /// Answers with a status of 400 or more.
    pub errors: BTreeMap<u16, u64>,
}

impl Counts {
    pub fn all_writes(&self) -> u64 {
        self.writes.values().sum()
    }

    pub fn writes(&self, what: &str) -> u64 {
        self.writes.get(what).copied().unwrap_or_default()
    }

    fn asked(&mut self, method: &Method, path: &str, query: &str) {
        // …/volumeattachrequests/NAME/status, …/namespaces/default/events
        let mut parts = path.rsplit('/');
        let (last, name, kind) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let (what, name) = match (last, name, kind) {
            ("status", name, kind) => (format!("{kind}/status"), name),
            (name, kind @ ("volumeattachrequests" | "nodeconnectors" | "events" | "nodes"), _) => {
                (kind.to_owned(), name)
            }
            (kind, ..) => (kind.to_owned(), ""),
        };
        let watch = if query.contains("watch=true") { "watch " } else { "" };
        if *method == Method::GET {
            *self.reads.entry(format!("{watch}{what}")).or_default() += 1;
            return;
        }
        if what.starts_with("volumeattachrequests") {
            *self.writes_of.entry(name.to_owned()).or_default() += 1;
        }
        *self.writes.entry(what).or_default() += 1;
    }

    fn answered(&mut self, text: &[u8], node: &str) {
        let Ok(mut answer) = serde_json::from_slice::<Value>(text) else { return };
        // An event of a watch.
        if answer["object"].is_object() {
            answer = answer["object"].take();
        }
        match answer["items"].take() {
            Value::Array(items) => items.iter().for_each(|item| self.received(item, node)),
            _ => self.received(&answer, node),
        }
    }

    fn received(&mut self, object: &Value, node: &str) {
        // A bookmark is of a kind, but no object.
        if object["metadata"]["uid"].is_null() {
            return;
        }
        self.objects += 1;
        let of = &object["spec"]["nodeName"];
        if of.is_string() && *of != node {
            self.strangers += 1;
        }
    }
}

impl Traffic {
    pub fn so_far(&self) -> Counts {
        self.lock().clone()
    }

    /// What came since the last time this was called.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap()
    }

    /// A client over HTTPS that counts here.
    pub fn client(&self, config: &Config, node: &str) -> Client {
        let asking = self.clone();
        let count_request = MapRequestLayer::new(move |request: Request<kube::client::Body>| {
            let uri = request.uri();
            let query = uri.query().unwrap_or_default();
            asking.lock().asked(request.method(), uri.path(), query);
            request
        });
        let (answered, node) = (self.clone(), node.to_owned());
        let count_response = MapResponseLayer::new(move |response: Response<_>| {
            let status = response.status().as_u16();
            if status >= 400 {
                *answered.lock().errors.entry(status).or_default() += 1;
            }
            let (answered, node) = (answered.clone(), node.clone());
            let mut line = Vec::new();
            response.map(|body: Box<kube::client::DynBody>| {
                body.map_frame(move |frame| {
                    if let Some(data) = frame.data_ref() {
                        let mut counts = answered.lock();
                        counts.bytes += data.len() as u64;
                        // Each answer, and each event of a watch, is one line.
                        for byte in data {
                            line.push(*byte);
                            if *byte == b'\n' {
                                counts.answered(&line, &node);
                                line.clear();
                            }
                        }
                    }
                    frame
                })
            })
        });
        ClientBuilder::try_from(config.clone())
            .unwrap()
            .with_layer(&count_response)
            .with_layer(&count_request)
            .build()
    }
}
