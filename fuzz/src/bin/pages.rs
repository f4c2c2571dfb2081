//! Batches of pages, against the destination's rules.
//! Input: the number of pages that follow in one byte, slots in two, a batch.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tranship_proto::codec::decode;
use tranship_proto::pages::{MAX_ADDRESS, PAGE, PageBatch};

fuzz_target!(|input: &[u8]| {
    let Some(([pages, low, high], body)) = input.split_first_chunk() else { return };
    let slots = u32::from(u16::from_le_bytes([*low, *high]));
    let Ok(batch) = decode::<PageBatch>("batch", body) else { return };
    let Ok(counts) = batch.check(usize::from(*pages) * PAGE as usize, slots) else { return };
    assert_eq!(counts.data_pages, u64::from(*pages));
    for run in batch.data.iter().chain(&batch.refs) {
        assert!(run.slot + run.pages <= slots);
    }
    let ends = batch.data.iter().chain(&batch.refs).map(|r| (r.vaddr, r.pages));
    for (vaddr, pages) in ends.chain(batch.zeros.iter().map(|r| (r.vaddr, r.pages))) {
        assert!(vaddr + u64::from(pages) * PAGE <= MAX_ADDRESS);
    }
});
