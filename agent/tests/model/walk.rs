//! Long random walks, each with a random end: seeded, so that a failure can be walked again.

use super::ending::{play, quiet};
use super::explore::line;
use super::moves::{Label, Model, Next};
use super::world::Wrong;
use std::fmt::Write as _;

/// xorshift64*: small, seeded, the same everywhere.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % n
    }
}

/// Walks `moves` random moves, then to the end in random order. Every other walk keeps what was
/// under way, to be delivered late. Good moves are chosen more often, or nothing would get far.
pub fn walk(model: &mut Model, seed: u64, moves: usize) -> Result<usize, (Wrong, String)> {
    let mut dice = Dice::new(seed);
    let mut world = model.begin();
    let mut way = vec![(Label::Begin, world)];
    let mut next = Next::new();
    for _ in 0..moves {
        next.clear();
        model.next(&world, &mut next);
        if next.is_empty() {
            break;
        }
        let mut choice = dice.below(next.len());
        for _ in 0..2 {
            if matches!(next[choice].0, Label::Told(..) | Label::Did(..) | Label::Restart(_)) {
                break;
            }
            choice = dice.below(next.len());
        }
        world = next[choice].1;
        way.push(next[choice]);
        if let Some(wrong) = Wrong::first(world.wrong) {
            return Err((wrong, story(model, &way)));
        }
    }
    let start = if seed.is_multiple_of(2) { world } else { quiet(&world) };
    let mut steps = 0;
    let wrong = play(model, start, &mut |n| dice.below(n), &mut |_| {
        steps += 1;
        true
    });
    match wrong {
        Some(wrong) => Err((wrong, story(model, &way))),
        None => Ok(way.len() + steps),
    }
}

fn story(model: &Model, way: &[(Label, super::world::World)]) -> String {
    way.iter().fold(String::new(), |mut text, (label, world)| {
        let _ = writeln!(text, "{}", line(model, *label, world));
        text
    })
}
