//! The bars: what a figure has to be at most or at least, and whether it is.

use comfy_table::Table;

/// One bar.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    what: String,
    unit: &'static str,
    value: Option<f64>,
    limit: f64,
    at_most: bool,
}

impl Bar {
    /// `value` may be `limit` at most.
    pub(super) fn at_most(
        what: impl Into<String>,
        unit: &'static str,
        value: Option<f64>,
        limit: f64,
    ) -> Self {
        Self { what: what.into(), unit, value, limit, at_most: true }
    }

    /// `value` has to be `limit` at least.
    pub(super) fn at_least(
        what: impl Into<String>,
        unit: &'static str,
        value: Option<f64>,
        limit: f64,
    ) -> Self {
        Self { what: what.into(), unit, value, limit, at_most: false }
    }

    /// `None` when nothing was measured.
    fn met(&self) -> Option<bool> {
        self.value.map(|v| if self.at_most { v <= self.limit } else { v >= self.limit })
    }
}

/// Prints them; answers whether none is missed and all were measured.
pub(super) fn report(bars: &[Bar]) -> bool {
    let mut table = Table::new();
    table.set_header(["bar", "has to be", "is", ""]);
    for bar in bars {
        let how = if bar.at_most { "at most" } else { "at least" };
        let verdict = match bar.met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        table.add_row([
            bar.what.clone(),
            format!("{how} {}", figure(bar.limit, bar.unit)),
            bar.value.map_or_else(String::new, |v| figure(v, bar.unit)),
            verdict.to_owned(),
        ]);
    }
    println!("{table}");
    bars.iter().all(|b| b.met() == Some(true))
}

fn figure(value: f64, unit: &str) -> String {
    let digits = if value.abs() >= 100.0 || value.fract() == 0.0 { 0 } else { 1 };
    let digits = if value.abs() < 10.0 && value.fract() != 0.0 { 2 } else { digits };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_on_its_own_side() {
        assert_eq!(Bar::at_most("a", "ms", Some(250.0), 250.0).met(), Some(true));
        assert_eq!(Bar::at_most("a", "ms", Some(250.1), 250.0).met(), Some(false));
        assert_eq!(Bar::at_least("a", "%", Some(59.9), 60.0).met(), Some(false));
        assert_eq!(Bar::at_least("a", "%", Some(60.0), 60.0).met(), Some(true));
        assert!(!report(&[Bar::at_most("a", "ms", None, 1.0)]));
        assert!(report(&[Bar::at_most("a", "ms", Some(0.5), 1.0)]));
    }

    #[test]
    fn figures_have_as_many_digits_as_matter() {
        assert_eq!(figure(250.4, "ms"), "250 ms");
        assert_eq!(figure(35.26, "ms"), "35.3 ms");
        assert_eq!(figure(1.504, "times"), "1.50 times");
        assert_eq!(figure(50.0, "%"), "50 %");
    }
}
