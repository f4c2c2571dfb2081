//! Ctrl-C: once asks to cancel, twice leaves.

use super::bounded::Running;
use super::redis::{counted_on, finish};
use super::scene::{Container, MOVE, Scene};
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
