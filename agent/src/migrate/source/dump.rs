//! CRIU's dump, started before the freeze and let go after it.
//!
//! One task runs the runtime's command and talks to CRIU's script meanwhile ([`crate::hook::DumpHold`]);
//! the steps of the migration only exchange words with it. Calling a dump off is not saying `go`: it then
//! ends by itself, with nothing touched. Once let go, it is never killed.

use super::work::{Way, engine_failure, failed};
use crate::criu::{Preload, QuickBreakpoints};
use crate::hook::{DumpHold, DumpMemory};
use crate::memory::page_server::{Layout, PageServer};
use crate::runtime::{CheckpointReport, CheckpointRequest, Pages, RuntimeError};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tranship_proto::status::{Failure, Reason, Side};

/// Lowest number of a descriptor for CRIU: the first ones are its and the runtime's own.
const FIRST_FD: i32 = 64;
/// How long the runtime and CRIU may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

type Ended = Result<CheckpointReport, RuntimeError>;

/// A dump that waits, runs, or comes to its end. Dropped, it is called off when it waits, and goes on
/// alone otherwise.
pub(super) struct Dump {
    ready: Option<oneshot::Receiver<()>>,
    go: Option<oneshot::Sender<()>>,
    images: Option<oneshot::Receiver<()>>,
    // Where memory comes, unless it is left where it is.
    pages: Option<PageServer>,
    left_out: Option<PathBuf>,
    // Until its end was seen.
    task: Option<JoinHandle<Ended>>,
}

impl Dump {
    /// Starts the runtime and CRIU, which then wait. With `fast`, private memory is left where it is.
    pub(super) fn start(way: &Way, fast: bool) -> Result<Self, Failure> {
        Self::begin(way, fast, way.ctx.preload.as_ref().filter(|_| fast))
    }

    fn begin(way: &Way, fast: bool, preload: Option<&Preload>) -> Result<Self, Failure> {
        let hold =
            |memory| way.ctx.engine.hold_dump(way.id, memory).map_err(|e| engine_failure(&e, Side::Source));
        let (hold, pages, server) = match preload {
            Some(preload) => (hold(DumpMemory::LeftOut(preload))?, Pages::Files, None),
            None => {
                let socket = |e| failed("make a socket for CRIU", &e, None);
                let (ours, theirs) = UnixStream::pair().map_err(socket)?;
                let theirs =
                    rustix::io::fcntl_dupfd_cloexec(theirs, FIRST_FD).map_err(|e| socket(e.into()))?;
                let hold = hold(DumpMemory::Socket(theirs.as_raw_fd()))?;
                if fast {
                    // With our end closed, CRIU waits for nobody who would fetch what it has left out.
                    (hold, Pages::Left(theirs), None)
                } else {
                    let version =
                        way.ctx.capabilities.criu_version.map(|v| v.to_string()).unwrap_or_default();
                    (hold, Pages::Sent(theirs), Some(PageServer::new(ours, Layout::of_criu(&version))))
                }
            }
        };
        let leave_out = hold.leave_out().cloned();
        let request = CheckpointRequest {
            id: way.name.to_string(),
            image_dir: way.image_dir(),
            work_dir: way.image_dir().join("work"),
            criu_config: hold.config().to_owned(),
            search_path: leave_out.as_ref().map(|l| l.search_path.clone()),
            tcp_established: true,
            pages,
        };
        let limit = Duration::from_secs(way.ctx.config.limits.phase_timeout_s);
        let (ready_tx, ready) = oneshot::channel();
        let (go, go_rx) = oneshot::channel();
        let (images_tx, images) = oneshot::channel();
        let (runtime, id) = (way.ctx.runtime.clone(), request.id.clone());
        let whole = async move {
            let breakpoints = tokio::task::spawn_blocking(QuickBreakpoints::prepare);
            let ended = tokio::select! {
                ended = runtime.checkpoint(request) => ended,
                () = talk(hold, ready_tx, go_rx, images_tx, limit) => {
                    Err(RuntimeError::CheckpointStuck { id, limit })
                }
            };
            // Until here.
            drop(breakpoints);
            ended
        };
        let task = tokio::spawn(tracing::Instrument::instrument(whole, tracing::Span::current()));
        let (ready, go, images, task) = (Some(ready), Some(go), Some(images), Some(task));
        Ok(Dump { ready, go, images, pages: server, left_out: leave_out.map(|l| l.file), task })
    }

    /// File in which CRIU is told what to leave out before it is let go; none when it would not read it.
    pub(super) fn left_out(&self) -> Option<&Path> {
        self.left_out.as_deref()
    }

    /// Waits until CRIU waits. Without that nothing may be frozen for it. A CRIU that should have loaded the
    /// library and has not would dump all of memory: then one is started that need not.
    pub(super) async fn ready(&mut self, way: &Way) -> Result<(), Failure> {
        self.waits().await?;
        if self.left_out.as_ref().is_some_and(|file| !file.exists()) {
            tracing::warn!("CRIU has not loaded tranship's library: its dump takes longer");
            // Called off; why it ended is known.
            let _ = self.over().await;
            *self = Self::begin(way, true, None)?;
            self.waits().await?;
        }
        Ok(())
    }

    async fn waits(&mut self) -> Result<(), Failure> {
        let Some(ready) = self.ready.take() else { return Ok(()) };
        match tokio::time::timeout(START_LIMIT, ready).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(self.over().await.err().unwrap_or_else(ended_early)),
            Err(_) => {
                let text = format!("the dump was not ready to begin within {} s", START_LIMIT.as_secs());
                Err(Failure::new(Reason::Timeout, Side::Source, text)
                    .hint("the host may be overloaded; the container was not frozen")
                    .retryable())
            }
        }
    }

    /// Lets CRIU begin, the container being frozen. Answers the word that all images are complete, which
    /// never comes when the dump fails, and where memory comes.
    pub(super) fn go(&mut self) -> Option<(oneshot::Receiver<()>, Option<PageServer>)> {
        self.go.take()?.send(()).ok()?;
        Some((self.images.take()?, self.pages.take()))
    }

    /// Waits until it has let go of the processes; calls it off when it waits still. How it ended is told
    /// once.
    ///
    /// Cancel safe.
    pub(super) async fn over(&mut self) -> Result<(), Failure> {
        (self.ready, self.go, self.pages) = (None, None, None);
        let Some(task) = &mut self.task else { return Ok(()) };
        let ended = task.await;
        self.task = None;
        match ended {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(failed("dump the container", &e, e.hint())),
            Err(e) => {
                Err(Failure::new(Reason::Internal, Side::Source, format!("the dump's task panicked: {e}")))
            }
        }
    }
}

fn ended_early() -> Failure {
    Failure::new(Reason::Internal, Side::Source, "the dump ended before it began")
}

/// Talks to CRIU's script. Returns when the dump does not end in time, counted from the decision about it.
async fn talk(
    mut hold: DumpHold,
    ready: oneshot::Sender<()>,
    mut go: oneshot::Receiver<()>,
    images: oneshot::Sender<()>,
    limit: Duration,
) {
    let waits = tokio::select! {
        waits = hold.waiting() => waits,
        // Called off before CRIU had come so far.
        _ = &mut go => Err(std::io::Error::other("called off")),
    };
    let wanted = match &waits {
        Ok(()) => ready.send(()).is_ok() && go.await.is_ok(),
        Err(_) => false,
    };
    let rest = async {
        waits?;
        if wanted {
            hold.go().await?;
            hold.dumped().await?;
            let _ = images.send(());
        }
        // Its script is refused from here on.
        drop(hold);
        std::future::pending::<std::io::Result<()>>().await
    };
    let over = async {
        if let Err(e) = rest.await {
            tracing::debug!(error = %e, "the dump is called off");
        }
        std::future::pending::<()>().await;
    };
    let _ = tokio::time::timeout(limit, over).await;
}
