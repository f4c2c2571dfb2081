//! Contents of pages of another process, read without stopping it.
//!
//! process_vm_readv(2) takes many ranges in one call and respects the protection of mappings. What it
//! cannot read (memory without read permission) is read from /proc/PID/mem, which does not. A page that
//! has gone meanwhile is left out: while the container runs that is no error, and after the freeze the
//! dump says which pages there have to be.

use super::digest::SIZE;
use bytes::Bytes;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Reads pages of processes; keeps its buffers.
#[derive(Debug)]
pub struct Reader {
    buffer: Vec<u8>,
    addresses: Vec<u64>,
    spare: Spare,
}

/// Whole buffers that nobody reads any more. A fresh one costs as much as a copy: its pages are zeroed.
type Spare = Arc<Mutex<Vec<Vec<u8>>>>;

/// A buffer that comes back when the last of its readers is done.
struct Lent {
    buffer: Vec<u8>,
    length: usize,
    home: Spare,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        spare(&self.home).push(std::mem::take(&mut self.buffer));
    }
}

fn spare(buffers: &Mutex<Vec<Vec<u8>>>) -> MutexGuard<'_, Vec<Vec<u8>>> {
    buffers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reader {
    /// For at most so many pages at a time.
    pub fn new(pages: usize) -> Self {
        let buffer = vec![0; pages * SIZE];
        Self { buffer, addresses: Vec::with_capacity(pages), spare: Spare::default() }
    }

    /// Reads ranges of a process and answers the address and contents of each page that is there.
    pub fn read(&mut self, pid: i32, ranges: &[Range<u64>]) -> impl Iterator<Item = (u64, &[u8; SIZE])> {
        let capacity = self.buffer.len() / SIZE;
        let wanted = ranges.iter().flat_map(|r| (r.start..r.end).step_by(SIZE));
        self.addresses.clear();
        self.addresses.extend(wanted.take(capacity));
        let mut next = 0;
        let mut mem = None;
        let mut gone = Vec::new();
        while next < self.addresses.len() {
            next += self.read_from(pid, next);
            let Some(&failed) = self.addresses.get(next) else { break };
            if mem.is_none() {
                mem = Some(File::open(format!("/proc/{pid}/mem")));
            }
            let page = &mut self.buffer[next * SIZE..(next + 1) * SIZE];
            let read = match &mem {
                Some(Ok(file)) => file.read_exact_at(page, failed).is_ok(),
                _ => false,
            };
            if !read {
                gone.push(next);
            }
            next += 1;
        }
        let pages = self.addresses.iter().copied().zip(self.buffer.as_chunks().0);
        pages.enumerate().filter(move |(i, _)| gone.binary_search(i).is_err()).map(|(_, page)| page)
    }

    /// The contents of some pages of the last read, in order, as a buffer of the caller's own. To be called once
    /// for each read.
    pub fn take(&mut self, wanted: &[u64]) -> Bytes {
        let mut rest = wanted.iter().peekable();
        let mut kept = 0;
        for (at, address) in self.addresses.iter().enumerate() {
            if rest.next_if_eq(&address).is_some() {
                if kept != at {
                    self.buffer.copy_within(at * SIZE..(at + 1) * SIZE, kept * SIZE);
                }
                kept += 1;
            }
        }
        let length = kept * SIZE;
        // A few pages do not keep a whole buffer while they wait for the wire.
        if length < self.buffer.len() / 2 {
            return Bytes::copy_from_slice(&self.buffer[..length]);
        }
        let next = spare(&self.spare).pop().unwrap_or_else(|| vec![0; self.buffer.len()]);
        let buffer = std::mem::replace(&mut self.buffer, next);
        Bytes::from_owner(Lent { buffer, length, home: self.spare.clone() })
    }

    /// Reads from page number `first` on; answers how many pages came.
    fn read_from(&mut self, pid: i32, first: usize) -> usize {
        let mut remote: Vec<RemoteIoVec> = Vec::new();
        for address in &self.addresses[first..] {
            let base = *address as usize;
            match remote.last_mut().filter(|last| last.base + last.len == base) {
                Some(last) => last.len += SIZE,
                None => remote.push(RemoteIoVec { base, len: SIZE }),
            }
        }
        let bytes = (self.addresses.len() - first) * SIZE;
        let local = &mut self.buffer[first * SIZE..first * SIZE + bytes];
        process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(local)], &remote).unwrap_or(0) / SIZE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc;
    use tranship_proto::pages::PAGE;

    #[test]
    fn pages_are_read_through_holes_and_without_permission() {
        let map = |at: u64, prot| {
            // SAFETY: a fresh mapping, or one inside of the first that nothing else knows.
            let area = unsafe {
                let fixed = if at == 0 { 0 } else { libc::MAP_FIXED };
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
                libc::mmap(at as *mut libc::c_void, 8 * SIZE, prot, flags, -1, 0)
            };
            assert_ne!(area, libc::MAP_FAILED);
            area as u64
        };
        let start = map(0, libc::PROT_READ | libc::PROT_WRITE);
        for page in 0..8u64 {
            // SAFETY: inside of the mapping made above.
            unsafe { ((start + page * PAGE) as *mut u8).write_bytes(page as u8 + 1, SIZE) };
        }
        // SAFETY: pages of the mapping made above.
        unsafe {
            libc::mprotect((start + 2 * PAGE) as *mut libc::c_void, SIZE, libc::PROT_NONE);
            libc::munmap((start + 5 * PAGE) as *mut libc::c_void, SIZE);
        }
        let mut reader = Reader::new(7);
        let ranges = [start..start + 4 * PAGE, start + 5 * PAGE..start + 8 * PAGE];
        let read: Vec<(u64, u8)> = reader
            .read(std::process::id().cast_signed(), &ranges)
            .map(|(at, page)| {
                assert!(page.iter().all(|b| *b == page[0]));
                ((at - start) / PAGE, page[0])
            })
            .collect();
        assert_eq!(read, [(0, 1), (1, 2), (2, 3), (3, 4), (6, 7), (7, 8)]);
        let firsts = |taken: Bytes| taken.chunks(SIZE).map(|page| page[SIZE - 1]).collect::<Vec<_>>();
        let at = |pages: &[u64]| pages.iter().map(|n| start + n * PAGE).collect::<Vec<_>>();
        assert_eq!(firsts(reader.take(&at(&[1, 7]))), [2, 8], "copied");
        assert_eq!(reader.read(std::process::id().cast_signed(), &ranges).count(), 6);
        assert_eq!(firsts(reader.take(&at(&[0, 2, 3, 7]))), [1, 3, 4, 8], "the buffer itself");
        assert_eq!(reader.read(std::process::id().cast_signed(), &ranges).count(), 6, "with another buffer");
        assert_eq!(spare(&reader.spare).len(), 1, "what was taken is gone, and its buffer is back");
        let held = reader.take(&at(&[0, 1, 2, 3]));
        assert_eq!(spare(&reader.spare).len(), 0, "taken again");
        assert_eq!(reader.read(std::process::id().cast_signed(), &ranges).count(), 6);
        assert_eq!(firsts(held.clone()), [1, 2, 3, 4], "a buffer that is read is not written to");
        drop(held);
        assert_eq!(spare(&reader.spare).len(), 1);
        assert_eq!(reader.read(i32::MAX, &ranges).count(), 0);
        // SAFETY: the mapping made above.
        unsafe { libc::munmap(start as *mut libc::c_void, 8 * SIZE) };
    }
}
