//! The command line: one file for each group of commands.
//!
//! A new group is a file with a clap type and a `run`, a variant of [`Command`] and a line in
//! [`main`].

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::LabError;
use crate::lab::Lab;
use crate::names::LabName;

pub mod audit;
pub mod fault;
pub mod hosts;
pub mod image;
pub mod scenario;
pub mod up;

/// Hosts on one machine: made of namespaces, with real runc, CRIU and conmon.
#[derive(Debug, Parser)]
#[command(name = "tranship-lab", version, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make hosts host-a, host-b, ... and a client namespace, with agents running
    Up(up::Up),
    /// Remove every trace of a lab
    Down(up::Down),
    /// Show the hosts of a lab
    Status(hosts::Status),
    /// Run a program on a host; its exit code is passed through
    Enter(hosts::Enter),
    /// Run a program in the client namespace
    Client(hosts::Client),
    /// Show what a host's agent wrote
    Logs(hosts::Logs),
    /// Root file systems for containers, made of Debian packages
    #[command(subcommand)]
    Image(image::Image),
    /// Drop everything between two hosts (or a host and `client`)
    Cut(fault::Cut),
    /// Undo `cut` and `slow`, between two hosts or everywhere
    Heal(fault::Heal),
    /// Slow down what goes between two hosts
    Slow(fault::Slow),
    /// List everything a finished or failed migration should not have left on the hosts
    Audit(audit::Audit),
    /// Kill a host's agent, as a crash would
    Kill(fault::Agent),
    /// Ask a host's agent to end
    Stop(fault::Agent),
    /// Start a host's agent
    Start(fault::Agent),
    /// Run the scenarios: real servers moved under real clients
    Scenario(scenario::Scenarios),
    /// Move Redis under a client again and again, and break something each time
    Faults(crate::faults::Faults),
    /// Measure
    #[command(subcommand)]
    Bench(crate::bench::Bench),
    /// Two hosts, Redis on one, a client counting, one live migration
    Demo(crate::demo::Demo),
    /// A client that checks what a server answers (used by scenarios, in the client namespace)
    #[command(subcommand, hide = true)]
    Load(crate::client::Load),
    /// A server whose memory checks itself (used by `bench precopy`, in a container)
    #[command(hide = true)]
    Workload(crate::workload::Workload),
    /// An agent that breaks the protocol (used by scenarios, in the client namespace)
    #[command(hide = true)]
    Peer(crate::peer::Peer),
    /// The first process of a host (used by `up`)
    #[command(hide = true)]
    HostInit(up::HostInit),
}

/// Which lab a command is about.
#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// Name of the lab
    #[arg(long, default_value = "lab", env = "TRANSHIP_LAB")]
    name: String,
}

impl Which {
    fn lab_name(&self) -> crate::error::Result<LabName> {
        LabName::new(&self.name)
    }

    fn attach(&self) -> crate::error::Result<Lab> {
        Lab::attach(&self.lab_name()?)
    }
}

/// Runs the command line. Exit codes: 0 done, 1 failed (or the audit found something), 2 wrong
/// usage; `enter` and `client` pass the program's on, 128 and the signal's number if it was killed.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Up(args) => args.run(),
        Command::Down(args) => args.run(),
        Command::Status(args) => args.run(),
        Command::Enter(args) => args.run(),
        Command::Client(args) => args.run(),
        Command::Logs(args) => args.run(),
        Command::Image(args) => args.run(),
        Command::Cut(args) => args.run(),
        Command::Heal(args) => args.run(),
        Command::Slow(args) => args.run(),
        Command::Audit(args) => args.run(),
        Command::Kill(args) => args.run(fault::AgentFault::Kill),
        Command::Stop(args) => args.run(fault::AgentFault::Stop),
        Command::Start(args) => args.run(fault::AgentFault::Start),
        Command::Scenario(args) => args.run(),
        Command::Faults(args) => args.run(),
        Command::Bench(bench) => bench.run(),
        Command::Demo(args) => args.run(),
        Command::Load(load) => Ok(crate::client::run(load)),
        Command::Workload(args) => args.run(),
        Command::Peer(args) => args.run(),
        Command::HostInit(args) => args.run(),
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            // A LabError's text holds its cause already.
            let known = e.downcast_ref::<LabError>();
            match known {
                Some(known) => eprintln!("error: {known}"),
                None => eprintln!("error: {e:#}"),
            }
            let hint = known.and_then(LabError::hint);
            if let Some(hint) = hint.filter(|hint| !hint.is_empty()) {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}
