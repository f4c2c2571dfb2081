//! Reading a tree by directory descriptors.
//!
//! The container runs while its tree is read and may swap any name for a symbolic link, a device or another
//! directory between two calls. So nothing is opened by a path of more than one component, every open is an
//! `openat2` that stays beneath its directory and follows no link, and the whole walk runs on a detached
//! clone of the mount (`open_tree(OPEN_TREE_CLONE)`) that is read-only, `nodev` and `noatime`: a device node
//! slipped in cannot be opened, reading leaves no trace in access times, and mounts below the root are not
//! seen at all, so what they cover is read. Where the clone is refused the root is opened directly; mount
//! points below it are then recognised by their mount id.
//!
//! Rejected: comparing `st_dev` only. Files on overlayfs and btrfs subvolumes show other device numbers in
//! one mount.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use tranship_proto::tree::{self, Meta, Time, Xattr};

use super::error::{StorageError, shown};

/// How every single component is resolved.
pub(super) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Root of a tree to read.
pub(super) struct Root {
    pub(super) fd: OwnedFd,
    pub(super) mount: u64,
    /// Extra open flags, `O_NOATIME` when the mount itself would update access times.
    extra: OFlags,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self, StorageError> {
        match clone_mount(path) {
            Ok(fd) => Self::new(fd, OFlags::empty(), path),
            Err(Errno::PERM | Errno::NOSYS | Errno::INVAL) => Self::open_plain(path),
            Err(e) => Err(StorageError::io("open the tree", path, e)),
        }
    }

    /// Opens the root in the mounts as they are.
    pub(super) fn open_plain(path: &Path) -> Result<Self, StorageError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| StorageError::io("open the tree", path, e))?;
        Self::new(fd, OFlags::NOATIME, path)
    }

    fn new(fd: OwnedFd, extra: OFlags, path: &Path) -> Result<Self, StorageError> {
        let stat = stat_at(fd.as_fd(), b"").map_err(|e| StorageError::io("examine the tree", path, e))?;
        if FileKind::of(&stat) != Some(FileKind::Dir) {
            return Err(StorageError::io("open the tree", path, Errno::NOTDIR));
        }
        Ok(Self { fd, mount: stat.stx_mnt_id, extra })
    }

    /// Opens one component below `dir`; `O_PATH` unless `read`.
    pub(super) fn open_dir(&self, dir: BorrowedFd<'_>, name: &[u8], read: bool) -> Result<OwnedFd, Errno> {
        let how = if read { OFlags::RDONLY } else { OFlags::PATH };
        self.open_with(dir, name, how | OFlags::DIRECTORY)
    }

    /// Opens a regular file for reading; never blocks and never follows.
    pub(super) fn open_file(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_with(dir, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
    }

    fn open_with(&self, dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let name = if name.is_empty() { b".".as_slice() } else { name };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let extra = if flags.contains(OFlags::PATH) { OFlags::empty() } else { self.extra };
        match rustix::fs::openat2(dir, name, flags | extra, Mode::empty(), BENEATH) {
            Err(Errno::PERM) if !extra.is_empty() => {
                rustix::fs::openat2(dir, name, flags, Mode::empty(), BENEATH)
            }
            other => other,
        }
    }
}

/// A private, read-only clone of the mount `path` is in, starting at `path`, without the mounts below it.
fn clone_mount(path: &Path) -> Result<OwnedFd, Errno> {
    let fd = rustix::mount::open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    let attr = nix::libc::mount_attr {
        attr_set: nix::libc::MOUNT_ATTR_RDONLY
            | nix::libc::MOUNT_ATTR_NODEV
            | nix::libc::MOUNT_ATTR_NOEXEC
            | nix::libc::MOUNT_ATTR_NOATIME,
        attr_clr: nix::libc::MOUNT_ATTR__ATIME,
        propagation: nix::libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the descriptor is open, the path is a valid empty C string, and the kernel reads exactly the
    // given size of `attr`, which outlives the call.
    let rc = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            nix::libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<nix::libc::mount_attr>(),
        )
    };
    if rc == 0 {
        return Ok(fd);
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

/// `statx` of a name in a directory, never following; an empty name is the directory itself.
pub(super) fn stat_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

/// Type of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Dir,
    File,
    Symlink,
    Fifo,
    Socket,
    CharDev,
    BlockDev,
}

impl FileKind {
    pub(super) fn of(stat: &Statx) -> Option<Self> {
        use rustix::fs::FileType;
        Some(match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Directory => Self::Dir,
            FileType::RegularFile => Self::File,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice => Self::CharDev,
            FileType::BlockDevice => Self::BlockDev,
            _ => return None,
        })
    }
}

/// Device number of the file system an object is on, as one number.
pub(super) fn device_of(stat: &Statx) -> u64 {
    (u64::from(stat.stx_dev_major) << 32) | u64::from(stat.stx_dev_minor)
}

/// Nanoseconds since the epoch; wraps outside 1677..2262, which is good enough to see a change.
pub(super) fn nanos(time: rustix::fs::StatxTimestamp) -> i64 {
    time.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(i64::from(time.tv_nsec))
}

/// Nanoseconds since the epoch, now.
pub(super) fn now_nanos() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

pub(super) fn meta_of(stat: &Statx) -> Meta {
    let time = |t: rustix::fs::StatxTimestamp| Time { s: t.tv_sec, ns: t.tv_nsec };
    Meta {
        mode: u32::from(stat.stx_mode) & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        atime: time(stat.stx_atime),
        mtime: time(stat.stx_mtime),
    }
}

/// Names in a directory.
pub(super) type Names = Vec<Box<[u8]>>;

/// Names in a directory, sorted by bytes, without `.` and `..`.
pub(super) fn list(dir: &OwnedFd, most: u64, path: &[u8]) -> Result<Names, StorageError> {
    let count = usize::try_from(most).unwrap_or(usize::MAX);
    let (mut names, complete) =
        list_some(dir, count).map_err(|e| StorageError::io("list", shown(path), e))?;
    if !complete {
        return Err(StorageError::Limit { what: "the number of entries", path: shown(path), limit: most });
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// Up to `most` names in a directory as the kernel gives them, and whether that is all.
pub(super) fn list_some(dir: &OwnedFd, most: usize) -> Result<(Names, bool), Errno> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 16384];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut names = Names::new();
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            // A directory removed while it is read.
            Err(Errno::NOENT) => break,
            Err(e) => return Err(e),
        };
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if names.len() >= most {
            return Ok((names, false));
        }
        names.push(name.into());
    }
    Ok((names, true))
}

/// `/proc/self/fd/DIR/NAME`, for the extended attribute calls, which take no directory descriptor.
///
/// The last component is never followed by the `l*xattr` calls; without a name the descriptor itself is
/// meant.
pub(super) fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    path.push(b'/');
    path.extend_from_slice(if name.is_empty() { b"." } else { name });
    path
}

/// Reads the carried extended attributes of an object, sorted by name. `Ok(None)`: the object is gone.
pub(super) fn read_xattrs(
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
) -> Result<Option<Vec<Xattr>>, StorageError> {
    let what = "read extended attributes of";
    let object = proc_path(dir, name);
    let mut list = [0u8; 1024];
    let mut long = Vec::new();
    let names: &[u8] = match rustix::fs::llistxattr(object.as_slice(), &mut list) {
        Ok(len) => &list[..len],
        Err(Errno::NOTSUP) => return Ok(Some(Vec::new())),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::RANGE) => {
            long.resize(65536, 0);
            match rustix::fs::llistxattr(object.as_slice(), long.as_mut_slice()) {
                Ok(len) => &long[..len],
                Err(Errno::NOENT) => return Ok(None),
                Err(e) => return Err(StorageError::io(what, shown(path), e)),
            }
        }
        Err(e) => return Err(StorageError::io(what, shown(path), e)),
    };
    if names.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let mut xattrs = Vec::new();
    let mut value = vec![0u8; tree::MAX_XATTR_VALUE];
    for attr in names.split(|b| *b == 0).filter(|n| !n.is_empty() && tree::xattr_is_carried(n)) {
        let c_name = CString::new(attr).map_err(|e| StorageError::io(what, shown(path), e))?;
        match rustix::fs::lgetxattr(object.as_slice(), c_name.as_c_str(), value.as_mut_slice()) {
            Ok(len) => xattrs.push(Xattr { name: attr.to_vec(), value: value[..len].to_vec() }),
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(StorageError::io(what, shown(path), e)),
        }
    }
    xattrs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(Some(xattrs))
}

/// Whether a failed open or look means that the container changed the name meanwhile.
pub(super) fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::STALE | Errno::AGAIN)
}

/// Where a tree is, for messages.
pub(super) fn below(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { root.to_path_buf() } else { root.join(shown(path)) }
}
