//! Frames read from a byte stream.
//!
//! Bytes are kept in the reader between calls, so [`FrameReader::next`] may be dropped in a
//! `select!` without losing a half-read frame (`read_exact` would lose it). Memory grows with
//! what has arrived, never with what a header announces.

use super::error::ClientError;
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tranship_proto::frame::{HEADER_LEN, Header};
use tranship_proto::registry::{Message, limit_of};

/// Step by which the buffer grows, in bytes.
const STEP: usize = 64 << 10;

/// Reads messages of one protocol version.
pub struct FrameReader<R> {
    inner: R,
    buffer: BytesMut,
    /// Version that frames have to carry; changes once, after the greeting.
    pub version: u16,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader of `inner`.
    pub fn new(inner: R, version: u16) -> Self {
        Self { inner, buffer: BytesMut::new(), version }
    }

    /// The next message, or `None` when the stream ended between two of them.
    ///
    /// Cancel safe. After an error the stream is of no more use.
    pub async fn next(&mut self, peer: &str) -> Result<Option<Message>, ClientError> {
        loop {
            if let Some(message) = self.parse(peer)? {
                return Ok(Some(message));
            }
            self.buffer.reserve(STEP);
            let read = (&mut self.inner).take(STEP as u64).read_buf(&mut self.buffer).await;
            match read {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => {
                    return Err(ClientError::Ended { peer: peer.into(), what: "in the middle of a message" });
                }
                Ok(_) => {}
                Err(source) => return Err(ClientError::Io { peer: peer.into(), what: "read from", source }),
            }
        }
    }

    fn parse(&mut self, peer: &str) -> Result<Option<Message>, ClientError> {
        let wire = |source| ClientError::Wire { peer: peer.into(), source };
        let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::parse(header, self.version, limit_of).map_err(wire)?;
        let length = header.length as usize;
        let Some(body) = self.buffer.get(HEADER_LEN..HEADER_LEN + length) else { return Ok(None) };
        let message = Message::decode(header.kind, body).map_err(wire)?;
        self.buffer.advance(HEADER_LEN + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tranship_proto::control::Reply;

    fn block<T>(f: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(f)
    }

    #[test]
    fn frames_come_whole_however_they_are_cut_and_survive_a_dropped_read() {
        block(async {
            let message = Message::from(Reply::Done("x".repeat(5000)));
            let frame = message.to_frame(1).unwrap();
            let (mut tx, rx) = tokio::io::duplex(64);
            let mut reader = FrameReader::new(rx, 1);
            let writer = tokio::spawn(async move {
                for chunk in [&frame[..], &frame[..]].concat().chunks(7) {
                    tx.write_all(chunk).await.unwrap();
                    tokio::task::yield_now().await;
                }
            });
            let mut got = 0;
            while got < 2 {
                let read = tokio::time::timeout(std::time::Duration::from_micros(50), reader.next("peer"));
                if let Ok(m) = read.await {
                    assert_eq!(m.unwrap().unwrap(), message);
                    got += 1;
                }
            }
            writer.await.unwrap();
            assert!(reader.next("peer").await.unwrap().is_none());
        });
    }

    #[test]
    fn no_damage_to_a_stream_is_more_than_an_error() {
        block(async {
            let rows =
                Message::from(Reply::Plan(vec!["one step".into(), "another".into()])).to_frame(1).unwrap();
            let good = [&rows[..], &Message::from(Reply::End).to_frame(1).unwrap()].concat();
            for at in 0..good.len() {
                for flip in [1, 0x80, 0xff] {
                    let mut bad = good.clone();
                    bad[at] ^= flip;
                    let mut reader = FrameReader::new(&bad[..], 1);
                    // At most two messages can come out of two; the rest is an end or an error.
                    for _ in 0..3 {
                        if !matches!(reader.next("peer").await, Ok(Some(_))) {
                            break;
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn garbage_oversize_and_a_cut_frame_are_errors() {
        block(async {
            let frame = Message::from(Reply::End).to_frame(1).unwrap();
            let mut long = frame.clone();
            long[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
            for bytes in [&b"HTTP/1.1 400 Bad Request\r\n"[..], &long, &frame[..frame.len() - 1], &frame[..3]]
            {
                let e = FrameReader::new(bytes, 1).next("host-b").await.unwrap_err();
                assert!(e.to_string().contains("host-b"), "{e}");
            }
            assert!(FrameReader::new(&frame[..], 2).next("host-b").await.is_err());
        });
    }
}
