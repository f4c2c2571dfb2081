//! The copy step, inside the blackout: dump, memory, last file differences.
//!
//! CRIU's dump and the passes over the files run at the same time: the dump mostly waits for
//! process start-ups and the memory stream, the passes for file metadata. A dump may add files of
//! its own to the root file system (names for deleted files that are still open), so when it did,
//! one more pass follows.
//!
//! In plain mode memory goes through CRIU. In fast mode CRIU leaves it where it is, and the last round
//! reads it from the frozen processes meanwhile; that CRIU lets go of the processes is awaited later,
//! before anything is undone or retired ([`Work::dump_over`]).

use super::memory::Memory;
use super::work::{Way, Work, engine_failure, failed, totals};
use crate::memory::page_server::{Layout, PageError, PageServer, PageTotals};
use crate::memory::send::{ImageSender, SendError, Sent};
use crate::runtime::{CheckpointReport, CheckpointRequest, Pages, RuntimeError};
use crate::transport::bulk::{BulkWriter, Delivery};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tranship_proto::bulk::{BulkContent, BulkOpen};
use tranship_proto::handoff::Totals;
use tranship_proto::pages::PAGE;
use tranship_proto::status::{Failure, Reason, Side};

/// Image that CRIU writes when it had to give a deleted file a name in the root file system.
const REMAP_IMAGE: &str = "remap-fpath.img";
/// Lowest number of a descriptor for CRIU: the first ones are its and the runtime's own.
const FIRST_FD: i32 = 64;

/// Images sent, the memory in fast mode, and words about both.
type Copied = (Sent, Option<Memory>, String);
/// A dump whose images are there, on its way to its end.
pub(super) type Ending = JoinHandle<Result<CheckpointReport, RuntimeError>>;

/// Copies everything that is left, the container being frozen. All parts have ended on return, or
/// (the dump in fast mode) are in the work's hands.
pub(super) async fn copy(work: &mut Work) -> Result<Totals, Failure> {
    let start = Instant::now();
    let way = work.way()?;
    let image_dir = way.image_dir();
    let span = tracing::Span::current();
    let copying = match work.memory.take() {
        None => {
            let config = work.ctx.engine.dump_config(work.id, None);
            let config = config.map_err(|e| engine_failure(&e, Side::Source))?;
            tokio::spawn(tracing::Instrument::instrument(plain(way, config), span))
        }
        Some(memory) => {
            let (dump, images_done) = skeleton(&way, work)?;
            work.dump = Some(dump);
            tokio::spawn(tracing::Instrument::instrument(fast(way, memory, images_done), span))
        }
    };
    let files = work.pass_all(true).await;
    let files_us = start.elapsed().as_micros();
    let copied = match copying.await {
        Ok(result) => result,
        Err(e) => Err(internal(format!("the copying of memory panicked: {e}"))),
    };
    let copied = match copied {
        // The images did not come: why is in the dump's own words.
        Err(f) if work.dump.as_ref().is_some_and(JoinHandle::is_finished) => {
            Err(work.dump_over().await.err().unwrap_or(f))
        }
        other => other,
    };
    let (sent, memory, times) = match (files, copied) {
        (Ok(()), Ok(done)) => done,
        (Err(mut f), Err(g)) => {
            f.message = format!("{}; and {}", f.message, g.message);
            return Err(f);
        }
        (Err(f), _) | (_, Err(f)) => return Err(f),
    };
    if image_dir.join(REMAP_IMAGE).exists() {
        work.pass_all(true).await?;
    }
    let rounds = memory.as_ref().map(Memory::totals);
    // Kept until the blackout is over: the kernel takes its time to lift the protection of pages.
    work.memory = memory;
    let pages = rounds.map_or(0, |m| m.pages.data_pages * PAGE);
    work.meter.memory_bytes.store(sent.bytes + pages, Ordering::Relaxed);
    work.meter.say(format!("{times}, files {} ms", files_us / 1000));
    Ok(totals(&work.trees, sent, rounds))
}

fn internal(text: String) -> Failure {
    Failure::new(Reason::Internal, Side::Source, text)
}

fn request(way: &Way, criu_config: PathBuf, pages: Pages) -> CheckpointRequest {
    CheckpointRequest {
        id: way.name.to_string(),
        image_dir: way.image_dir(),
        work_dir: way.image_dir().join("work"),
        criu_config,
        tcp_established: true,
        pages,
        limit: Duration::from_secs(way.ctx.config.limits.phase_timeout_s),
    }
}

async fn image_stream(way: &Way) -> Result<(BulkWriter, Delivery), Failure> {
    let open = BulkOpen { migration: way.id, epoch: way.epoch, content: BulkContent::Images };
    BulkWriter::open(&way.connection, open, way.meter.bulk.clone())
        .await
        .map_err(|e| failed("open a stream for images", &e, None))
}

/// A dump with all of memory, sent while it is made.
async fn plain(way: Way, config: PathBuf) -> Result<Copied, Failure> {
    type Served = Result<(ImageSender, Result<PageTotals, PageError>), Failure>;
    let version = way.ctx.capabilities.criu_version.map(|v| v.to_string()).unwrap_or_default();
    let server =
        PageServer::bind(Layout::of_criu(&version)).map_err(|e| failed("take CRIU's pages", &e, None))?;
    let address = server.address().map_err(|e| failed("take CRIU's pages", &e, None))?;
    let (writer, delivery) = image_stream(&way).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let give_up = stop.clone();
    let serving = tokio::task::spawn_blocking(move || {
        let mut images = ImageSender::new(writer);
        let served = server.serve(&mut images, &give_up);
        (images, served)
    });
    let start = Instant::now();
    let dumped = way.ctx.runtime.checkpoint(request(&way, config, Pages::Server(address))).await;
    stop.store(true, Ordering::Relaxed);
    let served: Served = serving.await.map_err(|e| internal(format!("the page server panicked: {e}")));
    let (images, served) = served?;
    let report = match (dumped, served) {
        (Ok(report), Ok(_)) => report,
        // The stream broke first: CRIU's complaint follows from it.
        (_, Err(e)) if !matches!(e, PageError::Stopped) => return Err(failed("send memory", &e, None)),
        (Err(e), _) => return Err(failed("dump the container", &e, e.hint())),
        (Ok(_), Err(e)) => return Err(failed("dump the container", &e, None)),
    };
    let dump_ms = start.elapsed().as_millis();
    let rest = Instant::now();
    let sent = send_images(images, way.image_dir(), delivery).await?;
    let frozen = report.stats.as_ref().map_or(0, |s| s.frozen_time / 1000);
    let times = format!("dump {dump_ms} ms ({frozen} ms in CRIU), images {} ms", rest.elapsed().as_millis());
    Ok((sent, None, times))
}

/// Starts a dump without private memory; answers its end, and the word that its images are there.
fn skeleton(way: &Way, work: &Work) -> Result<(Ending, oneshot::Receiver<()>), Failure> {
    let socket = page_socket().map_err(|e| failed("make a socket for CRIU", &e, None))?;
    let config = work.ctx.engine.dump_config(way.id, Some(socket.as_raw_fd()));
    let config = config.map_err(|e| engine_failure(&e, Side::Source))?;
    let (done, images_done) = oneshot::channel();
    let request = request(way, config, Pages::Left { socket, images_done: done });
    let runtime = way.ctx.runtime.clone();
    let dump = async move { runtime.checkpoint(request).await };
    Ok((tokio::spawn(tracing::Instrument::instrument(dump, tracing::Span::current())), images_done))
}

/// A socket whose other end is closed: nobody will ask CRIU for the pages that it has left out.
fn page_socket() -> std::io::Result<OwnedFd> {
    let (socket, _) = std::os::unix::net::UnixStream::pair()?;
    Ok(rustix::io::fcntl_dupfd_cloexec(socket, FIRST_FD)?)
}

/// The last round beside the dump, the images, and what both have left out.
async fn fast(way: Way, memory: Memory, images_done: oneshot::Receiver<()>) -> Result<Copied, Failure> {
    let start = Instant::now();
    let images = async {
        let (writer, delivery) = image_stream(&way).await?;
        images_done.await.map_err(|_| internal("the dump ended without its images".into()))?;
        let dump_ms = start.elapsed().as_millis();
        let sent = send_images(ImageSender::new(writer), way.image_dir(), delivery).await?;
        Ok::<_, Failure>((sent, dump_ms, start.elapsed().as_millis()))
    };
    let (memory, images) = tokio::join!(memory.round(&way, true), images);
    let ((memory, last), (sent, dump_ms, images_ms)) = match (memory, images) {
        (Ok(memory), Ok(images)) => (memory, images),
        (Err(mut f), Err(g)) => {
            f.message = format!("{}; and {}", f.message, g.message);
            return Err(f);
        }
        (Err(f), _) | (_, Err(f)) => return Err(f),
    };
    let memory = memory.complete(&way).await?;
    let times = format!(
        "dump {dump_ms} ms, last round {} pages in {} ms, images {} ms",
        last.looked_at,
        last.took.as_millis(),
        images_ms - dump_ms,
    );
    Ok((sent, Some(memory), times))
}

async fn send_images(mut images: ImageSender, dir: PathBuf, delivery: Delivery) -> Result<Sent, Failure> {
    let sent = tokio::task::spawn_blocking(move || -> Result<Sent, SendError> {
        images.directory(Path::new(&dir))?;
        images.finish()
    })
    .await
    .map_err(|e| internal(format!("the sending of images panicked: {e}")))?
    .map_err(|e| failed("send the images", &e, None))?;
    super::sink::delivered(delivery).await?;
    Ok(sent)
}
