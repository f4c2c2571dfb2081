//! What can go wrong when a tree is read, written or removed.

use std::io;
use std::path::PathBuf;

use tranship_proto::tree::TreeError;

/// Error of this module. Paths are shown quoted and escaped: names inside containers may hold anything.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// A system call failed.
    #[error("cannot {what} {path:?}: {source}")]
    Io {
        /// What was attempted, for example `read extended attributes of`.
        what: &'static str,
        /// The object, below the root of the tree or absolute.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The destination file system is full.
    #[error(
        "no space left for {path:?}: {free_bytes} bytes and {free_inodes} inodes are free; free some space, \
         or point state_dir or the volume to a larger file system"
    )]
    NoSpace {
        /// The object being written.
        path: PathBuf,
        /// Bytes available to the agent.
        free_bytes: u64,
        /// Inodes available to the agent.
        free_inodes: u64,
    },
    /// The tree is larger than allowed.
    #[error(
        "{path:?}: {what} goes beyond the limit of {limit}; raise it if the tree is meant to be that large"
    )]
    Limit {
        /// What is counted.
        what: &'static str,
        /// Where the limit was reached.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// An object that cannot be carried.
    #[error("{path:?} cannot be carried: {why}")]
    NotCarried {
        /// The object.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A record from the peer is malformed.
    #[error("record from the peer is refused: {0}")]
    Malformed(#[from] TreeError),
    /// A record from the peer is well formed but does not fit what came before.
    #[error("record from the peer for {path:?} is refused: {why}")]
    Refused {
        /// The object it is about; empty if none.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A device node the policy does not allow.
    #[error(
        "{path:?} is a {kind} device {major}:{minor}, which is not allowed here; remove the node from the \
         container or allow the device at the destination"
    )]
    Device {
        /// The node.
        path: PathBuf,
        /// `character` or `block`.
        kind: &'static str,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// The directory to fill already holds something.
    #[error("{path:?} is not empty; it must be missing or an empty directory")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// Something is mounted on or below a tree that should be removed.
    #[error("{path:?} is not removed: {mount:?} is a mount point; unmount it first")]
    MountBelow {
        /// The tree.
        path: PathBuf,
        /// The mount point.
        mount: PathBuf,
    },
    /// The caller asked to stop.
    #[error("stopped on request")]
    Stopped,
    /// The receiving end of the records is gone.
    #[error("the receiver of the records is gone")]
    SinkClosed,
    /// An earlier call failed, so what the other side has is unknown.
    #[error("an earlier pass of this tree did not finish; start again with an empty destination")]
    Spent,
}

impl StorageError {
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io { what, path: path.into(), source: source.into() }
    }

    pub(super) fn refused(path: &[u8], why: impl Into<String>) -> Self {
        Self::Refused { path: shown(path), why: why.into() }
    }
}

/// A path of the tree for messages. The root is shown as `.`.
pub(super) fn shown(path: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let path = if path.is_empty() { b".".as_slice() } else { path };
    PathBuf::from(std::ffi::OsStr::from_bytes(path))
}
