//! `tranship drill` on hosts that have no service manager: here a thread starts dead agents again.

use super::bounded::{Ended, Running};
use super::scene::Scene;
use anyhow::{Context, ensure};
use serde_json::Value;
use std::time::Duration;

const HOSTS: [&str; 2] = ["host-a", "host-b"];
/// Four moves with their faults.
const DRILL: Duration = Duration::from_secs(240);
/// As the unit that comes with the agent has it, and a little less.
const AWAY: Duration = Duration::from_millis(500);

const FAULTS: [&str; 5] = [
    "destination.effect.restore.before=error",
    "source.send.grant=drop",
    "destination.send.running=drop",
    "source.record.released.after=crash",
    "destination.record.prepared.after=crash",
];

fn drill(scene: &Scene, more: &[&str]) -> anyhow::Result<Running> {
    let mut args = vec!["tranship", "drill", "canary", "--to", "host-b", "--rootfs", "/lab/images/redis"];
    args.extend(["--net", "lan", "--ip", "10.77.1.40/16", "--output", "json"]);
    args.extend_from_slice(more);
    Running::start("a drill", scene.host("host-a")?.command(args)?)
}

/// Each fault comes to pass, and nothing that is promised is broken by it.
pub(super) fn holds(scene: &mut Scene) -> anyhow::Result<()> {
    let faults: Vec<&str> = FAULTS.iter().flat_map(|f| ["--fault", f]).collect();
    let mut running = drill(scene, &faults)?;
    let mut restarts = 0;
    while !running.has_ended() {
        for name in HOSTS {
            let host = scene.host(name)?;
            if host.agent_pid()?.is_none() {
                std::thread::sleep(AWAY);
                host.start_agent()?;
                restarts += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let ended = running.finish(DRILL)?;
    ensure!(ended.code == Some(0), "the drill ended with {:?}: {}", ended.code, ended.said());
    let told = told(&ended)?;
    ensure!(told.len() == FAULTS.len(), "{} of {} faults were told", told.len(), FAULTS.len());
    for (fault, outcome) in FAULTS.iter().zip(&told) {
        ensure!(outcome["fault"] == *fault && outcome["met"] == true, "{fault}: {outcome}");
        ensure!(outcome["broken"].as_array().is_some_and(Vec::is_empty), "{fault}: {outcome}");
        let answers = outcome["client"]["answers"].as_u64().unwrap_or(0);
        ensure!(answers > 0, "{fault}: the client was never answered: {outcome}");
    }
    ensure!(restarts == 2, "two faults kill an agent, and {restarts} were started again");
    // The restore that fails leaves it where it was; the grant that is lost is said again.
    ensure!(told[0]["runs_on"] == "host-a" && told[1]["runs_on"] == "host-b", "{told:?}");
    for name in HOSTS {
        ensure!(scene.containers(name)?.is_empty(), "the throw-away container is left on {name}");
    }
    Ok(())
}

/// An agent that dies and is not started again is a broken promise: the drill says so.
pub(super) fn tells(scene: &mut Scene) -> anyhow::Result<()> {
    let fault = ["--fault", "source.record.released.after=crash", "--restart-within", "2s"];
    let ended = drill(scene, &fault)?.finish(DRILL)?;
    ensure!(ended.code == Some(1), "the drill ended with {:?}: {}", ended.code, ended.said());
    let told = told(&ended)?;
    let broken = told.first().context("no fault was told")?["broken"].to_string();
    ensure!(broken.contains("the agent of host-a") && broken.contains("systemctl"), "it says {broken}");
    scene.host("host-a")?.start_agent()?;
    scene
        .wait_for("the end of the migration", DRILL, || Ok(scene.runs_only_on("canary", "host-b").is_ok()))?;
    scene.wait_for("the last words of it", DRILL, || Ok(scene.audit().is_ok()))
}

fn told(ended: &Ended) -> anyhow::Result<Vec<Value>> {
    let lines = ended.stdout.lines().map(serde_json::from_str::<Value>);
    let all = lines.collect::<Result<Vec<_>, _>>().with_context(|| format!("not JSON: {}", ended.said()))?;
    Ok(all.into_iter().filter(|v| v["type"] == "drill_fault").collect())
}
