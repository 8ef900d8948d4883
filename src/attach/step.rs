use std::{fmt, path::PathBuf};

use crate::model::{
    AttachmentId, DeviceId, DeviceName, Filesystem, Hctl, Lun, Portal, Target, TargetPath,
    VolumeId, Wwid,
};

/// One step of the road, as data. Each can be done again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Record the intent, create the attachment in Cinder, record its id.
    Reserve {
        /// Which volume.
        volume: VolumeId,
    },
    /// Adopt a reservation of ours whose id was lost in a crash: found by its instance.
    Adopt {
        /// Which attachment.
        attachment: AttachmentId,
    },
    /// Give Cinder the connector; record the paths that it answers.
    Update {
        /// Which attachment.
        attachment: AttachmentId,
    },
    /// Ask a portal for the target's other portals.
    Discover {
        /// Which portal.
        portal: Portal,
    },
    /// Record the ways to the volume.
    RecordPaths {
        /// All of them.
        paths: Vec<TargetPath>,
    },
    /// Record ownership, write the node records, log in, to all at once.
    LogIn {
        /// To which targets.
        targets: Vec<Target>,
    },
    /// Look at exactly one LUN on each host.
    Scan {
        /// SCSI host and LUN.
        luns: Vec<(u32, Lun)>,
    },
    /// Read identity and size of disks that were there before.
    Reread {
        /// Which.
        devices: Vec<Hctl>,
    },
    /// Delete disks that stand where the volume must appear, but were there before it.
    PurgeStale {
        /// Which.
        devices: Vec<(Hctl, DeviceName)>,
    },
    /// Record the identity that all paths share.
    RecordIdentity {
        /// Which.
        wwid: Wwid,
    },
    /// Ask for a map over these disks.
    AddMap {
        /// The identity.
        wwid: Wwid,
        /// The disks.
        devices: Vec<DeviceName>,
    },
    /// Make the block devices refuse writes.
    SetReadOnly {
        /// Which.
        devices: Vec<DeviceName>,
    },
    /// Read what is on the device.
    Probe {
        /// Which device.
        device: DeviceId,
    },
    /// Make the file system.
    Format {
        /// On which device.
        device: DeviceId,
        /// Which.
        filesystem: Filesystem,
        /// Over the remains of a format that was cut short.
        resume: bool,
    },
    /// Check the file system.
    Check {
        /// On which device.
        device: DeviceId,
        /// Which.
        filesystem: Filesystem,
    },
    /// Mount it.
    Mount {
        /// The device.
        device: DeviceId,
        /// Its file system.
        filesystem: Filesystem,
        /// Where.
        target: PathBuf,
        /// Refuse writes.
        read_only: bool,
        /// Options.
        options: Vec<String>,
    },
    /// Have multipathd take over the new size of a map's disks.
    ResizeMap {
        /// Its name.
        name: String,
        /// Its identity.
        wwid: Wwid,
        /// The size that all its disks have.
        size_bytes: u64,
    },
    /// Grow the mounted file system to the end of its device, where it isn't there yet.
    GrowFilesystem {
        /// On which device.
        device: DeviceId,
        /// Which.
        filesystem: Filesystem,
        /// Where it is mounted.
        target: PathBuf,
    },
    /// Tell Cinder that the volume is in use.
    Complete {
        /// Which attachment.
        attachment: AttachmentId,
    },
    /// Record that what was not written yet is given up.
    GiveUp {
        /// Of which volume.
        volume: VolumeId,
    },
    /// Have no I/O of this node reach the volume: maps let it fail, disks go without being flushed.
    Cut {
        /// The maps over the disks.
        maps: Vec<(DeviceName, String)>,
        /// The disks.
        devices: Vec<(Hctl, DeviceName)>,
    },
    /// Unmount.
    Unmount {
        /// Where.
        target: PathBuf,
    },
    /// Take a mount out of sight that processes keep; nothing is behind it any more.
    UnmountLazily {
        /// Where.
        target: PathBuf,
    },
    /// Remove the directory that attachd made for the mount.
    RemoveDirectory {
        /// Which.
        target: PathBuf,
    },
    /// Flush and remove the map.
    RemoveMap {
        /// Its name.
        name: String,
        /// Its identity.
        wwid: Wwid,
    },
    /// Flush and delete disks.
    DeleteDevices {
        /// Which.
        devices: Vec<(Hctl, DeviceName)>,
    },
    /// Log out, and delete the node records.
    LogOut {
        /// Of which targets.
        targets: Vec<Target>,
    },
    /// Record that this attachment needs no session any more, and give up targets.
    Release {
        /// Targets that attachd has nothing at any more.
        disown: Vec<Target>,
    },
    /// Delete the attachment in Cinder.
    DeleteAttachment {
        /// Which.
        attachment: AttachmentId,
    },
    /// Remove the record.
    Forget {
        /// Of which volume.
        volume: VolumeId,
    },
}

/// The stations of the road; what a plan announces, and what times are kept by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// An attachment of this node exists.
    Reserve,
    /// Cinder exports the volume to this node.
    Update,
    /// Sessions exist.
    LogIn,
    /// The disks are there.
    Scan,
    /// They are that volume.
    Verify,
    /// The map is there.
    Map,
    /// A file system is there and sound.
    Filesystem,
    /// It is mounted.
    Mount,
    /// Cinder knows.
    Complete,
    /// The volume can't be reached from here.
    Cut,
    /// Nothing is mounted.
    Unmount,
    /// No map is left.
    RemoveMap,
    /// No disk is left.
    DeleteDevices,
    /// No session of ours is left that carries nothing.
    LogOut,
    /// The attachment is gone.
    DeleteAttachment,
    /// The record is gone.
    Forget,
}

impl Phase {
    /// In a few words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Reserve => "reserve the volume",
            Self::Update => "give Cinder the connector",
            Self::LogIn => "log in",
            Self::Scan => "scan the LUN",
            Self::Verify => "verify the identity",
            Self::Map => "multipath map",
            Self::Filesystem => "file system",
            Self::Mount => "mount",
            Self::Complete => "complete the attachment",
            Self::Cut => "cut the volume off",
            Self::Unmount => "unmount",
            Self::RemoveMap => "remove the map",
            Self::DeleteDevices => "delete the disks",
            Self::LogOut => "log out",
            Self::DeleteAttachment => "delete the attachment",
            Self::Forget => "forget the record",
        }
    }
}

impl Step {
    /// The station that this step belongs to.
    pub const fn phase(&self) -> Phase {
        match self {
            Self::Reserve { .. } | Self::Adopt { .. } => Phase::Reserve,
            Self::Update { .. } | Self::Discover { .. } | Self::RecordPaths { .. } => Phase::Update,
            Self::LogIn { .. } => Phase::LogIn,
            Self::Scan { .. } | Self::PurgeStale { .. } => Phase::Scan,
            Self::Reread { .. } | Self::RecordIdentity { .. } => Phase::Verify,
            Self::AddMap { .. } | Self::ResizeMap { .. } => Phase::Map,
            Self::SetReadOnly { .. }
            | Self::Probe { .. }
            | Self::Format { .. }
            | Self::Check { .. }
            | Self::GrowFilesystem { .. } => Phase::Filesystem,
            Self::Mount { .. } => Phase::Mount,
            Self::Complete { .. } => Phase::Complete,
            Self::GiveUp { .. } | Self::Cut { .. } => Phase::Cut,
            Self::Unmount { .. } | Self::UnmountLazily { .. } | Self::RemoveDirectory { .. } => {
                Phase::Unmount
            }
            Self::RemoveMap { .. } => Phase::RemoveMap,
            Self::DeleteDevices { .. } => Phase::DeleteDevices,
            Self::LogOut { .. } | Self::Release { .. } => Phase::LogOut,
            Self::DeleteAttachment { .. } => Phase::DeleteAttachment,
            Self::Forget { .. } => Phase::Forget,
        }
    }

    /// Whether block devices may come and go by it.
    pub const fn moves_devices(&self) -> bool {
        matches!(
            self,
            Self::LogIn { .. }
                | Self::Scan { .. }
                | Self::Reread { .. }
                | Self::PurgeStale { .. }
                | Self::AddMap { .. }
                | Self::RemoveMap { .. }
                | Self::DeleteDevices { .. }
                | Self::Cut { .. }
                | Self::LogOut { .. }
        )
    }

    /// Whether it changes no session, device or mount of the node: it reads, or is for Cinder, the ledger
    /// or a directory alone.
    pub const fn leaves_the_node(&self) -> bool {
        matches!(
            self,
            Self::Reserve { .. }
                | Self::Update { .. }
                | Self::RecordPaths { .. }
                | Self::RecordIdentity { .. }
                | Self::Probe { .. }
                | Self::Complete { .. }
                | Self::RemoveDirectory { .. }
                | Self::Release { .. }
                | Self::DeleteAttachment { .. }
                | Self::Forget { .. }
        )
    }

    /// Whether no other attachd may work on the same targets meanwhile: what it decides on
    /// (a session, what the session carries) must still hold when it acts.
    pub const fn needs_targets_alone(&self) -> bool {
        matches!(
            self,
            Self::LogIn { .. }
                | Self::Scan { .. }
                | Self::PurgeStale { .. }
                | Self::Cut { .. }
                | Self::DeleteDevices { .. }
                | Self::LogOut { .. }
                | Self::Release { .. }
        )
    }
}

struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            item.fmt(f)?;
        }
        Ok(())
    }
}

fn addressed(devices: &[(Hctl, DeviceName)]) -> Vec<String> {
    devices.iter().map(|(hctl, name)| format!("{name} ({hctl})")).collect()
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserve { volume } => write!(f, "reserve volume {volume}"),
            Self::Adopt { attachment } => write!(f, "take up reservation {attachment}"),
            Self::Update { attachment } => {
                write!(f, "give Cinder the connector for attachment {attachment}")
            }
            Self::Discover { portal } => write!(f, "ask {portal} for its other portals"),
            Self::RecordPaths { paths } => {
                write!(f, "record the ways to the volume: {}", List(paths))
            }
            Self::LogIn { targets } => write!(f, "log in to {}", List(targets)),
            Self::Scan { luns } => {
                let words: Vec<String> =
                    luns.iter().map(|(host, lun)| format!("LUN {lun} on host{host}")).collect();
                write!(f, "scan {}", List(&words))
            }
            Self::Reread { devices } => {
                write!(f, "read size and identity of {} anew", List(devices))
            }
            Self::PurgeStale { devices } => {
                write!(f, "delete stale {}", List(&addressed(devices)))
            }
            Self::RecordIdentity { wwid } => write!(f, "record the identity {wwid}"),
            Self::AddMap { wwid, devices } => {
                write!(f, "multipath map {wwid} over {}", List(devices))
            }
            Self::SetReadOnly { devices } => write!(f, "make {} read-only", List(devices)),
            Self::Probe { device } => write!(f, "read what {device} holds"),
            Self::Format { device, filesystem, resume: false } => {
                write!(f, "format {device} with {filesystem}")
            }
            Self::Format { device, filesystem, resume: true } => {
                write!(f, "format {device} with {filesystem} again (the first try was cut short)")
            }
            Self::Check { device, filesystem } => write!(f, "check {filesystem} on {device}"),
            Self::Mount { device, target, read_only, .. } => {
                let how = if *read_only { " read-only" } else { "" };
                write!(f, "mount {device} on {}{how}", target.display())
            }
            Self::ResizeMap { name, size_bytes, .. } => {
                write!(f, "resize map {name} to the {size_bytes} bytes of its disks")
            }
            Self::GrowFilesystem { device, filesystem, target, .. } => {
                write!(f, "have {filesystem} on {} fill {device}", target.display())
            }
            Self::Complete { attachment } => write!(f, "complete attachment {attachment}"),
            Self::GiveUp { volume } => {
                write!(f, "give up what was not written to volume {volume}")
            }
            Self::Cut { maps, devices } => {
                let maps: Vec<&String> = maps.iter().map(|(_, name)| name).collect();
                f.write_str("let nothing reach the volume any more:")?;
                if !maps.is_empty() {
                    write!(f, " stop queueing of map {}", List(&maps))?;
                }
                if !devices.is_empty() {
                    let and = if maps.is_empty() { "" } else { ", and" };
                    write!(f, "{and} delete {} without a flush", List(&addressed(devices)))?;
                }
                Ok(())
            }
            Self::Unmount { target } => write!(f, "unmount {}", target.display()),
            Self::UnmountLazily { target } => {
                write!(f, "take the mount {} out of sight", target.display())
            }
            Self::RemoveDirectory { target } => {
                write!(f, "remove the directory {}", target.display())
            }
            Self::RemoveMap { name, .. } => write!(f, "flush and remove map {name}"),
            Self::DeleteDevices { devices } => {
                write!(f, "flush and delete {}", List(&addressed(devices)))
            }
            Self::LogOut { targets } => write!(f, "log out of {}", List(targets)),
            Self::Release { .. } => f.write_str("record that the sessions are not needed any more"),
            Self::DeleteAttachment { attachment } => write!(f, "delete attachment {attachment}"),
            Self::Forget { volume } => write!(f, "forget the record of volume {volume}"),
        }
    }
}
