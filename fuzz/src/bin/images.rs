//! CRIU's files that the agent reads itself: statistics and page maps.
//! Input: which of them in one byte, the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tranship_fuzz::{pagemap, stats};
use tranship_proto::pages::{MAX_ADDRESS, PAGE};

fuzz_target!(|input: &[u8]| {
    let Some((which, file)) = input.split_first() else { return };
    match which {
        0 => drop(stats::parse_dump_stats(file)),
        1 => drop(stats::parse_restore_stats(file)),
        _ => {
            if let Ok(entries) = pagemap::parse(file) {
                assert!(entries.len() <= file.len());
                assert!(entries.iter().all(|e| e.vaddr + e.pages * PAGE <= MAX_ADDRESS));
                // What was understood reads the same when it is written again.
                assert_eq!(pagemap::parse(&pagemap::image(1, &entries)).ok(), Some(entries));
            }
        }
    }
});
