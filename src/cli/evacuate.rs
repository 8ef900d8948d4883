use std::time::Duration;

use clap::Args;

use super::{context, exit::Failure, listen::Listen};
use crate::{
    config::Options,
    controller::{self, Evacuation},
    health::{Endpoints, Liveness, Readiness},
    requests::BEAT,
};

/// A loop that stands still three times as long as it may rest will not go on by itself.
const STANDSTILL: Duration = BEAT.saturating_mul(3);

#[derive(Debug, Args)]
pub(super) struct Evacuate {
    #[command(flatten)]
    listen: Listen,
}

impl Evacuate {
    pub(super) async fn run(&self, options: &Options) -> Result<(), Failure> {
        let stop = context::stop_signal()?;
        let cinder = context::client(options)?;
        let cluster = context::kubernetes().await?;
        let (liveness, readiness) = (Liveness::default(), Readiness::new(&[controller::CHECK]));
        let heartbeat = liveness.heartbeat("evacuation", STANDSTILL);
        let evacuation = Evacuation::new(cinder, cluster, readiness.clone(), heartbeat);
        let listening = self.listen.answer(Endpoints { liveness, readiness, scrape: None }).await?;
        evacuation.serve(stop).await;
        listening.end().await;
        Ok(())
    }
}
