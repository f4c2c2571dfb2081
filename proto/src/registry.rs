//! Every framed message, with its number and its limit.
//!
//! Zero is never valid. A number is never used again for something else: a retired message stays
//! listed here as a comment.

use crate::bulk::BulkOpen;
use crate::control::{Hello, Reply, Request, Welcome};
use crate::error::WireError;
use crate::frame::{HEADER_LEN, Header};
use crate::handoff::Envelope;
use crate::{codec, version};

macro_rules! registry {
    ($($number:literal $name:ident($ty:ty) limit $limit:expr, $doc:literal;)*) => {
        /// A framed message of any kind.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Message {
            $(#[doc = $doc] $name($ty),)*
        }

        /// The largest body of a kind in bytes, or `None` for an unknown number.
        pub fn limit_of(kind: u16) -> Option<usize> {
            match kind {
                $($number => Some($limit),)*
                _ => None,
            }
        }

        impl Message {
            /// Its number.
            pub fn kind(&self) -> u16 {
                match self { $(Self::$name(_) => $number,)* }
            }

            /// Its name, for logs and errors.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name),)* }
            }

            fn body(&self) -> Result<Vec<u8>, WireError> {
                match self { $(Self::$name(m) => codec::encode(stringify!($name), m, $limit),)* }
            }

            /// Decodes the body of a message of this kind.
            pub fn decode(kind: u16, body: &[u8]) -> Result<Self, WireError> {
                match kind {
                    $($number => {
                        if body.len() > $limit {
                            return Err(WireError::TooLong { kind, length: body.len() as u64, limit: $limit as u64 });
                        }
                        Ok(Self::$name(codec::decode(stringify!($name), body)?))
                    })*
                    _ => Err(WireError::UnknownKind(kind)),
                }
            }
        }

        $(impl From<$ty> for Message {
            fn from(m: $ty) -> Self { Self::$name(m) }
        })*
    };
}

registry! {
    1 Hello(Hello) limit 4 << 10, "First message on a connection.";
    2 Welcome(Welcome) limit 4 << 10, "Answer to it.";
    3 Request(Request) limit 2 << 20, "A controller's request.";
    4 Reply(Reply) limit 4 << 20, "An agent's answer.";
    5 Handoff(Envelope) limit 4 << 20, "A message of the hand-over.";
    6 BulkOpen(BulkOpen) limit 1 << 10, "Start of a bulk stream.";
}

impl Message {
    /// Header and body, ready to be written.
    pub fn to_frame(&self, version: u16) -> Result<Vec<u8>, WireError> {
        let body = self.body()?;
        let length = u32::try_from(body.len())
            .map_err(|_| WireError::Encode { what: self.name(), why: "longer than a frame".into() })?;
        let mut out = Vec::with_capacity(HEADER_LEN + body.len());
        out.extend_from_slice(&Header { version, kind: self.kind(), length }.to_bytes());
        out.extend_from_slice(&body);
        Ok(out)
    }

    /// Parses one frame that is wholly in memory. For tests and fuzzing; streams use
    /// [`Header::parse`] and [`Message::decode`].
    pub fn from_frame(bytes: &[u8]) -> Result<Self, WireError> {
        let header: &[u8; HEADER_LEN] =
            bytes.first_chunk().ok_or_else(|| WireError::invalid("frame", "shorter than its header"))?;
        let h = Header::parse(header, version::SUPPORTED[0], limit_of)?;
        let body = &bytes[HEADER_LEN..];
        if body.len() != h.length as usize {
            return Err(WireError::invalid("frame", format!("{} bytes of {}", body.len(), h.length)));
        }
        Self::decode(h.kind, body)
    }
}
