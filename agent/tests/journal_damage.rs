//! Journals that are not what the agent has written, as real files: each is noticed, and left as it is.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not take for tests

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tranship_agent::journal::{Journal, JournalError, Record, renew};
use tranship_proto::ids::{Epoch, MigrationId};
use tranship_proto::status::{MigrationStatus, Phase, Progressing, Side};

const PAGE: u64 = 4096;

fn status(id: MigrationId) -> MigrationStatus {
    MigrationStatus {
        migration: id,
        container: "web".parse().unwrap(),
        source: "host-a".parse().unwrap(),
        destination: "host-b".parse().unwrap(),
        side: Side::Source,
        epoch: Epoch(2),
        state: Progressing::Running,
        phase: Phase::Reserve,
        started_unix_ms: 1,
        updated_unix_ms: 1,
        failure: None,
        summary: None,
        resolution: None,
    }
}

/// An agent's directories, after its death: the end of the journal is in the write-ahead log, as
/// after `kill -9`, unless it was `closed`.
struct Left {
    dir: tempfile::TempDir,
}

impl Left {
    async fn behind(closed: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        for sub in [&live, &dir.path().join("state"), &dir.path().join("run")] {
            fs::create_dir(sub).unwrap();
        }
        let journal = Journal::open(&live, &dir.path().join("run"), &[]).unwrap();
        for _ in 0..30 {
            let id = MigrationId(uuid::Uuid::now_v7());
            journal.begin(status(id), Record::Accepted).await.unwrap();
            journal.record(id, Side::Source, Record::Frozen, None).await.unwrap();
            journal.record(id, Side::Source, Record::Released, None).await.unwrap();
        }
        if closed {
            drop(journal);
            // Its thread moves the log into the database at the end.
            while live.join("journal.db-wal").exists() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        // Copied from under the live journal: what a killed process leaves.
        for entry in fs::read_dir(&live).unwrap() {
            let entry = entry.unwrap();
            if !entry.file_name().to_string_lossy().ends_with("-shm") {
                fs::copy(entry.path(), dir.path().join("state").join(entry.file_name())).unwrap();
            }
        }
        Self { dir }
    }

    fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    fn open(&self, here: &[String]) -> Result<Journal, JournalError> {
        Journal::open(&self.state(), &self.dir.path().join("run"), here)
    }

    fn contents(&self) -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<_> = fs::read_dir(self.state())
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read(e.path()).unwrap()))
            // SQLite's own index of the log, and a log with nothing in it, say nothing.
            .filter(|(name, bytes)| !(name.ends_with("-shm") || (name.ends_with("-wal") && bytes.is_empty())))
            .collect();
        all.sort();
        all
    }
}

fn overwrite(path: &Path, from: u64, bytes: u64) {
    let noise: Vec<u8> = (0..bytes).map(|i| (i * 37 + 11) as u8).collect();
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(&noise, from).unwrap();
}

fn shorten(path: &Path, part: f64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len((length as f64 * part) as u64).unwrap();
}

type Damage = (&'static str, bool, fn(&Path));

const DAMAGES: &[Damage] = &[
    ("the first page is overwritten", true, |dir| overwrite(&dir.join("journal.db"), 0, PAGE)),
    ("an inner page is overwritten", true, |dir| overwrite(&dir.join("journal.db"), PAGE, PAGE)),
    ("it is cut in the middle", true, |dir| shorten(&dir.join("journal.db"), 0.5)),
    ("it is cut to nothing", true, |dir| shorten(&dir.join("journal.db"), 0.0)),
    ("it is deleted", true, |dir| fs::remove_file(dir.join("journal.db")).unwrap()),
    ("it is something else", true, |dir| fs::write(dir.join("journal.db"), "no journal").unwrap()),
    ("its log is deleted", false, |dir| fs::remove_file(dir.join("journal.db-wal")).unwrap()),
    ("its log is cut by a little", false, |dir| shorten(&dir.join("journal.db-wal"), 0.99)),
    ("its log is cut to nothing", false, |dir| shorten(&dir.join("journal.db-wal"), 0.0)),
    ("its log is overwritten near its beginning", false, |dir| {
        overwrite(&dir.join("journal.db-wal"), 5 * PAGE, PAGE)
    }),
];

#[tokio::test]
async fn every_damage_is_noticed_and_nothing_is_touched() {
    for (what, closed, damage) in DAMAGES {
        let left = Left::behind(*closed).await;
        damage(&left.state());
        let before = left.contents();
        let error = left.open(&[]).expect_err(what);
        assert!(matches!(error, JournalError::Damaged { .. }), "{what}: {error}");
        assert!(
            error.to_string().contains("stays so") && error.hint().unwrap().contains("in-doubt"),
            "{what}"
        );
        assert!(left.contents() == before, "{what}: the files were changed");
    }
}

#[tokio::test]
async fn an_undamaged_one_is_opened_with_all_that_was_written() {
    for closed in [false, true] {
        let left = Left::behind(closed).await;
        let unfinished = left.open(&["container web".into()]).unwrap().unfinished().await.unwrap();
        assert_eq!(unfinished.len(), 30);
        assert!(unfinished.iter().all(|u| u.records == [Record::Accepted, Record::Frozen, Record::Released]));
    }
}

#[tokio::test]
async fn a_missing_one_is_made_only_where_nothing_is() {
    let left = Left::behind(true).await;
    // The host has been switched off since: memory does not know how far it was.
    fs::remove_file(left.dir.path().join("run/journal.at")).unwrap();
    for damage in [|p: &Path| fs::write(p, "").unwrap(), |p: &Path| fs::remove_file(p).unwrap()] {
        damage(&left.state().join("journal.db"));
        let error = left.open(&["container web".into()]).unwrap_err().to_string();
        assert!(error.contains("container web"), "{error}");
    }
    assert!(!left.state().join("journal.db").exists(), "none was made");
    assert!(left.open(&[]).unwrap().unfinished().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_migration_without_a_decision_or_with_an_unknown_one_is_damage() {
    for change in ["DELETE FROM records", "UPDATE records SET record = 'relaesed'"] {
        let left = Left::behind(true).await;
        rusqlite::Connection::open(left.state().join("journal.db")).unwrap().execute(change, []).unwrap();
        let found = match left.open(&[]) {
            Ok(journal) => journal.unfinished().await.map(drop),
            Err(e) => Err(e),
        };
        assert!(matches!(found, Err(JournalError::Damaged { .. })), "{change}: {found:?}");
    }
}

#[tokio::test]
async fn a_renewed_one_is_empty_and_the_old_one_is_kept() {
    let left = Left::behind(false).await;
    overwrite(&left.state().join("journal.db-wal"), 5 * PAGE, PAGE);
    let old = fs::read(left.state().join("journal.db-wal")).unwrap();
    assert!(left.open(&[]).is_err());
    let aside = renew(&left.state(), &left.dir.path().join("run")).unwrap();
    assert!(fs::read(format!("{}-wal", aside.display())).unwrap() == old, "it was changed");
    let journal = left.open(&["container web".into()]).unwrap();
    assert!(journal.unfinished().await.unwrap().is_empty());
}
