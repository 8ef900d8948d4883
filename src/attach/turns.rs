//! Turns at open-iscsi: how many volumes log in or out at once.
//!
//! Every `iscsiadm` reads every node record there is, and takes the database's lock for each; it tries for
//! the lock every 10 ms. Many side by side are slower than few, and where the processors are busy some take
//! longer than their limit.

use std::{thread, time::Duration};

use tokio::sync::Semaphore;

/// A turn ends after this, though the work goes on: an iscsid that hangs must not stop everybody. With
/// hundreds of volumes a login takes many seconds on a busy node, and a portal that doesn't answer 10 s (the
/// next ones don't wait for it: `SilentPortals` of the host); were the turn over by then, there would soon
/// be no turns.
const TURN: Duration = Duration::from_secs(20);

/// Who waits gets the next turn, in order.
#[derive(Debug)]
pub(super) struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self(Semaphore::new(processors.clamp(2, 8)))
    }
}

impl Turns {
    /// Does the work when it has its turn.
    pub(super) async fn take<T>(&self, work: impl Future<Output = T>) -> T {
        let turn = self.0.acquire().await;
        let mut work = Box::pin(work);
        if let Ok(done) = tokio::time::timeout(TURN, &mut work).await {
            return done;
        }
        drop(turn);
        work.await
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use tokio::time::{Instant, sleep};

    use super::*;

    /// How long it takes, in ms, until all of that many are done, each of which takes so long.
    async fn until_done(turns: usize, count: usize, each: Duration) -> u128 {
        let turns = Turns(Semaphore::new(turns));
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
}
