//! `tranship completion`

use super::commands;
use crate::error::Error;
use crate::exit;
use clap_complete::{Shell, generate};
use std::io::Write;
use tranship_proto::status::Reason;

/// Print a completion script for a shell, for both `tranship` and `migrate`
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  tranship completion bash > /etc/bash_completion.d/tranship\n  \
    tranship completion zsh > /usr/share/zsh/vendor-completions/_tranship\n")]
pub struct Completion {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completion {
    pub(super) fn execute(self) -> Result<u8, Error> {
        let mut text = Vec::new();
        for mut command in commands() {
            let name = command.get_name().to_owned();
            generate(self.shell, &mut command, name, &mut text);
        }
        // Through a buffer: the generator panics when its writer fails.
        match std::io::stdout().write_all(&text) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Error::new(Reason::Failed, format!("cannot write to stdout: {e}")))
            }
            _ => Ok(exit::DONE),
        }
    }
}
