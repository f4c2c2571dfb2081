//! Bulk records: contents of images and files, on unidirectional streams of their own.
//!
//! A bulk stream starts with one framed [`BulkOpen`] message. After it come records:
//!
//! ```text
//! 0      2       4          8         12         16
//! | kind | flags | meta_len | raw_len | wire_len | meta ... | data ...
//! ```
//!
//! `meta` is a small serialized message, `data` raw bytes, compressed as one zstd frame of its own
//! when [`FLAG_ZSTD`] is set. Each record decodes alone into at most [`MAX_DATA`] bytes, which
//! bounds memory at the receiver and makes a decompression bomb pointless. A stream that ends
//! without an end record is a cut stream, never a short one.

use crate::error::WireError;
use crate::ids::{Epoch, MigrationId};
use serde::{Deserialize, Serialize};

/// Bytes of a record header.
pub const RECORD_HEADER_LEN: usize = 16;
/// Most bytes of data in one record, decompressed.
pub const MAX_DATA: usize = 1 << 20;
/// Most bytes of metadata in one record; an entry with many extended attributes is the largest.
pub const MAX_META: usize = 1 << 20;
/// The data is one zstd frame.
pub const FLAG_ZSTD: u16 = 1;

/// First message on a bulk stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkOpen {
    /// The migration.
    pub migration: MigrationId,
    /// Its epoch.
    pub epoch: Epoch,
    /// What follows.
    pub content: BulkContent,
}

/// What a bulk stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkContent {
    /// Image files.
    Images,
    /// One pass over one tree.
    Tree {
        /// Tree index of the offer.
        index: u16,
        /// Number of the pass, from 1.
        pass: u32,
    },
    /// One of the streams of a round over the memory.
    Pages {
        /// Number of the round, from 1.
        round: u32,
        /// Which of the round's streams, from 0.
        lane: u16,
        /// How many streams the round has; at most [`crate::pages::MAX_LANES`].
        lanes: u16,
    },
}

/// Record numbers. Retired numbers stay listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum RecordKind {
    /// A file of the image begins; meta is [`ImageStart`].
    ImageStart = 1,
    /// Bytes of the current image file, in order.
    ImageData = 2,
    /// It ends; meta is [`ImageEnd`].
    ImageEnd = 3,
    /// All image files were sent; meta is [`ImagesEnd`].
    ImagesEnd = 4,
    /// A tree record without data; meta is [`crate::tree::TreeMeta`].
    Tree = 5,
    /// Pages of a process; meta is [`crate::pages::PageBatch`].
    Pages = 6,
    /// A stream of a round was sent; meta is [`crate::pages::PagesEnd`].
    PagesEnd = 7,
}

impl RecordKind {
    fn from_number(n: u16) -> Result<Self, WireError> {
        Ok(match n {
            1 => Self::ImageStart,
            2 => Self::ImageData,
            3 => Self::ImageEnd,
            4 => Self::ImagesEnd,
            5 => Self::Tree,
            6 => Self::Pages,
            7 => Self::PagesEnd,
            _ => return Err(WireError::UnknownKind(n)),
        })
    }
}

/// An image file begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStart {
    /// Plain file name: letters, digits, `.`, `-`, `_`; at most 128.
    pub name: String,
    /// Which of the files open at the same time on this stream; at most [`MAX_OPEN_IMAGES`].
    pub slot: u16,
}

/// Image files that may be open on one stream at a time.
pub const MAX_OPEN_IMAGES: u16 = 16;

/// Bytes for a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageData {
    /// The slot.
    pub slot: u16,
}

/// An image file ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageEnd {
    /// The slot, free again after this.
    pub slot: u16,
    /// Bytes of the file.
    pub bytes: u64,
    /// BLAKE3 of the file.
    pub digest: [u8; 32],
}

/// All image files were sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagesEnd {
    /// How many.
    pub files: u32,
    /// Their bytes.
    pub bytes: u64,
}

impl ImageStart {
    /// Checks the name and the slot.
    pub fn check(&self) -> Result<(), WireError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if self.name.is_empty()
            || self.name.len() > 128
            || self.name.starts_with('.')
            || !self.name.bytes().all(plain)
        {
            return Err(WireError::invalid(
                "image name",
                format!("{:?}", self.name.chars().take(140).collect::<String>()),
            ));
        }
        if self.slot >= MAX_OPEN_IMAGES {
            return Err(WireError::invalid("image slot", self.slot.to_string()));
        }
        Ok(())
    }
}

/// A parsed record header, its lengths checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it is.
    pub kind: RecordKind,
    /// Whether the data is compressed.
    pub zstd: bool,
    /// Bytes of metadata.
    pub meta_len: u32,
    /// Bytes of data, decompressed.
    pub raw_len: u32,
    /// Bytes of data on the wire.
    pub wire_len: u32,
}

impl RecordHeader {
    /// The sixteen bytes.
    pub fn to_bytes(self) -> [u8; RECORD_HEADER_LEN] {
        let mut out = [0; RECORD_HEADER_LEN];
        out[0..2].copy_from_slice(&(self.kind as u16).to_le_bytes());
        out[2..4].copy_from_slice(&(if self.zstd { FLAG_ZSTD } else { 0 }).to_le_bytes());
        out[4..8].copy_from_slice(&self.meta_len.to_le_bytes());
        out[8..12].copy_from_slice(&self.raw_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.wire_len.to_le_bytes());
        out
    }

    /// Parses and checks a header before anything is allocated for it.
    pub fn parse(b: &[u8; RECORD_HEADER_LEN]) -> Result<Self, WireError> {
        let u16_at = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        let u32_at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let number = u16_at(0);
        let kind = RecordKind::from_number(number)?;
        let flags = u16_at(2);
        if flags & !FLAG_ZSTD != 0 {
            return Err(WireError::invalid("record flags", format!("{flags:#x}")));
        }
        let h = Self {
            kind,
            zstd: flags & FLAG_ZSTD != 0,
            meta_len: u32_at(4),
            raw_len: u32_at(8),
            wire_len: u32_at(12),
        };
        let too_long = |length: u32, limit: usize| WireError::TooLong {
            kind: number,
            length: u64::from(length),
            limit: limit as u64,
        };
        if h.meta_len as usize > MAX_META {
            return Err(too_long(h.meta_len, MAX_META));
        }
        if h.raw_len as usize > MAX_DATA {
            return Err(too_long(h.raw_len, MAX_DATA));
        }
        // A compressed record is only sent when it is smaller.
        if h.wire_len > h.raw_len || (!h.zstd && h.wire_len != h.raw_len) {
            return Err(WireError::invalid(
                "record lengths",
                format!("{} on the wire for {}", h.wire_len, h.raw_len),
            ));
        }
        Ok(h)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_headers_keep_their_bytes_and_their_limits() {
        let h = RecordHeader {
            kind: RecordKind::ImageData,
            zstd: true,
            meta_len: 3,
            raw_len: 1 << 20,
            wire_len: 9,
        };
        assert_eq!(h.to_bytes(), *b"\x02\0\x01\0\x03\0\0\0\0\0\x10\0\x09\0\0\0");
        assert_eq!(RecordHeader::parse(&h.to_bytes()), Ok(h));
        for bad in [
            RecordHeader { raw_len: (1 << 20) + 1, ..h },
            RecordHeader { meta_len: (1 << 20) + 1, ..h },
            RecordHeader { wire_len: (1 << 20) + 1, ..h },
            RecordHeader { zstd: false, ..h },
        ] {
            assert!(RecordHeader::parse(&bad.to_bytes()).is_err(), "{bad:?}");
        }
        assert!(RecordHeader::parse(&[0; 16]).is_err());
        assert!(RecordHeader::parse(&[0xff; 16]).is_err());
    }

    #[test]
    fn image_names_cannot_leave_their_directory() {
        for bad in ["", "..", ".x", "a/b", "a\0", "a b", &"a".repeat(129)] {
            assert!(ImageStart { name: bad.into(), slot: 0 }.check().is_err(), "{bad:?}");
        }
        assert!(ImageStart { name: "core-1.img".into(), slot: 15 }.check().is_ok());
        assert!(ImageStart { name: "core-1.img".into(), slot: 16 }.check().is_err());
    }
}
