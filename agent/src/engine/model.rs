//! What a container is, on disk and on the way to another host.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tranship_proto::ids::{ContainerName, Epoch};

/// Format number of `container.json`.
pub const FORMAT: u32 = 1;
/// Volumes of one container.
pub const MAX_VOLUMES: usize = 64;

/// Where a container's root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rootfs {
    /// A directory, copied.
    Template(PathBuf),
    /// An OCI bundle: `config.json` and the root file system it names, copied.
    Bundle(PathBuf),
}

/// A container to be made.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// Name; also its id.
    pub name: ContainerName,
    /// Root file system.
    pub rootfs: Rootfs,
    /// Network namespace, made by the caller: a file that can be entered.
    pub netns: PathBuf,
    /// What the caller wants to keep about the network; opaque here.
    pub network: serde_json::Value,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// `NAME=value`, added to the defaults.
    pub env: Vec<String>,
    /// Working directory; `/` or the bundle's when absent.
    pub cwd: Option<String>,
    /// `uid[:gid]`, numbers.
    pub user: Option<String>,
    /// The container's name when absent.
    pub hostname: Option<String>,
    /// Command line; may be empty with a bundle.
    pub args: Vec<String>,
}

/// Where a volume's files are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum VolumeSource {
    /// In the container's own directory, under this name. Always travels.
    Managed(String),
    /// At a host path below one of the configured roots. Travels unless read-only.
    Path(PathBuf),
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Where its files are.
    pub source: VolumeSource,
    /// Where it is mounted, absolute.
    pub destination: String,
    /// Mounted read-only.
    pub read_only: bool,
}

impl Volume {
    /// Whether its files travel with the container.
    pub fn travels(&self) -> bool {
        matches!(self.source, VolumeSource::Managed(_)) || !self.read_only
    }
}

/// `container.json`: what the engine knows of a container beyond its OCI configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// [`FORMAT`].
    pub format: u32,
    /// Name; also its id.
    pub name: ContainerName,
    /// Kind of engine: `bare`.
    pub engine: String,
    /// Milliseconds since 1970.
    pub created_unix_ms: i64,
    /// Ownership epoch; 1 where it was made.
    pub epoch: Epoch,
    /// Where its root file system was copied from, for people.
    pub image: String,
    /// Command line.
    pub command: Vec<String>,
    /// The caller's, opaque here.
    pub network: serde_json::Value,
    /// Volumes, in order; those that travel get tree indexes 1, 2, ...
    pub volumes: Vec<Volume>,
}

impl Container {
    /// Tree index of each volume; nothing for those that do not travel.
    pub fn volume_indexes(&self) -> Vec<Option<u16>> {
        let mut next = 0u16;
        let number = |v: &Volume| {
            v.travels().then(|| {
                next += 1;
                next
            })
        };
        self.volumes.iter().map(number).collect()
    }
}

/// A directory tree that belongs to a container and travels with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// 0 is the root file system.
    pub index: u16,
    /// Where it is on this host.
    pub host_path: PathBuf,
    /// Where it is in the container.
    pub container_path: String,
    /// The container cannot write to it.
    pub read_only: bool,
}

/// A container on its way: what one engine tells another. From a peer it is hostile until
/// [`super::Engine::prepare_restore`] has accepted it. Kept as JSON, at most 1 MiB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MovedContainer {
    /// `container.json`.
    pub container: Container,
    /// `config.json` of the bundle.
    pub config: serde_json::Value,
}

impl MovedContainer {
    /// Longest encoding, in bytes.
    pub const MAX_BYTES: usize = 1 << 20;

    /// As JSON.
    ///
    /// # Errors
    /// When it is longer than [`Self::MAX_BYTES`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, super::EngineError> {
        let bytes = serde_json::to_vec(self)
            .map_err(|e| super::EngineError::invalid("the container's description", e.to_string()))?;
        if bytes.len() > Self::MAX_BYTES {
            return Err(super::EngineError::invalid(
                "the container's description",
                format!("{} bytes are more than {}", bytes.len(), Self::MAX_BYTES),
            ));
        }
        Ok(bytes)
    }

    /// From JSON of a peer.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, super::EngineError> {
        if bytes.len() > Self::MAX_BYTES {
            return Err(super::EngineError::invalid(
                "the container's description",
                format!("{} bytes are more than {}", bytes.len(), Self::MAX_BYTES),
            ));
        }
        serde_json::from_slice(bytes)
            .map_err(|e| super::EngineError::invalid("the container's description", e.to_string()))
    }
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// Running.
    Running,
    /// Stopped by the freezer: a migration has it.
    Frozen,
    /// Its program has ended.
    Stopped,
    /// Being made, or left half-made by a crash.
    Creating,
    /// Arriving by a migration and not ours yet.
    Arriving,
}

impl std::fmt::Display for ContainerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ContainerState::Running => "running",
            ContainerState::Frozen => "frozen",
            ContainerState::Stopped => "stopped",
            ContainerState::Creating => "half-made",
            ContainerState::Arriving => "arriving",
        })
    }
}

/// A container as a list shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerSummary {
    /// Name; also its id.
    pub name: ContainerName,
    /// What it does.
    pub state: ContainerState,
    /// Host pid of its first process.
    pub pid: Option<i32>,
    /// Exit status of a stopped one, as conmon recorded it.
    pub exit_code: Option<i32>,
    /// Where its root file system came from.
    pub image: String,
    /// Command line.
    pub command: Vec<String>,
    /// Milliseconds since 1970.
    pub created_unix_ms: i64,
    /// Ownership epoch.
    pub epoch: Epoch,
    /// The migration it arrives by.
    pub migration: Option<tranship_proto::ids::MigrationId>,
}
