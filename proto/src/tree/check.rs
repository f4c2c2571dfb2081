//! Whether a record is well formed on its own.

use super::*;

/// Why a record is not well formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A path that is not a plain relative path.
    #[error("path {path:?} is refused: {why}")]
    Path {
        /// The path, non-UTF-8 replaced, cut to 200 characters.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A number or length outside its limits.
    #[error("{what} of {path:?} is {value}, allowed are at most {limit}")]
    Limit {
        /// Which field.
        what: &'static str,
        /// Path of the entry, or empty.
        path: String,
        /// Value found.
        value: u64,
        /// Largest allowed value.
        limit: u64,
    },
    /// A field whose value makes no sense.
    #[error("{what} of {path:?} is refused: {why}")]
    Field {
        /// Which field.
        what: &'static str,
        /// Path of the entry, or empty.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Payload length and its announcement differ.
    #[error("record announces {announced} payload bytes, {found} came")]
    Payload {
        /// Bytes announced.
        announced: u64,
        /// Bytes given.
        found: u64,
    },
}

/// Whether an extended attribute is part of the tree: `user.*`, `trusted.*`, `security.*` and POSIX ACLs.
/// Others (`system.nfs4_acl`, `btrfs.*` and the like) describe the file system below and mean nothing on
/// another one.
pub fn xattr_is_carried(name: &[u8]) -> bool {
    let after = |prefix: &[u8]| name.len() > prefix.len() && name.starts_with(prefix);
    after(b"user.")
        || after(b"trusted.")
        || after(b"security.")
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}

/// Checks a path. `root_ok` allows the empty path.
///
/// # Errors
/// [`TreeError::Path`] for absolute paths, empty, `.` or `..` components, NUL bytes, and anything beyond
/// [`MAX_PATH`], [`MAX_NAME`] or [`MAX_DEPTH`].
pub fn check_path(path: &[u8], root_ok: bool) -> Result<(), TreeError> {
    let refuse = |why| Err(TreeError::Path { path: shown(path), why });
    if path.is_empty() {
        return if root_ok { Ok(()) } else { refuse("it is empty") };
    }
    if path.len() > MAX_PATH {
        return refuse("it is longer than 4095 bytes");
    }
    if path.contains(&0) {
        return refuse("it holds a NUL byte");
    }
    if path[0] == b'/' {
        return refuse("it is absolute");
    }
    let mut depth = 0;
    for part in path.split(|b| *b == b'/') {
        depth += 1;
        match part {
            b"" => return refuse("it has an empty component"),
            b"." | b".." => return refuse("it has a . or .. component"),
            _ if part.len() > MAX_NAME => return refuse("a component is longer than 255 bytes"),
            _ if depth > MAX_DEPTH => return refuse("it has more than 256 components"),
            _ => {}
        }
    }
    Ok(())
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

impl Entry {
    /// Checks the entry on its own.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn check(&self) -> Result<(), TreeError> {
        check_path(&self.path, matches!(self.kind, EntryKind::Dir))?;
        let field = |what, why| Err(TreeError::Field { what, path: shown(&self.path), why });
        let limit = |what, value: u64, limit: u64| {
            if value > limit {
                Err(TreeError::Limit { what, path: shown(&self.path), value, limit })
            } else {
                Ok(())
            }
        };
        match &self.kind {
            EntryKind::File { size, .. } => limit("size", *size, MAX_SIZE)?,
            EntryKind::Symlink { target } => {
                limit("target length", target.len() as u64, MAX_PATH as u64)?;
                if target.is_empty() || target.contains(&0) {
                    return field("target", "it is empty or holds a NUL byte");
                }
            }
            EntryKind::HardLink { to } => {
                check_path(to, false)?;
                if self.meta != Meta::default() || !self.xattrs.is_empty() {
                    return field("metadata", "a hard link has none of its own");
                }
                if *to == self.path {
                    return field("link target", "it is the link itself");
                }
            }
            EntryKind::CharDev { major, minor } | EntryKind::BlockDev { major, minor } => {
                limit("device major", u64::from(*major), 0xfff)?;
                limit("device minor", u64::from(*minor), 0xf_ffff)?;
            }
            EntryKind::Dir | EntryKind::Fifo | EntryKind::Socket => {}
        }
        limit("mode", u64::from(self.meta.mode), 0o7777)?;
        limit("atime nanoseconds", u64::from(self.meta.atime.ns), 999_999_999)?;
        limit("mtime nanoseconds", u64::from(self.meta.mtime.ns), 999_999_999)?;
        limit("owner", u64::from(self.meta.uid), u64::from(u32::MAX - 1))?;
        limit("group", u64::from(self.meta.gid), u64::from(u32::MAX - 1))?;
        limit("number of extended attributes", self.xattrs.len() as u64, MAX_XATTRS as u64)?;
        let mut total = 0u64;
        let mut last: &[u8] = b"";
        for xattr in &self.xattrs {
            limit("extended attribute name length", xattr.name.len() as u64, MAX_NAME as u64)?;
            limit("extended attribute value length", xattr.value.len() as u64, MAX_XATTR_VALUE as u64)?;
            total += (xattr.name.len() + xattr.value.len()) as u64;
            if !xattr_is_carried(&xattr.name) || xattr.name.contains(&0) {
                return field("extended attribute", "its namespace is not carried");
            }
            if xattr.name.as_slice() <= last {
                return field("extended attributes", "names are not in strictly rising order");
            }
            last = &xattr.name;
        }
        limit("extended attributes in bytes", total, MAX_XATTR_TOTAL as u64)
    }
}

fn check_range(offset: u64, len: u64, most: u64) -> Result<(), TreeError> {
    let path = String::new;
    if len == 0 {
        return Err(TreeError::Field { what: "length", path: path(), why: "it is zero" });
    }
    if len > most {
        return Err(TreeError::Limit { what: "length", path: path(), value: len, limit: most });
    }
    match offset.checked_add(len) {
        Some(end) if end <= MAX_SIZE => Ok(()),
        _ => Err(TreeError::Limit { what: "offset", path: path(), value: offset, limit: MAX_SIZE - len }),
    }
}

impl TreeRecord {
    /// Checks the record on its own: paths, lengths, ranges.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn check(&self) -> Result<(), TreeError> {
        match self {
            Self::Entry(entry) => entry.check(),
            Self::Data { offset, data } => check_range(*offset, data.len() as u64, MAX_DATA as u64),
            Self::Hole { offset, len } => check_range(*offset, *len, MAX_SIZE),
            Self::Remove { path } => check_path(path, false),
            Self::PassStart { .. } | Self::FileEnd { .. } | Self::PassEnd { .. } => Ok(()),
        }
    }
}
