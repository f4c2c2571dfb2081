//! What grows with a container: silence and the memory that the destination needs with its memory,
//! silence with its connections, and the processor time of a move.

use super::bars::{self, Bar};
use super::contender::Contender;
use super::measure::{Cell, Measured, measure};
use super::raw::Raw;
use super::stats::{line, spread};
use super::{Scale, plan};
use crate::scenario::Scene;
use comfy_table::Table;
use std::process::ExitCode;

const MIB: f64 = 1024.0 * 1024.0;
/// ms of silence for each GiB more.
const SLOPE: f64 = 50.0;
/// Memory at the destination: so many times the container's, and so many MiB more.
const TIMES: f64 = 1.15;
const MORE: f64 = 128.0;
/// The same as a line: MiB for nothing, and for each GiB of the container.
pub(super) const PEAK: (f64, f64) = (MORE, TIMES * 1024.0);
/// Silence of many connections by that of one.
const CONNECTIONS: f64 = 1.5;

pub(super) fn run(options: &Scale) -> anyhow::Result<ExitCode> {
    let (scene, common) = (options.common.scene(true)?, &options.common);
    let result = measure_all(&scene, options);
    let good = report(&common.end(&scene, result)?);
    Ok(common.code(good))
}

fn measure_all(scene: &Scene, options: &Scale) -> anyhow::Result<Raw<Measured>> {
    scene.image("redis")?;
    let ours = |mib, connections| Cell { contender: Contender::Tranship, mib, connections };
    let mut cells: Vec<Cell> = options.mib.iter().map(|mib| ours(*mib, 1)).collect();
    if let Some(least) = options.mib.iter().min() {
        cells.push(ours(*least, options.connections));
    }
    // Beside podman where both are measured with the same amount of data.
    let rival = options.mib.iter().filter(|m| **m <= 1024).max();
    if let Some(mib) = rival.filter(|_| options.rival_runs > 0) {
        Contender::Podman.prepare(scene)?;
        cells.push(Cell { contender: Contender::Podman, mib: *mib, connections: 1 });
    }
    let mut raw = Raw::new(scene, options.common.json.as_deref())?;
    for (run, cell) in plan(cells, options.common.runs, Some(options.rival_runs)) {
        let one = measure(scene, run, cell)?;
        eprintln!("run {run}: {cell}: silent for {:.0} ms", one.gap_ms());
        raw.push(one)?;
    }
    Ok(raw)
}

/// What was measured in which cells, in order.
fn cells(raw: &Raw<Measured>) -> Vec<Cell> {
    let mut keys: Vec<_> = raw.measurements.iter().map(|m| (m.contender, m.connections, m.mib)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter().map(|(contender, connections, mib)| Cell { contender, mib, connections }).collect()
}

/// Median silence in ms over the container's size in GiB, for one connection.
fn by_size(raw: &Raw<Measured>) -> Vec<(f64, f64)> {
    let ours = cells(raw).into_iter().filter(|c| c.contender == Contender::Tranship && c.connections == 1);
    ours.filter_map(|c| Some((f64::from(c.mib) / 1024.0, median(raw, &c, Measured::gap_ms)?))).collect()
}

/// The line through them: ms for no memory, and for each GiB.
pub(super) fn fit(raw: &Raw<Measured>) -> Option<(f64, f64)> {
    line(&by_size(raw))
}

fn median(raw: &Raw<Measured>, cell: &Cell, figure: impl Fn(&Measured) -> f64) -> Option<f64> {
    spread(raw.measurements.iter().filter(|m| m.is(cell)).map(figure)).map(|s| s.median)
}

fn cpu_s_per_gib(m: &Measured) -> f64 {
    m.cpu_us as f64 / 1e6 / (m.container_bytes as f64 / MIB / 1024.0)
}

/// MiB at the destination above what it may have for each MiB of the container.
fn over_mib(m: &Measured) -> f64 {
    (m.peak_bytes as f64 - TIMES * m.container_bytes as f64) / MIB
}

/// Prints tables and bars; answers whether all bars are met.
pub(super) fn report(raw: &Raw<Measured>) -> bool {
    let mut table = Table::new();
    table.set_header([
        "data",
        "connections",
        "moved by",
        "runs",
        "median silence",
        "p95",
        "CPU",
        "CPU for each GiB",
        "container",
        "peak at T",
    ]);
    for cell in cells(raw) {
        let of = || raw.measurements.iter().filter(|m| m.is(&cell));
        let (Some(gap), Some(cpu), Some(rate)) = (
            spread(of().map(Measured::gap_ms)),
            spread(of().map(|m| m.cpu_us as f64 / 1e6)),
            spread(of().map(cpu_s_per_gib)),
        ) else {
            continue;
        };
        let mib = |figure: fn(&Measured) -> u64| {
            spread(of().map(|m| figure(m) as f64 / MIB))
                .map_or_else(String::new, |s| format!("{:.0} MiB", s.high))
        };
        table.add_row([
            format!("{} MiB", cell.mib),
            cell.connections.to_string(),
            cell.contender.name().to_owned(),
            gap.count.to_string(),
            format!("{:.0} ms", gap.median),
            format!("{:.0} ms", gap.p95),
            format!("{:.2} s", cpu.median),
            format!("{:.2} s", rate.median),
            mib(|m| m.container_bytes),
            mib(|m| m.peak_bytes),
        ]);
    }
    println!("{}\n{table}", raw.environment);
    bars::report(&bars(raw))
}

fn bars(raw: &Raw<Measured>) -> Vec<Bar> {
    let ours: Vec<Cell> = cells(raw).into_iter().filter(|c| c.contender == Contender::Tranship).collect();
    let of_ours = raw.measurements.iter().filter(|m| m.contender == Contender::Tranship);
    let many = ours.iter().find(|c| c.connections > 1);
    let ratio = many.and_then(|many| {
        let one = Cell { connections: 1, ..*many };
        Some(median(raw, many, Measured::gap_ms)? / median(raw, &one, Measured::gap_ms)?)
    });
    let count = many.map_or(0, |c| c.connections);
    vec![
        Bar::at_most("more silence for each GiB more", "ms", fit(raw).map(|(_, slope)| slope), SLOPE),
        Bar::at_most(
            format!("peak of memory at T less {TIMES} times the container's, highest"),
            "MiB",
            spread(of_ours.map(over_mib)).map(|s| s.high),
            MORE,
        ),
        Bar::at_most(format!("median silence of {count} connections"), "times one's", ratio, CONNECTIONS),
    ]
}
