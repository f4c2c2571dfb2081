//! Rows of dots over one axis, the median of each row marked and written beside it.

use super::super::stats::spread;
use super::axis::{Axis, short};
use super::svg::{Anchor, Picture};

const LABELS: f64 = 170.0;
const MARGIN: f64 = 70.0;
const ROW: f64 = 30.0;
const HEAD: f64 = 34.0;
const FOOT: f64 = 36.0;

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) label: String,
    pub(super) values: Vec<f64>,
    /// Whether it is what the picture is about.
    pub(super) first: bool,
}

/// The rows, and a bar across them.
#[derive(Debug)]
pub(super) struct Strip {
    pub(super) title: String,
    pub(super) rows: Vec<Row>,
    pub(super) unit: &'static str,
    pub(super) bar: Option<f64>,
    pub(super) log: bool,
}

impl Strip {
    pub(super) fn draw(&self, picture: &mut Picture) {
        let height = HEAD + ROW * self.rows.len() as f64 + FOOT;
        let top = picture.room(height) + HEAD;
        let bottom = top + ROW * self.rows.len() as f64;
        let right = picture.width() - MARGIN;
        let figures = self.rows.iter().flat_map(|r| r.values.iter().copied()).chain(self.bar);
        let axis = Axis::over(figures, self.log, LABELS, right);
        picture.text(8.0, top - 16.0, Anchor::Start, "title", &self.title);
        for tick in axis.ticks() {
            let x = axis.at(tick);
            picture.line((x, top - 4.0), (x, bottom), "grid");
            // The bar's own figure stands there, too.
            if self.bar.is_none_or(|bar| (axis.at(bar) - x).abs() > 40.0) {
                picture.text(x, bottom + 15.0, Anchor::Middle, "faint", &short(tick));
            }
        }
        if let Some(bar) = self.bar {
            let x = axis.at(bar);
            picture.line((x, top - 4.0), (x, bottom), "bar");
            picture.text(x, bottom + 15.0, Anchor::Middle, "bartext", &format!("bar {}", short(bar)));
        }
        for (row, n) in self.rows.iter().zip(0u16..) {
            let y = top + ROW * (f64::from(n) + 0.5);
            picture.text(LABELS - 12.0, y + 4.0, Anchor::End, "", &row.label);
            for value in &row.values {
                picture.dot(axis.at(*value), y, if row.first { "first" } else { "other" });
            }
            if let Some(s) = spread(row.values.iter().copied()) {
                let x = axis.at(s.median);
                picture.line((x, y - 10.0), (x, y + 10.0), "median");
                let text = format!("{} {}", short(s.median), self.unit);
                picture.text(right + 8.0, y + 4.0, Anchor::Start, "", &text);
            }
        }
    }
}
