//! What can happen next in a world.
//!
//! A machine is told an event, and what it asks for is done at once, in order, with a crash
//! possible after each effect (and, by the crash that is possible anywhere, before the first).
//! Nothing is lost by "at once": starting a step or a timer is seen by nobody, and what is sent
//! stays deliverable. A step's outcome, and a crash before it, after it and half-way through it,
//! are moves of their own.

use super::machines::{Machines, Mutant, Stepped};
use super::words::{Ev, Msg, Op, Todo, Who, record_code, record_of};
use super::world::{Container, Copy, Link, World, Wrong, event_of};
use tranship_agent::journal::Record;

/// What has happened, for the story told of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    Begin,
    Told(Who, Ev),
    /// Told, then crashed after so many effects.
    Cut(Who, Ev, u8),
    /// Told, and the record that was asked for failed; whether its bytes are on disk.
    Failed(Who, Ev, bool),
    Did(Who, Op),
    DidNot(Who, Op),
    /// Reported as failed, but done.
    DidAfterAll(Who, Op),
    Again(Who),
    Connected(Who),
    Crash(Who),
    PowerLoss(Who),
    HoldDies,
    Restart(Who),
}

/// Which misfortunes there are beyond crashes of agents, lost links and failing steps.
#[derive(Debug, Clone, Copy)]
pub struct Misfortunes {
    /// The held process dies, with or without its agent, or its host loses power.
    pub hold_dies: bool,
    /// The source's host loses power.
    pub source_power: bool,
    /// Journal writes fail.
    pub records_fail: bool,
    /// Steps fail.
    pub steps_fail: bool,
    /// Somebody cancels.
    pub cancels: bool,
    /// A running destination's host loses power as well, and operators settle what is in doubt. What
    /// they say is true: a host that is declared dead is down, and what ran or was held there is gone.
    pub operators: bool,
}

impl Misfortunes {
    pub const ALL: Self = Self {
        hold_dies: true,
        source_power: true,
        records_fail: true,
        steps_fail: true,
        cancels: true,
        operators: true,
    };
}

pub type Next = Vec<(Label, World)>;

/// The machines and the rules.
pub struct Model {
    pub machines: Machines,
    pub misfortunes: Misfortunes,
    /// A side that says anything at any time, and does nothing.
    pub hostile: Option<Who>,
    /// What is looked for, as bits of [`Wrong`]; the rest is let pass.
    pub minds: u16,
}

impl Model {
    pub fn new(mutant: Mutant, misfortunes: Misfortunes) -> Self {
        Self { machines: Machines::new(mutant), misfortunes, hostile: None, minds: u16::MAX }
    }

    pub fn begin(&mut self) -> World {
        let s = self.machines.source(tranship_agent::migrate::source::machine::State::Reserving);
        let t = self.machines.destination(tranship_agent::migrate::destination::machine::State::Idle);
        // The driver tells it before it listens to anything else.
        self.told(World::begin(s, t), Who::S, Ev::Start)
    }

    /// Everything that can happen next.
    pub fn next(&mut self, world: &World, out: &mut Next) {
        let from = out.len();
        for who in [Who::S, Who::T] {
            if self.hostile == Some(who) {
                self.anything(world, who, out);
            } else if world.at(who).up {
                self.crashes(world, who, out);
                self.decisions(world, who, out);
                self.outcomes(world, who, out);
                self.ops(world, who, out);
                self.signals(world, who, out);
            } else {
                out.push((Label::Restart(who), self.restart(*world, who)));
            }
        }
        for (_, world) in &mut out[from..] {
            world.check();
            let s = world.s;
            let idle = s.up && s.told_next[0] == 0 && s.ops[0] == 0;
            if idle && world.container == Container::Frozen && self.machines.shape(Who::S, s.state).ended {
                world.fault(Wrong::Forgotten);
            }
            world.wrong &= self.minds;
        }
    }

    fn crashes(&self, world: &World, who: Who, out: &mut Next) {
        out.push((Label::Crash(who), world.crash(who)));
        match who {
            Who::S if self.misfortunes.source_power => {
                // Without a copy at the destination it is like any host that loses power: nothing to
                // promise. Before the commit, and after going back, only operators make a difference.
                let released = world.s.last == record_code(Record::Released);
                let copy = matches!(world.copy, Copy::Held | Copy::Running);
                let here = match world.container {
                    Container::Frozen => (released && world.images) || copy,
                    Container::Running => copy && self.misfortunes.operators,
                    Container::Killed | Container::Dead => false,
                };
                if here && (released || self.misfortunes.operators) {
                    let mut w = world.crash(who);
                    w.container = Container::Dead;
                    out.push((Label::PowerLoss(who), w));
                }
            }
            Who::T
                if self.misfortunes.operators
                    && world.copy == Copy::Running
                    && world.container != Container::Dead =>
            {
                let mut w = *world;
                (w.copy, w.images) = (Copy::Lost, false);
                out.push((Label::PowerLoss(who), w.crash(who)));
            }
            Who::T if self.misfortunes.hold_dies && world.copy == Copy::Held => {
                let mut w = *world;
                w.copy = Copy::None;
                out.push((Label::HoldDies, w.crash(who)));
                let mut w = *world;
                w.copy = Copy::None;
                if world.t.told_next[0] == 0 {
                    w.tell_later(who, Ev::HoldLost);
                    out.push((Label::HoldDies, w));
                }
                if world.container != Container::Dead {
                    let mut w = *world;
                    (w.copy, w.images) = (Copy::None, false);
                    out.push((Label::PowerLoss(who), w.crash(who)));
                }
            }
            _ => {}
        }
    }

    /// What an operator may say to `who`, without lying.
    fn decisions(&mut self, world: &World, who: Who, out: &mut Next) {
        // The driver refuses while there is a connection, and tries to make one.
        let other = world.at(who.other());
        if !self.misfortunes.operators || other.up || world.at(who).link == Link::Up {
            return;
        }
        let dead = match who {
            Who::S => matches!(world.copy, Copy::None | Copy::Lost) && !world.images,
            Who::T => world.container == Container::Dead,
        };
        if dead {
            self.tell(world, who, Ev::Resolved, out);
        }
    }

    pub fn restart(&mut self, mut world: World, who: Who) -> World {
        let (state, told) = self.machines.recovered(who, record_of(world.at(who).last));
        let agent = world.at_mut(who);
        (agent.up, agent.state) = (true, state);
        if !told {
            return world;
        }
        // A crash in the middle of it is the crash before it: nothing was done yet.
        let mut all = Vec::new();
        self.tell(&world, who, Ev::Restarted, &mut all);
        all.into_iter()
            .find(|(label, _)| matches!(label, Label::Told(..)))
            .map(|(_, w)| w)
            .expect("a restart has one outcome")
    }

    fn outcomes(&mut self, world: &World, who: Who, out: &mut Next) {
        let agent = world.at(who);
        if agent.told_next[0] != 0 {
            let event = event_of(agent.told_next[0]);
            let mut w = *world;
            w.at_mut(who).told_next = [agent.told_next[1], 0];
            self.tell(&w, who, event, out);
        }
        if agent.again != 0 {
            let mut w = *world;
            w.at_mut(who).again = 0;
            let todo = match agent.again.checked_sub(16) {
                None => Todo::Record(record_of(agent.again).expect("a record")),
                Some(op) => Todo::Op(op_of(op)),
            };
            self.perform(&w, who, &[todo], Label::Again(who), out);
        }
        if agent.connecting && world.at(who.other()).up {
            let mut w = *world;
            w.at_mut(who).connecting = false;
            w.connected();
            // The connecting side asks first, then its machine is told.
            w.send(who, Msg::Query);
            out.push((Label::Connected(who), self.told(w, who, Ev::LinkUp)));
        }
    }

    fn signals(&mut self, world: &World, who: Who, out: &mut Next) {
        let agent = world.at(who);
        let sent = if self.hostile == Some(who.other()) { u32::MAX } else { world.sent(who.other()) };
        for msg in Msg::ALL {
            if sent & msg.bit() != 0 {
                let mut w = *world;
                if msg == Msg::Reserve && agent.link == Link::None {
                    // An offer comes as the first words of a link: there is one, or was.
                    w.t.link = Link::Stale;
                }
                self.tell(&w, who, Ev::Peer(msg), out);
            }
        }
        if agent.link != Link::None {
            let mut w = *world;
            w.cut(who);
            self.tell(&w, who, Ev::LinkLost, out);
        }
        self.tell(world, who, Ev::Repeat, out);
        let timed = self.machines.shape(who, agent.state).timed;
        match who {
            Who::S => {
                if timed {
                    self.tell(world, who, Ev::Deadline, out);
                }
                if self.misfortunes.cancels {
                    self.tell(world, who, Ev::Cancel, out);
                }
            }
            Who::T => {
                if timed && self.misfortunes.steps_fail {
                    self.tell(world, who, Ev::ReceiveFailed, out);
                }
            }
        }
    }

    /// A hostile side connects and goes as it likes; what it does with its copy is its own affair.
    fn anything(&mut self, world: &World, who: Who, out: &mut Next) {
        let honest = who.other();
        let mut w = *world;
        if world.at(honest).link == Link::None {
            w.connected();
            out.push((Label::Connected(who), w));
        } else {
            w.cut(who);
            out.push((Label::Crash(who), w));
        }
    }

    /// Tells the machine, and does what it asks for.
    pub fn tell(&mut self, world: &World, who: Who, event: Ev, out: &mut Next) {
        let before = world.at(who).state;
        let mut w = *world;
        match &*self.machines.step(who, before, event) {
            Stepped::Illegal => {
                w.fault(Wrong::Illegal);
                out.push((Label::Told(who, event), w));
            }
            Stepped::To { state, todo, too_late, finished } => {
                let (state, too_late, finished) = (*state, *too_late, *finished);
                let idle = matches!(event, Ev::Peer(_) | Ev::Repeat | Ev::Resolved | Ev::GivenUp);
                if state == before && todo.is_empty() && idle {
                    // Nothing came of it.
                    return;
                }
                w.at_mut(who).state = state;
                if state != before {
                    // What was to be tried again belongs to the state that it failed in.
                    w.at_mut(who).again = 0;
                }
                if who == Who::S {
                    self.note_cancel(&mut w, before, state, event, too_late, finished);
                }
                self.perform(&w, who, todo, Label::Told(who, event), out);
            }
        }
    }

    fn note_cancel(&self, w: &mut World, before: u8, after: u8, event: Ev, too_late: bool, finished: bool) {
        let (before, after) = (self.machines.shape(Who::S, before), self.machines.shape(Who::S, after));
        if event == Ev::Cancel {
            if before.released != too_late {
                w.fault(Wrong::Cancel);
            }
            w.cancel_waits = !too_late && !before.ended;
            w.cancelled |= before.timed;
            if before.timed && !after.backward {
                w.fault(Wrong::Cancel);
            }
        } else if too_late || finished {
            w.cancel_waits = false;
        }
    }

    /// Told, and nothing goes wrong on the way.
    pub fn told(&mut self, world: World, who: Who, event: Ev) -> World {
        let mut all = Vec::new();
        self.tell(&world, who, event, &mut all);
        all.into_iter().find(|(label, _)| matches!(label, Label::Told(..))).map_or(world, |(_, w)| w)
    }

    fn perform(&mut self, world: &World, who: Who, todo: &[Todo], label: Label, out: &mut Next) {
        let event = match label {
            Label::Told(_, event) => event,
            _ => Ev::Repeat,
        };
        let mut w = *world;
        for (i, todo) in todo.iter().enumerate() {
            if i > 0 {
                out.push((Label::Cut(who, event, u8::try_from(i).unwrap()), w.crash(who)));
            }
            match *todo {
                Todo::Record(record) => {
                    if self.misfortunes.records_fail {
                        for kept in [false, true] {
                            let mut failed = w;
                            if kept {
                                failed.at_mut(who).last = record_code(record);
                            }
                            failed.tell_later(who, Ev::RecordFailed(record));
                            out.push((Label::Failed(who, event, kept), failed));
                        }
                    }
                    if self.machines.flushed(record) {
                        w.at_mut(who).last = record_code(record);
                    }
                    w.tell_later(who, Ev::Recorded(record));
                }
                Todo::Op(op) => w.start(who, op),
                // What nobody ever listens to makes no difference, but many worlds.
                Todo::Send(msg) if !self.machines.hears(who.other(), msg) => {}
                Todo::Send(msg) => w.send(who, msg),
                Todo::Connect => w.at_mut(who).connecting = true,
                Todo::AgainRecord(record) => w.try_again(who, record_code(record)),
                Todo::AgainOp(op) => w.try_again(who, 16 + op as u8),
            }
        }
        out.push((label, w));
    }

    /// The end of the step that runs.
    fn ops(&mut self, world: &World, who: Who, out: &mut Next) {
        let agent = world.at(who);
        // A driver takes in one outcome before it looks for the next.
        if agent.ops[0] == 0 || agent.told_next[0] != 0 {
            return;
        }
        let op = op_of(agent.ops[0]);
        let mut w = *world;
        w.at_mut(who).ops = [agent.ops[1], 0];
        let from = out.len();
        self.end_op(w, op, out);
        if !self.misfortunes.steps_fail {
            // What is impossible fails all the same.
            let possible = out[from..].iter().any(|(label, _)| matches!(label, Label::Did(..)));
            let mut at = from;
            while at < out.len() {
                if possible && !matches!(out[at].0, Label::Did(..)) {
                    out.remove(at);
                } else {
                    at += 1;
                }
            }
        }
    }

    fn end_op(&mut self, mut w: World, op: Op, out: &mut Next) {
        let who = if (op as u8) < Op::Check as u8 { Who::S } else { Who::T };
        let mut end = |label: Label, mut w: World, event: Ev| {
            w.tell_later(who, event);
            out.push((label, w));
        };
        let (did, did_not, after_all) =
            (Label::Did(who, op), Label::DidNot(who, op), Label::DidAfterAll(who, op));
        match op {
            Op::Reserve => {
                end(did_not, w, Ev::StepFailed);
                if w.t.up {
                    let timed = self.machines.shape(Who::S, w.s.state);
                    if timed.text == "Reserving" {
                        w.connected();
                        w.send(Who::S, Msg::Reserve);
                    }
                    end(did, w, Ev::Offered);
                }
            }
            Op::Stage => {
                end(did_not, w, Ev::StepFailed);
                end(did, w, Ev::StepDone);
            }
            Op::Freeze => {
                end(did_not, w, Ev::StepFailed);
                w.container = Container::Frozen;
                end(after_all, w, Ev::StepFailed);
                end(did, w, Ev::StepDone);
            }
            Op::Copy => {
                end(did_not, w, Ev::StepFailed);
                let taken = w.t.up && self.machines.shape(Who::T, w.t.state).text == "Receiving";
                if taken || self.hostile.is_some() {
                    w.images = true;
                    end(after_all, w, Ev::StepFailed);
                    end(did, w, Ev::Copied);
                }
            }
            Op::Undo => {
                if w.container == Container::Killed && w.copy != Copy::Lost {
                    w.fault(Wrong::NoRunner);
                }
                // What the copy has done since is lost: an operator may want that, nobody else.
                if w.ran && !self.misfortunes.operators {
                    w.fault(Wrong::RanBefore);
                }
                end(did_not, w, Ev::UndoFailed);
                if w.container == Container::Frozen {
                    w.container = Container::Running;
                }
                end(after_all, w, Ev::UndoFailed);
                end(did, w, Ev::Undone);
            }
            Op::Retire => {
                end(did_not, w, Ev::StepFailed);
                w.container = Container::Killed;
                end(after_all, w, Ev::StepFailed);
                end(did, w, Ev::StepDone);
            }
            Op::Check => {
                end(did_not, w, Ev::CheckFailed);
                end(did, w, Ev::Checked);
            }
            Op::Restore | Op::Reclaim => {
                end(did_not, w, Ev::RestoreFailed);
                if matches!(w.copy, Copy::None | Copy::Lost) && (w.images || self.hostile.is_some()) {
                    if w.ran {
                        w.fault(Wrong::RanBefore);
                    }
                    w.copy = Copy::Held;
                    end(after_all, w, Ev::RestoreFailed);
                }
                if w.copy == Copy::Held {
                    end(did, w, Ev::Restored);
                }
            }
            Op::Resume => {
                end(did_not, w, Ev::ResumeFailed);
                if matches!(w.copy, Copy::None | Copy::Lost) && !w.ran {
                    end(did_not, w, Ev::NeverRan);
                }
                if matches!(w.copy, Copy::Held | Copy::Running) {
                    (w.copy, w.ran) = (Copy::Running, true);
                    end(after_all, w, Ev::ResumeFailed);
                    w.images = false;
                    end(did, w, Ev::Resumed);
                }
            }
            Op::Discard => {
                if w.copy == Copy::Running {
                    w.fault(Wrong::RanBefore);
                }
                end(did_not, w, Ev::DiscardFailed);
                (w.copy, w.images) = (Copy::None, false);
                end(after_all, w, Ev::DiscardFailed);
                end(did, w, Ev::Discarded);
            }
            Op::Yield => {
                end(did_not, w, Ev::DiscardFailed);
                if w.copy != Copy::Lost {
                    w.copy = Copy::None;
                }
                w.images = false;
                end(after_all, w, Ev::DiscardFailed);
                end(did, w, Ev::Discarded);
            }
        }
    }
}

fn op_of(number: u8) -> Op {
    [
        Op::Reserve,
        Op::Stage,
        Op::Freeze,
        Op::Copy,
        Op::Undo,
        Op::Retire,
        Op::Check,
        Op::Restore,
        Op::Reclaim,
        Op::Resume,
        Op::Discard,
        Op::Yield,
    ][usize::from(number - 1)]
}
