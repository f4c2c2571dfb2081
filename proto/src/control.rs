//! Messages between a controller and an agent.
//!
//! One request per stream (a QUIC bidirectional stream, or a Unix socket connection). The answer
//! is one message, or a stream of [`Reply::Event`] / [`Reply::Log`] ended by [`Reply::End`], or
//! [`Reply::Failed`] at any point. Closing the stream cancels nothing: a migration belongs to the
//! agents once it is accepted.

use crate::bounded;
use crate::error::WireError;
use crate::handoff::MemoryMode;
use crate::ids::{ContainerName, HostName, MigrationId};
use crate::status::{ContainerRow, Event, Failure, HostInfo, HostRow, MigrationStatus, Side};
use serde::{Deserialize, Serialize};

/// Strings in a list (arguments, environment, addresses): most of them.
pub const MAX_LIST: usize = 1024;
/// Versions in a greeting: most of them.
pub const MAX_VERSIONS: usize = 16;
/// Rows in one answer: most of them.
pub const MAX_ROWS: usize = 16 << 10;
/// Bytes in one string of a request.
pub const MAX_STRING: usize = 32 << 10;

/// First message on a connection, both ways round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions spoken, best first; at most [`MAX_VERSIONS`].
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_VERSIONS>")]
    pub versions: Vec<u16>,
    /// Software and version, for the log.
    pub software: String,
}

/// Answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// The version that everything after this uses.
    Version {
        /// Chosen version.
        version: u16,
        /// Software and version, for the log.
        software: String,
        /// Name of the answering host.
        host: HostName,
    },
    /// Nothing in common.
    NoSharedVersion {
        /// What the answering side speaks.
        #[serde(deserialize_with = "bounded::list::<_, _, MAX_VERSIONS>")]
        versions: Vec<u16>,
        /// Software and version.
        software: String,
    },
}

/// A network interface asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSpec {
    /// Fleet network.
    pub network: String,
    /// Addresses as `ip/prefix`.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_LIST>")]
    pub addresses: Vec<String>,
    /// MAC address `aa:bb:..`; made up when absent.
    pub mac: Option<String>,
    /// Default gateways (at most one per family).
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_LIST>")]
    pub gateways: Vec<String>,
}

/// A volume asked for: `SRC:DST[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// An absolute host path, or the name of a managed volume.
    pub source: String,
    /// Absolute path inside the container.
    pub destination: String,
    /// Not carried: must exist on every host.
    pub read_only: bool,
}

/// Where the root file system comes from. It is copied; the original is never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootfsSpec {
    /// A directory with a root file system.
    Directory(String),
    /// An OCI bundle: `config.json` and `rootfs`.
    Bundle(String),
}

/// `tranship run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRequest {
    /// Name and id.
    pub name: ContainerName,
    /// Root file system.
    pub rootfs: RootfsSpec,
    /// Interfaces, `eth0` first; at most 16.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_LIST>")]
    pub links: Vec<LinkSpec>,
    /// Volumes; at most 64.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_LIST>")]
    pub volumes: Vec<VolumeSpec>,
    /// `NAME=value`.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_LIST>")]
    pub env: Vec<String>,
    /// Command line; empty only with a bundle.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_LIST>")]
    pub args: Vec<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// `uid[:gid]`.
    pub user: Option<String>,
    /// Host name inside; the container's name when absent.
    pub hostname: Option<String>,
}

impl RunRequest {
    /// Bounds that do not depend on a host.
    pub fn check(&self) -> Result<(), WireError> {
        let lists = [self.env.len(), self.args.len(), self.links.len() * 64, self.volumes.len() * 16];
        if lists.iter().any(|n| *n > MAX_LIST) {
            return Err(WireError::invalid("run request", "too many arguments, variables, links or volumes"));
        }
        let nul = |s: &String| s.contains('\0') || s.len() > MAX_STRING;
        if self.env.iter().chain(&self.args).chain(&self.cwd).chain(&self.hostname).any(nul) {
            return Err(WireError::invalid("run request", "a string is too long or holds a NUL byte"));
        }
        if let Some(v) = self.env.iter().find(|v| v.find('=').is_none_or(|i| i == 0)) {
            return Err(WireError::invalid("environment", format!("{v:?} is not NAME=value")));
        }
        Ok(())
    }
}

/// Least `--bandwidth`, in bytes per second: with less, the hand-over's phases would not end in time.
pub const MIN_BANDWIDTH: u64 = 64 << 10;

/// How an operator wants a migration done; the default leaves everything to the agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MigrateOptions {
    /// Most bytes per second that all bulk streams of the migration send together.
    pub bandwidth: Option<u64>,
    /// How memory is to travel.
    pub mode: MemoryMode,
    /// Longest blackout that is wanted, as predicted before the freeze; in fast mode.
    pub max_blackout_ms: Option<u32>,
    /// How long the container may be copied while it runs, until it is frozen or left alone.
    pub timeout_s: Option<u32>,
}

impl MigrateOptions {
    /// Bounds that do not depend on a host.
    ///
    /// # Errors
    /// [`WireError::Invalid`] for the first value that cannot be used.
    pub fn check(&self) -> Result<(), WireError> {
        match self.bandwidth {
            Some(rate) if rate < MIN_BANDWIDTH => Err(WireError::invalid(
                "bandwidth",
                format!("{rate} bytes per second; at least {MIN_BANDWIDTH}"),
            )),
            _ if self.max_blackout_ms.is_some() && self.mode == MemoryMode::Plain => Err(WireError::invalid(
                "blackout wanted",
                "cannot be kept in plain mode, where it grows with the memory",
            )),
            _ => Ok(()),
        }
    }
}

/// `tranship migrate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateRequest {
    /// The container on the answering host.
    pub container: ContainerName,
    /// Destination.
    pub to: HostName,
    /// Only check, and answer what would be done.
    pub dry_run: bool,
    /// How.
    pub options: MigrateOptions,
}

/// What a controller asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What is this host?
    HostInfo,
    /// The inventory, each host asked.
    Hosts,
    /// Make and start a container.
    Run(RunRequest),
    /// Containers of this host.
    List,
    /// Everything known of one container, as JSON.
    Inspect {
        /// Which.
        name: ContainerName,
    },
    /// Its output.
    Logs {
        /// Which.
        name: ContainerName,
        /// Last bytes to start with (at most 16 MiB); all when absent.
        tail_bytes: Option<u64>,
        /// Go on until the container ends.
        follow: bool,
    },
    /// Stop it.
    Stop {
        /// Which.
        name: ContainerName,
        /// From SIGTERM to SIGKILL.
        timeout_ms: u64,
    },
    /// Remove it.
    Remove {
        /// Which.
        name: ContainerName,
        /// Even when it runs.
        force: bool,
    },
    /// Move it. Answered by [`Reply::Accepted`] and then events, or by [`Reply::Plan`].
    Migrate(MigrateRequest),
    /// Events of a migration from number `from_seq` on.
    Watch {
        /// Which.
        migration: MigrationId,
        /// First event wanted, from 1.
        from_seq: u64,
    },
    /// Cancel before commit.
    Cancel {
        /// Which.
        migration: MigrationId,
    },
    /// Migrations under way, or the one that `id` names (whole id, or its short form).
    Status {
        /// Which; at most 64 bytes.
        id: Option<String>,
    },
    /// Migrations ended, newest first.
    History {
        /// At most this many; at most 1000.
        limit: u32,
    },
    /// Settle a migration that is in doubt: the other side's host is dead. Asked of the side that is
    /// left; refused while the other one answers.
    Resolve {
        /// Which.
        migration: MigrationId,
        /// Where the container is to run.
        run_at: Side,
    },
    /// Replaces the fault points of the answering agent; refused unless its configuration allows faults.
    Faults {
        /// `POINT=ACTION`, as in the configuration; at most 64. None: no faults any more.
        #[serde(deserialize_with = "bounded::list::<_, _, MAX_LIST>")]
        points: Vec<String>,
        /// After how long they are forgotten, should nobody take them back; at most an hour.
        seconds: u32,
    },
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To `HostInfo`.
    HostInfo(HostInfo),
    /// To `Hosts`.
    Hosts(#[serde(deserialize_with = "bounded::list::<_, _, MAX_ROWS>")] Vec<HostRow>),
    /// To `List`.
    Containers(#[serde(deserialize_with = "bounded::list::<_, _, MAX_ROWS>")] Vec<ContainerRow>),
    /// A JSON document (inspect).
    Document(String),
    /// Log bytes.
    Log(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The migration is accepted; events follow.
    Accepted {
        /// Its id.
        migration: MigrationId,
    },
    /// To a dry run: what would be done, a line each.
    Plan(#[serde(deserialize_with = "bounded::list::<_, _, MAX_LIST>")] Vec<String>),
    /// An event.
    Event(Event),
    /// To `Status` and `History`.
    Migrations(#[serde(deserialize_with = "bounded::list::<_, _, MAX_ROWS>")] Vec<MigrationStatus>),
    /// Done, with a few words.
    Done(String),
    /// No more follows.
    End,
    /// The request failed.
    Failed(Failure),
    /// To `Faults`: the points that were replaced and had not been met.
    Unmet(#[serde(deserialize_with = "bounded::list::<_, _, MAX_LIST>")] Vec<String>),
}
