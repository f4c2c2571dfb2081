//! `tranship stop`

use super::{Context, container, order};
use crate::error::Error;
use tranship_proto::control::Request;
use tranship_proto::ids::ContainerName;

/// Stop a container
///
/// Sends SIGTERM, and SIGKILL when the container still runs after the timeout.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  tranship stop web\n  tranship stop db --timeout 60\n")]
pub struct Stop {
    /// The container
    #[arg(value_name = "NAME", value_parser = container)]
    name: ContainerName,
    /// Seconds from SIGTERM to SIGKILL
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    timeout: u64,
}

impl Stop {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        let agent = context.fleet.agent().await?;
        order(context, &agent, Request::Stop { name: self.name, timeout_ms: self.timeout * 1000 }).await
    }
}
