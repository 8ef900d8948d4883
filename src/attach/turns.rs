//! Turns at open-iscsi: how many volumes log in or out at once.
//!
//! Every `iscsiadm` reads every node record there is, and takes the database's lock for each; it tries for
//! the lock every 10 ms. iscsid does one thing at a time, and reads every session before each login. Many
//! side by side are slower than few; where one login takes seconds, those beside it reach their limit while
//! iscsid has not come to them.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use tokio::{
    sync::{AcquireError, Mutex, Semaphore, SemaphorePermit},
    time::timeout,
};

/// A turn ends after this, though the work goes on: an iscsid that hangs must not stop everybody. With
/// hundreds of volumes a login takes many seconds on a busy node, and a portal that doesn't answer 10 s (the
/// next ones don't wait for it: `SilentPortals` of the host); were the turn over by then, there would soon
/// be no turns.
const TURN: Duration = Duration::from_secs(20);

/// After a login that took this long, the next one has nobody beside it: a third of what iscsid gives it.
const LONG: Duration = Duration::from_secs(3);

/// Who waits gets the next turn, in order.
#[derive(Debug)]
pub(super) struct Turns {
    places: Semaphore,
    all: u32,
    /// Of who waits, one alone waits for places: it may need all of them.
    next: Mutex<()>,
    one_at_a_time: AtomicBool,
}

impl Default for Turns {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self::new(processors.clamp(2, 8))
    }
}

impl Turns {
    fn new(all: usize) -> Self {
        let places = Semaphore::new(all);
        let all = u32::try_from(all).unwrap_or(u32::MAX);
        Self { places, all, next: Mutex::default(), one_at_a_time: AtomicBool::default() }
    }

    /// Does the work when it has its turn.
    pub(super) async fn take<T>(&self, work: impl Future<Output = T>) -> T {
        let turn = self.places().await;
        let mut work = Box::pin(work);
        if let Ok(done) = timeout(TURN, &mut work).await {
            return done;
        }
        drop(turn);
        work.await
    }

    async fn places(&self) -> [Result<SemaphorePermit<'_>, AcquireError>; 2] {
        let _next = self.next.lock().await;
        let one = self.places.acquire().await;
        let others = if self.one_at_a_time.load(Relaxed) { self.all - 1 } else { 0 };
        [one, self.places.acquire_many(others).await]
    }

    /// Learns how long a login took that came to a good end. Of one that didn't, its portal may be the cause.
    pub(super) fn learn(&self, login: Duration) {
        self.one_at_a_time.store(login >= LONG, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use tokio::time::{Instant, sleep};

    use super::*;

    /// How long it takes, in ms, until all of that many are done, each of which takes so long.
    async fn until_done(turns: usize, count: usize, each: Duration) -> u128 {
        let turns = Turns::new(turns);
        let began = Instant::now();
        join_all((0..count).map(|_| turns.take(async { sleep(each).await }))).await;
        began.elapsed().as_millis()
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_have_their_turn_and_the_others_wait() {
        assert_eq!(until_done(2, 6, Duration::from_secs(1)).await, 3000);
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_goes_on_and_gives_its_turn_away() {
        assert_eq!(until_done(2, 6, Duration::from_mins(1)).await, 100_000);
    }

    #[tokio::test(start_paused = true)]
    async fn where_a_login_takes_long_the_next_has_nobody_beside_it_until_one_does_not() {
        let turns = Turns::new(2);
        let login = async |took: Duration| {
            let work = async {
                sleep(took).await;
                turns.learn(took);
            };
            turns.take(work).await;
        };
        let began = Instant::now();
        let all = [4, 4, 4, 4, 1, 1, 1].map(|seconds| login(Duration::from_secs(seconds)));
        join_all(all).await;
        // Two at once, three one at a time, two at once.
        assert_eq!(began.elapsed().as_secs(), 4 + (4 + 4 + 1) + 1);
    }
}
