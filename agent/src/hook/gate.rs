//! A socket at which one program of a migration waits for the agent's `go`, and which fails open: nothing
//! that waits here has touched anything yet, and without an agent it ends.
//!
//! On the wire, one line each: a word that says who asks, and `go` back. A closed connection is a no.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::MAX_LINE;

const GO: &str = "go\n";

/// Asks once, and waits for the answer. An agent that is gone is a no. Blocking.
pub(super) fn may_go_on(socket: &Path, word: &str) -> bool {
    let ask = || -> io::Result<String> {
        let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
        stream.write_all(format!("{word}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_LINE as u64)).read_line(&mut line)?;
        Ok(line)
    };
    ask().is_ok_and(|line| line == GO)
}

/// The agent's end. Dropped, it refuses whoever waits.
#[derive(Debug)]
pub(super) struct Gate(UnixListener);

impl Gate {
    /// Must be called on a tokio runtime. What is left of an earlier one is replaced.
    pub(super) fn listen(socket: &Path) -> io::Result<Self> {
        let _ = std::fs::remove_file(socket);
        Ok(Gate(UnixListener::bind(socket)?))
    }

    /// Waits until somebody asks with this word. Cancel safe.
    pub(super) async fn asked(&self, word: &str) -> io::Result<UnixStream> {
        let (mut stream, _) = self.0.accept().await?;
        let mut line = String::new();
        tokio::io::BufReader::new((&mut stream).take(MAX_LINE as u64)).read_line(&mut line).await?;
        if line.strip_suffix('\n') == Some(word) {
            return Ok(stream);
        }
        let text = format!("{line:?} was said where {word} comes");
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }
}

/// Lets go on who asked.
pub(super) async fn pass(mut stream: UnixStream) -> io::Result<()> {
    stream.write_all(GO.as_bytes()).await
}
