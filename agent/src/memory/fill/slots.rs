//! The store while it is filled in from: read, and given back slot by slot.

use rustix::fs::FallocateFlags;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use tranship_proto::pages::{PAGE, SlotRun};

/// The store's file, and how many outstanding pages have the contents of each slot.
pub(super) struct Slots {
    file: File,
    users: Vec<u32>,
    giving_back: bool,
}

impl Slots {
    /// A store with as many slots as its file has pages.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let slots = usize::try_from(file.metadata()?.len() / PAGE).map_err(io::Error::other)?;
        Ok(Self { file, users: vec![0; slots], giving_back: false })
    }

    /// One more page for each slot of these runs.
    ///
    /// # Errors
    /// When the store has no such slot.
    pub(super) fn add(&mut self, runs: impl Iterator<Item = SlotRun>) -> io::Result<()> {
        for run in runs {
            let slots = run.slot as usize..run.slot as usize + run.pages as usize;
            let users = self.users.get_mut(slots);
            for n in users.ok_or_else(|| io::Error::other(format!("{run:?} is not in the store")))? {
                *n += 1;
            }
        }
        Ok(())
    }

    /// Reads the contents of runs, one after the other, into `buffer`.
    pub(super) fn read(&self, runs: &[SlotRun], buffer: &mut Vec<u8>) -> io::Result<()> {
        let pages: u32 = runs.iter().map(|r| r.pages).sum();
        buffer.resize(pages as usize * PAGE as usize, 0);
        let mut rest = buffer.as_mut_slice();
        for run in runs {
            let (part, tail) = rest.split_at_mut(run.pages as usize * PAGE as usize);
            self.file.read_exact_at(part, u64::from(run.slot) * PAGE)?;
            rest = tail;
        }
        Ok(())
    }

    /// These pages need their slots no longer. A slot without pages goes back to the system.
    pub(super) fn release(&mut self, runs: &[SlotRun]) -> io::Result<()> {
        for run in runs {
            let slots = run.slot..run.slot + run.pages;
            for slot in slots.clone() {
                self.users[slot as usize] -= 1;
            }
            if self.giving_back {
                self.punch(slots)?;
            }
        }
        Ok(())
    }

    /// From now on slots go back to the system, those without pages first. Until now the store was
    /// whole, for a restore that has to be made again.
    pub(super) fn give_back(&mut self) -> io::Result<()> {
        self.giving_back = true;
        self.punch(0..u32::try_from(self.users.len()).unwrap_or(u32::MAX))
    }

    fn punch(&self, slots: std::ops::Range<u32>) -> io::Result<()> {
        let mut at = slots.start;
        while at < slots.end {
            let free = self.users[at as usize..slots.end as usize].iter().take_while(|n| **n == 0).count();
            let free = u32::try_from(free).unwrap_or(u32::MAX);
            if free > 0 {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.file, flags, u64::from(at) * PAGE, u64::from(free) * PAGE)?;
            }
            at += free.max(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_slot_is_given_back_after_its_last_page_and_not_before() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        for slot in 0..8u8 {
            file.write_all_at(&[slot + 1; 4096], u64::from(slot) * PAGE).unwrap();
        }
        let kib = |s: &Slots| s.file.metadata().unwrap().blocks() / 2;
        let mut slots = Slots::new(file).unwrap();
        let run = |slot, pages| SlotRun { vaddr: 0, pages, slot };
        slots.add([run(0, 4), run(1, 1)].into_iter()).unwrap();
        assert!(slots.add([run(6, 3)].into_iter()).is_err());
        slots.release(&[run(0, 1)]).unwrap();
        assert_eq!(kib(&slots), 32, "whole until it is said");
        slots.give_back().unwrap();
        assert_eq!(kib(&slots), 12, "slots 1 to 3 are needed");
        slots.release(&[run(1, 3)]).unwrap();
        assert_eq!(kib(&slots), 4, "slot 1 has another page");
        let mut buffer = Vec::new();
        slots.read(&[run(1, 1)], &mut buffer).unwrap();
        assert_eq!(buffer, [2; 4096]);
        slots.release(&[run(1, 1)]).unwrap();
        assert_eq!(kib(&slots), 0);
    }
}
