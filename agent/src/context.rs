//! Everything privileged that an agent has on its host, made once and passed down.

use crate::config::Config;
use crate::criu::HostCapabilities;
use crate::engine::Engine;
use crate::journal::Journal;
use crate::network::Networks;
use crate::runtime::Runtime;
use crate::transport::endpoint::{Connection, Endpoint, TransportError};
use std::sync::Arc;
use tranship_proto::ids::HostName;
use tranship_proto::status::{Failure, Reason, Side};

/// The parts of an agent.
pub struct Context {
    /// Configuration.
    pub config: Config,
    /// Faults on purpose.
    pub faults: crate::faults::Faults,
    /// Decisions and history.
    pub journal: Journal,
    /// QUIC.
    pub endpoint: Endpoint,
    /// Containers.
    pub engine: Arc<dyn Engine>,
    /// The OCI runtime below the engine.
    pub runtime: Arc<dyn Runtime>,
    /// Fleet networks on this host.
    pub networks: Networks,
    /// What the programs and the kernel can do, as probed at start.
    pub capabilities: HostCapabilities,
    /// What is loaded into CRIU to shorten its dump, when it is installed.
    pub preload: Option<crate::criu::Preload>,
}

impl Context {
    /// Connects to a host of the inventory; the failure is ready to be shown.
    pub async fn connect(&self, host: &HostName) -> Result<Connection, Failure> {
        let Some(address) = self.config.address_of(host) else {
            let known: Vec<_> = self.config.hosts.iter().map(|h| h.name.as_str()).collect();
            let text = format!("no host {host} in the inventory of {}", self.config.host);
            return Err(Failure::new(Reason::UnknownHost, Side::Source, text).hint(format!(
                "known hosts: {}; add it under [[hosts]] in transhipd.toml",
                known.join(", ")
            )));
        };
        self.endpoint.connect(host, address).await.map_err(|e| {
            let (reason, hint) = match &e {
                TransportError::Untrusted { .. } => (
                    Reason::NotAuthorized,
                    "compare the certificates: same authority, not expired, host name as in the inventory",
                ),
                TransportError::Version { .. } => {
                    (Reason::Version, "bring both hosts to versions of tranship that share a protocol")
                }
                _ => (
                    Reason::Unreachable,
                    "is transhipd running there, and is its UDP port open between the hosts?",
                ),
            };
            let failure = Failure::new(reason, Side::Source, crate::chain(&e)).hint(hint);
            if reason == Reason::Unreachable { failure.retryable() } else { failure }
        })
    }
}
