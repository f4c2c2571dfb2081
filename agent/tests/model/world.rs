//! A world: two agents, two copies, two journals, and all that was ever sent.
//!
//! The link is the worst one there is: it keeps every message for ever and may deliver any of them
//! at any time, again and again, or never. So loss, repetition, reordering and delay (also across
//! lost connections and crashes) need no moves of their own. What a side sends without a
//! connection is not sent.

use super::words::{Ev, Msg, Op, RECORDS, Who, record_code, record_of};
use tranship_agent::journal::Record;

/// The container at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Container {
    Running,
    /// Frozen and fenced.
    Frozen,
    /// Killed while fenced, and removed.
    Killed,
    /// Gone with its host's power.
    Dead,
}

/// The copy at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Copy {
    None,
    Held,
    Running,
    /// It ran, and is gone with its host's power.
    Lost,
}

/// A side's end of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Link {
    None,
    Up,
    /// Gone, and this side has not noticed.
    Stale,
}

/// One agent with its journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agent {
    pub up: bool,
    /// State of its machine.
    pub state: u8,
    /// Last record on disk, as [`record_code`]; 0 for none.
    pub last: u8,
    /// Outcomes that the machine was not told yet, first come first, as [`code_of`].
    pub told_next: [u8; 2],
    /// The step that runs, and the one that waits for its end.
    pub ops: [u8; 2],
    /// What is tried again after a pause: a record's code, or 16 and an op's number.
    pub again: u8,
    pub link: Link,
    /// Trying to connect.
    pub connecting: bool,
}

/// What must never be. Kept as a set of bits, so that a test may look for one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Wrong {
    /// Two copies run.
    TwoRunners,
    /// The source's copy was removed and the destination's does not run.
    NoRunner,
    /// The container is frozen and its agent is done with it.
    Forgotten,
    /// It runs at the destination, or was removed, and the journals do not say that it may.
    Unrecorded,
    /// It runs at the source, whose journal says that it was given away.
    TakenBack,
    /// A copy that has run was restored again, or removed.
    RanBefore,
    /// A machine was told what it says is impossible.
    Illegal,
    /// A grant went out without RELEASED on disk.
    GrantTooEarly,
    /// A cancel was honoured and the container given away, or not answered with "too late".
    Cancel,
    /// Two effects wait to be tried again, or two steps wait for a third.
    Crowded,
    /// No further crash, a good link, and it does not end.
    NeverEnds,
    /// It ends, and not with one runner and journals that agree.
    BadEnd,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct World {
    pub s: Agent,
    pub t: Agent,
    pub container: Container,
    pub copy: Copy,
    /// The destination has all images and files.
    pub images: bool,
    /// The copy has run.
    pub ran: bool,
    /// What each side has ever sent, [`Msg::bit`].
    pub sent_s: u32,
    pub sent_t: u32,
    /// Somebody waits for the answer to a cancel.
    pub cancel_waits: bool,
    /// A cancel was honoured.
    pub cancelled: bool,
    /// [`Wrong`] things that were seen on the way here.
    pub wrong: u16,
}

impl Wrong {
    pub const ALL: [Wrong; 12] = [
        Wrong::TwoRunners,
        Wrong::NoRunner,
        Wrong::Forgotten,
        Wrong::Unrecorded,
        Wrong::TakenBack,
        Wrong::RanBefore,
        Wrong::Illegal,
        Wrong::GrantTooEarly,
        Wrong::Cancel,
        Wrong::Crowded,
        Wrong::NeverEnds,
        Wrong::BadEnd,
    ];

    pub fn bit(self) -> u16 {
        1 << (self as u16)
    }

    /// The first of a set.
    pub fn first(set: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|w| w.bit() & set != 0)
    }
}

const AGENT: Agent = Agent {
    up: true,
    state: 0,
    last: 0,
    told_next: [0; 2],
    ops: [0; 2],
    again: 0,
    link: Link::None,
    connecting: false,
};

impl World {
    /// Accepted, and nothing done. The states are those of the machines' beginnings.
    pub fn begin(source: u8, destination: u8) -> Self {
        Self {
            s: Agent { state: source, last: record_code(Record::Accepted), ..AGENT },
            t: Agent { state: destination, ..AGENT },
            container: Container::Running,
            copy: Copy::None,
            images: false,
            ran: false,
            sent_s: 0,
            sent_t: 0,
            cancel_waits: false,
            cancelled: false,
            wrong: 0,
        }
    }

    pub fn at(&self, who: Who) -> &Agent {
        match who {
            Who::S => &self.s,
            Who::T => &self.t,
        }
    }

    pub fn at_mut(&mut self, who: Who) -> &mut Agent {
        match who {
            Who::S => &mut self.s,
            Who::T => &mut self.t,
        }
    }

    /// What `who` has sent.
    pub fn sent(&self, who: Who) -> u32 {
        match who {
            Who::S => self.sent_s,
            Who::T => self.sent_t,
        }
    }

    pub fn send(&mut self, who: Who, msg: Msg) {
        if self.at(who).link == Link::None {
            return;
        }
        match who {
            Who::S => {
                if msg == Msg::Grant && self.s.last != record_code(Record::Released) {
                    self.fault(Wrong::GrantTooEarly);
                }
                self.sent_s |= msg.bit();
            }
            Who::T => self.sent_t |= msg.bit(),
        }
    }

    pub fn fault(&mut self, wrong: Wrong) {
        self.wrong |= wrong.bit();
    }

    pub fn connected(&mut self) {
        self.s.link = Link::Up;
        self.t.link = Link::Up;
    }

    /// `who` has no connection any more, and the other side has not noticed.
    pub fn cut(&mut self, who: Who) {
        self.at_mut(who).link = Link::None;
        let other = self.at_mut(who.other());
        if other.link == Link::Up {
            other.link = Link::Stale;
        }
    }

    /// `who` loses everything but its journal. What the kernel holds stays.
    pub fn crash(mut self, who: Who) -> Self {
        self.cut(who);
        let agent = self.at_mut(who);
        *agent = Agent { up: false, last: agent.last, ..AGENT };
        if who == Who::S {
            self.cancel_waits = false;
        }
        self
    }

    pub fn tell_later(&mut self, who: Who, event: Ev) {
        let queue = &mut self.at_mut(who).told_next;
        match queue.iter_mut().find(|e| **e == 0) {
            Some(place) => *place = code_of(event),
            None => self.fault(Wrong::Crowded),
        }
    }

    pub fn start(&mut self, who: Who, op: Op) {
        match self.at_mut(who).ops.iter_mut().find(|o| **o == 0) {
            Some(place) => *place = op as u8,
            None => self.fault(Wrong::Crowded),
        }
    }

    pub fn try_again(&mut self, who: Who, what: u8) {
        let agent = self.at_mut(who);
        if agent.again == 0 {
            agent.again = what;
        } else {
            self.fault(Wrong::Crowded);
        }
    }

    /// What must hold in every world.
    pub fn check(&mut self) {
        let last = |agent: &Agent| record_of(agent.last);
        let given = matches!(last(&self.s), Some(Record::Released | Record::Retired | Record::Closed));
        let taken = matches!(last(&self.t), Some(Record::Owner | Record::Taken | Record::Closed));
        match (self.container, self.copy) {
            (Container::Running, Copy::Running) => self.fault(Wrong::TwoRunners),
            (Container::Killed, Copy::None | Copy::Held) => self.fault(Wrong::NoRunner),
            _ => {}
        }
        let (runs_here, removed) =
            (self.container == Container::Running, self.container == Container::Killed);
        // A copy on its way out runs until it is destroyed.
        let going = last(&self.t) == Some(Record::Overruled);
        // Removed by an operator's decision, and that is not on disk yet.
        let obeying = last(&self.s) == Some(Record::RolledBack) && taken;
        if (runs_here && given)
            || (removed && !given && !obeying && self.copy != Copy::Lost)
            || (self.copy == Copy::Running && !taken && !going)
        {
            self.fault(Wrong::Unrecorded);
        }
        if self.cancelled && last(&self.s) == Some(Record::Released) {
            self.fault(Wrong::Cancel);
        }
    }

    /// The whole world as one number; `wrong` is left out.
    pub fn key(&self) -> u128 {
        let rest = self.container as u64
            | (self.copy as u64) << 2
            | u64::from(self.images) << 4
            | u64::from(self.ran) << 5
            | u64::from(self.cancel_waits) << 6
            | u64::from(self.cancelled) << 7;
        // An agent takes 60 bits: both and the rest fit.
        let (s, t) = (self.s.key(self.sent_s), self.t.key(self.sent_t));
        u128::from(rest) << 120 | u128::from(s) << 60 | u128::from(t)
    }
}

impl Agent {
    fn key(&self, sent: u32) -> u64 {
        debug_assert!(self.state < 32 && self.again < 32 && sent < 1 << 22);
        u64::from(self.up)
            | u64::from(self.state) << 1
            | u64::from(self.last) << 6
            | u64::from(self.told_next[0]) << 10
            | u64::from(self.told_next[1]) << 16
            | u64::from(self.ops[0]) << 22
            | u64::from(self.ops[1]) << 26
            | u64::from(self.again) << 30
            | (self.link as u64) << 35
            | u64::from(self.connecting) << 37
            | u64::from(sent) << 38
    }
}

const OUTCOMES: [Ev; 17] = [
    Ev::Offered,
    Ev::StepDone,
    Ev::Copied,
    Ev::StepFailed,
    Ev::Undone,
    Ev::UndoFailed,
    Ev::Checked,
    Ev::CheckFailed,
    Ev::ReceiveFailed,
    Ev::Restored,
    Ev::RestoreFailed,
    Ev::HoldLost,
    Ev::Resumed,
    Ev::ResumeFailed,
    Ev::Discarded,
    Ev::DiscardFailed,
    Ev::NeverRan,
];

/// A number below 64 for an outcome; 0 is none.
pub fn code_of(event: Ev) -> u8 {
    match event {
        Ev::Recorded(r) => 20 + record_code(r),
        Ev::RecordFailed(r) => 40 + record_code(r),
        other => u8::try_from(OUTCOMES.iter().position(|e| *e == other).unwrap()).unwrap() + 1,
    }
}

/// The outcome with this number, if there is one.
pub fn try_event_of(code: u8) -> Option<Ev> {
    let record = |from: u8| RECORDS.get(usize::from(code - from)).copied();
    match code {
        0 => None,
        41.. => record(41).map(Ev::RecordFailed),
        21.. => record(21).map(Ev::Recorded),
        code => OUTCOMES.get(usize::from(code - 1)).copied(),
    }
}

pub fn event_of(code: u8) -> Ev {
    try_event_of(code).expect("only codes of outcomes are kept")
}
