//! `pages.map`: which slots of the store hold the pages that a restore leaves out.
//!
//! The agent writes it when everything has come; the fill process reads it, and both need nothing
//! else to agree on. Runs instead of a slot for each page: memory that lies together was mostly sent
//! together. Pages of zeros are not in it, since memory that is never filled in reads as zeros.
//!
//! ```text
//! magic u64 | slots u32 | processes u32 | { pid u32 | runs u32 | { vaddr u64 | pages u32 | slot u32 } ... } ...
//! ```
//!
//! All little-endian.

use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tranship_proto::pages::{MAX_ADDRESS, PAGE, SlotRun};

const MAGIC: u64 = u64::from_le_bytes(*b"tsmap\0\0\x01");
/// Most processes of a container.
pub const MAX_PROCESSES: usize = 1 << 16;
/// Bytes of a run.
const RUN: usize = 16;

/// What is to be filled in, process by process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FillMap {
    /// Slots of the store; every run is below.
    pub slots: u32,
    /// Number in the container, and its runs: sorted, not overlapping.
    pub processes: Vec<(u32, Vec<SlotRun>)>,
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl FillMap {
    /// Pages in all.
    pub fn pages(&self) -> u64 {
        self.processes.iter().flat_map(|(_, runs)| runs).map(|r| u64::from(r.pages)).sum()
    }

    /// Writes it to a file of that name, which must not exist.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let runs: usize = self.processes.iter().map(|(_, runs)| runs.len()).sum();
        let mut out = Vec::with_capacity(16 + self.processes.len() * 8 + runs * RUN);
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&self.slots.to_le_bytes());
        out.extend_from_slice(&count(self.processes.len())?.to_le_bytes());
        for (pid, runs) in &self.processes {
            out.extend_from_slice(&pid.to_le_bytes());
            out.extend_from_slice(&count(runs.len())?.to_le_bytes());
            for run in runs {
                out.extend_from_slice(&run.vaddr.to_le_bytes());
                out.extend_from_slice(&run.pages.to_le_bytes());
                out.extend_from_slice(&run.slot.to_le_bytes());
            }
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&out)
    }

    /// Reads and checks it.
    ///
    /// # Errors
    /// What the file system says; `InvalidData` for anything that [`FillMap::write`] does not write.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.read_to_end(&mut bytes)?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let mut rest = bytes;
        if u64::from_le_bytes(take(&mut rest)?) != MAGIC {
            return Err(invalid("not a map of pages"));
        }
        let slots = u32::from_le_bytes(take(&mut rest)?);
        let processes = u32::from_le_bytes(take(&mut rest)?) as usize;
        if processes > MAX_PROCESSES {
            return Err(invalid(format!("{processes} processes; at most {MAX_PROCESSES}")));
        }
        let mut map = FillMap { slots, processes: Vec::with_capacity(processes) };
        for _ in 0..processes {
            let pid = u32::from_le_bytes(take(&mut rest)?);
            let count = u32::from_le_bytes(take(&mut rest)?) as usize;
            if count > rest.len() / RUN {
                return Err(invalid("cut short"));
            }
            let mut runs = Vec::with_capacity(count);
            let mut free = 0;
            for _ in 0..count {
                let vaddr = u64::from_le_bytes(take(&mut rest)?);
                let pages = u32::from_le_bytes(take(&mut rest)?);
                let slot = u32::from_le_bytes(take(&mut rest)?);
                let end = u64::from(pages) * PAGE + vaddr.min(MAX_ADDRESS);
                let known = slot.checked_add(pages).is_some_and(|e| e <= slots);
                if pages == 0 || !vaddr.is_multiple_of(PAGE) || vaddr < free || end > MAX_ADDRESS || !known {
                    return Err(invalid(format!("{pages} pages at {vaddr:#x} in slot {slot} of {slots}")));
                }
                free = end;
                runs.push(SlotRun { vaddr, pages, slot });
            }
            map.processes.push((pid, runs));
        }
        if rest.is_empty() { Ok(map) } else { Err(invalid("longer than it says")) }
    }
}

fn count(n: usize) -> io::Result<u32> {
    u32::try_from(n).map_err(|_| invalid("too many runs"))
}

fn take<const N: usize>(rest: &mut &[u8]) -> io::Result<[u8; N]> {
    let (head, tail) = rest.split_first_chunk().ok_or_else(|| invalid("cut short"))?;
    *rest = tail;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> FillMap {
        FillMap {
            slots: 10,
            processes: vec![
                (
                    1,
                    vec![
                        SlotRun { vaddr: 0x1000, pages: 2, slot: 8 },
                        SlotRun { vaddr: 0x3000, pages: 1, slot: 0 },
                    ],
                ),
                (7, vec![]),
            ],
        }
    }

    #[test]
    fn a_map_is_read_as_it_was_written_and_never_written_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pages.map");
        map().write(&path).unwrap();
        assert_eq!(FillMap::read(&path).unwrap(), map());
        assert_eq!(map().pages(), 3);
        assert!(map().write(&path).is_err());
    }

    #[test]
    fn damaged_maps_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        map().write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for n in 0..bytes.len() {
            assert!(FillMap::parse(&bytes[..n]).is_err(), "{n}");
        }
        assert!(FillMap::parse(&[&bytes[..], &[0]].concat()).is_err());
        let refused = |change: fn(&mut FillMap)| {
            let mut m = map();
            change(&mut m);
            let path = dir.path().join("bad");
            let _ = std::fs::remove_file(&path);
            m.write(&path).unwrap();
            assert!(FillMap::read(&path).is_err(), "{m:?}");
        };
        refused(|m| m.slots = 9);
        refused(|m| m.processes[0].1[0].pages = 0);
        refused(|m| m.processes[0].1[0].pages = 3);
        refused(|m| m.processes[0].1[0].vaddr = 0x1001);
        refused(|m| m.processes[0].1[1].vaddr = MAX_ADDRESS);
        refused(|m| m.processes[0].1[1].slot = u32::MAX);
        refused(|m| m.processes[0].1.swap(0, 1));
    }
}
