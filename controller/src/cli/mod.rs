//! The command line: one file per command.

mod cancel;
mod completion;
mod drill;
mod history;
mod hosts;
mod inspect;
mod links;
mod logs;
mod man;
mod migrate;
mod pki;
mod ps;
mod resolve;
mod rm;
mod run;
mod status;
mod stop;
mod watch;

use crate::client::{Agent, ClientError};
use crate::config;
use crate::error::Error;
use crate::exit;
use crate::fleet::Fleet;
use crate::output::{Format, Output};
use crate::spec::{self, HostRef};
use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::json;
use std::path::PathBuf;
use tranship_proto::control::{Reply, Request};
use tranship_proto::ids::ContainerName;
use tranship_proto::status::Reason;

/// Where the local agent listens unless `--socket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/tranship/agent.sock";

const EXAMPLES: &str = "\
Examples:
  tranship run --name web --rootfs /srv/web-root --net lan --ip 10.77.1.1/16 -- /usr/sbin/nginx
  tranship migrate web --to host-b
  tranship hosts
  tranship ps --all-hosts
  tranship status --watch
  tranship ps --host host-b=10.77.0.2:7717
";

fn help_end() -> String {
    format!("{EXAMPLES}\n{}", exit::help())
}

/// Live migration of containers between hosts
///
/// tranship moves a running container from one Linux host to another: its memory, its open files,
/// its established TCP connections, its IP and MAC addresses. Clients do not notice, and at no
/// moment do two copies run.
///
/// Commands go to the agent (transhipd) of this host through its Unix socket, or with --host to
/// the agent of another host over QUIC, with the operator's certificate named in the configuration.
#[derive(Debug, Parser)]
#[command(name = "tranship", version, max_term_width = 100, after_long_help = help_end(), subcommand_required = true,
          arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Move a running container to another host
///
/// The same as `tranship migrate`.
#[derive(Debug, Parser)]
#[command(name = "migrate", version, max_term_width = 100, after_long_help = migrate::help_end(true))]
pub struct MigrateCli {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    migrate: migrate::Migrate,
}

impl From<MigrateCli> for Cli {
    fn from(m: MigrateCli) -> Self {
        Self { global: m.global, command: Command::Migrate(m.migrate) }
    }
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Format of results on stdout
    ///
    /// With json every line is one object with "schema" and "type"; progress comes as objects of
    /// type "event", an error as one of type "error". Units are in the names of the fields.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// Talk to the agent of this host instead of the local one
    ///
    /// The address is looked up in the configuration, else in the local agent's inventory, unless
    /// it is given here. The name has to be the one in the host's certificate.
    #[arg(long, global = true, value_name = "NAME[=ADDR:PORT]", value_parser = spec::host_ref)]
    host: Option<HostRef>,
    /// Unix socket of the local agent
    #[arg(long, global = true, value_name = "PATH", env = "TRANSHIP_SOCKET", default_value = DEFAULT_SOCKET, hide_env_values = true)]
    socket: PathBuf,
    /// Configuration with the operator's certificate and the inventory [default: /etc/tranship/tranship.toml]
    #[arg(long, global = true, value_name = "FILE", env = "TRANSHIP_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
}

impl Global {
    fn fleet(&self) -> Fleet {
        let path = self.config.clone().unwrap_or_else(|| config::DEFAULT_PATH.into());
        Fleet::new(self.socket.clone(), self.host.clone(), path, self.config.is_some())
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // each is documented at its own type, and the text there is its help
pub enum Command {
    Migrate(migrate::Migrate),
    Run(run::Run),
    Ps(ps::Ps),
    Inspect(inspect::Inspect),
    Logs(logs::Logs),
    Stop(stop::Stop),
    Rm(rm::Rm),
    Hosts(hosts::Hosts),
    Status(status::Status),
    History(history::History),
    Watch(watch::Watch),
    Cancel(cancel::Cancel),
    Resolve(resolve::Resolve),
    Drill(drill::Arguments),
    Pki(pki::Pki),
    Completion(completion::Completion),
    Man(man::Man),
}

/// What a command works with.
pub struct Context {
    /// Results.
    pub output: Output,
    /// Agents.
    pub fleet: Fleet,
}

/// Runs a parsed command and answers its exit code.
pub fn execute(cli: Cli) -> u8 {
    let output = Output::new(cli.global.output);
    let context = Context { output, fleet: cli.global.fleet() };
    // One thread is enough: there is one user, and the agents do the work.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(&context, cli.command)),
        Err(e) => Err(Error::new(Reason::Internal, format!("cannot start: {e}"))),
    };
    result.unwrap_or_else(|error| {
        report(output, &error);
        error.code()
    })
}

/// Prints an error where it belongs.
pub fn report(output: Output, error: &Error) {
    if output.is_json() {
        output.json("error", &error.to_json());
    }
    to_stderr(&error.to_text());
}

fn to_stderr(text: &str) {
    use std::io::Write;
    // stderr may be closed; there is nobody to tell then.
    let _ = writeln!(std::io::stderr(), "{text}");
}

async fn dispatch(context: &Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::Migrate(c) => c.execute(context).await,
        Command::Run(c) => c.execute(context).await,
        Command::Ps(c) => c.execute(context).await,
        Command::Inspect(c) => c.execute(context).await,
        Command::Logs(c) => c.execute(context).await,
        Command::Stop(c) => c.execute(context).await,
        Command::Rm(c) => c.execute(context).await,
        Command::Hosts(c) => c.execute(context).await,
        Command::Status(c) => c.execute(context).await,
        Command::History(c) => c.execute(context).await,
        Command::Watch(c) => c.execute(context).await,
        Command::Cancel(c) => c.execute(context).await,
        Command::Resolve(c) => c.execute(context).await,
        Command::Drill(c) => c.execute(context).await,
        Command::Pki(c) => c.execute(context.output),
        Command::Completion(c) => c.execute(),
        Command::Man(c) => c.execute(context.output),
    }
}

/// Name of a container on the command line.
fn container(text: &str) -> Result<ContainerName, String> {
    text.parse().map_err(|e| format!("{e}"))
}

/// Sends a request that is answered by a few words, waiting as long as it takes.
async fn order(context: &Context, agent: &Agent, request: Request) -> Result<u8, Error> {
    let mut replies = agent.open(request).await?;
    let text = match replies.next().await? {
        Reply::Done(text) => text,
        Reply::Failed(failure) => return Err(ClientError::Refused(Box::new(failure)).into()),
        other => return Err(agent.unexpected(&other, "Done").into()),
    };
    drop(replies);
    agent.close().await;
    if context.output.is_json() {
        context.output.json("done", &json!({ "message": text }));
    } else if !text.is_empty() {
        context.output.text(&crate::output::clean(&text));
    }
    Ok(exit::DONE)
}

/// The whole command tree, for completion and manual pages.
pub fn commands() -> [clap::Command; 2] {
    [Cli::command(), MigrateCli::command()]
}
