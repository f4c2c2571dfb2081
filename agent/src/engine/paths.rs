//! Where things are on a host, and the careful file operations on them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tranship_proto::ids::{ContainerName, MigrationId};

use super::error::EngineError;
use super::model::{Container, Tree, VolumeSource};

/// Longest JSON file read, in bytes.
const MAX_JSON: u64 = 2 << 20;
/// File that marks a container as being made; empty.
pub(super) const CREATING: &str = "creating";
/// File that marks a container as arriving; holds the arrival.
pub(super) const ARRIVING: &str = "incoming";

/// The directories of an agent.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
}

impl Layout {
    pub(super) fn containers(&self) -> PathBuf {
        self.state_dir.join("containers")
    }

    pub(super) fn container(&self, name: &ContainerName) -> Dirs {
        Dirs { dir: self.containers().join(name.as_str()) }
    }

    pub(super) fn incoming(&self, migration: MigrationId) -> PathBuf {
        self.state_dir.join("incoming").join(migration.to_string())
    }

    pub(super) fn netns(&self, name: &ContainerName) -> PathBuf {
        self.run_dir.join("netns").join(name.as_str())
    }

    pub(super) fn exits(&self) -> PathBuf {
        self.run_dir.join("exits")
    }

    pub(super) fn exit_file(&self, name: &ContainerName) -> PathBuf {
        self.exits().join(name.as_str())
    }
}

/// The files of one container.
#[derive(Clone, Debug)]
pub(super) struct Dirs {
    pub dir: PathBuf,
}

impl Dirs {
    pub(super) fn description(&self) -> PathBuf {
        self.dir.join("container.json")
    }

    pub(super) fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.bundle().join("config.json")
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    pub(super) fn volume(&self, index: u16) -> PathBuf {
        self.dir.join("volumes").join(index.to_string())
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("ctr.log")
    }

    pub(super) fn pid_file(&self) -> PathBuf {
        self.dir.join("pidfile")
    }

    pub(super) fn conmon_pid_file(&self) -> PathBuf {
        self.dir.join("conmon.pid")
    }

    pub(super) fn marker(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn pid(&self) -> Option<i32> {
        read_small(&self.pid_file(), 32).ok()?.trim().parse().ok()
    }

    /// Root file system and volumes that travel.
    pub(super) fn trees(&self, container: &Container) -> Vec<Tree> {
        let mut trees = vec![Tree {
            index: 0,
            host_path: self.rootfs(),
            container_path: "/".to_owned(),
            read_only: false,
        }];
        for (volume, index) in container.volumes.iter().zip(container.volume_indexes()) {
            let Some(index) = index else { continue };
            let host_path = match &volume.source {
                VolumeSource::Managed(_) => self.volume(index),
                VolumeSource::Path(path) => path.clone(),
            };
            trees.push(Tree {
                index,
                host_path,
                container_path: volume.destination.clone(),
                read_only: volume.read_only,
            });
        }
        trees
    }

    /// (destination, host path) of every volume.
    pub(super) fn volume_sources(&self, container: &Container) -> Vec<(String, PathBuf)> {
        let source = |(volume, index): (&super::model::Volume, Option<u16>)| match &volume.source {
            VolumeSource::Managed(_) => (volume.destination.clone(), self.volume(index.unwrap_or(0))),
            VolumeSource::Path(path) => (volume.destination.clone(), path.clone()),
        };
        container.volumes.iter().zip(container.volume_indexes()).map(source).collect()
    }
}

/// Reads a text file up to a limit.
pub(super) fn read_small(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(limit).read_to_string(&mut text)?;
    Ok(text)
}

/// Reads a JSON file of ours.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, EngineError> {
    let text = read_small(path, MAX_JSON).map_err(EngineError::io("read", path))?;
    serde_json::from_str(&text).map_err(|e| EngineError::io("read", path)(e.into()))
}

/// Writes a JSON file so that a crash leaves the old or the new one.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), EngineError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| EngineError::io("write", path)(e.into()))?;
    write_durably(path, &bytes)
}

/// Writes a file, readable for root only, so that a crash leaves the old or the new one.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    let attempt = || {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_dir(path.parent().unwrap_or(Path::new("/")))
    };
    attempt().map_err(EngineError::io("write", path))
}

/// Makes the entries of a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a directory and its parents, with a mode for the new ones.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<(), EngineError> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(EngineError::io("create", path))
}

/// Removes a file; nothing to do when there is none.
pub(super) fn remove_file(path: &Path) -> Result<(), EngineError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(EngineError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Removes a tree without following symbolic links; nothing to do when there is none.
pub(super) fn remove_tree(path: &Path) -> Result<(), EngineError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(EngineError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// The root that a volume's path is below of, and the path below it.
fn below<'a>(roots: &'a [PathBuf], path: &'a Path) -> Option<(&'a Path, &'a Path)> {
    let plain = path.to_str().is_some_and(|p| super::policy::plain_path(p) && p.len() > 1);
    let found = roots.iter().find_map(|root| Some((root.as_path(), path.strip_prefix(root).ok()?)));
    found.filter(|(_, rest)| plain && !rest.as_os_str().is_empty())
}

/// What is at the host path of a volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum VolumePath {
    /// A directory; on another file system than its parent directory when `mounted`.
    Directory { empty: bool, mounted: bool },
    /// Nothing, and nothing in the way.
    Absent,
}

/// Looks at the host path of a volume without following any symbolic link below the root.
pub(super) fn look_at_volume(roots: &[PathBuf], path: &Path) -> Result<VolumePath, EngineError> {
    let refuse = |why: String| EngineError::invalid(format!("volume {}", path.display()), why);
    let Some((root, rest)) = below(roots, path) else {
        let list: Vec<String> = roots.iter().map(|r| r.display().to_string()).collect();
        return Err(refuse(format!(
            "must be below one of volumes.roots of the configuration ({}), without ..",
            list.join(", ")
        )));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base: OwnedFd = match rustix::fs::open(root, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(e) => return Err(EngineError::io("open", root)(e.into())),
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&base, rest, flags, Mode::empty(), resolve) {
        Ok(fd) => {
            let inside = rustix::fs::fstat(&fd).map_err(|e| EngineError::io("read", path)(e.into()))?;
            let parent = path.parent().and_then(|p| fs::symlink_metadata(p).ok());
            let empty = rustix::fs::Dir::new(fd).is_ok_and(|mut d| {
                !d.any(|e| e.is_ok_and(|e| ![&b"."[..], b".."].contains(&e.file_name().to_bytes())))
            });
            Ok(VolumePath::Directory { empty, mounted: parent.is_some_and(|p| p.dev() != inside.st_dev) })
        }
        Err(rustix::io::Errno::NOENT) => {
            // Nothing there; but what is there of the way must be plain directories.
            match path.parent() {
                Some(parent) if parent != root => look_at_volume(roots, parent).map(|_| VolumePath::Absent),
                _ => Ok(VolumePath::Absent),
            }
        }
        Err(rustix::io::Errno::LOOP) => Err(refuse("contains a symbolic link".to_owned())),
        Err(rustix::io::Errno::NOTDIR) => Err(refuse("is not a directory".to_owned())),
        Err(e) => Err(EngineError::io("open", path)(e.into())),
    }
}

/// Beside a directory: the same parent, so that a rename is possible, and a name nobody else uses.
pub(super) fn beside(path: &Path, migration: MigrationId, index: u16) -> PathBuf {
    let name = format!(".tranship-{}-{index}", migration.0.simple());
    path.parent().unwrap_or(Path::new("/")).join(OsStr::new(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_stay_below_their_roots() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("srv");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("file"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        let roots = [root.clone()];
        let look = |p: &str| look_at_volume(&roots, &root.join(p));
        assert_eq!(look("a").unwrap(), VolumePath::Directory { empty: false, mounted: false });
        assert_eq!(look("a/b").unwrap(), VolumePath::Directory { empty: true, mounted: false });
        assert_eq!(look("a/new/deep").unwrap(), VolumePath::Absent);
        assert!(look("link").is_err());
        assert!(look("link/ssh").is_err());
        assert!(look("link/none").is_err());
        assert!(look("file").is_err());
        assert!(look("file/x").is_err());
        for path in [
            root.clone(),
            root.join("../x"),
            "/etc".into(),
            "/".into(),
            "srv/a".into(),
            dir.path().join("srvx"),
        ] {
            assert!(look_at_volume(&roots, &path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn json_is_written_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write_json(&path, &vec![1, 2]).unwrap();
        write_json(&path, &vec![3]).unwrap();
        assert_eq!(read_json::<Vec<i32>>(&path).unwrap(), [3]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(read_json::<Vec<String>>(&path).is_err());
    }
}
