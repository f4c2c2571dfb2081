//! File contents at the receiving side: the one file whose data is arriving.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::Statx;
use tranship_proto::tree::{Entry, Meta, Xattr};

use super::digest::FileDigest;
use super::error::{StorageError, shown};
use super::place;
use super::store::TreeStore;
use super::walk;

pub(super) struct OpenFile {
    pub(super) path: Vec<u8>,
    fd: OwnedFd,
    size: u64,
    delta: bool,
    meta: Meta,
    xattrs: Vec<Xattr>,
    digest: FileDigest,
    /// End of the last range, in bytes.
    cursor: u64,
    /// Allocated bytes before this entry.
    before: u64,
}

impl TreeStore {
    pub(super) fn open_file(
        &mut self,
        entry: Entry,
        fd: OwnedFd,
        size: u64,
        delta: bool,
        before: u64,
    ) -> Result<(), StorageError> {
        self.tried(&entry.path, rustix::fs::ftruncate(&fd, size).map_err(|e| ("set the size of", e)))?;
        self.file = Some(OpenFile {
            path: entry.path,
            fd,
            size,
            delta,
            meta: entry.meta,
            xattrs: entry.xattrs,
            digest: FileDigest::new(),
            cursor: 0,
            before,
        });
        Ok(())
    }

    pub(super) fn data(&mut self, offset: u64, data: &[u8]) -> Result<(), StorageError> {
        let (room, limit) =
            (self.policy.max_bytes.saturating_sub(self.totals.allocated), self.policy.max_bytes);
        let file = advance(&mut self.file, offset, data.len() as u64)?;
        file.digest.add(offset, data);
        if file.digest.bytes().saturating_sub(file.before) > room {
            return Err(StorageError::Limit {
                what: "the size of the tree in bytes",
                path: shown(&file.path),
                limit,
            });
        }
        let written = place::write(&file.fd, offset, data);
        match (written, &self.file) {
            (Err(e), Some(file)) => Err(self.failed(&file.path, ("write", e))),
            _ => Ok(()),
        }
    }

    pub(super) fn hole(&mut self, offset: u64, len: u64) -> Result<(), StorageError> {
        let file = advance(&mut self.file, offset, len)?;
        if !file.delta {
            return Err(StorageError::refused(&file.path, "a hole in a file that has nothing else yet"));
        }
        let punched = place::punch(&file.fd, offset, file.cursor, file.size);
        match (punched, &self.file) {
            (Err(e), Some(file)) => Err(self.failed(&file.path, ("punch a hole in", e))),
            _ => Ok(()),
        }
    }

    pub(super) fn file_end(&mut self, digest: [u8; 32], sent_bytes: u64) -> Result<(), StorageError> {
        let Some(file) = self.file.take() else {
            return Err(StorageError::refused(b"", "data ends but no file was announced"));
        };
        if file.digest.value() != (digest, sent_bytes) {
            return Err(StorageError::refused(&file.path, "its data is not what its sender says it is"));
        }
        let stat = self.tried(&file.path, walk::stat_at(file.fd.as_fd(), b"").map_err(|e| ("examine", e)))?;
        self.totals.allocated =
            self.totals.allocated.saturating_sub(file.before).saturating_add(allocated(&stat));
        let limit = self.policy.max_bytes;
        if self.totals.allocated > limit {
            return Err(StorageError::Limit {
                what: "the size of the tree in bytes",
                path: shown(&file.path),
                limit,
            });
        }
        self.tried(&file.path, place::set_meta(file.fd.as_fd(), false, &file.meta, &file.xattrs))?;
        self.tried(&file.path, place::set_times(file.fd.as_fd(), file.meta.atime, file.meta.mtime))
    }
}

pub(super) fn allocated(stat: &Statx) -> u64 {
    stat.stx_blocks.saturating_mul(512)
}

/// Checks that a range belongs to the open file and comes after the ones before it.
fn advance(file: &mut Option<OpenFile>, offset: u64, len: u64) -> Result<&mut OpenFile, StorageError> {
    let Some(file) = file else {
        return Err(StorageError::refused(b"", "data comes but no file was announced"));
    };
    let end = offset.saturating_add(len);
    if offset < file.cursor || end > file.size {
        let why = format!("bytes {offset} to {end} are out of order or beyond its size of {}", file.size);
        return Err(StorageError::refused(&file.path, why));
    }
    file.cursor = end;
    Ok(file)
}
