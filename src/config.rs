//! What attachd was told, by flags and environment, with the defaults filled in. Which cloud is in
//! [`cloud::Settings`].
#![allow(
    clippy::doc_markdown,
    rustdoc::bare_urls,
    reason = "these comments are texts that users read"
)]

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::cloud;

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Options {
    /// Which cloud, and as whom.
    #[command(flatten)]
    pub cloud: cloud::Settings,

    /// How long Cinder and Keystone may take to answer a request, in seconds; four times that where its storage makes
    /// or takes away an export
    #[arg(
        long,
        env = "ATTACHD_CINDER_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=3600),
        global = true
    )]
    pub cinder_timeout: u64,

    /// Where attachd keeps its ledger, its locks and its mounts
    #[arg(
        long,
        env = "ATTACHD_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/attachd",
        global = true
    )]
    pub state_dir: PathBuf,

    /// Directories below which volumes may be mounted, beside STATE_DIR/mounts
    #[arg(
        long = "allowed-root",
        env = "ATTACHD_ALLOWED_ROOTS",
        value_name = "DIR",
        value_delimiter = ':',
        default_value = "/mnt:/srv",
        global = true
    )]
    pub allowed_roots: Vec<PathBuf>,

    /// The connector's address: an IP address, an interface or a network such as 10.0.2.0/24; by
    /// default the source address towards Cinder, or towards Keystone where only that one's address is given
    #[arg(long, env = "ATTACHD_CONNECTOR_ADDRESS", value_name = "WHICH", global = true)]
    pub connector_address: Option<String>,

    /// This node's name; by default its host name
    #[arg(long, env = "ATTACHD_NODE_NAME", value_name = "NAME", global = true)]
    pub node_name: Option<String>,

    /// Where the host's root directory is, for attachd in a container: /proc/1/root. The host's programs
    /// are then run in the host's own namespaces
    #[arg(long, env = "ATTACHD_HOST_ROOT", value_name = "DIR", default_value = "/", global = true)]
    pub host_root: PathBuf,

    /// How long sessions, disks and maps are waited for, each, in seconds
    #[arg(
        long,
        env = "ATTACHD_PATIENCE",
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=3600),
        global = true
    )]
    pub patience: u64,

    /// What to log to stderr: error, warn, info, debug, or a filter such as attachd=debug
    #[arg(long, env = "ATTACHD_LOG", value_name = "FILTER", default_value = "warn", global = true)]
    pub log: String,

    /// Log as JSON, one object a line
    #[arg(long, env = "ATTACHD_LOG_JSON", global = true)]
    pub log_json: bool,
}

impl Options {
    /// The limits of requests to Cinder.
    pub fn cinder_timeouts(&self) -> (Duration, Duration) {
        let request = Duration::from_secs(self.cinder_timeout);
        (request, request * 4)
    }

    /// Where volumes are mounted that name no mount path.
    pub fn mounts_dir(&self) -> PathBuf {
        self.state_dir.join("mounts")
    }

    /// Every directory below which a mount path may be.
    pub fn roots(&self) -> Vec<PathBuf> {
        let mut roots = vec![self.mounts_dir()];
        roots.extend(self.allowed_roots.iter().cloned());
        roots
    }

    /// How long sessions, disks and maps are waited for.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}
