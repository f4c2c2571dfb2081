//! What must hold when a run's fault is over and nothing is under way any more.
//!
//! The container runs on one host and the client hears it; every number that was acknowledged is
//! there, once; nothing is left behind; and the next move works. Where the rest of its memory was
//! lost, the container must have been killed instead, and never have answered with what was not there.

use super::ground::{ADDR, Ground, NAME};
use super::plan::Side;
use super::run::Outcome;
use crate::agent_log::AgentLog;
use crate::ask;
use crate::client::{LoadClient, LoadReport};
use anyhow::{Context, bail, ensure};
use std::time::{Duration, Instant};
use tranship_proto::control::{Reply, Request};

/// Until a container that runs is heard again.
const HEARD: Duration = Duration::from_secs(10);

/// Everything that must hold once nothing is under way.
pub(super) fn settled(
    ground: &mut Ground,
    outcome: &mut Outcome,
    logs: &[AgentLog; 2],
    mut client: LoadClient,
) -> anyhow::Result<()> {
    let source = ground.name(Side::Source);
    if outcome.plan.may_lose() && ground.is_gone() {
        return lost(ground, outcome, client);
    }
    ground.locate()?;
    let moved = ground.name(Side::Source) != source;
    outcome.moved = Some(moved);
    if outcome.given_up && !moved {
        return taken_back(ground, outcome, logs, client);
    }
    heard(&mut client, "after the fault")?;
    outcome.gap_ms = client.mark("clean")?.longest_gap_us / 1000;
    if outcome.exit_code == Some(0) && !moved {
        outcome.violations.push("the command said that it moved, and it did not".into());
    }
    again(ground, logs, &mut client)?;
    count(ground, outcome, client.stop()?)
}

/// Nothing is left behind, and the next move works and is heard.
fn again(ground: &mut Ground, logs: &[AgentLog; 2], client: &mut LoadClient) -> anyhow::Result<()> {
    ground.scene.audit().context("after the fault")?;
    disarm(ground, logs)?;
    let (from, to) = (ground.name(Side::Source), ground.name(Side::Destination));
    ground.scene.migrate(from, NAME, to).context("the move after the fault")?;
    ground.locate()?;
    heard(client, "after the move after the fault")?;
    ground.scene.audit().context("after the move after the fault")
}

/// The container was killed at the destination, which has owned it: that must be said there, and what
/// was answered until then must have been right.
fn lost(ground: &Ground, outcome: &mut Outcome, client: LoadClient) -> anyhow::Result<()> {
    outcome.lost = true;
    answered(ground, outcome, client.stop()?)?;
    let (source, destination) = (ground.name(Side::Source), ground.name(Side::Destination));
    ensure!(ground.scene.containers(source)?.is_empty(), "{source} still has the container");
    let Reply::Containers(rows) = ask::ask(&ground.host(Side::Destination)?, Request::List)? else {
        bail!("{destination} answered a question for its containers with something else");
    };
    ensure!(
        rows.iter().any(|row| row.name.as_str() == NAME && row.state == "stopped"),
        "{destination} does not list the container as stopped: {rows:?}"
    );
    ensure!(said_lost(ground)?, "the history of {destination} does not say that the container was killed");
    ground.remove(Side::Destination)
}

/// The history is written when the end of the fill process is noticed, and the migration has ended.
fn said_lost(ground: &Ground) -> anyhow::Result<bool> {
    let host = ground.host(Side::Destination)?;
    let until = Instant::now() + HEARD;
    loop {
        let Reply::Migrations(rows) = ask::ask(&host, Request::History { limit: 1 })? else {
            bail!("{} answered a question for its history with something else", host.name());
        };
        let why = rows.first().and_then(|row| row.failure.as_ref()).map(|f| f.message.as_str());
        if why.is_some_and(|why| why.contains("was killed, since its memory")) {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An operator has given the destination's copy up: the one at the source runs on from the freeze.
/// The connection is as old as it is, so what the other copy said since cannot be taken up on it.
fn taken_back(
    ground: &mut Ground,
    outcome: &mut Outcome,
    logs: &[AgentLog; 2],
    client: LoadClient,
) -> anyhow::Result<()> {
    answered(ground, outcome, client.stop()?)?;
    let mut client = ground.scene.load(&["redis", "--addr", ADDR])?;
    again(ground, logs, &mut client)?;
    let report = client.stop()?;
    ensure!(report.failures.is_empty(), "the counting client: {:?}", report.failures);
    ground.count = report.last_value.context("no number was ever answered")?;
    Ok(())
}

/// What a client saw of a container that was killed: its connection may end, and every number before
/// that must have been the next.
fn answered(ground: &Ground, outcome: &mut Outcome, report: LoadReport) -> anyhow::Result<()> {
    outcome.replies = report.replies;
    outcome.gap_ms = report.longest_gap_us / 1000;
    let expected = ground.count + i64::try_from(report.replies)?;
    let last = report.last_value.unwrap_or(ground.count);
    ensure!(last == expected, "the counter stood at {last} instead of {expected} when it was killed");
    let wrong: Vec<&String> = report.failures.iter().filter(|f| !f.starts_with("counting on from")).collect();
    ensure!(wrong.is_empty(), "the counting client: {wrong:?}");
    Ok(())
}

/// Takes the rules away from agents that still have some. An agent whose rules are used up is left
/// alone, so that what it may remember wrongly shows in the next move.
fn disarm(ground: &Ground, logs: &[AgentLog; 2]) -> anyhow::Result<()> {
    for log in logs {
        let rules = ground.points(log.host())?;
        let times: usize = rules.iter().map(|r| times(r)).sum();
        if log.faults_since_start() < times {
            ground.configure(log.host(), &[])?;
            log.host().stop_agent()?;
            log.host().start_agent()?;
        }
    }
    Ok(())
}

/// How often a rule acts: `*N` behind it, else once.
fn times(rule: &str) -> usize {
    rule.rsplit_once('*').and_then(|(_, n)| n.parse().ok()).unwrap_or(1)
}

fn heard(client: &mut LoadClient, when: &str) -> anyhow::Result<()> {
    let before = client.peek()?.replies;
    let until = Instant::now() + HEARD;
    while client.peek()?.replies < before + 20 {
        ensure!(Instant::now() < until, "{when} the client heard nothing for {} s", HEARD.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Every increment that was acknowledged is there, once: the replies were in sequence, and the
/// counter has gone on by their number.
fn count(ground: &mut Ground, outcome: &mut Outcome, report: LoadReport) -> anyhow::Result<()> {
    outcome.replies = report.replies;
    for restart in &mut outcome.restarts {
        let at = restart.ready_at_unix_ms;
        let silence =
            report.gaps.iter().find(|g| (g.at_unix_ms..g.at_unix_ms + g.length_us / 1000).contains(&at));
        restart.answered_ms = silence.map(|g| g.at_unix_ms + g.length_us / 1000 - at);
    }
    ensure!(report.failures.is_empty(), "the counting client: {:?}", report.failures);
    ensure!(report.connections == 1 && report.resets == 0, "{} resets", report.resets);
    let last = report.last_value.context("no number was ever answered")?;
    let expected = ground.count + i64::try_from(report.replies)?;
    ensure!(last == expected, "the counter stands at {last} instead of {expected}");
    ground.count = last;
    Ok(())
}
