//! Contents of one file: where data and holes are, block digests, and what changed since the last look.
//!
//! A file is read in windows of 1 MiB. Each 64 KiB block that holds any data is remembered by a 128-bit
//! BLAKE3, keyed with a random key of this source: the container chooses the contents and must not be able to
//! prepare two blocks that look the same. The digest covers the layout too, so a hole punched over zeros is a
//! change. Blocks that are all hole are not remembered, so a sparse file of exabytes costs nothing.
//!
//! Preallocated space without data (`fallocate`) is seen as a hole by `SEEK_DATA` and arrives as one.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tranship_proto::tree::MAX_DATA;

use super::error::{StorageError, shown};

/// Bytes per remembered block.
pub(super) const BLOCK: u64 = 64 << 10;
const WINDOW: u64 = MAX_DATA as u64;

/// Digest of one block that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    index: u64,
    digest: [u8; 16],
}

/// What the receiver has to do to its copy.
pub(super) enum Piece<'a> {
    Data { offset: u64, bytes: &'a [u8] },
    Hole { offset: u64, len: u64 },
}

/// Result of reading a file.
pub(super) struct Scanned {
    pub(super) blocks: Box<[Block]>,
    /// Bytes read from the file.
    pub(super) read: u64,
    /// The file was shorter than its size promised: it shrank while being read.
    pub(super) short: bool,
}

/// One reading of a file.
pub(super) struct Scan<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) path: &'a [u8],
    pub(super) size: u64,
    /// Blocks the receiver has, or `None` if it starts from an empty file.
    pub(super) old: Option<&'a [Block]>,
    pub(super) key: &'a [u8; 32],
    pub(super) stop: &'a AtomicBool,
}

type Emit<'e> = dyn FnMut(Piece<'_>) -> Result<(), StorageError> + 'e;

impl Scan<'_> {
    /// Reads the file and hands out, in rising order, the pieces the receiver lacks. `buffer` is kept by the
    /// caller between files and grows to 1 MiB.
    pub(super) fn run(&self, buffer: &mut Vec<u8>, emit: &mut Emit<'_>) -> Result<Scanned, StorageError> {
        let mut out =
            Output { emit, hole: None, old: self.old.unwrap_or(&[]), next_old: 0, delta: self.old.is_some() };
        let mut blocks = Vec::new();
        let mut read = 0;
        let mut short = false;
        let mut position = 0;
        while let Some(start) = self.next_data(position)? {
            if self.stop.load(Ordering::Relaxed) {
                return Err(StorageError::Stopped);
            }
            let base = start / BLOCK * BLOCK;
            let end = base.saturating_add(WINDOW).min(self.size);
            let mut pieces = Vec::new();
            let mut at = Some(start);
            while let Some(from) = at.filter(|from| *from < end) {
                let to = self.next_hole(from)?.min(end);
                let got = self.read(from, to, base, buffer)?;
                read += got;
                if got > 0 {
                    pieces.push((from, from + got));
                }
                if from + got < to {
                    short = true;
                    break;
                }
                at = if to < end { self.next_data(to)? } else { None };
            }
            out.window(base, end, &pieces, buffer, self.key, &mut blocks)?;
            position = end;
            if short {
                break;
            }
        }
        out.finish(self.size)?;
        Ok(Scanned { blocks: blocks.into_boxed_slice(), read, short })
    }

    fn next_data(&self, from: u64) -> Result<Option<u64>, StorageError> {
        if from >= self.size {
            return Ok(None);
        }
        match rustix::fs::seek(self.fd, SeekFrom::Data(from)) {
            Ok(at) if at < self.size => Ok(Some(at)),
            Ok(_) | Err(Errno::NXIO) => Ok(None),
            // A file system without holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(from)),
            Err(e) => Err(StorageError::io("seek in", shown(self.path), e)),
        }
    }

    fn next_hole(&self, from: u64) -> Result<u64, StorageError> {
        match rustix::fs::seek(self.fd, SeekFrom::Hole(from)) {
            Ok(at) if at > from => Ok(at.min(self.size)),
            // It shrank or was punched right here: read on, the read says how much there is.
            Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(self.size),
            Err(e) => Err(StorageError::io("seek in", shown(self.path), e)),
        }
    }

    fn read(&self, from: u64, to: u64, base: u64, buffer: &mut Vec<u8>) -> Result<u64, StorageError> {
        let (start, end) = ((from - base) as usize, (to - base) as usize);
        if buffer.len() < end {
            buffer.resize(end, 0);
        }
        let mut done = start;
        while done < end {
            match rustix::io::pread(self.fd, &mut buffer[done..end], base + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(StorageError::io("read", shown(self.path), e)),
            }
        }
        Ok((done - start) as u64)
    }
}

/// Compares with the old blocks and joins what belongs together.
struct Output<'a, 'e> {
    emit: &'a mut Emit<'e>,
    hole: Option<(u64, u64)>,
    old: &'a [Block],
    next_old: usize,
    delta: bool,
}

impl Output<'_, '_> {
    fn window(
        &mut self,
        base: u64,
        end: u64,
        pieces: &[(u64, u64)],
        buffer: &[u8],
        key: &[u8; 32],
        blocks: &mut Vec<Block>,
    ) -> Result<(), StorageError> {
        let mut run: Option<(u64, u64)> = None;
        let mut first = 0;
        let mut start = base;
        while start < end {
            let stop = (start + BLOCK).min(end);
            while first < pieces.len() && pieces[first].1 <= start {
                first += 1;
            }
            let inside = || {
                let clip = move |(a, b): &(u64, u64)| ((*a).max(start), (*b).min(stop));
                pieces[first..].iter().take_while(move |p| p.0 < stop).map(clip)
            };
            if inside().next().is_some() {
                let mut hasher = blake3::Hasher::new_keyed(key);
                for (a, b) in inside() {
                    hasher.update(&((a - start) as u32).to_le_bytes());
                    hasher.update(&((b - a) as u32).to_le_bytes());
                    hasher.update(&buffer[(a - base) as usize..(b - base) as usize]);
                }
                let mut digest = [0; 16];
                digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
                let block = Block { index: start / BLOCK, digest };
                blocks.push(block);
                if self.changed(block, &mut run, base, buffer)? {
                    let mut at = start;
                    for (a, b) in inside() {
                        self.gap(at, a, &mut run, base, buffer)?;
                        at = b;
                        match &mut run {
                            Some((_, to)) if *to == a => *to = b,
                            _ => {
                                self.flush_run(&mut run, base, buffer)?;
                                self.flush_hole()?;
                                run = Some((a, b));
                            }
                        }
                    }
                    self.gap(at, stop, &mut run, base, buffer)?;
                }
            }
            start = stop;
        }
        self.flush_run(&mut run, base, buffer)
    }

    /// Whether the receiver lacks this block. Old blocks before it that are not there any more became holes.
    fn changed(
        &mut self,
        block: Block,
        run: &mut Option<(u64, u64)>,
        base: u64,
        buffer: &[u8],
    ) -> Result<bool, StorageError> {
        while let Some(old) = self.old.get(self.next_old).copied().filter(|old| old.index < block.index) {
            self.next_old += 1;
            self.gap(old.index * BLOCK, (old.index + 1) * BLOCK, run, base, buffer)?;
        }
        let old = self.old.get(self.next_old).copied().filter(|old| old.index == block.index);
        if old.is_some() {
            self.next_old += 1;
        }
        Ok(old != Some(block))
    }

    fn gap(
        &mut self,
        from: u64,
        to: u64,
        run: &mut Option<(u64, u64)>,
        base: u64,
        buffer: &[u8],
    ) -> Result<(), StorageError> {
        if from >= to || !self.delta {
            return Ok(());
        }
        self.flush_run(run, base, buffer)?;
        match &mut self.hole {
            Some((_, end)) if *end == from => *end = to,
            _ => {
                self.flush_hole()?;
                self.hole = Some((from, to));
            }
        }
        Ok(())
    }

    fn flush_run(
        &mut self,
        run: &mut Option<(u64, u64)>,
        base: u64,
        buffer: &[u8],
    ) -> Result<(), StorageError> {
        let Some((from, to)) = run.take() else {
            return Ok(());
        };
        let bytes = &buffer[(from - base) as usize..(to - base) as usize];
        (self.emit)(Piece::Data { offset: from, bytes })
    }

    fn flush_hole(&mut self) -> Result<(), StorageError> {
        let Some((from, to)) = self.hole.take() else {
            return Ok(());
        };
        (self.emit)(Piece::Hole { offset: from, len: to - from })
    }

    fn finish(&mut self, size: u64) -> Result<(), StorageError> {
        while let Some(old) = self.old.get(self.next_old).copied() {
            self.next_old += 1;
            let from = old.index * BLOCK;
            let to = (from + BLOCK).min(size);
            self.gap(from, to, &mut None, 0, &[])?;
        }
        self.flush_hole()
    }
}
