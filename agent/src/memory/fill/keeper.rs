//! Two processes with one table of descriptors: whichever dies, the other still holds every uffd.
//!
//! When the last descriptor of a uffd is closed, the kernel stops waiting for pages and the process
//! reads zeros. So the process that fills memory in (the *worker*) must not be the only one to hold
//! them, and whoever else does must kill the container before letting go. `clone(2)` with
//! `CLONE_FILES` and without `CLONE_VM` gives exactly that: memories of their own, descriptors in
//! common, those included that the kernel makes when a process forks and the worker reads of it.
//! Rejected: sending each uffd over a socket to a second process, since a worker that dies between
//! reading of a fork and sending leaves a child without anybody.
//!
//! The *keeper* waits for the end of the worker. If that has left no word of a good end, the keeper
//! kills the container's cgroup, waits until nothing of it lives, and ends too. If the keeper dies, the
//! worker makes a new one. What one of them closes is closed for both.

use super::files::FillFiles;
use crate::runtime::Cgroup;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use std::io;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::time::Duration;

/// Longest last word, in bytes.
const MAX_WORD: usize = 512;
/// How often killing is tried again.
const KILL: Duration = Duration::from_secs(2);

/// How the worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// Every page is where it belongs, or needed nowhere.
    Done,
    /// The restore was given up before the container ran.
    CalledOff,
    /// It could not go on, and why.
    Failed(String),
}

/// What worker and keeper have in common besides descriptors.
pub(super) struct Pair {
    pub(super) files: FillFiles,
    pub(super) cgroup: Cgroup,
    /// The worker's last word, written by the one and read by the other.
    word: (OwnedFd, OwnedFd),
}

/// A child with memory of its own and the same table of descriptors. Zero in the child.
///
/// The process must have one thread only.
fn split() -> io::Result<i32> {
    // SAFETY: without CLONE_VM and with no stack given this is a fork. The process has one thread, so
    // the copy of its memory is consistent, locks of the allocator included.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_FILES | libc::SIGCHLD, 0, 0, 0, 0) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(pid).map_err(io::Error::other) }
}

fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

impl Pair {
    pub(super) fn new(files: FillFiles, cgroup: Cgroup) -> io::Result<Self> {
        Ok(Self { files, cgroup, word: pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)? })
    }

    /// Becomes a keeper with a worker as its child, and returns in the worker: with a descriptor that
    /// becomes readable when the keeper ends.
    pub(super) fn begin(&self) -> io::Result<OwnedFd> {
        // Nothing but the end of its work ends either of them.
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
        let keeper = pidfd_open(getpid(), PidfdFlags::empty())?;
        match split()? {
            0 => Ok(keeper),
            // Not waited for yet, so the number is still the worker's.
            worker => self.keep(pidfd(worker)),
        }
    }

    /// Makes a new keeper, as the worker's child. Returns in the worker, as [`Pair::begin`] does.
    pub(super) fn replace_keeper(&self) -> io::Result<OwnedFd> {
        let worker = pidfd_open(getpid(), PidfdFlags::empty())?;
        match split()? {
            0 => self.keep(Ok(worker)),
            keeper => {
                // The keeper's from now on: closing it here would close it there.
                let _ = worker.into_raw_fd();
                pidfd(keeper)
            }
        }
    }

    /// Leaves the last word. The worker ends after it.
    pub(super) fn end(&self, end: &End) {
        let word = match end {
            End::Done => "done".to_owned(),
            End::CalledOff => "off".to_owned(),
            End::Failed(why) => format!("failed {}", why.chars().take(MAX_WORD / 4).collect::<String>()),
        };
        // Without its word the keeper takes the worker for dead, which is the safe side.
        let _ = rustix::io::write(&self.word.1, word.as_bytes());
    }

    /// Waits for the end of the worker, sees to it that nothing reads zeros, and ends. It never returns:
    /// what this copy of the memory owns is the worker's to close.
    fn keep(&self, worker: io::Result<OwnedFd>) -> ! {
        while let Ok(worker) = &worker {
            let mut fds = [PollFd::new(worker.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(n) if n > 0 => break,
                // Not knowing is as bad as the worker's end.
                Err(e) if e != nix::errno::Errno::EINTR => break,
                _ => {}
            }
        }
        let end = self.last_word();
        if end == End::Done {
            std::process::exit(0);
        }
        // Every uffd stays open until nothing is left that could read zeros.
        while let Err(e) = self.cgroup.kill(KILL) {
            super::say(&self.files, &format!("cannot kill the container, trying again: {e}"));
            std::thread::sleep(Duration::from_millis(100));
        }
        if let End::Failed(why) = &end {
            super::say(
                &self.files,
                &format!("the container was killed, since its memory is not complete: {why}"),
            );
            if let Err(e) = std::fs::write(self.files.failure(), why) {
                super::say(&self.files, &format!("cannot leave word of it: {e}"));
            }
        }
        self.files.remove_socket();
        std::process::exit(1)
    }

    fn last_word(&self) -> End {
        let mut text = Vec::new();
        let mut buffer = [0; MAX_WORD];
        while let Ok(n) = rustix::io::read(&self.word.0, &mut buffer) {
            if n == 0 || text.len() > MAX_WORD {
                break;
            }
            text.extend_from_slice(&buffer[..n]);
        }
        match String::from_utf8_lossy(&text).as_ref() {
            "done" => End::Done,
            "off" => End::CalledOff,
            "" => End::Failed("the process that fills it in has died".into()),
            other => End::Failed(other.strip_prefix("failed ").unwrap_or(other).to_owned()),
        }
    }
}
