//! Images that are complete before the dump is: those of TCP connections, one each.
//!
//! A server has thousands of them, and their dump takes long enough to send them meanwhile. CRIU opens each
//! once, writes it and closes it (`dump_tcp_conn_state` of criu/sk-tcp.c), so its closing is its end.
//! Other images may be written again, by CRIU or by the agent, and wait for the end of the dump.

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Beginning of the names of what is complete when it is closed (`CR_FD_TCP_STREAM` of criu/image-desc.c).
const COMPLETE_WHEN_CLOSED: &str = "tcp-stream-";
/// Bytes of events that are read at once: some hundreds.
const EVENTS: usize = 16 << 10;

/// Hears of images that are complete.
#[derive(Debug)]
pub struct EarlyImages {
    inotify: OwnedFd,
}

impl EarlyImages {
    /// Listens from here on to what is written in a directory.
    pub fn listen(dir: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, dir, WatchFlags::CLOSE_WRITE | WatchFlags::ONLYDIR)?;
        Ok(Self { inotify })
    }

    /// Names of some images that were completed since the last call; blocks for nothing. Some are never named,
    /// when more came than the kernel remembers.
    pub fn take(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); EVENTS];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::WOULDBLOCK) => return Ok(names),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let closed = event.events().contains(ReadFlags::CLOSE_WRITE);
            let name = event.file_name().and_then(|n| n.to_str().ok());
            names.extend(name.filter(|n| closed && n.starts_with(COMPLETE_WHEN_CLOSED)).map(str::to_owned));
            // Not until there are none: CRIU completes them as fast as they are read.
            if events.is_buffer_empty() {
                return Ok(names);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hears_of_connections_once_they_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| std::fs::write(dir.path().join(name), "x").unwrap();
        write("tcp-stream-1.img");
        let mut early = EarlyImages::listen(dir.path()).unwrap();
        let open = std::fs::File::create(dir.path().join("tcp-stream-2.img")).unwrap();
        assert_eq!(early.take().unwrap(), [""; 0]);
        drop(open);
        for n in 3..2000 {
            write(&format!("tcp-stream-{n:x}.img"));
        }
        write("core-1.img");
        let (mut names, mut takes) = (Vec::new(), 0);
        while names.len() < 1998 && takes < 1998 {
            names.extend(early.take().unwrap());
            takes += 1;
        }
        let expected: Vec<String> = (2..2000).map(|n| format!("tcp-stream-{n:x}.img")).collect();
        assert_eq!(names, expected);
        assert!((2..20).contains(&takes), "neither all at once nor one by one: {takes}");
        assert_eq!(early.take().unwrap(), [""; 0]);
    }
}
