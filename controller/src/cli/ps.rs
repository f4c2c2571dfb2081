//! `tranship ps`

use super::{Context, report};
use crate::client::ClientError;
use crate::error::Error;
use crate::exit;
use crate::fleet::containers_of;
use crate::output::{table, time};
use serde_json::json;
use tranship_proto::control::{Reply, Request};
use tranship_proto::status::ContainerRow;

const EXAMPLES: &str = "\
Examples:
  tranship ps
  tranship ps --all-hosts
  tranship ps --host host-b --output json
";

/// List containers
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Ps {
    /// Ask every host of the inventory; code 3 when one of them does not answer
    #[arg(long, short = 'a', conflicts_with = "host")]
    all_hosts: bool,
}

impl Ps {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        if !self.all_hosts {
            let agent = context.fleet.agent().await?;
            let rows = containers_of(&agent).await?;
            agent.close().await;
            context.output.show("containers", "containers", &rows, || text(&rows));
            return Ok(exit::DONE);
        }
        let (mut rows, mut silent) = (Vec::new(), Vec::new());
        for (host, answer) in context.fleet.ask_all(&Request::List).await? {
            match answer {
                Ok((_, Reply::Containers(list))) => rows.extend(list),
                Ok((agent, other)) => {
                    let error: ClientError = agent.unexpected(&other, "Containers");
                    silent.push((host, Error::from(error)));
                }
                Err(e) => silent.push((host, e)),
            }
        }
        if context.output.is_json() {
            let errors: Vec<_> =
                silent.iter().map(|(host, e)| json!({ "host": host, "error": e.to_json() })).collect();
            context.output.json("containers", &json!({ "containers": rows, "errors": errors }));
        } else {
            context.output.text(&text(&rows));
            for (host, e) in &silent {
                let mut e = e.clone();
                e.failure.message = format!("{host} is missing here: {}", e.failure.message);
                report(context.output, &e);
            }
        }
        Ok(if silent.is_empty() { exit::DONE } else { exit::PARTIAL })
    }
}

fn text(rows: &[ContainerRow]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let pid = r.pid.map_or_else(|| "-".into(), |p| p.to_string());
            let mut command: String = r.command.chars().take(60).collect();
            if command.len() < r.command.len() {
                command.push_str("...");
            }
            vec![
                r.name.to_string(),
                r.host.to_string(),
                r.state.clone(),
                pid,
                r.addresses.join(","),
                time(r.created_unix_ms),
                command,
            ]
        })
        .collect();
    table(&["NAME", "HOST", "STATE", "PID", "ADDRESSES", "CREATED", "COMMAND"], &cells)
}
