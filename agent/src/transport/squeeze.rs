//! Whether a record is compressed, and how hard.
//!
//! Reading, compressing and the wire work at the same time, so a byte costs the longer of two
//! times: what the worker does with it, and what the wire takes for what is left of it. Both are
//! measured: the worker's time between records, each level's time and ratio, the rate at which the
//! pump gets rid of bytes. The level with the shortest time wins, which is none on a wire that is
//! faster than zstd, and a high one behind a cap. Levels that are not in use are tried on a sample
//! now and then, which bounds what the measuring costs to about one percent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// zstd levels worth having: each takes about twice the time of the one before.
const LEVELS: [i32; 3] = [1, 3, 6];
/// Shorter data is not worth a compressor's start.
const MIN_COMPRESS: usize = 256;
/// Bytes that a level is tried on.
const SAMPLE: usize = 64 << 10;
/// Bytes of content from one look at the levels to the next.
const INTERVAL: usize = 4 << 20;
/// What a higher level has to gain before it is taken: measurements are noisy.
const GAIN: f64 = 0.95;
/// Weight that older measurements keep.
const KEEP: f64 = 0.875;

/// The rate at which a pump gets rid of bytes, told to the worker that fills its queue.
#[derive(Debug, Default)]
pub(super) struct Drain(AtomicU64);

impl Drain {
    fn seconds_per_byte(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// Measures a [`Drain`].
#[derive(Debug, Default)]
pub(super) struct DrainMeter(Average);

impl DrainMeter {
    /// Notes that `bytes` took `elapsed`, waiting for a turn and for flow control included.
    pub(super) fn note(&mut self, bytes: usize, elapsed: Duration, drain: &Drain) {
        self.0.note(elapsed.as_secs_f64(), bytes);
        drain.0.store(self.0.value().to_bits(), Ordering::Relaxed);
    }
}

/// A quantity per byte, recent bytes counting more.
#[derive(Debug, Default, Clone, Copy)]
struct Average {
    sum: f64,
    bytes: f64,
}

impl Average {
    fn note(&mut self, amount: f64, bytes: usize) {
        self.sum = self.sum * KEEP + amount;
        self.bytes = self.bytes * KEEP + count(bytes);
    }

    fn value(self) -> f64 {
        if self.bytes > 0.0 { self.sum / self.bytes } else { 0.0 }
    }
}

/// A number of bytes of a record, which is far below 2^32.
fn count(bytes: usize) -> f64 {
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX))
}

/// What one level was seen to do.
#[derive(Debug, Default, Clone, Copy)]
struct Level {
    seconds: Average,
    ratio: Average,
}

impl Level {
    fn known(&self) -> bool {
        self.ratio.bytes > 0.0
    }

    /// Seconds for a byte of content, the worker and the wire going on at the same time.
    fn time(&self, work: f64, wire: f64) -> f64 {
        (work + self.seconds.value()).max(self.ratio.value() * wire)
    }
}

/// Compresses the records of one stream when that is sooner done than sending them as they are.
pub(super) struct Squeeze {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    levels: [Level; LEVELS.len()],
    /// Index into [`LEVELS`], or none.
    chosen: Option<usize>,
    work: Average,
    /// Bytes until the next look.
    until: usize,
    /// When the last record left the worker's hands.
    left: Option<Instant>,
}

impl Squeeze {
    pub(super) fn new() -> Self {
        Self {
            // Without a compressor (no memory for one) everything travels as it is.
            compressor: zstd::bulk::Compressor::new(LEVELS[0]).ok(),
            levels: [Level::default(); LEVELS.len()],
            chosen: None,
            work: Average::default(),
            until: 0,
            left: None,
        }
    }

    /// The record was taken over by the queue: what the worker does from now on is its own time.
    pub(super) fn left(&mut self) {
        self.left = Some(Instant::now());
    }

    /// The data compressed, or `None` when it is to travel as it is.
    pub(super) fn pack(&mut self, data: &[u8], drain: &Drain) -> Option<Vec<u8>> {
        if let Some(left) = self.left {
            self.work.note(left.elapsed().as_secs_f64(), data.len());
        }
        if data.len() < MIN_COMPRESS {
            return None;
        }
        self.until = self.until.saturating_sub(data.len());
        if self.until == 0 {
            self.until = INTERVAL;
            let wire = drain.seconds_per_byte();
            if let Some(level) = self.trial(wire) {
                self.compress(level, &data[..data.len().min(SAMPLE)]);
            }
            self.chosen = choose(&self.levels, self.work.value(), wire);
        }
        let packed = self.compress(self.chosen?, data)?;
        (packed.len() < data.len() - data.len() / 16).then_some(packed)
    }

    /// Which level is to be looked at anew: a neighbour of the chosen one, the harder one only
    /// when the worker has time to spare.
    fn trial(&self, wire: f64) -> Option<usize> {
        let Some(chosen) = self.chosen else { return Some(0) };
        let level = &self.levels[chosen];
        let spare = level.ratio.value() * wire > self.work.value() + level.seconds.value();
        if spare { Some(chosen + 1).filter(|l| *l < LEVELS.len()) } else { chosen.checked_sub(1) }
    }

    fn compress(&mut self, level: usize, data: &[u8]) -> Option<Vec<u8>> {
        let compressor = self.compressor.as_mut()?;
        let start = Instant::now();
        compressor.set_compression_level(LEVELS[level]).ok()?;
        let packed = compressor.compress(data).ok()?;
        let seen = &mut self.levels[level];
        seen.seconds.note(start.elapsed().as_secs_f64(), data.len());
        seen.ratio.note(count(packed.len()), data.len());
        Some(packed)
    }
}

/// The level with the shortest time; none when nothing gains enough.
fn choose(levels: &[Level], work: f64, wire: f64) -> Option<usize> {
    let mut best = (work.max(wire), None);
    for (i, level) in levels.iter().enumerate().filter(|(_, l)| l.known()) {
        let time = level.time(work, wire);
        if time < best.0 * GAIN {
            best = (time, Some(i));
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: f64 = 1e-6;

    /// Levels by seconds for a megabyte and ratio.
    fn levels(seen: [(f64, f64); 3]) -> [Level; 3] {
        seen.map(|(seconds, ratio)| Level {
            seconds: Average { sum: seconds, bytes: 1e6 },
            ratio: Average { sum: ratio, bytes: 1.0 },
        })
    }

    #[test]
    fn the_level_follows_the_wire() {
        let text = levels([(0.002, 0.4), (0.004, 0.3), (0.016, 0.28)]);
        // 1 GB/s: zstd would hold it up. 100 MB/s: the first level is the shortest. Then harder.
        assert_eq!(choose(&text, 0.001 * MB, 0.001 * MB), None);
        assert_eq!(choose(&text, 0.001 * MB, 0.010 * MB), Some(0));
        assert_eq!(choose(&text, 0.001 * MB, 0.030 * MB), Some(1));
        assert_eq!(choose(&text, 0.001 * MB, 1.0 * MB), Some(2));
        // Whoever reads slowly gains nothing from a shorter wire.
        assert_eq!(choose(&text, 0.020 * MB, 0.010 * MB), None);
    }

    #[test]
    fn what_does_not_shrink_is_left_alone() {
        let noise = levels([(0.0005, 1.0), (0.001, 1.0), (0.002, 1.0)]);
        assert_eq!(choose(&noise, 0.0, 1.0 * MB), None);
        assert_eq!(choose(&[Level::default(); 3], 0.0, 1.0 * MB), None, "nothing is known yet");
    }

    fn sent(data: &[u8], wire: f64, records: usize) -> usize {
        let (mut squeeze, drain) = (Squeeze::new(), Drain::default());
        drain.0.store((wire * MB).to_bits(), Ordering::Relaxed);
        let pack = |_| squeeze.pack(data, &drain).map_or(data.len(), |p| p.len());
        (0..records).map(pack).sum()
    }

    #[test]
    fn records_shrink_before_a_slow_wire_only() {
        let text: Vec<u8> = (0..100_000u32).flat_map(|n| (n % 977).to_le_bytes()).collect();
        assert_eq!(sent(&text, 0.0, 64), 64 * text.len(), "a wire that takes no time");
        assert!(sent(&text, 1.0, 64) < 64 * text.len() / 4, "a wire of 1 MB/s");
    }
}
