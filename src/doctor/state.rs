use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use futures::future::join;
use nix::sys::{
    statfs::{TMPFS_MAGIC, statfs},
    statvfs::{FsFlags, statvfs},
};

use super::{
    Check, Finding, Mend, Repair,
    node::{Node, unread},
};
use crate::{
    attach::{
        Inventory, Ledger, LedgerError, Records,
        orphans::{Orphan, Orphans, Scene},
    },
    cinder::Client,
    host::Host as _,
};

pub(super) const DIRECTORY: Check = Check {
    id: "state-dir",
    looks_at: "the state directory: there, writable, private, on a disk that survives a reboot",
    why: "The ledger in it says what is attached. A node that forgets it can't tell its own devices from others'.",
};
pub(super) const SPACE: Check = Check {
    id: "ledger-space",
    looks_at: "free space and files on the state directory's disk",
    why: "attachd writes down what it is about to do before it does it: on a full disk it does nothing.",
};
pub(super) const LEDGER: Check = Check {
    id: "ledger",
    looks_at: "whether every record of the ledger can be read",
    why: "A volume whose record can't be read is neither attached nor detached, until a person looks at it.",
};
pub(super) const VOLUMES: Check = Check {
    id: "volumes",
    looks_at: "each attached volume: sessions, disks, map, mounts, and multipathd's word for its paths",
    why: "What is missing now is what fails next. A running agent brings back what it can.",
};
pub(super) const ORPHANS: Check = Check {
    id: "orphans",
    looks_at: "what of attachd's own is left without a use: attachments, sessions, disks, maps, node records, ledger entries",
    why: "They hold volumes that others wait for, and disks here that may stand for another volume one day.",
};

pub(super) async fn directory(node: &Node) -> Finding {
    let path = node.state_dir().to_owned();
    let shown = path.display().to_string();
    let look = {
        let path = path.clone();
        move || {
            let mode = fs::symlink_metadata(&path)?.permissions().mode() & 0o777;
            let (stat, kind) = (statvfs(&path)?, statfs(&path)?.filesystem_type());
            Ok::<_, std::io::Error>((
                mode,
                stat.flags().contains(FsFlags::ST_RDONLY),
                kind == TMPFS_MAGIC,
            ))
        }
    };
    match node.read("the state directory", look).await {
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Finding::ok(format!("{shown} is not there yet; attachd makes it"))
        }
        Ok(Err(error)) => Finding::failed(format!("{shown} can't be looked at: {error}"))
            .advise("see the disk that it lies on: dmesg, findmnt -T"),
        Ok(Ok((mode, read_only, volatile))) => {
            let mut parts = Vec::new();
            if read_only {
                parts.push(Finding::failed(format!("{shown} lies on a file system that is read-only"))
                    .advise("see why (dmesg): a disk with errors; then remount it, or give --state-dir another place before anything is attached"));
            }
            if volatile {
                parts.push(
                    Finding::warning(format!(
                        "{shown} lies on a tmpfs: a reboot forgets what is attached"
                    ))
                    .advise("put it on a disk of the node: --state-dir, or the chart's stateDir"),
                );
            }
            // Mounts below it are for all to see.
            if mode & 0o022 != 0 {
                parts.push(
                    Finding::failed(format!("others may write into {shown} (mode {mode:o})"))
                        .run(format!("chmod go-w {shown}")),
                );
            }
            for private in ["volumes", "targets", "locks"].map(|name| path.join(name)) {
                let mode =
                    fs::metadata(&private).map_or(0, |data| data.permissions().mode() & 0o777);
                if mode & 0o077 != 0 {
                    parts.push(
                        Finding::warning(format!(
                            "others may look into {} (mode {mode:o})",
                            private.display()
                        ))
                        .mend(Mend::Repair(Repair::Protect(private))),
                    );
                }
            }
            if parts.is_empty() {
                Finding::ok(format!("{shown} is private and on a disk"))
            } else {
                Finding::all(parts)
            }
        }
        Err(error) => unread(&error),
    }
}

/// A record takes a few KiB.
const LEAST_BYTES: u64 = 16 << 20;
const LEAST_FILES: u64 = 200;

pub(super) async fn space(node: &Node) -> Finding {
    let path = node.state_dir().to_owned();
    match node.read("the state directory", move || statvfs(&path)).await {
        Ok(Ok(stat)) => {
            let bytes = stat.blocks_available() * stat.fragment_size();
            // Some file systems count none.
            let files = (stat.files() > 0).then(|| stat.files_available());
            judge_space(bytes, files)
        }
        Ok(Err(_)) => Finding::left_out("the state directory can't be looked at; see state-dir"),
        Err(error) => unread(&error),
    }
}

fn judge_space(bytes: u64, files: Option<u64>) -> Finding {
    let files_left = files.map_or(String::new(), |files| format!(" and {files} files"));
    let left = format!("{} MiB{files_left} are left", bytes >> 20);
    let less_than = |part: u64| {
        bytes < LEAST_BYTES / part || files.is_some_and(|files| files < LEAST_FILES / part)
    };
    let mend = "make room on the disk of the state directory: du -xh / | sort -h | tail";
    match (less_than(4), less_than(1)) {
        (true, _) => Finding::failed(left).advise(mend),
        (false, true) => Finding::warning(left).advise(mend),
        (false, false) => Finding::ok(left),
    }
}

async fn records(node: &Node) -> Result<Option<(Ledger, Records)>, LedgerError> {
    let Some(ledger) = Ledger::look(node.state_dir()) else { return Ok(None) };
    let records = ledger.records().await?;
    Ok(Some((ledger, records)))
}

pub(super) async fn ledger(node: &Node) -> Finding {
    match records(node).await {
        Ok(None) => Finding::ok("nothing was ever attached"),
        Ok(Some((_, records))) => {
            let (good, bad): (Vec<_>, Vec<_>) = records.into_iter().partition(Result::is_ok);
            if bad.is_empty() {
                return Finding::ok(format!("{} records", good.len()));
            }
            let told = |error: LedgerError| Finding::failed(error.to_string());
            Finding::all(bad.into_iter().filter_map(Result::err).map(told))
                .advise("look at the file, and at attachd inspect: where it names a volume that is attached, keep it and mend it by hand; else move it away")
        }
        Err(error) => Finding::failed(error.to_string()),
    }
}

pub(super) async fn volumes(node: &Node) -> Finding {
    let (ledger, records) = match records(node).await {
        Ok(Some(found)) => found,
        Ok(None) => return Finding::left_out("nothing was ever attached"),
        Err(_) => return Finding::left_out("the ledger can't be read; see ledger"),
    };
    let owned = ledger.owned_targets().await.unwrap_or_default();
    // Without multipathd's word the kernel's is left.
    let (host, states) = join(node.linux().observe(), node.path_states()).await;
    let host = match host {
        Ok(host) => host,
        Err(error) => return unread(&error),
    };
    let complete: Vec<_> =
        records.into_iter().filter(|record| record.as_ref().is_ok_and(|it| it.completed)).collect();
    let inventory = Inventory::join(complete, &owned, &host);
    let count = inventory.attachments.len();
    let parts = inventory.attachments.iter().flat_map(|chain| {
        let members = chain.map.iter().flat_map(|map| &map.members);
        let failed = members.filter_map(|member| {
            let state = states.get(&member.device).filter(|state| *state == "failed")?;
            Some(format!("multipathd has {} as {state}", member.device))
        });
        let wrong: Vec<String> = chain.disagreements.iter().cloned().chain(failed).collect();
        wrong.into_iter().map(|what| {
            Finding::failed(format!("{}: {what}", chain.volume))
                .run(format!("attachd inspect {}", chain.volume))
        })
    });
    let parts: Vec<Finding> = parts.collect();
    if parts.is_empty() {
        return Finding::ok(match count {
            0 => "none is attached".to_owned(),
            count => format!("{count} attached, all whole"),
        });
    }
    Finding::all(parts).advise("a running agent (attachd run, --heal on) brings back sessions and paths by itself when the storage answers")
}

/// In a large project each volume has to be asked for.
const CINDERS_SIDE: Duration = Duration::from_secs(3);

pub(super) async fn orphans(node: &Node, cinder: Option<&Client>) -> Finding {
    let Some(ledger) = Ledger::look(node.state_dir()) else {
        return Finding::left_out("nothing was ever attached");
    };
    let all = Scene::look(&ledger, node.linux(), cinder);
    let scene = match tokio::time::timeout(CINDERS_SIDE, all).await {
        Ok(scene) => scene,
        Err(_) => Scene::look(&ledger, node.linux(), None).await,
    };
    let orphans = match scene {
        Ok(scene) => Orphans::among(&scene),
        Err(error) => return Finding::unknown(error.to_string()),
    };
    let told = |orphan: &Orphan| Finding::warning(format!("{}: {}", orphan.what, orphan.why));
    let mut found: Vec<Finding> = orphans.orphans.iter().map(told).collect();
    if let Some(last) = found.pop() {
        found.push(last.run("attachd orphans").advise(
            "attachd orphans --clean takes what is safe to take, and says why it leaves the rest",
        ));
        return Finding::all(found);
    }
    // What Cinder doesn't tell is no fault of this node's.
    match orphans.unknown.first() {
        None => Finding::ok("there are none"),
        Some(unknown) => {
            Finding::ok(format!("there are none, as far as it can be told: {unknown}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_disk_that_is_nearly_full_is_told_before_it_is() {
        assert_eq!(judge_space(1 << 30, None).verdict, Verdict::Ok);
        assert_eq!(judge_space(10 << 20, Some(9999)).verdict, Verdict::Warning);
        assert_eq!(judge_space(1 << 20, None).verdict, Verdict::Failed);
        assert_eq!(judge_space(1 << 30, Some(3)).verdict, Verdict::Failed);
    }
}
