//! The durable record of every decision, and the history.
//!
//! SQLite in WAL mode with `synchronous=FULL`: when [`Journal::record`] returns, the decision is
//! on disk. It decides which copy of a container may run after a crash, so the oldest and most
//! examined engine was chosen over younger pure-Rust stores; an operator can read it with
//! `sqlite3`. One thread owns the connection; calls queue up for it, so nothing blocks the
//! runtime. Nothing here knows the wire or the order of steps.
//!
//! A journal that cannot be read, that lost its end, or that is not there although containers are, is
//! an error at start, never an empty journal: what is frozen or held stays so.

mod renew;
mod schema;
mod witness;

pub use renew::renew;

use rusqlite::{Connection, OptionalExtension, params};
use schema::Refusal;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use tokio::sync::oneshot;
use tranship_proto::ids::{ContainerName, Epoch, HostName, MigrationId};
use tranship_proto::status::{MigrationStatus, Progressing, Side};
use witness::Witness;

/// Why the journal failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database cannot be opened just now.
    #[error("cannot open the journal {path}: {why}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The journal does not hold what this agent has written.
    #[error(
        "the journal {path} is damaged: {why}; nothing was started or changed, and what is frozen or held here stays so"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How that is known.
        why: String,
    },
    /// A read or a write failed.
    #[error("cannot {what} in the journal: {why}")]
    Use {
        /// What was attempted.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// The journal's thread has ended.
    #[error("the journal is closed")]
    Closed,
}

impl JournalError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Damaged { .. } => Some(
                "keep journal.db, journal.db-wal and journal.db-shm as they are; docs/in-doubt.md, \"The journal is \
                 damaged\", says how to find out which containers are this host's, and how to go on",
            ),
            _ => None,
        }
    }
}

/// A decision. Written before what it allows is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// S: the migration was accepted; the epoch is proposed.
    Accepted,
    /// S: about to fence and freeze. From here a restart must thaw and unfence.
    Frozen,
    /// S: the container is the destination's. The point of commit.
    Released,
    /// S: the release before it is void; nobody was granted it, or the grantee renounced. From here
    /// a restart must thaw and unfence.
    Revoked,
    /// S: the copy here is killed and removed.
    Retired,
    /// S: rolled back; the container runs here.
    RolledBack,
    /// S, after ROLLED_BACK: the destination has said that nothing is left there, and never will run.
    Renounced,
    /// S: an operator declared the destination dead: the release before it is void. T: the source says
    /// so, or an operator gave this copy up. From here a restart must thaw (S), or destroy (T).
    Overruled,
    /// S: after OVERRULED the container runs here again.
    TakenBack,
    /// T: reserved; something may lie around from here on.
    Reserved,
    /// T: restored and held.
    Prepared,
    /// T: the container is this host's.
    Owner,
    /// T: an operator declared the source dead: the container is this host's.
    Taken,
    /// T: given up, nothing is left.
    Discarded,
    /// Both: nothing more is expected from the peer.
    Closed,
}

impl Record {
    /// The record's name in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Record::Accepted => "accepted",
            Record::Frozen => "frozen",
            Record::Released => "released",
            Record::Revoked => "revoked",
            Record::Retired => "retired",
            Record::RolledBack => "rolled_back",
            Record::Renounced => "renounced",
            Record::Overruled => "overruled",
            Record::TakenBack => "taken_back",
            Record::Reserved => "reserved",
            Record::Prepared => "prepared",
            Record::Owner => "owner",
            Record::Taken => "taken",
            Record::Discarded => "discarded",
            Record::Closed => "closed",
        }
    }

    fn parse(s: &str) -> Option<Self> {
        use Record::*;
        [
            Accepted, Frozen, Released, Revoked, Retired, RolledBack, Renounced, Overruled, TakenBack,
            Reserved, Prepared, Owner, Taken, Discarded, Closed,
        ]
        .into_iter()
        .find(|r| r.as_str() == s)
    }
}

/// A migration whose last record is not a final one, as found at a start.
#[derive(Debug, Clone)]
pub struct Unfinished {
    /// Its status row.
    pub status: MigrationStatus,
    /// Its records in order.
    pub records: Vec<Record>,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The journal of one agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal {
    jobs: mpsc::Sender<Job>,
    witness: Arc<Witness>,
    path: Arc<Path>,
}

impl Journal {
    /// Opens or makes the journal in `state_dir` and checks that it is whole.
    ///
    /// `run_dir` is a directory in memory, which outlives the agent and not the host. `here` is what is on
    /// this host of containers: none of it can be there without a journal that knows of it.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] with the files left as they are, or [`JournalError::Open`].
    pub fn open(state_dir: &Path, run_dir: &Path, here: &[String]) -> Result<Self, JournalError> {
        let path = state_dir.join("journal.db");
        let fail = |why: String| JournalError::Open { path: path.clone(), why };
        let damaged = |why: String| JournalError::Damaged { path: path.clone(), why };
        let refuse = |refusal| match refusal {
            Refusal::Damaged(why) => damaged(why),
            Refusal::Failed(why) => fail(why),
        };
        let witness = Witness::open(run_dir).map_err(|e| fail(format!("{}: {e}", run_dir.display())))?;
        let written = witness.read();
        let missing = match std::fs::metadata(&path) {
            Ok(file) => (file.len() == 0).then_some("empty"),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Some("missing"),
            Err(e) => return Err(fail(e.to_string())),
        };
        match (missing, here.first()) {
            (Some(how), Some(one)) => {
                return Err(damaged(format!(
                    "it is {how}, and there is {one} here, which it has to know of"
                )));
            }
            (Some(how), None) if written > 0 => {
                return Err(damaged(format!("it is {how}, and had {written} decisions in it")));
            }
            _ => {}
        }
        let mut connection = schema::open(&path, here.is_empty() && written == 0).map_err(refuse)?;
        let newest = schema::newest(&connection).map_err(refuse)?;
        if newest < written {
            return Err(damaged(format!(
                "it ends with decision {newest}, and {written} were written: its end is lost"
            )));
        }
        schema::trust(&connection).map_err(refuse)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || {
                while let Ok(job) = queue.recv() {
                    job(&mut connection);
                }
            })
            .map_err(|e| fail(e.to_string()))?;
        Ok(Self { jobs, witness: Arc::new(witness), path: path.into() })
    }

    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        f: impl FnOnce(&mut Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, JournalError> {
        let (tx, rx) = oneshot::channel();
        let job: Job = Box::new(move |c| {
            let _ = tx.send(f(c));
        });
        self.jobs.send(job).map_err(|_| JournalError::Closed)?;
        let result = rx.await.map_err(|_| JournalError::Closed)?;
        result.map_err(|e| match schema::is_damage(&e) {
            true => {
                JournalError::Damaged { path: self.path.to_path_buf(), why: format!("cannot {what}: {e}") }
            }
            false => JournalError::Use { what, why: e.to_string() },
        })
    }

    /// Enters a migration with its first record, in one transaction. On disk on return.
    pub async fn begin(&self, status: MigrationStatus, record: Record) -> Result<(), JournalError> {
        let witness = self.witness.clone();
        self.call("enter a migration", move |c| {
            let tx = c.transaction()?;
            upsert(&tx, &status)?;
            let number = append(&tx, status.migration, status.side, record, status.started_unix_ms)?;
            tx.commit()?;
            witness.note(number);
            Ok(())
        })
        .await
    }

    /// Keeps what a restarted agent needs to go on with a migration: a JSON document of the
    /// caller's. It goes when the migration's row says that it has ended.
    pub async fn keep_document(
        &self,
        id: MigrationId,
        side: Side,
        body: Vec<u8>,
    ) -> Result<(), JournalError> {
        self.call("keep a document", move |c| {
            c.execute(
                "INSERT INTO documents (migration, side, body) VALUES (?1, ?2, ?3)
                 ON CONFLICT (migration, side) DO UPDATE SET body = ?3",
                params![id.to_string(), side_name(side), body],
            )
            .map(|_| ())
        })
        .await
    }

    /// The document kept for a migration.
    pub async fn document(&self, id: MigrationId, side: Side) -> Result<Option<Vec<u8>>, JournalError> {
        self.call("read a document", move |c| {
            c.query_row(
                "SELECT body FROM documents WHERE migration = ?1 AND side = ?2",
                params![id.to_string(), side_name(side)],
                |row| row.get(0),
            )
            .optional()
        })
        .await
    }

    /// Appends a decision. On disk on return.
    ///
    /// `owner` is set with the records that change who owns the container.
    pub async fn record(
        &self,
        migration: MigrationId,
        side: Side,
        record: Record,
        owner: Option<Ownership>,
    ) -> Result<(), JournalError> {
        let (at, witness) = (now_ms(), self.witness.clone());
        self.call("write a decision", move |c| {
            let tx = c.transaction()?;
            let number = append(&tx, migration, side, record, at)?;
            own(&tx, migration, owner)?;
            tx.commit()?;
            witness.note(number);
            Ok(())
        })
        .await
    }

    /// As [`Journal::record`], for a decision of an operator's: who made it and when is in the
    /// migration's row, and on disk with it or not at all.
    pub async fn decide(
        &self,
        status: MigrationStatus,
        record: Record,
        owner: Option<Ownership>,
    ) -> Result<(), JournalError> {
        let (at, witness) = (now_ms(), self.witness.clone());
        self.call("write an operator's decision", move |c| {
            let tx = c.transaction()?;
            upsert(&tx, &status)?;
            let number = append(&tx, status.migration, status.side, record, at)?;
            own(&tx, status.migration, owner)?;
            tx.commit()?;
            witness.note(number);
            Ok(())
        })
        .await
    }

    /// When a record was written, in milliseconds since 1970 by the wall clock.
    pub async fn recorded_at(
        &self,
        id: MigrationId,
        side: Side,
        record: Record,
    ) -> Result<Option<i64>, JournalError> {
        self.call("read the time of a decision", move |c| {
            c.query_row(
                "SELECT at_unix_ms FROM records WHERE migration = ?1 AND side = ?2 AND record = ?3
                 ORDER BY seq DESC LIMIT 1",
                params![id.to_string(), side_name(side), record.as_str()],
                |row| row.get(0),
            )
            .optional()
        })
        .await
    }

    /// Replaces a migration's status row.
    pub async fn update(&self, status: MigrationStatus) -> Result<(), JournalError> {
        self.call("update a migration", move |c| upsert(c, &status)).await
    }

    /// The newest epoch seen of the container of this name that was made at `made_unix_ms` or later, and
    /// who owned it then. An older one of the same name was another container.
    pub async fn ownership(
        &self,
        container: &ContainerName,
        made_unix_ms: i64,
    ) -> Result<Option<(Epoch, String)>, JournalError> {
        let name = container.as_str().to_owned();
        self.call("look up an epoch", move |c| {
            c.query_row(
                "SELECT epoch, owner FROM ownership WHERE container = ?1 AND made_unix_ms >= ?2",
                params![name, made_unix_ms],
                |row| Ok((Epoch(u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0)), row.get(1)?)),
            )
            .optional()
        })
        .await
    }

    /// Forgets the ownership of a container that was removed.
    pub async fn forget(&self, container: &ContainerName) -> Result<(), JournalError> {
        let name = container.as_str().to_owned();
        self.call("forget a container", move |c| {
            c.execute("DELETE FROM ownership WHERE container = ?1", [name]).map(|_| ())
        })
        .await
    }

    /// Status rows, newest first: those under way, or those ended.
    pub async fn migrations(&self, ended: bool, limit: u32) -> Result<Vec<MigrationStatus>, JournalError> {
        self.call("list migrations", move |c| {
            let mut q =
                c.prepare("SELECT status FROM migrations WHERE ended = ?1 ORDER BY id DESC LIMIT ?2")?;
            let rows = q.query_map(params![ended, limit], |row| row.get::<_, String>(0))?;
            rows.map(|text| parse_status(&text?)).collect()
        })
        .await
    }

    /// One migration, by its whole id or its short form, newest first.
    pub async fn find(&self, id: String) -> Result<Vec<MigrationStatus>, JournalError> {
        let all = self.migrations(false, 1000).await?.into_iter().chain(self.migrations(true, 1000).await?);
        Ok(all.filter(|m| m.migration.matches(&id)).collect())
    }

    /// The last record of a migration on a side of this host.
    pub async fn last_record(&self, id: MigrationId, side: Side) -> Result<Option<Record>, JournalError> {
        self.call("read the last decision", move |c| {
            let name = c
                .query_row(
                    "SELECT record FROM records WHERE migration = ?1 AND side = ?2 ORDER BY seq DESC LIMIT 1",
                    params![id.to_string(), side_name(side)],
                    |row| row.get::<_, String>(0),
                )
                .optional()?;
            name.map(|n| Record::parse(&n).ok_or_else(|| damaged(&format!("unknown record {n:?}"))))
                .transpose()
        })
        .await
    }

    /// The records of a migration on a side of this host, in order.
    pub async fn records(&self, id: MigrationId, side: Side) -> Result<Vec<Record>, JournalError> {
        self.call("read decisions", move |c| {
            let mut q =
                c.prepare("SELECT record FROM records WHERE migration = ?1 AND side = ?2 ORDER BY seq")?;
            let rows =
                q.query_map([id.to_string().as_str(), side_name(side)], |row| row.get::<_, String>(0))?;
            rows.map(|name| {
                let name = name?;
                Record::parse(&name).ok_or_else(|| damaged(&format!("unknown record {name:?}")))
            })
            .collect()
        })
        .await
    }

    /// Migrations without a final record, for recovery at a start. Each has a record.
    pub async fn unfinished(&self) -> Result<Vec<Unfinished>, JournalError> {
        let open = self.migrations(false, 1000).await?;
        let mut found = Vec::with_capacity(open.len());
        for status in open {
            let records = self.records(status.migration, status.side).await?;
            if records.is_empty() {
                // They are begun together.
                let why = format!("migration {} is in it without a decision", status.migration);
                return Err(JournalError::Damaged { path: self.path.to_path_buf(), why });
            }
            found.push(Unfinished { status, records });
        }
        Ok(found)
    }
}

/// Who owns a container from a record on.
#[derive(Debug, Clone)]
pub struct Ownership {
    /// The container.
    pub container: ContainerName,
    /// When it was made, which tells it from others of its name; [`Ownership::SAME`]: as it is known.
    pub made_unix_ms: i64,
    /// Since which epoch.
    pub epoch: Epoch,
    /// The host.
    pub owner: HostName,
}

impl Ownership {
    /// Of the container of this name that is known, whenever it was made.
    pub const SAME: i64 = 0;
}

/// Milliseconds since 1970 by the wall clock; for people, never for the hand-over's decisions.
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn as_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn damaged(why: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, why.into())
}

fn side_name(side: Side) -> &'static str {
    match side {
        Side::Controller => "controller",
        Side::Source => "source",
        Side::Destination => "destination",
    }
}

fn append(
    c: &Connection,
    migration: MigrationId,
    side: Side,
    record: Record,
    at: i64,
) -> Result<i64, rusqlite::Error> {
    c.execute(
        "INSERT INTO records (migration, side, record, at_unix_ms) VALUES (?1, ?2, ?3, ?4)",
        params![migration.to_string(), side_name(side), record.as_str(), at],
    )?;
    Ok(c.last_insert_rowid())
}

fn own(c: &Connection, migration: MigrationId, owner: Option<Ownership>) -> Result<(), rusqlite::Error> {
    let Some(o) = owner else { return Ok(()) };
    c.execute(
        "INSERT INTO ownership (container, made_unix_ms, epoch, owner, migration) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (container) DO UPDATE
         SET made_unix_ms = max(made_unix_ms, ?2), epoch = ?3, owner = ?4, migration = ?5
         WHERE excluded.made_unix_ms > ownership.made_unix_ms OR excluded.epoch >= ownership.epoch",
        params![
            o.container.as_str(),
            o.made_unix_ms,
            as_i64(o.epoch.0),
            o.owner.as_str(),
            migration.to_string()
        ],
    )
    .map(|_| ())
}

fn upsert(c: &Connection, status: &MigrationStatus) -> Result<(), rusqlite::Error> {
    let text = serde_json::to_string(status).map_err(|e| damaged(&e.to_string()))?;
    let ended = matches!(status.state, Progressing::Done | Progressing::Failed | Progressing::Cancelled);
    c.execute(
        "INSERT INTO migrations (id, side, ended, status) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (id, side) DO UPDATE SET ended = ?3, status = ?4",
        params![status.migration.to_string(), side_name(status.side), ended, text],
    )?;
    if ended {
        // What a restarted agent would have needed: nobody does any more.
        c.execute(
            "DELETE FROM documents WHERE migration = ?1 AND side = ?2",
            params![status.migration.to_string(), side_name(status.side)],
        )?;
    }
    Ok(())
}

fn parse_status(text: &str) -> Result<MigrationStatus, rusqlite::Error> {
    serde_json::from_str(text).map_err(|e| damaged(&format!("unreadable status: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_proto::status::Phase;

    fn status(id: MigrationId, state: Progressing) -> MigrationStatus {
        MigrationStatus {
            migration: id,
            container: "web".parse().unwrap(),
            source: "host-a".parse().unwrap(),
            destination: "host-b".parse().unwrap(),
            side: Side::Source,
            epoch: Epoch(2),
            state,
            phase: Phase::Reserve,
            started_unix_ms: 1,
            updated_unix_ms: 1,
            failure: None,
            summary: None,
            resolution: None,
        }
    }

    #[tokio::test]
    async fn decisions_and_ownership_survive_a_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let id = MigrationId(uuid::Uuid::now_v7());
        {
            let journal = Journal::open(dir.path(), dir.path(), &[]).unwrap();
            journal.begin(status(id, Progressing::Running), Record::Accepted).await.unwrap();
            let owner = Ownership {
                container: "web".parse().unwrap(),
                made_unix_ms: 1000,
                epoch: Epoch(2),
                owner: "host-b".parse().unwrap(),
            };
            journal.record(id, Side::Source, Record::Released, Some(owner)).await.unwrap();
            journal.keep_document(id, Side::Source, b"{}".to_vec()).await.unwrap();
        }
        let journal = Journal::open(dir.path(), dir.path(), &[]).unwrap();
        let found = journal.unfinished().await.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].records, [Record::Accepted, Record::Released]);
        let web = "web".parse().unwrap();
        assert_eq!(journal.ownership(&web, 1000).await.unwrap(), Some((Epoch(2), "host-b".into())));
        assert_eq!(journal.document(id, Side::Source).await.unwrap().as_deref(), Some(&b"{}"[..]));
        assert!(journal.recorded_at(id, Side::Source, Record::Released).await.unwrap().is_some());
        assert_eq!(journal.recorded_at(id, Side::Source, Record::Retired).await.unwrap(), None);
        journal.update(status(id, Progressing::Done)).await.unwrap();
        assert!(journal.unfinished().await.unwrap().is_empty());
        assert_eq!(journal.document(id, Side::Source).await.unwrap(), None, "it has ended");
        assert_eq!(journal.find(id.short()).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn an_older_epoch_never_replaces_a_newer_one_of_the_same_container() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), dir.path(), &[]).unwrap();
        let id = MigrationId(uuid::Uuid::now_v7());
        let own = |made_unix_ms, epoch, host: &str| Ownership {
            container: "web".parse().unwrap(),
            made_unix_ms,
            epoch: Epoch(epoch),
            owner: host.parse().unwrap(),
        };
        journal.record(id, Side::Source, Record::Released, Some(own(1000, 5, "host-b"))).await.unwrap();
        journal.record(id, Side::Source, Record::Released, Some(own(1000, 4, "host-c"))).await.unwrap();
        let web = "web".parse().unwrap();
        assert_eq!(journal.ownership(&web, 1000).await.unwrap(), Some((Epoch(5), "host-b".into())));
        // Removed and made anew under its name: another container.
        assert_eq!(journal.ownership(&web, 2000).await.unwrap(), None);
        journal.record(id, Side::Source, Record::Released, Some(own(2000, 2, "host-c"))).await.unwrap();
        assert_eq!(journal.ownership(&web, 2000).await.unwrap(), Some((Epoch(2), "host-c".into())));
        let same = Ownership::SAME;
        journal.record(id, Side::Source, Record::Released, Some(own(same, 3, "host-a"))).await.unwrap();
        assert_eq!(journal.ownership(&web, 2000).await.unwrap(), Some((Epoch(3), "host-a".into())));
    }
}
