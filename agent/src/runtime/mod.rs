//! The OCI runtime: checkpoint, restore, freeze, state and deletion of one container.
//!
//! Does not know who asks, nor who owns the container above the runtime (that is `engine`). Only dumping
//! and dying live here; starting and restoring go through the container's monitor, see `engine::conmon`.

mod cgroup;
mod runc;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use cgroup::{Cgroup, CgroupError, Events, StuckProcess};
pub use runc::{Runc, RuncConfig};

use crate::command::CommandError;
use crate::criu::{DumpStats, Explanation};

/// Which runtime this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeInfo {
    /// `runc`.
    pub name: String,
    /// Its version, as it prints it.
    pub version: String,
    /// Where the program is.
    pub path: PathBuf,
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeStatus {
    /// Set up; its program has not been started.
    Created,
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// Its program has ended.
    Stopped,
}

/// State of a container as the runtime sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuntimeState {
    /// What it does.
    pub status: RuntimeStatus,
    /// Host process id of its init; 0 when stopped.
    pub pid: i32,
}

/// Where a dump leaves the contents of memory.
#[derive(Debug)]
pub enum Pages {
    /// In files beside the other images.
    Files,
    /// Sent over this socket, named in the configuration file, as to a page server. A Unix socket: on a
    /// TCP connection CRIU's last word waits for 200 ms, since it stays corked.
    Sent(OwnedFd),
    /// Private memory stays where it is: whoever wants it reads the frozen processes. CRIU would serve it
    /// over this socket; with its other end closed it ends as soon as the images are there.
    Left(OwnedFd),
}

/// What to dump and where to.
#[derive(Debug)]
pub struct CheckpointRequest {
    /// The container, frozen by [`Runtime::freeze`] before CRIU begins.
    pub id: String,
    /// Where images go: memory-backed. Created when missing.
    pub image_dir: PathBuf,
    /// Where CRIU's log and statistics go. Created when missing.
    pub work_dir: PathBuf,
    /// CRIU configuration file, from [`crate::criu::CriuConfig`]; its script may make CRIU wait.
    pub criu_config: PathBuf,
    /// `PATH` of the runtime, where it is not the usual one.
    pub search_path: Option<OsString>,
    /// Keep established TCP connections.
    pub tcp_established: bool,
    /// Where the contents of memory go.
    pub pages: Pages,
}

/// A dump that was made.
#[derive(Clone, Debug)]
pub struct CheckpointReport {
    /// CRIU's log.
    pub log_path: PathBuf,
    /// CRIU's statistics; absent when they could not be read.
    pub stats: Option<DumpStats>,
    /// From start to end of the runtime's command.
    pub elapsed: Duration,
}

/// Why the runtime did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A command of the runtime failed.
    #[error("{what} of container {id}: {source}")]
    Command {
        /// The attempt, as a noun.
        what: &'static str,
        /// The container.
        id: String,
        /// What went wrong.
        #[source]
        source: CommandError,
    },
    /// CRIU could not dump the container.
    #[error("checkpoint of container {id} failed: {}", describe(.explanation.as_deref(), .errors))]
    Checkpoint {
        /// The container.
        id: String,
        /// What is known about the cause.
        explanation: Option<Box<Explanation>>,
        /// First error lines of CRIU's log.
        errors: Vec<String>,
        /// The log, if there is one.
        log_path: PathBuf,
    },
    /// The dump neither ended nor failed in time. CRIU was left alone and may still hold the container.
    #[error(
        "checkpoint of container {id} is not finished after {limit:?}; criu was left running, since killing it would damage the container"
    )]
    CheckpointStuck {
        /// The container.
        id: String,
        /// The limit.
        limit: Duration,
    },
    /// The cgroup of the container.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The runtime answered something else than its documentation says.
    #[error("unexpected answer of {program} to {what}: {text}")]
    Answer {
        /// The program.
        program: String,
        /// What was asked.
        what: &'static str,
        /// Beginning of the answer.
        text: String,
    },
    /// A directory or file.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// The attempt, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl RuntimeError {
    /// What the operator can do about it, if known.
    pub fn hint(&self) -> Option<String> {
        match self {
            RuntimeError::Checkpoint { explanation, .. } => explanation.as_ref().map(|e| e.advice.clone()),
            RuntimeError::Command { source, .. } if source.is_missing() => {
                Some("install runc 1.1 or newer, or name it in [runtime] of the configuration".to_owned())
            }
            RuntimeError::Cgroup(CgroupError::NotFrozen { .. }) => Some(
                "a process waits in the kernel (state D), often for storage; try again when its I/O is done"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

pub(crate) fn describe(explanation: Option<&Explanation>, errors: &[String]) -> String {
    match (explanation, errors.first()) {
        (Some(e), _) => format!("{} ({})", e.cause, e.line),
        (None, Some(line)) => line.clone(),
        (None, None) => "criu left no error in its log".to_owned(),
    }
}

/// An OCI runtime on this host. All operations may be repeated.
pub trait Runtime: Send + Sync {
    /// Name, version and place of the runtime.
    fn version(&self) -> BoxFuture<'_, Result<RuntimeInfo, RuntimeError>>;

    /// State of a container, or nothing when the runtime does not know it.
    fn state<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<RuntimeState>, RuntimeError>>;

    /// Stops all processes of a container by the kernel's freezer, which holds whatever happens to the
    /// agent. On failure the freezer is left on.
    ///
    /// Cancel safety: a dropped future leaves the freezer on; call [`Runtime::thaw`].
    fn freeze<'a>(&'a self, id: &'a str, limit: Duration) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Undoes [`Runtime::freeze`].
    fn thaw<'a>(&'a self, id: &'a str, limit: Duration) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Dumps a frozen container, which stays frozen, complete and resumable. Takes as long as CRIU does and
    /// waits: callers set a deadline.
    ///
    /// Cancel safety: a dropped future does not stop the dump; see [`crate::command::OnAbandon::Leave`].
    fn checkpoint<'a>(
        &'a self,
        request: CheckpointRequest,
    ) -> BoxFuture<'a, Result<CheckpointReport, RuntimeError>>;

    /// Kills all processes of a container without letting a frozen one run again, and waits until none is left.
    fn kill_frozen<'a>(&'a self, id: &'a str, limit: Duration) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Removes a container from the runtime, killing what is left of it. Nothing to do when it is unknown.
    fn delete<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Starts a container that was created.
    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// The cgroup of a container.
    fn cgroup(&self, id: &str) -> Cgroup;

    /// Program and arguments with which the monitor of a container calls the runtime.
    fn invocation(&self) -> (PathBuf, Vec<String>);
}
