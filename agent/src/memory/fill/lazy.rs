//! CRIU's `lazy-pages.socket`, the end that serves (CRIU 4.2 `criu/uffd.c`).
//!
//! CRIU connects once, early in a restore, and says for each process: its number in the container as a
//! 32-bit integer, then one byte that carries its uffd; a negative number is a zombie and has none. Faults
//! may come from then on. When all processes are let go (after the hold) it says `0x52535446`.

use super::uffd::Uffd;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// Name of the socket in the restore's work directory.
pub const SOCKET: &str = "lazy-pages.socket";
/// All processes run.
const FINISHED: i32 = 0x5253_5446;
/// What belongs together is written together.
const REST: Duration = Duration::from_secs(5);

/// What CRIU says.
pub(super) enum Word {
    /// A process, by its number in the container.
    Process(u32, Uffd),
    /// One that has no memory.
    Zombie,
    /// All of them have been let go.
    Finished,
    /// The restore is over.
    Closed,
}

/// The socket: first the one that listens, then the one that is connected.
pub(super) enum LazyListener {
    Listening(UnixListener),
    Connected(UnixStream),
    Closed,
}

impl LazyListener {
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Listening(l) => Some(l.as_fd()),
            Self::Connected(s) => Some(s.as_fd()),
            Self::Closed => None,
        }
    }

    /// Reads one word, when the socket is readable. Nothing when that was only the connection.
    pub(super) fn read(&mut self) -> io::Result<Option<Word>> {
        match self {
            Self::Listening(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_read_timeout(Some(REST))?;
                *self = Self::Connected(stream);
                Ok(None)
            }
            Self::Connected(stream) => {
                let word = word(stream)?;
                if matches!(word, Word::Closed) {
                    *self = Self::Closed;
                }
                Ok(Some(word))
            }
            Self::Closed => Ok(None),
        }
    }
}

fn word(mut stream: &UnixStream) -> io::Result<Word> {
    let mut raw = [0; 4];
    match stream.read_exact(&mut raw) {
        Ok(()) => {}
        Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            return Ok(Word::Closed);
        }
        Err(e) => return Err(e),
    }
    match i32::from_ne_bytes(raw) {
        FINISHED => Ok(Word::Finished),
        pid if pid > 0 => Ok(Word::Process(pid.unsigned_abs(), descriptor(stream)?)),
        pid if pid < 0 => Ok(Word::Zombie),
        _ => Err(io::Error::other("criu names no process")),
    }
}

fn descriptor(stream: &UnixStream) -> io::Result<Uffd> {
    let mut byte = [0];
    let mut control = cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel has just made this descriptor for us; the space holds one only.
            return Ok(Uffd::new(unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    Err(io::Error::other("criu sent a process without its descriptor"))
}
