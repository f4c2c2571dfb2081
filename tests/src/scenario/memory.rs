//! Memory after a move, compared byte by byte with what it was before, and what becomes of a
//! container whose memory cannot be completed.
//!
//! The processes are stopped by a signal before they move, and arrive stopped: so what is compared is
//! their memory at the moment of resume, whatever way it came. Every mapping is read through the
//! kernel, those that are still being filled in as well.

use super::scene::{Container, MOVE, Scene};
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
/// Bytes hashed at a time.
const PIECE: usize = 1 << 20;
/// The kernel writes into this part of a thread whenever it runs (rseq(2)); then no two moments are equal.
const NO_RSEQ: &str = "GLIBC_TUNABLES=glibc.pthread.rseq=0";

/// Digests of ranges of addresses, by process.
type Memory = BTreeMap<(i32, u64, u64), String>;

/// There and back, in plain mode and in fast mode: nothing of the memory may differ.
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
    for name in ["py", "db"] {
        signal(scene, "host-a", name, Signal::SIGSTOP)?;
        let before = memory(scene, "host-a", name)?;
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
            let after = memory(scene, to, name)?;
            let differences = differences(&before, &after);
            ensure!(differences.is_empty(), "{name} after a {mode} move to {to}: {}", differences.join("; "));
        }
        signal(scene, "host-b", name, Signal::SIGCONT)?;
        println!("  {name}: {} MiB in {} ranges are the same after four moves", bytes >> 20, before.len());
    }
    super::redis::second_client(scene, "10.77.1.22:6379")
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

/// The memory of all processes of a container.
fn memory(scene: &Scene, host: &str, name: &str) -> anyhow::Result<Memory> {
    let mut all = Memory::new();
    for pid in pids(scene, host, name)? {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let inner =
            status.lines().find_map(|l| l.strip_prefix("NSpid:")?.split_whitespace().last()?.parse().ok());
        let inner = inner.with_context(|| format!("no number in {status}"))?;
        let file = fs::File::open(format!("/proc/{pid}/mem"))?;
        for (start, end) in ranges(&fs::read_to_string(format!("/proc/{pid}/maps"))?) {
            all.insert((inner, start, end), digest(&file, start, end));
        }
    }
    Ok(all)
}

/// What is mapped without a gap; how the kernel cuts it into mappings may differ. The kernel's own
/// pages are left out: their clocks go on.
fn ranges(maps: &str) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let bounds = words.next().and_then(|r| r.split_once('-'));
        let hex = |t: &str| u64::from_str_radix(t, 16).ok();
        let Some((start, end)) = bounds.and_then(|(a, b)| Some((hex(a)?, hex(b)?))) else { continue };
        if words.nth(4).is_some_and(|name| name.starts_with("[v")) {
            continue;
        }
        match found.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => found.push((start, end)),
        }
    }
    found
}

fn digest(memory: &fs::File, start: u64, end: u64) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    let mut at = start;
    while at < end {
        let length = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
        // Guard pages and mappings beyond the end of a file cannot be read: page by page then.
        match memory.read_at(&mut piece[..length], at) {
            Ok(n) if n > 0 => {
                hasher.update(&piece[..n]);
                at += n as u64;
            }
            _ => {
                hasher.update(b"unreadable");
                at += 4096;
            }
        }
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
    fn every_difference_is_named() {
        let one = |d: &str| Memory::from([((1, 0x1000, 0x2000), d.to_owned())]);
        assert!(differences(&one("a"), &one("a")).is_empty());
        assert_eq!(differences(&one("a"), &one("b")), ["1000-2000 of process 1 differs"]);
        assert_eq!(differences(&one("a"), &Memory::new()), ["1000-2000 of process 1 is gone"]);
        assert_eq!(differences(&Memory::new(), &one("a")), ["1000-2000 of process 1 is new"]);
    }
}
