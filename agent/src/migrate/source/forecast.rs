//! How long the blackout would be if the container were frozen now.
//!
//! A fixed part, learnt from the migrations to the same host or else to others, and what is still to be
//! sent, files included, at the rate of the last rounds. The fixed part is kept in a file below the agent's
//! state directory, a moving average; without it, or when it cannot be read, a default stands in, so that
//! nothing depends on it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;
use tranship_proto::ids::HostName;
use tranship_proto::pages::PAGE;

/// The fixed part of the first migration of all.
const FIRST: Duration = Duration::from_millis(200);
/// Pages a second before any were sent: 256 MiB.
const FIRST_RATE: f64 = 65536.0;
/// A round of fewer pages says more about round trips than about the rate.
const TELLING: u64 = 1024;
/// The file, and its longest length in bytes.
const FILE: &str = "blackouts.json";
const MAX_FILE: u64 = 1 << 20;
/// What the newest migration counts in the average.
const WEIGHT: f64 = 0.3;

/// A prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// What does not depend on the memory.
    pub fixed: Duration,
    /// Sending what is left.
    pub sending: Duration,
}

impl Forecast {
    /// The blackout.
    pub fn blackout(&self) -> Duration {
        self.fixed + self.sending
    }

    /// Takes what it came to into the average.
    pub fn learn(&self, dir: &Path, to: &HostName, frozen: Duration) {
        let fixed = frozen.saturating_sub(self.sending);
        let mut known = load(dir);
        let before = known.0.get(to.as_str()).copied();
        let now = before.map_or(fixed.as_secs_f64(), |b| b + WEIGHT * (fixed.as_secs_f64() - b));
        known.0.insert(to.to_string(), now);
        if let Err(e) = store(dir, &known) {
            tracing::debug!(error = %e, "what the blackout came to is not remembered");
        }
    }
}

/// Seconds by host.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known(BTreeMap<String, f64>);

impl Known {
    /// The longest of all: hosts of a fleet resemble each other, and a prediction that is too short breaks a
    /// promise.
    fn elsewhere(&self) -> Option<f64> {
        self.0.values().copied().reduce(f64::max)
    }
}

fn load(dir: &Path) -> Known {
    let mut text = String::new();
    let read = std::fs::File::open(dir.join(FILE)).and_then(|f| f.take(MAX_FILE).read_to_string(&mut text));
    read.ok().and_then(|_| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn store(dir: &Path, known: &Known) -> std::io::Result<()> {
    let new = dir.join(format!("{FILE}.new"));
    std::fs::write(&new, serde_json::to_vec(known)?)?;
    std::fs::rename(new, dir.join(FILE))
}

/// What predictions are made from, in the course of one migration.
#[derive(Debug)]
pub(super) struct Forecaster {
    fixed: Duration,
    rate: f64,
}

impl Forecaster {
    /// For a migration to a host.
    pub(super) fn new(dir: &Path, to: &HostName) -> Self {
        let known = load(dir);
        let fixed = known.0.get(to.as_str()).copied().or_else(|| known.elsewhere());
        let fixed = fixed.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or(FIRST);
        Self { fixed, rate: FIRST_RATE }
    }

    /// A round of so many pages took so long.
    pub(super) fn round(&mut self, pages: u64, took: Duration) {
        if pages >= TELLING && !took.is_zero() {
            // Page counts are far below 2^53.
            #[allow(clippy::cast_precision_loss)]
            let rate = pages as f64 / took.as_secs_f64();
            self.rate = rate;
        }
    }

    /// With so many pages to be looked at after the freeze.
    pub(super) fn forecast(&self, pages: u64) -> Forecast {
        #[allow(clippy::cast_precision_loss)]
        let seconds = pages as f64 / self.rate;
        let sending = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 2);
        Forecast { fixed: self.fixed, sending }
    }

    /// Bytes a second.
    pub(super) fn rate(&self) -> u64 {
        // Rates are positive and far below 2^53.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let rate = (self.rate * PAGE as f64) as u64;
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_part_is_learnt_and_damage_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let host: HostName = "host-b".parse().unwrap();
        let fixed = |dir: &Path| Forecaster::new(dir, &host).forecast(0).blackout();
        assert_eq!(fixed(dir.path()), FIRST);
        let f = Forecast { fixed: FIRST, sending: Duration::from_millis(50) };
        f.learn(dir.path(), &host, Duration::from_millis(150));
        assert_eq!(fixed(dir.path()), Duration::from_millis(100));
        f.learn(dir.path(), &host, Duration::from_millis(250));
        assert_eq!(fixed(dir.path()), Duration::from_millis(130));
        let other: HostName = "host-c".parse().unwrap();
        let to_other = || Forecaster::new(dir.path(), &other).forecast(0).fixed;
        assert_eq!(to_other(), Duration::from_millis(130), "as to the host that is known");
        f.learn(dir.path(), &other, Duration::from_millis(90));
        assert_eq!(to_other(), Duration::from_millis(40));
        assert_eq!(fixed(dir.path()), Duration::from_millis(130));
        for junk in ["", "{", "[1]", "{\"host-b\":-3}", "{\"host-b\":1e300}"] {
            std::fs::write(dir.path().join(FILE), junk).unwrap();
            assert_eq!(fixed(dir.path()), FIRST, "{junk}");
        }
    }

    #[test]
    fn what_is_left_counts_at_the_rate_of_the_last_round() {
        let dir = tempfile::tempdir().unwrap();
        let mut f = Forecaster::new(dir.path(), &"host-b".parse().unwrap());
        f.round(100_000, Duration::from_secs(1));
        f.round(3, Duration::from_secs(1));
        assert_eq!(f.forecast(10_000).sending, Duration::from_millis(100));
        assert_eq!(f.rate(), 409_600_000);
        assert!(f.forecast(u64::MAX).blackout() > Duration::from_secs(1000));
    }
}
