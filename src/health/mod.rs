//! Whether attachd lives and is ready, over HTTP: `/livez`, `/readyz` and `/metrics`.
//!
//! ```text
//!   serving loop ─► Heartbeat ─► Liveness ──┐
//!            └────► Readiness ──────────────┼─► Server ◄── kubelet, Prometheus
//!   node check ──────┘      metrics::Scrape ┘
//! ```

mod connections;
mod server;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

pub use server::{Endpoints, Server};

use crate::metrics::Metrics;

/// What a serving loop tells of itself.
#[derive(Debug, Clone)]
pub struct Vitals {
    /// What it counts and measures.
    pub metrics: Metrics,
    /// What must be well for it to serve.
    pub readiness: Readiness,
    /// That it goes on.
    pub heartbeat: Heartbeat,
}

/// Checks by name: attachd is ready while all are well. Clones share them.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>);

impl Readiness {
    /// Not ready until each of these checks was seen to be well.
    pub fn new(checks: &[&'static str]) -> Self {
        let unknown = |check: &&'static str| (*check, Err("not looked at yet".to_owned()));
        Self(Arc::new(Mutex::new(checks.iter().map(unknown).collect())))
    }

    /// How a check went; where it didn't go well, why, and what to do.
    pub fn set(&self, check: &'static str, state: Result<(), String>) {
        let before =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(check, state.clone());
        if before.as_ref() == Some(&state) {
            return;
        }
        match state {
            Ok(()) => tracing::info!(check, "ready"),
            Err(why) => tracing::warn!(check, "not ready: {why}"),
        }
    }

    /// All checks.
    pub fn report(&self) -> Report {
        Report(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Loops by name: attachd lives while all of them go on. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Liveness(Arc<Mutex<BTreeMap<&'static str, (Heartbeat, Duration)>>>);

impl Liveness {
    /// The heart of a loop that must beat at least this often. It beats now.
    pub fn heartbeat(&self, name: &'static str, limit: Duration) -> Heartbeat {
        let heart = Heartbeat { born: Instant::now(), last: Arc::default() };
        let mut hearts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hearts.insert(name, (heart.clone(), limit));
        heart
    }

    /// All loops.
    pub fn report(&self) -> Report {
        let hearts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = |heart: &Heartbeat, limit: Duration| match heart.since() {
            since if since <= limit => Ok(()),
            since => Err(format!(
                "it stands still for {} s, and may for {} s; the log has its last words",
                since.as_secs(),
                limit.as_secs()
            )),
        };
        Report(hearts.iter().map(|(name, (heart, limit))| (*name, state(heart, *limit))).collect())
    }
}

/// Beaten by a loop, each time round.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    born: Instant,
    /// Milliseconds after birth.
    last: Arc<AtomicU64>,
}

impl Heartbeat {
    /// The loop goes on.
    pub fn beat(&self) {
        self.last.store(self.age(), Ordering::Relaxed);
    }

    fn age(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn since(&self) -> Duration {
        Duration::from_millis(self.age().saturating_sub(self.last.load(Ordering::Relaxed)))
    }
}

/// What a probe is answered: a line for each check, as Kubernetes' own components have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report(BTreeMap<&'static str, Result<(), String>>);

impl Report {
    /// Whether all is well.
    pub fn is_well(&self) -> bool {
        self.0.values().all(Result::is_ok)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (check, state) in &self.0 {
            match state {
                Ok(()) => writeln!(f, "[+] {check}: ok")?,
                Err(why) => writeln!(f, "[-] {check}: {}", why.replace(['\n', '\r'], " "))?,
            }
        }
        writeln!(f, "{}", if self.is_well() { "ok" } else { "failed" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_ready_before_every_check_was_well_once() {
        let readiness = Readiness::new(&["node", "requests-dir"]);
        assert!(!readiness.report().is_well());
        readiness.set("node", Ok(()));
        assert!(!readiness.report().is_well());
        readiness.set("requests-dir", Ok(()));
        assert!(readiness.report().is_well());
        readiness.clone().set("node", Err("iscsid\nis away".to_owned()));
        assert_eq!(
            readiness.report().to_string(),
            "[-] node: iscsid is away\n[+] requests-dir: ok\nfailed\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_stands_still_is_not_alive_until_it_goes_on() {
        let liveness = Liveness::default();
        let heart = liveness.heartbeat("serving", Duration::from_mins(1));
        let other = liveness.heartbeat("other", Duration::from_mins(10));
        assert!(liveness.report().is_well());
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(liveness.report().is_well());
        tokio::time::advance(Duration::from_secs(11)).await;
        let report = liveness.report();
        assert!(!report.is_well());
        assert!(report.to_string().contains("[-] serving: it stands still for 70 s"), "{report}");
        other.beat();
        assert!(!liveness.report().is_well());
        heart.beat();
        assert!(liveness.report().is_well());
    }
}
