//! Rounds over the memory of real processes: what a destination that does as it is told has at the
//! end is compared with the memory itself. Each test runs with the kernel's write protection and
//! with the comparison of everything.
//!
//! A subject is this test program again, which works on command: it is told over its input what to do
//! to its memory, and answers when it has done it.

// Helpers outside of `#[test]` functions: a broken set-up is a failed test.
#![allow(clippy::unwrap_used)]

use nix::libc;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::AtomicBool;
use tranship_agent::memory::source::{
    PageSink, RoundError, Rounds, WATCH_SOCKET, lane, watch_pair, watch_receive,
};
use tranship_proto::pages::{PAGE, PageBatch};

const VARIABLE: &str = "TRANSHIP_TEST_SUBJECT";
const SIZE: usize = PAGE as usize;

/// A destination: slots and tables, as the protocol says.
#[derive(Default)]
struct Receiver {
    slots: HashMap<u32, Vec<u8>>,
    pages: HashMap<(u32, u64), Option<u32>>,
    data_pages: u64,
}

impl PageSink for Receiver {
    fn pages(&mut self, batch: &PageBatch, data: bytes::Bytes) -> Result<(), RoundError> {
        batch.check(data.len(), u32::MAX).unwrap();
        let mut contents = data.chunks_exact(SIZE);
        for (runs, with_data) in [(&batch.data, true), (&batch.refs, false)] {
            for run in runs {
                for i in 0..run.pages {
                    if with_data {
                        self.slots.insert(run.slot + i, contents.next().unwrap().to_vec());
                        self.data_pages += 1;
                    }
                    let vaddr = run.vaddr + u64::from(i) * PAGE;
                    self.pages.insert((batch.pid, vaddr), Some(run.slot + i));
                }
            }
        }
        for run in &batch.zeros {
            for i in 0..run.pages {
                self.pages.insert((batch.pid, run.vaddr + u64::from(i) * PAGE), None);
            }
        }
        Ok(())
    }
}

impl Receiver {
    fn page(&self, pid: u32, vaddr: u64) -> Option<Vec<u8>> {
        let slot = self.pages.get(&(pid, vaddr))?;
        Some(slot.map_or_else(|| vec![0; SIZE], |slot| self.slots[&slot].clone()))
    }
}

/// The other process.
struct Subject {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Subject {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "subject", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut subject = Self { child, input, output };
        subject.answer();
        subject
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Does something there; answers the number it answers.
    fn tell(&mut self, command: &str) -> u64 {
        writeln!(self.input, "{command}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> u64 {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the subject has died");
            // The test harness says something of its own before.
            if let Some((_, number)) = line.split_once("DONE ") {
                return number.trim().parse().unwrap();
            }
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn map(at: u64, pages: u64) -> u64 {
    let fixed = if at == 0 { 0 } else { libc::MAP_FIXED };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
    // SAFETY: a fresh mapping, or over one that only the commands know.
    let area = unsafe {
        libc::mmap(
            at as *mut libc::c_void,
            (pages * PAGE) as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    assert_ne!(area, libc::MAP_FAILED);
    area as u64
}

/// What the other process runs; nothing when it is run as a test.
#[test]
fn subject() {
    if std::env::var_os(VARIABLE).is_none() {
        return;
    }
    println!("DONE 0");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let mut words = line.split(' ');
        let command = words.next().unwrap().to_owned();
        let n: Vec<u64> = words.map(|w| w.parse().unwrap()).collect();
        let answer = match command.as_str() {
            // map AT PAGES
            "map" => map(n[0], n[1]),
            // fill AT PAGES BYTE: different contents for each page and byte
            "fill" => {
                for i in 0..n[1] {
                    let page = (n[0] + i * PAGE) as *mut u8;
                    // SAFETY: a mapping that an earlier command has made.
                    unsafe {
                        page.write_bytes(n[2] as u8, SIZE);
                        if n[2] != 0 {
                            page.cast::<u64>().write_volatile(n[0] + i);
                        }
                    }
                }
                0
            }
            // same AT PAGES BYTE: the same contents in all of them
            "same" => {
                // SAFETY: as above.
                unsafe { (n[0] as *mut u8).write_bytes(n[2] as u8, (n[1] * PAGE) as usize) };
                0
            }
            "unmap" | "drop" => {
                let (at, length) = (n[0] as *mut libc::c_void, (n[1] * PAGE) as usize);
                // SAFETY: as above.
                let rc = unsafe {
                    if command == "unmap" {
                        libc::munmap(at, length)
                    } else {
                        libc::madvise(at, length, libc::MADV_DONTNEED)
                    }
                };
                assert_eq!(rc, 0);
                0
            }
            // lock AT PAGES
            "lock" => {
                // SAFETY: as above.
                let rc = unsafe { libc::mlock(n[0] as *const libc::c_void, (n[1] * PAGE) as usize) };
                assert_eq!(rc, 0);
                0
            }
            // move FROM PAGES TO
            "move" => {
                let length = (n[1] * PAGE) as usize;
                // SAFETY: as above.
                let to = unsafe {
                    libc::mremap(
                        n[0] as *mut libc::c_void,
                        length,
                        length,
                        libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                        n[2] as *mut libc::c_void,
                    )
                };
                assert_eq!(to as u64, n[2]);
                0
            }
            // fork AT PAGES BYTE: a child that fills and then sleeps
            "fork" => {
                // SAFETY: the child only writes memory and sleeps.
                let child = unsafe { libc::fork() };
                if child == 0 {
                    for i in 0..n[1] {
                        // SAFETY: as above.
                        unsafe { ((n[0] + i * PAGE) as *mut u8).write_bytes(n[2] as u8, SIZE) };
                    }
                    // SAFETY: plain system calls; it goes with its parent.
                    unsafe {
                        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                        loop {
                            libc::pause();
                        }
                    }
                }
                std::thread::sleep(std::time::Duration::from_millis(100));
                child.unsigned_abs().into()
            }
            other => panic!("{other}"),
        };
        println!("DONE {answer}");
    }
    std::process::exit(0);
}

/// Descriptors by the helper, as the agent gets them.
fn watch(rounds: &mut Rounds, pids: &[i32]) {
    let (ours, theirs) = watch_pair().unwrap();
    // Inherited: the flag is lost only in this test program.
    nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let mut helper = Command::new(env!("CARGO_BIN_EXE_transhipd"))
        .arg("watch")
        .args(pids.iter().map(ToString::to_string))
        .env(WATCH_SOCKET, theirs.as_raw_fd().to_string())
        .spawn()
        .unwrap();
    drop(theirs);
    for pid in pids {
        let fd = watch_receive(&ours).unwrap().unwrap_or_else(|e| panic!("process {pid}: {e}"));
        rounds.watch(*pid, fd).unwrap();
    }
    assert!(helper.wait().unwrap().success());
}

struct Scene {
    subject: Subject,
    rounds: Rounds,
    receiver: Receiver,
    watched: bool,
    extra: Vec<i32>,
}

impl Scene {
    fn new(watched: bool) -> Self {
        Self {
            subject: Subject::start(),
            rounds: Rounds::new(1 << 16).unwrap(),
            receiver: Receiver::default(),
            watched,
            extra: Vec::new(),
        }
    }

    /// A round; answers how many pages were looked at and how many had new contents.
    fn round(&mut self, last: bool) -> (u64, u64) {
        let pids: Vec<i32> = std::iter::once(self.subject.pid()).chain(self.extra.iter().copied()).collect();
        let new = self.rounds.processes(&pids);
        if self.watched && !new.is_empty() {
            watch(&mut self.rounds, &new);
        }
        let plan = self.rounds.plan(last).unwrap();
        let before = self.receiver.data_pages;
        lane(&plan, &mut self.receiver, &AtomicBool::new(false)).unwrap();
        (plan.pages, self.receiver.data_pages - before)
    }

    /// All pages of a range are at the receiver as they are in the process.
    fn check_in(&self, pid: i32, at: u64, pages: u64) {
        use std::os::unix::fs::FileExt;
        let mem = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
        for vaddr in (at..at + pages * PAGE).step_by(SIZE) {
            let mut want = vec![0; SIZE];
            mem.read_exact_at(&mut want, vaddr).unwrap();
            let got = self.receiver.page(pid.cast_unsigned(), vaddr);
            assert!(
                got.as_ref() == Some(&want),
                "page {} at {vaddr:#x} of {pid}: {:?}",
                (vaddr - at) / PAGE,
                got.map(|g| g[..16].to_vec())
            );
        }
    }

    fn check(&self, at: u64, pages: u64) {
        self.check_in(self.subject.pid(), at, pages);
    }
}

fn both(test: impl Fn(Scene)) {
    for watched in [false, true] {
        eprintln!("watched: {watched}");
        test(Scene::new(watched));
    }
}

#[test]
fn written_pages_are_carried_and_no_others() {
    both(|mut s| {
        let at = s.subject.tell("map 0 1000");
        s.subject.tell(&format!("fill {at} 1000 7"));
        s.round(false);
        s.check(at, 1000);
        s.round(false);
        let (looked_at, sent) = s.round(false);
        assert!(sent < 64, "{sent} pages of an idle process");
        if s.watched {
            assert!(looked_at < 64, "{looked_at} pages of an idle process were looked at");
        }
        s.subject.tell(&format!("fill {} 3 9", at + 100 * PAGE));
        s.subject.tell(&format!("fill {} 1 9", at + 999 * PAGE));
        let (_, sent) = s.round(false);
        assert!((4..64).contains(&sent), "{sent} pages for 4 that were written");
        s.check(at, 1000);
        s.subject.tell(&format!("fill {} 2 0", at + 500 * PAGE));
        s.subject.tell(&format!("same {} 300 5", at + 600 * PAGE));
        let (_, sent) = s.round(true);
        assert!(sent < 64, "{sent} pages with contents for 300 equal ones");
        s.check(at, 1000);
    });
}

#[test]
fn memory_that_is_mapped_moved_and_dropped_between_rounds_is_right() {
    both(|mut s| {
        let at = s.subject.tell("map 0 400");
        s.subject.tell(&format!("fill {at} 400 7"));
        s.round(false);
        // Another mapping at the same place, with the old contents in one page and new in others.
        s.subject.tell(&format!("unmap {at} 100"));
        s.subject.tell(&format!("map {at} 100"));
        s.subject.tell(&format!("fill {at} 50 8"));
        // Watched and protected pages that are moved over others of the same sort.
        s.subject.tell(&format!("move {} 50 {}", at + 350 * PAGE, at + 200 * PAGE));
        s.subject.tell(&format!("drop {} 10", at + 110 * PAGE));
        s.subject.tell(&format!("fill {} 5 3", at + 110 * PAGE));
        s.round(false);
        s.check(at, 50);
        s.check(at + 100 * PAGE, 10);
        s.check(at + 110 * PAGE, 5);
        s.check(at + 120 * PAGE, 230);
        // The same again, seen by the last round only.
        s.subject.tell(&format!("move {} 50 {}", at + 300 * PAGE, at + 130 * PAGE));
        s.subject.tell(&format!("drop {} 10", at + 110 * PAGE));
        s.subject.tell(&format!("fill {} 2 4", at + 110 * PAGE));
        let new = s.subject.tell("map 0 20");
        s.subject.tell(&format!("fill {new} 20 1"));
        s.round(true);
        s.check(new, 20);
        s.check(at + 110 * PAGE, 2);
        s.check(at + 120 * PAGE, 180);
    });
}

#[test]
fn a_child_has_pages_of_its_own() {
    both(|mut s| {
        let at = s.subject.tell("map 0 300");
        s.subject.tell(&format!("fill {at} 300 7"));
        s.round(false);
        let child = i32::try_from(s.subject.tell(&format!("fork {} 40 66", at + 10 * PAGE))).unwrap();
        s.extra.push(child);
        s.subject.tell(&format!("fill {} 40 5", at + 30 * PAGE));
        s.round(false);
        s.check(at, 300);
        s.check_in(child, at, 300);
        s.subject.tell(&format!("fill {at} 1 5"));
        s.round(true);
        s.check(at, 300);
        s.check_in(child, at, 300);
    });
}

/// Of a process with one thread: word 7 of proc_pid_syscall(5) is its stack pointer.
fn stack_pointer(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
    let word = text.split_whitespace().nth(7).unwrap();
    u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap()
}

#[test]
fn a_dump_need_not_look_at_what_is_watched() {
    both(|mut s| {
        let at = s.subject.tell("map 0 1000");
        s.subject.tell(&format!("fill {} 10 7", at + 20 * PAGE));
        s.subject.tell(&format!("fill {} 5 7", at + 40 * PAGE));
        s.round(false);
        // Mapped since: nobody watches it.
        let new = s.subject.tell("map 0 8");
        s.subject.tell(&format!("fill {new} 8 7"));
        // The subject waits for input: as good as frozen.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let left = s.rounds.leave_out();
        let pid = s.subject.pid();
        let ranges: Vec<std::ops::Range<u64>> = left
            .text()
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                assert_eq!(words[0], pid.to_string());
                let address = |word| u64::from_str_radix(word, 16).unwrap();
                address(words[1])..address(words[2])
            })
            .collect();
        if !s.watched {
            assert!(ranges.is_empty(), "{ranges:x?}");
            return;
        }
        let has = |vaddr: u64| ranges.iter().any(|r| r.contains(&vaddr));
        assert!(has(at) && has(at + 999 * PAGE), "{at:x} in {ranges:x?}");
        assert!(!has(new), "{new:x} is not watched");
        assert!(!has(stack_pointer(pid)), "a stack pointer points there");
        s.round(true);
        let populated = left.populated().unwrap();
        assert_eq!(populated.len(), 1);
        let (inner, runs) = &populated[0];
        assert_eq!(*inner, pid.unsigned_abs());
        let mapped = at..at + 1000 * PAGE;
        let here: Vec<_> = runs.iter().filter(|r| mapped.contains(&r.start)).cloned().collect();
        assert_eq!(here, [at + 20 * PAGE..at + 30 * PAGE, at + 40 * PAGE..at + 45 * PAGE]);
        // What is known at the destination is all that CRIU is not told of.
        for run in runs {
            s.check(run.start, (run.end - run.start) / PAGE);
        }
        // A child that nobody watches is worth a look when it has much.
        let many = s.subject.tell("map 0 8192");
        s.subject.tell(&format!("fill {many} 8192 7"));
        let child = i32::try_from(s.subject.tell(&format!("fork {many} 10 9"))).unwrap();
        s.extra.push(child);
        s.rounds.processes(&[pid, child]);
        let of_child = format!("{child} {many:x} {:x}", many + 8192 * PAGE);
        let text = s.rounds.leave_out().text();
        assert!(text.lines().any(|l| l == of_child), "{of_child} in {text}");
        s.round(true);
        s.check_in(child, many, 8192);
        s.subject.tell(&format!("lock {at} 1"));
        std::thread::sleep(std::time::Duration::from_millis(50));
        let text = s.rounds.leave_out().text();
        let locked = format!("{pid} {at:x} ");
        assert!(text.contains(&format!("{pid} {:x} ", at + PAGE)), "the rest is not locked: {text}");
        assert!(!text.contains(&locked), "locked memory is CRIU's: {text}");
    });
}
