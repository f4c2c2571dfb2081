//! Medians, percentiles, ranges, and lines through points.

/// Some figures in short.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    /// The smallest figure that at least 95 % are not above.
    pub(crate) p95: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) count: usize,
}

/// `None` for no figures.
pub(crate) fn spread(figures: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut sorted: Vec<f64> = figures.into_iter().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let count = sorted.len();
    let (low, high) = (*sorted.first()?, *sorted.last()?);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(high);
    let half = count / 2;
    let median = if count % 2 == 1 { at(half) } else { f64::midpoint(at(half - 1), at(half)) };
    let p95 = at((count * 95).div_ceil(100) - 1);
    Some(Spread { median, p95, low, high, count })
}

/// The line with the least squares through the points: its value at 0 and its slope. `None` unless
/// two points differ in `x`.
pub(super) fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let n = points.len() as f64;
    let mean = |f: fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let across: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let along: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    (along > 0.0).then(|| (y - x * across / along, across / along))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(spread([]), None);
        assert_eq!(spread([3.0, 1.0, 2.0]).unwrap().median, 2.0);
        let even = spread([4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.median, even.low, even.high, even.count), (2.5, 1.0, 4.0, 4));
    }

    #[test]
    fn one_of_twenty_may_be_above_the_95th_percentile() {
        assert_eq!(spread([7.0]).unwrap().p95, 7.0);
        assert_eq!(spread((1..=15).map(f64::from)).unwrap().p95, 15.0);
        assert_eq!(spread((1..=20).map(f64::from)).unwrap().p95, 19.0);
    }

    #[test]
    fn a_line_is_found_again() {
        assert_eq!(line(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]), Some((1.0, 2.0)));
        assert_eq!(line(&[(1.0, 1.0)]), None);
        assert_eq!(line(&[]), None);
    }
}
