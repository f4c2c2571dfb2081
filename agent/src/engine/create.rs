//! Making a container of the engine `bare` and starting it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tranship_proto::ids::Epoch;

use super::Result;
use super::bare::{Bare, blocking};
use super::config::{ConfigInput, adapt_bundle, default_config, localize};
use super::error::EngineError;
use super::lifecycle::destroy_failed;
use super::model::{Container, FORMAT, Rootfs, RunSpec, VolumeSource};
use super::moved::{cgroup_path, check_volumes};
use super::paths::{CREATING, VolumePath, look_at_volume, make_dir, read_json, remove_file, write_json};
use super::policy::check_config;
use crate::command::Command;

/// Copying a root file system may take this long.
const COPY: Duration = Duration::from_secs(30 * 60);
/// Until the runtime has set a container up.
const CREATE: Duration = Duration::from_secs(60);
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
            let cleanup = destroy_failed(bare, &spec.name).await;
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
