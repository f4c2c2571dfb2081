//! What people may order of a migration that is under way: to cancel it, or to settle it when it is
//! in doubt. The drivers answer, by their machines; here the right one is found.

use super::destination::driver as destination;
use super::registry::{Inputs, Migrations};
use super::source::driver as source;
use crate::journal::Record;
use tokio::sync::oneshot;
use tranship_proto::ids::MigrationId;
use tranship_proto::status::{Failure, MigrationStatus, Reason, Side};

fn gone() -> Failure {
    Failure::new(Reason::UnknownMigration, Side::Source, "the migration has just ended")
        .hint("tranship history")
}

impl Migrations {
    /// Asks a migration to cancel and waits for the answer.
    ///
    /// # Errors
    /// `TooLate` with the time of the commit; what it ended with instead; or it is not known here.
    pub async fn cancel(&self, id: MigrationId) -> Result<(), Failure> {
        let found = match self.table().entries.get(&id) {
            Some(e) => match &e.inputs {
                Inputs::Source(inputs) => Some(Ok(inputs.clone())),
                Inputs::Destination(_) => Some(Err(e.peer.clone())),
            },
            None => None,
        };
        let inputs = match found {
            Some(Ok(inputs)) => inputs,
            Some(Err(source)) => {
                let text = format!("migration {} is decided by its source {source}", id.short());
                let hint = format!("tranship --host {source} cancel {}", id.short());
                return Err(Failure::new(Reason::BadRequest, Side::Destination, text).hint(hint));
            }
            None => return Err(self.not_cancelled(id).await),
        };
        let (reply, answer) = oneshot::channel();
        inputs.send(source::Input::Cancel(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Why a migration that is not under way here cannot be cancelled.
    async fn not_cancelled(&self, id: MigrationId) -> Failure {
        if let Ok(Some(ended)) = self.history_of(id, Side::Source).await {
            let released = self.ctx.journal.recorded_at(id, Side::Source, Record::Released).await;
            let back = self.ctx.journal.recorded_at(id, Side::Source, Record::RolledBack).await;
            if matches!((released, back), (Ok(Some(_)), Ok(None))) {
                return source::too_late(&self.ctx, id).await;
            }
            let text = format!(
                "migration {} has ended already; {} runs on {}",
                id.short(),
                ended.container,
                ended.source
            );
            return Failure::new(Reason::BadRequest, Side::Source, text)
                .hint(format!("tranship status {} says how", id.short()));
        }
        let text = format!("no migration {} is under way here", id.short());
        Failure::new(Reason::UnknownMigration, Side::Source, text).hint("tranship status; tranship history")
    }

    async fn history_of(
        &self,
        id: MigrationId,
        side: Side,
    ) -> Result<Option<MigrationStatus>, crate::journal::JournalError> {
        let found = self.ctx.journal.find(id.to_string()).await?;
        Ok(found.into_iter().find(|m| m.side == side))
    }

    /// Settles a migration that is in doubt by an operator's word that the other side's host is dead.
    /// On disk on return.
    ///
    /// # Errors
    /// When nothing is in doubt here, when the other side answers, or when it cannot be written.
    pub async fn resolve(&self, id: MigrationId, run_at: Side, by: String) -> Result<String, Failure> {
        let (reply, answer) = oneshot::channel();
        enum Asked {
            Source(tokio::sync::mpsc::Sender<source::Input>),
            Destination(tokio::sync::mpsc::Sender<destination::Input>),
        }
        let (asked, peer) = {
            let table = self.table();
            let Some(entry) = table.entries.get(&id) else {
                drop(table);
                let text = format!("no migration {} is under way here", id.short());
                return Err(Failure::new(Reason::UnknownMigration, Side::Source, text)
                    .hint("tranship status, here and on the other host"));
            };
            let asked = match &entry.inputs {
                Inputs::Source(inputs) => Asked::Source(inputs.clone()),
                Inputs::Destination(inputs) => Asked::Destination(inputs.clone()),
            };
            (asked, entry.peer.clone())
        };
        let own = &self.ctx.config.host;
        let text = match (&asked, run_at) {
            (Asked::Source(_), Side::Source) => {
                format!("{peer} is declared dead: the container runs on {own} again")
            }
            (Asked::Source(_), _) => {
                let text = format!("{own} is the source of migration {}: it is not dead", id.short());
                return Err(Failure::new(Reason::BadRequest, Side::Source, text).hint(format!(
                    "tranship --host {peer} resolve {} --run-at destination --source-is-dead",
                    id.short()
                )));
            }
            (Asked::Destination(_), Side::Source) => {
                format!("the copy on {own} is given up: {peer} takes the container back")
            }
            (Asked::Destination(_), _) => format!("{peer} is declared dead: the container runs on {own}"),
        };
        match asked {
            Asked::Source(inputs) => {
                let verdict = source::Verdict { by, reply };
                inputs.send(source::Input::Resolve(verdict)).await.map_err(|_| gone())?;
            }
            Asked::Destination(inputs) => {
                let verdict = destination::Verdict { run_at, by, reply };
                inputs.send(destination::Input::Resolve(verdict)).await.map_err(|_| gone())?;
            }
        }
        answer.await.map_err(|_| gone())??;
        Ok(text)
    }
}
