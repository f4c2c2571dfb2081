//! What becomes of a world once nothing bad happens any more: agents that are down start again,
//! the link is good, messages that were under way before are lost, steps and writes succeed.

use super::explore::{Keyed, line};
use super::moves::{Label, Model, Next};
use super::words::{Ev, Who, record_of};
use super::world::{Container, Copy, Link, World, Wrong};
use std::fmt::Write as _;
use tranship_agent::journal::Record;

/// Moves after which an end is not believed in any more.
const PATIENCE: usize = 600;

/// Endings played so far.
#[derive(Default)]
pub struct Endings {
    good: Keyed<()>,
    played: usize,
}

/// Chooses among moves: the first one, or any.
pub type Choice<'a> = &'a mut dyn FnMut(usize) -> usize;

impl Endings {
    pub fn played(&self) -> usize {
        self.played
    }

    /// Plays the end from here, unless this situation was played before.
    pub fn play(&mut self, model: &mut Model, world: &World) -> Option<(Wrong, String)> {
        let start = quiet(world);
        if self.good.contains_key(&start.key()) {
            return None;
        }
        self.played += 1;
        let mut way = Vec::new();
        let wrong = play(model, start, &mut |_| 0, &mut |w| {
            way.push(w.key());
            !self.good.contains_key(&w.key())
        });
        match wrong.filter(|w| w.bit() & model.minds != 0) {
            Some(wrong) => {
                let mut text = String::from("-- from here nothing bad happens --\n");
                replay(model, start, &mut text);
                Some((wrong, text))
            }
            None => {
                self.good.extend(way.into_iter().map(|k| (k, ())));
                None
            }
        }
    }
}

fn replay(model: &mut Model, start: World, text: &mut String) {
    let mut lines = Vec::new();
    let mut last = None;
    // The labels are not needed to understand where it hangs.
    let wrong = play(model, start, &mut |_| 0, &mut |w| {
        if last != Some(*w) {
            lines.push(*w);
        }
        last = Some(*w);
        true
    });
    let shown = lines.len().min(120);
    for w in &lines[..shown] {
        let _ = writeln!(text, "{}", line(model, Label::Begin, w));
    }
    let _ = writeln!(text, "{wrong:?}");
}

/// The world with everything lost that was under way.
pub fn quiet(world: &World) -> World {
    World { sent_s: 0, sent_t: 0, ..*world }
}

/// Plays to the end; `goes_on` may stop early, then all is well.
pub fn play(
    model: &mut Model,
    start: World,
    choose: Choice<'_>,
    goes_on: &mut dyn FnMut(&World) -> bool,
) -> Option<Wrong> {
    let mut world = start;
    let mut rounds = 0;
    let mut options = Next::new();
    for _ in 0..PATIENCE {
        if !goes_on(&world) {
            return None;
        }
        options.clear();
        good_moves(model, &world, &mut options);
        if operator_only(&world) {
            if !model.misfortunes.operators {
                return None;
            }
            // Both are up and could go on like this for ever: he looks, and gives the dead copy up.
            world = model.told(world, Who::T, Ev::GivenUp);
            rounds = 0;
            if !operator_only(&world) {
                continue;
            }
        }
        // What is tried again waits a second, in which words are repeated too.
        let retry = options.iter().position(|(label, _)| matches!(label, Label::Again(_)));
        if options.iter().all(|(label, _)| matches!(label, Label::Again(_)))
            && let Some(i) = retry
        {
            world = timers(model, options[i].1, false);
        } else if options.is_empty() {
            if settled(model, &world) {
                return verdict(model, &world);
            }
            if rounds > 12 {
                return Some(Wrong::NeverEnds);
            }
            // Nothing left but to wait: repeats, and in the end the source's deadline.
            rounds += 1;
            world = timers(model, world, rounds > 8);
        } else {
            options.retain(|(label, _)| !matches!(label, Label::Again(_)));
            let i = choose(options.len());
            world = options[i].1;
        }
        world.check();
        if let Some(wrong) = Wrong::first(world.wrong & model.minds) {
            return Some(wrong);
        }
    }
    Some(Wrong::NeverEnds)
}

fn good_moves(model: &mut Model, world: &World, out: &mut Next) {
    for who in [Who::S, Who::T] {
        if !world.at(who).up {
            out.push((Label::Restart(who), model.restart(*world, who)));
            return;
        }
    }
    let mut all = Next::new();
    model.next(world, &mut all);
    for (label, w) in all {
        let good = match label {
            Label::Told(_, Ev::LinkLost) => false,
            Label::Told(who, Ev::Peer(msg)) => {
                // Delivered once.
                let mut w = w;
                match who.other() {
                    Who::S => w.sent_s &= !msg.bit(),
                    Who::T => w.sent_t &= !msg.bit(),
                }
                out.push((label, w));
                false
            }
            Label::Told(_, Ev::Cancel | Ev::Deadline | Ev::Repeat | Ev::ReceiveFailed) => false,
            Label::Told(..) | Label::Did(..) | Label::Again(_) | Label::Connected(_) => true,
            // A step that cannot succeed fails.
            Label::DidNot(who, _) => world.at(who).ops[0] != 0 && !possible(model, world, who),
            _ => false,
        };
        if good {
            out.push((label, w));
        }
    }
    for who in [Who::S, Who::T] {
        if world.at(who).link == Link::Stale {
            let mut w = *world;
            w.cut(who);
            let mut told = Next::new();
            model.tell(&w, who, Ev::LinkLost, &mut told);
            out.extend(told.into_iter().filter(|(l, _)| matches!(l, Label::Told(..))));
        }
    }
}

fn possible(model: &mut Model, world: &World, who: Who) -> bool {
    let mut all = Next::new();
    model.next(world, &mut all);
    all.iter().any(|(l, _)| matches!(l, Label::Did(w, _) if *w == who))
}

fn timers(model: &mut Model, mut world: World, deadline: bool) -> World {
    for who in [Who::S, Who::T] {
        world = model.told(world, who, Ev::Repeat);
    }
    if deadline && model.machines.shape(Who::S, world.s.state).timed {
        world = model.told(world, Who::S, Ev::Deadline);
    }
    world
}

/// Nothing is under way, and neither side would say anything by itself.
fn settled(model: &mut Model, world: &World) -> bool {
    let mut w = *world;
    w.connected();
    let again = timers(model, w, true);
    again == w
}

/// One runner, and both journals say the same.
fn verdict(model: &Model, w: &World) -> Option<Wrong> {
    let last = (record_of(w.s.last), record_of(w.t.last));
    let ended = |who: Who| model.machines.shape(who, w.at(who).state).ended;
    let t_idle = w.t.last == 0 && model.machines.shape(Who::T, w.t.state).text == "Idle";
    // Killed: it ran at the destination, and its host died just after; nothing is left to be run.
    let here = matches!(w.container, Container::Running | Container::Dead)
        || (w.container == Container::Killed && w.copy == Copy::Lost);
    let good = match last {
        (Some(Record::Closed), Some(Record::Closed)) => {
            matches!(w.copy, Copy::Running | Copy::Lost)
                && w.container == Container::Killed
                && ended(Who::S)
                && ended(Who::T)
        }
        // An operator has declared the destination dead; what it had is gone when it has come back.
        (Some(Record::TakenBack), None | Some(Record::Discarded)) => {
            here && matches!(w.copy, Copy::None | Copy::Lost) && ended(Who::S) && (ended(Who::T) || t_idle)
        }
        (Some(Record::RolledBack), None | Some(Record::Discarded)) => {
            // Dead: the source lost power after the commit, and the destination its hold.
            here && matches!(w.copy, Copy::None | Copy::Lost) && ended(Who::S) && (ended(Who::T) || t_idle)
        }
        // It died with the destination's host after it had run there, and an operator gave it up before
        // he knew that the source had been told that it ran.
        (Some(Record::Closed), Some(Record::Discarded)) => {
            w.copy == Copy::Lost && w.container == Container::Killed && ended(Who::S) && ended(Who::T)
        }
        _ => false,
    };
    let answered = !w.cancel_waits;
    if good && answered { None } else { Some(if answered { Wrong::BadEnd } else { Wrong::Cancel }) }
}

/// The one situation that only an operator settles: OWNER is on disk, and the copy died before anybody
/// could know whether it had run. The source still has its own, frozen, or has nothing to bring back.
pub fn operator_only(w: &World) -> bool {
    matches!(record_of(w.t.last), Some(Record::Owner | Record::Taken))
        && matches!(w.copy, Copy::None | Copy::Lost)
        && !matches!(
            record_of(w.s.last),
            Some(Record::Retired | Record::Closed | Record::Overruled | Record::TakenBack)
        )
        && w.s.up
        && w.t.up
}
