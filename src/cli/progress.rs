use std::{
    io::{IsTerminal as _, stderr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;
use crate::attach::Progress;

/// Shows progress on stderr: a spinner for the step under way on a terminal, a plain line for each
/// finished step where stderr is piped.
pub(super) struct Reporter {
    spinner: Option<Mutex<ProgressBar>>,
    quiet: bool,
}

impl Reporter {
    pub(super) fn new(quiet: bool) -> Self {
        let spinner = (!quiet && stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            Mutex::new(bar)
        });
        Self { spinner, quiet }
    }

    pub(super) fn report(&self, progress: Progress) {
        // That data is lost is said in any case.
        if self.quiet && !matches!(progress, Progress::GivenUp { .. }) {
            return;
        }
        match progress {
            Progress::Lost => self.line("! the volume can't be used any more as it was"),
            Progress::Started { what, .. } => self.spin(what),
            Progress::Waiting { what } => {
                let what = format!("waiting for {what}");
                if self.spinner.is_some() { self.spin(what) } else { self.line(&what) }
            }
            Progress::Done { what, took, .. } => self.line(&format!("✓ {what}  {}", seconds(took))),
            Progress::Failed { what, took, .. } => {
                self.line(&format!("✗ {what}  {}", seconds(took)));
            }
            Progress::GivenUp { why } => {
                self.line(&format!("! what was not written to the volume is given up: {why}"));
            }
            Progress::Warning { what } => self.line(&format!("! {what}")),
        }
    }

    fn spin(&self, what: String) {
        if let Some(bar) = &self.spinner {
            let bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
            bar.reset_elapsed();
            bar.set_message(what);
            bar.enable_steady_tick(Duration::from_millis(100));
        }
    }

    pub(super) fn line(&self, text: &str) {
        match &self.spinner {
            Some(bar) => {
                bar.lock().unwrap_or_else(PoisonError::into_inner).suspend(|| output::say(text));
            }
            None => output::say(text),
        }
    }

    /// Takes the spinner away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.spinner {
            bar.lock().unwrap_or_else(PoisonError::into_inner).finish_and_clear();
        }
    }
}

pub(super) fn seconds(took: Duration) -> String {
    format!("{:.2} s", took.as_secs_f64())
}
