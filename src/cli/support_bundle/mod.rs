mod parts;
mod redact;

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use flate2::{Compression, write::GzEncoder};
use futures::future::join_all;
use jiff::Timestamp;

use self::{
    parts::{Part, parts},
    redact::Redactor,
};
use super::{context, exit::Failure, output};
use crate::config::Options;

/// A part that takes longer is left out, and its place says so.
const LIMIT: Duration = Duration::from_secs(30);
/// Of a longer part the end is kept: what happened last.
const LONGEST: usize = 8 << 20;

#[derive(Debug, Args)]
pub(super) struct SupportBundle {
    /// Write the archive to this file; by default to stdout, where that is no terminal
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl SupportBundle {
    pub(super) async fn run(&self, options: &Options) -> Result<(), Failure> {
        if self.file.is_none() && io::stdout().is_terminal() {
            let what = "an archive is nothing for a terminal: give --file FILE, or > FILE";
            return Err(Failure::Usage(what.to_owned()));
        }
        let root = options.host_root.clone();
        let redactor = tokio::task::spawn_blocking(move || Redactor::of_this_node(&root));
        let redactor = redactor.await.map_err(io::Error::other)?.and(context::secrets(options));
        let node = context::node(options);
        let gathered = join_all(parts(options, &node).into_iter().map(gathered)).await;
        let name = format!("attachd-support-{}", Timestamp::now().strftime("%Y%m%dT%H%M%SZ"));
        let clean = move || {
            let clean = |(name, text): (String, String)| (name, redactor.clean(bounded(&text)));
            gathered.into_iter().flatten().map(clean).collect::<Vec<_>>()
        };
        let files = tokio::task::spawn_blocking(clean).await.map_err(io::Error::other)?;
        match &self.file {
            Some(file) => {
                archive(&name, &files, private(file)?)?;
                output::say(&format!(
                    "{}: {} files. Secrets are taken out; look into it before you give it away.",
                    file.display(),
                    files.len()
                ));
            }
            None => archive(&name, &files, io::stdout().lock())?,
        }
        Ok(())
    }
}

async fn gathered(Part { names, texts }: Part<'_>) -> Vec<(String, String)> {
    let texts = tokio::time::timeout(LIMIT, texts).await.unwrap_or_else(|_| {
        let late = format!("not gathered: it took longer than {} s\n", LIMIT.as_secs());
        vec![late; names.len()]
    });
    // Colours are for terminals.
    let plain = texts.iter().map(|text| anstream::adapter::strip_str(text).to_string());
    names.into_iter().zip(plain).collect()
}

fn bounded(text: &str) -> &str {
    let mut from = text.len().saturating_sub(LONGEST);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// The node's addresses and names are nobody else's business.
fn private(path: &Path) -> io::Result<impl Write> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn archive(name: &str, files: &[(String, String)], to: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
    let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
    for (file, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("{name}/{file}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()
}
