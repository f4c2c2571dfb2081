//! The steps of a migration at its destination: what the machine's effects mean on this host.
//!
//! Everything made here is found again by name (directories and namespaces carry the migration or
//! the container), so that `discard` can be repeated and needs no memory of what was done.

use super::check::{Accepted, check, disk_available};
use super::machine::Acceptance;
use super::memory;
use super::receive::{Receiving, images};
use crate::context::Context;
use crate::criu::QuickBreakpoints;
use crate::engine::{ContainerState, EngineError, RestoreHandle};
use crate::hook::HookError;
use crate::journal::Ownership;
use crate::memory::DIR_MODE;
use crate::memory::receive::Received;
use crate::memory::store::Store;
use crate::migrate::source::{engine_failure, remove_dir};
use crate::network::{self, HoldLimits, HoldStats, Netns, PacketHold, PacketWatch, Port};
use crate::storage::StorePolicy;
use quinn::RecvStream;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OnceCell, Semaphore, oneshot, watch};
use tranship_proto::bulk::BulkContent;
use tranship_proto::handoff::{Handoff, HeldPacket, MemoryMode, Offer, ResumeTimes, Totals};
use tranship_proto::ids::{ContainerName, Epoch, MigrationId};
use tranship_proto::network::NetCapture;
use tranship_proto::status::{Failure, MigrationStatus, Reason, Side};

/// How long the first packet out is waited for, for the figures only.
const FIRST_PACKET: Duration = Duration::from_millis(250);
/// The same when no packet has waited for the container.
const NOBODY_WAITS: Duration = Duration::from_millis(20);
/// How long a held restore may take to hear the decision and act on it.
const RESUME_LIMIT: Duration = Duration::from_secs(30);
/// How long the script of a held restore may take to find a restarted agent; it tries all the time.
const FIND_HOLD: Duration = Duration::from_secs(5);
/// The same when this agent has seen the hold die, and only its connection may have gone.
const HOLD_BACK: Duration = Duration::from_millis(200);
/// Bulk streams under way at a time. Each may keep some megabytes waiting; a source needs fewer: its
/// lanes, one for images, and one for files.
const MAX_STREAMS: u32 = 16;
/// How long the fill process may take to say that it is well, between the grant and OWNER.
const ASKED: Duration = Duration::from_millis(20);
/// Room beyond the announced size, since files grow while they are copied.
const GROWTH: u64 = 1 << 30;

/// What was made ready before the blackout.
struct Room {
    trees: Vec<Receiving>,
    // Where memory comes in rounds.
    memory: Option<Arc<Store>>,
    ports: Vec<Port>,
    watch: Option<PacketWatch>,
    // For the restore.
    _breakpoints: Option<QuickBreakpoints>,
}

/// Why a container could not be let go.
#[derive(Debug)]
pub enum NotResumed {
    /// It may have run.
    Perhaps(Failure),
    /// Its hold had died before: nothing has run, nor ever will.
    NeverRan(Failure),
}

impl From<Failure> for NotResumed {
    fn from(failure: Failure) -> Self {
        NotResumed::Perhaps(failure)
    }
}

/// What the steps share.
pub struct Work {
    ctx: Arc<Context>,
    /// The migration.
    pub id: MigrationId,
    /// Epoch that this host gets.
    pub epoch: Epoch,
    offer: Offer,
    netns: Netns,
    accepted: OnceCell<Accepted>,
    room: OnceCell<Room>,
    ready: watch::Sender<Option<Result<(), Failure>>>,
    received: watch::Sender<Option<Received>>,
    handle: Mutex<Option<RestoreHandle>>,
    // Packets that come for the container while nothing runs.
    hold: Mutex<Option<PacketHold>>,
    // Held by whatever makes things here; discarding waits for it.
    making: Mutex<()>,
    given_up: watch::Sender<bool>,
    // The container runs here and its arrival is over: resuming it again has nothing to do.
    settled: AtomicBool,
    // A place for each bulk stream under way.
    streams: Semaphore,
    // Made by an earlier agent: what is here may be more than this one knows of.
    recovered: bool,
}

fn failed(what: &str, error: &(dyn std::error::Error + 'static), hint: Option<&str>) -> Failure {
    let f =
        Failure::new(Reason::Failed, Side::Destination, format!("cannot {what}: {}", crate::chain(error)));
    match hint {
        Some(h) => f.hint(h),
        None => f,
    }
}

impl Work {
    /// For an offer that was not looked at yet.
    pub fn new(ctx: Arc<Context>, id: MigrationId, epoch: Epoch, offer: Offer) -> Self {
        let netns = Netns::at(&ctx.config.run_dir, &offer.container);
        Self {
            ctx,
            id,
            epoch,
            offer,
            netns,
            accepted: OnceCell::new(),
            room: OnceCell::new(),
            ready: watch::Sender::new(None),
            received: watch::Sender::new(None),
            handle: Mutex::new(None),
            hold: Mutex::new(None),
            making: Mutex::new(()),
            given_up: watch::Sender::new(false),
            settled: AtomicBool::new(false),
            streams: Semaphore::new(MAX_STREAMS as usize),
            recovered: false,
        }
    }

    /// Work for a migration that a restarted agent found in its journal.
    ///
    /// What was made is found by name; what is not found makes the later steps fail, with words.
    pub async fn recovered(ctx: Arc<Context>, status: &MigrationStatus) -> Result<Self, Failure> {
        let id = status.migration;
        let name = &status.container;
        let internal =
            |e: &dyn std::fmt::Display| Failure::new(Reason::Internal, Side::Destination, e.to_string());
        let arrival = ctx.engine.find_arrival(id).await.map_err(|e| engine_failure(&e, Side::Destination))?;
        let document = ctx.journal.document(id, Side::Destination).await.map_err(|e| internal(&e))?;
        let offer = Offer {
            container: name.clone(),
            source: status.source.clone(),
            container_json: Vec::new(),
            network_json: document.unwrap_or_default(),
            trees: Vec::new(),
            memory_bytes: 0,
            criu_version: String::new(),
            kernel: String::new(),
            arch: String::new(),
            cpu_features: Vec::new(),
            runtime: String::new(),
            memory: MemoryMode::Plain,
            dry_run: false,
        };
        let capture = serde_json::from_slice::<NetCapture>(&offer.network_json);
        let work = Self { recovered: true, ..Self::new(ctx, id, status.epoch, offer) };
        if let (Some(arrival), Ok(capture)) = (arrival, capture) {
            let ports = network::ports_of_capture(&work.offer.container, &capture);
            let watch = ports.first().and_then(|p| PacketWatch::start(p).ok());
            let _ = work.accepted.set(Accepted {
                arrival,
                capture,
                image_bytes: 0,
                memory: MemoryMode::Plain,
                notices: Vec::new(),
            });
            let _ = work.room.set(Room { trees: Vec::new(), memory: None, ports, watch, _breakpoints: None });
            work.ready.send_replace(Some(Ok(())));
        } else {
            let text = "an earlier agent has left nothing of the arrival";
            let nothing = Failure::new(Reason::Failed, Side::Destination, text);
            work.ready.send_replace(Some(Err(nothing)));
        }
        Ok(work)
    }

    /// When the container was made, as [`Ownership::made_unix_ms`].
    pub fn made_unix_ms(&self) -> i64 {
        self.accepted.get().map_or(Ownership::SAME, |a| a.arrival.container.created_unix_ms)
    }

    /// Whether an earlier agent has let the container go and settled it: its arrival is over then, and
    /// the container is there with this migration's epoch.
    async fn settled_before(&self) -> bool {
        if !self.recovered || self.accepted.get().is_some() {
            return false;
        }
        let found = self.ctx.engine.inspect(&self.offer.container).await;
        found.is_ok_and(|(container, summary)| {
            container.epoch == self.epoch && summary.state != ContainerState::Arriving
        })
    }

    /// Finds the hold of an earlier agent again, or makes it again from the images kept. Nothing has
    /// run: no grant was recorded. Microseconds from call to held.
    pub async fn reclaim(&self) -> Result<u64, Failure> {
        let start = Instant::now();
        let _making = self.making.lock().await;
        let accepted = self.accepted()?;
        let engine = |e: crate::engine::EngineError| engine_failure(&e, Side::Destination);
        let mut slot = self.handle.lock().await;
        let filled = memory::held_well(&self.ctx, &self.offer.container, &self.image_dir()).await;
        if filled && slot.as_ref().is_some_and(RestoreHandle::connected) {
            return Ok(0);
        }
        let mut handle = self.ctx.engine.resume_hold(&accepted.arrival).await.map_err(engine)?;
        // One that has died under this agent's eyes does not come back.
        let wait = if self.recovered { FIND_HOLD } else { HOLD_BACK };
        if !filled || handle.held(wait).await.is_err() {
            handle = self.restore_again(accepted).await?;
        }
        *slot = Some(handle);
        Ok(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    async fn restore_again(&self, accepted: &Accepted) -> Result<RestoreHandle, Failure> {
        tracing::warn!("the held restore is gone: restoring again from the images kept");
        let engine = |e: crate::engine::EngineError| engine_failure(&e, Side::Destination);
        let runtime = |e: crate::runtime::RuntimeError| failed("remove what is left of the hold", &e, None);
        let name = self.offer.container.as_str();
        self.ctx.runtime.kill_frozen(name, RESUME_LIMIT).await.map_err(runtime)?;
        self.ctx.runtime.delete(name).await.map_err(runtime)?;
        memory::call_off(&self.ctx, &self.offer.container).await?;
        if !self.netns.exists() {
            let hint = |e: network::NetworkError| failed("make the container's network again", &e, e.hint());
            let netns = Netns::create(&self.ctx.config.run_dir, &self.offer.container).await.map_err(hint)?;
            network::recreate(&netns, &self.offer.container, &accepted.capture, &self.ctx.networks)
                .await
                .map_err(hint)?;
        }
        let request = memory::restore_request(self.image_dir(), memory::sealed(&self.image_dir()));
        memory::start_fill(&self.ctx, &self.offer.container, &request).await?;
        let mut handle = self.ctx.engine.restore(&accepted.arrival, &request).await.map_err(engine)?;
        let limit = Duration::from_secs(self.ctx.config.limits.phase_timeout_s);
        handle.begin(limit).await.map_err(engine)?;
        handle.held(limit).await.map_err(engine)?;
        Ok(handle)
    }

    /// Whether the restore is held at this moment, and nothing is known of its memory being lost. The
    /// caller waits: a fill process that does not answer at once is believed to be there.
    pub async fn holds_well(&self) -> bool {
        let image_dir = self.image_dir();
        let filled = memory::held_well(&self.ctx, &self.offer.container, &image_dir);
        self.handle.lock().await.as_ref().is_some_and(RestoreHandle::connected)
            && tokio::time::timeout(ASKED, filled).await.unwrap_or(true)
    }

    /// Waits until a restore that is held dies without having been told anything, or loses its memory;
    /// `None` when it is told.
    pub async fn hold_lost(&self) -> Option<Failure> {
        let hold = self.handle.lock().await.as_ref().map(RestoreHandle::hold)?;
        let image_dir = self.image_dir();
        tokio::select! {
            Some(lost) = memory::hold_lost(&self.ctx, &self.offer.container, &image_dir) => Some(lost),
            lost = hold.lost() => lost.then(|| {
                let text = format!("the held restore of container {} has died", self.offer.container);
                Failure::new(Reason::Failed, Side::Destination, text)
                    .hint("the log of the destination says more; was it killed, or is the host out of memory?")
            }),
        }
    }

    fn image_dir(&self) -> PathBuf {
        self.ctx.config.run_dir.join("images").join(self.id.to_string())
    }

    fn accepted(&self) -> Result<&Accepted, Failure> {
        self.accepted
            .get()
            .ok_or_else(|| Failure::new(Reason::Internal, Side::Destination, "the offer was not checked"))
    }

    /// Looks at the offer. Touches nothing.
    pub async fn check(&self) -> Result<Acceptance, Failure> {
        let accepted = check(&self.ctx, self.id, self.epoch, &self.offer).await?;
        let (notices, memory) = (accepted.notices.clone(), accepted.memory);
        let _ = self.accepted.set(accepted);
        Ok(Acceptance { notices, memory })
    }

    /// Makes directories, namespace and links, all of it gated. Bulk streams wait for it.
    pub async fn prepare_receive(&self) -> Result<(), Failure> {
        let _making = self.making.lock().await;
        let result = self.make_room().await;
        self.ready.send_replace(Some(result.clone()));
        result
    }

    async fn make_room(&self) -> Result<(), Failure> {
        let accepted = self.accepted()?;
        let breakpoints = tokio::task::spawn_blocking(QuickBreakpoints::prepare);
        self.ctx
            .engine
            .make_room(&accepted.arrival)
            .await
            .map_err(|e| engine_failure(&e, Side::Destination))?;
        let document = self.offer.network_json.clone();
        self.ctx
            .journal
            .keep_document(self.id, Side::Destination, document)
            .await
            .map_err(|e| Failure::new(Reason::Internal, Side::Destination, e.to_string()))?;
        let mut trees = Vec::new();
        // An offer's numbers are the source's word: they widen nothing beyond what is free here.
        let limits = &self.ctx.config.limits;
        let free = disk_available(&self.ctx.config.state_dir).saturating_sub(limits.disk_reserve_mib << 20);
        for (tree, offered) in accepted.arrival.trees.iter().zip(&self.offer.trees) {
            let most = StorePolicy::default();
            let policy = StorePolicy {
                max_bytes: offered.bytes.saturating_mul(2).saturating_add(GROWTH).min(free),
                max_entries: offered
                    .entries
                    .saturating_mul(2)
                    .saturating_add(1_000_000)
                    .min(most.max_entries),
                ..most
            };
            let path = tree.receive.clone();
            let made = tokio::task::spawn_blocking(move || Receiving::create(path, policy)).await;
            trees.push(made.map_err(|e| Failure::new(Reason::Internal, Side::Destination, e.to_string()))??);
        }
        let images = self.image_dir();
        std::fs::DirBuilder::new()
            .mode(DIR_MODE)
            .create(&images)
            .map_err(|e| failed(&format!("create {}", images.display()), &e, None))?;
        let memory = memory::store(&images, &self.offer, accepted)?;
        let hint = |e: network::NetworkError, what: &str| failed(what, &e, e.hint());
        let netns = Netns::create(&self.ctx.config.run_dir, &self.offer.container)
            .await
            .map_err(|e| hint(e, "make the container's network namespace"))?;
        let ports = network::recreate(&netns, &self.offer.container, &accepted.capture, &self.ctx.networks)
            .await
            .map_err(|e| hint(e, "make the container's network"))?;
        let watch = ports.first().and_then(|p| PacketWatch::start(p).ok());
        let limits = HoldLimits::default();
        match PacketHold::prepare(&self.offer.container, &accepted.capture, &self.ctx.networks, limits).await
        {
            Ok(hold) => *self.hold.lock().await = Some(hold),
            // Without it clients wait for their next retransmission; the move is as safe.
            Err(e) => tracing::warn!(error = %crate::chain(&e), "packets will not be held"),
        }
        let _breakpoints = breakpoints.await.unwrap_or_default();
        let _ = self.room.set(Room { trees, memory, ports, watch, _breakpoints });
        Ok(())
    }

    /// The source is frozen and fenced: what comes for the container waits here from now on. Whether it
    /// does.
    pub async fn hold_packets(&self) -> bool {
        let mut slot = self.hold.lock().await;
        let Some(hold) = slot.as_mut() else { return false };
        let held = match hold.catch().await {
            Ok(()) => hold.attract(),
            Err(e) => Err(e),
        };
        if let Err(e) = held {
            tracing::warn!(error = %crate::chain(&e), "packets are not held");
            if let Some(hold) = slot.take() {
                hold.discard().await;
            }
        }
        slot.is_some()
    }

    /// What waited at the source goes before what waits here.
    pub async fn adopt_packets(&self, packets: Vec<HeldPacket>) {
        let refused = match self.hold.lock().await.as_mut() {
            Some(hold) => hold.adopt(packets),
            None => packets.len(),
        };
        if refused > 0 {
            tracing::info!(
                refused,
                "packets of the source's came too late, or are none for the container: their senders repeat them"
            );
        }
    }

    async fn room(&self) -> Result<&Room, Failure> {
        let mut ready = self.ready.subscribe();
        let mut given_up = self.given_up.subscribe();
        let result = tokio::select! {
            r = ready.wait_for(Option::is_some) => r.ok().and_then(|r| r.clone()),
            _ = given_up.wait_for(|g| *g) => None,
        };
        match result {
            Some(Ok(())) => {}
            Some(Err(f)) => return Err(f),
            None => return Err(Failure::new(Reason::Cancelled, Side::Destination, "given up")),
        }
        self.room
            .get()
            .ok_or_else(|| Failure::new(Reason::Internal, Side::Destination, "nothing was made ready"))
    }

    /// Takes a bulk stream to its end; the answer, if any, is for the source.
    pub async fn take_bulk(
        &self,
        content: BulkContent,
        recv: RecvStream,
    ) -> Result<Option<Handoff>, Failure> {
        let _place = self.streams.try_acquire().map_err(|_| {
            let text = format!("more than {MAX_STREAMS} bulk streams at a time");
            Failure::new(Reason::Failed, Side::Destination, text)
        })?;
        let room = self.room().await?;
        // Readers end by themselves when this is given up; discarding waits for them.
        let taken = async {
            match content {
                BulkContent::Tree { index, pass } => {
                    let tree = room.trees.get(usize::from(index)).ok_or_else(|| {
                        Failure::new(
                            Reason::Failed,
                            Side::Destination,
                            format!("files for tree {index}, which was not offered"),
                        )
                    })?;
                    tree.pass(pass, recv, self.given_up.subscribe()).await?;
                    Ok(Some(Handoff::PassDone { index, pass }))
                }
                BulkContent::Pages { round, lane, lanes } => match &room.memory {
                    Some(store) => {
                        memory::lane(store.clone(), (round, lane, lanes), recv, self.given_up.subscribe())
                            .await
                    }
                    None => Err(Failure::new(
                        Reason::Failed,
                        Side::Destination,
                        "memory in rounds, which was not agreed on",
                    )),
                },
                BulkContent::Images => {
                    let limit = self.accepted()?.image_bytes;
                    let (told, described) = oneshot::channel();
                    let receiving = async {
                        let given_up = self.given_up.subscribe();
                        let received = images(recv, self.image_dir(), limit, given_up, told).await?;
                        self.received.send_replace(Some(received));
                        Ok(None)
                    };
                    let ahead = async {
                        if described.await.is_ok()
                            && let Err(failure) = self.restore_ahead().await
                        {
                            tracing::warn!(%failure, "the restore could not be started ahead");
                        }
                    };
                    tokio::join!(receiving, ahead).0
                }
            }
        }
        .await;
        if *self.given_up.borrow() { Ok(None) } else { taken }
    }

    /// Starts the runtime before the images are there, which is the longer part of a restore. It waits for
    /// [`Self::restore`], and ends when the migration is given up or this agent dies.
    async fn restore_ahead(&self) -> Result<(), Failure> {
        // Held by the restore itself or by what undoes it all: too late then.
        let Ok(_making) = self.making.try_lock() else { return Ok(()) };
        if *self.given_up.borrow() {
            return Ok(());
        }
        let arrival = &self.accepted()?.arrival;
        // The runtime looks at the places of volumes, and these are put there at last.
        if arrival.trees.iter().any(|t| t.receive != t.home) {
            return Ok(());
        }
        let lazy = self.room().await?.memory.is_some();
        let request = memory::restore_request(self.image_dir(), lazy);
        let handle = self.ctx.engine.restore(arrival, &request).await;
        *self.handle.lock().await = Some(handle.map_err(|e| engine_failure(&e, Side::Destination))?);
        Ok(())
    }

    /// Verifies that everything came, and restores up to the hold. Microseconds from call to held.
    pub async fn restore(&self, totals: &Totals) -> Result<u64, Failure> {
        let start = Instant::now();
        let limit = Duration::from_secs(self.ctx.config.limits.phase_timeout_s);
        let mut given_up = self.given_up.subscribe();
        let _making = self.making.lock().await;
        let restore = async {
            self.verify(totals).await?;
            let arrival = &self.accepted()?.arrival;
            let engine = |e: crate::engine::EngineError| engine_failure(&e, Side::Destination);
            self.ctx.engine.adopt(arrival).await.map_err(engine)?;
            let verified = start.elapsed();
            let name = &self.offer.container;
            let request = memory::restore_request(self.image_dir(), memory::sealed(&self.image_dir()));
            let started = self.handle.lock().await.take().filter(RestoreHandle::waits);
            let mut handle = match started {
                Some(handle) => handle,
                None => self.ctx.engine.restore(arrival, &request).await.map_err(engine)?,
            };
            memory::start_fill(&self.ctx, name, &request).await?;
            handle.begin(limit).await.map_err(engine)?;
            handle.held(limit).await.map_err(|e| match memory::cause(&self.ctx, name) {
                Some(why) => Failure::new(Reason::Failed, Side::Destination, why),
                None => engine(e),
            })?;
            *self.handle.lock().await = Some(handle);
            tracing::info!(
                verify_us = verified.as_micros(),
                restore_us = (start.elapsed() - verified).as_micros(),
                "held"
            );
            Ok(())
        };
        tokio::select! {
            result = tokio::time::timeout(limit, restore) => match result {
                Ok(result) => result?,
                Err(_) => {
                    return Err(Failure::new(Reason::Timeout, Side::Destination, format!("the restore took longer than {} s", limit.as_secs()))
                        .hint("raise limits.phase_timeout_s in transhipd.toml of the destination"));
                }
            },
            _ = given_up.wait_for(|g| *g) => return Err(Failure::new(Reason::Cancelled, Side::Destination, "given up")),
        }
        Ok(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    async fn verify(&self, totals: &Totals) -> Result<(), Failure> {
        let room = self.room().await?;
        let mut received = self.received.subscribe();
        let got = received.wait_for(Option::is_some).await.ok().and_then(|r| *r);
        let got = got.ok_or_else(|| Failure::new(Reason::Failed, Side::Destination, "no images came"))?;
        if (got.files, got.bytes) != (totals.image_files, totals.image_bytes) {
            let text = format!(
                "{} image files with {} bytes came, the source sent {} with {}",
                got.files, got.bytes, totals.image_files, totals.image_bytes
            );
            return Err(Failure::new(Reason::Failed, Side::Destination, text));
        }
        if totals.tree_passes.len() != room.trees.len() {
            return Err(Failure::new(
                Reason::Failed,
                Side::Destination,
                "the source counts other trees than it offered",
            ));
        }
        for (tree, pass) in room.trees.iter().zip(&totals.tree_passes) {
            // The last pass was sent before this message, on a stream of its own.
            while tree.finished().await < *pass {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tree.seal(*pass).await?;
        }
        memory::seal(room.memory.as_ref(), totals.memory, self.image_dir()).await
    }

    /// The container is this host's: opens the gate, lets it go, announces it.
    pub async fn resume(&self) -> Result<ResumeTimes, NotResumed> {
        let start = Instant::now();
        let since = |from: Instant| u64::try_from(from.elapsed().as_micros()).unwrap_or(u64::MAX);
        let engine = |e: crate::engine::EngineError| engine_failure(&e, Side::Destination);
        if self.settled.load(Ordering::Relaxed) || self.settled_before().await {
            self.clean().await.map_err(|e| failed("remove the images", &e, None))?;
            return Ok(ResumeTimes::default());
        }
        let room = self.room().await?;
        let accepted = self.accepted()?;
        if let Some(watch) = &room.watch {
            let _ = watch.arm();
        }
        let armed = monotonic_ns();
        let mut slot = self.handle.lock().await;
        let handle = match slot.as_mut() {
            Some(handle) => handle,
            // An earlier agent held it, or has let it go already.
            None => slot.insert(self.ctx.engine.resume_hold(&accepted.arrival).await.map_err(engine)?),
        };
        // CRIU opens its own lock at this point too: sockets exist, repair mode ends next.
        network::open_gate(&room.ports)
            .await
            .map_err(|e| failed("open the container's links", &e, e.hint()))?;
        let announce = network::announce(&self.netns, &accepted.capture);
        // The first packet goes out at once; the end of the hold takes longer and need not be waited for.
        let hold = self.hold.lock().await.take();
        let delivering = hold.map(|hold| tokio::spawn(hold.deliver()));
        let (released, announced) = tokio::join!(self.let_go(handle), announce);
        if let Err(error) = released {
            // Nothing is there to answer, and the kernel would, with resets.
            let dead = matches!(error, EngineError::Hook(HookError::Lost(_)) | EngineError::Restore { .. });
            if dead && let Err(e) = network::fence(&room.ports).await {
                tracing::warn!(error = %crate::chain(&e), "the gate of what could not be let go stays open");
            }
            let failure = engine_failure(&error, Side::Destination);
            return Err(match error {
                EngineError::Hook(HookError::Lost(_)) => NotResumed::NeverRan(failure),
                _ => NotResumed::Perhaps(failure),
            });
        }
        if let Err(e) = announced {
            tracing::warn!(error = %crate::chain(&e), "the addresses were not announced; neighbours learn with the first packet");
        }
        handle.running(RESUME_LIMIT).await.map_err(engine)?;
        let follow = memory::follow(self.ctx.clone(), self.offer.container.clone(), Some(self.id));
        tokio::spawn(tracing::Instrument::instrument(follow, tracing::Span::current()));
        let grant_to_running_us = since(start);
        // Who waits for a packet out has sent one in.
        let mut patience = FIRST_PACKET;
        match delivering {
            None => {}
            Some(task) => match task.await {
                Ok(Ok(HoldStats { held, dropped, delivered, .. })) => {
                    tracing::info!(held, dropped, delivered, "packets delivered");
                    if held == 0 && dropped == 0 {
                        patience = NOBODY_WAITS;
                    }
                }
                Ok(Err(e)) => tracing::warn!(error = %crate::chain(&e), "held packets were lost"),
                Err(e) => tracing::error!(error = %e, "the delivery of packets panicked"),
            },
        }
        let first = match &room.watch {
            Some(watch) => first_packet(watch, armed, patience).await,
            None => None,
        };
        self.ctx.engine.settle(&accepted.arrival).await.map_err(engine)?;
        self.settled.store(true, Ordering::Relaxed);
        self.clean().await.map_err(|e| failed("remove the images", &e, None))?;
        Ok(ResumeTimes { grant_to_running_us, grant_to_first_packet_us: first })
    }

    /// Tells the held restore to go on. Fine when it has gone on already, told by an earlier agent.
    async fn let_go(&self, handle: &mut RestoreHandle) -> crate::engine::Result<()> {
        if self.recovered {
            handle.release_or_running(RESUME_LIMIT).await
        } else {
            handle.release(RESUME_LIMIT).await
        }
    }

    async fn clean(&self) -> std::io::Result<()> {
        if let Err(e) = self.ctx.engine.forget_migration(self.id) {
            tracing::warn!(error = %crate::chain(&e), "scripts of the migration are left");
        }
        remove_dir(self.image_dir()).await
    }

    /// Removes everything that was made here for this migration.
    ///
    /// `Ok` with what could not be tidied up; `Err` when the copy may not be dead.
    pub async fn discard(&self) -> Result<Option<Failure>, Failure> {
        self.given_up.send_replace(true);
        let _making = self.making.lock().await;
        // What still receives would make again what is removed here.
        let _all = self.streams.acquire_many(MAX_STREAMS).await;
        let mut trouble: Vec<String> = Vec::new();
        if let Some(hold) = self.hold.lock().await.take() {
            hold.discard().await;
        }
        if let Some(mut handle) = self.handle.lock().await.take()
            && let Err(e) = handle.abort(RESUME_LIMIT).await
        {
            trouble.push(crate::chain(&e));
        }
        // Nothing was made before the offer was accepted, and what has that name may be another's.
        if self.recovered || self.accepted.get().is_some() {
            let left = discard(&self.ctx, self.id, &self.offer.container).await?;
            trouble.extend(left.map(|f| f.message));
        }
        Ok(told(&trouble))
    }

    /// Ends the copy that is or was this host's container: shuts its gate, kills it, removes it.
    ///
    /// `Ok` with what could not be tidied up; `Err` when the copy may not be dead.
    pub async fn yield_up(&self) -> Result<Option<Failure>, Failure> {
        let name = &self.offer.container;
        let network =
            |e: network::NetworkError| failed("shut the gate of the container's links", &e, e.hint());
        let ports = network::ports_in_use(name).await.map_err(network)?;
        // Not before a resume that is under way.
        let resuming = self.handle.lock().await;
        network::fence(&ports).await.map_err(network)?;
        // What has settled here. A copy that came back later has a newer epoch and stays.
        let retired = self.ctx.engine.retire(name, self.epoch.next()).await;
        retired.map_err(|e| engine_failure(&e, Side::Destination))?;
        drop(resuming);
        self.discard().await
    }
}

fn told(trouble: &[String]) -> Option<Failure> {
    (!trouble.is_empty()).then(|| Failure::new(Reason::Failed, Side::Destination, trouble.join("; ")))
}

/// Removes everything that a migration has made on this host, found by name. May be repeated.
///
/// `Ok` with what could not be tidied up; `Err` when the copy may not be dead: then nothing more
/// was touched.
async fn discard(ctx: &Context, id: MigrationId, name: &ContainerName) -> Result<Option<Failure>, Failure> {
    let mut trouble: Vec<String> = Vec::new();
    ctx.engine.discard(id, name).await.map_err(|e| engine_failure(&e, Side::Destination))?;
    if let Err(f) = memory::call_off(ctx, name).await {
        trouble.push(f.message);
    }
    let netns = Netns::at(&ctx.config.run_dir, name);
    match network::ports_in_use(name).await {
        Ok(ports) => {
            if let Err(e) = network::destroy(&netns, name, &ports).await {
                trouble.push(crate::chain(&e));
            }
        }
        Err(e) => trouble.push(crate::chain(&e)),
    }
    if let Err(e) = ctx.engine.forget_migration(id) {
        trouble.push(crate::chain(&e));
    }
    let images = ctx.config.run_dir.join("images").join(id.to_string());
    if let Err(e) = memory::empty(images.clone()).await {
        trouble.push(format!("cannot give the memory in {} back: {e}", images.display()));
    }
    if let Err(e) = remove_dir(images.clone()).await {
        trouble.push(format!("cannot remove {}: {e}", images.display()));
    }
    Ok(told(&trouble))
}

fn monotonic_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
}

/// Microseconds from `armed` to the first packet out, when one comes soon.
async fn first_packet(watch: &PacketWatch, armed: u64, patience: Duration) -> Option<u64> {
    let deadline = Instant::now() + patience;
    loop {
        let times = watch.times().ok()?;
        if let Some(at) = times.first_out {
            return Some(at.saturating_sub(armed) / 1000);
        }
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
