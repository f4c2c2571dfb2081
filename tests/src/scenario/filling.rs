//! What becomes of a container that runs already and has not all of its memory yet. The process that
//! fills it in is caught while the restore is held, and stopped: so the middle of the filling lasts as
//! long as the scenario wants.

use super::doubt::set_faults;
use super::redis::{counted_on, finish};
use super::scene::{Container, MOVE, Scene};
use crate::ask;
use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

const IP: &str = "10.77.1.23";
/// Long enough for a process to be found and hit while the restore is held.
const HELD: &str = "source.record.released.before=delay:2500";
const SOON: Duration = Duration::from_secs(30);

/// The worker dies while nothing has run, the agent while it runs, a second move comes too early, and
/// last the worker dies in the middle.
pub(super) fn interrupted(scene: &mut Scene) -> anyhow::Result<()> {
    let scene = &*scene;
    scene.start("host-a", &Container::redis("lazy", &format!("{IP}/16")))?;
    scene.wait_port(IP, 6379)?;
    scene.load_to_end(&["fill", "--addr", &format!("{IP}:6379"), "--mib", "48"])?;
    let mut client = scene.load(&["redis", "--addr", &format!("{IP}:6379")])?;

    set_faults(scene, "host-a", &[HELD])?;
    let moving = scene.migrate_begin("host-a", "lazy", "host-b")?;
    let (worker, _) = filling(scene, "host-b")?;
    kill(worker, Signal::SIGKILL)?;
    moving.finish(MOVE)?.ok().context("a worker that dies while the restore is held")?;
    scene.runs_only_on("lazy", "host-b")?;
    counted_on(&mut client, "restored twice")?;

    set_faults(scene, "host-b", &[HELD])?;
    let moving = scene.migrate_begin("host-b", "lazy", "host-c")?;
    let (worker, _) = filling(scene, "host-c")?;
    kill(worker, Signal::SIGSTOP)?;
    moving.finish(MOVE)?.ok().context("a move whose filling takes long")?;
    let host = scene.host("host-c")?;
    host.kill_agent()?;
    host.start_agent()?;
    scene.wait_for("the agent", SOON, || Ok(ask::under_way(&host).is_ok()))?;
    let mut early = scene.migrate_begin("host-c", "lazy", "host-a")?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(!early.has_ended(), "a move of a container without its memory: {}", early.finish(MOVE)?.said());
    let (count, frozen) = scene.processes("host-c", "lazy")?;
    ensure!(count > 0 && !frozen, "a container was frozen before it had its memory");
    kill(worker, Signal::SIGCONT)?;
    early.finish(MOVE)?.ok().context("a move that waited for the memory")?;
    scene.runs_only_on("lazy", "host-a")?;
    counted_on(&mut client, "moved on")?;
    finish(client)?;
    scene.audit()?;

    killed_in_the_middle(scene)
}

/// Nothing may run with memory that is not complete.
fn killed_in_the_middle(scene: &Scene) -> anyhow::Result<()> {
    set_faults(scene, "host-a", &[HELD])?;
    let moving = scene.migrate_begin("host-a", "lazy", "host-b")?;
    let (worker, keeper) = filling(scene, "host-b")?;
    kill(worker, Signal::SIGSTOP)?;
    moving.finish(MOVE)?.ok().context("a move whose filling takes long")?;
    kill(worker, Signal::SIGKILL)?;
    scene.wait_for("the death of the container", SOON, || Ok(scene.processes("host-b", "lazy")?.0 == 0))?;
    scene.wait_for("the end of the keeper", SOON, || Ok(kill(keeper, None).is_err()))?;
    scene.wait_for("word of it in the history", SOON, || {
        let told = scene.tranship("host-b", &["history"], SOON)?.ok()?;
        Ok(told.contains("memory could not be completed"))
    })?;
    scene.tranship("host-b", &["rm", "--force", "lazy"], SOON)?.ok().map(drop)
}

/// Worker and keeper of the fill process on a host, once the restore is held.
fn filling(scene: &Scene, host: &str) -> anyhow::Result<(Pid, Pid)> {
    let mut found = None;
    scene.wait_for("a restore that is held", MOVE, || {
        found = pair(scene, host)?.filter(|_| held(scene, host).unwrap_or(false));
        Ok(found.is_some())
    })?;
    found.context("no fill process")
}

fn pair(scene: &Scene, host: &str) -> anyhow::Result<Option<(Pid, Pid)>> {
    let mut all = Vec::new();
    for pid in scene.host(host)?.processes()? {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.split(|b| *b == 0).nth(1) == Some(b"fill") {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().and_then(|s| s.split_whitespace().nth(1)?.parse().ok());
            all.push((pid, parent.unwrap_or(0)));
        }
    }
    match all[..] {
        [(a, _), (b, parent)] if parent == a => Ok(Some((Pid::from_raw(b), Pid::from_raw(a)))),
        [(a, parent), (b, _)] if parent == b => Ok(Some((Pid::from_raw(a), Pid::from_raw(b)))),
        // Being started, or of a move before this one.
        [] | [_] | [_, _] => Ok(None),
        _ => bail!("{} fill processes on {host}", all.len()),
    }
}

/// Whether a restore waits on the host for the agent's word.
fn held(scene: &Scene, host: &str) -> anyhow::Result<bool> {
    let hooked = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Not the one that waits for images.
        line.split(|b| *b == 0).any(|arg| arg == b"--migration")
    };
    Ok(scene.host(host)?.processes()?.iter().any(hooked))
}
