//! Work that blocks a thread, with a time limit.
//!
//! A read or write of sysfs, an `fsync`, a `mount`: the kernel may keep a thread in D state for as
//! long as a target doesn't answer. Such a thread can't be killed, only left behind; so the same
//! piece of work is never started a second time while the first one still hangs.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::HostError;

/// How often work that was left behind is looked at.
const STEP: Duration = Duration::from_millis(50);

/// Runs blocking work with a time limit, each piece at most once at a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Blocking {
    going_on: Arc<Mutex<BTreeSet<String>>>,
}

impl Blocking {
    /// Runs `work`, known by what it does (`flushing sda`). If the same is still going on from
    /// before, that is a time-out at once.
    pub(crate) async fn once<T: Send + 'static>(
        &self,
        doing: String,
        limit: Duration,
        work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let entry = {
            let mut going_on = self.going_on.lock().unwrap_or_else(PoisonError::into_inner);
            if !going_on.insert(doing.clone()) {
                return Err(HostError::TimedOut { doing, seconds: limit.as_secs() });
            }
            Entry { doing: doing.clone(), going_on: Arc::clone(&self.going_on) }
        };
        limited(doing, limit, move || {
            let _entry = entry;
            work()
        })
        .await
    }
}

impl Blocking {
    /// Waits until a piece of work that was left behind has ended; says whether it has.
    pub(crate) async fn ended(&self, doing: &str, limit: Duration) -> bool {
        let goes_on =
            || self.going_on.lock().unwrap_or_else(PoisonError::into_inner).contains(doing);
        let wait = async {
            while goes_on() {
                tokio::time::sleep(STEP).await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }
}

/// Runs `work` on a thread of its own, and waits for it no longer than `limit`.
pub(crate) async fn limited<T: Send + 'static>(
    doing: String,
    limit: Duration,
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    // What is logged on that thread is of the same run.
    let span = tracing::Span::current();
    let work = tokio::task::spawn_blocking(move || span.in_scope(work));
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(result)) => result,
        Ok(Err(join)) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(_) => Err(HostError::TimedOut { doing, seconds: 0 }),
        },
        Err(_) => Err(HostError::TimedOut { doing, seconds: limit.as_secs() }),
    }
}

/// A piece of work that goes on, until this is dropped by its own thread.
struct Entry {
    doing: String,
    going_on: Arc<Mutex<BTreeSet<String>>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.going_on.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.doing);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn work_that_hangs_is_left_behind_and_not_started_again() {
        let blocking = Blocking::default();
        let (release, hang) = mpsc::channel::<()>();
        let first = blocking
            .once("flushing sda".to_owned(), SHORT, move || {
                let _ = hang.recv();
                Ok(())
            })
            .await;
        assert!(matches!(first, Err(HostError::TimedOut { .. })));
        let again = blocking.once("flushing sda".to_owned(), LONG, || Ok(())).await;
        assert!(matches!(again, Err(HostError::TimedOut { .. })));
        assert!(blocking.once("flushing sdb".to_owned(), LONG, || Ok(())).await.is_ok());
        drop(release);
        for _ in 0..200 {
            if blocking.once("flushing sda".to_owned(), LONG, || Ok(())).await.is_ok() {
                return;
            }
            tokio::time::sleep(SHORT).await;
        }
        panic!("the work ended, but may still not be started again");
    }
}
