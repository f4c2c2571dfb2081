//! The event log of a migration, and who watches it.
//!
//! Events are kept from the first one on, so that a controller can come late, come back, or never
//! come. Progress events replace each other while nothing else follows, which bounds the log: a
//! migration has a few dozen events however long it takes.

use crate::journal::now_ms;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;
use tranship_proto::ids::MigrationId;
use tranship_proto::status::{Event, EventBody};

/// Most events kept. Notices beyond it are dropped; ends never are.
const MAX_EVENTS: usize = 4096;

#[derive(Debug)]
struct Inner {
    events: Vec<Event>,
    next: u64,
}

/// The log of one migration. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventLog {
    migration: MigrationId,
    inner: Arc<Mutex<Inner>>,
    seen: Arc<watch::Sender<u64>>,
}

impl EventLog {
    /// An empty log.
    pub fn new(migration: MigrationId) -> Self {
        let inner = Inner { events: Vec::new(), next: 1 };
        Self { migration, inner: Arc::new(Mutex::new(inner)), seen: Arc::new(watch::Sender::new(0)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while holding it leaves a whole log: pushes are the last thing done.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Appends an event and wakes the watchers.
    pub fn push(&self, body: EventBody) {
        let mut inner = self.lock();
        let progress = |b: &EventBody| matches!(b, EventBody::Progress { .. });
        if progress(&body) && inner.events.last().is_some_and(|e| progress(&e.body)) {
            inner.events.pop();
        }
        if inner.events.len() >= MAX_EVENTS && !body.is_last() {
            return;
        }
        let seq = inner.next;
        inner.next += 1;
        inner.events.push(Event { migration: self.migration, seq, at_unix_ms: now_ms(), body });
        drop(inner);
        self.seen.send_replace(seq);
    }

    /// Events with a number of at least `from`, waiting for one when there is none.
    ///
    /// The end is given whatever its number: a watcher that comes back after a restart of the agent
    /// asks for one that the new log, which begins at 1, may never reach. Cancel-safe.
    pub async fn after(&self, from: u64) -> Vec<Event> {
        let mut seen = self.seen.subscribe();
        loop {
            {
                let inner = self.lock();
                let wanted = |e: &&Event| e.seq >= from || e.body.is_last();
                let found: Vec<Event> = inner.events.iter().filter(wanted).cloned().collect();
                if !found.is_empty() {
                    return found;
                }
            }
            if seen.changed().await.is_err() {
                return Vec::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_proto::status::{Failure, Phase, Reason, Side};

    fn id() -> MigrationId {
        MigrationId(uuid::Uuid::nil())
    }

    #[tokio::test]
    async fn a_late_watcher_sees_everything_but_stale_progress() {
        let log = EventLog::new(id());
        log.push(EventBody::PhaseStarted { phase: Phase::Stage });
        for done_bytes in 0..10 {
            log.push(EventBody::Progress {
                phase: Phase::Stage,
                done_bytes,
                total_bytes: None,
                bytes_per_second: 0,
            });
        }
        let failure = Failure::new(Reason::Failed, Side::Source, "x");
        log.push(EventBody::Failed { failure });
        let seen = log.after(1).await;
        assert_eq!(seen.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 11, 12]);
        let again: Vec<u64> = log.after(13).await.iter().map(|e| e.seq).collect();
        assert_eq!(again, [12], "the end is told to whoever asks for what comes after it");
    }
}
