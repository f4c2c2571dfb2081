//! From figures to places, and which figures to write beside them.

/// One axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis from place `from` to place `to` on which all of the figures are, and 0 too unless
    /// it is logarithmic.
    pub(super) fn over(figures: impl IntoIterator<Item = f64>, log: bool, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for figure in figures {
            low = low.min(figure);
            high = high.max(figure);
        }
        if !high.is_finite() || high <= 0.0 {
            (low, high) = (1.0, 10.0);
        }
        if log {
            Self { low: low.max(1e-3) / 1.25, high: high * 1.25, log, from, to }
        } else {
            Self { low: 0.0, high: high * 1.08, log, from, to }
        }
    }

    /// The place of a figure.
    pub(super) fn at(&self, figure: f64) -> f64 {
        let scale = |v: f64| if self.log { v.max(1e-9).ln() } else { v };
        let share = (scale(figure) - scale(self.low)) / (scale(self.high) - scale(self.low));
        self.from + share * (self.to - self.from)
    }

    /// Round figures to write at the axis.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        if self.log {
            for decade in -3..9 {
                ticks.extend([1.0, 2.0, 5.0].map(|step| step * 10f64.powi(decade)));
            }
        } else {
            let rough = self.high / 6.0;
            let decade = 10f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].map(|s| s * decade).into_iter().find(|s| *s >= rough);
            let step = step.unwrap_or(decade * 10.0);
            ticks.extend((0..=12).map(|n| f64::from(n) * step));
        }
        ticks.retain(|t| (self.low..=self.high).contains(t));
        ticks
    }
}

/// A figure as short as it can be.
pub(super) fn short(figure: f64) -> String {
    if figure >= 10.0 { format!("{figure:.0}") } else { format!("{}", (figure * 100.0).round() / 100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_axis_begins_at_zero() {
        let axis = Axis::over([100.0, 250.0], false, 10.0, 110.0);
        assert_eq!(axis.at(0.0), 10.0);
        assert!(axis.at(250.0) < 110.0);
        assert_eq!(axis.ticks(), [0.0, 50.0, 100.0, 150.0, 200.0, 250.0]);
    }

    #[test]
    fn a_logarithmic_axis_has_room_on_both_sides() {
        let axis = Axis::over([150.0, 15_000.0], true, 0.0, 100.0);
        assert!(axis.at(150.0) > 0.0 && axis.at(15_000.0) < 100.0);
        assert_eq!(axis.ticks(), [200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0]);
        assert!(Axis::over([], true, 0.0, 1.0).at(5.0).is_finite());
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([short(0.5), short(2.0), short(1500.0)], ["0.5", "2", "1500"]);
    }
}
