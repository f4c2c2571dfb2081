//! Files that processes may change without a trace in time stamps.
//!
//! A page of a file mapped `MAP_SHARED` that is dirty and writable takes further stores without a fault, so
//! without a new `ctime`, until it is written back. What counts is whether the file was opened for writing: a
//! mapping that is read-only at the moment may become writable again by `mprotect`. `/proc/PID/map_files`
//! shows that as the mode of its links, and its targets give the numbers `statx` gives; the numbers in
//! `/proc/PID/maps` are those of the super block and differ on btrfs and overlayfs.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use nix::libc;

use super::error::StorageError;
use super::objects::Key;
use super::walk::now_nanos;

/// Files mapped shared and writable, and when that was found out.
#[derive(Debug, Clone, Default)]
pub struct Suspects {
    taken: Option<i64>,
    files: HashSet<Key>,
}

impl Suspects {
    /// Number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether a file is among them, by the device and inode numbers of its `stat`.
    pub fn contains(&self, dev: u64, ino: u64) -> bool {
        self.files.contains(&key(dev, ino))
    }

    pub(super) fn taken(&self) -> Option<i64> {
        self.taken
    }

    pub(super) fn files(&self) -> impl Iterator<Item = Key> + '_ {
        self.files.iter().copied()
    }
}

fn key(dev: u64, ino: u64) -> Key {
    ((u64::from(rustix::fs::major(dev)) << 32) | u64::from(rustix::fs::minor(dev)), ino)
}

/// Looks through the mappings of processes for files mapped shared from a descriptor open for writing.
///
/// Call it right before [`super::TreeSource::pass`], with all processes of the container; one that ends
/// meanwhile is left out.
///
/// # Errors
/// [`StorageError::Io`] when the mappings of a living process cannot be read (needs `CAP_SYS_PTRACE`).
pub fn shared_writable_files(pids: &[i32]) -> Result<Suspects, StorageError> {
    let mut suspects = Suspects { taken: Some(now_nanos()), files: HashSet::new() };
    for pid in pids {
        let maps = format!("/proc/{pid}/maps");
        let text = match fs::read(&maps) {
            Ok(text) => text,
            Err(e) if is_over(&e) => continue,
            Err(source) => {
                return Err(StorageError::Io { what: "read", path: maps.into(), source });
            }
        };
        for line in text.split(|b| *b == b'\n') {
            if let Some(mapping) = Mapping::parse(line) {
                mapping.add(*pid, &mut suspects.files);
            }
        }
    }
    Ok(suspects)
}

fn is_over(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// A shared mapping of a file, from a line of `/proc/PID/maps` (`proc_pid_maps(5)`).
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    writable: bool,
    dev: Key,
}

impl Mapping {
    /// Private, anonymous and malformed lines give `None`. The path, which may hold anything, is not looked
    /// at.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|b| *b == b' ').map(|field| std::str::from_utf8(field).ok());
        let (start, end) = fields.next()??.split_once('-')?;
        let permissions = fields.next()??.as_bytes();
        let _offset = fields.next()??;
        let (major, minor) = fields.next()??.split_once(':')?;
        let ino: u64 = fields.next()??.parse().ok()?;
        if permissions.get(3) != Some(&b's') || ino == 0 {
            return None;
        }
        let hex = |text| u64::from_str_radix(text, 16).ok();
        Some(Self {
            start: hex(start)?,
            end: hex(end)?,
            writable: permissions[1] == b'w',
            dev: ((hex(major)? << 32) | hex(minor)?, ino),
        })
    }

    fn add(&self, pid: i32, files: &mut HashSet<Key>) {
        let link = format!("/proc/{pid}/map_files/{:x}-{:x}", self.start, self.end);
        let open_for_writing = fs::symlink_metadata(&link).map(|link| link.mode() & 0o200 != 0);
        if !open_for_writing.unwrap_or(self.writable) {
            return;
        }
        match fs::metadata(&link) {
            Ok(file) => files.insert(key(file.dev(), file.ino())),
            Err(_) => files.insert(self.dev),
        };
    }
}

/// Writes back the dirty pages of a file and thereby takes write access from the page tables of all its
/// mappings: the next store faults, and the fault sets a new `ctime`. `false` where that is not so: tmpfs has
/// no write-back, and overlayfs does not pass the call on.
pub(super) fn flush(file: BorrowedFd<'_>) -> bool {
    const EXT4: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const BTRFS: i64 = 0x9123_683e;
    let Ok(statfs) = rustix::fs::fstatfs(file) else { return false };
    if ![EXT4, XFS, BTRFS].contains(&{ statfs.f_type }) {
        return false;
    }
    let how =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the descriptor is open for the whole call, which touches no memory of this process.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, how) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps() {
        let shared = b"7f0000000000-7f0000010000 rw-s 00000000 fe:01 131 /srv/a b\\012c";
        let want = Mapping {
            start: 0x7f00_0000_0000,
            end: 0x7f00_0001_0000,
            writable: true,
            dev: (0xfe << 32 | 1, 131),
        };
        assert_eq!(Mapping::parse(shared), Some(want));
        for line in [
            b"7f0000000000-7f0000010000 rw-p 00000000 fe:01 131 /srv/private".as_slice(),
            b"7f0000000000-7f0000010000 rw-s 00000000 00:00 0 ",
            b"7f0000000000-7f0000010000 rw 00000000 fe:01 131 x",
            b"7f0000000000 rw-s",
            b"",
            b"\xff\xfe-1 rw-s 0 1:1 1",
        ] {
            assert_eq!(Mapping::parse(line), None);
        }
    }
}
