use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::Args;
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::exit::Failure;
use crate::{
    attach::{Engine, Refusal},
    cinder::BlockStorage,
    health::{Endpoints, Liveness, Readiness, Server},
    host::Host,
    metrics::{Metrics, Scrape},
};

/// The name of the node's readiness check.
pub(super) const NODE_CHECK: &str = "node";

const CHECK_EVERY: Duration = Duration::from_secs(15);

/// Questions to iscsid and multipathd have limits of their own, below this.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// What was asked in the last moment is still answered.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Where a daemon answers probes and scrapes.
#[derive(Debug, Args)]
pub(super) struct Listen {
    /// Answer /livez, /readyz and, of `run`, /metrics over HTTP here; off by default
    #[arg(long, env = "ATTACHD_LISTEN", value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
}

/// What goes on beside a daemon's work, until it ends.
#[must_use = "it ends when this is dropped"]
pub(super) struct Listening {
    tasks: JoinSet<()>,
    end: oneshot::Sender<()>,
}

impl Listen {
    /// Checks the node, and answers if an address was given.
    pub(super) async fn start<H: Host + 'static, C: BlockStorage + 'static>(
        &self,
        engine: &Arc<Engine<H, C>>,
        metrics: &Metrics,
        readiness: &Readiness,
        liveness: Liveness,
        stop: watch::Receiver<bool>,
    ) -> Result<Listening, Failure> {
        let scrape = Some(Scrape::new(metrics.clone(), Arc::clone(engine)));
        let endpoints = Endpoints { liveness, readiness: readiness.clone(), scrape };
        let mut listening = self.answer(endpoints).await?;
        if self.listen.is_some() {
            listening.tasks.spawn(check(Arc::clone(engine), readiness.clone(), stop));
        }
        Ok(listening)
    }

    /// Answers if an address was given.
    pub(super) async fn answer(&self, endpoints: Endpoints) -> Result<Listening, Failure> {
        let (end, ended) = oneshot::channel::<()>();
        let mut tasks = JoinSet::new();
        if let Some(address) = self.listen {
            let server = Server::bind(address).await.map_err(|error| {
                Failure::Other(format!(
                    "can't listen on {address}: {error}; give --listen an address of this node with a free port"
                ))
            })?;
            tracing::info!(%address, "answering over HTTP");
            tasks.spawn(server.serve(endpoints, async {
                let _ = ended.await;
            }));
        }
        Ok(Listening { tasks, end })
    }
}

impl Listening {
    /// Answers what was asked, and ends.
    pub(super) async fn end(mut self) {
        drop(self.end);
        let _ =
            timeout(LAST_ANSWERS, async { while self.tasks.join_next().await.is_some() {} }).await;
    }
}

/// Looks at the node, again and again, until the daemon is told to stop.
async fn check<H: Host, C: BlockStorage>(
    engine: Arc<Engine<H, C>>,
    readiness: Readiness,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let look = async {
            readiness.set(NODE_CHECK, fit(engine.host()).await);
            sleep(CHECK_EVERY).await;
        };
        tokio::select! {
            Ok(_) = stop.wait_for(|stop| *stop) => break,
            () = look => {}
        }
    }
    readiness.set("shutdown", Err("attachd was told to stop, and ends its steps".to_owned()));
}

/// Whether something can be attached to the node.
async fn fit<H: Host>(host: &H) -> Result<(), String> {
    match timeout(CHECK_LIMIT, host.facts()).await {
        Ok(Ok(facts)) if facts.iscsid => Ok(()),
        Ok(Ok(_)) => Err(Refusal::IscsidNotRunning.to_string()),
        Ok(Err(error)) => Err(described(&error)),
        Err(_) => Err(format!("its facts were not told within {} s", CHECK_LIMIT.as_secs())),
    }
}

fn described(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
