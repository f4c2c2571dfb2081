//! What a peer may send to hurt the receiver: each is refused and nothing outside the tree changes.
#![allow(clippy::unwrap_used)]

mod storage_support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use storage_support::*;
use tranship_agent::storage::*;
use tranship_proto::tree::*;

fn meta(mode: u32) -> Meta {
    Meta { mode, ..Meta::default() }
}

fn entry(path: &str, kind: EntryKind) -> TreeRecord {
    let meta = if let EntryKind::HardLink { .. } = kind { Meta::default() } else { meta(0o644) };
    TreeRecord::Entry(Entry { path: path.into(), kind, meta, xattrs: Vec::new() })
}

fn file(path: &str, size: u64, content: Content) -> TreeRecord {
    entry(path, EntryKind::File { size, content })
}

fn link(path: &str, to: &str) -> TreeRecord {
    entry(path, EntryKind::HardLink { to: to.into() })
}

fn symbolic(path: &str, target: &str) -> TreeRecord {
    entry(path, EntryKind::Symlink { target: target.into() })
}

fn data(offset: u64, bytes: &[u8]) -> TreeRecord {
    TreeRecord::Data { offset, data: bytes.to_vec() }
}

fn end(parts: &[(u64, &[u8])]) -> TreeRecord {
    let mut hasher = blake3::Hasher::new();
    let mut sent_bytes = 0;
    for (offset, bytes) in parts {
        hasher.update(&offset.to_le_bytes()).update(bytes);
        sent_bytes += bytes.len() as u64;
    }
    TreeRecord::FileEnd { digest: *hasher.finalize().as_bytes(), sent_bytes }
}

fn remove(path: &str) -> TreeRecord {
    TreeRecord::Remove { path: path.into() }
}

/// A place with something to protect next to the tree.
struct Place {
    space: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let space = tempfile::tempdir().unwrap();
        fs::create_dir_all(space.path().join("outside/dir")).unwrap();
        fs::write(space.path().join("outside/secret"), b"secret").unwrap();
        fs::set_permissions(space.path().join("outside/secret"), fs::Permissions::from_mode(0o600)).unwrap();
        Self { space }
    }

    fn outside(&self) -> PathBuf {
        self.space.path().join("outside")
    }

    /// Applies records in a first pass: all but the last must be accepted; gives the outcome of the last.
    fn last(&self, policy: StorePolicy, records: Vec<TreeRecord>) -> Result<(), StorageError> {
        let dir = tempfile::tempdir_in(self.space.path()).unwrap();
        let before = snapshot(&self.outside());
        let mut store = TreeStore::create(&dir.path().join("tree"), policy).unwrap();
        store.apply(TreeRecord::PassStart { pass: 1 }).unwrap();
        store.apply(entry("", EntryKind::Dir)).unwrap();
        let many = records.len();
        let mut outcome = Ok(());
        for (n, record) in records.into_iter().enumerate() {
            outcome = store.apply(record.clone());
            if n + 1 < many {
                outcome.as_ref().unwrap_or_else(|e| panic!("{record:?}: {e}"));
            }
        }
        if outcome.is_err() {
            let again = store.apply(entry("innocent", EntryKind::Dir));
            assert!(matches!(again, Err(StorageError::Spent)), "goes on after an error");
            assert!(matches!(store.seal(false), Err(StorageError::Spent)));
        }
        assert_eq!(snapshot(&self.outside()), before, "something outside changed");
        outcome
    }

    fn refused(&self, records: Vec<TreeRecord>) {
        let shown = format!("{records:?}");
        let error = self.last(StorePolicy::default(), records).expect_err(&shown);
        println!("{error}");
    }
}

#[test]
fn malformed_records() {
    let place = Place::new();
    for path in ["/etc/x", "../x", "a/../../x", "a//x", "./x", "x/", "x\0y", &"n".repeat(256)] {
        place.refused(vec![file(path, 0, Content::Full)]);
        place.refused(vec![entry(path, EntryKind::Dir)]);
        place.refused(vec![remove(path)]);
        place.refused(vec![file("a", 0, Content::Full), end(&[]), link("b", path)]);
    }
    place.refused(vec![remove("")]);
    place.refused(vec![file("", 0, Content::Full)]);
}

#[test]
fn ways_out_of_the_tree() {
    let place = Place::new();
    let outside = place.outside();
    let out = outside.to_str().unwrap();
    for target in [out, "../../outside", "/", ".."] {
        let way = || symbolic("way", target);
        place.refused(vec![way(), file("way/evil", 0, Content::Full)]);
        place.refused(vec![way(), file("way/secret", 6, Content::Keep)]);
        place.refused(vec![way(), file("way/secret", 0, Content::Delta)]);
        place.refused(vec![way(), entry("way/dir", EntryKind::Dir)]);
        place.refused(vec![way(), entry("way/fifo", EntryKind::Fifo)]);
        place.refused(vec![way(), symbolic("way/link", "x")]);
        place.refused(vec![way(), link("stolen", "way/secret")]);
        place.refused(vec![way(), file("a", 0, Content::Full), end(&[]), link("way/planted", "a")]);
        place.refused(vec![way(), remove("way/secret")]);
        place.refused(vec![way(), remove("way/dir")]);
    }
    let secret = outside.join("secret");
    let way = || symbolic("way", secret.to_str().unwrap());
    place.refused(vec![way(), file("way", 6, Content::Keep)]);
    place.refused(vec![way(), file("way", 0, Content::Delta)]);
    // The link itself is an object like any other.
    let fine =
        vec![way(), link("way-2", "way"), file("way", 1, Content::Full), data(0, b"x"), end(&[(0, b"x")])];
    place.last(StorePolicy::default(), fine).unwrap();
    let fine = vec![way(), symbolic("way", "elsewhere"), entry("way", EntryKind::Dir), remove("way")];
    place.last(StorePolicy::default(), fine).unwrap();
    let mut attributes = Entry {
        path: b"way".to_vec(),
        kind: EntryKind::Symlink { target: secret.to_str().unwrap().into() },
        meta: meta(0o666),
        xattrs: Vec::new(),
    };
    attributes.meta.uid = 12;
    attributes.xattrs.push(Xattr { name: b"trusted.x".to_vec(), value: b"1".to_vec() });
    place.last(StorePolicy::default(), vec![TreeRecord::Entry(attributes)]).unwrap();
}

#[test]
fn records_that_do_not_fit_the_tree() {
    let place = Place::new();
    let a = || vec![file("a", 3, Content::Full), data(0, b"abc"), end(&[(0, b"abc")])];
    let then = |more: Vec<TreeRecord>| place.refused([a(), more].concat());
    place.refused(vec![file("missing/a", 0, Content::Full)]);
    place.refused(vec![remove("missing")]);
    place.refused(vec![link("b", "missing")]);
    place.refused(vec![file("missing", 0, Content::Delta)]);
    place.refused(vec![file("missing", 0, Content::Keep)]);
    place.refused(vec![entry("d", EntryKind::Dir), link("b", "d")]);
    place.refused(vec![entry("d", EntryKind::Dir), file("d", 0, Content::Delta)]);
    place.refused(vec![entry("p", EntryKind::Fifo), file("p", 0, Content::Delta)]);
    place.refused(vec![entry("d", EntryKind::Dir), link("d", "d/inside")]);
    then(vec![file("a/b", 0, Content::Full)]);
    then(vec![file("a", 2, Content::Keep)]);
    then(vec![link("a/b", "a")]);
    then(vec![remove("a/b")]);
    then(vec![data(0, b"x")]);
    then(vec![TreeRecord::Hole { offset: 0, len: 1 }]);
    then(vec![end(&[])]);
    then(vec![file("a", 3, Content::Keep), data(0, b"x")]);
    place.refused(vec![data(0, b"x")]);
    place.refused(vec![end(&[])]);
}

#[test]
fn contents_that_lie() {
    let place = Place::new();
    let open = || file("a", 10, Content::Full);
    place.refused(vec![open(), data(0, &[1; 11])]);
    place.refused(vec![open(), data(10, &[1])]);
    place.refused(vec![open(), data(9, &[1, 2])]);
    place.refused(vec![open(), data(MAX_SIZE - 1, &[1])]);
    place.refused(vec![open(), data(4, &[1; 2]), data(0, &[1; 2])]);
    place.refused(vec![open(), data(4, &[1; 2]), data(5, &[1; 2])]);
    place.refused(vec![open(), data(4, &[1; 2]), data(4, &[1; 2])]);
    place.refused(vec![open(), TreeRecord::Hole { offset: 0, len: 2 }]);
    place.refused(vec![open(), data(0, b"ab"), end(&[(0, b"ac")])]);
    place.refused(vec![open(), data(0, b"ab"), end(&[(1, b"ab")])]);
    place.refused(vec![open(), data(0, b"ab"), end(&[(0, b"a"), (1, b"b")])]);
    place.refused(vec![open(), data(0, b"ab"), end(&[])]);
    place.refused(vec![open(), end(&[(0, b"a")])]);
    let TreeRecord::FileEnd { digest, .. } = end(&[(0, b"ab")]) else { unreachable!() };
    place.refused(vec![open(), data(0, b"ab"), TreeRecord::FileEnd { digest, sent_bytes: 3 }]);
    // Without an end.
    place.refused(vec![open(), file("b", 0, Content::Full)]);
    place.refused(vec![open(), remove("a")]);
    place.refused(vec![open(), TreeRecord::PassEnd { entries: 2, data_bytes: 0, digest: [0; 32] }]);
    place.refused(vec![
        open(),
        end(&[]),
        file("a", 10, Content::Delta),
        TreeRecord::Hole { offset: 4, len: 4 },
        data(7, b"x"),
    ]);
    place.refused(vec![
        open(),
        end(&[]),
        file("a", 10, Content::Delta),
        TreeRecord::Hole { offset: 4, len: MAX_SIZE - 4 },
    ]);
    // More than any file system takes.
    place.refused(vec![file("a", MAX_SIZE, Content::Full)]);
}

#[test]
fn devices() {
    let place = Place::new();
    let char_dev = |major, minor| entry("dev", EntryKind::CharDev { major, minor });
    let block_dev = |major, minor| entry("dev", EntryKind::BlockDev { major, minor });
    for (major, minor) in DEFAULT_DEVICES {
        place.last(StorePolicy::default(), vec![char_dev(major, minor)]).unwrap();
        place.refused(vec![block_dev(major, minor)]);
    }
    for (major, minor) in [(1, 1), (1, 2), (4, 0), (10, 130), (10, 200), (5, 3)] {
        place.refused(vec![char_dev(major, minor)]);
    }
    let disk = AllowedDevice { block: true, major: 8, minor: 0 };
    let policy = || StorePolicy { devices: vec![disk], ..StorePolicy::default() };
    place.last(policy(), vec![block_dev(8, 0)]).unwrap();
    let error = place.last(policy(), vec![char_dev(8, 0)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"dev\" is a character device 8:0, which is not allowed here; remove the node from the container or \
         allow the device at the destination"
    );
    assert!(place.last(policy(), vec![block_dev(8, 1)]).is_err());
}

/// `tempfile` is on ext4 or tmpfs nearly everywhere; where there is room for all of it, there is nothing to
/// test.
#[test]
fn too_many_attributes_for_the_file_system() {
    let place = Place::new();
    let xattr = |n: u32| Xattr { name: format!("user.{n:04}").into_bytes(), value: vec![1; 60_000] };
    let entry = Entry {
        path: b"x".to_vec(),
        kind: EntryKind::Dir,
        meta: meta(0o755),
        xattrs: (0..16).map(xattr).collect(),
    };
    if let Err(error) = place.last(StorePolicy::default(), vec![TreeRecord::Entry(entry)]) {
        assert!(matches!(error, StorageError::NotCarried { .. }), "{error}");
    }
}

#[test]
fn limits() {
    let place = Place::new();
    let policy = |max_entries, max_bytes| StorePolicy { max_entries, max_bytes, ..StorePolicy::default() };
    let dirs =
        |n: usize| (0..n).map(|n| entry(&format!("d{n}"), EntryKind::Dir)).collect::<Vec<TreeRecord>>();
    place.last(policy(5, 0), dirs(5)).unwrap();
    let error = place.last(policy(5, 0), dirs(6)).unwrap_err();
    assert!(matches!(error, StorageError::Limit { limit: 5, .. }), "{error}");
    let links = vec![file("a", 0, Content::Full), end(&[]), link("b", "a"), link("c", "a")];
    place.last(policy(3, 0), links.clone()).unwrap();
    place.last(policy(2, 0), links).unwrap_err();
    // What was removed or replaced makes room.
    let again = [dirs(5), vec![remove("d0"), entry("e", EntryKind::Dir), symbolic("e", "x")]].concat();
    place.last(policy(5, 0), again).unwrap();
    // Updates are no new entries, but not endless either.
    let updates = |n| [dirs(1), vec![entry("d0", EntryKind::Dir); n]].concat();
    place.last(policy(5, 0), updates(1000)).unwrap();
    place.last(policy(5, 0), updates(1033)).unwrap_err();

    let block = [1u8; 8192];
    let files = |n: usize| {
        let one = |n| {
            vec![file(&format!("f{n}"), 8192, Content::Full), data(0, &block), end(&[(0, block.as_slice())])]
        };
        (0..n).flat_map(one).collect::<Vec<TreeRecord>>()
    };
    place.last(policy(99, 5 * 8192), files(5)).unwrap();
    let mut six = files(6);
    six.pop();
    let error = place.last(policy(99, 5 * 8192), six).unwrap_err();
    assert!(matches!(error, StorageError::Limit { limit: 40960, .. }), "{error}");
    // Overwriting takes no more room; a hole gives some back.
    let over = vec![file("f0", 8192, Content::Delta), data(0, &block), end(&[(0, block.as_slice())])];
    place.last(policy(99, 5 * 8192), [files(5), over].concat()).unwrap();
    let hole = vec![file("f0", 8192, Content::Delta), TreeRecord::Hole { offset: 0, len: 8192 }, end(&[])];
    let more = vec![file("g", 8192, Content::Full), data(0, &block), end(&[(0, block.as_slice())])];
    place.last(policy(99, 5 * 8192), [files(5), hole, more.clone()].concat()).unwrap();
    place.last(policy(99, 5 * 8192), [files(5), vec![remove("f3")], more].concat()).unwrap();
}

#[test]
fn order_of_passes() {
    let place = Place::new();
    let new = |name: &str| TreeStore::create(&place.space.path().join(name), StorePolicy::default()).unwrap();
    assert!(new("a").apply(entry("x", EntryKind::Dir)).is_err());
    assert!(new("b").apply(TreeRecord::PassStart { pass: 0 }).is_err());
    assert!(new("c").apply(TreeRecord::PassStart { pass: 2 }).is_err());
    let mut store = new("d");
    store.apply(TreeRecord::PassStart { pass: 1 }).unwrap();
    assert!(store.apply(TreeRecord::PassStart { pass: 2 }).is_err());
    assert!(new("e").seal(false).is_err());
    let mut store = new("f");
    store.apply(TreeRecord::PassStart { pass: 1 }).unwrap();
    assert_eq!(store.finished_pass(), None);
    assert!(store.seal(false).is_err());
    // A directory that is not empty, not a directory, a link, or has no parent.
    fs::write(place.space.path().join("a/file"), b"").unwrap();
    symlink("b", place.space.path().join("link")).unwrap();
    for name in ["a", "a/file", "link", "missing/x"] {
        assert!(TreeStore::create(&place.space.path().join(name), StorePolicy::default()).is_err(), "{name}");
    }
    // Half a tree is not for other users of the host.
    let mode = fs::metadata(place.space.path().join("f")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

/// Any one record lost, doubled, moved or altered is noticed before the pass counts.
#[test]
fn altered_streams() {
    let place = Place::new();
    let from = place.space.path().join("from");
    fs::create_dir_all(from.join("dir/sub")).unwrap();
    fs::write(from.join("dir/file"), Random(3).bytes(3 << 20)).unwrap();
    fs::hard_link(from.join("dir/file"), from.join("link")).unwrap();
    symlink("file", from.join("dir/symlink")).unwrap();
    fs::write(from.join("empty"), b"").unwrap();
    let mut source = TreeSource::open(&from, TreeLimits::default()).unwrap();
    let mut records = Vec::new();
    let mut sink = |record| {
        records.push(record);
        Ok(())
    };
    source.pass(Phase::Running, &Suspects::default(), &mut sink, &AtomicBool::new(false)).unwrap();

    let mut variants = Vec::new();
    for n in 0..records.len() {
        let mut lost = records.clone();
        lost.remove(n);
        variants.push((format!("without {n}"), lost));
        let mut doubled = records.clone();
        doubled.insert(n, records[n].clone());
        variants.push((format!("twice {n}"), doubled));
        variants.push((format!("cut at {n}"), records[..n].to_vec()));
        if n + 1 < records.len() {
            let mut swapped = records.clone();
            swapped.swap(n, n + 1);
            variants.push((format!("swapped {n}"), swapped));
        }
        let mut altered = records.clone();
        match &mut altered[n] {
            TreeRecord::PassStart { pass } => *pass += 1,
            TreeRecord::Entry(entry) => entry.meta.mtime.s += 1,
            TreeRecord::Data { data, .. } => data[77] ^= 1,
            TreeRecord::Hole { len, .. } => *len += 1,
            TreeRecord::FileEnd { sent_bytes, .. } => *sent_bytes += 1,
            TreeRecord::Remove { path } => path.push(b'x'),
            TreeRecord::PassEnd { digest, .. } => digest[0] ^= 1,
        }
        variants.push((format!("altered {n}"), altered));
    }
    for (n, (what, records)) in variants.into_iter().enumerate() {
        let dir = place.space.path().join(format!("to{n}"));
        let mut store = TreeStore::create(&dir, StorePolicy::default()).unwrap();
        let outcome = records.into_iter().try_for_each(|record| store.apply(record));
        assert!(outcome.is_err() || store.finished_pass().is_none(), "{what} was accepted");
        assert!(store.seal(false).is_err(), "{what} was sealed");
        remove_tree(&dir).unwrap();
    }
    let mut store = TreeStore::create(&place.space.path().join("good"), StorePolicy::default()).unwrap();
    records.into_iter().try_for_each(|record| store.apply(record)).unwrap();
    store.seal(false).unwrap();
    assert_same(&from, &place.space.path().join("good"), false);
}

#[test]
fn a_full_disk_is_named() {
    let place = Place::new();
    let disk = place.space.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let options = Some("size=1m,nr_inodes=20");
    mount(Some("none"), &disk, Some("tmpfs"), MsFlags::empty(), options).unwrap();
    let outcome = std::panic::catch_unwind(|| {
        let start = |name: &str| {
            let mut store = TreeStore::create(&disk.join(name), StorePolicy::default()).unwrap();
            store.apply(TreeRecord::PassStart { pass: 1 }).unwrap();
            store
        };
        let mut store = start("bytes");
        store.apply(file("big", 2 << 20, Content::Full)).unwrap();
        store.apply(data(0, &[1; 900 << 10])).unwrap();
        let error = store.apply(data(900 << 10, &[1; 1 << 20])).unwrap_err();
        println!("{error}");
        let StorageError::NoSpace { path, free_bytes, free_inodes } = error else { panic!("{error}") };
        assert!(path.ends_with("bytes/big") && free_bytes < 1 << 20 && free_inodes > 5);
        remove_tree(&disk.join("bytes")).unwrap();
        let mut store = start("inodes");
        let error = (0..30).find_map(|n| store.apply(entry(&format!("d{n}"), EntryKind::Dir)).err()).unwrap();
        assert!(matches!(error, StorageError::NoSpace { free_inodes: 0, .. }), "{error}");
    });
    umount2(&disk, MntFlags::MNT_DETACH).unwrap();
    outcome.unwrap();
}

#[test]
fn removal() {
    let place = Place::new();
    let tree = place.space.path().join("tree");
    remove_tree(&tree).unwrap();
    remove_tree(&tree.join("below/nothing")).unwrap();
    fs::create_dir(&tree).unwrap();
    symlink(place.outside(), tree.join("way")).unwrap();
    fs::create_dir(tree.join("closed")).unwrap();
    fs::write(tree.join("closed/x"), b"").unwrap();
    fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o0)).unwrap();
    // Deeper than any path: directories made one below the other.
    let mut at = fs::File::open(&tree).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "deep-directory", rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        at = rustix::fs::openat(&at, "deep-directory", flags, rustix::fs::Mode::empty()).unwrap().into();
    }
    drop(at);
    let before = snapshot(&place.outside());
    assert!(
        TreeSource::open(&tree, TreeLimits::default())
            .unwrap()
            .pass(Phase::Running, &Suspects::default(), &mut |_| Ok(()), &AtomicBool::new(false))
            .is_err_and(|e| matches!(e, StorageError::NotCarried { .. }))
    );
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
    // A link to a tree is not the tree, and a file is none.
    symlink("outside", place.space.path().join("link")).unwrap();
    for name in ["link", "outside/secret"] {
        assert!(remove_tree(&place.space.path().join(name)).is_err());
    }
    assert!(remove_tree(std::path::Path::new("/")).is_err());
    assert_eq!(snapshot(&place.outside()), before);
}

#[test]
fn limits_of_the_source() {
    let place = Place::new();
    let tree = place.space.path().join("tree");
    fs::create_dir(&tree).unwrap();
    (0..4).for_each(|n| fs::write(tree.join(format!("f{n}")), b"").unwrap());
    let run = |max_entries| {
        let mut source =
            TreeSource::open(&tree, TreeLimits { max_entries, ..TreeLimits::default() }).unwrap();
        let estimate = source.estimate();
        let none = Suspects::default();
        let pass = source.pass(Phase::Running, &none, &mut |_| Ok(()), &AtomicBool::new(false));
        (estimate.is_ok(), pass.is_ok())
    };
    assert_eq!(run(5), (true, true));
    assert_eq!(run(4), (false, false));
    symlink("tree", place.space.path().join("link")).unwrap();
    for name in ["link", "missing", "tree/f0"] {
        assert!(TreeSource::open(&place.space.path().join(name), TreeLimits::default()).is_err(), "{name}");
    }
}
