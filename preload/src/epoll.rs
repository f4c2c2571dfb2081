//! CRIU asks for each file of an epoll set whether the descriptor it was added under still is that file
//! (kcmp(2), `KCMP_EPOLL_TFD`; CRIU's criu/eventpoll.c, `find_tfd_bsearch`). The kernel looks for it from the
//! beginning of the set each time (fs/eventpoll.c, `ep_find_tfd`): 4 ms for a thousand connections, a third
//! of a second for ten thousand.
//!
//! The set names the inodes of its files (proc_pid_fdinfo(5)), and the inode of a socket has one file and
//! never another (net/socket.c, `sock_alloc_file`). So where set and descriptor name the same one, the answer
//! is known. Everything else is the kernel's to answer.

use nix::libc::{self, c_int};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;

/// `KCMP_EPOLL_TFD`, linux/kcmp.h.
pub const EPOLL_TFD: u64 = 7;
/// Sets are read up to this many bytes: those of a million files.
const MAX_TEXT: u64 = 128 << 20;

/// `struct kcmp_epoll_slot`, linux/kcmp.h.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Slot {
    /// The set's descriptor.
    pub efd: u32,
    /// The descriptor that a file was added under.
    pub tfd: u32,
    /// Which of those that were added under it.
    pub toff: u32,
}

/// Device, as the kernel numbers it, and inode.
type Inode = (u64, u64);

/// The set that was asked about last. What it holds does not change: its process does not run in a dump.
#[derive(Debug)]
pub struct Set {
    of: (c_int, u32),
    /// By descriptor; none for those that several files were added under. Empty when the set was not
    /// understood, which is found out once.
    files: HashMap<u32, Option<Inode>>,
    /// `/proc/PID/fd`.
    descriptors: Option<File>,
}

impl Set {
    /// The set behind a descriptor of a process.
    fn read(pid: c_int, efd: u32) -> Self {
        let files = listed(pid, efd).and_then(|text| files(&text)).unwrap_or_default();
        Self { of: (pid, efd), files, descriptors: File::open(format!("/proc/{pid}/fd")).ok() }
    }

    /// Whether the descriptor is known to be the file in the slot.
    fn same(&self, slot: Slot) -> bool {
        let Some(Some(inode)) = self.files.get(&slot.tfd) else { return false };
        slot.toff == 0 && self.socket(slot.tfd) == Some(*inode)
    }

    /// The socket behind a descriptor of the process; `None` when it is something else.
    fn socket(&self, fd: u32) -> Option<Inode> {
        let descriptors = self.descriptors.as_ref()?.as_raw_fd();
        let name = CString::new(fd.to_string()).ok()?;
        // SAFETY: all zeros is a value of it.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: an open directory, a string that ends, and room for the answer.
        let answer = unsafe { libc::fstatat(descriptors, name.as_ptr(), &raw mut stat, 0) };
        if answer != 0 || stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
            return None;
        }
        let device = u64::from(libc::major(stat.st_dev)) << 20 | u64::from(libc::minor(stat.st_dev));
        Some((device, stat.st_ino))
    }
}

/// The fdinfo of a set; `None` when it cannot be read in whole.
fn listed(pid: c_int, efd: u32) -> Option<String> {
    let mut text = String::new();
    let file = File::open(format!("/proc/{pid}/fdinfo/{efd}")).ok()?;
    file.take(MAX_TEXT + 1).read_to_string(&mut text).ok()?;
    (text.len() as u64 <= MAX_TEXT).then_some(text)
}

/// What an epoll set holds, from its fdinfo; `None` when a line of it is not understood.
fn files(text: &str) -> Option<HashMap<u32, Option<Inode>>> {
    let mut files = HashMap::new();
    for line in text.lines().filter(|l| l.starts_with("tfd:")) {
        // tfd:        6 events:       19 data:                0  pos:0 ino:3a1 sdev:8
        let mut words = line.split_ascii_whitespace();
        let tfd: u32 = words.nth(1)?.parse().ok()?;
        let mut hex = |key: &str| {
            let value = words.find_map(|w| w.strip_prefix(key))?;
            u64::from_str_radix(value, 16).ok()
        };
        let inode = hex("ino:")?;
        let device = hex("sdev:")?;
        files.entry(tfd).and_modify(|known| *known = None).or_insert(Some((device, inode)));
    }
    Some(files)
}

/// Whether descriptor `fd` of a process is known to be the file in a slot of one of its epoll sets. The set is
/// kept in `last` for the next question.
pub fn same(last: &mut Option<Set>, pid: c_int, fd: u64, slot: Slot) -> bool {
    if fd != u64::from(slot.tfd) {
        return false;
    }
    if last.as_ref().is_none_or(|set| set.of != (pid, slot.efd)) {
        *last = Some(Set::read(pid, slot.efd));
    }
    last.as_ref().is_some_and(|set| set.same(slot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
    use std::os::unix::net::UnixStream;

    fn kernel(fd: RawFd, slot: &Slot) -> i64 {
        let (pid, kind) = (std::process::id(), EPOLL_TFD);
        // SAFETY: kcmp(2) only looks.
        unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, kind, fd as i64, std::ptr::from_ref(slot)) }
    }

    fn ours(efd: &Epoll, tfd: RawFd) -> (bool, i64) {
        let slot = Slot { efd: efd.0.as_raw_fd() as u32, tfd: tfd as u32, toff: 0 };
        let pid = std::process::id().cast_signed();
        (same(&mut None, pid, tfd as u64, slot), kernel(tfd, &slot))
    }

    #[test]
    fn sockets_are_known_and_all_else_is_the_kernels() {
        let set = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let add = |fd: &dyn AsFd| set.add(fd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 7)).unwrap();
        let (a, b) = UnixStream::pair().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        add(&a);
        add(&listener);
        add(&pipe);
        assert_eq!(ours(&set, a.as_raw_fd()), (true, 0));
        assert_eq!(ours(&set, listener.as_raw_fd()), (true, 0));
        assert_eq!(ours(&set, pipe.as_raw_fd()), (false, 0), "not a socket");
        assert!(!ours(&set, b.as_raw_fd()).0, "not in the set");

        // The file stays in the set under a number that is another's now.
        let number = a.as_raw_fd();
        let kept = a.try_clone().unwrap();
        // SAFETY: both are open; the number is owned by `a` before and after.
        assert_eq!(unsafe { libc::dup2(b.as_raw_fd(), number) }, number);
        let (known, kernels) = ours(&set, number);
        assert!(!known && kernels != 0, "{kernels}");

        // And then two files are in it under that number.
        add(&a);
        assert!(!ours(&set, number).0, "which of them is the kernel's to say");
        drop(kept);
    }

    #[test]
    fn a_set_is_read_once_and_anew_for_another() {
        let (a, b) = UnixStream::pair().unwrap();
        let sets = [0, 1].map(|_| Epoll::new(EpollCreateFlags::empty()).unwrap());
        for (set, socket) in sets.iter().zip([&a, &b]) {
            set.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, 0)).unwrap();
        }
        let pid = std::process::id().cast_signed();
        let mut last = None;
        for (set, socket) in sets.iter().zip([&a, &b]) {
            let (efd, tfd) = (set.0.as_raw_fd() as u32, socket.as_raw_fd() as u32);
            assert!(same(&mut last, pid, tfd.into(), Slot { efd, tfd, toff: 0 }));
            assert_eq!(last.as_ref().unwrap().of, (pid, efd));
            assert!(!same(&mut last, pid, tfd.into(), Slot { efd, tfd, toff: 1 }));
            assert!(!same(&mut last, pid, u64::from(tfd) + 1, Slot { efd, tfd, toff: 0 }));
        }
        // SAFETY: a duplicate that is owned from here on.
        let gone = unsafe { OwnedFd::from_raw_fd(libc::dup(a.as_raw_fd())) };
        let number = gone.as_raw_fd() as u32;
        drop(gone);
        assert!(!same(&mut last, pid, number.into(), Slot { efd: number, tfd: number, toff: 0 }));
        assert_eq!(last.unwrap().of, (pid, number), "what cannot be read is not tried again");
    }

    #[test]
    fn a_line_that_is_not_understood_spoils_the_set() {
        let line = "tfd:        6 events:       19 data:                0  pos:0 ino:3a1 sdev:8";
        assert_eq!(files(&format!("pos:\t0\n{line}\n")).unwrap()[&6], Some((8, 0x3a1)));
        assert_eq!(files(&format!("{line}\n{line}")).unwrap()[&6], None, "twice");
        for bad in
            ["tfd:", "tfd: x ino:1 sdev:8", "tfd: 6 ino:1", "tfd: 6 ino:zz sdev:8", "tfd: -1 ino:1 sdev:8"]
        {
            assert_eq!(files(&format!("{line}\n{bad}\n")), None, "{bad}");
        }
    }
}
