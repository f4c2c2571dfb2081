//! The sending side: what differs since the last pass.

use std::collections::HashSet;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tranship_proto::tree::{self, TreeRecord};

use super::error::{StorageError, shown};
use super::objects::{Key, Node, Objects, key_of};
use super::out::Out;
use super::pass::Run;
use super::suspects::Suspects;
use super::walk::{self, FileKind, Root};

/// Limits on a tree that is read.
#[derive(Debug, Clone)]
pub struct TreeLimits {
    /// Most names in the tree.
    pub max_entries: u64,
    /// An object that changed less than this before it was read is read again in the next pass. Must exceed
    /// the grain of time stamps (a timer tick) and the time a single `write` call may take.
    pub margin: Duration,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self { max_entries: 10_000_000, margin: Duration::from_secs(1) }
    }
}

/// Size of a tree before it is sent. Only a hint while the container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeEstimate {
    /// Names, the root included.
    pub entries: u64,
    /// Bytes allocated on disk; objects with several names count once.
    pub bytes: u64,
}

/// What one pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PassStats {
    /// Number of the pass, from 1.
    pub pass: u32,
    /// Names looked at.
    pub seen: u64,
    /// Entries and removals sent.
    pub entries: u64,
    /// File bytes sent.
    pub data_bytes: u64,
    /// File bytes read to find what changed.
    pub read_bytes: u64,
    /// Wall clock time, including waiting for the sink.
    pub elapsed: Duration,
}

/// What the container does during a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It runs, there is time to prepare the last pass.
    Running,
    /// It is frozen: this pass is exact and takes as little time as possible.
    Frozen,
}

/// The receiver of records is gone; the pass ends with [`StorageError::SinkClosed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the receiver of the records is gone")]
pub struct SinkClosed;

/// Where records go. `send` may block; that is the back-pressure.
pub trait TreeSink {
    /// Takes the next record.
    ///
    /// # Errors
    /// [`SinkClosed`] when nobody will receive it.
    fn send(&mut self, record: TreeRecord) -> Result<(), SinkClosed>;
}

impl<F: FnMut(TreeRecord) -> Result<(), SinkClosed>> TreeSink for F {
    fn send(&mut self, record: TreeRecord) -> Result<(), SinkClosed> {
        self(record)
    }
}

/// Reads a tree in passes. Blocking; holds one descriptor per directory level while a pass runs, and keeps
/// the file system of the tree in use until dropped.
pub struct TreeSource {
    pub(super) root: Root,
    pub(super) shown: PathBuf,
    pub(super) limits: TreeLimits,
    pub(super) key: [u8; 32],
    pub(super) objects: Objects,
    pub(super) suspects: HashSet<Key>,
    pub(super) entries: u64,
    pub(super) buffer: Vec<u8>,
    top: Node,
    pass: u32,
    spent: bool,
}

impl TreeSource {
    /// Opens the tree at `root`, which must be a directory and no symbolic link.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn open(root: &Path, limits: TreeLimits) -> Result<Self, StorageError> {
        Self::with_root(Root::open(root)?, root, limits)
    }

    fn with_root(root: Root, shown: &Path, limits: TreeLimits) -> Result<Self, StorageError> {
        let mut key = [0; 32];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut key))
            .map_err(|e| StorageError::io("read", "/dev/urandom", e))?;
        Ok(Self {
            root,
            shown: shown.to_path_buf(),
            limits,
            key,
            objects: Objects::default(),
            suspects: HashSet::new(),
            entries: 0,
            buffer: Vec::new(),
            top: Node::default(),
            pass: 0,
            spent: false,
        })
    }

    /// Counts names and allocated bytes. Reads no file.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::Limit`].
    pub fn estimate(&self) -> Result<TreeEstimate, StorageError> {
        let mut estimate = TreeEstimate::default();
        self.measure(self.root.fd.as_fd(), b"", &mut Vec::new(), 0, &mut estimate, &mut HashSet::new())?;
        Ok(estimate)
    }

    fn measure(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &mut Vec<u8>,
        depth: usize,
        sum: &mut TreeEstimate,
        linked: &mut HashSet<Key>,
    ) -> Result<(), StorageError> {
        let stat = match walk::stat_at(dir, name) {
            Ok(stat) => stat,
            Err(e) if walk::is_gone(e) => return Ok(()),
            Err(e) => {
                return Err(StorageError::io("examine", walk::below(&self.shown, path), e));
            }
        };
        sum.entries += 1;
        let limit = self.limits.max_entries;
        if sum.entries > limit {
            return Err(StorageError::Limit { what: "the number of entries", path: shown(path), limit });
        }
        if stat.stx_mnt_id != self.root.mount {
            return Ok(());
        }
        let is_dir = FileKind::of(&stat) == Some(FileKind::Dir);
        if is_dir || stat.stx_nlink < 2 || linked.insert(key_of(&stat)) {
            sum.bytes = sum.bytes.saturating_add(stat.stx_blocks.saturating_mul(512));
        }
        if !is_dir || depth >= tree::MAX_DEPTH {
            return Ok(());
        }
        let fd = match self.root.open_dir(dir, name, true) {
            Ok(fd) => fd,
            Err(e) if walk::is_gone(e) => return Ok(()),
            Err(e) => return Err(StorageError::io("open", walk::below(&self.shown, path), e)),
        };
        let length = path.len();
        for name in walk::list(&fd, limit, path)? {
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            self.measure(fd.as_fd(), &name, path, depth + 1, sum, linked)?;
            path.truncate(length);
        }
        Ok(())
    }

    /// Sends everything that differs from what earlier passes of this object sent.
    ///
    /// Exact only while nothing changes the tree. Changes made meanwhile are found by the next pass: what the
    /// kernel shows by a time stamp, and for files that a process may write through a shared mapping without
    /// one, by reading them when they are among `suspects`. Once suspected, a file stays suspected for all
    /// later passes. While the container runs, dirty pages of suspects are written back first; where the file
    /// system then reports the next store (ext4, xfs, btrfs), a quiet suspect is not read again.
    ///
    /// Not seen: a single `write` call over existing bytes that was already running for longer than
    /// [`TreeLimits::margin`] when its file was read, and that ends before the next pass.
    ///
    /// `stop` is looked at before every object and every MiB of data.
    ///
    /// # Errors
    /// After any error the receiver's state is unknown and further calls give [`StorageError::Spent`].
    pub fn pass(
        &mut self,
        phase: Phase,
        suspects: &Suspects,
        sink: &mut dyn TreeSink,
        stop: &AtomicBool,
    ) -> Result<PassStats, StorageError> {
        if std::mem::replace(&mut self.spent, true) {
            return Err(StorageError::Spent);
        }
        let began = Instant::now();
        let started = suspects.taken().unwrap_or(i64::MAX).min(walk::now_nanos());
        self.suspects.extend(suspects.files());
        self.pass += 1;
        let mut top = std::mem::take(&mut self.top);
        let mut out = Out::new(sink);
        out.send(TreeRecord::PassStart { pass: self.pass })?;
        let mut run = Run::new(self, &mut out, stop, phase, started);
        run.tree(&mut top)?;
        let seen = run.seen;
        let read_bytes = run.read_bytes;
        let (entries, data_bytes) = out.finish()?;
        self.top = top;
        self.spent = false;
        Ok(PassStats { pass: self.pass, seen, entries, data_bytes, read_bytes, elapsed: began.elapsed() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use tranship_proto::tree::EntryKind;

    /// Where the mount cannot be cloned, what is mounted below the root is not entered but replaced by
    /// something empty, once.
    #[test]
    fn without_a_clone_of_the_mount() {
        let space = tempfile::tempdir().expect("a directory");
        let at = |name: &str| space.path().join(name);
        std::fs::create_dir_all(at("mnt/covered")).expect("a mount point");
        for name in ["file", "other", "plain"] {
            std::fs::write(at(name), b"content").expect("a file");
        }
        let (bind, none) = (MsFlags::MS_BIND, None::<&str>);
        mount(Some("none"), &at("mnt"), Some("tmpfs"), MsFlags::empty(), none).expect("a mount");
        mount(Some(&at("other")), &at("file"), none, bind, none).expect("a bind mount");
        let outcome = std::panic::catch_unwind(|| {
            std::fs::write(at("mnt/above"), b"not ours").expect("a file");
            let root = Root::open_plain(space.path()).expect("the root");
            let mut source =
                TreeSource::with_root(root, space.path(), TreeLimits::default()).expect("a source");
            let mut records = Vec::new();
            for _ in 0..2 {
                let mut sink = |record| {
                    records.push(record);
                    Ok(())
                };
                let none = Suspects::default();
                source.pass(Phase::Running, &none, &mut sink, &AtomicBool::new(false)).expect("a pass");
            }
            let entries: Vec<_> = records
                .into_iter()
                .filter_map(|record| match record {
                    TreeRecord::Entry(entry) => Some((entry.path, entry.kind)),
                    _ => None,
                })
                .collect();
            let file = |size| EntryKind::File { size, content: tree::Content::Full };
            let expected: [(&[u8], EntryKind); 5] = [
                (b"", EntryKind::Dir),
                (b"file", file(0)),
                (b"mnt", EntryKind::Dir),
                (b"other", file(7)),
                (b"plain", file(7)),
            ];
            assert_eq!(entries, expected.map(|(path, kind)| (path.to_vec(), kind)));
        });
        for name in ["mnt", "file"] {
            umount2(&at(name), MntFlags::MNT_DETACH).expect("unmounted");
        }
        outcome.expect("the test");
    }
}
