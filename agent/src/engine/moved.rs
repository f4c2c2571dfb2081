//! Judging a container that a peer wants to bring here, and making room for it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tranship_proto::ids::{ContainerName, Epoch, MigrationId};

use super::config::localize;
use super::error::EngineError;
use super::model::{Container, FORMAT, MAX_VOLUMES, MovedContainer, VolumeSource};
use super::paths::{
    ARRIVING, Layout, VolumePath, beside, look_at_volume, make_dir, read_json, remove_file, remove_tree,
    sync_dir, write_json,
};
use super::policy::{check_config, plain_path};

/// Longest opaque network part, as JSON, in bytes.
const MAX_NETWORK: usize = 256 * 1024;

/// A tree on its way in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivingTree {
    /// As in [`super::Tree`].
    pub index: u16,
    /// Where it is received.
    pub receive: PathBuf,
    /// Where it is from [`super::Engine::adopt`] on; the same directory, except for volumes at host paths.
    pub home: PathBuf,
    /// Where it is in the container.
    pub container_path: String,
}

/// An accepted container, with all paths of this host. It is kept on disk until it is settled or
/// discarded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// The migration.
    pub migration: MigrationId,
    /// What `container.json` will be.
    pub container: Container,
    /// What `config.json` will be.
    pub config: serde_json::Value,
    /// Where its network namespace must be when it is restored.
    pub netns: PathBuf,
    /// Root file system and volumes.
    pub trees: Vec<ArrivingTree>,
}

impl Arrival {
    /// The container's name.
    pub fn name(&self) -> &ContainerName {
        &self.container.name
    }
}

/// Checks what does not depend on a host.
fn check_container(container: &Container, name: &ContainerName) -> Result<(), EngineError> {
    let bad = |what: &str, why: String| {
        Err(EngineError::invalid(format!("the container's description: {what}"), why))
    };
    if container.format != FORMAT {
        return bad(
            "format",
            format!("{} is not {FORMAT}; the hosts run different versions", container.format),
        );
    }
    if container.name != *name {
        return bad("name", format!("{} is not {name}", container.name));
    }
    if container.engine != "bare" {
        return bad("engine", format!("{:?} is not known here", clip(&container.engine)));
    }
    if container.image.len() > 4096 || container.command.iter().map(String::len).sum::<usize>() > 512 * 1024 {
        return bad("image or command", "too long".to_owned());
    }
    if serde_json::to_string(&container.network).map_or(usize::MAX, |t| t.len()) > MAX_NETWORK {
        return bad("network", "too long".to_owned());
    }
    check_volumes(&container.volumes)
        .map_err(|why| EngineError::invalid("the container's description: volumes", why))
}

/// Shape of a list of volumes.
pub(super) fn check_volumes(volumes: &[super::model::Volume]) -> Result<(), String> {
    if volumes.len() > MAX_VOLUMES {
        return Err(format!("more than {MAX_VOLUMES}"));
    }
    for (i, volume) in volumes.iter().enumerate() {
        if !plain_path(&volume.destination) || volume.destination == "/" {
            return Err(format!(
                "{:?} is not an absolute path inside the container",
                clip(&volume.destination)
            ));
        }
        if volumes[..i].iter().any(|v| v.destination == volume.destination) {
            return Err(format!("{} is used twice", volume.destination));
        }
        match &volume.source {
            VolumeSource::Managed(name) => {
                if name.parse::<ContainerName>().is_err() {
                    return Err(format!("{:?} is not a volume name", clip(name)));
                }
            }
            VolumeSource::Path(path) => {
                let inside = |other: &super::model::Volume| matches!(&other.source, VolumeSource::Path(p) if overlap(p, path));
                if !volume.read_only && volumes[..i].iter().any(inside)
                    || volumes[..i].iter().any(|v| !v.read_only && inside(v))
                {
                    return Err(format!("{} lies in another volume", path.display()));
                }
            }
        }
    }
    Ok(())
}

pub(super) fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Judges a description of a container. Reads the disk, changes nothing.
pub(super) fn judge(
    layout: &Layout,
    roots: &[PathBuf],
    migration: MigrationId,
    name: &ContainerName,
    epoch: Epoch,
    moved: &MovedContainer,
) -> Result<Arrival, EngineError> {
    check_container(&moved.container, name)?;
    check_config(&moved.config, &moved.container.volumes).map_err(EngineError::refused(name))?;
    let dirs = layout.container(name);
    if fs::symlink_metadata(&dirs.dir).is_ok() {
        return Err(EngineError::Exists(name.to_string()));
    }
    let mut container = moved.container.clone();
    container.epoch = epoch;
    // In the state directory trees are received where they will stay. At a host path they are received
    // beside it: there is no directory of ours around it that could carry the mark of being half-made.
    let in_place = |index, home: PathBuf, container_path: &str| ArrivingTree {
        index,
        receive: home.clone(),
        home,
        container_path: container_path.to_owned(),
    };
    let mut trees = vec![in_place(0, dirs.rootfs(), "/")];
    for (volume, index) in container.volumes.iter().zip(container.volume_indexes()) {
        let VolumeSource::Path(path) = &volume.source else {
            if let Some(index) = index {
                trees.push(in_place(index, dirs.volume(index), &volume.destination));
            }
            continue;
        };
        let refuse = |why: &str| Err(EngineError::invalid(format!("volume {}", path.display()), why));
        match (look_at_volume(roots, path)?, index) {
            (VolumePath::Absent, None) => {
                return refuse("is read-only, so it is not carried, and it does not exist on this host");
            }
            (VolumePath::Directory { .. }, None) => {}
            (VolumePath::Directory { mounted: true, .. }, Some(_)) => {
                return refuse("is a mount point on this host; a carried volume needs a plain place");
            }
            (VolumePath::Directory { empty: false, .. }, Some(_)) => {
                return refuse("exists on this host and is not empty");
            }
            (VolumePath::Directory { .. } | VolumePath::Absent, Some(index)) => {
                let receive = beside(path, migration, index);
                trees.push(ArrivingTree {
                    index,
                    receive,
                    home: path.clone(),
                    container_path: volume.destination.clone(),
                });
            }
        }
    }
    let mut config = moved.config.clone();
    let netns = layout.netns(name);
    localize(&mut config, &dirs.rootfs(), &netns, &cgroup_path(name), &dirs.volume_sources(&container));
    Ok(Arrival { migration, container, config, netns, trees })
}

/// Path of a container's cgroup, as the OCI runtime takes it.
pub(super) fn cgroup_path(name: &ContainerName) -> String {
    format!("/tranship/{name}")
}

fn record(layout: &Layout, migration: MigrationId) -> PathBuf {
    layout.incoming(migration).join("arrival.json")
}

/// Makes the directories to receive into, and all files that the restore needs: nothing of that is left
/// for the blackout. The arrival is recorded first, then marked in the container's directory.
pub(super) fn make_room(layout: &Layout, arrival: &Arrival) -> Result<(), EngineError> {
    make_dir(&layout.incoming(arrival.migration), 0o700)?;
    write_json(&record(layout, arrival.migration), arrival)?;
    let dirs = layout.container(arrival.name());
    let marker = dirs.marker(ARRIVING);
    if !marker.exists() {
        match fs::create_dir(&dirs.dir) {
            Ok(()) => {}
            // Empty: a crash came between directory and mark. Else taken since it was judged.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && fs::remove_dir(&dirs.dir).is_ok() => {
                fs::create_dir(&dirs.dir).map_err(EngineError::io("create", &dirs.dir))?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(EngineError::Exists(arrival.name().to_string()));
            }
            Err(e) => return Err(EngineError::io("create", &dirs.dir)(e)),
        }
        write_json(&marker, arrival)?;
    } else if read_json::<Arrival>(&marker)?.migration != arrival.migration {
        return Err(EngineError::Exists(arrival.name().to_string()));
    }
    make_dir(&dirs.bundle(), 0o700)?;
    write_json(&dirs.config(), &arrival.config)?;
    write_json(&dirs.description(), &arrival.container)?;
    for tree in &arrival.trees {
        if let Some(parent) = tree.receive.parent() {
            make_dir(parent, if tree.home.starts_with(&layout.state_dir) { 0o700 } else { 0o755 })?;
        }
        make_dir(&tree.receive, 0o700)?;
    }
    Ok(())
}

/// Moves what was received beside its place to its place.
pub(super) fn adopt(arrival: &Arrival) -> Result<(), EngineError> {
    for tree in arrival.trees.iter().filter(|t| t.receive != t.home) {
        match fs::rename(&tree.receive, &tree.home) {
            // Moved before a crash.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && tree.home.is_dir() => {}
            other => other.map_err(EngineError::io("move into place", &tree.home))?,
        }
    }
    Ok(())
}

/// Removes the marker of an arrival, and what is left of receiving.
pub(super) fn settle(layout: &Layout, arrival: &Arrival) -> Result<(), EngineError> {
    let dirs = layout.container(arrival.name());
    remove_file(&dirs.marker(ARRIVING))?;
    sync_dir(&dirs.dir).map_err(EngineError::io("write", &dirs.dir))?;
    remove_tree(&layout.incoming(arrival.migration))
}

/// The arrival of a migration, if it was begun and neither settled nor discarded.
pub(super) fn find(layout: &Layout, migration: MigrationId) -> Result<Option<Arrival>, EngineError> {
    let path = record(layout, migration);
    if path.exists() { read_json(&path).map(Some) } else { Ok(None) }
}

/// Removes all files of an arrival. Its processes are gone already.
///
/// The order makes a repeat after a crash right: the place of a volume is cleared only while the mark is
/// there and the received tree is no longer beside it; the mark goes (with its directory, by one rename)
/// before any received tree does.
pub(super) fn discard(
    layout: &Layout,
    migration: MigrationId,
    name: &ContainerName,
) -> Result<(), EngineError> {
    let dirs = layout.container(name);
    let incoming = layout.incoming(migration);
    let marked = read_json::<Arrival>(&dirs.marker(ARRIVING)).ok().filter(|a| a.migration == migration);
    let begun = find(layout, migration)?;
    let outside = |tree: &&ArrivingTree| tree.receive != tree.home;
    if let Some(arrival) = &marked {
        for tree in arrival.trees.iter().filter(outside).filter(|t| !t.receive.exists()) {
            remove_tree(&tree.home)?;
        }
        make_dir(&incoming, 0o700)?;
        let aside = incoming.join("discarded");
        fs::rename(&dirs.dir, &aside).map_err(EngineError::io("remove", &dirs.dir))?;
    } else if begun.is_some() {
        // Made, and not marked before a crash: empty then.
        let _ = fs::remove_dir(&dirs.dir);
    }
    for tree in marked.or(begun).iter().flat_map(|a| &a.trees).filter(outside) {
        remove_tree(&tree.receive)?;
    }
    remove_tree(&incoming)
}
