use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Asks for a Cinder volume to be attached to one node.
///
/// Cluster-scoped, like `storage.k8s.io` VolumeAttachment: it names a node, a host path and a
/// storage volume. Deleting it detaches the volume.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "attachd.dev",
    version = "v1alpha1",
    kind = "VolumeAttachRequest",
    plural = "volumeattachrequests",
    shortname = "var",
    status = "VolumeAttachRequestStatus",
    selectable = ".spec.nodeName",
    derive = "PartialEq",
    doc = "Asks for a Cinder volume to be attached to one node. Deleting it detaches the volume.",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Volume", type_ = "string", json_path = ".spec.volumeID"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Device", type_ = "string", json_path = ".status.device.path"),
    printcolumn(name = "Mount", type_ = "string", json_path = ".status.mountPath"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(clippy::duplicated_attributes, reason = "kube takes a list of columns and of rules")]
#[x_kube(
    validation = Rule::new("self.volumeMode == 'Filesystem' || (!has(self.filesystem) && !has(self.mountPath))")
        .message("filesystem and mountPath belong to volumeMode Filesystem"),
    validation = Rule::new("has(self.mountPath) == has(oldSelf.mountPath) && has(self.filesystem) == has(oldSelf.filesystem)")
        .message("mountPath and filesystem can be neither added nor removed"),
    validation = Rule::new("has(self.instanceUUID) == has(oldSelf.instanceUUID)")
        .message("instanceUUID can be neither added nor removed"),
    validation = Rule::new("has(self.sizeGiB) || !has(oldSelf.sizeGiB)")
        .message("sizeGiB can't be removed")
)]
pub struct VolumeAttachRequestSpec {
    /// The node that the volume is attached to. Immutable.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    #[x_kube(validation = Rule::new("self == oldSelf").message("nodeName is immutable"))]
    pub node_name: String,

    /// The UUID of the Cinder volume. Immutable.
    #[serde(rename = "volumeID")]
    #[schemars(regex(
        pattern = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
    ))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("volumeID is immutable"))]
    pub volume_id: String,

    /// Whether the volume may be written: rw or ro. Immutable.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("mode is immutable"))]
    pub mode: AccessModeSpec,

    /// Filesystem mounts the volume; Block leaves it as a block device. Immutable.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("volumeMode is immutable"))]
    pub volume_mode: VolumeModeSpec,

    /// The file system, for volumeMode Filesystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("filesystem is immutable"))]
    pub filesystem: Option<FilesystemSpec>,

    /// Where the volume is mounted on the node: an absolute path below a root that the agent allows.
    /// By default mounts/NAME_OF_THE_REQUEST in the state directory of the agent. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 1024), regex(pattern = r"^(/[^/\x00]+)+$"))]
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("mountPath is immutable"),
        validation = Rule::new("!self.split('/').exists(part, part == '..' || part == '.')")
            .message("mountPath must not contain . or ..")
    )]
    pub mount_path: Option<String>,

    /// Auto uses a multipath map where multipathd claims disks on the node, Required insists on one,
    /// Disabled uses one path. Immutable.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("multipath is immutable"))]
    pub multipath: MultipathSpec,

    /// Cinder's instance_uuid for the attachment. Cinder then asks Nova before it lets the attachment
    /// go, unless the agent's user holds the role service; so leave it out where in doubt. Immutable.
    #[serde(default, rename = "instanceUUID", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(
        pattern = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
    ))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("instanceUUID is immutable"))]
    pub instance_uuid: Option<String>,

    /// The size of the volume in GiB after it was extended in Cinder: the agent then grows the device
    /// and the file system, while they are used, to what Cinder states. Can only grow.
    #[serde(default, rename = "sizeGiB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    #[x_kube(validation = Rule::new("self >= oldSelf").message("sizeGiB can only grow"))]
    pub size_gib: Option<u32>,

    /// What the agent does when the request is deleted and the volume can't be detached otherwise: no
    /// path to it is left, or processes do not let go of it. With true it gives up what could not be
    /// written, and only that.
    #[serde(default)]
    pub force_detach: bool,
}

/// Whether the volume may be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessModeSpec {
    /// Read and write.
    #[default]
    Rw,
    /// Read only.
    Ro,
}

/// What the volume is used as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VolumeModeSpec {
    /// Mounted.
    #[default]
    Filesystem,
    /// As a block device.
    Block,
}

/// Whether a multipath map is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MultipathSpec {
    /// Where multipathd claims disks.
    #[default]
    Auto,
    /// In any case.
    Required,
    /// Not at all.
    Disabled,
}

/// The file system of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FilesystemSpec {
    /// Its type: ext4 or xfs.
    #[serde(default, rename = "type")]
    pub type_: FilesystemType,

    /// IfBlank formats a device on which nothing at all is found; Never formats none.
    #[serde(default)]
    pub format: FormatSpec,

    /// Mount options, such as noatime.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(length(min = 1, max = 128), regex(pattern = r"^[^,\p{Z}\p{Cc}]+$"))
    )]
    pub mount_options: Vec<String>,
}

/// A file system's type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FilesystemType {
    /// ext4
    #[default]
    Ext4,
    /// XFS
    Xfs,
}

/// Whether a blank device is formatted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FormatSpec {
    /// If nothing is on it.
    #[default]
    IfBlank,
    /// Not at all.
    Never,
}

/// What became of a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeAttachRequestStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The id of the Cinder attachment.
    #[serde(default, rename = "attachmentID", skip_serializing_if = "Option::is_none")]
    pub attachment_id: Option<String>,

    /// Where the volume is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_path: Option<String>,

    /// The block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<RequestDevice>,

    /// Reserved, Connected, Mounted and Ready, as Kubernetes means conditions, and Resized where a
    /// size was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The block device of an attached volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestDevice {
    /// Its path on the node.
    pub path: String,
    /// Its world wide identifier.
    pub wwid: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Every way to the volume.
    #[serde(default)]
    pub paths: Vec<RequestPath>,
}

/// One way to an attached volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestPath {
    /// The portal, address:port.
    pub portal: String,
    /// The target's iSCSI name.
    #[serde(rename = "targetIQN")]
    pub target_iqn: String,
    /// The LUN.
    pub lun: u64,
    /// The SCSI address of the disk, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hctl: Option<String>,
    /// The kernel's name of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// active, or why not.
    pub state: String,
}
