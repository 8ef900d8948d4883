//! `attachd attachment`: Cinder's attachments API, operation by operation, by the option names of
//! `osc block-storage attachment` and `openstack volume attachment`. `docs/commands.md` has the table.

mod complete;
mod connector;
mod create;
mod delete;
mod fields;
mod ids;
mod list;
mod node;
mod set;
mod show;
mod trace;
mod wait;

use std::sync::Arc;

use clap::{Args, Subcommand};

use self::trace::Trace;
use super::{Format, context, exit::Failure};
use crate::{
    cinder::{Client, Microversion, PREFERRED, Watch},
    config::Options,
};

#[derive(Debug, Args)]
pub(super) struct AttachmentCommand {
    #[command(subcommand)]
    what: What,

    #[command(flatten)]
    talk: Talk,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Reserve a volume, or attach it all at once with a connector
    ///
    /// Without a connector the volume is reserved: nobody else can attach it, and `set` goes on from
    /// there. With one the storage exports it at once; where its back end fails then, Cinder keeps a
    /// reservation and doesn't tell its id (attachd looks for it, and says what it finds). Reserving
    /// first and `set` after that has not that risk.
    #[command(visible_alias = "create354")]
    Create(create::Create),
    /// The same as Cinder before 3.54 has it: without --mode
    Create327(create::Create),
    /// List attachments
    ///
    /// Newest first. All pages are read; attachments that a cloud gives although a filter excludes them
    /// are left out. -o wide, json and yaml ask Cinder for the details.
    #[command(visible_alias = "list327")]
    List(list::List),
    /// Show an attachment with its connection info
    #[command(visible_alias = "show327")]
    Show(show::Show),
    /// Give an attachment the connector, and get the connection info
    ///
    /// The storage then exports the volume to that connector. May be done again; an attachment that was
    /// completed is attaching again then: complete it again.
    #[command(visible_alias = "set327")]
    Set(set::Set),
    /// Mark an attachment as in use
    ///
    /// Needs API 3.44. Cinder does not check that the attachment has a connector: one that is only
    /// reserved is attached then, and its volume in-use, without a connection.
    #[command(visible_alias = "complete344")]
    Complete(complete::Complete),
    /// Delete an attachment: withdraw the export and free the volume
    ///
    /// Where a device of the attachment is still connected on this node it asks first, and refuses where
    /// nobody can be asked: another volume may get the place that the device points at. attachd detach
    /// VOLUME takes the devices away first.
    #[command(visible_alias = "delete327")]
    Delete(delete::Delete),
}

/// What holds for each of them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of attachment")]
struct Talk {
    /// The highest version of Cinder's API to ask for, such as 3.27; a cloud that is older is asked in
    /// its own
    #[arg(
        long,
        env = "OS_VOLUME_API_VERSION",
        value_name = "VERSION",
        default_value = "3",
        value_parser = version,
        global = true
    )]
    os_volume_api_version: Microversion,

    /// Say each request to Keystone and Cinder as a curl command, and what was answered; no token and no secret is shown
    #[arg(long, global = true)]
    debug: bool,

    /// Say how long each request to Keystone and Cinder took
    #[arg(long, global = true)]
    timing: bool,
}

/// `3` is what other clients' users have in their environment: any.
fn version(text: &str) -> Result<Microversion, String> {
    if text == "3" {
        return Ok(PREFERRED);
    }
    let version: Microversion = text.parse().map_err(|error| format!("{error}"))?;
    if version < Microversion::ATTACHMENTS {
        return Err(format!("Cinder has attachments from {} on", Microversion::ATTACHMENTS));
    }
    Ok(version)
}

impl AttachmentCommand {
    pub(super) async fn run(&self, options: &Options, format: Format) -> Result<(), Failure> {
        let trace = Arc::new(Trace::new(self.talk.debug));
        let session = Session { options, format, talk: &self.talk, trace: &trace };
        let result = match &self.what {
            What::Create(command) => command.run(&session, session.version()).await,
            What::Create327(command) => command.run(&session, Microversion::ATTACHMENTS).await,
            What::List(command) => command.run(&session).await,
            What::Show(command) => command.run(&session).await,
            What::Set(command) => command.run(&session).await,
            What::Complete(command) => command.run(&session).await,
            What::Delete(command) => command.run(&session).await,
        };
        if self.talk.timing {
            trace.say_timing();
        }
        result
    }
}

/// What each command works with.
struct Session<'a> {
    options: &'a Options,
    format: Format,
    talk: &'a Talk,
    trace: &'a Arc<Trace>,
}

impl Session<'_> {
    const fn version(&self) -> Microversion {
        self.talk.os_volume_api_version
    }

    fn client(&self) -> Result<Client, Failure> {
        let client = context::client(self.options)?.up_to(self.version());
        if self.talk.debug || self.talk.timing {
            let watch: Arc<dyn Watch> = Arc::clone(self.trace) as _;
            return Ok(client.watched_by(&watch));
        }
        Ok(client)
    }
}
