//! An agent's log from some moment on, over its restarts: what it did since.

use crate::host::Host;

/// What an agent logs when a rule of its `[faults]` is met, and when it starts.
const MET: &str = ": fault point=";
const STARTING: &str = " starting host=";

/// The log of one host's agents.
#[derive(Debug)]
pub struct AgentLog {
    host: Host,
    from: usize,
}

impl AgentLog {
    /// From now on.
    pub fn of(host: Host) -> Self {
        let from = std::fs::metadata(host.agent_log()).map_or(0, |m| m.len());
        Self { host, from: usize::try_from(from).unwrap_or(0) }
    }

    /// Whose it is.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// What was written so far.
    pub fn text(&self) -> String {
        let all = std::fs::read(self.host.agent_log()).unwrap_or_default();
        String::from_utf8_lossy(all.get(self.from..).unwrap_or_default()).into_owned()
    }

    /// Times that a rule of its agents was met.
    pub fn faults(&self) -> usize {
        self.text().matches(MET).count()
    }

    /// Times that a rule of the agent that runs now was met.
    pub fn faults_since_start(&self) -> usize {
        self.text().rsplit(STARTING).next().map_or(0, |t| t.matches(MET).count())
    }
}
