//! Memory after a move, compared byte by byte with what it was before, and what becomes of a
//! container whose memory cannot be completed.
//!
//! The processes are stopped by a signal before they move, and arrive stopped: so what is compared is
//! their memory at the moment of resume, whatever way it came. Every mapping is read through the
//! kernel, those that are still being filled in as well.

use super::scene::{Container, MOVE, Scene};
use crate::agent_log::AgentLog;
use crate::cgroup;
use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Data, zeros, memory that a second process shares until it writes, and a thread.
const PROGRAM: &str = "
import os, _thread, time
data = bytearray(os.urandom(24 << 20))
zeros = bytearray(16 << 20)
twice = data[:4 << 20] + data[:4 << 20]
def work():
    n = 0
    while True:
        n += 1
        data[n * 4099 % len(data)] = n & 255
        time.sleep(0.001)
_thread.start_new_thread(work, ())
if os.fork() == 0:
    data[::8192] = bytes(len(data[::8192]))
    _thread.start_new_thread(work, ())
while True:
    time.sleep(1)
";
/// Bytes of a page.
const PAGE: usize = 4096;
/// The kernel writes into this part of a thread whenever it runs (rseq(2)); then no two moments are equal.
const NO_RSEQ: &str = "GLIBC_TUNABLES=glibc.pthread.rseq=0";

/// A range of addresses of a process.
type Range = (i32, u64, u64);
/// Digests of ranges.
type Memory = BTreeMap<Range, String>;

/// The library that is loaded into CRIU, on a host.
const LIBRARY: &str = "/usr/local/bin/libtranship_preload.so";

/// What an agent logs then.
const NOT_LOADED: &str = "CRIU has not loaded tranship's library";

/// There and back, in plain mode and in fast mode, with the library and from a host where it cannot be
/// loaded: nothing of the memory may differ.
pub(super) fn plain_and_fast_are_equal(scene: &mut Scene) -> anyhow::Result<()> {
    let python = ["env", NO_RSEQ, "python3", "-c", PROGRAM];
    scene.start("host-a", &Container::new("py", "web", "10.77.1.21/16", &python))?;
    let mut redis = Container::redis("db", "10.77.1.22/16");
    redis.args.splice(0..0, ["env".to_owned(), NO_RSEQ.to_owned()]);
    scene.start("host-a", &redis)?;
    scene.wait_port("10.77.1.22", 6379)?;
    scene.load_to_end(&["fill", "--addr", "10.77.1.22:6379", "--mib", "24"])?;
    // Until the program has made its memory.
    scene.wait_for("the second process", Duration::from_secs(60), || {
        Ok(scene.processes("host-a", "py")?.0 == 2)
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let library = scene.host("host-c")?.path(LIBRARY);
    let aside = library.with_extension("aside");
    fs::rename(&library, &aside)?;
    fs::write(&library, "no library")?;
    let moved = moves(scene);
    fs::rename(&aside, &library)?;
    moved?;
    super::redis::second_client(scene, "10.77.1.22:6379")
}

fn moves(scene: &mut Scene) -> anyhow::Result<()> {
    let [with, without] = [AgentLog::of(scene.host("host-b")?), AgentLog::of(scene.host("host-c")?)];
    for name in ["py", "db"] {
        signal(scene, "host-a", name, Signal::SIGSTOP)?;
        let wiped = wiped(scene, "host-a", name)?;
        let before = memory(scene, "host-a", name, &wiped)?;
        let bytes: u64 = before.keys().map(|(_, start, end)| end - start).sum();
        ensure!(bytes > 32 << 20, "{name} has only {bytes} bytes of memory");
        for (mode, from, to) in [
            ("plain", "host-a", "host-b"),
            ("fast", "host-b", "host-c"),
            ("fast", "host-c", "host-a"),
            ("plain", "host-a", "host-b"),
        ] {
            let args = ["migrate", name, "--to", to, "--mode", mode];
            scene.tranship(from, &args, MOVE)?.ok().with_context(|| format!("{name} to {to}, {mode}"))?;
            let after = memory(scene, to, name, &wiped)?;
            let differences = differences(&before, &after);
            ensure!(differences.is_empty(), "{name} after a {mode} move to {to}: {}", differences.join("; "));
        }
        signal(scene, "host-b", name, Signal::SIGCONT)?;
        println!("  {name}: {} MiB in {} ranges are the same after four moves", bytes >> 20, before.len());
    }
    let noticed = [&with, &without].map(|log| log.text().matches(NOT_LOADED).count());
    ensure!(noticed == [0, 2], "host-b and host-c had no library in {noticed:?} moves");
    Ok(())
}

fn pids(scene: &Scene, host: &str, name: &str) -> anyhow::Result<Vec<i32>> {
    let group = format!("{}/tranship/{name}", scene.host(host)?.cgroup());
    Ok(cgroup::processes(&group)?)
}

fn signal(scene: &Scene, host: &str, name: &str, signal: Signal) -> anyhow::Result<()> {
    for pid in pids(scene, host, name)? {
        kill(Pid::from_raw(pid), signal)?;
    }
    if signal == Signal::SIGSTOP {
        scene.wait_for("all processes to stop", Duration::from_secs(10), || {
            let mut stopped = true;
            for pid in pids(scene, host, name)? {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
                stopped &= stat.rsplit(')').next().is_some_and(|s| s.trim_start().starts_with('T'));
            }
            Ok(stopped)
        })?;
    }
    Ok(())
}

/// A process's number in its container.
fn number(pid: i32) -> anyhow::Result<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let last = status.lines().find_map(|l| l.strip_prefix("NSpid:")?.split_whitespace().last()?.parse().ok());
    last.with_context(|| format!("no number in {status}"))
}

/// Memory that no copy of a process may have, a fork or a restored one: the state of random numbers
/// (MADV_WIPEONFORK of madvise(2); getrandom in the vDSO keeps its state so). CRIU leaves it empty.
fn wiped(scene: &Scene, host: &str, name: &str) -> anyhow::Result<Vec<Range>> {
    let mut found = Vec::new();
    for pid in pids(scene, host, name)? {
        let number = number(pid)?;
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        found.extend(wiped_ranges(&smaps).into_iter().map(|(start, end)| (number, start, end)));
    }
    Ok(found)
}

fn wiped_ranges(smaps: &str) -> Vec<(u64, u64)> {
    let (mut here, mut found) = (None, Vec::new());
    for line in smaps.lines() {
        match line.strip_prefix("VmFlags:") {
            Some(flags) if flags.split_whitespace().any(|f| f == "wf") => found.extend(here),
            Some(_) => {}
            None => here = bounds(line).or(here),
        }
    }
    found
}

/// The memory of all processes of a container, without what is wiped.
fn memory(scene: &Scene, host: &str, name: &str, wiped: &[Range]) -> anyhow::Result<Memory> {
    let mut all = Memory::new();
    for pid in pids(scene, host, name)? {
        let inner = number(pid)?;
        let file = fs::File::open(format!("/proc/{pid}/mem"))?;
        for (start, end) in ranges(&fs::read_to_string(format!("/proc/{pid}/maps"))?) {
            let skip = |at| wiped.iter().any(|(pid, from, to)| *pid == inner && (*from..*to).contains(&at));
            all.insert((inner, start, end), digest(&file, start, end, skip));
        }
    }
    Ok(all)
}

/// Bounds of the mapping that a line of proc_pid_maps(5) begins with.
fn bounds(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let hex = |t: &str| u64::from_str_radix(t, 16).ok();
    Some((hex(start)?, hex(end)?))
}

/// What is mapped without a gap; how the kernel cuts it into mappings may differ. The kernel's own
/// pages are left out: their clocks go on.
fn ranges(maps: &str) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    for line in maps.lines() {
        let Some((start, end)) = bounds(line) else { continue };
        if line.split_whitespace().nth(5).is_some_and(|name| name.starts_with("[v")) {
            continue;
        }
        match found.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => found.push((start, end)),
        }
    }
    found
}

fn digest(memory: &fs::File, start: u64, end: u64, skip: impl Fn(u64) -> bool) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut page = vec![0; PAGE];
    for at in (start..end).step_by(PAGE) {
        // Guard pages and what is mapped beyond the end of a file cannot be read.
        match memory.read_exact_at(&mut page, at) {
            _ if skip(at) => hasher.update(b"wiped"),
            Ok(()) => hasher.update(&page),
            Err(_) => hasher.update(b"unreadable"),
        };
    }
    hasher.finalize().to_hex().to_string()
}

fn differences(before: &Memory, after: &Memory) -> Vec<String> {
    let mut found = Vec::new();
    for (key @ (pid, start, end), digest) in before {
        match after.get(key) {
            None => found.push(format!("{start:x}-{end:x} of process {pid} is gone")),
            Some(other) if other != digest => {
                found.push(format!("{start:x}-{end:x} of process {pid} differs"))
            }
            Some(_) => {}
        }
    }
    let new = after.keys().filter(|k| !before.contains_key(k));
    found.extend(new.map(|(pid, start, end)| format!("{start:x}-{end:x} of process {pid} is new")));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_mappings_are_one_range() {
        let maps = "1000-3000 r--p 00000000 fe:00 1 /bin/x\n3000-4000 rw-p 00000000 00:00 0 \n\
                    8000-9000 rw-p 00000000 00:00 0 [heap]\n9000-a000 r-xp 00000000 00:00 0 [vdso]\n";
        assert_eq!(ranges(maps), [(0x1000, 0x4000), (0x8000, 0x9000)]);
    }

    #[test]
    fn wiped_mappings_are_found() {
        let smaps = "1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nVmFlags: rd wr mr mw me ac \n\
                     3000-4000 rw-p 00000000 00:00 0 \nSize: 4 kB\nVmFlags: rd wr mr mw me nr wf dd dp \n";
        assert_eq!(wiped_ranges(smaps), [(0x3000, 0x4000)]);
    }

    #[test]
    fn every_difference_is_named() {
        let one = |d: &str| Memory::from([((1, 0x1000, 0x2000), d.to_owned())]);
        assert!(differences(&one("a"), &one("a")).is_empty());
        assert_eq!(differences(&one("a"), &one("b")), ["1000-2000 of process 1 differs"]);
        assert_eq!(differences(&one("a"), &Memory::new()), ["1000-2000 of process 1 is gone"]);
        assert_eq!(differences(&Memory::new(), &one("a")), ["1000-2000 of process 1 is new"]);
    }
}
