//! Dots over two axes, and a line.

use super::axis::{Axis, short};
use super::svg::{Anchor, Picture};

const LEFT: f64 = 60.0;
const MARGIN: f64 = 24.0;
const HEAD: f64 = 34.0;
const HEIGHT: f64 = 180.0;
const FOOT: f64 = 36.0;

/// The dots, and the line.
#[derive(Debug)]
pub(super) struct Xy {
    pub(super) title: String,
    pub(super) points: Vec<(f64, f64)>,
    /// Where it meets the vertical axis, and its slope.
    pub(super) line: Option<(f64, f64)>,
    pub(super) legend: &'static str,
}

impl Xy {
    pub(super) fn draw(&self, picture: &mut Picture) {
        let top = picture.room(HEAD + HEIGHT + FOOT) + HEAD;
        let (bottom, right) = (top + HEIGHT, picture.width() - MARGIN);
        let across = Axis::over(self.points.iter().map(|p| p.0), false, LEFT, right);
        let last = self.points.iter().map(|p| p.0).fold(0.0, f64::max);
        let end = self.line.map(|(start, slope)| start + slope * last);
        let up = Axis::over(self.points.iter().map(|p| p.1).chain(end), false, bottom, top);
        picture.text(8.0, top - 16.0, Anchor::Start, "title", &self.title);
        for tick in up.ticks() {
            let y = up.at(tick);
            picture.line((LEFT, y), (right, y), "grid");
            picture.text(LEFT - 8.0, y + 4.0, Anchor::End, "faint", &short(tick));
        }
        for tick in across.ticks() {
            picture.text(across.at(tick), bottom + 15.0, Anchor::Middle, "faint", &short(tick));
        }
        if let Some(((start, slope), end)) = self.line.zip(end) {
            picture.line((LEFT, up.at(start)), (across.at(last), up.at(end)), "bar");
            let text = format!("{}: {} and {} more for each GiB", self.legend, short(start), short(slope));
            picture.text(LEFT + 8.0, top + 12.0, Anchor::Start, "bartext", &text);
        }
        for (x, y) in &self.points {
            picture.dot(across.at(*x), up.at(*y), "first");
        }
    }
}
