use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, Write as _},
    path::Path,
};

use clap::{
    Args,
    builder::styling::{AnsiColor, Style},
};

use super::{Format, exit::Failure, output};
use crate::{
    config::Options,
    journal::{Entry, Files, History, Item, Limits, Line, Run},
    model::VolumeId,
};

const WIDTH: usize = 80;

/// Where the text of a line begins, after the two times.
const TEXT: usize = 20;

/// How many names are offered where one is unknown.
const OFFERED: usize = 10;

const BOLD: Style = Style::new().bold();
const GOOD: Style =
    Style::new().bold().fg_color(Some(clap::builder::styling::Color::Ansi(AnsiColor::Green)));
const BAD: Style =
    Style::new().bold().fg_color(Some(clap::builder::styling::Color::Ansi(AnsiColor::Red)));

#[derive(Debug, Args)]
pub(super) struct Trace {
    /// A volume's id, or a request's name as the daemon logs it
    #[arg(value_name = "REQUEST|VOLUME")]
    which: String,

    /// Only the last N runs
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    last: Option<usize>,
}

impl Trace {
    pub(super) async fn run(&self, options: &Options, format: Format) -> Result<(), Failure> {
        let files = Files::below(&options.state_dir, Limits::default());
        let directory = files.directory().to_owned();
        let which = self.which.clone();
        let reading = tokio::task::spawn_blocking(move || found(&files, &which));
        let unreadable = |error: io::Error| {
            let directory = directory.display();
            Failure::Other(format!("can't read the journal in {directory}: {error}; it is root's"))
        };
        let found = reading.await.map_err(io::Error::other).and_then(|found| found);
        let mut history = match found.map_err(unreadable)? {
            Found::History(history) => history,
            Found::Others(others) => return Err(unknown(&self.which, &directory, &others)),
        };
        let all = history.runs.len();
        let earlier = self.last.map_or(0, |last| all.saturating_sub(last));
        history.runs.drain(..earlier);
        match format {
            Format::Table | Format::Wide => {
                let text = draw(&history, earlier);
                anstream::stdout().lock().write_all(text.as_bytes())?;
            }
            Format::Json | Format::Yaml | Format::Value => {
                output::print(format, &history, String::new)?;
            }
        }
        Ok(())
    }
}

/// All that the journal has, for a person.
pub(super) fn told(options: &Options) -> io::Result<String> {
    let files = Files::below(&options.state_dir, Limits::default());
    let mut text = String::new();
    for volume in files.volumes()? {
        let _ = writeln!(text, "== volume {volume}\n");
        text.push_str(&draw(&History::of(volume, &files.read(volume)?), 0));
        text.push('\n');
    }
    Ok(text)
}

enum Found {
    History(History),
    /// What else the journal knows.
    Others(Vec<String>),
}

/// What the journal knows of the volume, or of the request of that name.
fn found(files: &Files, which: &str) -> io::Result<Found> {
    let volumes = files.volumes()?;
    if let Some(volume) = which.parse().ok().filter(|volume: &VolumeId| volumes.contains(volume)) {
        return Ok(Found::History(History::of(volume, &files.read(volume)?)));
    }
    let mut all = Vec::new();
    for volume in volumes {
        all.push((volume, History::of(volume, &files.read(volume)?)));
    }
    let requests = all.iter().flat_map(|(_, history)| &history.runs).filter_map(Run::request);
    let names: BTreeSet<String> = requests.map(str::to_owned).collect();
    let volumes: Vec<String> = all.iter().map(|(volume, _)| volume.to_string()).collect();
    let history = History::of_request(which, all.into_iter().map(|(_, history)| history));
    Ok(if history.runs.is_empty() {
        Found::Others(names.into_iter().chain(volumes).collect())
    } else {
        Found::History(history)
    })
}

fn unknown(which: &str, directory: &Path, others: &[String]) -> Failure {
    let directory = directory.display();
    let mut text =
        format!("the journal of this node has nothing of a request or volume {which:?}; ");
    if others.is_empty() {
        let _ = write!(text, "there is nothing in {directory}: is this the state directory?");
    } else {
        let offered = others.iter().take(OFFERED).map(String::as_str).collect::<Vec<_>>();
        let _ = write!(text, "it knows {}", offered.join(", "));
        if others.len() > OFFERED {
            let _ = write!(text, " and {} more, in {directory}", others.len() - OFFERED);
        }
    }
    Failure::Refused(text)
}

fn draw(history: &History, earlier: usize) -> String {
    let mut text = String::new();
    if earlier > 0 {
        let _ = writeln!(text, "({earlier} earlier runs are not shown)\n");
    }
    for (number, run) in history.runs.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        draw_run(&mut text, run);
    }
    let missing = [
        (history.lost_lines, "lines are missing: the disk was slow or full"),
        (history.broken_lines, "lines can't be read: a crash cut them off"),
        (history.newer_lines, "lines are of a newer attachd"),
    ];
    for (count, what) in missing.iter().filter(|(count, _)| *count > 0) {
        let _ = writeln!(text, "\n! {count} {what}");
    }
    text
}

fn draw_run(text: &mut String, run: &Run) {
    let begin = run.lines.iter().find_map(|line| match &line.entry {
        Entry::Began { doing, origin, pid, .. } => Some((doing, origin, *pid)),
        _ => None,
    });
    let end = run.lines.iter().find_map(|line| match &line.entry {
        Entry::Ended { outcome, error, .. } => Some((outcome, error.as_ref())),
        _ => None,
    });
    let doing = begin.map_or("a run", |(doing, ..)| doing);
    let volume = run.volume;
    let (style, outcome) = match end {
        Some((outcome, None)) if outcome != "Abandoned" => (GOOD, plain(outcome)),
        Some((outcome, _)) => (BAD, plain(outcome)),
        None => (BAD, "no end".to_owned()),
    };
    let _ = writeln!(
        text,
        "{BOLD}{} of volume {volume}:{BOLD:#} {style}{outcome}{style:#}",
        plain(doing)
    );
    match begin {
        Some((_, origin, _)) => lines(text, "", &format!("asked for by {origin}")),
        None => lines(text, "", "its begin is kept no longer"),
    }
    draw_times(text, run);
    let items = run.items();
    for item in &items {
        draw_item(text, item, run.volume, 0);
    }
    let last = run.lines.last().map_or(0, |_| run.spent.all_ms);
    let why = match (end, begin) {
        (Some((_, Some(error))), _) => error.clone(),
        (Some((outcome, None)), _) if outcome == "Abandoned" => {
            "it was given up by attachd, which was told to end".to_owned()
        }
        (Some(_), _) if items.iter().any(is_step) => return,
        (Some(_), _) => "there was nothing to do".to_owned(),
        (None, begin) => {
            let who = begin.map(|(.., pid)| format!(" (process {pid})")).unwrap_or_default();
            format!("no end is recorded: it still goes on, or its attachd{who} was killed")
        }
    };
    let _ = write!(text, "{:>8} {:>9}  ", at(last), "");
    lines(text, &" ".repeat(TEXT), &shortened(&why, run.volume));
}

fn is_step(item: &Item<'_>) -> bool {
    matches!(item.line.entry, Entry::StepBegan { .. } | Entry::StepEnded { .. })
}

fn draw_times(text: &mut String, run: &Run) {
    let began =
        run.began_at().map_or(String::new(), |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string());
    let spent = &run.spent;
    let _ = writeln!(
        text,
        "{began}, {}: steps {}, waits {}, looks {}",
        seconds(spent.all_ms),
        seconds(spent.steps_ms),
        seconds(spent.waits_ms),
        seconds(spent.looks_ms),
    );
    let _ = writeln!(
        text,
        "of it for Cinder and Keystone {}, for commands {}",
        seconds(spent.cloud_ms),
        seconds(spent.commands_ms)
    );
}

fn draw_item(text: &mut String, item: &Item<'_>, volume: VolumeId, depth: usize) {
    let took = item.took_ms.map_or(String::new(), seconds);
    let _ = write!(text, "{:>8} {took:>9}  {}", at(item.at_ms), "  ".repeat(depth));
    let indent = " ".repeat(TEXT + 2 * depth);
    let (mark, what, more) = words(item);
    let what = shortened(&what, volume);
    if mark.is_empty() {
        lines(text, &indent, &what);
    } else {
        let _ = write!(text, "{BAD}{mark}{BAD:#} ");
        lines_after(text, &indent, mark.len() + 1, &what);
    }
    if let Some(more) = more {
        text.push_str(&indent);
        text.push_str("  ");
        lines(text, &format!("{indent}  "), &shortened(&more, volume));
    }
    for inner in &item.within {
        draw_item(text, inner, volume, depth + 1);
    }
}

/// The heading names the volume; the names of its targets are too long for a line with it.
fn shortened(text: &str, volume: VolumeId) -> String {
    text.replace(&volume.to_string(), "<volume>")
}

/// A mark, what was done, and more of it for a line of its own.
fn words(item: &Item<'_>) -> (&'static str, String, Option<String>) {
    let Line { entry, .. } = item.line;
    match entry {
        Entry::StepBegan { step, .. } | Entry::StepEnded { step, .. } => {
            let mark = match (item.ok, item.took_ms) {
                (true, _) => "",
                (false, Some(_)) => "failed:",
                (false, None) => "no end:",
            };
            (mark, step.clone(), None)
        }
        Entry::Command { command, exit, said, .. } => {
            let exit = exit.clone().unwrap_or_else(|| "no end".to_owned());
            match said {
                None => ("", format!("{command}: {exit}"), None),
                Some(said) => ("", command.clone(), Some(format!("{exit}: {said}"))),
            }
        }
        Entry::Multipathd { command, refusal, .. } => {
            ("", format!("multipathd: {command}"), refusal.clone())
        }
        Entry::Http { service, method, path, status, reason, request_id, .. } => {
            let answer = match (status, reason) {
                (Some(status), _) => format!("HTTP {status}"),
                (None, Some(reason)) => format!("no answer of {service}: {reason}"),
                (None, None) => format!("no answer of {service}"),
            };
            let id = request_id.as_ref().map(|id| format!(", {id}")).unwrap_or_default();
            ("", format!("{method} {}", below_project(path)), Some(format!("{answer}{id}")))
        }
        Entry::Waited { what, .. } => ("", format!("wait for {what}"), None),
        Entry::Note { text } => ("!", text.clone(), None),
        Entry::Began { .. } | Entry::Ended { .. } | Entry::Lost { .. } | Entry::Newer => {
            ("", String::new(), None)
        }
    }
}

/// What of a path tells one request from another.
fn below_project(path: &str) -> &str {
    let rest = path.split_once("/v3/").and_then(|(_, rest)| rest.split_once('/'));
    rest.map_or(path, |(_, rest)| rest).trim_start_matches('/')
}

fn at(ms: u64) -> String {
    format!("+{}.{:02}", ms / 1000, ms % 1000 / 10)
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

/// Writes text in lines of the terminal's width, of which the first is begun.
fn lines(text: &mut String, indent: &str, what: &str) {
    lines_after(text, indent, 0, what);
}

/// The same, where a mark of so many letters stands before the text.
fn lines_after(text: &mut String, indent: &str, mark: usize, what: &str) {
    let room = WIDTH - indent.len();
    let mut used = mark;
    for (number, word) in plain(what).split(' ').filter(|word| !word.is_empty()).enumerate() {
        let mut letters = word.chars().peekable();
        let length = word.chars().count();
        if number > 0 {
            if used + 1 + length <= room || (length > room && used + 1 < room) {
                text.push(' ');
                used += 1;
            } else {
                let _ = write!(text, "\n{indent}");
                used = 0;
            }
        }
        while letters.peek().is_some() {
            if used >= room {
                let _ = write!(text, "\n{indent}");
                used = 0;
            }
            text.extend(letters.next());
            used += 1;
        }
    }
    text.push('\n');
}

/// Text that does nothing to a terminal, whatever a program or a server put into it.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let history = History::of(uuid::Uuid::nil().into(), text.as_bytes());
        anstream::adapter::strip_str(&draw(&history, 0)).to_string()
    }

    #[test]
    fn a_run_is_shown_in_eighty_columns_with_what_failed_and_where_the_time_went() {
        let text = r#"{"at":"2026-11-22T18:00:00.000Z","run":"a","kind":"began","doing":"attach","origin":"the request \"db\" in the requests directory","request":"db","pid":7,"version":"0.1.0"}
{"at":"2026-11-22T18:00:00.110Z","run":"a","kind":"http","service":"Cinder","method":"GET","path":"/v3/c0ffee/volumes/7a29c609-53cc-4134-830f-6d08a0b9da91","status":200,"requestId":"req-3f2504e0-4f89-11d3-9a0c-0305e82c3301","ms":100}
{"at":"2026-11-22T18:00:00.120Z","run":"a","kind":"stepBegan","step":"log in to iqn.2010-10.org.openstack:volume-7a29c609-53cc-4134-830f-6d08a0b9da91 at 10.0.2.2:3260","why":"there is no session"}
{"at":"2026-11-22T18:00:01.520Z","run":"a","kind":"command","command":"iscsiadm -m node --login","exit":"exit code 24","said":"iscsiadm: \u001b[31mlogin failed","ms":1300}
{"at":"2026-11-22T18:00:01.620Z","run":"a","kind":"stepEnded","step":"log in to iqn.2010-10.org.openstack:volume-7a29c609-53cc-4134-830f-6d08a0b9da91 at 10.0.2.2:3260","ms":1500,"ok":false}
{"at":"2026-11-22T18:00:01.630Z","run":"a","kind":"ended","outcome":"NoPath","error":"no portal let this node in","ms":1630}
"#;
        assert_eq!(
            shown(text),
            r#"attach of volume 00000000-0000-0000-0000-000000000000: NoPath
asked for by the request "db" in the requests directory
2026-11-22 18:00:00Z, 1.63 s: steps 1.50 s, waits 0.00 s, looks 0.13 s
of it for Cinder and Keystone 0.10 s, for commands 1.30 s
   +0.01    0.10 s  GET volumes/7a29c609-53cc-4134-830f-6d08a0b9da91
                      HTTP 200, req-3f2504e0-4f89-11d3-9a0c-0305e82c3301
   +0.12    1.50 s  failed: log in to iqn.2010-10.org.openstack:volume-7a29c609-
                    53cc-4134-830f-6d08a0b9da91 at 10.0.2.2:3260
   +0.22    1.30 s    iscsiadm -m node --login
                        exit code 24: iscsiadm: [31mlogin failed
   +1.63            no portal let this node in
"#
        );
    }

    #[test]
    fn whatever_a_line_holds_the_screen_is_eighty_columns_wide() {
        for length in [0, 1, 59, 60, 61, 80, 500] {
            for word in ["x", "xx xxx ", "é", "\t\u{1b}[2J"] {
                let mut text = " ".repeat(TEXT);
                lines(&mut text, &" ".repeat(TEXT), &word.repeat(length));
                let widest = text.lines().map(|line| line.chars().count()).max();
                assert!(widest.is_some_and(|widest| widest <= WIDTH), "{text}");
                assert!(!text.contains('\u{1b}'));
            }
        }
    }

    #[test]
    fn a_run_that_did_not_end_says_where_it_stood() {
        let text = r#"{"at":"2026-11-22T18:00:00.000Z","run":"a","kind":"began","doing":"detach","origin":"the command line","pid":7,"version":"0.1.0"}
{"at":"2026-11-22T18:00:00.120Z","run":"a","kind":"stepBegan","step":"unmount /mnt/db","why":"it is mounted"}
"#;
        let shown = shown(text);
        for words in
            ["detach of volume", ": no end\n", "no end: unmount /mnt/db", "(process 7) was killed"]
        {
            assert!(shown.contains(words), "{words:?} is not in {shown}");
        }
    }
}
