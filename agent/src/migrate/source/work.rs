//! The steps of a migration at its source: what the machine's effects mean on this host.
//!
//! Each step returns the event that the machine is to see. What a step has changed so far stays
//! until `undo` or `retire`; both may be repeated and both take whatever state they find.

use super::copy::Images;
use super::dump::Dump;
use super::machine::{Effect, Event};
use super::memory::Memory;
use super::offer;
use crate::context::Context;
use crate::engine::{Container, ContainerState};
use crate::journal::Ownership;
use crate::migrate::progress::Shared;
use crate::network::{self, HoldLimits, Netns, PacketHold, PacketWatch, Port};
use crate::storage::{self, Suspects, TreeSource, shared_writable_files};
use crate::transport::bulk::Meter;
use crate::transport::endpoint::Connection;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tranship_proto::control::MigrateOptions;
use tranship_proto::handoff::{MemoryTotals, Offer, Totals};
use tranship_proto::ids::{ContainerName, Epoch, HostName, MigrationId};
use tranship_proto::network::NetCapture;
use tranship_proto::status::{Failure, MigrationStatus, Reason, Side};

/// How long the freezer may take.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// How long a container is thawed to accept the connections that wait for it, each time; milliseconds.
const MOMENTS: [u64; 5] = [5, 10, 20, 40, 80];

/// A step, as the driver runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Scan, check, connect.
    Reserve,
    /// Passes over the files.
    Stage,
    /// Fence and freeze.
    Freeze,
    /// Dump and stream.
    Copy,
    /// Back to how it was.
    Undo,
    /// Away with it.
    Retire,
}

impl Step {
    /// Its name in fault points.
    pub fn name(self) -> &'static str {
        match self {
            Step::Reserve => "reserve",
            Step::Stage => "stage",
            Step::Freeze => "freeze",
            Step::Copy => "copy",
            Step::Undo => "undo",
            Step::Retire => "retire",
        }
    }
}

impl From<Step> for Effect {
    fn from(step: Step) -> Self {
        match step {
            Step::Reserve => Effect::Reserve,
            Step::Stage => Effect::Stage,
            Step::Freeze => Effect::Freeze,
            Step::Copy => Effect::Copy,
            Step::Undo => Effect::Undo,
            Step::Retire => Effect::Retire,
        }
    }
}

/// A tree on its way.
pub(super) struct Tree {
    pub(super) index: u16,
    pub(super) source: TreeSource,
    pub(super) passes: u32,
}

/// What carries contents to the destination, apart from the work's state.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) ctx: Arc<Context>,
    pub(super) id: MigrationId,
    pub(super) epoch: Epoch,
    pub(super) name: ContainerName,
    pub(super) to: HostName,
    pub(super) connection: Connection,
    pub(super) meter: Arc<Shared>,
}

impl Way {
    /// Where the images of this migration are.
    pub(super) fn image_dir(&self) -> PathBuf {
        image_dir(&self.ctx, self.id)
    }

    /// Host pids of the container's processes.
    pub(super) async fn processes(&self) -> Result<Vec<i32>, Failure> {
        let found = self.ctx.engine.processes(&self.name).await;
        found.map(|(_, pids)| pids).map_err(|e| engine_failure(&e, Side::Source))
    }
}

fn image_dir(ctx: &Context, id: MigrationId) -> PathBuf {
    ctx.config.run_dir.join("images").join(id.to_string())
}

/// What the steps share.
pub struct Work {
    pub(super) ctx: Arc<Context>,
    pub(super) id: MigrationId,
    pub(super) epoch: Epoch,
    pub(super) name: ContainerName,
    /// Absent when an earlier agent has removed it already.
    pub(super) container: Option<Container>,
    pub(super) destination: HostName,
    pub(super) dry_run: bool,
    pub(super) netns: Netns,
    pub(super) ports: Vec<Port>,
    pub(super) capture: Option<NetCapture>,
    pub(super) trees: Vec<Tree>,
    pub(super) connection: Option<Connection>,
    watch: Option<PacketWatch>,
    // In fast mode, from the stage step to the end.
    pub(super) memory: Option<Memory>,
    // From the stage step on.
    pub(super) dump: Option<Dump>,
    // From the freeze step on.
    pub(super) images: Option<Images>,
    // Packets that come here after the freeze, until the destination has them; also the driver's.
    pub(super) hold: Arc<Mutex<Option<PacketHold>>>,
    pub(super) options: MigrateOptions,
    pub(super) offered_bytes: u64,
    // Of files.
    pub(super) expected_bytes: u64,
    /// Bytes, passes, moments; also the driver's.
    pub meter: Arc<Shared>,
    /// Set by `Reserve` for the driver to send.
    pub offer: Option<(Connection, Box<Offer>)>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("id", &self.id).finish_non_exhaustive()
    }
}

/// An error of a lower room, as shown.
pub(crate) fn failed(what: &str, error: &(dyn std::error::Error + 'static), hint: Option<String>) -> Failure {
    let f = Failure::new(Reason::Failed, Side::Source, format!("cannot {what}: {}", crate::chain(error)));
    match hint {
        Some(h) => f.hint(h),
        None => f,
    }
}

/// An error of the engine's, as shown.
pub(crate) fn engine_failure(error: &crate::engine::EngineError, side: Side) -> Failure {
    error.failure(side)
}

impl Work {
    /// Work for a container that must exist here and run. Touches nothing.
    pub async fn new(
        ctx: Arc<Context>,
        id: MigrationId,
        name: ContainerName,
        destination: HostName,
        dry_run: bool,
        options: MigrateOptions,
    ) -> Result<Self, Failure> {
        let (container, summary) =
            ctx.engine.inspect(&name).await.map_err(|e| engine_failure(&e, Side::Source))?;
        if summary.state != ContainerState::Running {
            let text = format!("container {name} is {}", summary.state);
            return Err(
                Failure::new(Reason::Busy, Side::Source, text).hint("only running containers are migrated")
            );
        }
        let journalled = ctx.journal.ownership(&name, container.created_unix_ms).await;
        let journalled =
            journalled.map_err(|e| Failure::new(Reason::Internal, Side::Source, e.to_string()))?;
        let epoch = journalled.map_or(container.epoch, |(e, _)| e.max(container.epoch)).next();
        let netns = Netns::at(&ctx.config.run_dir, &name);
        Ok(Self {
            ctx,
            id,
            epoch,
            name,
            container: Some(container),
            destination,
            dry_run,
            netns,
            ports: Vec::new(),
            capture: None,
            trees: Vec::new(),
            connection: None,
            watch: None,
            memory: None,
            dump: None,
            images: None,
            hold: Arc::default(),
            options,
            offered_bytes: 0,
            expected_bytes: 0,
            meter: Shared::new(Meter::capped(options.bandwidth)),
            offer: None,
        })
    }

    /// When the container was made, as [`Ownership::made_unix_ms`].
    pub fn made_unix_ms(&self) -> i64 {
        self.container.as_ref().map_or(Ownership::SAME, |c| c.created_unix_ms)
    }

    /// Work for a migration that a restarted agent found in its journal: to be undone or finished.
    pub async fn recovered(ctx: Arc<Context>, status: &MigrationStatus) -> Result<Self, Failure> {
        let name = status.container.clone();
        let container = match ctx.engine.inspect(&name).await {
            Ok((container, _)) => Some(container),
            Err(e) if e.reason() == Reason::UnknownContainer => None,
            Err(e) => return Err(engine_failure(&e, Side::Source)),
        };
        let netns = Netns::at(&ctx.config.run_dir, &name);
        let unknown =
            |e: network::NetworkError| failed("find the container's links", &e, e.hint().map(str::to_owned));
        let ports = network::ports_in_use(&name).await.map_err(unknown)?;
        let capture = network::capture(&netns, &name, &ctx.networks).await.ok();
        let meter = Shared::new(Meter::default());
        // Whether the crash came before or after the freeze is not known: undo both.
        meter.mark(|m| m.frozen = Some(Instant::now()));
        Ok(Self {
            ctx,
            id: status.migration,
            epoch: status.epoch,
            name,
            container,
            destination: status.destination.clone(),
            dry_run: false,
            netns,
            ports,
            capture,
            trees: Vec::new(),
            connection: None,
            watch: None,
            memory: None,
            dump: None,
            images: None,
            hold: Arc::default(),
            options: MigrateOptions::default(),
            offered_bytes: 0,
            expected_bytes: 0,
            meter,
            offer: None,
        })
    }

    /// The container's name.
    pub fn name(&self) -> &ContainerName {
        &self.name
    }

    /// The container, which must be here.
    pub(super) fn container(&self) -> Result<&Container, Failure> {
        self.container.as_ref().ok_or_else(|| {
            Failure::new(Reason::UnknownContainer, Side::Source, format!("container {} is gone", self.name))
        })
    }

    /// Epoch that the destination gets.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How the operator wants it done.
    pub fn options(&self) -> &MigrateOptions {
        &self.options
    }

    /// The destination.
    pub fn destination(&self) -> &HostName {
        &self.destination
    }

    /// A message of this migration.
    pub fn envelope(&self, body: tranship_proto::handoff::Handoff) -> tranship_proto::handoff::Envelope {
        tranship_proto::handoff::Envelope { migration: self.id, epoch: self.epoch, body }
    }

    /// Host pids of the container's processes.
    pub(super) async fn processes(&self) -> Result<(i32, Vec<i32>), Failure> {
        self.ctx.engine.processes(self.name()).await.map_err(|e| engine_failure(&e, Side::Source))
    }

    /// Runs a step to its event.
    pub async fn run(&mut self, step: Step) -> Event {
        let result = match step {
            // The driver sends it.
            Step::Reserve => match offer::reserve(self).await {
                Ok(()) => return Event::Offered,
                Err(f) => Err(f),
            },
            Step::Stage => self.stage().await,
            Step::Freeze => self.freeze().await,
            Step::Copy => match super::copy::copy(self).await {
                Ok(totals) => return Event::Copied(totals),
                Err(f) => Err(f),
            },
            Step::Undo => {
                return match self.undo().await {
                    Ok(trouble) => Event::Undone(trouble),
                    Err(f) => Event::UndoFailed(f),
                };
            }
            Step::Retire => self.retire().await,
        };
        match result {
            Ok(()) => Event::StepDone,
            Err(f) if self.meter.stopped() && f.reason == Reason::Failed => {
                Event::StepFailed(Failure::new(Reason::Cancelled, Side::Source, "stopped on request"))
            }
            Err(f) => Event::StepFailed(self.or_ended(f).await),
        }
    }

    /// What a step failed for, or that the container has ended: everything else follows from that.
    async fn or_ended(&self, failure: Failure) -> Failure {
        match self.ctx.engine.inspect(self.name()).await {
            Ok((_, summary)) if summary.state == ContainerState::Stopped => {
                tracing::debug!(%failure, "the container has ended");
                let name = self.name();
                let text = format!("container {name} has ended while it was being migrated");
                Failure::new(Reason::Ended, Side::Source, text)
                    .hint(format!("`tranship logs {name}` shows what it said last"))
            }
            _ => failure,
        }
    }

    pub(super) fn image_dir(&self) -> PathBuf {
        image_dir(&self.ctx, self.id)
    }

    pub(super) fn way(&self) -> Result<Way, Failure> {
        Ok(Way {
            ctx: self.ctx.clone(),
            id: self.id,
            epoch: self.epoch,
            name: self.name.clone(),
            to: self.destination.clone(),
            connection: self.connection()?,
            meter: self.meter.clone(),
        })
    }

    /// Waits until the dump has let go of the processes, or calls it off when it waits still.
    pub(super) async fn dump_over(&mut self) -> Result<(), Failure> {
        match self.dump.take() {
            None => Ok(()),
            Some(mut dump) => dump.over().await,
        }
    }

    /// Ends the watch over the container's memory, which takes some milliseconds a GiB.
    async fn unwatch(&mut self) {
        let memory = self.memory.take();
        let _ = tokio::task::spawn_blocking(move || drop(memory)).await;
    }

    pub(super) fn connection(&self) -> Result<Connection, Failure> {
        self.connection
            .clone()
            .ok_or_else(|| Failure::new(Reason::Internal, Side::Source, "no connection to the destination"))
    }

    /// One pass over every tree, applied at the destination on return. That the last one is, the
    /// destination looks at itself before it restores.
    pub(super) async fn pass_all(&mut self, last: bool) -> Result<(), Failure> {
        let (_, pids) = self.processes().await?;
        let suspects =
            shared_writable_files(&pids).map_err(|e| failed("look for files that are mapped", &e, None))?;
        let suspects = Arc::new(suspects);
        let trees = std::mem::take(&mut self.trees);
        let phase = if last { storage::Phase::Frozen } else { storage::Phase::Running };
        for tree in trees {
            let tree = self.pass(tree, phase, suspects.clone()).await?;
            self.trees.push(tree);
        }
        if last { Ok(()) } else { self.all_applied().await }
    }

    /// Waits for the destination's word that it has applied all passes so far.
    pub(super) async fn all_applied(&self) -> Result<(), Failure> {
        for tree in &self.trees {
            self.applied(tree.index, tree.passes).await?;
        }
        Ok(())
    }

    /// Waits for the destination's word that it has applied a pass.
    pub(super) async fn applied(&self, index: u16, pass: u32) -> Result<(), Failure> {
        let mut passes = self.meter.passes.subscribe();
        loop {
            if passes.borrow_and_update().get(usize::from(index)).is_some_and(|p| *p >= pass) {
                return Ok(());
            }
            if self.meter.ended() {
                return Err(Failure::new(Reason::Failed, Side::Source, "stopped"));
            }
            let _ = tokio::time::timeout(Duration::from_millis(50), passes.changed()).await;
        }
    }

    async fn pass(
        &self,
        mut tree: Tree,
        phase: storage::Phase,
        suspects: Arc<Suspects>,
    ) -> Result<Tree, Failure> {
        let connection = self.connection()?;
        let pass = tree.passes + 1;
        let index = tree.index;
        let sink =
            super::sink::open(&connection, self.id, self.epoch, index, pass, self.meter.bulk.clone()).await?;
        let meter = self.meter.clone();
        tokio::task::spawn_blocking(move || {
            let mut sink = sink;
            match tree.source.pass(phase, &suspects, &mut sink, &meter.stop) {
                Ok(stats) => {
                    sink.finish().map_err(|e| failed("send files", &e, None))?;
                    meter.file_bytes.fetch_add(stats.data_bytes, Ordering::Relaxed);
                    tree.passes = pass;
                    let elapsed_us = stats.elapsed.as_micros();
                    tracing::debug!(
                        index,
                        pass,
                        entries = stats.entries,
                        data_bytes = stats.data_bytes,
                        elapsed_us,
                        "pass"
                    );
                    Ok(tree)
                }
                Err(e) => {
                    let mut f = failed("read the container's files", &e, None);
                    if let Some(why) = sink.why() {
                        f.message = format!("cannot send files: {why}");
                    }
                    Err(f)
                }
            }
        })
        .await
        .map_err(|e| {
            Failure::new(Reason::Internal, Side::Source, format!("a pass over the files panicked: {e}"))
        })?
    }

    async fn freeze(&mut self) -> Result<(), Failure> {
        let way = self.way()?;
        match &mut self.dump {
            Some(dump) => dump.ready(&way).await?,
            None => return Err(Failure::new(Reason::Internal, Side::Source, "no dump was started")),
        }
        self.images = Some(Images::open(&way).await?);
        // Watched from before the fence, so that the last packet in is seen.
        self.watch = self.ports.first().and_then(|p| PacketWatch::start(p).ok());
        tokio::time::sleep(Duration::from_millis(if self.watch.is_some() { 20 } else { 0 })).await;
        let hold = self.prepare_hold().await;
        let start = Instant::now();
        self.meter.mark(|m| m.frozen = Some(start));
        // What comes in waits from here on; what the container has said goes out. An answer that the fence
        // cut off would be repeated by the restored socket only after a second.
        match self.catch(hold).await {
            true => {
                self.stand_still().await?;
                self.fence().await?;
            }
            // New connections must be kept out while those that wait are accepted.
            false => {
                self.fence().await?;
                self.stand_still().await?;
            }
        }
        if let Some(age) =
            self.watch.take().and_then(|w| w.times().ok()).and_then(|t| t.last_in).and_then(age_of)
        {
            self.meter.mark(|m| m.last_packet_in = Instant::now().checked_sub(age));
        }
        self.meter.say(format!("frozen in {} us", start.elapsed().as_micros()));
        Ok(())
    }

    async fn fence(&self) -> Result<(), Failure> {
        let fenced = network::fence(&self.ports).await;
        fenced.map_err(|e| failed("fence the addresses", &e, e.hint().map(str::to_owned)))
    }

    async fn stand_still(&self) -> Result<(), Failure> {
        let frozen = self.ctx.runtime.freeze(self.name().as_str(), FREEZE_LIMIT).await;
        frozen.map_err(|e| failed("freeze the container", &e, e.hint()))?;
        self.accept_waiting().await
    }

    /// What packets wait in after the freeze, changing nothing yet. Without it those that come before the
    /// destination has them are lost, and repeated by their senders; the move is as safe.
    async fn prepare_hold(&self) -> Option<PacketHold> {
        let capture = self.capture.as_ref()?;
        match PacketHold::prepare(&self.name, capture, &self.ctx.networks, HoldLimits::default()).await {
            Ok(hold) => Some(hold),
            Err(e) => {
                tracing::warn!(error = %crate::chain(&e), "packets will not be held here");
                None
            }
        }
    }

    async fn catch(&self, hold: Option<PacketHold>) -> bool {
        let Some(mut hold) = hold else { return false };
        if let Err(e) = hold.catch().await {
            tracing::warn!(error = %crate::chain(&e), "packets are not held here");
            hold.discard().await;
            return false;
        }
        *self.hold.lock().await = Some(hold);
        true
    }

    /// Sees to it that no connection waits to be accepted, which CRIU could not dump. The hold or the fence
    /// keeps new ones out, so a server that gets a few moments more has none left.
    async fn accept_waiting(&self) -> Result<(), Failure> {
        let name = self.name().as_str();
        let waiting = async || {
            let ports = network::backlogged_ports(&self.netns).await;
            let hint = "the kernel's module tcp_diag has to be there, for CRIU as well: `modprobe tcp_diag`";
            ports.map_err(|e| failed("look for connections that wait", &e, Some(hint.into())))
        };
        for moment in MOMENTS.map(Duration::from_millis) {
            let ports = waiting().await?;
            if ports.is_empty() {
                return Ok(());
            }
            tracing::info!(?ports, ?moment, "connections wait to be accepted: thawed for a moment");
            let runtime = &self.ctx.runtime;
            runtime.thaw(name, FREEZE_LIMIT).await.map_err(|e| failed("thaw the container", &e, e.hint()))?;
            tokio::time::sleep(moment).await;
            let frozen = runtime.freeze(name, FREEZE_LIMIT).await;
            frozen.map_err(|e| failed("freeze the container", &e, e.hint()))?;
        }
        match waiting().await?.as_slice() {
            [] => Ok(()),
            ports => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                let text = format!(
                    "container {name} does not accept the connections that wait on its port {}",
                    ports.join(", ")
                );
                Err(Failure::new(Reason::Busy, Side::Source, text)
                    .hint("try again when its server is less busy")
                    .retryable())
            }
        }
    }

    /// Puts everything back: the container runs and is reached as before. Takes any state.
    ///
    /// `Ok` with what could not be tidied up; `Err` when the container may be frozen or fenced still.
    async fn undo(&mut self) -> Result<Option<Failure>, Failure> {
        let mut trouble: Option<Failure> = None;
        let mut stuck = false;
        let mut keep = |f: Failure| match &mut trouble {
            Some(t) => t.message = format!("{}; {}", t.message, f.message),
            None => trouble = Some(f),
        };
        // CRIU first lets go of the processes; that a dump failed is why this is called.
        if let Err(f) = self.dump_over().await {
            tracing::debug!(failure = %f, "the dump has ended");
        }
        self.trees.clear();
        self.images = None;
        if !self.ports.is_empty()
            && self.netns.exists()
            && let Err(e) = network::unfence(&self.netns, &self.ports).await
        {
            keep(failed("open the fence again", &e, e.hint().map(str::to_owned)));
            stuck = true;
        }
        if self.meter.marks.lock().is_ok_and(|m| m.frozen.is_some())
            && let Err(e) = self.ctx.runtime.thaw(self.name().as_str(), FREEZE_LIMIT).await
        {
            keep(failed("thaw the container", &e, e.hint()));
            stuck = true;
        }
        if let Some(capture) =
            self.capture.as_ref().filter(|_| self.meter.marks.lock().is_ok_and(|m| m.frozen.is_some()))
            && let Err(e) = network::announce(&self.netns, capture).await
        {
            keep(failed("announce the addresses again", &e, None));
        }
        // After the thaw: nobody waits for this.
        if let Some(hold) = self.hold.lock().await.take()
            && let Err(e) = hold.deliver().await
        {
            tracing::debug!(error = %crate::chain(&e), "held packets were lost");
        }
        self.unwatch().await;
        if let Err(e) = self.forget() {
            keep(engine_failure(&e, Side::Source));
        }
        if let Err(e) = remove_dir(self.image_dir()).await {
            keep(failed("remove the images", &e, None));
        }
        match trouble {
            Some(f) if stuck && self.lives().await => Err(f),
            trouble => Ok(trouble),
        }
    }

    /// Whether there is something to thaw: a container that has ended meanwhile needs nothing more.
    async fn lives(&self) -> bool {
        match self.ctx.engine.inspect(self.name()).await {
            Ok((_, summary)) => summary.state != ContainerState::Stopped,
            Err(e) => e.reason() != Reason::UnknownContainer,
        }
    }

    fn forget(&self) -> Result<(), crate::engine::EngineError> {
        self.ctx.engine.forget_migration(self.id)
    }

    /// Kills the frozen copy while it is fenced, and removes everything of it. May be repeated.
    async fn retire(&mut self) -> Result<(), Failure> {
        let name = self.name().clone();
        if let Err(f) = self.dump_over().await {
            // Its images were complete, and the container runs from them.
            tracing::warn!(failure = %f, "the dump ended badly after its images were there");
        }
        self.trees.clear();
        if let Some(hold) = self.hold.lock().await.take() {
            hold.discard().await;
        }
        let engine = |e: crate::engine::EngineError| engine_failure(&e, Side::Source);
        if self.ctx.engine.came_back(&name, self.epoch).await.map_err(engine)? {
            // Its links have the same names.
            tracing::info!(%name, "nothing to retire: the container has come back");
        } else {
            self.end_copy(&name).await?;
        }
        // Quick when the processes are gone.
        self.unwatch().await;
        self.forget().map_err(engine)?;
        remove_dir(self.image_dir()).await.map_err(|e| failed("remove the images", &e, None))?;
        Ok(())
    }

    /// Ends the copy here and its links, beside each other: the kernel takes its time for both.
    async fn end_copy(&self, name: &ContainerName) -> Result<(), Failure> {
        // They are, but for a copy that had gone back and that an operator's decision ends.
        network::fence(&self.ports)
            .await
            .map_err(|e| failed("fence the addresses", &e, e.hint().map(str::to_owned)))?;
        let (ended, unlinked) = tokio::join!(
            self.ctx.engine.retire(name, self.epoch),
            network::destroy(&self.netns, name, &self.ports)
        );
        let ended = ended.map_err(|e| engine_failure(&e, Side::Source));
        let unlinked = unlinked
            .map_err(|e| failed("remove the container's network here", &e, e.hint().map(str::to_owned)));
        match (ended, unlinked) {
            (Err(f), Err(g)) => Err(and(f, &g)),
            (ended, unlinked) => ended.and(unlinked),
        }
    }
}

/// Two failures of what went on beside each other, as one.
pub(super) fn and(mut first: Failure, second: &Failure) -> Failure {
    first.message = format!("{}; and {}", first.message, second.message);
    first
}

/// How long ago a moment of `CLOCK_MONOTONIC` was.
fn age_of(monotonic_ns: u64) -> Option<Duration> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = u64::try_from(now.tv_sec).ok()? * 1_000_000_000 + u64::try_from(now.tv_nsec).ok()?;
    Some(Duration::from_nanos(now.checked_sub(monotonic_ns)?))
}

/// Removes a directory of this agent's own making; nothing when it is not there.
pub(crate) async fn remove_dir(dir: PathBuf) -> std::io::Result<()> {
    // What was in memory takes its time.
    let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    });
    removed.await.map_err(std::io::Error::other)?
}

/// Bytes for people.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, u)| n >= *u) {
        // One decimal is enough for people.
        #[allow(clippy::cast_precision_loss)]
        Some((name, unit)) => format!("{:.1} {name}", n as f64 / *unit as f64),
        None => format!("{n} B"),
    }
}

/// Totals that the destination is to verify.
pub(super) fn totals(
    trees: &[Tree],
    sent: crate::memory::send::Sent,
    memory: Option<MemoryTotals>,
) -> Totals {
    Totals {
        image_files: sent.files,
        image_bytes: sent.bytes,
        tree_passes: trees.iter().map(|t| t.passes).collect(),
        memory,
    }
}
