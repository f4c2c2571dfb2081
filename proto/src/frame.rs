//! The frame around every message: sixteen bytes outside the serialized body.
//!
//! ```text
//! 0        4         6      8       10         12        16
//! | magic  | version | kind | flags | reserved | length  | body ...
//! ```
//!
//! All numbers little endian. Version and length can be read, and refused, before anything is
//! decoded or allocated. `flags` and `reserved` must be zero in version 1.

use crate::error::WireError;

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 16;

/// `TSHP` read as a little-endian number.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TSHP");

/// A parsed frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Protocol version of the body.
    pub version: u16,
    /// Message number, see [`crate::registry`].
    pub kind: u16,
    /// Length of the body in bytes, already checked against the kind's limit.
    pub length: u32,
}

impl Header {
    /// The sixteen bytes of this header.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&self.version.to_le_bytes());
        out[6..8].copy_from_slice(&self.kind.to_le_bytes());
        out[12..16].copy_from_slice(&self.length.to_le_bytes());
        out
    }

    /// Parses a header and checks magic, version and the length against `limit_of(kind)`.
    ///
    /// `limit_of` answers `None` for a number that is not in the registry.
    pub fn parse(
        bytes: &[u8; HEADER_LEN],
        version: u16,
        limit_of: impl Fn(u16) -> Option<usize>,
    ) -> Result<Self, WireError> {
        let u16_at = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        let u32_at = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        if u32_at(0) != MAGIC {
            return Err(WireError::BadMagic(u32_at(0)));
        }
        if u16_at(4) != version {
            return Err(WireError::BadVersion { got: u16_at(4), want: version });
        }
        let kind = u16_at(6);
        if u32_at(8) != 0 {
            return Err(WireError::invalid("frame flags", format!("{:#x}", u32_at(8))));
        }
        let limit = limit_of(kind).ok_or(WireError::UnknownKind(kind))?;
        let length = u32_at(12);
        if length as usize > limit {
            return Err(WireError::TooLong { kind, length: u64::from(length), limit: limit as u64 });
        }
        Ok(Self { version, kind, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(kind: u16) -> Option<usize> {
        (kind == 7).then_some(100)
    }

    #[test]
    fn a_header_keeps_its_bytes() {
        let h = Header { version: 1, kind: 7, length: 100 };
        assert_eq!(h.to_bytes(), *b"TSHP\x01\0\x07\0\0\0\0\0\x64\0\0\0");
        assert_eq!(Header::parse(&h.to_bytes(), 1, limit), Ok(h));
    }

    #[test]
    fn each_field_is_checked_before_anything_is_allocated() {
        let good = Header { version: 1, kind: 7, length: 100 };
        let mut long = good;
        long.length = 101;
        assert!(matches!(Header::parse(&long.to_bytes(), 1, limit), Err(WireError::TooLong { .. })));
        assert!(matches!(Header::parse(&good.to_bytes(), 2, limit), Err(WireError::BadVersion { .. })));
        let unknown = Header { kind: 8, ..good };
        assert_eq!(Header::parse(&unknown.to_bytes(), 1, limit), Err(WireError::UnknownKind(8)));
        let mut flags = good.to_bytes();
        flags[9] = 1;
        assert!(Header::parse(&flags, 1, limit).is_err());
        let mut magic = good.to_bytes();
        magic[0] = b't';
        assert!(matches!(Header::parse(&magic, 1, limit), Err(WireError::BadMagic(_))));
    }
}
