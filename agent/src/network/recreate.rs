//! Making a captured network again, shut, in an empty namespace.
//!
//! Order: links (down) because per-interface sysctls need them; sysctls because they decide what
//! bringing a link up does; links up; addresses (IPv6 prefix routes come only with a link that is
//! up); routes, each tried again while others still make progress, since a gateway may be behind
//! another route; rules; neighbours; and sysctls once more, for bringing a link up resets some
//! (`net.ipv6.conf.*.mtu`).

use super::address::{address_message, neighbour_message};
use super::connect::undo;
use super::error::{Attempt, NetworkError};
use super::handle::Rt;
use super::link::{self, EndSpec, PortSpec};
use super::netns::{Netns, NsFd};
use super::{Networks, Port, address, check_fit, ports_of_capture, route, rule, sysctl};
use futures_util::future::join_all;
use nix::libc;
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use tranship_proto::ids::ContainerName;
use tranship_proto::network::{LinkCapture, LinkKind, NetCapture, RouteCapture, SysctlCapture};

/// Makes a captured network in an empty namespace. Every port is shut: addresses and routes are
/// usable inside, nothing goes in or out until [`super::open_gate`].
///
/// Returns the ports in the order of the links.
///
/// # Errors
/// Refusals come before anything is touched. After a failure the ports made are removed again; the
/// namespace is the caller's to remove. A sysctl that the container had not changed and that cannot
/// be set is not an error.
pub async fn recreate(
    netns: &Netns,
    container: &ContainerName,
    capture: &NetCapture,
    networks: &Networks,
) -> Result<Vec<Port>, NetworkError> {
    check_fit(capture, networks).await?;
    let ns = netns.fd()?;
    let (mut host, mut inside) = (Rt::host()?, Rt::inside(&ns).await?);
    let existing = link::links(&mut inside).await?;
    if let Some(l) = existing.iter().find(|l| !l.loopback && !l.is_fallback_tunnel()) {
        return Err(NetworkError::NotEmpty { netns: netns.name(), link: l.name.clone() });
    }
    let ports = ports_of_capture(container, capture);
    match build(&ns, &mut host, &mut inside, container, capture, networks).await {
        Ok(()) => Ok(ports),
        Err(error) => Err(undo(error, &ports).await),
    }
}

async fn build(
    ns: &NsFd,
    host: &mut Rt,
    inside: &mut Rt,
    container: &ContainerName,
    capture: &NetCapture,
    networks: &Networks,
) -> Result<(), NetworkError> {
    let host_ns = NsFd::host()?;
    for l in &capture.links {
        make_link(host, inside, &host_ns, container, l, networks).await?;
    }
    let sysctls = sysctls_for(capture);
    sysctl::apply(ns, &sysctls).await?;
    for l in capture.links.iter().filter(|l| l.up) {
        inside.change(link::set_up(&l.name, true), 0).await.attempt("set up", &l.name)?;
    }
    let made = link::links(inside).await?;
    let indices: HashMap<String, u32> = made.iter().map(|l| (l.name.clone(), l.index)).collect();
    let names: HashMap<u32, String> = made.into_iter().map(|l| (l.index, l.name)).collect();
    add_addresses(inside, capture, &indices).await?;
    add_routes(inside, capture, &names, &indices).await?;
    set_rules(inside, capture).await?;
    add_neighbours(inside, capture, &indices).await?;
    let again: Vec<_> = sysctls.into_iter().filter(|s| sysctl::per_interface(&s.key)).collect();
    sysctl::apply(ns, &again).await
}

async fn make_link(
    host: &mut Rt,
    inside: &mut Rt,
    host_ns: &NsFd,
    container: &ContainerName,
    l: &LinkCapture,
    networks: &Networks,
) -> Result<(), NetworkError> {
    let (Some(mac), false) = (l.mac, l.kind == LinkKind::Loopback) else {
        let mut m = LinkMessage::default();
        m.attributes = vec![
            LinkAttribute::IfName(l.name.clone()),
            LinkAttribute::Mtu(l.mtu),
            LinkAttribute::TxQueueLen(l.txqlen),
        ];
        return inside.change(RouteNetlinkMessage::SetLink(m), 0).await.attempt("configure", &l.name);
    };
    let end = EndSpec { name: &l.name, index: l.index, mac, mtu: l.mtu, txqlen: Some(l.txqlen) };
    let Some(network) = &l.network else {
        return end.create_dummy(inside).await;
    };
    let bridge = networks.bridge_link(host, network).await?;
    let port = Port::of(container, &l.name);
    let outer = PortSpec { name: &port.name, bridge: &bridge, alias: port.alias(container) };
    link::create_pair(inside, host, host_ns, &end, &outer).await
}

/// The captured sysctls, except that a link whose automatic link-local address had been removed
/// does not get it back when its carrier comes.
fn sysctls_for(capture: &NetCapture) -> Vec<SysctlCapture> {
    let mut all = capture.sysctls.clone();
    for l in capture.ports() {
        let own = l.mac.map(|m| IpAddr::V6(m.link_local()));
        if l.addrs.iter().any(|a| Some(a.ip) == own) {
            continue;
        }
        let key = format!("net/ipv6/conf/{}/addr_gen_mode", l.name);
        for s in all.iter_mut().filter(|s| s.key == key && s.value == "0") {
            s.value = "1".into();
        }
    }
    all
}

fn errno(e: &io::Error) -> i32 {
    e.raw_os_error().unwrap_or(0)
}

async fn add_addresses(
    inside: &mut Rt,
    capture: &NetCapture,
    indices: &HashMap<String, u32>,
) -> Result<(), NetworkError> {
    let mut pending = Vec::new();
    for l in &capture.links {
        let Some(index) = indices.get(&l.name) else { continue };
        // The kernel lists IPv6 addresses newest first, and order decides on source addresses.
        let (v4, v6): (Vec<_>, Vec<_>) = l.addrs.iter().partition(|a| a.ip.is_ipv4());
        for a in v4.into_iter().chain(v6.into_iter().rev()) {
            let m = RouteNetlinkMessage::NewAddress(address_message(*index, a));
            let what = || format!("{}/{} to {}", a.ip, a.prefix, l.name);
            let done = inside.begin(m, NLM_F_CREATE | NLM_F_EXCL).attempt("give", what())?;
            pending.push(async move { (what(), done.await) });
        }
    }
    for (what, done) in join_all(pending).await {
        match done {
            // Those of the loopback come with it.
            Err(e) if errno(&e) != libc::EEXIST => return Err(e).attempt("give", what),
            _ => {}
        }
    }
    // 127.0.0.1 and ::1, if the container had removed them.
    for (index, list) in address::addresses(inside).await? {
        let Some(l) = capture.links.iter().find(|l| indices.get(&l.name) == Some(&index)) else { continue };
        for a in list.iter().filter(|a| !l.addrs.iter().any(|c| (c.ip, c.prefix) == (a.ip, a.prefix))) {
            let m = RouteNetlinkMessage::DelAddress(address_message(index, a));
            inside.change(m, 0).await.attempt("remove", format!("{} from {}", a.ip, l.name))?;
        }
    }
    Ok(())
}

async fn add_routes(
    inside: &mut Rt,
    capture: &NetCapture,
    names: &HashMap<u32, String>,
    indices: &HashMap<String, u32>,
) -> Result<(), NetworkError> {
    // The kernel has made its own with the addresses; those that the container had deleted go.
    let now = route::routes(inside, names).await?;
    for r in now.iter().filter(|r| route::is_kernels(r)) {
        if !capture.routes.iter().any(|c| route::same_place(c, r)) {
            let m = RouteNetlinkMessage::DelRoute(route::message(r, indices));
            inside.change(m, 0).await.attempt("remove", format!("route {}", route::describe(r)))?;
        }
    }
    let made =
        |c: &&RouteCapture| !now.iter().any(|r| r == *c || (route::is_kernels(c) && route::same_place(c, r)));
    let mut todo: Vec<&RouteCapture> = capture.routes.iter().filter(made).collect();
    while !todo.is_empty() {
        let mut failed: Vec<(&RouteCapture, io::Error)> = Vec::new();
        for r in &todo {
            let m = RouteNetlinkMessage::NewRoute(route::message(r, indices));
            // IPv4 keeps several routes to one place only when told to append; IPv6 would then
            // merge them into one of several paths.
            let flags = if r.v6 { NLM_F_CREATE } else { NLM_F_CREATE | NLM_F_APPEND };
            match inside.change(m, flags).await {
                Err(e) if errno(&e) != libc::EEXIST => failed.push((r, e)),
                _ => {}
            }
        }
        if failed.len() == todo.len() {
            let (r, e) = failed.swap_remove(0);
            return Err(e).attempt("add", format!("route {}", route::describe(r)));
        }
        todo = failed.into_iter().map(|(r, _)| r).collect();
    }
    Ok(())
}

async fn set_rules(inside: &mut Rt, capture: &NetCapture) -> Result<(), NetworkError> {
    let now = rule::rules(inside).await?;
    // First those to be: a namespace without any rule has no way to anywhere. A rule that jumps may
    // come before its target.
    for r in capture.rules.iter().filter(|r| !now.contains(r)) {
        let m = RouteNetlinkMessage::NewRule(rule::message(r));
        match inside.change(m, NLM_F_CREATE).await {
            Err(e) if errno(&e) != libc::EEXIST => {
                return Err(e).attempt("add", format!("policy rule {}", r.priority));
            }
            _ => {}
        }
    }
    for r in now.iter().filter(|r| !capture.rules.contains(r)) {
        let m = RouteNetlinkMessage::DelRule(rule::message(r));
        inside.change(m, 0).await.attempt("remove", format!("policy rule {}", r.priority))?;
    }
    Ok(())
}

async fn add_neighbours(
    inside: &mut Rt,
    capture: &NetCapture,
    indices: &HashMap<String, u32>,
) -> Result<(), NetworkError> {
    for n in &capture.neighbours {
        let Some(index) = indices.get(&n.dev) else { continue };
        let m = RouteNetlinkMessage::NewNeighbour(neighbour_message(*index, n));
        inside.change(m, NLM_F_CREATE).await.attempt("add", format!("neighbour {} on {}", n.ip, n.dev))?;
    }
    Ok(())
}
