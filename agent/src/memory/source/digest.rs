//! What a page holds, in short: pages with the same contents are found by it, and then sent once.
//!
//! A container controls its own pages, and two that differ must never be taken for one, whatever it
//! writes. So the digest has a key, made for each migration and known to nobody else. Two sums are taken
//! of a page, NH with words of 64 bits and the key shifted for the second (UMAC, CRYPTO 1999; VMAC,
//! draft-krovetz-vmac-01): for any two pages that differ no more than one key in 2^128 gives both the
//! same sums. That is proven, not believed. BLAKE3 then makes 128 bits of them, under a key of its own.
//! Rejected: BLAKE3 of the page itself, no surer and with 0.9 us a page three times as slow, which made a
//! move a twelfth longer; fast hashes about which nothing is proven; NH with words of 32 bits, which is
//! only fast where the compiler makes vectors of it.

use std::io;
use tranship_proto::pages::PAGE;

/// Bytes of a page.
pub const SIZE: usize = PAGE as usize;

/// Contents of a page, in short.
pub type Digest = [u64; 2];

const WORDS: usize = SIZE / 8;
/// Sums, each 2^-64 sure.
const SUMS: usize = 2;
/// Words that the key is shifted by for each sum after the first.
const SHIFT: usize = 2;
const KEY_WORDS: usize = WORDS + (SUMS - 1) * SHIFT;

/// Makes digests, with the migration's key.
#[derive(Clone)]
pub struct Digester {
    sums: Box<[u64; KEY_WORDS]>,
    last: [u8; blake3::KEY_LEN],
}

impl std::fmt::Debug for Digester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Digester").finish_non_exhaustive()
    }
}

impl Digester {
    /// With a fresh key.
    pub fn new() -> io::Result<Self> {
        let random = |bytes: &mut [u8]| {
            ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), bytes)
                .map_err(|_| io::Error::other("the system has no random numbers"))
        };
        let mut bytes = [0; KEY_WORDS * 8];
        random(&mut bytes)?;
        let mut last = [0; blake3::KEY_LEN];
        random(&mut last)?;
        let mut sums = Box::new([0; KEY_WORDS]);
        for (word, bytes) in sums.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(Self { sums, last })
    }

    /// The digest of a page; none when all its bytes are zero.
    pub fn digest(&self, page: &[u8; SIZE]) -> Option<Digest> {
        if page.as_chunks::<8>().0.iter().all(|w| *w == [0; 8]) {
            return None;
        }
        let mut bytes = [0; SUMS * 16];
        for (bytes, sum) in bytes.as_chunks_mut().0.iter_mut().zip(self.sums(page)) {
            *bytes = sum.to_le_bytes();
        }
        let hash = blake3::keyed_hash(&self.last, &bytes);
        let (words, _) = hash.as_bytes().as_chunks();
        Some([u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])])
    }

    fn sums(&self, page: &[u8; SIZE]) -> [u128; SUMS] {
        let (words, _) = page.as_chunks();
        let mut sums = [0u128; SUMS];
        for at in (0..WORDS).step_by(2) {
            let (x, y) = (u64::from_le_bytes(words[at]), u64::from_le_bytes(words[at + 1]));
            for (sum, shift) in sums.iter_mut().zip((0..).step_by(SHIFT)) {
                let x = x.wrapping_add(self.sums[at + shift]);
                let y = y.wrapping_add(self.sums[at + shift + 1]);
                *sum = sum.wrapping_add(u128::from(x) * u128::from(y));
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_tell_pages_apart_and_know_zeros() {
        let (a, b) = (Digester::new().unwrap(), Digester::new().unwrap());
        let mut page = [0; SIZE];
        assert_eq!(a.digest(&page), None);
        page[SIZE - 1] = 1;
        assert_eq!(a.digest(&page), a.digest(&page));
        assert_ne!(a.digest(&page), b.digest(&page), "keys differ");
        // Every bit counts, in both sums: what a key that is too short or a lost word would miss.
        let mut seen = std::collections::HashSet::from([a.digest(&page)]);
        let whole = a.sums(&page);
        for bit in 0..SIZE * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(a.digest(&page)), "bit {bit}");
            let sums = a.sums(&page);
            assert!(sums[0] != whole[0] && sums[1] != whole[1], "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
        // Words that change places.
        let (mut x, mut y) = ([0; SIZE], [0; SIZE]);
        (x[0], y[16]) = (1, 1);
        assert_ne!(a.digest(&x), a.digest(&y));
    }

    /// By the definition, with arithmetic that cannot wrap unseen.
    #[test]
    fn the_sums_are_what_is_proven() {
        let digester = Digester::new().unwrap();
        let page: [u8; SIZE] = std::array::from_fn(|i| (i * i / 7) as u8);
        let message: Vec<u64> = page.as_chunks().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
        for (sum, key) in
            digester.sums(&page).into_iter().zip([&digester.sums[..512], &digester.sums[2..514]])
        {
            let keyed: Vec<u128> =
                message.iter().zip(key).map(|(m, k)| (u128::from(*m) + u128::from(*k)) % (1 << 64)).collect();
            let products = keyed.chunks(2).map(|pair| pair[0] * pair[1]);
            assert_eq!(sum, products.fold(0, |y: u128, p| y.overflowing_add(p).0));
        }
    }
}
