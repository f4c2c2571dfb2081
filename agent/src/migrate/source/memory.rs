//! The rounds over the memory: while the container runs in the stage step, and one in the copy step.

use super::forecast::{Forecast, Forecaster};
use super::work::{Way, bytes, failed};
use crate::command::{Command, OnAbandon};
use crate::hook::own_program;
use crate::memory::source::{
    LeftOut, PageSink, Plan, RoundError, Rounds, WATCH_SOCKET, lane, watch_pair, watch_receive,
};
use crate::transport::bulk::BulkWriter;
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tranship_proto::bulk::{BulkContent, BulkOpen, RecordKind};
use tranship_proto::codec;
use tranship_proto::control::MigrateOptions;
use tranship_proto::handoff::MemoryTotals;
use tranship_proto::pages::{PAGE, PageBatch, PagesEnd, slots_for};
use tranship_proto::status::{Failure, Reason, Side};

/// Threads that read, compare, compress and send, each with a stream of its own; at most.
const LANES: usize = 2;
/// Processors that the transport keeps busy by itself. A lane that has none left to run on makes the
/// move a tenth slower: it takes turns with those who send what it has read.
const TRANSPORT_CORES: usize = 1;
/// A lane more is worth its start for so many pages.
const PAGES_FOR_A_LANE: u64 = 2048;
/// Bytes of a batch's metadata, at most: some ten for each of its pages.
const MAX_META: usize = 64 << 10;
/// Fewer pages than this are not worth another round.
const SETTLED_PAGES: u64 = 256;
/// Rounds while the container runs, at most.
const MAX_ROUNDS: u32 = 30;
/// Before another try that is hoped to find less.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
/// How long the visits to new processes may take.
const WATCH_LIMIT: Duration = Duration::from_secs(10);

/// The memory of the container on its way.
pub(super) struct Memory {
    rounds: Rounds,
    totals: MemoryTotals,
}

/// A round that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// Pages that were looked at.
    pub(super) looked_at: u64,
    /// From the look to the last byte.
    pub(super) took: Duration,
}

struct Writer(BulkWriter);

impl PageSink for Writer {
    fn pages(&mut self, batch: &PageBatch, data: Bytes) -> Result<(), RoundError> {
        let meta = codec::encode("PageBatch", batch, MAX_META)?;
        Ok(self.0.record_owned(RecordKind::Pages, &meta, data)?)
    }
}

fn failure(error: &RoundError) -> Failure {
    let mut f = failed("copy the container's memory", error, None);
    if matches!(error, RoundError::Full(_)) {
        f.hint = Some("its memory grows faster than it is copied; try again when it has settled".into());
    }
    f
}

fn panicked(e: &tokio::task::JoinError) -> Failure {
    Failure::new(Reason::Internal, Side::Source, format!("the copying of memory panicked: {e}"))
}

impl Memory {
    /// Nothing sent yet, of a container that was offered with so much memory.
    pub(super) fn new(offered_bytes: u64) -> Result<Self, Failure> {
        let rounds = Rounds::new(slots_for(offered_bytes))
            .map_err(|e| failed("prepare the copying of memory", &e, None))?;
        Ok(Self { rounds, totals: MemoryTotals { rounds: 0, pages: PagesEnd::default() } })
    }

    /// What was sent in all.
    pub(super) fn totals(&self) -> MemoryTotals {
        self.totals
    }

    /// One round, sent and applied at the destination on return; of a frozen container the `last`.
    pub(super) async fn round(mut self, way: &Way, last: bool) -> Result<(Self, Sent), Failure> {
        let start = Instant::now();
        let pids = way.processes().await?;
        let new = self.rounds.processes(&pids);
        if !last {
            self.watch(new).await;
        }
        let (memory, plan) = self.plan(last).await?;
        let looked_at = plan.pages;
        let memory = memory.send(way, Arc::new(plan)).await?;
        memory.applied(way).await?;
        Ok((memory, Sent { looked_at, took: start.elapsed() }))
    }

    /// Tells CRIU, in this file, what of the frozen processes it need not look at; answers the same for
    /// [`crate::memory::source::add_to_images`].
    pub(super) async fn leave_out(mut self, way: &Way, file: PathBuf) -> Result<(Self, LeftOut), Failure> {
        let pids = way.processes().await?;
        // Of the new ones as well.
        let _ = self.rounds.processes(&pids);
        tokio::task::spawn_blocking(move || {
            let left = self.rounds.leave_out();
            // One that is cut short would name other pages than are added afterwards.
            let written = std::fs::write(&file, left.text());
            let what = format!("tell CRIU in {} what to leave out", file.display());
            written.map_err(|e| failed(&what, &e, None)).map(|()| (self, left))
        })
        .await
        .map_err(|e| panicked(&e))?
    }

    /// Pages that would go if the next round were the last.
    pub(super) async fn pending(self) -> Result<(Self, u64), Failure> {
        let (memory, plan) = self.plan(true).await?;
        Ok((memory, plan.pages))
    }

    /// Sends what the images say that there is and no round has carried.
    pub(super) async fn complete(self, way: &Way) -> Result<Self, Failure> {
        let images = way.image_dir();
        let (rounds, plan) = tokio::task::spawn_blocking(move || {
            let plan = self.rounds.missing(&images);
            (self, plan)
        })
        .await
        .map_err(|e| panicked(&e))?;
        let (memory, plan) = (rounds, plan.map_err(|e| failure(&e))?);
        if plan.is_empty() {
            return Ok(memory);
        }
        tracing::debug!(pages = plan.pages, "pages that no round has carried");
        let plan = Arc::new(plan);
        let memory = memory.send(way, plan.clone()).await?;
        plan.complete().map_err(|e| failure(&e))?;
        memory.applied(way).await?;
        Ok(memory)
    }

    async fn plan(mut self, last: bool) -> Result<(Self, Plan), Failure> {
        let (memory, plan) = tokio::task::spawn_blocking(move || {
            let plan = self.rounds.plan(last);
            (self, plan)
        })
        .await
        .map_err(|e| panicked(&e))?;
        Ok((memory, plan.map_err(|e| failure(&e))?))
    }

    /// Sends a round. That it was taken is the destination's to say ([`Self::applied`]): the transport's own
    /// word comes up to 25 ms after the last packet (RFC 9000, `max_ack_delay`).
    async fn send(mut self, way: &Way, plan: Arc<Plan>) -> Result<Self, Failure> {
        let round = self.totals.rounds + 1;
        let lanes = lanes(plan.pages, std::thread::available_parallelism().map_or(1, usize::from));
        let mut running = Vec::new();
        for lane_number in 0..lanes {
            let content = BulkContent::Pages { round, lane: lane_number, lanes };
            let open = BulkOpen { migration: way.id, epoch: way.epoch, content };
            let (writer, _) = BulkWriter::open(&way.connection, open, way.meter.bulk.clone())
                .await
                .map_err(|e| failed("open a stream for memory", &e, None))?;
            let (plan, meter) = (plan.clone(), way.meter.clone());
            running.push(tokio::task::spawn_blocking(move || -> Result<PagesEnd, RoundError> {
                let mut writer = Writer(writer);
                let end = lane(&plan, &mut writer, &meter.stop)?;
                let meta = codec::encode("PagesEnd", &end, MAX_META)?;
                writer.0.record(RecordKind::PagesEnd, &meta, &[])?;
                writer.0.finish()?;
                Ok(end)
            }));
        }
        let mut pages = PagesEnd::default();
        let mut wrong = None;
        for lane in running {
            match lane.await {
                Ok(Ok(end)) => pages.add(&end),
                Ok(Err(e)) => wrong = wrong.or(Some(failure(&e))),
                Err(e) => wrong = wrong.or(Some(panicked(&e))),
            }
        }
        if let Some(f) = wrong {
            return Err(f);
        }
        self.totals.rounds = round;
        self.totals.pages.add(&pages);
        tracing::debug!(round, lanes, ?pages, "round");
        Ok(self)
    }

    /// Waits for the destination's word that it has applied all rounds so far.
    async fn applied(&self, way: &Way) -> Result<(), Failure> {
        let mut rounds = way.meter.rounds.subscribe();
        while *rounds.borrow_and_update() < self.totals.rounds {
            if way.meter.ended() {
                return Err(Failure::new(Reason::Failed, Side::Source, "stopped"));
            }
            let _ = tokio::time::timeout(Duration::from_millis(50), rounds.changed()).await;
        }
        Ok(())
    }

    /// Has the kernel watch new processes. What cannot be watched is compared in each round.
    async fn watch(&mut self, pids: Vec<i32>) {
        if pids.is_empty() {
            return;
        }
        match userfaultfds(&pids).await {
            Ok(answers) => {
                for (pid, answer) in pids.iter().zip(answers) {
                    let watched =
                        answer.and_then(|fd| self.rounds.watch(*pid, fd).map_err(|e| e.to_string()));
                    if let Err(why) = watched {
                        tracing::info!(pid, why, "the process is not watched; all of its memory is compared");
                    }
                }
            }
            Err(e) => tracing::warn!(error = %e, "no process is watched; all memory is compared"),
        }
    }
}

/// Lanes for so many pages on so many processors.
fn lanes(pages: u64, cores: usize) -> u16 {
    let most = if pages >= PAGES_FOR_A_LANE { LANES } else { 1 };
    cores.saturating_sub(TRANSPORT_CORES).clamp(1, most) as u16
}

/// What the rounds are to come to.
pub(super) struct Aim {
    forecaster: Forecaster,
    wanted: Option<Duration>,
    end: Instant,
}

/// What is left after rounds over a running container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    /// Pages to be looked at.
    pub(super) pages: u64,
    /// When they were counted.
    pub(super) counted: Instant,
    /// For how long they were written to when they were counted.
    written_for: Duration,
}

impl Left {
    /// Bytes of the pages.
    pub(super) fn bytes(&self) -> u64 {
        self.pages.saturating_mul(PAGE)
    }
}

impl Aim {
    /// As the operator wants it, beginning now.
    pub(super) fn new(way: &Way, options: &MigrateOptions) -> Self {
        let config = &way.ctx.config;
        let limit = options.timeout_s.map_or(config.limits.phase_timeout_s, u64::from);
        Self {
            forecaster: Forecaster::new(&config.state_dir, &way.to),
            wanted: options.max_blackout_ms.map(|ms| Duration::from_millis(ms.into())),
            end: Instant::now() + Duration::from_secs(limit),
        }
    }

    /// Were the container frozen now, with so many pages and bytes of files to be carried.
    pub(super) fn forecast(&self, pages: u64, file_bytes: u64) -> Forecast {
        self.forecaster.forecast(pages.saturating_add(file_bytes.div_ceil(PAGE)))
    }

    /// Whether the blackout is as short as wanted.
    pub(super) fn reached(&self, forecast: &Forecast) -> bool {
        self.wanted.is_none_or(|w| forecast.blackout() <= w)
    }

    /// Fails when there is no time for another try: the prediction did not come down.
    pub(super) fn in_time(&self, forecast: &Forecast, left: &Left, files_per_s: f64) -> Result<(), Failure> {
        // A positive number; one that is too large becomes the largest.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let files = match files_per_s as u64 {
            0 => String::new(),
            rate => format!(" and {}/s of its files", bytes(rate)),
        };
        let Some(wanted) = self.wanted.filter(|_| Instant::now() >= self.end) else { return Ok(()) };
        let millis = u64::try_from(left.written_for.as_millis()).unwrap_or(u64::MAX).max(1);
        let text = format!(
            "the blackout is predicted to be {} ms, more than the {} ms wanted: the container changes {}/s of \
             its memory{files}, and {}/s are carried",
            forecast.blackout().as_millis(),
            wanted.as_millis(),
            bytes(left.bytes().saturating_mul(1000) / millis),
            bytes(self.forecaster.rate()),
        );
        Err(Failure::new(Reason::Timeout, Side::Source, text)
            .hint("the container runs on at the source; raise --max-blackout, or try when it writes less")
            .retryable())
    }
}

/// Rounds over a running container, until they no longer make the blackout shorter and it is predicted
/// to be as short as wanted, files apart.
pub(super) async fn rounds(way: &Way, mut memory: Memory, aim: &mut Aim) -> Result<(Memory, Left), Failure> {
    let mut before = u64::MAX;
    loop {
        let since = Instant::now();
        let (m, sent) = memory.round(way, false).await?;
        let (m, pages) = m.pending().await?;
        memory = m;
        let round = memory.totals().rounds;
        let left = Left { pages, counted: Instant::now(), written_for: since.elapsed() };
        aim.forecaster.round(sent.looked_at, sent.took);
        let forecast = aim.forecast(pages, 0);
        way.meter.say(format!(
            "{round} rounds over the memory, {} left, blackout of {} ms predicted",
            bytes(left.bytes()),
            forecast.blackout().as_millis()
        ));
        tracing::debug!(round, ?sent, ?left, ?forecast, "round over the memory");
        let settled = pages <= SETTLED_PAGES || pages > before / 10 * 8 || round >= MAX_ROUNDS;
        before = pages;
        if settled && aim.reached(&forecast) {
            return Ok((memory, left));
        }
        aim.in_time(&forecast, &left, 0.0)?;
        if settled {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Descriptors of processes, or why there are none, in the same order.
async fn userfaultfds(pids: &[i32]) -> std::io::Result<Vec<Result<std::os::fd::OwnedFd, String>>> {
    let (ours, theirs) = watch_pair()?;
    let command = Command::new(own_program()?)
        .arg("watch")
        .args(pids.iter().map(ToString::to_string))
        .inherit(WATCH_SOCKET, theirs)
        .timeout(WATCH_LIMIT)
        .on_abandon(OnAbandon::Leave);
    let running = tokio::spawn(command.output());
    let count = pids.len();
    let answers = tokio::task::spawn_blocking(move || {
        (0..count).map(|_| watch_receive(&ours)).collect::<std::io::Result<Vec<_>>>()
    })
    .await
    .map_err(std::io::Error::other)?;
    match running.await {
        Ok(Ok(_)) => answers,
        Ok(Err(e)) => answers.map_err(|_| std::io::Error::other(e)),
        Err(e) => Err(std::io::Error::other(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_leave_a_processor_to_the_transport() {
        assert_eq!(lanes(PAGES_FOR_A_LANE, 1), 1, "there is always one");
        assert_eq!(lanes(PAGES_FOR_A_LANE, 2), 1);
        assert_eq!(lanes(PAGES_FOR_A_LANE, 3), 2);
        assert_eq!(lanes(PAGES_FOR_A_LANE, 64), 2);
        assert_eq!(lanes(PAGES_FOR_A_LANE - 1, 64), 1, "a small round is not worth a second");
    }
}
