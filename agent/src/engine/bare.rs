//! The engine for a host without any: an OCI runtime, conmon, and directories of our own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tranship_proto::ids::{ContainerName, Epoch, MigrationId};

use super::conmon::Conmon;
use super::error::EngineError;
use super::logs::LogLine;
use super::model::{Container, ContainerSummary, MovedContainer, RunSpec, Tree};
use super::moved::{self, Arrival};
use super::paths::{Layout, make_dir, read_json, write_json};
use super::restore::{RestoreHandle, RestoreRequest};
use super::{Engine, Result, create, lifecycle, logs, policy, restore};
use crate::hook::{DumpHold, DumpMemory, HookFiles, HookServer, own_program};
use crate::runtime::Runtime;

/// Where things are and what is allowed.
#[derive(Clone, Debug)]
pub struct BareConfig {
    /// Durable state.
    pub state_dir: PathBuf,
    /// Volatile state.
    pub run_dir: PathBuf,
    /// Volumes at host paths must be below one of these.
    pub volume_roots: Vec<PathBuf>,
    /// conmon, by name or path.
    pub conmon: String,
    /// Directory of the cgroup tree that monitors live in, e.g. `/sys/fs/cgroup/tranship-conmon`.
    pub monitor_cgroup: PathBuf,
    /// The agent's own program, which held restores call; found by itself when absent.
    pub hook_program: Option<PathBuf>,
}

/// The engine `bare`.
#[derive(Clone)]
pub struct Bare {
    pub(super) layout: Layout,
    pub(super) roots: Vec<PathBuf>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) conmon: Conmon,
    pub(super) hooks: Arc<HookServer>,
    pub(super) hook_program: PathBuf,
}

impl Bare {
    /// What there is of containers below a `state_dir`, whole or arriving, in words; for who has to
    /// know before an engine may be opened.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn on_disk(state_dir: &Path) -> std::io::Result<Vec<String>> {
        let mut found = Vec::new();
        for (place, what) in [("containers", "container"), ("incoming", "arriving container")] {
            match std::fs::read_dir(state_dir.join(place)) {
                Ok(entries) => {
                    for entry in entries {
                        found.push(format!("{what} {}", entry?.file_name().to_string_lossy()));
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// Opens the engine, making its directories and finishing removals that a crash cut short.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn open(config: BareConfig, runtime: Arc<dyn Runtime>, hooks: Arc<HookServer>) -> Result<Self> {
        let layout = Layout { state_dir: config.state_dir, run_dir: config.run_dir };
        for dir in [
            layout.containers(),
            layout.state_dir.join("incoming"),
            layout.exits(),
            layout.run_dir.join("hooks"),
        ] {
            make_dir(&dir, 0o700)?;
        }
        lifecycle::sweep(&layout)?;
        let hook_program = match config.hook_program {
            Some(program) => program,
            None => {
                own_program().map_err(|e| EngineError::invalid("the agent's own program", e.to_string()))?
            }
        };
        let conmon = Conmon {
            program: config.conmon,
            runtime: runtime.invocation(),
            exits: layout.exits(),
            cgroup_parent: config.monitor_cgroup,
        };
        Ok(Bare { layout, roots: config.volume_roots, runtime, conmon, hooks, hook_program })
    }

    pub(super) fn load(&self, name: &ContainerName) -> Result<Container> {
        let path = self.layout.container(name).description();
        match read_json(&path) {
            Err(EngineError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(EngineError::Unknown(name.to_string()))
            }
            other => other,
        }
    }
}

/// Runs blocking work of the engine off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(EngineError::invalid("an operation on files", format!("was cut short: {e}"))),
    }
}

impl Engine for Bare {
    fn create_and_start(&self, spec: RunSpec) -> BoxFuture<'_, Result<Container>> {
        Box::pin(create::create_and_start(self, spec))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ContainerSummary>>> {
        let this = self.clone();
        Box::pin(blocking(move || lifecycle::list(&this)))
    }

    fn inspect<'a>(
        &'a self,
        name: &'a ContainerName,
    ) -> BoxFuture<'a, Result<(Container, ContainerSummary)>> {
        let (this, name) = (self.clone(), name.clone());
        Box::pin(blocking(move || Ok((this.load(&name)?, lifecycle::summary(&this, &name)?))))
    }

    fn logs<'a>(
        &'a self,
        name: &'a ContainerName,
        follow: bool,
        tail: Option<usize>,
    ) -> BoxFuture<'a, Result<mpsc::Receiver<LogLine>>> {
        Box::pin(async move {
            self.load(name)?;
            Ok(logs::open(self.layout.container(name).log(), follow, tail))
        })
    }

    fn stop<'a>(&'a self, name: &'a ContainerName, limit: Duration) -> BoxFuture<'a, Result<()>> {
        Box::pin(lifecycle::stop(self, name, limit))
    }

    fn remove<'a>(&'a self, name: &'a ContainerName, force: bool) -> BoxFuture<'a, Result<()>> {
        Box::pin(lifecycle::remove(self, name, force))
    }

    fn processes<'a>(&'a self, name: &'a ContainerName) -> BoxFuture<'a, Result<(i32, Vec<i32>)>> {
        let (this, name) = (self.clone(), name.clone());
        Box::pin(blocking(move || lifecycle::processes(&this, &name)))
    }

    fn trees(&self, container: &Container) -> Vec<Tree> {
        self.layout.container(&container.name).trees(container)
    }

    fn describe<'a>(&'a self, name: &'a ContainerName) -> BoxFuture<'a, Result<MovedContainer>> {
        let (this, name) = (self.clone(), name.clone());
        Box::pin(blocking(move || {
            let container = this.load(&name)?;
            let config: serde_json::Value = read_json(&this.layout.container(&name).config())?;
            policy::check_config(&config, &container.volumes).map_err(EngineError::refused(&name))?;
            lifecycle::check_unshared(&this, &container)?;
            Ok(MovedContainer { container, config })
        }))
    }

    fn set_epoch<'a>(&'a self, name: &'a ContainerName, epoch: Epoch) -> BoxFuture<'a, Result<()>> {
        let (this, name) = (self.clone(), name.clone());
        Box::pin(blocking(move || {
            let mut container = this.load(&name)?;
            container.epoch = epoch;
            write_json(&this.layout.container(&name).description(), &container)
        }))
    }

    fn prepare_restore<'a>(
        &'a self,
        migration: MigrationId,
        name: &'a ContainerName,
        epoch: Epoch,
        moved: &'a MovedContainer,
    ) -> BoxFuture<'a, Result<Arrival>> {
        let (this, name, moved) = (self.clone(), name.clone(), moved.clone());
        Box::pin(blocking(move || {
            if this.runtime.cgroup(name.as_str()).events()?.is_some_and(|e| e.populated) {
                return Err(EngineError::Exists(name.to_string()));
            }
            moved::judge(&this.layout, &this.roots, migration, &name, epoch, &moved)
        }))
    }

    fn make_room<'a>(&'a self, arrival: &'a Arrival) -> BoxFuture<'a, Result<()>> {
        let (layout, arrival) = (self.layout.clone(), arrival.clone());
        Box::pin(blocking(move || moved::make_room(&layout, &arrival)))
    }

    fn adopt<'a>(&'a self, arrival: &'a Arrival) -> BoxFuture<'a, Result<()>> {
        let arrival = arrival.clone();
        Box::pin(blocking(move || moved::adopt(&arrival)))
    }

    fn restore<'a>(
        &'a self,
        arrival: &'a Arrival,
        request: &'a RestoreRequest,
    ) -> BoxFuture<'a, Result<RestoreHandle>> {
        Box::pin(restore::start(self, arrival, request))
    }

    fn resume_hold<'a>(&'a self, arrival: &'a Arrival) -> BoxFuture<'a, Result<RestoreHandle>> {
        Box::pin(async move { Ok(restore::resume(self, arrival)) })
    }

    fn find_arrival(&self, migration: MigrationId) -> BoxFuture<'_, Result<Option<Arrival>>> {
        let layout = self.layout.clone();
        Box::pin(blocking(move || moved::find(&layout, migration)))
    }

    fn settle<'a>(&'a self, arrival: &'a Arrival) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.hooks.forget(arrival.migration);
            self.forget_migration(arrival.migration)?;
            let (layout, arrival) = (self.layout.clone(), arrival.clone());
            blocking(move || moved::settle(&layout, &arrival)).await
        })
    }

    fn discard<'a>(&'a self, migration: MigrationId, name: &'a ContainerName) -> BoxFuture<'a, Result<()>> {
        Box::pin(lifecycle::discard(self, migration, name))
    }

    fn came_back<'a>(&'a self, name: &'a ContainerName, released: Epoch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(lifecycle::came_back(self, name, released))
    }

    fn retire<'a>(&'a self, name: &'a ContainerName, released: Epoch) -> BoxFuture<'a, Result<()>> {
        Box::pin(lifecycle::retire(self, name, released))
    }

    fn hold_dump(&self, migration: MigrationId, memory: DumpMemory<'_>) -> Result<DumpHold> {
        let files = HookFiles::new(&self.layout.run_dir, migration);
        let held = files.hold_dump(&self.hook_program, memory);
        held.map_err(EngineError::io("write hook files below", &self.layout.run_dir))
    }

    fn forget_migration(&self, migration: MigrationId) -> Result<()> {
        let removed = HookFiles::new(&self.layout.run_dir, migration).remove();
        removed.map_err(EngineError::io("remove hook files below", &self.layout.run_dir))
    }
}
