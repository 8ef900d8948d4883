//! What became of a request, as its status shows it. Pure: the clock is an argument.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use crate::{
    attach::{Attached, Record, Trouble},
    crd::{RequestDevice, RequestPath, VolumeAttachRequestStatus},
};

/// Ready's reason while nothing came of a request yet.
pub const ATTACHING: &str = "Attaching";

/// Ready's reason where a volume is attached, and nothing is amiss.
pub const ATTACHED: &str = "Attached";

/// The condition that says whether a volume has the size that was asked for, and its reason then.
const RESIZED: &str = "Resized";

/// Ready's reason where an administrator declared the node to be off.
pub const NODE_OUT_OF_SERVICE: &str = "NodeOutOfService";

/// Where a request stands.
#[derive(Debug, Clone, Copy)]
pub enum Standing<'a> {
    /// The agent has taken it up. Said only where nothing was said yet.
    Begun,
    /// It was attached, can't be used any more, and is being attached again.
    Lost,
    /// It is attached.
    Attached(&'a Attached),
    /// It is attached, and has the size that was asked for.
    Resized {
        /// As it is.
        attached: &'a Attached,
    },
    /// It is attached, and can't be given the size that was asked for now.
    NotResized {
        /// As it is.
        attached: &'a Attached,
        /// `CamelCase`.
        reason: &'a str,
        /// In words.
        message: &'a str,
    },
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
        let previous = previous.map(|previous| previous.conditions.as_slice()).unwrap_or_default();
        let condition = self::condition(previous, type_, status, reason, message.to_owned(), now);
        Condition { observed_generation: generation, ..condition }
    };
    let reserved =
        || condition("Reserved", true, "Reserved", "Cinder holds the attachment for this node");
    let attaching = |message: &str| condition("Ready", false, ATTACHING, message);
    let sized = |attached, holds: bool, reason: &str, message: &str| {
        let mut status = status(Standing::Attached(attached), generation, previous, now);
        status.conditions.retain(|known| known.type_ != RESIZED);
        status.conditions.push(condition(RESIZED, holds, reason, message));
        status
    };
    match (standing, previous) {
        (Standing::Resized { attached }, _) => {
            let message = format!("the device has {} bytes", attached.size_bytes);
            sized(attached, true, RESIZED, &message)
        }
        (Standing::NotResized { attached, reason, message }, _) => {
            sized(attached, false, reason, message)
        }
        (Standing::Begun, Some(previous)) if !is_out_of_service(previous) => previous.clone(),
        // Why it isn't ready says more.
        (Standing::Lost, Some(previous)) if ready(previous).is_some_and(|c| c.status != "True") => {
            previous.clone()
        }
        (Standing::Begun, previous) => VolumeAttachRequestStatus {
            observed_generation: generation,
            attachment_id: previous.and_then(|previous| previous.attachment_id.clone()),
            conditions: vec![attaching("the agent has taken up the request")],
            ..VolumeAttachRequestStatus::default()
        },
        (Standing::Lost, previous) => VolumeAttachRequestStatus {
            observed_generation: generation,
            attachment_id: previous.and_then(|previous| previous.attachment_id.clone()),
            conditions: vec![
                reserved(),
                attaching(
                    "the volume can't be used any more as it was: it is being attached again",
                ),
            ],
            ..VolumeAttachRequestStatus::default()
        },
        (Standing::Attached(attached), _) => {
            let connected = match &attached.trouble {
                Some(trouble @ Trouble::NoPath) => {
                    condition("Connected", false, trouble.reason(), &trouble.to_string())
                }
                _ => condition("Connected", true, "Connected", "the device is there and verified"),
            };
            let mut conditions = vec![reserved(), connected];
            if attached.mount_path.is_some() {
                conditions.push(condition(
                    "Mounted",
                    true,
                    "Mounted",
                    "the file system is mounted",
                ));
            }
            let warnings = attached.warnings.join("; ");
            conditions.push(match &attached.trouble {
                Some(trouble) if warnings.is_empty() => {
                    condition("Ready", false, trouble.reason(), &trouble.to_string())
                }
                Some(trouble) => {
                    condition("Ready", false, trouble.reason(), &format!("{trouble}; {warnings}"))
                }
                None if warnings.is_empty() => {
                    condition("Ready", true, ATTACHED, "the volume can be used")
                }
                None => condition("Ready", true, "Degraded", &warnings),
            });
            // Of the size is said more a little later; till then what was said stands.
            let resized = previous.and_then(|known| {
                known.conditions.iter().find(|condition| condition.type_ == RESIZED)
            });
            conditions.extend(resized.cloned());
            VolumeAttachRequestStatus {
                observed_generation: generation,
                attachment_id: Some(attached.attachment.to_string()),
                mount_path: attached.mount_path.as_ref().map(|path| path.display().to_string()),
                device: Some(device(attached)),
                conditions,
            }
        }
        (Standing::Unfinished { record, reason, message }, _) => {
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

/// The status of a request whose node is off: whether the volume can be used there can't be known, and
/// what was known stays.
pub fn out_of_service(
    previous: Option<&VolumeAttachRequestStatus>,
    generation: Option<i64>,
    message: &str,
    now: Timestamp,
) -> VolumeAttachRequestStatus {
    let mut status = previous.cloned().unwrap_or_default();
    let (type_, reason) = ("Ready", NODE_OUT_OF_SERVICE);
    let ready = condition(&status.conditions, type_, "Unknown", reason, message.to_owned(), now);
    status.conditions.retain(|condition| condition.type_ != type_);
    status.conditions.push(Condition { observed_generation: generation, ..ready });
    status.observed_generation = generation;
    status
}

/// A condition, of no generation. Its transition time is `now`, unless its status was the same before.
pub fn condition(
    previous: &[Condition],
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> Condition {
    let before = previous.iter().find(|known| known.type_ == type_ && known.status == status);
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: None,
        last_transition_time: before.map_or(Time(now), |c| c.last_transition_time.clone()),
    }
}

/// Whether a status was written for a node that is off.
pub fn is_out_of_service(status: &VolumeAttachRequestStatus) -> bool {
    ready(status).is_some_and(|ready| ready.reason == NODE_OUT_OF_SERVICE)
}

/// The condition that says whether the volume can be used.
pub fn ready(status: &VolumeAttachRequestStatus) -> Option<&Condition> {
    status.conditions.iter().find(|condition| condition.type_ == "Ready")
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
                state: path.state.to_string(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn attached() -> Attached {
        Attached {
            volume: "7a29c609-53cc-4134-830f-6d08a0b9da91".parse().unwrap(),
            attachment: "0c9eef6b-cd16-4784-8319-0dd32b1bec54".parse().unwrap(),
            device: "/dev/dm-0".into(),
            wwid: "360000000000000000e00000000010001".parse().unwrap(),
            size_bytes: 1 << 30,
            mount_path: Some("/srv/db".into()),
            paths: Vec::new(),
            trouble: None,
            warnings: Vec::new(),
            changed: true,
        }
    }

    fn words(status: &VolumeAttachRequestStatus) -> Vec<String> {
        let word = |c: &Condition| {
            format!(
                "{}={} {} {}",
                c.type_,
                c.status,
                c.reason,
                c.last_transition_time.0.as_second()
            )
        };
        status.conditions.iter().map(word).collect()
    }

    #[test]
    fn a_lost_volume_is_not_ready_and_keeps_its_attachment() {
        let there = status(Standing::Attached(&attached()), Some(1), None, at(10));
        assert_eq!(status(Standing::Begun, Some(1), Some(&there), at(20)), there);
        let lost = status(Standing::Lost, Some(1), Some(&there), at(30));
        assert_eq!(words(&lost), ["Reserved=True Reserved 10", "Ready=False Attaching 30"]);
        assert_eq!(lost.attachment_id, there.attachment_id);
        assert_eq!((lost.device, lost.mount_path), (None, None));
    }

    #[test]
    fn a_volume_that_can_not_be_grown_yet_stays_ready_and_says_why() {
        let waiting = Standing::NotResized {
            attached: &attached(),
            reason: "SizeDiffers",
            message: "2 GiB are asked for",
        };
        let there = status(Standing::Attached(&attached()), Some(1), None, at(10));
        let waits = status(waiting, Some(2), Some(&there), at(20));
        assert_eq!(words(&waits)[3..], ["Ready=True Attached 10", "Resized=False SizeDiffers 20"]);
        // The next try begins with the attach: what was said of the size stands until it ends.
        let again = status(Standing::Attached(&attached()), Some(2), Some(&waits), at(30));
        assert_eq!(words(&again), words(&waits));
        let grown = Attached { size_bytes: 2 << 30, ..attached() };
        let resized = status(Standing::Resized { attached: &grown }, Some(2), Some(&again), at(40));
        assert_eq!(words(&resized)[3..], ["Ready=True Attached 10", "Resized=True Resized 40"]);
        assert_eq!(resized.device.unwrap().size_bytes, 2 << 30);
    }

    #[test]
    fn a_request_of_a_node_that_is_off_is_not_known_to_be_ready_until_its_agent_speaks() {
        let there = status(Standing::Attached(&attached()), Some(1), None, at(10));
        let off = out_of_service(Some(&there), Some(1), "off", at(20));
        assert_eq!(words(&off).last().unwrap(), "Ready=Unknown NodeOutOfService 20");
        assert_eq!((&off.attachment_id, &off.device), (&there.attachment_id, &there.device));
        assert_eq!(out_of_service(Some(&off), Some(1), "off", at(30)), off);
        let back = status(Standing::Begun, Some(1), Some(&off), at(40));
        assert_eq!(words(&back), ["Ready=False Attaching 40"]);
        assert_eq!(back.attachment_id, there.attachment_id);
    }

    #[test]
    fn why_a_request_failed_stands_until_that_changes() {
        let begun = status(Standing::Begun, Some(1), None, at(10));
        assert_eq!(words(&begun), ["Ready=False Attaching 10"]);
        let why = Standing::Unfinished { record: None, reason: "LoginFailed", message: "no" };
        let failed = status(why, Some(1), Some(&begun), at(20));
        assert_eq!(
            words(&failed),
            [
                "Reserved=False LoginFailed 20",
                "Connected=False LoginFailed 20",
                "Ready=False LoginFailed 10"
            ]
        );
        for again in [Standing::Begun, Standing::Lost] {
            assert_eq!(status(again, Some(1), Some(&failed), at(30)), failed);
        }
    }
}
