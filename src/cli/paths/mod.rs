mod changes;

use std::{collections::BTreeMap, io, os::fd::AsFd as _, time::Duration};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    io::Interest,
    net::unix::pipe::Sender,
    sync::watch,
    time::{sleep, timeout},
};

use self::changes::{Change, PathView, SessionView, Way, changes};
use super::{
    Format, context,
    exit::Failure,
    inspect::{handle, look},
    output,
};
use crate::{
    attach::{Chain, Handle, Ledger, LedgerError},
    config::Options,
    host::{Host as _, LinuxHost},
};

/// The kernel says nothing where a session fails: multipathd does, once I/O has failed.
const FALLBACK: Duration = Duration::from_secs(5);

/// Events of one cause come in bursts.
const SETTLE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Paths {
    /// Only of what goes by this; what attachd inspect takes
    #[arg(value_name = "HANDLE", value_parser = handle)]
    handle: Option<Handle>,

    /// Go on, and tell paths that are cut and that return as it happens, a line each (-o json: an object a
    /// line), until stopped
    #[arg(short, long)]
    watch: bool,
}

/// What is printed once.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    paths: Vec<Line<'a>>,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    way: &'a Way,
    #[serde(flatten)]
    view: &'a PathView,
}

/// What happened to a path, as a line of `--watch -o json`.
#[derive(Debug, Serialize)]
struct Told<'a> {
    time: Timestamp,
    event: &'static str,
    #[serde(flatten)]
    line: Line<'a>,
}

type Views = BTreeMap<Way, PathView>;

impl Paths {
    pub(super) async fn run(&self, options: &Options, format: Format) -> Result<(), Failure> {
        let ledger = Ledger::open(&options.state_dir)?;
        let node = context::host_for_inspection(options)?;
        if !self.watch {
            let views = self.views(&ledger, &node).await?;
            let paths = views.iter().map(|(way, view)| Line { way, view }).collect();
            return Ok(output::print(format, &Shown { paths }, || table(&views))?);
        }
        match format {
            Format::Table | Format::Wide | Format::Json => {}
            Format::Yaml | Format::Value => {
                let what = "--watch prints lines: give it -o table or -o json";
                return Err(Failure::Usage(what.to_owned()));
            }
        }
        let mut stop = context::stop_signal()?;
        let unread = unread();
        tokio::select! {
            biased;
            Ok(_) = stop.wait_for(|stop| *stop) => Ok(()),
            () = unread => Ok(()),
            ended = self.watch(&ledger, &node, format == Format::Json) => ended,
        }
    }

    async fn watch(&self, ledger: &Ledger, node: &LinuxHost, json: bool) -> Result<(), Failure> {
        let mut events = node.events();
        events.mark_unchanged();
        let mut views = self.views(ledger, node).await?;
        if json {
            for (way, view) in &views {
                tell_json("state", way, view)?;
            }
        } else {
            output::write(&table(&views))?;
        }
        loop {
            next(&mut events).await;
            events.mark_unchanged();
            let now = match self.views(ledger, node).await {
                Ok(now) => now,
                Err(failure) => {
                    tracing::warn!("can't look at the paths: {failure}");
                    continue;
                }
            };
            for change in changes(&views, &now) {
                if json {
                    tell_json(change.word(), change.way, change.view())?;
                } else {
                    tell(&change)?;
                }
            }
            views = now;
        }
    }

    async fn views(&self, ledger: &Ledger, node: &LinuxHost) -> Result<Views, Failure> {
        let (inventory, _) = look(ledger, node, self.handle.as_ref()).await?;
        let mut views = Views::new();
        for chain in &inventory.attachments {
            views.extend(of_chain(ledger, node, chain).await?);
        }
        Ok(views)
    }
}

/// All paths as they are now, for a person.
pub(super) async fn told(options: &Options) -> Result<String, Failure> {
    let ledger = Ledger::open(&options.state_dir)?;
    let node = context::host_for_inspection(options)?;
    let all = Paths { handle: None, watch: false };
    Ok(table(&all.views(&ledger, &node).await?))
}

async fn of_chain(
    ledger: &Ledger,
    node: &LinuxHost,
    chain: &Chain,
) -> Result<Vec<(Way, PathView)>, Failure> {
    let hctls = chain.paths.iter().filter_map(|path| Some(path.disk.as_ref()?.hctl)).collect();
    let mut counters = node.io_counters(hctls).await?.into_iter();
    let mut views = Vec::new();
    for path in &chain.paths {
        let session = match &path.session {
            None => None,
            Some(session) => Some(SessionView {
                sid: session.sid,
                state: session.state,
                age_seconds: age(ledger, path).await?,
            }),
        };
        let in_map = |disk: &crate::model::ScsiDevice| {
            let mut members = chain.map.iter().flat_map(|map| &map.members);
            members.find(|member| member.device == disk.name)?.path_state.clone()
        };
        let disk = path.disk.as_ref();
        let way = Way { volume: chain.volume, target: path.target.clone(), lun: path.lun };
        views.push((
            way,
            PathView {
                session,
                disk: disk.map(|disk| disk.name.clone()),
                kernel: disk.map(|disk| disk.state),
                multipathd: disk.and_then(in_map),
                counters: disk.and_then(|_| counters.next().flatten()),
            },
        ));
    }
    Ok(views)
}

/// How old a session is: the kernel doesn't tell, so only of attachd's own.
async fn age(ledger: &Ledger, path: &crate::attach::PathChain) -> Result<Option<u64>, LedgerError> {
    if !path.own_session {
        return Ok(None);
    }
    Ok(ledger.logged_in_since(&path.target).await?.map(|age| age.as_secs()))
}

async fn next(events: &mut watch::Receiver<u64>) {
    match timeout(FALLBACK, events.changed()).await {
        Ok(Ok(())) => sleep(SETTLE).await,
        // Where no event comes any more, time alone tells.
        Ok(Err(_)) => sleep(FALLBACK).await,
        Err(_) => {}
    }
}

/// Ends when nobody reads stdout any more. A file has no reader: then never.
async fn unread() {
    let stdout =
        io::stdout().as_fd().try_clone_to_owned().and_then(Sender::from_owned_fd_unchecked);
    if let Ok(stdout) = stdout
        && stdout.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

fn tell_json(event: &'static str, way: &Way, view: &PathView) -> Result<(), Failure> {
    let told = Told { time: Timestamp::now(), event, line: Line { way, view } };
    let text = serde_json::to_string(&told).map_err(io::Error::from)?;
    Ok(output::write(&text)?)
}

fn tell(change: &Change<'_>) -> Result<(), Failure> {
    let time = Timestamp::now().strftime("%H:%M:%SZ").to_string();
    let first = format!("{time} {:<8} ", change.word());
    let rest = " ".repeat(first.chars().count());
    let (path, what) = change.words();
    let lines = [output::wrapped(&first, &rest, &path), output::wrapped(&rest, &rest, &what)];
    Ok(output::write(&lines.join("\n"))?)
}

fn table(views: &Views) -> String {
    let mut volumes: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (way, view) in views {
        volumes.entry(way.volume).or_default().push((way, view));
    }
    let mut lines = Vec::new();
    for (volume, views) in volumes {
        lines.push(format!("volume {volume}"));
        let header = [" PORTAL", "DISK", "PATH", "SESSION", "AGE", "I/O", "OPEN", "FAILED"];
        let rows = views.into_iter().map(|(way, view)| row(way, view));
        lines.push(output::table(header, rows));
    }
    if lines.is_empty() {
        lines.push("attachd holds no attachment on this node that goes by this".to_owned());
    }
    lines.join("\n")
}

fn row(way: &Way, view: &PathView) -> [String; 8] {
    let or_none = |text: Option<String>| text.unwrap_or("-".to_owned());
    let counted = view.counters;
    [
        format!(" {}", way.target.portal),
        or_none(view.disk.as_ref().map(ToString::to_string)),
        view.path_words(),
        view.session_words(),
        or_none(view.session.as_ref().and_then(|session| session.age_seconds).map(ago)),
        or_none(counted.map(|counted| counted.requested.to_string())),
        or_none(counted.map(|counted| counted.requested.saturating_sub(counted.done).to_string())),
        or_none(counted.map(|counted| counted.failed.to_string())),
    ]
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}
