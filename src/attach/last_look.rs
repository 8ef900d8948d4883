//! The look at the node that a decision was made on. It serves the next decision, too, where nothing
//! can have changed in between: a look costs the more, the more is attached.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

/// How long a look may be used again where no event came since: events may be lost.
const GOOD: Duration = Duration::from_secs(2);

/// The last look, and whether it may serve again.
#[derive(Debug)]
pub(super) struct LastLook<T> {
    kept: Option<T>,
    begun: Instant,
    took: Duration,
}

impl<T> LastLook<T> {
    /// None yet.
    pub(super) fn none() -> Self {
        Self { kept: None, begun: Instant::now(), took: Duration::ZERO }
    }

    /// The look that was kept, where no event came since it began, or a new one.
    ///
    /// # Errors
    /// Those of the new one.
    pub(super) async fn again_or<E>(
        &mut self,
        look: impl Future<Output = Result<T, E>>,
        events: &mut watch::Receiver<u64>,
    ) -> Result<T, E> {
        let unmoved = !events.has_changed().unwrap_or(true);
        let kept = self.kept.take();
        if let Some(seen) = kept.filter(|_| unmoved && self.begun.elapsed() < GOOD) {
            return Ok(seen);
        }
        events.mark_unchanged();
        self.begun = Instant::now();
        let seen = look.await?;
        self.took = self.begun.elapsed();
        Ok(seen)
    }

    /// Keeps what it showed: what was done since leaves the node as it was.
    pub(super) fn keep(&mut self, seen: T) {
        self.kept = Some(seen);
    }

    /// How long the last one took.
    pub(super) fn took(&self) -> Duration {
        self.took
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::time::{advance, sleep};

    use super::*;

    async fn look(number: &mut u32) -> Result<u32, Infallible> {
        sleep(Duration::from_millis(100)).await;
        *number += 1;
        Ok(*number)
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_serves_again_only_where_it_was_kept_no_event_came_and_it_is_not_old() {
        let (event, mut events) = watch::channel(0);
        let (mut last, mut looks) = (LastLook::none(), 0);
        let first = last.again_or(look(&mut looks), &mut events).await;
        assert_eq!((first, last.took()), (Ok(1), Duration::from_millis(100)));
        assert_eq!(last.again_or(look(&mut looks), &mut events).await, Ok(2), "it was not kept");
        last.keep(2);
        assert_eq!(last.again_or(look(&mut looks), &mut events).await, Ok(2));
        assert_eq!(last.again_or(look(&mut looks), &mut events).await, Ok(3), "kept once");
        last.keep(3);
        event.send_replace(1);
        assert_eq!(last.again_or(look(&mut looks), &mut events).await, Ok(4), "an event came");
        last.keep(4);
        advance(GOOD).await;
        assert_eq!(last.again_or(look(&mut looks), &mut events).await, Ok(5), "it is old");
        last.keep(5);
        drop(event);
        assert_eq!(last.again_or(look(&mut looks), &mut events).await, Ok(6), "nobody tells");
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_during_a_look_makes_it_serve_but_once() {
        let (event, mut events) = watch::channel(0);
        let (mut last, mut looks) = (LastLook::none(), 0);
        let during = async {
            event.send_replace(1);
            look(&mut looks).await
        };
        assert_eq!(last.again_or(during, &mut events).await, Ok(1));
        last.keep(1);
        assert_eq!(last.again_or(look(&mut looks), &mut events).await, Ok(2));
    }
}
