//! What the bulk streams of one migration share: byte counts, the cap on their rate, and the word
//! that ends them.
//!
//! The cap is a token bucket in front of QUIC: it counts what is written to streams. Headers,
//! acknowledgements and packets sent again come on top, a few percent on a sound path.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What may be sent at once after a pause. Above the granularity of timers, so that the cap is
/// also reached.
const BURST: Duration = Duration::from_millis(20);

/// Shared by all bulk streams of a migration, and with whoever shows progress.
#[derive(Debug, Default)]
pub struct Meter {
    /// Bytes of content read at the source.
    pub read: AtomicU64,
    /// Bytes put on the wire for them.
    pub sent: AtomicU64,
    pace: Option<Pace>,
    given_up: watch::Sender<bool>,
}

impl Meter {
    /// A meter whose streams together send at most `rate` bytes per second, if one is given.
    pub fn capped(rate: Option<u64>) -> Self {
        Self { pace: rate.map(Pace::new), ..Self::default() }
    }

    /// Ends all streams of this meter, or lets new ones be opened again. A writer that waits for a
    /// peer which reads nothing returns with [`super::bulk::BulkError::GivenUp`].
    pub fn give_up(&self, given_up: bool) {
        self.given_up.send_replace(given_up);
    }

    /// Whether the streams are to end.
    pub fn is_given_up(&self) -> bool {
        *self.given_up.borrow()
    }

    /// Resolves when the streams are to end.
    pub(super) async fn given_up(&self) {
        // The sender lives as long as `self`.
        let _ = self.given_up.subscribe().wait_for(|g| *g).await;
    }

    /// Resolves when `bytes` may be sent. Dropping it early loses their turn, nothing else.
    pub(super) async fn turn(&self, bytes: usize) {
        if let Some(pace) = &self.pace {
            tokio::time::sleep_until(pace.book(bytes, Instant::now())).await;
        }
    }
}

/// A token bucket, kept as the moment at which it will be empty.
#[derive(Debug)]
struct Pace {
    rate: u64,
    free: Mutex<Instant>,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), free: Mutex::new(Instant::now()) }
    }

    /// Books time on the wire, and answers when it begins.
    fn book(&self, bytes: usize, now: Instant) -> Instant {
        let takes = (bytes as u128 * 1_000_000_000 / u128::from(self.rate)).min(u128::from(u64::MAX));
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let start = (*free).max(earliest);
        *free = start + Duration::from_nanos(u64::try_from(takes).unwrap_or(u64::MAX));
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_books_one_turn_after_the_other() {
        let pace = Pace::new(1_000_000);
        let now = Instant::now() + Duration::from_secs(1);
        let starts: Vec<_> = (0..3).map(|_| pace.book(100_000, now)).collect();
        assert_eq!(starts[0], now - BURST);
        assert_eq!(starts[1], now - BURST + Duration::from_millis(100));
        assert_eq!(starts[2], now - BURST + Duration::from_millis(200));
        // After a pause there is one burst to spend, and not all that was left unused.
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.book(1, later), later - BURST);
    }
}
