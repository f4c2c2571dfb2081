//! Measurements. Each prints its figures as a table and keeps the raw data.

mod gap;
mod podman;
mod shared;
mod stats;

pub(crate) use stats::{Spread, spread};

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// The longest silence that a client sees at 1000 requests a second while Redis is moved
    Gap(Gap),
}

/// Options of `bench gap`.
#[derive(Debug, Args)]
pub struct Gap {
    /// Random data in Redis, in MiB; several sizes with commas
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1024])]
    pub mib: Vec<u32>,
    /// What to compare with
    #[arg(long, value_enum, value_delimiter = ',')]
    pub against: Vec<Rival>,
    /// Measure only the rivals
    #[arg(long)]
    pub rivals_only: bool,
    /// Times that everything is measured, interleaved
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// File for the raw data
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Fail unless our median is at most a half of podman's up to 64 MiB, and at most a third above
    #[arg(long)]
    pub check: bool,
    /// Name of the lab
    #[arg(long, default_value = "bench")]
    pub lab: String,
    /// Leave the lab up
    #[arg(long)]
    pub keep: bool,
}

/// Other ways to move a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rival {
    /// `podman container checkpoint --export` and `restore --import`, archive handed over for free
    Podman,
    /// The same with `--compress none`
    PodmanPlain,
}

impl Bench {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Gap(gap) => gap::run(gap),
        }
    }
}
