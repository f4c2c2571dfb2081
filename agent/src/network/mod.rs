//! A container's network: made, captured, made again elsewhere, fenced, announced.
//!
//! Each link of a container is a pair of virtual interfaces: one end inside (`eth0`), the other in
//! a bridge of the host. The *host end's administrative state is the fence and the gate*: down
//! means that nothing goes in or out. It is state of the kernel, so it outlives this process; one
//! message shuts it, in 0.2 to 0.5 ms, and opening takes about a millisecond more; and inside all is as it should be: addresses, routes and neighbours can be configured and used
//! by sockets (CRIU's included), they only lack carrier. Measured and rejected: the bridge port's
//! state (reset by carrier changes), tc and netfilter rules (several objects to leak), the inner
//! end's state (loses IPv6 addresses and routes).
//!
//! Nothing is kept in books: a port's name follows from container and link ([`Port::of`]), and its
//! alias says whose it is.

mod address;
mod announce;
mod backlog;
mod capture;
mod connect;
mod error;
mod fence;
mod foreign;
mod handle;
mod hold;
mod link;
mod netns;
mod packet;
mod probe;
mod recreate;
mod route;
mod rule;
mod sysctl;
mod watch;

pub use announce::{announce, frames_of};
pub use backlog::backlogged_ports;
pub use capture::capture;
pub use connect::{Gate, connect, destroy, ports_in_use};
pub use error::NetworkError;
pub use fence::{fence, is_open, open_gate, unfence};
pub use hold::{HoldLimits, HoldStats, PacketHold};
pub use netns::Netns;
pub use packet::{arp_announcement, arp_probe, neighbour_advertisement, neighbour_solicitation};
pub use probe::{Conflict, conflicts, probe};
pub use recreate::recreate;
pub use watch::{PacketTimes, PacketWatch};

use error::Attempt;
use handle::Rt;
use link::Link;
use std::collections::BTreeMap;
use tranship_proto::ids::ContainerName;
use tranship_proto::network::NetCapture;

/// Which bridge each fleet network is on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(BTreeMap<String, String>);

impl Networks {
    /// From the configuration: network name to bridge name.
    pub fn new(bridges: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(bridges.into_iter().collect())
    }

    /// The bridge of a network.
    ///
    /// # Errors
    /// [`NetworkError::MissingNetwork`].
    pub fn bridge(&self, network: &str) -> Result<&str, NetworkError> {
        self.0.get(network).map(String::as_str).ok_or_else(|| NetworkError::MissingNetwork {
            network: network.to_owned(),
            known: self.names().collect::<Vec<_>>().join(", "),
        })
    }

    /// All networks, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The network that a bridge is.
    fn of_bridge(&self, bridge: &str) -> Option<&str> {
        self.0.iter().find(|(_, b)| *b == bridge).map(|(n, _)| n.as_str())
    }

    async fn bridge_link(&self, host: &mut Rt, network: &str) -> Result<Link, NetworkError> {
        let bridge = self.bridge(network)?;
        link::find(host, bridge).await?.filter(|l| l.kind == "bridge").ok_or_else(|| {
            NetworkError::MissingBridge { network: network.to_owned(), bridge: bridge.to_owned() }
        })
    }
}

/// The host's end of one link of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Port {
    /// Name of the link inside the container.
    pub link: String,
    /// Interface name on the host: `ts` and 11 hexadecimal digits.
    pub name: String,
}

impl Port {
    /// The port of a container's link, whether it exists or not.
    pub fn of(container: &ContainerName, link: &str) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(container.as_str().as_bytes()).update(&[0]).update(link.as_bytes());
        let hex = hash.finalize().to_hex();
        Self { link: link.to_owned(), name: format!("ts{}", &hex[..11]) }
    }

    fn alias(&self, container: &ContainerName) -> String {
        format!("{}{}", alias_prefix(container), self.link)
    }
}

fn alias_prefix(container: &ContainerName) -> String {
    format!("tranship:{container}:")
}

/// The ports of a container's links, by name.
pub fn ports_of<'a>(container: &ContainerName, links: impl IntoIterator<Item = &'a str>) -> Vec<Port> {
    links.into_iter().map(|l| Port::of(container, l)).collect()
}

/// The ports that a captured container has.
pub fn ports_of_capture(container: &ContainerName, capture: &NetCapture) -> Vec<Port> {
    ports_of(container, capture.ports().map(|l| l.name.as_str()))
}

/// Networks that a container needs and this host does not have configured.
pub fn missing_networks(capture: &NetCapture, networks: &Networks) -> Vec<String> {
    capture.networks().into_iter().filter(|n| networks.bridge(n).is_err()).collect()
}

/// Are the bridges of all configured networks there? Returns the names of those that are not.
///
/// # Errors
/// When the host's links cannot be read.
pub async fn missing_bridges(networks: &Networks) -> Result<Vec<String>, NetworkError> {
    let mut host = Rt::host()?;
    let links = link::links(&mut host).await?;
    let there = |b: &str| links.iter().any(|l| l.name == b && l.kind == "bridge");
    Ok(networks.0.iter().filter(|(_, b)| !there(b)).map(|(n, _)| n.clone()).collect())
}

/// Can this host take a captured network? All bridges are there, let packets of its size through
/// and open a port at once. Touches nothing.
///
/// # Errors
/// The first reason why not.
pub async fn check_fit(capture: &NetCapture, networks: &Networks) -> Result<(), NetworkError> {
    capture.check()?;
    let mut host = Rt::host()?;
    for l in capture.ports() {
        let Some(network) = &l.network else { continue };
        let bridge = networks.bridge_link(&mut host, network).await?;
        if bridge.stp {
            return Err(NetworkError::SlowBridge { bridge: bridge.name });
        }
        if bridge.mtu < l.mtu {
            let (link, mtu) = (l.name.clone(), l.mtu);
            return Err(NetworkError::SmallBridge { link, mtu, bridge: bridge.name, limit: bridge.mtu });
        }
    }
    Ok(())
}

/// The interface index of a link in the calling thread's namespace.
fn index_of(name: &str) -> Result<u32, NetworkError> {
    nix::net::if_::if_nametoindex(name).attempt("find link", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names_are_short_stable_and_apart() {
        let (a, b): (ContainerName, ContainerName) = ("web".parse().unwrap(), "we".parse().unwrap());
        let p = Port::of(&a, "eth0");
        assert_eq!(p.name.len(), 13);
        assert_eq!(p, Port::of(&a, "eth0"));
        assert_ne!(p.name, Port::of(&a, "eth1").name);
        assert_ne!(Port::of(&b, "beth0").name, p.name);
        assert_eq!(p.alias(&a), "tranship:web:eth0");
    }
}
