//! Who owns a container above the runtime: how it is made, found, taken over and given up.
//!
//! An engine does not know CRIU's workings, the network, or how files travel. It says which directory
//! trees make up a container, describes it for another host, and judges such a description from a peer.

mod bare;
mod config;
mod conmon;
mod create;
mod error;
mod lifecycle;
mod logs;
mod model;
mod mounts;
mod moved;
mod paths;
mod policy;
mod restore;

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tranship_proto::ids::{ContainerName, Epoch, MigrationId};

use crate::hook::{DumpHold, DumpMemory};

pub use bare::{Bare, BareConfig};
pub use config::{ConfigInput, default_config};
pub use error::EngineError;
pub use logs::LogLine;
pub use model::{
    Container, ContainerState, ContainerSummary, MovedContainer, Rootfs, RunSpec, Tree, Volume, VolumeSource,
};
pub use moved::{Arrival, ArrivingTree};
pub use policy::{Violation, check_config};
pub use restore::{RestoreHandle, RestoreRequest};

/// Result of an engine's operations.
pub type Result<T> = std::result::Result<T, EngineError>;

/// An engine on this host. Operations are idempotent where it says so; none may run twice at the same
/// time for one container, which the caller sees to.
pub trait Engine: Send + Sync {
    /// Makes a container and starts it. On failure nothing is left.
    fn create_and_start(&self, spec: RunSpec) -> BoxFuture<'_, Result<Container>>;

    /// All containers, half-made ones included.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ContainerSummary>>>;

    /// One container.
    fn inspect<'a>(&'a self, name: &'a ContainerName)
    -> BoxFuture<'a, Result<(Container, ContainerSummary)>>;

    /// Output of a container: the last `tail` lines, then what comes, if asked for. The stream ends when
    /// the receiver is dropped, or at the end of the log when not following.
    fn logs<'a>(
        &'a self,
        name: &'a ContainerName,
        follow: bool,
        tail: Option<usize>,
    ) -> BoxFuture<'a, Result<mpsc::Receiver<LogLine>>>;

    /// Ends a container: SIGTERM, then SIGKILL after `limit`. Idempotent. Refused for a frozen one.
    fn stop<'a>(&'a self, name: &'a ContainerName, limit: Duration) -> BoxFuture<'a, Result<()>>;

    /// Removes a container and its managed volumes; with `force` also one that runs. Volumes at host
    /// paths are left alone.
    fn remove<'a>(&'a self, name: &'a ContainerName, force: bool) -> BoxFuture<'a, Result<()>>;

    /// Host pid of the first process and all processes of a running container.
    fn processes<'a>(&'a self, name: &'a ContainerName) -> BoxFuture<'a, Result<(i32, Vec<i32>)>>;

    /// The directory trees that travel: the root file system (index 0), then volumes.
    fn trees(&self, container: &Container) -> Vec<Tree>;

    /// Describes a container for another host, or says what makes it immovable.
    fn describe<'a>(&'a self, name: &'a ContainerName) -> BoxFuture<'a, Result<MovedContainer>>;

    /// Sets the ownership epoch.
    fn set_epoch<'a>(&'a self, name: &'a ContainerName, epoch: Epoch) -> BoxFuture<'a, Result<()>>;

    /// Judges a description from a peer. Touches nothing.
    fn prepare_restore<'a>(
        &'a self,
        migration: MigrationId,
        name: &'a ContainerName,
        epoch: Epoch,
        moved: &'a MovedContainer,
    ) -> BoxFuture<'a, Result<Arrival>>;

    /// Makes the directories that the trees are received in ([`ArrivingTree::receive`]) and writes the
    /// container's configuration. From here to [`Engine::settle`] the container is marked as half-made
    /// and its name is taken. Idempotent.
    fn make_room<'a>(&'a self, arrival: &'a Arrival) -> BoxFuture<'a, Result<()>>;

    /// Moves volumes that were received beside their place to it ([`ArrivingTree::home`]); after this a
    /// restore can start. Some microseconds. Idempotent.
    fn adopt<'a>(&'a self, arrival: &'a Arrival) -> BoxFuture<'a, Result<()>>;

    /// Starts a restore that will be held; see [`RestoreHandle`].
    fn restore<'a>(
        &'a self,
        arrival: &'a Arrival,
        request: &'a RestoreRequest,
    ) -> BoxFuture<'a, Result<RestoreHandle>>;

    /// Takes up a restore that an earlier agent started and that may still be held.
    fn resume_hold<'a>(&'a self, arrival: &'a Arrival) -> BoxFuture<'a, Result<RestoreHandle>>;

    /// The arrival of a migration that was begun here, as [`Engine::make_room`] recorded it.
    fn find_arrival(&self, migration: MigrationId) -> BoxFuture<'_, Result<Option<Arrival>>>;

    /// The container is ours and runs: removes the mark and what only the restore needed. Idempotent.
    fn settle<'a>(&'a self, arrival: &'a Arrival) -> BoxFuture<'a, Result<()>>;

    /// Removes everything of an arrival that was not settled, held processes included. Idempotent, and
    /// also right when nothing was made. The network namespace and images are the caller's.
    fn discard<'a>(&'a self, migration: MigrationId, name: &'a ContainerName) -> BoxFuture<'a, Result<()>>;

    /// Whether a container is here again that was given up under epoch `released`: it arrives, or has that
    /// epoch or a later one. What belongs to its name is not the old copy's then.
    fn came_back<'a>(&'a self, name: &'a ContainerName, released: Epoch) -> BoxFuture<'a, Result<bool>>;

    /// Gives up a container that now runs elsewhere under epoch `released`: kills the frozen copy without
    /// letting it run, removes it with all trees that travelled. Idempotent: does nothing when the
    /// container is gone, or has come back ([`Self::came_back`]). The network namespace is the caller's.
    fn retire<'a>(&'a self, name: &'a ContainerName, released: Epoch) -> BoxFuture<'a, Result<()>>;

    /// CRIU configuration for a dump of this migration that waits before it begins. Must be called on a
    /// tokio runtime.
    fn hold_dump(&self, migration: MigrationId, memory: DumpMemory<'_>) -> Result<DumpHold>;

    /// Removes script and configuration files of a migration. Idempotent.
    fn forget_migration(&self, migration: MigrationId) -> Result<()>;
}
