//! A bulk stream: record headers, image files, the manifest of a tree, pages.
//! Input: records as they travel; the data uncompressed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tranship_proto::bulk::{
    ImageData, ImageEnd, ImageStart, ImagesEnd, MAX_DATA, MAX_META, RECORD_HEADER_LEN, RecordHeader,
    RecordKind,
};
use tranship_proto::codec::decode;
use tranship_proto::pages::{PageBatch, PagesEnd};
use tranship_proto::tree::{MAX_META_ENCODED, TreeMeta, TreeRecord};

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    while let Some(header) = rest.first_chunk::<RECORD_HEADER_LEN>() {
        let Ok(header) = RecordHeader::parse(header) else { return };
        let (meta, data) = (header.meta_len as usize, header.wire_len as usize);
        assert!(meta <= MAX_META && header.raw_len as usize <= MAX_DATA && data <= MAX_DATA);
        rest = &rest[RECORD_HEADER_LEN..];
        let Some((meta, tail)) = rest.split_at_checked(meta) else { return };
        let Some((data, tail)) = tail.split_at_checked(data) else { return };
        rest = tail;
        match header.kind {
            RecordKind::ImageStart => {
                if let Ok(start) = decode::<ImageStart>("start", meta)
                    && start.check().is_ok()
                {
                    assert!(!start.name.contains('/') && !start.name.starts_with('.'));
                }
            }
            RecordKind::ImageData => drop(decode::<ImageData>("data", meta)),
            RecordKind::ImageEnd => drop(decode::<ImageEnd>("end", meta)),
            RecordKind::ImagesEnd => drop(decode::<ImagesEnd>("end", meta)),
            RecordKind::Tree => tree(meta, data),
            RecordKind::Pages => {
                if let Ok(batch) = decode::<PageBatch>("batch", meta) {
                    let _ = batch.check(data.len(), 1 << 20);
                }
            }
            RecordKind::PagesEnd => drop(decode::<PagesEnd>("end", meta)),
        }
    }
});

fn tree(meta: &[u8], data: &[u8]) {
    let Ok(meta) = decode::<TreeMeta>("meta", meta) else { return };
    let Ok(record) = TreeRecord::join(meta, data.to_vec()) else { return };
    if let TreeRecord::Entry(entry) = &record {
        let outside = entry.path.split(|b| *b == b'/').any(|c| c == b"..") || entry.path.starts_with(b"/");
        assert!(!outside, "{:?}", entry.path);
    }
    let (again, _) = record.split();
    let bytes =
        tranship_proto::codec::encode("meta", &again, MAX_META_ENCODED).expect("a record that was taken");
    assert_eq!(decode::<TreeMeta>("meta", &bytes).as_ref(), Ok(&again));
}
