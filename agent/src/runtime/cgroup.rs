//! The cgroup of a container (version 2): freeze, thaw, kill, who is in it.
//!
//! Written to directly. `runc pause` does the same write after 20 ms of start-up, inside the blackout.
//! All functions block (for microseconds, or until their deadline); callers on the async runtime use
//! [`tokio::task::spawn_blocking`]. Kernel: Documentation/admin-guide/cgroup-v2.rst, `cgroup.freeze`,
//! `cgroup.kill`, `cgroup.events`.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Why the cgroup of a container could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of the cgroup could not be read or written.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// The attempt, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Some processes did not stop in time.
    #[error("the cgroup {} did not freeze within {limit:?}; still running: {}", .path.display(), list(.pids))]
    NotFrozen {
        /// The cgroup.
        path: PathBuf,
        /// The limit.
        limit: Duration,
        /// The processes that were not stopped, with name and state.
        pids: Vec<StuckProcess>,
    },
    /// Another state was not reached in time.
    #[error("the cgroup {} was not {wanted} within {limit:?}", .path.display())]
    Deadline {
        /// The cgroup.
        path: PathBuf,
        /// The state waited for.
        wanted: &'static str,
        /// The limit.
        limit: Duration,
    },
}

/// A process that resists the freezer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckProcess {
    /// Host process id.
    pub pid: i32,
    /// Its short name.
    pub comm: String,
    /// State letter of proc(5).
    pub state: char,
}

fn list(pids: &[StuckProcess]) -> String {
    if pids.is_empty() {
        return "unknown".to_owned();
    }
    let texts: Vec<String> =
        pids.iter().take(8).map(|p| format!("{} ({}, state {})", p.pid, p.comm, p.state)).collect();
    texts.join(", ")
}

/// What `cgroup.events` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// There is a process in it or below.
    pub populated: bool,
    /// All processes are stopped by the freezer.
    pub frozen: bool,
}

impl Events {
    fn parse(text: &str) -> Self {
        let has = |line: &str| text.lines().any(|l| l == line);
        Events { populated: has("populated 1"), frozen: has("frozen 1") }
    }
}

/// A cgroup of version 2, which may not exist.
#[derive(Clone, Debug)]
pub struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// The cgroup at a directory.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Cgroup { dir: dir.into() }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its state, or nothing when there is no such cgroup.
    pub fn events(&self) -> Result<Option<Events>, CgroupError> {
        match fs::read_to_string(self.dir.join("cgroup.events")) {
            Ok(text) => Ok(Some(Events::parse(&text))),
            // ENODEV: removed while the file was open.
            Err(e) if gone(&e) => Ok(None),
            Err(source) => Err(self.io("read", "cgroup.events", source)),
        }
    }

    /// Creates it and its parents.
    pub fn create(&self) -> Result<(), CgroupError> {
        fs::create_dir_all(&self.dir).map_err(|source| CgroupError::Io {
            what: "create",
            path: self.dir.clone(),
            source,
        })
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Stops all processes and waits until the kernel says so. On failure the freezer is left on: the
    /// caller decides whether to thaw.
    pub fn freeze(&self, limit: Duration) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "1")?;
        match self.wait(limit, "frozen", |e| e.frozen) {
            Err(CgroupError::Deadline { path, limit, .. }) => {
                Err(CgroupError::NotFrozen { path, limit, pids: self.stuck() })
            }
            other => other,
        }
    }

    /// Lets all processes go on. Nothing to do when there is no such cgroup.
    pub fn thaw(&self, limit: Duration) -> Result<(), CgroupError> {
        match self.write("cgroup.freeze", "0") {
            Err(CgroupError::Io { source, .. }) if gone(&source) => return Ok(()),
            other => other?,
        }
        self.wait(limit, "thawed", |e| !e.frozen)
    }

    /// Kills all processes, frozen or not, without letting a frozen one run, and waits until none is left.
    /// Then it is no longer frozen: runc takes what is for paused, which it removes by force only. Nothing to
    /// do when there is no such cgroup.
    pub fn kill(&self, limit: Duration) -> Result<(), CgroupError> {
        match self.write("cgroup.kill", "1") {
            Err(CgroupError::Io { source, .. }) if gone(&source) => return Ok(()),
            other => other?,
        }
        self.wait_empty(limit)?;
        match self.write("cgroup.freeze", "0") {
            Err(CgroupError::Io { source, .. }) if gone(&source) => Ok(()),
            other => other,
        }
    }

    /// Waits until no process is left.
    pub fn wait_empty(&self, limit: Duration) -> Result<(), CgroupError> {
        self.wait(limit, "empty", |e| !e.populated)
    }

    /// Removes it with its children, when no process is left in it. Nothing to do when there is none.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for child in self.children() {
            Cgroup::at(child).remove()?;
        }
        // A dying process keeps the directory busy for a moment after `populated 0`.
        let mut last = None;
        for _ in 0..50 {
            match fs::remove_dir(&self.dir) {
                Ok(()) => return Ok(()),
                Err(e) if gone(&e) => return Ok(()),
                Err(e) => last = Some(e),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let source = last.unwrap_or_else(|| io::Error::other("busy"));
        Err(CgroupError::Io { what: "remove", path: self.dir.clone(), source })
    }

    /// The processes in it and below, sorted.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = match fs::read_to_string(self.dir.join("cgroup.procs")) {
            Ok(text) => text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<i32>>(),
            Err(e) if gone(&e) => Vec::new(),
            Err(source) => return Err(self.io("read", "cgroup.procs", source)),
        };
        for child in self.children() {
            pids.extend(Cgroup::at(child).pids()?);
        }
        pids.sort_unstable();
        Ok(pids)
    }

    fn children(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
    }

    fn wait(
        &self,
        limit: Duration,
        wanted: &'static str,
        done: impl Fn(Events) -> bool,
    ) -> Result<(), CgroupError> {
        let end = Instant::now() + limit;
        let mut file = match File::open(self.dir.join("cgroup.events")) {
            Ok(file) => file,
            Err(e) if gone(&e) => return Ok(()),
            Err(source) => return Err(self.io("read", "cgroup.events", source)),
        };
        let mut text = String::new();
        loop {
            text.clear();
            match file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text)) {
                Ok(_) => {}
                Err(e) if gone(&e) => return Ok(()),
                Err(source) => return Err(self.io("read", "cgroup.events", source)),
            }
            if done(Events::parse(&text)) {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::Deadline { path: self.dir.clone(), wanted, limit });
            }
            // The kernel raises POLLPRI at each change; the short limit covers one lost between two reads.
            let step = left.min(Duration::from_millis(50)).as_millis().max(1) as u16;
            let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut fds, PollTimeout::from(step)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(self.io("poll", "cgroup.events", e.into())),
            }
        }
    }

    fn stuck(&self) -> Vec<StuckProcess> {
        let all: Vec<StuckProcess> =
            self.pids().unwrap_or_default().into_iter().filter_map(state_of).collect();
        // A task stopped by this freezer sleeps interruptibly (S) or is stopped (T, t) or dead (Z, X).
        let bad: Vec<StuckProcess> = all.iter().filter(|p| matches!(p.state, 'D' | 'R')).cloned().collect();
        if bad.is_empty() { all } else { bad }
    }

    fn write(&self, file: &str, text: &str) -> Result<(), CgroupError> {
        // Never O_CREAT: on a directory that is no cgroup this must fail.
        fs::OpenOptions::new()
            .write(true)
            .open(self.dir.join(file))
            .and_then(|mut f| io::Write::write_all(&mut f, text.as_bytes()))
            .map_err(|source| self.io("write", file, source))
    }

    fn io(&self, what: &'static str, file: &str, source: io::Error) -> CgroupError {
        CgroupError::Io { what, path: self.dir.join(file), source }
    }
}

fn gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
}

fn state_of(pid: i32) -> Option<StuckProcess> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let comm = stat.get(open + 1..close)?.to_owned();
    let state = stat.get(close + 1..)?.trim_start().chars().next()?;
    Some(StuckProcess { pid, comm, state })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_events() {
        assert_eq!(Events::parse("populated 1\nfrozen 0\n"), Events { populated: true, frozen: false });
        assert_eq!(Events::parse("populated 0\nfrozen 1\n"), Events { populated: false, frozen: true });
        assert_eq!(Events::parse("junk"), Events::default());
    }

    #[test]
    fn absent_cgroup_is_empty_thawed_and_removable() {
        let dir = tempfile::tempdir().unwrap();
        let cg = Cgroup::at(dir.path().join("none"));
        assert_eq!(cg.events().unwrap(), None);
        assert!(cg.pids().unwrap().is_empty());
        cg.thaw(Duration::from_millis(10)).unwrap();
        cg.kill(Duration::from_millis(10)).unwrap();
        cg.remove().unwrap();
        assert!(cg.freeze(Duration::from_millis(10)).is_err());
    }

    #[test]
    fn what_was_killed_is_no_longer_frozen() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in
            [("cgroup.freeze", "1"), ("cgroup.kill", ""), ("cgroup.events", "populated 0\nfrozen 1\n")]
        {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Cgroup::at(dir.path()).kill(Duration::from_millis(20)).unwrap();
        let said = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((said("cgroup.kill").trim(), said("cgroup.freeze").trim()), ("1", "0"));
        // Not while something is left: that must not run.
        std::fs::write(dir.path().join("cgroup.freeze"), "1").unwrap();
        std::fs::write(dir.path().join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        assert!(Cgroup::at(dir.path()).kill(Duration::from_millis(20)).is_err());
        assert_eq!(said("cgroup.freeze").trim(), "1");
    }

    #[test]
    fn freeze_deadline_names_the_processes() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("cgroup.freeze", "0"), ("cgroup.events", "populated 1\nfrozen 0\n")] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let me = std::process::id() as i32;
        fs::write(dir.path().join("cgroup.procs"), format!("{me}\n")).unwrap();
        match Cgroup::at(dir.path()).freeze(Duration::from_millis(20)) {
            Err(CgroupError::NotFrozen { pids, .. }) => assert_eq!(pids[0].pid, me),
            other => panic!("{other:?}"),
        }
    }
}
