//! What a process has mapped, and which of it is populated: /proc/PID/maps and /proc/PID/pagemap
//! (proc_pid_maps(5), proc_pid_pagemap(5)).
//!
//! Where the kernel has it (Linux 6.7), the `PAGEMAP_SCAN` ioctl answers in runs, skips empty page
//! tables and knows about write protection; else the page map is read, eight bytes a page.

use linux_raw_sys::general::{self, page_region, pm_scan_arg};
use nix::libc;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use tranship_proto::pages::PAGE;

/// The page can be written without a trace unless this is set: its mapping is watched.
pub const WATCHED: u64 = general::PAGE_IS_WPALLOWED as u64;
/// It was written since it was protected.
pub const WRITTEN: u64 = general::PAGE_IS_WRITTEN as u64;
const POPULATED: u64 = (general::PAGE_IS_PRESENT | general::PAGE_IS_SWAPPED) as u64;
/// A guard page (madvise(2), `MADV_GUARD_INSTALL`): no memory, and counted as swapped.
const GUARD: u64 = general::PAGE_IS_GUARD as u64;
/// Protect what matches, atomically with the answer.
const PROTECT: u64 = general::PM_SCAN_WP_MATCHING as u64;
/// Runs that one call answers.
const RUNS: usize = 1024;
const NO_RUN: page_region = page_region { start: 0, end: 0, categories: 0 };

/// Looks at a range, for answers in `runs`: no category is asked for yet.
fn look(range: &Range<u64>, runs: &mut [page_region]) -> pm_scan_arg {
    pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        flags: 0,
        start: range.start,
        end: range.end,
        walk_end: 0,
        vec: runs.as_mut_ptr() as u64,
        vec_len: runs.len() as u64,
        max_pages: 0,
        category_inverted: 0,
        category_mask: 0,
        category_anyof_mask: 0,
        return_mask: WATCHED | WRITTEN,
    }
}

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, pm_scan_arg);

/// Addresses that are mapped private and without a file: what CRIU can leave to be filled later.
/// Locked mappings are among them, though CRIU does not: that costs their transfer and no more.
///
/// # Errors
/// `NotFound` or `ESRCH` when the process has ended.
pub fn mappings(pid: i32) -> io::Result<Vec<Range<u64>>> {
    let text = std::fs::read(format!("/proc/{pid}/maps"))?;
    Ok(text.split(|b| *b == b'\n').filter_map(private_anonymous).collect())
}

/// `55d0-55d1 rw-p 00000000 00:00 0   [heap]`
fn private_anonymous(line: &[u8]) -> Option<Range<u64>> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let private = words.next()?.ends_with('p');
    let mut words = words.skip(2);
    let anonymous = words.next()? == "0";
    let special = words.next().is_some_and(|name| {
        ["[vdso]", "[vsyscall]", "[uprobes]"].contains(&name) || name.starts_with("[vvar")
    });
    let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
    (private && anonymous && !special && range.start < range.end).then_some(range)
}

/// Whether the kernel has `PAGEMAP_SCAN`; CRIU uses it then as well.
pub fn kernel_scans() -> bool {
    let map = PageMap::open(std::process::id().cast_signed());
    // SAFETY: an argument that asks for nothing.
    let asked = |map: PageMap| unsafe { pagemap_scan(map.file.as_raw_fd(), &mut look(&(0..PAGE), &mut [])) };
    map.is_ok_and(|map| asked(map).is_ok())
}

/// The page map of one address space. It stays that of the address space which the process had when
/// it was opened: after an `execve` it has to be opened again.
#[derive(Debug)]
pub struct PageMap {
    file: File,
    runs: Vec<page_region>,
    /// [`GUARD`], where the kernel knows it (Linux 6.15).
    guard: u64,
}

impl PageMap {
    /// Of a process.
    pub fn open(pid: i32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/pagemap"))?;
        Ok(Self { file, runs: vec![NO_RUN; RUNS], guard: GUARD })
    }

    /// Calls `each` with the populated runs of a range and what is known of them ([`WATCHED`], [`WRITTEN`]).
    /// On a kernel without `PAGEMAP_SCAN` nothing is; with it runs may come twice (Linux 6.18: the kernel
    /// gathers 512, and begins again up to some page tables before the place where it was full).
    pub fn populated(&mut self, range: &Range<u64>, mut each: impl FnMut(Range<u64>, u64)) -> io::Result<()> {
        match self.scan(range, 0, 0, &mut each) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                self.read(range, &mut each)
            }
            other => other,
        }
    }

    /// Calls `each` with the runs written since they were protected, and protects them, as one action
    /// for each page. Only of mappings that are watched; others are skipped.
    pub fn take_written(&mut self, range: &Range<u64>, mut each: impl FnMut(Range<u64>)) -> io::Result<()> {
        self.scan(range, PROTECT, WRITTEN, &mut |run, _| each(run))
    }

    /// Whether a mapping is watched; never on a kernel without `PAGEMAP_SCAN`.
    pub fn is_watched(&self, mapping: &Range<u64>) -> io::Result<bool> {
        let mut run = [NO_RUN];
        let mut argument = pm_scan_arg { max_pages: 1, category_mask: WATCHED, ..look(mapping, &mut run) };
        // SAFETY: the argument and the region that it names are alive.
        match unsafe { pagemap_scan(self.file.as_raw_fd(), &mut argument) } {
            Ok(count) => Ok(count > 0),
            Err(nix::Error::ENOTTY | nix::Error::EINVAL) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn scan(
        &mut self,
        range: &Range<u64>,
        flags: u64,
        all_of: u64,
        each: &mut impl FnMut(Range<u64>, u64),
    ) -> io::Result<()> {
        let mut start = range.start;
        while start < range.end {
            let mut argument = pm_scan_arg {
                flags,
                category_inverted: self.guard,
                category_mask: all_of | self.guard,
                // Never the empty entries: protecting one would make a marker that CRIU takes for a
                // page in swap.
                category_anyof_mask: POPULATED,
                ..look(&(start..range.end), &mut self.runs)
            };
            // SAFETY: the argument and the vector that it names are alive and as long as they say.
            let count = match unsafe { pagemap_scan(self.file.as_raw_fd(), &mut argument) } {
                Err(nix::Error::EINVAL) if self.guard != 0 => {
                    self.guard = 0;
                    continue;
                }
                count => count? as usize,
            };
            for run in &self.runs[..count.min(RUNS)] {
                each(run.start..run.end, run.categories);
            }
            if argument.walk_end <= start {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            start = argument.walk_end;
        }
        Ok(())
    }

    fn read(&self, range: &Range<u64>, each: &mut impl FnMut(Range<u64>, u64)) -> io::Result<()> {
        const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
        let mut entries = vec![0; 8 * RUNS];
        let mut open: Option<Range<u64>> = None;
        let mut at = range.start;
        while at < range.end {
            let pages = ((range.end - at) / PAGE).min(RUNS as u64) as usize;
            let got = self.file.read_at(&mut entries[..8 * pages], at / PAGE * 8)? / 8;
            if got == 0 {
                break;
            }
            for entry in entries[..8 * got].chunks_exact(8) {
                let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
                match &mut open {
                    Some(run) if entry & PRESENT_OR_SWAPPED != 0 => run.end = at + PAGE,
                    None if entry & PRESENT_OR_SWAPPED != 0 => open = Some(at..at + PAGE),
                    _ => open.take().into_iter().for_each(|run| each(run, 0)),
                }
                at += PAGE;
            }
        }
        open.into_iter().for_each(|run| each(run, 0));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_memory_without_a_file_is_taken() {
        for (line, want) in [
            ("55d000-55d100 rw-p 00000000 00:00 0                          [heap]", Some(0x55d000..0x55d100)),
            ("7f0000-7f1000 ---p 00000000 00:00 0 ", Some(0x7f0000..0x7f1000)),
            ("7f0000-7f1000 rw-p 00000000 00:00 0   [anon:a b]", Some(0x7f0000..0x7f1000)),
            ("7f0000-7f1000 rw-s 00000000 00:01 5   /dev/zero (deleted)", None),
            ("7f0000-7f1000 rw-p 00000000 fe:00 77  /lib/x.so", None),
            ("7f0000-7f1000 r--p 00000000 00:00 0   [vvar_vclock]", None),
            ("7f0000-7f1000 r-xp 00000000 00:00 0   [vdso]", None),
            ("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]", None),
            ("junk", None),
            ("", None),
        ] {
            assert_eq!(private_anonymous(line.as_bytes()), want, "{line}");
        }
    }

    #[test]
    fn a_kernel_that_scans_is_known() {
        let scanned =
            PageMap::open(std::process::id().cast_signed()).unwrap().scan(&(0..PAGE), 0, 0, &mut |_, _| {});
        assert_eq!(kernel_scans(), scanned.is_ok());
    }

    #[test]
    fn both_ways_of_reading_the_page_map_agree() {
        let bytes = 64 * PAGE as usize;
        // SAFETY: a fresh mapping, which nothing else knows.
        let area = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(area, libc::MAP_FAILED);
        let start = area as u64;
        for page in [0, 1, 2, 40, 63] {
            // SAFETY: inside of the mapping made above.
            unsafe { area.cast::<u8>().add(page * PAGE as usize).write_volatile(7) };
        }
        let mut map = PageMap::open(std::process::id().cast_signed()).unwrap();
        let range = start..start + bytes as u64;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        map.populated(&range, |run, _| a.push(run)).unwrap();
        map.read(&range, &mut |run, _| b.push(run)).unwrap();
        let at = |page: u64| start + page * PAGE;
        assert_eq!(a, [at(0)..at(3), at(40)..at(41), at(63)..at(64)]);
        assert_eq!(a, b);
        // SAFETY: the mapping made above, with its length.
        unsafe { libc::munmap(area, bytes) };
    }
}
