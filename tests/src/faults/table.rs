//! Faults by outcome, as they are printed.

use super::plan::Kind;
use super::run::Outcome;
use crate::bench::spread;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

/// The table, and the lines below it.
pub(super) fn told(outcomes: &[Outcome]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "FAULT",
        "RUNS",
        "STRUCK",
        "MOVED",
        "STAYED",
        "LOST",
        "IN DOUBT",
        "GAP MEDIAN",
        "GAP MAX",
        "FAILED",
    ]);
    for kind in Kind::ALL {
        let of: Vec<&Outcome> = outcomes.iter().filter(|o| o.plan.kind == kind).collect();
        if of.is_empty() {
            continue;
        }
        let number = |good: &dyn Fn(&Outcome) -> bool| of.iter().filter(|o| good(o)).count().to_string();
        let gap = spread(of.iter().map(|o| o.gap_ms as f64));
        let ms = |pick: fn(&crate::bench::Spread) -> f64| {
            gap.as_ref().map_or_else(String::new, |s| format!("{:.0} ms", pick(s)))
        };
        table.add_row([
            kind.name(),
            of.len().to_string(),
            number(&|o| o.struck),
            number(&|o| o.moved == Some(true)),
            number(&|o| o.moved == Some(false)),
            number(&|o| o.lost),
            number(&|o| o.in_doubt),
            ms(|s| s.median),
            ms(|s| s.high),
            number(&|o| !o.violations.is_empty()),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = table.to_string();
    let restarts = outcomes.iter().flat_map(|o| &o.restarts);
    let ready = restarts.clone().map(|r| r.ready_ms as f64);
    let answered = restarts.filter_map(|r| r.answered_ms).map(|ms| ms as f64);
    if let Some(ready) = spread(ready) {
        text.push_str(&format!(
            "\n{} restarts of an agent, ready after {:.0} ms (median)",
            ready.count, ready.median
        ));
    }
    if let Some(answered) = spread(answered) {
        text.push_str(&format!(
            "\nafter {} of them the client waited: heard again {:.0} ms after the agent was ready (median), at most {:.0} ms",
            answered.count, answered.median, answered.high
        ));
    }
    let sum = |pick: fn(&Outcome) -> u64| outcomes.iter().map(pick).sum::<u64>();
    text.push_str(&format!(
        "\n{} replies checked, {} looks at both process tables",
        sum(|o| o.replies),
        sum(|o| o.looks)
    ));
    text
}
