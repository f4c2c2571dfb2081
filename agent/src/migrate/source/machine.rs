//! The source agent's state machine: pure. No clock, no sockets, no processes.
//!
//! ```text
//! Reserving -> Staging -> Freezing -> Copying -> Preparing -> Committing | Granting -> Retiring -> Closing -> Settling -> Ended
//!     |           \__________|__________/            |            |      |    |
//!     |                   Stopping                   |            |   RELEASED is on disk
//!     |                      |                       |        Revoking <--+  (T renounced)
//!     \______________________\_______________________/            |
//!                          RollingBack <--------------------------+ REVOKED is on disk
//!                            Ended
//!
//! By an operator: Granting -> Overruling -> TakingBack -> TakenBack   (the destination's host is dead)
//!                 Ended, rolled back -> Retiring                      (this host was declared dead)
//! ```
//!
//! | State | Container | Last record | Asked where it is | Waits for, and what happens if that does not come |
//! | --- | --- | --- | --- | --- |
//! | Reserving | runs | ACCEPTED | before commit | Reserved or Refused; deadline: back |
//! | Staging | runs | ACCEPTED | before commit | the step; deadline: stopped, back |
//! | Freezing | freezes | ACCEPTED, FROZEN | before commit | the record, then the step; deadline: stopped, back |
//! | Copying | frozen | FROZEN | before commit | the step; deadline: stopped, back |
//! | Preparing | frozen | FROZEN | before commit | Prepared or Refused; Prepare is repeated; deadline: back |
//! | Committing | frozen | FROZEN, RELEASED | before commit | the record; its failure is revoked |
//! | Revoking | frozen | FROZEN, RELEASED, REVOKED | before commit | the record, tried until written |
//! | Granting | frozen | RELEASED | released | Running or Aborted; Grant is repeated, for ever |
//! | Retiring | goes | RELEASED | released | the step, then the record, tried until done |
//! | Closing | gone | RETIRED | released | Closed; Retired is repeated, for ever |
//! | Settling | gone | RETIRED, CLOSED | released | the record, tried until written |
//! | Overruling | frozen | RELEASED, OVERRULED | before commit | the record, tried until written |
//! | TakingBack | thaws | OVERRULED, TAKEN_BACK | taken back | the step, then the record, tried until done |
//! | TakenBack | runs | TAKEN_BACK | taken back | nothing; a destination that is back is told |
//! | Stopping | as it was | as it was | ended | the running step's end |
//! | RollingBack | thaws | ..., ROLLED_BACK | ended | the step, then the record, tried until done |
//! | Ended | | CLOSED, ROLLED_BACK | released, ended | nothing; repeats are answered |
//!
//! Rules that hold by construction, and that `tests/handover_model.rs` explores:
//!
//! * `Effect::Undo` (thaw, unfence) is never asked for while the last word on disk may be
//!   `Record::Released`. A failed *write* of it counts as written, because its bytes may have
//!   reached the disk: only `Record::Revoked` behind it, safely on disk, opens the way back.
//! * Revoking is possible in two cases, in both of which nobody else may run the container: no
//!   grant was ever sent, or the destination has put on disk that it never will (`Aborted`).
//! * `Handoff::Grant` is sent only after `Event::Recorded(Released)`.
//! * `Effect::Retire` follows only the destination's word that it runs.
//! * A migration ends only when its last record is on disk. A forgotten one would be undone again
//!   at the next start of the agent, when the container may be in other hands.
//! * An operator's word that the destination's host is dead opens a third way back, from Granting
//!   alone, and only with `Record::Overruled` on disk. A destination that comes back later, owner
//!   or not, is told and destroys what it has.
//! * An operator's word at the destination that *this* host is dead ([`Position::Taken`]) ends a copy
//!   here, whether it was released or rolled back. [`yields`] says when it is to be believed.
//! * A cancel is a request: honoured before the commit, answered "too late" after it, and answered
//!   when that is known while RELEASED is being written.
//!
//! No message of a peer is ever [`Illegal`]: it may be late, repeated, or hostile.

use crate::journal::Record;
use tranship_proto::handoff::{Handoff, Position, ResumeTimes, Totals};
use tranship_proto::status::{Failure, Phase, Reason, Side};

/// Where the source is.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Scanning the container, asking the destination.
    Reserving,
    /// Copying files while the container runs.
    Staging,
    /// Writing FROZEN, then fencing and freezing.
    Freezing,
    /// Dumping, streaming memory and the last file differences.
    Copying,
    /// The destination restores what it was told to have.
    Preparing(Totals),
    /// RELEASED is being flushed.
    Committing,
    /// RELEASED is void: REVOKED is being flushed, then the container goes back.
    Revoking(Failure),
    /// RELEASED is on disk; the destination is to say that it runs.
    Granting,
    /// Removing the copy here, then flushing RETIRED.
    Retiring(ResumeTimes),
    /// Waiting for the destination's last word.
    Closing,
    /// It came: CLOSED is being flushed.
    Settling,
    /// Waiting for a running step to stop before going back.
    Stopping(Failure),
    /// An operator has declared the destination's host dead: OVERRULED is being flushed.
    Overruling(Failure),
    /// OVERRULED is on disk: going back, then flushing TAKEN_BACK.
    TakingBack(Failure),
    /// By the operator's decision the container runs here. Nothing more to do.
    TakenBack(Failure),
    /// Going back, then flushing ROLLED_BACK.
    RollingBack(Failure),
    /// Nothing more to do. `None`: the container is the destination's.
    Ended(Option<Failure>),
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The request was accepted and recorded.
    Start,
    /// The offer is sent.
    Offered,
    /// The step that was asked for is done.
    StepDone,
    /// Copied, with what the destination must have.
    Copied(Totals),
    /// The step failed; what it changed so far is still there.
    StepFailed(Failure),
    /// A record is on disk.
    Recorded(Record),
    /// A record could not be written; its bytes may be on disk all the same.
    RecordFailed(Record, Failure),
    /// The destination spoke.
    Peer(Handoff),
    /// The connection is gone.
    LinkLost(String),
    /// There is a connection again (only asked for after commit).
    LinkUp,
    /// Somebody asks to cancel.
    Cancel,
    /// An operator says, while nothing is heard of the destination, that its host is dead; in words
    /// for the history.
    Resolved(Failure),
    /// The phase took too long.
    Deadline,
    /// A second or so has passed: time to say again what may have been lost.
    Repeat,
    /// The container runs and is reached as before; what could not be tidied up.
    Undone(Option<Failure>),
    /// The container could not be brought back; it may be frozen or fenced still.
    UndoFailed(Failure),
    /// The agent starts again and finds this migration in its journal.
    Restarted,
}

/// What is to be done. The driver reports each numbered with `=>` by the event named.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Flush a record => `Recorded` or `RecordFailed`.
    Record(Record),
    /// Scan the container, connect, send the offer => `Offered` or `StepFailed`.
    Reserve,
    /// Copy files in passes => `StepDone` or `StepFailed`.
    Stage,
    /// Fence the addresses, freeze the cgroup => `StepDone` or `StepFailed`.
    Freeze,
    /// Dump, stream memory, last file pass => `Copied` or `StepFailed`.
    Copy,
    /// Ask a running step to stop soon => its own event.
    StopStep,
    /// Send to the destination; lost when there is no connection.
    Send(Handoff),
    /// Thaw, unfence, unlock, remove temporary data => `Undone` or `UndoFailed`. After the end of
    /// a step that still runs. May be repeated.
    Undo,
    /// Kill the frozen copy while fenced, remove it => `StepDone` or `StepFailed`. May be repeated.
    Retire,
    /// Keep trying to connect, unless there is a connection => `LinkUp`. Asking twice is asking once.
    Reconnect,
    /// The same effect once more, after a pause of a second or so.
    Again(Box<Effect>),
    /// Tell whoever watches that a phase began.
    Enter(Phase),
    /// Show as in doubt, and why, until the state changes.
    Doubt(Failure),
    /// Answer every cancel that waits with "too late".
    TooLate,
    /// The decision is on disk: whoever asked for it may be answered.
    Decided,
    /// Done: report, answer the cancels that wait, free what is held in memory.
    Finish(Option<Failure>),
}

/// An event that cannot happen in a state: a bug of the driver's. Messages never are.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("event {event} is not possible in state {state}")]
pub struct Illegal {
    /// The state.
    pub state: String,
    /// The event.
    pub event: String,
}

type Step = Result<(State, Vec<Effect>), Illegal>;

impl State {
    /// The phase this state belongs to.
    pub fn phase(&self) -> Phase {
        match self {
            State::Reserving => Phase::Reserve,
            State::Staging => Phase::Stage,
            State::Freezing => Phase::Freeze,
            State::Copying => Phase::Copy,
            State::Preparing(_) => Phase::Prepare,
            State::Committing | State::Revoking(_) => Phase::Commit,
            State::Granting | State::Overruling(_) | State::TakingBack(_) | State::TakenBack(_) => {
                Phase::Grant
            }
            State::Retiring(_) | State::Closing | State::Settling | State::Ended(None) => Phase::Retire,
            State::Stopping(f) | State::RollingBack(f) | State::Ended(Some(f)) => {
                f.phase.unwrap_or(Phase::Reserve)
            }
        }
    }

    /// Whether RELEASED may be the last word on disk.
    pub fn committed(&self) -> bool {
        matches!(self, State::Committing | State::Revoking(_) | State::Overruling(_)) || self.released()
    }

    /// Whether nothing is left to do here: no driver is needed to answer for it.
    pub fn ended(&self) -> bool {
        matches!(self, State::Ended(_) | State::TakenBack(_))
    }

    /// Whether an operator's word may settle it now.
    ///
    /// # Errors
    /// Why not, and what to do instead.
    pub fn may_be_overruled(&self) -> Result<(), Failure> {
        let no = |reason, text: &str, hint: &str| {
            Err(Failure::new(reason, Side::Source, text).phase(self.phase()).hint(hint))
        };
        match self {
            State::Granting => Ok(()),
            State::Overruling(_) | State::TakingBack(_) | State::TakenBack(_) => {
                no(Reason::BadRequest, "this was decided already", "`tranship history` says by whom")
            }
            State::Retiring(_) | State::Closing | State::Settling | State::Ended(None) => no(
                Reason::BadRequest,
                "the destination has said that it runs the container; nothing is in doubt",
                "look at the container at the destination",
            ),
            _ => no(
                Reason::BadRequest,
                "nothing is in doubt: the migration is not committed, and goes back by itself",
                "wait for it, or `tranship cancel` it",
            ),
        }
    }

    /// Whether RELEASED is on disk, and stands.
    fn released(&self) -> bool {
        matches!(
            self,
            State::Granting | State::Retiring(_) | State::Closing | State::Settling | State::Ended(None)
        )
    }

    /// What to answer when the destination asks where this side is.
    pub fn position(&self) -> Position {
        match self {
            State::Ended(Some(_)) | State::RollingBack(_) | State::Stopping(_) => Position::Ended,
            State::TakingBack(_) | State::TakenBack(_) => Position::TakenBack,
            s if s.released() => Position::Released,
            // While RELEASED or REVOKED is being written the answer is "ask again".
            _ => Position::BeforeCommit,
        }
    }

    /// The state in which an agent finds a migration whose last record is `record`.
    ///
    /// It is to be stepped with [`Event::Restarted`], unless it has [ended](State::ended): then it only
    /// answers what late messages ask.
    pub fn recovered(record: Record) -> State {
        match record {
            Record::Overruled => State::TakingBack(taken_back()),
            Record::TakenBack => State::TakenBack(taken_back()),
            Record::Released => State::Granting,
            Record::Retired => State::Closing,
            Record::Closed => State::Ended(None),
            Record::RolledBack | Record::Renounced => State::Ended(Some(restarted(Phase::Reserve))),
            Record::Frozen | Record::Revoked => State::Freezing,
            _ => State::Reserving,
        }
    }

    /// What a migration that no driver has (any more) answers to a word of the destination's: the last
    /// words again when it has ended, else only where it is.
    pub fn answers(self, message: Handoff) -> Vec<Handoff> {
        if !self.ended() && message != Handoff::Query {
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
            Event::Cancel => Ok(self.cancel()),
            Event::Deadline => Ok(self.deadline()),
            Event::Repeat | Event::LinkUp => Ok(self.repeat()),
            event => self.own(event),
        }
    }

    /// The outcome of something that this side did.
    fn own(self, event: Event) -> Step {
        use Effect as X;
        use Event as E;
        use State as S;
        Ok(match (self, event) {
            // Forward, before commit.
            (S::Reserving, E::Start) => (S::Reserving, vec![X::Enter(Phase::Reserve), X::Reserve]),
            // The answer is what counts, and may have come before.
            (s, E::Offered) => (s, vec![]),
            (S::Staging, E::StepDone) => {
                (S::Freezing, vec![X::Enter(Phase::Freeze), X::Record(Record::Frozen)])
            }
            (S::Freezing, E::Recorded(Record::Frozen)) => (S::Freezing, vec![X::Freeze]),
            (S::Freezing, E::StepDone) => {
                (S::Copying, vec![X::Send(Handoff::Frozen), X::Enter(Phase::Copy), X::Copy])
            }
            (S::Copying, E::Copied(totals)) => {
                let prepare = X::Send(Handoff::Prepare(totals.clone()));
                (S::Preparing(totals), vec![X::Enter(Phase::Prepare), prepare])
            }

            // The commit and after it.
            (S::Committing, E::Recorded(Record::Released)) => {
                (S::Granting, vec![X::TooLate, X::Enter(Phase::Grant), X::Send(Handoff::Grant)])
            }
            (S::Committing, E::RecordFailed(Record::Released, f)) => revoke(f.phase(Phase::Commit)),
            (S::Granting, E::Restarted) => (S::Granting, vec![X::Enter(Phase::Grant), X::Reconnect]),
            (s @ S::Retiring(_), E::StepDone) => (s, vec![X::Record(Record::Retired)]),
            (s @ S::Retiring(_), E::StepFailed(_)) => (s, again(X::Retire)),
            (s @ S::Retiring(_), E::RecordFailed(record @ Record::Retired, _)) => {
                (s, again(X::Record(record)))
            }
            (S::Retiring(_), E::Recorded(Record::Retired)) => (S::Closing, vec![X::Send(Handoff::Retired)]),
            (S::Closing, E::Restarted) => (S::Closing, vec![X::Reconnect]),
            (S::Settling, E::Recorded(Record::Closed)) => (S::Ended(None), vec![X::Finish(None)]),
            (s @ S::Settling, E::RecordFailed(record @ Record::Closed, _)) => (s, again(X::Record(record))),

            // Out of the commit again: only with REVOKED on disk behind RELEASED.
            (S::Revoking(f), E::Recorded(Record::Revoked)) => back(f),
            (s @ S::Revoking(_), E::RecordFailed(record @ Record::Revoked, why)) => {
                let doubt = Failure { reason: Reason::InDoubt, ..why }.phase(Phase::Commit);
                (s, vec![X::Doubt(doubt), X::Again(Box::new(X::Record(record)))])
            }

            // Out of it by an operator's word: only with OVERRULED on disk behind RELEASED.
            (S::Granting, E::Resolved(f)) => {
                (S::Overruling(f.phase(Phase::Grant)), vec![X::Record(Record::Overruled)])
            }
            (s, E::Resolved(_)) => (s, vec![]),
            (S::Overruling(f), E::Recorded(Record::Overruled)) => {
                (S::TakingBack(f), vec![X::Decided, X::Undo])
            }
            (s @ S::Overruling(_), E::RecordFailed(record @ Record::Overruled, why)) => {
                let doubt = Failure { reason: Reason::InDoubt, ..why }.phase(Phase::Grant);
                (s, vec![X::Doubt(doubt), X::Again(Box::new(X::Record(record)))])
            }
            (S::TakingBack(f), E::Restarted) => (S::TakingBack(f), vec![X::Undo]),
            (S::TakingBack(f), E::Undone(trouble)) => {
                (S::TakingBack(with_trouble(f, trouble)), vec![X::Record(Record::TakenBack)])
            }
            (s @ S::TakingBack(_), E::UndoFailed(why)) => {
                let doubt = Failure { reason: Reason::InDoubt, ..why }.phase(Phase::Grant);
                (s, vec![X::Doubt(doubt), X::Again(Box::new(X::Undo))])
            }
            (S::TakingBack(f), E::Recorded(Record::TakenBack)) => {
                (S::TakenBack(f.clone()), vec![X::Finish(Some(f))])
            }
            (s @ S::TakingBack(_), E::RecordFailed(record @ Record::TakenBack, _)) => {
                (s, again(X::Record(record)))
            }

            // Back.
            (s @ (S::Reserving | S::Staging | S::Freezing | S::Copying), E::StepFailed(f)) => {
                let phase = s.phase();
                back(f.phase(phase))
            }
            (S::Freezing, E::RecordFailed(Record::Frozen, f)) => back(f.phase(Phase::Freeze)),
            // Whichever way the step ended, or FROZEN was written with nothing frozen yet.
            (
                S::Stopping(f),
                E::StepDone
                | E::Copied(_)
                | E::StepFailed(_)
                | E::Recorded(Record::Frozen)
                | E::RecordFailed(Record::Frozen, _),
            ) => back(f),
            (s @ (S::Reserving | S::Freezing), E::Restarted) => {
                let phase = s.phase();
                back(restarted(phase))
            }
            (S::RollingBack(f), E::Undone(trouble)) => {
                (S::RollingBack(with_trouble(f, trouble)), vec![X::Record(Record::RolledBack)])
            }
            (S::RollingBack(f), E::UndoFailed(why)) => {
                let phase = f.phase.unwrap_or(Phase::Reserve);
                let doubt = Failure { reason: Reason::InDoubt, ..why }.phase(phase);
                (S::RollingBack(f), vec![X::Doubt(doubt), X::Again(Box::new(X::Undo))])
            }
            (S::RollingBack(f), E::Recorded(Record::RolledBack)) => {
                (S::Ended(Some(f.clone())), vec![X::Finish(Some(f))])
            }
            (s @ S::RollingBack(_), E::RecordFailed(record @ Record::RolledBack, _)) => {
                (s, again(X::Record(record)))
            }
            // The step that was running when the way back began, and what it recorded.
            (
                s @ S::RollingBack(_),
                E::StepDone | E::StepFailed(_) | E::Recorded(_) | E::RecordFailed(..),
            ) => (s, vec![]),
            (s @ (S::Ended(_) | S::TakenBack(_)), _) => (s, vec![]),
            (s, e) => {
                return Err(Illegal { state: format!("{s:?}"), event: format!("{e:?}") });
            }
        })
    }

    /// A message of the destination's: expected, late, repeated, or nonsense.
    fn heard(self, message: Handoff) -> (State, Vec<Effect>) {
        use Effect as X;
        use Handoff as H;
        use State as S;
        match (self, message) {
            (s, H::Query) => {
                let position = s.position();
                (s, vec![X::Send(H::Position(position))])
            }
            (S::Reserving, H::Reserved { .. }) => (S::Staging, vec![X::Enter(Phase::Stage), X::Stage]),
            (S::Preparing(_), H::Prepared { .. }) => {
                (S::Committing, vec![X::Enter(Phase::Commit), X::Record(Record::Released)])
            }

            // No: before commit it is the end of it.
            (s @ (S::Reserving | S::Preparing(_)), H::Refused(f) | H::Abort(f)) => {
                let phase = s.phase();
                back(f.phase(phase))
            }
            (s @ S::Preparing(_), H::Aborted | H::Position(Position::Ended | Position::Unknown)) => {
                let phase = s.phase();
                back(renounced().phase(phase))
            }
            (s @ (S::Staging | S::Freezing | S::Copying), H::Refused(f) | H::Abort(f)) => stop(s, f),
            (s @ (S::Staging | S::Freezing | S::Copying), H::Aborted | H::Position(Position::Ended)) => {
                stop(s, renounced())
            }

            // After it, only two words count: that it runs there, or that it never will.
            (S::Granting, H::Running(times)) => {
                (S::Retiring(times), vec![X::Enter(Phase::Retire), X::Retire])
            }
            (S::Granting, H::Aborted | H::Position(Position::Ended)) => {
                revoke(renounced().phase(Phase::Grant))
            }
            (S::Granting, H::Prepared { .. } | H::Position(Position::Held)) => {
                (S::Granting, vec![X::Send(H::Grant)])
            }
            // There it runs because an operator said that this host was dead. What is here has no owner
            // any more, whether it was released or had gone back.
            (S::Granting | S::Ended(Some(_)), H::Position(Position::Taken)) => {
                (S::Retiring(ResumeTimes::default()), vec![X::Enter(Phase::Retire), X::Retire, X::Reconnect])
            }
            // Both were declared dead, one after the other. This one's decision is the later: the other
            // side's copy can only have been started while this host was away.
            (
                s @ (S::TakingBack(_) | S::TakenBack(_)),
                H::Position(Position::Taken) | H::Prepared { .. } | H::Running(_),
            ) => (s, vec![X::Send(H::Position(Position::TakenBack))]),

            // A destination that has forgotten has closed: it said before that it runs.
            (S::Closing, H::Closed | H::Position(Position::Unknown)) => {
                (S::Settling, vec![X::Record(Record::Closed)])
            }

            // A destination that holds what was given up.
            (s @ (S::Stopping(_) | S::RollingBack(_) | S::Ended(Some(_))), H::Prepared { .. }) => {
                let abort = s.failure().map(|f| X::Send(H::Abort(f.clone())));
                (s, abort.into_iter().collect())
            }
            (s, _) => (s, vec![]),
        }
    }

    fn link_lost(self, why: &str) -> (State, Vec<Effect>) {
        use State as S;
        match self {
            s @ (S::Reserving | S::Preparing(_)) => {
                let phase = s.phase();
                back(link_lost(why).phase(phase))
            }
            s @ (S::Staging | S::Freezing | S::Copying) => stop(s, link_lost(why)),
            s @ (S::Committing | S::Granting | S::Retiring(_) | S::Closing) => (s, vec![Effect::Reconnect]),
            s @ (S::Revoking(_)
            | S::Settling
            | S::Stopping(_)
            | S::RollingBack(_)
            | S::Overruling(_)
            | S::TakingBack(_)
            | S::TakenBack(_)
            | S::Ended(_)) => (s, vec![]),
        }
    }

    fn cancel(self) -> (State, Vec<Effect>) {
        use State as S;
        match self {
            s @ (S::Reserving | S::Preparing(_)) => {
                let phase = s.phase();
                back(cancelled().phase(phase))
            }
            s @ (S::Staging | S::Freezing | S::Copying) => stop(s, cancelled()),
            s if s.released() => (s, vec![Effect::TooLate]),
            s @ (S::Overruling(_) | S::TakingBack(_) | S::TakenBack(_)) => (s, vec![Effect::TooLate]),
            // Answered when it is clear, or by the end that is under way.
            s => (s, vec![]),
        }
    }

    fn deadline(self) -> (State, Vec<Effect>) {
        use State as S;
        match self {
            s @ (S::Reserving | S::Preparing(_)) => {
                let phase = s.phase();
                back(too_long(phase))
            }
            s @ (S::Staging | S::Freezing | S::Copying) => {
                let failure = too_long(s.phase());
                stop(s, failure)
            }
            s => (s, vec![]),
        }
    }

    /// Says again what may have been lost.
    fn repeat(self) -> (State, Vec<Effect>) {
        use Effect as X;
        use State as S;
        let word = match &self {
            S::Preparing(totals) => Some(Handoff::Prepare(totals.clone())),
            S::Granting => Some(Handoff::Grant),
            S::Closing => Some(Handoff::Retired),
            _ => None,
        };
        (self, word.map(X::Send).into_iter().collect())
    }

    fn failure(&self) -> Option<&Failure> {
        match self {
            State::Stopping(f) | State::RollingBack(f) | State::Revoking(f) | State::Ended(Some(f)) => {
                Some(f)
            }
            _ => None,
        }
    }
}

/// Going back: the container runs again before anything else is written.
fn back(failure: Failure) -> (State, Vec<Effect>) {
    (State::RollingBack(failure.clone()), vec![Effect::Undo, Effect::Send(Handoff::Abort(failure))])
}

/// Back once the running step has ended: CRIU is never killed in the middle of a dump.
fn stop(state: State, failure: Failure) -> (State, Vec<Effect>) {
    (State::Stopping(failure.phase(state.phase())), vec![Effect::StopStep])
}

fn revoke(failure: Failure) -> (State, Vec<Effect>) {
    (State::Revoking(failure), vec![Effect::Record(Record::Revoked)])
}

fn again(effect: Effect) -> Vec<Effect> {
    vec![Effect::Again(Box::new(effect))]
}

fn with_trouble(mut failure: Failure, trouble: Option<Failure>) -> Failure {
    if let Some(second) = trouble {
        failure.message = format!("{}; and going back failed in part: {}", failure.message, second.message);
        failure.hint = failure.hint.or(second.hint);
    }
    failure
}

/// Whether a migration that was rolled back here, by its `records`, may be ended by the destination's
/// word that an operator let it run there.
///
/// The destination can have been held only when the container was frozen for it, and it will never
/// run once it has renounced. Outside of this a hostile host could have a container removed that it
/// was offered once.
pub fn yields(records: &[Record]) -> bool {
    records.contains(&Record::Frozen) && !records.contains(&Record::Renounced)
}

fn taken_back() -> Failure {
    Failure::new(
        Reason::Failed,
        Side::Destination,
        "the destination was declared dead; the container runs at the source again",
    )
    .phase(Phase::Grant)
}

fn cancelled() -> Failure {
    Failure::new(Reason::Cancelled, Side::Source, "cancelled on request")
}

fn renounced() -> Failure {
    let text = "the destination has given the migration up and will never run the container";
    Failure::new(Reason::Failed, Side::Destination, text)
        .hint("the container runs on at the source; the destination's log and history say why")
        .retryable()
}

fn link_lost(why: &str) -> Failure {
    Failure::new(
        Reason::Unreachable,
        Side::Source,
        format!("the connection to the destination was lost: {why}"),
    )
    .hint("the container runs on at the source; try again when the hosts can reach each other")
    .retryable()
}

fn too_long(phase: Phase) -> Failure {
    let text = format!("the {} phase took longer than its deadline", phase.as_str());
    Failure::new(Reason::Timeout, Side::Source, text)
        .phase(phase)
        .hint("raise limits.phase_timeout_s in transhipd.toml, or look at the destination's log")
        .retryable()
}

fn restarted(phase: Phase) -> Failure {
    Failure::new(Reason::Failed, Side::Source, "the source agent was restarted before the commit")
        .phase(phase)
        .hint("the container runs on at the source; try again")
        .retryable()
}
