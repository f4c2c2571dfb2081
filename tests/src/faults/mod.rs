//! `tranship-lab faults`: what the hand-over's model proves on paper, with real agents.
//!
//! Each run moves a Redis under a client that counts, and breaks one thing, drawn from the run's
//! seed. The hosts are used again from run to run: a fault that left something behind would show in
//! the next. Only after a violation, or the loss of the container, they are made anew.

mod after;
mod dice;
mod ground;
mod plan;
mod run;
mod table;
mod victim;
mod watch;

pub use plan::Kind;

use anyhow::Context;
use ground::Ground;
use plan::Plan;
use run::Outcome;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `faults`.
#[derive(Debug, clap::Args)]
pub struct Faults {
    /// Runs
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    runs: u64,
    /// Seed of the first run; the next have the next numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Draw from these faults only; several with commas
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// File for the raw data
    #[arg(long)]
    json: Option<PathBuf>,
    /// Name of the lab
    #[arg(long, default_value = "faults", env = "TRANSHIP_LAB")]
    lab: String,
    /// Leave the lab up
    #[arg(long)]
    keep: bool,
}

impl Faults {
    /// Does all runs; fails when one of them violated a promise.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let exe = std::env::current_exe()?;
        let mut ground = Ground::make(&self.lab, exe.clone())?;
        let mut outcomes = Vec::new();
        for seed in self.seed..self.seed.saturating_add(self.runs) {
            let outcome = run::run(&mut ground, Plan::of(seed, &self.only));
            self.tell(&outcome);
            let spoiled = outcome.lost || !outcome.violations.is_empty();
            outcomes.push(outcome);
            if let Some(path) = &self.json {
                let text = serde_json::to_string_pretty(&outcomes)?;
                std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
            }
            if spoiled {
                ground.lab().down()?;
                ground = Ground::make(&self.lab, exe.clone())?;
            }
        }
        if !self.keep {
            ground.lab().down()?;
        }
        println!("{}", table::told(&outcomes));
        let failed = outcomes.iter().filter(|o| !o.violations.is_empty()).count();
        println!("{} passed, {failed} failed", outcomes.len() - failed);
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn tell(&self, o: &Outcome) {
        let end = match o.moved {
            Some(true) => "moved",
            Some(false) => "stayed",
            None if o.lost => "lost, its fill process being dead",
            None => "lost sight of",
        };
        let doubt = if o.in_doubt { ", in doubt meanwhile" } else { "" };
        let struck = if o.struck { "" } else { " (did not strike)" };
        println!(
            "seed {}: {}: {}{struck} ... {end}{doubt}, gap {} ms ({:.1} s)",
            o.plan.seed,
            o.plan.kind.name(),
            o.told,
            o.gap_ms,
            std::time::Duration::from_millis(o.took_ms).as_secs_f64()
        );
        if o.violations.is_empty() {
            return;
        }
        for violation in &o.violations {
            println!("  VIOLATION: {violation}");
        }
        println!("{}", o.logs);
        let only: Vec<String> = self.only.iter().map(|k| k.name()).collect();
        let only = if only.is_empty() { String::new() } else { format!(" --only {}", only.join(",")) };
        println!("  again: tranship-lab faults --runs 1 --seed {}{only}", o.plan.seed);
    }
}
