use clap::Args;

use super::{Session, fields::FieldArgs, ids};
use crate::{cli::exit::Failure, model::AttachmentId};

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The attachment's id
    #[arg(value_name = "ID", add = ids::completer())]
    id: AttachmentId,

    #[command(flatten)]
    fields: FieldArgs,
}

impl Show {
    pub(super) async fn run(&self, session: &Session<'_>) -> Result<(), Failure> {
        let attachment = session.client()?.show(self.id).await?;
        self.fields.print(session.format, &attachment)
    }
}
