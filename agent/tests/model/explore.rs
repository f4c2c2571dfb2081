//! Every world that can be reached, breadth first, and the story of the first bad one.

use super::ending::Endings;
use super::moves::{Label, Model, Next};
use super::world::{World, Wrong};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, Hasher};

/// A hasher for keys that are numbers already; the standard one is slow in debug builds.
#[derive(Default)]
pub struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u128");
    }

    fn write_u128(&mut self, key: u128) {
        #[allow(clippy::cast_possible_truncation)]
        let folded = (key as u64) ^ ((key >> 64) as u64).rotate_left(29);
        let mixed = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

pub type Keyed<V> = HashMap<u128, V, BuildHasherDefault<Mix>>;

/// What an exploration found.
#[derive(Debug)]
pub struct Found {
    /// Worlds reached.
    pub worlds: usize,
    /// Moves taken.
    pub moves: usize,
    /// Most moves from the beginning to a world, by the shortest way.
    pub depth: usize,
    /// Whether every reachable world was reached.
    pub whole: bool,
    /// Distinct situations from which the end was played.
    pub endings: usize,
    /// The first thing wrong.
    pub wrong: Option<(Wrong, String)>,
}

/// Explores to `depth` moves and at most `limit` worlds; stops at the first thing wrong.
pub fn explore(model: &mut Model, depth: usize, limit: usize) -> Found {
    let begin = model.begin();
    let mut worlds: Vec<(World, u32)> = vec![(begin, u32::MAX)];
    let mut seen: Keyed<()> = Keyed::default();
    seen.insert(begin.key(), ());
    let mut endings = Endings::default();
    let mut found = Found { worlds: 0, moves: 0, depth: 0, whole: true, endings: 0, wrong: None };
    let (mut at, mut level_end) = (0, 1);
    let mut next = Next::new();
    while at < worlds.len() {
        if at == level_end {
            found.depth += 1;
            level_end = worlds.len();
        }
        if found.depth >= depth || worlds.len() >= limit {
            found.whole = false;
            break;
        }
        let world = worlds[at].0;
        // Who deals with a liar is promised no end.
        let ended = if model.hostile.is_some() { None } else { endings.play(model, &world) };
        if let Some((wrong, how)) = ended {
            found.wrong = Some((wrong, story(model, &worlds, at) + &how));
            break;
        }
        next.clear();
        model.next(&world, &mut next);
        found.moves += next.len();
        let mut bad = None;
        for (_, w) in &next {
            if let Some(wrong) = Wrong::first(w.wrong) {
                bad = Some((wrong, *w));
                break;
            }
            if seen.insert(w.key(), ()).is_none() {
                worlds.push((*w, u32::try_from(at).unwrap()));
            }
        }
        if let Some((wrong, world)) = bad {
            worlds.push((world, u32::try_from(at).unwrap()));
            found.wrong = Some((wrong, story(model, &worlds, worlds.len() - 1)));
            break;
        }
        at += 1;
    }
    found.worlds = worlds.len();
    found.endings = endings.played();
    found
}

/// The way to a world, a line each.
fn story(model: &mut Model, worlds: &[(World, u32)], at: usize) -> String {
    let mut way = vec![at];
    while let Some(&(_, parent)) = way.last().map(|i| &worlds[*i]).filter(|(_, p)| *p != u32::MAX) {
        way.push(parent as usize);
    }
    way.reverse();
    let mut text = String::new();
    let mut label = Label::Begin;
    for (i, index) in way.iter().enumerate() {
        let world = &worlds[*index].0;
        if i > 0 {
            let mut next = Next::new();
            model.next(&worlds[way[i - 1]].0, &mut next);
            label = next.iter().find(|(_, w)| w == world).map_or(Label::Begin, |(l, _)| *l);
        }
        let _ = writeln!(text, "{}", line(model, label, world));
    }
    text
}

/// A move and where it led.
pub fn line(model: &Model, label: Label, w: &World) -> String {
    let side = |who, agent: &super::world::Agent| {
        if !agent.up {
            return format!("down (last {:?})", super::words::record_of(agent.last));
        }
        format!(
            "{} (last {:?}, link {:?})",
            model.machines.shape(who, agent.state).text,
            super::words::record_of(agent.last),
            agent.link
        )
    };
    format!(
        "{:<44} S {}, {:?}; T {}, {:?}{}",
        format!("{label:?}"),
        side(super::words::Who::S, &w.s),
        w.container,
        side(super::words::Who::T, &w.t),
        w.copy,
        Wrong::first(w.wrong).map_or_else(String::new, |x| format!("  <- {x:?}"))
    )
}
