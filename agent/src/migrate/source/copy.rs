//! The copy step, inside the blackout: dump, memory, last file differences.
//!
//! CRIU's dump and the passes over the files run at the same time: the dump mostly waits for
//! process start-ups and the memory stream, the passes for file metadata. A dump may add files of
//! its own to the root file system (names for deleted files that are still open), so when it did,
//! one more pass follows.

use super::work::{Work, engine_failure, failed, totals};
use crate::context::Context;
use crate::memory::page_server::{Layout, PageError, PageServer, PageTotals};
use crate::memory::send::{ImageSender, SendError, Sent};
use crate::migrate::progress::Shared;
use crate::runtime::CheckpointRequest;
use crate::transport::bulk::{BulkWriter, Delivery};
use crate::transport::endpoint::Connection;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tranship_proto::bulk::{BulkContent, BulkOpen};
use tranship_proto::handoff::Totals;
use tranship_proto::ids::{Epoch, MigrationId};
use tranship_proto::status::{Failure, Reason, Side};

/// Image that CRIU writes when it had to give a deleted file a name in the root file system.
const REMAP_IMAGE: &str = "remap-fpath.img";

/// Copies everything that is left, the container being frozen. Both halves have ended on return.
pub(super) async fn copy(work: &mut Work) -> Result<Totals, Failure> {
    let start = Instant::now();
    let dump = Dump::of(work)?;
    let image_dir = work.image_dir();
    let dump = tokio::spawn(tracing::Instrument::instrument(dump.run(), tracing::Span::current()));
    let files = work.pass_all(true).await;
    let files_us = start.elapsed().as_micros();
    let dumped = match dump.await {
        Ok(result) => result,
        Err(e) => Err(internal(format!("the dump's task panicked: {e}"))),
    };
    let (sent, times) = match (files, dumped) {
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
    work.meter.memory_bytes.store(sent.bytes, Ordering::Relaxed);
    work.meter.say(format!("{times}, files {} ms", files_us / 1000));
    Ok(totals(&work.trees, sent))
}

fn internal(text: String) -> Failure {
    Failure::new(Reason::Internal, Side::Source, text)
}

/// Everything that a dump needs, so that it can run beside the passes.
struct Dump {
    ctx: Arc<Context>,
    id: MigrationId,
    epoch: Epoch,
    name: String,
    connection: Connection,
    image_dir: PathBuf,
    config: PathBuf,
    meter: Arc<Shared>,
}

type Served = Result<(ImageSender, Result<PageTotals, PageError>), Failure>;

impl Dump {
    fn of(work: &Work) -> Result<Self, Failure> {
        Ok(Self {
            ctx: work.ctx.clone(),
            id: work.id,
            epoch: work.epoch,
            name: work.name().to_string(),
            connection: work.connection()?,
            image_dir: work.image_dir(),
            config: work.ctx.engine.dump_config(work.id).map_err(|e| engine_failure(&e, Side::Source))?,
            meter: work.meter.clone(),
        })
    }

    async fn run(self) -> Result<(Sent, String), Failure> {
        let version = self.ctx.capabilities.criu_version.map(|v| v.to_string()).unwrap_or_default();
        let server =
            PageServer::bind(Layout::of_criu(&version)).map_err(|e| failed("take CRIU's pages", &e, None))?;
        let address = server.address().map_err(|e| failed("take CRIU's pages", &e, None))?;
        let open = BulkOpen { migration: self.id, epoch: self.epoch, content: BulkContent::Images };
        let (writer, delivery) = BulkWriter::open(&self.connection, open, self.meter.bulk.clone())
            .await
            .map_err(|e| failed("open a stream for images", &e, None))?;
        let stop = Arc::new(AtomicBool::new(false));
        let give_up = stop.clone();
        let serving = tokio::task::spawn_blocking(move || {
            let mut images = ImageSender::new(writer);
            let served = server.serve(&mut images, &give_up);
            (images, served)
        });
        let request = CheckpointRequest {
            id: self.name.clone(),
            image_dir: self.image_dir.clone(),
            work_dir: self.image_dir.join("work"),
            criu_config: self.config.clone(),
            tcp_established: true,
            page_server: Some(address),
            limit: Duration::from_secs(self.ctx.config.limits.phase_timeout_s),
        };
        let start = Instant::now();
        let dumped = self.ctx.runtime.checkpoint(&request).await;
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
        let sent = send_rest(images, self.image_dir.clone(), delivery).await?;
        let frozen = report.stats.as_ref().map_or(0, |s| s.frozen_time / 1000);
        Ok((
            sent,
            format!("dump {dump_ms} ms ({frozen} ms in CRIU), images {} ms", rest.elapsed().as_millis()),
        ))
    }
}

async fn send_rest(mut images: ImageSender, dir: PathBuf, delivery: Delivery) -> Result<Sent, Failure> {
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
