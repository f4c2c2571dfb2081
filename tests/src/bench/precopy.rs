//! What the rounds over memory have to do while the container runs.
//!
//! Three cases, each with a container whose memory checks itself ([`crate::workload`]): random
//! pages are written all the time; everything is incompressible, and the whole move is held against
//! what one QUIC stream carries between the same hosts in the same minute; half of the memory is
//! zero and a quarter a copy. A client counts at 1000 requests a second through all of them.

use super::Precopy;
use super::bars::{self, Bar};
use super::contender::IP;
use super::measure::{micros, settled};
use super::meter;
use super::program;
use super::raw::Raw;
use super::stats::spread;
use crate::names::Network;
use crate::scenario::{Container, Scene};
use anyhow::{Context, ensure};
use comfy_table::Table;
use serde::{Deserialize, Serialize};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

const MIB: f64 = 1024.0 * 1024.0;
/// MiB of random pages written each second.
const WRITES: u32 = 64;
/// ms of silence while they are written.
pub(super) const SILENCE: f64 = 500.0;
/// % of one stream's rate that a whole move reaches.
pub(super) const SHARE_OF_STREAM: f64 = 60.0;
/// % of a sparse container's memory that goes over the wire.
pub(super) const SHARE_ON_WIRE: f64 = 30.0;
/// Data sent to measure a stream, in MiB.
const STREAM_MIB: &str = "512";
/// Where the stream goes to.
const STREAM_PORT: u16 = 7999;
const NAME: &str = "pages";
const PORT: u16 = 6379;

/// What the memory is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Case {
    /// Incompressible, and written to.
    Writes,
    /// Incompressible.
    Random,
    /// Half zero, a quarter copies.
    Sparse,
}

impl Case {
    /// In the order of tables.
    pub(super) const ALL: [Self; 3] = [Self::Writes, Self::Random, Self::Sparse];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Writes => "64 MiB/s written",
            Self::Random => "incompressible",
            Self::Sparse => "half zero, quarter copies",
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) run: u32,
    pub(super) case: Case,
    pub(super) mib: u32,
    /// The client's longest time without a reply.
    pub(super) gap_us: u64,
    /// From the start of the command to its end.
    pub(super) move_us: u64,
    /// Replies, all of them checked.
    pub(super) replies: u64,
    /// Anonymous and shared memory of the server before the move.
    pub(super) container_bytes: u64,
    /// What host-a's interface sent from the start of the command to its end.
    pub(super) wire_bytes: u64,
    /// Bytes written a second while the container ran, from the start of the command to its end.
    pub(super) written_per_s: u64,
    /// What one QUIC stream carried right before, in bytes a second; in the case that compares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stream_per_s: Option<u64>,
    /// tranship's own summary.
    pub(super) details: serde_json::Value,
}

impl Measured {
    pub(super) fn gap_ms(&self) -> f64 {
        self.gap_us as f64 / 1000.0
    }

    /// % of the stream's rate.
    pub(super) fn share_of_stream(&self) -> Option<f64> {
        let rate = self.container_bytes as f64 / (self.move_us as f64 / 1e6);
        self.stream_per_s.map(|stream| rate / stream as f64 * 100.0)
    }

    /// % of the container's memory.
    pub(super) fn share_on_wire(&self) -> f64 {
        self.wire_bytes as f64 / self.container_bytes as f64 * 100.0
    }
}

pub(super) fn run(options: &Precopy) -> anyhow::Result<ExitCode> {
    let (scene, common) = (options.common.scene(true)?, &options.common);
    let result = measure_all(&scene, options);
    let good = report(&common.end(&scene, result)?);
    Ok(common.code(good))
}

fn measure_all(scene: &Scene, options: &Precopy) -> anyhow::Result<Raw<Measured>> {
    program::install(&scene.host("host-a")?)?;
    let mut raw = Raw::new(scene, options.common.json.as_deref())?;
    for run in 0..options.common.runs {
        let mut order = Case::ALL;
        if run % 2 == 1 {
            order.reverse();
        }
        for case in order {
            let what = case.name();
            let one = measure(scene, run, case, options.mib).with_context(|| format!("{what}, run {run}"))?;
            eprintln!(
                "run {run}: {what:25} silent for {:.0} ms, moved in {:.1} s, {:.0} MiB on the wire",
                one.gap_ms(),
                one.move_us as f64 / 1e6,
                one.wire_bytes as f64 / MIB
            );
            raw.push(one)?;
        }
    }
    Ok(raw)
}

fn measure(scene: &Scene, run: u32, case: Case, mib: u32) -> anyhow::Result<Measured> {
    scene.remove_all()?;
    start(scene, case, mib)?;
    let addr = format!("{IP}:{PORT}");
    let mut client = scene.load(&["redis", "--addr", &addr, "--rate", "1000", "--patience", "180"])?;
    let (source, target) = (scene.host("host-a")?, scene.host("host-b")?);
    let container_bytes = meter::resident_bytes(&source, "tranship-lab")?;
    std::thread::sleep(Duration::from_secs(1));
    // Beside the same container and the same client: on two processors these cost either a twentieth.
    let stream_per_s = if case == Case::Random { Some(stream(scene)?) } else { None };

    let written = scene.ask(&addr, "WRITTEN")?;
    let wire = sent(scene)?;
    client.mark("move")?;
    let began = Instant::now();
    let mut details = scene.migrate("host-a", NAME, "host-b")?.summary;
    let move_us = micros(began.elapsed());
    let wire_bytes = sent(scene)?.saturating_sub(wire);
    let window = settled(&mut client)?;
    let written = (scene.ask(&addr, "WRITTEN")? - written).max(0) as f64 * 4096.0;
    let running = began.elapsed().as_secs_f64() - window.longest_gap_us as f64 / 1e6;
    meter::wait_filled(&target)?;
    let wrong = scene.ask(&addr, "CHECK")?;
    ensure!(wrong == 0, "{wrong} pages of the container are not as they should be");
    let report = client.stop()?;
    ensure!(report.failures.is_empty(), "the client: {:?}", report.failures);
    scene.remove_all()?;
    Ok(Measured {
        run,
        case,
        mib,
        gap_us: window.longest_gap_us,
        move_us,
        replies: report.replies,
        container_bytes,
        wire_bytes,
        written_per_s: (written / running) as u64,
        stream_per_s,
        details: details.get_mut("summary").map(serde_json::Value::take).unwrap_or_default(),
    })
}

fn start(scene: &Scene, case: Case, mib: u32) -> anyhow::Result<()> {
    let writes = if case == Case::Writes { WRITES } else { 0 };
    let content = if case == Case::Sparse { "sparse" } else { "random" };
    let (addr, mib, writes) = (format!("0.0.0.0:{PORT}"), mib.to_string(), writes.to_string());
    let args = [
        program::PATH,
        "workload",
        "--addr",
        &addr,
        "--mib",
        &mib,
        "--content",
        content,
        "--write-mib",
        &writes,
    ];
    scene.start("host-a", &Container::new(NAME, program::ROOTFS, &format!("{IP}/16"), &args))?;
    scene.wait_port(IP, PORT)
}

/// Bytes that host-a's interface has sent so far.
fn sent(scene: &Scene) -> anyhow::Result<u64> {
    let text = scene.on_ok("host-a", &["cat", "/sys/class/net/eth0/statistics/tx_bytes"])?;
    text.trim().parse().with_context(|| format!("{text:?} is no count of bytes"))
}

/// What one QUIC stream of the agents' own endpoint carries from host-a to host-b, in bytes a
/// second.
fn stream(scene: &Scene) -> anyhow::Result<u64> {
    let address = format!("{}:{STREAM_PORT}", Network::Lan.host_v4(1));
    let config = ["transhipd", "--config", "/etc/tranship/transhipd.toml", "wire-rate"];
    let listen = [&config[..], &["--listen", &address]].concat();
    let listener = scene.host("host-b")?.command(listen)?.stdin(Stdio::null()).stdout(Stdio::null());
    let mut listener = listener.spawn().context("starting a listener for a stream")?;
    let send = ["--send-to", "host-b", "--address", &address, "--mib", STREAM_MIB];
    let sent = scene.on("host-a", &[&config[..], &send].concat(), Duration::from_secs(120));
    // It ends with the stream; when that failed it is still there.
    if sent.as_ref().map_or(true, |s| s.code != Some(0)) {
        let _ = listener.kill();
    }
    let _ = listener.wait();
    let text = sent?.ok()?;
    let answer: serde_json::Value = serde_json::from_str(text.trim()).context("the answer of wire-rate")?;
    answer["bytes_per_second"].as_u64().with_context(|| format!("no rate in {answer}"))
}

/// Prints tables and bars; answers whether all bars are met.
pub(super) fn report(raw: &Raw<Measured>) -> bool {
    let mut table = Table::new();
    table.set_header([
        "memory",
        "runs",
        "median silence",
        "p95",
        "whole move",
        "rate",
        "of a stream",
        "on the wire",
        "written",
    ]);
    for case in Case::ALL {
        let of = || raw.measurements.iter().filter(|m| m.case == case);
        let Some(gap) = spread(of().map(Measured::gap_ms)) else { continue };
        let median = |figure: fn(&Measured) -> f64| spread(of().map(figure)).map_or(0.0, |s| s.median);
        table.add_row([
            case.name().to_owned(),
            gap.count.to_string(),
            format!("{:.0} ms", gap.median),
            format!("{:.0} ms", gap.p95),
            format!("{:.1} s", median(|m| m.move_us as f64 / 1e6)),
            format!("{:.0} MiB/s", median(|m| m.container_bytes as f64 / MIB / (m.move_us as f64 / 1e6))),
            spread(of().filter_map(Measured::share_of_stream))
                .map_or_else(String::new, |s| format!("{:.0} %", s.median)),
            format!("{:.1} %", median(Measured::share_on_wire)),
            format!("{:.0} MiB/s", median(|m| m.written_per_s as f64 / MIB)),
        ]);
    }
    println!("{}\n{table}", raw.environment);
    bars::report(&bars(raw))
}

fn bars(raw: &Raw<Measured>) -> Vec<Bar> {
    let of = |case| raw.measurements.iter().filter(move |m| m.case == case);
    let writes = spread(of(Case::Writes).map(Measured::gap_ms)).map(|s| s.median);
    let stream = spread(of(Case::Random).filter_map(Measured::share_of_stream)).map(|s| s.median);
    let wire = spread(of(Case::Sparse).map(Measured::share_on_wire)).map(|s| s.median);
    vec![
        Bar::at_most(format!("{WRITES} MiB/s written: median silence"), "ms", writes, SILENCE),
        Bar::at_least("incompressible: rate of the whole move", "% of a stream's", stream, SHARE_OF_STREAM),
        Bar::at_most("half zero, quarter copies: on the wire", "% of memory", wire, SHARE_ON_WIRE),
    ]
}
