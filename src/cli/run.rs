use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;

use super::{
    context,
    exit::Failure,
    listen::{Listen, NODE_CHECK},
};
use crate::{
    config::Options,
    health::{Liveness, Readiness, Vitals},
    host::Host as _,
    metrics::Metrics,
    requests_dir::{self, RequestsDir, RequestsDirConfig},
};

/// A loop that stands still three times as long as it may rest will not go on by itself.
const STANDSTILL: Duration = requests_dir::BEAT.saturating_mul(3);

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

    #[command(flatten)]
    listen: Listen,
}

impl Run {
    pub(super) async fn run(&self, options: &Options) -> Result<(), Failure> {
        let stop = context::stop_signal()?;
        let (metrics, liveness) = (Metrics::new(), Liveness::default());
        let engine = Arc::new(context::measured_engine(options, &metrics)?);
        let node_name = match (&options.node_name, engine.host().facts().await) {
            (Some(name), _) => name.clone(),
            (None, Ok(facts)) => facts.connector.host,
            (None, Err(error)) => return Err(Failure::Host(error)),
        };
        let config = RequestsDirConfig {
            directory: self.requests_dir.clone(),
            node_name,
            mounts_dir: options.mounts_dir(),
            concurrency: self.concurrency,
            longest_pause: Duration::from_mins(1),
        };
        let vitals = Vitals {
            metrics,
            readiness: Readiness::new(&[NODE_CHECK, requests_dir::CHECK]),
            heartbeat: liveness.heartbeat("serving", STANDSTILL),
        };
        let listening = self.listen.start(&engine, &vitals, liveness, stop.clone()).await?;
        let served = RequestsDir::new(engine, config, vitals).serve(stop).await;
        listening.end().await;
        served.map_err(|error| Failure::Other(described(&error)))
    }
}

fn described(error: &crate::requests_dir::RequestsDirError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
