//! `transhipd watch`: the process that visits others (see [`super::inject`]) and hands their
//! userfaultfds to the agent, one message each over a socket.

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

/// The variable that names the socket's descriptor.
pub const SOCKET: &str = "TRANSHIP_WATCH_SOCKET";
/// Longest reason that is carried, in bytes.
const MAX_REASON: usize = 200;
/// How long the visits of one round may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// `transhipd watch PID...`: for each process, in order, a message with its descriptor or the reason
/// why there is none.
pub fn watch_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // No signal may end this process while another one has its registers.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    let _ = rustix::process::setsid();
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let socket = std::env::var(SOCKET).ok().and_then(|n| n.parse::<RawFd>().ok()).filter(|n| *n > 2);
    let pids: Option<Vec<i32>> = args.into_iter().map(|a| a.to_str()?.parse().ok()).collect();
    let (Some(socket), Some(pids)) = (socket, pids) else {
        eprintln!("usage: transhipd watch PID..., by the agent only");
        return ExitCode::from(2);
    };
    // SAFETY: the agent has put the descriptor there for this process, which has done nothing with it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    for pid in pids {
        let sent = match visit(pid) {
            Ok(fd) => send(&socket, b"", Some(&fd)),
            Err(e) => send(&socket, e.to_string().as_bytes(), None),
        };
        if sent.is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

#[cfg(target_arch = "x86_64")]
fn visit(pid: i32) -> io::Result<OwnedFd> {
    super::inject::userfaultfd_of(pid)
}

#[cfg(not(target_arch = "x86_64"))]
fn visit(_pid: i32) -> io::Result<OwnedFd> {
    Err(io::Error::other("not on this architecture"))
}

fn send(socket: &OwnedFd, reason: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
    let mut bytes = vec![u8::from(fd.is_some())];
    bytes.extend_from_slice(&reason[..reason.len().min(MAX_REASON)]);
    bytes.resize(1 + MAX_REASON, 0);
    let fds: Vec<RawFd> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &control[..] };
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Takes the next answer: a descriptor, or why there is none. Blocks for at most some seconds.
///
/// # Errors
/// When no answer comes: the other process has ended or hangs.
pub fn receive(socket: &UnixStream) -> io::Result<Result<OwnedFd, String>> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = [0; 1 + MAX_REASON];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_WAITALL;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut iov, Some(&mut control), flags)?;
    let mut fd = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            for raw in fds {
                // SAFETY: the kernel has just made it for this process.
                fd = Some(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
    }
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let reason = String::from_utf8_lossy(&bytes[1..]).trim_end_matches('\0').to_owned();
    Ok(fd.ok_or(reason))
}

/// A pair of sockets: the agent's end, and the one to be inherited.
pub fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    debug_assert!(theirs.as_raw_fd() > libc::STDERR_FILENO, "the standard streams are open");
    Ok((ours, theirs.into()))
}
