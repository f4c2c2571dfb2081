//! The longest silence that a client sees.
//!
//! Contenders take turns within a run, and every second run turns the order round, so that a slow
//! hour hits all alike.

use super::bars::{self, Bar};
use super::contender::Contender;
use super::measure::{Cell, Measured, measure};
use super::raw::Raw;
use super::stats::{Spread, spread};
use super::{Gap, plan};
use crate::scenario::Scene;
use anyhow::ensure;
use comfy_table::Table;
use std::process::ExitCode;

/// Data in MiB, longest silence in ms, and which share of podman's it may be.
const BARS: [(u32, f64, f64); 2] = [(64, 250.0, 8.0), (1024, 300.0, 40.0)];
/// What TCP may add to the frozen time, in ms.
const ADDED: f64 = 20.0;

pub(super) fn run(options: &Gap) -> anyhow::Result<ExitCode> {
    let contenders = contenders(options)?;
    let (scene, common) = (options.common.scene(contenders.contains(&Contender::Tranship))?, &options.common);
    let result = measure_all(&scene, options, &contenders);
    let good = report(&common.end(&scene, result)?);
    Ok(common.code(good))
}

fn contenders(options: &Gap) -> anyhow::Result<Vec<Contender>> {
    let mut contenders = Vec::new();
    if !options.rivals_only {
        contenders.push(Contender::Tranship);
    }
    contenders.extend(&options.against);
    ensure!(!contenders.is_empty(), "--rivals-only without --against leaves nothing to measure");
    Ok(contenders)
}

fn measure_all(scene: &Scene, options: &Gap, contenders: &[Contender]) -> anyhow::Result<Raw<Measured>> {
    scene.image("redis")?;
    for contender in contenders {
        eprintln!("preparing {}", contender.name());
        contender.prepare(scene)?;
    }
    let common = &options.common;
    let mut raw = Raw::new(scene, common.json.as_deref())?;
    let cells = options.mib.iter().flat_map(|mib| {
        contenders.iter().map(|contender| Cell { contender: *contender, mib: *mib, connections: 1 })
    });
    for (run, cell) in plan(cells.collect(), common.runs, options.rival_runs) {
        let one = measure(scene, run, cell)?;
        eprintln!("run {run}: {cell}: silent for {:.0} ms", one.gap_ms());
        raw.push(one)?;
    }
    Ok(raw)
}

/// The figures of one contender with so much data.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) contender: Contender,
    pub(super) mib: u32,
    pub(super) gap_ms: Spread,
}

/// The bar for so much data, in ms.
pub(super) fn bar_ms(mib: u32) -> Option<f64> {
    BARS.iter().find(|(size, ..)| *size == mib).map(|(_, longest, _)| *longest)
}

/// A line for each contender and size, in order.
pub(super) fn lines(raw: &Raw<Measured>) -> Vec<Line> {
    let mut keys: Vec<_> = raw.measurements.iter().map(|m| (m.mib, m.contender)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        .filter_map(|(mib, contender)| {
            let cell = Cell { contender, mib, connections: 1 };
            let gap_ms = spread(raw.measurements.iter().filter(|m| m.is(&cell)).map(Measured::gap_ms))?;
            Some(Line { contender, mib, gap_ms })
        })
        .collect()
}

/// Prints tables and bars; answers whether all bars are met.
pub(super) fn report(raw: &Raw<Measured>) -> bool {
    let lines = lines(raw);
    let median = |contender: Contender, mib: u32| {
        lines.iter().find(|l| l.contender == contender && l.mib == mib).map(|l| l.gap_ms.median)
    };
    let mut table = Table::new();
    table.set_header([
        "data",
        "moved by",
        "runs",
        "median silence",
        "p95",
        "lowest",
        "highest",
        "whole move",
    ]);
    for line in &lines {
        let of = raw.measurements.iter().filter(|m| m.contender == line.contender && m.mib == line.mib);
        let whole = spread(of.map(|m| m.move_us as f64 / 1e6));
        let gap = line.gap_ms;
        table.add_row([
            format!("{} MiB", line.mib),
            line.contender.name().to_owned(),
            gap.count.to_string(),
            format!("{:.0} ms", gap.median),
            format!("{:.0} ms", gap.p95),
            format!("{:.0} ms", gap.low),
            format!("{:.0} ms", gap.high),
            whole.map_or_else(String::new, |w| format!("{:.1} s", w.median)),
        ]);
    }
    println!("{}\n{table}", raw.environment);
    let mut bars = Vec::new();
    for (mib, longest, share) in BARS {
        let ours = median(Contender::Tranship, mib);
        let podman = median(Contender::Podman, mib);
        bars.push(Bar::at_most(format!("{mib} MiB: median silence"), "ms", ours, longest));
        let times = ours.zip(podman).map(|(ours, podman)| podman / ours);
        bars.push(Bar::at_least(format!("{mib} MiB: podman's silence is"), "times ours", times, share));
    }
    let added = raw
        .measurements
        .iter()
        .filter_map(|m| m.frozen_us.map(|frozen| (m.gap_us as f64 - frozen as f64) / 1000.0));
    let added = spread(added).map(|s| s.median);
    bars.push(Bar::at_most("median of silence less frozen time", "ms", added, ADDED));
    bars::report(&bars)
}
