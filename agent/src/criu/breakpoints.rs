//! Hardware breakpoints that cost CRIU nothing.
//!
//! CRIU ends the code that it has put into a process with a breakpoint, when it dumps and when it restores
//! (`ptrace_set_breakpt` of compel). To the kernel that is a perf event of a task, and the first of them
//! after a second without waits until all processors have passed a quiescent state (`account_event` of
//! kernel/events/core.c): 5 to 14 ms, measured, of a blackout of 90. So an event that counts nothing is
//! there meanwhile.
//!
//! Rejected: to have CRIU do without breakpoints (`compel` can), which steps through system calls instead.

use nix::libc;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// `PERF_TYPE_SOFTWARE` and `PERF_COUNT_SW_DUMMY`, perf_event_open(2).
const SOFTWARE: u32 = 1;
const DUMMY: u64 = 9;

/// Closed on exec, perf_event_open(2).
const FD_CLOEXEC: libc::c_ulong = 8;

/// The beginning of `struct perf_event_attr`, of `PERF_ATTR_SIZE_VER0` bytes.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    // Sampling, format, flags, wake-ups, breakpoint.
    rest: [u64; 6],
}

/// While it exists, breakpoints are set without a wait.
#[derive(Debug)]
pub struct QuickBreakpoints {
    _event: OwnedFd,
}

impl QuickBreakpoints {
    /// Waits itself for what CRIU need not wait for then. Blocking. None, and a word in the log, when the
    /// kernel has no perf events or this agent may not use them.
    pub fn prepare() -> Option<Self> {
        Self::open().inspect_err(|e| tracing::debug!(error = %e, "CRIU waits for its breakpoints")).ok()
    }

    fn open() -> io::Result<Self> {
        let size = size_of::<Attributes>();
        let attributes =
            Attributes { kind: SOFTWARE, size: size as u32, config: DUMMY, ..Default::default() };
        let (this_thread, any_cpu, no_group) = (0, -1, -1);
        // SAFETY: the kernel reads `size` bytes of the structure, which is laid out as it expects, and makes
        // a descriptor.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                this_thread,
                any_cpu,
                no_group,
                FD_CLOEXEC,
            )
        };
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it, for nobody else.
        Ok(Self { _event: unsafe { OwnedFd::from_raw_fd(fd) } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_event_counts_nothing_and_is_not_inherited() {
        match QuickBreakpoints::open() {
            Ok(quick) => {
                let mut count = [0xff; 8];
                assert_eq!(nix::unistd::read(&quick._event, &mut count), Ok(8));
                assert_eq!(count, [0; 8]);
                let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", quick._event.as_raw_fd()));
                let flags = info.unwrap().lines().find_map(|l| l.strip_prefix("flags:").map(str::to_owned));
                let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
                assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC);
            }
            Err(e) if nix::unistd::geteuid().is_root() => panic!("{e}"),
            Err(_) => eprintln!("skipped: perf events need root here"),
        }
    }
}
