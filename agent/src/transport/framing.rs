//! Framed messages over any byte stream.
//!
//! Neither function is cancel-safe: a caller that gives up in the middle must drop the stream.

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tranship_proto::error::WireError;
use tranship_proto::frame::{HEADER_LEN, Header};
use tranship_proto::registry::{Message, limit_of};

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer closed the stream between messages.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer sent what is not allowed.
    #[error("the peer sent what the protocol does not allow")]
    Wire(#[from] WireError),
    /// A message of another kind was due.
    #[error("the peer sent {got} where {want} was due")]
    Unexpected {
        /// What came.
        got: &'static str,
        /// What was due.
        want: &'static str,
    },
}

/// Reads one message of protocol `version`; [`FrameError::Closed`] when the stream ends before it.
pub async fn read_message(
    stream: &mut (impl AsyncRead + Unpin),
    version: u16,
) -> Result<Message, FrameError> {
    let mut header = [0; HEADER_LEN];
    let first = stream.read(&mut header).await?;
    if first == 0 {
        return Err(FrameError::Closed);
    }
    stream.read_exact(&mut header[first..]).await?;
    let header = Header::parse(&header, version, limit_of)?;
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body).await?;
    Ok(Message::decode(header.kind, &body)?)
}

/// Writes one message and flushes it.
pub async fn write_message(
    stream: &mut (impl AsyncWrite + Unpin),
    version: u16,
    message: impl Into<Message>,
) -> Result<(), FrameError> {
    let frame = message.into().to_frame(version)?;
    stream.write_all(&frame).await?;
    stream.flush().await?;
    Ok(())
}
