//! `tranship status`

use super::Context;
use crate::client::Agent;
use crate::error::Error;
use crate::exit;
use crate::output::{clean, table, time};
use crate::progress::{Subject, summary_text};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;
use tranship_proto::control::{Reply, Request};
use tranship_proto::status::{MigrationStatus, Progressing, Side};

/// Time between two looks with `--watch`.
const EVERY: Duration = Duration::from_secs(1);

/// Show migrations under way, or one of any state
///
/// Shows what the agent of this host (or of --host) has to do with: migrations away from it and
/// towards it.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  tranship status\n  tranship status --watch\n  tranship status 1f2e3d4c\n"
)]
pub struct Status {
    /// A migration's id, whole or short
    #[arg(value_name = "ID", value_parser = migration_id)]
    id: Option<String>,
    /// Look again every second until interrupted; with an ID, until it has ended
    #[arg(long, short = 'w')]
    watch: bool,
}

/// Checks an id, whole or short.
pub(super) fn migration_id(text: &str) -> Result<String, String> {
    let good = (4..=36).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if good {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("not the id of a migration; see `tranship status`".into())
    }
}

impl Status {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        let (agent, mut rows) = match &self.id {
            Some(id) => {
                let (agent, row) = context.fleet.find_migration(id).await?;
                (agent, vec![row])
            }
            None => {
                let agent = context.fleet.agent().await?;
                let rows = ask(&agent, None).await?;
                (agent, rows)
            }
        };
        let redraw = self.watch && !context.output.is_json() && std::io::stdout().is_terminal();
        let mut shown = None;
        loop {
            let one = self.id.is_some();
            if shown.as_ref() != Some(&rows) || redraw {
                if redraw {
                    // Clears the screen and goes to its top left corner.
                    let _ = std::io::stdout().write_all(b"\x1b[H\x1b[2J");
                }
                if !context.output.show("migrations", "migrations", &rows, || text(&rows, one)) {
                    break;
                }
            }
            if !self.watch || (one && rows.iter().all(|r| !is_open(r.state))) {
                break;
            }
            let id = rows.first().filter(|_| one).map(|r| r.migration.to_string());
            shown = Some(rows);
            tokio::time::sleep(EVERY).await;
            rows = ask(&agent, id).await?;
        }
        agent.close().await;
        Ok(exit::DONE)
    }
}

async fn ask(agent: &Arc<Agent>, id: Option<String>) -> Result<Vec<MigrationStatus>, Error> {
    match agent.ask(Request::Status { id }).await? {
        Reply::Migrations(rows) => Ok(rows),
        other => Err(agent.unexpected(&other, "Migrations").into()),
    }
}

/// Whether something may still happen.
pub(super) fn is_open(state: Progressing) -> bool {
    matches!(state, Progressing::Running | Progressing::Committed | Progressing::InDoubt)
}

/// A state as it is shown.
pub(super) fn state_name(state: Progressing) -> &'static str {
    match state {
        Progressing::Running => "running",
        Progressing::Committed => "committed",
        Progressing::InDoubt => "IN DOUBT",
        Progressing::Done => "done",
        Progressing::Failed => "failed",
        Progressing::Cancelled => "cancelled",
    }
}

/// Columns that `status` and `history` share.
pub(super) const ROW_HEADER: [&str; 7] = ["ID", "CONTAINER", "FROM", "TO", "STATE", "PHASE", "STARTED"];

/// The cells of [`ROW_HEADER`].
pub(super) fn row_cells(r: &MigrationStatus) -> Vec<String> {
    vec![
        r.migration.short(),
        r.container.to_string(),
        r.source.to_string(),
        r.destination.to_string(),
        state_name(r.state).into(),
        r.phase.as_str().into(),
        time(r.started_unix_ms),
    ]
}

fn text(rows: &[MigrationStatus], one: bool) -> String {
    if one {
        return rows.iter().map(detail).collect::<Vec<_>>().join("\n");
    }
    if rows.is_empty() {
        return "no migration is under way; `tranship history` shows those that have ended".into();
    }
    let mut text = table(&ROW_HEADER, &rows.iter().map(row_cells).collect::<Vec<_>>());
    for row in rows.iter().filter(|r| r.state == Progressing::InDoubt) {
        text.push_str(&format!("\n{}: {}", row.migration.short(), in_doubt_words(row)));
    }
    text
}

/// What is true while a migration is in doubt: since when, why, and what settles it.
pub(super) fn in_doubt_words(r: &MigrationStatus) -> String {
    let mut words = format!("in doubt since {}; nothing runs: ", time(r.updated_unix_ms));
    match &r.failure {
        Some(f) => {
            words.push_str(&clean(&f.message));
            if let Some(hint) = &f.hint {
                words.push_str(&format!("; {}", clean(hint)));
            }
        }
        None => words.push_str(&format!(
            "{} was given to {} and is not confirmed; this ends by itself when {} and {} can talk",
            r.container, r.destination, r.source, r.destination
        )),
    }
    words
}

/// An operator's decision, in words.
pub(super) fn resolution_words(r: &MigrationStatus) -> Option<String> {
    let decided = r.resolution.as_ref()?;
    let at = if decided.run_at == Side::Source { &r.source } else { &r.destination };
    Some(format!("by {} at {}: run on {at}", clean(&decided.by), time(decided.at_unix_ms)))
}

fn detail(r: &MigrationStatus) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(format!("{name:<11} {value}"));
    line("migration", r.migration.to_string());
    line("container", r.container.to_string());
    line("from", r.source.to_string());
    line("to", r.destination.to_string());
    line("state", state_name(r.state).into());
    line("phase", r.phase.as_str().into());
    line("epoch", r.epoch.to_string());
    line("seen by", if r.side == Side::Destination { "the destination".into() } else { "the source".into() });
    line("started", time(r.started_unix_ms));
    line("changed", time(r.updated_unix_ms));
    if r.state == Progressing::InDoubt {
        line("in doubt", format!("since {}; nothing runs", time(r.updated_unix_ms)));
    }
    if let Some(words) = resolution_words(r) {
        line("resolved", words);
    }
    if let Some(f) = &r.failure {
        line("why", clean(&f.message).into_owned());
        if let Some(hint) = &f.hint {
            line("hint", clean(hint).into_owned());
        }
    }
    if let Some(s) = &r.summary {
        lines.push(summary_text(&subject_of(r), s));
    }
    lines.join("\n")
}

/// What a row says of the migration itself.
pub(super) fn subject_of(r: &MigrationStatus) -> Subject {
    Subject {
        migration: r.migration,
        container: r.container.to_string(),
        source: r.source.to_string(),
        destination: r.destination.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_proto::ids::Epoch;
    use tranship_proto::status::{Failure, Phase, Reason, Resolution};

    fn row(state: Progressing) -> MigrationStatus {
        MigrationStatus {
            migration: "0199aaaa-0000-7000-8000-0000000000ff".parse().unwrap(),
            container: "web".parse().unwrap(),
            source: "host-a".parse().unwrap(),
            destination: "host-b".parse().unwrap(),
            side: Side::Source,
            epoch: Epoch(2),
            state,
            phase: Phase::Grant,
            started_unix_ms: 0,
            updated_unix_ms: 0,
            failure: Some(
                Failure::new(Reason::InDoubt, Side::Source, "no word\u{1b} from host-b").hint("wait"),
            ),
            summary: None,
            resolution: None,
        }
    }

    #[test]
    fn doubt_is_said_in_words() {
        for one in [false, true] {
            let shown = text(&[row(Progressing::InDoubt)], one);
            for words in ["IN DOUBT", "since 1970", "nothing runs", "no word", "wait"] {
                assert!(shown.contains(words), "{words}: {shown}");
            }
            assert!(!shown.contains('\u{1b}'));
        }
        let resolution =
            Resolution { run_at: Side::Destination, by: "operator alice".into(), at_unix_ms: 1_000 };
        let decided = MigrationStatus { resolution: Some(resolution), ..row(Progressing::Committed) };
        let shown = text(&[decided], true);
        assert!(shown.contains("by operator alice at 1970") && shown.contains("run on host-b"), "{shown}");
        assert!(text(&[], false).contains("history"));
        assert!(text(&[row(Progressing::Failed)], true).contains("hint        wait"));
    }

    #[test]
    fn ids_are_checked_before_they_are_sent() {
        assert_eq!(migration_id("0199AAAA").unwrap(), "0199aaaa");
        for bad in ["", "abc", "web", "0199aaaa/..", &"a".repeat(37)] {
            assert!(migration_id(bad).is_err(), "{bad}");
        }
    }
}
