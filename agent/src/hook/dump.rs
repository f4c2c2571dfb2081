//! The hold at the source: CRIU is started while the container still runs, and waits until it is frozen.
//!
//! Starting the runtime and CRIU takes as long as the dump of a small container. None of it needs a frozen
//! container: at `pre-dump` CRIU has read its options and neither looked at a process nor opened a
//! connection. The script waits there for the agent's `go`. Unlike the hold at the destination it fails
//! open: with the agent gone, the dump is called off and nothing was touched. At `post-dump` the script
//! tells that all images are complete; CRIU and the runtime then take some ten milliseconds more to end.
//!
//! Rejected: the runtime's `--status-fd`, which comes after CRIU has set aside all memory that it leaves
//! out, 0.2 s/GiB later.
//!
//! The words of the script, over a [`Gate`] of this dump's own, are `pre-dump` and `post-dump`.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use super::gate::{Gate, pass};

/// A step of a dump at which the script asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DumpStep {
    /// Nothing was touched yet.
    Before,
    /// All images are complete.
    After,
}

impl DumpStep {
    /// CRIU's name of it.
    pub(super) fn name(self) -> &'static str {
        match self {
            DumpStep::Before => "pre-dump",
            DumpStep::After => "post-dump",
        }
    }

    pub(super) fn parse(word: &str) -> Option<Self> {
        [DumpStep::Before, DumpStep::After].into_iter().find(|s| s.name() == word)
    }
}

/// How memory is left out of a dump.
#[derive(Debug, Clone)]
pub struct LeaveOut {
    /// Names what is left out. The library makes it, the agent writes it before `go`.
    pub file: PathBuf,
    /// `PATH` of the runtime, with the CRIU that loads the library first.
    pub search_path: OsString,
}

/// A dump that is to wait, at the agent's end. Dropped, it calls the dump off at the next step that it
/// comes to.
#[derive(Debug)]
pub struct DumpHold {
    config: PathBuf,
    leave_out: Option<LeaveOut>,
    gate: Gate,
    waiting: Option<UnixStream>,
}

impl DumpHold {
    /// Listens for the script of the dump that gets `config`. Must be called on a tokio runtime.
    pub(super) fn new(config: PathBuf, leave_out: Option<LeaveOut>, socket: &Path) -> io::Result<Self> {
        Ok(DumpHold { config, leave_out, gate: Gate::listen(socket)?, waiting: None })
    }

    /// How memory is left out, where the agent says which.
    pub fn leave_out(&self) -> Option<&LeaveOut> {
        self.leave_out.as_ref()
    }

    /// CRIU's configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Waits until CRIU waits. For ever, should the dump end before; so callers watch its end.
    ///
    /// Cancel safe.
    pub async fn waiting(&mut self) -> io::Result<()> {
        let stream = self.asked(DumpStep::Before).await?;
        self.waiting = Some(stream);
        Ok(())
    }

    /// Lets CRIU begin. The container must be frozen.
    pub async fn go(&mut self) -> io::Result<()> {
        match self.waiting.take() {
            Some(stream) => pass(stream).await,
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "criu does not wait")),
        }
    }

    /// Waits until all images are complete. As [`DumpHold::waiting`] otherwise.
    pub async fn dumped(&mut self) -> io::Result<()> {
        pass(self.asked(DumpStep::After).await?).await
    }

    async fn asked(&self, step: DumpStep) -> io::Result<UnixStream> {
        self.gate.asked(step.name()).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::gate::may_go_on;
    use super::*;

    fn ask(socket: &Path, step: DumpStep) -> tokio::task::JoinHandle<bool> {
        let socket = socket.to_owned();
        tokio::task::spawn_blocking(move || may_go_on(&socket, step.name()))
    }

    #[tokio::test]
    async fn waits_at_the_first_step_and_passes_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let mut hold = DumpHold::new(dir.path().join("c"), None, &socket).unwrap();
        let before = ask(&socket, DumpStep::Before);
        hold.waiting().await.unwrap();
        assert!(!before.is_finished());
        hold.go().await.unwrap();
        assert!(before.await.unwrap());
        let after = ask(&socket, DumpStep::After);
        hold.dumped().await.unwrap();
        assert!(after.await.unwrap());
        assert!(hold.go().await.is_err());
    }

    #[tokio::test]
    async fn an_agent_that_is_gone_calls_the_dump_off() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        assert!(!ask(&socket, DumpStep::Before).await.unwrap(), "nobody has listened yet");
        let mut hold = DumpHold::new(dir.path().join("c"), None, &socket).unwrap();
        let before = ask(&socket, DumpStep::Before);
        hold.waiting().await.unwrap();
        drop(hold);
        assert!(!before.await.unwrap(), "while it waits");
        assert!(!ask(&socket, DumpStep::After).await.unwrap(), "afterwards");
    }

    #[tokio::test]
    async fn a_step_out_of_order_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let mut hold = DumpHold::new(dir.path().join("c"), None, &socket).unwrap();
        let after = ask(&socket, DumpStep::After);
        assert!(hold.waiting().await.unwrap_err().to_string().contains("post-dump"));
        assert!(!after.await.unwrap());
    }
}
