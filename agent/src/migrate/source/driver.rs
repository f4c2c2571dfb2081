//! Does what the source's machine says, one migration at a time.
//!
//! The driver owns the state, the link and the clock; a step that takes long runs as a task that
//! borrows the [`Work`] and brings it back with its result, so that the driver goes on listening
//! to cancels, losses and the destination. Nothing here decides what comes next.

use super::machine::{Effect, Event, State};
use super::work::{Step, Work};
use crate::context::Context;
use crate::faults::Action;
use crate::journal::{Ownership, Record, now_ms};
use crate::migrate::doubt;
use crate::migrate::events::EventLog;
use crate::migrate::link::{Link, LinkEvent, LinkWord};
use crate::migrate::panics::whole;
use crate::migrate::progress::Progress;
use crate::network::PacketHold;
use crate::transport::endpoint::Connection;
use quinn::{RecvStream, SendStream};
use std::collections::VecDeque;
use std::mem::Discriminant;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tranship_proto::handoff::{Handoff, ResumeTimes};
use tranship_proto::ids::{HostName, MigrationId};
use tranship_proto::status::{
    EventBody, Failure, MigrationStatus, Phase, Progressing, Reason, Resolution, Side, Summary,
};

/// How often a grant, or the word that the source is clean, is repeated.
const REPEAT: Duration = Duration::from_secs(1);
/// How long the destination may take to clean up after a failure before the failure is told.
const CLEAN: Duration = Duration::from_secs(10);
/// How long the destination may take to answer before an operator is believed that it is dead.
const ANSWER: Duration = Duration::from_secs(3);
/// What the stage step gets beyond the operator's time, to end by itself.
const STAGE_GRACE: Duration = Duration::from_secs(10);
/// How often progress is told.
const TICK: Duration = Duration::from_millis(250);

/// What reaches a source driver from outside.
#[derive(Debug)]
pub enum Input {
    /// The first event: [`Event::Start`] or [`Event::Restarted`].
    Begin(Event),
    /// A word over the link.
    Link(LinkEvent),
    /// A step ended.
    StepEnded(Box<Work>, Event),
    /// There is a connection again.
    Reconnected(Connection),
    /// The pause before an effect's next try is over.
    Again(Discriminant<State>, Box<Effect>),
    /// Somebody asks to cancel; answered when it is clear.
    Cancel(oneshot::Sender<Result<(), Failure>>),
    /// An operator says that the destination's host is dead; answered when that is on disk or refused.
    Resolve(Verdict),
    /// What a try to reach the destination gave, before the operator is believed.
    Tried(Verdict, Option<Connection>),
    /// The destination connected by itself, to ask.
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
}

/// An operator's decision on its way.
#[derive(Debug)]
pub struct Verdict {
    /// Who, as [`Resolution::by`].
    pub by: String,
    /// The answer.
    pub reply: oneshot::Sender<Result<(), Failure>>,
}

/// The driver of one migration at its source.
pub struct Driver {
    ctx: Arc<Context>,
    state: State,
    work: Option<Box<Work>>,
    deferred: VecDeque<Effect>,
    events: VecDeque<Event>,
    link: Option<Link>,
    generation: u64,
    link_events: mpsc::Sender<LinkEvent>,
    inputs: mpsc::Receiver<Input>,
    own: mpsc::Sender<Input>,
    log: EventLog,
    status: watch::Sender<MigrationStatus>,
    cancels: Vec<oneshot::Sender<Result<(), Failure>>>,
    deciding: Option<oneshot::Sender<Result<(), Failure>>>,
    phase: Option<(Phase, Instant)>,
    deadline: Option<Instant>,
    stage_limit: Duration,
    repeated: Instant,
    reconnecting: bool,
    doubt: Option<Failure>,
    // The journal says that it is in doubt, and since when.
    doubt_kept: bool,
    progress: Progress,
    made_unix_ms: i64,
    hold: Arc<Mutex<Option<PacketHold>>>,
    summary: Summary,
    started: Instant,
    granted: Option<Instant>,
    // The destination has said that nothing is left there.
    clean: bool,
    done: bool,
}

impl Driver {
    /// A driver for work that was accepted and recorded. `inputs` is the receiving end of `own`.
    pub fn new(
        ctx: Arc<Context>,
        work: Box<Work>,
        state: State,
        inputs: mpsc::Receiver<Input>,
        own: mpsc::Sender<Input>,
        log: EventLog,
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
        let progress = Progress::new(work.meter.clone());
        let doubt_kept = status.borrow().state == Progressing::InDoubt;
        let (made_unix_ms, hold) = (work.made_unix_ms(), work.hold.clone());
        let stage_limit = Duration::from_secs(work.options().timeout_s.unwrap_or(0).into());
        Self {
            ctx,
            state,
            work: Some(work),
            deferred: VecDeque::new(),
            events: VecDeque::new(),
            link: None,
            generation: 0,
            link_events,
            inputs,
            own,
            log,
            status,
            cancels: Vec::new(),
            deciding: None,
            phase: None,
            deadline: None,
            stage_limit,
            repeated: Instant::now(),
            reconnecting: false,
            doubt: None,
            doubt_kept,
            progress,
            made_unix_ms,
            hold,
            summary: Summary::default(),
            started: Instant::now(),
            granted: None,
            clean: false,
            done: false,
        }
    }

    /// Runs to the end. `first` is [`Input::Begin`], or what made it necessary to begin again.
    pub async fn run(mut self, first: Input) {
        self.take(first).await;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while let Some(event) = self.events.pop_front() {
                self.handle(event).await;
            }
            if self.done {
                return;
            }
            let deadline = self.deadline.map(tokio::time::Instant::from_std);
            let input = tokio::select! {
                input = self.inputs.recv() => input,
                _ = tick.tick() => {
                    self.tell_progress();
                    if self.repeated.elapsed() >= REPEAT {
                        self.repeated = Instant::now();
                        self.keep_doubt().await;
                        self.events.push_back(Event::Repeat);
                    }
                    continue;
                }
                () = async { tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)).await }, if deadline.is_some() => {
                    self.rearm();
                    self.events.push_back(Event::Deadline);
                    continue;
                }
            };
            match input {
                Some(input) => self.take(input).await,
                None => return,
            }
        }
    }

    async fn handle(&mut self, event: Event) {
        let state = std::mem::replace(&mut self.state, State::Reserving);
        let before = state.clone();
        tracing::debug!(state = ?before, ?event, "step");
        match state.step(event) {
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
                // A bug of ours or nonsense from the peer: the state stays what it was.
                tracing::error!(%illegal, "ignored");
                self.state = before;
            }
        }
    }

    async fn take(&mut self, input: Input) {
        match input {
            Input::Begin(event) => self.events.push_back(event),
            Input::Link(LinkEvent { generation, what }) => {
                if self.link.as_ref().is_none_or(|l| l.generation != generation) {
                    return;
                }
                match what {
                    LinkWord::Message(Handoff::PassDone { index, pass }) => self.ctx_pass_done(index, pass),
                    LinkWord::Message(Handoff::RoundDone { round }) => self.progress.round_done(round),
                    LinkWord::Message(Handoff::Holding) => self.pass_packets_on(),
                    LinkWord::Message(body) => {
                        tracing::debug!(message = body.name(), "from the destination");
                        match &body {
                            Handoff::Reserved { memory, .. } => self.progress.agreed(*memory),
                            Handoff::Running(times) => self.measure(times),
                            Handoff::Aborted => self.clean = true,
                            _ => {}
                        }
                        self.events.push_back(Event::Peer(body));
                    }
                    LinkWord::Lost(why) => {
                        self.link = None;
                        self.events.push_back(Event::LinkLost(why));
                    }
                }
            }
            Input::StepEnded(mut work, event) => {
                let offer = work.offer.take().filter(|_| matches!(self.state, State::Reserving));
                if let Some((connection, offer)) = offer {
                    self.link_over(connection, Handoff::Reserve(offer)).await;
                }
                self.work = Some(work);
                self.events.push_back(event);
                if let Some(effect) = self.deferred.pop_front() {
                    while let Some(event) = self.events.pop_front() {
                        self.handle(event).await;
                    }
                    self.perform(effect).await;
                }
            }
            // What was to be tried again belongs to the state that it failed in.
            Input::Again(state, effect) if state == std::mem::discriminant(&self.state) => {
                self.perform(*effect).await
            }
            Input::Again(..) => {}
            Input::Resolve(verdict) => self.hear_out(verdict),
            Input::Tried(verdict, connection) => self.decide(verdict, connection).await,
            Input::Reconnected(connection) => {
                self.reconnecting = false;
                self.link_over(connection, Handoff::Query).await;
                self.events.push_back(Event::LinkUp);
            }
            Input::Cancel(reply) => {
                self.cancels.push(reply);
                self.events.push_back(Event::Cancel);
            }
            Input::Attach { connection, send, recv, first } => {
                self.generation += 1;
                let (id, epoch) = self.ids();
                let events = self.link_events.clone();
                self.link = Some(Link::start(connection, send, recv, id, epoch, self.generation, events));
                self.events.push_back(Event::Peer(first));
            }
        }
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Record(record) => self.record(record).await,
            Effect::Reserve => self.step(Step::Reserve),
            Effect::Stage => self.step(Step::Stage),
            Effect::Freeze => self.step(Step::Freeze),
            Effect::Copy => self.step(Step::Copy),
            Effect::Retire => self.step(Step::Retire),
            Effect::Undo => self.step(Step::Undo),
            Effect::StopStep => {
                self.stop_flag(true);
                if self.work.is_some() {
                    // No step runs: the record being written is the step.
                    tracing::debug!("nothing to stop");
                }
            }
            Effect::Send(body) => {
                if matches!(body, Handoff::Grant) {
                    self.granted.get_or_insert_with(Instant::now);
                }
                let fault = self.ctx.faults.pass(&format!("source.send.{}", body.name())).await;
                if let Some(link) = self.link.as_ref().filter(|_| fault != Some(Action::Drop)) {
                    if fault == Some(Action::Repeat) {
                        link.send(body.clone());
                    }
                    link.send(body);
                }
            }
            Effect::Reconnect => self.reconnect(),
            Effect::Again(effect) => {
                let (own, state) = (self.own.clone(), std::mem::discriminant(&self.state));
                tokio::spawn(async move {
                    tokio::time::sleep(REPEAT).await;
                    let _ = own.send(Input::Again(state, effect)).await;
                });
            }
            Effect::Enter(phase) => self.enter(phase),
            Effect::Doubt(failure) => {
                tracing::error!(%failure, "in doubt");
                self.doubt = Some(failure);
            }
            Effect::TooLate => {
                let late = self.too_late().await;
                self.answer_cancels(&Err(late));
            }
            Effect::Decided => {
                if let Some(reply) = self.deciding.take() {
                    let _ = reply.send(Ok(()));
                }
            }
            Effect::Finish(failure) => self.finish(failure).await,
        }
    }

    /// Runs a step, or keeps it until the running one has brought the work back.
    fn step(&mut self, step: Step) {
        let Some(mut work) = self.work.take() else {
            self.stop_flag(true);
            self.deferred.push_back(step.into());
            return;
        };
        if matches!(step, Step::Undo | Step::Retire) {
            self.stop_flag(false);
        }
        let (own, ctx) = (self.own.clone(), self.ctx.clone());
        let span = tracing::Span::current();
        tokio::spawn(tracing::Instrument::instrument(
            async move {
                let event = whole(step.name(), faulty(&ctx, step, &mut work)).await;
                let _ = own.send(Input::StepEnded(work, event)).await;
            },
            span,
        ));
    }

    /// The destination has what comes from now on: what came here before is sent after it.
    fn pass_packets_on(&self) {
        let (hold, reply) = (self.hold.clone(), self.link.as_ref().map(Link::sender));
        tokio::spawn(tracing::Instrument::instrument(
            async move {
                let (Some(hold), Some(reply)) = (hold.lock().await.take(), reply) else { return };
                let pass_on = |packets: Vec<_>| {
                    if !packets.is_empty() {
                        reply.send(Handoff::Packets(packets));
                    }
                };
                match hold.collect(pass_on).await {
                    Ok(stats) => tracing::debug!(?stats, "packets passed on"),
                    Err(e) => tracing::warn!(error = %crate::chain(&e), "held packets were lost"),
                }
            },
            tracing::Span::current(),
        ));
    }

    fn stop_flag(&self, value: bool) {
        self.progress.stop(value);
    }

    fn ctx_pass_done(&self, index: u16, pass: u32) {
        self.progress.pass_done(index, pass);
    }

    async fn record(&mut self, record: Record) {
        let point = format!("source.record.{}", record.as_str());
        if self.ctx.faults.pass(&format!("{point}.before")).await == Some(Action::Error) {
            let f = Failure::new(Reason::Internal, Side::Source, format!("fault at {point}"));
            self.events.push_back(Event::RecordFailed(record, f));
            return;
        }
        let (id, epoch) = self.ids();
        let status = self.status.borrow().clone();
        let own = |epoch, host: &HostName| {
            let (container, made_unix_ms) = (status.container.clone(), self.made_unix_ms);
            Some(Ownership { container, made_unix_ms, epoch, owner: host.clone() })
        };
        let owner = match record {
            Record::Released | Record::Retired => own(epoch, &status.destination),
            // Spent, so that the next migration of the container does not propose it again.
            Record::Revoked | Record::RolledBack => own(epoch, &status.source),
            // Newer than what the destination may have become the owner with.
            Record::Overruled => own(epoch.next(), &status.source),
            _ => None,
        };
        let written = if record == Record::Overruled {
            self.ctx.journal.decide(status, record, owner).await
        } else {
            self.ctx.journal.record(id, Side::Source, record, owner).await
        };
        let event = match written {
            Ok(()) => Event::Recorded(record),
            Err(e) => {
                let text = format!("cannot write {} to the journal: {e}", record.as_str());
                let f = Failure::new(Reason::Internal, Side::Source, text).hint(
                    "look at the disk under state_dir; then restart transhipd, which reads the journal anew",
                );
                if let Some(reply) = self.deciding.take_if(|_| record == Record::Overruled) {
                    let _ = reply.send(Err(f.clone()));
                }
                Event::RecordFailed(record, f)
            }
        };
        let _ = self.ctx.faults.pass(&format!("{point}.after")).await;
        if matches!(event, Event::Recorded(Record::Released)) {
            tracing::info!(%epoch, "released: the container is the destination's");
        }
        self.events.push_back(event);
    }

    async fn link_over(&mut self, connection: Connection, first: Handoff) {
        self.generation += 1;
        let (id, epoch) = self.ids();
        match Link::open(connection, id, epoch, self.generation, self.link_events.clone()).await {
            Ok(link) => {
                link.send(first);
                self.link = Some(link);
            }
            Err(e) => self.events.push_back(Event::LinkLost(e.to_string())),
        }
    }

    fn reconnect(&mut self) {
        if self.link.is_some() || std::mem::replace(&mut self.reconnecting, true) {
            return;
        }
        let (ctx, own) = (self.ctx.clone(), self.own.clone());
        let destination = self.status.borrow().destination.clone();
        tokio::spawn(async move {
            let mut wait = Duration::from_millis(100);
            while !own.is_closed() {
                match ctx.connect(&destination).await {
                    Ok(connection) => {
                        let _ = own.send(Input::Reconnected(connection)).await;
                        return;
                    }
                    Err(failure) => tracing::warn!(%failure, "cannot reach the destination; trying again"),
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(2));
            }
        });
    }

    /// Believes an operator only after a try of its own to reach the destination.
    fn hear_out(&mut self, verdict: Verdict) {
        let s = self.status.borrow().clone();
        if let Err(no) = self.state.may_be_overruled() {
            let _ = verdict.reply.send(Err(no));
            return;
        }
        if self.link.is_some() {
            let _ = verdict.reply.send(Err(doubt::answers(&s.destination, Side::Source, s.migration)));
            return;
        }
        let (ctx, own) = (self.ctx.clone(), self.own.clone());
        tokio::spawn(async move {
            let tried = tokio::time::timeout(ANSWER, ctx.connect(&s.destination)).await;
            let _ = own.send(Input::Tried(verdict, tried.ok().and_then(Result::ok))).await;
        });
    }

    async fn decide(&mut self, verdict: Verdict, connection: Option<Connection>) {
        let s = self.status.borrow().clone();
        let answered = connection.is_some() || self.link.is_some();
        if let Some(connection) = connection.filter(|_| self.link.is_none()) {
            self.link_over(connection, Handoff::Query).await;
            self.events.push_back(Event::LinkUp);
        }
        if let Err(no) = self.state.may_be_overruled() {
            let _ = verdict.reply.send(Err(no));
        } else if answered || self.deciding.is_some() {
            let _ = verdict.reply.send(Err(doubt::answers(&s.destination, Side::Source, s.migration)));
        } else {
            let by = verdict.by;
            tracing::warn!(by, dead = %s.destination, "an operator has decided: the container runs here");
            let text = format!(
                "{} was declared dead by {by}; the container runs at {} again, from where it was frozen",
                s.destination, s.source
            );
            let resolution = Resolution { run_at: Side::Source, by, at_unix_ms: now_ms() };
            self.status.send_modify(|s| s.resolution = Some(resolution));
            self.deciding = Some(verdict.reply);
            self.events.push_back(Event::Resolved(Failure::new(Reason::Failed, Side::Destination, text)));
        }
    }

    /// Writes down that it is in doubt, or is not any more, so that "since when" outlives this agent.
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

    fn enter(&mut self, phase: Phase) {
        self.leave_phase();
        self.phase = Some((phase, Instant::now()));
        self.progress.enter(phase);
        self.log.push(EventBody::PhaseStarted { phase });
        self.rearm();
    }

    fn leave_phase(&mut self) {
        if let Some((phase, since)) = self.phase.take() {
            let micros = as_us(since.elapsed());
            self.summary.phases_us.push((phase.as_str().to_owned(), micros));
            let note = self.progress.note(phase);
            tracing::info!(phase = phase.as_str(), micros, note, "phase done");
            self.log.push(EventBody::PhaseDone { phase, micros, note });
        }
    }

    fn rearm(&mut self) {
        let limit = Duration::from_secs(self.ctx.config.limits.phase_timeout_s);
        let after = match &self.state {
            s if s.committed() => None,
            State::RollingBack(_) | State::Stopping(_) | State::Ended(_) => None,
            // The step keeps to the operator's time by itself, and says what stood in the way.
            State::Staging => Some(limit.max(self.stage_limit + STAGE_GRACE)),
            _ => Some(limit),
        };
        self.deadline = after.map(|d| Instant::now() + d);
    }

    fn tell_progress(&mut self) {
        if let Some(body) = self.progress.event() {
            self.log.push(body);
        }
    }

    fn measure(&mut self, times: &ResumeTimes) {
        let (Some(granted), Some(work)) = (self.granted, self.progress.marks()) else { return };
        let half_rtt = self.link.as_ref().map_or(0, |l| as_us(l.connection.quic.rtt()) / 2);
        if let Some(frozen) = work.frozen {
            self.summary.frozen_us = as_us(granted - frozen) + half_rtt + times.grant_to_running_us;
            if let Some(forecast) = self.progress.forecast() {
                self.summary.predicted_us = Some(as_us(forecast.blackout()));
                let (dir, to) = (&self.ctx.config.state_dir, &self.status.borrow().destination);
                forecast.learn(dir, to, Duration::from_micros(self.summary.frozen_us));
            }
        }
        if let (Some(last_in), Some(first_out)) = (work.last_packet_in, times.grant_to_first_packet_us) {
            self.summary.blackout_us =
                Some(as_us(granted.saturating_duration_since(last_in)) + half_rtt + first_out);
        }
    }

    fn ids(&self) -> (tranship_proto::ids::MigrationId, tranship_proto::ids::Epoch) {
        let s = self.status.borrow();
        (s.migration, s.epoch)
    }

    async fn too_late(&self) -> Failure {
        too_late(&self.ctx, self.ids().0).await
    }

    fn answer_cancels(&mut self, answer: &Result<(), Failure>) {
        for reply in self.cancels.drain(..) {
            let _ = reply.send(answer.clone());
        }
    }

    /// Makes the status that others see agree with the state.
    fn publish(&mut self) {
        if self.done {
            return;
        }
        let lost = matches!(self.state, State::Granting) && self.link.is_none();
        let doubt = match &self.doubt {
            None if lost => Some(doubt::unconfirmed(&self.status.borrow())),
            doubt => doubt.clone(),
        };
        let state = match &self.state {
            _ if doubt.is_some() => Progressing::InDoubt,
            State::TakingBack(_) => Progressing::Committed,
            s if s.committed() => Progressing::Committed,
            _ => Progressing::Running,
        };
        let phase = self.phase.as_ref().map_or(self.state.phase(), |p| p.0);
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

    /// After going back, waits a little for the destination's word that nothing is left there.
    async fn wait_clean(&mut self) -> Option<&'static str> {
        if self.clean {
            return None;
        }
        self.link.as_ref()?;
        let deadline = tokio::time::Instant::now() + CLEAN;
        loop {
            let input = tokio::time::timeout_at(deadline, self.inputs.recv()).await;
            match input {
                Err(_) => return Some("the destination has not said yet that it is clean"),
                Ok(None) => return None,
                Ok(Some(Input::Link(LinkEvent { what: LinkWord::Message(Handoff::Aborted), .. }))) => {
                    self.clean = true;
                    return None;
                }
                Ok(Some(Input::Link(LinkEvent { what: LinkWord::Lost(_), .. }))) => {
                    return Some("the connection was lost before the destination said that it is clean");
                }
                Ok(Some(Input::Cancel(reply))) => self.cancels.push(reply),
                Ok(Some(_)) => {}
            }
        }
    }

    /// From here on no word of the destination's ends the copy here.
    async fn note_renounced(&self) {
        let id = self.ids().0;
        if let Err(e) = self.ctx.journal.record(id, Side::Source, Record::Renounced, None).await {
            tracing::warn!(error = %e, "the journal does not say that the destination is clean");
        }
    }

    async fn finish(&mut self, mut failure: Option<Failure>) {
        self.leave_phase();
        // A destination that was declared dead is not waited for.
        let waited_for = matches!(self.state, State::Ended(_));
        if let Some(f) = failure.as_mut().filter(|f| waited_for && f.reason != Reason::InDoubt) {
            match self.wait_clean().await {
                Some(note) => f.message = format!("{}; {note}", f.message),
                None if self.clean => self.note_renounced().await,
                None => {}
            }
        }
        self.summary.total_us = as_us(self.started.elapsed());
        self.progress.totals(&mut self.summary);
        let mut status = self.status.borrow().clone();
        status.updated_unix_ms = now_ms();
        let (body, answer) = match failure {
            None => {
                status.state = Progressing::Done;
                status.phase = Phase::Retire;
                status.failure = None;
                status.summary = Some(self.summary.clone());
                tracing::info!(total_us = self.summary.total_us, frozen_us = self.summary.frozen_us, blackout_us = ?self.summary.blackout_us, bytes_sent = self.summary.bytes_sent, "migrated");
                (EventBody::Done { summary: self.summary.clone() }, Err(self.too_late().await))
            }
            Some(f) => {
                status.state = match f.reason {
                    Reason::Cancelled => Progressing::Cancelled,
                    Reason::InDoubt => Progressing::InDoubt,
                    _ => Progressing::Failed,
                };
                status.phase = f.phase.unwrap_or(status.phase);
                tracing::warn!(failure = %f, phase = status.phase.as_str(), "not migrated");
                let answer = if f.reason == Reason::Cancelled { Ok(()) } else { Err(f.clone()) };
                status.failure = Some(f.clone());
                (EventBody::Failed { failure: f }, answer)
            }
        };
        if let Err(e) = self.ctx.journal.update(status.clone()).await {
            tracing::error!(error = %e, "the history misses this migration");
        }
        self.done = true;
        self.status.send_replace(status);
        self.log.push(body);
        self.answer_cancels(&answer);
        if let Some(link) = self.link.take() {
            // The last word was queued; let it leave before the connection goes.
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(link);
        }
    }
}

/// The answer to a cancel that comes after RELEASED, with the time of that record.
pub(crate) async fn too_late(ctx: &Context, id: MigrationId) -> Failure {
    let at = ctx.journal.recorded_at(id, Side::Source, Record::Released).await.ok().flatten();
    let text = match at.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()) {
        Some(at) => format!("too late: committed at {at:.3}"),
        None => "too late: committed".to_owned(),
    };
    Failure::new(Reason::TooLate, Side::Source, text)
        .phase(Phase::Commit)
        .hint("the container is the destination's; migrate it back instead")
}

/// Runs a step between its two fault points.
async fn faulty(ctx: &Context, step: Step, work: &mut Work) -> Event {
    let point = format!("source.effect.{}", step.name());
    let failed = || Failure::new(Reason::Failed, Side::Source, format!("fault at {point}"));
    let undoing = matches!(step, Step::Undo);
    if ctx.faults.pass(&format!("{point}.before")).await == Some(Action::Error) && !undoing {
        return Event::StepFailed(failed());
    }
    let event = work.run(step).await;
    match ctx.faults.pass(&format!("{point}.after")).await {
        Some(Action::Error) if !undoing => Event::StepFailed(failed()),
        _ => event,
    }
}

fn as_us(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
