use std::fmt::Write as _;

use clap::Args;

use super::{Format, context, exit::Failure, output};
use crate::{
    attach::{Chain, Inventory, Ledger, OtherSession},
    cinder::BlockStorage as _,
    cloud::CloudError,
    config::Options,
    host::Host as _,
    model::{ScsiDevice, Session, VolumeId},
};

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Only this volume
    #[arg(value_name = "VOLUME")]
    volume: Option<VolumeId>,
}

impl Inspect {
    pub(super) async fn run(&self, options: &Options, format: Format) -> Result<(), Failure> {
        let ledger = Ledger::open(&options.state_dir)?;
        let node = context::host_for_inspection(options)?;
        let mut host = node.observe().await?;
        // multipathd away, or slow: the kernel's side is worth showing without its word.
        let states = node.path_states().await.unwrap_or_default();
        for member in host.maps.iter_mut().flat_map(|map| &mut map.members) {
            member.path_state = states.get(&member.device).cloned();
        }
        let records = ledger.records().await?;
        let owned = ledger.owned_targets().await?;
        let mut inventory = Inventory::join(records, &owned, &host);
        if let Some(volume) = self.volume {
            inventory.attachments.retain(|chain| chain.volume == volume);
        }
        ask_cinder(options, &mut inventory).await;
        output::print(format, &inventory, || tree(&inventory))?;
        Ok(())
    }
}

/// Adds Cinder's word where Cinder can be asked; the node's side is worth showing without it.
async fn ask_cinder(options: &Options, inventory: &mut Inventory) {
    let cinder = match context::client(options) {
        Ok(cinder) => cinder,
        Err(Failure::Cloud(CloudError::Unsaid { .. })) => return,
        Err(failure) => return tracing::warn!("Cinder is not asked: {failure}"),
    };
    for chain in &mut inventory.attachments {
        let Some(id) = chain.attachment else { continue };
        match cinder.attachment(id).await {
            Ok(Some(attachment)) => {
                let status = serde_json::to_value(&attachment.summary.status);
                chain.cinder_status =
                    status.ok().and_then(|status| status.as_str().map(ToOwned::to_owned));
            }
            Ok(None) => {
                chain.cinder_status = Some("gone".to_owned());
                chain.disagreements.push("Cinder has no such attachment".to_owned());
            }
            Err(error) => {
                tracing::warn!("{error}");
                chain.disagreements.push("Cinder can't be asked".to_owned());
                return;
            }
        }
    }
}

fn session_words(session: &Session) -> String {
    let state = serde_json::to_value(session.state).unwrap_or_default();
    format!(
        "session {} (host{}) {}",
        session.sid,
        session.host,
        state.as_str().unwrap_or("unknown")
    )
}

fn disk_words(disk: &ScsiDevice) -> String {
    let state = serde_json::to_value(disk.state).unwrap_or_default();
    format!(
        "{} ({}) {} {}{}",
        disk.name,
        disk.hctl,
        output::size(disk.size_bytes),
        state.as_str().unwrap_or("unknown"),
        if disk.read_only { " read-only" } else { "" }
    )
}

fn tree(inventory: &Inventory) -> String {
    let mut text = String::new();
    for chain in &inventory.attachments {
        draw_chain(&mut text, chain);
    }
    for other in &inventory.other_sessions {
        draw_other(&mut text, other);
    }
    for error in &inventory.unreadable {
        let _ = writeln!(text, "! {error}");
    }
    if text.is_empty() {
        "attachd holds no attachment on this node, and there are no other iSCSI sessions"
            .clone_into(&mut text);
    }
    text
}

fn draw_chain(text: &mut String, chain: &Chain) {
    let attachment = chain.attachment.map_or("(id unknown)".to_owned(), |id| id.to_string());
    let status = chain.cinder_status.as_deref().unwrap_or("not asked");
    let _ = writeln!(text, "volume {}", chain.volume);
    let _ = writeln!(
        text,
        "├─ attachment {attachment}: {status} in Cinder, asked for by {}",
        chain.origin
    );
    if let Some(wwid) = &chain.wwid {
        let _ = writeln!(text, "├─ identity {wwid}");
    }
    for path in &chain.paths {
        let _ = writeln!(text, "├─ {} LUN {}", path.target, path.lun);
        let session = path.session.as_ref().map_or("no session".to_owned(), session_words);
        let own = if path.own_session { "" } else { ", not made by attachd" };
        let _ = writeln!(text, "│  ├─ {session}{own}");
        let disk = path.disk.as_ref().map_or("no disk".to_owned(), disk_words);
        let _ = writeln!(text, "│  └─ {disk}");
    }
    if let Some(map) = &chain.map {
        let members: Vec<String> = map
            .members
            .iter()
            .map(|member| match &member.path_state {
                Some(state) => format!("{} {state}", member.device),
                None => member.device.to_string(),
            })
            .collect();
        let size = output::size(map.size_bytes);
        let _ =
            writeln!(text, "├─ map {} ({}) {size}: {}", map.name, map.device, members.join(", "));
    }
    for mount in &chain.mounts {
        let how = if mount.read_only { "ro" } else { "rw" };
        let _ = writeln!(text, "├─ mount {} {} {how}", mount.target.display(), mount.fs_type);
    }
    for disagreement in &chain.disagreements {
        let _ = writeln!(text, "├─ ! {disagreement}");
    }
    let verdict =
        if chain.disagreements.is_empty() { "all fits together" } else { "something disagrees" };
    let _ = writeln!(text, "└─ {verdict}");
}

fn draw_other(text: &mut String, other: &OtherSession) {
    let session = &other.session;
    let _ =
        writeln!(text, "other {} to {} at {}", session_words(session), session.iqn, session.portal);
    for disk in &other.disks {
        let _ = writeln!(text, "└─ {}", disk_words(disk));
    }
}
