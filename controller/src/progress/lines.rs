//! Plain lines, for logs and pipes.

use super::{Subject, View, heading, phase_line, progress_words};
use crate::output::clean_line;
use std::io::Write;
use std::time::{Duration, Instant};
use tranship_proto::status::{Event, EventBody};

/// At most one line of progress in this time: a log of an hour's copy stays readable.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// Writes one line for each finished phase, and a line of progress now and then.
pub struct Lines<W> {
    out: W,
    last_progress: Option<Instant>,
}

impl<W: Write> Lines<W> {
    /// A view on `out`.
    pub fn new(out: W) -> Self {
        Self { out, last_progress: None }
    }

    fn line(&mut self, text: &str) {
        // A closed stderr must not end the watching.
        let _ = writeln!(self.out, "{text}");
    }
}

impl<W: Write + Send> View for Lines<W> {
    fn accepted(&mut self, subject: &Subject) {
        self.line(&heading(subject));
        self.last_progress = Some(Instant::now());
    }

    fn event(&mut self, event: &Event) {
        match &event.body {
            EventBody::Progress { phase, done_bytes, total_bytes, bytes_per_second } => {
                if self.last_progress.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY) {
                    self.last_progress = Some(Instant::now());
                    let words = progress_words(*done_bytes, *total_bytes, *bytes_per_second);
                    self.line(&format!("  {:<8} {words}", phase.as_str()));
                }
            }
            EventBody::Notice { text } => self.line(&format!("  note: {}", clean_line(text))),
            EventBody::PhaseStarted { .. } | EventBody::Done { .. } | EventBody::Failed { .. } => {}
            body @ EventBody::PhaseDone { .. } => {
                if let Some(line) = phase_line(body) {
                    self.line(&line);
                }
            }
        }
    }

    fn notice(&mut self, text: &str) {
        self.line(&clean_line(text));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{event, subject};
    use super::*;
    use tranship_proto::status::Phase;

    #[test]
    fn a_phase_is_a_line_and_progress_is_rare() {
        let mut out = Vec::new();
        let mut view = Lines::new(&mut out);
        view.accepted(&subject());
        view.event(&event(1, EventBody::PhaseStarted { phase: Phase::Stage }));
        for seq in 2..1000 {
            let body = EventBody::Progress {
                phase: Phase::Stage,
                done_bytes: seq,
                total_bytes: None,
                bytes_per_second: 1,
            };
            view.event(&event(seq, body));
        }
        view.event(&event(1000, EventBody::Notice { text: "one\n\u{1b}two".into() }));
        let note = "12 files".to_owned();
        view.event(&event(1001, EventBody::PhaseDone { phase: Phase::Stage, micros: 1_500_000, note }));
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "moving web from host-a to host-b, migration 0199aaaa-0000-7000-8000-0000000000ff\n\
             \x20 note: one; \u{fffd}two\n  stage       1.50 s  12 files\n"
        );
    }

    #[test]
    fn progress_is_shown_when_it_is_due() {
        let mut out = Vec::new();
        let mut view = Lines::new(&mut out);
        let body = EventBody::Progress {
            phase: Phase::Copy,
            done_bytes: 1 << 20,
            total_bytes: Some(2 << 20),
            bytes_per_second: 1 << 20,
        };
        view.event(&event(1, body));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "  copy     1.0 MiB of 2.0 MiB (50 %), 1.0 MiB/s, 1 s left\n"
        );
    }
}
