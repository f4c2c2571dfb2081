//! `tranship watch`

use super::Context;
use super::migrate::conclude;
use super::status::{is_open, migration_id, subject_of};
use crate::error::Error;
use crate::follow::{Follow, Interrupts, Outcome, SEARCH};
use crate::progress::view;
use tranship_proto::status::{Failure, Progressing, Reason, Side};

/// Follow a migration that is under way
///
/// Shows its events from the first on and ends with its exit code, as `tranship migrate` does.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  tranship watch 1f2e3d4c\n  tranship watch 1f2e3d4c --output json\n"
)]
pub struct Watch {
    /// The migration's id, whole or short
    #[arg(value_name = "ID", value_parser = migration_id)]
    id: String,
    /// Show only the summary
    #[arg(long)]
    no_progress: bool,
}

impl Watch {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        let (agent, row) = context.fleet.find_migration(&self.id).await?;
        let subject = subject_of(&row);
        let mut view = view(context.output, self.no_progress);
        view.accepted(&subject);
        let outcome = if is_open(row.state) {
            let mut interrupts = Interrupts::new()?;
            let follow = Follow {
                agent: agent.clone(),
                subject: &subject,
                view: &mut *view,
                interrupts: &mut interrupts,
                seen: 0,
                search: SEARCH,
            };
            follow.run(None).await?
        } else {
            ended(row.state, row.summary, row.failure)
        };
        agent.close().await;
        conclude(context, &subject, outcome)
    }
}

/// How a migration ended that is over already.
fn ended(
    state: Progressing,
    summary: Option<tranship_proto::status::Summary>,
    failure: Option<Failure>,
) -> Outcome {
    match (state, failure) {
        (Progressing::Done, _) => Outcome::Done(Box::new(summary.unwrap_or_default())),
        (_, Some(failure)) => Outcome::Failed(failure),
        (Progressing::Cancelled, None) => {
            Outcome::Failed(Failure::new(Reason::Cancelled, Side::Source, "the migration was cancelled"))
        }
        (_, None) => Outcome::Failed(Failure::new(Reason::Failed, Side::Source, "the migration failed")),
    }
}
