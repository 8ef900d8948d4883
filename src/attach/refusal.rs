use std::path::PathBuf;

use crate::model::{
    AttachmentId, ConnectionInfoError, DeviceName, Filesystem, Hctl, Retry, TargetPath, VolumeId,
    Wwid,
};

/// Why the plan goes no further. Nothing was changed to find it out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Cinder has no such volume (or not for this project).
    #[error("Cinder has no volume {volume} for this project; check the id and the project")]
    VolumeNotFound {
        /// Which.
        volume: VolumeId,
    },
    /// Cinder shows neither a record's attachment nor its volume.
    #[error(
        "Cinder shows neither attachment {attachment} nor volume {volume} to these credentials: they may be of another project, and then a detach would leave the attachment behind. Mend the credentials; where the volume was deleted, detach with force, which writes nothing any more"
    )]
    NothingVisible {
        /// The recorded attachment.
        attachment: AttachmentId,
        /// Its volume.
        volume: VolumeId,
    },
    /// The volume can't be reserved now.
    #[error("volume {volume} is {status:?}{}, and only an available volume can be attached{hint}", holders(.attached_to))]
    VolumeNotAvailable {
        /// Which.
        volume: VolumeId,
        /// Cinder's word.
        status: String,
        /// Who has it.
        attached_to: Vec<String>,
        /// What to do next.
        hint: &'static str,
    },
    /// A reservation of this node was lost in a crash, or another's stands in the way: they look alike.
    #[error("volume {volume} is reserved, and attachd was stopped while it asked for a reservation: the one that exists may be its own or somebody else's ({}). If nobody else reserved the volume, delete that attachment in Cinder and try again", ids(.reserved))]
    LostReservation {
        /// Which volume.
        volume: VolumeId,
        /// The attachments that are only reserved.
        reserved: Vec<AttachmentId>,
    },
    /// The recorded attachment doesn't exist any more.
    #[error(
        "attachment {attachment} of volume {volume} was deleted in Cinder by somebody else; detach the volume on this node (attachd detach {volume}) before anything else uses it"
    )]
    AttachmentGone {
        /// Which attachment.
        attachment: AttachmentId,
        /// Which volume.
        volume: VolumeId,
    },
    /// A detach that gives up what was not written has begun.
    #[error(
        "volume {volume} was cut off from this node, and what was not written to it was given up; finish its detach before it is attached again (attachd detach {volume}, or take away the request that asked for it)"
    )]
    CutOff {
        /// Which volume.
        volume: VolumeId,
    },
    /// What is left of a volume that was cut off.
    #[error(
        "volume {volume} is detached: no disk of it is left on this node, and Cinder has its attachment no more; but map {map} can't go ({why}). Reads and writes through it fail. End what holds it, and detach again to have it removed"
    )]
    StillHeld {
        /// Which volume.
        volume: VolumeId,
        /// The map.
        map: String,
        /// Who holds it.
        why: String,
    },
    /// Cinder's backend failed.
    #[error(
        "attachment {attachment} is {status:?} in Cinder: its backend failed; detach, and look into Cinder's volume log"
    )]
    AttachmentFailed {
        /// Which.
        attachment: AttachmentId,
        /// Its status.
        status: String,
    },
    /// Cinder can't say what it exports, and nothing of it is recorded.
    #[error("Cinder can't be asked how to reach volume {volume}")]
    ConnectionUnknown {
        /// Which.
        volume: VolumeId,
    },
    /// Connection info that can't be used.
    #[error("volume {volume} can't be attached by iSCSI: {error}")]
    Connection {
        /// Which.
        volume: VolumeId,
        /// Why.
        error: ConnectionInfoError,
    },
    /// The ledger has the volume with another spec, or for another requester.
    #[error(
        "volume {volume} is attached to this node already, differently ({difference}); detach it first: attachd detach {volume}, or take away the request that asked for it"
    )]
    AttachedDifferently {
        /// Which.
        volume: VolumeId,
        /// In what.
        difference: String,
    },
    /// iscsid is away.
    #[error("iscsid doesn't answer on this node; start it (systemctl start iscsid)")]
    IscsidNotRunning,
    /// Multipath was required.
    #[error("multipath is required, but {why}")]
    MultipathUnavailable {
        /// multipathd's state.
        why: String,
    },
    /// No target let us in.
    #[error("no portal of volume {volume} accepted a login: {}", failures.join("; "))]
    NoPath {
        /// Which volume.
        volume: VolumeId,
        /// Per target.
        failures: Vec<String>,
    },
    /// Disks that must be one volume are not.
    #[error(
        "the disks of volume {volume} are not one volume: {what}; nothing was written. The storage shows something else than Cinder says: look at its exports before trying again"
    )]
    Identity {
        /// Which volume.
        volume: VolumeId,
        /// What disagrees.
        what: String,
    },
    /// A disk that is not ours has the same identity.
    #[error(
        "disk {device} ({hctl}) on this node has the same identity ({wwid}) as volume {volume}, but is not a path to it; a map would mix the two. Remove that disk, or mend the storage's WWIDs"
    )]
    IdentityTaken {
        /// Which volume.
        volume: VolumeId,
        /// The other disk.
        device: DeviceName,
        /// Its address.
        hctl: Hctl,
        /// The identity.
        wwid: Wwid,
    },
    /// A map mixes our disks with others.
    #[error("map {map} holds {} beside the disks of volume {volume}; nothing was written. Remove that disk from the map before trying again", names(.foreign))]
    ForeignDiskInMap {
        /// Which volume.
        volume: VolumeId,
        /// The map.
        map: String,
        /// Disks of the map that are not paths of the volume.
        foreign: Vec<DeviceName>,
    },
    /// Another volume's record names the same LUN.
    #[error(
        "volume {volume} is exported at {path}, where volume {by} was on this node: Cinder gave its place away while it was attached here. Detach volume {by} on this node first (attachd detach {by})"
    )]
    AddressTaken {
        /// Which volume.
        volume: VolumeId,
        /// The volume that was there.
        by: VolumeId,
        /// Where.
        path: TargetPath,
    },
    /// multipathd holds the disk though multipath was declined.
    #[error(
        "multipathd has put disk {device} of volume {volume} into map {map}, though multipath is disabled for it; attach with --multipath auto, or keep multipathd off the disk"
    )]
    ClaimedByMultipath {
        /// Which volume.
        volume: VolumeId,
        /// The disk.
        device: DeviceName,
        /// The map.
        map: String,
    },
    /// Something is on the device.
    #[error(
        "device {device} of volume {volume} holds {found}, and is not formatted: attachd formats blank devices only. If what is on it may be lost, wipe it yourself; if not, attach it with the file system that it has, or as --block"
    )]
    NotBlank {
        /// Which volume.
        volume: VolumeId,
        /// The device.
        device: DeviceName,
        /// What was found.
        found: String,
    },
    /// Another file system than the one asked for.
    #[error(
        "device {device} of volume {volume} holds {found}, but {wanted} was asked for; nothing was written. Ask for {found}, or check that this is the right volume"
    )]
    OtherFilesystem {
        /// Which volume.
        volume: VolumeId,
        /// The device.
        device: DeviceName,
        /// What it has.
        found: String,
        /// What was asked for.
        wanted: Filesystem,
    },
    /// Nothing on it, and formatting is not allowed.
    #[error("device {device} of volume {volume} is blank and may not be formatted ({why})")]
    Blank {
        /// Which volume.
        volume: VolumeId,
        /// The device.
        device: DeviceName,
        /// Why not.
        why: &'static str,
    },
    /// The mount path can't be used.
    #[error("volume {volume} can't be mounted on {}: {why}", path.display())]
    MountPath {
        /// Which volume.
        volume: VolumeId,
        /// Where.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Somebody else uses the device.
    #[error("{device} of volume {volume} is in use by {by}; end that use first")]
    InUse {
        /// Which volume.
        volume: VolumeId,
        /// The device.
        device: String,
        /// Who.
        by: String,
    },
    /// The sessions are there, the disks don't come.
    #[error("no target shows the LUN of volume {volume} to this node ({}); see that the storage exports it to this initiator", targets.join(", "))]
    LunMissing {
        /// Which volume.
        volume: VolumeId,
        /// The targets that were scanned.
        targets: Vec<String>,
    },
    /// A volume that can't be grown as it is now.
    #[error("volume {volume} can't be resized now: {why}")]
    NotResizable {
        /// Which volume.
        volume: VolumeId,
        /// Why, and what to do.
        why: String,
    },
    /// Cinder and the paths of a volume don't agree about its size, or can't be asked.
    #[error("volume {volume} is not resized: {what}")]
    SizeDiffers {
        /// Which volume.
        volume: VolumeId,
        /// Who states what, and what to do.
        what: String,
    },
    /// multipathd doesn't make the map.
    #[error(
        "multipathd made no map {wwid} for volume {volume}; see what it says (multipathd show paths, journalctl -u multipathd) and whether udevd runs"
    )]
    NoMap {
        /// Which volume.
        volume: VolumeId,
        /// The identity.
        wwid: Wwid,
    },
}

fn holders(attached_to: &[String]) -> String {
    if attached_to.is_empty() {
        String::new()
    } else {
        format!(" (attached to {})", some(attached_to))
    }
}

fn ids(reserved: &[AttachmentId]) -> String {
    if reserved.is_empty() {
        return "Cinder shows none to this project".to_owned();
    }
    some(reserved)
}

/// Most things that a message names: a status has no room for what a broken Cinder may list.
const MOST_NAMED: usize = 16;

fn some<T: ToString>(things: &[T]) -> String {
    let mut named: Vec<String> = things.iter().take(MOST_NAMED).map(ToString::to_string).collect();
    if things.len() > MOST_NAMED {
        named.push(format!("{} more", things.len() - MOST_NAMED));
    }
    named.join(", ")
}

fn names(devices: &[DeviceName]) -> String {
    devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Refusal {
    /// The CamelCase word that conditions, events and metrics use.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::VolumeNotFound { .. } => "VolumeNotFound",
            Self::NothingVisible { .. } => "NothingVisible",
            Self::VolumeNotAvailable { .. } => "VolumeNotAvailable",
            Self::LostReservation { .. } => "LostReservation",
            Self::AttachmentGone { .. } => "AttachmentGone",
            Self::CutOff { .. } => "CutOff",
            Self::StillHeld { .. } => "StillHeld",
            Self::AttachmentFailed { .. } => "AttachmentFailed",
            Self::ConnectionUnknown { .. } => "ConnectionUnknown",
            Self::Connection { .. } => "UnsupportedConnection",
            Self::AttachedDifferently { .. } => "AttachedDifferently",
            Self::IscsidNotRunning => "IscsidNotRunning",
            Self::MultipathUnavailable { .. } => "MultipathUnavailable",
            Self::NoPath { .. } => "NoPath",
            Self::Identity { .. } => "IdentityMismatch",
            Self::IdentityTaken { .. } => "IdentityTaken",
            Self::ForeignDiskInMap { .. } => "ForeignDiskInMap",
            Self::AddressTaken { .. } => "AddressTaken",
            Self::ClaimedByMultipath { .. } => "ClaimedByMultipath",
            Self::NotBlank { .. } => "NotBlank",
            Self::OtherFilesystem { .. } => "OtherFilesystem",
            Self::Blank { .. } => "Blank",
            Self::MountPath { .. } => "MountPathUnusable",
            Self::InUse { .. } => "InUse",
            Self::LunMissing { .. } => "LunMissing",
            Self::NotResizable { .. } => "NotResizable",
            Self::SizeDiffers { .. } => "SizeDiffers",
            Self::NoMap { .. } => "NoMap",
        }
    }

    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::VolumeNotAvailable { .. }
            | Self::ConnectionUnknown { .. }
            | Self::IscsidNotRunning
            | Self::MultipathUnavailable { .. }
            | Self::NoPath { .. }
            | Self::InUse { .. }
            | Self::StillHeld { .. }
            | Self::AddressTaken { .. }
            | Self::LostReservation { .. }
            | Self::LunMissing { .. }
            | Self::NotResizable { .. }
            | Self::SizeDiffers { .. }
            | Self::NothingVisible { .. }
            | Self::NoMap { .. } => Retry::Backoff,
            Self::VolumeNotFound { .. }
            | Self::AttachmentGone { .. }
            | Self::CutOff { .. }
            | Self::AttachmentFailed { .. }
            | Self::Connection { .. }
            | Self::AttachedDifferently { .. }
            | Self::Identity { .. }
            | Self::IdentityTaken { .. }
            | Self::ForeignDiskInMap { .. }
            | Self::ClaimedByMultipath { .. }
            | Self::NotBlank { .. }
            | Self::OtherFilesystem { .. }
            | Self::Blank { .. }
            | Self::MountPath { .. } => Retry::OnChange,
        }
    }
}
