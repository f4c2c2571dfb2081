//! Looks at the process tables of both hosts, all through a run: two copies must never run.
//!
//! What is looked at is the kernel's, not the agents': whether the container's cgroup holds the server's
//! processes (the runtime, which waits there for its images, is none), whether it is frozen, whether the
//! host's end of its link is up, and whether a CRIU is at work. A copy *answers* when it has processes
//! that are not frozen and its link is up. It *runs* when it has such processes and no CRIU: a restore
//! that is held has processes, which have never run a line of the container's. Two copies that answer are
//! an offence at the first look. Two that run are one when it lasts, since the processes of a restore that
//! is called off outlive their CRIU for some milliseconds.
//!
//! The hosts are looked at one after the other, so the first is looked at again before anything is
//! concluded: what it is before and after, it was in between.

use crate::Host;
use crate::cgroup;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between looks. A copy that ran for less would have to be thawed and frozen, or killed, in it.
const PAUSE: Duration = Duration::from_millis(3);
/// How long two copies may seem to run before it counts.
const LASTING: Duration = Duration::from_millis(150);

/// One host's part of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    answers: bool,
    runs: bool,
}

struct Place {
    host: Host,
    group: PathBuf,
}

/// Name of the container's processes, as the kernel has it.
const SERVER: &str = "redis-server";

fn is_named(pid: &str, name: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == name)
}

impl Place {
    fn of(host: Host, container: &str) -> anyhow::Result<Self> {
        let group = cgroup::v2_mount()?.join(host.cgroup()).join("tranship").join(container);
        Ok(Self { host, group })
    }

    /// Whether there are processes that are not frozen.
    fn awake(&self) -> bool {
        let Ok(text) = fs::read_to_string(self.group.join("cgroup.events")) else { return false };
        let events: BTreeMap<&str, &str> = text.lines().filter_map(|l| l.split_once(' ')).collect();
        if events.get("populated") != Some(&"1") || events.get("frozen") == Some(&"1") {
            return false;
        }
        let pids = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        pids.lines().any(|pid| is_named(pid, SERVER))
    }

    fn restores(&self) -> bool {
        let pids = self.host.processes().unwrap_or_default();
        pids.iter().any(|pid| is_named(&pid.to_string(), "criu"))
    }

    fn look(&self) -> Seen {
        if !self.awake() {
            return Seen { answers: false, runs: false };
        }
        let (answers, runs) = (link_up(&self.host), !self.restores());
        // Frozen in between, or gone: then the rest says nothing.
        let awake = self.awake();
        Seen { answers: answers && awake, runs: runs && awake }
    }
}

/// Whether the host's end of a container's link is up: the container may be talked to.
pub(super) fn link_up(host: &Host) -> bool {
    let Ok(entries) = fs::read_dir(host.path("/sys/class/net")) else { return false };
    entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("ts")).any(|e| {
        let flags = fs::read_to_string(e.path().join("flags")).unwrap_or_default();
        let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
        flags & 1 != 0
    })
}

/// What was seen in a run.
#[derive(Debug, Clone, Default)]
pub(super) struct Sight {
    /// Looks at both hosts.
    pub(super) looks: u64,
    /// Two copies, in words.
    pub(super) offences: Vec<String>,
}

/// A watch that is kept until it is ended.
pub(super) struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Sight>,
}

impl Watch {
    /// Begins to look. `orphans`: CRIU is killed in this run, so that its absence proves nothing.
    pub(super) fn begin(hosts: [Host; 2], container: &str, orphans: bool) -> anyhow::Result<Self> {
        let [a, b] = hosts;
        let places = [Place::of(a, container)?, Place::of(b, container)?];
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let thread = std::thread::spawn(move || watch(&places, orphans, &until));
        Ok(Self { over, thread })
    }

    /// Ends it.
    pub(super) fn end(self) -> Sight {
        self.over.store(true, Ordering::Relaxed);
        let broken = Sight { looks: 0, offences: vec!["the watch itself broke".into()] };
        self.thread.join().unwrap_or(broken)
    }
}

fn watch(places: &[Place; 2], orphans: bool, over: &AtomicBool) -> Sight {
    let mut sight = Sight::default();
    let began = Instant::now();
    let mut since: Option<Instant> = None;
    while !over.load(Ordering::Relaxed) {
        sight.looks += 1;
        let both_run = match two(places) {
            Some(both) if both.answers => {
                sight.offences.push(format!("both copies answered, {:?} into the run", began.elapsed()));
                both.runs
            }
            Some(both) => both.runs && !orphans,
            None => false,
        };
        since = if both_run { since.or_else(|| Some(Instant::now())) } else { None };
        if since.is_some_and(|s| s.elapsed() > LASTING) {
            sight.offences.push(format!("both copies ran, {:?} into the run", began.elapsed()));
        }
        if sight.offences.len() >= 10 {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    sight
}

/// What holds of both copies at one moment, when there are two that are awake.
fn two(places: &[Place; 2]) -> Option<Seen> {
    let [a, b] = places;
    if !(a.awake() && b.awake()) {
        return None;
    }
    let (before, between, after) = (a.look(), b.look(), a.look());
    let answers = before.answers && between.answers && after.answers;
    let runs = before.runs && between.runs && after.runs;
    (answers || runs).then_some(Seen { answers, runs })
}
