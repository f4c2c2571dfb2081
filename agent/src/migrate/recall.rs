//! What is said about migrations that no driver has any more: answered out of the journal.
//!
//! A peer may come back days later with a question about a migration that has long ended here, or
//! with an operator's decision that this host has not heard of.

use super::destination::machine as destination_machine;
use super::registry::Migrations;
use super::source::driver as source;
use super::source::machine as source_machine;
use super::source::work::Work as SourceWork;
use crate::journal::{JournalError, Ownership, Record, now_ms};
use crate::transport::endpoint::Connection;
use crate::transport::framing::{read_message, write_message};
use quinn::{RecvStream, SendStream};
use std::time::Duration;
use tranship_proto::handoff::{Envelope, Handoff, Position};
use tranship_proto::ids::{HostName, MigrationId};
use tranship_proto::registry::Message;
use tranship_proto::status::{Failure, MigrationStatus, Phase, Progressing, Reason, Side};

/// Messages about a finished migration that are answered on one stream, and how long the next may take.
const RECALLS: u32 = 32;
const RECALL_PATIENCE: Duration = Duration::from_secs(10);

impl Migrations {
    /// What a migration that no driver has (any more) answers, out of the journal.
    async fn remembered(&self, id: MigrationId, message: Handoff) -> Result<Vec<Handoff>, JournalError> {
        if let Some(last) = self.ctx.journal.last_record(id, Side::Destination).await? {
            return Ok(destination_machine::State::recovered(last).answers(message));
        }
        if let Some(last) = self.ctx.journal.last_record(id, Side::Source).await? {
            return Ok(source_machine::State::recovered(last).answers(message));
        }
        Ok(destination_machine::State::Idle.answers(message))
    }

    /// Notes what a peer says of an ended migration and nobody asked it.
    async fn note(&self, id: MigrationId, peer: &HostName, message: &Handoff) -> Result<(), JournalError> {
        if *message == Handoff::Aborted && self.rolled_back(id, peer).await?.is_some() {
            self.ctx.journal.record(id, Side::Source, Record::Renounced, None).await?;
        }
        Ok(())
    }

    /// Answers a peer about a migration that no driver has (any more), until it has heard enough.
    pub(super) async fn recall(
        &self,
        connection: Connection,
        peer: &HostName,
        mut send: SendStream,
        mut recv: RecvStream,
        first: Envelope,
    ) -> Result<(), String> {
        let version = connection.version;
        let (id, epoch) = (first.migration, first.epoch);
        let mut message = first.body;
        for _ in 0..RECALLS {
            self.note(id, peer, &message).await.map_err(|e| e.to_string())?;
            if message == Handoff::Position(Position::Taken) {
                match self.yields_to(id, peer).await.map_err(|e| e.to_string())? {
                    Some((status, true)) => {
                        let attach = source::Input::Attach { connection, send, recv, first: message };
                        return self.yield_to(status, attach).await.map_err(|f| f.message);
                    }
                    Some((_, false)) => {
                        let body = Handoff::Position(Position::TakenBack);
                        let envelope = Envelope { migration: id, epoch, body };
                        write_message(&mut send, version, envelope).await.map_err(|e| crate::chain(&e))?;
                    }
                    None => {}
                }
            }
            for body in self.remembered(id, message).await.map_err(|e| e.to_string())? {
                let envelope = Envelope { migration: id, epoch, body };
                write_message(&mut send, version, envelope).await.map_err(|e| crate::chain(&e))?;
            }
            match tokio::time::timeout(RECALL_PATIENCE, read_message(&mut recv, version)).await {
                Ok(Ok(Message::Handoff(e))) if (e.migration, e.epoch) == (id, epoch) => message = e.body,
                _ => break,
            }
        }
        let _ = send.finish();
        Ok(())
    }

    /// Whether the destination's word that it has taken the container, an operator having declared this
    /// host dead, ends what is here of a migration that was rolled back.
    ///
    /// `None`: there is nothing here that it could be about. `Some(false)`: the container has a newer
    /// owner elsewhere, and it is the destination's copy that has to go.
    async fn yields_to(
        &self,
        id: MigrationId,
        peer: &HostName,
    ) -> Result<Option<(MigrationStatus, bool)>, JournalError> {
        let Some(status) = self.rolled_back(id, peer).await? else { return Ok(None) };
        let records = self.ctx.journal.records(id, Side::Source).await?;
        if !source_machine::yields(&records) || self.of_container(&status.container).is_some() {
            return Ok(None);
        }
        let owner = self.ctx.journal.ownership(&status.container, Ownership::SAME).await?;
        let newer = owner.is_some_and(|(e, host)| e > status.epoch && host != self.ctx.config.host.as_str());
        Ok(Some((status, !newer)))
    }

    /// A migration from here to `peer` that was rolled back, of which `peer` has not said that it is clean.
    async fn rolled_back(
        &self,
        id: MigrationId,
        peer: &HostName,
    ) -> Result<Option<MigrationStatus>, JournalError> {
        if self.ctx.journal.last_record(id, Side::Source).await? != Some(Record::RolledBack) {
            return Ok(None);
        }
        let found = self.ctx.journal.find(id.to_string()).await?;
        Ok(found.into_iter().find(|m| m.side == Side::Source && m.destination == *peer))
    }

    /// Ends a copy that has gone back here, for the destination has taken the container.
    async fn yield_to(&self, status: MigrationStatus, attach: source::Input) -> Result<(), Failure> {
        let (id, name) = (status.migration, status.container.clone());
        tracing::warn!(%id, container = %name, "an operator declared this host dead and let it run on {}: the copy here goes", status.destination);
        self.admit(&name, id, Side::Source)?;
        let status = MigrationStatus {
            state: Progressing::Committed,
            phase: Phase::Retire,
            failure: None,
            updated_unix_ms: now_ms(),
            ..status
        };
        let written = self.ctx.journal.update(status.clone()).await;
        let work = match written.map_err(|e| Failure::new(Reason::Internal, Side::Source, e.to_string())) {
            Ok(()) => SourceWork::recovered(self.ctx.clone(), &status).await,
            Err(f) => Err(f),
        };
        match work {
            Ok(work) => {
                let state = source_machine::State::recovered(Record::RolledBack);
                self.drive_source(work, status, state, attach);
                Ok(())
            }
            Err(f) => {
                self.table().busy.remove(&name);
                Err(f)
            }
        }
    }
}
