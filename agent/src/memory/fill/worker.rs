//! Serves faults, follows what the processes do to their memory, and fills in the rest.
//!
//! One thread, one loop. What a process does to its memory (fork, mremap, madvise, munmap) comes as
//! messages, and the kernel refuses to copy anything while one is unread; so all that can be read is
//! read first, what moved or went is noted, and only then faults are served, by what is at the address
//! now. A copy that the kernel refuses is tried again after the next message.
//!
//! Faults come before the rest at all times: between two chunks everything is polled. A chunk is small
//! while faults come and grows while none do.

use super::keeper::{End, Pair};
use super::lazy::{LazyListener, Word};
use super::outstanding::Outstanding;
use super::slots::Slots;
use super::status::{FillState, FillStatus, StatusServer};
use super::uffd::{Copied, Message, Uffd};
use crate::memory::map::FillMap;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use tranship_proto::pages::PAGE;

/// Pages filled in around one that somebody waits for.
const AROUND: u32 = 16;
/// Pages of a chunk, at least and at most.
const CHUNK: std::ops::RangeInclusive<u32> = 16..=256;
/// How long memory may be short before the container is given up.
const STARVED: Duration = Duration::from_secs(60);
/// Until what could not be done is tried again.
const AGAIN: Duration = Duration::from_millis(1);

/// Memory of one process.
struct Space {
    uffd: Uffd,
    left: Outstanding,
    /// Addresses that somebody waits for and that could not be served yet.
    waiting: Vec<u64>,
    /// Where the background goes on.
    cursor: u64,
}

/// What became of an attempt at some pages.
enum Done {
    /// They are there, or there is nothing to be done.
    Served,
    /// Later.
    Again,
    /// The process is gone.
    Gone,
}

pub(super) struct Worker<'a> {
    pair: &'a Pair,
    keeper: OwnedFd,
    lazy: LazyListener,
    status: StatusServer,
    slots: Slots,
    map: HashMap<u32, Outstanding>,
    spaces: Vec<Space>,
    /// Since when the container runs.
    running: Option<Instant>,
    starved: Option<Instant>,
    chunk: u32,
    turn: usize,
    buffer: Vec<u8>,
    pages: u64,
    faults: u64,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        pair: &'a Pair,
        keeper: OwnedFd,
        lazy: LazyListener,
        status: StatusServer,
        mut slots: Slots,
        map: FillMap,
    ) -> io::Result<Self> {
        let pages = map.pages();
        let mut processes = HashMap::new();
        for (pid, runs) in map.processes {
            slots.add(runs.iter().copied())?;
            processes.insert(pid, Outstanding::new(&runs));
        }
        Ok(Self {
            pair,
            keeper,
            lazy,
            status,
            slots,
            map: processes,
            spaces: Vec::new(),
            running: None,
            starved: None,
            chunk: *CHUNK.start(),
            turn: 0,
            buffer: Vec::new(),
            pages,
            faults: 0,
        })
    }

    /// Works until there is nothing left to fill in.
    pub(super) fn run(&mut self) -> End {
        loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(e) => return End::Failed(e.to_string()),
            }
        }
    }

    pub(super) fn tell(&mut self, state: FillState) {
        let status = self.figures(state);
        self.status.tell(&status);
    }

    pub(super) fn figures(&self, state: FillState) -> FillStatus {
        let waiting: u64 = self.map.values().map(Outstanding::pages).sum();
        let left: u64 = self.spaces.iter().map(|s| s.left.pages()).sum::<u64>() + waiting;
        FillStatus {
            state,
            pages: self.pages,
            filled: self.pages.saturating_sub(left),
            faults: self.faults,
            elapsed_ms: self
                .running
                .map_or(0, |at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
        }
    }

    fn turn(&mut self) -> io::Result<Option<End>> {
        let ready = self.wait()?;
        if ready.keeper {
            self.keeper = self.pair.replace_keeper()?;
        }
        if ready.lazy
            && let Some(end) = self.hear()?
        {
            return Ok(Some(end));
        }
        for index in 0..ready.spaces.len() {
            if ready.spaces[index] {
                self.read(index)?;
            }
        }
        self.serve_waiting()?;
        let state = if self.running.is_some() { FillState::Filling } else { FillState::Held };
        let figures = self.figures(state);
        if self.status.serve(&figures) && self.running.is_none() {
            return Ok(Some(End::CalledOff));
        }
        if self.running.is_some() {
            if ready.quiet {
                self.chunk = (self.chunk * 2).min(*CHUNK.end());
            }
            self.background()?;
            // A process whose memory is complete needs nobody: what it has not touched reads as zeros.
            for space in self.spaces.extract_if(.., |s| s.left.pages() == 0) {
                space.uffd.close();
            }
            if self.spaces.is_empty() {
                return Ok(Some(End::Done));
            }
        }
        Ok(None)
    }

    fn wait(&self) -> io::Result<Ready> {
        let mut fds = vec![PollFd::new(self.keeper.as_fd(), PollFlags::POLLIN)];
        let lazy = self.lazy.fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let has_lazy = lazy.is_some();
        fds.extend(lazy);
        let first = fds.len();
        fds.extend(self.spaces.iter().map(|s| PollFd::new(s.uffd.fd(), PollFlags::POLLIN)));
        let last = fds.len();
        fds.extend(self.status.fds().map(|(fd, flags)| PollFd::new(fd, flags)));
        let blocked = self.starved.is_some() || self.spaces.iter().any(|s| !s.waiting.is_empty());
        let timeout = match () {
            () if blocked => PollTimeout::try_from(AGAIN).unwrap_or(PollTimeout::ZERO),
            () if self.running.is_some() => PollTimeout::ZERO,
            () => PollTimeout::NONE,
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
        let spaces: Vec<bool> = fds[first..last].iter().map(is_ready).collect();
        Ok(Ready {
            keeper: is_ready(&fds[0]),
            lazy: has_lazy && is_ready(&fds[1]),
            quiet: !spaces.contains(&true),
            spaces,
        })
    }

    /// What CRIU says on its socket.
    fn hear(&mut self) -> io::Result<Option<End>> {
        match self.lazy.read()? {
            Some(Word::Process(pid, uffd)) => {
                let left = self.map.remove(&pid).unwrap_or_default();
                self.spaces.push(Space { uffd, left, waiting: Vec::new(), cursor: 0 });
            }
            Some(Word::Finished) => {
                // Processes that CRIU has not named are zombies, or not restored: nobody needs their pages.
                for (_, left) in self.map.drain() {
                    self.slots.release(&left.runs().collect::<Vec<_>>())?;
                }
                self.running = Some(Instant::now());
                self.slots.give_back()?;
            }
            Some(Word::Closed) if self.running.is_none() => return Ok(Some(End::CalledOff)),
            Some(Word::Closed | Word::Zombie) | None => {}
        }
        Ok(None)
    }

    /// Reads all there is to read from one process: first what has changed, then who waits.
    fn read(&mut self, index: usize) -> io::Result<()> {
        loop {
            let messages = self.spaces[index].uffd.read()?;
            if messages.is_empty() {
                return Ok(());
            }
            for message in messages {
                self.note(index, message)?;
            }
        }
    }

    fn note(&mut self, index: usize, message: Message) -> io::Result<()> {
        let space = &mut self.spaces[index];
        match message {
            Message::Fault(at) => {
                self.faults += 1;
                self.chunk = *CHUNK.start();
                space.waiting.push(at);
            }
            Message::Fork(uffd) => {
                let left = space.left.clone();
                self.slots.add(left.runs())?;
                self.pages += left.pages();
                self.spaces.push(Space { uffd, left, waiting: Vec::new(), cursor: 0 });
            }
            Message::Remap { from, to, len } => {
                let moved = space.left.take(from, from.saturating_add(len));
                let replaced = space.left.take(to, to.saturating_add(len));
                for run in moved {
                    space.left.put(tranship_proto::pages::SlotRun { vaddr: run.vaddr - from + to, ..run });
                }
                self.slots.release(&replaced)?;
            }
            Message::Drop { start, end } => {
                let dropped = space.left.take(start, end);
                self.slots.release(&dropped)?;
            }
        }
        Ok(())
    }

    fn serve_waiting(&mut self) -> io::Result<()> {
        let mut index = 0;
        while index < self.spaces.len() {
            let waiting = std::mem::take(&mut self.spaces[index].waiting);
            let mut gone = false;
            for (n, at) in waiting.iter().enumerate() {
                match self.fault(index, *at)? {
                    Done::Served => {}
                    Done::Again => {
                        // What is said after this reads the message that is in the way.
                        self.spaces[index].waiting.extend_from_slice(&waiting[n..]);
                        break;
                    }
                    Done::Gone => {
                        gone = true;
                        break;
                    }
                }
            }
            if gone {
                self.bury(index)?;
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    /// The process is gone, and needs nothing any more.
    fn bury(&mut self, index: usize) -> io::Result<()> {
        let space = self.spaces.swap_remove(index);
        space.uffd.close();
        self.slots.release(&space.left.runs().collect::<Vec<_>>())
    }

    fn fault(&mut self, index: usize, at: u64) -> io::Result<Done> {
        if !self.spaces[index].left.from(at, 1).is_empty() {
            return self.fill(index, at, AROUND);
        }
        // Not among the pages that came: memory that was never written to, or was emptied since.
        let uffd = &self.spaces[index].uffd;
        match uffd.zero(at)? {
            Copied::Again => return Ok(Done::Again),
            Copied::Gone => return Ok(Done::Gone),
            Copied::NoMemory => return self.short(),
            Copied::Present => uffd.wake(at),
            // Nobody can wait for what is not mapped.
            Copied::Unmapped | Copied::Pages(_) => {}
        }
        self.starved = None;
        Ok(Done::Served)
    }

    /// Fills in at most `limit` pages from an outstanding one on.
    fn fill(&mut self, index: usize, at: u64, limit: u32) -> io::Result<Done> {
        let space = &mut self.spaces[index];
        let mut limit = limit;
        loop {
            let runs = space.left.from(at, limit);
            let pages: u32 = runs.iter().map(|r| r.pages).sum();
            self.slots.read(&runs, &mut self.buffer)?;
            let there = match space.uffd.copy(at, &self.buffer)? {
                Copied::Pages(pages) => pages,
                Copied::Present => {
                    space.uffd.wake(at);
                    1
                }
                // More than one mapping, or the end of one: the part of the first may go.
                Copied::Unmapped if pages > 1 => {
                    limit = pages / 2;
                    continue;
                }
                Copied::Unmapped => 1,
                Copied::Again => return Ok(Done::Again),
                Copied::Gone => return Ok(Done::Gone),
                Copied::NoMemory if pages > 1 => {
                    limit = pages / 2;
                    continue;
                }
                Copied::NoMemory => return self.short(),
            };
            self.starved = None;
            let taken = space.left.take(at, at + u64::from(there) * PAGE);
            space.cursor = at + u64::from(there) * PAGE;
            self.slots.release(&taken)?;
            return Ok(Done::Served);
        }
    }

    fn short(&mut self) -> io::Result<Done> {
        let since = *self.starved.get_or_insert_with(Instant::now);
        if since.elapsed() > STARVED {
            return Err(io::Error::other(format!("no memory for {} s", STARVED.as_secs())));
        }
        Ok(Done::Again)
    }

    /// One chunk of one process, the next in turn.
    fn background(&mut self) -> io::Result<()> {
        if self.spaces.is_empty() {
            return Ok(());
        }
        let index = self.turn % self.spaces.len();
        self.turn = index + 1;
        let space = &self.spaces[index];
        if let Some(at) = space.left.next(space.cursor).or_else(|| space.left.next(0))
            && let Done::Gone = self.fill(index, at, self.chunk)?
        {
            self.bury(index)?;
        }
        Ok(())
    }
}

/// What has become readable.
struct Ready {
    keeper: bool,
    lazy: bool,
    quiet: bool,
    spaces: Vec<bool>,
}
