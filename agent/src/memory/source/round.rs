//! Rounds: which pages of which process go next, and the threads that read, compare and send them.

use super::book::{Book, Change, Full};
use super::digest::{Digest, Digester};
use super::left::LeftOut;
use super::read::Reader;
use super::scan::{self, PageMap};
use super::track::{Everything, Protected, Tracker};
use crate::memory::pagemap;
use crate::memory::table::PageTable;
use crate::transport::bulk::BulkError;
use bytes::Bytes;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tranship_proto::error::WireError;
use tranship_proto::pages::{PAGE, PageBatch, PagesEnd, SlotRun, ZeroRun};

/// Pages that are read, compared and sent at once: so few that they stay in a core's cache meanwhile.
const BATCH_PAGES: usize = 64;

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// The stream failed.
    #[error("cannot send memory")]
    Bulk(#[from] BulkError),
    /// The container has grown.
    #[error(transparent)]
    Full(#[from] Full),
    /// The kernel's account of a process, or an image of CRIU's, cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// What.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A page that the dump says there is cannot be had.
    #[error("page {vaddr:#x} of process {pid} is in the dump and cannot be read")]
    Missing {
        /// Number of the process in the container.
        pid: u32,
        /// Address.
        vaddr: u64,
    },
    /// Asked to stop.
    #[error("stopped")]
    Stopped,
}

impl From<WireError> for RoundError {
    fn from(e: WireError) -> Self {
        Self::Bulk(e.into())
    }
}

/// Where a lane's batches go.
pub trait PageSink {
    /// Sends one batch; `data` is the contents of its data runs. Blocks as long as the other end is slow.
    fn pages(&mut self, batch: &PageBatch, data: Bytes) -> Result<(), RoundError>;
}

/// What is known at the destination.
#[derive(Debug)]
struct Ledger {
    book: Book,
    tables: HashMap<u32, PageTable>,
}

/// What the lanes share.
#[derive(Debug)]
struct Shared {
    digester: Digester,
    ledger: Mutex<Ledger>,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process of the container.
struct Process {
    /// Number on the host.
    pid: i32,
    /// Start time in ticks: tells apart two processes that have the same number.
    started: u64,
    /// Number in the container, as CRIU's images name it.
    inner: u32,
    mappings: Vec<Range<u64>>,
    tracker: Box<dyn Tracker>,
}

/// Pages of one process that are handled at once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Batch {
    pid: i32,
    inner: u32,
    ranges: Vec<Range<u64>>,
}

/// The work of one round; lanes take from it.
#[derive(Debug)]
pub struct Plan {
    batches: Vec<Batch>,
    next: AtomicUsize,
    shared: Arc<Shared>,
    /// Pages to be looked at.
    pub pages: u64,
}

/// The memory of one container on its way.
pub struct Rounds {
    shared: Arc<Shared>,
    processes: Vec<Process>,
}

impl std::fmt::Debug for Rounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rounds").field("processes", &self.processes.len()).finish_non_exhaustive()
    }
}

impl Rounds {
    /// Nothing sent yet, to a destination that has so many slots.
    pub fn new(slots: u32) -> io::Result<Self> {
        let ledger = Ledger { book: Book::new(slots), tables: HashMap::new() };
        let shared = Shared { digester: Digester::new()?, ledger: Mutex::new(ledger) };
        Ok(Self { shared: Arc::new(shared), processes: Vec::new() })
    }

    /// Takes note of the container's processes; answers those that are new, to be watched
    /// ([`Rounds::watch`]). All pages of the others that have ended are forgotten.
    pub fn processes(&mut self, pids: &[i32]) -> Vec<i32> {
        let mut here: HashMap<i32, u64> =
            pids.iter().filter_map(|pid| started(*pid).ok().map(|t| (*pid, t))).collect();
        let mut ledger = self.shared.ledger();
        let Ledger { book, tables } = &mut *ledger;
        self.processes.retain(|p| {
            let lives = here.get(&p.pid) == Some(&p.started);
            if lives {
                here.remove(&p.pid);
            } else if let Some(table) = tables.remove(&p.inner) {
                book.forget_all(&table);
            }
            lives
        });
        let mut new = Vec::new();
        for pid in pids {
            let Some(started) = here.remove(pid) else { continue };
            let Ok(inner) = inner_pid(*pid) else { continue };
            new.push(*pid);
            let tracker = Box::new(Everything);
            self.processes.push(Process { pid: *pid, started, inner, mappings: Vec::new(), tracker });
        }
        new
    }

    /// Has the kernel watch a process from now on, by a userfaultfd of its own.
    pub fn watch(&mut self, pid: i32, uffd: OwnedFd) -> io::Result<()> {
        let protected = Protected::new(uffd)?;
        if let Some(process) = self.processes.iter_mut().find(|p| p.pid == pid) {
            process.tracker = Box::new(protected);
        }
        Ok(())
    }

    /// The next round: all that may have changed since the last. `last` when the processes are frozen
    /// and no round of this sort follows.
    pub fn plan(&mut self, last: bool) -> Result<Plan, RoundError> {
        let mut batches = Batches::default();
        for process in &mut self.processes {
            match look(process, last) {
                Ok((mappings, changed)) => {
                    if !last && mappings != process.mappings {
                        self.shared.ledger().forget_unmapped(process.inner, &mappings);
                        process.mappings = mappings;
                    }
                    batches.add(process.pid, process.inner, changed);
                }
                // It has ended, or does while it is looked at; were it in the dump, it would be missed there.
                Err(e) if gone(&e) => {}
                Err(source) => {
                    return Err(RoundError::Read {
                        what: format!("the memory map of process {}", process.pid),
                        source,
                    });
                }
            }
        }
        Ok(batches.plan(self.shared.clone()))
    }

    /// What a dump need not look at, of processes that are frozen.
    pub fn leave_out(&self) -> LeftOut {
        LeftOut::find(self.processes.iter().map(|p| (p.pid, p.inner)))
    }

    /// Pages that a dump without them says there are, and that were never sent: none as a rule.
    pub fn missing(&self, images: &Path) -> Result<Plan, RoundError> {
        let unread =
            |source| RoundError::Read { what: format!("the images in {}", images.display()), source };
        let mut batches = Batches::default();
        for (inner, path) in pagemap::of_processes(images).map_err(unread)? {
            let mut ranges: Vec<Range<u64>> = Vec::new();
            for entry in pagemap::read(&path).map_err(unread)?.iter().filter(|e| e.lazy()) {
                for vaddr in
                    self.shared.ledger().unknown(inner, entry.vaddr..entry.vaddr + entry.pages * PAGE)
                {
                    match ranges.last_mut().filter(|r| r.end == vaddr) {
                        Some(range) => range.end += PAGE,
                        None => ranges.push(vaddr..vaddr + PAGE),
                    }
                }
            }
            let Some(first) = ranges.first() else { continue };
            let process = self.processes.iter().find(|p| p.inner == inner);
            let process = process.ok_or(RoundError::Missing { pid: inner, vaddr: first.start })?;
            batches.add(process.pid, inner, ranges);
        }
        Ok(batches.plan(self.shared.clone()))
    }
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// After its lanes have ended: whether every page was there to be read.
    pub fn complete(&self) -> Result<(), RoundError> {
        let ledger = self.shared.ledger();
        for batch in &self.batches {
            let mut unknown = batch.ranges.iter().flat_map(|r| ledger.unknown(batch.inner, r.clone()));
            if let Some(vaddr) = unknown.next() {
                return Err(RoundError::Missing { pid: batch.inner, vaddr });
            }
        }
        Ok(())
    }
}

impl Ledger {
    /// Pages of a range of which the destination has not been told.
    fn unknown(&self, inner: u32, range: Range<u64>) -> Vec<u64> {
        match self.tables.get(&inner) {
            Some(table) => table.range(range).filter(|(_, place)| place.is_none()).map(|(v, _)| v).collect(),
            None => range.step_by(PAGE as usize).collect(),
        }
    }

    fn forget_unmapped(&mut self, inner: u32, mappings: &[Range<u64>]) {
        let Some(table) = self.tables.get_mut(&inner) else { return };
        let mut mappings = mappings.iter().peekable();
        let mut gone = Vec::new();
        for (vaddr, _) in table.iter() {
            while mappings.next_if(|m| m.end <= vaddr).is_some() {}
            if mappings.peek().is_none_or(|m| vaddr < m.start) {
                gone.push(vaddr);
            }
        }
        for vaddr in gone {
            self.book.forget(table, vaddr);
        }
    }
}

#[derive(Default)]
struct Batches {
    all: Vec<Batch>,
    pages: u64,
}

impl Batches {
    fn add(&mut self, pid: i32, inner: u32, changed: Vec<Range<u64>>) {
        let limit = BATCH_PAGES as u64;
        let mut open = Batch { pid, inner, ranges: Vec::new() };
        let mut room = limit;
        for mut range in changed {
            self.pages += (range.end - range.start) / PAGE;
            while range.start < range.end {
                let pages = room.min((range.end - range.start) / PAGE);
                let upto = range.start + pages * PAGE;
                open.ranges.push(range.start..upto);
                range.start = upto;
                room -= pages;
                if room == 0 {
                    room = limit;
                    self.all.push(Batch { ranges: std::mem::take(&mut open.ranges), ..open });
                }
            }
        }
        if !open.ranges.is_empty() {
            self.all.push(open);
        }
    }

    fn plan(self, shared: Arc<Shared>) -> Plan {
        Plan { batches: self.all, next: AtomicUsize::new(0), shared, pages: self.pages }
    }
}

/// Addresses.
type Ranges = Vec<Range<u64>>;

/// The mappings of a process, and what may have changed in them.
fn look(process: &mut Process, last: bool) -> io::Result<(Ranges, Ranges)> {
    // The page map first: one of an address space that an execve replaces meanwhile gives errors,
    // never the new mappings with the old pages.
    let mut map = PageMap::open(process.pid)?;
    let mappings = scan::mappings(process.pid)?;
    let changed = process.tracker.changed(&mut map, &mappings, last)?;
    Ok((mappings, changed))
}

fn gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(nix::libc::ESRCH | nix::libc::ENOENT))
        || e.kind() == io::ErrorKind::NotFound
}

/// Start time in clock ticks: proc_pid_stat(5), field 22.
fn started(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit(')').next().unwrap_or_default();
    rest.split_ascii_whitespace()
        .nth(19)
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The number that a process has in its innermost namespace: proc_pid_status(5), NSpid.
fn inner_pid(pid: i32) -> io::Result<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("NSpid:"));
    line.and_then(|l| l.split_ascii_whitespace().last())
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// One of a round's threads: takes batches until there are none. Blocking.
pub fn lane(plan: &Plan, sink: &mut impl PageSink, stop: &AtomicBool) -> Result<PagesEnd, RoundError> {
    let mut reader = Reader::new(BATCH_PAGES);
    let mut total = PagesEnd::default();
    while let Some(batch) = plan.batches.get(plan.next.fetch_add(1, Ordering::Relaxed)) {
        if stop.load(Ordering::Relaxed) {
            return Err(RoundError::Stopped);
        }
        let pages: Vec<(u64, Option<Digest>)> = reader
            .read(batch.pid, &batch.ranges)
            .map(|(vaddr, page)| (vaddr, plan.shared.digester.digest(page)))
            .collect();
        let mut message = PageBatch { pid: batch.inner, ..PageBatch::default() };
        let mut wanted = Vec::with_capacity(pages.len());
        {
            let mut ledger = plan.shared.ledger();
            let Ledger { book, tables } = &mut *ledger;
            let table = tables.entry(batch.inner).or_default();
            for (vaddr, digest) in pages {
                match book.note(table, vaddr, digest)? {
                    Change::None => {}
                    Change::Zero => zero(&mut message.zeros, vaddr),
                    Change::Shared(slot) => run(&mut message.refs, vaddr, slot),
                    Change::Data(slot) => {
                        run(&mut message.data, vaddr, slot);
                        wanted.push(vaddr);
                    }
                }
            }
        }
        let data = reader.take(&wanted);
        let counts = message.check(data.len(), u32::MAX)?;
        if counts != PagesEnd::default() {
            total.add(&counts);
            sink.pages(&message, data)?;
        }
    }
    Ok(total)
}

fn run(runs: &mut Vec<SlotRun>, vaddr: u64, slot: u32) {
    let follows = |r: &SlotRun| r.vaddr + u64::from(r.pages) * PAGE == vaddr && r.slot + r.pages == slot;
    match runs.last_mut().filter(|r| follows(r)) {
        Some(run) => run.pages += 1,
        None => runs.push(SlotRun { vaddr, pages: 1, slot }),
    }
}

fn zero(runs: &mut Vec<ZeroRun>, vaddr: u64) {
    match runs.last_mut().filter(|r| r.vaddr + u64::from(r.pages) * PAGE == vaddr) {
        Some(run) => run.pages += 1,
        None => runs.push(ZeroRun { vaddr, pages: 1 }),
    }
}
