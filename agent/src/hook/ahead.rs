//! A restore that is started before its images are there.
//!
//! Monitor, runtime and the start of CRIU take longer than the restore of a small container, and need no
//! image. So the runtime finds a `criu` first in its `PATH` that hands all questions on to the real one, but
//! holds a restore back until the agent says that the images are there, and then becomes the real one. What
//! is asked is seen in the request that already waits on the socket (CRIU's images/rpc.proto).
//!
//! Rejected: CRIU's `pre-restore` hook, by which time it has read the images.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::socket::{MsgFlags, recv};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::gate::{Gate, may_go_on, pass};
use super::{own_program, search_path};
use crate::command::CHILD_PATH;
use crate::criu::Preload;

/// Where CRIU's service mode finds its socket.
const REQUESTS: i32 = 3;
/// The beginning of a request to restore: field 1, `type`, is 2.
const RESTORE: [u8; 2] = [0x08, 2];
const WORD: &str = "restore";

/// Becomes the real CRIU, after `go` when it is to restore. Returns only when it does not.
pub(super) fn become_criu(socket: &Path, criu: &Path, args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut head = [0; RESTORE.len()];
    // No socket, no request: whoever calls wants something else.
    let restore = recv(REQUESTS, &mut head, MsgFlags::MSG_PEEK).is_ok() && head == RESTORE;
    if restore && !may_go_on(socket, WORD) {
        return ExitCode::FAILURE;
    }
    let preload = own_program().ok().and_then(|own| Preload::find(&own));
    let environment = preload.map(|p| p.environment(None)).unwrap_or_default();
    let error = std::process::Command::new(criu).args(args).env("PATH", CHILD_PATH).envs(environment).exec();
    eprintln!("cannot become {}: {error}", criu.display());
    ExitCode::FAILURE
}

/// The agent's end. Dropped, it calls the restore off.
#[derive(Debug)]
pub struct RestoreAhead {
    programs: PathBuf,
    gate: Gate,
}

impl RestoreAhead {
    /// With the directory that has the `criu` that asks. Must be called on a tokio runtime.
    pub(super) fn new(programs: PathBuf, socket: &Path) -> io::Result<Self> {
        Ok(RestoreAhead { programs, gate: Gate::listen(socket)? })
    }

    /// `PATH` of the runtime.
    pub fn search_path(&self) -> OsString {
        search_path(&self.programs)
    }

    /// Lets CRIU begin: the images are there. Waits until it has come so far; for ever, should it end
    /// before, so callers watch that.
    ///
    /// Cancel safe.
    pub async fn begin(&self) -> io::Result<RestoringCriu> {
        let asks = self.gate.asked(WORD).await?;
        let criu = RestoringCriu::behind(&asks)?;
        pass(asks).await?;
        Ok(criu)
    }
}

/// The process that restores. Its end is watched, for the runtime does not always hear of it: what it has
/// restored so far may keep their socket open.
#[derive(Debug)]
pub struct RestoringCriu(AsyncFd<OwnedFd>);

impl RestoringCriu {
    /// Whoever asks becomes CRIU, and keeps its number.
    fn behind(asks: &UnixStream) -> io::Result<Self> {
        let pid = asks.peer_cred()?.pid().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("CRIU runs in another pid namespace"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        // SAFETY: an OwnedFd is open until it is dropped, and nothing takes it out of the AsyncFd.
        let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        Ok(Self(watched?))
    }

    /// Waits until it has ended, well or not. Cancel safe.
    pub async fn ended(&self) {
        // An error would be the runtime's end.
        let _ = self.0.readable().await;
    }
}
