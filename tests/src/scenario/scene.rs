//! A lab of three hosts and the steps that scenarios are made of.

use super::bounded::{self, Ended, Running, tail};
use super::packages;
use crate::client::LoadClient;
use crate::host::Host;
use crate::lab::{Lab, LabOptions};
use crate::names::LabName;
use crate::{image, progress};
use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// For commands that only ask.
const QUESTION: Duration = Duration::from_secs(30);
/// For `tranship run`: it copies a root file system.
const START: Duration = Duration::from_secs(120);
/// For a whole move.
pub(super) const MOVE: Duration = Duration::from_secs(180);

/// A lab and the program whose `load` command the clients are.
#[derive(Debug)]
pub struct Scene {
    lab: Lab,
    name: String,
    hosts: usize,
    exe: PathBuf,
}

/// A container to be started.
#[derive(Debug, Clone)]
pub struct Container {
    /// Name.
    pub name: String,
    /// Image of the lab, or the path of a root file system on the host.
    pub image: String,
    /// `(network, addresses with prefix)`.
    pub links: Vec<(String, Vec<String>)>,
    /// MAC of the first link.
    pub mac: Option<String>,
    /// `SRC:DST`.
    pub volumes: Vec<String>,
    /// Command line.
    pub args: Vec<String>,
}

impl Container {
    /// A container with one interface in `lan`, whose MAC address follows from its IPv4 address: a
    /// second container at the same address must not wait until the client forgets the first.
    pub fn new(name: &str, image: &str, ip: &str, args: &[&str]) -> Self {
        Self {
            name: name.into(),
            image: image.into(),
            links: vec![("lan".into(), vec![ip.into()])],
            mac: mac_of(ip),
            volumes: Vec::new(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
        }
    }

    /// Redis on all addresses, without persistence: what is in its memory is all there is.
    pub fn redis(name: &str, ip: &str) -> Self {
        let args = [
            "redis-server",
            "--bind",
            "* -::*",
            "--protected-mode",
            "no",
            "--save",
            "",
            "--appendonly",
            "no",
        ];
        Self::new(name, "redis", ip, &args)
    }
}

/// A finished move.
#[derive(Debug, Clone)]
pub struct Moved {
    /// The summary that the command printed.
    pub summary: serde_json::Value,
    /// From start to end of the command.
    pub took: Duration,
}

impl Scene {
    /// A scene in the lab `name` with `hosts` hosts. `exe` is the tranship-lab program.
    pub fn new(name: &str, hosts: usize, exe: PathBuf) -> anyhow::Result<Self> {
        let lab = Lab::attach_or_up(name, hosts)?;
        Ok(Self { lab, name: name.into(), hosts, exe })
    }

    /// The same with the building of the lab shown.
    pub fn with_progress(name: &str, hosts: usize, exe: PathBuf) -> anyhow::Result<Self> {
        let lab_name = LabName::new(name)?;
        if Lab::attach(&lab_name).is_err() {
            let options = LabOptions { name: lab_name, hosts, agents: true };
            Lab::up(&options, &progress::Terminal::default())?;
        }
        Self::new(name, hosts, exe)
    }

    /// A lab whose hosts run no agent: only [`Scene::on`] and the clients work.
    pub fn without_agents(name: &str, hosts: usize, exe: PathBuf) -> anyhow::Result<Self> {
        let lab_name = LabName::new(name)?;
        let lab = match Lab::attach(&lab_name) {
            Ok(lab) => lab,
            Err(_) => {
                let options = LabOptions { name: lab_name, hosts, agents: false };
                Lab::up(&options, &progress::Terminal::default())?
            }
        };
        Ok(Self { lab, name: name.into(), hosts, exe })
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A host of it.
    pub fn host(&self, name: &str) -> anyhow::Result<Host> {
        Ok(self.lab.find_host(name)?)
    }

    /// Builds an image unless it is cached; answers its directory on this machine.
    pub fn image(&self, name: &str) -> anyhow::Result<PathBuf> {
        let packages: Vec<String> = packages(name).iter().map(|p| (*p).to_owned()).collect();
        Ok(image::build(name, &packages, &progress::Terminal::default())?)
    }

    /// Runs a program on a host.
    pub fn on(&self, host: &str, args: &[&str], limit: Duration) -> anyhow::Result<Ended> {
        bounded::run(format!("{host}: {}", args.join(" ")), self.host(host)?.command(args)?, limit)
    }

    /// Runs a program on a host that has to succeed.
    pub fn on_ok(&self, host: &str, args: &[&str]) -> anyhow::Result<String> {
        self.on(host, args, QUESTION)?.ok()
    }

    /// Runs a program in the client namespace that has to succeed.
    pub fn client_ok(&self, args: &[&str]) -> anyhow::Result<String> {
        bounded::run(format!("client: {}", args.join(" ")), self.lab.client_command(args)?, QUESTION)?.ok()
    }

    /// Runs `tranship` on a host.
    pub fn tranship(&self, host: &str, args: &[&str], limit: Duration) -> anyhow::Result<Ended> {
        let mut all = vec!["tranship"];
        all.extend_from_slice(args);
        self.on(host, &all, limit)
    }

    /// Starts a container.
    pub fn start(&self, host: &str, container: &Container) -> anyhow::Result<()> {
        let rootfs = Path::new("/lab/images").join(&container.image).to_string_lossy().into_owned();
        let mut args = vec!["run", "--name", &container.name, "--rootfs", &rootfs];
        for (network, addresses) in &container.links {
            args.extend(["--net", network]);
            for address in addresses {
                args.extend(["--ip", address]);
            }
            if let Some(mac) = container.mac.as_deref().filter(|_| network == "lan") {
                args.extend(["--mac", mac]);
            }
        }
        for volume in &container.volumes {
            args.extend(["--volume", volume]);
        }
        args.push("--");
        args.extend(container.args.iter().map(String::as_str));
        self.tranship(host, &args, START)?.ok().map(drop)
    }

    /// Moves a container and insists on success: exit code 0, and the container is where it
    /// should be and nowhere else.
    pub fn migrate(&self, from: &str, name: &str, to: &str) -> anyhow::Result<Moved> {
        let ended = self.tranship(from, &["migrate", name, "--to", to, "--output", "json"], MOVE)?;
        let took = ended.took;
        let text = ended.ok().with_context(|| format!("moving {name} from {from} to {to}"))?;
        let last = text.lines().rev().find_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
        self.runs_only_on(name, to)?;
        Ok(Moved { summary: last.unwrap_or_default(), took })
    }

    /// Starts a move without waiting for it.
    pub fn migrate_begin(&self, from: &str, name: &str, to: &str) -> anyhow::Result<Running> {
        let args = ["tranship", "migrate", name, "--to", to, "--output", "json"];
        Running::start(format!("{from}: {}", args.join(" ")), self.host(from)?.command(args)?)
    }

    /// Checks in the kernel, not in the agents' books, that processes of the container exist
    /// unfrozen on `host` and in no form elsewhere.
    pub fn runs_only_on(&self, name: &str, host: &str) -> anyhow::Result<()> {
        for other in self.lab.hosts() {
            let here = self.processes(other.name(), name)?;
            match (other.name() == host, here) {
                (true, (0, _)) => bail!("{name} does not run on {host}"),
                (true, (_, true)) => bail!("{name} is frozen on {host}"),
                (false, (n, _)) if n > 0 => bail!("{n} processes of {name} are left on {}", other.name()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Number of processes in the container's cgroup on a host, and whether it is frozen.
    pub fn processes(&self, host: &str, name: &str) -> anyhow::Result<(usize, bool)> {
        let script = format!(
            "cd /sys/fs/cgroup/tranship/{name} 2>/dev/null || exit 0; \
             find . -name cgroup.procs -exec cat {{}} + | wc -l; cat cgroup.freeze"
        );
        let text = self.on_ok(host, &["sh", "-c", &script])?;
        let mut lines = text.lines();
        let count = lines.next().and_then(|l| l.trim().parse().ok()).unwrap_or(0);
        Ok((count, lines.next() == Some("1")))
    }

    /// Starts a load client in the client namespace and waits until it is connected.
    pub fn load(&self, args: &[&str]) -> anyhow::Result<LoadClient> {
        let exe = self.exe.to_string_lossy();
        let mut all = vec![exe.as_ref(), "load"];
        all.extend_from_slice(args);
        let command = self.lab.client_command(&all)?.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().context("starting a load client")?;
        LoadClient::attach(child).with_context(|| format!("load {}", args.join(" ")))
    }

    /// Runs a load client that ends by itself and insists that nothing failed.
    pub fn load_to_end(&self, args: &[&str]) -> anyhow::Result<()> {
        let exe = self.exe.to_string_lossy();
        let mut all = vec![exe.as_ref(), "load"];
        all.extend_from_slice(args);
        let what = format!("load {}", args.join(" "));
        bounded::run(what, self.lab.client_command(&all)?, Duration::from_secs(300))?.ok().map(drop)
    }

    /// Asks a server for one number from the client namespace.
    pub fn ask(&self, addr: &str, command: &str) -> anyhow::Result<i64> {
        let exe = self.exe.to_string_lossy();
        let args = [exe.as_ref(), "load", "ask", "--addr", addr, "--command", command];
        let asked = format!("asking {addr} for {command}");
        let text =
            bounded::run(asked.as_str(), self.lab.client_command(args)?, Duration::from_secs(90))?.ok()?;
        let mut lines = text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
        let value = lines.find_map(|l| l.get("report")?.get("last_value")?.as_i64());
        value.with_context(|| format!("{asked}: no number in {text:?}"))
    }

    /// Waits until a TCP port answers a connection from the client namespace.
    pub fn wait_port(&self, ip: &str, port: u16) -> anyhow::Result<()> {
        let exe = self.exe.to_string_lossy().into_owned();
        let addr = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
        let command = self.lab.client_command([exe.as_str(), "load", "reach", "--addr", &addr])?;
        bounded::run(format!("reaching {addr}"), command, Duration::from_secs(60))?.ok().map(drop)
    }

    /// The MAC address that the client namespace has for an address.
    pub fn neighbour(&self, ip: &str) -> anyhow::Result<String> {
        let text = self.client_ok(&["ip", "neigh", "show", ip])?;
        let mut words = text.split_whitespace();
        words.find(|w| *w == "lladdr");
        words.next().map(str::to_owned).with_context(|| format!("the client has no neighbour {ip}: {text:?}"))
    }

    /// Waits for a condition, asking it every 50 ms.
    pub fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let until = Instant::now() + limit;
        while !condition()? {
            ensure!(Instant::now() < until, "{what} did not happen within {} s", limit.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Nothing may be left of any migration on any host.
    pub fn audit(&self) -> anyhow::Result<()> {
        let findings = self.lab.audit_within(Duration::from_secs(10))?;
        let text: Vec<String> = findings.iter().map(ToString::to_string).collect();
        ensure!(text.is_empty(), "the audit found:\n  {}", text.join("\n  "));
        Ok(())
    }

    /// Removes every container.
    pub fn remove_all(&self) -> anyhow::Result<()> {
        for host in self.lab.hosts() {
            for name in self.containers(host.name())? {
                self.tranship(host.name(), &["rm", "--force", &name], QUESTION)?.ok()?;
            }
        }
        Ok(())
    }

    /// Names of the containers that a host's agent has.
    pub fn containers(&self, host: &str) -> anyhow::Result<Vec<String>> {
        let text = self.tranship(host, &["ps", "--output", "json"], QUESTION)?.ok()?;
        Ok(names_in(&text))
    }

    /// The end of every agent's log.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for host in self.lab.hosts() {
            let log = std::fs::read(host.agent_log()).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            text.push_str(&format!("--- end of the log of {}\n{}\n", host.name(), tail(&log, 4000)));
        }
        text
    }

    /// Makes the lab usable after a failed scenario; by force when asking is not enough.
    pub fn recover(&mut self) -> anyhow::Result<()> {
        let tried = Lab::attach_or_up(&self.name, self.hosts).map_err(anyhow::Error::from).and_then(|lab| {
            self.lab = lab;
            self.remove_all()?;
            self.audit()
        });
        if tried.is_ok() {
            return Ok(());
        }
        self.lab.down()?;
        self.lab = Lab::attach_or_up(&self.name, self.hosts)?;
        Ok(())
    }
}

/// `02:00` and the four bytes of an IPv4 address with prefix.
fn mac_of(ip: &str) -> Option<String> {
    let ip: std::net::Ipv4Addr = ip.split('/').next()?.parse().ok()?;
    let [a, b, c, d] = ip.octets();
    Some(format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}"))
}

/// Every `name` in the JSON of `ps`: an array, an object with one, or a line for each.
fn names_in(text: &str) -> Vec<String> {
    fn walk(value: &serde_json::Value, names: &mut Vec<String>) {
        match value {
            serde_json::Value::Array(all) => all.iter().for_each(|v| walk(v, names)),
            serde_json::Value::Object(map) => match map.get("name").and_then(|n| n.as_str()) {
                Some(name) if map.contains_key("state") => names.push(name.to_owned()),
                _ => map.values().for_each(|v| walk(v, names)),
            },
            _ => {}
        }
    }
    let mut names = Vec::new();
    for value in
        serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>().map_while(Result::ok)
    {
        walk(&value, &mut names);
    }
    names
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_mac_address_follows_from_the_address() {
        assert_eq!(super::mac_of("10.77.1.5/16").as_deref(), Some("02:00:0a:4d:01:05"));
        assert_eq!(super::mac_of("fd77::1/64"), None);
    }

    #[test]
    fn names_are_found_in_any_of_the_usual_shapes() {
        for text in [
            r#"[{"name":"a","state":"running"},{"name":"b","state":"stopped"}]"#,
            "{\"name\":\"a\",\"state\":\"running\"}\n{\"name\":\"b\",\"state\":\"stopped\"}\n",
            r#"{"host":{"name":"x"},"containers":[{"name":"a","state":"r"},{"name":"b","state":"r"}]}"#,
        ] {
            assert_eq!(super::names_in(text), ["a", "b"], "{text}");
        }
    }
}
