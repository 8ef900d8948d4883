mod drawing;

use drawing::draw;

use std::{collections::BTreeSet, convert::Infallible, sync::Arc};

use clap::Args;
use futures::{StreamExt as _, stream};

use super::{Format, context, exit::Failure, output};
use crate::{
    attach::{Chain, Handle, Inventory, Ledger, Resolved},
    cinder::{BlockStorage as _, Client},
    config::Options,
    host::{Host as _, LinuxHost, Users},
    model::{DeviceNumber, HostState},
};

/// How many questions to Cinder go on at once.
const AT_ONCE: usize = 8;

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// What goes by this: a volume's or an attachment's id, a request's name, a device (/dev/sdX, /dev/dm-N,
    /// /dev/mapper/NAME), a mount point or a path below one, a WWID, a target's IQN
    #[arg(value_name = "HANDLE", value_parser = handle)]
    handle: Option<Handle>,
}

pub(super) fn handle(text: &str) -> Result<Handle, Infallible> {
    text.parse()
}

impl Inspect {
    pub(super) async fn run(&self, options: &Options, format: Format) -> Result<(), Failure> {
        let inventory = inventory(options, self.handle.as_ref()).await?;
        match format {
            Format::Table | Format::Wide => {
                output::write_marked(&draw(&inventory, self.handle.is_some()))?;
            }
            Format::Json | Format::Yaml | Format::Value => {
                output::print(format, &inventory, String::new)?;
            }
        }
        let fits = inventory.attachments.iter().all(|chain| chain.disagreements.is_empty());
        let is_something = !inventory.attachments.is_empty() || inventory.foreign.is_some();
        if fits && inventory.unreadable.is_empty() && (self.handle.is_none() || is_something) {
            Ok(())
        } else {
            Err(Failure::Unfit)
        }
    }
}

/// The ledger, the node and Cinder, joined, with who holds the devices; of them what goes by a handle.
pub(super) async fn inventory(
    options: &Options,
    handle: Option<&Handle>,
) -> Result<Inventory, Failure> {
    let ledger = Ledger::open(&options.state_dir)?;
    let node = context::host_for_inspection(options)?;
    let (mut inventory, _) = look(&ledger, &node, handle).await?;
    let numbers = numbers(&inventory);
    let client = context::client_if_any(options);
    let (users, ()) = futures::future::join(
        node.users(numbers.clone()),
        ask_cinder(client.as_ref(), &mut inventory.attachments),
    )
    .await;
    match users {
        Ok(users) => add_users(&mut inventory, &numbers, &users),
        Err(error) => tracing::warn!("who holds the devices is not known: {error}"),
    }
    Ok(inventory)
}

/// The whole inventory for a person.
pub(super) fn told(inventory: &Inventory) -> String {
    draw(inventory, false)
}

/// The ledger and the node, joined; of them what goes by a handle.
pub(super) async fn look(
    ledger: &Ledger,
    node: &LinuxHost,
    handle: Option<&Handle>,
) -> Result<(Inventory, HostState), Failure> {
    let mut host = Arc::unwrap_or_clone(node.observe().await?);
    // multipathd away, or slow: the kernel's side is worth showing without its word.
    let states = node.path_states().await.unwrap_or_default();
    for member in host.maps.iter_mut().flat_map(|map| &mut map.members) {
        member.path_state = states.get(&member.device).cloned();
    }
    let records = ledger.records().await?;
    let owned = ledger.owned_targets().await?;
    let mut inventory = Inventory::join(records, &owned, &host);
    if let Some(handle) = handle {
        let resolved = resolve(node, handle).await?;
        inventory.narrow(handle, &resolved, &host);
    }
    Ok((inventory, host))
}

async fn resolve(node: &LinuxHost, handle: &Handle) -> Result<Resolved, Failure> {
    let mut resolved = Resolved::default();
    match handle {
        Handle::Device(path) => resolved.number = node.block_device(path).await?,
        Handle::Place(path) => {
            resolved.mount = node.mount_above(path.clone()).await?;
            resolved.number = resolved.mount.as_ref().map(|mount| mount.number);
        }
        Handle::Id(_) | Handle::Iqn(_) | Handle::Word(_) => {}
    }
    resolved.name = resolved.number.and_then(|number| node.device_name(number));
    Ok(resolved)
}

fn numbers(inventory: &Inventory) -> Vec<DeviceNumber> {
    let of_chains = inventory.attachments.iter().flat_map(Chain::numbers);
    let foreign = inventory.foreign.iter();
    let of_foreign = foreign.flat_map(|foreign| {
        let disks = foreign.disks.iter().map(|disk| disk.number);
        disks.chain(foreign.map.iter().map(|map| map.number))
    });
    of_chains.chain(of_foreign).collect::<BTreeSet<_>>().into_iter().collect()
}

fn add_users(inventory: &mut Inventory, numbers: &[DeviceNumber], users: &[Users]) {
    let of = |wanted: Vec<DeviceNumber>| {
        let mut all = Users::default();
        for (_, users) in numbers.iter().zip(users).filter(|(number, _)| wanted.contains(number)) {
            let new = users.processes.iter().filter(|user| !all.processes.contains(user));
            let new: Vec<_> = new.cloned().collect();
            all.processes.extend(new);
            all.containers.extend(users.containers.iter().cloned());
        }
        Some(all)
    };
    for chain in &mut inventory.attachments {
        chain.users = of(chain.numbers().collect());
    }
    if let Some(foreign) = &mut inventory.foreign {
        let disks = foreign.disks.iter().map(|disk| disk.number);
        foreign.users = of(disks.chain(foreign.map.iter().map(|map| map.number)).collect());
    }
}

/// Adds Cinder's word where Cinder can be asked; the node's side is worth showing without it.
async fn ask_cinder(client: Option<&Client>, chains: &mut [Chain]) {
    let Some(cinder) = client else { return };
    let asked = stream::iter(chains).filter_map(async |chain| Some((chain.attachment?, chain)));
    let mut answers = Box::pin(
        asked
            .map(|(id, chain)| async move { (chain, cinder.attachment(id).await) })
            .buffered(AT_ONCE),
    );
    let mut silent = false;
    while let Some((chain, answer)) = answers.next().await {
        match answer {
            Ok(Some(attachment)) => {
                let status = attachment.summary.status.name();
                chain.cinder_status = Some(status.to_owned());
                if status != "attached" && chain.disagreements.is_empty() {
                    let what = format!("attached here, and {status} in Cinder");
                    chain.disagreements.push(what);
                }
            }
            Ok(None) => {
                chain.cinder_status = Some("gone".to_owned());
                chain.disagreements.push("Cinder has no such attachment".to_owned());
            }
            Err(error) => {
                if !silent {
                    tracing::warn!("{error}");
                }
                silent = true;
                chain.disagreements.push("Cinder can't be asked".to_owned());
            }
        }
    }
}
