//! The durable record of every decision, and the history.
//!
//! SQLite in WAL mode with `synchronous=FULL`: when [`Journal::record`] returns, the decision is
//! on disk. It decides which copy of a container may run after a crash, so the oldest and most
//! examined engine was chosen over younger pure-Rust stores; an operator can read it with
//! `sqlite3`. One thread owns the connection; calls queue up for it, so nothing blocks the
//! runtime. Nothing here knows the wire or the order of steps.
//!
//! A journal that cannot be read is an error at start, never an empty journal.

mod schema;

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use tokio::sync::oneshot;
use tranship_proto::ids::{ContainerName, Epoch, HostName, MigrationId};
use tranship_proto::status::{MigrationStatus, Progressing, Side};

/// Why the journal failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database cannot be opened or is damaged.
    #[error("cannot open the journal {path}: {why}; nothing is started that the journal should know of")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
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
    /// T: reserved; something may lie around from here on.
    Reserved,
    /// T: restored and held.
    Prepared,
    /// T: the container is this host's.
    Owner,
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
            Record::Reserved => "reserved",
            Record::Prepared => "prepared",
            Record::Owner => "owner",
            Record::Discarded => "discarded",
            Record::Closed => "closed",
        }
    }

    fn parse(s: &str) -> Option<Self> {
        use Record::*;
        [
            Accepted, Frozen, Released, Revoked, Retired, RolledBack, Reserved, Prepared, Owner, Discarded,
            Closed,
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
}

impl Journal {
    /// Opens or makes the journal in `state_dir` and checks that it is whole.
    pub fn open(state_dir: &Path) -> Result<Self, JournalError> {
        let path = state_dir.join("journal.db");
        let fail = |why: String| JournalError::Open { path: path.clone(), why };
        let mut connection = schema::open(&path).map_err(fail)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || {
                while let Ok(job) = queue.recv() {
                    job(&mut connection);
                }
            })
            .map_err(|e| fail(e.to_string()))?;
        Ok(Self { jobs })
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
        result.map_err(|e| JournalError::Use { what, why: e.to_string() })
    }

    /// Enters a migration with its first record, in one transaction. On disk on return.
    pub async fn begin(&self, status: MigrationStatus, record: Record) -> Result<(), JournalError> {
        self.call("enter a migration", move |c| {
            let tx = c.transaction()?;
            upsert(&tx, &status)?;
            append(&tx, status.migration, status.side, record, status.started_unix_ms)?;
            tx.commit()
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
        let at = now_ms();
        self.call("write a decision", move |c| {
            let tx = c.transaction()?;
            append(&tx, migration, side, record, at)?;
            if let Some(o) = owner {
                tx.execute(
                    "INSERT INTO ownership (container, epoch, owner, migration) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (container) DO UPDATE SET epoch = ?2, owner = ?3, migration = ?4
                     WHERE excluded.epoch >= ownership.epoch",
                    params![o.container.as_str(), as_i64(o.epoch.0), o.owner.as_str(), migration.to_string()],
                )?;
            }
            tx.commit()
        })
        .await
    }

    /// Replaces a migration's status row.
    pub async fn update(&self, status: MigrationStatus) -> Result<(), JournalError> {
        self.call("update a migration", move |c| upsert(c, &status)).await
    }

    /// The newest epoch seen of a container, and who owned it then.
    pub async fn ownership(
        &self,
        container: &ContainerName,
    ) -> Result<Option<(Epoch, String)>, JournalError> {
        let name = container.as_str().to_owned();
        self.call("look up an epoch", move |c| {
            c.query_row("SELECT epoch, owner FROM ownership WHERE container = ?1", [name], |row| {
                Ok((Epoch(u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0)), row.get(1)?))
            })
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

    /// Migrations without a final record, for recovery at a start.
    pub async fn unfinished(&self) -> Result<Vec<Unfinished>, JournalError> {
        let open = self.migrations(false, 1000).await?;
        let mut found = Vec::with_capacity(open.len());
        for status in open {
            let (id, side) = (status.migration.to_string(), side_name(status.side));
            let records = self
                .call("read decisions", move |c| {
                    let mut q = c.prepare(
                        "SELECT record FROM records WHERE migration = ?1 AND side = ?2 ORDER BY seq",
                    )?;
                    let rows = q.query_map([id.as_str(), side], |row| row.get::<_, String>(0))?;
                    rows.map(|name| {
                        let name = name?;
                        Record::parse(&name).ok_or_else(|| damaged(&format!("unknown record {name:?}")))
                    })
                    .collect::<Result<Vec<_>, _>>()
                })
                .await?;
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
    /// Since which epoch.
    pub epoch: Epoch,
    /// The host.
    pub owner: HostName,
}

/// Milliseconds since 1970 by the wall clock; for people, never for decisions.
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
) -> Result<(), rusqlite::Error> {
    c.execute(
        "INSERT INTO records (migration, side, record, at_unix_ms) VALUES (?1, ?2, ?3, ?4)",
        params![migration.to_string(), side_name(side), record.as_str(), at],
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
    )
    .map(|_| ())
}

fn parse_status(text: &str) -> Result<MigrationStatus, rusqlite::Error> {
    serde_json::from_str(text).map_err(|e| damaged(&format!("unreadable status: {e}")))
}
