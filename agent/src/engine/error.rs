//! What can go wrong in an engine.

use std::path::{Path, PathBuf};

use tranship_proto::status::{Failure, Reason, Side};

use super::policy::Violation;
use crate::command::CommandError;
use crate::criu::Explanation;
use crate::hook::HookError;
use crate::runtime::{CgroupError, RuntimeError};

/// Why an engine did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such container.
    #[error("there is no container named {0}")]
    Unknown(String),
    /// The name is taken.
    #[error("a container named {0} exists already")]
    Exists(String),
    /// The container is not in a state for this.
    #[error("container {name} is {state}: it cannot be {attempt}")]
    State {
        /// The container.
        name: String,
        /// What it is.
        state: String,
        /// What was attempted, as a participle.
        attempt: &'static str,
    },
    /// The request cannot be met as it is.
    #[error("{what}: {why}")]
    Invalid {
        /// What is wrong.
        what: String,
        /// Why.
        why: String,
    },
    /// The configuration of the container holds something that cannot be moved or is not allowed.
    #[error("the configuration of container {name} is refused: {violation}")]
    Refused {
        /// The container.
        name: String,
        /// The field and what is wrong with it.
        violation: Box<Violation>,
    },
    /// A file or directory.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// The attempt, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A child process.
    #[error("cannot {what}: {source}")]
    Command {
        /// The attempt.
        what: String,
        /// What went wrong.
        #[source]
        source: CommandError,
    },
    /// The container's monitor could not set the container up.
    #[error("container {name} could not be started: {message}")]
    Monitor {
        /// The container.
        name: String,
        /// What the monitor or the runtime said.
        message: String,
    },
    /// CRIU could not restore.
    #[error("restore of container {name} failed: {}", crate::runtime::describe(.explanation.as_deref(), .errors))]
    Restore {
        /// The container.
        name: String,
        /// What is known about the cause.
        explanation: Option<Box<Explanation>>,
        /// First error lines of CRIU's log, or the runtime's words.
        errors: Vec<String>,
    },
    /// Something took too long.
    #[error("container {name} was not {wanted} within {limit:?}")]
    Deadline {
        /// The container.
        name: String,
        /// The state waited for.
        wanted: &'static str,
        /// The limit.
        limit: std::time::Duration,
    },
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The hold.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The operation failed, and so did cleaning up after it.
    #[error("{error}; cleaning up failed too: {cleanup}")]
    Cleanup {
        /// What failed first.
        #[source]
        error: Box<EngineError>,
        /// What failed while cleaning up.
        cleanup: Box<EngineError>,
    },
}

impl From<CgroupError> for EngineError {
    fn from(error: CgroupError) -> Self {
        EngineError::Runtime(error.into())
    }
}

impl EngineError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> EngineError {
        move |source| EngineError::Io { what, path: path.to_owned(), source }
    }

    pub(super) fn refused(name: impl std::fmt::Display) -> impl FnOnce(Violation) -> EngineError {
        move |violation| EngineError::Refused { name: name.to_string(), violation: Box::new(violation) }
    }

    pub(super) fn invalid(what: impl Into<String>, why: impl Into<String>) -> EngineError {
        EngineError::Invalid { what: what.into(), why: why.into() }
    }

    pub(super) fn with_cleanup(self, cleanup: Result<(), EngineError>) -> EngineError {
        match cleanup {
            Ok(()) => self,
            Err(cleanup) => EngineError::Cleanup { error: Box::new(self), cleanup: Box::new(cleanup) },
        }
    }

    /// What the operator can do about it, if known.
    pub fn hint(&self) -> Option<String> {
        match self {
            EngineError::Unknown(_) => Some("`tranship ps` lists the containers of a host".to_owned()),
            EngineError::Exists(_) => Some("choose another name, or remove that container first".to_owned()),
            EngineError::Refused { violation, .. } => violation.hint.clone(),
            EngineError::Restore { explanation, .. } => explanation.as_ref().map(|e| e.advice.clone()),
            EngineError::Runtime(e) => e.hint(),
            EngineError::Command { source, .. } if source.is_missing() => {
                Some("install the program, or name it in [runtime] of the configuration".to_owned())
            }
            EngineError::Cleanup { error, .. } => error.hint(),
            EngineError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Some("free space in the state directory".to_owned())
            }
            _ => None,
        }
    }

    /// The stable reason code for it.
    pub fn reason(&self) -> Reason {
        match self {
            EngineError::Unknown(_) => Reason::UnknownContainer,
            EngineError::Exists(_) => Reason::Refused,
            EngineError::State { .. } => Reason::Busy,
            EngineError::Invalid { .. } => Reason::BadRequest,
            EngineError::Refused { .. } => Reason::NotMigratable,
            EngineError::Deadline { .. } => Reason::Timeout,
            EngineError::Runtime(RuntimeError::Checkpoint { explanation: Some(_), .. }) => {
                Reason::NotMigratable
            }
            EngineError::Cleanup { error, .. } => error.reason(),
            _ => Reason::Failed,
        }
    }

    /// As shown to people.
    pub fn failure(&self, side: Side) -> Failure {
        let failure = Failure::new(self.reason(), side, crate::chain(self));
        match self.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
