//! CRIU's page server protocol, the receiving end, as read in CRIU 4.2 `criu/page-xfer.c`.
//!
//! With `runc checkpoint --page-server` CRIU sends all process and shared memory here instead of into
//! files, over a socket pair that it inherits (`ps-socket`). Each object (`OPEN2`) becomes one `pages-N.img`, streamed on while
//! it comes, and one small `pagemap-*.img`, which this side writes. The command structure has no
//! version in it; its size changed in CRIU 4.2 and is chosen by the local CRIU's version.
//!
//! An error here closes the socket, which makes the dump fail and leaves the tasks as they were. Not done:
//! TLS (the socket has no name) and the legacy commands of CRIU before 3.
//!
//! Rejected: a TCP connection to the loopback address. CRIU corks it and does not uncork it before its
//! last command, which so leaves only after the kernel's 200 ms, inside the blackout.

use super::pagemap::{self, Entry, PE_PARENT, PE_PRESENT};
use super::send::{ImageSender, OpenImage, SendError};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// Size of a page; CRIU's protocol counts in them.
const PAGE: u64 = 4096;
/// First page-image number, as CRIU's own server starts.
const FIRST_PAGES_ID: u32 = 0x10001;
/// Most objects (processes and shared memory segments) in a dump.
const MAX_OBJECTS: u32 = 1 << 20;

const PS_IOV_OPEN2: u32 = 4;
const PS_IOV_PARENT: u32 = 5;
const PS_IOV_ADD_F: u32 = 6;
const PS_IOV_CLOSE: u32 = 0x1023;
const PS_IOV_FORCE_CLOSE: u32 = 0x1024;

/// Layout of CRIU's command structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Up to 4.1: 24 bytes, 32-bit page count.
    Narrow,
    /// From 4.2 on: 32 bytes, 64-bit page count.
    Wide,
}

impl Layout {
    /// For CRIU's version number, as `4.2.1`.
    pub fn of_criu(version: &str) -> Self {
        let mut parts = version.split(['.', '-', ' ']).map(|p| p.parse::<u32>().unwrap_or(0));
        let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if (major, minor) >= (4, 2) { Self::Wide } else { Self::Narrow }
    }

    fn len(self) -> usize {
        match self {
            Self::Narrow => 24,
            Self::Wide => 32,
        }
    }
}

/// Why the page stream failed.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The socket failed.
    #[error("cannot {what} CRIU's page stream")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// CRIU said something this side does not know.
    #[error("CRIU's page stream is not understood: {0}")]
    Protocol(String),
    /// The images could not be passed on.
    #[error("cannot pass pages on")]
    Send(#[from] SendError),
    /// CRIU has ended, and says why itself.
    #[error("CRIU's page stream ended early")]
    Ended,
}

struct Object {
    name: String,
    pages_id: u32,
    pages: OpenImage,
    entries: Vec<Entry>,
}

struct Command {
    cmd: u32,
    flags: u32,
    nr_pages: u64,
    vaddr: u64,
    dst_id: u64,
}

/// A page server for one dump.
#[derive(Debug)]
pub struct PageServer {
    stream: UnixStream,
    layout: Layout,
}

/// What came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageTotals {
    /// Processes and shared memory segments.
    pub objects: u32,
    /// Pages with contents.
    pub pages: u64,
}

impl PageServer {
    /// Of the dump that has the other end of this socket.
    pub fn new(stream: UnixStream, layout: Layout) -> Self {
        Self { stream, layout }
    }

    /// Passes every object on. Blocking; returns when CRIU has closed the stream in order, or has ended.
    pub fn serve(self, images: &mut ImageSender) -> Result<PageTotals, PageError> {
        let mut session = Session {
            stream: self.stream,
            layout: self.layout,
            images,
            current: None,
            totals: PageTotals::default(),
        };
        session.run()
    }
}

struct Session<'a> {
    stream: UnixStream,
    layout: Layout,
    images: &'a mut ImageSender,
    current: Option<Object>,
    totals: PageTotals,
}

impl Session<'_> {
    fn run(&mut self) -> Result<PageTotals, PageError> {
        loop {
            let c = self.command()?;
            match c.cmd {
                PS_IOV_OPEN2 => {
                    self.close_object()?;
                    self.open_object(c.dst_id)?;
                    self.answer(&[0])?;
                }
                PS_IOV_PARENT => self.answer(&0i32.to_ne_bytes())?,
                PS_IOV_ADD_F => self.add(&c)?,
                PS_IOV_CLOSE | PS_IOV_FORCE_CLOSE => {
                    self.close_object()?;
                    self.answer(&0i32.to_ne_bytes())?;
                    return Ok(self.totals);
                }
                other => return Err(PageError::Protocol(format!("unknown command {other:#x}"))),
            }
        }
    }

    fn command(&mut self) -> Result<Command, PageError> {
        let mut raw = [0; 32];
        let len = self.layout.len();
        self.stream.read_exact(&mut raw[..len]).map_err(read_error)?;
        Ok(parse_command(&raw, self.layout))
    }

    fn answer(&mut self, bytes: &[u8]) -> Result<(), PageError> {
        self.stream.write_all(bytes).map_err(|source| PageError::Io { what: "answer", source })
    }

    fn open_object(&mut self, dst_id: u64) -> Result<(), PageError> {
        let (kind, id) = (dst_id & 0xff, dst_id >> 8);
        let name = match kind {
            1 => format!("pagemap-{id}.img"),
            2 => format!("pagemap-shmem-{id}.img"),
            other => return Err(PageError::Protocol(format!("unknown object type {other}"))),
        };
        if self.totals.objects >= MAX_OBJECTS {
            return Err(PageError::Protocol(format!("more than {MAX_OBJECTS} objects")));
        }
        let pages_id = FIRST_PAGES_ID + self.totals.objects;
        self.totals.objects += 1;
        let pages = self.images.start(&format!("pages-{pages_id}.img"))?;
        self.current = Some(Object { name, pages_id, pages, entries: Vec::new() });
        Ok(())
    }

    fn add(&mut self, c: &Command) -> Result<(), PageError> {
        let Some(object) = self.current.as_mut() else {
            return Err(PageError::Protocol("pages before any object".into()));
        };
        if c.flags & PE_PARENT != 0 {
            return Err(PageError::Protocol("pages of a parent image that was never asked for".into()));
        }
        if object.entries.len() >= pagemap::MAX_ENTRIES {
            return Err(PageError::Protocol(format!("more than {} runs of pages", pagemap::MAX_ENTRIES)));
        }
        let bytes = c
            .nr_pages
            .checked_mul(PAGE)
            .filter(|b| c.vaddr.checked_add(*b).is_some())
            .ok_or_else(|| PageError::Protocol(format!("{} pages at {:#x}", c.nr_pages, c.vaddr)))?;
        object.entries.push(Entry { vaddr: c.vaddr, pages: c.nr_pages, flags: c.flags });
        if c.flags & PE_PRESENT != 0 {
            self.totals.pages += c.nr_pages;
            self.images.fill(&mut object.pages, &mut self.stream, Some(bytes)).map_err(read_error)??;
        }
        Ok(())
    }

    fn close_object(&mut self) -> Result<(), PageError> {
        let Some(object) = self.current.take() else { return Ok(()) };
        self.images.end(object.pages)?;
        let image = pagemap::image(object.pages_id, &object.entries);
        let mut file = self.images.start(&object.name)?;
        self.images.write(&mut file, &image)?;
        self.images.end(file)?;
        Ok(())
    }
}

fn read_error(source: io::Error) -> PageError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => PageError::Ended,
        _ => PageError::Io { what: "read", source },
    }
}

fn parse_command(raw: &[u8; 32], layout: Layout) -> Command {
    let u32_at = |i: usize| u32::from_ne_bytes([raw[i], raw[i + 1], raw[i + 2], raw[i + 3]]);
    let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
    let word = u32_at(0);
    let (nr_pages, rest) = match layout {
        Layout::Narrow => (u64::from(u32_at(4)), 8),
        Layout::Wide => (u64_at(8), 16),
    };
    // Close commands use all sixteen low bits; flags sit above them.
    Command { cmd: word & 0xffff, flags: word >> 16, nr_pages, vaddr: u64_at(rest), dst_id: u64_at(rest + 8) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_follows_the_version() {
        for (v, want) in [
            ("4.2.1", Layout::Wide),
            ("4.2", Layout::Wide),
            ("5.0", Layout::Wide),
            ("4.1.1", Layout::Narrow),
            ("3.17.1", Layout::Narrow),
            ("", Layout::Narrow),
        ] {
            assert_eq!(Layout::of_criu(v), want, "{v}");
        }
    }

    #[test]
    fn commands_are_read_in_both_layouts() {
        let mut raw = [0; 32];
        raw[0..4].copy_from_slice(&(6u32 | 6 << 16).to_ne_bytes());
        raw[8..16].copy_from_slice(&3u64.to_ne_bytes());
        raw[16..24].copy_from_slice(&0x7000_0000_1000u64.to_ne_bytes());
        raw[24..32].copy_from_slice(&(7u64 << 8 | 1).to_ne_bytes());
        let c = parse_command(&raw, Layout::Wide);
        assert_eq!((c.cmd, c.flags, c.nr_pages, c.vaddr, c.dst_id), (6, 6, 3, 0x7000_0000_1000, 7 << 8 | 1));
        let mut raw = [0; 32];
        raw[0..4].copy_from_slice(&0x1023u32.to_ne_bytes());
        raw[4..8].copy_from_slice(&9u32.to_ne_bytes());
        let c = parse_command(&raw, Layout::Narrow);
        assert_eq!((c.cmd, c.flags, c.nr_pages), (PS_IOV_CLOSE, 0, 9));
    }
}
