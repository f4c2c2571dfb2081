//! The source agent's state machine: pure. No clock, no sockets, no processes.
//!
//! ```text
//! Reserving -> Staging -> Freezing -> Copying -> Preparing -> Committing | Granting -> Retiring -> Closing -> Ended
//!     \___________\__________\__________\___________/                    |
//!                        RollingBack -> Ended                 RELEASED is on disk:
//!                                                                 only forward
//! ```
//!
//! Rules that hold by construction, and that the tests explore:
//!
//! * `Effect::Undo` (thaw, unfence) is never asked for once `Record::Released` may be on disk: a
//!   failed *write* of it counts as written, because its bytes may have reached the disk.
//! * `Handoff::Grant` is sent only after `Event::Recorded(Released)`.
//! * `Effect::Retire` follows only the destination's word that it runs.
//! * A cancel is a request: honoured before the commit, answered "too late" after it.

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
    /// The destination restores.
    Preparing,
    /// RELEASED is being flushed.
    Committing,
    /// RELEASED is on disk; the destination is to say that it runs.
    Granting,
    /// Removing the copy here.
    Retiring(ResumeTimes),
    /// Waiting for the destination's last word.
    Closing,
    /// Waiting for a running step to stop before going back.
    Stopping(Failure),
    /// Going back.
    RollingBack(Failure),
    /// Nothing more to do. `None`: the container is the destination's.
    Ended(Option<Failure>),
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The request was accepted and recorded.
    Start,
    /// The step that was asked for is done.
    StepDone,
    /// Copied, with what the destination must have.
    Copied(Totals),
    /// The step failed; what it changed so far is still there.
    StepFailed(Failure),
    /// A record is on disk.
    Recorded(Record),
    /// A record could not be written.
    RecordFailed(Record, Failure),
    /// The destination spoke.
    Peer(Handoff),
    /// The connection is gone.
    LinkLost(String),
    /// There is a connection again (only asked for after commit).
    LinkUp,
    /// Somebody asks to cancel.
    Cancel,
    /// The phase took too long.
    Deadline,
    /// What was thawed and unfenced is so again.
    Undone(Option<Failure>),
    /// The agent starts again and finds this migration in its journal.
    Restarted,
}

/// What is to be done. The driver reports each numbered with `=>` by the event named.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Flush a record => `Recorded` or `RecordFailed`.
    Record(Record),
    /// Scan the container, connect, send the offer => `StepFailed`, or the destination's answer.
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
    /// Thaw, unfence, unlock, remove temporary data => `Undone`.
    Undo,
    /// Kill the frozen copy while fenced, remove it => `StepDone` or `StepFailed`.
    Retire,
    /// Keep trying to connect => `LinkUp`.
    Reconnect,
    /// Tell whoever watches that a phase began.
    Enter(Phase),
    /// Answer a cancel with "too late".
    TooLate,
    /// Done: report, free what is held in memory.
    Finish(Option<Failure>),
}

/// An event that cannot happen in a state.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("event {event} is not possible in state {state}")]
pub struct Illegal {
    /// The state.
    pub state: String,
    /// The event.
    pub event: String,
}

type Step = Result<(State, Vec<Effect>), Illegal>;

fn cancelled() -> Failure {
    Failure::new(Reason::Cancelled, Side::Source, "cancelled on request")
}

impl State {
    /// The phase this state belongs to.
    pub fn phase(&self) -> Phase {
        match self {
            State::Reserving => Phase::Reserve,
            State::Staging => Phase::Stage,
            State::Freezing => Phase::Freeze,
            State::Copying => Phase::Copy,
            State::Preparing => Phase::Prepare,
            State::Committing => Phase::Commit,
            State::Granting => Phase::Grant,
            State::Retiring(_) | State::Closing | State::Ended(None) => Phase::Retire,
            State::Stopping(f) | State::RollingBack(f) | State::Ended(Some(f)) => {
                f.phase.unwrap_or(Phase::Reserve)
            }
        }
    }

    /// Whether RELEASED may be on disk.
    pub fn committed(&self) -> bool {
        matches!(
            self,
            State::Committing | State::Granting | State::Retiring(_) | State::Closing | State::Ended(None)
        )
    }

    /// What to answer when the destination asks where this side is.
    pub fn position(&self) -> Position {
        match self {
            State::Committing => Position::BeforeCommit,
            s if s.committed() => Position::Released,
            State::Ended(_) | State::RollingBack(_) | State::Stopping(_) => Position::Ended,
            _ => Position::BeforeCommit,
        }
    }

    /// The state in which an agent finds a migration whose last record is `record`.
    ///
    /// It is to be stepped with [`Event::Restarted`].
    pub fn recovered(record: Record) -> State {
        match record {
            Record::Released => State::Granting,
            Record::Retired => State::Closing,
            Record::Closed => State::Ended(None),
            Record::RolledBack => State::Ended(Some(restarted(Phase::Reserve))),
            Record::Frozen => State::Freezing,
            _ => State::Reserving,
        }
    }

    /// The next state and what is to be done, in order.
    pub fn step(self, event: Event) -> Step {
        use Effect as X;
        use Event as E;
        use State as S;
        let illegal = |state: &State, event: &Event| Illegal {
            state: format!("{state:?}"),
            event: format!("{event:?}"),
        };
        match (self, event) {
            // Forward, before commit.
            (S::Reserving, E::Start) => Ok((S::Reserving, vec![X::Enter(Phase::Reserve), X::Reserve])),
            (S::Reserving, E::Peer(Handoff::Reserved { .. })) => {
                Ok((S::Staging, vec![X::Enter(Phase::Stage), X::Stage]))
            }
            (S::Reserving, E::Peer(Handoff::Refused(f))) => Ok(roll_back(f, Phase::Reserve)),
            (S::Staging, E::StepDone) => {
                Ok((S::Freezing, vec![X::Enter(Phase::Freeze), X::Record(Record::Frozen)]))
            }
            (S::Freezing, E::Recorded(Record::Frozen)) => Ok((S::Freezing, vec![X::Freeze])),
            (S::Freezing, E::StepDone) => {
                Ok((S::Copying, vec![X::Send(Handoff::Frozen), X::Enter(Phase::Copy), X::Copy]))
            }
            (S::Copying, E::Copied(totals)) => {
                Ok((S::Preparing, vec![X::Enter(Phase::Prepare), X::Send(Handoff::Prepare(totals))]))
            }
            (S::Preparing, E::Peer(Handoff::Prepared { .. })) => {
                Ok((S::Committing, vec![X::Enter(Phase::Commit), X::Record(Record::Released)]))
            }
            (S::Preparing, E::Peer(Handoff::Refused(f))) => Ok(roll_back(f, Phase::Prepare)),

            // The commit and after it: only forward.
            (S::Committing, E::Recorded(Record::Released)) => {
                Ok((S::Granting, vec![X::Enter(Phase::Grant), X::Send(Handoff::Grant)]))
            }
            (S::Committing, E::RecordFailed(Record::Released, f)) => {
                // Its bytes may be on disk: neither thaw nor grant. A restart reads the truth.
                let f = Failure { reason: Reason::InDoubt, ..f }.phase(Phase::Commit);
                Ok((S::Committing, vec![X::Finish(Some(f))]))
            }
            (S::Granting, E::Peer(Handoff::Running(times))) => {
                Ok((S::Retiring(times), vec![X::Enter(Phase::Retire), X::Retire]))
            }
            (S::Granting, E::LinkUp | E::Deadline | E::Peer(Handoff::Position(Position::Held))) => {
                Ok((S::Granting, vec![X::Send(Handoff::Grant)]))
            }
            (S::Granting, E::Restarted) => Ok((S::Granting, vec![X::Enter(Phase::Grant), X::Reconnect])),
            (s @ (S::Granting | S::Closing), E::LinkLost(_)) => Ok((s, vec![X::Reconnect])),
            (s @ S::Retiring(_), E::StepDone) => {
                let _ = s;
                Ok((S::Closing, vec![X::Record(Record::Retired)]))
            }
            (s @ S::Retiring(_), E::StepFailed(_)) => Ok((s, vec![X::Retire])),
            (S::Closing, E::Recorded(Record::Retired) | E::LinkUp | E::Deadline) => {
                Ok((S::Closing, vec![X::Send(Handoff::Retired)]))
            }
            (S::Closing, E::Restarted) => Ok((S::Closing, vec![X::Reconnect])),
            (S::Closing, E::Peer(Handoff::Closed | Handoff::Position(Position::Unknown))) => {
                Ok((S::Closing, vec![X::Record(Record::Closed)]))
            }
            (S::Closing, E::Recorded(Record::Closed)) => Ok((S::Ended(None), vec![X::Finish(None)])),
            (s @ (S::Closing | S::Retiring(_)), E::Peer(_) | E::RecordFailed(..)) => Ok((s, vec![])),
            (s @ S::Retiring(_), E::LinkLost(_) | E::LinkUp | E::Deadline) => Ok((s, vec![])),
            (s, E::Cancel) if s.committed() => Ok((s, vec![X::TooLate])),

            // Questions are answered from the state reached.
            (s, E::Peer(Handoff::Query)) => {
                let position = s.position();
                Ok((s, vec![X::Send(Handoff::Position(position))]))
            }

            // Back. A step that runs is stopped first: CRIU is never killed in the middle of a dump.
            (s @ (S::Staging | S::Copying), E::Cancel) => Ok(stop(cancelled(), s.phase())),
            (s @ (S::Staging | S::Copying), E::LinkLost(why)) => Ok(stop(link_lost(&why), s.phase())),
            (s @ (S::Staging | S::Copying), E::Peer(Handoff::Abort(f))) => Ok(stop(f, s.phase())),
            (s @ (S::Staging | S::Copying), E::Deadline) => Ok(stop(too_long(s.phase()), s.phase())),
            (S::Freezing, E::Cancel) => Ok(stop(cancelled(), Phase::Freeze)),
            (S::Freezing, E::LinkLost(why)) => Ok(stop(link_lost(&why), Phase::Freeze)),
            (S::Freezing, E::Peer(Handoff::Abort(f))) => Ok(stop(f, Phase::Freeze)),
            (S::Stopping(f), E::StepDone | E::Copied(_) | E::StepFailed(_) | E::RecordFailed(..)) => {
                let phase = f.phase.unwrap_or(Phase::Stage);
                Ok(roll_back(f, phase))
            }
            // FROZEN was being written when the stop came: nothing is frozen yet.
            (S::Stopping(f), E::Recorded(Record::Frozen)) => Ok(roll_back(f, Phase::Freeze)),
            (s @ S::Stopping(_), _) => Ok((s, vec![])),
            (s @ (S::Reserving | S::Staging | S::Freezing | S::Copying), E::StepFailed(f)) => {
                let phase = s.phase();
                Ok(roll_back(f, phase))
            }
            (S::Freezing, E::RecordFailed(Record::Frozen, f)) => Ok(roll_back(f, Phase::Freeze)),
            (s @ (S::Reserving | S::Preparing), E::Cancel) => {
                let phase = s.phase();
                Ok(roll_back(cancelled(), phase))
            }
            (s @ (S::Reserving | S::Preparing), E::LinkLost(why)) => {
                let phase = s.phase();
                Ok(roll_back(link_lost(&why), phase))
            }
            (s @ (S::Reserving | S::Preparing), E::Peer(Handoff::Abort(f))) => {
                let phase = s.phase();
                Ok(roll_back(f, phase))
            }
            (s @ (S::Reserving | S::Preparing | S::Freezing), E::Deadline) => {
                let phase = s.phase();
                Ok(roll_back(too_long(phase), phase))
            }
            (s @ (S::Reserving | S::Staging | S::Freezing | S::Copying | S::Preparing), E::Restarted) => {
                let phase = s.phase();
                Ok(roll_back(restarted(phase), phase))
            }
            (S::RollingBack(f), E::Undone(None)) => {
                Ok((S::RollingBack(f), vec![X::Record(Record::RolledBack)]))
            }
            (S::RollingBack(mut f), E::Undone(Some(second))) => {
                f.message = format!("{}; and going back failed: {}", f.message, second.message);
                if f.hint.is_none() {
                    f.hint = second.hint;
                }
                Ok((S::RollingBack(f), vec![X::Record(Record::RolledBack)]))
            }
            (S::RollingBack(f), E::Recorded(Record::RolledBack) | E::RecordFailed(Record::RolledBack, _)) => {
                Ok((S::Ended(Some(f.clone())), vec![X::Finish(Some(f))]))
            }
            (s @ (S::RollingBack(_) | S::Ended(_)), _) => Ok((s, vec![])),

            // Late repeats of what the destination has said before.
            (s, E::Peer(Handoff::Reserved { .. } | Handoff::Prepared { .. } | Handoff::Position(_))) => {
                Ok((s, vec![]))
            }
            (s @ S::Committing, E::LinkUp | E::LinkLost(_) | E::Deadline) => Ok((s, vec![])),
            (s, e) => Err(illegal(&s, &e)),
        }
    }
}

/// Going back: the container runs again before anything else is told or written.
fn roll_back(failure: Failure, phase: Phase) -> (State, Vec<Effect>) {
    let failure = failure.phase(phase);
    (State::RollingBack(failure.clone()), vec![Effect::Undo, Effect::Send(Handoff::Abort(failure))])
}

fn stop(failure: Failure, phase: Phase) -> (State, Vec<Effect>) {
    (State::Stopping(failure.phase(phase)), vec![Effect::StopStep])
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
        .hint("raise limits.phase_timeout_s in transhipd.toml, or look at the destination's log")
        .retryable()
}

fn restarted(phase: Phase) -> Failure {
    Failure::new(Reason::Failed, Side::Source, "the source agent was restarted before the commit")
        .phase(phase)
        .hint("the container runs on at the source; try again")
        .retryable()
}
