//! Records of a file tree: limits on both sides, the way through the codec, hostile bytes.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use tranship_proto::bulk::{MAX_DATA as BULK_DATA, MAX_META};
use tranship_proto::codec;
use tranship_proto::tree::*;

fn entry(path: &[u8], kind: EntryKind) -> Entry {
    let time = Time { s: -5, ns: 999_999_999 };
    let meta = Meta { mode: 0o7777, uid: u32::MAX - 1, gid: 0, atime: time, mtime: time };
    Entry { path: path.to_vec(), kind, meta, xattrs: Vec::new() }
}

fn file(path: &[u8]) -> Entry {
    entry(path, EntryKind::File { size: 0, content: Content::Full })
}

fn xattr(name: &[u8], len: usize) -> Xattr {
    Xattr { name: name.to_vec(), value: vec![7; len] }
}

#[test]
fn paths() {
    let name = vec![b'n'; MAX_NAME];
    let deep = vec![b"d".as_slice(); MAX_DEPTH].join(&b'/');
    let mut long = vec![name.as_slice(); 15].join(&b'/');
    long.extend([&b"/"[..], &[b'n'; MAX_NAME]].concat());
    assert_eq!(long.len(), MAX_PATH);
    for path in [b"a".as_slice(), b"a/b", b"...", b"a/..b", b"\xff\n", b" ", &name, &deep, &long] {
        check_path(path, false).unwrap();
        file(path).check().unwrap();
        TreeRecord::Remove { path: path.to_vec() }.check().unwrap();
    }
    let name = [name, vec![b'n']].concat();
    let deep = [deep, b"/d".to_vec()].concat();
    let long = [long, b"n".to_vec()].concat();
    for path in [
        b"".as_slice(),
        b"/",
        b"/a",
        b"a/",
        b"a//b",
        b".",
        b"..",
        b"a/../b",
        b"a/..",
        b"./a",
        b"a\0b",
        &name,
        &deep,
        &long,
    ] {
        check_path(path, false).unwrap_err();
        file(path).check().unwrap_err();
        TreeRecord::Remove { path: path.to_vec() }.check().unwrap_err();
        let link = Entry { meta: Meta::default(), ..entry(b"a", EntryKind::HardLink { to: path.to_vec() }) };
        link.check().unwrap_err();
    }
    entry(b"", EntryKind::Dir).check().unwrap();
    entry(b"", EntryKind::Fifo).check().unwrap_err();
}

#[test]
fn fields() {
    let refused = |change: fn(&mut Entry)| {
        let mut entry = file(b"a");
        entry.check().unwrap();
        change(&mut entry);
        entry.check().unwrap_err();
    };
    refused(|e| e.meta.mode = 0o10000);
    refused(|e| e.meta.uid = u32::MAX);
    refused(|e| e.meta.gid = u32::MAX);
    refused(|e| e.meta.atime.ns = 1_000_000_000);
    refused(|e| e.meta.mtime.ns = (1 << 30) - 1);
    refused(|e| e.kind = EntryKind::File { size: MAX_SIZE + 1, content: Content::Full });
    refused(|e| e.kind = EntryKind::Symlink { target: Vec::new() });
    refused(|e| e.kind = EntryKind::Symlink { target: vec![b'x'; MAX_PATH + 1] });
    refused(|e| e.kind = EntryKind::Symlink { target: b"a\0".to_vec() });
    refused(|e| e.kind = EntryKind::CharDev { major: 0x1000, minor: 0 });
    refused(|e| e.kind = EntryKind::BlockDev { major: 0, minor: 0x10_0000 });
    refused(|e| e.kind = EntryKind::HardLink { to: b"b".to_vec() });
    entry(b"a", EntryKind::Symlink { target: vec![b'x'; MAX_PATH] }).check().unwrap();
    entry(b"a", EntryKind::BlockDev { major: 0xfff, minor: 0xf_ffff }).check().unwrap();
    let mut link = entry(b"a", EntryKind::HardLink { to: b"b".to_vec() });
    link.meta = Meta::default();
    link.check().unwrap();
    link.kind = EntryKind::HardLink { to: b"a".to_vec() };
    link.check().unwrap_err();
}

#[test]
fn extended_attributes() {
    let with = |xattrs: Vec<Xattr>| Entry { xattrs, ..file(b"a") }.check();
    with(vec![xattr(b"security.capability", 20), xattr(b"system.posix_acl_access", 4), xattr(b"user.x", 0)])
        .unwrap();
    with(vec![xattr(b"user.x", MAX_XATTR_VALUE)]).unwrap();
    with(vec![xattr(b"user.x", MAX_XATTR_VALUE + 1)]).unwrap_err();
    for name in [b"".as_slice(), b"user.", b"userx", b"system.nfs4_acl", b"btrfs.compression", b"user.a\0b"] {
        with(vec![xattr(name, 1)]).unwrap_err();
    }
    with(vec![xattr(&[b"user.".as_slice(), &[b'n'; 250]].concat(), 1)]).unwrap();
    with(vec![xattr(&[b"user.".as_slice(), &[b'n'; 251]].concat(), 1)]).unwrap_err();
    with(vec![xattr(b"user.b", 1), xattr(b"user.a", 1)]).unwrap_err();
    with(vec![xattr(b"user.a", 1), xattr(b"user.a", 1)]).unwrap_err();
    let many = |n| (0..n).map(|i| xattr(format!("user.{i:04}").as_bytes(), 1)).collect::<Vec<_>>();
    with(many(MAX_XATTRS)).unwrap();
    with(many(MAX_XATTRS + 1)).unwrap_err();
    let fat = |n| (0..n).map(|i| xattr(format!("user.{i:04}").as_bytes(), 65527)).collect::<Vec<_>>();
    with(fat(15)).unwrap();
    with(fat(16)).unwrap_err();
}

#[test]
fn ranges() {
    let data = |offset, len| TreeRecord::Data { offset, data: vec![0; len] }.check();
    data(0, 1).unwrap();
    data(MAX_SIZE - 1, 1).unwrap();
    data(0, MAX_DATA).unwrap();
    data(0, 0).unwrap_err();
    data(0, MAX_DATA + 1).unwrap_err();
    data(MAX_SIZE, 1).unwrap_err();
    data(u64::MAX, 1).unwrap_err();
    let hole = |offset, len| TreeRecord::Hole { offset, len }.check();
    hole(0, MAX_SIZE).unwrap();
    hole(1, MAX_SIZE).unwrap_err();
    hole(0, 0).unwrap_err();
    hole(u64::MAX, u64::MAX).unwrap_err();
}

#[test]
fn payload_is_what_was_announced() {
    let meta = TreeMeta::Data { offset: 5, len: 3 };
    assert_eq!(meta.payload_len(), 3);
    TreeRecord::join(meta.clone(), vec![1; 3]).unwrap();
    TreeRecord::join(meta.clone(), vec![1; 2]).unwrap_err();
    TreeRecord::join(meta, vec![1; 4]).unwrap_err();
    TreeRecord::join(TreeMeta::PassStart { pass: 1 }, vec![1]).unwrap_err();
}

#[test]
fn the_largest_record_fits_a_frame() {
    const { assert!(MAX_META_ENCODED <= MAX_META && MAX_DATA <= BULK_DATA) };
    let mut largest = entry(&[b'x'; MAX_PATH], EntryKind::Symlink { target: vec![b'x'; MAX_PATH] });
    largest.meta.atime = Time { s: i64::MIN, ns: 999_999_999 };
    largest.meta.mtime = largest.meta.atime;
    let name = |i: usize| [format!("user.{i:04}").as_bytes(), &[b'n'; 246]].concat();
    largest.xattrs = (0..MAX_XATTRS).map(|i| Xattr { name: name(i), value: vec![0; 1665] }).collect();
    let encoded = codec::encode("entry", &TreeMeta::Entry(largest), MAX_META).unwrap();
    assert!(encoded.len() <= MAX_META_ENCODED, "{}", encoded.len());
}

/// The wire format: these bytes never change.
#[test]
fn golden_bytes() {
    let mut entry = entry(b"a/b", EntryKind::File { size: 300, content: Content::Delta });
    entry.meta =
        Meta { mode: 0o644, uid: 1, gid: 2, atime: Time { s: 3, ns: 4 }, mtime: Time { s: -1, ns: 0 } };
    entry.xattrs = vec![xattr(b"user.x", 1)];
    let encode = |meta: TreeMeta| codec::encode("record", &meta, MAX_META).unwrap();
    let bytes = encode(TreeMeta::Entry(entry));
    assert_eq!(
        bytes,
        [1, 3, b'a', b'/', b'b', 1, 251, 44, 1, 1, 251, 164, 1, 1, 2, 6, 4, 1, 0, 1, 6]
            .into_iter()
            .chain(*b"user.x")
            .chain([1, 7])
            .collect::<Vec<u8>>()
    );
    assert_eq!(encode(TreeMeta::PassStart { pass: 9 }), [0, 9]);
    assert_eq!(encode(TreeMeta::Data { offset: 1, len: 2 }), [2, 1, 2]);
    assert_eq!(encode(TreeMeta::Hole { offset: 1, len: 2 }), [3, 1, 2]);
    let digest = [5; 32];
    assert_eq!(
        encode(TreeMeta::FileEnd { digest, sent_bytes: 1 }),
        [[4].as_slice(), &[5; 32], &[1]].concat()
    );
    assert_eq!(encode(TreeMeta::Remove { path: b"x".to_vec() }), [5, 1, b'x']);
    assert_eq!(
        encode(TreeMeta::PassEnd { entries: 1, data_bytes: 2, digest }),
        [[6, 1, 2].as_slice(), &[5; 32]].concat()
    );
}

fn any_kind() -> impl Strategy<Value = EntryKind> {
    let content = prop_oneof![Just(Content::Full), Just(Content::Delta), Just(Content::Keep)];
    prop_oneof![
        Just(EntryKind::Dir),
        Just(EntryKind::Fifo),
        Just(EntryKind::Socket),
        (any::<u64>(), content).prop_map(|(size, content)| EntryKind::File { size, content }),
        any::<Vec<u8>>().prop_map(|target| EntryKind::Symlink { target }),
        any::<Vec<u8>>().prop_map(|to| EntryKind::HardLink { to }),
        (any::<u32>(), any::<u32>()).prop_map(|(major, minor)| EntryKind::CharDev { major, minor }),
        (any::<u32>(), any::<u32>()).prop_map(|(major, minor)| EntryKind::BlockDev { major, minor }),
    ]
}

prop_compose! {
    fn any_entry()(
        path: Vec<u8>, kind in any_kind(), mode: u32, uid: u32, gid: u32, a: (i64, u32), m: (i64, u32),
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> TreeRecord {
        let (atime, mtime) = (Time { s: a.0, ns: a.1 }, Time { s: m.0, ns: m.1 });
        let xattrs = xattrs.into_iter().map(|(name, value)| Xattr { name, value }).collect();
        TreeRecord::Entry(Entry { path, kind, meta: Meta { mode, uid, gid, atime, mtime }, xattrs })
    }
}

fn any_record() -> impl Strategy<Value = TreeRecord> {
    prop_oneof![
        any_entry(),
        any::<u32>().prop_map(|pass| TreeRecord::PassStart { pass }),
        (any::<u64>(), any::<Vec<u8>>()).prop_map(|(offset, data)| TreeRecord::Data { offset, data }),
        (any::<u64>(), any::<u64>()).prop_map(|(offset, len)| TreeRecord::Hole { offset, len }),
        (any::<[u8; 32]>(), any::<u64>())
            .prop_map(|(digest, sent_bytes)| TreeRecord::FileEnd { digest, sent_bytes }),
        any::<Vec<u8>>().prop_map(|path| TreeRecord::Remove { path }),
        (any::<u64>(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(entries, data_bytes, digest)| {
            TreeRecord::PassEnd { entries, data_bytes, digest }
        }),
    ]
}

proptest! {
    #[test]
    fn through_the_codec(record in any_record()) {
        let good = record.check().is_ok();
        let (meta, data) = record.clone().split();
        let bytes = codec::encode("record", &meta, MAX_META).unwrap();
        let meta: TreeMeta = codec::decode("record", &bytes).unwrap();
        let joined = TreeRecord::join(meta, data);
        prop_assert_eq!(joined.is_ok(), good);
        if let Ok(joined) = joined {
            prop_assert_eq!(joined, record);
        }
    }

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(meta) = codec::decode::<TreeMeta>("record", &bytes) {
            let _ = TreeRecord::join(meta, Vec::new());
        }
    }

    #[test]
    fn an_accepted_path_stays_below(path in "[./a\u{0}]{0,12}") {
        if check_path(path.as_bytes(), false).is_ok() {
            let path = std::path::Path::new(&path);
            for part in path.components() {
                prop_assert!(matches!(part, std::path::Component::Normal(_)));
            }
        }
    }
}
