//! Image files onto a bulk stream.
//!
//! Several files may be open at a time, each in a slot, because CRIU's page stream interleaves
//! with nothing but ends after other files could start. Every file ends with its length and its
//! BLAKE3 digest, the whole with counts: a cut stream cannot look complete.

use crate::transport::bulk::{BulkError, BulkWriter};
use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tranship_proto::bulk::{
    ImageData, ImageEnd, ImageStart, ImagesEnd, MAX_DATA, MAX_OPEN_IMAGES, RecordKind,
};
use tranship_proto::codec;
use tranship_proto::error::WireError;

/// Bytes gathered before a record is sent; small ones come in thousands.
const GATHER: usize = MAX_DATA;

/// Why images could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The stream failed.
    #[error("cannot send images")]
    Bulk(#[from] BulkError),
    /// A file cannot be read.
    #[error("cannot read the image file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// More files open at a time than the protocol has slots for.
    #[error("more than {MAX_OPEN_IMAGES} image files are open at a time")]
    Slots,
}

impl From<WireError> for SendError {
    fn from(e: WireError) -> Self {
        Self::Bulk(e.into())
    }
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Files.
    pub files: u32,
    /// Their bytes.
    pub bytes: u64,
}

/// An image file being sent.
#[derive(Debug)]
pub struct OpenImage {
    slot: u16,
    meta: Vec<u8>,
    gathered: Box<[u8]>,
    used: usize,
    digest: blake3::Hasher,
    bytes: u64,
}

/// Sends image files over one bulk stream. Blocking.
pub struct ImageSender {
    writer: BulkWriter,
    slots: u16,
    sent: Sent,
    // Files of the directory that went ahead of it.
    ahead: HashSet<OsString>,
    // Of a file that has ended: to make one anew for each of fifty files takes longer than to send them.
    spare: Option<Box<[u8]>>,
}

impl ImageSender {
    /// Over this writer.
    pub fn new(writer: BulkWriter) -> Self {
        Self { writer, slots: 0, sent: Sent::default(), ahead: HashSet::new(), spare: None }
    }

    /// Begins a file.
    pub fn start(&mut self, name: &str) -> Result<OpenImage, SendError> {
        let slot = (0..MAX_OPEN_IMAGES).find(|s| self.slots & (1 << s) == 0).ok_or(SendError::Slots)?;
        let start = ImageStart { name: name.to_owned(), slot };
        start.check()?;
        self.slots |= 1 << slot;
        self.writer.record(RecordKind::ImageStart, &codec::encode("ImageStart", &start, 1 << 10)?, &[])?;
        Ok(OpenImage {
            slot,
            meta: codec::encode("ImageData", &ImageData { slot }, 16)?,
            gathered: self.spare.take().unwrap_or_else(|| vec![0; GATHER].into_boxed_slice()),
            used: 0,
            digest: blake3::Hasher::new(),
            bytes: 0,
        })
    }

    /// Fills a file from a reader: exactly `length` bytes, or until its end when `None`.
    pub fn fill(
        &mut self,
        image: &mut OpenImage,
        from: &mut impl Read,
        length: Option<u64>,
    ) -> std::io::Result<Result<u64, SendError>> {
        let mut left = length.unwrap_or(u64::MAX);
        let mut total = 0;
        while left > 0 {
            let room = GATHER - image.used;
            let want = usize::try_from(left).unwrap_or(room).min(room);
            let got = match from.read(&mut image.gathered[image.used..image.used + want]) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if got == 0 {
                if length.is_some() {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                break;
            }
            image.used += got;
            total += got as u64;
            left -= got as u64;
            if image.used == GATHER
                && let Err(e) = self.flush(image)
            {
                return Ok(Err(e));
            }
        }
        Ok(Ok(total))
    }

    /// Appends bytes to a file.
    pub fn write(&mut self, image: &mut OpenImage, mut bytes: &[u8]) -> Result<(), SendError> {
        while !bytes.is_empty() {
            let n = bytes.len().min(GATHER - image.used);
            image.gathered[image.used..image.used + n].copy_from_slice(&bytes[..n]);
            image.used += n;
            bytes = &bytes[n..];
            if image.used == GATHER {
                self.flush(image)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, image: &mut OpenImage) -> Result<(), SendError> {
        let data = &image.gathered[..image.used];
        if data.is_empty() {
            return Ok(());
        }
        image.digest.update(data);
        image.bytes += data.len() as u64;
        self.writer.record(RecordKind::ImageData, &image.meta, data)?;
        image.used = 0;
        Ok(())
    }

    /// Ends a file.
    pub fn end(&mut self, mut image: OpenImage) -> Result<(), SendError> {
        self.flush(&mut image)?;
        let end =
            ImageEnd { slot: image.slot, bytes: image.bytes, digest: *image.digest.finalize().as_bytes() };
        self.writer.record(RecordKind::ImageEnd, &codec::encode("ImageEnd", &end, 1 << 10)?, &[])?;
        self.slots &= !(1 << image.slot);
        self.spare = Some(image.gathered);
        self.sent.files += 1;
        self.sent.bytes += image.bytes;
        Ok(())
    }

    /// Sends one file of a directory, which is left out when the directory is sent. What comes twice is sent
    /// once.
    pub fn ahead(&mut self, dir: &Path, name: &str) -> Result<(), SendError> {
        if self.ahead.insert(name.into()) { self.file(&dir.join(name), name) } else { Ok(()) }
    }

    /// Hands on what small records have gathered, for whoever waits for one of them.
    pub fn push(&mut self) -> Result<(), SendError> {
        Ok(self.writer.push()?)
    }

    fn file(&mut self, path: &Path, name: &str) -> Result<(), SendError> {
        let read = |source| SendError::Read { path: path.to_owned(), source };
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        let fd: OwnedFd =
            rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(|e| read(e.into()))?;
        let mut image = self.start(name)?;
        self.fill(&mut image, &mut std::fs::File::from(fd), None).map_err(read)??;
        self.end(image)
    }

    /// Sends every other regular file of a directory, in order of name.
    pub fn directory(&mut self, dir: &Path) -> Result<(), SendError> {
        let read = |path: &Path| {
            let path = path.to_path_buf();
            move |source| SendError::Read { path, source }
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(read(dir))? {
            let entry = entry.map_err(read(dir))?;
            if entry.file_type().map_err(read(dir))?.is_file() && !self.ahead.contains(&entry.file_name()) {
                names.push(entry.file_name());
            }
        }
        names.sort();
        for name in names {
            self.file(&dir.join(&name), &name.to_string_lossy())?;
        }
        Ok(())
    }

    /// Ends the stream and says what it carried.
    pub fn finish(mut self) -> Result<Sent, SendError> {
        let end = ImagesEnd { files: self.sent.files, bytes: self.sent.bytes };
        self.writer.record(RecordKind::ImagesEnd, &codec::encode("ImagesEnd", &end, 64)?, &[])?;
        self.writer.finish()?;
        Ok(self.sent)
    }
}
