//! The one module that knows the serializer.
//!
//! bincode 2.0.1 in its serde mode: little endian, variable-length integers, positional, not
//! self-describing. It is pinned because it is complete and unmaintained; a replacement has to
//! change this file only. Lengths inside a body are bounded by [`MAX_BODY`] while decoding, so a
//! hostile length prefix cannot make the process allocate.

use crate::error::WireError;
use serde::{Serialize, de::DeserializeOwned};

/// Largest serialized message, in bytes; every kind's own limit is at most this.
pub const MAX_BODY: usize = 4 << 20;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_BODY>()
}

/// Serializes `value`, refusing a result above `limit` bytes.
pub fn encode<T: Serialize>(what: &'static str, value: &T, limit: usize) -> Result<Vec<u8>, WireError> {
    let bytes = bincode::serde::encode_to_vec(value, config())
        .map_err(|e| WireError::Encode { what, why: e.to_string() })?;
    if bytes.len() > limit.min(MAX_BODY) {
        let why = format!("{} bytes are above the limit of {limit}", bytes.len());
        return Err(WireError::Encode { what, why });
    }
    Ok(bytes)
}

/// Decodes exactly one `T` out of `bytes`; bytes left over are an error.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, WireError> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, config())
        .map_err(|e| WireError::Decode { what, why: e.to_string() })?;
    if used != bytes.len() {
        return Err(WireError::Trailing { what, extra: bytes.len() - used });
    }
    Ok(value)
}
