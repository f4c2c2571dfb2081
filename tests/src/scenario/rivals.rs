//! Two who want something of one container at the same time, one of them a move.

use super::hosts_file::with_config;
use super::redis::{counted_on, finish};
use super::refusals::said_well;
use super::scene::{Container, Scene};
use super::unmoved::{met, rules, unmoved};
use crate::agent_log::AgentLog;
use anyhow::{Context, ensure};
use std::time::Duration;

const QUESTION: Duration = Duration::from_secs(30);

/// Two controllers send it to two places: one move is done, the other refused by name. Stopping,
/// removing and starting another one under its name are refused meanwhile.
pub(super) fn two_controllers(scene: &mut Scene) -> anyhow::Result<()> {
    scene.start("host-a", &Container::redis("wanted", "10.77.1.14/16"))?;
    scene.wait_port("10.77.1.14", 6379)?;
    let mut client = scene.load(&["redis", "--addr", "10.77.1.14:6379"])?;
    let scene = &*scene;
    with_config(scene, "host-a", &rules(&["source.effect.stage.after=delay:1500"]), || {
        let log = AgentLog::of(scene.host("host-a")?);
        let mut first = scene.migrate_begin("host-a", "wanted", "host-b")?;
        met(scene, &log, &mut first, 1)?;
        let second = scene.migrate_begin("host-a", "wanted", "host-c")?;
        let refused = |what: &str, args: &[&str]| -> anyhow::Result<()> {
            let ended = scene.tranship("host-a", &[args, &["--output", "json"]].concat(), QUESTION)?;
            said_well(&ended, 6, "wanted").with_context(|| what.to_owned()).map(drop)
        };
        refused("a stop", &["stop", "wanted"])?;
        refused("a removal", &["rm", "--force", "wanted"])?;
        let said = said_well(&second.finish_within(QUESTION)?, 6, "migration")?;
        println!("  the second move is refused: {said}");
        first.finish_within(QUESTION)?.ok()?;
        scene.runs_only_on("wanted", "host-b")
    })?;
    counted_on(&mut client, "moved")?;
    scene.audit()?;
    finish(client).map(drop)
}

/// Both at the same instant, again and again: never two moves, never none.
pub(super) fn at_the_same_instant(scene: &mut Scene) -> anyhow::Result<()> {
    scene.start("host-a", &Container::redis("torn", "10.77.1.15/16"))?;
    scene.wait_port("10.77.1.15", 6379)?;
    let mut client = scene.load(&["redis", "--addr", "10.77.1.15:6379"])?;
    let to = ["host-b", "host-c"];
    let moves =
        [scene.migrate_begin("host-a", "torn", to[0])?, scene.migrate_begin("host-a", "torn", to[1])?];
    let ended = moves.map(|m| m.finish_within(Duration::from_secs(60)));
    let mut winners = Vec::new();
    for (ended, to) in ended.into_iter().zip(to) {
        let ended = ended?;
        match ended.code {
            Some(0) => winners.push(to),
            _ => said_well(&ended, 6, "torn").map(drop)?,
        }
    }
    let [at] = winners[..] else { anyhow::bail!("{} of two moves were done", winners.len()) };
    scene.runs_only_on("torn", at)?;
    counted_on(&mut client, "moved")?;
    scene.audit()?;
    finish(client).map(drop)
}

/// Its program ends in the middle: before the freeze and while it is frozen. The move fails with that
/// as its reason, and the container has ended where it was.
pub(super) fn killed_in_the_middle(scene: &mut Scene) -> anyhow::Result<()> {
    let scene = &*scene;
    for (what, point) in [
        ("killed while files are copied", "source.effect.stage.after=delay:800"),
        ("killed while frozen", "source.effect.freeze.after=delay:800"),
    ] {
        scene.start("host-a", &Container::redis("mortal", "10.77.1.16/16"))?;
        scene.wait_port("10.77.1.16", 6379)?;
        with_config(scene, "host-a", &rules(&[point]), || {
            let log = AgentLog::of(scene.host("host-a")?);
            let mut moving = scene.migrate_begin("host-a", "mortal", "host-b")?;
            met(scene, &log, &mut moving, 1)?;
            scene.on_ok("host-a", &["sh", "-c", "echo 1 > /sys/fs/cgroup/tranship/mortal/cgroup.kill"])?;
            let ended = moving.finish_within(QUESTION)?;
            println!("  {what}: {}", said_well(&ended, 1, "mortal")?);
            for host in ["host-a", "host-b"] {
                let (left, _) = scene.processes(host, "mortal")?;
                ensure!(left == 0, "{what}: {left} processes are left on {host}");
            }
            ensure!(scene.containers("host-b")?.is_empty(), "{what}: host-b has it");
            scene.tranship("host-a", &["rm", "mortal"], QUESTION)?.ok()?;
            scene.audit()
        })
        .with_context(|| what.to_owned())?;
    }
    Ok(())
}

/// An agent is asked to end during a move. At the source it calls the move off first. At the
/// destination the move, which is the source's to decide, comes to its end first.
pub(super) fn shut_down(scene: &mut Scene) -> anyhow::Result<()> {
    scene.start("host-a", &Container::redis("evening", "10.77.1.17/16"))?;
    scene.wait_port("10.77.1.17", 6379)?;
    let mut client = scene.load(&["redis", "--addr", "10.77.1.17:6379"])?;
    let scene = &*scene;
    let held_up = rules(&["source.effect.copy.before=delay:800", "source.send.grant=delay:300"]);
    with_config(scene, "host-a", &held_up, || {
        let host = scene.host("host-a")?;
        let log = AgentLog::of(host.clone());
        let mut moving = scene.migrate_begin("host-a", "evening", "host-b")?;
        met(scene, &log, &mut moving, 1)?;
        host.stop_agent()?;
        let ended = moving.finish_within(QUESTION)?;
        ensure!(matches!(ended.code, Some(5 | 7)), "the exit code is {:?}: {}", ended.code, ended.said());
        host.start_agent()?;
        let window = unmoved(scene, &mut client, "evening", "an end of the source's agent")?;
        println!("  the source's agent asked to end: {} ms", window.longest_gap_us / 1000);
        let host = scene.host("host-b")?;
        let log = AgentLog::of(scene.host("host-a")?);
        let mut moving = scene.migrate_begin("host-a", "evening", "host-b")?;
        // The same rule in a new life of the agent.
        met(scene, &log, &mut moving, 1)?;
        host.stop_agent()?;
        host.start_agent()?;
        moving.finish_within(QUESTION)?.ok()?;
        scene.runs_only_on("evening", "host-b")
    })?;
    let window = counted_on(&mut client, "moved")?;
    println!("  the destination's agent asked to end: {} ms", window.longest_gap_us / 1000);
    scene.audit()?;
    finish(client).map(drop)
}
