//! `transhipd`: a thin shell around the agent's library.

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use tranship_agent::config::{self, Config};
use tranship_agent::journal::JournalError;
use tranship_agent::wire_rate::{self, WireRate};
use tranship_agent::{chain, daemon, hook, memory};

/// The journal is damaged. The unit does not start the agent again on this one.
const DAMAGED: u8 = 3;

/// The tranship agent: checkpoints, moves and restores containers of this host.
#[derive(Debug, Parser)]
#[command(name = "transhipd", version, about, long_about = None, after_help = "\
Examples:
  transhipd                                  run with /etc/tranship/transhipd.toml
  transhipd --config ./host-a.toml           run with another file
  transhipd check-config                     check the file and the certificates, start nothing

Exit codes: 0 stopped in order; 1 could not start, the message says why; 2 usage; 3 the journal is damaged:
nothing was started or changed.")]
struct Arguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH, global = true, env = "TRANSHIPD_CONFIG")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the configuration and the certificates, and say what is wrong.
    CheckConfig,
    /// Measure what one QUIC stream carries between two hosts.
    #[command(hide = true)]
    WireRate(WireRate),
    /// Put a damaged journal aside and begin a new one; read docs/in-doubt.md first.
    NewJournal,
    /// Hold a restore until the agent decides; called by CRIU's action script.
    #[command(hide = true)]
    Hook {
        /// Arguments of the script.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Fill the memory of a restored container in; called by the agent.
    #[command(hide = true)]
    Fill {
        /// Arguments of the agent's.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Fetch the descriptors by which the memory of processes is watched; called by the agent.
    #[command(hide = true)]
    Watch {
        /// Processes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        pids: Vec<std::ffi::OsString>,
    },
}

fn main() -> ExitCode {
    // Before anything else: hook and fill are started inside a blackout, a watch has to end before its
    // round, and fill may not have a second thread.
    let mut raw = std::env::args_os().skip(1);
    match raw.next() {
        Some(word) if word == "hook" => return hook::hook_main(raw),
        Some(word) if word == "fill" => return memory::fill::fill_main(raw),
        Some(word) if word == "watch" => return memory::source::watch_main(raw),
        _ => {}
    }
    let arguments = Arguments::parse();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(e) => return fail(&e),
    };
    match arguments.command {
        Some(Command::CheckConfig) => match tranship_agent::transport::endpoint::load_tls(&config.tls) {
            Ok(_) => {
                println!(
                    "{}: good; host {}, listening on {}",
                    arguments.config.display(),
                    config.host,
                    config.listen
                );
                ExitCode::SUCCESS
            }
            Err(e) => fail(&e),
        },
        Some(Command::WireRate(end)) => match wire_rate::run(config, end) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => fail(&*e),
        },
        Some(Command::NewJournal) => match daemon::new_journal(&config) {
            Ok(aside) => {
                println!("the journal is in {} now, and a new one is begun", aside.display());
                ExitCode::SUCCESS
            }
            Err(e) => fail(&*e),
        },
        _ => match daemon::run(config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => fail(&*e),
        },
    }
}

fn fail(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("error: {}", chain(error));
    let Some(journal) = error.downcast_ref::<JournalError>() else { return ExitCode::FAILURE };
    if let Some(hint) = journal.hint() {
        eprintln!("hint: {hint}");
    }
    match journal {
        JournalError::Damaged { .. } => ExitCode::from(DAMAGED),
        _ => ExitCode::FAILURE,
    }
}
