//! Load clients that check every byte they get back.
//!
//! They run as child processes in the client namespace (`tranship-lab load ...`), one per
//! scenario, and are driven over their standard streams: each line in is a command, each line
//! out one JSON object. Blocking sockets and threads were taken rather than an async runtime,
//! because what is measured is the time between two replies and nothing may sit in between.
//!
//! A client never reconnects: whatever ends a connection is a failure and stays in the report.

mod ask;
mod conns;
mod control;
mod fill;
mod handle;
mod http;
mod reach;
mod redis;
mod report;
mod resp;

pub use control::Control;
pub use handle::{ClientError, LoadClient};
pub use report::{Gap, Latency, LoadReport, Window};

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// `tranship-lab load KIND`: a client that checks what a server answers.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Load {
    /// Count up over one connection to Redis, and see that no number is missing.
    Redis {
        /// Where Redis listens, `ip:port` or `[ip6]:port`.
        #[arg(long)]
        addr: SocketAddr,
        /// Requests a second.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
        rate: u32,
        /// The counter.
        #[arg(long, default_value = "counter")]
        key: String,
        /// Everything about when to stop.
        #[command(flatten)]
        limits: Limits,
    },
    /// Fetch one file again and again over kept-alive connections and compare its bytes.
    Http {
        /// Where the server listens.
        #[arg(long)]
        addr: SocketAddr,
        /// The file.
        #[arg(long, default_value = "/blob")]
        path: String,
        /// Connections, each fetching on its own.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
        connections: u16,
        /// Size of the file in bytes.
        #[arg(long)]
        bytes: u64,
        /// BLAKE3 of the file, in hex.
        #[arg(long)]
        digest: String,
        /// MiB a second that each connection reads at most; 0 for no limit.
        #[arg(long, default_value_t = 32)]
        rate_mib: u32,
        /// Everything about when to stop.
        #[command(flatten)]
        limits: Limits,
    },
    /// Hold many connections to Redis, use each once in a while and all at the end.
    Conns {
        /// Where Redis listens.
        #[arg(long)]
        addr: SocketAddr,
        /// Connections.
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        count: u16,
        /// Of these, how many are used before the end.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        active: u16,
        /// Requests a second over all of them, round robin.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        rate: u32,
        /// Everything about when to stop.
        #[command(flatten)]
        limits: Limits,
    },
    /// Fill Redis with random values that do not compress.
    Fill {
        /// Where Redis listens.
        #[arg(long)]
        addr: SocketAddr,
        /// MiB of values.
        #[arg(long)]
        mib: u32,
    },
    /// Ask for one number; it is the report's last value.
    Ask {
        /// Who is asked.
        #[arg(long)]
        addr: SocketAddr,
        /// With which command.
        #[arg(long)]
        command: String,
        /// Seconds to wait at most.
        #[arg(long, default_value_t = 60)]
        patience: u64,
    },
    /// Wait until a port takes a connection.
    Reach {
        /// Which.
        #[arg(long)]
        addr: SocketAddr,
        /// Seconds to wait at most.
        #[arg(long, default_value_t = 30)]
        patience: u64,
    },
}

/// When a client stops: at the first of these, or when its input ends.
#[derive(Debug, Clone, clap::Args)]
pub struct Limits {
    /// Seconds to run at most.
    #[arg(long, default_value_t = 3600)]
    pub seconds: u64,
    /// Seconds without a reply after which the server counts as lost.
    #[arg(long, default_value_t = 60)]
    pub patience: u64,
}

impl Limits {
    fn run_time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience.max(1))
    }
}

/// Runs a client until its input ends, its time is up or the server fails it. Prints JSON lines;
/// the last one is the [`LoadReport`]. Fails (code 1) when anything was not as it should be.
pub fn run(load: Load) -> ExitCode {
    let report = match load {
        Load::Redis { addr, rate, key, limits } => redis::run(addr, rate, &key, &limits),
        Load::Http { addr, path, connections, bytes, digest, rate_mib, limits } => {
            http::run(&http::Fetch { addr, path, bytes, digest, rate_mib }, connections, &limits)
        }
        Load::Conns { addr, count, active, rate, limits } => conns::run(addr, count, active, rate, &limits),
        Load::Fill { addr, mib } => fill::run(addr, mib),
        Load::Ask { addr, command, patience } => ask::run(addr, &command, Duration::from_secs(patience)),
        Load::Reach { addr, patience } => reach::run(addr, Duration::from_secs(patience)),
    };
    let good = report.failures.is_empty();
    control::print_line("report", &report);
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
