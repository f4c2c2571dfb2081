//! `tranship hosts`

use super::Context;
use crate::error::Error;
use crate::exit;
use crate::fleet::hosts_of;
use crate::output::{bytes, clean_line, micros, table};
use tranship_proto::control::{Reply, Request};
use tranship_proto::status::HostRow;

/// List the hosts of the fleet and what they can do
///
/// The local agent (or that of --host) asks each host of its inventory. Without a local agent the
/// hosts of the configuration are asked from here.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  tranship hosts\n  tranship hosts --output json\n")]
pub struct Hosts {}

impl Hosts {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        let agent = context.fleet.agent().await?;
        let rows = match hosts_of(&agent).await {
            Ok(rows) => rows,
            Err(e) if e.is_lost() && !context.fleet.is_chosen() => match from_here(context).await {
                Ok(rows) => rows,
                // Without an inventory of its own the first error is the one to act on.
                Err(_) => return Err(e.into()),
            },
            Err(e) => return Err(e.into()),
        };
        agent.close().await;
        context.output.show("hosts", "hosts", &rows, || text(&rows));
        Ok(exit::DONE)
    }
}

async fn from_here(context: &Context) -> Result<Vec<HostRow>, Error> {
    let entries = context.fleet.inventory().await?;
    let answers = context.fleet.ask_all(&Request::HostInfo).await?;
    let rows = entries.into_iter().zip(answers).map(|(entry, (name, answer))| {
        let (info, problem) = match answer {
            Ok((_, Reply::HostInfo(info))) => (Some(info), None),
            Ok((agent, other)) => (None, Some(agent.unexpected(&other, "HostInfo").to_string())),
            Err(e) => (None, Some(e.failure.message)),
        };
        // The time taken would include the handshake: not a round trip.
        HostRow { name, address: entry.address, rtt_us: None, info, problem }
    });
    Ok(rows.collect())
}

fn text(rows: &[HostRow]) -> String {
    let header = [
        "HOST",
        "ADDRESS",
        "RTT",
        "AGENT",
        "KERNEL",
        "CRIU",
        "RUNC",
        "NETWORKS",
        "CTRS",
        "MOVES",
        "MEM FREE",
        "DISK FREE",
    ];
    let mut notes = Vec::new();
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let rtt = r.rtt_us.map_or_else(|| "-".into(), micros);
            if let Some(problem) = &r.problem {
                notes.push(format!("{}: {}", r.name, clean_line(problem)));
            }
            let mut row = vec![r.name.to_string(), r.address.clone(), rtt];
            match &r.info {
                Some(i) => {
                    notes.extend(i.problems.iter().map(|p| format!("{}: unfit: {}", r.name, clean_line(p))));
                    row.extend([
                        i.version.clone(),
                        i.kernel.clone(),
                        i.criu.clone(),
                        i.runc.clone(),
                        i.networks.join(","),
                        i.containers.to_string(),
                        i.migrations.to_string(),
                        bytes(i.memory_available_mib.saturating_mul(1 << 20)),
                        bytes(i.disk_available_mib.saturating_mul(1 << 20)),
                    ]);
                }
                None => row.push("no answer".into()),
            }
            row
        })
        .collect();
    let mut text = table(&header, &cells);
    for note in notes {
        text.push('\n');
        text.push_str(&note);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_proto::status::HostInfo;

    #[test]
    fn a_silent_host_is_a_row_and_a_note() {
        let info = HostInfo {
            host: "host-a".parse().unwrap(),
            version: "0.1.0".into(),
            kernel: "6.12".into(),
            arch: "x86_64".into(),
            criu: "4.2.1".into(),
            runc: "1.3.6".into(),
            networks: vec!["lan".into()],
            containers: 2,
            migrations: 0,
            memory_available_mib: 2048,
            disk_available_mib: 0,
            problems: vec!["criu check fails".into()],
        };
        let a = HostRow {
            name: "host-a".parse().unwrap(),
            address: "10.0.0.1:7717".into(),
            rtt_us: Some(420),
            info: Some(info),
            problem: None,
        };
        let b = HostRow {
            name: "host-b".parse().unwrap(),
            address: "10.0.0.2:7717".into(),
            rtt_us: None,
            info: None,
            problem: Some("host-b does not answer".into()),
        };
        let shown = text(&[a, b]);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[1].contains("420 us") && lines[1].contains("2.0 GiB"), "{shown}");
        assert!(lines[2].ends_with("no answer"), "{shown}");
        assert_eq!(lines[3], "host-a: unfit: criu check fails");
        assert_eq!(lines[4], "host-b: host-b does not answer");
    }
}
