//! What of an attachment is connected on this node: by the ledger, and by Cinder's connection info where
//! another program attached it.

use std::collections::BTreeSet;

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
        Ok(records) => paths.extend(records.into_iter().flat_map(|record| record.paths)),
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

async fn recorded(options: &Options, id: AttachmentId) -> Result<Vec<Record>, LedgerError> {
    // Opening would make it.
    if !options.state_dir.is_dir() {
        return Ok(Vec::new());
    }
    let records = Ledger::open(&options.state_dir)?.records().await?;
    let records: Result<Vec<Record>, LedgerError> = records.into_iter().collect();
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
