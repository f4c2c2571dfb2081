//! Scenarios: real servers, real clients, real moves, and every byte checked.
//!
//! Each scenario is a function over a [`Scene`], which is a lab of three hosts and the ways to
//! use it. They run one after the other in one lab, since a lab costs more than most scenarios
//! ([`side_by_side`] does so in several labs at a time); after each of them nothing may be left, and a
//! lab that a failed scenario spoiled is rebuilt.

mod asked;
mod backlog;
pub mod bounded;
mod cancel;
mod doubt;
mod drill;
mod files;
mod filling;
mod hostile;
mod hosts_file;
mod identity;
mod memory;
mod mishaps;
mod network;
mod nginx;
mod postgres;
mod redis;
mod refusals;
mod rivals;
mod scene;
pub mod side_by_side;
mod tree;
mod unmoved;
mod versions;

pub use scene::{Container, Moved, Scene};

use std::time::{Duration, Instant};

/// A property and the function that tries to break it.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// The property's name.
    pub name: &'static str,
    /// What is done.
    pub run: fn(&mut Scene) -> anyhow::Result<()>,
    /// Images that it needs.
    pub images: &'static [&'static str],
}

/// All scenarios, the quick and fundamental ones first.
pub const ALL: &[Scenario] = &[
    Scenario { name: "redis_counter_ten_moves", run: redis::ten_moves, images: &["redis"] },
    Scenario {
        name: "memory_is_the_same_plain_and_fast",
        run: memory::plain_and_fast_are_equal,
        images: &["web", "redis"],
    },
    Scenario { name: "filling_in_is_interrupted", run: filling::interrupted, images: &["redis"] },
    Scenario { name: "blackout_and_bandwidth_are_kept", run: asked::are_kept, images: &[] },
    Scenario { name: "files_are_fresh_at_the_freeze", run: asked::files_are_fresh, images: &[] },
    Scenario { name: "ipv6_connection", run: network::ipv6_connection, images: &["redis"] },
    Scenario { name: "two_interfaces_two_networks", run: network::two_interfaces, images: &["redis"] },
    Scenario { name: "five_hundred_connections", run: redis::five_hundred_connections, images: &["redis"] },
    Scenario { name: "late_failure_costs_a_pause_only", run: refusals::late_failure, images: &["redis"] },
    Scenario { name: "ctrl_c_cancels", run: cancel::ctrl_c_cancels, images: &["redis"] },
    Scenario { name: "second_ctrl_c_detaches", run: cancel::second_ctrl_c_detaches, images: &["redis"] },
    Scenario { name: "cancel_in_every_phase", run: cancel::in_every_phase, images: &["redis"] },
    Scenario { name: "two_controllers_one_container", run: rivals::two_controllers, images: &["redis"] },
    Scenario { name: "two_moves_at_the_same_instant", run: rivals::at_the_same_instant, images: &["redis"] },
    Scenario { name: "killed_during_its_move", run: rivals::killed_in_the_middle, images: &["redis"] },
    Scenario { name: "agent_shut_down_during_a_move", run: rivals::shut_down, images: &["redis"] },
    Scenario { name: "hostile_destinations", run: hostile::peers, images: &["redis"] },
    Scenario {
        name: "connections_that_wait_to_be_accepted",
        run: backlog::connections_that_wait,
        images: &["redis"],
    },
    Scenario { name: "failures_in_the_middle", run: mishaps::in_the_middle, images: &["redis"] },
    Scenario {
        name: "bad_input_is_refused_before_anything_is_touched",
        run: refusals::bad_input,
        images: &["redis"],
    },
    Scenario { name: "drill_finds_that_promises_hold", run: drill::holds, images: &["redis"] },
    Scenario { name: "drill_tells_when_no_agent_comes_back", run: drill::tells, images: &["redis"] },
    Scenario { name: "damaged_journal_starts_nothing", run: doubt::damaged_journal, images: &["redis"] },
    Scenario { name: "resolve_when_the_source_is_dead", run: doubt::source_dead, images: &["redis"] },
    Scenario {
        name: "resolve_when_the_destination_is_dead",
        run: doubt::destination_dead,
        images: &["redis"],
    },
    Scenario { name: "resolve_gives_up_what_cannot_run", run: doubt::given_up, images: &["redis"] },
    Scenario { name: "nginx_keepalive_20mib", run: nginx::keepalive, images: &["web"] },
    Scenario { name: "every_kind_of_file", run: files::every_kind, images: &["web"] },
    Scenario { name: "postgres_pgbench_three_moves", run: postgres::pgbench, images: &["postgres"] },
];

/// Packages of an image, by its name. One for each kind of server: every move copies all of it.
pub fn packages(image: &str) -> &'static [&'static str] {
    match image {
        "redis" => &["redis-server", "redis-tools"],
        "web" => &["nginx-light", "python3-minimal"],
        "postgres" => &["postgresql", "postgresql-contrib"],
        _ => &[],
    }
}

/// What a run of scenarios came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Scenarios that held.
    pub passed: usize,
    /// Scenarios that did not.
    pub failed: usize,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// The scenarios whose names contain one of `filters`; all without filters.
pub fn chosen(filters: &[String]) -> Vec<&'static Scenario> {
    let wanted = |s: &&Scenario| filters.is_empty() || filters.iter().any(|f| s.name.contains(f.as_str()));
    ALL.iter().filter(wanted).collect()
}

/// Runs scenarios one after the other and prints each one's result and time.
pub fn run(scene: &mut Scene, scenarios: &[&Scenario]) -> Tally {
    let mut tally = Tally::default();
    for scenario in scenarios {
        println!("scenario {} ...", scenario.name);
        let began = Instant::now();
        let result = one(scene, scenario);
        let took = began.elapsed();
        match result {
            Ok(()) => {
                tally.passed += 1;
                println!("scenario {} ... ok ({})", scenario.name, seconds(took));
            }
            Err(e) => {
                tally.failed += 1;
                println!("scenario {} ... FAILED ({})\n  {e:#}", scenario.name, seconds(took));
                println!("{}", scene.logs());
                if let Err(e) = scene.recover() {
                    println!("the lab cannot be repaired: {e:#}");
                    break;
                }
            }
        }
    }
    tally
}

fn one(scene: &mut Scene, scenario: &Scenario) -> anyhow::Result<()> {
    for image in scenario.images {
        scene.image(image)?;
    }
    (scenario.run)(scene)?;
    scene.remove_all()?;
    scene.audit()
}

fn seconds(d: Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}
