//! Visits to processes that notice everything: the calls that a visit interrupts go on with what is
//! left of their time, registers, signals and descriptors stay as they were, filters are not asked.

// Helpers outside of `#[test]` functions: a broken set-up is a failed test.
#![allow(clippy::unwrap_used)]

use nix::libc;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tranship_agent::memory::source::{WATCH_SOCKET, watch_pair, watch_receive};

const VARIABLE: &str = "TRANSHIP_TEST_VISITED";
/// Visits of one start of the helper.
const VISITS: usize = 40;

fn now_ms() -> i64 {
    // SAFETY: the structure is of this frame.
    unsafe {
        let mut t: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t);
        t.tv_sec * 1000 + t.tv_nsec / 1_000_000
    }
}

fn say(byte: u8) {
    // SAFETY: one byte of this frame.
    unsafe { libc::write(1, std::ptr::from_ref(&byte).cast(), 1) };
}

extern "C" fn on_alarm(_: i32) {}

/// What the process does for ever, in the one thread of a fresh process: a dot for each time that went
/// well, a letter for one that did not. Only system calls: it was forked from a program with threads.
fn work(what: &str) -> ! {
    let time = libc::timespec { tv_sec: 0, tv_nsec: 40_000_000 };
    let (mut pipe, mut count) = ([0; 2], 0u64);
    // SAFETY: system calls on structures of this frame.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::pipe(pipe.as_mut_ptr());
        libc::signal(libc::SIGTRAP, libc::SIG_IGN);
        if what == "alarm" {
            libc::signal(libc::SIGALRM, on_alarm as *const () as libc::sighandler_t);
            let every = libc::timeval { tv_sec: 0, tv_usec: 700 };
            let timer = libc::itimerval { it_interval: every, it_value: every };
            libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut());
        }
        if what == "filtered" {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT);
        }
        loop {
            let start = now_ms_unless(what == "filtered");
            let good = match what {
                "sleep" => libc::nanosleep(&time, std::ptr::null_mut()) == 0,
                "poll" => {
                    let mut fds = libc::pollfd { fd: pipe[0], events: libc::POLLIN, revents: 0 };
                    libc::poll(&mut fds, 1, 40) == 0
                }
                "futex" => {
                    let word = 0u32;
                    let wait = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
                    libc::syscall(libc::SYS_futex, &word, wait, 0, &time) == -1
                        && *libc::__errno_location() == libc::ETIMEDOUT
                }
                // Blocks in the write end of its output when nobody reads, else runs in user code.
                "filtered" | "alarm" | "count" => {
                    let sum = std::hint::black_box((0..200_000u64).fold(count as f64, |s, n| s + n as f64));
                    count += 1;
                    sum == (count - 1) as f64 + 19_999_900_000.0
                }
                _ => false,
            };
            let long_enough = matches!(what, "filtered" | "alarm" | "count") || now_ms() - start >= 39;
            let quiet = what == "filtered" || libc::signal(libc::SIGTRAP, libc::SIG_IGN) == libc::SIG_IGN;
            say(match (good, long_enough, quiet) {
                (true, true, true) => b'.',
                (false, ..) => b'E',
                (_, false, _) => b'T',
                (.., false) => b'S',
            });
        }
    }
}

fn now_ms_unless(filtered: bool) -> i64 {
    if filtered { 0 } else { now_ms() }
}

#[test]
fn visited() {
    let Some(what) = std::env::var_os(VARIABLE) else { return };
    let what = what.into_string().unwrap();
    // SAFETY: the child makes system calls only, and the parent waits for it.
    let child = unsafe { libc::fork() };
    if child == 0 {
        work(&what);
    }
    println!("PID {child}");
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    std::process::exit(0);
}

struct Visited {
    runner: Child,
    output: BufReader<ChildStdout>,
    pid: i32,
}

impl Visited {
    fn start(what: &str) -> Self {
        let mut runner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "visited", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, what)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(runner.stdout.take().unwrap());
        let pid = loop {
            let mut line = Vec::new();
            assert!(output.read_until(b'\n', &mut line).unwrap() > 0, "it has not started");
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Some((_, pid)) = line.split_once("PID ") {
                break pid.trim().parse().unwrap();
            }
        };
        Self { runner, output, pid }
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().count()
    }

    /// What it has said in this time.
    fn listen(&mut self, time: Duration) -> String {
        let (end, mut said) = (Instant::now() + time, Vec::new());
        while Instant::now() < end {
            let mut some = [0; 4096];
            let n = self.output.read(&mut some).unwrap();
            assert!(n > 0, "it has died; it said {}", String::from_utf8_lossy(&said));
            said.extend_from_slice(&some[..n]);
        }
        String::from_utf8_lossy(&said).into_owned()
    }
}

impl Drop for Visited {
    fn drop(&mut self) {
        // SAFETY: a process of this test.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        let _ = self.runner.kill();
        let _ = self.runner.wait();
    }
}

/// Visits a process many times; answers why visits failed.
fn visit(pid: i32, times: usize) -> Vec<String> {
    let (ours, theirs) = watch_pair().unwrap();
    nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let mut helper = Command::new(env!("CARGO_BIN_EXE_transhipd"))
        .arg("watch")
        .args(vec![pid.to_string(); times])
        .env(WATCH_SOCKET, theirs.as_raw_fd().to_string())
        .spawn()
        .unwrap();
    drop(theirs);
    let answers: Vec<_> = (0..times).map(|_| watch_receive(&ours).unwrap()).collect();
    assert!(helper.wait().unwrap().success());
    answers.into_iter().filter_map(Result::err).collect()
}

fn undisturbed(what: &str, misses: usize) {
    let mut process = Visited::start(what);
    // It is at work, with all that it opens, once it has said something.
    let mut said = process.listen(Duration::from_millis(1));
    let before = process.descriptors();
    let pid = process.pid;
    let visits = std::thread::spawn(move || (0..10).flat_map(|_| visit(pid, VISITS)).collect::<Vec<_>>());
    while !visits.is_finished() {
        said += &process.listen(Duration::from_millis(50));
    }
    said += &process.listen(Duration::from_millis(200));
    let failed = visits.join().unwrap();
    assert!(
        failed.len() <= misses,
        "{what}: {} of {} visits failed: {:?}",
        failed.len(),
        10 * VISITS,
        failed.first()
    );
    let wrong: String = said.chars().filter(|c| *c != '.').collect();
    assert!(wrong.is_empty(), "{what}: {wrong} in {} times", said.len());
    assert_eq!(process.descriptors(), before, "{what}: descriptors are left");
}

#[test]
fn sleeping() {
    undisturbed("sleep", 0);
}

#[test]
fn polling() {
    undisturbed("poll", 0);
}

#[test]
fn waiting_for_a_futex() {
    undisturbed("futex", 0);
}

#[test]
fn computing() {
    undisturbed("count", 0);
}

#[test]
fn with_signals_all_the_time() {
    undisturbed("alarm", 0);
}

#[test]
fn behind_a_filter() {
    undisturbed("filtered", 0);
}

#[test]
fn a_stopped_process_is_left_alone() {
    let mut process = Visited::start("sleep");
    process.listen(Duration::from_millis(100));
    // SAFETY: a process of this test.
    unsafe { libc::kill(process.pid, libc::SIGSTOP) };
    std::thread::sleep(Duration::from_millis(50));
    let why = visit(process.pid, 3);
    assert_eq!(why.len(), 3);
    assert!(why.iter().all(|w| w.contains("state T")), "{why:?}");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap();
    assert!(stat.contains(") T "), "{stat}");
    // SAFETY: as above.
    unsafe { libc::kill(process.pid, libc::SIGCONT) };
    assert!(process.listen(Duration::from_millis(200)).contains("..."));
    assert_eq!(visit(i32::MAX - 1, 1).len(), 1, "no such process");
}
