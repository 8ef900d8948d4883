use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::{Args, ValueEnum};
use tokio::sync::Semaphore;

use super::{
    context,
    exit::Failure,
    listen::{Listen, NODE_CHECK},
};
use crate::{
    config::Options,
    controller::{self, Controller, ControllerConfig},
    health::{Liveness, Readiness, Vitals},
    host::Host as _,
    metrics::Metrics,
    requests::{BEAT, Lookout},
    requests_dir::{self, RequestsDir, RequestsDirConfig, RequestsDirError},
};

/// A loop that stands still three times as long as it may rest will not go on by itself.
const STANDSTILL: Duration = BEAT.saturating_mul(3);

const LONGEST_PAUSE: Duration = Duration::from_mins(1);

#[derive(Debug, Args)]
#[group(required = true, multiple = true, args = ["requests_dir", "kubernetes"])]
pub(super) struct Run {
    /// Serve the VolumeAttachRequest files of this directory
    #[arg(long, env = "ATTACHD_REQUESTS_DIR", value_name = "DIR")]
    requests_dir: Option<PathBuf>,

    /// Serve the VolumeAttachRequests of this node in the cluster: the one of the Pod's service account,
    /// or that of KUBECONFIG
    #[arg(long, env = "ATTACHD_KUBERNETES")]
    kubernetes: bool,

    /// How many requests are worked on at once
    #[arg(
        long,
        env = "ATTACHD_CONCURRENCY",
        value_name = "N",
        default_value_t = 16,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=512)
    )]
    concurrency: usize,

    /// Whether sessions, disks, maps and mounts of attached volumes that went away are brought back; what
    /// went away is told in either case
    #[arg(long, env = "ATTACHD_HEAL", value_name = "WHETHER", default_value = "on")]
    heal: Heal,

    #[command(flatten)]
    listen: Listen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Heal {
    On,
    Off,
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
        let mut checks = vec![NODE_CHECK];
        checks.extend(self.kubernetes.then_some(controller::CHECK));
        checks.extend(self.requests_dir.is_some().then_some(requests_dir::CHECK));
        let readiness = Readiness::new(&checks);
        let vitals = |name| Vitals {
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            heartbeat: liveness.heartbeat(name, STANDSTILL),
        };
        let permits = Arc::new(Semaphore::new(self.concurrency));
        let heal = self.heal == Heal::On;
        let lookout =
            Lookout::start(Arc::clone(&engine), liveness.heartbeat("lookout", STANDSTILL));
        let mut controller = None;
        if self.kubernetes {
            let client = context::kubernetes().await?;
            let config = ControllerConfig {
                node_name: node_name.clone(),
                mounts_dir: options.mounts_dir(),
                longest_pause: LONGEST_PAUSE,
                lookout: lookout.clone(),
                heal,
            };
            let (engine, permits) = (Arc::clone(&engine), Arc::clone(&permits));
            controller =
                Some(Controller::new(engine, permits, client, config, vitals(controller::CHECK)));
        }
        let directory = self.requests_dir.clone().map(|directory| {
            let config = RequestsDirConfig {
                directory,
                node_name,
                mounts_dir: options.mounts_dir(),
                longest_pause: LONGEST_PAUSE,
                lookout,
                heal,
            };
            RequestsDir::new(Arc::clone(&engine), permits, config, vitals(requests_dir::CHECK))
        });
        let listening =
            self.listen.start(&engine, &metrics, &readiness, liveness, stop.clone()).await?;
        let cluster = {
            let stop = stop.clone();
            async move {
                if let Some(controller) = controller {
                    controller.serve(stop).await;
                }
                Ok(())
            }
        };
        let files = async move {
            match directory {
                Some(directory) => directory.serve(stop).await,
                None => Ok(()),
            }
        };
        let served = tokio::try_join!(cluster, files);
        listening.end().await;
        served.map(drop).map_err(|error: RequestsDirError| Failure::Other(described(&error)))
    }
}

fn described(error: &RequestsDirError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
