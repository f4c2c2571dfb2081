//! Which agent to talk to, and which host has a container or a migration.
//!
//! The local agent is asked first: that needs no certificate. Other hosts are reached over QUIC
//! with the operator's certificate; their addresses come from the configuration, else from the
//! local agent's inventory.

use crate::client::{Agent, ClientError, Identity};
use crate::config::{Config, HostEntry};
use crate::error::Error;
use crate::near::did_you_mean;
use crate::spec::HostRef;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;
use tranship_proto::control::{Reply, Request};
use tranship_proto::ids::{ContainerName, HostName};
use tranship_proto::status::{ContainerRow, HostRow, MigrationStatus, Reason, Side};

/// How long one host may take when all are asked.
const EACH: Duration = Duration::from_secs(10);
/// How long the local agent may take to ask its whole inventory.
const INVENTORY: Duration = Duration::from_secs(60);
/// Hosts asked at the same time: enough to be quick, few enough for the local socket buffers.
const AT_ONCE: usize = 32;

/// How agents are found.
pub struct Fleet {
    socket: PathBuf,
    chosen: Option<HostRef>,
    config_path: PathBuf,
    config_required: bool,
    config: OnceCell<Config>,
    identity: OnceCell<Arc<Identity>>,
}

/// What one host answered, and its agent for further questions.
pub type Answer = (HostName, Result<(Arc<Agent>, Reply), Error>);

/// A container that was found.
pub struct Located {
    /// Its host's agent.
    pub agent: Arc<Agent>,
    /// What that host says of it.
    pub row: ContainerRow,
}

impl Fleet {
    /// A fleet seen from this machine. Nothing is read or opened yet.
    pub fn new(
        socket: PathBuf,
        chosen: Option<HostRef>,
        config_path: PathBuf,
        config_required: bool,
    ) -> Self {
        let (config, identity) = (OnceCell::new(), OnceCell::new());
        Self { socket, chosen, config_path, config_required, config, identity }
    }

    /// Whether `--host` was given.
    pub fn is_chosen(&self) -> bool {
        self.chosen.is_some()
    }

    /// The agent that commands go to: the chosen host's, else the local one.
    pub async fn agent(&self) -> Result<Arc<Agent>, Error> {
        match &self.chosen {
            Some(HostRef { name, address: Some(address) }) => self.remote(name.clone(), address).await,
            Some(HostRef { name, address: None }) => self.named(name).await,
            None => Ok(self.local()),
        }
    }

    /// The agent of a host of the inventory.
    pub async fn named(&self, name: &HostName) -> Result<Arc<Agent>, Error> {
        let hosts = match self.inventory().await {
            Ok(hosts) => hosts,
            Err(e) if e.failure.reason != Reason::Unreachable => return Err(e),
            Err(e) => {
                let hint =
                    format!("name it in [[hosts]] of the configuration, or give --host {name}=ADDRESS:PORT");
                let mut new =
                    Error::new(Reason::Unreachable, format!("cannot look up the address of {name}"));
                new.causes.push(e.failure.message.clone());
                new.causes.extend(e.causes);
                return Err(new.hint(hint));
            }
        };
        if self.local_name().await.as_ref() == Some(name) {
            return Ok(self.local());
        }
        match hosts.iter().find(|h| h.name == *name) {
            Some(entry) => self.remote(entry.name.clone(), &entry.address).await,
            None => {
                let known = hosts.iter().map(|h| h.name.as_str());
                let hint = did_you_mean("known hosts", name.as_str(), known)
                    .unwrap_or_else(|| "name it in [[hosts]] of the configuration".into());
                Err(Error::new(Reason::UnknownHost, format!("no host {name} in the inventory")).hint(hint))
            }
        }
    }

    fn local(&self) -> Arc<Agent> {
        Arc::new(Agent::local(&self.socket))
    }

    /// Name of this host, when an agent runs here and the socket was not ruled out by `--host`.
    async fn local_name(&self) -> Option<HostName> {
        if self.is_chosen() || !self.socket.exists() {
            return None;
        }
        let agent = self.local();
        agent.ask_within(Request::HostInfo, EACH).await.ok()?;
        agent.host().cloned()
    }

    async fn remote(&self, name: HostName, address: &str) -> Result<Arc<Agent>, Error> {
        Ok(Arc::new(Agent::remote(name, address, self.identity().await?)))
    }

    async fn config(&self) -> Result<&Config, Error> {
        let load = || async { Config::load(&self.config_path, self.config_required).map_err(Error::from) };
        self.config.get_or_try_init(load).await
    }

    async fn identity(&self) -> Result<Arc<Identity>, Error> {
        let tls = &self.config().await?.tls;
        let load = || async { Ok::<_, Error>(Arc::new(Identity::load(tls)?)) };
        self.identity.get_or_try_init(load).await.cloned()
    }

    /// The hosts with their addresses.
    pub async fn inventory(&self) -> Result<Vec<HostEntry>, Error> {
        let config = self.config().await?;
        if !config.hosts.is_empty() {
            return Ok(config.hosts.clone());
        }
        let rows = hosts_of(&self.local()).await?;
        Ok(rows.into_iter().map(|r| HostEntry { name: r.name, address: r.address }).collect())
    }

    /// Asks every host of the inventory the same; answers in the inventory's order.
    pub async fn ask_all(&self, request: &Request) -> Result<Vec<Answer>, Error> {
        self.ask_all_within(request, EACH).await
    }

    /// [`Self::ask_all`], with this time for each.
    pub async fn ask_all_within(&self, request: &Request, each: Duration) -> Result<Vec<Answer>, Error> {
        let hosts = self.inventory().await?;
        let local = self.local_name().await;
        let limit = Arc::new(Semaphore::new(AT_ONCE));
        let mut answers: Vec<Option<Answer>> = hosts.iter().map(|_| None).collect();
        let mut work = JoinSet::new();
        for (i, entry) in hosts.iter().enumerate() {
            let agent = if local.as_ref() == Some(&entry.name) {
                self.local()
            } else {
                match self.remote(entry.name.clone(), &entry.address).await {
                    Ok(agent) => agent,
                    Err(e) => {
                        answers[i] = Some((entry.name.clone(), Err(e)));
                        continue;
                    }
                }
            };
            let (request, limit) = (request.clone(), limit.clone());
            work.spawn(async move {
                // The semaphore is never closed.
                let _turn = limit.acquire().await;
                let reply = agent.ask_within(request, each).await;
                (i, reply.map(|r| (agent, r)).map_err(Error::from))
            });
        }
        while let Some(done) = work.join_next().await {
            let (i, result) =
                done.map_err(|e| Error::new(Reason::Internal, format!("asking a host failed: {e}")))?;
            answers[i] = Some((hosts[i].name.clone(), result));
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Finds the host that has a container: the one named by `from` or `--host`, else this one,
    /// else any of the inventory.
    pub async fn locate(&self, name: &ContainerName, from: Option<&HostName>) -> Result<Located, Error> {
        if from.is_some() || self.is_chosen() {
            let agent = match from {
                Some(host) => self.named(host).await?,
                None => self.agent().await?,
            };
            let rows = containers_of(&agent).await?;
            let at = agent.name();
            let names: Vec<String> = rows.iter().map(|r| r.name.to_string()).collect();
            return match rows.into_iter().find(|r| r.name == *name) {
                Some(row) => Ok(Located { agent, row }),
                None => Err(unknown_container(name, &at, &names)),
            };
        }
        let local = self.local();
        let mut seen = Vec::new();
        let here = match containers_of(&local).await {
            Ok(rows) => {
                seen.extend(rows.iter().map(|r| r.name.to_string()));
                if let Some(row) = rows.into_iter().find(|r| r.name == *name && owned(r)) {
                    return Ok(Located { agent: local, row });
                }
                Ok(local.name())
            }
            Err(e) => Err(e),
        };
        let everywhere = match (self.ask_all(&Request::List).await, here) {
            (Ok(answers), _) => answers,
            // A broken configuration is not to pass for an empty inventory.
            (Err(e), _) if e.failure.reason != Reason::Unreachable => return Err(e),
            // No inventory beyond this host: its own answer is the whole truth.
            (Err(_), Ok(host)) => return Err(unknown_container(name, &host, &seen)),
            (Err(_), Err(e)) => return Err(e.into()),
        };
        self.pick(name, everywhere, seen)
    }

    fn pick(
        &self,
        name: &ContainerName,
        answers: Vec<Answer>,
        mut seen: Vec<String>,
    ) -> Result<Located, Error> {
        let (mut found, mut silent, mut asked) = (Vec::new(), Vec::new(), 0);
        for (host, answer) in answers {
            match answer {
                Ok((agent, Reply::Containers(rows))) => {
                    asked += 1;
                    seen.extend(rows.iter().map(|r| r.name.to_string()));
                    found.extend(
                        rows.into_iter()
                            .filter(|r| r.name == *name && owned(r))
                            .map(|row| Located { agent: agent.clone(), row }),
                    );
                }
                Ok((agent, other)) => {
                    silent.push((host, Error::from(agent.unexpected(&other, "Containers"))))
                }
                Err(e) => silent.push((host, e)),
            }
        }
        let hosts: Vec<String> = found.iter().map(|l: &Located| l.row.host.to_string()).collect();
        match (found.pop(), found.is_empty()) {
            (Some(one), true) => Ok(one),
            (Some(_), false) => {
                Err(Error::usage(format!("container {name} is on {}", hosts.join(" and on ")))
                    .hint("say which one is meant with --from HOST"))
            }
            (None, _) if silent.is_empty() => {
                Err(unknown_container(name, &format!("any of {asked} hosts"), &seen))
            }
            (None, _) => {
                let names: Vec<String> = silent.iter().map(|(h, _)| h.to_string()).collect();
                let text =
                    format!("container {name} was not found, and {} could not be asked", names.join(", "));
                let reason = silent.first().map_or(Reason::Unreachable, |(_, e)| e.failure.reason);
                let mut error = Error::new(reason, text);
                error.causes =
                    silent.iter().map(|(h, e)| format!("{h}: {}", e.failure.message)).take(8).collect();
                let hint = silent.into_iter().find_map(|(_, e)| e.failure.hint);
                Err(error.hint(hint.unwrap_or_else(|| "see `tranship hosts`".into())))
            }
        }
    }

    /// Finds a migration by its id or short id; answers an agent that decides about it, which is
    /// its source where that can be reached.
    pub async fn find_migration(&self, id: &str) -> Result<(Arc<Agent>, MigrationStatus), Error> {
        let first = self.agent().await?;
        let unknown = match status_of(&first, id).await {
            Ok(row) => return self.towards_source(first, row).await,
            Err(e) if e.failure.reason == Reason::UnknownMigration && !self.is_chosen() => e,
            Err(e) => return Err(e),
        };
        let request = Request::Status { id: Some(id.to_owned()) };
        let Ok(answers) = self.ask_all(&request).await else { return Err(unknown) };
        let mut best = None;
        for (_, answer) in answers {
            if let Ok((agent, Reply::Migrations(rows))) = answer
                && let Some(row) = rows.into_iter().next()
            {
                if row.side == Side::Source {
                    return Ok((agent, row));
                }
                best = Some((agent, row));
            }
        }
        best.ok_or(unknown)
    }

    async fn towards_source(
        &self,
        agent: Arc<Agent>,
        row: MigrationStatus,
    ) -> Result<(Arc<Agent>, MigrationStatus), Error> {
        if row.side == Side::Destination
            && let Ok(source) = self.named(&row.source).await
            && let Ok(seen) = status_of(&source, &row.migration.to_string()).await
        {
            return Ok((source, seen));
        }
        Ok((agent, row))
    }
}

/// A container that is still arriving belongs to the host that it comes from.
fn owned(row: &ContainerRow) -> bool {
    row.state != "arriving"
}

/// The containers of one host.
pub async fn containers_of(agent: &Agent) -> Result<Vec<ContainerRow>, ClientError> {
    match agent.ask(Request::List).await? {
        Reply::Containers(rows) => Ok(rows),
        other => Err(agent.unexpected(&other, "Containers")),
    }
}

/// An agent's inventory.
pub async fn hosts_of(agent: &Agent) -> Result<Vec<HostRow>, ClientError> {
    match agent.ask_within(Request::Hosts, INVENTORY).await? {
        Reply::Hosts(rows) => Ok(rows),
        other => Err(agent.unexpected(&other, "Hosts")),
    }
}

/// One migration as an agent knows it.
pub async fn status_of(agent: &Agent, id: &str) -> Result<MigrationStatus, Error> {
    let unknown = || {
        Error::new(Reason::UnknownMigration, format!("{} knows no migration {id}", agent.name()))
            .hint("see `tranship status` and `tranship history`, there and on the source host")
    };
    match agent.ask(Request::Status { id: Some(id.to_owned()) }).await? {
        Reply::Migrations(rows) => match rows.len() {
            0 => Err(unknown()),
            1 => rows.into_iter().next().ok_or_else(unknown),
            n => Err(Error::usage(format!("{id} names {n} migrations")).hint("give the whole id")),
        },
        other => Err(agent.unexpected(&other, "Migrations").into()),
    }
}

fn unknown_container(name: &ContainerName, at: &str, known: &[String]) -> Error {
    let error = Error::new(Reason::UnknownContainer, format!("no container {name} on {at}"));
    match did_you_mean("containers there", name.as_str(), known.iter().map(String::as_str)) {
        Some(hint) => error.hint(hint),
        None if known.is_empty() => error.hint("there is no container at all; `tranship run` starts one"),
        None => error.hint("see `tranship ps --all-hosts`"),
    }
}
