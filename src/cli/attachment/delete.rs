use std::io::{self, IsTerminal as _};

use clap::Args;
use serde_json::json;

use super::{Session, ids, node, wait::Wait};
use crate::{
    cinder::{AttachmentSummary, Deleted},
    cli::{exit::Failure, output},
    model::AttachmentId,
};

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// The attachment's id
    #[arg(value_name = "ID", add = ids::completer())]
    id: AttachmentId,

    /// Delete it even though a device of it is connected on this node
    #[arg(short, long)]
    yes: bool,

    #[command(flatten)]
    wait: Wait,
}

impl Delete {
    pub(super) async fn run(&self, session: &Session<'_>) -> Result<(), Failure> {
        let id = self.id;
        let client = session.client()?;
        if !self.yes {
            let warnings = node::why_not_delete(session.options, &client, id).await?;
            if !warnings.is_empty() {
                ask(&warnings, id).await?;
            }
        }
        let deleted = client.delete(id).await?;
        self.wait.for_end(&client, id).await?;
        let (was_there, remaining) = match &deleted {
            Deleted::Deleted { remaining } => (true, remaining.as_slice()),
            Deleted::AlreadyGone => (false, &[][..]),
        };
        let rest: Vec<_> = remaining.iter().map(as_json).collect();
        let value = json!({"id": id, "deleted": was_there, "remaining": rest});
        Ok(output::print(session.format, &value, || as_text(id, was_there, remaining))?)
    }
}

fn as_json(left: &AttachmentSummary) -> serde_json::Value {
    json!({
        "id": left.id, "status": left.status.name(), "volume_id": left.volume_id, "instance": left.instance,
    })
}

fn as_text(id: AttachmentId, was_there: bool, remaining: &[AttachmentSummary]) -> String {
    if !was_there {
        return format!("attachment {id} is not there (or not this project's); nothing to do");
    }
    if remaining.is_empty() {
        return format!("deleted attachment {id}; no other one shares its connection");
    }
    let rows = remaining.iter().map(|left| {
        let instance = left.instance.clone().unwrap_or_else(|| "-".to_owned());
        [left.id.to_string(), left.status.to_string(), left.volume_id.to_string(), instance]
    });
    let table = output::table(["ID", "STATUS", "VOLUME ID", "INSTANCE"], rows);
    format!("deleted attachment {id}; these share its connection and remain:\n{table}")
}

/// Goes on only where somebody says so.
async fn ask(warnings: &[String], id: AttachmentId) -> Result<(), Failure> {
    let why = warnings.join("; ");
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::Refused(format!(
            "attachment {id} is not deleted: {why}. Detach the volume first (attachd detach VOLUME), or give --yes"
        )));
    }
    output::say(&format!("{why}."));
    output::say(&format!(
        "Delete attachment {id} all the same? Another volume may get its place. [y/N]"
    ));
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    let answer = answer.await.map_err(io::Error::other)??;
    if is_yes(&answer) {
        return Ok(());
    }
    Err(Failure::Refused(format!("attachment {id} is not deleted")))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_yes_is_one() {
        for (answer, expected) in [
            ("y\n", true),
            ("Yes\n", true),
            ("", false),
            ("\n", false),
            ("n\n", false),
            ("yellow\n", false),
        ] {
            assert_eq!(is_yes(answer), expected, "{answer:?}");
        }
    }
}
