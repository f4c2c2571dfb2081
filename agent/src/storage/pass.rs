//! One pass over a tree: look at every name, send what the receiver lacks.
//!
//! Invariant: the model in `Objects` changes exactly when a record is sent, so it always says what the
//! receiver has. Hard links: the first name of an inode met in a pass leads; further names are sent as links
//! to it unless they already stand for the same object at the receiver. Nothing is assumed about names not
//! met yet.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Statx;
use rustix::io::Errno;
use tranship_proto::tree::{self, Content, Entry, EntryKind, Meta, TreeRecord};

use super::digest::{FileDigest, feed_properties};
use super::error::{StorageError, shown};
use super::objects::{Key, Look, Node, Object, ObjectId, key_of};
use super::out::Out;
use super::source::{Phase, TreeSource};
use super::walk::{self, FileKind};

/// Device number of the stand-in for something mounted below the root.
const MOUNTED: Key = (u64::MAX, 0);

pub(super) struct Run<'a, 'o> {
    pub(super) source: &'a mut TreeSource,
    pub(super) out: &'a mut Out<'o>,
    pub(super) stop: &'a AtomicBool,
    started: i64,
    pub(super) phase: Phase,
    pub(super) path: Vec<u8>,
    leaders: HashMap<Key, (ObjectId, Box<[u8]>)>,
    pub(super) seen: u64,
    pub(super) read_bytes: u64,
}

impl<'a, 'o> Run<'a, 'o> {
    pub(super) fn new(
        source: &'a mut TreeSource,
        out: &'a mut Out<'o>,
        stop: &'a AtomicBool,
        phase: Phase,
        started: i64,
    ) -> Self {
        let (path, leaders) = (Vec::new(), HashMap::new());
        Self { source, out, stop, started, phase, path, leaders, seen: 0, read_bytes: 0 }
    }

    pub(super) fn tree(&mut self, top: &mut Node) -> Result<(), StorageError> {
        let root = self.source.root.fd.try_clone().map_err(|e| self.io("open", e))?;
        if self.visit(root.as_fd(), top, 0)? {
            return Ok(());
        }
        Err(self.io("examine", Errno::NOENT))
    }

    pub(super) fn io(&self, what: &'static str, error: impl Into<std::io::Error>) -> StorageError {
        StorageError::io(what, walk::below(&self.source.shown, &self.path), error)
    }

    /// Brings one name up to date at the receiver. `false`: it is gone, nothing was sent about it.
    fn visit(&mut self, dir: BorrowedFd<'_>, node: &mut Node, depth: usize) -> Result<bool, StorageError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(StorageError::Stopped);
        }
        let stat = match walk::stat_at(dir, &node.name) {
            Ok(stat) => stat,
            Err(e) if walk::is_gone(e) => return Ok(false),
            Err(e) => return Err(self.io("examine", e)),
        };
        self.seen += 1;
        if stat.stx_mnt_id != self.source.root.mount {
            return self.mount_point(node, &stat);
        }
        match FileKind::of(&stat) {
            Some(FileKind::Dir) => self.directory(dir, node, &stat, depth),
            Some(FileKind::File) => self.file(dir, node, &stat),
            Some(kind) => self.special(dir, node, &stat, kind),
            None => {
                Err(StorageError::NotCarried { path: shown(&self.path), why: "its type is unknown".into() })
            }
        }
    }

    fn directory(
        &mut self,
        dir: BorrowedFd<'_>,
        node: &mut Node,
        stat: &Statx,
        depth: usize,
    ) -> Result<bool, StorageError> {
        let known = node.object.filter(|id| self.source.objects.get(*id).kind == FileKind::Dir);
        let look = known.map_or(Look::Changed, |id| self.source.objects.get(id).look(stat));
        let fd = match self.source.root.open_dir(dir, &node.name, look == Look::Changed) {
            Ok(fd) => fd,
            Err(e) if walk::is_gone(e) => return Ok(false),
            Err(e) => return Err(self.io("open", e)),
        };
        if look != Look::Same {
            let Some(entry) = self.entry(dir, node, stat, EntryKind::Dir)? else {
                return Ok(false);
            };
            let sent = self.digest(&entry);
            let id = match known {
                Some(id) => id,
                None => self.fresh(node, FileKind::Dir, stat)?,
            };
            if known.is_none() || self.source.objects.get(id).sent != sent {
                self.out.entry(entry)?;
            }
            self.remember(id, stat, sent);
        }
        if self.children(&fd, node, look == Look::Changed, depth)?
            && let Some(id) = node.object
        {
            self.source.objects.get_mut(id).safe = false;
        }
        Ok(true)
    }

    /// Visits what is in a directory; `true` if something vanished meanwhile.
    fn children(
        &mut self,
        fd: &OwnedFd,
        node: &mut Node,
        relist: bool,
        depth: usize,
    ) -> Result<bool, StorageError> {
        let length = self.path.len();
        let mut children = std::mem::take(&mut node.children);
        if relist {
            let names = walk::list(fd, self.source.limits.max_entries, &self.path)?;
            children = self.merge(children, names)?;
        }
        if depth >= tree::MAX_DEPTH && !children.is_empty() {
            let why = format!("more than {} directory levels", tree::MAX_DEPTH);
            return Err(StorageError::NotCarried { path: shown(&self.path), why });
        }
        let mut vanished = false;
        for child in &mut children {
            self.enter(&child.name);
            if !self.visit(fd.as_fd(), child, depth + 1)? {
                vanished = true;
                self.remove(child)?;
            }
            self.path.truncate(length);
        }
        if vanished {
            children.retain(|child| child.object.is_some());
        }
        node.children = children;
        Ok(vanished)
    }

    /// Takes over known names that are still listed, removes the others, adds new ones.
    fn merge(&mut self, old: Vec<Node>, names: Vec<Box<[u8]>>) -> Result<Vec<Node>, StorageError> {
        let length = self.path.len();
        let mut merged = Vec::with_capacity(names.len());
        let mut old = old.into_iter().peekable();
        let mut names = names.into_iter().peekable();
        loop {
            match (old.peek(), names.peek()) {
                (Some(node), name) if name.is_none_or(|name| node.name < *name) => {
                    if let Some(mut node) = old.next() {
                        self.enter(&node.name);
                        self.remove(&mut node)?;
                        self.path.truncate(length);
                    }
                }
                (node, Some(name)) => {
                    let same = node.is_some_and(|node| node.name == *name);
                    let name = names.next().unwrap_or_default();
                    merged.push(match old.next_if(|_| same) {
                        Some(node) => node,
                        None => Node { name, ..Node::default() },
                    });
                }
                (_, None) => return Ok(merged),
            }
        }
    }

    fn enter(&mut self, name: &[u8]) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
    }

    /// Tells the receiver that the current path is gone, if it was told about it before.
    fn remove(&mut self, node: &mut Node) -> Result<(), StorageError> {
        if node.object.is_some() {
            self.source.entries -= self.source.objects.forget(node);
            self.out.send(TreeRecord::Remove { path: self.path.clone() })?;
        }
        Ok(())
    }

    /// Symbolic links, pipes, sockets and devices: small enough to be sent anew on any change.
    fn special(
        &mut self,
        dir: BorrowedFd<'_>,
        node: &mut Node,
        stat: &Statx,
        kind: FileKind,
    ) -> Result<bool, StorageError> {
        if self.join(node, stat, kind)? {
            return Ok(true);
        }
        let known = node.object.filter(|id| {
            let object = self.source.objects.get(*id);
            object.kind == kind && object.key == key_of(stat)
        });
        if known.is_some_and(|id| self.source.objects.get(id).look(stat) == Look::Same) {
            self.lead(node, stat);
            return Ok(true);
        }
        let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
        let entry_kind = match kind {
            FileKind::Symlink => match rustix::fs::readlinkat(dir, &*node.name, Vec::new()) {
                Ok(target) => EntryKind::Symlink { target: target.into_bytes() },
                Err(e) if walk::is_gone(e) || e == Errno::INVAL => return Ok(false),
                Err(e) => return Err(self.io("read the link", e)),
            },
            FileKind::Fifo => EntryKind::Fifo,
            FileKind::Socket => EntryKind::Socket,
            FileKind::CharDev => EntryKind::CharDev { major, minor },
            FileKind::BlockDev => EntryKind::BlockDev { major, minor },
            FileKind::Dir | FileKind::File => return Ok(false),
        };
        let Some(entry) = self.entry(dir, node, stat, entry_kind)? else {
            return Ok(false);
        };
        let sent = self.digest(&entry);
        let id = match known.filter(|id| self.source.objects.get(*id).sent == sent) {
            Some(id) => id,
            None => {
                let id = self.fresh(node, kind, stat)?;
                self.out.entry(entry)?;
                id
            }
        };
        self.remember(id, stat, sent);
        self.lead(node, stat);
        Ok(true)
    }

    /// Something mounted below the root: what it covers cannot be seen, so an empty stand-in is sent once.
    fn mount_point(&mut self, node: &mut Node, stat: &Statx) -> Result<bool, StorageError> {
        let is_dir = FileKind::of(stat) == Some(FileKind::Dir);
        let kind = if is_dir { FileKind::Dir } else { FileKind::File };
        if node.object.is_some_and(|id| {
            let object = self.source.objects.get(id);
            object.key == MOUNTED && object.kind == kind
        }) {
            return Ok(true);
        }
        self.remove(node)?;
        let id = self.fresh(node, kind, stat)?;
        self.source.objects.get_mut(id).key = MOUNTED;
        let entry_kind =
            if is_dir { EntryKind::Dir } else { EntryKind::File { size: 0, content: Content::Full } };
        let meta = Meta { mode: if is_dir { 0o755 } else { 0o644 }, ..Meta::default() };
        self.out.entry(Entry { path: self.path.clone(), kind: entry_kind, meta, xattrs: Vec::new() })?;
        if !is_dir {
            let (digest, sent_bytes) = FileDigest::new().value();
            self.out.send(TreeRecord::FileEnd { digest, sent_bytes })?;
        }
        Ok(true)
    }

    /// Makes the name a link to one met before in this pass, if the inode has one.
    pub(super) fn join(
        &mut self,
        node: &mut Node,
        stat: &Statx,
        kind: FileKind,
    ) -> Result<bool, StorageError> {
        if stat.stx_nlink < 2 {
            return Ok(false);
        }
        let Some((leader, to)) = self.leaders.get(&key_of(stat)) else {
            return Ok(false);
        };
        let leader = *leader;
        if self.source.objects.get(leader).kind != kind {
            return Ok(false);
        }
        if node.object != Some(leader) {
            let (to, path) = (to.to_vec(), self.path.clone());
            self.source.objects.link(leader);
            self.source.entries -= self.source.objects.forget(node);
            node.object = Some(leader);
            self.count()?;
            self.out.entry(Entry {
                path,
                kind: EntryKind::HardLink { to },
                meta: Meta::default(),
                xattrs: Vec::new(),
            })?;
        }
        // Changed since the first name was looked at, or the number of a removed inode was used again.
        if !self.source.objects.get(leader).same_ctime(stat) {
            self.source.objects.get_mut(leader).safe = false;
        }
        Ok(true)
    }

    pub(super) fn lead(&mut self, node: &Node, stat: &Statx) {
        if stat.stx_nlink > 1
            && let Some(id) = node.object
        {
            self.leaders.insert(key_of(stat), (id, self.path.as_slice().into()));
        }
    }

    /// A new object for the name; whatever it stood for is forgotten, as the receiver will replace it.
    pub(super) fn fresh(
        &mut self,
        node: &mut Node,
        kind: FileKind,
        stat: &Statx,
    ) -> Result<ObjectId, StorageError> {
        self.source.entries -= self.source.objects.forget(node);
        let id = self.source.objects.add(Object::new(kind, stat));
        node.object = Some(id);
        self.count()?;
        Ok(id)
    }

    fn count(&mut self) -> Result<(), StorageError> {
        self.source.entries += 1;
        let limit = self.source.limits.max_entries;
        if self.source.entries > limit {
            return Err(StorageError::Limit {
                what: "the number of entries",
                path: shown(&self.path),
                limit,
            });
        }
        Ok(())
    }

    pub(super) fn remember(&mut self, id: ObjectId, stat: &Statx, sent: [u8; 16]) {
        let margin = self.source.limits.margin;
        let object = self.source.objects.get_mut(id);
        object.remember(stat, self.started, margin);
        object.sent = sent;
    }

    pub(super) fn entry(
        &self,
        dir: BorrowedFd<'_>,
        node: &Node,
        stat: &Statx,
        kind: EntryKind,
    ) -> Result<Option<Entry>, StorageError> {
        let Some(xattrs) = walk::read_xattrs(dir, &node.name, &self.path)? else {
            return Ok(None);
        };
        Ok(Some(Entry { path: self.path.clone(), kind, meta: walk::meta_of(stat), xattrs }))
    }

    pub(super) fn digest(&self, entry: &Entry) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.source.key);
        feed_properties(&mut hasher, entry);
        let mut digest = [0; 16];
        digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        digest
    }
}
