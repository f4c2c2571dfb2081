//! The journal's tables, and what a journal must satisfy to be opened.

use rusqlite::Connection;
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
    container TEXT PRIMARY KEY,
    epoch     INTEGER NOT NULL,
    owner     TEXT NOT NULL,
    migration TEXT NOT NULL
) STRICT;
";

pub(super) fn open(path: &Path) -> Result<Connection, String> {
    let connection = Connection::open(path).map_err(|e| e.to_string())?;
    prepare(&connection).map_err(|e| e.to_string())??;
    Ok(connection)
}

fn prepare(c: &Connection) -> Result<Result<(), String>, rusqlite::Error> {
    c.pragma_update(None, "journal_mode", "WAL")?;
    c.pragma_update(None, "synchronous", "FULL")?;
    c.pragma_update(None, "foreign_keys", "ON")?;
    let whole: String = c.query_row("PRAGMA quick_check", [], |row| row.get(0))?;
    if whole != "ok" {
        return Ok(Err(format!("it is damaged: {whole}")));
    }
    let version: i64 = c.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match version {
        0 => {
            let tables: i64 = c.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
            if tables > 0 {
                return Ok(Err("it is some other program's database".into()));
            }
            c.execute_batch(&format!("BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"))?;
            Ok(Ok(()))
        }
        VERSION => Ok(Ok(())),
        newer => Ok(Err(format!("it is of version {newer}, this agent knows {VERSION}"))),
    }
}
