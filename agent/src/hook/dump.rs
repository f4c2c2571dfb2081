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
//! On the wire, over a socket of this dump's own: `pre-dump` or `post-dump` from the script, `go` back,
//! one line each. A closed connection is a no.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::MAX_LINE;

const GO: &str = "go\n";

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
    fn name(self) -> &'static str {
        match self {
            DumpStep::Before => "pre-dump",
            DumpStep::After => "post-dump",
        }
    }

    pub(super) fn parse(word: &str) -> Option<Self> {
        [DumpStep::Before, DumpStep::After].into_iter().find(|s| s.name() == word)
    }
}

/// Asks once, at the script's end, and waits for the answer. An agent that is gone is a no.
pub(super) fn may_go_on(socket: &Path, step: DumpStep) -> bool {
    let ask = || -> io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(format!("{}\n", step.name()).as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_LINE as u64)).read_line(&mut line)?;
        Ok(line)
    };
    ask().is_ok_and(|line| line == GO)
}

/// A dump that is to wait, at the agent's end. Dropped, it calls the dump off at the next step that it
/// comes to.
#[derive(Debug)]
pub struct DumpHold {
    config: PathBuf,
    listener: UnixListener,
    waiting: Option<tokio::net::UnixStream>,
}

impl DumpHold {
    /// Listens for the script of the dump that gets `config`. Must be called on a tokio runtime.
    pub(super) fn new(config: PathBuf, socket: &Path) -> io::Result<Self> {
        let _ = std::fs::remove_file(socket);
        Ok(DumpHold { config, listener: UnixListener::bind(socket)?, waiting: None })
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
            Some(mut stream) => stream.write_all(GO.as_bytes()).await,
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "criu does not wait")),
        }
    }

    /// Waits until all images are complete. As [`DumpHold::waiting`] otherwise.
    pub async fn dumped(&mut self) -> io::Result<()> {
        self.asked(DumpStep::After).await?.write_all(GO.as_bytes()).await
    }

    async fn asked(&self, step: DumpStep) -> io::Result<tokio::net::UnixStream> {
        let (mut stream, _) = self.listener.accept().await?;
        let mut line = String::new();
        tokio::io::BufReader::new((&mut stream).take(MAX_LINE as u64)).read_line(&mut line).await?;
        match line.strip_suffix('\n').and_then(DumpStep::parse) {
            Some(said) if said == step => Ok(stream),
            _ => {
                let text = format!("criu's script said {line:?} where {} comes", step.name());
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(socket: &Path, step: DumpStep) -> tokio::task::JoinHandle<bool> {
        let socket = socket.to_owned();
        tokio::task::spawn_blocking(move || may_go_on(&socket, step))
    }

    #[tokio::test]
    async fn waits_at_the_first_step_and_passes_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let mut hold = DumpHold::new(dir.path().join("c"), &socket).unwrap();
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
        let mut hold = DumpHold::new(dir.path().join("c"), &socket).unwrap();
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
        let mut hold = DumpHold::new(dir.path().join("c"), &socket).unwrap();
        let after = ask(&socket, DumpStep::After);
        assert!(hold.waiting().await.unwrap_err().to_string().contains("post-dump"));
        assert!(!after.await.unwrap());
    }
}
