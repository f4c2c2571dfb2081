//! A file in which every block can be checked.

use anyhow::Context;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const WORDS: usize = 32 << 10;
/// Bytes of a block.
pub(super) const BLOCK: u64 = (WORDS * size_of::<u64>()) as u64;
/// Blocks that the file has room for; then it begins again.
const BLOCKS: u64 = 128;

/// Numbered blocks, the newest in place of the oldest.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    written: u64,
}

impl Journal {
    /// An empty one.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(path);
        Ok(Self { file: file.with_context(|| format!("making {}", path.display()))?, written: 0 })
    }

    /// Writes the next block. One that fails is written again the next time.
    pub(super) fn append(&mut self) -> io::Result<()> {
        self.file.write_all_at(&block(self.written), self.written % BLOCKS * BLOCK)?;
        self.written += 1;
        Ok(())
    }

    /// Number of blocks that are not as they should be.
    pub(super) fn wrong(&self) -> usize {
        let oldest = self.written.saturating_sub(BLOCKS);
        let is = |number: u64| {
            let mut bytes = vec![0; BLOCK as usize];
            let read = self.file.read_exact_at(&mut bytes, number % BLOCKS * BLOCK);
            read.is_ok() && bytes == block(number)
        };
        (oldest..self.written).filter(|number| !is(*number)).count()
    }
}

fn block(number: u64) -> Vec<u8> {
    let mut word = number;
    let words = std::iter::repeat_with(|| {
        // Of Knuth's, for contents that no compressor and no copy elsewhere in the file takes away.
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number | 1);
        word
    });
    words.take(WORDS).flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_is_older_or_torn_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::create(&path).unwrap();
        for _ in 0..BLOCKS + 3 {
            journal.append().unwrap();
        }
        assert_eq!(journal.wrong(), 0);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&block(1), BLOCK).unwrap();
        assert_eq!(journal.wrong(), 1, "the second block of the first time round");
        file.write_all_at(&[1], 9 * BLOCK + 77).unwrap();
        assert_eq!(journal.wrong(), 2);
        file.set_len(20 * BLOCK).unwrap();
        assert_eq!(journal.wrong(), 2 + 108, "those behind the end");
    }
}
