use std::{io, path::PathBuf};

use crate::model::{Contents, DeviceName, Hctl, Portal, Retry, Target};

use super::{
    exec::{Exit, Program},
    propagation::ADVICE,
};

/// The node refused. Each variant names the object, what was tried and what came back.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A program isn't there.
    #[error("{program} is not installed on this node (looked in {searched})")]
    ProgramMissing {
        /// Which.
        program: &'static str,
        /// The search path.
        searched: &'static str,
    },
    /// A program could not be started or watched.
    #[error("could not run {program}")]
    Exec {
        /// Which.
        program: Program,
        /// Why.
        source: io::Error,
    },
    /// A program ended with an exit code that is not success.
    #[error("{doing}: {program} ended with {exit}: {stderr}")]
    Command {
        /// Which.
        program: Program,
        /// What it was run for, with the object's name.
        doing: String,
        /// How it ended.
        exit: Exit,
        /// What it said, bounded.
        stderr: String,
    },
    /// Something took longer than it may; it may still be going on inside the kernel or a daemon.
    #[error("{doing} took longer than {seconds} s; what is stuck may still end by itself")]
    TimedOut {
        /// What, with the object's name.
        doing: String,
        /// The limit.
        seconds: u64,
    },
    /// The target refused the credentials (`iscsiadm` exit code 24).
    #[error(
        "{what} refused the login: the CHAP credentials or this initiator's name are not what it expects"
    )]
    AuthRejected {
        /// Which target, or which portal at discovery.
        what: String,
    },
    /// The portal did not answer in time (`iscsiadm` exit codes 8 and 11).
    #[error("{target} did not answer the login in time; check the storage network and the portal")]
    LoginTimedOut {
        /// Which target.
        target: Target,
    },
    /// The target refused the login for good (`iscsiadm` exit code 19).
    #[error("{target} refused the login: it has no such target, or none for this initiator")]
    LoginRefused {
        /// Which target.
        target: Target,
    },
    /// The portal can't be reached, or dropped the connection (`iscsiadm` exit code 4).
    #[error("could not connect to {portal}; check the storage network and that the target listens")]
    PortalUnreachable {
        /// Which portal.
        portal: Portal,
    },
    /// iscsid doesn't answer (no socket, or `iscsiadm` exit codes 18 and 20).
    #[error("iscsid is not running on this node; start it: systemctl enable --now iscsid")]
    IscsidNotRunning,
    /// iscsid was restarted, and waits for the portal before it takes the session over (`iscsiadm` exit
    /// code 32).
    #[error(
        "iscsid can't log out of {target}: it was restarted, and waits for that portal before it takes the session over; where the portal doesn't come back: systemctl stop iscsid, detach again, systemctl start iscsid"
    )]
    SessionNotTakenOver {
        /// Which target.
        target: Target,
    },
    /// The kernel module is missing (`iscsiadm` exit code 12).
    #[error("the kernel has no iSCSI transport; load it: modprobe iscsi_tcp")]
    NoTransport,
    /// There is no initiator name.
    #[error("{path} holds no InitiatorName; {fix}", path = path.display())]
    NoInitiatorName {
        /// The file that was read.
        path: PathBuf,
        /// The command that mends it.
        fix: &'static str,
    },
    /// Credentials that open-iscsi's database can't hold.
    #[error("the CHAP {field} for {object} can't be stored by open-iscsi: {why}")]
    UnusableCredentials {
        /// `username` or `password`; never its value.
        field: &'static str,
        /// Whose.
        object: String,
        /// Why.
        why: &'static str,
    },
    /// A discovery record with other credentials is there already, and it isn't ours.
    #[error("a discovery record for {portal} with other credentials exists at {path}; remove it: iscsiadm -m discoverydb -t sendtargets -p {portal} -o delete", path = path.display())]
    ForeignDiscoveryRecord {
        /// Which portal.
        portal: Portal,
        /// The record.
        path: PathBuf,
    },
    /// Somebody holds open-iscsi's database lock.
    #[error("open-iscsi's database stayed locked for {seconds} s by {path}; if no iscsiadm is running, remove that file", path = path.display())]
    DatabaseLocked {
        /// The lock.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A node record is not where any known open-iscsi keeps it.
    #[error("iscsiadm made a node record for {target}, but there is none below {searched}")]
    RecordNotFound {
        /// For which target.
        target: Target,
        /// Where it was looked for.
        searched: String,
    },
    /// Something is in use.
    #[error("{what} is in use by {}", list(by))]
    Busy {
        /// What.
        what: String,
        /// By whom: processes, mounts, other block devices; empty where it can't be seen.
        by: Vec<String>,
    },
    /// A device that should be formatted holds something.
    #[error("{device} is not blank, so it is not formatted: it holds {}", held(found))]
    NotBlank {
        /// Which.
        device: DeviceName,
        /// What it holds.
        found: Contents,
    },
    /// A SCSI address and a device's name no longer belong together.
    #[error("{hctl} is no longer {expected} but {}", found.as_ref().map_or("no disk", DeviceName::as_str))]
    DeviceChanged {
        /// The address.
        hctl: Hctl,
        /// The disk that was expected there.
        expected: DeviceName,
        /// The disk that is there.
        found: Option<DeviceName>,
    },
    /// Another device has a device's name by now.
    #[error(
        "{device} is not the device any more that it was when it was looked at: it went, and another came by that name"
    )]
    DeviceReplaced {
        /// Its name.
        device: DeviceName,
    },
    /// Two XFS file systems with one UUID.
    #[error("{device} has the XFS UUID {uuid} of what is mounted on {other}: a clone or snapshot of it; mount it with the option nouuid (--mount-options nouuid), or give it a UUID of its own while neither is mounted: xfs_admin -U generate /dev/{device}", other = other.display())]
    XfsTwin {
        /// The device that can't be mounted.
        device: DeviceName,
        /// The UUID.
        uuid: uuid::Uuid,
        /// Where the other is mounted.
        other: PathBuf,
    },
    /// A device without a size.
    #[error("{device} has no size: the target does not serve it (any more)")]
    EmptyDevice {
        /// Which.
        device: DeviceName,
    },
    /// multipathd doesn't answer.
    #[error(
        "multipathd does not answer on its socket; start it: systemctl enable --now multipathd"
    )]
    MultipathdUnreachable {
        /// Why.
        source: io::Error,
    },
    /// multipathd answered that it won't.
    #[error("multipathd refused {command:?}: {reply}")]
    MultipathdRefused {
        /// What was asked.
        command: String,
        /// What came back.
        reply: String,
    },
    /// multipath must not have this device by its configuration.
    #[error("multipath's configuration keeps it off {what}; see: multipathd show blacklist")]
    Blacklisted {
        /// The disk or WWID.
        what: String,
    },
    /// A mount point that can't be one.
    #[error("{path} can't be mounted on: {why}", path = path.display())]
    MountPoint {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// From a container the host can't be driven.
    #[error("can't work on the host by --host-root {root}: {why}", root = root.display())]
    HostRoot {
        /// The host's root directory, as it was given.
        root: PathBuf,
        /// Why, and what the container lacks.
        why: String,
    },
    /// What was mounted or unmounted in attachd's container did not reach the host.
    #[error("{doing} {path} did not reach the host: {why}; {ADVICE}", path = path.display())]
    NotPropagated {
        /// What was done, such as "mounting sda on".
        doing: String,
        /// The mount path.
        path: PathBuf,
        /// What is seen of it.
        why: String,
    },
    /// The kernel refused to mount.
    #[error("could not mount {device} ({filesystem}) on {path}: {hint}", path = path.display())]
    Mount {
        /// The device.
        device: DeviceName,
        /// The file system.
        filesystem: &'static str,
        /// Where.
        path: PathBuf,
        /// What it means.
        hint: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file system that its checker could not mend by itself.
    #[error("the {filesystem} file system on {device} has errors that need a person: {output}")]
    FilesystemDamaged {
        /// On which device.
        device: DeviceName,
        /// Which file system.
        filesystem: &'static str,
        /// What the checker said, bounded.
        output: String,
    },
    /// What should have grown is not as it should be.
    #[error("{what} was not resized: {why}")]
    NotGrown {
        /// A map or a file system.
        what: String,
        /// Why.
        why: String,
    },
    /// No address fits.
    #[error("no address of this node fits {source_of_address}")]
    NoAddress {
        /// How it was looked for.
        source_of_address: String,
    },
    /// A file, a device or the kernel refused.
    #[error("could not {doing} {path}", path = path.display())]
    Io {
        /// What was tried: a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn list(by: &[String]) -> String {
    if by.is_empty() { "something that can't be seen from here".to_owned() } else { by.join(", ") }
}

fn held(found: &Contents) -> String {
    match found {
        Contents::Blank => "nothing".to_owned(),
        Contents::Filesystem { name } => format!("a file system ({name})"),
        Contents::Signature { name } => format!("a signature ({name})"),
        Contents::Data { offset } => format!("data without a known signature, at byte {offset}"),
    }
}

impl HostError {
    /// An I/O error with what was tried on what.
    pub(crate) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    /// The CamelCase word that conditions, events and metrics use.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ProgramMissing { .. } => "ProgramMissing",
            Self::Exec { .. } => "ProgramFailedToStart",
            Self::Command { .. } => "CommandFailed",
            Self::TimedOut { .. } => "TimedOut",
            Self::AuthRejected { .. } => "AuthRejected",
            Self::LoginTimedOut { .. } => "LoginTimedOut",
            Self::LoginRefused { .. } => "LoginRefused",
            Self::PortalUnreachable { .. } => "PortalUnreachable",
            Self::IscsidNotRunning => "IscsidNotRunning",
            Self::SessionNotTakenOver { .. } => "SessionNotTakenOver",
            Self::NoTransport => "NoIscsiTransport",
            Self::NoInitiatorName { .. } => "NoInitiatorName",
            Self::UnusableCredentials { .. } => "UnusableCredentials",
            Self::ForeignDiscoveryRecord { .. } => "ForeignDiscoveryRecord",
            Self::DatabaseLocked { .. } => "IscsiDatabaseLocked",
            Self::RecordNotFound { .. } => "NodeRecordNotFound",
            Self::Busy { .. } => "Busy",
            Self::NotBlank { .. } => "NotBlank",
            Self::DeviceChanged { .. } | Self::DeviceReplaced { .. } => "DeviceChanged",
            Self::XfsTwin { .. } => "XfsTwin",
            Self::EmptyDevice { .. } => "EmptyDevice",
            Self::MultipathdUnreachable { .. } => "MultipathdUnreachable",
            Self::MultipathdRefused { .. } => "MultipathdRefused",
            Self::Blacklisted { .. } => "MultipathBlacklisted",
            Self::MountPoint { .. } => "UnusableMountPoint",
            Self::HostRoot { .. } => "HostRootUnusable",
            Self::NotPropagated { .. } => "MountNotPropagated",
            Self::Mount { .. } => "MountFailed",
            Self::FilesystemDamaged { .. } => "FilesystemDamaged",
            Self::NotGrown { .. } => "NotGrown",
            Self::NoAddress { .. } => "NoAddress",
            Self::Io { .. } => "HostIoFailed",
        }
    }

    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::DeviceChanged { .. } | Self::DeviceReplaced { .. } => Retry::Now,
            Self::Exec { .. }
            | Self::Command { .. }
            | Self::TimedOut { .. }
            | Self::LoginTimedOut { .. }
            | Self::LoginRefused { .. }
            | Self::PortalUnreachable { .. }
            | Self::IscsidNotRunning
            | Self::SessionNotTakenOver { .. }
            | Self::NoTransport
            | Self::DatabaseLocked { .. }
            | Self::RecordNotFound { .. }
            | Self::Busy { .. }
            | Self::EmptyDevice { .. }
            | Self::MultipathdUnreachable { .. }
            | Self::MultipathdRefused { .. }
            | Self::Mount { .. }
            | Self::NotGrown { .. }
            | Self::XfsTwin { .. }
            | Self::NoAddress { .. }
            | Self::AuthRejected { .. }
            | Self::Io { .. } => Retry::Backoff,
            Self::ProgramMissing { .. }
            | Self::NoInitiatorName { .. }
            | Self::UnusableCredentials { .. }
            | Self::ForeignDiscoveryRecord { .. }
            | Self::NotBlank { .. }
            | Self::Blacklisted { .. }
            | Self::MountPoint { .. }
            | Self::HostRoot { .. }
            | Self::NotPropagated { .. }
            | Self::FilesystemDamaged { .. } => Retry::OnChange,
        }
    }
}
