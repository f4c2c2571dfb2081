//! The two hosts on which the runs happen, and what can be done to them.
//!
//! `state_dir` is a tmpfs of its own and `/run` is one anyway: either is made full, and empty again,
//! by mounting it anew with another size, which takes no time and no memory. The container's root
//! file system holds a Redis and nothing else, so that a run is mostly hand-over.

use super::plan::{Side, Store};
use crate::Host;
use crate::agent_config;
use crate::lab::Lab;
use crate::scenario::Scene;
use anyhow::{Context, bail, ensure};
use std::path::PathBuf;
use std::time::Duration;

/// The container that is moved.
pub(super) const NAME: &str = "counter";
const IP: &str = "10.77.1.1";
/// Where it is reached.
pub(super) const ADDR: &str = "10.77.1.1:6379";
const HOSTS: [&str; 2] = ["host-a", "host-b"];
const CONFIG: &str = "/etc/tranship/transhipd.toml";
const STATE: &str = "/var/lib/tranship";
/// Long enough for every step on a busy machine, short enough to be waited for.
const PHASE_TIMEOUT_S: i64 = 15;
const START: Duration = Duration::from_secs(60);

/// Copies a program and the libraries it needs out of the image.
const SMALL: &str = "set -e; from=/lab/images/redis; to=/srv/redis; rm -rf $to; mkdir -p $to/usr/bin $to/tmp $to/proc $to/sys $to/dev $to/etc
cp $from/usr/bin/redis-server $to/usr/bin/
for lib in $(chroot $from ldd /usr/bin/redis-server | grep -o '/[^ ]*'); do
  mkdir -p $to$(dirname $lib); cp -L $from$lib $to$lib
done";

/// The hosts, and where the container is.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) scene: Scene,
    /// Index of the host that has the container.
    at: usize,
    /// What the counter stands at.
    pub(super) count: i64,
}

impl Ground {
    /// Makes lab and container.
    pub(super) fn make(lab: &str, exe: PathBuf) -> anyhow::Result<Self> {
        let scene = Scene::with_progress(lab, 2, exe)?;
        scene.image("redis")?;
        let mut ground = Self { scene, at: 0, count: 0 };
        ground.furnish().context("making the hosts ready")?;
        Ok(ground)
    }

    fn furnish(&mut self) -> anyhow::Result<()> {
        self.scene.remove_all()?;
        for name in HOSTS {
            let host = self.scene.host(name)?;
            host.stop_agent()?;
            self.scene.on_ok(name, &["sh", "-c", SMALL])?;
            // A lab that is used again has it already.
            let mount = format!(
                "[ $(stat -f -c %T {STATE}) = tmpfs ] || mount -t tmpfs -o size=2g,mode=700 tmpfs {STATE}"
            );
            self.scene.on_ok(name, &["sh", "-c", &mount])?;
            self.configure(&host, &[])?;
            host.start_agent()?;
        }
        let command = [
            "run",
            "--name",
            NAME,
            "--rootfs",
            "/srv/redis",
            "--net",
            "lan",
            "--ip",
            "10.77.1.1/16",
            "--mac",
            "02:00:00:00:77:01",
            "--",
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
        self.scene.tranship(HOSTS[0], &command, START)?.ok()?;
        self.scene.wait_port(IP, 6379)?;
        self.at = 0;
        self.count = 0;
        Ok(())
    }

    /// Removes a container that has ended, and sees that nothing is left of it. The hosts have counted
    /// its moves and take no other container of its name for it: they are of no further use.
    pub(super) fn remove(&self, side: Side) -> anyhow::Result<()> {
        self.scene.tranship(self.name(side), &["rm", NAME], START)?.ok()?;
        self.scene.audit().context("after the removal of the lost container")
    }

    /// Whether no host has processes of the container.
    pub(super) fn is_gone(&self) -> bool {
        HOSTS.iter().all(|host| self.scene.processes(host, NAME).is_ok_and(|(count, _)| count == 0))
    }

    /// The lab.
    pub(super) fn lab(&self) -> &Lab {
        self.scene.lab()
    }

    /// Name of the host on one side of the next move.
    pub(super) fn name(&self, side: Side) -> &'static str {
        match side {
            Side::Source => HOSTS[self.at],
            Side::Destination => HOSTS[1 - self.at],
        }
    }

    /// The host on one side of the next move.
    pub(super) fn host(&self, side: Side) -> anyhow::Result<Host> {
        self.scene.host(self.name(side))
    }

    /// Finds out where the container is; it must be on one host, whole and running.
    pub(super) fn locate(&mut self) -> anyhow::Result<()> {
        let on: Vec<usize> = (0..HOSTS.len())
            .filter(|i| self.scene.processes(HOSTS[*i], NAME).is_ok_and(|(count, _)| count > 0))
            .collect();
        let [at] = on[..] else {
            bail!("the container has processes on {} hosts instead of one", on.len());
        };
        self.scene.runs_only_on(NAME, HOSTS[at])?;
        self.at = at;
        for (i, host) in HOSTS.iter().enumerate() {
            let listed = self.scene.containers(host)?;
            let expected: &[&str] = if i == at { &[NAME] } else { &[] };
            ensure!(listed == expected, "{host} lists {listed:?} instead of {expected:?}");
        }
        Ok(())
    }

    /// Writes the configuration of a host's agent, which reads it at its next start.
    pub(super) fn configure(&self, host: &Host, points: &[String]) -> anyhow::Result<()> {
        let mut table: toml::Table = agent_config::render(host.index(), HOSTS.len())?.parse()?;
        let mut limits = toml::Table::new();
        limits.insert("phase_timeout_s".into(), PHASE_TIMEOUT_S.into());
        table.insert("limits".into(), limits.into());
        let mut faults = toml::Table::new();
        faults.insert("allow_faults".into(), true.into());
        faults.insert("points".into(), points.to_vec().into());
        table.insert("faults".into(), faults.into());
        let file = host.path(CONFIG);
        std::fs::write(&file, toml::to_string(&table)?).with_context(|| format!("writing {}", file.display()))
    }

    /// The rules that the agent of a host was started with.
    pub(super) fn points(&self, host: &Host) -> anyhow::Result<Vec<String>> {
        let file = host.path(CONFIG);
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let table: toml::Table = text.parse()?;
        let points = table.get("faults").and_then(|f| f.get("points")).and_then(toml::Value::as_array);
        Ok(points.into_iter().flatten().filter_map(|p| p.as_str().map(str::to_owned)).collect())
    }

    /// Leaves no room in a host's file system, or gives it back.
    pub(super) fn fill(&self, host: &str, store: Store, full: bool) -> anyhow::Result<()> {
        let place = match store {
            Store::Disk => STATE,
            Store::Memory => "/run",
        };
        // df(1) counts in KiB here; a tmpfs takes no size below what it holds, which may grow meanwhile.
        let script = if full {
            format!(
                "for more in 8 64 512 4096; do \
                 mount -o remount,size=$(($(df -k --output=used {place} | tail -n 1) + more))k {place} 2>&1 && exit; \
                 done; exit 1"
            )
        } else {
            format!("mount -o remount,size=2g {place}")
        };
        self.scene.on_ok(host, &["sh", "-c", &script]).map(drop)
    }
}
