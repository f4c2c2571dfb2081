//! A live line on a terminal: the phase under way with its bar; finished phases stay above it.

use super::{Subject, View, heading, phase_line, seconds_left};
use crate::output::{bytes, clean_line, seconds};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;
use tranship_proto::status::{Event, EventBody, Phase};

/// Draws on stderr.
pub struct Bars {
    bar: ProgressBar,
    phase: Option<Phase>,
    with_total: bool,
}

impl Default for Bars {
    fn default() -> Self {
        Self::new()
    }
}

impl Bars {
    /// A view on stderr.
    pub fn new() -> Self {
        // Ten redraws a second: smooth, and next to nothing over a slow terminal line.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        Self { bar, phase: None, with_total: false }
    }

    fn style(&mut self, with_total: bool) {
        let template = if with_total {
            "  {prefix:<8} {spinner} [{bar:24}] {wide_msg}"
        } else {
            "  {prefix:<8} {spinner} {elapsed} {wide_msg}"
        };
        self.with_total = with_total;
        // The templates are constants; should one not parse, the default style is shown.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
    }

    fn begin(&mut self, phase: Phase) {
        self.phase = Some(phase);
        self.style(false);
        self.bar.set_prefix(phase.as_str());
        self.bar.set_message("");
        self.bar.reset();
        self.bar.enable_steady_tick(Duration::from_millis(120));
    }

    fn line(&self, text: &str) {
        match self.phase {
            // Nothing is drawn yet, and suspending would draw an empty bar.
            None => eprintln!("{text}"),
            Some(_) => self.bar.suspend(|| eprintln!("{text}")),
        }
    }
}

impl View for Bars {
    fn accepted(&mut self, subject: &Subject) {
        self.line(&heading(subject));
    }

    fn event(&mut self, event: &Event) {
        match &event.body {
            EventBody::PhaseStarted { phase } => self.begin(*phase),
            EventBody::Progress { phase, done_bytes, total_bytes, bytes_per_second } => {
                if self.phase != Some(*phase) {
                    self.begin(*phase);
                }
                let total = total_bytes.filter(|t| *t > 0);
                if self.with_total != total.is_some() {
                    self.style(total.is_some());
                }
                let mut words = bytes(*done_bytes);
                if let Some(total) = total {
                    self.bar.set_length(total);
                    self.bar.set_position((*done_bytes).min(total));
                    words.push_str(&format!(" of {}", bytes(total)));
                }
                if *bytes_per_second > 0 {
                    words.push_str(&format!(", {}/s", bytes(*bytes_per_second)));
                }
                if let Some(left) = seconds_left(*done_bytes, total, *bytes_per_second) {
                    words.push_str(&format!(", {} left", seconds(left)));
                }
                self.bar.set_message(words);
            }
            body @ EventBody::PhaseDone { .. } => {
                if let Some(line) = phase_line(body) {
                    self.line(&line);
                }
            }
            EventBody::Notice { text } => self.line(&format!("  note: {}", clean_line(text))),
            EventBody::Done { .. } | EventBody::Failed { .. } => self.close(),
        }
    }

    fn notice(&mut self, text: &str) {
        self.line(&clean_line(text));
    }

    fn close(&mut self) {
        if self.phase.take().is_some() {
            self.bar.finish_and_clear();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.close();
    }
}
