//! Does what the destination's machine says, one migration at a time.
//!
//! As at the source: the driver owns the state and the link, and steps that take long run as
//! tasks. The work is shared here, because bulk streams arrive while other things go on; its parts
//! lock themselves.

use super::machine::{Ceded, Decision, Effect, Event, State};
use super::work::{NotResumed, Work};
use crate::context::Context;
use crate::faults::Action;
use crate::journal::{Ownership, Record, now_ms};
use crate::migrate::doubt;
use crate::migrate::link::{Link, LinkEvent, LinkWord};
use crate::migrate::panics::whole;
use crate::transport::endpoint::Connection;
use quinn::{RecvStream, SendStream};
use std::collections::VecDeque;
use std::mem::Discriminant;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tranship_proto::bulk::BulkContent;
use tranship_proto::handoff::Handoff;
use tranship_proto::ids::HostName;
use tranship_proto::status::{Failure, MigrationStatus, Progressing, Reason, Resolution, Side};

/// How long a finished migration stays, to answer repeats.
const LINGER: Duration = Duration::from_secs(5);
/// How long the source may take to answer before an operator is believed that it is dead.
const ANSWER: Duration = Duration::from_secs(3);
/// How often what may have been lost is said or asked again, and how long a failed effect rests.
const REPEAT: Duration = Duration::from_secs(1);

/// What reaches a destination driver from outside.
#[derive(Debug)]
pub enum Input {
    /// A word over the link.
    Link(LinkEvent),
    /// A step ended.
    Happened(Event),
    /// The source opened a hand-over stream.
    Attach {
        /// The connection.
        connection: Connection,
        /// Answers go here.
        send: SendStream,
        /// Messages come from here.
        recv: RecvStream,
        /// The first message.
        first: Handoff,
    },
    /// The source opened a bulk stream.
    Bulk {
        /// What it carries.
        content: BulkContent,
        /// Its records.
        recv: RecvStream,
    },
    /// This side connected to the source.
    Reconnected {
        /// The connection.
        connection: Connection,
        /// Words go here.
        send: SendStream,
        /// Answers come from here.
        recv: RecvStream,
    },
    /// The pause before an effect's next try is over.
    Again(Discriminant<State>, Box<Effect>),
    /// An operator decides; answered when that is on disk or refused.
    Resolve(Verdict),
    /// Whether the source answered when it was tried, before the operator is believed.
    Tried(Verdict, bool),
}

/// An operator's decision on its way.
#[derive(Debug)]
pub struct Verdict {
    /// Where the container is to run.
    pub run_at: Side,
    /// Who, as [`Resolution::by`].
    pub by: String,
    /// The answer.
    pub reply: oneshot::Sender<Result<(), Failure>>,
}

/// The driver of one migration at its destination.
pub struct Driver {
    ctx: Arc<Context>,
    state: State,
    work: Arc<Work>,
    events: VecDeque<Event>,
    link: Option<Link>,
    generation: u64,
    link_events: mpsc::Sender<LinkEvent>,
    inputs: mpsc::Receiver<Input>,
    own: mpsc::Sender<Input>,
    status: watch::Sender<MigrationStatus>,
    asking: bool,
    doubt: Option<Failure>,
    deciding: Option<oneshot::Sender<Result<(), Failure>>>,
    // The journal says that it is in doubt, and since when.
    doubt_kept: bool,
    // RESERVED is on disk: the history has a row to be finished.
    known: bool,
    done: bool,
}

impl Driver {
    /// A driver in `state`. `inputs` is the receiving end of `own`.
    pub fn new(
        ctx: Arc<Context>,
        work: Arc<Work>,
        state: State,
        inputs: mpsc::Receiver<Input>,
        own: mpsc::Sender<Input>,
        status: watch::Sender<MigrationStatus>,
    ) -> Self {
        let (link_events, mut from_link) = mpsc::channel(32);
        let forward = own.clone();
        tokio::spawn(async move {
            while let Some(event) = from_link.recv().await {
                if forward.send(Input::Link(event)).await.is_err() {
                    return;
                }
            }
        });
        let doubt_kept = status.borrow().state == Progressing::InDoubt;
        let known = !matches!(state, State::Idle);
        Self {
            ctx,
            state,
            work,
            events: VecDeque::new(),
            link: None,
            generation: 0,
            link_events,
            inputs,
            own,
            status,
            asking: false,
            doubt: None,
            deciding: None,
            doubt_kept,
            known,
            done: false,
        }
    }

    /// Runs to the end, starting with `first` when the agent found the migration in its journal.
    pub async fn run(mut self, first: Option<Event>) {
        self.events.extend(first);
        let mut repeat = tokio::time::interval(REPEAT);
        repeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while let Some(event) = self.events.pop_front() {
                self.handle(event).await;
            }
            let input = if self.done {
                tokio::time::timeout(LINGER, self.inputs.recv()).await.unwrap_or_default()
            } else {
                tokio::select! {
                    input = self.inputs.recv() => input,
                    _ = repeat.tick() => {
                        self.keep_doubt().await;
                        self.events.push_back(Event::Repeat);
                        continue;
                    }
                }
            };
            match input {
                Some(input) => self.take(input).await,
                None => return,
            }
        }
    }

    async fn handle(&mut self, event: Event) {
        let before = std::mem::replace(&mut self.state, State::Idle);
        tracing::debug!(state = ?before, event = ?short(&event), "step");
        match before.clone().step(event) {
            Ok((next, effects)) => {
                if std::mem::discriminant(&next) != std::mem::discriminant(&before) {
                    self.doubt = None;
                }
                self.state = next;
                for effect in effects {
                    self.perform(effect).await;
                }
                self.publish();
            }
            Err(illegal) => {
                tracing::error!(%illegal, "ignored");
                self.state = before;
            }
        }
    }

    async fn take(&mut self, input: Input) {
        match input {
            Input::Link(LinkEvent { generation, what }) => {
                if self.link.as_ref().is_none_or(|l| l.generation != generation) {
                    return;
                }
                match what {
                    // Here and not beside: a flood of them waits in the transport, and they go before a restore.
                    LinkWord::Message(Handoff::Packets(packets)) => self.work.adopt_packets(packets).await,
                    LinkWord::Message(body) => self.events.push_back(Event::Peer(body)),
                    LinkWord::Lost(why) => {
                        self.link = None;
                        self.events.push_back(Event::LinkLost(why));
                    }
                }
            }
            Input::Happened(event) => self.events.push_back(event),
            Input::Attach { connection, send, recv, first } => {
                self.generation += 1;
                let (id, epoch) = (self.work.id, self.work.epoch);
                let events = self.link_events.clone();
                self.link = Some(Link::start(connection, send, recv, id, epoch, self.generation, events));
                self.events.push_back(Event::Peer(first));
            }
            Input::Bulk { content, recv } => self.bulk(content, recv),
            // What was to be tried again belongs to the state that it failed in.
            Input::Again(state, effect) if state == std::mem::discriminant(&self.state) => {
                self.perform(*effect).await
            }
            Input::Again(..) => {}
            Input::Resolve(verdict) => self.hear_out(verdict),
            Input::Tried(verdict, answered) => self.decide(verdict, answered),
            Input::Reconnected { connection, send, recv } => {
                self.asking = false;
                self.generation += 1;
                let (id, epoch) = (self.work.id, self.work.epoch);
                let events = self.link_events.clone();
                let link = Link::start(connection, send, recv, id, epoch, self.generation, events);
                link.send(Handoff::Query);
                self.link = Some(link);
                self.events.push_back(Event::LinkUp);
            }
        }
    }

    fn bulk(&self, content: BulkContent, recv: RecvStream) {
        // A last pass over files may be overtaken by the word that all was sent; the restore waits for it.
        let due = match content {
            BulkContent::Tree { .. } => matches!(self.state, State::Receiving | State::Restoring),
            _ => matches!(self.state, State::Receiving),
        };
        if !due {
            tracing::warn!(?content, "a bulk stream that is not due; refused");
            let mut recv = recv;
            let _ = recv.stop(quinn::VarInt::from_u32(3));
            return;
        }
        let (work, own) = (self.work.clone(), self.own.clone());
        let reply = self.link.as_ref().map(Link::sender);
        self.spawn(async move {
            match work.take_bulk(content, recv).await {
                Ok(Some(done)) => {
                    if let Some(reply) = reply {
                        reply.send(done);
                    }
                }
                Ok(None) => {}
                Err(f) => {
                    let _ = own.send(Input::Happened(Event::ReceiveFailed(f))).await;
                }
            }
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(tracing::Instrument::instrument(
            whole("of the destination", task),
            tracing::Span::current(),
        ));
    }

    async fn perform(&mut self, effect: Effect) {
        let (work, own, ctx) = (self.work.clone(), self.own.clone(), self.ctx.clone());
        match effect {
            Effect::Check => self.spawn(async move {
                let result = work.check().await;
                let _ = own.send(Input::Happened(Event::Checked(result))).await;
            }),
            Effect::Record(record) => self.record(record).await,
            Effect::Receive => self.spawn(async move {
                if let Err(f) = faulty(&ctx, "receive", work.prepare_receive()).await {
                    let _ = own.send(Input::Happened(Event::ReceiveFailed(f))).await;
                }
            }),
            Effect::HoldPackets => {
                let reply = self.link.as_ref().map(Link::sender);
                self.spawn(async move {
                    if work.hold_packets().await
                        && let Some(reply) = reply
                    {
                        reply.send(Handoff::Holding);
                    }
                });
            }
            Effect::Restore(totals) => self.spawn(async move {
                let result = faulty(&ctx, "restore", work.restore(&totals)).await;
                restored(&work, &own, result).await;
            }),
            Effect::Resume => self.spawn(async move {
                let event = match faulty(&ctx, "resume", work.resume()).await {
                    Ok(times) => Event::Resumed(Ok(times)),
                    Err(NotResumed::Perhaps(f)) => Event::Resumed(Err(f)),
                    Err(NotResumed::NeverRan(f)) => Event::NeverRan(f),
                };
                let _ = own.send(Input::Happened(event)).await;
            }),
            Effect::Discard => self.spawn(async move {
                let event = match work.discard().await {
                    Ok(trouble) => Event::Discarded(trouble),
                    Err(f) => Event::DiscardFailed(f),
                };
                let _ = own.send(Input::Happened(event)).await;
            }),
            Effect::Send(body) => {
                let fault = self.ctx.faults.pass(&format!("destination.send.{}", body.name())).await;
                if let Some(link) = self.link.as_ref().filter(|_| fault != Some(Action::Drop)) {
                    if fault == Some(Action::Repeat) {
                        link.send(body.clone());
                    }
                    link.send(body);
                }
            }
            Effect::Reclaim => self.spawn(async move {
                let result = faulty(&ctx, "reclaim", work.reclaim()).await;
                restored(&work, &own, result).await;
            }),
            Effect::Yield => self.spawn(async move {
                let event = match work.yield_up().await {
                    Ok(trouble) => Event::Discarded(trouble),
                    Err(f) => Event::DiscardFailed(f),
                };
                let _ = own.send(Input::Happened(event)).await;
            }),
            Effect::Decided => {
                if let Some(reply) = self.deciding.take() {
                    let _ = reply.send(Ok(()));
                }
            }
            Effect::Again(effect) => {
                let state = std::mem::discriminant(&self.state);
                self.spawn(async move {
                    tokio::time::sleep(REPEAT).await;
                    let _ = own.send(Input::Again(state, effect)).await;
                });
            }
            Effect::Doubt(failure) => {
                let failure = doubt::unrunnable(&self.status.borrow(), failure);
                tracing::error!(%failure, "in doubt");
                self.doubt = Some(failure);
            }
            Effect::Ask => self.ask(),
            Effect::Finish(failure) => self.finish(failure).await,
        }
    }

    /// Believes an operator only after a try of its own to reach the source.
    fn hear_out(&mut self, verdict: Verdict) {
        let s = self.status.borrow().clone();
        if let Err(no) = self.state.may_be_resolved(&decision(&s, &verdict)) {
            let _ = verdict.reply.send(Err(no));
            return;
        }
        let (ctx, own, linked) = (self.ctx.clone(), self.own.clone(), self.link.is_some());
        self.spawn(async move {
            let answered =
                linked || tokio::time::timeout(ANSWER, ctx.connect(&s.source)).await.is_ok_and(|c| c.is_ok());
            let _ = own.send(Input::Tried(verdict, answered)).await;
        });
    }

    fn decide(&mut self, verdict: Verdict, answered: bool) {
        let s = self.status.borrow().clone();
        let decision = decision(&s, &verdict);
        // A copy that cannot be resumed is given up here, whether the source answers or not: it is asked
        // for nothing. That it cannot be must have been tried.
        let alone = matches!(decision, Decision::GiveUp(_));
        let refused = match self.state.may_be_resolved(&decision) {
            Err(no) => Some(no),
            Ok(()) if alone && self.doubt.is_none() => Some(
                Failure::new(Reason::Refused, Side::Destination, "the container is just being resumed here")
                    .hint("`tranship status` says whether that works"),
            ),
            Ok(()) if !alone && (answered || self.link.is_some()) => {
                Some(doubt::answers(&s.source, Side::Destination, s.migration))
            }
            Ok(()) if self.deciding.is_some() => {
                Some(Failure::new(Reason::Busy, Side::Destination, "this is just being decided").retryable())
            }
            Ok(()) => None,
        };
        if let Some(no) = refused {
            let _ = verdict.reply.send(Err(no));
            return;
        }
        let (by, run_at) = (verdict.by, verdict.run_at);
        tracing::warn!(by, ?run_at, "an operator has decided");
        let resolution = Resolution { run_at, by, at_unix_ms: now_ms() };
        self.status.send_modify(|s| s.resolution = Some(resolution));
        self.deciding = Some(verdict.reply);
        self.events.push_back(Event::Resolved(decision));
    }

    /// As at the source.
    async fn keep_doubt(&mut self) {
        let status = self.status.borrow().clone();
        let in_doubt = status.state == Progressing::InDoubt;
        if self.done || in_doubt == self.doubt_kept {
            return;
        }
        match self.ctx.journal.update(status).await {
            Ok(()) => self.doubt_kept = in_doubt,
            Err(e) => tracing::warn!(error = %e, "the journal does not say since when it is in doubt"),
        }
    }

    fn ask(&mut self) {
        if std::mem::replace(&mut self.asking, true) {
            return;
        }
        let (ctx, own) = (self.ctx.clone(), self.own.clone());
        let source = self.status.borrow().source.clone();
        tokio::spawn(async move {
            let mut wait = Duration::from_millis(200);
            while !own.is_closed() {
                match ctx.connect(&source).await {
                    Ok(connection) => {
                        if let Ok((send, recv)) = connection.quic.open_bi().await {
                            let _ = own.send(Input::Reconnected { connection, send, recv }).await;
                            return;
                        }
                    }
                    Err(failure) => tracing::warn!(%failure, "cannot ask the source; trying again"),
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(2));
            }
        });
    }

    async fn record(&mut self, record: Record) {
        let point = format!("destination.record.{}", record.as_str());
        if self.ctx.faults.pass(&format!("{point}.before")).await == Some(Action::Error) {
            let f = Failure::new(Reason::Internal, Side::Destination, format!("fault at {point}"));
            return self.not_recorded(record, f);
        }
        // What is not held can only be restored again before this host is the owner.
        if matches!(record, Record::Owner | Record::Taken) && !self.work.holds_well().await {
            let f = Failure::new(Reason::Failed, Side::Destination, "the restore is not held any more");
            let f = f.hint("it is restored again from the images that are kept").retryable();
            self.not_recorded(record, f.clone());
            // Its own word for that may have come while the record was under way, and been passed over.
            return self.events.push_back(Event::HoldLost(f));
        }
        let status = self.status.borrow().clone();
        let (id, epoch) = (status.migration, status.epoch);
        let own = |epoch, host: &HostName| {
            let (container, made_unix_ms) = (status.container.clone(), self.work.made_unix_ms());
            Some(Ownership { container, made_unix_ms, epoch, owner: host.clone() })
        };
        let owner = match record {
            Record::Owner | Record::Taken => own(epoch, &status.destination),
            // As the source has it.
            Record::Overruled => match self.state {
                State::Yielding(Ceded::There, _) => own(epoch.next(), &status.source),
                _ => own(epoch, &status.source),
            },
            _ => None,
        };
        let decided = matches!(record, Record::Taken | Record::Overruled);
        let written = match record {
            Record::Reserved => self.ctx.journal.begin(status, record).await,
            _ if decided => self.ctx.journal.decide(status, record, owner).await,
            _ => self.ctx.journal.record(id, Side::Destination, record, owner).await,
        };
        self.known |= record == Record::Reserved && written.is_ok();
        let _ = self.ctx.faults.pass(&format!("{point}.after")).await;
        match written {
            Ok(()) => self.events.push_back(Event::Recorded(record)),
            Err(e) => {
                let text = format!("cannot write {} to the journal: {e}", record.as_str());
                tracing::error!("{text}");
                let f = Failure::new(Reason::Internal, Side::Destination, text)
                    .hint("look at the disk under state_dir of the destination");
                return self.not_recorded(record, f);
            }
        }
        if matches!(record, Record::Owner | Record::Taken) {
            tracing::info!(%epoch, "owner: the container is this host's");
        }
    }

    fn not_recorded(&mut self, record: Record, failure: Failure) {
        let decided = matches!(record, Record::Taken | Record::Overruled);
        if let Some(reply) = self.deciding.take_if(|_| decided) {
            let _ = reply.send(Err(failure.clone()));
        }
        if record == Record::Taken {
            self.status.send_modify(|s| s.resolution = None);
        }
        self.events.push_back(Event::RecordFailed(record, failure));
    }

    fn publish(&mut self) {
        if self.done {
            return;
        }
        // Also while a restarted agent looks for the hold: the doubt is older than that.
        let lost = matches!(self.state, State::Held { .. } | State::Reclaiming) && self.link.is_none();
        let doubt = match &self.doubt {
            None if lost => Some(doubt::unasked(&self.status.borrow())),
            doubt => doubt.clone(),
        };
        let state = match &self.state {
            _ if doubt.is_some() => Progressing::InDoubt,
            State::Owning(_) | State::Resuming(_) | State::Running(..) | State::Closing(_) => {
                Progressing::Committed
            }
            _ => Progressing::Running,
        };
        let phase = self.state.phase();
        self.status.send_if_modified(|s| {
            let changed = (s.state, s.phase, &s.failure) != (state, phase, &doubt);
            if s.state != state {
                s.updated_unix_ms = now_ms();
            }
            (s.state, s.phase) = (state, phase);
            s.failure.clone_from(&doubt);
            changed
        });
    }

    async fn finish(&mut self, failure: Option<Failure>) {
        let mut status = self.status.borrow().clone();
        status.updated_unix_ms = now_ms();
        match &failure {
            None => {
                status.state = Progressing::Done;
                tracing::info!("taken over");
            }
            Some(f) => {
                status.state = match f.reason {
                    Reason::Cancelled => Progressing::Cancelled,
                    Reason::InDoubt => Progressing::InDoubt,
                    _ => Progressing::Failed,
                };
                status.phase = f.phase.unwrap_or(status.phase);
                tracing::warn!(failure = %f, "not taken over");
            }
        }
        status.failure = failure;
        // An offer that was refused before RESERVED is the source's history alone.
        if self.known
            && let Err(e) = self.ctx.journal.update(status.clone()).await
        {
            tracing::error!(error = %e, "the history misses this migration");
        }
        self.done = true;
        self.status.send_replace(status);
    }
}

/// Tells the end of a restore, and then, if it is held, that it is not any more.
async fn restored(work: &Work, own: &mpsc::Sender<Input>, result: Result<u64, Failure>) {
    let held = result.is_ok();
    let _ = own.send(Input::Happened(Event::Restored(result))).await;
    if held && let Some(failure) = work.hold_lost().await {
        tracing::warn!(%failure, "nothing has run");
        let _ = own.send(Input::Happened(Event::HoldLost(failure))).await;
    }
}

/// What an operator's words mean on this side.
fn decision(status: &MigrationStatus, verdict: &Verdict) -> Decision {
    match verdict.run_at {
        Side::Source => Decision::GiveUp(Failure::new(
            Reason::Failed,
            Side::Destination,
            format!("{} has given up what could not be resumed on {}", verdict.by, status.destination),
        )),
        _ => Decision::RunHere,
    }
}

/// Runs a step between its two fault points.
async fn faulty<T, E: From<Failure>>(
    ctx: &Context,
    name: &str,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let point = format!("destination.effect.{name}");
    let failed = || E::from(Failure::new(Reason::Failed, Side::Destination, format!("fault at {point}")));
    if ctx.faults.pass(&format!("{point}.before")).await == Some(Action::Error) {
        return Err(failed());
    }
    let result = step.await;
    match ctx.faults.pass(&format!("{point}.after")).await {
        Some(Action::Error) => Err(failed()),
        _ => result,
    }
}

fn short(event: &Event) -> String {
    let text = format!("{event:?}");
    text.chars().take(160).collect()
}
