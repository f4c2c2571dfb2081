//! Pictures of the raw data, as SVG written by hand: a few shapes are less than a crate for them.
//!
//! `bench plot --dir DIR` reads `gap.json`, `scale.json` and `precopy.json` there, prints their
//! tables again, and writes a picture beside each.

mod axis;
mod strip;
mod svg;
mod xy;

use super::contender::Contender;
use super::raw::Raw;
use super::{gap, measure, precopy, scale};
use anyhow::{Context, ensure};
use std::path::Path;
use std::process::ExitCode;
use strip::{Row, Strip};
use svg::Picture;
use xy::Xy;

const WIDTH: f64 = 760.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Draws what is there.
pub(super) fn run(dir: &Path) -> anyhow::Result<ExitCode> {
    let mut drawn = 0;
    let path = dir.join("gap.json");
    if path.exists() {
        let raw = Raw::load(&path)?;
        gap::report(&raw);
        write(&dir.join("gap.svg"), &draw_gap(&raw))?;
        drawn += 1;
    }
    let path = dir.join("scale.json");
    if path.exists() {
        let raw = Raw::load(&path)?;
        scale::report(&raw);
        write(&dir.join("scale.svg"), &draw_scale(&raw))?;
        drawn += 1;
    }
    let path = dir.join("precopy.json");
    if path.exists() {
        let raw = Raw::load(&path)?;
        precopy::report(&raw);
        write(&dir.join("precopy.svg"), &draw_precopy(&raw))?;
        drawn += 1;
    }
    ensure!(drawn > 0, "{} has no gap.json, scale.json or precopy.json", dir.display());
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("drawn: {}", path.display());
    Ok(())
}

/// A strip for each amount of data, with a row for each contender.
fn draw_gap(raw: &Raw<measure::Measured>) -> String {
    let lines = gap::lines(raw);
    let mut sizes: Vec<u32> = lines.iter().map(|l| l.mib).collect();
    sizes.dedup();
    let mut picture = Picture::new(WIDTH);
    for mib in sizes {
        let rows = lines.iter().filter(|l| l.mib == mib).map(|line| {
            let of = raw.measurements.iter().filter(|m| m.contender == line.contender && m.mib == mib);
            Row {
                label: line.contender.name().into(),
                values: of.map(measure::Measured::gap_ms).collect(),
                first: line.contender == Contender::Tranship,
            }
        });
        Strip {
            title: format!("Longest silence for a client of Redis with {mib} MiB, in ms (each dot a move)"),
            rows: rows.collect(),
            unit: "ms",
            bar: gap::bar_ms(mib),
            log: true,
        }
        .draw(&mut picture);
    }
    picture.finish()
}

/// Silence and memory over the size of the container, and silence with many connections.
fn draw_scale(raw: &Raw<measure::Measured>) -> String {
    let ours = |m: &&measure::Measured| m.contender == Contender::Tranship;
    let single = || raw.measurements.iter().filter(ours).filter(|m| m.connections == 1);
    let gib = |m: &measure::Measured| m.container_bytes as f64 / MIB / 1024.0;
    let mut picture = Picture::new(WIDTH);
    Xy {
        title: "Longest silence for a client, in ms, over the memory of the container in GiB".into(),
        points: single().map(|m| (gib(m), m.gap_ms())).collect(),
        line: scale::fit(raw),
        legend: "line through the medians",
    }
    .draw(&mut picture);
    Xy {
        title: "Most memory that all of the destination had, in MiB, over the memory of the container in GiB"
            .into(),
        points: single().map(|m| (gib(m), m.peak_bytes as f64 / MIB)).collect(),
        line: Some(scale::PEAK),
        legend: "bar",
    }
    .draw(&mut picture);
    let mut counts: Vec<u16> = raw.measurements.iter().filter(ours).map(|m| m.connections).collect();
    counts.sort_unstable();
    counts.dedup();
    let least = raw.measurements.iter().map(|m| m.mib).min().unwrap_or(0);
    let rows = counts.into_iter().map(|count| {
        let of = raw.measurements.iter().filter(ours).filter(|m| m.connections == count && m.mib == least);
        let label = if count == 1 { "1 connection".into() } else { format!("{count} connections") };
        Row { label, values: of.map(measure::Measured::gap_ms).collect(), first: true }
    });
    Strip {
        title: format!("Longest silence with {least} MiB, in ms"),
        rows: rows.collect(),
        unit: "ms",
        bar: None,
        log: false,
    }
    .draw(&mut picture);
    picture.finish()
}

/// A strip for each bar.
fn draw_precopy(raw: &Raw<precopy::Measured>) -> String {
    let mut picture = Picture::new(WIDTH);
    let row = |case: precopy::Case, figure: fn(&precopy::Measured) -> Option<f64>| Row {
        label: case.name().into(),
        values: raw.measurements.iter().filter(|m| m.case == case).filter_map(figure).collect(),
        first: true,
    };
    let silence = |m: &precopy::Measured| Some(m.gap_ms());
    Strip {
        title: "Longest silence for a client, in ms (each dot a move)".into(),
        rows: precopy::Case::ALL.into_iter().map(|case| row(case, silence)).collect(),
        unit: "ms",
        bar: Some(precopy::SILENCE),
        log: false,
    }
    .draw(&mut picture);
    Strip {
        title: "Rate of a whole move, in % of what one QUIC stream carries (to be above the bar)".into(),
        rows: vec![row(precopy::Case::Random, precopy::Measured::share_of_stream)],
        unit: "%",
        bar: Some(precopy::SHARE_OF_STREAM),
        log: false,
    }
    .draw(&mut picture);
    Strip {
        title: "Bytes on the wire, in % of the container's memory".into(),
        rows: vec![row(precopy::Case::Sparse, |m| Some(m.share_on_wire()))],
        unit: "%",
        bar: Some(precopy::SHARE_ON_WIRE),
        log: false,
    }
    .draw(&mut picture);
    picture.finish()
}
