//! Removal of trees, by descriptors, never through links and never across mounts.
//!
//! A tree a container wrote may be deeper than any path or descriptor limit. Directories deeper than [`FLAT`]
//! levels are moved up to the top of the tree being removed and taken from there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::error::StorageError;
use super::walk::{self, BENEATH, FileKind};

/// Depth at which directories are moved up instead of entered.
const FLAT: usize = 64;
/// Names listed of one directory at a time; bounds memory.
const BATCH: usize = 1 << 18;

/// What a removal freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Removed {
    pub(super) entries: u64,
    /// Allocated bytes of objects whose last name went.
    pub(super) bytes: u64,
}

/// Removes the directory `dir` with everything in it. Missing is fine.
///
/// Not safe against others writing in the tree at the same time: the processes that could must be gone.
///
/// # Errors
/// [`StorageError::MountBelow`] before anything is removed if something is mounted on it or below, as far as
/// this process sees; [`StorageError::Io`] otherwise, for example for a file made immutable with `chattr`.
/// What was not removed stays and the call can be repeated.
pub fn remove_tree(dir: &Path) -> Result<(), StorageError> {
    let io = |what, e: std::io::Error| StorageError::io(what, dir, e);
    let name = dir.file_name().ok_or_else(|| io("remove", Errno::INVAL.into()))?;
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = match parent.canonicalize() {
        Ok(parent) => parent,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io("find", e)),
    };
    let absolute = parent.join(name);
    if let Some(mount) = mount_below(&absolute)? {
        return Err(StorageError::MountBelow { path: absolute, mount });
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, &parent, flags, Mode::empty())
        .map_err(|e| io("open the parent of", e.into()))?;
    match walk::stat_at(fd.as_fd(), name.as_bytes()) {
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(io("examine", e.into())),
        Ok(stat) if FileKind::of(&stat) != Some(FileKind::Dir) => {
            return Err(io("remove", Errno::NOTDIR.into()));
        }
        Ok(_) => {}
    }
    remove_at(fd.as_fd(), name.as_bytes(), &absolute).map(drop)
}

/// First mount point at or below `dir` (absolute, without links) in this process's mount namespace.
fn mount_below(dir: &Path) -> Result<Option<PathBuf>, StorageError> {
    let table = "/proc/self/mountinfo";
    let text = std::fs::read(table).map_err(|e| StorageError::io("read", table, e))?;
    let points = text.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4));
    Ok(points.map(unescape).find(|point| point.starts_with(dir)))
}

/// Undoes the octal escapes of `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`).
fn unescape(text: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|d| byte == b'\\' && d[0] < b'4' && d.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(d) => {
                plain.push(((d[0] - b'0') << 6) | ((d[1] - b'0') << 3) | (d[2] - b'0'));
                rest = &after[3..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

/// Removes one name with everything below it. `shown` is for messages.
pub(super) fn remove_at(parent: BorrowedFd<'_>, name: &[u8], shown: &Path) -> Result<Removed, StorageError> {
    let mut removal = Removal { sum: Removed::default(), moved: 0, shown };
    match removal.leaf(parent, name)? {
        Done::Gone => return Ok(removal.sum),
        Done::Directory(mount) => {
            let top = removal.open(parent, name)?;
            // Deep directories come back as children of `top`, so it may take some rounds.
            while !removal.empty(&top, &top, mount, 0)? {}
        }
    }
    removal.rmdir(parent, name)?;
    Ok(removal.sum)
}

struct Removal<'a> {
    sum: Removed,
    moved: u64,
    shown: &'a Path,
}

enum Done {
    Gone,
    /// It is a directory, on this mount.
    Directory(u64),
}

impl Removal<'_> {
    fn io(&self, name: &[u8], e: Errno) -> StorageError {
        StorageError::io("remove", self.shown.join(std::ffi::OsStr::from_bytes(name)), e)
    }

    /// Removes anything but a directory.
    fn leaf(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Done, StorageError> {
        let stat = walk::stat_at(dir, name).map_err(|e| self.io(name, e))?;
        if FileKind::of(&stat) == Some(FileKind::Dir) {
            return Ok(Done::Directory(stat.stx_mnt_id));
        }
        rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(|e| self.io(name, e))?;
        self.sum.entries += 1;
        if stat.stx_nlink == 1 {
            self.sum.bytes = self.sum.bytes.saturating_add(stat.stx_blocks.saturating_mul(512));
        }
        Ok(Done::Gone)
    }

    fn open(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, StorageError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat2(dir, name, flags, Mode::empty(), BENEATH).map_err(|e| self.io(name, e))
    }

    fn rmdir(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), StorageError> {
        rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR).map_err(|e| self.io(name, e))?;
        self.sum.entries += 1;
        Ok(())
    }

    /// Empties a directory; `false` if something was moved to `top` and waits there.
    fn empty(
        &mut self,
        dir: &OwnedFd,
        top: &OwnedFd,
        mount: u64,
        depth: usize,
    ) -> Result<bool, StorageError> {
        let before = self.moved;
        loop {
            rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0)).map_err(|e| self.io(b"", e))?;
            let (names, complete) = walk::list_some(dir, BATCH).map_err(|e| self.io(b"", e))?;
            for name in names {
                let Done::Directory(on) = self.leaf(dir.as_fd(), &name)? else {
                    continue;
                };
                if on != mount {
                    return Err(self.io(&name, Errno::XDEV));
                }
                if depth < FLAT {
                    let child = self.open(dir.as_fd(), &name)?;
                    self.empty(&child, top, mount, depth + 1)?;
                    self.rmdir(dir.as_fd(), &name)?;
                } else {
                    self.lift(dir, &name, top)?;
                }
            }
            if complete {
                break;
            }
        }
        Ok(self.moved == before || depth > 0)
    }

    /// Moves a directory to the top under a name that is free there.
    fn lift(&mut self, dir: &OwnedFd, name: &[u8], top: &OwnedFd) -> Result<(), StorageError> {
        loop {
            self.moved += 1;
            let to = format!("tranship-removing-{}", self.moved);
            match rustix::fs::renameat_with(dir, name, top, to.as_bytes(), rustix::fs::RenameFlags::NOREPLACE)
            {
                Err(Errno::EXIST) => {}
                other => return other.map_err(|e| self.io(name, e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes() {
        assert_eq!(unescape(br"/a\040b\134\011"), PathBuf::from("/a b\\\t"));
        assert_eq!(unescape(br"/a\04"), PathBuf::from("/a\\04"));
        assert_eq!(unescape(br"/a\999"), PathBuf::from("/a\\999"));
    }
}
