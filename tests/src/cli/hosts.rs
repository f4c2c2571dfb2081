//! `status`, `enter`, `client`, `logs`.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;

use super::Which;
use crate::names::Network;
use crate::run::LabCommand;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Status {
    #[command(flatten)]
    which: Which,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    hosts: Vec<ShownHost>,
    client: Vec<String>,
    faults: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ShownHost {
    name: String,
    addresses: Vec<String>,
    init_pid: i32,
    agent_pid: Option<i32>,
    processes: usize,
}

impl Status {
    /// Prints the hosts.
    pub fn run(&self) -> Result<ExitCode> {
        let lab = self.which.attach()?;
        let mut hosts = Vec::new();
        for host in lab.hosts() {
            let index = host.index();
            hosts.push(ShownHost {
                name: host.name().to_owned(),
                addresses: Network::ALL
                    .iter()
                    .flat_map(|n| [n.host_v4(index).to_string(), n.host_v6(index).to_string()])
                    .collect(),
                init_pid: host.init_pid(),
                agent_pid: host.agent_pid()?,
                processes: host.processes()?.len(),
            });
        }
        let shown = Shown {
            name: lab.name().to_string(),
            hosts,
            client: Network::ALL
                .iter()
                .flat_map(|n| [n.client_v4().to_string(), n.client_v6().to_string()])
                .collect(),
            faults: lab.faults_in_force()?,
        };
        if self.json {
            println!("{}", serde_json::to_string(&shown)?);
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header(["HOST", "ADDRESSES", "INIT", "AGENT", "PROCESSES"]);
        for host in &shown.hosts {
            let agent = host.agent_pid.map_or("-".to_owned(), |pid| pid.to_string());
            table.add_row([
                host.name.clone(),
                host.addresses.join(" "),
                host.init_pid.to_string(),
                agent,
                host.processes.to_string(),
            ]);
        }
        let blank = String::new;
        table.add_row(["client".to_owned(), shown.client.join(" "), blank(), blank(), blank()]);
        println!("{table}");
        for fault in &shown.faults {
            println!("fault: {fault}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `enter`.
#[derive(Debug, clap::Args)]
pub struct Enter {
    #[command(flatten)]
    which: Which,
    /// host-a, host-b, ...
    host: String,
    /// Program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Enter {
    /// Runs the program on the host.
    pub fn run(&self) -> Result<ExitCode> {
        let host = self.which.attach()?.find_host(&self.host)?;
        pass_through(host.command(&self.command)?)
    }
}

/// Arguments of `client`.
#[derive(Debug, clap::Args)]
pub struct Client {
    #[command(flatten)]
    which: Which,
    /// Program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Client {
    /// Runs the program in the client namespace.
    pub fn run(&self) -> Result<ExitCode> {
        pass_through(self.which.attach()?.client_command(&self.command)?)
    }
}

fn pass_through(command: LabCommand) -> Result<ExitCode> {
    let status = command.instead_of_self()?;
    Ok(exit_code(status))
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub struct Logs {
    #[command(flatten)]
    which: Which,
    /// host-a, host-b, ...
    host: String,
    /// Go on showing what is added
    #[arg(short, long)]
    follow: bool,
}

impl Logs {
    /// Copies the log to standard output.
    pub fn run(&self) -> Result<ExitCode> {
        let path = self.which.attach()?.find_host(&self.host)?.agent_log();
        let mut log = match File::open(&path) {
            Ok(log) => log,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.follow => {
                eprintln!("{} has had no agent", self.host);
                return Ok(ExitCode::SUCCESS);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                File::create(&path).with_context(|| format!("cannot create {}", path.display()))?
            }
            Err(e) => return Err(e).with_context(|| format!("cannot open {}", path.display())),
        };
        let mut out = io::stdout();
        loop {
            if let Err(e) = io::copy(&mut log, &mut out) {
                if e.kind() == io::ErrorKind::BrokenPipe {
                    return Ok(ExitCode::SUCCESS);
                }
                return Err(e).context("cannot copy the log");
            }
            if !self.follow || !path.exists() {
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(Duration::from_millis(200));
            // A log that was cut short is shown from its start.
            if log.metadata()?.size() < log.stream_position()? {
                log.seek(SeekFrom::Start(0))?;
            }
        }
    }
}
