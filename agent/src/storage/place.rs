//! File system operations of the receiving side, each bound to a directory descriptor beneath the root.
//!
//! The tree being filled belongs to the store alone, yet every name is still resolved without links and
//! without leaving the root or its mount: what lies there came from a peer.
//!
//! Metadata order: owner, mode, extended attributes, times. `chown` clears setuid and `security.capability`,
//! and an ACL must find the mode it was saved with. See `chown(2)`, `capabilities(7)`, `acl(5)`.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tranship_proto::tree::{EntryKind, MAX_SIZE, Meta, Time, Xattr, xattr_is_carried};

use super::walk::BENEATH;

/// What is attempted when an extended attribute without a meaning of its own is set.
pub(super) const SET_XATTR: &str = "set an extended attribute of";

/// A failed operation: what was attempted, and why it failed.
pub(super) type Failed = (&'static str, Errno);

/// Opens a directory below `root` by its whole path.
pub(super) fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b".".as_slice() } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), BENEATH)
}

/// A handle on any object, links included, that allows metadata changes only.
pub(super) fn open_handle(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Failed> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(dir, name, flags, Mode::empty(), BENEATH).map_err(|e| ("open", e))
}

/// Opens a regular file for writing; `create` makes a new one and fails if the name is taken.
pub(super) fn open_file(dir: BorrowedFd<'_>, name: &[u8], create: bool) -> Result<OwnedFd, Failed> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    if create {
        let mode = Mode::RUSR | Mode::WUSR;
        return rustix::fs::openat2(dir, name, flags | OFlags::CREATE | OFlags::EXCL, mode, BENEATH)
            .map_err(|e| ("create", e));
    }
    rustix::fs::openat2(dir, name, flags, Mode::empty(), BENEATH).map_err(|e| ("open", e))
}

/// Makes anything but a regular file or a hard link. The name must be free.
pub(super) fn make(dir: BorrowedFd<'_>, name: &[u8], kind: &EntryKind) -> Result<(), Errno> {
    use rustix::fs::{FileType, makedev, mknodat};
    let mode = Mode::RUSR | Mode::WUSR;
    match kind {
        EntryKind::Dir => rustix::fs::mkdirat(dir, name, Mode::RWXU),
        EntryKind::Symlink { target } => rustix::fs::symlinkat(target.as_slice(), dir, name),
        EntryKind::Fifo => mknodat(dir, name, FileType::Fifo, mode, 0),
        EntryKind::Socket => mknodat(dir, name, FileType::Socket, mode, 0),
        EntryKind::CharDev { major, minor } => {
            mknodat(dir, name, FileType::CharacterDevice, mode, makedev(*major, *minor))
        }
        EntryKind::BlockDev { major, minor } => {
            mknodat(dir, name, FileType::BlockDevice, mode, makedev(*major, *minor))
        }
        EntryKind::File { .. } | EntryKind::HardLink { .. } => Err(Errno::INVAL),
    }
}

/// Writes all of `data` at `offset`.
pub(super) fn write(file: &OwnedFd, mut offset: u64, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::pwrite(file, data, offset) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(n) => {
                offset += n as u64;
                data = &data[n..];
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Makes the range from `offset` to `end` a hole in a file of `size` bytes; on file systems without holes it
/// is filled with zeros.
pub(super) fn punch(file: &OwnedFd, offset: u64, end: u64, size: u64) -> Result<(), Errno> {
    use rustix::fs::FallocateFlags;
    // Only whole blocks of the file system are freed, so the last one is reached beyond the end of the file.
    let to = if end == size { end.next_multiple_of(1 << 16).min(MAX_SIZE) } else { end };
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, how, offset, to - offset) {
        Err(Errno::OPNOTSUPP) => {}
        other => return other,
    }
    let zeros = [0u8; 65536];
    let mut at = offset;
    while at < end {
        let part = usize::try_from(end - at).map_or(zeros.len(), |left| left.min(zeros.len()));
        write(file, at, &zeros[..part])?;
        at += part as u64;
    }
    Ok(())
}

/// Applies owner, mode and extended attributes through a handle; times are left to [`set_times`].
pub(super) fn set_meta(
    handle: BorrowedFd<'_>,
    is_link: bool,
    meta: &Meta,
    xattrs: &[Xattr],
) -> Result<(), Failed> {
    let owner = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
    let object = format!("/proc/self/fd/{}", handle.as_raw_fd());
    rustix::fs::chownat(handle, "", owner.0, owner.1, AtFlags::EMPTY_PATH)
        .map_err(|e| ("set the owner of", e))?;
    if !is_link {
        rustix::fs::chmod(object.as_str(), Mode::from_raw_mode(meta.mode))
            .map_err(|e| ("set the mode of", e))?;
    }
    for name in existing_xattrs(&object)? {
        if xattrs.iter().all(|xattr| xattr.name != name) && is_removable(&name) {
            match rustix::fs::removexattr(object.as_str(), name.as_slice()) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(e) => return Err(("remove an extended attribute of", e)),
            }
        }
    }
    for xattr in xattrs {
        let name = CString::new(xattr.name.as_slice())
            .map_err(|_| ("name an extended attribute of", Errno::INVAL))?;
        rustix::fs::setxattr(object.as_str(), name.as_c_str(), &xattr.value, XattrFlags::empty())
            .map_err(|e| (xattr_action(&xattr.name), e))?;
    }
    Ok(())
}

fn xattr_action(name: &[u8]) -> &'static str {
    match name {
        b"security.capability" => "set file capabilities of",
        b"security.selinux" => "set the SELinux label of",
        b"system.posix_acl_access" | b"system.posix_acl_default" => "set the ACL of",
        _ => SET_XATTR,
    }
}

fn existing_xattrs(object: &str) -> Result<Vec<Vec<u8>>, Failed> {
    let mut list = vec![0u8; 1024];
    loop {
        match rustix::fs::listxattr(object, list.as_mut_slice()) {
            Ok(len) => {
                let names = list[..len].split(|b| *b == 0).filter(|name| !name.is_empty());
                return Ok(names.map(<[u8]>::to_vec).collect());
            }
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(Errno::RANGE) if list.len() < 65536 => list.resize(65536, 0),
            Err(e) => return Err(("list extended attributes of", e)),
        }
    }
}

/// Labels this host's security modules gave a new object are theirs and stay.
fn is_removable(name: &[u8]) -> bool {
    xattr_is_carried(name) && (!name.starts_with(b"security.") || name == b"security.capability")
}

/// Sets access and modification time through a handle.
pub(super) fn set_times(handle: BorrowedFd<'_>, atime: Time, mtime: Time) -> Result<(), Failed> {
    let spec = |time: Time| Timespec { tv_sec: time.s, tv_nsec: time.ns.into() };
    let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
    rustix::fs::utimensat(handle, "", &times, AtFlags::EMPTY_PATH).map_err(|e| ("set the times of", e))
}

/// Bytes and inodes the agent may still use on the file system of `fd`.
pub(super) fn free_space(fd: &OwnedFd) -> (u64, u64) {
    match rustix::fs::fstatvfs(fd.as_fd()) {
        Ok(vfs) => (vfs.f_bavail.saturating_mul(vfs.f_frsize), vfs.f_favail),
        Err(_) => (0, 0),
    }
}
