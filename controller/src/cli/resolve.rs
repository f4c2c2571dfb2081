//! `tranship resolve`

use super::status::{in_doubt_words, migration_id};
use super::{Context, order};
use crate::client::Agent;
use crate::error::Error;
use crate::fleet::status_of;
use crate::output::clean;
use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;
use tranship_proto::control::{Reply, Request};
use tranship_proto::status::{MigrationStatus, Progressing, Reason, Side};

/// How long a host may take to say what it has: one that lives answers at once, and one of them is dead.
const EACH: Duration = Duration::from_secs(3);

const EXAMPLES: &str = "\
Examples:
  tranship resolve 1f2e3d4c --run-at destination --source-is-dead
  tranship resolve 1f2e3d4c --run-at source --destination-is-dead
  tranship --host host-b=10.77.0.2:7717 resolve 1f2e3d4c --run-at destination --source-is-dead --yes

A migration in doubt ends by itself when the two agents can talk. Use this only when one of the two
hosts will not come back soon, and only when you know that the container does not run there: the host
is switched off, or its network is cut for good. What you say is not checked beyond a try to reach the
other agent. If it is not true, two copies run. docs/in-doubt.md has the questions to ask first.

A host that comes back after the decision obeys it: it fences what it has and destroys it.
";

/// Settle a migration that is in doubt, because one of its hosts is dead
///
/// Asks for confirmation, is refused while the other side answers, and is recorded with who and when
/// (see `tranship history`).
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Resolve {
    /// The migration's id, whole or short
    #[arg(value_name = "ID", value_parser = migration_id)]
    id: String,
    /// Where the container is to run
    #[arg(long, value_name = "SIDE", value_enum)]
    run_at: At,
    /// I know that the source's host is dead
    #[arg(long, required_if_eq("run_at", "destination"), conflicts_with = "destination_is_dead")]
    source_is_dead: bool,
    /// I know that the destination's host is dead
    #[arg(long, required_if_eq("run_at", "source"))]
    destination_is_dead: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    yes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum At {
    /// Thaw the copy at the source; the destination's host is dead
    Source,
    /// Let the held copy at the destination go; the source's host is dead
    Destination,
}

impl At {
    fn side(self) -> Side {
        match self {
            At::Source => Side::Source,
            At::Destination => Side::Destination,
        }
    }
}

impl Resolve {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        if (self.run_at == At::Source) == self.source_is_dead {
            return Err(Error::usage("the container cannot run at a host that is dead").hint(
                "--run-at source goes with --destination-is-dead, --run-at destination with --source-is-dead",
            ));
        }
        let (agent, row) = find(context, &self.id, self.run_at.side()).await?;
        nowhere_else(context, &row).await?;
        if !self.yes {
            confirm(context, &row, self.run_at)?;
        }
        order(context, &agent, Request::Resolve { migration: row.migration, run_at: self.run_at.side() })
            .await
    }
}

/// The agent that is left: the one of `--host`, else the one on the side where it is to run.
async fn find(context: &Context, id: &str, side: Side) -> Result<(Arc<Agent>, MigrationStatus), Error> {
    let first = context.fleet.agent().await?;
    let here = status_of(&first, id).await;
    match here {
        Ok(row) if context.fleet.is_chosen() || row.side == side => return Ok((first, row)),
        Err(e) if context.fleet.is_chosen() => return Err(e),
        _ => {}
    }
    let answers = context.fleet.ask_all_within(&Request::Status { id: Some(id.to_owned()) }, EACH).await?;
    let mut rows = answers.into_iter().filter_map(|(_, answer)| match answer {
        Ok((agent, Reply::Migrations(rows))) => {
            rows.into_iter().find(|r| r.side == side).map(|row| (agent, row))
        }
        _ => None,
    });
    let name = if side == Side::Source { "source" } else { "destination" };
    rows.next().ok_or_else(|| {
        Error::new(
            Reason::UnknownMigration,
            format!("no host that can be reached knows migration {id} as its {name}"),
        )
        .hint("run this on that host, or name it with --host NAME=ADDRESS:PORT")
    })
}

/// No third host may run it: a source that went back may have sent it on since.
async fn nowhere_else(context: &Context, row: &MigrationStatus) -> Result<(), Error> {
    // Without an inventory there is nobody else to ask.
    let Ok(answers) = context.fleet.ask_all_within(&Request::List, EACH).await else { return Ok(()) };
    for (host, answer) in answers {
        let Ok((_, Reply::Containers(rows))) = answer else { continue };
        let runs = rows.iter().any(|r| r.name == row.container && r.state == "running");
        if runs && host != row.destination {
            return Err(Error::new(
                Reason::Refused,
                format!("{} runs on {host}: nothing is in doubt", row.container),
            )
            .hint(format!("tranship ps --host {host}")));
        }
    }
    Ok(())
}

fn confirm(context: &Context, row: &MigrationStatus, at: At) -> Result<(), Error> {
    let (runs, dead) = match at {
        At::Source => (&row.source, &row.destination),
        At::Destination => (&row.destination, &row.source),
    };
    if context.output.is_json() || !std::io::stdin().is_terminal() {
        return Err(Error::usage("nobody is here to confirm this").hint("say --yes if you are sure"));
    }
    let mut err = std::io::stderr();
    if row.state == Progressing::InDoubt {
        let _ = writeln!(err, "{}", in_doubt_words(row));
    }
    let _ = write!(
        err,
        "{} will run on {runs}, and {dead} loses what it has of it when it comes back. If {} still runs on {dead}, \
         two copies run.\nType the name of the host that is dead: ",
        row.container, row.container
    );
    let _ = err.flush();
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    if read.is_ok() && line.trim() == dead.as_str() {
        Ok(())
    } else {
        Err(Error::new(Reason::Cancelled, format!("not confirmed: {:?} is not {dead}", clean(line.trim()))))
    }
}
