//! The command line. Thin: parse, call, print. stdout is data, stderr is talk.
#![allow(clippy::doc_markdown, reason = "these comments are texts that users read")]

mod attach;
mod attachment;
mod connector;
mod context;
mod detach;
mod exit;
mod generate;
mod inspect;
mod listen;
mod output;
mod plan;
mod progress;
mod run;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::CompleteEnv;

pub use output::Format;

use crate::config::Options;

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
    /// Show what would be done next for a volume, and why; change nothing
    Plan(plan::PlanCommand),
    /// Show attachments with their sessions, disks, map and mount, joined
    Inspect(inspect::Inspect),
    /// Create, list, show, set, complete and delete Cinder's attachments themselves; touches no device
    Attachment(attachment::AttachmentCommand),
    /// Show this node's connector facts, as Cinder gets them
    Connector(connector::ConnectorCommand),
    /// Serve the requests in a directory until told to stop
    Run(run::Run),
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

/// Parses the command line, sets up logging, and runs the command.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = telemetry(&cli.options) {
        return exit::usage(&error);
    }
    let result = match &cli.command {
        Command::Attach(command) => command.run(&cli.options, cli.output).await,
        Command::Detach(command) => command.run(&cli.options, cli.output).await,
        Command::Plan(command) => command.run(&cli.options, cli.output).await,
        Command::Inspect(command) => command.run(&cli.options, cli.output).await,
        Command::Attachment(command) => command.run(&cli.options, cli.output).await,
        Command::Connector(command) => command.run(&cli.options, cli.output).await,
        Command::Run(command) => command.run(&cli.options).await,
        Command::Crd(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn telemetry(options: &Options) -> Result<(), String> {
    use tracing_subscriber::{
        EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
    };
    let filter = EnvFilter::try_new(&options.log)
        .map_err(|error| format!("--log {:?} is no filter: {error}", options.log))?;
    let registry = tracing_subscriber::registry().with(filter);
    let colour = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    let talk = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        // It would panic where nobody reads stderr any more.
        .log_internal_errors(false);
    let set = if options.log_json {
        registry.with(talk.json()).try_init()
    } else {
        registry.with(talk.with_target(false)).try_init()
    };
    set.map_err(|error| error.to_string())
}
