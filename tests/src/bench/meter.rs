//! What a move costs on the hosts, by the kernel's own accounts: processor time and memory of
//! everything that runs on a host, agents, runc, CRIU and the container alike.

use crate::cgroup;
use crate::host::Host;
use crate::scenario::Scene;
use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two looks at a host's memory.
const LOOK: Duration = Duration::from_millis(10);
/// Time that a destination may take to fill in memory after a move.
const FILL: Duration = Duration::from_secs(120);

/// Processor time of both hosts so far, in microseconds.
pub(super) fn cpu_us(scene: &Scene) -> anyhow::Result<u64> {
    let root = cgroup::v2_mount()?;
    let mut sum = 0;
    for host in scene.lab().hosts() {
        // cgroup v2 counts processor time in every group, whatever controllers there are.
        let path = root.join(host.cgroup()).join("cpu.stat");
        sum += field(&path, &["usage_usec"])?;
    }
    Ok(sum)
}

/// Anonymous and shared memory (tmpfs is part of it) of the processes of this name on a host, in
/// bytes.
pub(super) fn resident_bytes(host: &Host, program: &str) -> anyhow::Result<u64> {
    let mut sum = 0;
    for pid in host.processes()? {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
        // The kernel keeps 15 bytes of a name.
        if value("Name:").is_none_or(|n| !program.starts_with(n)) {
            continue;
        }
        for key in ["RssAnon:", "RssShmem:"] {
            let kib = value(key).and_then(|v| v.trim_end_matches(" kB").parse::<u64>().ok());
            sum += kib.with_context(|| format!("{key} of process {pid} is no number"))? * 1024;
        }
    }
    ensure!(sum > 0, "no process {program} on {}", host.name());
    Ok(sum)
}

/// Watches the memory of a host.
#[derive(Debug)]
pub(super) struct MemoryWatch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MemoryWatch {
    /// Begins. Anonymous and shared memory count, and tmpfs with it; the cache of files does not.
    pub(super) fn begin(host: &Host) -> anyhow::Result<Self> {
        let files: Vec<PathBuf> = cgroup::hierarchies()?
            .iter()
            .map(|h| h.mount.join(host.cgroup()).join("memory.stat"))
            .filter(|f| f.is_file())
            .collect();
        let file = files.into_iter().next().context("no cgroup hierarchy here accounts for memory")?;
        // The names of cgroup v1 and v2.
        let keys = [["total_rss", "total_shmem"], ["anon", "shmem"]];
        let keys = keys.into_iter().find(|k| field(&file, k).is_ok());
        let keys = keys.with_context(|| format!("{} has neither rss nor anon", file.display()))?;
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, end) = (peak.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                seen.fetch_max(field(&file, &keys).unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
        });
        Ok(Self { peak, stop, thread: Some(thread) })
    }

    /// Ends, and answers the most that was seen, in bytes.
    pub(super) fn end(mut self) -> anyhow::Result<u64> {
        self.finish();
        let peak = self.peak.load(Ordering::Relaxed);
        ensure!(peak > 0, "the memory of a host could not be read");
        Ok(peak)
    }

    fn finish(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Waits until nothing on a host fills in memory of a container that runs already; answers how long
/// that took.
pub(super) fn wait_filled(host: &Host) -> anyhow::Result<Duration> {
    let began = Instant::now();
    while host.processes()?.into_iter().any(is_fill) {
        ensure!(began.elapsed() < FILL, "memory is still filled in after {} s", FILL.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(began.elapsed())
}

fn is_fill(pid: i32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut args = line.split(|b| *b == 0);
    args.next().is_some_and(|a| a.ends_with(b"transhipd")) && args.next() == Some(b"fill")
}

/// Sum of some fields of a file of `name value` lines.
fn field(file: &Path, names: &[&str]) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let mut sum = 0;
    for name in names {
        let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        let value = value.with_context(|| format!("{} has no {name}", file.display()))?;
        sum += value.trim().parse::<u64>().with_context(|| format!("{name} in {}", file.display()))?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    #[test]
    fn fields_are_found_by_their_whole_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.stat");
        std::fs::write(&file, "anon_thp 5\nanon 7\nshmem 2\n").unwrap();
        assert_eq!(super::field(&file, &["anon", "shmem"]).unwrap(), 9);
        assert!(super::field(&file, &["total_rss"]).is_err());
    }
}
