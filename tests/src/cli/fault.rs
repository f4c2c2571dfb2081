//! `cut`, `heal`, `slow`, and `kill`, `stop`, `start` of agents.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::Which;
use crate::error::LabError;
use crate::fault::{parse_delay, parse_rate};

/// Arguments of `cut`.
#[derive(Debug, clap::Args)]
pub struct Cut {
    #[command(flatten)]
    which: Which,
    /// A host, or `client`
    a: String,
    /// Another host, or `client`
    b: String,
}

impl Cut {
    /// Cuts the wire.
    pub fn run(&self) -> Result<ExitCode> {
        self.which.attach()?.cut(&self.a, &self.b)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `heal`.
#[derive(Debug, clap::Args)]
pub struct Heal {
    #[command(flatten)]
    which: Which,
    /// A host, or `client`; without, everything is healed
    #[arg(requires = "b")]
    a: Option<String>,
    /// Another host, or `client`
    b: Option<String>,
}

impl Heal {
    /// Undoes faults of the network.
    pub fn run(&self) -> Result<ExitCode> {
        let lab = self.which.attach()?;
        match (&self.a, &self.b) {
            (Some(a), Some(b)) => lab.heal(a, b)?,
            _ => lab.heal_all()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `slow`.
#[derive(Debug, clap::Args)]
pub struct Slow {
    #[command(flatten)]
    which: Which,
    /// A host, or `client`
    a: String,
    /// Another host, or `client`
    b: String,
    /// Bits a second each way: 500kbit, 100mbit, 1gbit
    #[arg(long, value_parser = |text: &str| parse_rate(text).map_err(|e| e.to_string()))]
    rate: u64,
    /// Delay each way: 20ms, 1s
    #[arg(long, value_parser = |text: &str| parse_delay(text).map_err(|e| e.to_string()))]
    delay: Option<Duration>,
}

impl Slow {
    /// Slows the wire down.
    pub fn run(&self) -> Result<ExitCode> {
        let delay = self.delay.unwrap_or_default();
        self.which.attach()?.slow(&self.a, &self.b, self.rate, delay)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `kill`, `stop` and `start`.
#[derive(Debug, clap::Args)]
pub struct Agent {
    #[command(flatten)]
    which: Which,
    /// host-a, host-b, ...
    host: String,
    /// What on the host
    what: AgentWord,
}

/// The only thing on a host that can be killed, stopped and started.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum AgentWord {
    /// transhipd
    Agent,
}

/// What happens to the agent.
#[derive(Debug, Clone, Copy)]
pub enum AgentFault {
    /// SIGKILL
    Kill,
    /// SIGTERM
    Stop,
    /// A new process
    Start,
}

impl Agent {
    /// Does it and waits until it is done.
    pub fn run(&self, fault: AgentFault) -> Result<ExitCode> {
        let host = self.which.attach()?.find_host(&self.host)?;
        let AgentWord::Agent = self.what;
        match fault {
            AgentFault::Kill => host.kill_agent(),
            AgentFault::Stop => host.stop_agent(),
            AgentFault::Start => host.start_agent(),
        }
        .map_err(LabError::into)
        .map(|()| ExitCode::SUCCESS)
    }
}
