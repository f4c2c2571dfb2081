//! A server whose memory checks itself: the workload of `bench precopy`.
//!
//! It runs in a container and owns a block of memory in which every page is known from its number
//! and the count of times it was written. It writes random pages at a steady rate, counts on
//! request as Redis does, so that the same client can measure it, and compares all of its memory
//! with what it should be when asked to. Redis itself was rejected: to write 64 MiB/s into it costs
//! more than the move that is measured, and it cannot tell a stale page.

mod journal;
mod pages;
mod server;

use clap::ValueEnum;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// `tranship-lab workload`.
#[derive(Debug, Clone, clap::Args)]
pub struct Workload {
    /// Where to listen
    #[arg(long)]
    addr: SocketAddr,
    /// Memory in MiB
    #[arg(long)]
    mib: u32,
    /// What is in it
    #[arg(long, value_enum, default_value_t = Content::Random)]
    content: Content,
    /// MiB of random pages to write each second
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=4096))]
    write_mib: u32,
    /// MiB to write to a file each second
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=4096))]
    file_mib: u32,
    /// That file; it is made anew, and takes 32 MiB at most
    #[arg(long, default_value = "/journal", value_name = "PATH")]
    file: PathBuf,
}

/// Contents of memory before anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Content {
    /// Every page different and incompressible
    Random,
    /// Half of the pages zero, of the others every second one a copy of another
    Sparse,
}

impl Workload {
    /// Fills the memory, then serves until it is killed.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        server::run(self)
    }
}
