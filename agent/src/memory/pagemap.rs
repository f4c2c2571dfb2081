//! CRIU's page maps: which pages of a process or a shared segment an image has, and where they are.
//!
//! `pagemap-PID.img` is a header, a `pagemap_head`, then a `pagemap_entry` for each run of pages (CRIU
//! 4.2, `images/pagemap.proto`), each behind its length. Entries that are lazy name pages which the
//! restore leaves to whoever serves its `lazy-pages.socket`.

use prost::Message;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tranship_proto::pages::{MAX_ADDRESS, PAGE};

/// Most page-map entries of one object: 16 million runs of pages.
pub const MAX_ENTRIES: usize = 16 << 20;
/// Longest page map read, in bytes; an entry has about 20.
const MAX_IMAGE: u64 = 24 * MAX_ENTRIES as u64;
/// Longest entry, in bytes.
const MAX_MESSAGE: usize = 256;

const IMG_COMMON_MAGIC: u32 = 0x5456_4319;
const PAGEMAP_MAGIC: u32 = 0x5608_4025;

/// The contents are in the parent image.
pub const PE_PARENT: u32 = 1;
/// The contents come later, on demand.
pub const PE_LAZY: u32 = 2;
/// The contents are in the image beside this one.
pub const PE_PRESENT: u32 = 4;

#[derive(Clone, PartialEq, Message)]
struct PagemapHead {
    #[prost(uint32, required, tag = "1")]
    pages_id: u32,
}

#[derive(Clone, PartialEq, Message)]
struct PagemapEntry {
    #[prost(uint64, required, tag = "1")]
    vaddr: u64,
    #[prost(uint32, required, tag = "2")]
    compat_nr_pages: u32,
    #[prost(bool, optional, tag = "3")]
    in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    nr_pages: Option<u64>,
}

/// A run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Address of the first page.
    pub vaddr: u64,
    /// Pages.
    pub pages: u64,
    /// `PE_*`.
    pub flags: u32,
}

impl Entry {
    /// Left to whoever fills memory in.
    pub fn lazy(&self) -> bool {
        self.flags & PE_LAZY != 0
    }
}

/// The bytes of a page map.
pub fn image(pages_id: u32, entries: &[Entry]) -> Vec<u8> {
    let mut image = Vec::with_capacity(64 + entries.len() * 24);
    image.extend_from_slice(&IMG_COMMON_MAGIC.to_le_bytes());
    image.extend_from_slice(&PAGEMAP_MAGIC.to_le_bytes());
    append(&mut image, &PagemapHead { pages_id });
    for entry in entries {
        let message = PagemapEntry {
            vaddr: entry.vaddr,
            // Readers before 4.2 know this field only.
            compat_nr_pages: u32::try_from(entry.pages).unwrap_or(0),
            in_parent: None,
            flags: Some(entry.flags),
            nr_pages: Some(entry.pages),
        };
        append(&mut image, &message);
    }
    image
}

/// CRIU's image framing: a 32-bit length before each message.
fn append(image: &mut Vec<u8>, message: &impl Message) {
    let length = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
    image.extend_from_slice(&length.to_le_bytes());
    image.extend_from_slice(&message.encode_to_vec());
}

/// Reads a page map.
///
/// # Errors
/// What the file system says; `InvalidData` for a file that is no page map, is longer than any can
/// be, or names addresses that no process has.
pub fn read(path: &Path) -> io::Result<Vec<Entry>> {
    parse(&bounded(path)?)
}

fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_IMAGE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_IMAGE {
        return Err(invalid(format!("longer than {MAX_IMAGE} bytes")));
    }
    Ok(bytes)
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// The same from memory.
pub fn parse(bytes: &[u8]) -> io::Result<Vec<Entry>> {
    parse_all(bytes).map(|(_, entries)| entries)
}

fn parse_all(bytes: &[u8]) -> io::Result<(u32, Vec<Entry>)> {
    let mut rest = bytes;
    if (word(&mut rest)?, word(&mut rest)?) != (IMG_COMMON_MAGIC, PAGEMAP_MAGIC) {
        return Err(invalid("not a page map"));
    }
    let head = PagemapHead::decode(message(&mut rest)?).map_err(|e| invalid(e.to_string()))?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let e = PagemapEntry::decode(message(&mut rest)?).map_err(|e| invalid(e.to_string()))?;
        let pages = e.nr_pages.filter(|n| *n > 0).unwrap_or(u64::from(e.compat_nr_pages));
        let end = pages.checked_mul(PAGE).and_then(|n| n.checked_add(e.vaddr));
        if !e.vaddr.is_multiple_of(PAGE) || end.is_none_or(|end| end > MAX_ADDRESS) {
            return Err(invalid(format!("{pages} pages at {:#x}", e.vaddr)));
        }
        if entries.len() >= MAX_ENTRIES {
            return Err(invalid(format!("more than {MAX_ENTRIES} runs of pages")));
        }
        let parent = if e.in_parent == Some(true) { PE_PARENT } else { PE_PRESENT };
        entries.push(Entry { vaddr: e.vaddr, pages, flags: e.flags.unwrap_or(parent) });
    }
    Ok((head.pages_id, entries))
}

fn word(rest: &mut &[u8]) -> io::Result<u32> {
    let (word, tail) = rest.split_first_chunk().ok_or_else(|| invalid("cut short"))?;
    *rest = tail;
    Ok(u32::from_le_bytes(*word))
}

fn message<'a>(rest: &mut &'a [u8]) -> io::Result<&'a [u8]> {
    let length = word(rest)? as usize;
    let (message, tail) = rest.split_at_checked(length).ok_or_else(|| invalid("cut short"))?;
    if length > MAX_MESSAGE {
        return Err(invalid(format!("an entry of {length} bytes")));
    }
    *rest = tail;
    Ok(message)
}

/// Adds lazy entries for the parts of `runs` that the page map says nothing of. Both in order. The file is
/// replaced.
///
/// # Errors
/// As [`read`]; what is there is unharmed.
pub fn add_lazy(path: &Path, runs: &[Range<u64>]) -> io::Result<()> {
    let bytes = bounded(path)?;
    let (pages_id, entries) = parse_all(&bytes)?;
    let mut all = Vec::with_capacity(entries.len() + runs.len());
    let mut known = entries.iter().peekable();
    let mut free = 0;
    for run in runs {
        let mut at = run.start.max(free);
        while let Some(entry) = known.next_if(|e| e.vaddr < run.end) {
            lazy(&mut all, at..entry.vaddr);
            all.push(*entry);
            free = entry.vaddr + entry.pages * PAGE;
            at = at.max(free);
        }
        lazy(&mut all, at..run.end);
    }
    all.extend(known);
    let new = path.with_extension("new");
    std::fs::write(&new, image(pages_id, &all))?;
    std::fs::rename(&new, path)
}

fn lazy(entries: &mut Vec<Entry>, range: Range<u64>) {
    if range.start < range.end {
        let pages = (range.end - range.start) / PAGE;
        entries.push(Entry { vaddr: range.start, pages, flags: PE_LAZY });
    }
}

/// The page maps of processes in a directory of images: number in the container, path. In order.
pub fn of_processes(dir: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("pagemap-")?.strip_suffix(".img"));
        // Those of shared segments have a word before their number.
        if let Some(pid) = number.and_then(|n| n.parse().ok()) {
            found.push((pid, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        vec![
            Entry { vaddr: 0x40_0000, pages: 3, flags: PE_PRESENT },
            Entry { vaddr: 0x7f00_0000_0000, pages: 1 << 21, flags: PE_LAZY },
        ]
    }

    #[test]
    fn a_page_map_is_read_as_it_was_written() {
        let bytes = image(7, &entries());
        assert_eq!(parse(&bytes).unwrap(), entries());
        assert!(!entries()[0].lazy() && entries()[1].lazy());
        // As CRIU 4.2.1 wrote it: lazy entries with 64-bit counts, the old count 0.
        let criu = b"\x19\x43\x56\x54\x25\x40\x08\x56\x02\0\0\0\x08\x01\x0c\0\0\0\x08\x80\x80\x90\x02\x10\0\x20\x02\x28\x83\x01";
        assert_eq!(parse(criu).unwrap(), [Entry { vaddr: 0x44_0000, pages: 131, flags: PE_LAZY }]);
    }

    #[test]
    fn damaged_page_maps_are_errors() {
        let bytes = image(7, &entries());
        let whole: Vec<usize> = (0..bytes.len()).filter(|n| parse(&bytes[..*n]).is_ok()).collect();
        // After the head and after the first entry nothing is missing that could be noticed here.
        assert_eq!(whole.len(), 2, "{whole:?}");
        for i in 0..8 {
            let mut b = bytes.clone();
            b[i] ^= 1;
            assert!(parse(&b).is_err(), "byte {i}");
        }
        for bad in [
            Entry { vaddr: 0x1001, pages: 1, flags: 4 },
            Entry { vaddr: MAX_ADDRESS, pages: 1, flags: 4 },
            Entry { vaddr: 0, pages: u64::MAX / 4096 + 2, flags: 4 },
        ] {
            assert!(parse(&image(7, &[bad])).is_err(), "{bad:?}");
        }
        assert!(parse(&image(7, &[Entry { vaddr: MAX_ADDRESS - PAGE, pages: 1, flags: 4 }])).is_ok());
        let mut long = image(7, &[]);
        long.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse(&long).is_err());
    }

    #[test]
    fn runs_are_added_around_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pagemap-1.img");
        let entry = |page: u64, pages, flags| Entry { vaddr: page << 12, pages, flags };
        let there = [entry(10, 2, PE_PRESENT), entry(14, 1, PE_LAZY), entry(30, 1, PE_PRESENT)];
        std::fs::write(&path, image(3, &there)).unwrap();
        let run = |from: u64, to: u64| from << 12..to << 12;
        add_lazy(&path, &[run(1, 3), run(8, 16), run(29, 30), run(40, 41)]).unwrap();
        let want = [
            entry(1, 2, PE_LAZY),
            entry(8, 2, PE_LAZY),
            entry(10, 2, PE_PRESENT),
            entry(12, 2, PE_LAZY),
            entry(14, 1, PE_LAZY),
            entry(15, 1, PE_LAZY),
            entry(29, 1, PE_LAZY),
            entry(30, 1, PE_PRESENT),
            entry(40, 1, PE_LAZY),
        ];
        assert_eq!(parse_all(&std::fs::read(&path).unwrap()).unwrap(), (3, want.to_vec()));
        add_lazy(&path, &[run(1, 3), run(8, 16)]).unwrap();
        assert_eq!(read(&path).unwrap(), want, "nothing is added twice");
        std::fs::write(&path, image(3, &[entry(1, 9, PE_LAZY)])).unwrap();
        add_lazy(&path, &[run(2, 4), run(5, 7), run(8, 11)]).unwrap();
        assert_eq!(
            read(&path).unwrap(),
            [entry(1, 9, PE_LAZY), entry(10, 1, PE_LAZY)],
            "one entry over runs"
        );
        assert!(add_lazy(&dir.path().join("pagemap-2.img"), &[]).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn only_page_maps_of_processes_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["pagemap-12.img", "pagemap-3.img", "pagemap-shmem-4.img", "pages-1.img", "pagemap-x.img"]
        {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let pids: Vec<u32> = of_processes(dir.path()).unwrap().into_iter().map(|(pid, _)| pid).collect();
        assert_eq!(pids, [3, 12]);
    }
}
