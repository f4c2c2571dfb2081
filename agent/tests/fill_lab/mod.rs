//! A fill process with a store of known contents, and a process that is filled in by it, which does
//! what CRIU's restore does: it makes a userfaultfd of its own, hands it over, and says when it runs.

pub mod child;

use nix::libc;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tranship_agent::memory::fill::{self, FillFiles, FillRequest};
use tranship_agent::memory::map::FillMap;
use tranship_agent::memory::store::{PAGES, PAGES_MAP};
use tranship_agent::runtime::Cgroup;
use tranship_proto::pages::SlotRun;

/// Where the child has its memory.
pub const BASE: u64 = 0x10_0000_0000;
pub const PAGE: u64 = 4096;
/// Number of the child in its container.
pub const PID: u32 = 7;
pub const LIMIT: Duration = Duration::from_secs(60);

/// What stands at the beginning and the end of a page.
pub fn word(page: u64) -> u64 {
    0x5a00_0000_0000 + page
}

/// One lab for each test.
pub struct Lab {
    dir: tempfile::TempDir,
    pub request: FillRequest,
    pub cgroup: Cgroup,
    pub pages: u64,
}

fn cgroup2() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let found = mounts.lines().find(|l| l.contains(" - cgroup2 ")).expect("no cgroup2 tree is mounted");
    found.split(' ').nth(4).unwrap().into()
}

impl Lab {
    /// A store with so many pages, of which every eighth shares its slot with the one before.
    pub fn new(pages: u64) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let images = dir.path().join("images");
        std::fs::create_dir(&images).unwrap();
        let file = std::fs::File::create(images.join(PAGES)).unwrap();
        let mut runs = Vec::new();
        for page in 0..pages {
            let mut contents = [0x77; PAGE as usize];
            contents[..8].copy_from_slice(&word(page).to_ne_bytes());
            contents[PAGE as usize - 8..].copy_from_slice(&word(page).to_ne_bytes());
            // Slots lie the other way round within each 64 pages, so that runs are short now and then.
            let slot = if page % 64 < 8 { page ^ 7 } else { page };
            file.write_all_at(&contents, slot * PAGE).unwrap();
            runs.push(SlotRun { vaddr: BASE + page * PAGE, pages: 1, slot: u32::try_from(slot).unwrap() });
        }
        let slots = u32::try_from(pages).unwrap();
        FillMap { slots, processes: vec![(PID, runs)] }.write(&images.join(PAGES_MAP)).unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = cgroup2().join(format!("tranship-fill-{}-{number}", std::process::id()));
        let request = FillRequest {
            program: env!("CARGO_BIN_EXE_transhipd").into(),
            work_dir: images.join("work"),
            image_dir: images,
            cgroup: cgroup.clone(),
            files: FillFiles { dir: dir.path().join("fills"), name: "web".parse().unwrap() },
        };
        let cgroup = Cgroup::at(cgroup);
        cgroup.create().unwrap();
        Self { dir, request, cgroup, pages }
    }

    pub async fn start(&self) {
        fill::start(&self.request).await.unwrap();
    }

    /// A process that does `what`; see [`child`].
    pub fn child(&self, what: &str) -> Filled {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
            .env("FILL_CHILD", what)
            .env("FILL_SOCKET", self.request.work_dir.join("lazy-pages.socket"))
            .env("FILL_PAGES", self.pages.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        self.cgroup.add(child.id()).unwrap();
        // It waits for this before it does anything.
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Filled { child, out }
    }

    /// Worker and keeper of this lab, by their command line: the worker is the younger.
    pub fn processes(&self) -> Vec<i32> {
        let dir = self.request.files.dir.to_str().unwrap().to_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).split('\0').any(|a| a == dir) {
                let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
                let start = stat.rsplit(')').next().and_then(|s| s.split_whitespace().nth(19)?.parse().ok());
                found.push((start.unwrap_or(0u64), pid));
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, pid)| pid).collect()
    }

    /// Worker and keeper when both are there, and nobody else.
    pub fn worker_and_keeper(&self) -> (i32, i32) {
        let [a, b] = self.processes()[..] else { panic!("{:?}", self.processes()) };
        if parent(a) == b { (a, b) } else { (b, a) }
    }

    pub fn wait_until(&self, what: &str, ready: impl Fn() -> bool) {
        let end = Instant::now() + LIMIT;
        while !ready() {
            assert!(Instant::now() < end, "{what} did not come");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Neither process, socket nor word is left, and the store has been given back.
    pub fn nothing_is_left(&self) {
        self.wait_until("the end of both processes", || self.processes().is_empty());
        let left: Vec<_> = std::fs::read_dir(&self.request.files.dir).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    pub fn stored_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(self.request.image_dir.join(PAGES)).unwrap().blocks() * 512
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.cgroup.kill(Duration::from_secs(10));
        let _ = self.cgroup.remove();
        let _ = self.dir.path();
    }
}

fn parent(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|s| s.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// The child, seen from outside.
pub struct Filled {
    pub child: Child,
    out: BufReader<ChildStdout>,
}

impl Filled {
    /// Its next line that is meant for us.
    pub fn line(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.out.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some((_, said)) = line.trim_end().split_once("child: ") {
                return Some(said.to_owned());
            }
        }
    }

    /// All it has said, to its end.
    pub fn rest(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.line()).collect()
    }

    pub fn say(&mut self, text: &str) {
        std::io::Write::write_all(self.child.stdin.as_mut().unwrap(), text.as_bytes()).unwrap();
    }

    /// The signal that ended it.
    pub fn signal(&mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        self.child.wait().unwrap().signal()
    }
}

pub fn kill(pid: i32) {
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
}
