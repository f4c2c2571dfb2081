//! `tranship drill`

use super::links::Links;
use super::run::directory;
use super::{Context, container};
use crate::client::Target;
use crate::drill::{Drill, Fault, Outcome, Patience, Place, Probe, Target as Asked, chosen};
use crate::error::Error;
use crate::exit;
use crate::follow::Interrupts;
use crate::output::clean_line;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tranship_proto::control::{Reply, Request, RootfsSpec, RunRequest};
use tranship_proto::ids::{ContainerName, HostName};
use tranship_proto::status::{ContainerRow, Reason};

const EXAMPLES: &str = "\
Examples:
  A container that is there, with a server in it:
    tranship drill web --to host-b --probe tcp:10.77.1.1:80

  A throw-away one, which is removed afterwards:
    tranship drill canary --to host-b --rootfs /srv/images/minimal --net lan --ip 10.77.1.200/16

  Without killing agents, or one fault of your own:
    tranship drill web --to host-b --without-crashes
    tranship drill web --to host-b --fault source.record.released.after=crash

Both agents have to allow it (allow_faults = true under [faults] in transhipd.toml), and something has to
start them again when they die: the unit that comes with them does. Points and actions are in
transhipd.toml(5).

Exit code 0: every fault came to pass, and every time the container ran on exactly one host afterwards, its
clients were answered again, and it could be moved again at once. 1: a promise was broken, the drill stops
and leaves everything as it is. 3: all held, but a fault did not come to pass, so nothing is known of it.
";

/// Break migrations of a container on purpose, and see that what is promised holds
///
/// Moves a container back and forth between two hosts, with one fault each time: lost and repeated
/// messages, failing steps, agents that die. Prints what was broken, what a client of the container
/// saw, and where it ran afterwards. Clients see pauses, some of them of several seconds.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Arguments {
    /// The container; with --rootfs the name of the one to be started
    #[arg(value_name = "NAME", value_parser = container)]
    name: ContainerName,
    /// The other host
    #[arg(long, value_name = "HOST", value_parser = host)]
    to: HostName,
    /// Start a throw-away container from this root file system, on this host or on that of --host
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    #[command(flatten)]
    links: Links,
    /// What the client asks: tcp:IP:PORT, or none [default: the container's first address, any port]
    #[arg(long, value_name = "WHAT", value_parser = probe)]
    probe: Option<Asked>,
    /// Only this fault, POINT=ACTION; can be repeated
    #[arg(long, value_name = "FAULT")]
    fault: Vec<String>,
    /// Leave out the faults that kill an agent
    #[arg(long)]
    without_crashes: bool,
    /// How long an agent that died may stay away
    #[arg(long, value_name = "TIME", value_parser = crate::spec::duration, default_value = "30s")]
    restart_within: Duration,
    /// How long a move may take with all that its fault leads to
    #[arg(long, value_name = "TIME", value_parser = crate::spec::duration, default_value = "3m")]
    settle_within: Duration,
    /// Command of the throw-away container [default: a shell that sleeps]
    #[arg(last = true, value_name = "COMMAND", requires = "rootfs")]
    command: Vec<String>,
}

fn host(text: &str) -> Result<HostName, String> {
    text.parse().map_err(|e| format!("{e}"))
}

fn probe(text: &str) -> Result<Asked, String> {
    match text.strip_prefix("tcp:").map(str::parse::<SocketAddr>) {
        _ if text == "none" => Ok(Asked::None),
        Some(Ok(addr)) if addr.port() > 0 => Ok(Asked::Tcp(addr)),
        _ => Err("write tcp:10.77.1.1:80, tcp:[fd77::1]:80 or none".into()),
    }
}

impl Arguments {
    pub(super) async fn execute(self, context: &Context) -> Result<u8, Error> {
        let faults = chosen(&self.fault, !self.without_crashes).map_err(Error::usage)?;
        if faults.is_empty() {
            return Err(Error::usage(
                "every fault that was given kills an agent, and --without-crashes leaves them out",
            ));
        }
        if self.rootfs.is_none() && !self.links.0.is_empty() {
            return Err(Error::usage("--net and what belongs to it is for a throw-away container")
                .hint("give --rootfs DIR, or leave it out"));
        }
        let mut interrupts = Interrupts::new()?;
        if self.rootfs.is_some() {
            self.start(context).await?;
        }
        let mut drill = self.set_up(context).await?;
        let done = tokio::select! {
            done = walk(context, &mut drill, &faults) => done,
            _ = interrupts.next() => Err(Error::new(Reason::Cancelled, "interrupted: the move under way goes on without its fault")
                .hint(format!("`tranship status`; the container is {}", self.name))),
        };
        drill.disarm().await;
        let code = done?;
        if code != exit::FAILED && self.rootfs.is_some() {
            let [here, _] = &drill.places;
            order(here, Request::Remove { name: self.name, force: true }).await?;
        }
        Ok(code)
    }

    async fn start(&self, context: &Context) -> Result<(), Error> {
        let agent = context.fleet.agent().await?;
        let Some(rootfs) = &self.rootfs else { return Ok(()) };
        let rootfs = directory(rootfs, matches!(agent.target(), Target::Local(_)), None)?;
        let sleeping = ["sh", "-c", "while sleep 1; do :; done"];
        let args = match &self.command[..] {
            [] => sleeping.map(str::to_owned).to_vec(),
            own => own.to_vec(),
        };
        let request = RunRequest {
            name: self.name.clone(),
            rootfs: RootfsSpec::Directory(rootfs),
            links: self.links.0.clone(),
            volumes: Vec::new(),
            env: Vec::new(),
            args,
            cwd: None,
            user: None,
            hostname: None,
        };
        request.check().map_err(|e| Error::usage(e.to_string()))?;
        let mut replies = agent.open(Request::Run(request)).await?;
        match replies.next().await? {
            Reply::Done(_) => Ok(()),
            Reply::Failed(failure) => Err(failure.into()),
            other => Err(agent.unexpected(&other, "Done").into()),
        }
    }

    /// Both agents, the client, and everything checked that a drill needs.
    async fn set_up(&self, context: &Context) -> Result<Drill, Error> {
        let found = context.fleet.locate(&self.name, None).await?;
        if found.row.host == self.to {
            return Err(Error::usage(format!("{} is on {} already", self.name, self.to))
                .hint("name the other host of the drill with --to"));
        }
        if found.row.state != "running" {
            let text = format!(
                "{} is {} on {}: a drill takes one that runs",
                self.name, found.row.state, found.row.host
            );
            return Err(Error::new(Reason::Busy, text));
        }
        let target = match self.probe {
            Some(target) => target,
            None => first_address(&found.row)?,
        };
        let other = context.fleet.named(&self.to).await?;
        let drill = Drill {
            name: self.name.clone(),
            places: [
                Place { host: found.row.host, agent: found.agent },
                Place { host: self.to.clone(), agent: other },
            ],
            probe: Probe { target },
            patience: Patience { restart: self.restart_within, settle: self.settle_within },
        };
        drill.prepare().await?;
        if !drill.probe.answers().await {
            let text =
                format!("{target} does not answer from here, so a drill could not tell what clients see");
            return Err(Error::new(Reason::Unreachable, text)
                .hint("name a server in the container with --probe tcp:IP:PORT, run this where its clients are, or say --probe none"));
        }
        Ok(drill)
    }
}

fn first_address(row: &ContainerRow) -> Result<Asked, Error> {
    let ip = row.addresses.iter().find_map(|a| a.split('/').next()?.parse::<IpAddr>().ok());
    ip.map(Asked::Address).ok_or_else(|| {
        Error::usage(format!("{} has no address that a client could ask", row.name)).hint("say --probe none")
    })
}

async fn order(place: &Place, request: Request) -> Result<(), Error> {
    match place.agent.ask(request).await? {
        Reply::Done(_) => Ok(()),
        other => Err(place.agent.unexpected(&other, "Done").into()),
    }
}

/// Every fault in turn, until a promise is broken; answers the exit code.
async fn walk(context: &Context, drill: &mut Drill, faults: &[Fault]) -> Result<u8, Error> {
    let (mut unmet, mut broken, mut done) = (0, 0, 0);
    for (i, fault) in faults.iter().enumerate() {
        let outcome = drill.one(fault).await?;
        show(context, &outcome, i + 1, faults.len());
        done += 1;
        unmet += usize::from(!outcome.met);
        broken += outcome.broken.len();
        if broken > 0 {
            break;
        }
    }
    let code = match (broken, unmet) {
        (0, 0) => exit::DONE,
        (0, _) => exit::PARTIAL,
        _ => exit::FAILED,
    };
    if context.output.is_json() {
        let fields = json!({ "faults": faults.len(), "done": done, "unmet": unmet, "broken": broken, "exit_code": code });
        context.output.json("drill", &fields);
    } else {
        let held = if broken == 0 { "every promise held" } else { "A PROMISE WAS BROKEN" };
        context
            .output
            .text(&format!("{done} of {} faults, {unmet} did not come to pass: {held}", faults.len()));
    }
    Ok(code)
}

fn show(context: &Context, o: &Outcome, number: usize, of: usize) {
    if context.output.is_json() {
        context.output.json("drill_fault", &serde_json::to_value(o).unwrap_or(Value::Null));
        return;
    }
    let mut text = format!("{number}/{of}  {} on {}: {}\n", o.fault, o.on, o.what);
    text.push_str(&format!("  {} -> {}: {}\n", o.from, o.to, clean_line(&o.told)));
    if !o.met {
        text.push_str("  the fault did not come to pass\n");
    }
    if let Some(saw) = &o.client {
        text.push_str(&format!(
            "  the client had {} answers, and none for {} ms at most\n",
            saw.answers, saw.longest_silence_ms
        ));
    }
    match &o.runs_on {
        Some(host) => text.push_str(&format!(
            "  it runs on {host} and nowhere else, after {:.1} s",
            o.took_ms as f64 / 1e3
        )),
        None => text.push_str("  where it runs is not known"),
    }
    for broken in &o.broken {
        text.push_str(&format!("\n  BROKEN: {}", clean_line(broken)));
    }
    context.output.text(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_a_server_or_nothing() {
        assert_eq!(probe("tcp:10.77.1.1:80"), Ok(Asked::Tcp("10.77.1.1:80".parse().unwrap())));
        assert_eq!(probe("tcp:[fd77::1]:80"), Ok(Asked::Tcp("[fd77::1]:80".parse().unwrap())));
        assert_eq!(probe("none"), Ok(Asked::None));
        for bad in ["10.77.1.1:80", "tcp:10.77.1.1", "tcp:host:80", "tcp:10.77.1.1:0", "ping"] {
            assert!(probe(bad).is_err(), "{bad}");
        }
    }
}
