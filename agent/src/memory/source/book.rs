//! The book of slots: what each slot at the destination holds, and which contents it has already.
//!
//! Contents are known by their digests ([`super::digest`]). Within a round each page is looked at once,
//! so that no slot is written twice and the streams of a round may be applied in any order.
//!
//! A page costs 24 bytes of slot, some 20 of index and 4 of table.

use super::super::table::{MAX_SLOTS, PageTable, Place};
use super::digest::Digest;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Keys of the index are random already.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*b);
        }
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    digest: Digest,
    refs: u32,
}

/// What has to be told about a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing: the destination has it.
    None,
    /// It is zeros now.
    Zero,
    /// It has the contents of a slot that was told before.
    Shared(u32),
    /// Its contents, for this slot.
    Data(u32),
}

/// More pages than the destination has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the container's memory has grown beyond the {} MiB that the destination has room for", .slots / 256)]
pub struct Full {
    /// Slots that there are.
    pub slots: u32,
}

/// What the destination's slots hold.
#[derive(Debug)]
pub struct Book {
    slots: Vec<Slot>,
    // By the first half of the digest. Where two agree in it only one is found, and the other sent anew.
    index: HashMap<u64, u32, BuildHasherDefault<AsIs>>,
    free: Vec<u32>,
    limit: u32,
}

impl Book {
    /// An empty one for so many slots.
    pub fn new(limit: u32) -> Self {
        Self { slots: Vec::new(), index: HashMap::default(), free: Vec::new(), limit: limit.min(MAX_SLOTS) }
    }

    /// Notes what a page holds now, and answers what the destination has to be told.
    ///
    /// # Errors
    /// [`Full`]; nothing is changed then.
    pub fn note(
        &mut self,
        table: &mut PageTable,
        vaddr: u64,
        digest: Option<Digest>,
    ) -> Result<Change, Full> {
        let before = table.get(vaddr);
        let Some(digest) = digest else {
            if before == Some(Place::Zero) {
                return Ok(Change::None);
            }
            self.release(table.set(vaddr, Place::Zero));
            return Ok(Change::Zero);
        };
        if let Some(Place::Slot(slot)) = before
            && self.slots[slot as usize].digest == digest
        {
            return Ok(Change::None);
        }
        if let Some(slot) = self.holding(digest) {
            self.slots[slot as usize].refs += 1;
            self.release(table.set(vaddr, Place::Slot(slot)));
            return Ok(Change::Shared(slot));
        }
        if let Some(Place::Slot(slot)) = before
            && self.slots[slot as usize].refs == 1
        {
            // Nobody else has the old contents: overwritten in place.
            self.unindex(slot);
            self.slots[slot as usize].digest = digest;
            self.index.insert(digest[0], slot);
            return Ok(Change::Data(slot));
        }
        let slot = self.take(digest)?;
        self.release(table.set(vaddr, Place::Slot(slot)));
        Ok(Change::Data(slot))
    }

    /// Notes that a page is no more.
    pub fn forget(&mut self, table: &mut PageTable, vaddr: u64) {
        self.release(table.forget(vaddr));
    }

    /// Notes that all pages of a table are no more.
    pub fn forget_all(&mut self, table: &PageTable) {
        for (_, place) in table.iter() {
            self.release(Some(place));
        }
    }

    fn holding(&self, digest: Digest) -> Option<u32> {
        self.index.get(&digest[0]).copied().filter(|slot| self.slots[*slot as usize].digest == digest)
    }

    fn take(&mut self, digest: Digest) -> Result<u32, Full> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.limit as usize => {
                self.slots.push(Slot { digest, refs: 0 });
                u32::try_from(self.slots.len() - 1).unwrap_or(MAX_SLOTS)
            }
            None => return Err(Full { slots: self.limit }),
        };
        self.slots[slot as usize] = Slot { digest, refs: 1 };
        self.index.insert(digest[0], slot);
        Ok(slot)
    }

    fn unindex(&mut self, slot: u32) {
        let prefix = self.slots[slot as usize].digest[0];
        if self.index.get(&prefix) == Some(&slot) {
            self.index.remove(&prefix);
        }
    }

    fn release(&mut self, place: Option<Place>) {
        let Some(Place::Slot(slot)) = place else { return };
        self.slots[slot as usize].refs -= 1;
        if self.slots[slot as usize].refs == 0 {
            self.unindex(slot);
            self.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn pages_share_slots_and_give_them_back() {
        let (mut book, mut table) = (Book::new(3), PageTable::default());
        let mut note = |at: u64, d: Option<Digest>| book.note(&mut table, at << 12, d);
        assert_eq!(note(1, Some([1, 1])), Ok(Change::Data(0)));
        assert_eq!(note(1, Some([1, 1])), Ok(Change::None));
        assert_eq!(note(2, Some([1, 1])), Ok(Change::Shared(0)));
        assert_eq!(note(2, Some([2, 2])), Ok(Change::Data(1)), "slot 0 is page 1's still");
        assert_eq!(note(2, Some([3, 3])), Ok(Change::Data(1)), "in place");
        assert_eq!(note(3, Some([3, 4])), Ok(Change::Data(2)), "half a digest is not enough");
        assert_eq!(note(4, Some([9, 9])), Err(Full { slots: 3 }));
        assert_eq!(note(1, None), Ok(Change::Zero));
        assert_eq!(note(1, None), Ok(Change::None));
        assert_eq!(note(4, Some([9, 9])), Ok(Change::Data(0)), "a slot that was given back");
        book.forget(&mut table, 4 << 12);
        book.forget(&mut table, 4 << 12);
        assert_eq!(book.note(&mut table, 5 << 12, Some([9, 9])), Ok(Change::Data(0)), "nothing left of it");
    }

    proptest! {
        // A receiver that does as told has every page as it is at the source, after each round.
        #[test]
        fn the_receiver_has_the_same_pages(
            rounds in proptest::collection::vec(
                proptest::collection::btree_map(0..12u64, proptest::option::of(0..6u64), 0..12), 1..12)
        ) {
            let (mut book, mut table) = (Book::new(12), PageTable::default());
            let mut source: BTreeMap<u64, u64> = BTreeMap::new();
            let mut slots: BTreeMap<u32, u64> = BTreeMap::new();
            let mut pages: BTreeMap<u64, Option<u32>> = BTreeMap::new();
            for round in rounds {
                let mut written = std::collections::BTreeSet::new();
                for (page, content) in round {
                    let Some(content) = content else {
                        book.forget(&mut table, page << 12);
                        source.remove(&page);
                        continue;
                    };
                    source.insert(page, content);
                    let digest = (content > 0).then_some([content % 2, content]);
                    match book.note(&mut table, page << 12, digest).unwrap() {
                        Change::None => {}
                        Change::Zero => { pages.insert(page, None); }
                        Change::Shared(slot) => { pages.insert(page, Some(slot)); }
                        Change::Data(slot) => {
                            prop_assert!(written.insert(slot), "slot {} twice in a round", slot);
                            pages.insert(page, Some(slot));
                            slots.insert(slot, content);
                        }
                    }
                }
                for (page, content) in &source {
                    let has = pages[page].map_or(0, |slot| slots[&slot]);
                    prop_assert_eq!(has, *content);
                }
            }
        }
    }
}
