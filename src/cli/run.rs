use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use tokio::sync::Semaphore;

use super::{context, exit::Failure};
use crate::{
    config::Options,
    host::Host as _,
    requests_dir::{RequestsDir, RequestsDirConfig},
};

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The directory of VolumeAttachRequest files
    #[arg(long, env = "ATTACHD_REQUESTS_DIR", value_name = "DIR")]
    requests_dir: PathBuf,

    /// How many requests are worked on at once
    #[arg(
        long,
        env = "ATTACHD_CONCURRENCY",
        value_name = "N",
        default_value_t = 16,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=512)
    )]
    concurrency: usize,
}

impl Run {
    pub(super) async fn run(&self, options: &Options) -> Result<(), Failure> {
        let stop = context::stop_signal()?;
        let engine = Arc::new(context::engine(options)?);
        let node_name = match (&options.node_name, engine.host().facts().await) {
            (Some(name), _) => name.clone(),
            (None, Ok(facts)) => facts.connector.host,
            (None, Err(error)) => return Err(Failure::Host(error)),
        };
        let config = RequestsDirConfig {
            directory: self.requests_dir.clone(),
            node_name,
            mounts_dir: options.mounts_dir(),
            longest_pause: Duration::from_mins(1),
        };
        RequestsDir::new(engine, Arc::new(Semaphore::new(self.concurrency)), config)
            .serve(stop)
            .await
            .map_err(|error| Failure::Other(described(&error)))
    }
}

fn described(error: &crate::requests_dir::RequestsDirError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
