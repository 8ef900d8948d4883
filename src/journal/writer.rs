use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{Entry, Files, Line};
use crate::model::VolumeId;

/// How many lines wait for the disk; one more is left out.
const QUEUE: usize = 1024;

/// How many are written at once.
const BATCH: usize = 256;

/// Writes lines on a thread of its own. Whoever hands one over never waits.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Option<SyncSender<Message>>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Message {
    volume: VolumeId,
    line: Vec<u8>,
    ends_a_run: bool,
}

/// What one write adds to a file.
#[derive(Default)]
struct Batch {
    lines: u64,
    text: Vec<u8>,
    ends_a_run: bool,
}

#[derive(Debug, Default)]
struct Counts {
    now: Mutex<Numbers>,
    written: Condvar,
}

#[derive(Debug, Default)]
struct Numbers {
    /// Handed over, and not yet tried.
    waiting: u64,
    /// Left out, and not yet told.
    lost: u64,
}

impl Counts {
    fn change<T>(&self, change: impl FnOnce(&mut Numbers) -> T) -> T {
        change(&mut self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Writer {
    pub(super) fn start(files: Files) -> Self {
        let counts = Arc::<Counts>::default();
        let (queue, lines) = sync_channel(QUEUE);
        let own = Arc::clone(&counts);
        let started = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || write_all(&files, &lines, &own));
        if let Err(error) = &started {
            tracing::warn!("no journal is kept: its thread can't be started: {error}");
        }
        Self { queue: started.is_ok().then_some(queue), counts }
    }

    pub(super) fn write(&self, volume: VolumeId, line: &Line) {
        let ends_a_run = matches!(line.entry, Entry::Ended { .. });
        let message = Message { volume, line: text_of(line), ends_a_run };
        self.counts.change(|now| now.waiting += 1);
        let taken = self.queue.as_ref().is_some_and(|queue| queue.try_send(message).is_ok());
        if !taken {
            self.counts.change(|now| {
                now.waiting -= 1;
                now.lost += 1;
            });
        }
    }

    /// Waits until everything was written, or tried, and no longer than this.
    pub(super) fn finish(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut now = self.counts.now.lock().unwrap_or_else(PoisonError::into_inner);
        while now.waiting > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.counts.written.wait_timeout(now, left);
            now = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Until nobody can hand over any more.
fn write_all(files: &Files, messages: &Receiver<Message>, counts: &Counts) {
    let mut well = true;
    while let Ok(first) = messages.recv() {
        let mut batches: BTreeMap<VolumeId, Batch> = BTreeMap::new();
        for message in std::iter::once(first).chain(messages.try_iter().take(BATCH)) {
            let batch = batches.entry(message.volume).or_default();
            batch.lines += 1;
            batch.text.extend(message.line);
            batch.ends_a_run |= message.ends_a_run;
        }
        for (volume, Batch { lines, mut text, ends_a_run }) in batches {
            let lost = counts.change(|now| std::mem::take(&mut now.lost));
            if lost > 0 {
                let told = Entry::Lost { lines: lost };
                text.extend(text_of(&Line { at: Timestamp::now(), run: None, entry: told }));
            }
            let written = files.append(volume, &text, ends_a_run);
            if let (true, Err(error)) = (well, &written) {
                let directory = files.directory().display();
                tracing::warn!(%directory, "the journal can't be written; attachd goes on without it: {error}");
            }
            well = written.is_ok();
            counts.change(|now| {
                now.waiting = now.waiting.saturating_sub(lines);
                if !well {
                    now.lost += lost + lines;
                }
            });
        }
        counts.written.notify_all();
    }
}

fn text_of(line: &Line) -> Vec<u8> {
    // A line is made of texts and numbers: it can always be written.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text
}
