//! Both machines of the hand-over, joined by the worst link there is, with a crash possible at
//! every moment, explored whole: not to a depth, but until no new world is left.
//!
//! What is held against every world: never two runners; never none, unless the container is frozen
//! in a migration that will end; nothing runs, and nothing was removed, that the journals do not
//! cover; a copy that has run is never restored again; a cancel is honoured before the commit and
//! answered "too late" after it; no machine is told what it calls impossible. And from every world
//! the end is played, with agents started again, a good link and nothing else going wrong: it ends
//! with one runner and journals that agree. The one exception is the only one there is: OWNER is on
//! disk and the copy died before it could be known whether it had run. There the source stays
//! frozen, until an operator settles it.
//!
//! A second sort of test breaks the machines on purpose and expects this to be noticed.

#![allow(clippy::unwrap_used)]

mod model;

use model::explore::{Found, explore};
use model::machines::{Mutant, Stepped};
use model::moves::{Misfortunes, Model};
use model::walk::walk;
use model::words::{Ev, Msg, Who, destination_states, source_states};
use model::world::Wrong;
use tranship_agent::journal::Record;
use tranship_agent::migrate::destination::machine as t;
use tranship_agent::migrate::source::machine as s;
use tranship_proto::handoff::Handoff;

const ANY_DEPTH: usize = usize::MAX;
const ANY_NUMBER: usize = usize::MAX;

fn all_well(name: &str, found: &Found) {
    let Found { worlds, moves, depth, endings, .. } = found;
    println!("{name}: {worlds} worlds, {moves} moves, {depth} deep, {endings} endings");
    if let Some((wrong, story)) = &found.wrong {
        panic!("{name}: {wrong:?}\n{story}");
    }
    assert!(found.whole, "{name}: not every world was reached");
}

/// Agents that crash and links that lose; what else goes wrong is chosen by each test.
const CRASHES: Misfortunes = Misfortunes {
    hold_dies: false,
    source_power: false,
    records_fail: false,
    steps_fail: false,
    cancels: false,
    operators: false,
};

fn whole(name: &str, misfortunes: Misfortunes, at_least: usize) {
    let found = explore(&mut Model::new(Mutant::None, misfortunes), ANY_DEPTH, ANY_NUMBER);
    all_well(name, &found);
    assert!(found.worlds >= at_least, "{name}: the model is smaller than it was: {}", found.worlds);
}

#[test]
fn lost_power_and_failing_steps_leave_one_runner() {
    let power = Misfortunes { hold_dies: true, source_power: true, ..CRASHES };
    whole("lost power, failing steps", Misfortunes { steps_fail: true, ..power }, 300_000);
}

#[test]
fn lost_power_and_failing_journals_leave_one_runner() {
    let power = Misfortunes { hold_dies: true, source_power: true, ..CRASHES };
    whole("lost power, failing journals", Misfortunes { records_fail: true, ..power }, 300_000);
}

#[test]
fn a_cancel_is_honoured_or_too_late() {
    let misfortunes = Misfortunes { cancels: true, records_fail: true, ..CRASHES };
    whole("cancels, failing journals", misfortunes, 300_000);
}

/// Whoever is declared dead, and whenever: one copy runs, unless its host has died after it; and the
/// other host, once back, ends up with nothing and a journal that agrees.
#[test]
fn an_operator_who_tells_the_truth_leaves_one_runner() {
    let power = Misfortunes { hold_dies: true, source_power: true, operators: true, ..CRASHES };
    whole("operators, lost power", power, 300_000);
    let failing = Misfortunes { source_power: true, operators: true, records_fail: true, ..CRASHES };
    whole("operators, failing journals", failing, 300_000);
}

/// All of the above and all of their combinations; half a minute of one processor.
#[test]
#[ignore = "long; the explorations above are parts of it"]
fn everything_at_once() {
    whole("everything at once", Misfortunes::ALL, 2_500_000);
}

#[test]
fn random_walks_end_well_in_any_order() {
    let number = std::env::var("TRANSHIP_WALKS").ok().and_then(|n| n.parse().ok()).unwrap_or(4_000);
    let seed: u64 = std::env::var("TRANSHIP_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut model = Model::new(Mutant::None, Misfortunes::ALL);
    let mut moves = 0;
    for i in seed..seed + number {
        match walk(&mut model, i, 20 + usize::try_from(i % 180).unwrap()) {
            Ok(n) => moves += n,
            Err((wrong, story)) => panic!("TRANSHIP_SEED={i} TRANSHIP_WALKS=1: {wrong:?}\n{story}"),
        }
    }
    println!("{number} walks, {moves} moves");
}

/// Explores until one of the named things goes wrong.
fn noticed(mutant: Mutant, misfortunes: Misfortunes, expected: &[Wrong]) {
    let mut model = Model::new(mutant, misfortunes);
    model.minds = expected.iter().fold(0, |set, w| set | w.bit());
    let found = explore(&mut model, ANY_DEPTH, 3_000_000);
    let (wrong, story) = found.wrong.unwrap_or_else(|| panic!("{mutant:?} was not noticed"));
    println!("{mutant:?} was noticed after {} worlds: {wrong:?}\n{story}", found.worlds);
}

#[test]
fn a_release_that_is_not_flushed_is_noticed() {
    noticed(Mutant::ReleasedNotFlushed, CRASHES, &[Wrong::TwoRunners]);
}

#[test]
fn a_thaw_after_the_release_is_noticed() {
    noticed(Mutant::ThawAfterReleased, CRASHES, &[Wrong::TwoRunners]);
    let failing = Misfortunes { records_fail: true, ..CRASHES };
    noticed(Mutant::ThawOnFailedRelease, failing, &[Wrong::TwoRunners]);
}

#[test]
fn other_mistakes_are_noticed() {
    let dying = Misfortunes { hold_dies: true, steps_fail: true, ..CRASHES };
    let failing = Misfortunes { records_fail: true, ..CRASHES };
    noticed(Mutant::OwnerNotFlushed, CRASHES, &[Wrong::Unrecorded]);
    noticed(Mutant::DiscardedNotFlushed, CRASHES, &[Wrong::BadEnd]);
    noticed(Mutant::RunningBeforeResume, CRASHES, &[Wrong::NoRunner]);
    noticed(Mutant::RetireOnGrant, CRASHES, &[Wrong::NoRunner]);
    noticed(Mutant::AbortedBeforeRecord, dying, &[Wrong::TwoRunners]);
    noticed(Mutant::RestoreAfterOwner, CRASHES, &[Wrong::RanBefore]);
    noticed(Mutant::GiveUpWhatMayHaveRun, dying, &[Wrong::RanBefore]);
    noticed(Mutant::NeverAsk, CRASHES, &[Wrong::NeverEnds]);
    noticed(Mutant::RetiredOnce, CRASHES, &[Wrong::BadEnd]);
    noticed(Mutant::EndWithoutRecord, failing, &[Wrong::BadEnd]);
}

#[test]
fn mistakes_about_operators_are_noticed() {
    let operators = Misfortunes { hold_dies: true, source_power: true, operators: true, ..CRASHES };
    noticed(Mutant::OverruledNotFlushed, operators, &[Wrong::Unrecorded]);
    noticed(Mutant::TakenNotFlushed, operators, &[Wrong::Unrecorded]);
    noticed(Mutant::ThawBeforeOverruled, operators, &[Wrong::Unrecorded]);
    noticed(Mutant::ResumeBeforeTaken, operators, &[Wrong::Unrecorded]);
    noticed(Mutant::NeverYield, operators, &[Wrong::NeverEnds, Wrong::BadEnd]);
    noticed(Mutant::NeverObey, operators, &[Wrong::NeverEnds, Wrong::BadEnd]);
}

/// One side is honest, the other says anything at any time.
#[test]
fn a_hostile_peer_breaks_no_rule_of_this_side() {
    for hostile in [Who::S, Who::T] {
        let mut model = Model::new(Mutant::None, Misfortunes { source_power: false, ..Misfortunes::ALL });
        model.hostile = Some(hostile);
        // What becomes of the container as a whole is in the hands of the liar.
        let mut rules =
            vec![Wrong::Illegal, Wrong::Crowded, Wrong::GrantTooEarly, Wrong::RanBefore, Wrong::Cancel];
        if hostile == Who::T {
            rules.extend([Wrong::TakenBack, Wrong::Forgotten]);
        }
        model.minds = rules.iter().fold(0, |set, w| set | w.bit());
        let found = explore(&mut model, ANY_DEPTH, ANY_NUMBER);
        all_well(&format!("hostile {hostile:?}"), &found);
    }
}

fn events() -> Vec<Ev> {
    let mut all: Vec<Ev> = Msg::ALL.into_iter().map(Ev::Peer).collect();
    all.extend((1..64).filter_map(model::world::try_event_of));
    all.extend([Ev::Start, Ev::LinkLost, Ev::LinkUp, Ev::Cancel, Ev::Deadline, Ev::Repeat, Ev::Restarted]);
    all.extend([Ev::Resolved, Ev::GivenUp]);
    all
}

#[test]
fn no_message_and_no_signal_from_outside_is_impossible_in_any_state() {
    let outside = |e: &Ev| {
        matches!(
            e,
            Ev::Peer(_)
                | Ev::LinkLost
                | Ev::LinkUp
                | Ev::Cancel
                | Ev::Deadline
                | Ev::Repeat
                | Ev::Resolved
                | Ev::GivenUp
        )
    };
    for event in events().into_iter().filter(outside) {
        for state in source_states() {
            let stepped = event.source().map(|e| state.clone().step(e));
            assert!(!matches!(stepped, Some(Err(_))), "source {state:?}, {event:?}");
        }
        for state in destination_states() {
            let stepped = event.destination().map(|e| state.clone().step(e));
            assert!(!matches!(stepped, Some(Err(_))), "destination {state:?}, {event:?}");
        }
    }
}

/// The rules in the headers of the machines, held against every step that there is.
#[test]
fn each_step_by_itself_keeps_the_rules() {
    for event in events() {
        for state in source_states() {
            let Some(Ok((next, effects))) = event.source().map(|e| state.clone().step(e)) else { continue };
            let case = format!("{state:?} told {event:?}");
            for effect in effects {
                match effect {
                    s::Effect::Undo => assert!(
                        matches!((&next, event), (s::State::TakingBack(_), Ev::Recorded(Record::Overruled)))
                            || matches!(state, s::State::TakingBack(_))
                            || matches!(next, s::State::RollingBack(_))
                                && (!state.committed()
                                    || matches!(
                                        (&state, event),
                                        (s::State::Revoking(_), Ev::Recorded(Record::Revoked))
                                    )),
                        "{case}"
                    ),
                    s::Effect::Send(Handoff::Grant) => assert!(
                        matches!(state, s::State::Granting)
                            || matches!(event, Ev::Recorded(Record::Released)),
                        "{case}"
                    ),
                    s::Effect::Retire => {
                        assert!(matches!(event, Ev::Peer(Msg::Running | Msg::AtTaken)), "{case}");
                    }
                    s::Effect::Finish(_) => assert!(
                        matches!(
                            event,
                            Ev::Recorded(Record::Closed | Record::RolledBack | Record::TakenBack)
                        ),
                        "{case}"
                    ),
                    _ => {}
                }
            }
        }
        for state in destination_states() {
            let Some(Ok((next, effects))) = event.destination().map(|e| state.clone().step(e)) else {
                continue;
            };
            let case = format!("{state:?} told {event:?}");
            let owner = state.position() == tranship_proto::handoff::Position::Owner;
            for effect in effects {
                match effect {
                    t::Effect::Resume => assert!(
                        matches!(event, Ev::Recorded(Record::Owner | Record::Taken))
                            || matches!(state, t::State::Resuming(_)),
                        "{case}"
                    ),
                    t::Effect::Discard | t::Effect::Restore(_) | t::Effect::Reclaim => {
                        assert!(!owner && !matches!(state, t::State::Owning(_)), "{case}");
                    }
                    t::Effect::Yield => assert!(
                        matches!(event, Ev::Recorded(Record::Overruled))
                            || matches!(state, t::State::Yielding(..)),
                        "{case}"
                    ),
                    t::Effect::Send(Handoff::Aborted) => assert!(
                        matches!(state, t::State::Idle | t::State::Checking | t::State::Ended(Some(_)))
                            || matches!(event, Ev::Recorded(Record::Discarded)),
                        "{case}"
                    ),
                    _ => {}
                }
            }
            if owner && !matches!(next, t::State::Yielding(..)) {
                use tranship_proto::handoff::Position;
                assert!(matches!(next.position(), Position::Owner | Position::Taken), "{case}");
            }
        }
    }
}

#[test]
fn the_model_knows_every_state() {
    let mut machines = model::machines::Machines::new(Mutant::None);
    let (before_s, before_t) = (machines.s_shapes.len(), machines.t_shapes.len());
    assert_eq!((before_s, before_t), (source_states().len(), destination_states().len()));
    for event in events() {
        for who in [Who::S, Who::T] {
            let known = if who == Who::S { event.source().is_some() } else { event.destination().is_some() };
            let states = if who == Who::S { before_s } else { before_t };
            for state in 0..u8::try_from(states).unwrap() {
                if known && let Stepped::To { state: next, .. } = &*machines.step(who, state, event) {
                    assert!(usize::from(*next) < states);
                }
            }
        }
    }
}
