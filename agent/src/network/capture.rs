//! Reading everything that is carried out of a container's namespace.

use super::error::NetworkError;
use super::handle::Rt;
use super::link::{self, Link};
use super::netns::Netns;
use super::{Networks, Port, address, foreign, route, rule, sysctl};
use std::collections::HashMap;
use tranship_proto::ids::ContainerName;
use tranship_proto::network::{
    LinkCapture, LinkKind, MAX_ADDRESSES, MAX_LINKS, MAX_NEIGHBOURS, MAX_ROUTES, MAX_RULES, NetCapture,
};

/// What a veth, a dummy or the loopback has unless someone set another one.
const PLAIN_QDISCS: [&str; 3] = ["noqueue", "noop", ""];

fn limit(what: &'static str, count: usize, limit: usize) -> Result<(), NetworkError> {
    if count > limit { Err(NetworkError::TooMany { what, count, limit }) } else { Ok(()) }
}

fn kind_of(l: &Link) -> Result<LinkKind, NetworkError> {
    if l.loopback && l.index == 1 {
        return Ok(LinkKind::Loopback);
    }
    match l.kind.as_str() {
        "veth" => Ok(LinkKind::Veth),
        "dummy" => Ok(LinkKind::Dummy),
        "" => Err(NetworkError::UnsupportedLink { name: l.name.clone(), kind: "a host device".into() }),
        k => Err(NetworkError::UnsupportedLink { name: l.name.clone(), kind: k.to_owned() }),
    }
}

/// The fleet network that a link of the container leads to.
fn network_of(
    container: &ContainerName,
    l: &Link,
    host_links: &[Link],
    networks: &Networks,
) -> Result<String, NetworkError> {
    let port = Port::of(container, &l.name);
    let unattached = || NetworkError::Unattached {
        container: container.to_string(),
        link: l.name.clone(),
        port: port.name.clone(),
    };
    let own = |h: &&Link| h.name == port.name && h.peer == Some(l.index) && l.peer == Some(h.index);
    let host_end = host_links.iter().find(own).ok_or_else(unattached)?;
    let bridge = host_links.iter().find(|h| Some(h.index) == host_end.controller).ok_or_else(unattached)?;
    networks
        .of_bridge(&bridge.name)
        .map(str::to_owned)
        .ok_or_else(|| NetworkError::NoNetwork { link: l.name.clone(), bridge: bridge.name.clone() })
}

/// Reads the network of a container. Changes nothing; the container may be running.
///
/// # Errors
/// A refusal ([`NetworkError::is_refusal`]) when there is something that cannot be carried.
pub async fn capture(
    netns: &Netns,
    container: &ContainerName,
    networks: &Networks,
) -> Result<NetCapture, NetworkError> {
    let ns = netns.fd()?;
    foreign::refuse_foreign(&ns).await?;
    let (mut host, mut inside) = (Rt::host()?, Rt::inside(&ns).await?);
    let host_links = link::links(&mut host).await?;
    let mut addresses = address::addresses(&mut inside).await?;
    let mut links = Vec::new();
    for l in link::links(&mut inside).await? {
        if l.is_fallback_tunnel() {
            continue;
        }
        let kind = kind_of(&l)?;
        let extra = [
            (!PLAIN_QDISCS.contains(&l.qdisc.as_str())).then(|| format!("queueing discipline {}", l.qdisc)),
            l.xdp.then(|| "an XDP program".to_owned()),
        ];
        if let Some(why) = extra.into_iter().flatten().next() {
            return Err(NetworkError::Unsupported { what: format!("link {}", l.name), why });
        }
        let network = match kind {
            LinkKind::Veth => Some(network_of(container, &l, &host_links, networks)?),
            _ => None,
        };
        let addrs = addresses.remove(&l.index).unwrap_or_default();
        limit("addresses", addrs.len(), MAX_ADDRESSES)?;
        links.push(LinkCapture {
            mac: l.mac.filter(|_| kind != LinkKind::Loopback),
            name: l.name,
            kind,
            index: l.index,
            network,
            mtu: l.mtu,
            up: l.up,
            txqlen: l.txqlen,
            addrs,
        });
    }
    limit("links", links.len(), MAX_LINKS)?;
    let names: HashMap<u32, String> = links.iter().map(|l| (l.index, l.name.clone())).collect();
    let capture = NetCapture {
        routes: route::routes(&mut inside, &names).await?,
        rules: rule::rules(&mut inside).await?,
        neighbours: address::neighbours(&mut inside, &names).await?,
        sysctls: sysctl::capture(&ns, &links).await?,
        links,
    };
    limit("routes", capture.routes.len(), MAX_ROUTES)?;
    limit("policy rules", capture.rules.len(), MAX_RULES)?;
    limit("neighbours", capture.neighbours.len(), MAX_NEIGHBOURS)?;
    // What the destination would refuse is refused here, before anything is touched.
    capture.check()?;
    Ok(capture)
}
