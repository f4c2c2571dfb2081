//! The container's memory at the destination, where it comes in rounds: the store that takes them, and
//! the fill process that gives them to the restored processes.
//!
//! A restore is lazy when the store was sealed; that is seen by the map beside it, also by an agent that
//! was started again.

use super::check::Accepted;
use super::receive::{not_received, reader};
use crate::context::Context;
use crate::engine::RestoreRequest;
use crate::hook::own_program;
use crate::journal::{Record, now_ms};
use crate::memory::fill::{self, FillError, FillFiles, FillRequest, FillState};
use crate::memory::store::{PAGES_MAP, Store};
use quinn::RecvStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tranship_proto::handoff::{Handoff, MemoryMode, MemoryTotals, Offer};
use tranship_proto::ids::{ContainerName, MigrationId};
use tranship_proto::pages::slots_for;
use tranship_proto::status::{Failure, MigrationStatus, Phase, Progressing, Reason, Side};

/// How long a fill process whose container will not run may take to end.
const CALL_OFF: Duration = Duration::from_secs(10);

fn failed(text: String) -> Failure {
    Failure::new(Reason::Failed, Side::Destination, text)
}

fn unfilled(e: &FillError) -> Failure {
    failed(crate::chain(e))
}

/// Gives the memory of a store back that nobody is filled in from.
pub(super) async fn empty(images: PathBuf) -> std::io::Result<()> {
    tokio::task::spawn_blocking(move || Store::empty(&images)).await.map_err(std::io::Error::other)?
}

/// The store of a migration whose memory comes in rounds.
pub(super) fn store(dir: &Path, offer: &Offer, accepted: &Accepted) -> Result<Option<Arc<Store>>, Failure> {
    if accepted.memory == MemoryMode::Plain {
        return Ok(None);
    }
    let store = Store::create(dir, slots_for(offer.memory_bytes));
    store.map(|s| Some(Arc::new(s))).map_err(|e| failed(crate::chain(&e)))
}

/// Takes one stream of a round to its end; the answer when it was the last.
pub(super) async fn lane(
    store: Arc<Store>,
    (round, lane, lanes): (u32, u16, u16),
    recv: RecvStream,
    given_up: watch::Receiver<bool>,
) -> Result<Option<Handoff>, Failure> {
    let mut reader = reader(recv, given_up)?;
    let to_be_sealed = store.clone();
    let taken = tokio::task::spawn_blocking(move || store.take_lane(&mut reader, round, lane, lanes)).await;
    if matches!(taken, Ok(Ok(true))) {
        // Beside what the source does next; sealing waits for it, when this was the last round.
        tokio::task::spawn_blocking(move || to_be_sealed.draft());
    }
    match taken {
        Ok(Ok(complete)) => Ok(complete.then_some(Handoff::RoundDone { round })),
        Ok(Err(e)) => Err(not_received("memory", &e)),
        Err(e) => Err(failed(format!("receiving memory panicked: {e}"))),
    }
}

/// Verifies that all rounds have come, and writes the map of what the images in `dir` leave out.
pub(super) async fn seal(
    store: Option<&Arc<Store>>,
    totals: Option<MemoryTotals>,
    dir: PathBuf,
) -> Result<(), Failure> {
    let (store, totals) = match (store, totals) {
        (None, None) => return Ok(()),
        (Some(store), Some(totals)) => (store.clone(), totals),
        _ => return Err(failed("the source has sent memory in another way than was agreed".into())),
    };
    let got = store.totals();
    if got != Some(totals) {
        return Err(failed(format!("of the memory {got:?} came, {totals:?} was sent")));
    }
    let sealed = tokio::task::spawn_blocking(move || store.seal(&dir)).await;
    let sealed = sealed.map_err(|e| failed(format!("sealing memory panicked: {e}")))?;
    sealed.map(drop).map_err(|e| failed(format!("memory did not arrive whole: {}", crate::chain(&e))))
}

/// The fill process of a container on this host.
pub(super) fn files(ctx: &Context, name: &ContainerName) -> FillFiles {
    FillFiles::new(&ctx.config.run_dir, name)
}

/// What the engine is to restore.
pub(super) fn restore_request(image_dir: PathBuf, lazy: bool) -> RestoreRequest {
    RestoreRequest { work_dir: image_dir.join("work"), image_dir, lazy }
}

/// Whether the images are without memory, which has come in rounds and is sealed.
pub(super) fn sealed(image_dir: &Path) -> bool {
    image_dir.join(PAGES_MAP).exists()
}

/// Starts the fill process, when the restore needs one.
pub(super) async fn start_fill(
    ctx: &Context,
    name: &ContainerName,
    request: &RestoreRequest,
) -> Result<(), Failure> {
    if !request.lazy {
        return Ok(());
    }
    let program = own_program().map_err(|e| failed(format!("cannot find the agent's program: {e}")))?;
    let request = FillRequest {
        program,
        image_dir: request.image_dir.clone(),
        work_dir: request.work_dir.clone(),
        cgroup: ctx.runtime.cgroup(name.as_str()).dir().to_owned(),
        files: files(ctx, name),
    };
    fill::start(&request).await.map_err(|e| unfilled(&e))
}

/// Whether the memory of a held container is safe: it needs no fill process, or has one.
pub(super) async fn held_well(ctx: &Context, name: &ContainerName, image_dir: &Path) -> bool {
    !sealed(image_dir)
        || matches!(fill::progress(&files(ctx, name)).await, Ok(Some(s)) if s.state == FillState::Held)
}

/// Ends a fill process whose container will not run.
pub(super) async fn call_off(ctx: &Context, name: &ContainerName) -> Result<(), Failure> {
    fill::call_off(&files(ctx, name), CALL_OFF).await.map_err(|e| unfilled(&e))
}

/// Why a restore has failed, when that was for its memory.
pub(super) fn cause(ctx: &Context, name: &ContainerName) -> Option<String> {
    fill::failed(&files(ctx, name))
}

/// Returns with a failure when a held container loses its memory, and with nothing when it runs, or
/// needs no fill process.
pub(super) async fn hold_lost(ctx: &Context, name: &ContainerName, image_dir: &Path) -> Option<Failure> {
    if !sealed(image_dir) {
        return None;
    }
    match fill::until_running(&files(ctx, name)).await {
        Ok(true) => None,
        Ok(false) => {
            Some(failed("the process that fills memory in has died while the container was held".into()))
        }
        Err(e) => Some(unfilled(&e)),
    }
}

/// Follows the filling of a container that runs, to its end, and says how it went. If the container had
/// to be killed, that becomes the outcome of its migration.
pub(crate) async fn follow(ctx: Arc<Context>, name: ContainerName, migration: Option<MigrationId>) {
    match fill::watch(&files(&ctx, &name), |_| {}).await {
        Ok(Some(end)) => {
            tracing::info!(
                container = %name,
                pages = end.pages,
                faults = end.faults,
                elapsed_ms = end.elapsed_ms,
                "memory is filled in"
            );
        }
        Ok(None) => {}
        Err(e) => {
            let failure = unfilled(&e)
                .phase(Phase::Grant)
                .hint("start the container again from what is on its disk; look for an out-of-memory kill in the kernel's log");
            tracing::error!(container = %name, %failure, "a container was lost");
            if let Err(e) = record_loss(&ctx, &name, migration, failure).await {
                tracing::error!(error = %e, "the history misses that");
            }
            fill::forget(&files(&ctx, &name));
        }
    }
}

async fn record_loss(
    ctx: &Context,
    name: &ContainerName,
    migration: Option<MigrationId>,
    failure: Failure,
) -> Result<(), crate::journal::JournalError> {
    let of_it = |s: &MigrationStatus| {
        s.side == Side::Destination && s.container == *name && migration.is_none_or(|id| id == s.migration)
    };
    // A migration that is still under way writes its own outcome last.
    while ctx.journal.migrations(false, 1000).await?.iter().any(of_it) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // Newest first: the last one brought the container here.
    let ended = ctx.journal.migrations(true, 1000).await?;
    let Some(status) = ended.into_iter().find(of_it) else { return Ok(()) };
    let last = ctx.journal.last_record(status.migration, Side::Destination).await?;
    if !matches!(last, Some(Record::Owner | Record::Closed)) {
        return Ok(());
    }
    let state = Progressing::Failed;
    ctx.journal
        .update(MigrationStatus { state, failure: Some(failure), updated_unix_ms: now_ms(), ..status })
        .await
}

/// Takes up what fill processes are there when an agent starts, and hears of what they did meanwhile.
pub(crate) fn take_up(ctx: &Arc<Context>) {
    for name in fill::names(&ctx.config.run_dir) {
        tokio::spawn(followed_again(ctx.clone(), name));
    }
}

async fn followed_again(ctx: Arc<Context>, name: ContainerName) {
    let files = files(&ctx, &name);
    let held = matches!(fill::progress(&files).await, Ok(Some(s)) if s.state == FillState::Held);
    // What dies while it is held is its migration's business.
    if !held || matches!(fill::until_running(&files).await, Ok(true)) {
        follow(ctx, name, None).await;
    }
}
