//! The custom resources as Rust types. No client in here: the requests directory, the command line
//! and the controller share them, and `attachd crd` writes their schema.
#![allow(clippy::doc_markdown, reason = "these comments are texts that users read")]

mod request;
mod validate;

pub use request::{
    AccessModeSpec, FilesystemSpec, FilesystemType, FormatSpec, MultipathSpec, RequestDevice,
    RequestPath, VolumeAttachRequest, VolumeAttachRequestSpec, VolumeAttachRequestStatus,
    VolumeModeSpec,
};
pub use validate::{InvalidRequest, is_plain_absolute};

/// The API group of attachd's resources.
pub const GROUP: &str = "attachd.dev";

/// The CRDs as YAML documents, as `crds/` holds them.
///
/// # Errors
/// Never in practice: the schema is made of plain data.
pub fn manifests() -> Result<String, serde_json::Error> {
    use kube::CustomResourceExt as _;
    let crd = serde_json::to_value(VolumeAttachRequest::crd())?;
    serde_saphyr::to_string(&crd).map_err(serde::ser::Error::custom)
}
