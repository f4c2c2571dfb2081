//! The stage step: what is carried while the container runs.
//!
//! Files and memory go beside each other: a pass mostly waits, for the disk and for the destination, and
//! neither may be old when the container is frozen, for what has changed since is carried in the blackout.
//! So they take turns until both are fresh. Rejected: passes first and rounds after them. With 30 MiB/s
//! written to files the rounds over 1 GiB left 150 MiB of them for the blackout, which tripled it, and made
//! it grow with the memory.

use super::dump::Dump;
use super::memory::{Aim, Memory, PAUSE, rounds};
use super::work::{Tree, Work, bytes, failed};
use crate::storage::{TreeLimits, TreeSource};
use std::future::Future;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tranship_proto::handoff::MemoryMode;
use tranship_proto::status::Failure;

/// Passes over the files in one turn, at most.
const MAX_PASSES: u32 = 5;
/// A pass that would carry no more than this may be left for the blackout.
const SETTLED_BYTES: u64 = 4 << 20;
/// How old a pass may become whatever it has seen: who writes now and then is not seen by each.
const FRESH_FILES: Duration = Duration::from_secs(1);
/// How old the count of what a round has left may become.
const FRESH_MEMORY: Duration = Duration::from_millis(100);
/// Turns without a wish for the blackout, at most: who writes files faster than they are carried is frozen
/// all the same.
const MAX_TURNS: u32 = 5;

/// What is written to the files meanwhile.
#[derive(Debug, Default)]
struct Written {
    passes: u32,
    /// Beginning of the last pass.
    since: Option<Instant>,
    /// What that one took: what follows at once is no fresher.
    took: Duration,
    /// Bytes a second that it found new; none was seen to follow another before.
    rate: f64,
}

impl Written {
    /// A pass that began at a moment has found so much by now.
    fn found(&mut self, began: Instant, bytes: u64) {
        self.passes += 1;
        if let Some(before) = self.since {
            // Bytes are far below 2^53.
            #[allow(clippy::cast_precision_loss)]
            let bytes = bytes as f64;
            self.rate = bytes / before.elapsed().as_secs_f64().max(0.001);
        }
        self.since = Some(began);
        self.took = began.elapsed();
    }

    /// Bytes that a pass would find now.
    fn pending(&self) -> u64 {
        let age = self.since.map_or(0.0, |s| s.elapsed().as_secs_f64());
        // A positive number; one that is too large becomes the largest.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let pending = (self.rate * age) as u64;
        pending
    }

    fn fresh(&self) -> bool {
        let limit = FRESH_FILES.max(self.took * 2);
        self.pending() <= SETTLED_BYTES && self.since.is_some_and(|s| s.elapsed() <= limit)
    }
}

impl Work {
    pub(super) async fn stage(&mut self) -> Result<(), Failure> {
        for tree in &self.ctx.engine.trees(self.container()?) {
            let source = TreeSource::open(&tree.host_path, TreeLimits::default())
                .map_err(|e| failed("read the container's files", &e, None))?;
            self.trees.push(Tree { index: tree.index, source, passes: 0 });
        }
        let way = self.way()?;
        let fast = self.meter.fast() && self.options.mode == MemoryMode::Fast;
        let memory_bytes = if fast { self.offered_bytes } else { 0 };
        self.meter.expected.store(self.expected_bytes.saturating_add(memory_bytes), Ordering::Relaxed);
        // Beside the rest: it takes its time to start.
        self.dump = Some(Dump::start(&way, fast)?);
        let mut written = Written::default();
        if !fast {
            self.passes(&mut written).await?;
            self.meter.say(format!("{} passes over the files", written.passes));
            return Ok(());
        }
        let mut aim = Aim::new(&way, &self.options);
        let mut memory = Memory::new(self.offered_bytes)?;
        let mut turn = 1;
        loop {
            let bulk = self.meter.bulk.clone();
            let passes = self.passes(&mut written);
            let ((), (m, mut left)) =
                both(passes, rounds(&way, memory, &mut aim), || bulk.give_up(true)).await?;
            memory = m;
            if left.counted.elapsed() > FRESH_MEMORY {
                (memory, left) = rounds(&way, memory, &mut aim).await?;
            }
            let forecast = aim.forecast(left.pages, written.pending());
            tracing::debug!(turn, ?left, ?written, ?forecast, "turn");
            if aim.reached(&forecast) && (written.fresh() || turn >= MAX_TURNS) {
                self.meter.say(format!(
                    "{} rounds over the memory, {} left, {} passes over the files, blackout of {} ms predicted",
                    memory.totals().rounds,
                    bytes(left.bytes().saturating_add(written.pending())),
                    written.passes,
                    forecast.blackout().as_millis()
                ));
                *self.meter.forecast.lock().unwrap_or_else(PoisonError::into_inner) = Some(forecast);
                self.memory = Some(memory);
                return Ok(());
            }
            if !aim.reached(&forecast) {
                aim.in_time(&forecast, &left, written.rate)?;
                tokio::time::sleep(PAUSE).await;
            }
            turn += 1;
        }
    }

    /// Passes over the files until one has found little.
    async fn passes(&mut self, written: &mut Written) -> Result<(), Failure> {
        for _ in 0..MAX_PASSES {
            let (began, before) = (Instant::now(), self.meter.file_bytes.load(Ordering::Relaxed));
            self.pass_all(false).await?;
            let found = self.meter.file_bytes.load(Ordering::Relaxed) - before;
            written.found(began, found);
            if found <= SETTLED_BYTES {
                break;
            }
        }
        Ok(())
    }
}

/// Both to their ends. When one fails the other is told to give up, and the first failure is the answer.
async fn both<A, B>(
    a: impl Future<Output = Result<A, Failure>>,
    b: impl Future<Output = Result<B, Failure>>,
    give_up: impl Fn(),
) -> Result<(A, B), Failure> {
    let mut a = std::pin::pin!(a);
    let mut b = std::pin::pin!(b);
    tokio::select! {
        a = &mut a => match a {
            Ok(a) => Ok((a, b.await?)),
            Err(first) => {
                give_up();
                if let Err(then) = b.await {
                    tracing::debug!(failure = %then, "given up with the files");
                }
                Err(first)
            }
        },
        b = &mut b => match b {
            Ok(b) => Ok((a.await?, b)),
            Err(first) => {
                give_up();
                if let Err(then) = a.await {
                    tracing::debug!(failure = %then, "given up with the memory");
                }
                Err(first)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tranship_proto::status::{Reason, Side};

    fn ago(ms: u64) -> Instant {
        Instant::now().checked_sub(Duration::from_millis(ms)).unwrap()
    }

    #[test]
    fn what_was_written_is_judged_by_rate_and_age() {
        let mut w = Written::default();
        assert!(!w.fresh(), "nothing was read yet");
        w.found(ago(300), 1 << 40);
        assert!(w.fresh() && w.pending() == 0, "the first pass says nothing about the rate");
        w.found(ago(200), 30 << 20);
        assert!((15 << 20..25 << 20).contains(&w.pending()), "100 MiB/s for 200 ms: {}", w.pending());
        assert!(!w.fresh());
        w.found(ago(10), 20 << 20);
        assert!(w.fresh(), "100 MiB/s for 10 ms");
        w.found(ago(0), 0);
        w.since = Some(ago(1100));
        assert!(!w.fresh() && w.pending() == 0, "too long ago to know");
        w.found(ago(3000), 0);
        assert!(w.fresh(), "another pass over so large a tree would be as old when it is done");
        w.since = Some(ago(7000));
        assert!(!w.fresh());
    }

    fn failure(text: &str) -> Failure {
        Failure::new(Reason::Failed, Side::Source, text)
    }

    #[tokio::test]
    async fn one_that_fails_ends_the_other() {
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let tell = Cell::new(Some(tell));
        let waits = async {
            let _ = told.await;
            Err::<(), _>(failure("given up"))
        };
        let give_up = || drop(tell.take());
        let result = both(async { Err::<(), _>(failure("no disk")) }, waits, give_up).await;
        assert_eq!(result.unwrap_err().message, "no disk");
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let tell = Cell::new(Some(tell));
        let waits = async {
            let _ = told.await;
            Err::<(), _>(failure("given up"))
        };
        let result = both(waits, async { Err::<(), _>(failure("too busy")) }, || drop(tell.take())).await;
        assert_eq!(result.unwrap_err().message, "too busy");
        let fine = both(async { Ok(1) }, async { Ok(2) }, || unreachable!()).await;
        assert_eq!(fine.unwrap(), (1, 2));
    }
}
