//! `tranship rm`

use super::{Context, container, order};
use crate::error::Error;
use tranship_proto::control::Request;
use tranship_proto::ids::ContainerName;

/// Remove a container with its root file system and managed volumes
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  tranship rm web\n  tranship rm web --force\n")]
pub struct Rm {
    /// The container
    #[arg(value_name = "NAME", value_parser = container)]
    name: ContainerName,
    /// Even when it runs
    #[arg(long)]
    force: bool,
}

impl Rm {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        let agent = context.fleet.agent().await?;
        order(context, &agent, Request::Remove { name: self.name, force: self.force }).await
    }
}
