//! The digest that chains all records of a pass.
//!
//! Payloads are not hashed a second time here: each file's data is covered by the digest in its `FileEnd`,
//! which is itself part of the chain. Fields are fed with fixed widths and length prefixes, so no two record
//! lists collide by shifting bytes between fields. Hashing the codec's bytes was rejected: it would tie the
//! digest to a codec version.

use tranship_proto::tree::{Content, Entry, EntryKind, Meta, TreeRecord};

/// Running digest over the records of one pass.
pub(super) struct PassDigest(blake3::Hasher);

impl PassDigest {
    pub(super) fn new() -> Self {
        Self(blake3::Hasher::new())
    }

    pub(super) fn add(&mut self, record: &TreeRecord) {
        match record {
            TreeRecord::PassStart { pass } => {
                self.tag(0);
                self.number(u64::from(*pass));
            }
            TreeRecord::Entry(entry) => {
                self.tag(1);
                feed_entry(&mut self.0, entry);
            }
            TreeRecord::Data { offset, data } => {
                self.tag(2);
                self.number(*offset);
                self.number(data.len() as u64);
            }
            TreeRecord::Hole { offset, len } => {
                self.tag(3);
                self.number(*offset);
                self.number(*len);
            }
            TreeRecord::FileEnd { digest, sent_bytes } => {
                self.tag(4);
                self.0.update(digest);
                self.number(*sent_bytes);
            }
            TreeRecord::Remove { path } => {
                self.tag(5);
                bytes(&mut self.0, path);
            }
            TreeRecord::PassEnd { .. } => {}
        }
    }

    pub(super) fn value(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }

    fn tag(&mut self, tag: u8) {
        self.0.update(&[tag]);
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }
}

fn feed_entry(hasher: &mut blake3::Hasher, entry: &Entry) {
    bytes(hasher, &entry.path);
    feed_kind(hasher, &entry.kind);
    feed_attributes(hasher, entry);
}

/// Feeds everything an entry says about the object itself: not where it is, and for files not what they hold.
pub(super) fn feed_properties(hasher: &mut blake3::Hasher, entry: &Entry) {
    match entry.kind {
        EntryKind::File { .. } => drop(hasher.update(&[8])),
        _ => feed_kind(hasher, &entry.kind),
    }
    feed_attributes(hasher, entry);
}

fn feed_attributes(hasher: &mut blake3::Hasher, entry: &Entry) {
    feed_meta(hasher, &entry.meta);
    hasher.update(&(entry.xattrs.len() as u64).to_le_bytes());
    for xattr in &entry.xattrs {
        bytes(hasher, &xattr.name);
        bytes(hasher, &xattr.value);
    }
}

fn feed_meta(hasher: &mut blake3::Hasher, meta: &Meta) {
    for number in [meta.mode, meta.uid, meta.gid, meta.atime.ns, meta.mtime.ns] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(&meta.atime.s.to_le_bytes());
    hasher.update(&meta.mtime.s.to_le_bytes());
}

fn feed_kind(hasher: &mut blake3::Hasher, kind: &EntryKind) {
    let mut device = |tag: u8, major: u32, minor: u32| {
        hasher.update(&[tag]);
        hasher.update(&major.to_le_bytes());
        hasher.update(&minor.to_le_bytes());
    };
    match kind {
        EntryKind::CharDev { major, minor } => device(0, *major, *minor),
        EntryKind::BlockDev { major, minor } => device(1, *major, *minor),
        EntryKind::Dir => drop(hasher.update(&[2])),
        EntryKind::File { size, content } => {
            let content = match content {
                Content::Full => 0,
                Content::Delta => 1,
                Content::Keep => 2,
            };
            hasher.update(&[3, content]);
            hasher.update(&size.to_le_bytes());
        }
        EntryKind::Symlink { target } => {
            hasher.update(&[4]);
            bytes(hasher, target);
        }
        EntryKind::HardLink { to } => {
            hasher.update(&[5]);
            bytes(hasher, to);
        }
        EntryKind::Fifo => drop(hasher.update(&[6])),
        EntryKind::Socket => drop(hasher.update(&[7])),
    }
}

fn bytes(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Running digest over the data records of one file.
pub(super) struct FileDigest {
    hasher: blake3::Hasher,
    bytes: u64,
}

impl FileDigest {
    pub(super) fn new() -> Self {
        Self { hasher: blake3::Hasher::new(), bytes: 0 }
    }

    pub(super) fn add(&mut self, offset: u64, data: &[u8]) {
        self.hasher.update(&offset.to_le_bytes());
        self.hasher.update(data);
        self.bytes += data.len() as u64;
    }

    pub(super) fn value(&self) -> ([u8; 32], u64) {
        (*self.hasher.finalize().as_bytes(), self.bytes)
    }
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}
