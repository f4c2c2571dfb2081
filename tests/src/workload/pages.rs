//! Memory in which every page can be checked.

use super::Content;

const WORDS: usize = 4096 / size_of::<u64>();

/// A page of this program that is one of the kernel's too: else one of zeros would begin with the end of
/// its neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[repr(C, align(4096))]
struct Page([u64; WORDS]);

/// Pages of known contents.
#[derive(Debug)]
pub(super) struct Pages {
    pages: Vec<Page>,
    /// How often each page was written. Kept apart from the pages, so that a page that is older or
    /// newer than the rest of memory shows.
    versions: Vec<u32>,
    content: Content,
    random: u64,
}

impl Pages {
    /// `mib` MiB, all of it touched.
    pub(super) fn new(mib: u32, content: Content) -> Self {
        let count = mib as usize * 256;
        let mut pages = Self {
            pages: vec![Page([0; WORDS]); count],
            versions: vec![0; count],
            content,
            random: 0x7472_616e,
        };
        for index in 0..count {
            pages.write(index);
        }
        pages
    }

    /// Writes a page chosen at random with new contents.
    pub(super) fn write_any(&mut self) {
        let index = (next(&mut self.random) % self.versions.len() as u64) as usize;
        if let Some(version) = self.versions.get_mut(index) {
            *version = version.wrapping_add(1);
        }
        self.write(index);
    }

    /// Number of pages that are not as they should be.
    pub(super) fn wrong(&self) -> usize {
        let pages = self.pages.iter().enumerate();
        pages.filter(|(index, page)| !self.contents(*index).eq(page.0.iter().copied())).count()
    }

    fn write(&mut self, index: usize) {
        let contents = self.contents(index);
        let page = self.pages.get_mut(index).into_iter().flat_map(|page| &mut page.0);
        page.zip(contents).for_each(|(word, value)| *word = value);
    }

    /// What a page should hold.
    fn contents(&self, index: usize) -> impl Iterator<Item = u64> + use<> {
        let version = self.versions.get(index).copied().unwrap_or(0);
        let (of, zero) = match (self.content, version) {
            (Content::Sparse, 0) => (if index % 4 == 3 { index - 2 } else { index }, index.is_multiple_of(2)),
            _ => (index, false),
        };
        let mut state = (of as u64) << 32 | u64::from(version);
        // One step, so that neighbours do not begin alike.
        state = next(&mut state);
        (0..WORDS).map(move |_| if zero { 0 } else { next(&mut state) })
    }
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_changed_word_and_a_stale_page_are_found() {
        let mut pages = Pages::new(1, Content::Random);
        for _ in 0..100 {
            pages.write_any();
        }
        assert_eq!(pages.wrong(), 0);
        let old = pages.pages.clone();
        let at = pages.pages.len() - 1;
        pages.pages[at].0[WORDS - 1] ^= 1;
        assert_eq!(pages.wrong(), 1);
        pages.pages[at].0[WORDS - 1] ^= 1;
        pages.write_any();
        assert_eq!(pages.wrong(), 0);
        pages.pages = old;
        assert_eq!(pages.wrong(), 1);
    }

    #[test]
    fn sparse_memory_is_half_zero_and_a_quarter_copies() {
        let pages = Pages::new(1, Content::Sparse);
        let zero = pages.pages.iter().filter(|p| p.0.iter().all(|w| *w == 0)).count();
        let different: HashSet<_> = pages.pages.iter().collect();
        assert_eq!((pages.pages.len(), zero, different.len()), (256, 128, 65));
        assert!(pages.pages.as_ptr().addr().is_multiple_of(4096));
        assert_eq!(pages.wrong(), 0);
    }
}
