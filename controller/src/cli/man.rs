//! `tranship man`

use super::commands;
use crate::error::Error;
use crate::exit;
use crate::output::Output;
use std::path::{Path, PathBuf};
use tranship_proto::status::Reason;

/// Write the manual pages of all commands
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  tranship man --dir /usr/local/share/man/man1\n")]
pub struct Man {
    /// Directory for the pages; made when it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl Man {
    pub(super) fn execute(self, output: Output) -> Result<u8, Error> {
        write(&self.dir).map_err(|e| {
            Error::new(Reason::Failed, format!("cannot write manual pages to {}: {e}", self.dir.display()))
        })?;
        output.show("man", "dir", &self.dir, String::new);
        Ok(exit::DONE)
    }
}

fn write(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    commands().into_iter().try_for_each(|command| clap_mangen::generate_to(command, dir))
}
