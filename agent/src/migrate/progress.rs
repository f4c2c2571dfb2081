//! What a running step tells the driver while it works: bytes, passes, moments.
//!
//! Shared by the step's task and the driver; everything in it is for people's eyes and for the
//! figures, never for a decision of the machine. The stop flag lives here too, because both sides
//! hold it.

use crate::migrate::source::Forecast;
use crate::transport::bulk::Meter;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::watch;
use tranship_proto::handoff::MemoryMode;
use tranship_proto::status::{EventBody, Phase, Summary};

/// Moments of a migration at the source, by its monotonic clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Marks {
    /// The cgroup was frozen.
    pub frozen: Option<Instant>,
    /// The last packet for the container came in.
    pub last_packet_in: Option<Instant>,
}

/// What is shared.
#[derive(Debug)]
pub struct Shared {
    /// Bytes of all bulk streams.
    pub bulk: Arc<Meter>,
    /// Bytes expected in the phase under way; 0 when not known.
    pub expected: AtomicU64,
    /// Bytes of files read.
    pub file_bytes: AtomicU64,
    /// Bytes of images read.
    pub memory_bytes: AtomicU64,
    /// Set to make a running step end soon.
    pub stop: AtomicBool,
    /// Moments.
    pub marks: Mutex<Marks>,
    /// A few words for the end of the phase under way.
    pub note: Mutex<String>,
    /// Last pass the destination has applied, by tree index.
    pub passes: watch::Sender<Vec<u32>>,
    /// Last round over the memory that the destination has applied.
    pub rounds: watch::Sender<u32>,
    /// Set when both sides have agreed on it.
    pub fast: AtomicBool,
    /// What the blackout was predicted to be before the freeze.
    pub forecast: Mutex<Option<Forecast>>,
}

impl Shared {
    /// Nothing yet; bulk streams are to use this meter.
    pub fn new(bulk: Meter) -> Arc<Self> {
        Arc::new(Self {
            bulk: Arc::new(bulk),
            expected: AtomicU64::new(0),
            file_bytes: AtomicU64::new(0),
            memory_bytes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            marks: Mutex::new(Marks::default()),
            note: Mutex::new(String::new()),
            passes: watch::Sender::new(Vec::new()),
            rounds: watch::Sender::new(0),
            fast: AtomicBool::new(false),
            forecast: Mutex::new(None),
        })
    }

    /// Whether the step was asked to end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether its streams have been given up, as they are when it is stopped: nobody answers for them then.
    pub fn ended(&self) -> bool {
        self.stopped() || self.bulk.is_given_up()
    }

    /// Whether memory travels in rounds.
    pub fn fast(&self) -> bool {
        self.fast.load(Ordering::Relaxed)
    }

    /// Sets the words for the end of the phase.
    pub fn say(&self, text: String) {
        *self.note.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = text;
    }

    /// Notes a moment.
    pub fn mark(&self, f: impl FnOnce(&mut Marks)) {
        f(&mut self.marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

/// The driver's view.
#[derive(Debug)]
pub struct Progress {
    shared: Arc<Shared>,
    phase: Option<Phase>,
    base: u64,
    last: (u64, Instant),
}

impl Progress {
    /// Of this shared part.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, phase: None, base: 0, last: (0, Instant::now()) }
    }

    /// Asks the running step to end soon (or takes that back, for a step that is to run): flag and
    /// streams.
    pub fn stop(&self, stop: bool) {
        self.shared.stop.store(stop, Ordering::Relaxed);
        self.shared.bulk.give_up(stop);
    }

    /// Notes that the destination has applied a pass.
    pub fn pass_done(&self, index: u16, pass: u32) {
        self.shared.passes.send_modify(|p| {
            let i = usize::from(index);
            if i < tranship_proto::handoff::MAX_TREES {
                if p.len() <= i {
                    p.resize(i + 1, 0);
                }
                p[i] = p[i].max(pass);
            }
        });
    }

    /// Notes that the destination has applied a round over the memory.
    pub fn round_done(&self, round: u32) {
        self.shared.rounds.send_modify(|r| *r = (*r).max(round));
    }

    /// Notes how memory is to travel.
    pub fn agreed(&self, mode: MemoryMode) {
        self.shared.fast.store(mode == MemoryMode::Fast, Ordering::Relaxed);
    }

    /// What was predicted before the freeze.
    pub fn forecast(&self) -> Option<Forecast> {
        self.shared.forecast.lock().ok().and_then(|f| *f)
    }

    /// A phase begins.
    pub fn enter(&mut self, phase: Phase) {
        self.phase = Some(phase);
        self.base = self.shared.bulk.read.load(Ordering::Relaxed);
        self.last = (self.base, Instant::now());
        self.shared.expected.store(0, Ordering::Relaxed);
        self.shared.say(String::new());
    }

    /// A progress event, when bytes have moved in a phase that moves bytes.
    pub fn event(&mut self) -> Option<EventBody> {
        let phase = self.phase.filter(|p| matches!(p, Phase::Stage | Phase::Copy))?;
        let read = self.shared.bulk.read.load(Ordering::Relaxed);
        let (before, at) = self.last;
        if read == before {
            return None;
        }
        let seconds = at.elapsed().as_secs_f64().max(0.001);
        self.last = (read, Instant::now());
        let expected = self.shared.expected.load(Ordering::Relaxed);
        let done_bytes = read - self.base;
        Some(EventBody::Progress {
            phase,
            done_bytes,
            total_bytes: (expected > 0).then(|| expected.max(done_bytes)),
            // Rates are far below 2^53.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            bytes_per_second: ((read - before) as f64 / seconds) as u64,
        })
    }

    /// The words for the end of a phase.
    pub fn note(&self, _phase: Phase) -> String {
        self.shared.note.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The moments.
    pub fn marks(&self) -> Option<Marks> {
        self.shared.marks.lock().ok().map(|m| *m)
    }

    /// Fills the byte counts in.
    pub fn totals(&self, summary: &mut Summary) {
        summary.bytes_read = self.shared.bulk.read.load(Ordering::Relaxed);
        summary.bytes_sent = self.shared.bulk.sent.load(Ordering::Relaxed);
        summary.file_bytes = self.shared.file_bytes.load(Ordering::Relaxed);
        summary.memory_bytes = self.shared.memory_bytes.load(Ordering::Relaxed);
    }
}
