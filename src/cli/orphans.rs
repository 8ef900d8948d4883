use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use super::{Format, context, exit::Failure, output, progress::Reporter};
use crate::{
    attach::{
        AttachError, Ledger,
        orphans::{Cleaned, Freed, Orphan, Orphans, Remedy, Scene},
    },
    config::Options,
};

#[derive(Debug, Args)]
pub(super) struct OrphansCommand {
    /// Take away what is safe to take: nothing that is mounted, held open or somebody else's, and nothing
    /// that attachd has no record of. Says what it will do, and what it leaves and why
    #[arg(long)]
    clean: bool,

    /// Say nothing on the way
    #[arg(short, long)]
    quiet: bool,
}

/// An orphan, and what became of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    #[serde(flatten)]
    orphan: &'a Orphan,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a Outcome>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Outcome {
    Cleaned,
    Left(String),
    Failed(String),
}

type Outcomes = BTreeMap<Remedy, Outcome>;

#[derive(Debug, Serialize)]
struct Report<'a> {
    orphans: Vec<Shown<'a>>,
    unknown: &'a [String],
}

impl OrphansCommand {
    pub(super) async fn run(&self, options: &Options, format: Format) -> Result<(), Failure> {
        let mut outcomes = Outcomes::new();
        let orphans = if self.clean {
            let (orphans, done) = self.clean(options).await?;
            outcomes = done;
            orphans
        } else {
            found(options).await?
        };
        let shown = |orphan| Shown { orphan, outcome: outcome(orphan, &outcomes) };
        let report = Report {
            orphans: orphans.orphans.iter().map(shown).collect(),
            unknown: &orphans.unknown,
        };
        match format {
            Format::Table | Format::Wide => output::write_marked(&words(&report))?,
            Format::Json | Format::Yaml | Format::Value => {
                output::print(format, &report, String::new)?;
            }
        }
        let is_gone = |shown: &Shown<'_>| shown.outcome == Some(&Outcome::Cleaned);
        if report.orphans.iter().all(is_gone) && report.unknown.is_empty() {
            Ok(())
        } else {
            Err(Failure::Unfit)
        }
    }

    async fn clean(&self, options: &Options) -> Result<(Orphans, Outcomes), Failure> {
        let engine = context::engine(options)?;
        let cinder = context::client(options)?;
        let stop = context::stop_signal()?;
        let scene = Scene::look(engine.ledger(), engine.host(), Some(&cinder)).await?;
        let orphans = Orphans::among(&scene);
        let reporter = Reporter::new(self.quiet);
        let report = |progress| reporter.report(progress);
        let mut outcomes = Outcomes::new();
        for remedy in orphans.remedies() {
            if !self.quiet {
                reporter.line(&format!("cleaning: {}", intent(remedy)));
            }
            let outcome = match engine.clean(remedy, &report, &stop).await {
                Ok(Cleaned::Gone) => Outcome::Cleaned,
                Ok(Cleaned::Left { because }) => Outcome::Left(because),
                Err(AttachError::Stopped { before }) => {
                    reporter.finish();
                    return Err(AttachError::Stopped { before }.into());
                }
                Err(error) => Outcome::Failed(error.chain()),
            };
            outcomes.insert(remedy.clone(), outcome);
        }
        reporter.finish();
        Ok((orphans, outcomes))
    }
}

async fn found(options: &Options) -> Result<Orphans, Failure> {
    let ledger = Ledger::open(&options.state_dir)?;
    let host = context::host_for_inspection(options)?;
    let cinder = context::client_if_any(options);
    Ok(Orphans::among(&Scene::look(&ledger, &host, cinder.as_ref()).await?))
}

/// What there is, for a person.
pub(super) async fn told(options: &Options) -> Result<String, Failure> {
    let orphans = found(options).await?;
    let shown = |orphan| Shown { orphan, outcome: None };
    let report =
        Report { orphans: orphans.orphans.iter().map(shown).collect(), unknown: &orphans.unknown };
    Ok(words(&report))
}

fn outcome<'a>(orphan: &Orphan, outcomes: &'a Outcomes) -> Option<&'a Outcome> {
    match &orphan.freed {
        Freed::ByCleaning(remedy) => outcomes.get(remedy),
        Freed::ByHand { .. } => None,
    }
}

fn intent(remedy: &Remedy) -> String {
    match remedy {
        Remedy::Detach(volume) => format!("detach volume {volume}, as far as it is attached"),
        Remedy::LogOut(target) => {
            format!(
                "end the session to {target}, if there is one, and remove attachd's node record"
            )
        }
    }
}

fn words(report: &Report<'_>) -> String {
    let mut lines = Vec::new();
    for Shown { orphan, outcome } in &report.orphans {
        lines.push(output::wrapped("", "  ", &orphan.what));
        let mut say = |label: &str, text: &str| {
            lines.push(output::wrapped(&format!("  {label:<5} "), "        ", text));
        };
        if let Some(of) = &orphan.of {
            say("of", of);
        }
        say("why", &orphan.why);
        match (&orphan.freed, outcome) {
            (Freed::ByCleaning(_), Some(Outcome::Cleaned)) => say("now", "gone"),
            (Freed::ByCleaning(_), Some(Outcome::Left(because))) => {
                say("left", &format!("{because}; ask again: attachd orphans"));
            }
            (Freed::ByCleaning(_), Some(Outcome::Failed(error))) => {
                say("left", &format!("it could not be cleaned: {error}"));
            }
            (Freed::ByCleaning(remedy), None) => say(
                "free",
                match remedy {
                    Remedy::Detach(_) => {
                        "attachd orphans --clean, which detaches what is there of it"
                    }
                    Remedy::LogOut(_) => "attachd orphans --clean",
                },
            ),
            (Freed::ByHand { because, how }, _) => {
                say("left", because);
                // A command on a line of its own, to be copied.
                if let Some((when, command)) = how.split_once(": ") {
                    say("free", &format!("{when}:"));
                    say("", command);
                } else {
                    say("free", how);
                }
            }
        }
    }
    for unknown in report.unknown {
        lines.push(output::wrapped("! not known: ", "  ", unknown));
    }
    if report.orphans.is_empty() {
        let nothing = "nothing of attachd's is left on this node without a use";
        let told = if report.unknown.is_empty() { "" } else { ", as far as could be told" };
        lines.insert(0, format!("{nothing}{told}"));
    }
    lines.join("\n")
}
