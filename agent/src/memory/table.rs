//! Which slot of the page store holds the contents of each page of a process. Both ends keep one for
//! each process: the source to know what it has sent, the destination to find it.
//!
//! A leaf covers 2 MiB of addresses with four bytes a page; address spaces are sparse, so leaves are
//! made where pages are.

use std::collections::BTreeMap;
use std::ops::Range;
use tranship_proto::pages::PAGE;

/// Pages in a leaf.
const LEAF: usize = 512;
/// Bytes that a leaf covers.
const SPAN: u64 = LEAF as u64 * PAGE;
const NONE: u32 = u32::MAX;
const ZERO: u32 = u32::MAX - 1;
/// Slots have numbers below this one.
pub const MAX_SLOTS: u32 = ZERO;

/// Where the contents of a page are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a slot, of a number below [`MAX_SLOTS`].
    Slot(u32),
    /// Nowhere: all its bytes are zero.
    Zero,
}

impl Place {
    fn of(raw: u32) -> Option<Self> {
        match raw {
            NONE => None,
            ZERO => Some(Place::Zero),
            slot => Some(Place::Slot(slot)),
        }
    }
}

/// The pages of one process.
#[derive(Debug, Default, Clone)]
pub struct PageTable {
    leaves: BTreeMap<u64, Box<[u32; LEAF]>>,
}

fn at(vaddr: u64) -> (u64, usize) {
    (vaddr / SPAN, (vaddr % SPAN / PAGE) as usize)
}

impl PageTable {
    /// Where a page is, when it is known.
    pub fn get(&self, vaddr: u64) -> Option<Place> {
        let (leaf, index) = at(vaddr);
        self.leaves.get(&leaf).and_then(|l| Place::of(l[index]))
    }

    /// Notes where a page is; answers where it was.
    pub fn set(&mut self, vaddr: u64, place: Place) -> Option<Place> {
        let (leaf, index) = at(vaddr);
        let leaf = self.leaves.entry(leaf).or_insert_with(|| Box::new([NONE; LEAF]));
        let raw = match place {
            Place::Zero => ZERO,
            Place::Slot(slot) => slot,
        };
        Place::of(std::mem::replace(&mut leaf[index], raw))
    }

    /// Forgets a page; answers where it was.
    pub fn forget(&mut self, vaddr: u64) -> Option<Place> {
        let (leaf, index) = at(vaddr);
        self.leaves.get_mut(&leaf).and_then(|l| Place::of(std::mem::replace(&mut l[index], NONE)))
    }

    /// Where each page of a range is, in order. Looks a leaf up once, not a page.
    pub fn range(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Option<Place>)> + '_ {
        let leaves = range.start / SPAN..range.end.div_ceil(SPAN);
        leaves.flat_map(move |leaf| {
            let base = leaf * SPAN;
            let pages = self.leaves.get(&leaf);
            let first = (range.start.max(base) - base).div_ceil(PAGE);
            let last = (range.end.min(base + SPAN) - base).div_ceil(PAGE);
            (first..last).map(move |i| {
                let place = pages.and_then(|p| p.get(i as usize)).and_then(|raw| Place::of(*raw));
                (base + i * PAGE, place)
            })
        })
    }

    /// Leaves, of 2 KiB each.
    pub fn leaves(&self) -> usize {
        self.leaves.len()
    }

    /// Every known page, in order of address.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Place)> + '_ {
        self.leaves.iter().flat_map(|(leaf, pages)| {
            let base = leaf * SPAN;
            pages
                .iter()
                .enumerate()
                .filter_map(move |(i, raw)| Place::of(*raw).map(|place| (base + i as u64 * PAGE, place)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_found_replaced_and_forgotten() {
        let mut t = PageTable::default();
        let top = tranship_proto::pages::MAX_ADDRESS - PAGE;
        assert_eq!(t.get(0x1000), None);
        assert_eq!(t.set(0x1000, Place::Slot(0)), None);
        assert_eq!(t.set(0x1000, Place::Zero), Some(Place::Slot(0)));
        assert_eq!(t.set(top, Place::Slot(MAX_SLOTS - 1)), None);
        assert_eq!(t.set(0x20_0000, Place::Slot(7)), None);
        let all: Vec<_> = t.iter().collect();
        assert_eq!(
            all,
            [(0x1000, Place::Zero), (0x20_0000, Place::Slot(7)), (top, Place::Slot(MAX_SLOTS - 1))]
        );
        assert_eq!(t.leaves(), 3);
        let near: Vec<_> = t.range(0x1f_f000..0x20_2000).collect();
        assert_eq!(near, [(0x1f_f000, None), (0x20_0000, Some(Place::Slot(7))), (0x20_1000, None)]);
        assert_eq!(t.range(top..top + PAGE).count(), 1);
        assert_eq!(t.range(0x1000..0x1000).count(), 0);
        assert_eq!(t.range(0x3000..0x60_3000).count(), 0x600);
        assert_eq!(t.forget(0x1000), Some(Place::Zero));
        assert_eq!((t.forget(0x1000), t.forget(0x7000_0000), t.get(0x1000)), (None, None, None));
    }
}
