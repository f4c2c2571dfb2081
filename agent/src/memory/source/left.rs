//! What CRIU need not look at in a dump: memory of frozen processes that the rounds carry.
//!
//! Told to leave memory to be filled in later (`--lazy-pages`), CRIU sets every page aside in pipes first,
//! and copies sixteen bytes for each page that there could be: 60 ms a GiB. So a library that is loaded into
//! it (`preload/`) tells it that these pages are not populated, and the entries that CRIU would have made for
//! them are added to its images afterwards, by the kernel's own word. What CRIU still sees it dumps.
//!
//! Left out is only what CRIU could leave to be filled in later: private mappings that the kernel watches for
//! this agent, which it does for no special one but locked ones, and those of a process that was forked too
//! late to be watched; but not the page that a stack pointer points into (CRIU's criu/mem.c, `is_stack`).

use super::scan::{self, PageMap};
use super::track::merged;
use crate::memory::pagemap;
use std::collections::HashSet;
use std::fmt::Write;
use std::io;
use std::ops::Range;
use std::path::Path;
use tranship_proto::pages::PAGE;

/// Runs of populated pages, by the number of their process in the container.
pub type Populated = Vec<(u32, Vec<Range<u64>>)>;

/// So much that nobody watches is worth a closer look.
const MANY_BYTES: u64 = 16 << 20;

#[derive(Debug)]
struct Process {
    /// Number on the host.
    pid: i32,
    /// Number in the container.
    inner: u32,
    ranges: Vec<Range<u64>>,
}

/// What is left out of a dump.
#[derive(Debug, Default)]
pub struct LeftOut(Vec<Process>);

impl LeftOut {
    /// Of processes that are frozen, by their numbers on the host and in the container. A process that
    /// cannot be looked at is dumped as it is.
    pub(super) fn find(processes: impl Iterator<Item = (i32, u32)>) -> Self {
        let mut all = Vec::new();
        for (pid, inner) in processes {
            match ranges(pid) {
                Ok(ranges) if ranges.is_empty() => {}
                Ok(ranges) => all.push(Process { pid, inner, ranges }),
                Err(e) => tracing::debug!(pid, error = %e, "a process is dumped with all of its page map"),
            }
        }
        Self(all)
    }

    /// The file for the library.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Process { pid, ranges, .. } in &self.0 {
            for Range { start, end } in ranges {
                let _ = writeln!(text, "{pid} {start:x} {end:x}");
            }
        }
        text
    }

    /// The populated runs of what is left out, by number in the container. Takes a millisecond a GiB.
    pub fn populated(&self) -> io::Result<Populated> {
        let mut all = Vec::new();
        for process in &self.0 {
            let mut map = PageMap::open(process.pid)?;
            let mut runs: Vec<Range<u64>> = Vec::new();
            for range in &process.ranges {
                map.populated(range, |run, _| runs.push(run))?;
            }
            all.push((process.inner, merged(runs)));
        }
        Ok(all)
    }
}

/// Adds to the page maps of a dump what it was not told of. Blocking.
pub fn add_to_images(dir: &Path, populated: &[(u32, Vec<Range<u64>>)]) -> io::Result<()> {
    for (inner, runs) in populated {
        pagemap::add_lazy(&dir.join(format!("pagemap-{inner}.img")), runs)?;
    }
    Ok(())
}

fn ranges(pid: i32) -> io::Result<Vec<Range<u64>>> {
    let mut map = PageMap::open(pid)?;
    let (mut all, mut unwatched) = (Vec::new(), Vec::new());
    for mapping in scan::mappings(pid)? {
        if map.is_watched(&mapping)? { all.push(mapping) } else { unwatched.push(mapping) }
    }
    // A process that was forked since the last round, as a rule.
    let mut bytes = 0;
    for mapping in &unwatched {
        map.populated(mapping, |run, _| bytes += run.end - run.start)?;
    }
    if bytes >= MANY_BYTES {
        all.extend(unwatched);
        all.sort_unstable_by_key(|r| r.start);
    }
    if bytes >= MANY_BYTES || has_locked_memory(pid)? {
        let special = special(pid)?;
        all.retain(|m| !special.contains(&m.start));
    }
    Ok(without(all, &stack_pages(pid)?))
}

/// Ranges without some pages, which are in order.
fn without(ranges: Vec<Range<u64>>, pages: &[u64]) -> Vec<Range<u64>> {
    let mut all = Vec::new();
    for range in ranges {
        let mut at = range.start;
        for page in pages.iter().filter(|page| range.contains(page)) {
            all.push(at..*page);
            at = page + PAGE;
        }
        all.push(at..range.end);
    }
    all.retain(|r| r.start < r.end);
    all
}

/// Starts of mappings that are not just memory (proc_pid_smaps(5), `VmFlags`): locked, droppable, huge pages,
/// of a device. The kernel looks at every page for this, 10 ms a GiB.
fn special(pid: i32) -> io::Result<HashSet<u64>> {
    // Names of files in it are the container's.
    let text = std::fs::read(format!("/proc/{pid}/smaps"))?;
    let text = String::from_utf8_lossy(&text);
    let mut special = HashSet::new();
    let mut start = None;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let of_another_sort =
                flags.split_ascii_whitespace().any(|f| ["lo", "dp", "ht", "io", "pf"].contains(&f));
            special.extend(start.filter(|_| of_another_sort));
        } else if let Some((address, _)) = line.split_once('-')
            && let Ok(address) = u64::from_str_radix(address, 16)
        {
            start = Some(address);
        }
    }
    Ok(special)
}

/// proc_pid_status(5), `VmLck`.
fn has_locked_memory(pid: i32) -> io::Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let locked = status.lines().find_map(|l| l.strip_prefix("VmLck:"));
    Ok(locked.and_then(|l| l.split_ascii_whitespace().next()) != Some("0"))
}

/// Pages that the stack pointers of a process's threads point into, in order, each once
/// (proc_pid_syscall(5): the last word but one).
fn stack_pages(pid: i32) -> io::Result<Vec<u64>> {
    let mut pages = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("syscall"))?;
        let pointer = text.split_ascii_whitespace().rev().nth(1).and_then(|w| w.strip_prefix("0x"));
        let pointer = pointer.and_then(|w| u64::from_str_radix(w, 16).ok());
        pages.push(
            pointer.ok_or_else(|| io::Error::other(format!("a thread is {}", text.trim())))? & !(PAGE - 1),
        );
    }
    pages.sort_unstable();
    pages.dedup();
    Ok(pages)
}
