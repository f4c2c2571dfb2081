//! The pages of one process that have not been filled in yet: which slot belongs at which address.

use std::collections::BTreeMap;
use tranship_proto::pages::{PAGE, SlotRun};

/// Runs by the address of their first page. They never overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outstanding {
    runs: BTreeMap<u64, (u32, u32)>,
    pages: u64,
}

fn end(vaddr: u64, pages: u32) -> u64 {
    vaddr + u64::from(pages) * PAGE
}

fn between(from: u64, to: u64) -> u32 {
    u32::try_from((to - from) / PAGE).unwrap_or(u32::MAX)
}

impl Outstanding {
    pub(super) fn new(runs: &[SlotRun]) -> Self {
        let mut all = Self::default();
        for run in runs {
            all.put(*run);
        }
        all
    }

    /// How many.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// All runs, in order.
    pub(super) fn runs(&self) -> impl Iterator<Item = SlotRun> + '_ {
        self.runs.iter().map(|(vaddr, (pages, slot))| SlotRun { vaddr: *vaddr, pages: *pages, slot: *slot })
    }

    /// The first address at or after `vaddr` that is outstanding.
    pub(super) fn next(&self, vaddr: u64) -> Option<u64> {
        match self.runs.range(..=vaddr).next_back() {
            Some((start, (pages, _))) if end(*start, *pages) > vaddr => Some(vaddr),
            _ => self.runs.range(vaddr..).next().map(|(start, _)| *start),
        }
    }

    /// At most `limit` neighbouring pages from `vaddr` on; none when that one is not outstanding.
    pub(super) fn from(&self, vaddr: u64, limit: u32) -> Vec<SlotRun> {
        let mut found = Vec::new();
        let (mut at, mut left) = (vaddr, limit);
        let first = self.runs.range(..=vaddr).next_back().map_or(vaddr, |(start, _)| *start);
        for (start, (pages, slot)) in self.runs.range(first..) {
            if *start > at || end(*start, *pages) <= at || left == 0 {
                break;
            }
            let skip = between(*start, at);
            let take = (pages - skip).min(left);
            found.push(SlotRun { vaddr: at, pages: take, slot: slot + skip });
            (at, left) = (end(at, take), left - take);
        }
        found
    }

    /// Takes out what lies between two addresses.
    pub(super) fn take(&mut self, start: u64, stop: u64) -> Vec<SlotRun> {
        let mut taken = Vec::new();
        let first = self.runs.range(..=start).next_back().map_or(start, |(at, _)| *at);
        let touched: Vec<u64> = self.runs.range(first..stop.max(first)).map(|(at, _)| *at).collect();
        for at in touched {
            let Some((pages, slot)) = self.runs.remove(&at) else { continue };
            let run_end = end(at, pages);
            let (from, to) = (at.max(start), run_end.min(stop));
            if from >= to {
                self.runs.insert(at, (pages, slot));
                continue;
            }
            if at < from {
                self.runs.insert(at, (between(at, from), slot));
            }
            if to < run_end {
                self.runs.insert(to, (between(to, run_end), slot + between(at, to)));
            }
            let run = SlotRun { vaddr: from, pages: between(from, to), slot: slot + between(at, from) };
            self.pages -= u64::from(run.pages);
            taken.push(run);
        }
        taken
    }

    /// Adds a run at addresses where none is.
    pub(super) fn put(&mut self, run: SlotRun) {
        self.pages += u64::from(run.pages);
        self.runs.insert(run.vaddr, (run.pages, run.slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(page: u64, pages: u32, slot: u32) -> SlotRun {
        SlotRun { vaddr: page * PAGE, pages, slot }
    }

    #[test]
    fn neighbours_are_found_across_runs() {
        let o = Outstanding::new(&[run(1, 2, 10), run(3, 2, 50), run(9, 1, 0)]);
        assert_eq!(o.pages(), 5);
        assert_eq!(o.from(2 * PAGE, 2), [run(2, 1, 11), run(3, 1, 50)]);
        assert_eq!(o.from(PAGE, 100), [run(1, 2, 10), run(3, 2, 50)]);
        assert_eq!(o.from(5 * PAGE, 1), []);
        assert_eq!(o.from(0, 1), []);
        assert_eq!(o.from(PAGE, 0), []);
        assert_eq!(
            [0, 2, 5, 9, 10].map(|p| o.next(p * PAGE).map(|a| a / PAGE)),
            [Some(1), Some(2), Some(9), Some(9), None]
        );
    }

    #[test]
    fn the_middle_of_a_run_can_be_taken_and_put_elsewhere() {
        let mut o = Outstanding::new(&[run(1, 6, 10)]);
        assert_eq!(o.take(3 * PAGE, 5 * PAGE), [run(3, 2, 12)]);
        assert_eq!(o.runs().collect::<Vec<_>>(), [run(1, 2, 10), run(5, 2, 14)]);
        o.put(run(100, 2, 12));
        assert_eq!(o.pages(), 6);
        assert_eq!(o.take(0, u64::MAX), [run(1, 2, 10), run(5, 2, 14), run(100, 2, 12)]);
        assert_eq!(o, Outstanding::default());
    }

    proptest! {
        // The same as a table with an entry for each page.
        #[test]
        fn takes_and_moves_are_those_of_a_plain_table(
            ops in prop::collection::vec((0u64..40, 1u64..20, prop::option::of(40u64..60)), 1..30)
        ) {
            let mut o = Outstanding::new(&[run(0, 15, 100), run(15, 10, 7), run(30, 8, 300)]);
            let mut plain: BTreeMap<u64, u32> =
                o.runs().flat_map(|r| (0..r.pages).map(move |i| (r.vaddr / PAGE + u64::from(i), r.slot + i))).collect();
            for (from, len, to) in ops {
                let taken = o.take(from * PAGE, (from + len) * PAGE);
                let gone: Vec<(u64, u32)> = (from..from + len).filter_map(|p| Some((p, plain.remove(&p)?))).collect();
                let flat: Vec<(u64, u32)> = taken.iter()
                    .flat_map(|r| (0..r.pages).map(move |i| (r.vaddr / PAGE + u64::from(i), r.slot + i))).collect();
                prop_assert_eq!(&flat, &gone);
                if let Some(to) = to {
                    o.take(to * PAGE, (to + len) * PAGE);
                    for p in to..to + len { plain.remove(&p); }
                    for r in taken {
                        o.put(SlotRun { vaddr: r.vaddr - from * PAGE + to * PAGE, ..r });
                    }
                    for (p, slot) in gone { plain.insert(p - from + to, slot); }
                }
                prop_assert_eq!(o.pages(), plain.len() as u64);
                for p in 0..90 {
                    let here = o.from(p * PAGE, 1);
                    prop_assert_eq!(here.first().map(|r| r.slot), plain.get(&p).copied());
                    prop_assert_eq!(o.next(p * PAGE).map(|a| a / PAGE), plain.range(p..).next().map(|(k, _)| *k));
                }
            }
        }
    }
}
