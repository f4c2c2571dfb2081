//! The receiving side: builds a tree from records that a peer sent.
//!
//! Everything is checked before it is done; the first refusal ends the store. A whole pass that was altered
//! or cut is noticed at its `PassEnd`, a file at its `FileEnd`. Nothing outside the directory is ever named:
//! paths are resolved beneath it, links are never followed, and device nodes are made only when the policy
//! lists them.
//!
//! Times of directories are applied at the end of each pass, since making something in a directory changes
//! them. The root itself keeps mode 0700 until [`TreeStore::seal`], so that no local user reaches half a tree
//! with setuid programs in it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, Statx};
use rustix::io::Errno;
use tranship_proto::tree::{Meta, Time, TreeRecord, Xattr};

use super::contents::OpenFile;
use super::digest::PassDigest;
use super::error::{StorageError, shown};
use super::place::{self, Failed};
use super::policy::StorePolicy;
use super::walk;

/// What a store holds and took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeTotals {
    /// Passes that ended.
    pub passes: u32,
    /// Names in the tree, without the root.
    pub entries: u64,
    /// Bytes allocated on disk, as the file system counts.
    pub allocated: u64,
    /// File bytes received over all passes.
    pub data_bytes: u64,
    /// Records received over all passes.
    pub records: u64,
}

/// A tree being received. Blocking. Dropped without [`TreeStore::seal`] it leaves what it wrote: see
/// [`super::remove_tree`].
pub struct TreeStore {
    pub(super) root: OwnedFd,
    pub(super) path: PathBuf,
    pub(super) policy: StorePolicy,
    pub(super) totals: TreeTotals,
    /// The last parent directory used, by path.
    pub(super) parent: Option<(Vec<u8>, OwnedFd)>,
    pub(super) file: Option<OpenFile>,
    /// Times to give to directories at the end of the pass.
    pub(super) times: BTreeMap<Vec<u8>, (Time, Time)>,
    pub(super) root_entry: Option<(Meta, Vec<Xattr>)>,
    pass: Option<Pass>,
    broken: bool,
}

struct Pass {
    number: u32,
    digest: PassDigest,
    entries: u64,
    data_bytes: u64,
}

impl TreeStore {
    /// Starts a tree in `dir`, which must be missing (its parent is there) or an empty directory.
    ///
    /// # Errors
    /// [`StorageError::NotEmpty`], [`StorageError::Io`].
    pub fn create(dir: &Path, policy: StorePolicy) -> Result<Self, StorageError> {
        match rustix::fs::mkdir(dir, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(StorageError::io("create", dir, e)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| StorageError::io("open", dir, e))?;
        let (names, _) = walk::list_some(&root, 1).map_err(|e| StorageError::io("list", dir, e))?;
        if !names.is_empty() {
            return Err(StorageError::NotEmpty { path: dir.into() });
        }
        rustix::fs::fchmod(&root, Mode::RWXU).map_err(|e| StorageError::io("set the mode of", dir, e))?;
        Ok(Self {
            root,
            path: dir.into(),
            policy,
            totals: TreeTotals::default(),
            parent: None,
            file: None,
            times: BTreeMap::new(),
            root_entry: None,
            pass: None,
            broken: false,
        })
    }

    /// Number of the last pass that ended as its sender meant it.
    pub fn finished_pass(&self) -> Option<u32> {
        (self.totals.passes > 0).then_some(self.totals.passes)
    }

    /// What was received so far.
    pub fn stats(&self) -> TreeTotals {
        self.totals
    }

    /// Applies the next record.
    ///
    /// # Errors
    /// After any error the tree is of no use and every further call gives [`StorageError::Spent`].
    pub fn apply(&mut self, record: TreeRecord) -> Result<(), StorageError> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(StorageError::Spent);
        }
        record.check()?;
        self.step(record)?;
        self.broken = false;
        Ok(())
    }

    /// Ends the tree after its last pass and gives the root its metadata. With `sync` everything is on disk
    /// when this returns; that takes as long as the disk needs and does not belong in a blackout.
    ///
    /// # Errors
    /// [`StorageError::Spent`] after an earlier error, [`StorageError::Refused`] in the middle of a pass or
    /// before the first one, [`StorageError::Io`].
    pub fn seal(mut self, sync: bool) -> Result<TreeTotals, StorageError> {
        if self.broken {
            return Err(StorageError::Spent);
        }
        if self.pass.is_some() || self.totals.passes == 0 {
            return Err(StorageError::refused(b"", "the last pass did not end"));
        }
        let Some((meta, xattrs)) = self.root_entry.take() else {
            return Err(StorageError::refused(b"", "the root itself was never sent"));
        };
        let handle = place::open_dir(self.root.as_fd(), b"").map_err(|e| self.failed(b"", ("open", e)))?;
        place::set_meta(handle.as_fd(), false, &meta, &xattrs).map_err(|e| self.failed(b"", e))?;
        place::set_times(handle.as_fd(), meta.atime, meta.mtime).map_err(|e| self.failed(b"", e))?;
        if sync {
            rustix::fs::syncfs(&self.root).map_err(|e| self.failed(b"", ("flush", e)))?;
        }
        Ok(self.totals)
    }

    fn step(&mut self, record: TreeRecord) -> Result<(), StorageError> {
        self.totals.records += 1;
        if let TreeRecord::PassStart { pass } = record {
            if self.pass.is_some() || pass.checked_sub(1) != Some(self.totals.passes) {
                return Err(StorageError::refused(b"", format!("pass {pass} does not come next")));
            }
            let mut digest = PassDigest::new();
            digest.add(&record);
            self.pass = Some(Pass { number: pass, digest, entries: 0, data_bytes: 0 });
            return Ok(());
        }
        let most = self.policy.max_entries.saturating_mul(2).saturating_add(1024);
        let Some(pass) = &mut self.pass else {
            return Err(StorageError::refused(b"", "it comes outside of a pass"));
        };
        pass.digest.add(&record);
        match &record {
            TreeRecord::Entry(_) | TreeRecord::Remove { .. } => pass.entries += 1,
            TreeRecord::Data { data, .. } => pass.data_bytes += data.len() as u64,
            _ => {}
        }
        if pass.entries > most {
            return Err(StorageError::Limit {
                what: "records of one pass",
                path: self.path.clone(),
                limit: most,
            });
        }
        if let Some(file) = &self.file
            && !matches!(
                record,
                TreeRecord::Data { .. } | TreeRecord::Hole { .. } | TreeRecord::FileEnd { .. }
            )
        {
            return Err(StorageError::refused(&file.path, "the end of its data is missing"));
        }
        match record {
            TreeRecord::PassStart { .. } => Ok(()),
            TreeRecord::Entry(entry) => self.entry(entry),
            TreeRecord::Data { offset, data } => self.data(offset, &data),
            TreeRecord::Hole { offset, len } => self.hole(offset, len),
            TreeRecord::FileEnd { digest, sent_bytes } => self.file_end(digest, sent_bytes),
            TreeRecord::Remove { path } => self.remove(&path),
            TreeRecord::PassEnd { entries, data_bytes, digest } => self.pass_end(entries, data_bytes, digest),
        }
    }

    fn pass_end(&mut self, entries: u64, data_bytes: u64, digest: [u8; 32]) -> Result<(), StorageError> {
        let Some(pass) = self.pass.take() else {
            return Ok(());
        };
        if (pass.entries, pass.data_bytes, pass.digest.value()) != (entries, data_bytes, digest) {
            let why = format!("pass {} is not what its sender says it is", pass.number);
            return Err(StorageError::refused(b"", why));
        }
        for (path, (atime, mtime)) in std::mem::take(&mut self.times) {
            let handle =
                place::open_dir(self.root.as_fd(), &path).map_err(|e| self.failed(&path, ("open", e)))?;
            place::set_times(handle.as_fd(), atime, mtime).map_err(|e| self.failed(&path, e))?;
        }
        self.totals.passes = pass.number;
        self.totals.data_bytes += data_bytes;
        Ok(())
    }

    /// Remembers a directory's times before something in it changes.
    pub(super) fn touch(&mut self, dir: &OwnedFd, path: &[u8]) -> Result<(), StorageError> {
        let (parent, _) = divide(path);
        if !self.times.contains_key(parent) {
            let stat = self.tried(parent, walk::stat_at(dir.as_fd(), b"").map_err(|e| ("examine", e)))?;
            let meta = walk::meta_of(&stat);
            self.times.insert(parent.to_vec(), (meta.atime, meta.mtime));
        }
        Ok(())
    }

    pub(super) fn count(&mut self, path: &[u8]) -> Result<(), StorageError> {
        let limit = self.policy.max_entries;
        if self.totals.entries >= limit {
            return Err(StorageError::Limit { what: "the number of entries", path: shown(path), limit });
        }
        self.totals.entries += 1;
        Ok(())
    }

    /// The directory a path is in and the last component.
    pub(super) fn parent<'p>(&mut self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8]), StorageError> {
        let (parent, name) = divide(path);
        if let Some((at, fd)) = &self.parent
            && at == parent
        {
            let fd = fd.try_clone().map_err(|e| StorageError::io("open", shown(parent), e))?;
            return Ok((fd, name));
        }
        let (fd, name) = self.open_parent(path)?;
        let copy = fd.try_clone().map_err(|e| StorageError::io("open", shown(parent), e))?;
        self.parent = Some((parent.to_vec(), copy));
        Ok((fd, name))
    }

    pub(super) fn open_parent<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8]), StorageError> {
        let (parent, name) = divide(path);
        match place::open_dir(self.root.as_fd(), parent) {
            Ok(fd) => Ok((fd, name)),
            Err(e) if walk::is_gone(e) || e == Errno::XDEV => {
                let why = format!("its parent is no directory of this tree ({e})");
                Err(StorageError::refused(path, why))
            }
            Err(e) => Err(self.failed(path, ("open the parent of", e))),
        }
    }

    pub(super) fn look(&self, dir: &OwnedFd, path: &[u8]) -> Result<Option<Statx>, StorageError> {
        match walk::stat_at(dir.as_fd(), divide(path).1) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.failed(path, ("examine", e))),
        }
    }

    pub(super) fn tried<T>(&self, path: &[u8], result: Result<T, Failed>) -> Result<T, StorageError> {
        result.map_err(|failed| self.failed(path, failed))
    }

    pub(super) fn failed(&self, path: &[u8], (what, error): Failed) -> StorageError {
        let path = walk::below(&self.path, path);
        if error == Errno::NOSPC && what == place::SET_XATTR {
            let why = "its extended attributes do not fit here (ext4 has about 4 KiB for them)".into();
            return StorageError::NotCarried { path, why };
        }
        if matches!(error, Errno::NOSPC | Errno::DQUOT) {
            let (free_bytes, free_inodes) = place::free_space(&self.root);
            return StorageError::NoSpace { path, free_bytes, free_inodes };
        }
        StorageError::io(what, path, error)
    }
}

/// Parent path (empty for the root) and last component.
pub(super) fn divide(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
