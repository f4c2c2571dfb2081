//! Medians and ranges.

/// Median, lowest and highest of some figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) count: usize,
}

/// `None` for no figures.
pub(crate) fn spread(figures: &[u64]) -> Option<Spread> {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable();
    let (low, high) = (*sorted.first()? as f64, *sorted.last()? as f64);
    let at = |i: usize| sorted.get(i).copied().unwrap_or_default() as f64;
    let half = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half - 1), at(half)) };
    Some(Spread { median, low, high, count: sorted.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3, 1, 2]).unwrap().median, 2.0);
        let even = spread(&[4, 1, 2, 3]).unwrap();
        assert_eq!((even.median, even.low, even.high, even.count), (2.5, 1.0, 4.0, 4));
    }
}
