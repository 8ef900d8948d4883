use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{Metrics, NodeState};
use crate::{attach::Engine, cinder::BlockStorage, host::Host};

/// Prometheus gives up after 10 s, by default.
const LIMIT: Duration = Duration::from_secs(3);

/// Several scrapers, or one in a hurry, cost one look at the node.
const FRESH: Duration = Duration::from_secs(5);

type Look = dyn Fn() -> BoxFuture<'static, Result<NodeState, String>> + Send + Sync;

/// Answers scrapes, with a look at the node that must not hold them up. Clones share their last look.
#[derive(Clone)]
pub struct Scrape {
    metrics: Metrics,
    look: Arc<Look>,
    last: Arc<Mutex<Option<Seen>>>,
}

struct Seen {
    at: Instant,
    state: Result<Arc<NodeState>, String>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

impl Scrape {
    /// Scrapes of these metrics and of the engine's node.
    pub fn new<H, C>(metrics: Metrics, engine: Arc<Engine<H, C>>) -> Self
    where
        H: Host + 'static,
        C: BlockStorage + 'static,
    {
        Self::looking(metrics, move || {
            let engine = Arc::clone(&engine);
            Box::pin(async move { look(&engine).await })
        })
    }

    fn looking(
        metrics: Metrics,
        look: impl Fn() -> BoxFuture<'static, Result<NodeState, String>> + Send + Sync + 'static,
    ) -> Self {
        Self { metrics, look: Arc::new(look), last: Arc::default() }
    }

    /// The text for one scrape, soon: without the node's state where looking at it fails or takes
    /// too long.
    ///
    /// # Errors
    /// What was counted can't be written as text: a defect.
    pub async fn text(&self) -> Result<String, fmt::Error> {
        let node = match timeout(LIMIT, self.node()).await {
            Ok(Ok(node)) => Some(node),
            Ok(Err(error)) => self.failed(&error),
            Err(_) => self.failed("the look at the node goes on"),
        };
        let metrics = self.metrics.clone();
        // It reads /proc.
        let text = tokio::task::spawn_blocking(move || metrics.encode(node.as_deref()));
        text.await.map_err(|_| fmt::Error)?
    }

    fn failed(&self, why: &str) -> Option<Arc<NodeState>> {
        self.metrics.scrape_errors.inc();
        tracing::warn!("a scrape goes without the node's state: {why}");
        None
    }

    async fn node(&self) -> Result<Arc<NodeState>, String> {
        // One look at a time, however many ask; who gives up waiting leaves it going on.
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(seen) = last.as_ref().filter(|seen| seen.at.elapsed() < FRESH) {
            return seen.state.clone();
        }
        let look = (self.look)();
        let looking = tokio::spawn(async move {
            let state = look.await.map(Arc::new);
            *last = Some(Seen { at: Instant::now(), state: state.clone() });
            state
        });
        looking.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

async fn look<H: Host, C: BlockStorage>(engine: &Engine<H, C>) -> Result<NodeState, String> {
    let ledger = engine.ledger();
    // The ledger first: an attach that ends meanwhile must not look as if something were missing.
    let records = ledger.records().await.map_err(|error| error.to_string())?;
    let owned = ledger.owned_targets().await.map_err(|error| error.to_string())?;
    let host = engine.host().observe().await.map_err(|error| error.to_string())?;
    Ok(NodeState::new(records, &owned, &host))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::model::HostState;

    fn nothing() -> NodeState {
        NodeState::new(Vec::new(), &std::collections::BTreeMap::new(), &HostState::default())
    }

    /// A scrape whose looks take this long, and how many there were.
    fn scrape(takes: Duration) -> (Scrape, Arc<AtomicUsize>) {
        let looks = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&looks);
        let scrape = Scrape::looking(Metrics::new(), move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                tokio::time::sleep(takes).await;
                Ok(nothing())
            })
        });
        (scrape, looks)
    }

    fn has_node(text: &str) -> bool {
        text.contains("attachd_attachments{")
    }

    #[tokio::test(start_paused = true)]
    async fn scrapes_that_come_together_cost_one_look() {
        let (scrape, looks) = scrape(Duration::from_secs(1));
        let (one, two) = tokio::join!(scrape.text(), scrape.text());
        assert!(has_node(&one.unwrap()) && has_node(&two.unwrap()));
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        tokio::time::advance(FRESH).await;
        assert!(has_node(&scrape.text().await.unwrap()));
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_hangs_holds_up_no_scrape_and_is_looked_at_once() {
        let (scrape, looks) = scrape(Duration::from_mins(1));
        for errors in 1..=5 {
            let began = Instant::now();
            let text = scrape.text().await.unwrap();
            assert!(began.elapsed() <= LIMIT + Duration::from_millis(10), "{:?}", began.elapsed());
            assert!(!has_node(&text));
            assert!(text.contains(&format!("attachd_scrape_errors_total {errors}\n")), "{text}");
        }
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_mins(1)).await;
        assert!(has_node(&scrape.text().await.unwrap()));
    }

    #[tokio::test]
    async fn a_look_that_fails_is_counted_and_leaves_the_rest() {
        let failing =
            || -> BoxFuture<'static, _> { Box::pin(async { Err("no sysfs".to_owned()) }) };
        let text = Scrape::looking(Metrics::new(), failing).text().await.unwrap();
        assert!(!has_node(&text) && text.contains("attachd_scrape_errors_total 1\n"), "{text}");
        assert!(text.contains("process_resident_memory_bytes ") && text.ends_with("# EOF\n"));
    }
}
