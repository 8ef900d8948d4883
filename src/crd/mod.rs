//! The custom resources as Rust types. No client in here: the requests directory, the command line
//! and the controller share them, and `attachd crd` writes their schema.
#![allow(clippy::doc_markdown, reason = "these comments are texts that users read")]

mod node_connector;
mod request;
mod validate;

pub use node_connector::{NodeConnector, NodeConnectorSpec, NodeConnectorStatus};
pub use request::{
    AccessModeSpec, FilesystemSpec, FilesystemType, FormatSpec, MultipathSpec, RequestDevice,
    RequestPath, VolumeAttachRequest, VolumeAttachRequestSpec, VolumeAttachRequestStatus,
    VolumeModeSpec,
};
pub use validate::{InvalidRequest, is_plain_absolute};

/// The API group of attachd's resources.
pub const GROUP: &str = "attachd.dev";

/// The custom resource definitions, each with the name of its file in `crds/`.
///
/// # Errors
/// Never in practice: the schema is made of plain data.
pub fn manifests() -> Result<Vec<(String, String)>, serde_json::Error> {
    use kube::CustomResourceExt as _;
    [VolumeAttachRequest::crd(), NodeConnector::crd()]
        .into_iter()
        .map(|crd| {
            let file = format!("{GROUP}_{}.yaml", crd.spec.names.plural);
            let text = serde_saphyr::to_string(&serde_json::to_value(crd)?);
            Ok((file, text.map_err(serde::ser::Error::custom)?))
        })
        .collect()
}
