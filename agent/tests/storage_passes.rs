//! Many passes over trees that change at random, also while they are read.
#![allow(clippy::unwrap_used)]

mod storage_support;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use storage_support::*;
use tranship_agent::storage::*;

/// Changes a tree at random. Failures are part of the game: names vanish, directories are full, types do not
/// fit.
struct Mutator {
    random: Random,
    root: PathBuf,
}

impl Mutator {
    fn names(&self) -> Vec<PathBuf> {
        fn collect(dir: &Path, all: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    collect(&entry.path(), all);
                }
                all.insert(entry.path());
            }
        }
        let mut all = BTreeSet::from([self.root.clone()]);
        collect(&self.root, &mut all);
        all.into_iter().collect()
    }

    fn any(&mut self) -> PathBuf {
        let names = self.names();
        names[self.random.below(names.len() as u64) as usize].clone()
    }

    /// A name, likely free, in a directory that is there.
    fn spot(&mut self) -> PathBuf {
        let mut at = self.any();
        while !at.is_dir() || at.is_symlink() {
            at.pop();
        }
        at.join(format!("n{}", self.random.below(12)))
    }

    fn size(&mut self) -> u64 {
        match self.random.below(5) {
            0 => 0,
            1 => self.random.below(100),
            2 => self.random.below(70_000),
            3 => self.random.below(300_000),
            _ => 4096 * self.random.below(40),
        }
    }

    fn step(&mut self) {
        let (at, to) = (self.any(), self.spot());
        let _ = match self.random.below(20) {
            0..=2 => {
                let n = self.size() as usize;
                write(&to, &self.random.bytes(n))
            }
            3 => fs::create_dir(&to),
            4 => symlink(format!("target-{}", self.random.below(9)), &to),
            5 => match self.random.below(3) {
                0 => make(&to, libc::S_IFIFO | 0o600, 0),
                1 => make(&to, libc::S_IFSOCK | 0o600, 0),
                _ => {
                    make(&to, libc::S_IFCHR | 0o600, libc::makedev(1, 3 + 2 * (self.random.below(2) as u32)))
                }
            },
            6 | 7 => fs::hard_link(&at, &to),
            8 | 9 if at != self.root => fs::rename(&at, &to),
            10 if at != self.root => fs::remove_file(&at),
            11 if at != self.root && self.random.below(8) == 0 => fs::remove_dir_all(&at),
            12 if !at.is_symlink() => {
                fs::set_permissions(&at, fs::Permissions::from_mode(self.random.below(0o10000) as u32))
            }
            13 => lchown(&at, Some(self.random.below(5) as u32), Some(self.random.below(5) as u32)),
            14 => {
                let name = format!("trusted.x{}", self.random.below(3));
                if self.random.below(3) == 0 {
                    remove_xattr(&at, &name);
                } else if at.exists() || at.is_symlink() {
                    set_xattr_quietly(&at, &name, &self.random.next().to_le_bytes());
                }
                Ok(())
            }
            15 if at.is_file() && !at.is_symlink() => {
                let size = self.size();
                fs::File::options().write(true).open(&at).and_then(|file| file.set_len(size))
            }
            16 | 17 if at.is_file() && !at.is_symlink() => {
                let (n, offset) = (self.random.below(9000) as usize, self.random.below(200_000));
                let bytes = self.random.bytes(n);
                fs::File::options().write(true).open(&at).and_then(|file| file.write_all_at(&bytes, offset))
            }
            18 if at.is_file() && !at.is_symlink() => {
                fs::File::options().write(true).open(&at).map(|file| {
                    let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                    let (offset, len) = (self.random.below(40) * 4096, (1 + self.random.below(20)) * 4096);
                    // SAFETY: the descriptor is open.
                    unsafe { libc::fallocate(file.as_raw_fd(), how, offset as i64, len as i64) };
                })
            }
            19 if !at.is_symlink() => {
                let times = (self.random.below(1 << 31) as i64, self.random.below(1_000_000_000) as i64);
                if at.exists() {
                    set_times_quietly(&at, times);
                }
                Ok(())
            }
            // Replaced in one step, as editors and package managers do.
            _ if at.is_file() && !at.is_symlink() => {
                let n = self.size() as usize;
                let new = self.root.join("replacement");
                write(&new, &self.random.bytes(n)).and_then(|()| fs::rename(&new, &at))
            }
            _ => Ok(()),
        };
    }
}

/// Like `std::fs::write`, but does not wait for a reader of a pipe and does not follow links.
fn write(at: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut how = fs::File::options();
    how.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
    std::io::Write::write_all(&mut how.open(at)?, bytes)
}

fn make(at: &Path, mode: u32, dev: u64) -> std::io::Result<()> {
    if !at.exists() && !at.is_symlink() && at.parent().is_some_and(Path::is_dir) {
        mknod(at, mode, dev);
    }
    Ok(())
}

fn set_xattr_quietly(at: &Path, name: &str, value: &[u8]) {
    let _ = std::panic::catch_unwind(|| set_xattr(at, name, value));
}

fn set_times_quietly(at: &Path, times: (i64, i64)) {
    let _ = std::panic::catch_unwind(|| set_times(at, times, times));
}

fn rounds(default: u64) -> u64 {
    std::env::var("TRANSHIP_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn random_changes_between_passes() {
    let space = tempfile::tempdir().unwrap();
    for seed in 0..rounds(25) {
        let (from, to) = (space.path().join(format!("from{seed}")), space.path().join(format!("to{seed}")));
        fs::create_dir(&from).unwrap();
        let mut mutator = Mutator { random: Random(seed), root: from.clone() };
        (0..60).for_each(|_| mutator.step());
        let mut source = TreeSource::open(&from, quick()).unwrap();
        let mut store = TreeStore::create(&to, StorePolicy::default()).unwrap();
        let passes = 2 + seed % 4;
        for n in 0..passes {
            if n > 0 {
                (0..1 + mutator.random.below(40)).for_each(|_| mutator.step());
            }
            if mutator.random.below(2) == 0 {
                settle();
            }
            pass(&mut source, &mut store, &Suspects::default());
        }
        let totals = store.seal(false).unwrap();
        println!("seed {seed}: {passes} passes, {totals:?}");
        assert_same(&from, &to, true);
        drop(source);
        remove_tree(&from).unwrap();
        remove_tree(&to).unwrap();
    }
}

#[test]
fn changes_while_a_pass_runs() {
    let space = tempfile::tempdir().unwrap();
    for seed in 0..rounds(6) {
        let (from, to) = (space.path().join(format!("from{seed}")), space.path().join(format!("to{seed}")));
        fs::create_dir(&from).unwrap();
        let mut mutator = Mutator { random: Random(seed + 1000), root: from.clone() };
        (0..200).for_each(|_| mutator.step());
        let over = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn({
            let over = over.clone();
            move || {
                let mut steps = 0;
                while !over.load(Ordering::Relaxed) {
                    mutator.step();
                    steps += 1;
                }
                steps
            }
        });
        // The default margin: this is about what a slow reader may miss.
        let mut source = TreeSource::open(&from, TreeLimits::default()).unwrap();
        let mut store = TreeStore::create(&to, StorePolicy::default()).unwrap();
        let mut seen = Vec::new();
        for _ in 0..6 {
            let mut slow = |record| {
                std::thread::sleep(Duration::from_micros(300));
                store.apply(record).unwrap_or_else(|e| panic!("{e}"));
                Ok(())
            };
            let none = Suspects::default();
            let stats = source.pass(Phase::Running, &none, &mut slow, &AtomicBool::new(false)).unwrap();
            seen.push(stats.entries);
        }
        over.store(true, Ordering::Relaxed);
        let steps = writer.join().unwrap();
        let last = pass_in(Phase::Frozen, &mut source, &mut store, &Suspects::default());
        store.seal(false).unwrap();
        println!("seed {seed}: {steps} steps, entries {seen:?}, last {last:?}");
        assert_same(&from, &to, true);
        drop(source);
        remove_tree(&from).unwrap();
        remove_tree(&to).unwrap();
    }
}

struct Mapped {
    file: fs::File,
    memory: &'static mut [u8],
}

impl Mapped {
    fn new(at: &Path) -> Self {
        fs::write(at, vec![1u8; 3 << 20]).unwrap();
        let file = fs::File::options().read(true).write(true).open(at).unwrap();
        let how = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping of an open file that nobody truncates; it is unmapped by the test alone.
        let memory = unsafe {
            let at = libc::mmap(std::ptr::null_mut(), 3 << 20, how, libc::MAP_SHARED, file.as_raw_fd(), 0);
            assert_ne!(at, libc::MAP_FAILED);
            std::slice::from_raw_parts_mut(at.cast::<u8>(), 3 << 20)
        };
        Self { file, memory }
    }

    fn changed(&self) -> (i64, i64) {
        use std::os::unix::fs::MetadataExt;
        let stat = self.file.metadata().unwrap();
        (stat.ctime(), stat.ctime_nsec())
    }

    fn is_suspect(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let stat = self.file.metadata().unwrap();
        let suspects = shared_writable_files(&[std::process::id() as i32, i32::MAX]).unwrap();
        suspects.contains(stat.dev(), stat.ino())
    }
}

fn suspects() -> Suspects {
    shared_writable_files(&[std::process::id() as i32]).unwrap()
}

/// A store through a shared mapping leaves no time stamp while its page is dirty already.
#[test]
fn writes_through_a_mapping() {
    for place in ["/dev/shm", "/var/tmp"] {
        let space = tempfile::tempdir_in(place).unwrap();
        let (from, to) = (space.path().join("from"), space.path().join("to"));
        fs::create_dir(&from).unwrap();
        let Mapped { file, memory } = Mapped::new(&from.join("mapped"));
        memory[5] = 2;
        let mapped = Mapped { file, memory };
        settle();
        assert!(mapped.is_suspect());
        let before = mapped.changed();
        let mut source = TreeSource::open(&from, quick()).unwrap();
        let mut store = TreeStore::create(&to, StorePolicy::default()).unwrap();
        // As if already frozen: nothing is written back, so the next store to the page is silent.
        pass_in(Phase::Frozen, &mut source, &mut store, &suspects());
        mapped.memory[6] = 3;
        assert_eq!(mapped.changed(), before, "the kernel saw the store on {place}");
        // Not suspected now, but it was once.
        let stats = pass(&mut source, &mut store, &Suspects::default());
        assert_eq!(stats.data_bytes, 65536, "{place}");
        // Written back by that pass, which is worth another read only where stores still go unseen.
        let stats = pass_in(Phase::Frozen, &mut source, &mut store, &suspects());
        let expected = if place == "/dev/shm" { 3 << 20 } else { 0 };
        assert_eq!((stats.data_bytes, stats.read_bytes), (0, expected), "{place}");
        mapped.memory[7] = 4;
        mapped.memory[2 << 20] = 5;
        let stats = pass_in(Phase::Frozen, &mut source, &mut store, &suspects());
        assert_eq!(stats.data_bytes, 2 * 65536, "{place}");
        store.seal(false).unwrap();
        assert_same(&from, &to, true);
        // A mapping that is read-only at the moment still counts.
        let (at, len) = (mapped.memory.as_mut_ptr().cast(), mapped.memory.len());
        // SAFETY: the range is the mapping made above.
        unsafe { assert_eq!(libc::mprotect(at, len, libc::PROT_READ), 0) };
        assert!(mapped.is_suspect());
        // SAFETY: as above, and the memory is not used any more.
        unsafe { libc::munmap(at, len) };
        assert!(!mapped.is_suspect());
    }
}

#[test]
fn stopped_and_abandoned() {
    let space = tempfile::tempdir().unwrap();
    let from = space.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), vec![1; 3 << 20]).unwrap();
    let none = Suspects::default();
    let mut source = TreeSource::open(&from, quick()).unwrap();
    let error = source.pass(Phase::Running, &none, &mut |_| Ok(()), &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(error, StorageError::Stopped));
    let error = source.pass(Phase::Running, &none, &mut |_| Ok(()), &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, StorageError::Spent));
    let mut source = TreeSource::open(&from, quick()).unwrap();
    let error =
        source.pass(Phase::Running, &none, &mut |_| Err(SinkClosed), &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, StorageError::SinkClosed));
    // Stopped in the middle of a file.
    let stop = AtomicBool::new(false);
    let mut data = 0;
    let mut sink = |record| {
        if let tranship_proto::tree::TreeRecord::Data { .. } = record {
            stop.store(true, Ordering::Relaxed);
            data += 1;
        }
        Ok(())
    };
    let error =
        TreeSource::open(&from, quick()).unwrap().pass(Phase::Running, &none, &mut sink, &stop).unwrap_err();
    assert!(matches!(error, StorageError::Stopped));
    assert_eq!(data, 1);
}

/// The blackout pays for this pass.
#[test]
fn unchanged_tree_is_quick() {
    let space = tempfile::tempdir().unwrap();
    let (from, to) = (space.path().join("from"), space.path().join("to"));
    for dir in 0..1500 {
        let dir = from.join(format!("usr/share/{}/{dir}", dir % 50));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..9 {
            fs::write(dir.join(format!("file-{file}")), [file; 100]).unwrap();
        }
    }
    settle();
    let mut source = TreeSource::open(&from, quick()).unwrap();
    let mut store = TreeStore::create(&to, StorePolicy::default()).unwrap();
    let first = pass(&mut source, &mut store, &Suspects::default());
    let mut times = Vec::new();
    for _ in 0..5 {
        let stats = pass_in(Phase::Frozen, &mut source, &mut store, &Suspects::default());
        assert_eq!((stats.entries, stats.seen), (0, first.seen));
        times.push(stats.elapsed);
    }
    let began = Instant::now();
    let estimate = source.estimate().unwrap();
    println!(
        "{} entries: first pass {:?}, unchanged {times:?}, estimate {:?}",
        first.seen,
        first.elapsed,
        began.elapsed()
    );
    assert_eq!(estimate.entries, first.seen);
    assert!(times.iter().min().unwrap() < &Duration::from_secs(2));
}

/// A tree of the reader's choice, for measuring: `TRANSHIP_TEST_TREE=/srv/rootfs`.
#[test]
fn any_tree() {
    let Some(from) = std::env::var_os("TRANSHIP_TEST_TREE").map(PathBuf::from) else { return };
    let space = tempfile::tempdir().unwrap();
    let to = space.path().join("to");
    let mut source = TreeSource::open(&from, TreeLimits::default()).unwrap();
    let mut store = TreeStore::create(&to, StorePolicy::default()).unwrap();
    println!("{:?}", source.estimate().unwrap());
    for phase in [Phase::Running, Phase::Running, Phase::Frozen] {
        println!("{:?}", pass_in(phase, &mut source, &mut store, &Suspects::default()));
    }
    let began = Instant::now();
    println!("{:?}, sealed in {:?}", store.seal(false).unwrap(), began.elapsed());
    assert_same(&from, &to, false);
    remove_tree(&to).unwrap();
}
