//! What CRIU would refuse, found in /proc before anything is touched.
//!
//! A dump that fails costs the container a pause; these reads cost nothing. They look at a running
//! container, so they miss what appears a moment later, and CRIU keeps the last word.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Of /proc files, this much is read, in bytes.
const READ_LIMIT: u64 = 16 << 20;
/// More is not reported.
const MAX_REFUSALS: usize = 32;

/// A reason why a container cannot be moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What stands in the way.
    pub what: String,
    /// The process it was found in, if one.
    pub pid: Option<i32>,
    /// What the operator can do.
    pub advice: String,
}

/// Anonymous inodes CRIU restores (names of /proc/PID/fd links, without brackets).
const KNOWN_ANON: &[&str] =
    &["eventfd", "eventpoll", "inotify", "signalfd", "timerfd", "fanotify", "pidfd", "bpf-map"];
/// Namespaces all processes must share with init.
const SHARED_NAMESPACES: &[&str] = &["pid", "user", "net", "ipc", "uts", "time"];
/// Protocols of /proc/net/protocols whose sockets cannot be restored.
const BAD_PROTOCOLS: &[(&str, &str)] = &[
    (
        "MPTCP",
        "start the application with GODEBUG=multipathtcp=0, or set net.mptcp.enabled=0 in the container",
    ),
    ("SCTP", "SCTP sockets cannot be moved"),
    ("DCCP", "DCCP sockets cannot be moved"),
    ("AF_VSOCK", "vsock sockets cannot be moved"),
    ("XDP", "XDP sockets cannot be moved"),
    ("TIPC", "TIPC sockets cannot be moved"),
    ("SMC", "SMC sockets cannot be moved"),
];

/// Looks at the processes of a container. `init` is the host pid of its first process, `pids` are all
/// processes of its cgroup. Blocks; at most 200 ms when a process seems stuck.
pub fn preflight(init: i32, pids: &[i32]) -> Vec<Refusal> {
    preflight_in(Path::new("/proc"), init, pids)
}

struct Status {
    ppid: i32,
    tracer: i32,
    state: char,
    name: String,
}

fn preflight_in(proc: &Path, init: i32, pids: &[i32]) -> Vec<Refusal> {
    let mut found = Found { list: Vec::new(), seen: BTreeSet::new() };
    let statuses: BTreeMap<i32, Status> = pids.iter().filter_map(|&p| Some((p, status(proc, p)?))).collect();
    if !statuses.contains_key(&init) {
        found.add(
            None,
            "the container's first process is gone or not in its cgroup",
            "see `tranship ps`; restart the container",
        );
        return found.list;
    }
    for (&pid, status) in &statuses {
        let name = &status.name;
        if status.tracer != 0 {
            found.add(
                Some(pid),
                format!("process {name} is traced by process {}", status.tracer),
                "detach the debugger or strace",
            );
        }
        if !descends(&statuses, pid, init) {
            found.add(
                Some(pid),
                format!("process {name} was started in the container from outside (exec)"),
                "end the exec session",
            );
        }
        for ns in SHARED_NAMESPACES {
            let of = |p: i32| fs::read_link(proc.join(format!("{p}/ns/{ns}"))).ok();
            if let (Some(a), Some(b)) = (of(init), of(pid))
                && a != b
            {
                found.add(
                    Some(pid),
                    format!("process {name} has made a {ns} namespace of its own"),
                    "containers in containers and sandboxes of browsers cannot be moved",
                );
            }
        }
        descriptors(proc, pid, name, &mut found);
        mappings(proc, pid, name, &mut found);
    }
    standard_streams(proc, init, &mut found);
    protocols(proc, init, &mut found);
    stuck(proc, &statuses, &mut found);
    found.list
}

struct Found {
    list: Vec<Refusal>,
    seen: BTreeSet<String>,
}

impl Found {
    fn add(&mut self, pid: Option<i32>, what: impl Into<String>, advice: &str) {
        let what = what.into();
        if self.list.len() < MAX_REFUSALS && self.seen.insert(what.clone()) {
            self.list.push(Refusal { what, pid, advice: advice.to_owned() });
        }
    }
}

fn read(path: PathBuf) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(READ_LIMIT).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn status(proc: &Path, pid: i32) -> Option<Status> {
    let text = read(proc.join(format!("{pid}/status")))?;
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    Some(Status {
        ppid: field("PPid:")?.parse().ok()?,
        tracer: field("TracerPid:")?.parse().ok()?,
        state: field("State:")?.chars().next()?,
        name: field("Name:")?.to_owned(),
    })
}

fn descends(statuses: &BTreeMap<i32, Status>, pid: i32, init: i32) -> bool {
    let mut at = pid;
    for _ in 0..=statuses.len() {
        if at == init {
            return true;
        }
        match statuses.get(&at) {
            Some(status) => at = status.ppid,
            None => return false,
        }
    }
    false
}

fn descriptors(proc: &Path, pid: i32, name: &str, found: &mut Found) {
    let Ok(entries) = fs::read_dir(proc.join(format!("{pid}/fd"))) else { return };
    for entry in entries.flatten() {
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        let link = link.to_string_lossy();
        if let Some(kind) = link.strip_prefix("anon_inode:") {
            let kind = kind.trim_start_matches('[').trim_end_matches(']');
            if kind == "io_uring" {
                found.add(
                    Some(pid),
                    format!("process {name} uses io_uring"),
                    "turn io_uring off in the application (libuv programs: UV_USE_IO_URING=0)",
                );
            } else if !KNOWN_ANON.contains(&kind) {
                found.add(
                    Some(pid),
                    format!("process {name} holds a kernel object of kind {kind}"),
                    "close or disable that feature of the application",
                );
            }
        } else if link.starts_with('/')
            && let Ok(meta) = fs::metadata(entry.path())
        {
            let device = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
            let bad = match () {
                () if meta.file_type().is_char_device() => !harmless_device(device),
                () => meta.file_type().is_block_device(),
            };
            if bad {
                found.add(
                    Some(pid),
                    format!("process {name} has device {}:{} open ({link})", device.0, device.1),
                    "a container that uses this device cannot be moved",
                );
            }
        }
    }
}

/// null, zero, full, random, urandom; tty, ptmx; terminals of the container's own devpts; tun.
fn harmless_device(device: (u64, u64)) -> bool {
    matches!(device, (1, 3 | 5 | 7 | 8 | 9) | (5, 0 | 2) | (136..=143, _) | (10, 200))
}

fn mappings(proc: &Path, pid: i32, name: &str, found: &mut Found) {
    let Some(text) = read(proc.join(format!("{pid}/maps"))) else { return };
    for line in text.lines() {
        if line.contains("anon_inode:[io_uring]") {
            found.add(
                Some(pid),
                format!("process {name} uses io_uring"),
                "turn io_uring off in the application (libuv programs: UV_USE_IO_URING=0)",
            );
        } else if let Some(at) = line.find(" /dev/") {
            let path = &line[at + 1..];
            if !["/dev/zero", "/dev/shm/", "/dev/mqueue/"].iter().any(|p| path.starts_with(p)) {
                found.add(
                    Some(pid),
                    format!("process {name} has memory of a device mapped ({path})"),
                    "a container that uses this device cannot be moved",
                );
            }
        }
    }
}

fn standard_streams(proc: &Path, init: i32, found: &mut Found) {
    for fd in 0..3 {
        let Ok(link) = fs::read_link(proc.join(format!("{init}/fd/{fd}"))) else { continue };
        let link = link.to_string_lossy();
        if link.contains("pts/") || link.contains("/dev/tty") || link.contains("/dev/console") {
            found.add(
                Some(init),
                format!("standard stream {fd} is a terminal"),
                "start the container without a terminal",
            );
        }
    }
}

fn protocols(proc: &Path, init: i32, found: &mut Found) {
    let Some(text) = read(proc.join(format!("{init}/net/protocols"))) else { return };
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        let (Some(protocol), Some(sockets)) = (words.next(), words.nth(1)) else { continue };
        let bad = BAD_PROTOCOLS.iter().find(|(name, _)| protocol.starts_with(name));
        if let (Some((name, advice)), Ok(1..)) = (bad, sockets.parse::<i64>()) {
            found.add(None, format!("the container has {name} sockets open"), advice);
        }
    }
}

fn stuck(proc: &Path, statuses: &BTreeMap<i32, Status>, found: &mut Found) {
    let mut waiting: Vec<i32> = statuses.iter().filter(|(_, s)| s.state == 'D').map(|(&p, _)| p).collect();
    // D for a moment is ordinary disk I/O.
    for _ in 0..4 {
        if waiting.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
        waiting.retain(|&p| status(proc, p).is_some_and(|s| s.state == 'D'));
    }
    for pid in waiting {
        let name = statuses.get(&pid).map_or("?", |s| s.name.as_str());
        found.add(
            Some(pid),
            format!("process {name} waits in the kernel (state D)"),
            "check the storage it waits for, then try again",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn process(proc: &Path, pid: i32, ppid: i32, tracer: i32) {
        let dir = proc.join(pid.to_string());
        fs::create_dir_all(dir.join("fd")).unwrap();
        fs::create_dir_all(dir.join("ns")).unwrap();
        fs::create_dir_all(dir.join("net")).unwrap();
        fs::write(
            dir.join("status"),
            format!("Name:\tp{pid}\nState:\tS (sleeping)\nPPid:\t{ppid}\nTracerPid:\t{tracer}\n"),
        )
        .unwrap();
        fs::write(dir.join("maps"), "00400000-00401000 r-xp 00000000 fe:00 12 /usr/bin/x\n").unwrap();
        symlink("pid:[1]", dir.join("ns/pid")).unwrap();
        symlink("pipe:[5]", dir.join("fd/0")).unwrap();
        symlink("anon_inode:[eventpoll]", dir.join("fd/3")).unwrap();
    }

    #[test]
    fn an_ordinary_tree_passes() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 10, 1, 0);
        process(proc.path(), 11, 10, 0);
        assert_eq!(preflight_in(proc.path(), 10, &[10, 11]), []);
    }

    #[test]
    fn each_obstacle_is_named_with_advice() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 10, 1, 0);
        process(proc.path(), 11, 10, 77);
        process(proc.path(), 12, 1, 0);
        symlink("anon_inode:[io_uring]", proc.path().join("10/fd/4")).unwrap();
        symlink("anon_inode:[userfaultfd]", proc.path().join("10/fd/5")).unwrap();
        fs::remove_file(proc.path().join("10/fd/0")).unwrap();
        symlink("/dev/pts/3", proc.path().join("10/fd/0")).unwrap();
        fs::remove_file(proc.path().join("11/ns/pid")).unwrap();
        symlink("pid:[2]", proc.path().join("11/ns/pid")).unwrap();
        fs::write(proc.path().join("11/maps"), "1-2 rw-s 0 00:05 9 /dev/nvidia0\n").unwrap();
        fs::write(
            proc.path().join("10/net/protocols"),
            "protocol size sockets\nMPTCP 2000 3 -1\nTCP 2000 9 1\nSCTP 1 0 1\n",
        )
        .unwrap();
        let found = preflight_in(proc.path(), 10, &[10, 11, 12]);
        let text: Vec<&str> = found.iter().map(|r| r.what.as_str()).collect();
        for needle in [
            "uses io_uring",
            "kind userfaultfd",
            "is a terminal",
            "traced by process 77",
            "from outside",
            "pid namespace",
            "nvidia0",
            "MPTCP",
        ] {
            assert!(text.iter().any(|t| t.contains(needle)), "{needle}: {text:?}");
        }
        assert!(!text.iter().any(|t| t.contains("SCTP")));
        assert!(found.iter().all(|r| !r.advice.is_empty()));
    }

    #[test]
    fn device_links_are_judged_by_number() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 10, 1, 0);
        symlink("/dev/null", proc.path().join("10/fd/7")).unwrap();
        assert_eq!(preflight_in(proc.path(), 10, &[10]), []);
        assert!(!harmless_device((10, 229)) && !harmless_device((195, 0)) && harmless_device((1, 3)));
    }

    #[test]
    fn a_missing_init_is_said() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(preflight_in(proc.path(), 10, &[10]).len(), 1);
    }
}
