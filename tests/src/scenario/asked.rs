//! What an operator asks of a move is kept: how long clients may wait, and what it takes of the network; and
//! that clients do not wait for what was written to files while memory was carried.

use super::redis::{counted_on, finish};
use super::refusals::said_well;
use super::scene::{Container, MOVE, Scene};
use super::unmoved::unmoved;
use crate::bench::program;
use anyhow::{Context, ensure};
use std::time::Duration;

const NAME: &str = "busy";
const IP: &str = "10.77.1.24";
const ADDR: &str = "10.77.1.24:6379";
/// Memory, and what is written to it in a second, in MiB.
const MEMORY: u32 = 96;
const WRITES: u32 = 16;
/// What the second move may take, in megabytes a second.
const BANDWIDTH: u32 = 32;
/// Memory that has to be sent once at the least, at that rate, less what the first burst is allowed.
const SLOW: Duration = Duration::from_millis(2500);
const FAILED: i32 = 1;

/// A blackout that cannot be had is refused with the rate that stands in the way, and nothing was frozen;
/// one that can be is kept, over a wire that is not used up. The memory proves itself at the end.
pub(super) fn are_kept(scene: &mut Scene) -> anyhow::Result<()> {
    let scene = &*scene;
    program::install(&scene.host("host-a")?)?;
    let (memory, writes) = (MEMORY.to_string(), WRITES.to_string());
    let args =
        [program::PATH, "workload", "--addr", "0.0.0.0:6379", "--mib", &memory, "--write-mib", &writes];
    scene.start("host-a", &Container::new(NAME, program::ROOTFS, &format!("{IP}/16"), &args))?;
    scene.wait_port(IP, 6379)?;
    let mut client = scene.load(&["redis", "--addr", ADDR])?;

    let options = ["migrate", NAME, "--to", "host-b", "--output", "json"];
    let asked = |more: &[&str]| scene.tranship("host-a", &[&options[..], more].concat(), MOVE);
    let ended = asked(&["--max-blackout", "1ms", "--timeout", "4s"])?;
    let said = said_well(&ended, FAILED, "predicted")?;
    ensure!(said.contains("1 ms wanted") && said.contains("/s of its memory"), "it says {said}");
    ensure!(!ended.stdout.contains(r#""phase":"freeze""#), "it was frozen: {}", ended.said());
    ensure!(ended.took > Duration::from_secs(4), "given up after {:?}", ended.took);
    unmoved(scene, &mut client, NAME, "a blackout that cannot be had")?;
    println!("  1 ms: {said}");

    let cap = format!("{BANDWIDTH}M");
    let ended = asked(&["--max-blackout", "10s", "--timeout", "2m", "--bandwidth", &cap])?;
    let took = ended.took;
    let text = ended.ok().context("a move with a bandwidth")?;
    let last = text.lines().rev().find_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    let summary = last.context("no summary")?["summary"].take();
    scene.runs_only_on(NAME, "host-b")?;
    let (sent, total) = (summary["bytes_sent"].as_f64(), summary["total_us"].as_f64());
    let rate = sent.context("no bytes")? / (total.context("no time")? / 1e6) / 1e6;
    ensure!(took > SLOW, "{MEMORY} MiB moved in {took:?} at {BANDWIDTH} MB/s");
    ensure!(rate < f64::from(BANDWIDTH) * 1.1, "{rate:.0} MB/s were sent, {BANDWIDTH} allowed");
    println!("  {BANDWIDTH} MB/s: moved in {:.1} s, {rate:.0} MB/s on average", took.as_secs_f64());
    counted_on(&mut client, "moved")?;
    let wrong = scene.ask(ADDR, "CHECK")?;
    ensure!(wrong == 0, "{wrong} pages are not as they should be");
    finish(client).map(drop)
}

/// Memory, and what is written to a file in a second, in MiB.
const JOURNAL_MEMORY: u32 = 96;
const JOURNAL_WRITES: u32 = 8;
/// What is written to the file while memory is carried at [`BANDWIDTH`] takes longer than this to follow.
const JOURNAL_GAP: Duration = Duration::from_millis(500);

/// A container that writes to a file all the time, over a wire that takes three seconds for its memory: what
/// it writes meanwhile does not wait for the freeze. File and memory prove themselves at the end.
pub(super) fn files_are_fresh(scene: &mut Scene) -> anyhow::Result<()> {
    let scene = &*scene;
    program::install(&scene.host("host-a")?)?;
    let (memory, writes) = (JOURNAL_MEMORY.to_string(), JOURNAL_WRITES.to_string());
    let args = [program::PATH, "workload", "--addr", "0.0.0.0:6379", "--mib", &memory, "--file-mib", &writes];
    scene.start("host-a", &Container::new(NAME, program::ROOTFS, &format!("{IP}/16"), &args))?;
    scene.wait_port(IP, 6379)?;
    let mut client = scene.load(&["redis", "--addr", ADDR])?;
    client.mark("moving")?;

    let cap = format!("{BANDWIDTH}M");
    let options = ["migrate", NAME, "--to", "host-b", "--output", "json", "--bandwidth", &cap];
    let ended = scene.tranship("host-a", &options, MOVE)?;
    ended.ok().context("a move of a container that writes files")?;
    scene.runs_only_on(NAME, "host-b")?;
    let window = counted_on(&mut client, "moved")?;
    let gap = Duration::from_micros(window.longest_gap_us);
    println!("  {JOURNAL_WRITES} MiB/s written to a file, {BANDWIDTH} MB/s carried: silent for {gap:?}");
    ensure!(gap < JOURNAL_GAP, "the client waited {gap:?} for what was written to a file");
    let wrong = scene.ask(ADDR, "CHECK")?;
    ensure!(wrong == 0, "{wrong} pages and blocks are not as they should be");
    finish(client).map(drop)
}
