//! What the source remembers between passes: a model of the tree the receiver has by now.
//!
//! A [`Node`] is a name, an [`Object`] what the name stands for at the receiver. Names that are hard links of
//! each other share one object. Cost per name is about 50 bytes plus the name, per object about 120 bytes,
//! and 24 bytes for each 64 KiB of file data: ten million files of 64 KiB need about 2 GiB.

use std::time::Duration;

use rustix::fs::Statx;

use super::blocks::Block;
use super::walk::{FileKind, device_of, nanos};

/// Index of an object.
pub(super) type ObjectId = u32;

/// One name in the tree.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) name: Box<[u8]>,
    /// `None` until the receiver was told about it.
    pub(super) object: Option<ObjectId>,
    /// Sorted by name; only for directories.
    pub(super) children: Vec<Node>,
}

/// Identity of an object at the source.
pub(super) type Key = (u64, u64);

pub(super) fn key_of(stat: &Statx) -> Key {
    (device_of(stat), stat.stx_ino)
}

/// What the receiver has, and how the source looked when it was sent.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) key: Key,
    pub(super) kind: FileKind,
    ctime: i64,
    mtime: i64,
    atime: i64,
    size: u64,
    mode: u16,
    /// The look was long enough after the last change that a later one must show another time stamp.
    pub(super) safe: bool,
    /// Pages written through mappings were cleaned before the look, so that later stores show in the time
    /// stamp.
    pub(super) flushed: bool,
    /// Names that stand for it.
    links: u32,
    /// Digest over metadata and extended attributes as last sent.
    pub(super) sent: [u8; 16],
    /// Blocks of a regular file as last sent.
    pub(super) blocks: Box<[Block]>,
}

/// Outcome of comparing an object with what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Same,
    /// Only the access time moved; contents need no look.
    AccessTime,
    Changed,
}

impl Object {
    pub(super) fn new(kind: FileKind, stat: &Statx) -> Self {
        Self {
            key: key_of(stat),
            kind,
            ctime: 0,
            mtime: 0,
            atime: 0,
            size: 0,
            mode: 0,
            safe: false,
            flushed: false,
            links: 0,
            sent: [0; 16],
            blocks: Box::default(),
        }
    }

    /// Compares by time stamps. A time stamp has the grain of a timer tick, so an object that changed shortly
    /// before it was read may have changed again unseen; such an object counts as changed.
    pub(super) fn look(&self, stat: &Statx) -> Look {
        let same = self.safe
            && self.key == key_of(stat)
            && self.ctime == nanos(stat.stx_ctime)
            && self.mtime == nanos(stat.stx_mtime)
            && self.size == stat.stx_size
            && self.mode == stat.stx_mode;
        match same {
            true if self.atime == nanos(stat.stx_atime) => Look::Same,
            true => Look::AccessTime,
            false => Look::Changed,
        }
    }

    /// Remembers a look that began at `started` (nanoseconds since the epoch).
    pub(super) fn remember(&mut self, stat: &Statx, started: i64, margin: Duration) {
        self.key = key_of(stat);
        self.ctime = nanos(stat.stx_ctime);
        self.mtime = nanos(stat.stx_mtime);
        self.atime = nanos(stat.stx_atime);
        self.size = stat.stx_size;
        self.mode = stat.stx_mode;
        let margin = i64::try_from(margin.as_nanos()).unwrap_or(i64::MAX);
        self.safe = self.ctime.saturating_add(margin) < started;
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether the object still has the inode change time it was remembered with.
    pub(super) fn same_ctime(&self, stat: &Statx) -> bool {
        self.ctime == nanos(stat.stx_ctime)
    }
}

/// All objects, with reuse of freed slots.
#[derive(Debug, Default)]
pub(super) struct Objects {
    slots: Vec<Object>,
    free: Vec<ObjectId>,
}

impl Objects {
    /// Adds an object with one name. At most `u32::MAX` objects; the limit on entries is far below.
    pub(super) fn add(&mut self, mut object: Object) -> ObjectId {
        object.links = 1;
        if let Some(id) = self.free.pop() {
            self.slots[id as usize] = object;
            return id;
        }
        self.slots.push(object);
        (self.slots.len() - 1) as ObjectId
    }

    pub(super) fn get(&self, id: ObjectId) -> &Object {
        &self.slots[id as usize]
    }

    pub(super) fn get_mut(&mut self, id: ObjectId) -> &mut Object {
        &mut self.slots[id as usize]
    }

    pub(super) fn link(&mut self, id: ObjectId) {
        self.slots[id as usize].links += 1;
    }

    pub(super) fn unlink(&mut self, id: ObjectId) {
        let object = &mut self.slots[id as usize];
        object.links -= 1;
        if object.links == 0 {
            object.blocks = Box::default();
            self.free.push(id);
        }
    }

    /// Forgets a name with everything below it and returns how many names that were. The node keeps its name.
    pub(super) fn forget(&mut self, node: &mut Node) -> u64 {
        let mut names = 0;
        if let Some(id) = node.object.take() {
            self.unlink(id);
            names += 1;
        }
        for mut child in std::mem::take(&mut node.children) {
            names += self.forget(&mut child);
        }
        names
    }
}
