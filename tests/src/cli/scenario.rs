//! `tranship-lab scenario`: the scenarios that the lab tests run, by hand.

use std::process::ExitCode;

use crate::names::LabName;
use crate::scenario::{self, Scene, side_by_side};

/// Which scenarios to run.
#[derive(Debug, clap::Args)]
pub struct Scenarios {
    /// Only those whose names contain one of these words; all without
    names: Vec<String>,
    /// Show their names and end
    #[arg(long)]
    list: bool,
    /// Only the one with this whole name, and no count
    #[arg(long, hide = true)]
    exact: bool,
    /// Name of the lab
    #[arg(long, default_value = "tests", env = "TRANSHIP_LAB")]
    lab: String,
    /// Run in so many labs at a time: the second has this name with a 2, and so on
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
    labs: u8,
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
        let exe = std::env::current_exe()?;
        let mut chosen = scenario::chosen(&self.names);
        chosen.retain(|s| !self.exact || self.names.iter().any(|name| name == s.name));
        let tally = if self.labs == 1 {
            let mut scene = Scene::new(&self.lab, 3, exe)?;
            let tally = scenario::run(&mut scene, &chosen);
            if !self.keep {
                scene.lab().down()?;
            }
            tally
        } else {
            let name = |n| if n == 1 { self.lab.clone() } else { format!("{}{n}", self.lab) };
            let labs = (1..=self.labs).map(|n| LabName::new(&name(n))).collect::<Result<Vec<_>, _>>()?;
            side_by_side::run(&exe, &labs, &chosen, self.keep)?
        };
        if !self.exact {
            println!("{tally}");
        }
        Ok(if tally.failed == 0 && tally.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
