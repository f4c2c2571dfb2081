//! Both machines, each step taken once and remembered.

use super::words::{
    Ev, Msg, Op, Todo, Who, destination_states, plain_destination, plain_source, source_states,
};
use std::rc::Rc;
use tranship_agent::journal::Record;
use tranship_agent::migrate::destination::machine as t;
use tranship_agent::migrate::source::machine as s;

/// A deliberate mistake, to see that the properties notice it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The machines as they are.
    None,
    /// RELEASED is reported as written while it is still on its way to the disk.
    ReleasedNotFlushed,
    /// The source thaws when the link is lost after RELEASED.
    ThawAfterReleased,
    /// The source thaws when RELEASED could not be written.
    ThawOnFailedRelease,
    /// OWNER is reported as written while it is still on its way to the disk.
    OwnerNotFlushed,
    /// DISCARDED is reported as written while it is still on its way to the disk.
    DiscardedNotFlushed,
    /// The destination says that it runs before it does.
    RunningBeforeResume,
    /// The source removes its copy before the destination runs.
    RetireOnGrant,
    /// The destination says that it will never run before that is on disk.
    AbortedBeforeRecord,
    /// The destination restores again although OWNER is on disk.
    RestoreAfterOwner,
    /// The destination gives up by itself a copy that may have run.
    GiveUpWhatMayHaveRun,
    /// The destination does not ask again when the link was lost while PREPARED was written.
    NeverAsk,
    /// The source does not say again that it is gone.
    RetiredOnce,
    /// The source ends without ROLLED_BACK on disk.
    EndWithoutRecord,
    /// By an operator's word the source thaws before OVERRULED is on disk.
    OverruledNotFlushed,
    /// By an operator's word the destination resumes before TAKEN is on disk.
    TakenNotFlushed,
    /// A destination that was declared dead keeps what it has.
    NeverYield,
    /// A source that was declared dead and has gone back keeps what it has.
    NeverObey,
    /// By an operator's word the source thaws at once.
    ThawBeforeOverruled,
    /// By an operator's word the destination resumes at once.
    ResumeBeforeTaken,
}

/// A step's result.
#[derive(Debug, Clone)]
pub enum Stepped {
    /// A driver must not report this event here.
    Illegal,
    /// The next state, and what is to be done.
    To {
        /// Number of the state.
        state: u8,
        /// Effects that do something.
        todo: Vec<Todo>,
        /// "Too late" was answered.
        too_late: bool,
        /// The driver is done.
        finished: bool,
    },
}

/// What the model has to know of a state.
#[derive(Debug, Clone)]
pub struct Shape {
    /// As printed.
    pub text: String,
    /// Nothing more to do.
    pub ended: bool,
    /// Source: a cancel comes too late. Destination: unused.
    pub released: bool,
    /// Source: on the way back. Destination: unused.
    pub backward: bool,
    /// Before the commit of the source; a phase with a deadline.
    pub timed: bool,
}

/// Both machines, compiled as far as they were used.
pub struct Machines {
    pub mutant: Mutant,
    s_states: Vec<s::State>,
    t_states: Vec<t::State>,
    pub s_shapes: Vec<Shape>,
    pub t_shapes: Vec<Shape>,
    /// Messages that a side never reacts to, whatever its state: source's, destination's.
    deaf: [u32; 2],
    // By side, state and event: looked up for every move, so not a map.
    steps: Vec<Option<Rc<Stepped>>>,
}

const STATES: usize = 32;

impl Machines {
    pub fn new(mutant: Mutant) -> Self {
        let mut machines = Self {
            mutant,
            s_states: Vec::new(),
            t_states: Vec::new(),
            s_shapes: Vec::new(),
            t_shapes: Vec::new(),
            deaf: [u32::MAX; 2],
            steps: vec![None; 2 * STATES * Ev::CODES],
        };
        let sources: Vec<u8> = source_states().into_iter().map(|s| machines.source(s)).collect();
        let destinations: Vec<u8> =
            destination_states().into_iter().map(|s| machines.destination(s)).collect();
        for msg in Msg::ALL {
            let all = [(Who::S, &sources), (Who::T, &destinations)];
            for (deaf, (who, states)) in all.into_iter().enumerate() {
                if states.iter().any(|s| machines.reacts(who, *s, msg)) {
                    machines.deaf[deaf] &= !msg.bit();
                }
            }
        }
        machines
    }

    fn reacts(&mut self, who: Who, state: u8, msg: Msg) -> bool {
        match &*self.step(who, state, Ev::Peer(msg)) {
            Stepped::Illegal => true,
            Stepped::To { state: next, todo, .. } => *next != state || !todo.is_empty(),
        }
    }

    /// Whether `who` may ever react to a message.
    pub fn hears(&self, who: Who, msg: Msg) -> bool {
        self.deaf[if who == Who::S { 0 } else { 1 }] & msg.bit() == 0
    }

    pub fn shape(&self, who: Who, state: u8) -> &Shape {
        match who {
            Who::S => &self.s_shapes[usize::from(state)],
            Who::T => &self.t_shapes[usize::from(state)],
        }
    }

    pub fn source(&mut self, state: s::State) -> u8 {
        use s::State as S;
        let state = plain_source(state);
        if let Some(i) = self.s_states.iter().position(|known| *known == state) {
            return u8::try_from(i).unwrap();
        }
        self.s_shapes.push(Shape {
            text: shorten(&format!("{state:?}")),
            ended: state.ended(),
            released: matches!(
                state,
                S::Granting
                    | S::Retiring(_)
                    | S::Closing
                    | S::Settling
                    | S::Ended(None)
                    | S::Overruling(_)
                    | S::TakingBack(_)
                    | S::TakenBack(_)
            ),
            backward: matches!(state, S::Stopping(_) | S::RollingBack(_) | S::Ended(Some(_))),
            timed: matches!(state, S::Reserving | S::Staging | S::Freezing | S::Copying | S::Preparing(_)),
        });
        self.s_states.push(state);
        u8::try_from(self.s_states.len() - 1).unwrap()
    }

    pub fn destination(&mut self, state: t::State) -> u8 {
        let state = plain_destination(state);
        if let Some(i) = self.t_states.iter().position(|known| *known == state) {
            return u8::try_from(i).unwrap();
        }
        self.t_shapes.push(Shape {
            text: shorten(&format!("{state:?}")),
            ended: matches!(state, t::State::Ended(_)),
            released: false,
            backward: false,
            timed: matches!(state, t::State::Receiving | t::State::Restoring),
        });
        self.t_states.push(state);
        u8::try_from(self.t_states.len() - 1).unwrap()
    }

    /// The state after a restart, and whether the machine is told of it.
    pub fn recovered(&mut self, who: Who, last: Option<Record>) -> (u8, bool) {
        match (who, last) {
            (Who::S, Some(last)) => {
                let state = s::State::recovered(last);
                let told = !state.ended();
                (self.source(state), told)
            }
            (Who::T, Some(last)) => {
                let state = t::State::recovered(last);
                let told = !matches!(state, t::State::Ended(_));
                (self.destination(state), told)
            }
            (Who::S, None) => unreachable!("a source begins with ACCEPTED on disk"),
            (Who::T, None) => (self.destination(t::State::Idle), false),
        }
    }

    pub fn step(&mut self, who: Who, state: u8, event: Ev) -> Rc<Stepped> {
        let side = if who == Who::S { 0 } else { 1 };
        let at = (side * STATES + usize::from(state)) * Ev::CODES + event.code();
        if let Some(known) = &self.steps[at] {
            return known.clone();
        }
        let stepped = Rc::new(match who {
            Who::S => self.step_source(state, event),
            Who::T => self.step_destination(state, event),
        });
        self.steps[at] = Some(stepped.clone());
        stepped
    }

    fn step_source(&mut self, state: u8, event: Ev) -> Stepped {
        use s::{Effect as X, State as S};
        let before = self.s_states[usize::from(state)].clone();
        let stepped = before.clone().step(event.source().expect("an event of the source's"));
        let (mut next, mut effects) = match stepped {
            Ok(ok) => ok,
            Err(_) => return Stepped::Illegal,
        };
        let back = || (S::RollingBack(super::words::failure()), vec![X::Undo]);
        match (self.mutant, &before, event) {
            (Mutant::ThawAfterReleased, S::Granting, Ev::LinkLost)
            | (Mutant::ThawOnFailedRelease, S::Committing, Ev::RecordFailed(_)) => {
                (next, effects) = back();
            }
            (Mutant::RetireOnGrant, S::Committing, Ev::Recorded(_)) => effects.push(X::Retire),
            (Mutant::NeverObey, S::Ended(Some(_)), Ev::Peer(Msg::AtTaken)) => {
                (next, effects) = (before.clone(), vec![]);
            }
            (Mutant::ThawBeforeOverruled, S::Granting, Ev::Resolved) => {
                (next, effects) = (S::TakingBack(super::words::failure()), vec![X::Undo]);
            }
            (Mutant::RetiredOnce, S::Closing, Ev::Repeat | Ev::LinkUp) => effects.clear(),
            (Mutant::EndWithoutRecord, S::RollingBack(f), Ev::RecordFailed(Record::RolledBack)) => {
                (next, effects) = (S::Ended(Some(f.clone())), vec![X::Finish(Some(f.clone()))]);
            }
            _ => {}
        }
        let too_late = effects.iter().any(|e| matches!(e, X::TooLate));
        let finished = effects.iter().any(|e| matches!(e, X::Finish(_)));
        let todo = effects.into_iter().filter_map(source_todo).collect();
        Stepped::To { state: self.source(next), todo, too_late, finished }
    }

    fn step_destination(&mut self, state: u8, event: Ev) -> Stepped {
        use t::{Effect as X, State as S};
        let before = self.t_states[usize::from(state)].clone();
        let stepped = before.clone().step(event.destination().expect("an event of the destination's"));
        let (mut next, mut effects) = match stepped {
            Ok(ok) => ok,
            Err(_) => return Stepped::Illegal,
        };
        match (self.mutant, &before, event) {
            (Mutant::RunningBeforeResume, S::Owning(_), Ev::Recorded(_)) => {
                effects.insert(0, X::Send(Msg::Running.whole()));
            }
            (Mutant::AbortedBeforeRecord, S::Lost(_), Ev::Peer(_)) if matches!(next, S::Discarding(_)) => {
                effects.insert(0, X::Send(Msg::Aborted.whole()));
            }
            (Mutant::RestoreAfterOwner, S::Resuming(_), Ev::Restarted | Ev::ResumeFailed) => {
                (next, effects) = (S::Reclaiming, vec![X::Reclaim]);
            }
            (Mutant::GiveUpWhatMayHaveRun, S::Resuming(t::By::Grant), Ev::ResumeFailed) => {
                (next, effects) = before.clone().step(Ev::NeverRan.destination().unwrap()).unwrap();
            }
            (Mutant::NeverYield, _, Ev::Peer(Msg::AtTakenBack)) => {
                (next, effects) = (before.clone(), vec![]);
            }
            (Mutant::ResumeBeforeTaken, S::Held { .. }, Ev::Resolved) => {
                (next, effects) = (S::Resuming(t::By::Operator), vec![X::Resume]);
            }
            (Mutant::NeverAsk, S::Preparing { .. }, Ev::LinkLost) => effects.clear(),
            _ => {}
        }
        let finished = effects.iter().any(|e| matches!(e, X::Finish(_)));
        let todo = effects.into_iter().filter_map(destination_todo).collect();
        Stepped::To { state: self.destination(next), todo, too_late: false, finished }
    }

    /// Whether a record that was written is on disk.
    pub fn flushed(&self, record: Record) -> bool {
        !matches!(
            (self.mutant, record),
            (Mutant::ReleasedNotFlushed, Record::Released)
                | (Mutant::OwnerNotFlushed, Record::Owner)
                | (Mutant::OverruledNotFlushed, Record::Overruled)
                | (Mutant::TakenNotFlushed, Record::Taken)
                | (Mutant::DiscardedNotFlushed, Record::Discarded)
        )
    }
}

fn shorten(text: &str) -> String {
    text.split(['(', '{']).next().unwrap_or_default().trim().to_owned()
        + if text.contains("Some(") { "(failed)" } else { "" }
}

fn source_todo(effect: s::Effect) -> Option<Todo> {
    use s::Effect as X;
    Some(match effect {
        X::Record(r) => Todo::Record(r),
        X::Reserve => Todo::Op(Op::Reserve),
        X::Stage => Todo::Op(Op::Stage),
        X::Freeze => Todo::Op(Op::Freeze),
        X::Copy => Todo::Op(Op::Copy),
        X::Undo => Todo::Op(Op::Undo),
        X::Retire => Todo::Op(Op::Retire),
        X::Send(m) => Todo::Send(Msg::of(&m)),
        X::Reconnect => Todo::Connect,
        X::Again(effect) => match source_todo(*effect)? {
            Todo::Record(r) => Todo::AgainRecord(r),
            Todo::Op(op) => Todo::AgainOp(op),
            other => panic!("{other:?} is not to be tried again"),
        },
        X::StopStep | X::Enter(_) | X::Doubt(_) | X::TooLate | X::Decided | X::Finish(_) => return None,
    })
}

fn destination_todo(effect: t::Effect) -> Option<Todo> {
    use t::Effect as X;
    Some(match effect {
        X::Check => Todo::Op(Op::Check),
        X::Record(r) => Todo::Record(r),
        X::Restore(_) => Todo::Op(Op::Restore),
        X::Reclaim => Todo::Op(Op::Reclaim),
        X::Resume => Todo::Op(Op::Resume),
        X::Discard => Todo::Op(Op::Discard),
        X::Yield => Todo::Op(Op::Yield),
        X::Send(m) => Todo::Send(Msg::of(&m)),
        X::Ask => Todo::Connect,
        X::Again(effect) => match destination_todo(*effect)? {
            Todo::Record(r) => Todo::AgainRecord(r),
            Todo::Op(op) => Todo::AgainOp(op),
            other => panic!("{other:?} is not to be tried again"),
        },
        // That receiving fails is an event of its own.
        X::Receive | X::HoldPackets | X::Doubt(_) | X::Decided | X::Finish(_) => return None,
    })
}
