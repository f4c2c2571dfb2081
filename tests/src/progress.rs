//! Telling what is being done while it is done.

use std::time::Instant;

/// Receives one line a step.
pub trait Progress {
    /// Something is starting or was found; a short line without a full stop.
    fn step(&self, text: &str);
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _: &str) {}
}

/// Writes lines with the time since the start to standard error.
#[derive(Debug)]
pub struct Terminal(Instant);

impl Default for Terminal {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Progress for Terminal {
    fn step(&self, text: &str) {
        eprintln!("[{:6.1}s] {text}", self.0.elapsed().as_secs_f64());
    }
}
