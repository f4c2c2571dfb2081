//! The copy step, inside the blackout: dump, memory, last file differences.
//!
//! CRIU's dump and the passes over the files run at the same time: the dump mostly waits for
//! process start-ups and the memory stream, the passes for file metadata. A dump may add files of
//! its own to the root file system (names for deleted files that are still open), so when it did,
//! one more pass follows.
//!
//! In plain mode memory goes through CRIU. In fast mode CRIU leaves it where it is, and the last round
//! reads it from the frozen processes meanwhile. CRIU was started before the freeze and waits for the word
//! ([`super::dump`]); that it lets go of the processes again is awaited later, before anything is undone or
//! retired ([`Work::dump_over`]).

use super::dump::Dump;
use super::memory::Memory;
use super::work::{Way, Work, and, failed, totals};
use crate::memory::early::EarlyImages;
use crate::memory::page_server::{PageError, PageServer};
use crate::memory::send::{ImageSender, SendError, Sent};
use crate::memory::source::{LeftOut, Populated, add_to_images};
use crate::transport::bulk::BulkWriter;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tranship_proto::bulk::{BulkContent, BulkOpen};
use tranship_proto::handoff::Totals;
use tranship_proto::pages::PAGE;
use tranship_proto::status::{Failure, Reason, Side};

/// Image that CRIU writes when it had to give a deleted file a name in the root file system.
const REMAP_IMAGE: &str = "remap-fpath.img";
/// What the runtime has found out about the standard streams.
const DESCRIPTORS: &str = "descriptors.json";
/// From one look for images that are complete to the next.
const EARLY: Duration = Duration::from_millis(2);

/// Images sent, the memory in fast mode, and words about both.
type Copied = (Sent, Option<Memory>, String);

/// Why nothing was copied.
enum NotCopied {
    /// The dump has ended without its images: why is in its own words.
    NoImages,
    /// Something else.
    Failed(Failure),
}

impl From<Failure> for NotCopied {
    fn from(failure: Failure) -> Self {
        NotCopied::Failed(failure)
    }
}

/// Copies everything that is left, the container being frozen. All parts have ended on return, or
/// (the end of the dump) are in the work's hands.
pub(super) async fn copy(work: &mut Work) -> Result<Totals, Failure> {
    let start = Instant::now();
    let way = work.way()?;
    let image_dir = way.image_dir();
    let span = tracing::Span::current();
    let mut left = LeftOut::default();
    if let Some(file) = work.dump.as_ref().and_then(Dump::left_out)
        && let Some(memory) = work.memory.take()
    {
        let (memory, left_out) = memory.leave_out(&way, file.to_owned()).await?;
        (work.memory, left) = (Some(memory), left_out);
    }
    let early = EarlyImages::listen(&image_dir)
        .inspect_err(|e| tracing::debug!(error = %e, "images are sent when the dump has ended"))
        .ok();
    let Some((images_done, pages)) = work.dump.as_mut().and_then(Dump::go) else {
        return Err(no_images(work).await);
    };
    let Some(images) = work.images.take() else {
        return Err(internal("no stream for images is open".into()));
    };
    let copying = match (work.memory.take(), pages) {
        (Some(memory), _) => tokio::spawn(tracing::Instrument::instrument(
            fast(way, images, memory, left, early, images_done),
            span,
        )),
        (None, Some(pages)) => {
            work.meter.expected.store(work.offered_bytes, Ordering::Relaxed);
            tokio::spawn(tracing::Instrument::instrument(plain(way, images, pages, images_done), span))
        }
        (None, None) => {
            return Err(internal("the dump leaves memory out, and no round has carried it".into()));
        }
    };
    let files = work.pass_all(true).await;
    let files_us = start.elapsed().as_micros();
    let copied = match copying.await {
        Ok(result) => result,
        Err(e) => Err(internal(format!("the copying of memory panicked: {e}")).into()),
    };
    let copied = match copied {
        Ok(done) => Ok(done),
        Err(NotCopied::Failed(f)) => Err(f),
        Err(NotCopied::NoImages) => Err(no_images(work).await),
    };
    let (sent, memory, times) = match (files, copied) {
        (Ok(()), Ok(done)) => done,
        (Err(f), Err(g)) => return Err(and(f, &g)),
        (Err(f), _) | (_, Err(f)) => return Err(f),
    };
    if image_dir.join(REMAP_IMAGE).exists() {
        // One after the other: each stream travels by itself.
        work.all_applied().await?;
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

/// What the dump says that has ended without its images.
async fn no_images(work: &mut Work) -> Failure {
    let said = work.dump_over().await.err();
    said.unwrap_or_else(|| internal("the dump ended without its images".into()))
}

/// The stream of images, opened before the freeze: the destination starts its runtime meanwhile.
pub(super) struct Images {
    sender: ImageSender,
}

impl Images {
    /// Sends what the destination's runtime wants to see at its start, and the source's has written
    /// before CRIU waits.
    pub(super) async fn open(way: &Way) -> Result<Self, Failure> {
        let open = BulkOpen { migration: way.id, epoch: way.epoch, content: BulkContent::Images };
        let (writer, _) = BulkWriter::open(&way.connection, open, way.meter.bulk.clone())
            .await
            .map_err(|e| failed("open a stream for images", &e, None))?;
        let dir = way.image_dir();
        let sent = tokio::task::spawn_blocking(move || {
            let mut sender = ImageSender::new(writer);
            sender.ahead(&dir, DESCRIPTORS)?;
            sender.push().map(|()| sender)
        })
        .await
        .map_err(|e| internal(format!("the sending of images panicked: {e}")))?;
        let sender = sent.map_err(|e| failed("send the images", &e, None))?;
        Ok(Images { sender })
    }

    /// Sends images that are complete before the dump is, until `dumping` is dropped.
    async fn early(self, early: EarlyImages, dir: PathBuf, dumping: Receiver<()>) -> Result<Self, Failure> {
        let (mut images, mut early) = (self, early);
        let sent = tokio::task::spawn_blocking(move || -> Result<(Self, EarlyImages), SendError> {
            // Many at a time, for the dump is what has to be done first.
            while dumping.recv_timeout(EARLY) == Err(RecvTimeoutError::Timeout) {
                // What is not heard of is sent with the rest.
                for name in early.take().unwrap_or_default() {
                    images.sender.ahead(&dir, &name)?;
                }
            }
            Ok((images, early))
        });
        let sent = sent.await.map_err(|e| internal(format!("the sending of images panicked: {e}")))?;
        let (images, early) = sent.map_err(|e| failed("send the images", &e, None))?;
        // The kernel takes ten milliseconds to close it (`fsnotify_wait_marks_destroyed`).
        tokio::task::spawn_blocking(move || drop(early));
        Ok(images)
    }

    /// Sends the rest of the directory. The destination looks whether all is there before it restores.
    async fn rest(self, dir: PathBuf) -> Result<Sent, Failure> {
        let mut sender = self.sender;
        let sent = tokio::task::spawn_blocking(move || -> Result<Sent, SendError> {
            sender.directory(&dir)?;
            sender.finish()
        })
        .await
        .map_err(|e| internal(format!("the sending of images panicked: {e}")))?
        .map_err(|e| failed("send the images", &e, None))?;
        Ok(sent)
    }
}

/// A dump with all of memory, sent while it is made.
async fn plain(
    way: Way,
    images: Images,
    server: PageServer,
    images_done: oneshot::Receiver<()>,
) -> Result<Copied, NotCopied> {
    let start = Instant::now();
    let serving = tokio::task::spawn_blocking(move || {
        let mut images = images;
        let served = server.serve(&mut images.sender);
        (images, served)
    });
    let done = images_done.await;
    // It has its end of the stream, or the dump has ended.
    let served = serving.await.map_err(|e| internal(format!("the page server panicked: {e}")))?;
    let images = match (done, served) {
        (Ok(()), (images, Ok(_))) => images,
        // The stream broke first: CRIU's complaint follows from it.
        (_, (_, Err(e))) if !matches!(e, PageError::Ended) => {
            return Err(failed("send memory", &e, None).into());
        }
        _ => return Err(NotCopied::NoImages),
    };
    let (dump_ms, rest) = (start.elapsed().as_millis(), Instant::now());
    let sent = images.rest(way.image_dir()).await?;
    Ok((sent, None, format!("dump {dump_ms} ms, images {} ms", rest.elapsed().as_millis())))
}

/// Adds to the images what CRIU was not told of.
async fn add_what_was_left(
    populated: JoinHandle<std::io::Result<Populated>>,
    dir: PathBuf,
) -> Result<(), Failure> {
    let populated = populated.await.map_err(|e| internal(format!("looking at memory panicked: {e}")))?;
    let populated = populated.map_err(|e| failed("look at the container's memory", &e, None))?;
    let what = format!("complete the page maps in {}", dir.display());
    tokio::task::spawn_blocking(move || add_to_images(&dir, &populated))
        .await
        .map_err(|e| internal(format!("the completing of images panicked: {e}")))?
        .map_err(|e| failed(&what, &e, None))
}

/// The last round beside the dump, the images, and what both have left out.
async fn fast(
    way: Way,
    images: Images,
    memory: Memory,
    left: LeftOut,
    early: Option<EarlyImages>,
    images_done: oneshot::Receiver<()>,
) -> Result<Copied, NotCopied> {
    let start = Instant::now();
    let populated = tokio::task::spawn_blocking(move || left.populated());
    let (dumping, dumped) = channel();
    let early = async {
        match early {
            Some(early) => images.early(early, way.image_dir(), dumped).await,
            None => Ok(images),
        }
    };
    let dump = async {
        let done = images_done.await;
        drop(dumping);
        let dump_ms = start.elapsed().as_millis();
        done.map_err(|_| NotCopied::NoImages)?;
        add_what_was_left(populated, way.image_dir()).await?;
        Ok::<_, NotCopied>(dump_ms)
    };
    let images = async {
        let (images, dump_ms) = tokio::join!(early, dump);
        let dump_ms = dump_ms?;
        let sent = images?.rest(way.image_dir()).await?;
        Ok::<_, NotCopied>((sent, dump_ms, start.elapsed().as_millis()))
    };
    let (memory, images) = tokio::join!(memory.round(&way, true), images);
    let ((memory, last), (sent, dump_ms, images_ms)) = match (memory, images) {
        (Ok(memory), Ok(images)) => (memory, images),
        (Err(f), Err(NotCopied::Failed(g))) => return Err(and(f, &g).into()),
        (Err(f), Err(NotCopied::NoImages)) => {
            tracing::warn!(failure = %f, "the last round failed with the dump");
            return Err(NotCopied::NoImages);
        }
        (Err(f), Ok(_)) => return Err(f.into()),
        (Ok(_), Err(e)) => return Err(e),
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
