//! `tranship-lab scenario`: the scenarios that the lab tests run, by hand.

use std::process::ExitCode;

use crate::scenario::{self, Scene};

/// Which scenarios to run.
#[derive(Debug, clap::Args)]
pub struct Scenarios {
    /// Only those whose names contain one of these words; all without
    names: Vec<String>,
    /// Show their names and end
    #[arg(long)]
    list: bool,
    /// Name of the lab
    #[arg(long, default_value = "tests", env = "TRANSHIP_LAB")]
    lab: String,
    /// Leave the lab up
    #[arg(long)]
    keep: bool,
}

impl Scenarios {
    /// Runs them; fails when one fails.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        if self.list {
            for scenario in scenario::ALL {
                println!("{}", scenario.name);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut scene = Scene::new(&self.lab, 3, std::env::current_exe()?)?;
        let tally = scenario::run(&mut scene, &self.names);
        if !self.keep {
            scene.lab().down()?;
        }
        Ok(if tally.failed == 0 && tally.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
