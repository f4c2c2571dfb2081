//! Results on stdout, as text or as JSON objects with a schema number.
//!
//! Everything that came from an agent passes [`clean`] before it is printed as text. Raw bytes
//! go out only for `logs`, where they are what was asked for.

use serde::Serialize;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::io::Write;

/// Schema number of every JSON object that this command prints. It grows when a field changes its
/// meaning or goes away; added fields do not count.
pub const SCHEMA: u32 = 1;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// How.
    pub format: Format,
}

impl Output {
    /// Results on stdout in this format.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether JSON was asked for.
    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// One line (or several) of text on stdout, whatever the format.
    ///
    /// A reader that has gone away is no error: what this command watches goes on without it. The
    /// answer is whether somebody still reads.
    pub fn text(self, line: &str) -> bool {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
    }

    /// One JSON object on stdout: `{"schema":1,"type":kind, ...fields}`.
    pub fn json(self, kind: &str, fields: &Value) -> bool {
        self.text(&object(kind, fields).to_string())
    }

    /// The JSON object with `value` under `name`, or the text that `text` makes.
    pub fn show<T: Serialize + ?Sized>(
        self,
        kind: &str,
        name: &str,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> bool {
        if self.is_json() {
            // These types serialize without error: they have string keys and finite numbers.
            let value = serde_json::to_value(value).unwrap_or(Value::Null);
            let mut fields = Map::new();
            fields.insert(name.to_owned(), value);
            self.json(kind, &Value::Object(fields))
        } else {
            let text = text();
            text.is_empty() || self.text(&text)
        }
    }
}

/// `fields` with the schema number and the kind put first.
pub fn object(kind: &str, fields: &Value) -> Value {
    let mut map = Map::new();
    map.insert("schema".into(), SCHEMA.into());
    map.insert("type".into(), kind.into());
    if let Value::Object(fields) = fields {
        map.extend(fields.clone());
    }
    Value::Object(map)
}

/// Makes text of an agent safe for a terminal: control characters and direction overrides become
/// U+FFFD, further lines are indented so that they cannot pass for this command's own.
pub fn clean(text: &str) -> Cow<'_, str> {
    let bad = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.trim_end_matches('\n').chars() {
        match c {
            '\n' => out.push_str("\n    "),
            '\t' => out.push(' '),
            c if bad(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// [`clean`], on one line.
pub fn clean_line(text: &str) -> String {
    clean(text).replace("\n    ", "; ")
}

/// A table: a header and rows, columns as wide as needed, two spaces between.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut width: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|r| r.iter().map(|c| clean_line(c)).collect()).collect();
    for row in &rows {
        for (w, cell) in width.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, w) in cells.zip(&width) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', w + 2 - cell.chars().count()));
        }
        text.trim_end().to_owned()
    };
    let mut out = line(&mut header.iter().copied());
    for row in &rows {
        out.push('\n');
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

/// A number of bytes for people: `312.4 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A duration for people: `850 us`, `18.2 ms`, `1.24 s`, `2 min 03 s`.
pub fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{} ms", us / 1_000),
        1_000_000..60_000_000 => format!("{:.2} s", us as f64 / 1e6),
        _ => {
            let s = us / 1_000_000;
            if s < 3600 {
                format!("{} min {:02} s", s / 60, s % 60)
            } else {
                format!("{} h {:02} min", s / 3600, s / 60 % 60)
            }
        }
    }
}

/// A time to wait for people: `3 s`, `2 min 03 s`.
pub fn seconds(s: u64) -> String {
    if s < 60 { format!("{s} s") } else { micros(s.saturating_mul(1_000_000)) }
}

/// A wall clock time in the local zone.
pub fn time(unix_ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(unix_ms) {
        Ok(t) => t.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => "?".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(micros(999), "999 us");
        assert_eq!(micros(18_240), "18.2 ms");
        assert_eq!(micros(182_999), "182 ms");
        assert_eq!(micros(1_240_000), "1.24 s");
        assert_eq!(micros(123_000_000), "2 min 03 s");
        assert_eq!(micros(u64::MAX), "5124095576 h 01 min");
        assert_eq!((seconds(59), seconds(60)), ("59 s".into(), "1 min 00 s".into()));
        assert_eq!(time(i64::MAX), "?");
    }

    #[test]
    fn cells_of_a_table_stay_on_their_line() {
        let t =
            table(&["NAME", "X"], &[vec!["a\nb".into(), "1".into()], vec!["c".into(), "\u{1b}[31m".into()]]);
        assert_eq!(t, "NAME  X\na; b  1\nc     \u{fffd}[31m");
    }

    #[test]
    fn objects_carry_schema_and_kind_first() {
        let text = object("event", &serde_json::json!({"seq": 3})).to_string();
        assert!(
            text.contains(r#""schema":1"#)
                && text.contains(r#""type":"event""#)
                && text.contains(r#""seq":3"#)
        );
    }

    #[test]
    fn clean_text_is_not_copied_and_lines_are_indented() {
        assert!(matches!(clean("plain ü"), Cow::Borrowed(_)));
        assert_eq!(clean("a\nerror: forged\n"), "a\n    error: forged");
        assert_eq!(clean_line("a\nb\n"), "a; b");
    }
}
