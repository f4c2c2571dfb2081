//! The migrations of this agent: admission, routing, and what can be asked of them.
//!
//! A container is in at most one migration. Admission is one synchronous look under one lock, so
//! two requests for the same container cannot both pass.

use super::destination::driver as destination;
use super::destination::machine as destination_machine;
use super::destination::work::Work as DestinationWork;
use super::events::EventLog;
use super::source::driver as source;
use super::source::machine as source_machine;
use super::source::work::Work as SourceWork;
use crate::context::Context;
use crate::journal::{JournalError, Record, now_ms};
use crate::transport::endpoint::Connection;
use crate::transport::framing::write_message;
use quinn::{RecvStream, SendStream};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument;
use tranship_proto::bulk::BulkOpen;
use tranship_proto::control::MigrateOptions;
use tranship_proto::handoff::{Envelope, Handoff};
use tranship_proto::ids::{ContainerName, HostName, MigrationId};
use tranship_proto::status::{Failure, MigrationStatus, Phase, Progressing, Reason, Side, Summary};

/// Words waiting for a driver.
const QUEUE: usize = 64;
/// How long a bulk stream may come before the hand-over stream that it belongs to is known.
const BULK_PATIENCE: Duration = Duration::from_secs(5);
/// How long events of a finished migration can still be watched.
const KEEP_EVENTS: Duration = Duration::from_secs(600);

pub(super) enum Inputs {
    Source(mpsc::Sender<source::Input>),
    Destination(mpsc::Sender<destination::Input>),
}

pub(super) struct Entry {
    status: watch::Receiver<MigrationStatus>,
    pub(super) inputs: Inputs,
    pub(super) peer: HostName,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) entries: HashMap<MigrationId, Entry>,
    pub(super) busy: HashMap<ContainerName, MigrationId>,
    logs: HashMap<MigrationId, EventLog>,
    closing: bool,
}

fn under_way(status: &MigrationStatus) -> bool {
    matches!(status.state, Progressing::Running | Progressing::Committed | Progressing::InDoubt)
}

/// Whether a migration still has a say in what becomes of its container.
///
/// Not when an operator has declared the source dead and the container runs here: then the migration
/// only waits to tell the source, which may never come.
fn occupies(status: &MigrationStatus) -> bool {
    let told_off = status.resolution.is_some()
        && (status.side, status.phase) == (Side::Destination, Phase::Retire)
        && status.state == Progressing::Committed;
    under_way(status) && !told_off
}

/// The migrations of this agent. Cheap to clone.
#[derive(Clone)]
pub struct Migrations {
    pub(super) ctx: Arc<Context>,
    table: Arc<Mutex<Table>>,
}

impl Migrations {
    /// None yet.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, table: Arc::default() }
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The migration that a container is in.
    pub fn of_container(&self, name: &ContainerName) -> Option<MigrationStatus> {
        let table = self.table();
        let id = table.busy.get(name)?;
        // A driver that has finished stays a little to answer repeats.
        table.entries.get(id).map(|e| e.status.borrow().clone()).filter(occupies)
    }

    /// Migrations under way.
    pub fn under_way(&self) -> Vec<MigrationStatus> {
        let table = self.table();
        let mut all: Vec<_> =
            table.entries.values().map(|e| e.status.borrow().clone()).filter(under_way).collect();
        all.sort_by_key(|s| s.migration);
        all
    }

    /// Refuses new work and cancels what is not committed; returns when all drivers have ended or
    /// `limit` has passed.
    pub async fn shut_down(&self, limit: Duration) {
        let cancels: Vec<_> = {
            let mut table = self.table();
            table.closing = true;
            table
                .entries
                .values()
                .filter_map(|e| match &e.inputs {
                    Inputs::Source(inputs) => Some(inputs.clone()),
                    Inputs::Destination(_) => None,
                })
                .collect()
        };
        for inputs in cancels {
            let (reply, _) = oneshot::channel();
            let _ = inputs.send(source::Input::Cancel(reply)).await;
        }
        let deadline = tokio::time::Instant::now() + limit;
        while !self.under_way().is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) fn admit(&self, name: &ContainerName, id: MigrationId, side: Side) -> Result<(), Failure> {
        let limit = self.ctx.config.limits.migrations as usize;
        let mut table = self.table();
        if table.closing {
            return Err(Failure::new(Reason::Busy, side, "the agent is shutting down").retryable());
        }
        let ended = |id: &MigrationId| table.entries.get(id).is_some_and(|e| !occupies(&e.status.borrow()));
        if let Some(other) = table.busy.get(name).filter(|id| !ended(id)) {
            let text = format!("container {name} is in migration {} already", other.short());
            return Err(
                Failure::new(Reason::Busy, side, text).hint(format!("tranship status {}", other.short()))
            );
        }
        if table.busy.values().filter(|id| !ended(id)).count() >= limit {
            let text = format!("{limit} migrations are under way on {}", self.ctx.config.host);
            return Err(Failure::new(Reason::Busy, side, text)
                .hint("wait for one to end, or raise limits.migrations in transhipd.toml")
                .retryable());
        }
        table.busy.insert(name.clone(), id);
        Ok(())
    }

    /// Accepts a migration away from this host and starts it.
    pub async fn start(
        &self,
        name: &ContainerName,
        to: &HostName,
        options: MigrateOptions,
    ) -> Result<(MigrationId, EventLog), Failure> {
        self.check_destination(name, to)?;
        let id = MigrationId(uuid::Uuid::now_v7());
        self.admit(name, id, Side::Source)?;
        match self.start_admitted(id, name, to, options).await {
            Ok(log) => Ok((id, log)),
            Err(f) => {
                self.table().busy.remove(name);
                Err(f)
            }
        }
    }

    fn check_destination(&self, name: &ContainerName, to: &HostName) -> Result<(), Failure> {
        if *to == self.ctx.config.host {
            let text = format!("container {name} is on {to} already: destination equals source");
            return Err(Failure::new(Reason::BadRequest, Side::Source, text)
                .hint("name another host with --to; `tranship hosts` lists them"));
        }
        Ok(())
    }

    /// What a migration would do, a line each; asks the destination, changes nothing anywhere.
    pub async fn plan(
        &self,
        name: &ContainerName,
        to: &HostName,
        options: MigrateOptions,
    ) -> Result<Vec<String>, Failure> {
        self.check_destination(name, to)?;
        let id = MigrationId(uuid::Uuid::now_v7());
        let mut work = SourceWork::new(self.ctx.clone(), id, name.clone(), to.clone(), true, options).await?;
        super::plan::plan(&mut work).await
    }

    async fn start_admitted(
        &self,
        id: MigrationId,
        name: &ContainerName,
        to: &HostName,
        options: MigrateOptions,
    ) -> Result<EventLog, Failure> {
        let internal =
            |e: &dyn std::fmt::Display| Failure::new(Reason::Internal, Side::Source, e.to_string());
        let work = SourceWork::new(self.ctx.clone(), id, name.clone(), to.clone(), false, options).await?;
        let epoch = work.epoch();
        let status = MigrationStatus {
            migration: id,
            container: name.clone(),
            source: self.ctx.config.host.clone(),
            destination: to.clone(),
            side: Side::Source,
            epoch,
            state: Progressing::Running,
            phase: Phase::Reserve,
            started_unix_ms: now_ms(),
            updated_unix_ms: now_ms(),
            failure: None,
            summary: None,
            resolution: None,
        };
        self.ctx.journal.begin(status.clone(), Record::Accepted).await.map_err(|e| internal(&e))?;
        Ok(self.drive_source(
            work,
            status,
            source_machine::State::Reserving,
            source::Input::Begin(source_machine::Event::Start),
        ))
    }

    pub(super) fn drive_source(
        &self,
        work: SourceWork,
        status: MigrationStatus,
        state: source_machine::State,
        first: source::Input,
    ) -> EventLog {
        let (id, name, to, epoch) =
            (status.migration, status.container.clone(), status.destination.clone(), status.epoch);
        let log = EventLog::new(id);
        let (tx, rx) = watch::channel(status);
        let (own, inputs) = mpsc::channel(QUEUE);
        let entry = Entry { status: rx, inputs: Inputs::Source(own.clone()), peer: to.clone() };
        {
            let mut table = self.table();
            table.entries.insert(id, entry);
            table.logs.insert(id, log.clone());
        }
        let driver =
            source::Driver::new(self.ctx.clone(), Box::new(work), state, inputs, own, log.clone(), tx);
        let this = self.clone();
        let span = tracing::info_span!("migration", id = %id, container = %name, side = "source", to = %to);
        tokio::spawn(
            async move {
                tracing::info!(%epoch, "accepted");
                driver.run(first).await;
                this.ended(id, &name);
                tokio::time::sleep(KEEP_EVENTS).await;
                this.table().logs.remove(&id);
            }
            .instrument(span),
        );
        log
    }

    /// Takes up what an earlier agent of this host left unfinished, by the records of its journal.
    ///
    /// Each migration goes on through the same machine that began it, from the state that its last
    /// record proves.
    ///
    /// # Errors
    /// When the journal cannot be read. Nothing is started then.
    pub async fn recover(&self) -> Result<(), JournalError> {
        for found in self.ctx.journal.unfinished().await? {
            let status = found.status;
            let Some(last) = found.records.last().copied() else { continue };
            let (id, name) = (status.migration, status.container.clone());
            tracing::warn!(%id, container = %name, side = ?status.side, last = last.as_str(), "left unfinished by an earlier agent");
            let taken_up = match status.side {
                Side::Destination => self.recover_destination(status.clone(), last).await,
                _ => self.recover_source(status.clone(), last).await,
            };
            if let Err(failure) = taken_up {
                // Kept as it is, frozen or held, until an agent can take it up.
                tracing::error!(%id, %failure, "cannot take it up; it stays as it is");
                self.table().busy.insert(name, id);
                let since =
                    if status.state == Progressing::InDoubt { status.updated_unix_ms } else { now_ms() };
                let status = MigrationStatus {
                    state: Progressing::InDoubt,
                    failure: Some(failure),
                    updated_unix_ms: since,
                    ..status
                };
                self.ctx.journal.update(status).await?;
            }
        }
        Ok(())
    }

    async fn recover_source(&self, status: MigrationStatus, last: Record) -> Result<(), Failure> {
        let state = source_machine::State::recovered(last);
        match state {
            source_machine::State::Ended(failure) => return self.recover_ended(status, failure).await,
            source_machine::State::TakenBack(f) => return self.recover_ended(status, Some(f)).await,
            _ => {}
        }
        let work = SourceWork::recovered(self.ctx.clone(), &status).await?;
        self.table().busy.insert(status.container.clone(), status.migration);
        self.drive_source(work, status, state, source::Input::Begin(source_machine::Event::Restarted));
        Ok(())
    }

    async fn recover_destination(&self, status: MigrationStatus, last: Record) -> Result<(), Failure> {
        let state = destination_machine::State::recovered(last);
        if let destination_machine::State::Ended(failure) = state {
            return self.recover_ended(status, failure).await;
        }
        let work = Arc::new(DestinationWork::recovered(self.ctx.clone(), &status).await?);
        self.table().busy.insert(status.container.clone(), status.migration);
        self.drive_destination(work, status, state, Some(destination_machine::Event::Restarted), None);
        Ok(())
    }

    /// The last record ends it; only the row that people see was not written. What was measured is lost,
    /// but whoever waits for the end looks for a summary.
    async fn recover_ended(&self, status: MigrationStatus, failure: Option<Failure>) -> Result<(), Failure> {
        let side = status.side;
        let (state, summary) = match (&failure, side) {
            (Some(_), _) => (Progressing::Failed, None),
            (None, Side::Source) => {
                (Progressing::Done, status.summary.clone().or_else(|| Some(Summary::default())))
            }
            (None, _) => (Progressing::Done, None),
        };
        let status = MigrationStatus { state, failure, summary, updated_unix_ms: now_ms(), ..status };
        self.ctx.journal.update(status).await.map_err(|e| Failure::new(Reason::Internal, side, e.to_string()))
    }

    fn drive_destination(
        &self,
        work: Arc<DestinationWork>,
        status: MigrationStatus,
        state: destination_machine::State,
        first: Option<destination_machine::Event>,
        attach: Option<destination::Input>,
    ) {
        let (id, name, peer) = (status.migration, status.container.clone(), status.source.clone());
        let (tx, rx) = watch::channel(status);
        let (own, inputs) = mpsc::channel(QUEUE);
        let entry = Entry { status: rx, inputs: Inputs::Destination(own.clone()), peer: peer.clone() };
        self.table().entries.insert(id, entry);
        if let Some(attach) = attach {
            let _ = own.try_send(attach);
        }
        let driver = destination::Driver::new(self.ctx.clone(), work, state, inputs, own, tx);
        let this = self.clone();
        let span =
            tracing::info_span!("migration", id = %id, container = %name, side = "destination", from = %peer);
        tokio::spawn(
            async move {
                driver.run(first).await;
                this.ended(id, &name);
            }
            .instrument(span),
        );
    }

    fn ended(&self, id: MigrationId, name: &ContainerName) {
        let mut table = self.table();
        table.entries.remove(&id);
        // Another may have begun while this one's driver lingered.
        if table.busy.get(name) == Some(&id) {
            table.busy.remove(name);
        }
    }

    /// The event log of a migration that this host is or was the source of.
    pub fn log(&self, id: MigrationId) -> Option<EventLog> {
        self.table().logs.get(&id).cloned()
    }

    /// Takes up a hand-over stream whose first message was read.
    ///
    /// The peer must be the agent of the other host of that migration.
    pub async fn attach(
        &self,
        connection: Connection,
        send: SendStream,
        recv: RecvStream,
        first: Envelope,
    ) -> Result<(), String> {
        let id = first.migration;
        let peer = connection.peer.agent().cloned().ok_or("only agents take part in hand-overs")?;
        let inputs = {
            let table = self.table();
            match table.entries.get(&id) {
                Some(e) if e.peer != peer => {
                    return Err(format!("migration {id} is between other hosts than {peer}"));
                }
                Some(Entry { inputs: Inputs::Source(tx), .. }) => Some(Inputs::Source(tx.clone())),
                Some(Entry { inputs: Inputs::Destination(tx), .. }) => Some(Inputs::Destination(tx.clone())),
                None => None,
            }
        };
        match inputs {
            Some(Inputs::Source(tx)) => {
                let _ = tx.send(source::Input::Attach { connection, send, recv, first: first.body }).await;
                Ok(())
            }
            Some(Inputs::Destination(tx)) => {
                let _ =
                    tx.send(destination::Input::Attach { connection, send, recv, first: first.body }).await;
                Ok(())
            }
            None => self.arrive(peer, connection, send, recv, first).await,
        }
    }

    async fn arrive(
        &self,
        peer: HostName,
        connection: Connection,
        mut send: SendStream,
        recv: RecvStream,
        first: Envelope,
    ) -> Result<(), String> {
        let (id, epoch) = (first.migration, first.epoch);
        let Handoff::Reserve(offer) = first.body else {
            return self.recall(connection, &peer, send, recv, first).await;
        };
        let name = offer.container.clone();
        let refuse = |failure: Failure| Envelope { migration: id, epoch, body: Handoff::Refused(failure) };
        let admitted = if offer.source == peer && offer.dry_run {
            let work = DestinationWork::new(self.ctx.clone(), id, epoch, *offer);
            let body = match work.check().await {
                Ok(destination_machine::Acceptance { notices, memory }) => {
                    Handoff::Reserved { lease_ms: 0, notices, memory }
                }
                Err(failure) => Handoff::Refused(failure),
            };
            let envelope = Envelope { migration: id, epoch, body };
            let _ = write_message(&mut send, connection.version, envelope).await;
            let _ = send.finish();
            return Ok(());
        } else if offer.source == peer {
            self.admit(&name, id, Side::Destination)
        } else {
            let text = format!("the offer names {} as its source, the certificate says {peer}", offer.source);
            Err(Failure::new(Reason::NotAuthorized, Side::Destination, text))
        };
        if let Err(failure) = admitted {
            let _ = write_message(&mut send, connection.version, refuse(failure)).await;
            let _ = send.finish();
            return Ok(());
        }
        let status = MigrationStatus {
            migration: id,
            container: name.clone(),
            source: peer.clone(),
            destination: self.ctx.config.host.clone(),
            side: Side::Destination,
            epoch,
            state: Progressing::Running,
            phase: Phase::Reserve,
            started_unix_ms: now_ms(),
            updated_unix_ms: now_ms(),
            failure: None,
            summary: None,
            resolution: None,
        };
        let work = Arc::new(DestinationWork::new(self.ctx.clone(), id, epoch, *offer.clone()));
        let attach = destination::Input::Attach { connection, send, recv, first: Handoff::Reserve(offer) };
        self.drive_destination(work, status, destination_machine::State::Idle, None, Some(attach));
        Ok(())
    }

    /// Hands a bulk stream to its migration; one for an unknown migration is refused after a while.
    pub async fn bulk(&self, peer: &HostName, open: BulkOpen, mut recv: RecvStream) {
        let deadline = tokio::time::Instant::now() + BULK_PATIENCE;
        let inputs = loop {
            let found = {
                let table = self.table();
                match table.entries.get(&open.migration) {
                    Some(Entry { inputs: Inputs::Destination(tx), peer: p, .. }) if p == peer => {
                        Some(tx.clone())
                    }
                    _ => None,
                }
            };
            if found.is_some() || tokio::time::Instant::now() > deadline {
                break found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        match inputs {
            Some(tx) => {
                let _ = tx.send(destination::Input::Bulk { content: open.content, recv }).await;
            }
            None => {
                tracing::warn!(migration = %open.migration, %peer, "bulk stream for a migration that is not known");
                let _ = recv.stop(quinn::VarInt::from_u32(3));
            }
        }
    }
}
