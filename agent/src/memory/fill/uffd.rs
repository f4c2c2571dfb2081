//! A userfaultfd of a process that is being restored (userfaultfd(2), ioctl_userfaultfd(2)).
//!
//! CRIU makes it inside the process, non-blocking and with events for fork, mremap, madvise and munmap,
//! and registers memory with it; here it is only read from and copied through.

use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::io::{self, Read};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use tranship_proto::pages::PAGE;

/// Bytes of `struct uffd_msg`.
const MESSAGE: usize = 32;
/// Messages read at a time.
const BATCH: usize = 64;

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct ZeroPage {
    range: Range,
    mode: u64,
    zeropage: i64,
}

mod raw {
    use super::{Copy, Range, ZeroPage};
    nix::ioctl_read!(wake, 0xaa, 0x02, Range);
    nix::ioctl_readwrite!(copy, 0xaa, 0x03, Copy);
    nix::ioctl_readwrite!(zero_page, 0xaa, 0x04, ZeroPage);
}

/// What the kernel says.
#[derive(Debug)]
pub(super) enum Message {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// The process has forked; this is the child's.
    Fork(Uffd),
    /// Pages have moved.
    Remap { from: u64, to: u64, len: u64 },
    /// Addresses that are no longer what they were: unmapped, or emptied.
    Drop { start: u64, end: u64 },
}

/// How a copy went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Copied {
    /// So many pages, from the first on, are there now.
    Pages(u32),
    /// The first is there already.
    Present,
    /// The range is not one piece of memory that is waited for.
    Unmapped,
    /// The process changes its memory: read messages, then try again.
    Again,
    /// The process is gone.
    Gone,
    /// There is no memory at this moment.
    NoMemory,
}

/// The descriptor. It stays open when this is dropped, by a panic or an error: only [`Uffd::close`], or
/// the end of both processes that hold it, lets the process read zeros.
#[derive(Debug)]
pub(super) struct Uffd {
    file: ManuallyDrop<File>,
}

impl Uffd {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { file: ManuallyDrop::new(fd.into()) }
    }

    /// Nothing of the process is outstanding: what it has not touched reads as zeros from now on.
    pub(super) fn close(self) {
        drop(ManuallyDrop::into_inner(self.file));
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What has happened, in order, and nothing when nothing has.
    pub(super) fn read(&self) -> io::Result<Vec<Message>> {
        let mut buffer = [0; MESSAGE * BATCH];
        let length = match (&*self.file).read(&mut buffer) {
            Ok(length) => length,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(e) => return Err(e),
        };
        buffer[..length].chunks_exact(MESSAGE).map(parse).collect()
    }

    /// Copies whole pages to `to`, a multiple of the page size, and wakes who waits for them.
    pub(super) fn copy(&self, to: u64, contents: &[u8]) -> io::Result<Copied> {
        let mut request =
            Copy { dst: to, src: contents.as_ptr() as u64, len: contents.len() as u64, mode: 0, copy: 0 };
        // SAFETY: the request is a uffdio_copy; the kernel reads `len` bytes at `src`, which are the slice.
        let done = unsafe { raw::copy(self.file.as_raw_fd(), &raw mut request) };
        outcome(done, request.copy, contents.len() as u64 / PAGE)
    }

    /// Makes the page at `to` one of zeros and wakes who waits for it.
    pub(super) fn zero(&self, to: u64) -> io::Result<Copied> {
        let mut request = ZeroPage { range: Range { start: to, len: PAGE }, mode: 0, zeropage: 0 };
        // SAFETY: the request is a uffdio_zeropage; it has no pointers.
        let done = unsafe { raw::zero_page(self.file.as_raw_fd(), &raw mut request) };
        outcome(done, request.zeropage, 1)
    }

    /// Wakes whoever waits for a page that is there.
    pub(super) fn wake(&self, at: u64) {
        let mut range = Range { start: at, len: PAGE };
        // SAFETY: the request is a uffdio_range; it has no pointers. Nobody to wake is no error.
        let _ = unsafe { raw::wake(self.file.as_raw_fd(), &raw mut range) };
    }
}

fn outcome(done: nix::Result<i32>, bytes: i64, pages: u64) -> io::Result<Copied> {
    let count = |n: u64| Ok(Copied::Pages(u32::try_from(n).unwrap_or(u32::MAX)));
    match done {
        Ok(_) => count(pages),
        // A part was done, whatever stopped the rest.
        Err(_) if bytes > 0 => count(bytes.unsigned_abs() / PAGE),
        Err(Errno::EEXIST) => Ok(Copied::Present),
        Err(Errno::ENOENT) => Ok(Copied::Unmapped),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Copied::Again),
        // ENOSPC: what kernels before 4.13 say.
        Err(Errno::ESRCH | Errno::ENOSPC) => Ok(Copied::Gone),
        Err(Errno::ENOMEM) => Ok(Copied::NoMemory),
        Err(e) => Err(e.into()),
    }
}

fn parse(raw: &[u8]) -> io::Result<Message> {
    let word = |at: usize| {
        raw.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes).unwrap_or_default()
    };
    match raw.first() {
        Some(0x12) => Ok(Message::Fault(word(16) / PAGE * PAGE)),
        Some(0x13) => {
            let fd = raw.get(8..12).and_then(|b| b.try_into().ok()).map(libc::c_int::from_ne_bytes);
            let fd = fd.filter(|fd| *fd >= 0).ok_or_else(|| io::Error::other("a fork without descriptor"))?;
            // SAFETY: the kernel has made this descriptor for whoever reads the message, who owns it.
            Ok(Message::Fork(Uffd::new(unsafe { OwnedFd::from_raw_fd(fd) })))
        }
        Some(0x14) => Ok(Message::Remap { from: word(8), to: word(16), len: word(24) }),
        Some(0x15 | 0x16) => Ok(Message::Drop { start: word(8), end: word(16) }),
        other => Err(io::Error::other(format!("unknown userfaultfd message {other:?}"))),
    }
}
