//! The page store at the destination: contents in slots of one file in memory, and for each process a
//! table of which slot is at which address.
//!
//! Both are applied while they come, by the lanes of a round in parallel: if a round is not completed,
//! the migration is over and all of it is removed. The file is in tmpfs, because pages are filled in by
//! another process than the one that received them, and because what was filled in can be given back
//! page by page. Rejected: an image in CRIU's format, which would have to be written anew after each
//! round, and a store in the agent's memory, which would die with it.
//!
//! Everything is the peer's word. A batch is checked before any of it is applied; slots, processes and
//! the size of tables are bounded; a page counts only if its slot was written.

use super::map::{FillMap, MAX_PROCESSES};
use super::pagemap;
use super::table::{MAX_SLOTS, PageTable, Place};
use crate::transport::bulk::{BulkError, BulkReader, Record};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tranship_proto::bulk::RecordKind;
use tranship_proto::codec;
use tranship_proto::error::WireError;
use tranship_proto::handoff::MemoryTotals;
use tranship_proto::pages::{MAX_LANES, PAGE, PageBatch, PagesEnd, SlotRun};

/// The store, in the directory of a migration's images.
pub const PAGES: &str = "pages";
/// Its map, once it is sealed.
pub const PAGES_MAP: &str = "pages.map";

/// Why pages cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The stream failed.
    #[error("cannot receive pages")]
    Bulk(#[from] BulkError),
    /// A file failed.
    #[error("cannot {what} {path}")]
    File {
        /// The attempt, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The source broke the order, or sent what cannot be.
    #[error("the source's pages are not acceptable: {0}")]
    Order(String),
    /// More than was agreed.
    #[error("the container's memory has grown beyond the {slots} pages set aside for it")]
    TooMuch {
        /// The limit.
        slots: u32,
    },
    /// A page that the restore needs is not in the store.
    #[error("page {vaddr:#x} of process {pid} never came")]
    Missing {
        /// The process, by its number in the container.
        pid: u32,
        /// The address.
        vaddr: u64,
    },
}

impl From<WireError> for StoreError {
    fn from(e: WireError) -> Self {
        Self::Bulk(e.into())
    }
}

/// A round on its way.
struct Round {
    number: u32,
    lanes: u16,
    /// Lanes that have begun, and that have ended well, as bits.
    begun: u16,
    ended: u16,
}

/// Neighbouring pages of which something is known.
#[derive(Debug, Clone, Copy)]
struct Known {
    vaddr: u64,
    pages: u32,
    /// Slot of the first page; none for zeros.
    slot: Option<u32>,
}

impl Known {
    fn end(&self) -> u64 {
        self.vaddr + u64::from(self.pages) * PAGE
    }
}

#[derive(Default)]
struct Tables {
    processes: BTreeMap<u32, PageTable>,
    leaves: usize,
    /// Which slots have contents, one bit each.
    written: Vec<u64>,
    /// All known pages as runs, by process; none while it would be out of date.
    draft: Option<BTreeMap<u32, Vec<Known>>>,
    round: Option<Round>,
    rounds: u32,
    pages: PagesEnd,
}

/// A page store that is being filled by a peer.
pub struct Store {
    path: PathBuf,
    file: File,
    slots: u32,
    max_leaves: usize,
    tables: Mutex<Tables>,
}

/// Leaves of tables that so many slots may need: address spaces are sparse, one page in a leaf at worst
/// for small ones.
fn leaves_for(slots: u32) -> usize {
    8192 + slots as usize / 16
}

impl Store {
    /// Makes the store in a directory that has none; so many slots are taken at most.
    pub fn create(dir: &Path, slots: u32) -> Result<Self, StoreError> {
        let slots = slots.min(MAX_SLOTS);
        let path = dir.join(PAGES);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|source| StoreError::File { what: "create", path: path.clone(), source })?;
        Ok(Self { path, file, slots, max_leaves: leaves_for(slots), tables: Mutex::default() })
    }

    /// Gives the memory of the store in a directory back, if there is one, whoever has it open still: whoever
    /// closed it last would have to wait for that, 50 ms a GiB. Blocking.
    pub fn empty(dir: &Path) -> std::io::Result<()> {
        match File::options().write(true).custom_flags(nix::libc::O_NOFOLLOW).open(dir.join(PAGES)) {
            Ok(file) => file.set_len(0),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one stream of a round to its end. Blocks. Answers whether the round is complete with it.
    pub fn take_lane(
        &self,
        reader: &mut BulkReader,
        round: u32,
        lane: u16,
        lanes: u16,
    ) -> Result<bool, StoreError> {
        self.begin_lane(round, lane, lanes)?;
        let mut came = PagesEnd::default();
        loop {
            let Some(Record { kind, meta, data }) = reader.read()? else { return Err(reader.cut().into()) };
            match kind {
                RecordKind::Pages => {
                    let batch: PageBatch = codec::decode("PageBatch", &meta)?;
                    came.add(&self.apply(&batch, &data)?);
                }
                RecordKind::PagesEnd => {
                    let said: PagesEnd = codec::decode("PagesEnd", &meta)?;
                    return self.end_lane(round, lane, &said, &came);
                }
                _ => return Err(StoreError::Order("a record of another kind of stream".into())),
            }
        }
    }

    fn begin_lane(&self, number: u32, lane: u16, lanes: u16) -> Result<(), StoreError> {
        let order = |why: String| Err(StoreError::Order(why));
        if lanes == 0 || lanes > MAX_LANES || lane >= lanes {
            return order(format!("lane {lane} of {lanes}"));
        }
        let mut tables = self.tables();
        let due = tables.rounds.saturating_add(1);
        let round = tables.round.get_or_insert(Round { number: due, lanes, begun: 0, ended: 0 });
        let bit = 1 << lane;
        if round.number != number || round.lanes != lanes || round.begun & bit != 0 {
            return order(format!("lane {lane} of {lanes} of round {number}; round {due} is due"));
        }
        round.begun |= bit;
        Ok(())
    }

    /// Applies one batch; answers what it carried.
    fn apply(&self, batch: &PageBatch, data: &[u8]) -> Result<PagesEnd, StoreError> {
        let highest = batch.data.iter().chain(&batch.refs).filter_map(|r| r.slot.checked_add(r.pages)).max();
        if highest.is_some_and(|h| h > self.slots) {
            return Err(StoreError::TooMuch { slots: self.slots });
        }
        let came = batch.check(data.len(), self.slots)?;
        let mut rest = data;
        for run in &batch.data {
            let (contents, tail) = rest.split_at(run.pages as usize * PAGE as usize);
            rest = tail;
            let written = self.file.write_all_at(contents, u64::from(run.slot) * PAGE);
            written.map_err(|source| StoreError::File { what: "write", path: self.path.clone(), source })?;
        }
        let mut tables = self.tables();
        tables.draft = None;
        let runs = batch.data.iter().chain(&batch.refs).map(|r| (r.vaddr, r.pages, Some(r.slot)));
        for (vaddr, pages, slot) in runs.chain(batch.zeros.iter().map(|z| (z.vaddr, z.pages, None))) {
            self.note(&mut tables, batch.pid, vaddr, pages, slot)?;
        }
        for run in &batch.data {
            for slot in run.slot..run.slot + run.pages {
                let word = slot as usize / 64;
                if word >= tables.written.len() {
                    tables.written.resize(word + 1, 0);
                }
                tables.written[word] |= 1 << (slot % 64);
            }
        }
        Ok(came)
    }

    fn note(
        &self,
        tables: &mut Tables,
        pid: u32,
        vaddr: u64,
        pages: u32,
        slot: Option<u32>,
    ) -> Result<(), StoreError> {
        if tables.leaves.saturating_add(pages as usize / 512 + 2) > self.max_leaves {
            return Err(StoreError::TooMuch { slots: self.slots });
        }
        if tables.processes.len() >= MAX_PROCESSES && !tables.processes.contains_key(&pid) {
            return Err(StoreError::Order(format!("more than {MAX_PROCESSES} processes")));
        }
        let table = tables.processes.entry(pid).or_default();
        let before = table.leaves();
        for i in 0..pages {
            table.set(vaddr + u64::from(i) * PAGE, slot.map_or(Place::Zero, |s| Place::Slot(s + i)));
        }
        tables.leaves += table.leaves() - before;
        Ok(())
    }

    fn end_lane(&self, number: u32, lane: u16, said: &PagesEnd, came: &PagesEnd) -> Result<bool, StoreError> {
        if said != came {
            return Err(StoreError::Order(format!("{came:?} came, {said:?} was sent")));
        }
        let mut tables = self.tables();
        tables.pages.add(came);
        let Some(round) = tables.round.as_mut().filter(|r| r.number == number) else {
            return Err(StoreError::Order(format!("the end of round {number}, which is over")));
        };
        round.ended |= 1 << lane;
        let complete = round.ended.count_ones() == u32::from(round.lanes);
        if complete {
            tables.rounds = number;
            tables.round = None;
        }
        Ok(complete)
    }

    /// What all complete rounds have carried; nothing while one is on its way.
    pub fn totals(&self) -> Option<MemoryTotals> {
        let tables = self.tables();
        tables.round.is_none().then_some(MemoryTotals { rounds: tables.rounds, pages: tables.pages })
    }

    /// Gets ready to be sealed, unless another round is on its way: what reads all tables, a millisecond a
    /// GiB and more where they have left the processor's caches, need not wait for the images. Blocking.
    pub fn draft(&self) {
        let mut tables = self.tables();
        if tables.round.is_none() && tables.draft.is_none() {
            tables.draft = Some(tables.known());
        }
    }

    /// Writes the map of what the restore of the images in `dir` leaves out. Reads every page map there.
    /// Pages in the store that no image names are left out: they were unmapped, or are in the images.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when a page never came.
    pub fn seal(&self, dir: &Path) -> Result<FillMap, StoreError> {
        let file = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::File { what, path, source }
        };
        let tables = self.tables();
        let known = tables.draft.as_ref().map_or_else(|| Cow::Owned(tables.known()), Cow::Borrowed);
        let mut map = FillMap { slots: self.slots, processes: Vec::new() };
        for (pid, path) in pagemap::of_processes(dir).map_err(file("list", dir))? {
            let entries = pagemap::read(&path).map_err(file("read", &path))?;
            let known = known.get(&pid).map_or(&[][..], Vec::as_slice);
            map.processes.push((pid, left_out(pid, known, entries.iter().filter(|e| e.lazy()))?));
        }
        let path = dir.join(PAGES_MAP);
        map.write(&path).map_err(file("write", &path))?;
        Ok(map)
    }
}

impl Tables {
    fn written(&self, slot: u32) -> bool {
        self.written.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// All pages that came, in order of address. One with the contents of a slot that was never sent did
    /// not come.
    fn known(&self) -> BTreeMap<u32, Vec<Known>> {
        let runs = |table: &PageTable| {
            let mut runs: Vec<Known> = Vec::new();
            for (vaddr, place) in table.iter() {
                let slot = match place {
                    Place::Zero => None,
                    Place::Slot(slot) if self.written(slot) => Some(slot),
                    Place::Slot(_) => continue,
                };
                let follows =
                    |run: &&mut Known| run.end() == vaddr && slot == run.slot.map(|first| first + run.pages);
                match runs.last_mut().filter(follows) {
                    Some(run) => run.pages += 1,
                    None => runs.push(Known { vaddr, pages: 1, slot }),
                }
            }
            runs
        };
        self.processes.iter().map(|(pid, table)| (*pid, runs(table))).collect()
    }
}

/// The slots behind lazy pages, as runs.
fn left_out<'a>(
    pid: u32,
    known: &[Known],
    lazy: impl Iterator<Item = &'a pagemap::Entry>,
) -> Result<Vec<SlotRun>, StoreError> {
    let mut known = known.iter().peekable();
    let mut runs: Vec<SlotRun> = Vec::new();
    let mut at = 0;
    for entry in lazy {
        if entry.vaddr < at {
            return Err(StoreError::Order(format!("the page map of process {pid} is not in order")));
        }
        at = entry.vaddr;
        let end = entry.vaddr + entry.pages * PAGE;
        while at < end {
            while known.next_if(|run| run.end() <= at).is_some() {}
            let Some(run) = known.peek().filter(|run| run.vaddr <= at) else {
                return Err(StoreError::Missing { pid, vaddr: at });
            };
            let upto = run.end().min(end);
            let pages = |from, to| u32::try_from((to - from) / PAGE).unwrap_or(u32::MAX);
            if let Some(first) = run.slot {
                let next = SlotRun { vaddr: at, pages: pages(at, upto), slot: first + pages(run.vaddr, at) };
                match runs.last_mut() {
                    Some(last)
                        if last.vaddr + u64::from(last.pages) * PAGE == at
                            && last.slot + last.pages == next.slot =>
                    {
                        last.pages += next.pages;
                    }
                    _ => runs.push(next),
                }
            }
            at = upto;
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests;
