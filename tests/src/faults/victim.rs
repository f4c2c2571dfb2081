//! Processes that a run kills.

use super::plan::Target;
use crate::Host;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;

/// Processes of a restore on a host, as the machine numbers them.
pub(super) fn victims(host: &Host, target: Target) -> Vec<i32> {
    let mut pids = host.processes().unwrap_or_default();
    match target {
        Target::Restore => {
            pids.retain(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "criu")
            });
        }
        Target::Hold => pids.retain(|pid| runs(*pid, b"hook")),
        Target::Fill | Target::Keeper => {
            pids.retain(|pid| runs(*pid, b"fill"));
            let keepers: Vec<i32> = pids.iter().filter_map(|pid| parent(*pid)).collect();
            pids.retain(|pid| keepers.contains(pid) == (target == Target::Keeper));
        }
    }
    pids
}

/// Signals all of them; whether one was there.
pub(super) fn signal(pids: &[i32], signal: Signal) -> bool {
    pids.iter().filter(|pid| kill(Pid::from_raw(**pid), signal).is_ok()).count() > 0
}

/// Whether a process is this part of the agent's program.
fn runs(pid: i32, part: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.split(|b| *b == 0).nth(1) == Some(part))
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}
