//! Image files off a bulk stream into a directory in memory.
//!
//! Everything is the peer's word: names are plain file names made once, sizes are counted against
//! a limit fixed before the first byte, and each file must match its digest before it counts.

use crate::transport::bulk::{BulkError, BulkReader, Record};
use rustix::fs::{Mode, OFlags};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tranship_proto::bulk::{ImageData, ImageEnd, ImageStart, ImagesEnd, RecordKind};
use tranship_proto::codec;
use tranship_proto::error::WireError;

/// Most image files of one dump.
const MAX_FILES: usize = 100_000;

/// Why images could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The stream failed.
    #[error("cannot receive images")]
    Bulk(#[from] BulkError),
    /// A file cannot be written.
    #[error("cannot write the image file {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// More than was agreed.
    #[error("the images are larger than the {limit} bytes of memory set aside for them")]
    TooMuch {
        /// The limit.
        limit: u64,
    },
    /// The contents differ from what the source read.
    #[error("the image file {name} differs from what the source sent: {why}")]
    Digest {
        /// The file.
        name: String,
        /// In what.
        why: String,
    },
    /// The source broke the order of records.
    #[error("the source's image stream is out of order: {0}")]
    Order(String),
}

impl From<WireError> for ReceiveError {
    fn from(e: WireError) -> Self {
        Self::Bulk(e.into())
    }
}

struct OpenFile {
    name: String,
    file: std::fs::File,
    digest: blake3::Hasher,
    bytes: u64,
}

/// What came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Files.
    pub files: u32,
    /// Their bytes.
    pub bytes: u64,
}

/// Takes image files into `dir`, which has none of them yet; at most `limit` bytes. Blocking.
///
/// Returns after the stream's own end record, checked against what came. On an error the directory
/// is left for the caller to remove. `came` is told the name of each file that is whole.
pub fn receive_images(
    reader: &mut BulkReader,
    dir: &Path,
    limit: u64,
    mut came: impl FnMut(&str),
) -> Result<Received, ReceiveError> {
    let at = |path: &Path| {
        let path = path.to_path_buf();
        move |source: std::io::Error| ReceiveError::Write { path, source }
    };
    let dir_fd: OwnedFd = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| at(dir)(e.into()))?;
    let mut names = HashSet::new();
    let mut open: HashMap<u16, OpenFile> = HashMap::new();
    let mut total = Received::default();
    let mut left = limit;
    let order = |what: String| ReceiveError::Order(what);
    loop {
        let Some(Record { kind, meta, data }) = reader.read()? else { return Err(reader.cut().into()) };
        match kind {
            RecordKind::ImageStart => {
                let start: ImageStart = codec::decode("ImageStart", &meta)?;
                start.check()?;
                if !names.insert(start.name.clone()) || names.len() > MAX_FILES {
                    return Err(order(format!("{} comes twice, or too many files come", start.name)));
                }
                let path = dir.join(&start.name);
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(&dir_fd, &start.name, flags, Mode::from_raw_mode(0o600))
                    .map_err(|e| at(&path)(e.into()))?;
                let file =
                    OpenFile { name: start.name, file: fd.into(), digest: blake3::Hasher::new(), bytes: 0 };
                if open.insert(start.slot, file).is_some() {
                    return Err(order(format!("slot {} is taken", start.slot)));
                }
            }
            RecordKind::ImageData => {
                let ImageData { slot } = codec::decode("ImageData", &meta)?;
                let file =
                    open.get_mut(&slot).ok_or_else(|| order(format!("bytes for closed slot {slot}")))?;
                left = left.checked_sub(data.len() as u64).ok_or(ReceiveError::TooMuch { limit })?;
                file.digest.update(&data);
                file.bytes += data.len() as u64;
                file.file.write_all(&data).map_err(at(&dir.join(&file.name)))?;
            }
            RecordKind::ImageEnd => {
                let end: ImageEnd = codec::decode("ImageEnd", &meta)?;
                let file = open
                    .remove(&end.slot)
                    .ok_or_else(|| order(format!("end of closed slot {}", end.slot)))?;
                let differs = |why: String| ReceiveError::Digest { name: file.name.clone(), why };
                if file.bytes != end.bytes {
                    return Err(differs(format!("{} bytes instead of {}", file.bytes, end.bytes)));
                }
                if *file.digest.finalize().as_bytes() != end.digest {
                    return Err(differs("another digest".into()));
                }
                total.files += 1;
                total.bytes += file.bytes;
                came(&file.name);
            }
            RecordKind::ImagesEnd => {
                let end: ImagesEnd = codec::decode("ImagesEnd", &meta)?;
                if !open.is_empty() || (end.files, end.bytes) != (total.files, total.bytes) {
                    return Err(order(format!("{} files came, {} were announced", total.files, end.files)));
                }
                return Ok(total);
            }
            RecordKind::Tree | RecordKind::Pages | RecordKind::PagesEnd => {
                return Err(order("a record of another kind of stream".into()));
            }
        }
    }
}
