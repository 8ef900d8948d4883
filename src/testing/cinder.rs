use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Fault, SimWorld, World};
use crate::{
    cinder::{
        Answered, Attachment, AttachmentStatus, AttachmentSummary, BlockStorage, CinderError,
        Operation, Volume, VolumeUse,
    },
    model::{AccessMode, AttachmentId, Connector, Iqn, Secret, VolumeId},
};

/// A volume as Cinder keeps it.
#[derive(Debug, Clone)]
pub struct SimVolume {
    /// Cinder's word.
    pub status: String,
    /// May be attached twice.
    pub multiattach: bool,
}

/// An attachment as Cinder keeps it.
#[derive(Debug, Clone)]
pub struct SimAttachment {
    /// Of which volume.
    pub volume: VolumeId,
    /// Its status.
    pub status: AttachmentStatus,
    /// Made by this node's attachd.
    pub ours: bool,
    /// The instance.
    pub instance: Option<Uuid>,
    /// Where it is exported, once it has a connector.
    pub address: Option<(Iqn, u64)>,
}

/// Cinder's database.
#[derive(Debug, Default)]
pub struct CinderState {
    /// Volumes.
    pub volumes: BTreeMap<VolumeId, SimVolume>,
    /// Attachments.
    pub attachments: BTreeMap<AttachmentId, SimAttachment>,
    /// Every address that a volume was ever given to this node at.
    pub addresses: BTreeMap<VolumeId, BTreeSet<(Iqn, u64)>>,
    /// How often Cinder was called.
    pub calls: usize,
    /// The answer names one portal only, so that discovery must find the other.
    pub one_portal: bool,
    /// The agent's user holds the role `service`.
    pub is_service: bool,
    /// Only its proxy answers.
    pub away: bool,
    ids: u128,
}

impl CinderState {
    pub(super) fn new_attachment(&mut self, attachment: SimAttachment) -> AttachmentId {
        self.ids += 1;
        let id = Uuid::from_u128(0xa77a_0000_0000_4000_8000_0000_0000_0000 + self.ids).into();
        self.attachments.insert(id, attachment);
        id
    }

    /// This node has a connected attachment of the volume.
    pub fn is_ours(&self, volume: VolumeId) -> bool {
        self.of(volume).any(|attachment| attachment.ours && attachment.address.is_some())
    }

    /// The attachments of a volume.
    pub fn of(&self, volume: VolumeId) -> impl Iterator<Item = &SimAttachment> {
        self.attachments.values().filter(move |attachment| attachment.volume == volume)
    }

    /// The id of this node's attachment, as text.
    pub(super) fn holding(&self, volume: VolumeId) -> String {
        let ours = |(_, attachment): &(&AttachmentId, &SimAttachment)| {
            attachment.volume == volume && attachment.ours && attachment.address.is_some()
        };
        self.attachments.iter().find(ours).map(|(id, _)| id.to_string()).unwrap_or_default()
    }
}

/// The password of every target: it must not be found in the ledger.
pub(super) const PASSWORD: &str = "sim-chap-secret-0123";

/// Cinder as the engine sees it.
#[derive(Debug, Clone)]
pub struct SimCinder {
    pub(super) world: SimWorld,
}

#[expect(clippy::unnecessary_box_returns, reason = "as the errors hold it")]
fn answered(operation: Operation, status: u16, message: &str) -> Box<Answered> {
    let request_id = Some("req-sim".to_owned());
    Box::new(Answered { operation, status, message: message.to_owned(), request_id })
}

impl SimCinder {
    async fn call<T>(
        &self,
        operation: Operation,
        effect: impl FnOnce(&mut World) -> Result<T, CinderError> + Send,
    ) -> Result<T, CinderError> {
        let effect = |world: &mut World, _: Option<Fault>| {
            world.cinder.calls += 1;
            if world.cinder.away {
                return Err(CinderError::ServerFault(answered(operation, 502, "a proxy alone")));
            }
            effect(world)
        };
        let failure = move |fault| match fault {
            Fault::Busy => CinderError::Overloaded {
                retry_after: None,
                answered: answered(operation, 503, "busy"),
            },
            _ => CinderError::ServerFault(answered(operation, 500, "a fault of the simulation")),
        };
        self.world.operate(format!("Cinder: {operation}"), effect, failure).await
    }
}

impl BlockStorage for SimCinder {
    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, CinderError> {
        self.call(Operation::ShowVolume(id), |world| Ok(world.shown_volume(id))).await
    }

    async fn reserve(
        &self,
        volume: VolumeId,
        instance: Option<Uuid>,
        _mode: AccessMode,
    ) -> Result<Attachment, CinderError> {
        let operation = Operation::Reserve(volume);
        self.call(operation, |world| {
            let id = world
                .reserve(volume, instance, true)
                .map_err(|why| CinderError::Refused(answered(operation, 400, why)))?;
            Ok(world.shown_attachment(id))
        })
        .await
    }

    async fn is_service(&self) -> Result<bool, CinderError> {
        Ok(self.world.state().cinder.is_service)
    }

    async fn update(
        &self,
        id: AttachmentId,
        connector: &Connector,
    ) -> Result<Attachment, CinderError> {
        let operation = Operation::Update(id);
        let fits = !connector.host.is_empty();
        self.call(operation, |world| {
            if !fits || !world.cinder.attachments.contains_key(&id) {
                return Err(CinderError::NotFound(answered(operation, 404, "no attachment")));
            }
            world.connect(id);
            Ok(world.shown_attachment(id))
        })
        .await
    }

    async fn complete(&self, id: AttachmentId) -> Result<(), CinderError> {
        let operation = Operation::Complete(id);
        self.call(operation, |world| {
            // Cinder checks no state here.
            let Some(attachment) = world.cinder.attachments.get_mut(&id) else {
                return Err(CinderError::NotFound(answered(operation, 404, "no attachment")));
            };
            attachment.status = AttachmentStatus::Attached;
            let volume = attachment.volume;
            world.set_status(volume, "in-use");
            Ok(())
        })
        .await
    }

    async fn attachment(&self, id: AttachmentId) -> Result<Option<Attachment>, CinderError> {
        self.call(Operation::Show(id), |world| {
            let known = world.cinder.attachments.contains_key(&id);
            Ok(known.then(|| world.shown_attachment(id)))
        })
        .await
    }

    async fn attachments_of(
        &self,
        volume: VolumeId,
    ) -> Result<Vec<AttachmentSummary>, CinderError> {
        self.call(Operation::List, |world| {
            let of = world.cinder.attachments.iter().filter(|(_, a)| a.volume == volume);
            Ok(of.map(|(id, attachment)| summary(*id, attachment)).collect())
        })
        .await
    }

    async fn delete(&self, id: AttachmentId) -> Result<(), CinderError> {
        self.call(Operation::Delete(id), |world| {
            world.guard_delete(id);
            world.delete_attachment(id);
            Ok(())
        })
        .await
    }
}

fn summary(id: AttachmentId, attachment: &SimAttachment) -> AttachmentSummary {
    AttachmentSummary {
        id,
        volume_id: attachment.volume,
        status: attachment.status.clone(),
        instance: attachment.instance.map(|instance| instance.to_string()),
    }
}

impl World {
    fn shown_volume(&self, id: VolumeId) -> Option<Volume> {
        let volume = self.cinder.volumes.get(&id)?;
        let connected = self.cinder.attachments.iter();
        let uses = connected.filter(|(_, a)| a.volume == id && a.address.is_some());
        Some(Volume {
            id,
            name: String::new(),
            status: volume.status.clone(),
            size_gib: self.storage.sizes.get(&id).copied().unwrap_or(1),
            multiattach: volume.multiattach,
            attachments: uses
                .map(|(attachment, known)| VolumeUse {
                    attachment_id: *attachment,
                    host_name: Some(if known.ours { "worker-3" } else { "worker-9" }.to_owned()),
                    server_id: None,
                })
                .collect(),
        })
    }

    fn shown_attachment(&self, id: AttachmentId) -> Attachment {
        let attachment = &self.cinder.attachments[&id];
        let info = attachment.address.as_ref().map_or(Value::Null, |at| self.connection_info(at));
        Attachment::new(summary(id, attachment), Some(AccessMode::Rw), Secret::new(info))
    }

    fn connection_info(&self, (iqn, lun): &(Iqn, u64)) -> Value {
        let portals = &self.storage.portals;
        let mut info = json!({
            "driver_volume_type": "iscsi",
            "target_iqn": iqn.as_str(),
            "target_portal": portals[0].to_string(),
            "target_lun": lun,
            "auth_method": "CHAP",
            "auth_username": "user",
            "auth_password": PASSWORD,
        });
        if !self.cinder.one_portal {
            let list = |text: &dyn Fn(usize) -> Value| (0..portals.len()).map(text).collect();
            info["target_iqns"] = list(&|_| json!(iqn.as_str()));
            info["target_portals"] = list(&|index| json!(portals[index].to_string()));
            info["target_luns"] = list(&|_| json!(lun));
        }
        info
    }

    pub(super) fn set_status(&mut self, volume: VolumeId, status: &str) {
        if let Some(volume) = self.cinder.volumes.get_mut(&volume) {
            status.clone_into(&mut volume.status);
        }
    }

    pub(super) fn reserve(
        &mut self,
        volume: VolumeId,
        instance: Option<Uuid>,
        ours: bool,
    ) -> Result<AttachmentId, &'static str> {
        let Some(known) = self.cinder.volumes.get(&volume) else { return Err("no such volume") };
        let shared = known.multiattach && known.status == "in-use";
        let again =
            instance.is_some() && self.cinder.of(volume).any(|found| found.instance == instance);
        if known.status != "available" && !shared && !again {
            return Err("Invalid volume: status must be available or downloading");
        }
        if known.status == "available" {
            self.set_status(volume, "reserved");
        }
        let status = AttachmentStatus::Reserved;
        let attachment = SimAttachment { volume, status, ours, instance, address: None };
        Ok(self.cinder.new_attachment(attachment))
    }

    pub(super) fn connect(&mut self, id: AttachmentId) {
        let Some(known) = self.cinder.attachments.get(&id).cloned() else { return };
        let address = self.storage.export(known.volume);
        if known.ours {
            self.storage.granted.insert(known.volume);
            self.cinder.addresses.entry(known.volume).or_default().insert(address.clone());
        }
        if let Some(attachment) = self.cinder.attachments.get_mut(&id) {
            attachment.address = Some(address);
            attachment.status = AttachmentStatus::Attaching;
        }
        self.set_status(known.volume, "attaching");
    }

    pub(super) fn delete_attachment(&mut self, id: AttachmentId) {
        let Some(gone) = self.cinder.attachments.remove(&id) else { return };
        let volume = gone.volume;
        let left: Vec<SimAttachment> = self.cinder.of(volume).cloned().collect();
        if left.iter().all(|attachment| attachment.address.is_none()) {
            self.storage.withdraw(volume);
        } else if !left.iter().any(|attachment| attachment.ours && attachment.address.is_some()) {
            self.storage.granted.remove(&volume);
        }
        if left.is_empty() {
            self.set_status(volume, "available");
        }
        if let Some((iqn, lun)) = gone.address.filter(|at| !self.storage.exports.contains_key(at)) {
            // A disk that the kernel couldn't make till now never comes.
            self.kernel
                .disks
                .retain(|d| d.appears_in < u32::MAX || d.iqn != iqn || d.hctl.lun != lun);
        }
        self.kernel.refresh_sessions(&self.storage);
        self.event();
    }
}
