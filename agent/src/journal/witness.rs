//! How far the journal is, so that one that lost its end is noticed.
//!
//! SQLite takes the first damaged frame of its write-ahead log for the end of the log: decisions
//! behind it are gone without an error. So they are when the log was deleted, or an older copy of
//! the journal was put back. An agent that believed such a journal would thaw a container that it
//! has given away. Therefore the number of the newest decision is kept in `run_dir`, which is in
//! memory: that costs no flush, and lives as long as frozen and held processes do, which are what
//! has to be protected. After a reboot there are none.
//!
//! Rejected: the same on disk, because it would add a flush to the blackout.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Digits of the largest number, so that a shorter one leaves nothing of a longer one behind.
const WIDTH: usize = 20;

/// The file with the number.
#[derive(Debug)]
pub(super) struct Witness {
    file: File,
}

impl Witness {
    /// The file's name in `run_dir`.
    pub(super) const NAME: &'static str = "journal.at";

    pub(super) fn open(run_dir: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Ok(Self { file: options.open(run_dir.join(Self::NAME))? })
    }

    /// The number of the newest decision that was written; 0 when there is none, or none that is
    /// readable.
    pub(super) fn read(&self) -> i64 {
        let mut text = String::new();
        let read = (&self.file).take(WIDTH as u64).read_to_string(&mut text);
        read.ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Notes a decision that is on disk. After that and not before: an agent that dies in between must
    /// not find its journal too short.
    pub(super) fn note(&self, number: i64) {
        // One write to memory: a killed agent has done it or not.
        if let Err(e) = self.file.write_all_at(format!("{number:>WIDTH$}").as_bytes(), 0) {
            tracing::warn!(error = %e, "cannot note how far the journal is");
        }
    }
}
