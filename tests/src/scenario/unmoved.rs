//! What must hold after a move that did not happen.

use super::bounded::{Ended, Running};
use super::redis::counted_on;
use super::refusals::said_well;
use super::scene::{MOVE, Scene};
use crate::agent_log::AgentLog;
use crate::client::{LoadClient, Window};
use anyhow::{Context, ensure};
use std::time::Duration;

/// The container runs at host-a as before: the client hears it, nothing is left on any host, and it
/// can be moved at once, which is asked and not done.
pub(super) fn unmoved(
    scene: &Scene,
    client: &mut LoadClient,
    name: &str,
    what: &str,
) -> anyhow::Result<Window> {
    let check = || -> anyhow::Result<()> {
        scene.runs_only_on(name, "host-a")?;
        scene.audit()?;
        scene.tranship("host-a", &["migrate", name, "--to", "host-b", "--dry-run"], MOVE)?.ok().map(drop)
    };
    let window = counted_on(client, "after").with_context(|| what.to_owned())?;
    check().with_context(|| format!("after {what}"))?;
    Ok(window)
}

/// A move to host-b that has to fail with this exit code, and a message with this word and a hint or
/// the advice to try again.
pub(super) fn fails(scene: &Scene, name: &str, code: i32, word: &str) -> anyhow::Result<String> {
    let ended = scene.tranship("host-a", &["migrate", name, "--to", "host-b", "--output", "json"], MOVE)?;
    said_well(&ended, code, word)
}

/// Waits until an agent meets the next rule of its `[faults]`, which holds the move up there.
pub(super) fn met(scene: &Scene, log: &AgentLog, moving: &mut Running, times: usize) -> anyhow::Result<()> {
    scene.wait_for("the step that is held up", Duration::from_secs(20), || {
        ensure!(!moving.has_ended(), "the move ended before the step that is held up");
        Ok(log.faults() >= times)
    })
}

/// `tranship cancel` for the move of a container that is under way at host-a.
pub(super) fn cancel(scene: &Scene, name: &str) -> anyhow::Result<Ended> {
    let all = crate::ask::under_way(&scene.host("host-a")?)?;
    let id = all.iter().find(|m| m.container.as_str() == name).context("no migration is under way")?;
    let id = id.migration.to_string();
    scene.tranship("host-a", &["cancel", &id, "--output", "json"], Duration::from_secs(30))
}

/// Rules for an agent, as an edit of its configuration.
pub(super) fn rules(points: &[&str]) -> impl Fn(&mut toml::Table) {
    let points: Vec<toml::Value> = points.iter().map(|p| toml::Value::from(*p)).collect();
    move |config| {
        let mut faults = toml::Table::new();
        faults.insert("allow_faults".into(), true.into());
        faults.insert("points".into(), points.clone().into());
        config.insert("faults".into(), faults.into());
    }
}
