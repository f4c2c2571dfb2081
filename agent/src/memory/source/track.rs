//! Which pages of a process may have changed since the last look.
//!
//! A tracker may name too many pages: their contents are compared with what was sent. It must never
//! miss one. There are two:
//!
//! * [`Everything`]: all populated pages may have changed. Works everywhere, and reads and hashes all
//!   of the memory in each round, 0.3 s a GiB, also in the one after the freeze.
//! * [`Protected`]: the kernel write-protects pages through a userfaultfd of the process and lifts the
//!   protection by itself at the first write (`UFFD_FEATURE_WP_ASYNC`, Linux 6.7). A look costs a
//!   millisecond a GiB, and a page's first write after it a fault of about a microsecond.
//!
//! Rejected: soft-dirty bits (/proc/PID/clear_refs). Reading the bits and clearing them are two steps,
//! and what is written between them is lost unless the process is stopped, which reading never does;
//! kernels without write protection have a right answer in the comparison.

use super::scan::{PageMap, WATCHED, WRITTEN};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

/// Names pages that may have changed.
pub trait Tracker: Send + Sync {
    /// Ranges of pages, populated, in order and disjoint, that may differ from what they were when
    /// this was called last; at the first call all. `last` when no call follows and the process is
    /// stopped.
    fn changed(
        &mut self,
        map: &mut PageMap,
        mappings: &[Range<u64>],
        last: bool,
    ) -> io::Result<Vec<Range<u64>>>;
}

/// Takes all that is populated for changed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Everything;

impl Tracker for Everything {
    fn changed(
        &mut self,
        map: &mut PageMap,
        mappings: &[Range<u64>],
        _last: bool,
    ) -> io::Result<Vec<Range<u64>>> {
        let mut all = Vec::new();
        for mapping in mappings {
            map.populated(mapping, |run, _| all.push(run))?;
        }
        Ok(merged(all))
    }
}

/// Knows writes by the kernel's write protection.
#[derive(Debug)]
pub struct Protected {
    uffd: OwnedFd,
}

const UFFD_API: u64 = 0xaa;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;

/// `struct uffdio_api` of linux/userfaultfd.h.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register` of linux/userfaultfd.h.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, Api);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, Register);

impl Protected {
    /// By a fresh userfaultfd of the process.
    ///
    /// # Errors
    /// When the kernel cannot protect without a handler (before Linux 6.7).
    pub fn new(uffd: OwnedFd) -> io::Result<Self> {
        // Without the first the kernel would not scan and protect anonymous memory in one action.
        let features = FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;
        let mut api = Api { api: UFFD_API, features, ioctls: 0 };
        // SAFETY: the argument is alive and of the request's type.
        unsafe { uffdio_api(uffd.as_raw_fd(), &mut api) }?;
        Ok(Self { uffd })
    }

    /// Watches a range from now on. What cannot be watched is taken for changed, always.
    fn register(&self, range: &Range<u64>) {
        let len = range.end - range.start;
        let mut register = Register { start: range.start, len, mode: REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: the argument is alive and of the request's type.
        if let Err(e) = unsafe { uffdio_register(self.uffd.as_raw_fd(), &mut register) } {
            tracing::trace!(start = range.start, len, error = %e, "a mapping cannot be watched");
        }
    }
}

impl Tracker for Protected {
    fn changed(
        &mut self,
        map: &mut PageMap,
        mappings: &[Range<u64>],
        last: bool,
    ) -> io::Result<Vec<Range<u64>>> {
        let mut all = Vec::new();
        for mapping in mappings {
            // What is not watched now may have been mapped, or moved here by mremap(2) with its marks,
            // since the last look: the marks of such pages say nothing.
            map.populated(mapping, |run, known| {
                if known & WATCHED == 0 || (last && known & WRITTEN != 0) {
                    all.push(run);
                }
            })?;
            if !last {
                self.register(mapping);
                map.take_written(mapping, |run| all.push(run))?;
            }
        }
        Ok(merged(all))
    }
}

/// In order, overlapping and touching ranges made one.
pub(super) fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|r| r.start);
    ranges.dedup_by(|next, before| {
        let joined = next.start <= before.end;
        if joined {
            before.end = before.end.max(next.end);
        }
        joined
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_merged() {
        assert_eq!(merged(vec![8..12, 0..4, 4..6, 10..16, 20..24]), [0..6, 8..16, 20..24]);
        assert_eq!(merged(vec![]), []);
    }
}
