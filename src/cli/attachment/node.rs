//! What of an attachment is connected on this node: by the ledger, and by Cinder's connection info where
//! another program attached it.

use std::{collections::BTreeSet, sync::Arc};

use super::super::{context, exit::Failure};
use crate::{
    attach::{Ledger, LedgerError, Record},
    cinder::{BlockStorage as _, Client},
    config::Options,
    host::Host as _,
    model::{AttachmentId, HostState, TargetPath},
};

/// Why this attachment should not be deleted from here and now; empty where nothing is connected.
pub(super) async fn why_not_delete(
    options: &Options,
    client: &Client,
    id: AttachmentId,
) -> Result<Vec<String>, Failure> {
    let host = match context::host_for_inspection(options)?.observe().await {
        Ok(host) => host,
        Err(error) => {
            return Ok(vec![format!("attachd can't see what is connected here: {error}")]);
        }
    };
    if host.devices.is_empty() && host.sessions.is_empty() && host.maps.is_empty() {
        return Ok(Vec::new());
    }
    let mut paths = BTreeSet::new();
    match recorded(options, id).await {
        Ok(records) => paths.extend(records.iter().flat_map(|record| record.paths.clone())),
        // Cinder's word is still there.
        Err(error) => tracing::warn!("{error}"),
    }
    if let Some(attachment) = client.attachment(id).await? {
        match attachment.connection_info() {
            Ok(info) => paths.extend(info.into_iter().flat_map(|info| info.paths)),
            // Another transport: none of what attachd can see.
            Err(error) => tracing::debug!("{error}"),
        }
    }
    Ok(connected(&paths, &host))
}

async fn recorded(options: &Options, id: AttachmentId) -> Result<Vec<Arc<Record>>, LedgerError> {
    // Opening would make it.
    if !options.state_dir.is_dir() {
        return Ok(Vec::new());
    }
    let records = Ledger::open(&options.state_dir)?.records().await?;
    let records: Result<Vec<_>, LedgerError> = records.into_iter().collect();
    Ok(records?.into_iter().filter(|record| record.attachment() == Some(id)).collect())
}

fn connected(paths: &BTreeSet<TargetPath>, host: &HostState) -> Vec<String> {
    let mut found = Vec::new();
    let mut put = |text: String| {
        if !found.contains(&text) {
            found.push(text);
        }
    };
    for path in paths {
        let Some(disk) = host.disk_at(path) else { continue };
        put(format!("{} is connected on this node ({}, LUN {})", disk.name, path.target, path.lun));
        let map = host.map_of(disk);
        if let Some(map) = map {
            put(format!("the map {} is over it", map.name));
        }
        for number in map.map(|map| map.number).into_iter().chain([disk.number]) {
            for mount in host.mounts_of(number) {
                put(format!("it is mounted on {}", mount.target.display()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use crate::model::{
        DeviceName, DeviceNumber, DeviceState, Lun, MapMember, MountEntry, MultipathMap,
        ScsiDevice, Session, SessionState, Target,
    };

    use super::*;

    fn path(number: u8) -> TargetPath {
        let portal = format!("10.0.{number}.2:3260").parse().unwrap();
        let iqn = "iqn.2010-10.org.openstack:volume-a".parse().unwrap();
        TargetPath { target: Target { portal, iqn }, lun: Lun(1) }
    }

    fn session(number: u8) -> Session {
        let Target { iqn, portal } = path(number).target;
        Session {
            sid: number.into(),
            host: number.into(),
            iqn,
            portal,
            tpgt: 1,
            state: SessionState::LoggedIn,
        }
    }

    fn disk(number: u8) -> ScsiDevice {
        ScsiDevice {
            hctl: format!("{number}:0:0:1").parse().unwrap(),
            name: DeviceName::new(&format!("sd{}", char::from(b'a' + number))).unwrap(),
            number: DeviceNumber { major: 8, minor: u32::from(number) * 16 },
            diskseq: None,
            size_bytes: 1 << 30,
            wwid: None,
            vendor: "IET".to_owned(),
            model: "VIRTUAL-DISK".to_owned(),
            state: DeviceState::Running,
            read_only: false,
            holders: Vec::new(),
        }
    }

    #[test]
    fn what_is_connected_is_named_from_the_disk_to_the_mount_once_each() {
        let member = |number| MapMember { device: disk(number).name, path_state: None };
        let mut host = HostState {
            sessions: [session(1), session(2)].into(),
            devices: [disk(1), disk(2)].into(),
            maps: [MultipathMap {
                name: "36e0a".to_owned(),
                wwid: "36e0a1cc2bac035ba048ac0a202003863".parse().unwrap(),
                node: None,
                device: DeviceName::new("dm-0").unwrap(),
                number: DeviceNumber { major: 253, minor: 0 },
                diskseq: None,
                size_bytes: 1 << 30,
                read_only: false,
                members: vec![member(1), member(2)],
                holders: Vec::new(),
            }]
            .into(),
            mounts: vec![MountEntry {
                number: DeviceNumber { major: 253, minor: 0 },
                source: "/dev/mapper/36e0a".to_owned(),
                target: "/mnt/db".into(),
                fs_type: "ext4".to_owned(),
                read_only: false,
                errors: false,
            }],
            ..HostState::default()
        };
        let paths = [path(1), path(2)].into();
        let found = connected(&paths, &host);
        let target = "iqn.2010-10.org.openstack:volume-a at 10.0";
        assert_eq!(
            found,
            [
                format!("sdb is connected on this node ({target}.1.2:3260, LUN 1)"),
                "the map 36e0a is over it".to_owned(),
                "it is mounted on /mnt/db".to_owned(),
                format!("sdc is connected on this node ({target}.2.2:3260, LUN 1)"),
            ]
        );
        assert!(connected(&[path(3)].into(), &host).is_empty(), "another target");
        host.devices.clear();
        assert!(connected(&paths, &host).is_empty(), "sessions alone are no devices");
    }
}
