//! One look at the node for all its requests, when something happened on it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use crate::{
    attach::Engine, cinder::BlockStorage, health::Heartbeat, host::Host, model::HostState,
};

/// Events of one cause come in bursts: this long after the last one it is looked.
const SETTLE: Duration = Duration::from_millis(500);

/// A storm of events is looked at now and then.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// Nothing tells that a file system went read-only, for one: after an event, and while a session or a
/// disk doesn't work, it is looked again.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// Where much is attached, a look takes its time: to the next one passes at least so many times as much.
const SHARE: u32 = 10;

/// Events may be lost.
const ANYWAY: Duration = Duration::from_mins(1);

/// Storage that fails concerns many volumes at once. Bringing them back must not hold up what is to be
/// attached or detached meanwhile, nor storm the storage.
const HEALED_AT_ONCE: usize = 4;

/// What a look showed.
#[derive(Debug)]
pub(super) struct Sight {
    /// What happened later may be missing in it.
    pub(super) began: Instant,
    pub(super) host: Arc<HostState>,
}

/// Who looks at the node of a daemon. Clones share the looks.
#[derive(Debug, Clone)]
pub struct Lookout {
    sights: watch::Receiver<Option<Arc<Sight>>>,
    pub(super) heals: Arc<Semaphore>,
}

impl Lookout {
    /// Looks after every burst of events, until all clones are gone. Must be called within a tokio runtime.
    pub fn start<H, C>(engine: Arc<Engine<H, C>>, heartbeat: Heartbeat) -> Self
    where
        H: Host + 'static,
        C: BlockStorage + 'static,
    {
        let (sender, sights) = watch::channel(None);
        tokio::spawn(async move { look_out(engine.host(), &sender, &heartbeat).await });
        Self { sights, heals: Arc::new(Semaphore::new(HEALED_AT_ONCE)) }
    }

    /// The next look that began after that moment. Waits for ever where nobody looks any more: then the
    /// heartbeat has stopped.
    pub(super) async fn next(&mut self, since: Instant) -> Arc<Sight> {
        while self.sights.changed().await.is_ok() {
            let sight = self.sights.borrow_and_update().clone();
            if let Some(sight) = sight.filter(|sight| sight.began > since) {
                return sight;
            }
        }
        std::future::pending().await
    }
}

async fn look_out(
    host: &impl Host,
    sights: &watch::Sender<Option<Arc<Sight>>>,
    heartbeat: &Heartbeat,
) {
    let mut events = host.events();
    let (mut rest, mut not_before) = (ANYWAY, Instant::now());
    loop {
        heartbeat.beat();
        let happened = tokio::select! {
            () = sights.closed() => return,
            () = event(&mut events) => true,
            () = sleep(rest) => false,
        };
        if happened {
            let limit = Instant::now() + SETTLE_LIMIT;
            let settle = async { while timeout(SETTLE, event(&mut events)).await.is_ok() {} };
            // Either way it is time.
            let _ = timeout_at(limit, settle).await;
            sleep_until(not_before).await;
        }
        events.mark_unchanged();
        let began = Instant::now();
        rest = if happened { AFTERWARDS } else { ANYWAY };
        let looked = host.observe().await;
        not_before = Instant::now() + (began.elapsed() * SHARE).min(ANYWAY);
        match looked {
            Ok(host) => {
                if host.is_disturbed() {
                    rest = AFTERWARDS;
                }
                sights.send_replace(Some(Arc::new(Sight { began, host })));
            }
            Err(error) => {
                tracing::warn!(reason = error.reason(), "can't look at the node: {error}");
                rest = AFTERWARDS;
            }
        }
    }
}

/// The next event; none comes any more where the host is gone.
async fn event(events: &mut watch::Receiver<u64>) {
    if events.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_look_that_began_before_is_not_given() {
        let (sender, sights) = watch::channel(None);
        let mut lookout = Lookout { sights, heals: Arc::new(Semaphore::new(1)) };
        let look = |began| {
            sender.send_replace(Some(Arc::new(Sight { began, host: Arc::default() })));
        };
        let old = Instant::now();
        tokio::time::advance(SETTLE).await;
        let since = Instant::now();
        look(old);
        assert!(timeout(ANYWAY, lookout.next(since)).await.is_err());
        let new = Instant::now();
        look(new);
        assert_eq!(lookout.next(since).await.began, new);
    }
}
