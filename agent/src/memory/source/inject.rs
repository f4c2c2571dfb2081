//! A system call made inside of another process, to get a userfaultfd that belongs to it.
//!
//! The kernel gives a userfaultfd only to the process whose memory it is about. So one thread is
//! stopped by ptrace(2) for some ten microseconds, made to call userfaultfd(2) from the `syscall`
//! instruction in its vDSO, and let go as it was; the descriptor is taken over by pidfd_getfd(2), and
//! closed in the process by a second visit, since CRIU refuses to dump one.
//!
//! * The call is run between two system-call stops, not by single steps: a SIGTRAP would be forced on
//!   a process that blocks or ignores it. Behind it the thread is stopped once more in the signal code,
//!   where the kernel looks at the old registers and restarts a system call that the stop has
//!   interrupted, with what is left of its time.
//!   A few calls fail with EINTR instead, epoll_wait(2) among them, as they do whenever a process is
//!   stopped and continued (signal(7)); the freezer and CRIU do the same to them.
//! * A signal that comes meanwhile ends the visit: the registers are put back first, then the signal
//!   is delivered as if nothing had been, and the visit is made again.
//! * Threads that are stopped, traced or in uninterruptible sleep, and 32-bit processes, are left alone.
//!
//! Between the first and the last change of registers the thread must not be let go, and the kernel
//! does that when its tracer dies. So this runs in a process of its own (`transhipd watch`), which has
//! blocked its signals and survives the agent; only SIGKILL to it, in that moment, would hurt the
//! thread. Rejected: a frame for rt_sigreturn(2) on the thread's stack, with which even that would be
//! harmless; it needs a restorer that not every program has, and the kernel's rules for restarting
//! calls done again by hand.

use nix::libc;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

/// How long a thread may take to stop, and how long visits are tried.
const STOP_LIMIT: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(1);
/// The same for the visit that closes the descriptor again, which would keep CRIU from a dump.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);
/// Visits without a pause between them: each lets one signal through that was waiting.
const AT_ONCE: u32 = 64;
/// `PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP`: stops of system calls can be told from
/// SIGTRAP, and filters of the process do not see a call that is not its own.
const OPTIONS: usize = 1 | 1 << 21;
/// The third byte of a wait status for PTRACE_INTERRUPT and group stops.
const EVENT_STOP: i32 = 128;
/// `UFFD_USER_MODE_ONLY` of linux/userfaultfd.h.
const USER_MODE_ONLY: u64 = 1;
/// Code segment of 64-bit programs.
const USER_CS: u64 = 0x33;

type Registers = libc::user_regs_struct;

/// A userfaultfd of the process, closed on its own side. Blocks for up to a second or so; the process
/// itself is stopped for some ten microseconds at a time.
///
/// # Errors
/// When the process cannot be visited now. It is as it was then.
pub fn userfaultfd_of(pid: i32) -> io::Result<OwnedFd> {
    let raw = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())?;
    let instruction = syscall_instruction(pid)?;
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | USER_MODE_ONLY;
    let there = call(pid, instruction, libc::SYS_userfaultfd, flags, LIMIT)?;
    let number = i32::try_from(there).map_err(io::Error::other)?;
    let taken =
        rustix::process::pidfd_getfd(pidfd.as_fd(), number, rustix::process::PidfdGetfdFlags::empty());
    close(pid, instruction, there)?;
    let fd = taken?;
    // Threads may have descriptors of their own, so that the number means something else.
    let name = rustix::fs::readlink(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)), [])?;
    if name.as_bytes() != b"anon_inode:[userfaultfd]" {
        return Err(io::Error::other(format!("descriptor {number} of process {pid} is {name:?}")));
    }
    Ok(fd)
}

/// Address of a `syscall` instruction in the vDSO.
fn syscall_instruction(pid: i32) -> io::Result<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let range = maps.lines().find(|l| l.ends_with("[vdso]")).and_then(|l| l.split(' ').next());
    let (start, end) = range
        .and_then(|r| r.split_once('-'))
        .and_then(|(a, b)| Some((u64::from_str_radix(a, 16).ok()?, u64::from_str_radix(b, 16).ok()?)))
        .filter(|(a, b)| a < b && b - a <= 1 << 20)
        .ok_or_else(|| io::Error::other("the process has no vDSO"))?;
    let mut code = vec![0; (end - start) as usize];
    let mem = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    std::os::unix::fs::FileExt::read_exact_at(&mem, &mut code, start)?;
    let found = code.windows(2).position(|w| w == [0x0f, 0x05]);
    found.map(|i| start + i as u64).ok_or_else(|| io::Error::other("no syscall instruction in the vDSO"))
}

/// Closes a descriptor there. Tried also when the thread cannot be visited at the moment: a descriptor
/// that is left is the container's for ever.
fn close(pid: i32, instruction: u64, there: u64) -> io::Result<()> {
    let end = Instant::now() + CLOSE_LIMIT;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match call(pid, instruction, libc::SYS_close, there, left) {
            Ok(_) => return Ok(()),
            Err(_) if !std::fs::exists(format!("/proc/{pid}"))? => return Err(io::ErrorKind::NotFound.into()),
            Err(e) if left.is_zero() => {
                let text =
                    format!("descriptor {there}, made for watching the process, is left open in it: {e}");
                return Err(io::Error::other(text));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Makes the main thread of a process call `nr(argument)` and answers what it returned.
fn call(pid: i32, instruction: u64, nr: libc::c_long, argument: u64, limit: Duration) -> io::Result<u64> {
    let end = Instant::now() + limit;
    for tries in 0.. {
        let visit = Visit::begin(pid)?;
        if let Some(returned) = visit.call(instruction, nr, argument)? {
            let returned = returned.cast_signed();
            return match i32::try_from(-returned) {
                Ok(errno @ 1..4096) => Err(io::Error::from_raw_os_error(errno)),
                _ => Ok(returned.cast_unsigned()),
            };
        }
        if Instant::now() >= end {
            break;
        }
        if tries >= AT_ONCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Err(io::Error::other("signals interrupt the process all the time"))
}

/// What a traced thread stopped for.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// Asked to.
    Interrupted,
    /// It was stopped before, by a signal.
    Group,
    /// Before or behind a system call.
    Call,
    /// To be given this signal.
    Signal(i32),
}

/// A thread that is traced and stopped, as it was.
struct Visit {
    pid: i32,
}

impl Visit {
    fn begin(pid: i32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let state = stat.rsplit(')').next().and_then(|s| s.trim_start().chars().next());
        if !matches!(state, Some('R' | 'S')) {
            return Err(io::Error::other(format!("its main thread is in state {}", state.unwrap_or('?'))));
        }
        request(libc::PTRACE_SEIZE, pid, 0, OPTIONS)?;
        let visit = Self { pid };
        request(libc::PTRACE_INTERRUPT, pid, 0, 0)?;
        let limit = Instant::now() + STOP_LIMIT;
        loop {
            match visit.wait(Some(limit))? {
                Some(Stop::Interrupted) => return Ok(visit),
                Some(Stop::Signal(signal)) => request(libc::PTRACE_CONT, pid, 0, signal as usize)?,
                Some(stop) => {
                    request(libc::PTRACE_DETACH, pid, 0, 0)?;
                    return Err(io::Error::other(format!("the process is stopped: {stop:?}")));
                }
                // Untouched so far: the kernel lets it go when this process ends.
                None => return Err(io::Error::other("the process does not stop")),
            }
        }
    }

    /// Runs one call and lets the thread go; `None` when something came between.
    fn call(self, instruction: u64, nr: libc::c_long, argument: u64) -> io::Result<Option<u64>> {
        let before = self.registers()?;
        if before.cs != USER_CS {
            request(libc::PTRACE_DETACH, self.pid, 0, 0)?;
            return Err(io::Error::other("not a 64-bit process"));
        }
        let mut ours = before;
        ours.rip = instruction;
        ours.rax = nr.cast_unsigned();
        ours.orig_rax = u64::MAX;
        ours.rdi = argument;
        // From here on, whatever happens, the registers are put back before the thread is let go.
        let returned = self.set(&ours).and_then(|()| self.through());
        let last = match &returned {
            Ok(Ok(_)) => self.stop_again()?,
            Ok(Err(stop)) => *stop,
            Err(_) => 0,
        };
        self.set(&before)?;
        request(libc::PTRACE_DETACH, self.pid, 0, last as usize)?;
        Ok(returned?.ok())
    }

    /// To the entry of the call and to its end: what it returned, or the signal that came between.
    fn through(&self) -> io::Result<Result<u64, i32>> {
        for _ in 0..2 {
            request(libc::PTRACE_SYSCALL, self.pid, 0, 0)?;
            match self.stopped()? {
                Stop::Call => {}
                Stop::Signal(signal) => return Ok(Err(signal)),
                Stop::Interrupted | Stop::Group => return Ok(Err(0)),
            }
        }
        Ok(Ok(self.registers()?.rax))
    }

    /// From behind the call to a stop in the signal code; answers the signal that is to be given.
    fn stop_again(&self) -> io::Result<i32> {
        request(libc::PTRACE_INTERRUPT, self.pid, 0, 0)?;
        request(libc::PTRACE_CONT, self.pid, 0, 0)?;
        match self.stopped()? {
            Stop::Signal(signal) => Ok(signal),
            Stop::Interrupted | Stop::Group | Stop::Call => Ok(0),
        }
    }

    /// Waits until the thread stops, for as long as that takes: it has our registers. One that was
    /// frozen on the way stops when it is interrupted again.
    fn stopped(&self) -> io::Result<Stop> {
        loop {
            if let Some(stop) = self.wait(Some(Instant::now() + STOP_LIMIT))? {
                return Ok(stop);
            }
            request(libc::PTRACE_INTERRUPT, self.pid, 0, 0)?;
        }
    }

    fn wait(&self, limit: Option<Instant>) -> io::Result<Option<Stop>> {
        let start = Instant::now();
        loop {
            let mut status = 0;
            // SAFETY: the status is an integer of this frame.
            match unsafe { libc::waitpid(self.pid, &mut status, libc::__WALL | libc::WNOHANG) } {
                0 => {}
                n if n < 0 => return Err(io::Error::last_os_error()),
                _ if !libc::WIFSTOPPED(status) => return Err(io::ErrorKind::NotFound.into()),
                _ => {
                    let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
                    return Ok(Some(match (signal, event) {
                        (libc::SIGTRAP, EVENT_STOP) => Stop::Interrupted,
                        (_, EVENT_STOP) => Stop::Group,
                        (s, _) if s == libc::SIGTRAP | 0x80 => Stop::Call,
                        (s, _) => Stop::Signal(s),
                    }));
                }
            }
            if limit.is_some_and(|l| Instant::now() >= l) {
                return Ok(None);
            }
            if start.elapsed() < Duration::from_millis(1) {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    fn registers(&self) -> io::Result<Registers> {
        // SAFETY: the structure is plain numbers, for which zeros are values.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        request(libc::PTRACE_GETREGS, self.pid, 0, ptr::from_mut(&mut registers) as usize)?;
        Ok(registers)
    }

    fn set(&self, registers: &Registers) -> io::Result<()> {
        request(libc::PTRACE_SETREGS, self.pid, 0, ptr::from_ref(registers) as usize)
    }
}

fn request(request: libc::c_uint, pid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: data is a number, or the address of a register set that is alive in the caller, as the
    // request wants it (ptrace(2)).
    let answer = unsafe { libc::ptrace(request, pid, address, data) };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
