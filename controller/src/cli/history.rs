//! `tranship history`

use super::Context;
use super::status::{ROW_HEADER, resolution_words, row_cells};
use crate::error::Error;
use crate::exit;
use crate::output::{micros, table};
use tranship_proto::control::{Reply, Request};
use tranship_proto::status::MigrationStatus;

/// List migrations that have ended, newest first
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  tranship history\n  tranship history --limit 100 --output json\n")]
pub struct History {
    /// At most this many, up to 1000
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

impl History {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        let agent = context.fleet.agent().await?;
        let rows = match agent.ask(Request::History { limit: self.limit }).await? {
            Reply::Migrations(rows) => rows,
            other => return Err(agent.unexpected(&other, "Migrations").into()),
        };
        agent.close().await;
        context.output.show("migrations", "migrations", &rows, || text(&rows));
        Ok(exit::DONE)
    }
}

fn text(rows: &[MigrationStatus]) -> String {
    let mut header = ROW_HEADER.to_vec();
    header.extend(["TOOK", "FROZEN", "BLACKOUT", "WHY"]);
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let mut row = row_cells(r);
            match &r.summary {
                Some(s) => {
                    let blackout = s.blackout_us.map_or_else(|| "no packets".into(), micros);
                    row.extend([micros(s.total_us), micros(s.frozen_us), blackout]);
                }
                None => row.extend(["-".into(), "-".into(), "-".into()]),
            }
            let why = r.failure.as_ref().map(|f| f.message.clone());
            let resolved = resolution_words(r).map(|w| format!("resolved {w}"));
            row.push(why.into_iter().chain(resolved).collect::<Vec<_>>().join("; "));
            row
        })
        .collect();
    table(&header, &cells)
}
