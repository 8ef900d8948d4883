use clap::Args;
use serde_json::{Value, json};

use super::{Session, ids, wait::Wait};
use crate::{
    cinder::{AttachmentStatus, Microversion},
    cli::{exit::Failure, output},
    model::AttachmentId,
};

#[derive(Debug, Args)]
pub(super) struct Complete {
    /// The attachment's id
    #[arg(value_name = "ID", add = ids::completer())]
    id: AttachmentId,

    /// The body of the action, which is always empty: {} or null
    #[arg(long = "os-complete", value_name = "JSON", value_parser = empty)]
    body: Option<()>,

    #[command(flatten)]
    wait: Wait,
}

fn empty(text: &str) -> Result<(), String> {
    match serde_json::from_str(text) {
        Ok(Value::Null) => Ok(()),
        Ok(Value::Object(fields)) if fields.is_empty() => Ok(()),
        _ => Err("Cinder's os-complete takes nothing: {} or null".to_owned()),
    }
}

impl Complete {
    pub(super) async fn run(&self, session: &Session<'_>) -> Result<(), Failure> {
        let (id, version) = (self.id, session.version());
        if version < Microversion::COMPLETE {
            return Err(Failure::Usage(format!(
                "complete needs API {} and --os-volume-api-version says {version}; without it the volume works, but stays attaching in Cinder",
                Microversion::COMPLETE
            )));
        }
        let client = session.client()?;
        client.complete(id).await?;
        self.wait.for_status(&client, id, AttachmentStatus::Attached).await?;
        let value = json!({"id": id, "completed": true});
        Ok(output::print(session.format, &value, || format!("completed attachment {id}"))?)
    }
}
