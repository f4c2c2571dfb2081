//! `tranship cancel`

use super::status::migration_id;
use super::{Context, order};
use crate::error::Error;
use tranship_proto::control::Request;

/// Cancel a migration
///
/// Works until the point of commit; the container then runs on at its source. After it the answer
/// is "too late" (code 8), and the migration will be completed.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  tranship cancel 1f2e3d4c\n")]
pub struct Cancel {
    /// The migration's id, whole or short
    #[arg(value_name = "ID", value_parser = migration_id)]
    id: String,
}

impl Cancel {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        let (agent, row) = context.fleet.find_migration(&self.id).await?;
        order(context, &agent, Request::Cancel { migration: row.migration }).await
    }
}
