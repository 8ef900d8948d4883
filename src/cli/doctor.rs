use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use clap::{
    Args,
    builder::styling::{AnsiColor, Style},
};

use super::{Format, context, exit::Failure, output};
use crate::{
    config::Options,
    doctor::{self, CHECKS, Check, CloudLook, Mend, Node, Report, Verdict},
};

/// Cinder must answer within the time that a check may take.
const CINDER: Duration = Duration::from_secs(4);

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Say what a check looks at, why it matters, and what it finds now
    #[arg(long, value_name = "ID", value_parser = check)]
    explain: Option<&'static Check>,

    /// Do what is harmless of what would mend it, after saying what that is: load a module, start a
    /// service, keep others out of attachd's own files
    #[arg(long)]
    fix: bool,

    /// Do it without asking
    #[arg(short, long, requires = "fix")]
    yes: bool,
}

fn check(id: &str) -> Result<&'static Check, String> {
    CHECKS.into_iter().find(|check| check.id == id).ok_or_else(|| {
        let ids: Vec<&str> = CHECKS.iter().map(|check| check.id).collect();
        format!("there is no such check; there are {}", ids.join(", "))
    })
}

impl Doctor {
    pub(super) async fn run(&self, options: &Options, format: Format) -> Result<(), Failure> {
        let node = context::node(options);
        let mut report = examine(options, &node).await;
        if let Some(check) = self.explain {
            report.checks.retain(|examined| examined.check == check);
            output::print_styled(format, &report, || explained(&report))?;
            return verdict(&report);
        }
        if self.fix
            && let Ok(node) = &node
            && self.repair(node, &report).await?
        {
            report = examine(options, &self::context::node(options)).await;
        }
        output::print_styled(format, &report, || table(&report))?;
        verdict(&report)
    }

    /// Says what it will do and does it; whether it did anything.
    async fn repair(&self, node: &Node, report: &Report) -> Result<bool, Failure> {
        let repairs = report.repairs();
        if repairs.is_empty() {
            output::say("There is nothing that --fix may mend.");
            return Ok(false);
        }
        output::say("To mend what is harmless to mend, attachd will run:");
        for repair in &repairs {
            output::say(&format!("  {repair}"));
        }
        if !self.yes && !agreed()? {
            output::say("Nothing was changed. Give --yes to do it without being asked.");
            return Ok(false);
        }
        for repair in &repairs {
            match node.repair(repair).await {
                Ok(()) => output::say(&format!("✓ {repair}")),
                Err(error) => output::say(&format!("✗ {repair}: {error}")),
            }
        }
        Ok(true)
    }
}

fn verdict(report: &Report) -> Result<(), Failure> {
    match report.worst() {
        Verdict::LeftOut | Verdict::Ok => Ok(()),
        worst => Err(Failure::Found(worst)),
    }
}

/// Asks the person at the terminal; without one the answer is no.
fn agreed() -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let _ = write!(anstream::stderr().lock(), "Do it? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

pub(super) async fn examine(options: &Options, node: &Result<Node, Failure>) -> Report {
    let cloud = match context::client_for_a_look(options, CINDER) {
        Ok(client) => CloudLook::by(client),
        Err(Failure::Cloud(error)) => CloudLook::of_settings(&error),
        Err(failure) => CloudLook::Unusable(failure.to_string()),
    };
    let cluster = context::kubernetes_if_any().await;
    let hidden = node.as_ref().err().map(ToString::to_string).unwrap_or_default();
    doctor::examine(node.as_ref().map_err(|_| hidden.as_str()), cloud, cluster).await
}

const fn style(verdict: Verdict) -> Style {
    let colour = match verdict {
        Verdict::LeftOut => AnsiColor::BrightBlack,
        Verdict::Ok => AnsiColor::Green,
        Verdict::Warning | Verdict::Unknown => AnsiColor::Yellow,
        Verdict::Failed => AnsiColor::Red,
    };
    Style::new().fg_color(Some(clap::builder::styling::Color::Ansi(colour)))
}

pub(super) fn table(report: &Report) -> String {
    let mut lines = Vec::new();
    for examined in &report.checks {
        let (name, finding) = (examined.finding.verdict.name(), &examined.finding);
        let head = format!("{name:8}  {:20}  ", examined.check.id);
        let rest = " ".repeat(head.len());
        let line = output::wrapped(&head, &rest, &finding.saw.join("; "));
        let style = style(finding.verdict);
        lines.push(line.replacen(name, &format!("{style}{name}{style:#}"), 1));
        if finding.verdict > Verdict::Ok {
            lines.extend(mends(&finding.mends, "          "));
        }
    }
    let count = |verdict| report.count(verdict);
    lines.push(format!(
        "{} checks: {} ok, {} left out, {} warnings, {} unknown, {} failed",
        report.checks.len(),
        count(Verdict::Ok),
        count(Verdict::LeftOut),
        count(Verdict::Warning),
        count(Verdict::Unknown),
        count(Verdict::Failed)
    ));
    if report.worst() > Verdict::Ok {
        lines.push("Why it matters: attachd doctor --explain ID".to_owned());
    }
    lines.join("\n")
}

/// What mends it, a command as it is, never broken, so that it can be copied.
fn mends(mends: &[Mend], indent: &str) -> Vec<String> {
    let line = |mend: &Mend| match mend {
        Mend::Repair(repair) => format!("{indent}run:  {repair}   (--fix does it)"),
        Mend::Command(command) => format!("{indent}run:  {command}"),
        Mend::Advice(advice) => {
            output::wrapped(&format!("{indent}do:   "), &format!("{indent}      "), advice)
        }
    };
    mends.iter().map(line).collect()
}

fn explained(report: &Report) -> String {
    let mut lines = Vec::new();
    for examined in &report.checks {
        let (check, finding) = (examined.check, &examined.finding);
        let style = style(finding.verdict);
        lines.push(format!("{}: {style}{}{style:#}", check.id, finding.verdict.name()));
        let saw = finding.saw.join("; ");
        for (name, text) in [("looks at", check.looks_at), ("why", check.why), ("saw", &saw)] {
            lines.push(output::wrapped(&format!("  {name:10}"), "            ", text));
        }
        lines.extend(mends(&finding.mends, "  "));
    }
    lines.join("\n")
}
