//! What a fill process tells whoever connects to its socket: a line of JSON at once, then one now and
//! then, and one at the end. A connection that ends without that line means that the container was
//! killed. The one word that is heard is `off`: the restore will not come.

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Between two lines.
const EVERY: Duration = Duration::from_millis(100);
/// Connections at a time.
const MAX_CLIENTS: usize = 64;
/// The word that calls it off.
pub(super) const OFF: &[u8] = b"off\n";

/// Where a fill process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FillState {
    /// The container has not run yet: pages are filled in as CRIU asks for them.
    Held,
    /// The container runs, and is filled in.
    Filling,
    /// Every page is where it belongs.
    Done,
}

/// How far a fill process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillStatus {
    /// Where it is.
    pub state: FillState,
    /// Pages to be filled in, those of children that were forked meanwhile included.
    pub pages: u64,
    /// Of these, pages that are there, or are needed no longer.
    pub filled: u64,
    /// Pages that somebody waited for.
    pub faults: u64,
    /// Since the container runs.
    pub elapsed_ms: u64,
}

/// The socket's end in the fill process.
pub(super) struct StatusServer {
    listener: UnixListener,
    clients: Vec<UnixStream>,
    told: Option<Instant>,
}

impl StatusServer {
    pub(super) fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, clients: Vec::new(), told: None })
    }

    /// What to poll for.
    pub(super) fn fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let clients = self.clients.iter().map(|c| c.as_fd());
        std::iter::once(self.listener.as_fd()).chain(clients).map(|fd| (fd, PollFlags::POLLIN))
    }

    /// Takes up connections and tells all of them, when it is time. Answers whether one has said `off`.
    pub(super) fn serve(&mut self, status: &FillStatus) -> bool {
        while let Ok((client, _)) = self.listener.accept() {
            if self.clients.len() < MAX_CLIENTS && client.set_nonblocking(true).is_ok() {
                self.clients.push(client);
                self.told = None;
            }
        }
        let mut off = false;
        self.clients.retain_mut(|client| {
            let mut word = [0; 16];
            match client.read(&mut word) {
                Ok(n) => {
                    off |= &word[..n] == OFF;
                    n > 0
                }
                Err(e) => e.kind() == ErrorKind::WouldBlock,
            }
        });
        if self.told.is_none_or(|at| at.elapsed() >= EVERY) {
            self.tell(status);
        }
        off
    }

    /// Tells all who are connected.
    pub(super) fn tell(&mut self, status: &FillStatus) {
        self.told = Some(Instant::now());
        let mut line = serde_json::to_vec(status).unwrap_or_default();
        line.push(b'\n');
        // Who does not read is not waited for.
        self.clients.retain_mut(|client| client.write_all(&line).is_ok());
    }
}
