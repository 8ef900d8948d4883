//! The vocabulary: plain data that every layer shares. No I/O, no clock, nothing of ours below it.
//!
//! A value that exists is valid: text from outside becomes one of these types by parsing, once.

mod connection_info;
mod connector;
mod connector_fields;
mod device;
mod id;
mod iscsi;
mod observed;
mod retry;
mod secret;
mod shared_vec;
mod spec;

pub use connection_info::{ConnectionInfo, ConnectionInfoError};
pub use connector::{AccessMode, Connector};
pub use connector_fields::{ConnectorFieldError, ConnectorFields};
pub use device::{
    DeviceId, DeviceName, DeviceNumber, DeviceNumberError, Filesystem, Hctl, HctlError,
    UnknownFilesystem, Wwid, WwidError,
};
pub use id::{AttachmentId, IdError, VolumeId};
pub use iscsi::{
    Chap, DEFAULT_ISCSI_PORT, Iqn, IqnError, Lun, Portal, PortalError, Target, TargetPath,
};
pub use observed::{
    Contents, DeviceState, HostState, MapMember, MountEntry, MultipathMap, Multipathd, ScsiDevice,
    Session, SessionState,
};
pub use retry::Retry;
pub use secret::Secret;
pub use shared_vec::SharedVec;
pub use spec::{AttachSpec, FormatPolicy, MultipathPolicy, Usage, mount_option_flaw};
