//! A container walked through faults, one at a time, back and forth between two hosts.
//!
//! Nothing that an agent says during a move counts. What counts is what both say when nothing is
//! under way any more, and what a client of the container saw all the time. A fault is taken back
//! after each move, and forgotten by the agent itself should this command die.
//!
//! Rejected: asking the hosts' kernels, as the lab does. An operator's own fleet is reached through
//! its agents; whoever doubts them can look with `runc list` while a drill runs.

mod faults;
mod probe;

pub use faults::{Fault, chosen};
pub use probe::{Probe, Saw, Target};

use crate::client::Agent;
use crate::error::Error;
use crate::fleet::containers_of;
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tranship_proto::control::{MigrateOptions, MigrateRequest, Reply, Request};
use tranship_proto::ids::{ContainerName, HostName};
use tranship_proto::status::{EventBody, Reason, Side};

/// How long an agent may take to answer what it knows before it counts as gone.
const ANSWER: Duration = Duration::from_secs(3);
/// Between two looks at the agents.
const LOOK: Duration = Duration::from_millis(200);
/// How long the client may have to wait for a container that runs again.
const HEARD: Duration = Duration::from_secs(10);
/// After how long an agent forgets a fault: longer than any move of a drill.
const FORGET_S: u32 = 900;

/// One of the two hosts.
#[derive(Clone)]
pub struct Place {
    /// Its name.
    pub host: HostName,
    /// Its agent.
    pub agent: Arc<Agent>,
}

/// How long a drill waits.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For an agent that died, until it is started again.
    pub restart: Duration,
    /// For a move and everything that its fault leads to.
    pub settle: Duration,
}

/// A drill under way.
pub struct Drill {
    /// The container.
    pub name: ContainerName,
    /// Where it is, and the other host. Swapped when it has moved.
    pub places: [Place; 2],
    /// The client.
    pub probe: Probe,
    /// Limits.
    pub patience: Patience,
}

/// What came of one fault.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// `POINT=ACTION`.
    pub fault: String,
    /// The host whose agent had it.
    pub on: HostName,
    /// The fault in words.
    pub what: String,
    /// Where the move began.
    pub from: HostName,
    /// Where to.
    pub to: HostName,
    /// Whether the fault came to pass: the point may not be on the way of this container.
    pub met: bool,
    /// What whoever asked for the move was told.
    pub told: String,
    /// What the client saw; absent without one.
    pub client: Option<Saw>,
    /// The one host where the container runs afterwards.
    pub runs_on: Option<HostName>,
    /// Promises that were broken.
    pub broken: Vec<String>,
    /// From the request to the end, in milliseconds.
    pub took_ms: u64,
}

/// What both agents say of the container.
enum View {
    /// It runs on one host and nothing is under way.
    Runs(usize),
    /// Not yet, in words.
    Unsettled(String),
    /// An agent does not answer.
    Silent(usize),
    /// It runs on both.
    Twice,
}

impl Drill {
    /// Checks that faults are allowed on both hosts and none is on.
    ///
    /// # Errors
    /// The refusal of the first host that does not allow it, or what was on.
    pub async fn prepare(&self) -> Result<(), Error> {
        for place in &self.places {
            let on = set(place, Vec::new()).await.map_err(|mut e| {
                e.failure.message = format!("{}: {}", place.host, e.failure.message);
                e
            })?;
            if !on.is_empty() {
                let text = format!(
                    "{} had faults switched on, which are off now until its agent starts again: {}",
                    place.host,
                    on.join(", ")
                );
                return Err(Error::new(Reason::Busy, text).hint(
                    "take them out of [faults] in its transhipd.toml, or let the other drill end; then try again",
                ));
            }
        }
        Ok(())
    }

    /// Takes every fault back. What cannot be reached forgets it by itself.
    pub async fn disarm(&self) {
        for place in &self.places {
            let _ = set(place, Vec::new()).await;
        }
    }

    /// Moves the container with one fault, and waits for the end of all that follows.
    ///
    /// # Errors
    /// When the drill cannot go on: a fault that an agent does not know. Broken promises are in the
    /// outcome.
    pub async fn one(&mut self, fault: &Fault) -> Result<Outcome, Error> {
        let began = Instant::now();
        let [from, to] = self.places.clone();
        let on = if fault.side == Side::Source { &from } else { &to };
        set(on, vec![fault.rule.clone()]).await?;
        let client = self.probe.begin().await;
        let told = self.migrate(&from, &to).await;
        let mut outcome = Outcome {
            fault: fault.rule.clone(),
            on: on.host.clone(),
            what: fault.what.clone(),
            from: from.host.clone(),
            to: to.host.clone(),
            met: false,
            told,
            client: None,
            runs_on: None,
            broken: Vec::new(),
            took_ms: 0,
        };
        match self.settle(began).await {
            Ok(at) => {
                outcome.runs_on = Some(self.places[at].host.clone());
                self.places.rotate_left(at);
            }
            Err(broken) => outcome.broken.push(broken),
        }
        // An agent that was started again has not got it any more: it was met.
        outcome.met = set(on, Vec::new()).await.is_ok_and(|unmet| unmet.is_empty());
        if let Some(client) = client {
            if outcome.runs_on.is_some() && !client.heard_within(HEARD).await {
                outcome.broken.push(format!("the client was not answered for {} s", HEARD.as_secs()));
            }
            let saw = client.end().await;
            outcome.broken.extend(
                saw.connection_lost.iter().map(|why| format!("the client's connection broke: {why}")),
            );
            outcome.client = Some(saw);
        }
        outcome.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(outcome)
    }

    /// Asks for the move and answers what was told of it.
    async fn migrate(&self, from: &Place, to: &Place) -> String {
        let request = Request::Migrate(MigrateRequest {
            container: self.name.clone(),
            to: to.host.clone(),
            dry_run: false,
            options: MigrateOptions::default(),
        });
        let mut replies = match from.agent.open(request).await {
            Ok(replies) => replies,
            Err(e) => return format!("nothing: {e}"),
        };
        let told = async {
            loop {
                match replies.next().await {
                    Ok(Reply::Event(event)) => match event.body {
                        EventBody::Done { .. } => return format!("moved to {}", to.host),
                        EventBody::Failed { failure } => return format!("failed: {failure}"),
                        _ => {}
                    },
                    Ok(Reply::Failed(failure)) => return format!("refused: {failure}"),
                    Ok(Reply::End) => return "nothing: the agent stopped".into(),
                    Ok(_) => {}
                    Err(e) => return format!("nothing: {e}"),
                }
            }
        };
        let limit = self.patience.settle;
        tokio::time::timeout(limit, told)
            .await
            .unwrap_or_else(|_| format!("nothing within {} s", limit.as_secs()))
    }

    /// Waits until the container runs on one host and nothing is under way; the index of that host.
    async fn settle(&self, began: Instant) -> Result<usize, String> {
        let mut silent: [Option<Instant>; 2] = [None; 2];
        loop {
            let why = match self.look().await {
                View::Runs(at) => return Ok(at),
                View::Twice => {
                    let [a, b] = &self.places;
                    return Err(format!("{} runs on {} and on {}", self.name, a.host, b.host));
                }
                View::Unsettled(why) => {
                    silent = [None; 2];
                    why
                }
                View::Silent(i) => {
                    let since = silent[i].get_or_insert_with(Instant::now);
                    let host = &self.places[i].host;
                    if since.elapsed() > self.patience.restart {
                        return Err(format!(
                            "the agent of {host} has not answered for {} s: is it started again when it dies \
                             (`systemctl status transhipd` there)?",
                            self.patience.restart.as_secs()
                        ));
                    }
                    format!("{host} does not answer")
                }
            };
            if began.elapsed() > self.patience.settle {
                return Err(format!("not settled within {} s: {why}", self.patience.settle.as_secs()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self) -> View {
        let mut running = Vec::new();
        let mut unsettled = Vec::new();
        for (i, place) in self.places.iter().enumerate() {
            let Ok(Reply::Migrations(open)) =
                place.agent.ask_within(Request::Status { id: None }, ANSWER).await
            else {
                return View::Silent(i);
            };
            let Ok(Ok(rows)) = tokio::time::timeout(ANSWER, containers_of(&place.agent)).await else {
                return View::Silent(i);
            };
            if open.iter().any(|m| m.container == self.name) {
                unsettled.push(format!("a migration is under way on {}", place.host));
            }
            match rows.into_iter().find(|r| r.name == self.name) {
                Some(row) if row.state == "running" => running.push(i),
                Some(row) => unsettled.push(format!("{} on {}", row.state, place.host)),
                None => {}
            }
        }
        match running[..] {
            [_, _] => View::Twice,
            [one] if unsettled.is_empty() => View::Runs(one),
            [] if unsettled.is_empty() => View::Unsettled(format!("{} is on neither host", self.name)),
            _ => View::Unsettled(unsettled.join(", ")),
        }
    }
}

/// Replaces the faults of an agent; answers those that had not been met.
async fn set(place: &Place, points: Vec<String>) -> Result<Vec<String>, Error> {
    match place.agent.ask_within(Request::Faults { points, seconds: FORGET_S }, ANSWER).await? {
        Reply::Unmet(unmet) => Ok(unmet),
        other => Err(place.agent.unexpected(&other, "Unmet").into()),
    }
}
