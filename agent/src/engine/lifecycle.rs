//! Listing, ending and removing containers of the engine `bare`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tranship_proto::ids::{ContainerName, Epoch, MigrationId};

use super::Result;
use super::bare::{Bare, blocking};
use super::error::EngineError;
use super::model::{Container, ContainerState, ContainerSummary, VolumeSource};
use super::moved::{self, Arrival, overlap};
use super::paths::{
    ARRIVING, CREATING, Layout, VolumePath, look_at_volume, read_json, read_small, remove_file, remove_tree,
};

/// Until killed processes are gone.
const KILL: Duration = Duration::from_secs(10);
/// Until a monitor has noticed that its container is dead.
const MONITOR: Duration = Duration::from_secs(3);

/// Names with a directory, valid ones only.
fn names(layout: &Layout) -> Result<Vec<ContainerName>> {
    let dir = layout.containers();
    let entries = fs::read_dir(&dir).map_err(EngineError::io("read", &dir))?;
    let mut names: Vec<ContainerName> =
        entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    names.sort();
    Ok(names)
}

pub(super) fn list(bare: &Bare) -> Result<Vec<ContainerSummary>> {
    let mut list = Vec::new();
    for name in names(&bare.layout)? {
        match summary(bare, &name) {
            // Removed while we looked.
            Err(EngineError::Unknown(_)) => {}
            other => list.push(other?),
        }
    }
    Ok(list)
}

pub(super) fn summary(bare: &Bare, name: &ContainerName) -> Result<ContainerSummary> {
    let dirs = bare.layout.container(name);
    let arrival = read_json::<Arrival>(&dirs.marker(ARRIVING)).ok();
    let (state, pid) = state(bare, name)?;
    let described = match bare.load(name) {
        Err(EngineError::Unknown(_)) if dirs.dir.exists() => None,
        other => Some(other?),
    };
    let exit = read_small(&bare.layout.exit_file(name), 16).ok().and_then(|t| t.trim().parse().ok());
    let mut summary = ContainerSummary {
        name: name.clone(),
        state,
        pid,
        exit_code: exit.filter(|_| state == ContainerState::Stopped),
        image: String::new(),
        command: Vec::new(),
        created_unix_ms: 0,
        epoch: Epoch(0),
        migration: arrival.map(|a| a.migration),
    };
    if let Some(container) = described {
        summary.image = container.image;
        summary.command = container.command;
        summary.created_unix_ms = container.created_unix_ms;
        summary.epoch = container.epoch;
    }
    Ok(summary)
}

/// What a container does, from its files and its cgroup: no process is started for it.
pub(super) fn state(bare: &Bare, name: &ContainerName) -> Result<(ContainerState, Option<i32>)> {
    let dirs = bare.layout.container(name);
    if !dirs.dir.exists() {
        return Err(EngineError::Unknown(name.to_string()));
    }
    let cgroup = bare.runtime.cgroup(name.as_str());
    let events = cgroup.events()?.unwrap_or_default();
    let pid = if events.populated {
        dirs.pid().filter(|p| cgroup.pids().is_ok_and(|all| all.contains(p)))
    } else {
        None
    };
    let state = match () {
        () if dirs.marker(ARRIVING).exists() => ContainerState::Arriving,
        () if dirs.marker(CREATING).exists() || !dirs.description().exists() => ContainerState::Creating,
        () if !events.populated => ContainerState::Stopped,
        () if events.frozen => ContainerState::Frozen,
        () => ContainerState::Running,
    };
    Ok((state, pid))
}

pub(super) fn processes(bare: &Bare, name: &ContainerName) -> Result<(i32, Vec<i32>)> {
    let pids = bare.runtime.cgroup(name.as_str()).pids()?;
    match state(bare, name)? {
        (ContainerState::Running | ContainerState::Frozen, Some(pid)) => Ok((pid, pids)),
        (state, _) => {
            Err(EngineError::State { name: name.to_string(), state: state.to_string(), attempt: "examined" })
        }
    }
}

/// Refuses to move a container whose volumes another container here uses too.
pub(super) fn check_unshared(bare: &Bare, container: &Container) -> Result<()> {
    for volume in container.volumes.iter().filter(|v| !v.read_only) {
        let VolumeSource::Path(path) = &volume.source else { continue };
        if let Some(user) = other_user(bare, &container.name, path)? {
            let what = format!("volume {}", path.display());
            return Err(EngineError::invalid(
                what,
                format!("is used by container {user} too, so it cannot be moved away"),
            ));
        }
    }
    Ok(())
}

fn other_user(bare: &Bare, but: &ContainerName, path: &Path) -> Result<Option<ContainerName>> {
    for name in names(&bare.layout)?.into_iter().filter(|n| n != but) {
        let Ok(other) = bare.load(&name) else { continue };
        let uses = |v: &super::model::Volume| matches!(&v.source, VolumeSource::Path(p) if overlap(p, path));
        if other.volumes.iter().any(uses) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

pub(super) async fn stop(bare: &Bare, name: &ContainerName, limit: Duration) -> Result<()> {
    let (this, owned) = (bare.clone(), name.clone());
    let (state, pid) = blocking(move || state(&this, &owned)).await?;
    match state {
        ContainerState::Running => {}
        ContainerState::Stopped => return Ok(()),
        _ => {
            return Err(EngineError::State {
                name: name.to_string(),
                state: state.to_string(),
                attempt: "stopped",
            });
        }
    }
    let (this, owned) = (bare.clone(), name.clone());
    blocking(move || {
        let cgroup = this.runtime.cgroup(owned.as_str());
        // A pid may be another process by now; a pidfd that was in the cgroup after it was opened is not.
        let fd = pid
            .and_then(rustix::process::Pid::from_raw)
            .and_then(|p| rustix::process::pidfd_open(p, rustix::process::PidfdFlags::empty()).ok());
        if let (Some(fd), Some(pid)) = (fd, pid)
            && cgroup.pids()?.contains(&pid)
        {
            let _ = rustix::process::pidfd_send_signal(&fd, rustix::process::Signal::TERM);
            if cgroup.wait_empty(limit).is_ok() {
                return Ok(());
            }
        }
        Ok(cgroup.kill(KILL)?)
    })
    .await?;
    bare.runtime.delete(name.as_str()).await?;
    let (conmon, owned) = (bare.conmon.clone(), name.clone());
    blocking(move || conmon.finish(&owned, MONITOR)).await
}

pub(super) async fn remove(bare: &Bare, name: &ContainerName, force: bool) -> Result<()> {
    let (this, owned) = (bare.clone(), name.clone());
    let (state, _) = blocking(move || state(&this, &owned)).await?;
    let allowed = match state {
        ContainerState::Stopped => true,
        ContainerState::Running | ContainerState::Creating => force,
        ContainerState::Frozen | ContainerState::Arriving => false,
    };
    if !allowed {
        return Err(EngineError::State {
            name: name.to_string(),
            state: state.to_string(),
            attempt: "removed",
        });
    }
    destroy(bare, name, Trees::Managed).await
}

/// Which trees go with a container.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trees {
    /// Those in its own directory.
    Managed,
    /// All that travelled.
    Travelled,
}

/// Removes what a start has left that failed.
pub(super) async fn destroy_failed(bare: &Bare, name: &ContainerName) -> Result<()> {
    destroy(bare, name, Trees::Managed).await
}

/// Kills and removes a container in whatever state it is. Idempotent.
async fn destroy(bare: &Bare, name: &ContainerName, trees: Trees) -> Result<()> {
    bare.runtime.kill_frozen(name.as_str(), KILL).await?;
    let (conmon, owned) = (bare.conmon.clone(), name.clone());
    blocking(move || conmon.finish(&owned, MONITOR)).await?;
    bare.runtime.delete(name.as_str()).await?;
    let (this, owned) = (bare.clone(), name.clone());
    blocking(move || {
        let dirs = this.layout.container(&owned);
        remove_file(&this.layout.exit_file(&owned))?;
        if trees == Trees::Travelled && let Ok(container) = this.load(&owned) {
            for tree in dirs.trees(&container).into_iter().filter(|t| !t.host_path.starts_with(&dirs.dir)) {
                if let Some(user) = other_user(&this, &owned, &tree.host_path)? {
                    tracing::warn!(%owned, volume = %tree.host_path.display(), %user, "volume left, since another container uses it");
                    continue;
                }
                remove_volume(&this.roots, &tree.host_path)?;
            }
        }
        trash(&this.layout, &owned)
    })
    .await
}

/// Removes a volume at a host path: only if it is still a plain directory below a root.
fn remove_volume(roots: &[PathBuf], path: &Path) -> Result<()> {
    match look_at_volume(roots, path)? {
        VolumePath::Absent => Ok(()),
        // The place of a mount stays; what was in it has moved.
        VolumePath::Directory { mounted: true, .. } => {
            for entry in fs::read_dir(path).map_err(EngineError::io("read", path))?.flatten() {
                let entry_path = entry.path();
                let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
                if is_dir { remove_tree(&entry_path)? } else { remove_file(&entry_path)? }
            }
            Ok(())
        }
        VolumePath::Directory { .. } => remove_tree(path),
    }
}

/// Removes the directory of a container: out of sight by one rename, so that a crash never leaves half a
/// container, then file by file.
fn trash(layout: &Layout, name: &ContainerName) -> Result<()> {
    let dirs = layout.container(name);
    let aside = layout.containers().join(format!(".removed-{name}"));
    remove_tree(&aside)?;
    match fs::rename(&dirs.dir, &aside) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(EngineError::io("remove", &dirs.dir))?,
    }
    remove_tree(&aside)
}

/// Finishes removals that a crash cut short.
pub(super) fn sweep(layout: &Layout) -> Result<()> {
    let dir = layout.containers();
    for entry in fs::read_dir(&dir).map_err(EngineError::io("read", &dir))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(".removed-") {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

pub(super) async fn discard(bare: &Bare, migration: MigrationId, name: &ContainerName) -> Result<()> {
    let (this, owned) = (bare.clone(), name.clone());
    let ours = blocking(move || {
        let marker = this.layout.container(&owned).marker(ARRIVING);
        Ok(read_json::<Arrival>(&marker).is_ok_and(|a| a.migration == migration))
    })
    .await?;
    // Without the mark, whatever runs under this name is not what arrives.
    if ours {
        let id = name.as_str();
        bare.runtime.kill_frozen(id, KILL).await?;
        let (conmon, owned) = (bare.conmon.clone(), name.clone());
        blocking(move || conmon.finish(&owned, MONITOR)).await?;
        bare.runtime.delete(id).await?;
        remove_file(&bare.layout.exit_file(name))?;
    }
    bare.hooks.forget(migration);
    super::Engine::forget_migration(bare, migration)?;
    let (layout, owned) = (bare.layout.clone(), name.clone());
    blocking(move || moved::discard(&layout, migration, &owned)).await
}

pub(super) async fn came_back(bare: &Bare, name: &ContainerName, released: Epoch) -> Result<bool> {
    let (this, owned) = (bare.clone(), name.clone());
    blocking(move || {
        let arriving = this.layout.container(&owned).marker(ARRIVING).exists();
        match this.load(&owned) {
            Ok(container) => Ok(arriving || container.epoch >= released),
            Err(EngineError::Unknown(_)) => Ok(arriving),
            Err(e) => Err(e),
        }
    })
    .await
}

pub(super) async fn retire(bare: &Bare, name: &ContainerName, released: Epoch) -> Result<()> {
    if came_back(bare, name, released).await? {
        tracing::info!(%name, %released, "not retired: the container has come back");
        return Ok(());
    }
    destroy(bare, name, Trees::Travelled).await
}
