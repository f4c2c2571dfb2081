//! Making, listing, ending and removing containers of the engine `bare`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tranship_proto::ids::{ContainerName, Epoch, MigrationId};

use super::Result;
use super::bare::{Bare, blocking};
use super::config::{ConfigInput, adapt_bundle, default_config, localize};
use super::error::EngineError;
use super::model::{Container, ContainerState, ContainerSummary, FORMAT, Rootfs, RunSpec, VolumeSource};
use super::moved::{self, Arrival, cgroup_path, check_volumes, overlap};
use super::paths::{
    ARRIVING, CREATING, Layout, VolumePath, look_at_volume, make_dir, read_json, read_small, remove_file,
    remove_tree, write_json,
};
use super::policy::check_config;
use crate::command::Command;

/// Copying a root file system may take this long.
const COPY: Duration = Duration::from_secs(30 * 60);
/// Until the runtime has set a container up.
const CREATE: Duration = Duration::from_secs(60);
/// Until killed processes are gone.
const KILL: Duration = Duration::from_secs(10);
/// Until a monitor has noticed that its container is dead.
const MONITOR: Duration = Duration::from_secs(3);
/// Most files a container may open, when the agent itself may.
const OPEN_FILES: u64 = 65_536;

pub(super) async fn create_and_start(bare: &Bare, spec: RunSpec) -> Result<Container> {
    check_volumes(&spec.volumes).map_err(|why| EngineError::invalid("volumes", why))?;
    for volume in &spec.volumes {
        if let VolumeSource::Path(path) = &volume.source
            && look_at_volume(&bare.roots, path)? == VolumePath::Absent
        {
            return Err(EngineError::invalid(format!("volume {}", path.display()), "does not exist"));
        }
    }
    let source = match &spec.rootfs {
        Rootfs::Template(dir) | Rootfs::Bundle(dir) => dir.clone(),
    };
    let (config, rootfs_source) = {
        let spec = spec.clone();
        blocking(move || configuration(&spec)).await?
    };
    let dirs = bare.layout.container(&spec.name);
    match fs::create_dir(&dirs.dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(EngineError::Exists(spec.name.to_string()));
        }
        other => other.map_err(EngineError::io("create", &dirs.dir))?,
    }
    let made = make(bare, &spec, config, &rootfs_source, &source).await;
    match made {
        Ok(container) => Ok(container),
        Err(error) => {
            let cleanup = destroy(bare, &spec.name, Trees::Managed).await;
            Err(error.with_cleanup(cleanup))
        }
    }
}

/// The configuration, and the directory of the root file system to be copied.
fn configuration(spec: &RunSpec) -> Result<(Value, PathBuf)> {
    match &spec.rootfs {
        Rootfs::Template(dir) => {
            if !dir.join("bin").exists() && !dir.join("usr").exists() && !dir.is_dir() {
                return Err(EngineError::invalid(
                    format!("root file system {}", dir.display()),
                    "is not a directory",
                ));
            }
            let input = ConfigInput { spec, open_files: open_files() };
            let config = default_config(&input)?;
            check_config(&config, &spec.volumes).map_err(EngineError::refused(&spec.name))?;
            Ok((config, dir.clone()))
        }
        Rootfs::Bundle(dir) => {
            let config = adapt_bundle(read_json(&dir.join("config.json"))?, spec)?;
            check_config(&config, &spec.volumes).map_err(EngineError::refused(&spec.name))?;
            let rootfs = dir.join(config["root"]["path"].as_str().unwrap_or("rootfs"));
            if !rootfs.is_dir() {
                return Err(EngineError::invalid(
                    format!("root file system {}", rootfs.display()),
                    "is not a directory",
                ));
            }
            Ok((config, rootfs))
        }
    }
}

fn open_files() -> u64 {
    let hard = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .map_or(1024, |(_, hard)| hard);
    hard.min(OPEN_FILES)
}

async fn make(
    bare: &Bare,
    spec: &RunSpec,
    mut config: Value,
    rootfs: &Path,
    source: &Path,
) -> Result<Container> {
    let dirs = bare.layout.container(&spec.name);
    write_json(&dirs.marker(CREATING), &())?;
    make_dir(&dirs.bundle(), 0o700)?;
    make_dir(&dirs.rootfs(), 0o755)?;
    // The copy of a directory by cp is the one administrators trust: owner, modes, times, links, xattrs.
    Command::new("cp")
        .args(["--archive", "--reflink=auto", "--sparse=always", "--no-target-directory", "--"])
        .arg(rootfs)
        .arg(dirs.rootfs())
        .timeout(COPY)
        .run()
        .await
        .map_err(|source| EngineError::Command {
            what: format!("copy the root file system from {}", rootfs.display()),
            source,
        })?;
    let command: Vec<String> = serde_json::from_value(config["process"]["args"].clone()).unwrap_or_default();
    let container = Container {
        format: FORMAT,
        name: spec.name.clone(),
        engine: "bare".to_owned(),
        created_unix_ms: now_ms(),
        epoch: Epoch(1),
        image: source.display().to_string(),
        command,
        network: spec.network.clone(),
        volumes: spec.volumes.clone(),
    };
    for (volume, index) in container.volumes.iter().zip(container.volume_indexes()) {
        if let (VolumeSource::Managed(_), Some(index)) = (&volume.source, index) {
            make_dir(&dirs.volume(index), 0o755)?;
        }
    }
    localize(
        &mut config,
        &dirs.rootfs(),
        &spec.netns,
        &cgroup_path(&spec.name),
        &dirs.volume_sources(&container),
    );
    write_json(&dirs.config(), &config)?;
    write_json(&dirs.description(), &container)?;
    let mut sync = bare.conmon.start(&spec.name, &dirs, None).await?;
    let deadline = || EngineError::Deadline { name: spec.name.to_string(), wanted: "created", limit: CREATE };
    tokio::time::timeout(CREATE, sync.pid()).await.map_err(|_| deadline())??;
    bare.runtime.start(spec.name.as_str()).await?;
    remove_file(&dirs.marker(CREATING))?;
    Ok(container)
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

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

pub(super) async fn retire(bare: &Bare, name: &ContainerName, released: Epoch) -> Result<()> {
    let (this, owned) = (bare.clone(), name.clone());
    let returned = blocking(move || {
        let arriving = this.layout.container(&owned).marker(ARRIVING).exists();
        match this.load(&owned) {
            Ok(container) => Ok(arriving || container.epoch >= released),
            Err(EngineError::Unknown(_)) => Ok(arriving),
            Err(e) => Err(e),
        }
    })
    .await?;
    if returned {
        tracing::info!(%name, %released, "not retired: the container has come back");
        return Ok(());
    }
    destroy(bare, name, Trees::Travelled).await
}
