//! `up`, `down`, and the hidden `host-init`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::Which;
use crate::host_init::HostSpec;
use crate::lab::{Lab, LabOptions};
use crate::progress::{Progress, Terminal};

/// Arguments of `up`.
#[derive(Debug, clap::Args)]
pub struct Up {
    #[command(flatten)]
    which: Which,
    /// Number of hosts
    #[arg(long, default_value_t = 2)]
    hosts: usize,
    /// Do not start agents; the programs under test need not be built
    #[arg(long)]
    no_agent: bool,
}

impl Up {
    /// Makes the lab.
    pub fn run(&self) -> Result<ExitCode> {
        let progress = Terminal::default();
        let options = LabOptions { name: self.which.lab_name()?, hosts: self.hosts, agents: !self.no_agent };
        let lab = Lab::up(&options, &progress)?;
        let named =
            if lab.name().as_str() == "lab" { String::new() } else { format!(" --name {}", lab.name()) };
        progress.step(&format!(
            "lab {} is up: {} hosts and a client namespace",
            lab.name(),
            lab.hosts().len()
        ));
        eprintln!("try: tranship-lab enter{named} host-a -- bash");
        eprintln!("end: tranship-lab down{named}");
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `down`.
#[derive(Debug, clap::Args)]
pub struct Down {
    #[command(flatten)]
    which: Which,
}

impl Down {
    /// Removes the lab.
    pub fn run(&self) -> Result<ExitCode> {
        let name = self.which.lab_name()?;
        if crate::teardown::down(&name)? {
            eprintln!("lab {name} is removed");
        } else {
            eprintln!("there is no lab {name}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `host-init`.
#[derive(Debug, clap::Args)]
pub struct HostInit {
    /// File with the description of the host
    spec: PathBuf,
}

impl HostInit {
    /// Makes a host and stays as its first process.
    pub fn run(&self) -> Result<ExitCode> {
        let spec = HostSpec::load(&self.spec)?;
        crate::host_init::run(&spec)?;
        Ok(ExitCode::SUCCESS)
    }
}
