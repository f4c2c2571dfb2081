//! What the storage tests share: a comparer that knows nothing of the code under test, and a pipe between
//! both ends.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use nix::libc;
use tranship_agent::storage::*;
use tranship_proto::tree::TreeRecord;

/// Everything that can be seen of one name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    pub kind: String,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub atime: (i64, i64),
    pub size: u64,
    pub content: Option<[u8; 32]>,
    /// Ranges of data; the rest is hole.
    pub data: Vec<(i64, i64)>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// First name (in byte order) of the same inode, for anything but directories.
    pub first_name: Vec<u8>,
}

/// Looks at a whole tree. Access times are left alone.
pub fn snapshot(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = BTreeMap::new();
    let mut names: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
    look(root, b"", &mut all);
    for path in all.keys() {
        let stat = fs::symlink_metadata(root.join(OsStr::from_bytes(path))).unwrap();
        names.entry((stat.dev(), stat.ino())).or_insert_with(|| path.clone());
    }
    for (path, seen) in &mut all {
        let stat = fs::symlink_metadata(root.join(OsStr::from_bytes(path))).unwrap();
        if !stat.is_dir() {
            seen.first_name = names[&(stat.dev(), stat.ino())].clone();
        }
    }
    all
}

fn look(at: &Path, path: &[u8], all: &mut BTreeMap<Vec<u8>, Seen>) {
    let stat = fs::symlink_metadata(at).unwrap();
    let kind = stat.file_type();
    let mut seen = Seen {
        mode: stat.mode() & 0o7777,
        owner: (stat.uid(), stat.gid()),
        mtime: (stat.mtime(), stat.mtime_nsec()),
        atime: (stat.atime(), stat.atime_nsec()),
        xattrs: xattrs(at),
        ..Seen::default()
    };
    seen.kind = if kind.is_dir() {
        "dir".into()
    } else if kind.is_file() {
        seen.size = stat.size();
        (seen.content, seen.data) = contents(at, stat.size());
        "file".into()
    } else if kind.is_symlink() {
        // Reading one name of a link moves the access time of all.
        if stat.nlink() > 1 {
            seen.atime = (0, 0);
        }
        format!("link to {:?}", fs::read_link(at).unwrap())
    } else if kind.is_fifo() {
        "fifo".into()
    } else if kind.is_socket() {
        "socket".into()
    } else {
        let block = if kind.is_block_device() { "block" } else { "char" };
        format!("{block} {}:{}", libc::major(stat.rdev()), libc::minor(stat.rdev()))
    };
    all.insert(path.to_vec(), seen);
    if kind.is_dir() {
        for name in list(at) {
            let mut below = path.to_vec();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(name.as_bytes());
            look(&at.join(&name), &below, all);
        }
    }
}

/// `std::fs::read_dir` would move access times.
fn list(dir: &Path) -> Vec<OsString> {
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOATIME | libc::O_DIRECTORY)
        .open(dir)
        .unwrap();
    let mut dir = nix::dir::Dir::from_fd(opened.into()).unwrap();
    let names = dir.iter().map(|e| OsString::from_vec(e.unwrap().file_name().to_bytes().to_vec()));
    names.filter(|n| n != "." && n != "..").collect()
}

fn contents(at: &Path, size: u64) -> (Option<[u8; 32]>, Vec<(i64, i64)>) {
    use std::os::fd::AsRawFd;
    let mut file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(at).unwrap();
    let mut data = Vec::new();
    let mut position = 0;
    loop {
        // SAFETY: lseek on an open descriptor has no memory effects.
        let (start, end) = unsafe {
            let start = libc::lseek(file.as_raw_fd(), position, libc::SEEK_DATA);
            (start, libc::lseek(file.as_raw_fd(), start.max(0), libc::SEEK_HOLE))
        };
        if start < 0 || end < 0 {
            break;
        }
        data.push((start, end));
        position = end;
    }
    // Huge sparse files are compared by their data only.
    let mut hasher = blake3::Hasher::new();
    if size < 8 << 20 {
        // SAFETY: as above.
        unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_SET) };
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        hasher.update(&all);
    } else {
        use std::os::unix::fs::FileExt;
        for (start, end) in &data {
            let mut part = vec![0; (end - start) as usize];
            file.read_exact_at(&mut part, *start as u64).unwrap();
            hasher.update(&part);
        }
    }
    (Some(*hasher.finalize().as_bytes()), data)
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

pub fn xattrs(at: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = c(at);
    let mut list = vec![0u8; 65536];
    // SAFETY: the buffer is as long as said.
    let len = unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    assert!(len >= 0, "{at:?}");
    let mut found = BTreeMap::new();
    for name in list[..len as usize].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let c_name = CString::new(name).unwrap();
        let mut value = vec![0u8; 65536];
        // SAFETY: the buffer is as long as said.
        let len = unsafe {
            libc::lgetxattr(path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        assert!(len >= 0, "{at:?}");
        value.truncate(len as usize);
        found.insert(name.to_vec(), value);
    }
    found
}

pub fn set_xattr(at: &Path, name: &str, value: &[u8]) {
    let name = CString::new(name).unwrap();
    // SAFETY: the value is as long as said.
    let rc = unsafe { libc::lsetxattr(c(at).as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(rc, 0, "{at:?} {name:?} {}", std::io::Error::last_os_error());
}

pub fn remove_xattr(at: &Path, name: &str) -> bool {
    let name = CString::new(name).unwrap();
    // SAFETY: both strings end with NUL.
    unsafe { libc::lremovexattr(c(at).as_ptr(), name.as_ptr()) == 0 }
}

pub fn mknod(at: &Path, mode: u32, dev: u64) {
    // SAFETY: the path ends with NUL.
    let rc = unsafe { libc::mknod(c(at).as_ptr(), mode, dev) };
    assert_eq!(rc, 0, "{at:?} {}", std::io::Error::last_os_error());
}

pub fn set_times(at: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let spec = |(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec };
    let times = [spec(atime), spec(mtime)];
    // SAFETY: two times are given.
    let rc =
        unsafe { libc::utimensat(libc::AT_FDCWD, c(at).as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
    assert_eq!(rc, 0, "{at:?}");
}

/// Asserts that two trees are the same, naming the first differences.
pub fn assert_same(a: &Path, b: &Path, with_atime: bool) {
    let (mut left, mut right) = (snapshot(a), snapshot(b));
    if !with_atime {
        left.values_mut().chain(right.values_mut()).for_each(|seen| seen.atime = (0, 0));
    }
    let mut differences = Vec::new();
    for path in left.keys().chain(right.keys().filter(|p| !left.contains_key(*p))) {
        if left.get(path) != right.get(path) {
            let name = String::from_utf8_lossy(path);
            differences.push(format!(
                "{name:?}\n  left  {:?}\n  right {:?}",
                left.get(path),
                right.get(path)
            ));
        }
    }
    differences.truncate(5);
    assert!(differences.is_empty(), "trees differ:\n{}", differences.join("\n"));
}

/// Runs one pass into a store, through the form records travel in.
pub fn pass(source: &mut TreeSource, store: &mut TreeStore, suspects: &Suspects) -> PassStats {
    pass_in(Phase::Running, source, store, suspects)
}

pub fn pass_in(
    phase: Phase,
    source: &mut TreeSource,
    store: &mut TreeStore,
    suspects: &Suspects,
) -> PassStats {
    let mut sink = |record: TreeRecord| {
        let (meta, data) = record.split();
        store.apply(TreeRecord::join(meta, data).unwrap()).unwrap_or_else(|e| panic!("{e}"));
        Ok(())
    };
    source.pass(phase, suspects, &mut sink, &AtomicBool::new(false)).unwrap()
}

/// Limits whose margin suits tests that do not want to wait.
pub fn quick() -> TreeLimits {
    TreeLimits { margin: std::time::Duration::from_millis(30), ..TreeLimits::default() }
}

pub fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(60));
}

/// Small, fast and repeatable.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        // One digest output is as random as it gets, and fast in debug builds too.
        blake3::Hasher::new_keyed(&[7; 32])
            .update(&self.next().to_le_bytes())
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }
}
