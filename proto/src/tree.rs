//! Records of a file tree on its way from one host to another.
//!
//! A tree is sent in passes. One pass is `PassStart`, any number of records, `PassEnd`; a later pass holds
//! only what differs from what the earlier ones built. The stream is our own and not tar: tar drops sockets,
//! devices, hard links and directory times, and its extended attributes are text that the sender's files can
//! forge.
//!
//! Everything here comes from a peer on the receiving side: [`TreeRecord::check`] says whether a record is
//! well formed on its own. What it means for the tree built so far (parents, sizes, limits of the job) is
//! checked by who applies it.
//!
//! File bytes never pass through the codec: [`TreeRecord::split`] parts a record into [`TreeMeta`] (serde)
//! and payload.

use crate::bounded;
use serde::{Deserialize, Serialize};

mod check;

pub use check::{TreeError, check_path, xattr_is_carried};

/// Longest path, in bytes, without a final NUL (`PATH_MAX - 1`).
pub const MAX_PATH: usize = 4095;
/// Longest single component in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// Most components in a path. Walks hold one descriptor per level.
pub const MAX_DEPTH: usize = 256;
/// Most extended attributes on one object.
pub const MAX_XATTRS: usize = 512;
/// Largest value of one extended attribute in bytes (`XATTR_SIZE_MAX`).
pub const MAX_XATTR_VALUE: usize = 65536;
/// Names and values of all extended attributes of one object, in bytes.
pub const MAX_XATTR_TOTAL: usize = 960 << 10;
/// Largest payload of one `Data` record in bytes.
pub const MAX_DATA: usize = 1 << 20;
/// Upper bound in bytes for the encoded form of any [`TreeMeta`]; a frame cap for the codec.
pub const MAX_META_ENCODED: usize = MAX_XATTR_TOTAL + MAX_XATTRS * 16 + 2 * (MAX_PATH + 16) + 512;
/// Largest file size and largest end of a range in bytes (`off_t`).
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// Seconds and nanoseconds since the epoch; seconds may be negative, nanoseconds are below 10^9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub s: i64,
    /// Nanoseconds after `s`, 0..=999_999_999.
    pub ns: u32,
}

/// Owner, permissions and times of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits including setuid, setgid and sticky (`0o7777`); no file type.
    pub mode: u32,
    /// Owner; never `u32::MAX`, which means "leave alone" to the kernel.
    pub uid: u32,
    /// Group; never `u32::MAX`.
    pub gid: u32,
    /// Last access.
    pub atime: Time,
    /// Last modification.
    pub mtime: Time,
}

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// Full name with its namespace, see [`xattr_is_carried`].
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Value, at most [`MAX_XATTR_VALUE`] bytes; may be empty.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

/// What follows a file entry, and what it means for bytes that are not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A new object: what was at the path is removed. Ranges without data are holes.
    Full,
    /// The regular file at the path is changed in place, after it was cut or extended to `size`.
    Delta,
    /// Content and size stay; only metadata changes. No data and no `FileEnd` follow.
    Keep,
}

/// Kind of object, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// Directory: created when missing, kept with its children otherwise.
    Dir,
    /// Regular file.
    File {
        /// Size in bytes after this record's data, at most [`MAX_SIZE`].
        size: u64,
        /// What follows.
        content: Content,
    },
    /// Symbolic link, always a new object; the target is never followed.
    Symlink {
        /// Target as it is, 1..=[`MAX_PATH`] bytes, no NUL.
        #[serde(with = "serde_bytes")]
        target: Vec<u8>,
    },
    /// Another name for an object sent before. Metadata is the object's own: `meta` is default, `xattrs`
    /// empty.
    HardLink {
        /// Path of the existing name.
        #[serde(with = "serde_bytes")]
        to: Vec<u8>,
    },
    /// Named pipe, always a new object.
    Fifo,
    /// Unix socket file (the name only), always a new object.
    Socket,
    /// Character device, always a new object.
    CharDev {
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
    /// Block device, always a new object.
    BlockDev {
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
}

/// Creates or replaces an object, or updates its metadata. Parents come before children.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Path below the root of the tree: relative, components separated by one `/`. Empty means the root
    /// itself.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Owner, mode, times.
    pub meta: Meta,
    /// All extended attributes, sorted by name; others of the carried namespaces are removed.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_XATTRS>")]
    pub xattrs: Vec<Xattr>,
}

/// One record of a tree stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeRecord {
    /// First record of a pass; passes count from 1.
    PassStart {
        /// Number of the pass.
        pass: u32,
    },
    /// See [`Entry`].
    Entry(Entry),
    /// Bytes of the last file entry, in rising order of offset, not overlapping.
    Data {
        /// Offset in the file in bytes.
        offset: u64,
        /// 1..=[`MAX_DATA`] bytes.
        data: Vec<u8>,
    },
    /// A range of the last file entry (content `Delta`) that is a hole now; same order rule as `Data`.
    Hole {
        /// Offset in the file in bytes.
        offset: u64,
        /// Length in bytes, at least 1.
        len: u64,
    },
    /// End of the last file entry's data. Required after `Full` and `Delta`.
    FileEnd {
        /// BLAKE3 over offset (little endian u64) and bytes of each `Data` record, in order.
        digest: [u8; 32],
        /// Sum of the lengths of the `Data` records.
        sent_bytes: u64,
    },
    /// Removes the object at the path with everything below it. It must exist.
    Remove {
        /// Path, not empty.
        path: Vec<u8>,
    },
    /// Last record of a pass.
    PassEnd {
        /// Number of `Entry` and `Remove` records in the pass.
        entries: u64,
        /// Sum of all `Data` lengths in the pass.
        data_bytes: u64,
        /// BLAKE3 over all records of the pass before this one.
        digest: [u8; 32],
    },
}

/// The part of a [`TreeRecord`] that goes through the codec. Variant order is the wire format: append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeMeta {
    /// See [`TreeRecord::PassStart`].
    PassStart {
        /// Number of the pass.
        pass: u32,
    },
    /// See [`TreeRecord::Entry`].
    Entry(Entry),
    /// See [`TreeRecord::Data`]; `len` bytes of payload follow outside the codec.
    Data {
        /// Offset in the file in bytes.
        offset: u64,
        /// Length of the payload in bytes.
        len: u32,
    },
    /// See [`TreeRecord::Hole`].
    Hole {
        /// Offset in the file in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// See [`TreeRecord::FileEnd`].
    FileEnd {
        /// Digest of the file's data records.
        digest: [u8; 32],
        /// Sum of the data lengths.
        sent_bytes: u64,
    },
    /// See [`TreeRecord::Remove`].
    Remove {
        /// Path, not empty.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// See [`TreeRecord::PassEnd`].
    PassEnd {
        /// Number of `Entry` and `Remove` records.
        entries: u64,
        /// Sum of all data lengths.
        data_bytes: u64,
        /// Chained digest.
        digest: [u8; 32],
    },
}

impl TreeRecord {
    /// Parts the record into what the codec carries and the raw payload (empty unless `Data`).
    pub fn split(self) -> (TreeMeta, Vec<u8>) {
        let meta = match self {
            Self::Data { offset, data } => {
                let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
                return (TreeMeta::Data { offset, len }, data);
            }
            Self::PassStart { pass } => TreeMeta::PassStart { pass },
            Self::Entry(entry) => TreeMeta::Entry(entry),
            Self::Hole { offset, len } => TreeMeta::Hole { offset, len },
            Self::FileEnd { digest, sent_bytes } => TreeMeta::FileEnd { digest, sent_bytes },
            Self::Remove { path } => TreeMeta::Remove { path },
            Self::PassEnd { entries, data_bytes, digest } => {
                TreeMeta::PassEnd { entries, data_bytes, digest }
            }
        };
        (meta, Vec::new())
    }

    /// Puts a record together again and checks it.
    ///
    /// # Errors
    /// [`TreeError::Payload`] when `data` is not what `meta` announces, otherwise as [`TreeRecord::check`].
    pub fn join(meta: TreeMeta, data: Vec<u8>) -> Result<Self, TreeError> {
        if meta.payload_len() != data.len() {
            return Err(TreeError::Payload {
                announced: meta.payload_len() as u64,
                found: data.len() as u64,
            });
        }
        let record = match meta {
            TreeMeta::PassStart { pass } => Self::PassStart { pass },
            TreeMeta::Entry(entry) => Self::Entry(entry),
            TreeMeta::Data { offset, .. } => Self::Data { offset, data },
            TreeMeta::Hole { offset, len } => Self::Hole { offset, len },
            TreeMeta::FileEnd { digest, sent_bytes } => Self::FileEnd { digest, sent_bytes },
            TreeMeta::Remove { path } => Self::Remove { path },
            TreeMeta::PassEnd { entries, data_bytes, digest } => {
                Self::PassEnd { entries, data_bytes, digest }
            }
        };
        record.check()?;
        Ok(record)
    }
}

impl TreeMeta {
    /// Bytes of payload that follow this record. Compare with [`MAX_DATA`] before reading them.
    pub fn payload_len(&self) -> usize {
        match self {
            Self::Data { len, .. } => *len as usize,
            _ => 0,
        }
    }
}
