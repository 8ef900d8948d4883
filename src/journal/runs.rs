//! Lines as runs: what belongs together, and where the time went. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::{Entry, Line};
use crate::model::VolumeId;

/// What the journal knows of a volume, or of a request.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// By their begin.
    pub runs: Vec<Run>,
    /// Lines that could not be written: the disk was slow or full.
    pub lost_lines: u64,
    /// Lines that can't be understood: a crash cut them off.
    pub broken_lines: u64,
    /// Lines of a newer attachd.
    pub newer_lines: u64,
}

/// One run of the engine for a volume.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// The volume.
    #[serde(rename = "volumeID")]
    pub volume: VolumeId,
    /// Its name in the journal.
    pub run: String,
    /// Where its time went.
    pub spent: Spent,
    /// What was done, in its order; the first line says who wanted what, unless it was kept no longer.
    pub lines: Vec<Line>,
}

/// Where the time of a run went. What went on at the same time counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spent {
    /// The whole run, as far as it is told.
    pub all_ms: u64,
    /// In steps.
    pub steps_ms: u64,
    /// For programs and multipathd's answers, in steps and between.
    pub commands_ms: u64,
    /// For Cinder's and Keystone's answers.
    pub cloud_ms: u64,
    /// For locks, the kernel and multipathd, where there was nothing else to do.
    pub waits_ms: u64,
    /// In neither steps nor waits: looking at the node, and asking Cinder how it stands.
    pub looks_ms: u64,
}

/// A line with what it had to do with, for people.
#[derive(Debug)]
pub struct Item<'a> {
    /// The line; for a step its begin, unless only its end was kept.
    pub line: &'a Line,
    /// When it began, since the run began.
    pub at_ms: u64,
    /// How long it took; none where nobody knows.
    pub took_ms: Option<u64>,
    /// Whether it ended well; a step without an end did not.
    pub ok: bool,
    /// What was done within it.
    pub within: Vec<Item<'a>>,
}

impl History {
    /// Reads what a volume's files hold.
    pub fn of(volume: VolumeId, text: &[u8]) -> Self {
        let mut history = Self::default();
        let mut runs: BTreeMap<String, Vec<Line>> = BTreeMap::new();
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Line>(line) {
                Ok(Line { entry: Entry::Lost { lines }, .. }) => {
                    history.lost_lines = history.lost_lines.saturating_add(lines);
                }
                Ok(Line { entry: Entry::Newer, .. }) => history.newer_lines += 1,
                Ok(line) => match line.run.clone() {
                    Some(run) => runs.entry(run).or_default().push(line),
                    None => history.newer_lines += 1,
                },
                Err(_) => history.broken_lines += 1,
            }
        }
        history.runs = runs.into_iter().map(|(run, lines)| Run::new(volume, run, lines)).collect();
        history.in_order();
        history
    }

    /// Of several volumes what one request did.
    pub fn of_request(request: &str, all: impl IntoIterator<Item = Self>) -> Self {
        let mut history = Self::default();
        for mut other in all {
            other.runs.retain(|run| run.request() == Some(request));
            if !other.runs.is_empty() {
                history.add(other);
            }
        }
        history
    }

    fn add(&mut self, other: Self) {
        self.lost_lines = self.lost_lines.saturating_add(other.lost_lines);
        self.broken_lines += other.broken_lines;
        self.newer_lines += other.newer_lines;
        self.runs.extend(other.runs);
        self.in_order();
    }

    fn in_order(&mut self) {
        self.runs.sort_by(|a, b| (a.began_at(), &a.run).cmp(&(b.began_at(), &b.run)));
    }
}

impl Run {
    fn new(volume: VolumeId, run: String, lines: Vec<Line>) -> Self {
        let mut all = Self { volume, run, spent: Spent::default(), lines };
        all.spent = all.spent();
        all
    }

    /// When it began, as far as it is told.
    pub fn began_at(&self) -> Option<Timestamp> {
        self.lines.first().map(|line| line.at)
    }

    /// The request's name, if it was one.
    pub fn request(&self) -> Option<&str> {
        self.lines.iter().find_map(|line| match &line.entry {
            Entry::Began { request, .. } => request.as_deref(),
            _ => None,
        })
    }

    /// What it did, by its begin; steps with what was done within them.
    pub fn items(&self) -> Vec<Item<'_>> {
        let mut items: Vec<Item<'_>> = Vec::new();
        let mut under_way = None;
        for line in &self.lines {
            let took = took(&line.entry);
            let item = |ok| Item {
                line,
                at_ms: self.since_begin(line).saturating_sub(took.unwrap_or_default()),
                took_ms: took,
                ok,
                within: Vec::new(),
            };
            match &line.entry {
                Entry::StepBegan { step, .. } => {
                    under_way = Some((items.len(), step));
                    items.push(item(false));
                }
                Entry::StepEnded { step, ok, ms } => match under_way.take() {
                    Some((at, begun)) if begun == step => {
                        items[at].ok = *ok;
                        items[at].took_ms = Some(*ms);
                    }
                    _ => items.push(item(*ok)),
                },
                Entry::Command { exit, .. } => {
                    let ok = exit.as_deref() == Some("exit code 0");
                    place(&mut items, under_way, item(ok));
                }
                Entry::Multipathd { refusal, .. } => {
                    place(&mut items, under_way, item(refusal.is_none()));
                }
                Entry::Http { status, .. } => {
                    let ok = status.is_some_and(|status| (200..300).contains(&status));
                    place(&mut items, under_way, item(ok));
                }
                Entry::Waited { .. } => place(&mut items, under_way, item(true)),
                Entry::Note { .. } => place(&mut items, under_way, item(false)),
                Entry::Began { .. } | Entry::Ended { .. } | Entry::Lost { .. } | Entry::Newer => {}
            }
        }
        for item in &mut items {
            item.within.sort_by_key(|inner| inner.at_ms);
        }
        items.sort_by_key(|item| item.at_ms);
        items
    }

    fn since_begin(&self, line: &Line) -> u64 {
        let began = self.began_at().unwrap_or(line.at);
        // The clock may have been set back in between.
        u64::try_from(line.at.as_millisecond() - began.as_millisecond()).unwrap_or(0)
    }

    fn spent(&self) -> Spent {
        let sum = |counts: fn(&Entry) -> bool| {
            let ends = self.lines.iter().filter(|line| counts(&line.entry));
            let spans = ends.map(|line| {
                let end = self.since_begin(line);
                (end.saturating_sub(took(&line.entry).unwrap_or_default()), end)
            });
            together(spans.collect())
        };
        let told = self.lines.last().map_or(0, |line| self.since_begin(line));
        let ended = self.lines.iter().find_map(|line| match line.entry {
            Entry::Ended { ms, .. } => Some(ms),
            _ => None,
        });
        let all_ms = ended.unwrap_or_default().max(told);
        let busy = sum(|entry| matches!(entry, Entry::StepEnded { .. } | Entry::Waited { .. }));
        Spent {
            all_ms,
            looks_ms: all_ms.saturating_sub(busy),
            steps_ms: sum(|entry| matches!(entry, Entry::StepEnded { .. })),
            commands_ms: sum(|entry| {
                matches!(entry, Entry::Command { .. } | Entry::Multipathd { .. })
            }),
            cloud_ms: sum(|entry| matches!(entry, Entry::Http { .. })),
            waits_ms: sum(|entry| matches!(entry, Entry::Waited { .. })),
        }
    }
}

/// Puts an item into the step that is under way.
fn place<'a>(items: &mut Vec<Item<'a>>, under_way: Option<(usize, &String)>, item: Item<'a>) {
    match under_way.and_then(|(at, _)| items.get_mut(at)) {
        Some(step) => step.within.push(item),
        None => items.push(item),
    }
}

fn took(entry: &Entry) -> Option<u64> {
    match entry {
        Entry::StepEnded { ms, .. }
        | Entry::Command { ms, .. }
        | Entry::Multipathd { ms, .. }
        | Entry::Http { ms, .. }
        | Entry::Waited { ms, .. }
        | Entry::Ended { ms, .. } => Some(*ms),
        Entry::Began { .. }
        | Entry::StepBegan { .. }
        | Entry::Note { .. }
        | Entry::Lost { .. }
        | Entry::Newer => None,
    }
}

/// How long any of these spans of time lasted.
fn together(mut spans: Vec<(u64, u64)>) -> u64 {
    spans.sort_unstable();
    let (mut sum, mut until) = (0, 0);
    for (begin, end) in spans {
        sum += end.saturating_sub(begin.max(until));
        until = until.max(end);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> VolumeId {
        uuid::Uuid::nil().into()
    }

    fn lines(entries: &[(i64, &str, Entry)]) -> String {
        let text = entries.iter().map(|(ms, run, entry)| {
            let at = Timestamp::from_millisecond(1_795_000_000_000 + ms).unwrap();
            let line = Line { at, run: Some((*run).to_owned()), entry: entry.clone() };
            serde_json::to_string(&line).unwrap() + "\n"
        });
        text.collect()
    }

    fn began(request: Option<&str>) -> Entry {
        Entry::Began {
            doing: "attach".to_owned(),
            origin: "somebody".to_owned(),
            request: request.map(str::to_owned),
            pid: 1,
            version: "1".to_owned(),
        }
    }

    fn step_began(step: &str) -> Entry {
        Entry::StepBegan { step: step.to_owned(), why: "so".to_owned() }
    }

    fn step_ended(step: &str, ms: u64) -> Entry {
        Entry::StepEnded { step: step.to_owned(), ms, ok: true }
    }

    fn command(ms: u64) -> Entry {
        let exit = Some("exit code 0".to_owned());
        Entry::Command { command: "blkid".to_owned(), exit, said: None, ms }
    }

    #[test]
    fn lines_of_runs_at_once_are_told_apart_and_what_a_step_did_stands_within_it() {
        let text = lines(&[
            (0, "a", began(None)),
            (5, "b", began(Some("db"))),
            (10, "a", step_began("one")),
            (20, "b", step_began("two")),
            (40, "a", command(25)),
            (50, "a", step_ended("one", 40)),
            (55, "a", Entry::Waited { what: "it".to_owned(), ms: 5 }),
        ]);
        let history = History::of(volume(), text.as_bytes());
        let [a, b] = &history.runs[..] else { panic!("{history:?}") };
        assert_eq!((a.request(), b.request()), (None, Some("db")));
        let items = a.items();
        assert_eq!((items.len(), items[0].within.len()), (2, 1));
        assert_eq!((items[0].at_ms, items[0].took_ms, items[0].ok), (10, Some(40), true));
        assert_eq!((items[0].within[0].at_ms, items[1].at_ms), (15, 50));
        // Under way when its attachd ended.
        assert_eq!((b.items()[0].took_ms, b.items()[0].ok), (None, false));
    }

    #[test]
    fn what_goes_on_at_the_same_time_counts_once() {
        let text = lines(&[
            (0, "a", began(None)),
            (100, "a", step_began("one")),
            (900, "a", command(700)),
            (1000, "a", command(800)),
            (1100, "a", step_ended("one", 1000)),
            (1300, "a", Entry::Waited { what: "it".to_owned(), ms: 150 }),
            (2000, "a", Entry::Ended { outcome: "Attached".to_owned(), error: None, ms: 2000 }),
        ]);
        let spent = History::of(volume(), text.as_bytes()).runs[0].spent;
        assert_eq!((spent.all_ms, spent.steps_ms, spent.waits_ms), (2000, 1000, 150));
        assert_eq!((spent.commands_ms, spent.cloud_ms, spent.looks_ms), (800, 0, 850));
    }

    #[test]
    fn torn_lines_newer_lines_and_fields_that_nobody_knows_hide_nothing_else() {
        let whole = lines(&[(0, "a", began(None)), (9, "a", step_began("one"))]);
        let (first, second) = whole.split_once('\n').unwrap();
        let more = first.replace("\"pid\":1", "\"pid\":1,\"colour\":\"blue\"");
        let newer = r#"{"at":"2026-11-22T18:00:00Z","run":"a","kind":"sung","song":"x"}"#;
        let lost = r#"{"at":"2026-11-22T18:00:00Z","kind":"lost","lines":7}"#;
        let torn = &second[..second.len() / 2];
        let text = format!("{torn}\n{more}\n\0\0\0\n{newer}\n{lost}\nno JSON\n{second}");
        let history = History::of(volume(), text.as_bytes());
        assert_eq!((history.broken_lines, history.newer_lines, history.lost_lines), (3, 1, 7));
        assert_eq!(history.runs.len(), 1);
        assert_eq!(history.runs[0].lines.len(), 2);
    }

    #[test]
    fn of_a_request_only_its_own_runs_are_told() {
        let text = lines(&[(0, "a", began(Some("db"))), (5, "b", began(Some("web")))]);
        let all = || [History::of(volume(), text.as_bytes())];
        assert_eq!(History::of_request("db", all()).runs.len(), 1);
        assert_eq!(History::of_request("no", all()).runs.len(), 0);
    }
}
