//! Attachment ids for a shell's completion.

use std::{ffi::OsStr, time::Duration};

use clap::Parser as _;
use clap_complete::{ArgValueCompleter, CompletionCandidate};
use tokio::{runtime, time::timeout};

use super::super::{Cli, context};
use crate::cinder::{AttachmentSummary, ListQuery};

/// Nobody waits longer for a Tab.
const LIMIT: Duration = Duration::from_secs(3);
const MOST: usize = 200;

pub(super) fn completer() -> ArgValueCompleter {
    ArgValueCompleter::new(candidates)
}

/// What begins like it, with status and volume beside it. Whatever goes wrong, there is nothing to choose
/// from: an error would land in the middle of what is being typed.
fn candidates(current: &OsStr) -> Vec<CompletionCandidate> {
    let begun = current.to_string_lossy();
    let known = listed().unwrap_or_default();
    let fitting = known.into_iter().filter(|item| item.id.to_string().starts_with(&*begun));
    fitting
        .map(|item| {
            let help = format!("{}, volume {}", item.status, item.volume_id);
            CompletionCandidate::new(item.id.to_string()).help(Some(help.into()))
        })
        .collect()
}

fn listed() -> Option<Vec<AttachmentSummary>> {
    // The options as the environment gives them: what is typed so far can't be parsed yet.
    let cli = Cli::try_parse_from(["attachd", "attachment", "list"]).ok()?;
    let client = context::client(&cli.options).ok()?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let query = ListQuery { limit: Some(MOST), ..ListQuery::default() };
    runtime.block_on(async { timeout(LIMIT, client.list(&query)).await.ok()?.ok() })
}
