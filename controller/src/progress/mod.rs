//! What is shown of a migration while it is under way.
//!
//! [`View`] has four forms: bars on a terminal, lines elsewhere, JSON objects, nothing. Which one
//! it is has no influence on what [`crate::follow`] does.

mod bars;
mod lines;

pub use bars::Bars;
pub use lines::Lines;

use crate::output::{Output, bytes, clean_line, micros, seconds};
use serde_json::{Map, Value, json};
use std::io::IsTerminal;
use tranship_proto::ids::MigrationId;
use tranship_proto::status::{Event, EventBody, Summary};

/// What the user knows of a migration before its first event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its id.
    pub migration: MigrationId,
    /// The container.
    pub container: String,
    /// From.
    pub source: String,
    /// To.
    pub destination: String,
}

/// A way to show a migration.
pub trait View: Send {
    /// The migration is accepted (or found).
    fn accepted(&mut self, subject: &Subject);
    /// An event.
    fn event(&mut self, event: &Event);
    /// Words of this command, not of the agent.
    fn notice(&mut self, text: &str);
    /// Nothing follows: a bar is to be cleared.
    fn close(&mut self) {}
}

/// The view that fits the format and the terminal.
pub fn view(output: Output, quiet: bool) -> Box<dyn View> {
    if output.is_json() {
        return Box::new(Objects(output));
    }
    if quiet {
        return Box::new(Silent);
    }
    if std::io::stderr().is_terminal() {
        Box::new(Bars::new())
    } else {
        Box::new(Lines::new(std::io::stderr()))
    }
}

/// `--no-progress`: what this command itself has to say, and no more.
struct Silent;

impl View for Silent {
    fn accepted(&mut self, _: &Subject) {}
    fn event(&mut self, _: &Event) {}
    fn notice(&mut self, text: &str) {
        eprintln!("{}", clean_line(text));
    }
}

/// One JSON object a line on stdout.
struct Objects(Output);

impl View for Objects {
    fn accepted(&mut self, s: &Subject) {
        let fields = json!({
            "migration": s.migration, "container": s.container, "source": s.source, "destination": s.destination,
        });
        self.0.json("accepted", &fields);
    }

    fn event(&mut self, event: &Event) {
        self.0.json("event", &event_fields(event));
    }

    fn notice(&mut self, text: &str) {
        self.0.json("notice", &json!({ "text": text }));
    }
}

/// An event as a flat object: `{"migration":..,"seq":..,"at_unix_ms":..,"event":"progress",...}`.
pub fn event_fields(event: &Event) -> Value {
    let mut map = Map::new();
    map.insert("migration".into(), json!(event.migration));
    map.insert("seq".into(), event.seq.into());
    map.insert("at_unix_ms".into(), event.at_unix_ms.into());
    if let Ok(Value::Object(body)) = serde_json::to_value(&event.body) {
        for (name, fields) in body {
            map.insert("event".into(), name.into());
            if let Value::Object(fields) = fields {
                map.extend(fields);
            }
        }
    }
    Value::Object(map)
}

/// `12.0 MiB of 300.0 MiB (4 %), 85.0 MiB/s, 3 s left`.
pub fn progress_words(done: u64, total: Option<u64>, rate: u64) -> String {
    let mut text = bytes(done);
    if let Some(total) = total.filter(|t| *t > 0) {
        let percent = (u128::from(done) * 100 / u128::from(total)).min(100);
        text.push_str(&format!(" of {} ({percent} %)", bytes(total)));
    }
    if rate > 0 {
        text.push_str(&format!(", {}/s", bytes(rate)));
    }
    if let Some(left) = seconds_left(done, total, rate) {
        text.push_str(&format!(", {} left", seconds(left)));
    }
    text
}

/// Seconds until `total` at this rate, rounded up.
pub fn seconds_left(done: u64, total: Option<u64>, rate: u64) -> Option<u64> {
    let left = total?.checked_sub(done)?;
    (rate > 0 && left > 0).then(|| left.div_ceil(rate))
}

/// A finished phase on one line.
pub(crate) fn phase_line(body: &EventBody) -> Option<String> {
    let EventBody::PhaseDone { phase, micros: us, note } = body else { return None };
    Some(format!("  {:<8} {:>9}  {}", phase.as_str(), micros(*us), clean_line(note)).trim_end().to_owned())
}

/// The first line of a migration.
pub(crate) fn heading(s: &Subject) -> String {
    let Subject { migration, container, source, destination } = s;
    format!("moving {container} from {source} to {destination}, migration {migration}")
}

/// The summary for people: a phase a line, then the figures.
pub fn summary_text(subject: &Subject, s: &Summary) -> String {
    let mut lines = vec![format!("{} runs on {}", subject.container, subject.destination)];
    let mut line = |name: &str, value: String| lines.push(format!("  {:<9} {value}", clean_line(name)));
    for (phase, us) in s.phases_us.iter().take(64) {
        line(phase, micros(*us));
    }
    line("total", micros(s.total_us));
    let parts = match (s.file_bytes, s.memory_bytes) {
        (0, 0) => String::new(),
        (files, memory) => format!(" (files {}, memory {})", bytes(files), bytes(memory)),
    };
    line("read", format!("{}{parts}", bytes(s.bytes_read)));
    let ratio = match (s.bytes_read, s.bytes_sent) {
        (0, _) | (_, 0) => String::new(),
        (read, sent) => format!(", ratio {:.2}", read as f64 / sent as f64),
    };
    line("sent", format!("{}{ratio}", bytes(s.bytes_sent)));
    let predicted = s.predicted_us.map_or_else(String::new, |p| format!(", {} predicted", micros(p)));
    line("frozen", format!("{}{predicted}", micros(s.frozen_us)));
    line(
        "blackout",
        match s.blackout_us {
            Some(us) => format!("{} from the last packet in to the first packet out", micros(us)),
            None => "no packets seen".into(),
        },
    );
    lines.join("\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tranship_proto::status::Phase;

    pub(crate) fn subject() -> Subject {
        Subject {
            migration: "0199aaaa-0000-7000-8000-0000000000ff".parse().unwrap(),
            container: "web".into(),
            source: "host-a".into(),
            destination: "host-b".into(),
        }
    }

    pub(crate) fn event(seq: u64, body: EventBody) -> Event {
        Event { migration: subject().migration, seq, at_unix_ms: 1_000, body }
    }

    #[test]
    fn events_are_flat_in_json() {
        let body = EventBody::Progress {
            phase: Phase::Stage,
            done_bytes: 1,
            total_bytes: None,
            bytes_per_second: 2,
        };
        assert_eq!(
            event_fields(&event(3, body)),
            json!({
                "migration": "0199aaaa-0000-7000-8000-0000000000ff", "seq": 3, "at_unix_ms": 1000, "event": "progress",
                "phase": "stage", "done_bytes": 1, "total_bytes": null, "bytes_per_second": 2,
            })
        );
        let failure = tranship_proto::status::Failure::new(
            tranship_proto::status::Reason::Refused,
            tranship_proto::status::Side::Destination,
            "no",
        );
        assert_eq!(event_fields(&event(1, EventBody::Failed { failure }))["failure"]["reason"], "refused");
    }

    #[test]
    fn progress_reads_well_with_any_numbers() {
        assert_eq!(
            progress_words(12 << 20, Some(300 << 20), 96 << 20),
            "12.0 MiB of 300.0 MiB (4 %), 96.0 MiB/s, 3 s left"
        );
        assert_eq!(progress_words(5, None, 0), "5 B");
        assert_eq!(progress_words(u64::MAX, Some(1), 1), "16384.0 PiB of 1 B (100 %), 1 B/s");
        assert!(progress_words(0, Some(u64::MAX), 1).ends_with("left"));
    }

    #[test]
    fn the_summary_says_what_was_measured_and_what_was_not() {
        let mut s = Summary {
            phases_us: vec![("reserve".into(), 12_000), ("stage".into(), 1_500_000)],
            total_us: 2_000_000,
            bytes_read: 312 << 20,
            bytes_sent: 78 << 20,
            file_bytes: 100 << 20,
            memory_bytes: 212 << 20,
            frozen_us: 182_000,
            blackout_us: None,
            predicted_us: None,
        };
        assert_eq!(
            summary_text(&subject(), &s),
            "web runs on host-b\n  reserve   12.0 ms\n  stage     1.50 s\n  total     2.00 s\n\
             \x20 read      312.0 MiB (files 100.0 MiB, memory 212.0 MiB)\n  sent      78.0 MiB, ratio 4.00\n\
             \x20 frozen    182 ms\n  blackout  no packets seen"
        );
        s.blackout_us = Some(190_500);
        s.predicted_us = Some(170_000);
        assert!(
            summary_text(&subject(), &s)
                .ends_with("frozen    182 ms, 170 ms predicted\n  blackout  190 ms from the last packet in to the first packet out")
        );
    }
}
