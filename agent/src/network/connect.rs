//! Links of a new container, and the end of any container's links.

use super::address::{address_message, plain};
use super::error::{Attempt, NetworkError};
use super::handle::Rt;
use super::link::{self, EndSpec, PortSpec};
use super::netns::{Netns, NsFd};
use super::{Networks, Port, alias_prefix, route};
use nix::libc;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use tranship_proto::error::WireError;
use tranship_proto::ids::ContainerName;
use tranship_proto::network::{
    IpNet, LinkRequest, MAX_ADDRESSES, MAX_LINKS, Mac, NextHop, RouteCapture, check_if_name,
};

/// Whether packets pass a container's links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// They pass.
    Open,
    /// Nothing goes in or out.
    Shut,
}

/// A random, locally administered address.
fn random_mac() -> Mac {
    let id = uuid::Uuid::now_v7();
    let mut mac = [0; 6];
    mac.copy_from_slice(&id.as_bytes()[10..]);
    mac[0] = mac[0] & 0xfc | 2;
    Mac(mac)
}

fn check(requests: &[LinkRequest]) -> Result<(), NetworkError> {
    let bad = |field, why: String| Err(NetworkError::Invalid(WireError::invalid(field, why)));
    if requests.len() >= MAX_LINKS {
        return bad("links", format!("{} are too many", requests.len()));
    }
    let mut names = HashSet::new();
    for r in requests {
        check_if_name(&r.name)?;
        if ["lo", "all", "default"].contains(&r.name.as_str()) || !names.insert(&r.name) {
            return bad("interface name", format!("{:?} is taken", r.name));
        }
        if r.mac.is_some_and(|m| !m.is_station()) {
            return bad("mac address", format!("{:?}", r.mac));
        }
        if r.mtu.is_some_and(|m| !(68..=65535).contains(&m)) {
            return bad("mtu", format!("{:?}", r.mtu));
        }
        let unfit = |n: &IpNet| n.ip.is_multicast() || n.ip.is_unspecified();
        if r.addrs.len() > MAX_ADDRESSES || r.addrs.iter().any(unfit) {
            return bad("addresses", format!("of {}", r.name));
        }
        let families = |v6| r.gateways.iter().filter(|g| g.is_ipv6() == v6).count();
        if families(true) > 1 || families(false) > 1 {
            return bad("gateways", format!("of {}", r.name));
        }
    }
    Ok(())
}

/// Makes the links of a new container in an empty namespace and configures them. All of them are
/// made shut; with [`Gate::Open`] they are opened at the end.
///
/// Returns the ports in the order of the requests.
///
/// # Errors
/// Refusals come before anything is touched. After a failure the ports made are removed again; the
/// namespace is the caller's to remove.
pub async fn connect(
    netns: &Netns,
    container: &ContainerName,
    requests: &[LinkRequest],
    networks: &Networks,
    gate: Gate,
) -> Result<Vec<Port>, NetworkError> {
    check(requests)?;
    let ns = netns.fd()?;
    let (mut host, mut inside) = (Rt::host()?, Rt::inside(&ns).await?);
    let mut bridges = Vec::new();
    for r in requests {
        bridges.push(networks.bridge_link(&mut host, &r.network).await?);
    }
    let ports: Vec<Port> = requests.iter().map(|r| Port::of(container, &r.name)).collect();
    let made = async {
        let host_ns = NsFd::host()?;
        inside.change(link::set_up("lo", true), 0).await.attempt("set up", "lo")?;
        for ((r, port), bridge) in requests.iter().zip(&ports).zip(&bridges) {
            let mac = r.mac.unwrap_or_else(random_mac);
            let mtu = r.mtu.unwrap_or(bridge.mtu);
            let end = EndSpec { name: &r.name, index: 0, mac, mtu, txqlen: None };
            let outer = PortSpec { name: &port.name, bridge, alias: port.alias(container) };
            link::create_pair(&mut inside, &mut host, &host_ns, &end, &outer).await?;
            configure(&mut inside, r, mac).await?;
        }
        if gate == Gate::Open {
            super::open_gate(&ports).await?;
        }
        Ok(())
    }
    .await;
    match made {
        Ok(()) => Ok(ports),
        Err(error) => Err(undo(error, &ports).await),
    }
}

/// Removes ports after a failure, keeping both errors.
pub(super) async fn undo(error: NetworkError, ports: &[Port]) -> NetworkError {
    let cleanup = async {
        let mut host = Rt::host()?;
        for p in ports {
            link::delete(&mut host, &p.name).await?;
        }
        Ok(())
    };
    match cleanup.await {
        Ok(()) => error,
        Err(cleanup) => NetworkError::Both { error: Box::new(error), cleanup: Box::new(cleanup) },
    }
}

async fn configure(inside: &mut Rt, r: &LinkRequest, mac: Mac) -> Result<(), NetworkError> {
    let made = link::find(inside, &r.name).await?;
    let index = made.map(|l| l.index).ok_or(std::io::ErrorKind::NotFound).attempt("find link", &r.name)?;
    inside.change(link::set_up(&r.name, true), 0).await.attempt("set up", &r.name)?;
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    for net in &r.addrs {
        let m = RouteNetlinkMessage::NewAddress(address_message(index, &plain(*net)));
        inside.change(m, flags).await.attempt("give", format!("{net} to {}", r.name))?;
    }
    // The kernel would make the same one when the gate opens, and test it for a second or two.
    let own = plain(IpNet { ip: IpAddr::V6(mac.link_local()), prefix: 64 });
    let m = RouteNetlinkMessage::NewAddress(address_message(index, &own));
    if let Err(e) = inside.change(m, flags).await
        && e.raw_os_error() != Some(libc::EEXIST)
    {
        tracing::debug!(link = r.name, %e, "no link-local address");
    }
    let indices = HashMap::from([(r.name.clone(), index)]);
    for via in &r.gateways {
        let default = default_route(*via, &r.name);
        let m = RouteNetlinkMessage::NewRoute(route::message(&default, &indices));
        inside.change(m, flags).await.attempt("add", format!("default route via {via}"))?;
    }
    Ok(())
}

fn default_route(via: IpAddr, dev: &str) -> RouteCapture {
    RouteCapture {
        v6: via.is_ipv6(),
        // RT_TABLE_MAIN, RTPROT_BOOT as `ip route` says, RT_SCOPE_UNIVERSE, RTN_UNICAST
        table: 254,
        protocol: 3,
        scope: 0,
        kind: 1,
        tos: 0,
        dst: None,
        src: None,
        prefsrc: None,
        priority: None,
        next_hops: vec![NextHop { via: Some(via), dev: Some(dev.to_owned()), weight: 0, onlink: false }],
        metrics: Vec::new(),
        congestion: None,
        pref: None,
        expires: None,
    }
}

/// The ports that a container has on this host, found by their alias.
///
/// # Errors
/// When the host's links cannot be read.
pub async fn ports_in_use(container: &ContainerName) -> Result<Vec<Port>, NetworkError> {
    let mut host = Rt::host()?;
    let prefix = alias_prefix(container);
    let links = link::links(&mut host).await?;
    let port = |l: link::Link| {
        let link = l.alias?.strip_prefix(&prefix)?.to_owned();
        Some(Port { link, name: l.name }).filter(|p| *p == Port::of(container, &p.link))
    };
    Ok(links.into_iter().filter_map(port).collect())
}

/// Removes a container's ports (those given and any other it has) and its namespace. Repeats are
/// harmless, and so is a network that was only half made.
///
/// # Errors
/// The first failure; what comes after it is tried all the same.
pub async fn destroy(netns: &Netns, container: &ContainerName, ports: &[Port]) -> Result<(), NetworkError> {
    let mut first = Ok(());
    let mut note = |r: Result<(), NetworkError>| {
        if let Err(e) = r
            && first.is_ok()
        {
            first = Err(e);
        }
    };
    let mut all = ports.to_vec();
    match ports_in_use(container).await {
        Ok(found) => all.extend(found.into_iter().filter(|p| !ports.contains(p))),
        Err(e) => note(Err(e)),
    }
    match Rt::host() {
        Ok(mut host) => {
            for p in &all {
                note(link::delete(&mut host, &p.name).await);
            }
        }
        Err(e) => note(Err(e)),
    }
    note(netns.remove());
    first
}
