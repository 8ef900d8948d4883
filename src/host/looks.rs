//! One look at the node for all who ask for one at the same time.
//!
//! A look costs the more, the more is attached, and where many volumes come at once each event has many
//! ask for one. Then a processor that looked without a pause would be missing where the volumes are made.

use std::{
    mem,
    sync::{
        Mutex as BlockingMutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

use super::sysfs::Scope;

/// From so many on who ask for a look, looks have pauses between them.
const MANY: usize = 3;

/// A pause is so many times as long as the look before it took. Where a look takes long, what it looks for takes
/// longer.
const PAUSE: u32 = 4;
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Looks, one at a time.
#[derive(Debug)]
pub(super) struct Looks<T> {
    begun: AtomicU64,
    /// How many ask.
    askers: AtomicUsize,
    /// What they must see anew.
    wanted: BlockingMutex<Scope>,
    last: Mutex<Last<T>>,
}

/// What the last look showed, and by its number which.
#[derive(Debug)]
struct Last<T> {
    seen: Option<(u64, T)>,
    ended: Instant,
    took: Duration,
}

impl<T> Default for Looks<T> {
    fn default() -> Self {
        Self {
            begun: AtomicU64::new(0),
            askers: AtomicUsize::new(0),
            wanted: BlockingMutex::default(),
            last: Mutex::new(Last { seen: None, ended: Instant::now(), took: Duration::ZERO }),
        }
    }
}

/// One who asks, for as long as this is there.
struct Asker<'a>(&'a AtomicUsize);

impl<'a> Asker<'a> {
    fn new(askers: &'a AtomicUsize) -> Self {
        askers.fetch_add(1, SeqCst);
        Self(askers)
    }
}

impl Drop for Asker<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl<T: Clone> Looks<T> {
    /// What a look shows that begins after this call, and has all of `scope` in its own: one's own look, or
    /// that of another who waits, too.
    ///
    /// # Errors
    /// Those of one's own look.
    pub(super) async fn share<E>(
        &self,
        scope: Scope,
        look: impl AsyncFnOnce(Scope) -> Result<T, E>,
    ) -> Result<T, E> {
        // In this order: what begins after the second has what was wanted before it.
        self.wanted().add(scope.clone());
        let begun_before = self.begun.load(SeqCst);
        let _asker = Asker::new(&self.askers);
        let mut last = self.last.lock().await;
        if let Some((number, seen)) = &last.seen
            && *number > begun_before
        {
            return Ok(seen.clone());
        }
        if self.askers.load(SeqCst) >= MANY {
            sleep_until(last.ended + (last.took * PAUSE).min(LONGEST_PAUSE)).await;
        }
        let number = self.begun.fetch_add(1, SeqCst) + 1;
        let mut wanted = mem::take(&mut *self.wanted());
        // Another's look that failed may have taken it.
        wanted.add(scope);
        let began = Instant::now();
        let looked = look(wanted).await;
        (last.ended, last.took) = (Instant::now(), began.elapsed());
        let seen = looked?;
        last.seen = Some((number, seen.clone()));
        Ok(seen)
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, Scope> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending, time::Duration};

    use futures::future::join_all;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// A look takes a second, and shows how many there were.
    async fn look(count: &Cell<u32>) -> Result<u32, ()> {
        count.set(count.get() + 1);
        let number = count.get();
        sleep(Duration::from_secs(1)).await;
        Ok(number)
    }

    fn hosts(hosts: &[u32]) -> Scope {
        Scope { hosts: hosts.iter().copied().collect(), ..Scope::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_during_a_look_gets_the_next_one_and_all_of_them_the_same() {
        let (looks, count) = (Looks::default(), Cell::new(0));
        let ask = || looks.share(Scope::default(), async |_| look(&count).await);
        let late = async {
            sleep(Duration::from_millis(500)).await;
            join_all((0..16).map(|_| ask())).await
        };
        let (first, late) = tokio::join!(ask(), late);
        assert_eq!(first, Ok(1));
        assert!(late.into_iter().all(|seen| seen == Ok(2)));
        assert_eq!(ask().await, Ok(3), "an old one is given to nobody");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_fails_or_is_given_up_is_nobody_elses() {
        let (looks, count) = (Looks::default(), Cell::new(0));
        let ask = || looks.share(Scope::default(), async |_| look(&count).await);
        let fails = looks.share(Scope::default(), async |_| Err(()));
        let (failed, seen) = tokio::join!(fails, ask());
        assert_eq!((failed, seen), (Err(()), Ok(1)));
        let hangs = looks.share(Scope::default(), async |_| pending::<Result<u32, ()>>().await);
        assert!(timeout(Duration::from_secs(1), hangs).await.is_err());
        assert_eq!(ask().await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_has_what_all_want_that_it_serves_and_nobody_elses() {
        let looks = Looks::default();
        let seen = async |wanted: u32| {
            let what = async |scope: Scope| {
                sleep(Duration::from_secs(1)).await;
                Ok::<_, ()>(scope.hosts.into_iter().collect::<Vec<_>>())
            };
            looks.share(hosts(&[wanted]), what).await.unwrap()
        };
        let late = async {
            sleep(Duration::from_millis(500)).await;
            tokio::join!(seen(2), seen(3))
        };
        let (first, late) = tokio::join!(seen(1), late);
        assert_eq!((first, late), (vec![1], (vec![2, 3], vec![2, 3])));
        // What a look took that failed is seen by the next one of who wanted it.
        let fails = looks.share(hosts(&[4]), async |_| {
            sleep(Duration::from_secs(1)).await;
            Err::<Vec<u32>, ()>(())
        });
        let (failed, next) = tokio::join!(fails, seen(5));
        assert!(failed.is_err() && next.contains(&5));
    }

    #[tokio::test(start_paused = true)]
    async fn where_many_ask_all_the_time_looks_have_pauses_and_one_alone_never_waits() {
        let (looks, count) = (Looks::default(), Cell::new(0));
        let ask = async || {
            for _ in 0..10 {
                let look = async |_| {
                    count.set(count.get() + 1);
                    sleep(Duration::from_millis(100)).await;
                    Ok::<_, ()>(())
                };
                looks.share(Scope::default(), look).await.unwrap();
            }
        };
        let began = Instant::now();
        ask().await;
        assert_eq!((count.take(), began.elapsed()), (10, Duration::from_secs(1)));
        let began = Instant::now();
        join_all((0..16).map(|_| ask())).await;
        let took = began.elapsed();
        assert!(took > count.get() * Duration::from_millis(250), "{count:?} {took:?}");
    }
}
