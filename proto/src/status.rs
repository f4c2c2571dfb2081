//! What is seen of a migration from outside: phases, progress, results.
//!
//! These types are both wire vocabulary (bincode, positional) and the command's JSON output, so
//! fields carry their unit in the name and enums have no data in their JSON tags.

use crate::bounded;
use crate::handoff::MAX_WORDS;
use crate::ids::{ContainerName, Epoch, HostName, MigrationId};
use serde::{Deserialize, Serialize};

/// The phases of a migration in their order. `ARCHITECTURE.md` has the hand-over they belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Scan the container, check and reserve the destination. Nothing is touched.
    Reserve,
    /// Copy files while the container runs.
    Stage,
    /// Fence the addresses and freeze the cgroup.
    Freeze,
    /// Dump the frozen container, stream memory and the last file differences.
    Copy,
    /// Restore at the destination, held before anything runs.
    Prepare,
    /// Flush the record that gives the container away. The point of commit.
    Commit,
    /// The destination takes over and resumes.
    Grant,
    /// Remove what is left at the source.
    Retire,
}

impl Phase {
    /// All phases in order.
    pub const ALL: [Phase; 8] = [
        Phase::Reserve,
        Phase::Stage,
        Phase::Freeze,
        Phase::Copy,
        Phase::Prepare,
        Phase::Commit,
        Phase::Grant,
        Phase::Retire,
    ];

    /// The phase's name as printed and as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Reserve => "reserve",
            Phase::Stage => "stage",
            Phase::Freeze => "freeze",
            Phase::Copy => "copy",
            Phase::Prepare => "prepare",
            Phase::Commit => "commit",
            Phase::Grant => "grant",
            Phase::Retire => "retire",
        }
    }
}

/// Whether a migration is under way or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progressing {
    /// Before the point of commit; can be cancelled.
    Running,
    /// After the point of commit; only forward.
    Committed,
    /// Committed, and the destination has not confirmed: nothing runs until the agents can talk.
    InDoubt,
    /// Done; the container runs at the destination.
    Done,
    /// Failed; the container runs at the source.
    Failed,
    /// Cancelled on request; the container runs at the source.
    Cancelled,
}

/// Stable reason codes, seen in JSON and mapped to exit codes by the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The request does not make sense (destination equals source, bad name).
    BadRequest,
    /// No such container on that host.
    UnknownContainer,
    /// No such host in the inventory.
    UnknownHost,
    /// No such migration.
    UnknownMigration,
    /// The host does not answer.
    Unreachable,
    /// The certificate does not give the right to do this, or is not accepted.
    NotAuthorized,
    /// No protocol version is shared.
    Version,
    /// The container is in another migration, stopped, or otherwise busy.
    Busy,
    /// The destination refuses: name or address taken, network missing, no room, CRIU unfit.
    Refused,
    /// The container holds something that cannot be migrated.
    NotMigratable,
    /// Cancelled on request.
    Cancelled,
    /// Too late to cancel: already committed.
    TooLate,
    /// A step failed; the container runs at the source.
    Failed,
    /// A deadline passed; the container runs at the source.
    Timeout,
    /// Committed, and the destination has not confirmed.
    InDoubt,
    /// A bug or a damaged journal.
    Internal,
    /// The container's program has ended meanwhile: it runs nowhere, and is where it was.
    Ended,
}

/// Which side a failure happened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The command itself.
    Controller,
    /// The agent that had the container at first.
    Source,
    /// The agent that receives it.
    Destination,
}

/// A failure as shown: what was attempted on what, why it failed, what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Stable code.
    pub reason: Reason,
    /// Where it happened.
    pub side: Side,
    /// The phase, when inside a migration.
    pub phase: Option<Phase>,
    /// What was attempted, on what, why it failed. At most 4 KiB.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whether the same request may succeed later without a change.
    pub retryable: bool,
}

impl Failure {
    /// A failure with a reason, a side and a message; not retryable, no hint.
    pub fn new(reason: Reason, side: Side, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if message.len() > 4096 {
            let cut = (0..=4096).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(cut);
        }
        Self { reason, side, phase: None, message, hint: None, retryable: false }
    }

    /// With a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// In a phase, unless one is named already.
    #[must_use]
    pub fn phase(mut self, phase: Phase) -> Self {
        self.phase.get_or_insert(phase);
        self
    }

    /// Marked as worth a retry.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }
}

/// One event of a migration, numbered without gaps from 1 by the source agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The migration.
    pub migration: MigrationId,
    /// Number of the event.
    pub seq: u64,
    /// Wall clock of the source host, milliseconds since 1970.
    pub at_unix_ms: i64,
    /// What happened.
    pub body: EventBody,
}

/// What an [`Event`] says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventBody {
    /// A phase began.
    PhaseStarted {
        /// Which.
        phase: Phase,
    },
    /// Bytes moved in a phase, at most a few times a second.
    Progress {
        /// Which.
        phase: Phase,
        /// Bytes read from the container so far.
        done_bytes: u64,
        /// Bytes expected, when known.
        total_bytes: Option<u64>,
        /// Rate over the last interval.
        bytes_per_second: u64,
    },
    /// A phase ended well.
    PhaseDone {
        /// Which.
        phase: Phase,
        /// How long it took.
        micros: u64,
        /// What it did, in a few words.
        note: String,
    },
    /// Something worth a line.
    Notice {
        /// The line.
        text: String,
    },
    /// The end of the stream, committed and done.
    Done {
        /// Figures.
        summary: Summary,
    },
    /// The end of the stream: failed or cancelled; the container runs at the source unless
    /// `failure.reason` is `in_doubt`.
    Failed {
        /// Why.
        failure: Failure,
    },
}

impl EventBody {
    /// Whether no event follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Failed { .. })
    }
}

/// Figures of a finished migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct Summary {
    /// Duration of each phase that ran, in order.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_WORDS>")]
    pub phases_us: Vec<(String, u64)>,
    /// From the request to the end of the retire phase.
    pub total_us: u64,
    /// Bytes read at the source: files and memory.
    pub bytes_read: u64,
    /// Bytes put on the wire for them, after compression.
    pub bytes_sent: u64,
    /// Files among `bytes_read`.
    pub file_bytes: u64,
    /// Memory images among `bytes_read`.
    pub memory_bytes: u64,
    /// From the freeze at the source to the resume at the destination, by each host's own
    /// monotonic clock plus half a round trip for the grant.
    pub frozen_us: u64,
    /// From the last packet in at the source to the first packet out at the destination; absent
    /// when no packet passed.
    pub blackout_us: Option<u64>,
    /// What `frozen_us` was predicted to be right before the freeze; in fast mode.
    pub predicted_us: Option<u64>,
}

/// An operator's decision about a migration that was in doubt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// The side that the container runs at from then on; the other one was declared dead.
    pub run_at: Side,
    /// Who: `operator NAME` by the certificate, or `root` over the agent's socket.
    pub by: String,
    /// When, milliseconds since 1970 by the deciding host's clock.
    pub at_unix_ms: i64,
}

/// One row of `status` and `history`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationStatus {
    /// The migration.
    pub migration: MigrationId,
    /// The container.
    pub container: ContainerName,
    /// From.
    pub source: HostName,
    /// To.
    pub destination: HostName,
    /// Which side the answering agent is.
    pub side: Side,
    /// Epoch that the destination has after commit.
    pub epoch: Epoch,
    /// Under way or how it ended.
    pub state: Progressing,
    /// Last phase reached.
    pub phase: Phase,
    /// When it was accepted, milliseconds since 1970.
    pub started_unix_ms: i64,
    /// When the state last changed, milliseconds since 1970: in doubt, since when.
    pub updated_unix_ms: i64,
    /// Why, when failed, cancelled or in doubt; its hint says what would settle it.
    pub failure: Option<Failure>,
    /// Figures, when done.
    pub summary: Option<Summary>,
    /// The operator's decision, when there was one on this side.
    pub resolution: Option<Resolution>,
}

/// A container as `ps` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRow {
    /// Name and id.
    pub name: ContainerName,
    /// Host it is on.
    pub host: HostName,
    /// `running`, `frozen`, `stopped`, `leaving`, `arriving`, `in doubt`.
    pub state: String,
    /// Pid of its first process on that host.
    pub pid: Option<i32>,
    /// Addresses, `ip/prefix`.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_WORDS>")]
    pub addresses: Vec<String>,
    /// Command line.
    pub command: String,
    /// Milliseconds since 1970.
    pub created_unix_ms: i64,
    /// Ownership epoch.
    pub epoch: Epoch,
}

/// A host as `hosts` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRow {
    /// Name.
    pub name: HostName,
    /// `address:port` of the inventory.
    pub address: String,
    /// Round trip of the question, when it answered.
    pub rtt_us: Option<u64>,
    /// What it said.
    pub info: Option<HostInfo>,
    /// Why it did not answer.
    pub problem: Option<String>,
}

/// What an agent says of its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Name.
    pub host: HostName,
    /// Version of the agent.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// CPU architecture.
    pub arch: String,
    /// CRIU's version.
    pub criu: String,
    /// runc's version.
    pub runc: String,
    /// Fleet networks that the host can attach to.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_WORDS>")]
    pub networks: Vec<String>,
    /// Containers that it owns.
    pub containers: u32,
    /// Migrations under way.
    pub migrations: u32,
    /// Memory available, in MiB.
    pub memory_available_mib: u64,
    /// Space available in the state directory, in MiB.
    pub disk_available_mib: u64,
    /// What makes the host unfit, if anything.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_WORDS>")]
    pub problems: Vec<String>,
}
