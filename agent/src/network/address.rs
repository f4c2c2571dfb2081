//! Addresses and neighbours, between netlink messages and what travels.

use super::error::{Attempt, NetworkError};
use super::handle::Rt;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, CacheInfo,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use tranship_proto::network::{AddrCapture, FOREVER, IpNet, Mac, NeighbourCapture};

use rtnetlink::packet_route::AddressFamily;

/// `IFA_F_*` that user space may set; the others are states.
const SETTABLE: AddressFlags = AddressFlags::Nodad
    .union(AddressFlags::Homeaddress)
    .union(AddressFlags::Managetempaddr)
    .union(AddressFlags::Noprefixroute)
    .union(AddressFlags::Mcautojoin);

pub(super) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// An address as the kernel lists it; `None` when it failed duplicate address detection, for the
/// container could not use it either.
fn parse_address(m: AddressMessage) -> Option<(u32, AddrCapture)> {
    let (mut address, mut local, mut cache) = (None, None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(m.header.flags.bits()));
    let mut a = AddrCapture {
        ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        prefix: m.header.prefix_len,
        scope: m.header.scope.into(),
        flags: 0,
        label: None,
        broadcast: None,
        peer: None,
        valid_lft: FOREVER,
        preferred_lft: FOREVER,
        metric: None,
    };
    for attribute in m.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(ip),
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Label(l) => a.label = Some(l),
            AddressAttribute::Broadcast(b) => a.broadcast = Some(b),
            AddressAttribute::CacheInfo(c) => cache = Some(c),
            AddressAttribute::Flags(f) => flags = f,
            AddressAttribute::RoutePriority(n) if n != 0 => a.metric = Some(n),
            _ => {}
        }
    }
    if flags.contains(AddressFlags::Dadfailed) {
        return None;
    }
    a.ip = local.or(address)?;
    a.peer = address.filter(|p| *p != a.ip);
    a.flags = (flags & SETTABLE).bits();
    if let Some(c) = cache {
        (a.valid_lft, a.preferred_lft) = (c.ifa_valid, c.ifa_preferred.min(c.ifa_valid));
    }
    // About to expire: gone before it could be set.
    (a.valid_lft != 0).then_some((m.header.index, a))
}

/// All addresses by link index, in the kernel's order.
pub(super) async fn addresses(rt: &mut Rt) -> Result<HashMap<u32, Vec<AddrCapture>>, NetworkError> {
    let mut all: HashMap<u32, Vec<AddrCapture>> = HashMap::new();
    for f in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = AddressMessage::default();
        question.header.family = f;
        let list = rt
            .dump(RouteNetlinkMessage::GetAddress(question), |m| match m {
                RouteNetlinkMessage::NewAddress(a) => parse_address(a),
                _ => None,
            })
            .await
            .attempt("list", "addresses")?;
        for (index, a) in list {
            all.entry(index).or_default().push(a);
        }
    }
    Ok(all)
}

/// A message that gives an address to a link. IPv6 addresses never become tentative: the address
/// is known to be free, and a tentative one cannot be bound.
pub(super) fn address_message(index: u32, a: &AddrCapture) -> AddressMessage {
    let mut flags = AddressFlags::from_bits_retain(a.flags) & SETTABLE;
    if a.ip.is_ipv6() {
        flags |= AddressFlags::Nodad;
    }
    let mut m = AddressMessage::default();
    m.header.family = family(a.ip);
    m.header.prefix_len = a.prefix;
    m.header.scope = a.scope.into();
    m.header.index = index;
    m.header.flags = AddressHeaderFlags::from_bits_truncate(flags.bits() as u8);
    let mut cache = CacheInfo::default();
    (cache.ifa_valid, cache.ifa_preferred) = (a.valid_lft, a.preferred_lft);
    m.attributes = vec![
        AddressAttribute::Local(a.ip),
        AddressAttribute::Address(a.peer.unwrap_or(a.ip)),
        AddressAttribute::Flags(flags),
        AddressAttribute::CacheInfo(cache),
    ];
    m.attributes.extend(a.label.clone().map(AddressAttribute::Label));
    m.attributes.extend(a.broadcast.map(AddressAttribute::Broadcast));
    m.attributes.extend(a.metric.map(AddressAttribute::RoutePriority));
    m
}

/// An address for ever, as a new container gets it.
pub(super) fn plain(net: IpNet) -> AddrCapture {
    let broadcast = match net.ip {
        IpAddr::V4(ip) if net.prefix < 31 => {
            Some(Ipv4Addr::from(u32::from(ip) | u32::MAX.checked_shr(net.prefix.into()).unwrap_or(0)))
        }
        _ => None,
    };
    let link_local = matches!(net.ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    AddrCapture {
        ip: net.ip,
        prefix: net.prefix,
        // RT_SCOPE_LINK
        scope: if link_local { 253 } else { 0 },
        flags: 0,
        label: None,
        broadcast,
        peer: None,
        valid_lft: FOREVER,
        preferred_lft: FOREVER,
        metric: None,
    }
}

fn parse_neighbour(m: &NeighbourMessage, names: &HashMap<u32, String>) -> Option<NeighbourCapture> {
    let proxy = m.header.flags.contains(NeighbourFlags::Proxy);
    let router = m.header.flags.contains(NeighbourFlags::Router);
    if !proxy && m.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for a in &m.attributes {
        match a {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(a) => mac = <[u8; 6]>::try_from(a.as_slice()).ok().map(Mac),
            _ => {}
        }
    }
    let dev = names.get(&m.header.ifindex)?.clone();
    Some(NeighbourCapture { ip: ip?, dev, mac: if proxy { None } else { mac }, proxy, router })
}

async fn neighbour_messages(rt: &mut Rt, proxies: bool) -> Result<Vec<NeighbourMessage>, NetworkError> {
    let mut question = NeighbourMessage::default();
    if proxies {
        question.header.flags = NeighbourFlags::Proxy;
    }
    rt.dump(RouteNetlinkMessage::GetNeighbour(question), |m| match m {
        RouteNetlinkMessage::NewNeighbour(n)
            if [AddressFamily::Inet, AddressFamily::Inet6].contains(&n.header.family) =>
        {
            Some(n)
        }
        _ => None,
    })
    .await
    .attempt("list", "neighbours")
}

/// Permanent and proxy neighbours.
pub(super) async fn neighbours(
    rt: &mut Rt,
    names: &HashMap<u32, String>,
) -> Result<Vec<NeighbourCapture>, NetworkError> {
    let mut all = Vec::new();
    for proxies in [false, true] {
        let list = neighbour_messages(rt, proxies).await?;
        all.extend(list.iter().filter_map(|m| parse_neighbour(m, names)));
    }
    Ok(all)
}

/// A message that makes a neighbour.
pub(super) fn neighbour_message(index: u32, n: &NeighbourCapture) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.family = family(n.ip);
    m.header.ifindex = index;
    m.header.state = NeighbourState::Permanent;
    if n.proxy {
        m.header.flags |= NeighbourFlags::Proxy;
    }
    if n.router {
        m.header.flags |= NeighbourFlags::Router;
    }
    m.attributes.push(NeighbourAttribute::Destination(n.ip.into()));
    m.attributes.extend(n.mac.map(|a| NeighbourAttribute::LinkLayerAddress(a.0.to_vec())));
    m
}

/// Drops neighbours that were asked for in vain while nothing could answer.
///
/// Otherwise the next packet waits up to one second for the next question to go out: measured as
/// 0.7 s of the outage after a link came back.
pub(super) async fn forget_unresolved(rt: &mut Rt) -> Result<(), NetworkError> {
    for m in neighbour_messages(rt, false).await? {
        let waiting = [NeighbourState::Incomplete, NeighbourState::Failed];
        if !waiting.contains(&m.header.state) {
            continue;
        }
        let mut del = NeighbourMessage::default();
        del.header = m.header.clone();
        let dst = |a: &NeighbourAttribute| matches!(a, NeighbourAttribute::Destination(_));
        del.attributes = m.attributes.into_iter().filter(dst).collect();
        // Resolved or gone in the meantime: just as well.
        if let Err(e) = rt.change(RouteNetlinkMessage::DelNeighbour(del), 0).await {
            tracing::debug!(%e, "unresolved neighbour stays");
        }
    }
    Ok(())
}
