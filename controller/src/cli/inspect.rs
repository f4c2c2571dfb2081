//! `tranship inspect`

use super::{Context, container};
use crate::error::Error;
use crate::exit;
use crate::output::clean;
use serde_json::{Value, json};
use tranship_proto::control::{Reply, Request};
use tranship_proto::ids::ContainerName;

/// Show everything known of a container, as JSON
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  tranship inspect web\n  tranship inspect web --host host-b --output json\n"
)]
pub struct Inspect {
    /// The container
    #[arg(value_name = "NAME", value_parser = container)]
    name: ContainerName,
}

impl Inspect {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        let agent = context.fleet.agent().await?;
        let document = match agent.ask(Request::Inspect { name: self.name }).await? {
            Reply::Document(text) => text,
            other => return Err(agent.unexpected(&other, "Document").into()),
        };
        agent.close().await;
        let value: Value = serde_json::from_str(&document).unwrap_or(Value::String(document));
        if context.output.is_json() {
            context.output.json("container", &json!({ "container": value }));
        } else {
            // JSON escapes most control characters, but not all that a terminal acts on.
            let text = serde_json::to_string_pretty(&value).unwrap_or_default();
            let lines: Vec<_> = text.lines().map(clean).collect();
            context.output.text(&lines.join("\n"));
        }
        Ok(exit::DONE)
    }
}
