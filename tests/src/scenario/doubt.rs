//! What is left when an agent dies around the commit: a source that stays frozen and fenced, and an
//! operator who settles it when one of the two hosts does not come back.

use super::bounded::{Ended, Running};
use super::redis::{counted_on, finish};
use super::scene::{Container, MOVE, Scene};
use crate::ask;
use crate::client::LoadClient;
use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tranship_proto::control::{Reply, Request};
use tranship_proto::status::{MigrationStatus, Progressing};

const NAME: &str = "doubted";
const IP: &str = "10.77.1.41";
const STATE: &str = "/var/lib/tranship";
const QUESTION: Duration = Duration::from_secs(30);
/// The agent's exit code for a damaged journal.
const DAMAGED: i32 = 3;

/// A counting client, and a move that has met its fault.
struct Broken {
    client: LoadClient,
    moving: Running,
    status: MigrationStatus,
}

/// Starts the container, and a move from host-a to host-b with a fault. All scenarios here use one name: a
/// container made anew under it is another one, whatever hosts remember of those before.
fn broken(
    scene: &Scene,
    (host, point): (&str, &str),
    until: impl Fn(&Scene) -> bool,
) -> anyhow::Result<Broken> {
    scene.start("host-a", &Container::redis(NAME, &format!("{IP}/16")))?;
    scene.wait_port(IP, 6379)?;
    let mut client = scene.load(&["redis", "--addr", &format!("{IP}:6379")])?;
    counted_on(&mut client, "moved")?;
    set_faults(scene, host, &[point])?;
    let mut moving = scene.migrate_begin("host-a", NAME, "host-b")?;
    let mut ended = false;
    scene.wait_for("the fault", MOVE, || {
        ended = moving.has_ended();
        Ok(ended || until(scene))
    })?;
    if ended {
        bail!("the move ended without its fault: {}", moving.finish(MOVE)?.said());
    }
    // Either side knows its id; one of them may be dead.
    let known = ["host-a", "host-b"].iter().find_map(|h| under_way(scene, h));
    let status = known.context("no agent knows the migration")?;
    Ok(Broken { client, moving, status })
}

/// Rules for an agent that runs.
pub(super) fn set_faults(scene: &Scene, host: &str, points: &[&str]) -> anyhow::Result<()> {
    let points = points.iter().map(|p| (*p).to_owned()).collect();
    match ask::ask(&scene.host(host)?, Request::Faults { points, seconds: 600 })? {
        Reply::Unmet(_) => Ok(()),
        other => bail!("{host} answered {other:?}"),
    }
}

fn under_way(scene: &Scene, host: &str) -> Option<MigrationStatus> {
    let host = scene.host(host).ok()?;
    ask::under_way(&host).ok()?.into_iter().find(|m| m.container.as_str() == NAME)
}

fn in_doubt(scene: &Scene, host: &str) -> bool {
    under_way(scene, host).is_some_and(|m| m.state == Progressing::InDoubt)
}

fn dead(scene: &Scene, host: &str) -> bool {
    scene.host(host).and_then(|h| Ok(h.agent_pid()?)).is_ok_and(|pid| pid.is_none())
}

/// Frozen, and nothing goes in or out: looked at in the kernel.
fn frozen_and_fenced(scene: &Scene, host: &str) -> anyhow::Result<()> {
    let (count, frozen) = scene.processes(host, NAME)?;
    ensure!(count > 0 && frozen, "{count} processes of {NAME} on {host}, frozen: {frozen}");
    let links = scene.on_ok(host, &["ip", "-o", "link", "show", "type", "veth"])?;
    let alias = format!("tranship:{NAME}:");
    // The alias is on the line of the link with `-o`; the flags are in its angle brackets.
    let own: Vec<&str> = links.lines().filter(|l| l.contains(&alias)).collect();
    ensure!(own.len() == 1, "{} links of {NAME} on {host}: {links}", own.len());
    let flags = own[0].split(['<', '>']).nth(1).unwrap_or_default();
    ensure!(!flags.split(',').any(|f| f == "UP"), "the link of {NAME} on {host} is up: {}", own[0]);
    Ok(())
}

fn resolve(scene: &Scene, host: &str, id: &MigrationStatus, words: &[&str]) -> anyhow::Result<Ended> {
    let id = id.migration.to_string();
    let args = [&["resolve", id.as_str()], words, &["--yes"]].concat();
    scene.tranship(host, &args, QUESTION)
}

/// Waits until it runs on one host only and nothing is left on any; then the client has to be content
/// and the container be movable.
fn ends_on(scene: &Scene, host: &str, other: &str, broken: Broken) -> anyhow::Result<()> {
    let Broken { mut client, moving, .. } = broken;
    scene.wait_for("the end of it", MOVE, || {
        Ok(scene.runs_only_on(NAME, host).is_ok()
            && under_way(scene, host).is_none()
            && under_way(scene, other).is_none())
    })?;
    drop(moving);
    scene.runs_only_on(NAME, host)?;
    scene.audit()?;
    let _ = client.mark("afterwards")?;
    counted_on(&mut client, "moved again")?;
    scene.migrate(host, NAME, other)?;
    finish(client).map(drop)
}

/// The source's agent dies just after the commit, and its journal is damaged before it starts again:
/// it starts nothing. With the journal put back the migration goes on.
pub(super) fn damaged_journal(scene: &mut Scene) -> anyhow::Result<()> {
    let fault = ("host-a", "source.record.released.after=crash");
    let broken = broken(scene, fault, |scene| dead(scene, "host-a"))?;
    let state = scene.host("host-a")?.path(STATE);
    let kept = Kept::take(&state)?;
    for (what, damage) in DAMAGES {
        damage(&state).with_context(|| format!("damaging the journal: {what}"))?;
        let agent = ["transhipd", "--config", "/etc/tranship/transhipd.toml"];
        let ended = scene.on("host-a", &agent, QUESTION)?;
        ensure!(
            ended.code == Some(DAMAGED),
            "{what}: the agent ended with {:?}: {}",
            ended.code,
            ended.said()
        );
        ensure!(ended.said().contains("hint: "), "{what}: no hint in {}", ended.said());
        frozen_and_fenced(scene, "host-a").with_context(|| format!("after {what}"))?;
        ensure!(scene.processes("host-a", NAME)?.1, "{what}: it is thawed");
        kept.put_back()?;
    }
    scene.host("host-a")?.start_agent()?;
    ends_on(scene, "host-b", "host-a", broken)
}

type Damage = fn(&Path) -> std::io::Result<()>;

const DAMAGES: [(&str, Damage); 4] = [
    ("a page of its log is overwritten", |dir| {
        use std::os::unix::fs::FileExt;
        // Not of the database: the log has newer pages than it, and the journal would be whole.
        let file = std::fs::OpenOptions::new().write(true).open(dir.join("journal.db-wal"))?;
        file.write_all_at(&[0xa5; 4096], file.metadata()?.len().saturating_sub(8192))
    }),
    ("the end of its log is lost", |dir| {
        let file = std::fs::OpenOptions::new().write(true).open(dir.join("journal.db-wal"))?;
        file.set_len(file.metadata()?.len() / 2)
    }),
    ("its log is deleted", |dir| std::fs::remove_file(dir.join("journal.db-wal"))),
    ("it is deleted", |dir| {
        std::fs::remove_file(dir.join("journal.db-wal"))?;
        std::fs::remove_file(dir.join("journal.db"))
    }),
];

/// The files of a journal.
struct Kept(Vec<(PathBuf, Option<Vec<u8>>)>);

impl Kept {
    fn take(state: &Path) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        for name in ["journal.db", "journal.db-wal", "journal.db-shm"] {
            let path = state.join(name);
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => Some(bytes),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
            };
            files.push((path, bytes));
        }
        Ok(Self(files))
    }

    fn put_back(&self) -> anyhow::Result<()> {
        for (path, bytes) in &self.0 {
            match bytes {
                Some(bytes) => std::fs::write(path, bytes)?,
                None => match std::fs::remove_file(path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                    _ => {}
                },
            }
        }
        Ok(())
    }
}

/// The source dies just after the commit. The destination's copy is let go by an operator, and the
/// source that comes back destroys its own.
pub(super) fn source_dead(scene: &mut Scene) -> anyhow::Result<()> {
    let fault = ("host-a", "source.record.released.after=crash");
    let broken = broken(scene, fault, |scene| dead(scene, "host-a") && in_doubt(scene, "host-b"))?;
    frozen_and_fenced(scene, "host-a")?;
    let wrong = resolve(scene, "host-b", &broken.status, &["--run-at", "source", "--destination-is-dead"])?;
    ensure!(wrong.code != Some(0), "a held copy was given up that nobody has tried to run");
    let words = ["--run-at", "destination", "--source-is-dead"];
    resolve(scene, "host-b", &broken.status, &words)?.ok()?;
    scene.wait_for("the container at the destination", MOVE, || {
        Ok(matches!(scene.processes("host-b", NAME)?, (1.., false)))
    })?;
    frozen_and_fenced(scene, "host-a").context("the dead host's copy, before it comes back")?;
    recorded(scene, "host-b", "destination")?;
    scene.host("host-a")?.start_agent()?;
    ends_on(scene, "host-b", "host-a", broken)
}

/// The grant never arrives and the destination dies. The source takes its copy back by an operator's
/// word, and the destination that comes back destroys the one that it holds.
pub(super) fn destination_dead(scene: &mut Scene) -> anyhow::Result<()> {
    let fault = ("host-a", "source.send.grant=drop*1000");
    let granting = |scene: &Scene| {
        under_way(scene, "host-a")
            .is_some_and(|m| matches!(m.state, Progressing::Committed | Progressing::InDoubt))
    };
    let broken = broken(scene, fault, granting)?;
    let words = ["--run-at", "source", "--destination-is-dead"];
    let refused = resolve(scene, "host-a", &broken.status, &words)?;
    ensure!(refused.code == Some(6), "it was not refused while host-b answers: {}", refused.said());
    scene.host("host-b")?.kill_agent()?;
    scene.wait_for("the doubt", MOVE, || Ok(in_doubt(scene, "host-a")))?;
    let began = std::time::Instant::now();
    resolve(scene, "host-a", &broken.status, &words)?.ok()?;
    ensure!(began.elapsed() < Duration::from_secs(15), "it took {} s", began.elapsed().as_secs());
    scene.wait_for("the container at the source", MOVE, || {
        Ok(matches!(scene.processes("host-a", NAME)?, (1.., false)))
    })?;
    recorded(scene, "host-a", "source")?;
    set_faults(scene, "host-a", &[])?;
    scene.host("host-b")?.start_agent()?;
    ends_on(scene, "host-a", "host-b", broken)
}

/// The destination owns the container and cannot let it go: an operator gives that copy up, and the
/// source, which still has it, goes on.
pub(super) fn given_up(scene: &mut Scene) -> anyhow::Result<()> {
    let fault = ("host-b", "destination.effect.resume.before=error*1000");
    let broken = broken(scene, fault, |scene| in_doubt(scene, "host-b"))?;
    frozen_and_fenced(scene, "host-a")?;
    // Said to the destination by name: the source would be asked otherwise, and it is not in the way.
    let words = ["--run-at", "source", "--destination-is-dead", "--host", "host-b"];
    resolve(scene, "host-b", &broken.status, &words)?.ok()?;
    set_faults(scene, "host-b", &[])?;
    ends_on(scene, "host-a", "host-b", broken)
}

/// Who decided, and what, is in what the agent tells of the migration.
fn recorded(scene: &Scene, host: &str, run_at: &str) -> anyhow::Result<()> {
    let mut text = String::new();
    for command in ["status", "history"] {
        text.push_str(&scene.tranship(host, &[command, "--output", "json"], QUESTION)?.ok()?);
    }
    let found = text
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .flat_map(|v| v["migrations"].as_array().cloned().unwrap_or_default())
        .any(|m| {
            m["container"] == NAME && m["resolution"]["run_at"] == run_at && m["resolution"]["by"].is_string()
        });
    ensure!(found, "{host} does not say who decided: {text}");
    Ok(())
}
