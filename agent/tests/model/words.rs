//! The machines' vocabulary as small numbers, so that a whole world fits into a few dozen bytes.
//!
//! Texts of failures, totals and times do not matter to the order of steps: each is one fixed
//! value here, and states are compared after their failures were replaced by it.

use tranship_agent::journal::Record;
use tranship_agent::migrate::destination::machine::{self as t, Acceptance, By, Ceded, Decision};
use tranship_agent::migrate::source::machine as s;
use tranship_proto::handoff::{Handoff, MemoryMode, Offer, Position, ResumeTimes, Totals};
use tranship_proto::status::{Failure, Reason, Side};

/// Which agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    S,
    T,
}

impl Who {
    pub fn other(self) -> Self {
        match self {
            Who::S => Who::T,
            Who::T => Who::S,
        }
    }
}

/// A message without its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Msg {
    Reserve,
    Reserved,
    Refused,
    PassDone,
    Frozen,
    Prepare,
    Prepared,
    Grant,
    Running,
    Retired,
    Closed,
    Abort,
    Aborted,
    Query,
    AtUnknown,
    AtBeforeCommit,
    AtHeld,
    AtReleased,
    AtOwner,
    AtEnded,
    AtTaken,
    AtTakenBack,
}

impl Msg {
    pub const ALL: [Msg; 22] = [
        Msg::Reserve,
        Msg::Reserved,
        Msg::Refused,
        Msg::PassDone,
        Msg::Frozen,
        Msg::Prepare,
        Msg::Prepared,
        Msg::Grant,
        Msg::Running,
        Msg::Retired,
        Msg::Closed,
        Msg::Abort,
        Msg::Aborted,
        Msg::Query,
        Msg::AtUnknown,
        Msg::AtBeforeCommit,
        Msg::AtHeld,
        Msg::AtReleased,
        Msg::AtOwner,
        Msg::AtEnded,
        Msg::AtTaken,
        Msg::AtTakenBack,
    ];

    pub fn bit(self) -> u32 {
        1 << (self as u32)
    }

    pub fn of(handoff: &Handoff) -> Self {
        match handoff {
            Handoff::Reserve(_) => Msg::Reserve,
            Handoff::Reserved { .. } => Msg::Reserved,
            Handoff::Refused(_) => Msg::Refused,
            // All pass by the machines.
            Handoff::PassDone { .. } | Handoff::RoundDone { .. } | Handoff::Holding | Handoff::Packets(_) => {
                Msg::PassDone
            }
            Handoff::Frozen => Msg::Frozen,
            Handoff::Prepare(_) => Msg::Prepare,
            Handoff::Prepared { .. } => Msg::Prepared,
            Handoff::Grant => Msg::Grant,
            Handoff::Running(_) => Msg::Running,
            Handoff::Retired => Msg::Retired,
            Handoff::Closed => Msg::Closed,
            Handoff::Abort(_) => Msg::Abort,
            Handoff::Aborted => Msg::Aborted,
            Handoff::Query => Msg::Query,
            Handoff::Position(Position::Unknown) => Msg::AtUnknown,
            Handoff::Position(Position::BeforeCommit) => Msg::AtBeforeCommit,
            Handoff::Position(Position::Held) => Msg::AtHeld,
            Handoff::Position(Position::Released) => Msg::AtReleased,
            Handoff::Position(Position::Owner) => Msg::AtOwner,
            Handoff::Position(Position::Ended) => Msg::AtEnded,
            Handoff::Position(Position::Taken) => Msg::AtTaken,
            Handoff::Position(Position::TakenBack) => Msg::AtTakenBack,
        }
    }

    pub fn whole(self) -> Handoff {
        match self {
            Msg::Reserve => Handoff::Reserve(Box::new(offer())),
            Msg::Reserved => {
                Handoff::Reserved { lease_ms: 0, notices: Vec::new(), memory: MemoryMode::Plain }
            }
            Msg::Refused => Handoff::Refused(failure()),
            Msg::PassDone => Handoff::PassDone { index: 0, pass: 1 },
            Msg::Frozen => Handoff::Frozen,
            Msg::Prepare => Handoff::Prepare(totals()),
            Msg::Prepared => Handoff::Prepared { restore_us: 0 },
            Msg::Grant => Handoff::Grant,
            Msg::Running => Handoff::Running(ResumeTimes::default()),
            Msg::Retired => Handoff::Retired,
            Msg::Closed => Handoff::Closed,
            Msg::Abort => Handoff::Abort(failure()),
            Msg::Aborted => Handoff::Aborted,
            Msg::Query => Handoff::Query,
            Msg::AtUnknown => Handoff::Position(Position::Unknown),
            Msg::AtBeforeCommit => Handoff::Position(Position::BeforeCommit),
            Msg::AtHeld => Handoff::Position(Position::Held),
            Msg::AtReleased => Handoff::Position(Position::Released),
            Msg::AtOwner => Handoff::Position(Position::Owner),
            Msg::AtEnded => Handoff::Position(Position::Ended),
            Msg::AtTaken => Handoff::Position(Position::Taken),
            Msg::AtTakenBack => Handoff::Position(Position::TakenBack),
        }
    }
}

fn offer() -> Offer {
    Offer {
        container: "web".parse().unwrap(),
        source: "host-a".parse().unwrap(),
        container_json: Vec::new(),
        network_json: Vec::new(),
        trees: Vec::new(),
        memory_bytes: 0,
        criu_version: String::new(),
        kernel: String::new(),
        arch: String::new(),
        cpu_features: Vec::new(),
        runtime: String::new(),
        memory: MemoryMode::Plain,
        dry_run: false,
    }
}

fn accepted() -> Acceptance {
    Acceptance { notices: Vec::new(), memory: MemoryMode::Plain }
}

pub fn totals() -> Totals {
    Totals { image_files: 0, image_bytes: 0, tree_passes: Vec::new(), memory: None }
}

pub fn failure() -> Failure {
    Failure::new(Reason::Failed, Side::Source, "x")
}

/// A journal record; 0 is "none".
/// RENOUNCED is left out: no machine asks for it, and what it guards against is a liar.
pub const RECORDS: [Record; 14] = [
    Record::Accepted,
    Record::Frozen,
    Record::Released,
    Record::Revoked,
    Record::Retired,
    Record::RolledBack,
    Record::Overruled,
    Record::TakenBack,
    Record::Reserved,
    Record::Prepared,
    Record::Owner,
    Record::Taken,
    Record::Discarded,
    Record::Closed,
];

pub fn record_code(record: Record) -> u8 {
    u8::try_from(RECORDS.iter().position(|r| *r == record).unwrap()).unwrap() + 1
}

pub fn record_of(code: u8) -> Option<Record> {
    code.checked_sub(1).map(|i| RECORDS[usize::from(i)])
}

/// A step that takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    Reserve = 1,
    Stage,
    Freeze,
    Copy,
    Undo,
    Retire,
    Check,
    Restore,
    Reclaim,
    Resume,
    Discard,
    Yield,
}

/// What is left to do of a machine's effects, those that only tell people left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Todo {
    Record(Record),
    Op(Op),
    Send(Msg),
    Connect,
    AgainRecord(Record),
    AgainOp(Op),
}

/// Something that a machine is told, without its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ev {
    Start,
    Offered,
    StepDone,
    Copied,
    StepFailed,
    Recorded(Record),
    RecordFailed(Record),
    Peer(Msg),
    LinkLost,
    LinkUp,
    Cancel,
    Deadline,
    Repeat,
    Undone,
    UndoFailed,
    Restarted,
    Checked,
    CheckFailed,
    ReceiveFailed,
    Restored,
    RestoreFailed,
    HoldLost,
    Resumed,
    ResumeFailed,
    NeverRan,
    Discarded,
    DiscardFailed,
    /// An operator says that the other side's host is dead.
    Resolved,
    /// An operator gives up what the destination cannot resume.
    GivenUp,
}

impl Ev {
    /// Codes are below this.
    pub const CODES: usize = 96;

    /// A number for every event.
    pub fn code(self) -> usize {
        match self {
            Ev::Peer(msg) => 64 + msg as usize,
            Ev::LinkLost => 86,
            Ev::LinkUp => 87,
            Ev::Cancel => 88,
            Ev::Deadline => 89,
            Ev::Repeat => 90,
            Ev::Restarted => 91,
            Ev::Start => 92,
            Ev::Resolved => 93,
            Ev::GivenUp => 94,
            outcome => usize::from(super::world::code_of(outcome)),
        }
    }

    /// For the source; `None` for what only a destination is told.
    pub fn source(self) -> Option<s::Event> {
        use s::Event as E;
        Some(match self {
            Ev::Start => E::Start,
            Ev::Offered => E::Offered,
            Ev::StepDone => E::StepDone,
            Ev::Copied => E::Copied(totals()),
            Ev::StepFailed => E::StepFailed(failure()),
            Ev::Recorded(r) => E::Recorded(r),
            Ev::RecordFailed(r) => E::RecordFailed(r, failure()),
            Ev::Peer(m) => E::Peer(m.whole()),
            Ev::LinkLost => E::LinkLost("x".into()),
            Ev::LinkUp => E::LinkUp,
            Ev::Cancel => E::Cancel,
            Ev::Deadline => E::Deadline,
            Ev::Repeat => E::Repeat,
            Ev::Undone => E::Undone(None),
            Ev::UndoFailed => E::UndoFailed(failure()),
            Ev::Restarted => E::Restarted,
            Ev::Resolved => E::Resolved(failure()),
            _ => return None,
        })
    }

    /// For the destination; `None` for what only a source is told.
    pub fn destination(self) -> Option<t::Event> {
        use t::Event as E;
        Some(match self {
            Ev::Recorded(r) => E::Recorded(r),
            Ev::RecordFailed(r) => E::RecordFailed(r, failure()),
            Ev::Peer(m) => E::Peer(m.whole()),
            Ev::LinkLost => E::LinkLost("x".into()),
            Ev::LinkUp => E::LinkUp,
            Ev::Repeat => E::Repeat,
            Ev::Restarted => E::Restarted,
            Ev::Checked => E::Checked(Ok(accepted())),
            Ev::CheckFailed => E::Checked(Err(failure())),
            Ev::ReceiveFailed => E::ReceiveFailed(failure()),
            Ev::Restored => E::Restored(Ok(0)),
            Ev::RestoreFailed => E::Restored(Err(failure())),
            Ev::HoldLost => E::HoldLost(failure()),
            Ev::Resumed => E::Resumed(Ok(ResumeTimes::default())),
            Ev::ResumeFailed => E::Resumed(Err(failure())),
            Ev::NeverRan => E::NeverRan(failure()),
            Ev::Discarded => E::Discarded(None),
            Ev::DiscardFailed => E::DiscardFailed(failure()),
            Ev::Resolved => E::Resolved(Decision::RunHere),
            Ev::GivenUp => E::Resolved(Decision::GiveUp(failure())),
            _ => return None,
        })
    }
}

/// A source state with nothing but its shape.
pub fn plain_source(state: s::State) -> s::State {
    use s::State as S;
    match state {
        S::Preparing(_) => S::Preparing(totals()),
        S::Revoking(_) => S::Revoking(failure()),
        S::Retiring(_) => S::Retiring(ResumeTimes::default()),
        S::Stopping(_) => S::Stopping(failure()),
        S::RollingBack(_) => S::RollingBack(failure()),
        S::Overruling(_) => S::Overruling(failure()),
        S::TakingBack(_) => S::TakingBack(failure()),
        S::TakenBack(_) => S::TakenBack(failure()),
        S::Ended(Some(_)) => S::Ended(Some(failure())),
        other => other,
    }
}

/// A destination state with nothing but its shape.
pub fn plain_destination(state: t::State) -> t::State {
    use t::State as S;
    match state {
        S::Lost(_) => S::Lost(failure()),
        S::Yielding(by, _) => S::Yielding(by, failure()),
        S::Discarding(_) => S::Discarding(failure()),
        S::Ended(Some(_)) => S::Ended(Some(failure())),
        other => other,
    }
}

/// Every state a source can be in, by shape.
pub fn source_states() -> Vec<s::State> {
    use s::State as S;
    vec![
        S::Reserving,
        S::Staging,
        S::Freezing,
        S::Copying,
        S::Preparing(totals()),
        S::Committing,
        S::Revoking(failure()),
        S::Granting,
        S::Retiring(ResumeTimes::default()),
        S::Closing,
        S::Settling,
        S::Stopping(failure()),
        S::RollingBack(failure()),
        S::Overruling(failure()),
        S::TakingBack(failure()),
        S::TakenBack(failure()),
        S::Ended(Some(failure())),
        S::Ended(None),
    ]
}

/// Every state a destination can be in, by shape.
pub fn destination_states() -> Vec<t::State> {
    use t::State as S;
    vec![
        S::Idle,
        S::Checking,
        S::Reserving(accepted()),
        S::Receiving,
        S::Restoring,
        S::Preparing { restore_us: 0 },
        S::Held { restore_us: 0 },
        S::Reclaiming,
        S::Lost(failure()),
        S::Owning(By::Grant),
        S::Owning(By::Operator),
        S::Resuming(By::Grant),
        S::Resuming(By::Operator),
        S::Running(By::Grant, ResumeTimes::default()),
        S::Running(By::Operator, ResumeTimes::default()),
        S::Yielding(Ceded::There, failure()),
        S::Yielding(Ceded::Here, failure()),
        S::Closing(ResumeTimes::default()),
        S::Discarding(failure()),
        S::Ended(Some(failure())),
        S::Ended(None),
    ]
}
