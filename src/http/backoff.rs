use std::time::Duration;

use uuid::Uuid;

/// Longest pause between two tries of one call. A cloud that wants a longer one gets it from the
/// caller, who has other things to do meanwhile.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long to wait after a try (the first is 0): doubling, at least half of it, the rest by
/// chance, so that the nodes of a cluster don't come back in step.
pub(crate) fn pause(first: Duration, tried: u32) -> Duration {
    let whole = first.saturating_mul(1 << tried.min(16)).min(LONGEST_PAUSE);
    whole.mul_f64(0.5 + chance() / 2.0)
}

/// From 0 to 1.
fn chance() -> f64 {
    let [byte, ..] = *Uuid::new_v4().as_bytes();
    f64::from(byte) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_stay_between_half_and_whole_and_below_the_limit() {
        let first = Duration::from_millis(200);
        for (tried, whole) in [(0, 200), (1, 400), (2, 800), (30, 10_000)] {
            let whole = Duration::from_millis(whole);
            for _ in 0..50 {
                let pause = pause(first, tried);
                assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
            }
        }
    }
}
