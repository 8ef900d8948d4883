//! The command line. Thin: parse, call, print. stdout is data, stderr is talk.
#![allow(clippy::doc_markdown, reason = "these comments are texts that users read")]

mod attach;
mod attachment;
mod connector;
mod context;
mod detach;
mod doctor;
mod evacuate;
mod exit;
mod generate;
mod inspect;
mod listen;
mod orphans;
mod output;
mod paths;
mod plan;
mod progress;
mod resize;
mod run;
mod support_bundle;
mod trace;
mod tree;

use std::{process::ExitCode, time::Duration};

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::CompleteEnv;

pub use output::Format;

use crate::{
    config::Options,
    journal::{Journal, Limits},
};

/// How long the last lines of the journal may take to get to the disk.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Attaches OpenStack Cinder volumes to this Linux node, without Nova.
#[derive(Debug, Parser)]
#[command(name = "attachd", version, after_long_help = exit::HELP, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    options: Options,

    /// How to print the result
    #[arg(short, long, value_name = "FORMAT", default_value = "table", global = true)]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach a volume to this node and mount it
    Attach(attach::Attach),
    /// Unmount a volume and detach it from this node
    Detach(detach::Detach),
    /// Grow an attached volume that was extended in Cinder: its disks, its map, its file system
    ///
    /// The volume stays in use. Whoever attached it, the command grows it to the size that Cinder states,
    /// once all its paths show that size. It never shrinks anything.
    Resize(resize::Resize),
    /// Show what would be done next for a volume, and why; change nothing
    Plan(plan::PlanCommand),
    /// Look for what is wrong with this node and its surroundings, and say what mends it
    ///
    /// Changes nothing, unless --fix is given. Exit codes: 0 all is well, 10 warnings, 11 something could not
    /// be seen, 12 something failed.
    Doctor(doctor::Doctor),
    /// Show attachments with their sessions, disks, map, mount and users, joined, and mark what disagrees
    ///
    /// Without HANDLE: all of this node, and the sessions that none of them uses.
    Inspect(inspect::Inspect),
    /// Show what of attachd's own is left on this node without a use, and why
    ///
    /// Attachments without a device, sessions, disks, maps and node records that no ledger entry needs, ledger
    /// entries of nothing. Changes nothing, unless told to clean.
    Orphans(orphans::OrphansCommand),
    /// Show each path to the attached volumes: its states, its session, its counters; --watch goes on
    Paths(paths::Paths),
    /// Show what attachd did for a volume or a request on this node, and where the time went
    ///
    /// Every attach, detach, resize and healing with its steps, the commands they ran, what those complained of, and
    /// the requests to Cinder with their ids: kept on this node, also over restarts.
    Trace(trace::Trace),
    /// Gather what somebody who helps needs: checks, chains, history, logs and configuration, without secrets
    ///
    /// A compressed archive (tar.gz). Passwords, tokens and secrets are taken out, by their names and by the values that this
    /// node has; what is left tells of addresses, names and sizes.
    SupportBundle(support_bundle::SupportBundle),
    /// Create, list, show, set, complete and delete Cinder's attachments themselves; touches no device
    Attachment(attachment::AttachmentCommand),
    /// Show this node's connector facts, as Cinder gets them
    Connector(connector::ConnectorCommand),
    /// Serve the requests in a directory until told to stop
    Run(run::Run),
    /// Free the volumes of nodes that an administrator declared to be off, until told to stop
    ///
    /// For nodes with the taint node.kubernetes.io/out-of-service: tells their VolumeAttachRequests so, and
    /// of those that are deleted takes the attachment from Cinder and lets them go. Needs no node of its own.
    Evacuate(evacuate::Evacuate),
    /// Print the custom resource definitions
    Crd(generate::Crd),
    /// Print a script for a shell that completes commands, options and attachment ids
    ///
    /// For bash: source <(attachd completions bash). The script asks this attachd at each Tab, so take it
    /// anew with each version. For ids Cinder is asked as the environment's variables say.
    Completions(generate::Completions),
    /// Print the manual page, or write all of them to a directory
    Man(generate::Man),
}

/// Where a shell asks for completions, gives them and ends the process; else does nothing. Call it first:
/// it changes the environment, which only a program with one thread may.
pub fn complete() {
    CompleteEnv::with_factory(Cli::command).var(generate::COMPLETE).complete();
}

/// Keeps secrets in memory from core dumps and from other processes. Call it while there is one thread.
///
/// # Errors
/// The kernel refuses.
pub fn keep_private() -> std::io::Result<()> {
    crate::host::keep_memory_private()
}

/// Parses the command line, sets up logging, and runs the command.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    let journal = Journal::below(&cli.options.state_dir, Limits::default());
    if let Err(error) = telemetry(&cli.options, &journal) {
        return exit::usage(&error);
    }
    let result = match &cli.command {
        Command::Attach(command) => command.run(&cli.options, cli.output).await,
        Command::Detach(command) => command.run(&cli.options, cli.output).await,
        Command::Resize(command) => command.run(&cli.options, cli.output).await,
        Command::Plan(command) => command.run(&cli.options, cli.output).await,
        Command::Doctor(command) => command.run(&cli.options, cli.output).await,
        Command::Inspect(command) => command.run(&cli.options, cli.output).await,
        Command::SupportBundle(command) => command.run(&cli.options).await,
        Command::Orphans(command) => command.run(&cli.options, cli.output).await,
        Command::Paths(command) => command.run(&cli.options, cli.output).await,
        Command::Trace(command) => command.run(&cli.options, cli.output).await,
        Command::Attachment(command) => command.run(&cli.options, cli.output).await,
        Command::Connector(command) => command.run(&cli.options, cli.output).await,
        Command::Run(command) => command.run(&cli.options).await,
        Command::Evacuate(command) => command.run(&cli.options).await,
        Command::Crd(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    };
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    };
    // Where that thread panics, there is nobody left to tell.
    let _ = tokio::task::spawn_blocking(move || journal.finish(LAST_LINES)).await;
    code
}

fn telemetry(options: &Options, journal: &Journal) -> Result<(), String> {
    use tracing_subscriber::{
        EnvFilter, Layer as _, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
    };
    let filter = EnvFilter::try_new(&options.log)
        .map_err(|error| format!("--log {:?} is no filter: {error}", options.log))?;
    let registry = tracing_subscriber::registry().with(journal.layer());
    let colour = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    let talk = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        // It would panic where nobody reads stderr any more.
        .log_internal_errors(false);
    let set = if options.log_json {
        registry.with(talk.json().with_filter(filter)).try_init()
    } else {
        registry.with(talk.with_target(false).with_filter(filter)).try_init()
    };
    set.map_err(|error| error.to_string())
}
