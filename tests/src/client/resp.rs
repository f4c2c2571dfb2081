//! The little of Redis' protocol (RESP2) that the clients speak.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Time to connect in.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest line taken from the server.
const MAX_LINE: u64 = 4096;

/// One connection to Redis.
#[derive(Debug)]
pub(super) struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects. A reply that takes longer than `patience` fails with `TimedOut`.
    pub(super) fn open(addr: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, CONNECT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends one command without waiting.
    pub(super) fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let mut buffer = format!("*{}\r\n", parts.len()).into_bytes();
        for part in parts {
            buffer.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            buffer.extend_from_slice(part);
            buffer.extend_from_slice(b"\r\n");
        }
        self.reader.get_mut().write_all(&buffer).map_err(timed_out)
    }

    /// The next reply's first line, without its end.
    pub(super) fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let n = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut line).map_err(timed_out)?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
        }
        if line.pop() != Some(b'\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the connection ended within a line"));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a reply is not text"))
    }

    /// Sends a command whose reply is an integer.
    pub(super) fn integer(&mut self, parts: &[&[u8]]) -> io::Result<i64> {
        self.send(parts)?;
        let line = self.line()?;
        line.strip_prefix(':').and_then(|n| n.parse().ok()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{line:?} came instead of a number"))
        })
    }
}

/// A read or write timeout shows as `WouldBlock`, whose text misleads.
fn timed_out(e: io::Error) -> io::Error {
    if e.kind() == io::ErrorKind::WouldBlock {
        return io::Error::new(io::ErrorKind::TimedOut, "no answer within the client's patience");
    }
    e
}
