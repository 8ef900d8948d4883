use std::{future::Future, time::Duration};

use k8s_openapi::{
    api::core::v1::{Node, ObjectReference},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::DeserializeGuard,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

use super::{FINALIZER, MANAGER};
use crate::{
    crd::{NodeConnector, NodeConnectorStatus, VolumeAttachRequest},
    model::Retry,
    requests::Refused,
};

/// Reads and writes are small; a server that takes longer is away.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// How often a finalizer is tried to be taken off before there is a pause.
const LOOKS: u32 = 3;

/// Whether this node's initiator name is its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Uniqueness {
    /// The other nodes' have not been looked at.
    NotCompared,
    /// No other node has it.
    Unique,
    /// These nodes have it too.
    SharedWith(Vec<String>),
}

/// The API server, as this agent uses it.
pub(super) struct Cluster {
    client: Client,
    node_name: String,
    requests: Api<DynamicObject>,
    connectors: Api<DynamicObject>,
    recorder: Recorder,
    uniqueness: watch::Sender<Uniqueness>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("node_name", &self.node_name).finish_non_exhaustive()
    }
}

/// What a request's object is, for writes that mean just this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) uid: String,
}

impl Cluster {
    pub(super) fn new(client: Client, node_name: &str) -> Self {
        let reporter =
            Reporter { controller: MANAGER.to_owned(), instance: Some(node_name.to_owned()) };
        let requests = ApiResource::erase::<VolumeAttachRequest>(&());
        let connectors = ApiResource::erase::<NodeConnector>(&());
        Self {
            node_name: node_name.to_owned(),
            // Their answers are not of interest, and may be of a newer version than these types.
            requests: Api::all_with(client.clone(), &requests),
            connectors: Api::all_with(client.clone(), &connectors),
            recorder: Recorder::new(client.clone(), reporter),
            uniqueness: watch::Sender::new(Uniqueness::NotCompared),
            client,
        }
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(super) fn node_name(&self) -> &str {
        &self.node_name
    }

    pub(super) fn uniqueness(&self) -> &watch::Sender<Uniqueness> {
        &self.uniqueness
    }

    /// Whether the API server answers.
    pub(super) async fn answers(&self) -> bool {
        call("ask for the version", self.client.apiserver_version()).await.is_ok()
    }

    /// Sees to it that a request can't go before its volume is detached.
    pub(super) async fn hold(&self, request: &Identity) -> Result<(), Refused> {
        let held = json!({"metadata": {"finalizers": [FINALIZER]}});
        let body = object::<VolumeAttachRequest>(request, held);
        let params = PatchParams::apply(MANAGER);
        call("hold the request", self.requests.patch(&request.name, &params, &Patch::Apply(body)))
            .await?;
        Ok(())
    }

    /// Lets a request go. Whoever else wrote the finalizer, it is taken away.
    pub(super) async fn let_go(&self, request: &Identity) -> Result<(), Refused> {
        let what = "let the request go";
        let mut looks = 0;
        loop {
            looks += 1;
            let there = call(what, self.requests.get_metadata_opt(&request.name)).await?;
            let Some(metadata) = there.map(|found| found.metadata) else { return Ok(()) };
            let same = metadata.uid.as_deref() == Some(&request.uid);
            let finalizers = metadata.finalizers.unwrap_or_default();
            let Some(place) = finalizers.iter().position(|name| same && name == FINALIZER) else {
                return Ok(());
            };
            let place = format!("/metadata/finalizers/{place}");
            let patch = json!([
                {"op": "test", "path": "/metadata/uid", "value": request.uid},
                {"op": "test", "path": place, "value": FINALIZER},
                {"op": "remove", "path": place},
            ]);
            let patch = serde_json::from_value(patch).map_err(|error| unavailable(what, &error))?;
            let params =
                PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            let patch = Patch::<Value>::Json(patch);
            match timeout(CALL_LIMIT, self.requests.patch(&request.name, &params, &patch)).await {
                // Somebody may have changed the list meanwhile: a look at what it is now. An admission
                // policy answers the same, again and again.
                Ok(Err(kube::Error::Api(status)))
                    if matches!(status.code, 409 | 422) && looks < LOOKS => {}
                result => return finish(what, result).map(drop),
            }
        }
    }

    /// Writes a request's status.
    pub(super) async fn status(
        &self,
        request: &Identity,
        status: &impl serde::Serialize,
    ) -> Result<(), Refused> {
        let body = object::<VolumeAttachRequest>(request, json!({"status": status}));
        // The status is this agent's alone: what others wrote into it is taken over.
        let params = PatchParams::apply(MANAGER).force();
        let body = Patch::Apply(body);
        call("write the status", self.requests.patch_status(&request.name, &params, &body)).await?;
        Ok(())
    }

    /// Publishes an event. One that can't be is logged: it must not hold up the work.
    pub(super) async fn event(
        &self,
        request: &Identity,
        type_: EventType,
        action: &str,
        reason: &str,
        note: &str,
    ) {
        // The API server takes no longer ones.
        let note: String = note.chars().take(1000).collect();
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        let about = ObjectReference {
            api_version: Some(VolumeAttachRequest::api_version(&()).into_owned()),
            kind: Some(VolumeAttachRequest::kind(&()).into_owned()),
            name: Some(request.name.clone()),
            uid: Some(request.uid.clone()),
            ..ObjectReference::default()
        };
        if let Err(error) = call("publish an event", self.recorder.publish(&event, &about)).await {
            tracing::warn!(request = %request.name, reason, "{error}");
        }
    }

    /// Whether the definition of the requests is there to stay. When it is deleted, so are all requests.
    pub(super) async fn is_defined(&self) -> Result<bool, Refused> {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client());
        let name =
            format!("{}.{}", VolumeAttachRequest::plural(&()), VolumeAttachRequest::group(&()));
        let what = "look at the definition of the requests";
        let found = call(what, definitions.get_metadata_opt(&name)).await?;
        Ok(found.is_some_and(|found| found.metadata.deletion_timestamp.is_none()))
    }

    /// The UID of this node's Node object.
    pub(super) async fn node_uid(&self) -> Result<Option<String>, Refused> {
        let nodes: Api<Node> = Api::all(self.client());
        let found =
            call("look at the Node object", nodes.get_metadata_opt(&self.node_name)).await?;
        Ok(found.and_then(|found| found.metadata.uid))
    }

    /// The status of this node's `NodeConnector`, where there is one that belongs to this Node.
    pub(super) async fn connector(
        &self,
        node_uid: &str,
    ) -> Result<Option<NodeConnectorStatus>, Refused> {
        let connectors: Api<DeserializeGuard<NodeConnector>> = Api::all(self.client());
        let what = "look at the NodeConnector";
        let found = call(what, connectors.get_opt(&self.node_name)).await?;
        let owned = found
            .filter(|found| found.owner_references().iter().any(|owner| owner.uid == node_uid));
        Ok(owned.and_then(|found| found.0.ok()?.status))
    }

    /// Makes this node's `NodeConnector`, owned by the Node.
    pub(super) async fn make_connector(&self, node_uid: &str) -> Result<(), Refused> {
        let owner =
            json!({"apiVersion": "v1", "kind": "Node", "name": self.node_name, "uid": node_uid});
        let body = json!({
            "apiVersion": NodeConnector::api_version(&()), "kind": NodeConnector::kind(&()),
            "metadata": {"name": self.node_name, "ownerReferences": [owner]},
            "spec": {},
        });
        let params = PatchParams::apply(MANAGER).force();
        let (name, body) = (&self.node_name, Patch::Apply(body));
        call("write the NodeConnector", self.connectors.patch(name, &params, &body)).await?;
        Ok(())
    }

    /// Writes the status of this node's `NodeConnector`.
    pub(super) async fn connector_status(
        &self,
        status: &NodeConnectorStatus,
    ) -> Result<(), Refused> {
        let body = json!({
            "apiVersion": NodeConnector::api_version(&()), "kind": NodeConnector::kind(&()),
            "metadata": {"name": self.node_name},
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        let (name, body) = (&self.node_name, Patch::Apply(body));
        let what = "write the NodeConnector's status";
        call(what, self.connectors.patch_status(name, &params, &body)).await?;
        Ok(())
    }
}

/// The body of a server-side apply that means this very object: by the UID, it is no other of the same
/// name, and none is made.
fn object<K: Resource<DynamicType = ()>>(of: &Identity, with: Value) -> Value {
    let mut body = with;
    body["apiVersion"] = json!(K::api_version(&()));
    body["kind"] = json!(K::kind(&()));
    body["metadata"]["name"] = json!(of.name);
    body["metadata"]["uid"] = json!(of.uid);
    body
}

pub(super) async fn call<T>(
    what: &str,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, Refused> {
    finish(what, timeout(CALL_LIMIT, call).await)
}

fn finish<T, E>(what: &str, result: Result<kube::Result<T>, E>) -> Result<T, Refused> {
    match result {
        Ok(result) => result.map_err(|error| unavailable(what, &error)),
        Err(_) => {
            Err(refused(format!("could not {what}: no answer in {} s", CALL_LIMIT.as_secs())))
        }
    }
}

fn unavailable(what: &str, error: &dyn std::error::Error) -> Refused {
    refused(format!("could not {what}: {}", chain(error)))
}

fn refused(message: String) -> Refused {
    Refused { reason: "ApiServerUnavailable", message, retry: Retry::Backoff }
}

/// An error with its causes, each once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}
