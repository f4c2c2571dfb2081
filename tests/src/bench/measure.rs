//! One measurement: a fresh Redis on host-a, filled with random values, asked 1000 times a second
//! over one connection, and moved to host-b.

use super::contender::Contender;
use super::meter::{self, MemoryWatch};
use crate::client::{LoadClient, Window};
use crate::scenario::Scene;
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Silence that no contender should exceed; a longer one ends the measurement as failed.
const LONGEST: Duration = Duration::from_secs(120);
/// Before the move: what the hosts do without one.
const BEFORE: Duration = Duration::from_secs(1);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) contender: Contender,
    /// Random values in Redis.
    pub(super) mib: u32,
    /// Connections: one that counts, and of the others one in a hundred is in use.
    pub(super) connections: u16,
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:12} {:5} MiB", self.contender.name(), self.mib)?;
        if self.connections > 1 { write!(f, ", {} connections", self.connections) } else { Ok(()) }
    }
}

/// What came out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) run: u32,
    pub(super) contender: Contender,
    pub(super) mib: u32,
    pub(super) connections: u16,
    /// The client's longest time without a reply.
    pub(super) gap_us: u64,
    /// From the start of the first command to the end of the last.
    pub(super) move_us: u64,
    /// Replies of all connections, all of them checked.
    pub(super) replies: u64,
    /// Processor time of both hosts for the move, less what they use without one.
    pub(super) cpu_us: u64,
    /// Anonymous and shared memory of the server before the move.
    pub(super) container_bytes: u64,
    /// The most that the whole of host-b had of both, during and after the move.
    pub(super) peak_bytes: u64,
    /// tranship's own word for the time that nothing ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) frozen_us: Option<u64>,
    /// The rest of what the contender says of itself.
    pub(super) details: serde_json::Value,
}

impl Measured {
    /// Whether it is of this cell.
    pub(super) fn is(&self, cell: &Cell) -> bool {
        self.contender == cell.contender && self.mib == cell.mib && self.connections == cell.connections
    }

    pub(super) fn gap_ms(&self) -> f64 {
        self.gap_us as f64 / 1000.0
    }
}

/// Takes one. A lost, repeated or reordered reply on any connection is an error.
pub(super) fn measure(scene: &Scene, run: u32, cell: Cell) -> anyhow::Result<Measured> {
    take(scene, run, cell).with_context(|| format!("{cell}, run {run}"))
}

fn take(scene: &Scene, run: u32, cell: Cell) -> anyhow::Result<Measured> {
    let Cell { contender, mib, connections } = cell;
    contender.start(scene)?;
    scene.wait_port(contender.ip(), 6379)?;
    let addr = format!("{}:6379", contender.ip());
    scene.load_to_end(&["fill", "--addr", &addr, "--mib", &mib.to_string()])?;
    let mut client = scene.load(&["redis", "--addr", &addr, "--rate", "1000", "--patience", "180"])?;
    let others = others(scene, &addr, connections)?;
    let container_bytes = meter::resident_bytes(&scene.host("host-a")?, "redis-server")?;
    let target = scene.host("host-b")?;

    let before = meter::cpu_us(scene)?;
    let waited = Instant::now();
    std::thread::sleep(BEFORE);
    let cpu = meter::cpu_us(scene)?;
    let usual = (cpu - before) as f64 / waited.elapsed().as_secs_f64();

    let memory = MemoryWatch::begin(&target)?;
    client.mark("move")?;
    let began = Instant::now();
    let mut details = contender.migrate(scene)?;
    let move_us = micros(began.elapsed());
    let window = settled(&mut client)?;
    meter::wait_filled(&target)?;
    let used = (meter::cpu_us(scene)? - cpu) as f64 - usual * began.elapsed().as_secs_f64();
    let peak_bytes = memory.end()?;

    let mut replies = 0;
    for client in [Some(client), others].into_iter().flatten() {
        let report = client.stop()?;
        ensure!(report.failures.is_empty(), "the client: {:?}", report.failures);
        replies += report.replies;
    }
    contender.remove(scene)?;
    let frozen_us = details.as_object_mut().and_then(|d| d.remove("frozen_us")).and_then(|v| v.as_u64());
    Ok(Measured {
        run,
        contender,
        mib,
        connections,
        gap_us: window.longest_gap_us,
        move_us,
        replies,
        cpu_us: used.max(0.0) as u64,
        container_bytes,
        peak_bytes,
        frozen_us,
        details,
    })
}

/// The connections beside the one that counts.
fn others(scene: &Scene, addr: &str, connections: u16) -> anyhow::Result<Option<LoadClient>> {
    if connections <= 1 {
        return Ok(None);
    }
    let (count, active) = (connections - 1, (connections / 100).max(1));
    let (count, rate) = (count.to_string(), (u32::from(active) * 10).to_string());
    let active = active.to_string();
    let args = [
        "conns",
        "--addr",
        addr,
        "--count",
        &count,
        "--active",
        &active,
        "--rate",
        &rate,
        "--patience",
        "180",
    ];
    scene.load(&args).map(Some)
}

/// Waits until replies have come for a second, and closes the window.
pub(super) fn settled(client: &mut LoadClient) -> anyhow::Result<Window> {
    let until = Instant::now() + LONGEST;
    loop {
        let before = client.peek()?;
        std::thread::sleep(Duration::from_secs(1));
        let after = client.peek()?;
        ensure!(after.failures == 0, "the client has failures");
        if after.replies > before.replies + 200 {
            return Ok(client.mark("after")?);
        }
        ensure!(Instant::now() < until, "no reply for {} s", LONGEST.as_secs());
    }
}

/// A duration as the files have it.
pub(super) fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
