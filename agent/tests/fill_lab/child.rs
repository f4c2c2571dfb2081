//! The process that is filled in. It checks what it reads and says what was wrong.

use super::{BASE, PAGE, PID, word};
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Pages behind the data that were never written to.
const EMPTY: u64 = 64;

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, [u64; 3]);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, [u64; 4]);

fn say(text: &str) {
    // One write: other processes of this test write here too.
    let _ = std::io::stdout().write_all(format!("child: {text}\n").as_bytes());
    let _ = std::io::stdout().flush();
}

fn heard() -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while std::io::stdin().read(&mut byte).is_ok_and(|n| n == 1) && byte[0] != b'\n' {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

fn read(at: u64) -> u64 {
    // SAFETY: the callers read what they have mapped.
    unsafe { std::ptr::read_volatile(at as *const u64) }
}

/// Checks pages of data that are mapped at `at`.
fn check(at: u64, pages: std::ops::Range<u64>) -> bool {
    for (i, page) in pages.enumerate() {
        let here = at + i as u64 * PAGE;
        let (first, last) = (read(here), read(here + PAGE - 8));
        if (first, last) != (word(page), word(page)) {
            say(&format!("WRONG page {page} at {here:#x}: {first:#x} {last:#x}"));
            return false;
        }
    }
    true
}

fn zeros(at: u64, pages: u64) -> bool {
    let bad = (0..pages).find(|i| read(at + i * PAGE) != 0 || read(at + i * PAGE + PAGE - 8) != 0);
    if let Some(bad) = bad {
        say(&format!("WRONG page {bad} at {at:#x} is not empty: {:#x}", read(at + bad * PAGE)));
    }
    bad.is_none()
}

fn map(at: u64, pages: u64) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
    let (length, protection) = ((pages * PAGE) as usize, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: new memory where none is.
    let got = unsafe { libc::mmap(at as *mut libc::c_void, length, protection, flags, -1, 0) };
    assert_eq!(got as u64, at);
}

/// As CRIU's restorer does.
fn hand_over(pages: u64) -> UnixStream {
    map(BASE, pages + EMPTY);
    // SAFETY: a new descriptor; the requests are structs of the kernel's sizes: uffdio_api with the
    // features fork, remap, remove, unmap, and uffdio_register in mode missing.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let fd = i32::try_from(fd).unwrap();
        uffdio_api(fd, &mut [0xaa, 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6, 0]).unwrap();
        uffdio_register(fd, &mut [BASE, (pages + EMPTY) * PAGE, 1, 0]).unwrap();
        let mut socket = UnixStream::connect(std::env::var("FILL_SOCKET").unwrap()).unwrap();
        socket.write_all(&(PID as i32).to_ne_bytes()).unwrap();
        let fds = [fd];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::empty(), None).unwrap();
        libc::close(fd);
        socket
    }
}

/// A forked process that checks and ends; its status is waited for.
fn fork(work: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child only reads memory, writes to a descriptor and exits.
    match unsafe { libc::fork() } {
        0 => {
            let good = work();
            // SAFETY: ends this process.
            unsafe { libc::_exit(i32::from(!good)) }
        }
        pid => pid,
    }
}

fn ended_well(pid: i32) -> bool {
    let mut status = 0;
    // SAFETY: the status is ours.
    let got = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    got == pid && status == 0
}

fn advise(at: u64, pages: u64, what: i32) {
    // SAFETY: our memory.
    assert_eq!(unsafe { libc::madvise(at as *mut libc::c_void, (pages * PAGE) as usize, what) }, 0);
}

fn unmap(at: u64, pages: u64) {
    // SAFETY: our memory, which nothing reads any more.
    assert_eq!(unsafe { libc::munmap(at as *mut libc::c_void, (pages * PAGE) as usize) }, 0);
}

fn remap(from: u64, pages: u64, to: u64) {
    let (length, flags) = ((pages * PAGE) as usize, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
    // SAFETY: our memory, moved to where nothing is, or to other memory of ours.
    let got =
        unsafe { libc::mremap(from as *mut libc::c_void, length, length, flags, to as *mut libc::c_void) };
    assert_eq!(got as u64, to, "{}", std::io::Error::last_os_error());
}

fn protect(at: u64, pages: u64, protection: i32) {
    // SAFETY: our memory; it stays readable.
    assert_eq!(unsafe { libc::mprotect(at as *mut libc::c_void, (pages * PAGE) as usize, protection) }, 0);
}

/// What the test [`super::Lab::child`] starts does.
pub fn main(what: &str) {
    assert_eq!(heard(), "go");
    let pages: u64 = std::env::var("FILL_PAGES").unwrap().parse().unwrap();
    let mut socket = hand_over(pages);
    let elsewhere = BASE + (1 << 34);
    // Held: whatever the restore touches has to be right.
    let mut good = check(BASE + 3 * PAGE, 3..4) && zeros(BASE + pages * PAGE, 1);
    if what == "held" {
        say("held");
        heard();
        drop(socket);
        std::thread::sleep(super::LIMIT);
        say("alive");
        return;
    }
    say("held");
    heard();
    socket.write_all(&0x5253_5446u32.to_ne_bytes()).unwrap();
    let half = pages / 2;
    match what {
        "touch" => {
            good &= check(BASE, 0..pages) && zeros(BASE + pages * PAGE, EMPTY);
        }
        "wait" => {
            say("running");
            heard();
            good &= check(BASE, 0..pages) && zeros(BASE + pages * PAGE, EMPTY);
        }
        "exit" => {
            say("good");
            std::process::exit(0);
        }
        "fork" => {
            let mut children = Vec::new();
            for n in 0..4u64 {
                // Backwards, so that the background is not there first.
                let from = half + n * pages / 16;
                children.push(fork(move || {
                    let grandchild = fork(move || check(BASE, 0..half));
                    check(BASE + from * PAGE, from..pages)
                        && check(BASE, 0..from)
                        && ended_well(grandchild)
                        && zeros(BASE + pages * PAGE, EMPTY)
                }));
            }
            good &= check(BASE, 0..pages);
            for pid in children {
                good &= ended_well(pid);
            }
        }
        "remap" => {
            // A piece out of the middle, then a part of that again, then onto other memory.
            remap(BASE + half * PAGE, half / 2, elsewhere);
            remap(elsewhere + 16 * PAGE, 64, elsewhere + (1 << 33));
            remap(BASE + 32 * PAGE, 32, BASE + 256 * PAGE);
            good &= check(elsewhere + (1 << 33), half + 16..half + 80);
            good &= check(elsewhere, half..half + 16);
            good &= check(elsewhere + 80 * PAGE, half + 80..half + half / 2);
            good &= check(BASE + 256 * PAGE, 32..64);
            good &= check(BASE, 0..32) && check(BASE + 288 * PAGE, 288..half);
            map(BASE + half * PAGE, half / 2);
            good &= zeros(BASE + half * PAGE, half / 2);
        }
        "advise" => {
            advise(BASE + half * PAGE, 128, libc::MADV_DONTNEED);
            advise(BASE + (half + 128) * PAGE, 64, libc::MADV_FREE);
            good &= zeros(BASE + half * PAGE, 128);
            good &= check(BASE, 0..half) && check(BASE + (half + 192) * PAGE, half + 192..pages);
            // What is written after it stays.
            // SAFETY: our memory.
            unsafe { std::ptr::write_volatile((BASE + half * PAGE) as *mut u64, 5) };
            good &= read(BASE + half * PAGE) == 5;
        }
        "unmap" => {
            unmap(BASE + half * PAGE, half);
            map(BASE + half * PAGE, half);
            good &= zeros(BASE + half * PAGE, half) && check(BASE, 0..half);
        }
        "protect" => {
            for piece in (0..pages).step_by(48) {
                protect(BASE + piece * PAGE, 5.min(pages - piece), libc::PROT_READ);
            }
            good &= check(BASE, 0..pages);
        }
        // Reads on and on, in many processes, until it is killed. It must not see anything wrong.
        "storm" => {
            say("running");
            for n in 0..3 {
                fork(move || {
                    loop {
                        let from = (n * 7919) % pages;
                        let child = fork(move || check(BASE + from * PAGE, from..pages));
                        if !check(BASE, 0..pages) || !ended_well(child) {
                            say("WRONG in a child");
                            return false;
                        }
                    }
                });
            }
            while check(BASE, 0..pages) {}
            return;
        }
        other => panic!("{other}"),
    }
    say(if good { "good" } else { "WRONG" });
}
