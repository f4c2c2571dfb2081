//! The calls that need `unsafe`: fork for a host's first process, and work between fork and exec.
//!
//! A process enters a host by `setns` and not by nsenter(1): the child that the caller holds is
//! then the program itself, so killing or waiting for it means what it says.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, Pid};

use crate::error::{LabError, Result};

/// Where a new process is put before it runs its program.
#[derive(Debug)]
pub struct Entrance {
    cgroups: Vec<File>,
    target: OwnedFd,
    flags: CloneFlags,
    pid_namespace: bool,
}

impl Entrance {
    /// Into all namespaces of the process `init` and into the cgroups of these `cgroup.procs` files.
    pub fn host(init: Pid, cgroups: &[PathBuf]) -> Result<Self> {
        let pid = rustix::process::Pid::from_raw(init.as_raw()).ok_or_else(|| LabError::Invalid {
            what: format!("{init} is not a process id"),
            hint: String::new(),
        })?;
        let target = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .map_err(LabError::system(format!("open process {init}")))?;
        Ok(Self {
            cgroups: open_all(cgroups)?,
            target,
            flags: CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWCGROUP,
            pid_namespace: true,
        })
    }

    /// Into the network namespace bound to this file, and into the cgroups.
    pub fn network(namespace: &PathBuf, cgroups: &[PathBuf]) -> Result<Self> {
        let target = File::open(namespace).map_err(LabError::io("open", namespace))?;
        Ok(Self {
            cgroups: open_all(cgroups)?,
            target: target.into(),
            flags: CloneFlags::CLONE_NEWNET,
            pid_namespace: false,
        })
    }

    /// Starts the command inside. With `follow`, the command is killed when the calling thread ends.
    ///
    /// Without it the caller's thread is left as it is: children land in the process namespace
    /// that their parent *thread* has chosen, so another thread, which ends at once, does it.
    pub fn spawn(self, mut command: Command, follow: bool) -> io::Result<Child> {
        let pid_namespace = self.pid_namespace.then(|| self.target.try_clone()).transpose()?;
        let Self { cgroups, target, flags, .. } = self;
        let enter = move || -> io::Result<()> {
            for file in &cgroups {
                nix::unistd::write(file, b"0")?;
            }
            setns(target.as_fd(), flags)?;
            if follow {
                prctl::set_pdeathsig(Signal::SIGKILL)?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure only writes to and calls setns on descriptors
        // opened before, and sets a process flag: plain system calls, no allocation and no lock.
        unsafe {
            command.pre_exec(enter);
        }
        let start = move || {
            if let Some(fd) = pid_namespace {
                setns(fd.as_fd(), CloneFlags::CLONE_NEWPID)?;
            }
            command.spawn()
        };
        if follow {
            start()
        } else {
            std::thread::spawn(start)
                .join()
                .map_err(|_| io::Error::other("the thread that starts the program panicked"))?
        }
    }
}

fn open_all(files: &[PathBuf]) -> Result<Vec<File>> {
    files
        .iter()
        .map(|path| OpenOptions::new().write(true).open(path).map_err(LabError::io("open", path)))
        .collect()
}

/// Forks. To be called by a program that has a single thread.
pub fn fork() -> io::Result<ForkResult> {
    // SAFETY: only the hidden command `host-init` calls this, which starts no thread before, so
    // that the child finds every lock and the allocator in a consistent state.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// Leaves Ctrl-C and Ctrl-\\ to the program that shares the terminal.
pub fn ignore_interrupts() {
    for number in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: ignoring a signal installs no handler, so nothing runs in signal context.
        let _ = unsafe { signal(number, SigHandler::SigIgn) };
    }
}

/// Makes a network namespace and binds it to `path`, an existing empty file, so that it stays.
pub fn make_netns(path: PathBuf) -> Result<()> {
    in_thread(move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(LabError::system("make a network namespace"))?;
        nix::mount::mount(
            Some("/proc/thread-self/ns/net"),
            &path,
            None::<&str>,
            nix::mount::MsFlags::MS_BIND,
            None::<&str>,
        )
        .map_err(|e| LabError::io("bind a network namespace to", &path)(e.into()))
    })
}

/// Runs `work` in a thread that is in the network namespace bound to `path`; what it reads and
/// writes below /proc/sys/net is that namespace's.
pub fn in_netns<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    in_thread(move || {
        let file = File::open(&path).map_err(LabError::io("open", &path))?;
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| LabError::io("enter", &path)(e.into()))?;
        work()
    })
}

fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    std::thread::spawn(work).join().map_err(|_| LabError::System {
        what: "work in a network namespace".into(),
        source: io::Error::other("the thread panicked"),
    })?
}
