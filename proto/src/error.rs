//! What can be wrong with bytes from a peer.

/// A decoding or limit error. None of them is retryable: the peer is broken, hostile or of a
/// version that was not agreed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first four bytes of a frame are not the protocol's.
    #[error("not a tranship frame: it starts with {0:#010x}")]
    BadMagic(u32),
    /// The frame's version is not the one agreed.
    #[error("frame of protocol version {got}, but version {want} was agreed")]
    BadVersion {
        /// Version in the frame.
        got: u16,
        /// Version agreed (or the newest known, before agreement).
        want: u16,
    },
    /// The message number is not in the registry.
    #[error("unknown message kind {0}")]
    UnknownKind(u16),
    /// The announced length is above the limit of this kind.
    #[error("message kind {kind} announces {length} bytes, above its limit of {limit}")]
    TooLong {
        /// Message number.
        kind: u16,
        /// Length announced.
        length: u64,
        /// Limit of that kind.
        limit: u64,
    },
    /// The body does not decode.
    #[error("cannot decode {what}: {why}")]
    Decode {
        /// The type expected.
        what: &'static str,
        /// The serializer's words.
        why: String,
    },
    /// The body is longer than the message in it.
    #[error("{extra} bytes follow {what}")]
    Trailing {
        /// The type decoded.
        what: &'static str,
        /// Bytes left over.
        extra: usize,
    },
    /// A value is outside its allowed range or form.
    #[error("{field} is not acceptable: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// Why.
        why: String,
    },
    /// The message cannot be encoded within its limit.
    #[error("cannot encode {what}: {why}")]
    Encode {
        /// The type.
        what: &'static str,
        /// Why.
        why: String,
    },
}

impl WireError {
    /// A value outside its allowed range or form.
    pub fn invalid(field: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { field, why: why.into() }
    }
}
