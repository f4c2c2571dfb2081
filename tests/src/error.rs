//! What can go wrong while a lab is made, used or removed.
//!
//! One enum for the whole crate: its callers are a command line and tests, and both only print it.

use std::io;
use std::path::{Path, PathBuf};

/// An operation on the lab that failed, with what to do about it where that is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A file or directory of the lab could not be used.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb: "create", "read".
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call without a file failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A program could be started but did not succeed.
    #[error("{what} ended with {status}: {stderr}")]
    Command {
        /// The program with its arguments.
        what: String,
        /// How it ended.
        status: String,
        /// What it wrote, shortened.
        stderr: String,
    },
    /// Something that must be there is not.
    #[error("{what}")]
    Missing {
        /// What is missing.
        what: String,
        /// How to get it.
        hint: String,
    },
    /// A name, number or combination that the lab does not take.
    #[error("{what}")]
    Invalid {
        /// What is wrong with it.
        what: String,
        /// What would be right.
        hint: String,
    },
    /// The kernel cannot do it.
    #[error("{what}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// `up` on a lab that runs.
    #[error("lab {0} is up already")]
    AlreadyUp(String),
    /// Anything else on a lab that does not run.
    #[error("lab {0} is not up")]
    NotUp(String),
    /// An agent did not come up, or is not there.
    #[error("agent of {host}: {what}{}", tail(log))]
    Agent {
        /// The host it belongs to.
        host: String,
        /// What happened.
        what: String,
        /// The end of its log; may be empty.
        log: String,
    },
    /// A file of the lab's own does not hold what it should.
    #[error("cannot make sense of {}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The removal of a lab left something behind.
    #[error("could not remove everything of lab {lab}: {}", rest.join("; "))]
    NotRemoved {
        /// The lab.
        lab: String,
        /// What is left, one line each.
        rest: Vec<String>,
    },
}

fn tail(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("\n--- end of its log ---\n{log}") }
}

impl LabError {
    /// For `map_err` on file operations: `cannot WHAT PATH: reason`.
    pub fn io(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { what, path, source }
    }

    /// For `map_err` on system calls without a path.
    pub fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::System { what, source: source.into() }
    }

    /// What the person at the terminal can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { hint, .. } | Self::Invalid { hint, .. } | Self::Unsupported { hint, .. } => {
                Some(hint.clone())
            }
            Self::AlreadyUp(lab) => {
                Some(format!("use it, or remove it first with `tranship-lab down --name {lab}`"))
            }
            Self::NotUp(lab) => Some(format!("start it with `tranship-lab up --name {lab}`")),
            Self::NotRemoved { lab, .. } => Some(format!("run `tranship-lab down --name {lab}` again")),
            _ => None,
        }
    }
}

/// Result of everything in this crate.
pub type Result<T, E = LabError> = std::result::Result<T, E>;
