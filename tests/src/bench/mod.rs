//! Measurements. Each prints its figures as a table, says of each bar whether it is met, and keeps
//! the raw data.

mod bars;
mod contender;
mod gap;
mod measure;
mod meter;
mod netns;
mod plot;
mod podman;
mod precopy;
pub(crate) mod program;
mod raw;
mod runc;
mod scale;
mod shared;
mod stats;

pub use contender::Contender;
pub(crate) use stats::{Spread, spread};

use crate::scenario::Scene;
use clap::{Args, Subcommand};
use measure::Cell;
use std::path::PathBuf;
use std::process::ExitCode;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// The longest silence that a client sees at 1000 requests a second while Redis is moved
    Gap(Gap),
    /// What grows with a container's memory and connections: silence, memory, processor time
    Scale(Scale),
    /// Moves of memory that is written to, incompressible, or mostly empty
    Precopy(Precopy),
    /// Tables and pictures (SVG) from the raw data of the others
    Plot(Plot),
}

/// Options of every benchmark.
#[derive(Debug, Args)]
pub struct Common {
    /// Times that everything is measured, interleaved
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// File for the raw data
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Fail unless every bar is met
    #[arg(long)]
    pub check: bool,
    /// Name of the lab
    #[arg(long, default_value = "bench")]
    pub lab: String,
    /// Leave the lab up
    #[arg(long)]
    pub keep: bool,
}

impl Common {
    fn scene(&self, agents: bool) -> anyhow::Result<Scene> {
        let exe = std::env::current_exe()?;
        if agents { Scene::new(&self.lab, 2, exe) } else { Scene::without_agents(&self.lab, 2, exe) }
    }

    /// Ends the lab. A measurement that failed shows what the agents said first.
    fn end<T>(&self, scene: &Scene, result: anyhow::Result<T>) -> anyhow::Result<T> {
        if result.is_err() {
            eprintln!("{}", scene.logs());
        }
        let down = if self.keep { Ok(()) } else { scene.lab().down() };
        let done = result?;
        down?;
        Ok(done)
    }

    fn code(&self, good: bool) -> ExitCode {
        if let Some(path) = &self.json {
            println!("raw data: {}", path.display());
        }
        if good || !self.check { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Options of `bench gap`.
#[derive(Debug, Args)]
pub struct Gap {
    /// Random data in Redis, in MiB; several sizes with commas
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1024])]
    pub mib: Vec<u32>,
    /// What to compare with
    #[arg(long, value_enum, value_delimiter = ',')]
    pub against: Vec<Contender>,
    /// Measure only the rivals
    #[arg(long)]
    pub rivals_only: bool,
    /// Times that rivals are measured, spread over the runs; as often as ourselves by default
    #[arg(long)]
    pub rival_runs: Option<u32>,
    /// What every benchmark has
    #[command(flatten)]
    pub common: Common,
}

/// Options of `bench scale`.
#[derive(Debug, Args)]
pub struct Scale {
    /// Random data in Redis, in MiB; several sizes with commas
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 1024, 4096])]
    pub mib: Vec<u32>,
    /// Connections in the measurement that has many, with the least data; 1 % of them are in use
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(2..=5000))]
    pub connections: u16,
    /// Times that podman is measured beside us
    #[arg(long, default_value_t = 3)]
    pub rival_runs: u32,
    /// What every benchmark has
    #[command(flatten)]
    pub common: Common,
}

/// Options of `bench precopy`.
#[derive(Debug, Args)]
pub struct Precopy {
    /// Memory of the container in MiB
    #[arg(long, default_value_t = 1024)]
    pub mib: u32,
    /// What every benchmark has
    #[command(flatten)]
    pub common: Common,
}

/// Options of `bench plot`.
#[derive(Debug, Args)]
pub struct Plot {
    /// Directory with `gap.json`, `scale.json`, `precopy.json`; the pictures go there, too
    #[arg(long)]
    pub dir: PathBuf,
}

impl Bench {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Gap(gap) => gap::run(gap),
            Self::Scale(scale) => scale::run(scale),
            Self::Precopy(precopy) => precopy::run(precopy),
            Self::Plot(plot) => plot::run(&plot.dir),
        }
    }
}

/// What to measure in which order: all cells in each run, every second run the other way round,
/// rivals in `rival_runs` of the runs.
fn plan(cells: Vec<Cell>, runs: u32, rival_runs: Option<u32>) -> Vec<(u32, Cell)> {
    let rival_runs = rival_runs.unwrap_or(runs).min(runs);
    let mut plan = Vec::new();
    for run in 0..runs {
        let rivals = (run + 1) * rival_runs / runs > run * rival_runs / runs;
        let mut order: Vec<Cell> =
            cells.iter().filter(|c| rivals || c.contender == Contender::Tranship).copied().collect();
        if run % 2 == 1 {
            order.reverse();
        }
        plan.extend(order.into_iter().map(|cell| (run, cell)));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rivals_are_measured_as_often_as_asked() {
        let cell = |contender| Cell { contender, mib: 64, connections: 1 };
        let cells = vec![cell(Contender::Tranship), cell(Contender::Podman)];
        for (rival_runs, expected) in [(None, 15), (Some(0), 0), (Some(4), 4), (Some(15), 15), (Some(99), 15)]
        {
            let plan = plan(cells.clone(), 15, rival_runs);
            let count = |contender| plan.iter().filter(|(_, c)| c.contender == contender).count();
            assert_eq!((count(Contender::Tranship), count(Contender::Podman)), (15, expected));
        }
        let order: Vec<_> = plan(cells, 2, None).into_iter().map(|(_, c)| c.contender.name()).collect();
        assert_eq!(order, ["tranship", "podman", "podman", "tranship"]);
    }
}
