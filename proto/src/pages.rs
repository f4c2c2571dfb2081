//! Pages of a container's processes, on bulk streams of their own.
//!
//! The source decides where a page's contents are kept at the destination: in numbered *slots* of
//! 4096 bytes. A batch says which slots get new contents, and which addresses of a process have
//! the contents of which slot. Equal pages share a slot and cross the wire once; pages of zeros
//! have none. Rounds follow each other: a round's streams are opened when the destination has
//! applied the round before ([`crate::handoff::Handoff::RoundDone`]), so that within a round the
//! streams may be applied in any order.
//!
//! Rejected: digests as names of contents. The destination would have to keep and search them,
//! and a slot number is checked by one comparison.

use crate::bounded;
use crate::error::WireError;
use serde::{Deserialize, Serialize};

/// Bytes of a page: the only size that CRIU's images know on the architectures supported.
pub const PAGE: u64 = 4096;
/// Streams of one round at a time.
pub const MAX_LANES: u16 = 8;
/// Pages with contents in one batch: what fits a record.
pub const MAX_BATCH_PAGES: u32 = 256;
/// Runs of each sort in one batch.
pub const MAX_RUNS: usize = 4096;
/// End of the addresses that a process can have (five-level page tables).
pub const MAX_ADDRESS: u64 = 1 << 56;

/// Neighbouring pages with neighbouring slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRun {
    /// Address of the first page, a multiple of [`PAGE`].
    pub vaddr: u64,
    /// Pages, at least one.
    pub pages: u32,
    /// Slot of the first page.
    pub slot: u32,
}

/// Neighbouring pages of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZeroRun {
    /// Address of the first page, a multiple of [`PAGE`].
    pub vaddr: u64,
    /// Pages, at least one.
    pub pages: u32,
}

/// Metadata of a record of pages. Its data is the contents of `data`, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct PageBatch {
    /// The process, by its number in the container, as CRIU's images name it.
    pub pid: u32,
    /// Pages whose contents follow; their slots are overwritten.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_RUNS>")]
    pub data: Vec<SlotRun>,
    /// Pages with the contents of slots that were sent before, or are in the same round.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_RUNS>")]
    pub refs: Vec<SlotRun>,
    /// Pages of zeros.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_RUNS>")]
    pub zeros: Vec<ZeroRun>,
}

/// The end of one stream of a round: what it carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct PagesEnd {
    /// Pages with contents.
    pub data_pages: u64,
    /// Pages that share a slot.
    pub ref_pages: u64,
    /// Pages of zeros.
    pub zero_pages: u64,
}

/// Slots that the destination has for a container with so much memory when it was offered: room to
/// grow by a quarter and 64 MiB while its memory is read. Both sides go by this number.
pub fn slots_for(memory_bytes: u64) -> u32 {
    let pages = (memory_bytes.saturating_add(memory_bytes / 4).saturating_add(64 << 20)) / PAGE;
    u32::try_from(pages).unwrap_or(u32::MAX).min(u32::MAX - 2)
}

fn range(vaddr: u64, pages: u32) -> bool {
    let end = u64::from(pages).checked_mul(PAGE).and_then(|bytes| vaddr.checked_add(bytes));
    pages > 0 && vaddr.is_multiple_of(PAGE) && end.is_some_and(|end| end <= MAX_ADDRESS)
}

impl PageBatch {
    /// Checks every run, and that `data_len` bytes of contents are what the runs say. Slots have
    /// to be below `slots`. Answers the number of pages: with contents, sharing, of zeros.
    ///
    /// # Errors
    /// [`WireError::Invalid`] for the first run that cannot be.
    pub fn check(&self, data_len: usize, slots: u32) -> Result<PagesEnd, WireError> {
        let wrong = |what: &'static str, why: String| Err(WireError::invalid(what, why));
        if self.pid == 0 || self.pid > i32::MAX.cast_unsigned() {
            return wrong("process of a page batch", self.pid.to_string());
        }
        for (name, runs) in [
            ("data runs", self.data.len()),
            ("shared runs", self.refs.len()),
            ("zero runs", self.zeros.len()),
        ] {
            if runs > MAX_RUNS {
                return wrong(name, format!("{runs} in one batch; at most {MAX_RUNS}"));
            }
        }
        let mut end = PagesEnd::default();
        for (total, runs) in [(&mut end.data_pages, &self.data), (&mut end.ref_pages, &self.refs)] {
            for run in runs {
                if !range(run.vaddr, run.pages) || run.slot.checked_add(run.pages).is_none_or(|e| e > slots) {
                    return wrong("page run", format!("{run:?} with {slots} slots"));
                }
                *total += u64::from(run.pages);
            }
        }
        for run in &self.zeros {
            if !range(run.vaddr, run.pages) {
                return wrong("page run", format!("{run:?}"));
            }
            end.zero_pages += u64::from(run.pages);
        }
        if end.data_pages > u64::from(MAX_BATCH_PAGES) || end.data_pages * PAGE != data_len as u64 {
            return wrong("page batch", format!("{data_len} bytes for {} pages", end.data_pages));
        }
        Ok(end)
    }
}

impl PagesEnd {
    /// Adds what another stream or batch carried.
    pub fn add(&mut self, other: &PagesEnd) {
        self.data_pages = self.data_pages.saturating_add(other.data_pages);
        self.ref_pages = self.ref_pages.saturating_add(other.ref_pages);
        self.zero_pages = self.zero_pages.saturating_add(other.zero_pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> PageBatch {
        PageBatch {
            pid: 1,
            data: vec![SlotRun { vaddr: 0x1000, pages: 2, slot: 0 }],
            refs: vec![SlotRun { vaddr: 0x9000, pages: 1, slot: 1 }],
            zeros: vec![ZeroRun { vaddr: 0xa000, pages: 512 }],
        }
    }

    #[test]
    fn slots_are_bounded_by_the_memory_offered() {
        assert_eq!(slots_for(0), 16384);
        assert_eq!(slots_for(1 << 30), 327_680 + 16384);
        assert_eq!(slots_for(u64::MAX), u32::MAX - 2);
    }

    #[test]
    fn a_batch_is_counted_and_its_limits_hold() {
        let want = PagesEnd { data_pages: 2, ref_pages: 1, zero_pages: 512 };
        assert_eq!(batch().check(8192, 2), Ok(want));
        let refused = |change: fn(&mut PageBatch), len: usize| {
            let mut b = batch();
            change(&mut b);
            assert!(b.check(len, 2).is_err(), "{b:?}");
        };
        refused(|_| {}, 8191);
        refused(|_| {}, 4096);
        refused(|b| b.pid = 0, 8192);
        refused(|b| b.pid = u32::MAX, 8192);
        refused(|b| b.data[0].vaddr = 0x1001, 8192);
        refused(|b| b.data[0].vaddr = MAX_ADDRESS - 4096, 8192);
        refused(|b| b.data[0].slot = 1, 8192);
        refused(|b| b.data[0].slot = u32::MAX, 8192);
        refused(|b| b.refs[0].slot = 2, 8192);
        refused(|b| b.refs[0].pages = 0, 8192);
        refused(|b| b.zeros[0].vaddr = u64::MAX - 4095, 8192);
        refused(|b| b.zeros = vec![b.zeros[0]; MAX_RUNS + 1], 8192);
        let many = PageBatch {
            data: vec![SlotRun { vaddr: 0x1000, pages: MAX_BATCH_PAGES + 1, slot: 0 }],
            ..PageBatch { pid: 1, ..PageBatch::default() }
        };
        assert!(many.check((MAX_BATCH_PAGES as usize + 1) * 4096, 1000).is_err());
    }
}
