use clap::{ArgGroup, Args};
use uuid::Uuid;

use super::{
    Session,
    connector::{ConnectorArgs, agree_on_mode},
    fields::FieldArgs,
    wait::Wait,
};
use crate::{
    cinder::{
        AttachmentStatus, CinderError, Client, ConnectorRef, ListQuery, Microversion, NewAttachment,
    },
    cli::{exit::Failure, output::say},
    model::{AccessMode, ConnectorFields, VolumeId},
};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("of").args(["volume", "volume_uuid"]).required(true)))]
pub(super) struct Create {
    /// The volume's id
    #[arg(value_name = "VOLUME")]
    volume: Option<VolumeId>,

    /// The volume's id
    #[arg(long, value_name = "UUID")]
    volume_uuid: Option<VolumeId>,

    /// What the volume is attached to, by Cinder's instance_uuid. Cinder then asks Nova before it lets a
    /// connected attachment go, unless the user holds the role service
    #[arg(long, visible_aliases = ["instance", "server"], value_name = "UUID")]
    instance_uuid: Option<Uuid>,

    /// rw or ro, from API 3.54 on; with null, or without it, the volume's own mode holds. Older clouds
    /// read the connector's: --connector mode=ro
    #[arg(long, value_name = "MODE", value_parser = mode)]
    mode: Option<Mode>,

    /// Attach at once; a connector alone says so, too
    #[arg(long, conflicts_with = "no_connect")]
    connect: bool,

    /// Only reserve
    #[arg(long)]
    no_connect: bool,

    #[command(flatten)]
    connector: ConnectorArgs,

    #[command(flatten)]
    wait: Wait,

    #[command(flatten)]
    fields: FieldArgs,
}

/// `--mode`, of which `null` means none.
#[derive(Debug, Clone, Copy)]
struct Mode(Option<AccessMode>);

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "null" => Ok(Mode(None)),
        text => text.parse().map(|mode| Mode(Some(mode))),
    }
}

impl Create {
    pub(super) async fn run(
        &self,
        session: &Session<'_>,
        version: Microversion,
    ) -> Result<(), Failure> {
        let volume = self.volume.or(self.volume_uuid);
        let volume = volume.ok_or_else(|| Failure::Usage("which volume?".to_owned()))?;
        let mode = self.mode.and_then(|Mode(mode)| mode);
        Self::check_mode(mode, version)?;
        let connector = self.connector.resolve(session.options).await?;
        self.check_connector(mode, connector.as_ref())?;
        let client = session.client()?.up_to(version);
        let new = NewAttachment {
            volume,
            instance: self.instance_uuid,
            mode,
            connector: connector.as_ref().map(ConnectorRef::from),
        };
        let created = match client.create_with(new).await {
            Ok(created) => created,
            Err(error) => {
                if !error.nothing_was_created() {
                    say_reservations(&client, &new).await;
                }
                return Err(error.into());
            }
        };
        let wanted = match connector {
            Some(_) => AttachmentStatus::Attaching,
            None => AttachmentStatus::Reserved,
        };
        let shown = self.wait.for_status(&client, created.summary.id, wanted).await?;
        self.fields.print(session.format, &shown.unwrap_or(created))
    }

    fn check_mode(mode: Option<AccessMode>, version: Microversion) -> Result<(), Failure> {
        match mode {
            Some(mode) if version < Microversion::MODE => Err(Failure::Usage(format!(
                "--mode {mode} needs API {} and this is {version}: leave it out, and give --connector mode={mode}, which older clouds read",
                Microversion::MODE
            ))),
            Some(_) | None => Ok(()),
        }
    }

    fn check_connector(
        &self,
        mode: Option<AccessMode>,
        connector: Option<&ConnectorFields>,
    ) -> Result<(), Failure> {
        let contradiction = match connector {
            None if self.connect => {
                "--connect needs a connector: give --connector this-node, or its fields"
            }
            Some(_) if self.no_connect => {
                "--no-connect and a connector contradict each other: leave one out"
            }
            Some(fields) => return agree_on_mode(mode, fields),
            None => return Ok(()),
        };
        Err(Failure::Usage(contradiction.to_owned()))
    }
}

/// What a creation may have left behind whose answer was a failure or never came.
async fn say_reservations(client: &Client, new: &NewAttachment<'_>) {
    let query = ListQuery { volume_id: Some(new.volume), ..ListQuery::default() };
    let instance = new.instance.map(|instance| instance.to_string());
    match client.list(&query).await {
        Ok(found) => {
            for left in found.iter().filter(|left| left.instance == instance) {
                say(&format!(
                    "attachment {} of the volume is {}: it may be what this left behind; if nobody else made it, free the volume with attachd attachment delete {}",
                    left.id, left.status, left.id
                ));
            }
        }
        Err(error) => say_unknown(new.volume, &error),
    }
}

fn say_unknown(volume: VolumeId, error: &CinderError) {
    say(&format!(
        "an attachment may have been left behind, and Cinder can't list them now ({error}): look with attachd attachment list --volume-id {volume}"
    ));
}
