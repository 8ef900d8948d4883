//! Portals that don't answer: of many volumes at a dead one only the first waits a login's whole limit for
//! it, and those at others get their turn.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::model::Portal;

/// A portal that works answers at once.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How long a portal that took no connection isn't asked again.
const KNOWN: Duration = Duration::from_secs(5);

/// Whether a portal takes connections now.
pub(super) async fn answers(portal: Portal) -> bool {
    let connect = TcpStream::connect((portal.address(), portal.port()));
    matches!(timeout(CONNECT_LIMIT, connect).await, Ok(Ok(_)))
}

/// Portals at which a login came to nothing, and when each was last found to take no connection.
#[derive(Debug, Default)]
pub(crate) struct SilentPortals(Mutex<BTreeMap<Portal, Option<Instant>>>);

impl SilentPortals {
    /// Whether a portal takes no connection. Asks only one at which the last login came to nothing.
    pub(crate) async fn has(&self, portal: Portal) -> bool {
        match self.portals().get(&portal) {
            None => return false,
            Some(Some(asked)) if asked.elapsed() < KNOWN => return true,
            Some(_) => {}
        }
        if answers(portal).await {
            self.portals().remove(&portal);
            return false;
        }
        self.portals().insert(portal, Some(Instant::now()));
        true
    }

    /// What a login showed. It may be one target of many that doesn't answer: the portal is asked next time.
    pub(crate) fn learn(&self, portal: Portal, silent: bool) {
        if silent {
            self.portals().entry(portal).or_default();
        } else {
            self.portals().remove(&portal);
        }
    }

    fn portals(&self) -> MutexGuard<'_, BTreeMap<Portal, Option<Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_portal_is_asked_once_a_login_came_to_nothing_until_it_takes_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let portal: Portal = address.to_string().parse().unwrap();
        let silent = SilentPortals::default();
        silent.learn(portal, true);
        assert!(!silent.has(portal).await, "only a target of it doesn't answer");
        drop(listener);
        assert!(!silent.has(portal).await, "nothing was tried since");
        silent.learn(portal, true);
        assert!(silent.has(portal).await);
        let _listener = TcpListener::bind(address).await.unwrap();
        assert!(silent.has(portal).await, "asked a moment ago");
        tokio::time::pause();
        tokio::time::advance(KNOWN).await;
        tokio::time::resume();
        assert!(!silent.has(portal).await);
        assert!(silent.portals().is_empty());
    }
}
