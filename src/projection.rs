//! What became of a request, as its status shows it. Pure: the clock is an argument.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use crate::{
    attach::{Attached, Record},
    crd::{RequestDevice, RequestPath, VolumeAttachRequestStatus},
};

/// Ready's reason while nothing came of a request yet.
pub const ATTACHING: &str = "Attaching";

/// Ready's reason where a volume is attached, and nothing is amiss.
pub const ATTACHED: &str = "Attached";

/// Where a request stands.
#[derive(Debug, Clone, Copy)]
pub enum Standing<'a> {
    /// The agent has taken it up.
    Begun,
    /// It is attached.
    Attached(&'a Attached),
    /// It is being attached or detached, or that failed.
    Unfinished {
        /// What is on record, if anything is.
        record: Option<&'a Record>,
        /// `CamelCase`.
        reason: &'a str,
        /// In words.
        message: &'a str,
    },
}

/// The status of a request. Transition times move only where a condition's status does.
pub fn status(
    standing: Standing<'_>,
    generation: Option<i64>,
    previous: Option<&VolumeAttachRequestStatus>,
    now: Timestamp,
) -> VolumeAttachRequestStatus {
    let condition = |type_: &str, holds: bool, reason: &str, message: &str| {
        let status = if holds { "True" } else { "False" };
        let before = previous
            .and_then(|previous| previous.conditions.iter().find(|c| c.type_ == type_))
            .filter(|before| before.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: generation,
            last_transition_time: before.map_or(Time(now), |c| c.last_transition_time.clone()),
        }
    };
    match standing {
        Standing::Begun => {
            let message = "the agent has taken up the request";
            VolumeAttachRequestStatus {
                observed_generation: generation,
                conditions: vec![condition("Ready", false, ATTACHING, message)],
                ..VolumeAttachRequestStatus::default()
            }
        }
        Standing::Attached(attached) => {
            let mut conditions = vec![
                condition(
                    "Reserved",
                    true,
                    "Reserved",
                    "Cinder holds the attachment for this node",
                ),
                condition("Connected", true, "Connected", "the device is there and verified"),
            ];
            if attached.mount_path.is_some() {
                conditions.push(condition(
                    "Mounted",
                    true,
                    "Mounted",
                    "the file system is mounted",
                ));
            }
            let (reason, message) = if attached.warnings.is_empty() {
                (ATTACHED, "the volume can be used".to_owned())
            } else {
                ("Degraded", attached.warnings.join("; "))
            };
            conditions.push(condition("Ready", true, reason, &message));
            VolumeAttachRequestStatus {
                observed_generation: generation,
                attachment_id: Some(attached.attachment.to_string()),
                mount_path: attached.mount_path.as_ref().map(|path| path.display().to_string()),
                device: Some(device(attached)),
                conditions,
            }
        }
        Standing::Unfinished { record, reason, message } => {
            let attachment = record.and_then(Record::attachment);
            let connected = record.is_some_and(|record| record.wwid.is_some());
            VolumeAttachRequestStatus {
                observed_generation: generation,
                attachment_id: attachment.map(|id| id.to_string()),
                mount_path: None,
                device: None,
                conditions: vec![
                    condition("Reserved", attachment.is_some(), reason, message),
                    condition("Connected", connected, reason, message),
                    condition("Ready", false, reason, message),
                ],
            }
        }
    }
}

fn device(attached: &Attached) -> RequestDevice {
    RequestDevice {
        path: attached.device.display().to_string(),
        wwid: attached.wwid.to_string(),
        size_bytes: attached.size_bytes,
        paths: attached
            .paths
            .iter()
            .map(|path| RequestPath {
                portal: path.target.portal.to_string(),
                target_iqn: path.target.iqn.to_string(),
                lun: path.lun,
                hctl: path.disk.as_ref().map(|(hctl, _)| hctl.clone()),
                device: path.disk.as_ref().map(|(_, name)| name.to_string()),
                state: path.state.clone(),
            })
            .collect(),
    }
}
