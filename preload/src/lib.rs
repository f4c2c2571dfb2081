//! A library that the agent has loaded into CRIU (ld.so(8), `LD_PRELOAD`), to spare it work in the blackout.
//!
//! CRIU has no option for any of these, and each answers a call of CRIU's as the kernel might have:
//!
//! * [`left`]: pages that the agent carries itself are not populated. CRIU would splice each of them into a
//!   pipe, 60 ms a GiB, to leave them out afterwards.
//! * [`conntrack`]: a container without tracked connections has none, without two walks through the table of
//!   the whole host.
//! * [`epoll`]: the sockets of an epoll set are known by their inodes. The kernel would search the set for
//!   each of them.
//! * [`request`]: the runtime asks for a quieter log than it does: a line costs two microseconds, and a
//!   thousand connections make forty thousand lines.
//!
//! All is off unless the environment says so, and what is not understood goes to the kernel as it is. The
//! library is only loaded by CRIU itself, and not by what it starts: it takes its own name out of the
//! environment. Where it cannot be loaded a migration goes the same way, and takes longer.
//!
//! Rejected: a patched CRIU, which operators would have to build and trust; a plugin of CRIU's, for there is
//! no hook at any of these places; ptrace and seccomp notifications, which cost more than they save.

pub mod conntrack;
pub mod epoll;
pub mod left;
pub mod request;

use left::Left;
use linux_raw_sys::general::pm_scan_arg;
use nix::libc::{self, c_int, c_long, c_ulong, c_void, msghdr, size_t, ssize_t};
use std::ffi::OsString;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

const OWN_NAME: &str = "libtranship_preload.so";

/// The log level that the runtime asks for, in place of its own choice ([`request`]).
static LOG: OnceLock<u8> = OnceLock::new();
/// File that names pages which are left out ([`left`]), in a dump.
static LEFT_OUT: OnceLock<OsString> = OnceLock::new();
static LEFT: OnceLock<Left> = OnceLock::new();
/// The epoll set that was asked about last ([`epoll`]).
static SET: Mutex<Option<epoll::Set>> = Mutex::new(None);

extern "C" fn loaded() {
    // A script that stands for CRIU hands everything on.
    if !std::env::current_exe().is_ok_and(|program| program.ends_with("criu")) {
        return;
    }
    // What CRIU starts is not CRIU.
    let others = std::env::var("LD_PRELOAD").map(|all| without_own(&all)).unwrap_or_default();
    // SAFETY: the loader runs this before the program has a second thread.
    unsafe { std::env::set_var("LD_PRELOAD", others) };
    if let Some(path) = std::env::var_os("TRANSHIP_LEFT_OUT") {
        // The agent writes it, and takes that it is there for a sign that this library is.
        let _ = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let _ = LEFT_OUT.set(path);
    }
    if let Some(level) = std::env::var("TRANSHIP_CRIU_LOG_LEVEL").ok().and_then(|l| l.parse().ok()) {
        let _ = LOG.set(level);
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = loaded;

/// The file is read when it is needed and says something: CRIU tries the kernel out before the agent writes.
fn known() -> Option<&'static Left> {
    let path = Path::new(LEFT_OUT.get()?);
    if LEFT.get().is_none() {
        let left = Left::read(path);
        if left != Left::default() {
            let _ = LEFT.set(left);
        }
    }
    LEFT.get()
}

/// The list of ld.so(8) without this library.
fn without_own(all: &str) -> String {
    let others = all.split([' ', ':']).filter(|l| !l.is_empty() && !l.ends_with(OWN_NAME));
    others.collect::<Vec<_>>().join(":")
}

/// ioctl(2).
///
/// # Safety
/// As that of libc. The third argument is passed as in a call without variable arguments, which is the same
/// for pointers and integers on Linux on x86-64 and AArch64.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    let kernel = |argument: *mut c_void| {
        // SAFETY: the caller's own call, with what it gave or a copy that lives on.
        unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) as c_int }
    };
    if request == left::PAGEMAP_SCAN && !argument.is_null() {
        // SAFETY: the request's argument is of this type, by linux/fs.h.
        let scan = unsafe { &mut *argument.cast::<pm_scan_arg>() };
        let kernel = |scan: &mut pm_scan_arg| kernel(std::ptr::from_mut(scan).cast());
        if let Some(answer) = known().and_then(|left| left.scan(fd, scan, kernel)) {
            return answer;
        }
    }
    kernel(argument)
}

type Syscall = unsafe extern "C" fn(c_long, ...) -> c_long;

/// That of the C library.
fn next_syscall() -> Syscall {
    static NEXT: OnceLock<Syscall> = OnceLock::new();
    *NEXT.get_or_init(|| {
        // SAFETY: the name is a string that ends, and what is found under it is this function of libc's, which
        // is loaded as long as the program runs. None is found in no program that could call this one.
        unsafe {
            let found = libc::dlsym(libc::RTLD_NEXT, c"syscall".as_ptr());
            std::mem::transmute::<*mut c_void, Option<Syscall>>(found).unwrap_or_else(|| libc::abort())
        }
    })
}

/// syscall(2): kcmp(2) is made by it.
///
/// # Safety
/// As that of libc. Arguments that were not given are passed on as whatever stands in their place, as libc
/// does, which is the same for calls with and without variable arguments on Linux on x86-64 and AArch64.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    if number == libc::SYS_kcmp
        && c.cast_unsigned() == epoll::EPOLL_TFD
        && a == b
        && e != 0
        && LEFT_OUT.get().is_some()
        && let (Ok(pid), Ok(mut set)) = (c_int::try_from(a), SET.try_lock())
    {
        // SAFETY: the argument of this kind of question is such a structure, by linux/kcmp.h.
        let slot = unsafe { (e as *const epoll::Slot).read_unaligned() };
        if epoll::same(&mut set, pid, d.cast_unsigned(), slot) {
            return 0;
        }
    }
    // SAFETY: the caller's own call.
    unsafe { next_syscall()(number, a, b, c, d, e, f) }
}

/// recv(2).
///
/// # Safety
/// As that of libc.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recv(fd: c_int, buffer: *mut c_void, length: size_t, flags: c_int) -> ssize_t {
    let none = std::ptr::null_mut::<c_void>();
    // SAFETY: the caller's own call.
    let got = unsafe { libc::syscall(libc::SYS_recvfrom, fd, buffer, length, flags, none, 0) as ssize_t };
    if let (Some(level), Ok(bytes)) = (LOG.get(), usize::try_from(got))
        && fd == request::SOCKET
        && bytes <= length
        && !buffer.is_null()
    {
        // SAFETY: the kernel has just written so many bytes of the caller's buffer.
        request::quieten(unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), bytes) }, *level);
    }
    got
}

/// sendmsg(2).
///
/// # Safety
/// As that of libc.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    if LEFT_OUT.get().is_some() && !message.is_null() {
        // SAFETY: what sendmsg(2) is given is what it says.
        let part = unsafe {
            let message = &*message;
            if message.msg_iovlen == 1 && !message.msg_iov.is_null() {
                message.msg_iov.as_ref()
            } else {
                None
            }
        };
        if let Some(part) = part.filter(|p| !p.iov_base.is_null() && p.iov_len == conntrack::REQUEST) {
            // SAFETY: one part of this length; CRIU's requests are in memory of its own that it may write.
            let bytes = unsafe { std::slice::from_raw_parts_mut(part.iov_base.cast::<u8>(), part.iov_len) };
            conntrack::spare(bytes);
        }
    }
    // SAFETY: the caller's own call.
    unsafe { libc::syscall(libc::SYS_sendmsg, fd, message, flags) as ssize_t }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_name_goes() {
        assert_eq!(without_own("/a/libtranship_preload.so"), "");
        assert_eq!(without_own("/x/y.so:/a/libtranship_preload.so /z.so"), "/x/y.so:/z.so");
    }
}
