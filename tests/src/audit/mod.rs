//! What a finished or failed migration should not have left on the hosts.
//!
//! The audit looks at the kernel and the disk only: never at the agent's journal, its socket or
//! the contents of its records, since those would repeat whatever mistake left something behind.
//! What is running is decided by the OCI runtime's state and the process table. The audit wants
//! the hosts at rest: a migration in progress has every one of these things.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::host::Host;
use crate::lab::Lab;

mod disk;
mod groups;
mod mounts;
mod network;
mod processes;
mod runtime;

use processes::Process;
use runtime::Container;

/// What sort of thing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// The same container has a live process on more than one host.
    TwoCopies,
    /// A cgroup is frozen.
    FrozenCgroup,
    /// A container's cgroup holds no process.
    EmptyCgroup,
    /// Processes run in a container's cgroup, and no runtime knows that container.
    ProcessWithoutContainer,
    /// criu, a runtime or a hook still runs.
    Process,
    /// A process of the host's own that has ended and that nobody waits for.
    Zombie,
    /// A conmon whose container does not run.
    ConmonWithoutContainer,
    /// State of a runtime for a container without a live process.
    StaleRuntimeState,
    /// A table or chain made by CRIU or tranship.
    Firewall,
    /// A scheduler or filter on a link of the host.
    TrafficControl,
    /// A network namespace that is kept by a file, without a process in it.
    StrayNetns,
    /// A file where namespaces are kept that keeps none.
    StrayNetnsFile,
    /// The host's end of a container's link is down.
    FencedLink,
    /// A link of the host that belongs to no running container.
    StrayLink,
    /// An address of a bridge that is not the host's.
    StrayAddress,
    /// A mount that belongs to no running container.
    StrayMount,
    /// Images, hooks or received files of a migration.
    TemporaryData,
    /// A container's directory without a running container.
    ContainerNotRunning,
    /// A name CRIU had given to a deleted file.
    LinkRemap,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => f.write_str(&name),
            _ => fmt::Debug::fmt(self, f),
        }
    }
}

/// One thing that should not be there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// The host it is on.
    pub host: String,
    /// What sort of thing.
    pub kind: Kind,
    /// Which one: a path, a name, a process.
    pub what: String,
    /// What is wrong with it.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, kind, what, detail } = self;
        write!(f, "{host}: {kind}: {what} ({detail})")
    }
}

/// How strict the audit is.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuditOptions {
    /// Take the directory of a container that does not run for one that was stopped on purpose.
    pub allow_stopped: bool,
}

/// Everything on one host that the checks share, read once.
struct Snapshot {
    processes: Vec<Process>,
    containers: Vec<Container>,
}

impl Snapshot {
    fn running(&self) -> BTreeSet<&str> {
        self.containers.iter().filter(|c| c.live).map(|c| c.id.as_str()).collect()
    }
}

/// Collects findings of one host.
struct Report {
    host: String,
    findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, kind: Kind, what: impl Into<String>, detail: impl Into<String>) {
        self.findings.push(Finding {
            host: self.host.clone(),
            kind,
            what: what.into(),
            detail: detail.into(),
        });
    }
}

impl Lab {
    /// Looks at all hosts; empty when nothing is left over.
    pub fn audit(&self) -> Result<Vec<Finding>> {
        self.audit_with(AuditOptions::default())
    }

    /// Looks at all hosts.
    pub fn audit_with(&self, options: AuditOptions) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let mut running: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for host in self.hosts() {
            let processes = processes::read(&host)?;
            let containers = runtime::read(&host, &processes)?;
            let snapshot = Snapshot { processes, containers };
            for id in snapshot.running() {
                running.entry(id.to_owned()).or_default().push(host.name().to_owned());
            }
            let mut report = Report { host: host.name().to_owned(), findings: Vec::new() };
            check(&host, &snapshot, options, &mut report)?;
            findings.append(&mut report.findings);
        }
        for (id, hosts) in running {
            if let [first, _, ..] = hosts.as_slice() {
                findings.push(Finding {
                    host: first.clone(),
                    kind: Kind::TwoCopies,
                    what: id,
                    detail: format!("it has live processes on {}", hosts.join(" and ")),
                });
            }
        }
        findings.sort();
        Ok(findings)
    }

    /// Looks until nothing is left over or the time is up, since the last clean-up of a migration
    /// may follow its end by a moment. Returns what the last look found.
    pub fn audit_within(&self, patience: Duration) -> Result<Vec<Finding>> {
        let deadline = Instant::now() + patience;
        loop {
            let findings = self.audit()?;
            if findings.is_empty() || Instant::now() > deadline {
                return Ok(findings);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn check(host: &Host, snapshot: &Snapshot, options: AuditOptions, report: &mut Report) -> Result<()> {
    processes::check(snapshot, report);
    runtime::check(host, snapshot, options, report);
    groups::check(host, report)?;
    let kept = mounts::check(host, snapshot, report)?;
    network::check(host, snapshot, &kept, report)?;
    disk::check(host, snapshot, options, report)
}
