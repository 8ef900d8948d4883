use clap::Args;
use serde_json::Value;

use super::{
    Session,
    connector::{ConnectorArgs, agree_on_mode},
    fields::FieldArgs,
    ids,
    wait::Wait,
};
use crate::{
    cinder::AttachmentStatus,
    cli::exit::Failure,
    model::{AccessMode, AttachmentId},
};

#[derive(Debug, Args)]
pub(super) struct Set {
    /// The attachment's id
    #[arg(value_name = "ID", add = ids::completer())]
    id: AttachmentId,

    /// The connector's mode: rw or ro
    #[arg(long, value_name = "MODE", help_heading = "Connector")]
    mode: Option<AccessMode>,

    #[command(flatten)]
    connector: ConnectorArgs,

    #[command(flatten)]
    wait: Wait,

    #[command(flatten)]
    fields: FieldArgs,
}

impl Set {
    pub(super) async fn run(&self, session: &Session<'_>) -> Result<(), Failure> {
        let Some(mut connector) = self.connector.resolve(session.options).await? else {
            let what = "set gives an attachment its connector: give --connector this-node, @FILE or its fields";
            return Err(Failure::Usage(what.to_owned()));
        };
        if let Some(mode) = self.mode {
            agree_on_mode(Some(mode), &connector)?;
            connector.put("mode", Value::from(mode.name()));
        }
        let client = session.client()?;
        let updated = client.update(self.id, &connector).await?;
        let shown = self.wait.for_status(&client, self.id, AttachmentStatus::Attaching).await?;
        self.fields.print(session.format, &shown.unwrap_or(updated))
    }
}
