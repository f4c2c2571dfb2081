//! An operator's way on from a damaged journal.

use super::witness::Witness;
use super::{Journal, JournalError, now_ms};
use std::path::{Path, PathBuf};

/// Puts the journal of `state_dir` aside, under the name that is answered, and makes a new one.
///
/// The agent may not run. Containers and what is frozen or held stay as they are; of the migrations
/// that they were in, nothing is known any more.
///
/// # Errors
/// When the files cannot be moved, or the new journal not be made.
pub fn renew(state_dir: &Path, run_dir: &Path) -> Result<PathBuf, JournalError> {
    let path = state_dir.join("journal.db");
    let aside = state_dir.join(format!("journal.db.aside-{}", now_ms()));
    let fail = |what: &Path, e: std::io::Error| JournalError::Open {
        path: path.clone(),
        why: format!("cannot put {} aside: {e}", what.display()),
    };
    // The log first: without its database it means nothing, the database without it is an older one.
    for suffix in ["-wal", "-shm", ""] {
        let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        let from = with(&path);
        match std::fs::rename(&from, with(&aside)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail(&from, e)),
            _ => {}
        }
    }
    let witness = run_dir.join(Witness::NAME);
    match std::fs::remove_file(&witness) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail(&witness, e)),
        _ => {}
    }
    Journal::open(state_dir, run_dir, &[]).map(|_| aside)
}
