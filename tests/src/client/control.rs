//! The standard streams of a load client.
//!
//! In: `mark NAME` closes a window and opens another, `peek` shows the open one, `stop` or the
//! end of input ends the run. Out: `{"window": ..}` for the first two, `{"report": ..}` at the end,
//! `{"ready": ..}` once connected.

use super::report::Books;
use serde::Serialize;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The shared state of a client: its books, and whether to stop.
#[derive(Debug, Clone)]
pub struct Control {
    books: Arc<Mutex<Books>>,
    stop: Arc<AtomicBool>,
    until: Instant,
}

impl Control {
    /// Begins to read commands. `run_time` bounds the run.
    pub(super) fn start(books: Books, run_time: Duration) -> Self {
        let control = Self {
            books: Arc::new(Mutex::new(books)),
            stop: Arc::new(AtomicBool::new(false)),
            until: Instant::now() + run_time,
        };
        let listener = control.clone();
        std::thread::spawn(move || listener.listen());
        control
    }

    fn listen(&self) {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            match word {
                "mark" => {
                    let window = self.books().mark(rest);
                    print_line("window", &window);
                }
                "peek" => {
                    let window = self.books().peek();
                    print_line("window", &window);
                }
                "stop" => break,
                "" => {}
                other => eprintln!("unknown command {other:?}: use mark NAME, peek or stop"),
            }
        }
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the run is over.
    pub(super) fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || Instant::now() >= self.until
    }

    /// Ends the run for all threads.
    pub(super) fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Sleeps until `when`, or until the run is over.
    pub(super) fn sleep_until(&self, when: Instant) {
        while !self.over() {
            let left = when.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}

/// Prints `{"KEY": value}` on a line of its own. A reader that is gone ends nothing here: the end
/// of the input does.
pub(super) fn print_line<T: Serialize>(key: &str, value: &T) {
    let Ok(text) = serde_json::to_string(value) else { return };
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{{\"{key}\":{text}}}").and_then(|()| out.flush());
}
