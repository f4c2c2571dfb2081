//! Cancelling. Ctrl-C: once asks to cancel, twice leaves.

use super::bounded::Running;
use super::hosts_file::with_config;
use super::redis::{counted_on, finish};
use super::refusals::said_well;
use super::scene::{Container, MOVE, Scene};
use super::unmoved::{cancel, met, rules, unmoved};
use crate::agent_log::AgentLog;
use crate::client::LoadClient;
use anyhow::ensure;
use nix::sys::signal::Signal;
use std::time::Duration;

/// A first pass over this link takes seconds.
const SLOW_BITS: u64 = 80_000_000;

/// Interrupted while files are copied: cancelled, running at the source, nothing left, and the
/// next move works.
pub(super) fn ctrl_c_cancels(scene: &mut Scene) -> anyhow::Result<()> {
    scene.start("host-a", &Container::redis("cancelled", "10.77.1.8/16"))?;
    scene.wait_port("10.77.1.8", 6379)?;
    let mut client = scene.load(&["redis", "--addr", "10.77.1.8:6379"])?;
    scene.lab().slow("host-a", "host-b", SLOW_BITS, Duration::ZERO)?;
    let moving = in_stage(scene, "cancelled")?;
    client.mark("cancel")?;
    moving.signal(Signal::SIGINT)?;
    let ended = moving.finish(Duration::from_secs(60))?;
    scene.lab().heal("host-a", "host-b")?;
    ensure!(ended.code == Some(7), "the exit code is {:?}, not 7: {}", ended.code, ended.said());
    scene.runs_only_on("cancelled", "host-a")?;
    let window = counted_on(&mut client, "after")?;
    ensure!(window.longest_gap_us < 500_000, "cancelling cost {} ms", window.longest_gap_us / 1000);
    scene.audit()?;
    scene.migrate("host-a", "cancelled", "host-b")?;
    finish(client).map(drop)
}

/// Interrupted twice: the command leaves, and whatever the agents make of the move, the
/// container runs on exactly one host and no number is missing.
pub(super) fn second_ctrl_c_detaches(scene: &mut Scene) -> anyhow::Result<()> {
    scene.start("host-a", &Container::redis("detached", "10.77.1.9/16"))?;
    scene.wait_port("10.77.1.9", 6379)?;
    let client = scene.load(&["redis", "--addr", "10.77.1.9:6379"])?;
    scene.lab().slow("host-a", "host-b", SLOW_BITS, Duration::ZERO)?;
    let mut moving = in_stage(scene, "detached")?;
    moving.signal(Signal::SIGINT)?;
    std::thread::sleep(Duration::from_millis(30));
    // The cancellation may be quicker than the second signal; then there is nothing to leave.
    if !moving.has_ended() {
        let _ = moving.signal(Signal::SIGINT);
    }
    let ended = moving.finish(Duration::from_secs(30))?;
    scene.lab().heal("host-a", "host-b")?;
    ensure!(
        matches!(ended.code, Some(7 | 130)),
        "the exit code is {:?}, neither 130 nor 7: {}",
        ended.code,
        ended.said()
    );
    scene.wait_for("the end of the migration", MOVE, || {
        let status =
            scene.tranship("host-a", &["status", "--output", "json"], Duration::from_secs(20))?.ok()?;
        Ok(!status.contains("\"migration\""))
    })?;
    let at = scene.runs_only_on("detached", "host-a").or_else(|_| scene.runs_only_on("detached", "host-b"));
    at?;
    scene.audit()?;
    finish(client).map(drop)
}

/// Held up in each step between the freeze and the commit, and cancelled there: it runs on at the
/// source. Held up after the commit: too late, and the move is completed.
pub(super) fn in_every_phase(scene: &mut Scene) -> anyhow::Result<()> {
    scene.start("host-a", &Container::redis("steps", "10.77.1.13/16"))?;
    scene.wait_port("10.77.1.13", 6379)?;
    let mut client = scene.load(&["redis", "--addr", "10.77.1.13:6379"])?;
    // Each rule holds up the first move that comes so far, and no later one.
    let at_source = rules(&[
        "source.effect.freeze.after=delay:700",
        "source.effect.copy.after=delay:700",
        "source.send.grant=delay:700",
    ]);
    let at_destination = rules(&["destination.effect.restore.after=delay:700"]);
    let scene = &*scene;
    with_config(scene, "host-a", &at_source, || {
        with_config(scene, "host-b", &at_destination, || step_by_step(scene, &mut client))
    })?;
    finish(client).map(drop)
}

fn step_by_step(scene: &Scene, client: &mut LoadClient) -> anyhow::Result<()> {
    let source = AgentLog::of(scene.host("host-a")?);
    let destination = AgentLog::of(scene.host("host-b")?);
    for (what, log, times) in [
        ("a cancel when frozen", &source, 1),
        ("a cancel when dumped", &source, 2),
        ("a cancel when held at the destination", &destination, 1),
    ] {
        let mut moving = scene.migrate_begin("host-a", "steps", "host-b")?;
        met(scene, log, &mut moving, times)?;
        cancel(scene, "steps")?.ok()?;
        let ended = moving.finish_within(Duration::from_secs(20))?;
        ensure!(ended.code == Some(7), "{what}: the exit code is {:?}, not 7: {}", ended.code, ended.said());
        let window = unmoved(scene, client, "steps", what)?;
        println!("  {what}: {} ms", window.longest_gap_us / 1000);
    }
    let mut moving = scene.migrate_begin("host-a", "steps", "host-b")?;
    met(scene, &source, &mut moving, 3)?;
    let late = cancel(scene, "steps")?;
    println!("  {}", said_well(&late, 8, "too late: committed at 2")?);
    moving.finish_within(MOVE)?.ok()?;
    scene.runs_only_on("steps", "host-b")?;
    counted_on(client, "moved")?;
    scene.audit()
}

/// Starts a move from host-a to host-b and waits until files are being copied.
fn in_stage(scene: &Scene, name: &str) -> anyhow::Result<Running> {
    let mut moving = scene.migrate_begin("host-a", name, "host-b")?;
    scene.wait_for("the copying of files", Duration::from_secs(30), || {
        if moving.has_ended() {
            return Ok(true);
        }
        let status =
            scene.tranship("host-a", &["status", "--output", "json"], Duration::from_secs(20))?.ok()?;
        Ok(status.contains("\"stage\""))
    })?;
    if moving.has_ended() {
        let ended = moving.finish(Duration::from_secs(1))?;
        anyhow::bail!("the move ended at once: {}", ended.said());
    }
    std::thread::sleep(Duration::from_millis(300));
    Ok(moving)
}
