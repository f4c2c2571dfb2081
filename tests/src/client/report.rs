//! What a load client saw, as it is printed: one JSON object a line.

use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A silence longer than this is listed by itself.
pub const NOTABLE_GAP: Duration = Duration::from_millis(50);
/// Gaps listed at most; all are counted.
const MAX_GAPS: usize = 10_000;
/// Failures listed at most.
const MAX_FAILURES: usize = 100;
/// Latencies kept; enough for more than an hour at 1000 a second (16 MiB).
const MAX_LATENCIES: usize = 4 << 20;

/// An interval between two replies that was longer than 50 ms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// Replies before it.
    pub after_reply: u64,
    /// Its length.
    pub length_us: u64,
    /// When the reply before it came: microseconds since the client began, monotonic.
    pub at_us: u64,
    /// The same by the wall clock, milliseconds since 1970.
    pub at_unix_ms: u64,
}

/// Latency of replies, from the moment a request was written, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub p50_us: u32,
    pub p90_us: u32,
    pub p99_us: u32,
    pub p999_us: u32,
    pub max_us: u32,
}

/// What was seen between two marks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Name that the mark before it gave.
    pub name: String,
    /// Replies.
    pub replies: u64,
    /// Longest interval without a reply; one that is still open counts up to now.
    pub longest_gap_us: u64,
    /// Length of the window.
    pub length_us: u64,
    /// Failures so far, over the whole run.
    pub failures: u64,
}

/// What was seen in the whole run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Requests written.
    pub requests: u64,
    /// Good replies.
    pub replies: u64,
    /// Payload bytes compared.
    pub bytes: u64,
    /// Connections opened. A client opens as many as it was told to and never another one.
    pub connections: u32,
    /// Connections ended by the other side with a reset.
    pub resets: u32,
    /// Length of the run.
    pub length_us: u64,
    /// Longest interval without a reply.
    pub longest_gap_us: u64,
    /// Intervals over 50 ms; the first 10000.
    pub gaps: Vec<Gap>,
    /// Latency of replies.
    pub latency: Latency,
    /// Last number that the server counted to, where it counts.
    pub last_value: Option<i64>,
    /// Windows closed by marks.
    pub windows: Vec<Window>,
    /// What was not as it should be; empty is good. The first 100.
    pub failures: Vec<String>,
}

/// The books of a running client.
#[derive(Debug)]
pub(super) struct Books {
    report: LoadReport,
    began: Instant,
    window: Window,
    window_began: Instant,
    last_reply: Instant,
    latencies: Vec<u32>,
}

impl Books {
    pub(super) fn new(connections: u32) -> Self {
        let now = Instant::now();
        Self {
            report: LoadReport { connections, ..LoadReport::default() },
            began: now,
            window: Window { name: "start".into(), ..Window::default() },
            window_began: now,
            last_reply: now,
            latencies: Vec::new(),
        }
    }

    /// Starts the clock of the gaps anew: connecting is not a gap.
    pub(super) fn ready(&mut self) {
        self.last_reply = Instant::now();
    }

    pub(super) fn request(&mut self) {
        self.report.requests += 1;
    }

    /// A good reply, to a request written at `sent`, with `bytes` of payload.
    pub(super) fn reply(&mut self, sent: Instant, bytes: u64) {
        let now = Instant::now();
        let latency = now.saturating_duration_since(sent).as_micros();
        if self.latencies.len() < MAX_LATENCIES {
            self.latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
        }
        self.sign_of_life(now);
        self.report.replies += 1;
        self.report.bytes += bytes;
        self.window.replies += 1;
    }

    /// Something arrived that is not a whole reply: ends a gap, and counts for nothing else.
    pub(super) fn sign_of_life(&mut self, now: Instant) {
        let silence = now.saturating_duration_since(self.last_reply);
        let micros = micros(silence);
        self.report.longest_gap_us = self.report.longest_gap_us.max(micros);
        // The part of a silence before the mark belongs to the window before it.
        let within = micros.min(self::micros(now.saturating_duration_since(self.window_began)));
        self.window.longest_gap_us = self.window.longest_gap_us.max(within);
        if silence > NOTABLE_GAP && self.report.gaps.len() < MAX_GAPS {
            self.report.gaps.push(Gap {
                after_reply: self.report.replies,
                length_us: micros,
                at_us: self::micros(self.last_reply.saturating_duration_since(self.began)),
                at_unix_ms: unix_ms().saturating_sub(micros / 1000),
            });
        }
        self.last_reply = now;
    }

    pub(super) fn value(&mut self, value: i64) {
        self.report.last_value = Some(value);
    }

    pub(super) fn fail(&mut self, what: String) {
        if self.report.failures.len() < MAX_FAILURES {
            self.report.failures.push(what);
        }
        self.window.failures += 1;
    }

    /// A connection failed.
    pub(super) fn lost(&mut self, what: &str, e: &std::io::Error) {
        if matches!(e.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe) {
            self.report.resets += 1;
        }
        self.fail(format!("{what}: {e}"));
    }

    /// Closes the window and opens one called `next`.
    pub(super) fn mark(&mut self, next: &str) -> Window {
        let now = Instant::now();
        let mut done = self.peek();
        self.window = Window { name: next.into(), failures: done.failures, ..Window::default() };
        self.window_began = now;
        done.length_us = done.length_us.max(1);
        self.report.windows.push(done.clone());
        done
    }

    /// The open window as it is now.
    pub(super) fn peek(&self) -> Window {
        let now = Instant::now();
        let mut window = self.window.clone();
        window.length_us = micros(now.saturating_duration_since(self.window_began));
        let open = micros(now.saturating_duration_since(self.last_reply)).min(window.length_us);
        window.longest_gap_us = window.longest_gap_us.max(open);
        window
    }

    /// The whole run.
    pub(super) fn finish(&mut self) -> LoadReport {
        let last = self.peek();
        self.report.windows.push(last);
        self.report.length_us = micros(self.began.elapsed());
        self.latencies.sort_unstable();
        let at = |per_mille: usize| {
            let last = self.latencies.len().saturating_sub(1);
            self.latencies.get((self.latencies.len() * per_mille / 1000).min(last)).copied().unwrap_or(0)
        };
        self.report.latency =
            Latency { p50_us: at(500), p90_us: at(900), p99_us: at(990), p999_us: at(999), max_us: at(1000) };
        std::mem::take(&mut self.report)
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_is_a_gap_of_its_window_and_of_the_run() {
        let mut books = Books::new(1);
        books.ready();
        let t = Instant::now();
        books.reply(t, 1);
        std::thread::sleep(Duration::from_millis(70));
        books.reply(Instant::now(), 1);
        let first = books.mark("second");
        assert!(first.longest_gap_us >= 70_000, "{first:?}");
        books.reply(Instant::now(), 1);
        assert!(books.peek().longest_gap_us < 50_000);
        let report = books.finish();
        assert_eq!(report.gaps.len(), 1);
        assert_eq!(report.replies, 3);
        assert!(report.longest_gap_us >= 70_000);
        assert_eq!(report.windows.len(), 2);
    }

    #[test]
    fn a_silence_that_lasts_is_seen_before_it_ends() {
        let mut books = Books::new(1);
        books.ready();
        std::thread::sleep(Duration::from_millis(60));
        assert!(books.peek().longest_gap_us >= 60_000);
    }
}
