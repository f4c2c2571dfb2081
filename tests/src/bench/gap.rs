//! The longest silence that a client sees.
//!
//! Each measurement starts a fresh Redis on host-a, fills it with random values, counts at 1000
//! requests a second over one connection and moves it to host-b. Contenders take turns within a
//! run, and every second run turns the order round, so that a slow hour hits all alike.

use super::stats::{Spread, spread};
use super::{Gap, Rival, podman};
use crate::client::LoadClient;
use crate::lab;
use crate::scenario::bounded;
use crate::scenario::{Container, Scene};
use anyhow::{Context, ensure};
use comfy_table::Table;
use serde::Serialize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const OURS: &str = "tranship";
const PODMAN: &str = "podman";
const PODMAN_PLAIN: &str = "podman-plain";
const IP: &str = "10.77.1.78";
/// Silence that no contender should exceed; a longer one ends the measurement as failed.
const LONGEST: Duration = Duration::from_secs(120);

/// One measurement.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    run: u32,
    contender: &'static str,
    mib: u32,
    longest_gap_us: u64,
    gaps: Vec<crate::client::Gap>,
    /// From the start of the first command to the end of the last.
    move_us: u64,
    replies: u64,
    /// What the contender says of itself.
    details: serde_json::Value,
}

pub(super) fn run(options: &Gap) -> anyhow::Result<ExitCode> {
    let exe = std::env::current_exe()?;
    let contenders = contenders(options)?;
    let scene = if contenders.contains(&OURS) {
        Scene::new(&options.lab, 2, exe)?
    } else {
        Scene::without_agents(&options.lab, 2, exe)?
    };
    scene.image("redis")?;
    let result = measure_all(&scene, options, &contenders);
    if !options.keep {
        scene.lab().down()?;
    }
    let (measured, environment) = result?;
    if let Some(path) = &options.json {
        println!("raw data: {}", path.display());
    }
    println!("{environment}");
    let good = report(&measured, options, &contenders);
    Ok(if good || !options.check { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn contenders(options: &Gap) -> anyhow::Result<Vec<&'static str>> {
    let mut contenders = Vec::new();
    if !options.rivals_only {
        contenders.push(OURS);
    }
    contenders.extend(options.against.iter().map(|rival| match rival {
        Rival::Podman => PODMAN,
        Rival::PodmanPlain => PODMAN_PLAIN,
    }));
    ensure!(!contenders.is_empty(), "--rivals-only without --against leaves nothing to measure");
    ensure!(
        !options.check || (contenders.contains(&OURS) && contenders.contains(&PODMAN)),
        "--check needs us and podman"
    );
    Ok(contenders)
}

fn measure_all(
    scene: &Scene,
    options: &Gap,
    contenders: &[&'static str],
) -> anyhow::Result<(Vec<Measured>, serde_json::Value)> {
    if contenders.iter().any(|c| *c != OURS) {
        eprintln!("preparing podman: image and networks on both hosts");
        podman::prepare(scene)?;
    }
    let environment = environment(scene)?;
    let mut measured = Vec::new();
    for run in 0..options.runs {
        for mib in &options.mib {
            let mut order = contenders.to_vec();
            if run % 2 == 1 {
                order.reverse();
            }
            for contender in order {
                let one = measure(scene, run, contender, *mib)
                    .with_context(|| format!("{contender}, {mib} MiB, run {run}"))?;
                eprintln!("run {run}: {contender:12} {mib:5} MiB: silent for {}", millis(one.longest_gap_us));
                measured.push(one);
                // After each: an hour's figures must not go with the one that fails.
                keep(options, &environment, &measured)?;
            }
        }
    }
    Ok((measured, environment))
}

fn keep(options: &Gap, environment: &serde_json::Value, measured: &[Measured]) -> anyhow::Result<()> {
    let Some(path) = &options.json else { return Ok(()) };
    let raw = serde_json::json!({ "schema": 1, "environment": environment, "measurements": measured });
    std::fs::write(path, serde_json::to_vec_pretty(&raw)?)
        .with_context(|| format!("writing {}", path.display()))
}

fn measure(scene: &Scene, run: u32, contender: &'static str, mib: u32) -> anyhow::Result<Measured> {
    let ip = if contender == OURS { IP } else { podman::IP };
    if contender == OURS {
        scene.remove_all()?;
        scene.start("host-a", &Container::redis("redis", &format!("{IP}/16")))?;
    } else {
        podman::start(scene)?;
    }
    scene.wait_port(ip, 6379)?;
    let addr = format!("{ip}:6379");
    scene.load_to_end(&["fill", "--addr", &addr, "--mib", &mib.to_string()])?;
    let mut client = scene.load(&["redis", "--addr", &addr, "--rate", "1000", "--patience", "180"])?;
    std::thread::sleep(Duration::from_secs(1));
    client.mark("move")?;
    let began = Instant::now();
    let details = if contender == OURS {
        scene.migrate("host-a", "redis", "host-b")?.summary
    } else {
        podman::migrate(scene, contender == PODMAN)?
    };
    let move_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let window = settled(&mut client)?;
    let report = client.stop()?;
    ensure!(report.failures.is_empty(), "the client: {:?}", report.failures);
    if contender == OURS {
        scene.remove_all()?;
    } else {
        podman::remove(scene)?;
    }
    Ok(Measured {
        run,
        contender,
        mib,
        longest_gap_us: window.longest_gap_us,
        gaps: report.gaps,
        move_us,
        replies: report.replies,
        details,
    })
}

/// Waits until replies have come for a second, and closes the window.
fn settled(client: &mut LoadClient) -> anyhow::Result<crate::client::Window> {
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

fn environment(scene: &Scene) -> anyhow::Result<serde_json::Value> {
    let host = scene.host("host-a")?;
    let podman =
        bounded::run("podman --version", host.command(["podman", "--version"])?, Duration::from_secs(20))?;
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    Ok(serde_json::json!({
        "versions": lab::versions(&host)?,
        "podman": podman.stdout.trim(),
        "cpu": model.trim_start_matches(['\t', ' ', ':']),
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "at": jiff::Timestamp::now().to_string(),
    }))
}

/// Prints the table; answers whether the bar is met.
fn report(measured: &[Measured], options: &Gap, contenders: &[&'static str]) -> bool {
    let figures = |contender: &str, mib: u32| -> Option<Spread> {
        let of = measured.iter().filter(|m| m.contender == contender && m.mib == mib);
        spread(&of.map(|m| m.longest_gap_us).collect::<Vec<_>>())
    };
    let mut table = Table::new();
    table.set_header(["data", "moved by", "runs", "median silence", "lowest", "highest", "of podman's"]);
    let mut good = true;
    for mib in &options.mib {
        let rival = figures(PODMAN, *mib);
        for contender in contenders {
            let Some(own) = figures(contender, *mib) else { continue };
            let share = rival.filter(|_| *contender == OURS).map(|r| own.median / r.median);
            let bar = if *mib <= 64 { 0.5 } else { 1.0 / 3.0 };
            good &= share.is_none_or(|s| s <= bar);
            table.add_row([
                format!("{mib} MiB"),
                (*contender).to_owned(),
                own.count.to_string(),
                millis_f(own.median),
                millis_f(own.low),
                millis_f(own.high),
                share.map_or_else(String::new, |s| format!("{:.0} %", s * 100.0)),
            ]);
        }
    }
    println!("{table}");
    good
}

fn millis(us: u64) -> String {
    millis_f(us as f64)
}

fn millis_f(us: f64) -> String {
    format!("{:.0} ms", us / 1000.0)
}
