//! Both machines of the hand-over, joined by the worst link there is, with a crash possible at
//! every moment: explored whole. `tests/model` has the rules of this world.

mod model;

use model::explore::explore;
use model::machines::{Machines, Mutant};
use model::moves::{Misfortunes, Model};

#[test]
fn probe() {
    let limit = std::env::var("LIMIT").ok().and_then(|l| l.parse().ok()).unwrap_or(200_000);
    let mut model = Model { machines: Machines::new(Mutant::None), misfortunes: Misfortunes::ALL };
    let t = std::time::Instant::now();
    let found = explore(&mut model, 10_000, limit, |_| true);
    if let Some((wrong, story)) = &found.wrong {
        println!("{wrong:?}\n{story}");
    }
    println!("{} worlds {} moves depth {} whole {} endings {} in {:?}", found.worlds, found.moves, found.depth, found.whole, found.endings, t.elapsed());
    assert!(found.wrong.is_none());
}
