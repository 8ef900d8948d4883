use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;

use super::{Fault, SimWorld};
use crate::{
    host::{Applied, Host, HostError, HostOp, MountTarget, NodeFacts},
    model::{Chap, Contents, DeviceId, HostState, Portal, Target, VolumeId},
};

/// The simulated node, for an engine that works for one volume, so that the guard knows for which, or
/// for a daemon, which works for all of the node's.
#[derive(Debug, Clone)]
pub struct SimHost {
    pub(super) world: SimWorld,
    pub(super) volume: Option<VolumeId>,
}

impl Host for SimHost {
    fn events(&self) -> watch::Receiver<u64> {
        self.world.state().events.subscribe()
    }

    async fn facts(&self) -> Result<NodeFacts, HostError> {
        self.world.operate("facts".to_owned(), |world, _| Ok(world.facts.clone()), failure).await
    }

    async fn observe(&self) -> Result<Arc<HostState>, HostError> {
        self.world
            .operate(
                "observe".to_owned(),
                |world, _| {
                    let came = world.kernel.logins_go_on(&world.storage);
                    world.kernel.refresh_sessions(&world.storage);
                    let news = world.kernel.tick() || came;
                    let state = Arc::new(world.kernel.snapshot(&world.storage));
                    if news {
                        world.event();
                    }
                    Ok(state)
                },
                failure,
            )
            .await
    }

    async fn observe_targets(
        &self,
        _targets: &BTreeSet<Target>,
    ) -> Result<Arc<HostState>, HostError> {
        self.observe().await
    }

    async fn contents(&self, device: &DeviceId) -> Result<Contents, HostError> {
        self.world
            .operate(format!("contents of {device}"), |world, _| world.read(device), failure)
            .await
    }

    async fn mount_target(&self, target: &Path) -> Result<MountTarget, HostError> {
        self.world
            .operate(
                format!("mount target {}", target.display()),
                |world, _| Ok(world.kernel.mount_target(target)),
                failure,
            )
            .await
    }

    async fn discover(
        &self,
        portal: Portal,
        _chap: Option<&Chap>,
    ) -> Result<Vec<Target>, HostError> {
        self.world
            .operate(
                format!("discover {portal}"),
                |world, _| {
                    if world.storage.dead.contains(&portal) {
                        return Err(HostError::PortalUnreachable { portal });
                    }
                    let mut targets = Vec::new();
                    for (iqn, _) in world.storage.exports.keys() {
                        for portal in &world.storage.portals {
                            let target = Target { portal: *portal, iqn: iqn.clone() };
                            if !targets.contains(&target) {
                                targets.push(target);
                            }
                        }
                    }
                    Ok(targets)
                },
                failure,
            )
            .await
    }

    async fn apply(&self, op: &HostOp) -> Result<Applied, HostError> {
        let volume = self.volume.unwrap_or_else(|| self.world.state().touched(op));
        let name = format!("[{}] {op:?}", &volume.to_string()[..4]);
        self.world.operate(name, |world, fault| world.apply(volume, op, fault), failure).await
    }
}

fn failure(fault: Fault) -> HostError {
    match fault {
        Fault::Busy => {
            HostError::Busy { what: "the device".to_owned(), by: vec!["udev-worker".to_owned()] }
        }
        _ => injected(),
    }
}

pub(super) fn injected() -> HostError {
    HostError::Io {
        doing: "reach",
        path: PathBuf::from("/sys"),
        source: io::Error::other("a fault of the simulation"),
    }
}
