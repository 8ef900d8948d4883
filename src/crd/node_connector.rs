use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What Cinder gets to know of a node, and whether volumes can be attached to it.
///
/// Named after the node and owned by it. Its agent writes it; there is nothing to ask for in it.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "attachd.dev",
    version = "v1alpha1",
    kind = "NodeConnector",
    plural = "nodeconnectors",
    shortname = "nc",
    status = "NodeConnectorStatus",
    selectable = ".status.initiator",
    derive = "PartialEq",
    doc = "What Cinder gets to know of a node, and whether volumes can be attached to it. Written by the agent of the node.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Initiator", type_ = "string", json_path = ".status.initiator"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.ip"),
    printcolumn(name = "Multipath", type_ = "boolean", json_path = ".status.multipath"),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.agentVersion",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[expect(clippy::duplicated_attributes, reason = "kube takes a list of columns")]
pub struct NodeConnectorSpec {}

/// The node's connector, by os-brick's names, and its fitness.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeConnectorStatus {
    /// The initiator's iSCSI name; no two nodes may have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initiator: Option<String>,

    /// The address from which the node reaches its storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,

    /// The node's name, as Cinder gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,

    /// The machine: x86_64, aarch64, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,

    /// The operating system: linux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_type: Option<String>,

    /// Whether multipathd claims disks, so that Cinder is asked for all portals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multipath: Option<bool>,

    /// The version of attachd on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,

    /// InitiatorNamePresent, InitiatorNameUnique, IscsidRunning, MultipathdRunning, and Ready, which
    /// holds where volumes can be attached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
