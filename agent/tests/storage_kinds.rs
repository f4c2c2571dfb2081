//! Every kind of object and property survives the way, in one pass and through changes.
#![allow(clippy::unwrap_used)]

mod storage_support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use nix::libc;
use storage_support::*;
use tranship_agent::storage::*;

fn mode(at: &Path, mode: u32) {
    fs::set_permissions(at, fs::Permissions::from_mode(mode)).unwrap();
}

/// user::rw-, user:1234:rwx, group::r--, mask::rwx, other::---, as `acl(5)` stores it.
fn acl() -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1u16, 6u16, u32::MAX), (2, 7, 1234), (4, 4, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// cap_net_bind_service+ep, version 2.
fn capability() -> Vec<u8> {
    [0x0200_0001u32, 1 << 10, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// One of everything.
fn build(root: &Path) {
    let mut random = Random(1);
    fs::create_dir_all(root.join("etc/empty")).unwrap();
    fs::create_dir(root.join("sealed")).unwrap();
    fs::write(root.join("sealed/inside"), b"read only above").unwrap();
    fs::write(root.join("etc/passwd"), random.bytes(3000)).unwrap();
    fs::write(root.join("etc/nothing"), b"").unwrap();
    fs::write(root.join("big"), random.bytes((5 << 20) + 123)).unwrap();
    fs::write(root.join("setuid"), b"#!").unwrap();
    chown(root.join("setuid"), Some(7), Some(8)).unwrap();
    mode(&root.join("setuid"), 0o6755);
    mode(&root.join("etc/nothing"), 0o000);
    fs::create_dir(root.join("tmp")).unwrap();
    mode(&root.join("tmp"), 0o1777);

    fs::write(root.join("capable"), b"binary").unwrap();
    chown(root.join("capable"), Some(33), Some(33)).unwrap();
    set_xattr(&root.join("capable"), "security.capability", &capability());
    set_xattr(&root.join("capable"), "user.with\nnewline", b"AAA\n17 path=/../evil\n");
    set_xattr(&root.join("capable"), "user.empty", b"");
    set_xattr(&root.join("capable"), "trusted.overlay.opaque", b"y");
    fs::write(root.join("acl"), b"x").unwrap();
    mode(&root.join("acl"), 0o640);
    set_xattr(&root.join("acl"), "system.posix_acl_access", &acl());
    fs::create_dir(root.join("acl-dir")).unwrap();
    set_xattr(&root.join("acl-dir"), "system.posix_acl_default", &acl());
    fs::write(root.join("acl-dir/heir"), b"x").unwrap();
    fs::create_dir(root.join("acl-dir/heir-dir")).unwrap();
    // Made before its directory had a default ACL: must not inherit one at the destination.
    fs::create_dir(root.join("acl-late")).unwrap();
    fs::write(root.join("acl-late/first"), b"x").unwrap();
    set_xattr(&root.join("acl-late"), "system.posix_acl_default", &acl());

    fs::write(root.join("link-a"), b"three names").unwrap();
    fs::hard_link(root.join("link-a"), root.join("etc/link-b")).unwrap();
    fs::hard_link(root.join("link-a"), root.join("zz-link")).unwrap();
    symlink("../../outside", root.join("etc/dangling")).unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    lchown(root.join("absolute"), Some(55), Some(66)).unwrap();
    set_xattr(&root.join("absolute"), "trusted.on-link", b"1");
    fs::hard_link(root.join("absolute"), root.join("absolute-2")).unwrap();
    symlink(OsStr::from_bytes(&[b'x'; 4000]), root.join("long-target")).unwrap();

    mknod(&root.join("fifo"), libc::S_IFIFO | 0o640, 0);
    fs::hard_link(root.join("fifo"), root.join("fifo-2")).unwrap();
    mknod(&root.join("socket"), libc::S_IFSOCK | 0o755, 0);
    mknod(&root.join("null"), libc::S_IFCHR | 0o666, libc::makedev(1, 3));
    mknod(&root.join("loop"), libc::S_IFBLK | 0o660, libc::makedev(7, 300));
    set_xattr(&root.join("fifo"), "trusted.on-fifo", b"1");

    fs::write(root.join(OsStr::from_bytes(&[0xff, 0xfe, b'\n', b'\\'])), b"odd").unwrap();
    fs::write(root.join("n".repeat(255)), b"long").unwrap();
    fs::create_dir(root.join(OsStr::from_bytes(b" \xf0\x28"))).unwrap();
    let mut deep = root.join("deep");
    for _ in 0..30 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), b"here").unwrap();

    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    sparse.write_all_at(&random.bytes(5000), 10 << 20).unwrap();
    sparse.write_all_at(&[0; 8192], 20 << 20).unwrap();
    let huge = fs::File::create(root.join("huge")).unwrap();
    huge.set_len(1 << 40).unwrap();
    huge.write_all_at(b"end", (1 << 40) - 3).unwrap();

    for (name, at) in [("sealed", 0o555), ("etc/empty", 0o000)] {
        mode(&root.join(name), at);
    }
    let mut n = 0;
    for path in [
        "big",
        "absolute",
        "fifo",
        "socket",
        "null",
        "etc/nothing",
        "etc/dangling",
        "etc",
        "sealed",
        "tmp",
        "",
    ] {
        n += 1;
        set_times(&root.join(path), (1_000_000 + n, 123_456_789), (-1_000_000 - n, 987_654_321));
    }
}

fn policy() -> StorePolicy {
    StorePolicy {
        devices: vec![AllowedDevice { block: true, major: 7, minor: 300 }],
        ..StorePolicy::default()
    }
}

#[test]
fn one_of_everything() {
    let space = tempfile::tempdir().unwrap();
    let (from, to) = (space.path().join("from"), space.path().join("to"));
    fs::create_dir(&from).unwrap();
    build(&from);
    fs::create_dir_all(from.join("d/".repeat(250))).unwrap();
    let mut source = TreeSource::open(&from, quick()).unwrap();
    let estimate = source.estimate().unwrap();
    assert_eq!(estimate.entries as usize, snapshot(&from).len());
    assert!(estimate.bytes > 5 << 20 && estimate.bytes < 7 << 20, "{estimate:?}");
    let mut store = TreeStore::create(&to, policy()).unwrap();
    let stats = pass(&mut source, &mut store, &Suspects::default());
    assert_eq!(stats.seen, estimate.entries);
    assert_eq!(store.finished_pass(), Some(1));
    let totals = store.seal(true).unwrap();
    assert_eq!(totals.entries + 1, estimate.entries);
    assert!(totals.allocated < 7 << 20, "{totals:?}");
    assert_same(&from, &to, true);
}

#[test]
fn nothing_is_sent_twice() {
    let space = tempfile::tempdir().unwrap();
    let (from, to) = (space.path().join("from"), space.path().join("to"));
    fs::create_dir(&from).unwrap();
    build(&from);
    settle();
    let mut source = TreeSource::open(&from, quick()).unwrap();
    let mut store = TreeStore::create(&to, policy()).unwrap();
    pass(&mut source, &mut store, &Suspects::default());
    let stats = pass(&mut source, &mut store, &Suspects::default());
    assert_eq!((stats.entries, stats.data_bytes, stats.read_bytes), (0, 0, 0));
    // A changed time stamp alone makes a file be read, not sent.
    mode(&from.join("big"), 0o600);
    let stats = pass(&mut source, &mut store, &Suspects::default());
    assert_eq!((stats.entries, stats.data_bytes), (1, 0));
    assert_eq!(stats.read_bytes, (5 << 20) + 123);
    // One byte costs one block.
    let file = fs::OpenOptions::new().write(true).open(from.join("big")).unwrap();
    file.write_all_at(b"!", 3 << 20).unwrap();
    let stats = pass(&mut source, &mut store, &Suspects::default());
    assert_eq!((stats.entries, stats.data_bytes), (1, 65536));
    store.seal(false).unwrap();
    assert_same(&from, &to, true);
}

/// Each change alone, so that none hides another.
#[test]
fn single_changes() {
    type Change = (&'static str, fn(&Path));
    let changes: &[Change] = &[
        ("file to directory", |r| {
            fs::remove_file(r.join("big")).unwrap();
            fs::create_dir(r.join("big")).unwrap();
            fs::write(r.join("big/now"), b"a directory").unwrap();
        }),
        ("directory to symlink", |r| {
            fs::remove_dir_all(r.join("tmp")).unwrap();
            symlink("etc", r.join("tmp")).unwrap();
        }),
        ("full directory to file", |r| {
            fs::remove_dir_all(r.join("acl-dir")).unwrap();
            fs::write(r.join("acl-dir"), b"file").unwrap();
        }),
        ("link added before the first name", |r| fs::hard_link(r.join("link-a"), r.join("a-link")).unwrap()),
        ("first name of a link removed", |r| fs::remove_file(r.join("etc/link-b")).unwrap()),
        ("link broken", |r| {
            fs::remove_file(r.join("link-a")).unwrap();
            fs::write(r.join("link-a"), b"on its own").unwrap();
        }),
        ("linked file changed", |r| fs::write(r.join("zz-link"), b"other").unwrap()),
        ("two files become one", |r| {
            fs::remove_file(r.join("etc/passwd")).unwrap();
            fs::hard_link(r.join("big"), r.join("etc/passwd")).unwrap();
        }),
        ("linked symlink changed", |r| lchown(r.join("absolute-2"), Some(1), Some(1)).unwrap()),
        ("linked fifo changed", |r| mode(&r.join("fifo-2"), 0o600)),
        ("fifo to socket", |r| {
            fs::remove_file(r.join("fifo")).unwrap();
            mknod(&r.join("fifo"), libc::S_IFSOCK | 0o755, 0);
        }),
        ("device number", |r| {
            fs::remove_file(r.join("null")).unwrap();
            mknod(&r.join("null"), libc::S_IFCHR | 0o666, libc::makedev(1, 5));
        }),
        ("tree renamed", |r| fs::rename(r.join("deep"), r.join("deeper")).unwrap()),
        ("names swapped", |r| {
            fs::rename(r.join("big"), r.join("x")).unwrap();
            fs::rename(r.join("capable"), r.join("big")).unwrap();
            fs::rename(r.join("x"), r.join("capable")).unwrap();
        }),
        ("log rotated", |r| {
            fs::rename(r.join("big"), r.join("big.1")).unwrap();
            fs::write(r.join("big"), b"new log").unwrap();
        }),
        ("xattr removed", |r| assert!(remove_xattr(&r.join("capable"), "user.empty"))),
        ("capability removed", |r| assert!(remove_xattr(&r.join("capable"), "security.capability"))),
        ("acl removed", |r| assert!(remove_xattr(&r.join("acl"), "system.posix_acl_access"))),
        ("default acl removed", |r| assert!(remove_xattr(&r.join("acl-dir"), "system.posix_acl_default"))),
        ("written, capability lost", |r| fs::write(r.join("capable"), b"other").unwrap()),
        ("setuid kept over chown", |r| {
            chown(r.join("setuid"), Some(9), Some(9)).unwrap();
            mode(&r.join("setuid"), 0o4711);
        }),
        ("truncated", |r| {
            fs::File::options().write(true).open(r.join("big")).unwrap().set_len(70_000).unwrap()
        }),
        ("extended", |r| {
            fs::File::options().write(true).open(r.join("big")).unwrap().set_len(9 << 20).unwrap()
        }),
        ("shrunk and grown", |r| {
            let file = fs::File::options().write(true).open(r.join("big")).unwrap();
            file.set_len(100).unwrap();
            file.set_len((5 << 20) + 123).unwrap();
        }),
        ("hole punched", |r| {
            use std::os::fd::AsRawFd;
            let file = fs::File::options().write(true).open(r.join("big")).unwrap();
            for (at, len) in [(1 << 20, 1 << 20), ((3 << 20) + 4096, 8192), (0, 4096)] {
                let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                // SAFETY: the descriptor is open.
                assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), how, at, len) }, 0);
            }
        }),
        ("hole punched over zeros", |r| {
            use std::os::fd::AsRawFd;
            let file = fs::File::options().write(true).open(r.join("sparse")).unwrap();
            let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: the descriptor is open.
            assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), how, 20 << 20, 8192) }, 0);
        }),
        ("hole filled", |r| {
            let file = fs::File::options().write(true).open(r.join("sparse")).unwrap();
            file.write_all_at(&[0; 100_000], 30 << 20).unwrap();
            file.write_all_at(b"x", 1).unwrap();
        }),
        ("size and content back, times too", |r| {
            let file = fs::File::options().write(true).open(r.join("big")).unwrap();
            let before = file.metadata().unwrap();
            file.write_all_at(b"sneaky", 12345).unwrap();
            file.set_modified(before.modified().unwrap()).unwrap();
        }),
        ("directory time turned back", |r| {
            fs::write(r.join("etc/new"), b"x").unwrap();
            set_times(&r.join("etc"), (5, 5), (5, 5));
        }),
        ("root", |r| {
            mode(r, 0o711);
            chown(r, Some(3), Some(4)).unwrap();
            set_xattr(r, "user.root", b"1");
        }),
    ];
    let space = tempfile::tempdir().unwrap();
    for (n, (what, change)) in changes.iter().enumerate() {
        let (from, to) = (space.path().join(format!("from{n}")), space.path().join(format!("to{n}")));
        fs::create_dir(&from).unwrap();
        build(&from);
        let mut source = TreeSource::open(&from, quick()).unwrap();
        let mut store = TreeStore::create(&to, policy()).unwrap();
        if n % 2 == 0 {
            settle();
        }
        pass(&mut source, &mut store, &Suspects::default());
        change(&from);
        let stats = pass(&mut source, &mut store, &Suspects::default());
        store.seal(false).unwrap();
        println!("{what}: {} entries, {} bytes", stats.entries, stats.data_bytes);
        assert_same(&from, &to, true);
        drop(source);
        remove_tree(&from).unwrap();
        remove_tree(&to).unwrap();
        assert!(!from.exists() && !to.exists());
    }
}

#[test]
fn mounts_below_are_not_entered() {
    let space = tempfile::tempdir().unwrap();
    let (from, to) = (space.path().join("from"), space.path().join("to"));
    fs::create_dir_all(from.join("mnt/covered")).unwrap();
    fs::write(from.join("mnt/covered/file"), b"below").unwrap();
    let before = snapshot(&from);
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    mount(Some("none"), &from.join("mnt"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let outcome = std::panic::catch_unwind(|| {
        fs::write(from.join("mnt/above"), b"not ours").unwrap();
        let mut source = TreeSource::open(&from, quick()).unwrap();
        let mut store = TreeStore::create(&to, StorePolicy::default()).unwrap();
        pass(&mut source, &mut store, &Suspects::default());
        store.seal(false).unwrap();
        let error = remove_tree(&from).unwrap_err();
        assert!(matches!(error, StorageError::MountBelow { .. }), "{error}");
        assert!(from.join("mnt/above").exists());
        let error = remove_tree(&from.join("mnt")).unwrap_err();
        assert!(matches!(error, StorageError::MountBelow { .. }), "{error}");
    });
    umount2(&from.join("mnt"), MntFlags::MNT_DETACH).unwrap();
    outcome.unwrap();
    // What the mount covers is part of the tree and was carried.
    assert_eq!(snapshot(&to).keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert_same(&from, &to, true);
}
