//! The destination agent's state machine: pure. No clock, no sockets, no processes.
//!
//! ```text
//! Idle -> Checking -> Reserving -> Receiving -> Restoring -> Preparing -> Held -> Owning -> Resuming -> Running -> Closing -> Ended
//!            |            \___________\____________\____________\________/|
//!          Ended                   Discarding -> Ended           \   Reclaiming   (restarted, or the hold died)
//!                                       \_________________________\__  Lost       (nothing left to resume)
//!
//! By an operator: Held -> Owning                                (the source's host is dead)
//!                 Owning, Resuming, Running -> Yielding -> Ended  (this host was declared dead, or the copy is)
//! By itself:      Resuming -> Yielding -> Ended                   (the hold had died before it was let go)
//! ```
//!
//! | State | Copy here | Last record | Asked where it is | Waits for, and what happens if that does not come |
//! | --- | --- | --- | --- | --- |
//! | Idle | none | none | unknown | Reserve |
//! | Checking | none | none | before commit | the check; link lost: ended |
//! | Reserving | none | RESERVED | before commit | the record |
//! | Receiving | files | RESERVED | before commit | Prepare; the source is asked; link lost: discarded |
//! | Restoring | restored | RESERVED | before commit | the restore; the source is asked; link lost: discarded |
//! | Preparing | held | RESERVED, PREPARED | before commit | the record |
//! | Held | held | PREPARED | held | Grant or Abort; Prepared is repeated, for ever |
//! | Reclaiming | held, or dead | PREPARED | before commit | the hold found or made again |
//! | Lost | dead | PREPARED | before commit | a word of the source's, who is asked for ever |
//! | Owning | held | PREPARED, OWNER or TAKEN | held | the record; its failure: held, until the next Grant |
//! | Resuming | held, runs | OWNER or TAKEN | owner | the step, tried until done; the source is asked |
//! | Running | runs | OWNER or TAKEN | owner, taken | Retired; every Grant is answered with Running |
//! | Closing | runs | OWNER or TAKEN, CLOSED | owner | the record, tried until written |
//! | Yielding | goes | OVERRULED | before commit | the record, the step, the last record, tried until done |
//! | Discarding | goes | as it was | before commit | the step, then the record, tried until done |
//! | Ended | runs, or none | CLOSED, DISCARDED | owner, ended | nothing; repeats are answered |
//!
//! Rules that hold by construction, and that `tests/handover_model.rs` explores:
//!
//! * `Effect::Resume` is asked for only after `Event::Recorded(Owner)`, which only a Grant starts, or
//!   `Event::Recorded(Taken)`, which only an operator does who says that the source's host is dead.
//! * Once held, a lost connection changes nothing: the source is asked, and only its word, Abort
//!   or Grant, ends the hold. That it does not know the migration is not its word.
//! * After OWNER nothing here is ever restored from images, for the copy may have run; and nothing is
//!   discarded but by an operator: one who has declared this host dead at the source, which the source
//!   says as long as it has not retired its own copy, or one who gives up here what cannot be resumed.
//!   Either is on disk as OVERRULED before the copy is touched, so that no restart resumes it. One case
//!   needs no operator: the agent that let go has seen the hold die before it could ([`Event::NeverRan`]).
//! * `Handoff::Aborted`, on which a source that has released takes its container back, is sent only
//!   when DISCARDED is on disk (or nothing ever was). From there no grant is taken.
//! * A migration ends only when its last record is on disk, as at the source.
//!
//! No message of a peer is ever [`Illegal`]: it may be late, repeated, or hostile.

use crate::journal::Record;
use crate::migrate::source::machine::Illegal;
use tranship_proto::handoff::{Handoff, MemoryMode, Position, ResumeTimes, Totals};
use tranship_proto::status::{Failure, Phase, Reason, Side};

/// Where the destination is.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Nothing known of the migration yet.
    Idle,
    /// Checking the offer; nothing is touched.
    Checking,
    /// Writing RESERVED.
    Reserving(Acceptance),
    /// Taking files and images.
    Receiving,
    /// Verifying and restoring.
    Restoring,
    /// Restored; PREPARED is being flushed.
    Preparing {
        /// From Prepare to held.
        restore_us: u64,
    },
    /// Restored and held. Nothing has run.
    Held {
        /// From Prepare to held.
        restore_us: u64,
    },
    /// Held before; looking for the hold, or making it again. Nothing has run.
    Reclaiming,
    /// Held before, and it cannot be made again. Nothing has run.
    Lost(Failure),
    /// OWNER, or TAKEN, is being flushed.
    Owning(By),
    /// That is on disk; the container is being let go.
    Resuming(By),
    /// The container is this host's and runs.
    Running(By, ResumeTimes),
    /// The source is clean: CLOSED is being flushed.
    Closing(ResumeTimes),
    /// This host's copy is not to run, though OWNER or TAKEN is on disk: flushing OVERRULED, destroying
    /// the copy behind a shut gate, flushing DISCARDED.
    Yielding(Ceded, Failure),
    /// Removing what was made here, then flushing DISCARDED.
    Discarding(Failure),
    /// Nothing more to do. `None`: the container is this host's.
    Ended(Option<Failure>),
}

/// By whose word the container is this host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The source's.
    Grant,
    /// An operator's, who has declared the source's host dead.
    Operator,
}

impl By {
    fn record(self) -> Record {
        match self {
            By::Grant => Record::Owner,
            By::Operator => Record::Taken,
        }
    }
}

/// Why a copy is not to run though this host was its owner: by what epoch the source has the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ceded {
    /// An operator has decided so at the source, which has begun an epoch of its own.
    There,
    /// It never ran, or an operator has given up here what cannot be resumed: this migration's epoch.
    Here,
}

/// What an operator decides at a destination.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// The source's host is dead: the container runs here.
    RunHere,
    /// What is here cannot be resumed and is given up; in words for the history.
    GiveUp(Failure),
}

/// What this side answers to an offer that it takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Acceptance {
    /// What was noticed and not refused for.
    pub notices: Vec<String>,
    /// How memory is to travel.
    pub memory: MemoryMode,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The source spoke.
    Peer(Handoff),
    /// The offer is acceptable, or not.
    Checked(Result<Acceptance, Failure>),
    /// A record is on disk.
    Recorded(Record),
    /// A record could not be written; its bytes may be on disk all the same.
    RecordFailed(Record, Failure),
    /// Receiving failed.
    ReceiveFailed(Failure),
    /// Restored (or found again) and held, or not.
    Restored(Result<u64, Failure>),
    /// The held restore has died without being let go.
    HoldLost(Failure),
    /// The container was let go, or could not be.
    Resumed(Result<ResumeTimes, Failure>),
    /// The held restore had died before this agent, which found or made it, could let it go: it was told
    /// nothing, and nothing has run or ever will.
    NeverRan(Failure),
    /// The connection is gone.
    LinkLost(String),
    /// There is a connection again.
    LinkUp,
    /// A second or so has passed: time to say or ask again what may have been lost.
    Repeat,
    /// Nothing made here can run any more; what could not be tidied up.
    Discarded(Option<Failure>),
    /// It is not certain that the copy made here is gone.
    DiscardFailed(Failure),
    /// An operator has decided, while nothing is heard of the source or nothing can be resumed.
    Resolved(Decision),
    /// The agent starts again and finds this migration in its journal.
    Restarted,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Check the offer => `Checked`.
    Check,
    /// Flush a record => `Recorded` or `RecordFailed`.
    Record(Record),
    /// Make namespaces and directories, take bulk streams => `ReceiveFailed` when that fails.
    Receive,
    /// Let packets for the container come here from now on, and keep them. Reports nothing: without
    /// it clients wait for their next retransmission, and the migration is as safe.
    HoldPackets,
    /// Verify totals and restore up to the hold => `Restored`.
    Restore(Totals),
    /// Find the hold of an earlier agent, or make it again from the images kept => `Restored`.
    Reclaim,
    /// Let the hold go (or find it gone and the container running), open the gate, announce =>
    /// `Resumed`. Never restores. May be repeated.
    Resume,
    /// Send to the source; lost when there is no connection.
    Send(Handoff),
    /// Keep trying to connect to the source, and ask it => `LinkUp`, then its answer. Asking twice
    /// is asking once.
    Ask,
    /// Remove everything made here, after whatever still makes it => `Discarded` or
    /// `DiscardFailed`. May be repeated.
    Discard,
    /// Shut the gate, then kill and remove the copy, though it is or was this host's container =>
    /// `Discarded` or `DiscardFailed`. May be repeated.
    Yield,
    /// The same effect once more, after a pause of a second or so.
    Again(Box<Effect>),
    /// Show as in doubt, and why, until the state changes.
    Doubt(Failure),
    /// The decision is on disk: whoever asked for it may be answered.
    Decided,
    /// Done.
    Finish(Option<Failure>),
}

type Step = Result<(State, Vec<Effect>), Illegal>;

impl State {
    /// The phase this state belongs to, for status.
    pub fn phase(&self) -> Phase {
        match self {
            State::Idle | State::Checking | State::Reserving(_) => Phase::Reserve,
            State::Receiving => Phase::Stage,
            State::Restoring
            | State::Preparing { .. }
            | State::Held { .. }
            | State::Reclaiming
            | State::Lost(_) => Phase::Prepare,
            State::Owning(_) | State::Resuming(_) => Phase::Grant,
            State::Running(..) | State::Closing(_) | State::Ended(None) => Phase::Retire,
            State::Yielding(_, f) | State::Discarding(f) | State::Ended(Some(f)) => {
                f.phase.unwrap_or(Phase::Reserve)
            }
        }
    }

    /// What to answer when the source asks where this side is.
    pub fn position(&self) -> Position {
        match self {
            State::Idle => Position::Unknown,
            State::Held { .. } | State::Owning(_) => Position::Held,
            // On this word the source ends a copy that may have gone back to work: only when it runs here.
            State::Running(By::Operator, _) => Position::Taken,
            State::Resuming(_) | State::Running(..) | State::Closing(_) | State::Ended(None) => {
                Position::Owner
            }
            // Not before DISCARDED is on disk: on this word the source takes its container back.
            State::Ended(Some(_)) => Position::Ended,
            _ => Position::BeforeCommit,
        }
    }

    /// Whether an operator's word may settle it now.
    ///
    /// # Errors
    /// Why not, and what to do instead.
    pub fn may_be_resolved(&self, decision: &Decision) -> Result<(), Failure> {
        let no = |text: &str, hint: &str| {
            Err(Failure::new(Reason::BadRequest, Side::Destination, text).phase(self.phase()).hint(hint))
        };
        match (self, decision) {
            (State::Held { .. }, Decision::RunHere) | (State::Resuming(_), Decision::GiveUp(_)) => Ok(()),
            (State::Owning(_) | State::Resuming(_) | State::Running(..) | State::Closing(_), _)
            | (State::Ended(None), _) => {
                no("the container is this host's: nothing is in doubt", "`tranship ps` shows whether it runs")
            }
            (State::Held { .. }, Decision::GiveUp(_)) => no(
                "the copy here is complete and held, and whether it is this host's is the source's to say",
                "ask the source, or let it run here if the source's host is dead",
            ),
            (State::Lost(_) | State::Reclaiming, _) => no(
                "there is nothing here that could run: the held copy has died",
                "bring the source's host back: it still has the container, frozen",
            ),
            _ => no("nothing is in doubt here", "`tranship status` shows where the migration is"),
        }
    }

    /// The state in which an agent finds a migration whose last record is `record`.
    ///
    /// It is to be stepped with [`Event::Restarted`], unless it is [`State::Ended`]: then it only
    /// answers what late messages ask.
    pub fn recovered(record: Record) -> State {
        match record {
            Record::Prepared => State::Held { restore_us: 0 },
            Record::Owner => State::Resuming(By::Grant),
            Record::Taken => State::Resuming(By::Operator),
            Record::Overruled => State::Yielding(Ceded::Here, overruled()),
            Record::Closed => State::Ended(None),
            Record::Discarded => State::Ended(Some(restarted())),
            _ => State::Receiving,
        }
    }

    /// What a migration that no driver has (any more) answers to a word of the source's: the last
    /// words again when it has ended, else only where it is.
    pub fn answers(self, message: Handoff) -> Vec<Handoff> {
        if !matches!(self, State::Ended(_) | State::Idle) && message != Handoff::Query {
            return Vec::new();
        }
        let (_, effects) = self.heard(message);
        let words = effects.into_iter().filter_map(|e| match e {
            Effect::Send(word) => Some(word),
            _ => None,
        });
        words.collect()
    }

    /// The next state and what is to be done, in order.
    ///
    /// # Errors
    /// [`Illegal`] for an event that only a faulty driver reports.
    pub fn step(self, event: Event) -> Step {
        match event {
            Event::Peer(message) => Ok(self.heard(message)),
            Event::LinkLost(why) => Ok(self.link_lost(&why)),
            Event::LinkUp => Ok(self.link_up()),
            Event::Repeat => Ok(self.repeat()),
            event => self.own(event),
        }
    }

    /// The outcome of something that this side did.
    fn own(self, event: Event) -> Step {
        use Effect as X;
        use Event as E;
        use State as S;
        Ok(match (self, event) {
            // Forward.
            (S::Checking, E::Checked(Ok(acceptance))) => {
                (S::Reserving(acceptance), vec![X::Record(Record::Reserved)])
            }
            (S::Checking, E::Checked(Err(f))) => {
                let f = f.phase(Phase::Reserve);
                untouched(f.clone(), Handoff::Refused(f))
            }
            (S::Reserving(Acceptance { notices, memory }), E::Recorded(Record::Reserved)) => {
                let reply = Handoff::Reserved { lease_ms: 0, notices, memory };
                (S::Receiving, vec![X::Receive, X::Send(reply)])
            }
            (S::Restoring, E::Restored(Ok(restore_us))) => {
                (S::Preparing { restore_us }, vec![X::Record(Record::Prepared)])
            }
            (S::Preparing { restore_us }, E::Recorded(Record::Prepared)) => {
                (S::Held { restore_us }, vec![X::Send(Handoff::Prepared { restore_us })])
            }

            // The grant.
            (S::Owning(by), E::Recorded(record)) if record == by.record() => {
                (S::Resuming(by), vec![X::Decided, X::Resume])
            }
            // Not the owner in this life: stay held. The source repeats the grant.
            (S::Owning(by), E::RecordFailed(record, _)) if record == by.record() => {
                (S::Held { restore_us: 0 }, vec![])
            }
            // Whether it is still this host's is the source's to say, if an operator has decided there.
            (S::Resuming(by), E::Restarted) => (S::Resuming(by), vec![X::Resume, X::Ask]),
            (S::Resuming(by), E::Resumed(Ok(times))) => {
                let (state, word) = running(by, times);
                (state, vec![word])
            }
            // The source has it whole, and said so a moment ago.
            (S::Resuming(By::Grant), E::NeverRan(f)) => yielding(Ceded::Here, f.phase(Phase::Grant)),
            (S::Resuming(by), E::Resumed(Err(f)) | E::NeverRan(f)) => {
                // The container is this host's, and it does not run: say so, keep everything.
                let doubt = Failure { reason: Reason::InDoubt, ..f }.phase(Phase::Grant);
                (S::Resuming(by), vec![X::Doubt(doubt), X::Again(Box::new(X::Resume)), X::Ask])
            }

            // An operator's word.
            (S::Held { .. }, E::Resolved(Decision::RunHere)) => {
                (S::Owning(By::Operator), vec![X::Record(Record::Taken)])
            }
            (S::Resuming(_), E::Resolved(Decision::GiveUp(f))) => {
                yielding(Ceded::Here, f.phase(Phase::Grant))
            }
            (s, E::Resolved(_)) => (s, vec![]),
            (S::Yielding(by, f), E::Recorded(Record::Overruled)) => {
                (S::Yielding(by, f), vec![X::Decided, X::Yield])
            }
            (s @ S::Yielding(..), E::RecordFailed(record @ (Record::Overruled | Record::Discarded), _)) => {
                (s, again(X::Record(record)))
            }
            (S::Yielding(by, f), E::Restarted) => (S::Yielding(by, f), vec![X::Yield]),
            (S::Yielding(by, f), E::Discarded(trouble)) => {
                (S::Yielding(by, with_trouble(f, trouble)), vec![X::Record(Record::Discarded)])
            }
            (s @ S::Yielding(..), E::DiscardFailed(_)) => (s, again(X::Yield)),
            (S::Yielding(_, f), E::Recorded(Record::Discarded)) => {
                (S::Ended(Some(f.clone())), vec![X::Send(Handoff::Aborted), X::Finish(Some(f))])
            }
            // The resume that ran when it was decided.
            (s @ S::Yielding(..), E::Resumed(_) | E::NeverRan(_)) => (s, vec![]),
            // The source retires its copy only when it was told that this one runs: it has run.
            (s @ S::Closing(_), E::Resumed(_) | E::NeverRan(_)) => (s, vec![]),
            (S::Closing(_), E::Recorded(Record::Closed)) => {
                (S::Ended(None), vec![X::Send(Handoff::Closed), X::Finish(None)])
            }
            (s @ S::Closing(_), E::RecordFailed(record @ Record::Closed, _)) => (s, again(X::Record(record))),

            // The hold, after a restart or after its death. Nothing has run: it may be made again.
            (S::Held { .. }, E::Restarted | E::HoldLost(_)) => (S::Reclaiming, vec![X::Reclaim]),
            (S::Reclaiming, E::Restored(Ok(restore_us))) => (S::Held { restore_us }, vec![X::Ask]),
            (S::Reclaiming, E::Restored(Err(f))) => {
                // The files are kept until the source is heard: they may be the last copy.
                let f = Failure { reason: Reason::InDoubt, ..f }.phase(Phase::Prepare);
                (S::Lost(f.clone()), vec![X::Doubt(f), X::Ask])
            }

            // Back, before the hold is on disk.
            (S::Receiving, E::ReceiveFailed(f)) => {
                let f = f.phase(Phase::Copy);
                (S::Discarding(f.clone()), vec![X::Send(Handoff::Abort(f)), X::Discard])
            }
            (S::Restoring, E::Restored(Err(f)) | E::ReceiveFailed(f) | E::HoldLost(f)) => {
                refuse(f, Phase::Prepare)
            }
            (S::Reserving(_), E::RecordFailed(Record::Reserved, f)) => refuse(f, Phase::Reserve),
            (S::Preparing { .. }, E::RecordFailed(Record::Prepared, f) | E::HoldLost(f)) => {
                refuse(f, Phase::Prepare)
            }
            (S::Receiving, E::Restarted) => discard(restarted()),
            (S::Discarding(f), E::Discarded(trouble)) => {
                (S::Discarding(with_trouble(f, trouble)), vec![X::Record(Record::Discarded)])
            }
            (s @ S::Discarding(_), E::DiscardFailed(_)) => (s, again(X::Discard)),
            (S::Discarding(f), E::Recorded(Record::Discarded)) => {
                (S::Ended(Some(f.clone())), vec![X::Send(Handoff::Aborted), X::Finish(Some(f))])
            }
            (s @ S::Discarding(_), E::RecordFailed(record @ Record::Discarded, _)) => {
                (s, again(X::Record(record)))
            }
            // What was under way when the discarding began.
            (s @ S::Discarding(_), E::Checked(_) | E::Restored(_) | E::Recorded(_) | E::RecordFailed(..)) => {
                (s, vec![])
            }
            (s @ S::Ended(_), _) => (s, vec![]),
            // A failure that comes after the state has moved on is the state's own to report.
            (s, E::ReceiveFailed(_) | E::HoldLost(_)) => (s, vec![]),
            (s, e) => {
                return Err(Illegal { state: format!("{s:?}"), event: format!("{e:?}") });
            }
        })
    }

    /// A message of the source's: expected, late, repeated, or nonsense.
    fn heard(self, message: Handoff) -> (State, Vec<Effect>) {
        use Effect as X;
        use Handoff as H;
        use State as S;
        match (self, message) {
            // Held, and nothing to resume is left: the source is there, so it may have it back.
            (
                S::Lost(f),
                H::Grant
                | H::Abort(_)
                | H::Prepare(_)
                | H::Query
                | H::Position(
                    Position::BeforeCommit | Position::Released | Position::Ended | Position::TakenBack,
                ),
            ) => discard(f),
            (s, H::Query) => {
                let position = s.position();
                (s, vec![X::Send(H::Position(position))])
            }

            (S::Idle, H::Reserve(_)) => (S::Checking, vec![X::Check]),
            (S::Idle, H::Abort(_)) => (S::Idle, vec![X::Send(H::Aborted)]),
            (S::Idle, _) => (S::Idle, vec![X::Send(H::Position(Position::Unknown))]),
            (S::Receiving, H::Frozen) => (S::Receiving, vec![X::HoldPackets]),
            (S::Receiving, H::Prepare(totals)) => (S::Restoring, vec![X::Restore(totals)]),
            (S::Held { restore_us }, H::Prepare(_)) => {
                (S::Held { restore_us }, vec![X::Send(H::Prepared { restore_us })])
            }

            // The grant. Its repeats are answered from the state reached.
            (S::Held { .. }, H::Grant | H::Position(Position::Released)) => {
                (S::Owning(By::Grant), vec![X::Record(Record::Owner)])
            }
            (S::Running(by, times), H::Grant | H::Position(Position::Released)) => {
                (S::Running(by, times.clone()), vec![X::Send(H::Running(times))])
            }
            (S::Running(_, times), H::Retired) => (S::Closing(times), vec![X::Record(Record::Closed)]),
            (S::Resuming(_), H::Retired) => {
                (S::Closing(ResumeTimes::default()), vec![X::Record(Record::Closed)])
            }
            // An operator has declared this host dead, and the container is the source's again. Not
            // after Retired: from then on the only copy is here.
            (S::Resuming(_) | S::Running(..), H::Position(Position::TakenBack)) => {
                yielding(Ceded::There, overruled())
            }
            // Also when what was here was given up after it had run, before the source was heard.
            (s @ S::Ended(_), H::Retired) => (s, vec![X::Send(H::Closed)]),
            (s @ S::Ended(None), H::Grant) => (s, vec![X::Send(H::Running(ResumeTimes::default()))]),

            // Back, on the source's word.
            (S::Checking, H::Abort(f)) => untouched(f, H::Aborted),
            (
                S::Reserving(_)
                | S::Receiving
                | S::Restoring
                | S::Preparing { .. }
                | S::Held { .. }
                | S::Reclaiming,
                H::Abort(f),
            ) => discard(f),
            (
                S::Reserving(_)
                | S::Receiving
                | S::Restoring
                | S::Preparing { .. }
                | S::Held { .. }
                | S::Reclaiming,
                H::Position(Position::Ended | Position::TakenBack),
            ) => discard(gone()),
            // Nothing is held yet, so nothing is lost with it.
            (S::Receiving | S::Restoring, H::Position(Position::Unknown)) => discard(gone()),

            // It is over here.
            (S::Ended(Some(f)), H::Reserve(_) | H::Prepare(_)) => {
                (S::Ended(Some(f.clone())), vec![X::Send(H::Refused(f))])
            }
            (s @ S::Ended(Some(_)), H::Abort(_) | H::Grant | H::Position(Position::Released)) => {
                (s, vec![X::Send(H::Aborted)])
            }
            (s, _) => (s, vec![]),
        }
    }

    fn link_lost(self, why: &str) -> (State, Vec<Effect>) {
        use State as S;
        match self {
            S::Checking => {
                let f = lost(why);
                (S::Ended(Some(f.clone())), vec![Effect::Finish(Some(f))])
            }
            S::Reserving(_) | S::Receiving | S::Restoring => discard(lost(why)),
            // PREPARED may be on disk: from here on the source must be asked.
            s @ (S::Preparing { .. } | S::Held { .. } | S::Reclaiming | S::Lost(_)) => (s, vec![Effect::Ask]),
            // The source comes back by itself, unless an operator has decided there or here.
            s @ (S::Owning(_) | S::Resuming(_) | S::Running(..)) => (s, vec![Effect::Ask]),
            s @ (S::Idle | S::Closing(_) | S::Yielding(..) | S::Discarding(_) | S::Ended(_)) => (s, vec![]),
        }
    }

    fn link_up(self) -> (State, Vec<Effect>) {
        match self {
            State::Held { restore_us } => {
                (State::Held { restore_us }, vec![Effect::Send(Handoff::Prepared { restore_us })])
            }
            State::Running(by, times) => {
                let (state, word) = running(by, times);
                (state, vec![word])
            }
            s => (s, vec![]),
        }
    }

    /// Says or asks again what may have been lost.
    fn repeat(self) -> (State, Vec<Effect>) {
        let word = match &self {
            State::Held { restore_us } => Some(Handoff::Prepared { restore_us: *restore_us }),
            State::Receiving | State::Restoring | State::Lost(_) | State::Resuming(_) => Some(Handoff::Query),
            State::Running(By::Operator, _) => Some(Handoff::Position(Position::Taken)),
            _ => None,
        };
        (self, word.map(Effect::Send).into_iter().collect())
    }
}

/// The end of an offer for which nothing was made or written.
fn untouched(failure: Failure, answer: Handoff) -> (State, Vec<Effect>) {
    (State::Ended(Some(failure.clone())), vec![Effect::Send(answer), Effect::Finish(Some(failure))])
}

/// It runs here, and what the source is told of it.
fn running(by: By, times: ResumeTimes) -> (State, Effect) {
    let word = match by {
        By::Grant => Handoff::Running(times.clone()),
        By::Operator => Handoff::Position(Position::Taken),
    };
    (State::Running(by, times), Effect::Send(word))
}

fn yielding(by: Ceded, failure: Failure) -> (State, Vec<Effect>) {
    (State::Yielding(by, failure), vec![Effect::Record(Record::Overruled)])
}

fn discard(failure: Failure) -> (State, Vec<Effect>) {
    (State::Discarding(failure), vec![Effect::Discard])
}

fn refuse(failure: Failure, phase: Phase) -> (State, Vec<Effect>) {
    let f = failure.phase(phase);
    (State::Discarding(f.clone()), vec![Effect::Send(Handoff::Refused(f)), Effect::Discard])
}

fn again(effect: Effect) -> Vec<Effect> {
    vec![Effect::Again(Box::new(effect))]
}

fn with_trouble(mut failure: Failure, trouble: Option<Failure>) -> Failure {
    if let Some(second) = trouble {
        failure.message = format!("{}; and cleaning up failed in part: {}", failure.message, second.message);
    }
    failure
}

fn lost(why: &str) -> Failure {
    Failure::new(
        Reason::Unreachable,
        Side::Destination,
        format!("the connection to the source was lost: {why}"),
    )
    .retryable()
}

fn gone() -> Failure {
    Failure::new(Reason::Failed, Side::Destination, "the source has given this migration up")
}

fn overruled() -> Failure {
    Failure::new(
        Reason::Failed,
        Side::Destination,
        "an operator has declared this host dead, and the container runs at the source again",
    )
    .phase(Phase::Grant)
    .hint("the source's history says who and when")
}

fn restarted() -> Failure {
    Failure::new(Reason::Failed, Side::Destination, "the destination agent was restarted before the commit")
        .retryable()
}
