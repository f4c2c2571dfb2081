//! The destination agent's state machine: pure. No clock, no sockets, no processes.
//!
//! ```text
//! Idle -> Checking -> Receiving -> Restoring -> Held -> Owning -> Resuming -> Running -> Ended
//!              \__________\____________\_________\
//!                                  Discarding -> Ended
//! ```
//!
//! Rules that hold by construction, and that the tests explore:
//!
//! * `Effect::Resume` is asked for only after `Event::Recorded(Owner)`, which only a Grant starts.
//! * Once held, a lost connection changes nothing: the source is asked, and only its word, Abort
//!   or Grant, ends the hold.
//! * After OWNER nothing here is ever discarded on the word of a peer.

use crate::journal::Record;
use crate::migrate::source::machine::Illegal;
use tranship_proto::handoff::{Handoff, Position, ResumeTimes, Totals};
use tranship_proto::status::{Failure, Phase, Reason, Side};

/// Where the destination is.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Nothing known of the migration yet.
    Idle,
    /// Checking the offer; nothing is touched.
    Checking,
    /// Writing RESERVED.
    Reserving {
        /// What was noticed.
        notices: Vec<String>,
    },
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
    /// OWNER is being flushed.
    Owning,
    /// OWNER is on disk; the container is being let go.
    Resuming,
    /// The container is this host's and runs.
    Running(ResumeTimes),
    /// Removing what was made here.
    Discarding(Failure),
    /// Nothing more to do. `None`: the container is this host's.
    Ended(Option<Failure>),
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The source spoke.
    Peer(Handoff),
    /// The offer is acceptable, with notices; or not.
    Checked(Result<Vec<String>, Failure>),
    /// A record is on disk.
    Recorded(Record),
    /// A record could not be written.
    RecordFailed(Record, Failure),
    /// Receiving failed.
    ReceiveFailed(Failure),
    /// Restored and held, or not.
    Restored(Result<u64, Failure>),
    /// The container was let go, or could not be.
    Resumed(Result<ResumeTimes, Failure>),
    /// The connection is gone.
    LinkLost(String),
    /// There is a connection again.
    LinkUp,
    /// Everything made here is removed.
    Discarded(Option<Failure>),
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
    /// Verify totals and restore up to the hold => `Restored`.
    Restore(Totals),
    /// Let the hold go, open the gate, announce => `Resumed`.
    Resume,
    /// Send to the source; lost when there is no connection.
    Send(Handoff),
    /// Ask the source, also by connecting to it => its answer.
    Ask,
    /// Remove everything made here => `Discarded`.
    Discard,
    /// Done.
    Finish(Option<Failure>),
}

type Step = Result<(State, Vec<Effect>), Illegal>;

impl State {
    /// The phase this state belongs to, for status.
    pub fn phase(&self) -> Phase {
        match self {
            State::Idle | State::Checking | State::Reserving { .. } => Phase::Reserve,
            State::Receiving => Phase::Stage,
            State::Restoring | State::Preparing { .. } | State::Held { .. } => Phase::Prepare,
            State::Owning | State::Resuming => Phase::Grant,
            State::Running(_) | State::Ended(None) => Phase::Retire,
            State::Discarding(f) | State::Ended(Some(f)) => f.phase.unwrap_or(Phase::Reserve),
        }
    }

    /// What to answer when the source asks where this side is.
    pub fn position(&self) -> Position {
        match self {
            State::Idle => Position::Unknown,
            State::Held { .. } | State::Owning => Position::Held,
            State::Resuming | State::Running(_) | State::Ended(None) => Position::Owner,
            State::Discarding(_) | State::Ended(Some(_)) => Position::Ended,
            _ => Position::BeforeCommit,
        }
    }

    /// The state in which an agent finds a migration whose last record is `record`.
    ///
    /// It is to be stepped with [`Event::Restarted`].
    pub fn recovered(record: Record) -> State {
        match record {
            Record::Prepared => State::Held { restore_us: 0 },
            Record::Owner => State::Resuming,
            Record::Closed => State::Ended(None),
            Record::Discarded => State::Ended(Some(restarted())),
            _ => State::Receiving,
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
            // Forward.
            (S::Idle, E::Peer(Handoff::Reserve(_))) => Ok((S::Checking, vec![X::Check])),
            (S::Checking, E::Checked(Ok(notices))) => {
                Ok((S::Reserving { notices }, vec![X::Record(Record::Reserved)]))
            }
            (S::Checking, E::Checked(Err(f))) => {
                // Nothing was touched: there is nothing to discard or to record.
                let f = f.phase(Phase::Reserve);
                Ok((
                    S::Ended(Some(f.clone())),
                    vec![X::Send(Handoff::Refused(f.clone())), X::Finish(Some(f))],
                ))
            }
            (S::Reserving { notices }, E::Recorded(Record::Reserved)) => {
                let reply = Handoff::Reserved { lease_ms: 0, notices };
                Ok((S::Receiving, vec![X::Receive, X::Send(reply)]))
            }
            (s @ S::Receiving, E::Peer(Handoff::Frozen)) => Ok((s, vec![])),
            (S::Receiving, E::Peer(Handoff::Prepare(totals))) => Ok((S::Restoring, vec![X::Restore(totals)])),
            (S::Restoring, E::Restored(Ok(restore_us))) => {
                Ok((S::Preparing { restore_us }, vec![X::Record(Record::Prepared)]))
            }
            (S::Preparing { restore_us }, E::Recorded(Record::Prepared)) => {
                Ok((S::Held { restore_us }, vec![X::Send(Handoff::Prepared { restore_us })]))
            }

            // The grant. Its repeats are answered from the state reached.
            (S::Held { .. }, E::Peer(Handoff::Grant | Handoff::Position(Position::Released))) => {
                Ok((S::Owning, vec![X::Record(Record::Owner)]))
            }
            (S::Owning, E::Recorded(Record::Owner)) => Ok((S::Resuming, vec![X::Resume])),
            (S::Owning, E::RecordFailed(Record::Owner, _)) => {
                // Not the owner: stay held. The source repeats the grant.
                Ok((S::Held { restore_us: 0 }, vec![]))
            }
            (s @ (S::Owning | S::Resuming), E::Peer(Handoff::Grant)) => Ok((s, vec![])),
            (S::Resuming, E::Resumed(Ok(times))) => {
                Ok((S::Running(times.clone()), vec![X::Send(Handoff::Running(times))]))
            }
            (S::Resuming, E::Resumed(Err(f))) => {
                // The container is this host's, and it does not run: say so, keep everything.
                let f = Failure { reason: Reason::InDoubt, ..f }.phase(Phase::Grant);
                Ok((S::Resuming, vec![X::Finish(Some(f))]))
            }
            (S::Running(times), E::Peer(Handoff::Grant) | E::LinkUp) => {
                Ok((S::Running(times.clone()), vec![X::Send(Handoff::Running(times))]))
            }
            (S::Running(times), E::Peer(Handoff::Retired)) => {
                Ok((S::Running(times), vec![X::Record(Record::Closed)]))
            }
            (S::Running(_), E::Recorded(Record::Closed)) => {
                Ok((S::Ended(None), vec![X::Send(Handoff::Closed), X::Finish(None)]))
            }
            (s @ S::Ended(None), E::Peer(Handoff::Retired)) => Ok((s, vec![X::Send(Handoff::Closed)])),
            (s @ S::Ended(None), E::Peer(Handoff::Grant)) => {
                Ok((s, vec![X::Send(Handoff::Running(ResumeTimes::default()))]))
            }

            // Questions and answers.
            (s, E::Peer(Handoff::Query)) => {
                let position = s.position();
                Ok((s, vec![X::Send(Handoff::Position(position))]))
            }
            (s @ S::Held { .. }, E::Peer(Handoff::Position(Position::BeforeCommit))) => Ok((s, vec![])),
            (S::Held { .. }, E::Peer(Handoff::Position(Position::Ended | Position::Unknown))) => {
                Ok(discard(gone()))
            }

            // Held: only the source's word counts.
            (s @ S::Held { .. }, E::LinkLost(_) | E::Restarted) => Ok((s, vec![X::Ask])),
            (s @ S::Held { restore_us }, E::LinkUp | E::Peer(Handoff::Prepare(_))) => {
                Ok((s, vec![X::Send(Handoff::Prepared { restore_us })]))
            }
            (S::Held { .. }, E::Peer(Handoff::Abort(f))) => Ok(discard(f)),

            // Back, before the hold is on disk.
            (S::Idle, E::Peer(Handoff::Abort(_))) => Ok((S::Idle, vec![X::Send(Handoff::Aborted)])),
            (
                S::Checking | S::Reserving { .. } | S::Receiving | S::Restoring | S::Preparing { .. },
                E::Peer(Handoff::Abort(f)),
            ) => Ok(discard(f)),
            (S::Checking | S::Reserving { .. } | S::Receiving | S::Restoring, E::LinkLost(why)) => {
                Ok(discard(lost(&why)))
            }
            // PREPARED may be on disk: from here on the source must be asked.
            (s @ S::Preparing { .. }, E::LinkLost(_)) => Ok((s, vec![])),
            (S::Receiving, E::ReceiveFailed(f)) => {
                let f = f.phase(Phase::Copy);
                Ok((S::Discarding(f.clone()), vec![X::Send(Handoff::Abort(f)), X::Discard]))
            }
            (S::Restoring, E::Restored(Err(f)) | E::ReceiveFailed(f)) => Ok(refuse(f, Phase::Prepare)),
            (S::Reserving { .. }, E::RecordFailed(Record::Reserved, f)) => Ok(refuse(f, Phase::Reserve)),
            (S::Preparing { .. }, E::RecordFailed(Record::Prepared, f)) => Ok(refuse(f, Phase::Prepare)),
            (S::Receiving | S::Restoring | S::Reserving { .. }, E::Restarted) => Ok(discard(restarted())),
            (S::Resuming, E::Restarted) => Ok((S::Resuming, vec![X::Resume])),
            (S::Discarding(f), E::Discarded(None)) => {
                Ok((S::Discarding(f), vec![X::Record(Record::Discarded)]))
            }
            (S::Discarding(mut f), E::Discarded(Some(second))) => {
                f.message = format!("{}; and cleaning up failed: {}", f.message, second.message);
                Ok((S::Discarding(f), vec![X::Record(Record::Discarded)]))
            }
            (S::Discarding(f), E::Recorded(Record::Discarded) | E::RecordFailed(Record::Discarded, _)) => {
                Ok((S::Ended(Some(f.clone())), vec![X::Send(Handoff::Aborted), X::Finish(Some(f))]))
            }
            (s @ S::Ended(Some(_)), E::Peer(Handoff::Abort(_))) => Ok((s, vec![X::Send(Handoff::Aborted)])),
            (s @ S::Ended(Some(_)), E::Peer(Handoff::Prepare(_) | Handoff::Grant)) => {
                let position = s.position();
                Ok((s, vec![X::Send(Handoff::Position(position))]))
            }
            (s @ (S::Discarding(_) | S::Ended(_)), _) => Ok((s, vec![])),

            // After the hold is decided, links come and go, and words come late.
            (
                s @ (S::Owning | S::Resuming | S::Running(_)),
                E::LinkLost(_) | E::LinkUp | E::RecordFailed(..) | E::Restarted | E::Peer(_),
            ) => Ok((s, vec![])),
            (s, E::LinkUp | E::Peer(Handoff::Reserve(_) | Handoff::Position(_))) => Ok((s, vec![])),
            // A failure that comes after the state has moved on is the state's own to report.
            (s, E::ReceiveFailed(_)) => Ok((s, vec![])),
            (s, e) => Err(illegal(&s, &e)),
        }
    }
}

fn discard(failure: Failure) -> (State, Vec<Effect>) {
    (State::Discarding(failure), vec![Effect::Discard])
}

fn refuse(failure: Failure, phase: Phase) -> (State, Vec<Effect>) {
    let f = failure.phase(phase);
    (State::Discarding(f.clone()), vec![Effect::Send(Handoff::Refused(f)), Effect::Discard])
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

fn restarted() -> Failure {
    Failure::new(Reason::Failed, Side::Destination, "the destination agent was restarted before the commit")
        .retryable()
}
