//! The `tranship` command: asks agents, shows what they say, and gives back a stable exit code.
//!
//! It decides nothing about a migration: the agents do, and go on when this program is killed. So
//! everything here is about asking the right agent, showing its answer safely (what an agent
//! sends is hostile input, down to escape sequences), and saying what to do when it fails.
//!
//! * [`cli`]: one file per command; [`spec`]: values that a user types, checked before anything
//!   is sent;
//! * [`client`]: the Unix socket and QUIC, TLS failures in words;
//! * [`fleet`]: which agent to talk to, and which host has a container;
//! * [`follow`] and [`progress`]: a migration under way, as bars, lines or JSON;
//! * [`drill`]: migrations broken on purpose;
//! * [`pki`]: the fleet's own certificates;
//! * [`exit`] and [`error`]: exit codes and how errors read.
#![forbid(unsafe_code)]

pub mod cli;
pub mod client;
pub mod config;
pub mod drill;
pub mod error;
pub mod exit;
pub mod fleet;
pub mod follow;
pub mod near;
pub mod output;
pub mod pki;
pub mod progress;
pub mod spec;

use clap::{CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Entry point of both binaries.
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os().collect()))
}

/// Whether the program was called as `migrate`.
fn called_as_migrate(args: &[OsString]) -> bool {
    args.first().is_some_and(|a| Path::new(a).file_name().is_some_and(|n| n == "migrate"))
}

/// Runs a command line, its program name first, and answers the exit code.
pub fn run(args: Vec<OsString>) -> u8 {
    let json = asks_for_json(&args);
    let parsed = if called_as_migrate(&args) {
        let command = cli::MigrateCli::command();
        command
            .try_get_matches_from(args)
            .and_then(|m| cli::MigrateCli::from_arg_matches(&m))
            .map(cli::Cli::from)
    } else {
        let command = cli::Cli::command();
        command.try_get_matches_from(args).and_then(|m| cli::Cli::from_arg_matches(&m))
    };
    match parsed {
        Ok(cli) => cli::execute(cli),
        Err(e) => report_usage(&e, json),
    }
}

/// Help and version go to stdout with code 0, the rest is a usage error.
fn report_usage(e: &clap::Error, json: bool) -> u8 {
    // A closed pipe while printing help is not worth another error.
    let _ = e.print();
    if !e.use_stderr() {
        return exit::DONE;
    }
    if json {
        let text = e.render().to_string();
        let message = text.trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned();
        let error = error::Error::usage(message).hint("see --help");
        output::Output::new(output::Format::Json).json("error", &error.to_json());
    }
    exit::USAGE
}

/// The format has to be known even when the command line does not parse.
fn asks_for_json(args: &[OsString]) -> bool {
    let before_command = args.iter().take_while(|a| *a != "--").collect::<Vec<_>>();
    before_command.iter().any(|a| *a == "--output=json")
        || before_command.windows(2).any(|w| w[0] == "--output" && w[1] == "json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_name_decides_only_by_its_last_part() {
        for (name, expected) in [
            ("migrate", true),
            ("/usr/bin/migrate", true),
            ("./tranship", false),
            ("/opt/migrate/tranship", false),
            ("tranship-migrate", false),
        ] {
            assert_eq!(called_as_migrate(&[name.into()]), expected, "{name}");
        }
        assert!(!called_as_migrate(&[]));
    }

    #[test]
    fn the_format_is_found_in_a_line_that_does_not_parse() {
        let words = |s: &str| s.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(asks_for_json(&words("tranship ps --output json --nonsense")));
        assert!(asks_for_json(&words("tranship --output=json")));
        assert!(!asks_for_json(&words("tranship run -- x --output json")));
        assert!(!asks_for_json(&words("tranship ps --output")));
    }
}
