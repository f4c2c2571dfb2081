//! Names at the receiving side: what an entry or a removal does to the tree.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Statx};
use tranship_proto::tree::{Content, Entry, EntryKind};

use super::contents::allocated;
use super::error::{StorageError, shown};
use super::place;
use super::remove::remove_at;
use super::store::{TreeStore, divide};
use super::walk::{self, FileKind};

impl TreeStore {
    pub(super) fn entry(&mut self, entry: Entry) -> Result<(), StorageError> {
        if entry.path.is_empty() {
            self.root_entry = Some((entry.meta, entry.xattrs));
            return Ok(());
        }
        let (dir, name) = self.parent(&entry.path)?;
        let found = self.look(&dir, &entry.path)?;
        let kind = found.as_ref().and_then(FileKind::of);
        if let EntryKind::File { size, content: Content::Keep } = entry.kind {
            let fits = kind == Some(FileKind::File) && found.is_some_and(|stat| stat.stx_size == size);
            if !fits {
                return Err(StorageError::refused(&entry.path, "there is no file of this size to keep"));
            }
            return self.finish(&dir, name, &entry);
        }
        if let EntryKind::File { size, content: Content::Delta } = entry.kind {
            let Some(stat) = found.filter(|_| kind == Some(FileKind::File)) else {
                return Err(StorageError::refused(&entry.path, "there is no file to change"));
            };
            let fd = self.tried(&entry.path, place::open_file(dir.as_fd(), name, false))?;
            return self.open_file(entry, fd, size, true, allocated(&stat));
        }
        if let EntryKind::Dir = entry.kind
            && kind == Some(FileKind::Dir)
        {
            self.times.insert(entry.path.clone(), (entry.meta.atime, entry.meta.mtime));
            return self.finish(&dir, name, &entry);
        }
        if let EntryKind::HardLink { to } = &entry.kind {
            return self.hard_link(&dir, name, &entry.path, to, found);
        }
        self.allowed(&entry)?;
        self.touch(&dir, &entry.path)?;
        if found.is_some() {
            self.clear(&dir, &entry.path)?;
        }
        self.count(&entry.path)?;
        if let EntryKind::File { size, .. } = entry.kind {
            let fd = self.tried(&entry.path, place::open_file(dir.as_fd(), name, true))?;
            return self.open_file(entry, fd, size, false, 0);
        }
        let made = place::make(dir.as_fd(), name, &entry.kind);
        self.tried(&entry.path, made.map_err(|e| ("create", e)))?;
        if let EntryKind::Dir = entry.kind {
            self.times.insert(entry.path.clone(), (entry.meta.atime, entry.meta.mtime));
        }
        self.finish(&dir, name, &entry)
    }

    /// Metadata of an object whose content is complete. Times of directories wait for the end of the pass.
    fn finish(&self, dir: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), StorageError> {
        let is_link = matches!(entry.kind, EntryKind::Symlink { .. });
        let handle = self.tried(&entry.path, place::open_handle(dir.as_fd(), name))?;
        self.tried(&entry.path, place::set_meta(handle.as_fd(), is_link, &entry.meta, &entry.xattrs))?;
        if let EntryKind::Dir = entry.kind {
            return Ok(());
        }
        self.tried(&entry.path, place::set_times(handle.as_fd(), entry.meta.atime, entry.meta.mtime))
    }

    fn hard_link(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        to: &[u8],
        found: Option<Statx>,
    ) -> Result<(), StorageError> {
        let (to_dir, to_name) = self.open_parent(to)?;
        let Some(target) = self.look(&to_dir, to)? else {
            return Err(StorageError::refused(
                path,
                format!("{:?}, which it links to, does not exist", shown(to)),
            ));
        };
        if FileKind::of(&target) == Some(FileKind::Dir) {
            return Err(StorageError::refused(path, "it links to a directory"));
        }
        if let Some(found) = found {
            if found.stx_ino == target.stx_ino && walk::device_of(&found) == walk::device_of(&target) {
                return Ok(());
            }
            self.touch(dir, path)?;
            self.clear(dir, path)?;
        } else {
            self.touch(dir, path)?;
        }
        self.count(path)?;
        let linked = rustix::fs::linkat(&to_dir, to_name, dir, name, AtFlags::empty());
        self.tried(path, linked.map_err(|e| ("link", e)))
    }

    pub(super) fn remove(&mut self, path: &[u8]) -> Result<(), StorageError> {
        let (dir, _) = self.parent(path)?;
        if self.look(&dir, path)?.is_none() {
            return Err(StorageError::refused(path, "it should be removed but does not exist"));
        }
        self.touch(&dir, path)?;
        self.clear(&dir, path)
    }

    /// Removes what is at `path` and forgets what was remembered about it.
    fn clear(&mut self, dir: &OwnedFd, path: &[u8]) -> Result<(), StorageError> {
        let (parent, name) = divide(path);
        let removed = remove_at(dir.as_fd(), name, &walk::below(&self.path, parent))?;
        self.totals.entries = self.totals.entries.saturating_sub(removed.entries);
        self.totals.allocated = self.totals.allocated.saturating_sub(removed.bytes);
        self.times.remove(path);
        let mut below = path.to_vec();
        below.push(b'/');
        let stale: Vec<_> = self
            .times
            .range(below.clone()..)
            .map(|(p, _)| p)
            .take_while(|p| p.starts_with(&below))
            .cloned()
            .collect();
        for path in stale {
            self.times.remove(&path);
        }
        if self.parent.as_ref().is_some_and(|(at, _)| at == path || at.starts_with(&below)) {
            self.parent = None;
        }
        Ok(())
    }

    fn allowed(&self, entry: &Entry) -> Result<(), StorageError> {
        let (kind, major, minor) = match entry.kind {
            EntryKind::CharDev { major, minor } => ("character", major, minor),
            EntryKind::BlockDev { major, minor } => ("block", major, minor),
            _ => return Ok(()),
        };
        if self.policy.allows(kind == "block", major, minor) {
            return Ok(());
        }
        Err(StorageError::Device { path: shown(&entry.path), kind, major, minor })
    }
}
