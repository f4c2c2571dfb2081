//! The journal's tables, and what a journal must satisfy to be opened.

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use std::path::Path;

/// Version of the tables; a newer one on disk is refused.
const VERSION: i64 = 1;

const TABLES: &str = "
CREATE TABLE migrations (
    id      TEXT NOT NULL,
    side    TEXT NOT NULL,
    ended   INTEGER NOT NULL,
    status  TEXT NOT NULL,
    PRIMARY KEY (id, side)
) STRICT;
CREATE TABLE records (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    migration  TEXT NOT NULL,
    side       TEXT NOT NULL,
    record     TEXT NOT NULL,
    at_unix_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX records_by_migration ON records (migration, side, seq);
CREATE TABLE documents (
    migration TEXT NOT NULL,
    side      TEXT NOT NULL,
    body      BLOB NOT NULL,
    PRIMARY KEY (migration, side)
) STRICT;
CREATE TABLE ownership (
    container    TEXT PRIMARY KEY,
    made_unix_ms INTEGER NOT NULL,
    epoch        INTEGER NOT NULL,
    owner        TEXT NOT NULL,
    migration    TEXT NOT NULL
) STRICT;
";

/// Why a journal is not opened.
pub(super) enum Refusal {
    /// It is not what an agent has written.
    Damaged(String),
    /// It cannot be used just now.
    Failed(String),
}

impl From<rusqlite::Error> for Refusal {
    fn from(e: rusqlite::Error) -> Self {
        if is_damage(&e) { Self::Damaged(e.to_string()) } else { Self::Failed(e.to_string()) }
    }
}

/// Whether an error says that the database holds what nobody has written.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::{Error as E, ErrorCode as C};
    match error {
        E::SqliteFailure(e, _) => matches!(e.code, C::DatabaseCorrupt | C::NotADatabase),
        E::FromSqlConversionFailure(..) | E::InvalidColumnType(..) | E::IntegralValueOutOfRange(..) => true,
        _ => false,
    }
}

/// Opens a journal, or makes one where there is none and there `may_be_new`. It is left as it is until it
/// is trusted.
pub(super) fn open(path: &Path, may_be_new: bool) -> Result<Connection, Refusal> {
    let connection = Connection::open(path)?;
    // A refused journal stays as it was found: the end of its log is not moved into it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    prepare(&connection, may_be_new)?;
    Ok(connection)
}

/// Lets the end of the log be moved into the journal when it is closed, as is usual.
pub(super) fn trust(connection: &Connection) -> Result<(), Refusal> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    Ok(())
}

fn prepare(c: &Connection, may_be_new: bool) -> Result<(), Refusal> {
    let whole: String = c.query_row("PRAGMA quick_check", [], |row| row.get(0))?;
    if whole != "ok" {
        return Err(Refusal::Damaged(whole));
    }
    let version: i64 = c.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: i64 = c.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match version {
        0 if tables > 0 => return Err(Refusal::Damaged("it is some other program's database".into())),
        // All of it may have been in a log that is lost.
        0 if !may_be_new => return Err(Refusal::Damaged("there is nothing in it".into())),
        0 | VERSION => {}
        newer => {
            return Err(Refusal::Failed(format!("it is of version {newer}, this agent knows {VERSION}")));
        }
    }
    c.pragma_update(None, "journal_mode", "WAL")?;
    c.pragma_update(None, "synchronous", "FULL")?;
    c.pragma_update(None, "foreign_keys", "ON")?;
    if version == 0 {
        c.execute_batch(&format!("BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"))?;
    }
    Ok(())
}

/// The number of the newest decision.
pub(super) fn newest(c: &Connection) -> Result<i64, Refusal> {
    Ok(c.query_row("SELECT coalesce(max(seq), 0) FROM records", [], |row| row.get(0))?)
}
