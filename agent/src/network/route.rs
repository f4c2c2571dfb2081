//! Routes, between netlink messages and what travels.

use super::error::{Attempt, NetworkError};
use super::handle::Rt;
use rtnetlink::packet_core::{DefaultNla, Nla};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::HashMap;
use std::net::IpAddr;
use tranship_proto::network::{IpNet, NextHop, RouteCapture};

/// `RT_TABLE_LOCAL` and `RT_TABLE_COMPAT` (the number is in an attribute).
const TABLE_LOCAL: u32 = 255;
const TABLE_COMPAT: u8 = 252;
/// `RTPROT_KERNEL`.
const PROTO_KERNEL: u8 = 2;
const RTAX_CC_ALGO: u16 = 16;
/// Ticks of `rta_expires` in a second (`USER_HZ`).
const USER_HZ: u32 = 100;

fn unsupported(r: &RouteCapture, why: impl Into<String>) -> NetworkError {
    NetworkError::Unsupported { what: format!("route {}", describe(r)), why: why.into() }
}

/// A route in words.
pub(super) fn describe(r: &RouteCapture) -> String {
    let dst = r.dst.map_or_else(|| "default".to_owned(), |d| d.to_string());
    let via = r.next_hops.iter().filter_map(|h| h.via).map(|v| format!(" via {v}"));
    format!("{dst}{} (table {})", via.collect::<String>(), r.table)
}

fn ip_of(a: &RouteAddress) -> Option<IpAddr> {
    match a {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn via_of(a: &RouteAttribute) -> Option<IpAddr> {
    match a {
        RouteAttribute::Gateway(g) => ip_of(g),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn parse(m: &RouteMessage, names: &HashMap<u32, String>) -> Result<Option<RouteCapture>, NetworkError> {
    let h = &m.header;
    let mut r = RouteCapture {
        v6: h.address_family == AddressFamily::Inet6,
        table: h.table.into(),
        protocol: h.protocol.into(),
        scope: h.scope.into(),
        kind: h.kind.into(),
        tos: h.tos,
        dst: None,
        src: None,
        prefsrc: None,
        priority: None,
        next_hops: Vec::new(),
        metrics: Vec::new(),
        congestion: None,
        pref: None,
        expires: None,
    };
    if h.flags.contains(RouteFlags::Cloned) {
        return Ok(None);
    }
    let mut single =
        NextHop { via: None, dev: None, weight: 0, onlink: h.flags.contains(RouteFlags::Onlink) };
    let dev = |index: u32| names.get(&index).cloned();
    let mut unknown = None;
    for a in &m.attributes {
        match a {
            RouteAttribute::Table(t) => r.table = *t,
            RouteAttribute::Destination(d) => {
                r.dst = ip_of(d).and_then(|ip| IpNet::new(ip, h.destination_prefix_length).ok());
            }
            RouteAttribute::Source(s) => {
                r.src = ip_of(s).and_then(|ip| IpNet::new(ip, h.source_prefix_length).ok());
            }
            RouteAttribute::PrefSource(s) => r.prefsrc = ip_of(s),
            RouteAttribute::Priority(p) => r.priority = Some(*p),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => single.via = via_of(a),
            RouteAttribute::Oif(i) => single.dev = dev(*i),
            RouteAttribute::Preference(p) => r.pref = Some((*p).into()),
            RouteAttribute::CacheInfo(c) if c.expires != 0 => r.expires = Some(c.expires / USER_HZ),
            RouteAttribute::CacheInfo(_) => {}
            RouteAttribute::Metrics(list) => {
                for m in list {
                    if let RouteMetric::CcAlgo(name) = m {
                        r.congestion = Some(name.clone());
                    } else if m.value_len() == 4 {
                        let mut v = [0; 4];
                        m.emit_value(&mut v);
                        r.metrics.push((m.kind(), u32::from_ne_bytes(v)));
                    }
                }
            }
            RouteAttribute::MultiPath(hops) => {
                for hop in hops {
                    if hop.attributes.iter().any(|a| matches!(a, RouteAttribute::EncapType(_))) {
                        unknown = Some("an encapsulation".to_owned());
                    }
                    r.next_hops.push(NextHop {
                        via: hop.attributes.iter().find_map(via_of),
                        dev: dev(hop.interface_index),
                        weight: hop.hops,
                        onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
                    });
                }
            }
            RouteAttribute::NhId(_) => unknown = Some("a nexthop object".to_owned()),
            RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => {
                unknown = Some("an encapsulation".to_owned());
            }
            RouteAttribute::Realm(_) => unknown = Some("a realm".to_owned()),
            other => unknown = Some(format!("attribute {}", other.kind())),
        }
    }
    if r.next_hops.is_empty() && (single.via.is_some() || single.dev.is_some()) {
        r.next_hops.push(single);
    }
    // What the kernel keeps for each address: local, broadcast, anycast and multicast.
    if r.table == TABLE_LOCAL && r.protocol == PROTO_KERNEL {
        return Ok(None);
    }
    // Left to a link that is not carried (a fallback tunnel): nothing to keep.
    if r.kind == 1 && r.next_hops.iter().all(|n| n.dev.is_none()) {
        return Ok(None);
    }
    match unknown {
        Some(why) => Err(unsupported(&r, format!("it has {why}"))),
        None => Ok(Some(r)),
    }
}

/// All routes that are carried, in the kernel's order.
pub(super) async fn routes(
    rt: &mut Rt,
    names: &HashMap<u32, String>,
) -> Result<Vec<RouteCapture>, NetworkError> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let list = rt
            .dump(RouteNetlinkMessage::GetRoute(question), |m| match m {
                RouteNetlinkMessage::NewRoute(r) if r.header.address_family == family => Some(r),
                _ => None,
            })
            .await
            .attempt("list", "routes")?;
        for m in &list {
            all.extend(parse(m, names)?);
        }
    }
    Ok(all)
}

fn gateway(v6: bool, via: IpAddr) -> RouteAttribute {
    // An IPv4 route by way of an IPv6 router (RFC 5549).
    if via.is_ipv6() != v6 { RouteAttribute::Via(via.into()) } else { RouteAttribute::Gateway(via.into()) }
}

/// A message that makes or removes a route.
pub(super) fn message(r: &RouteCapture, indices: &HashMap<String, u32>) -> RouteMessage {
    let mut m = RouteMessage::default();
    let h = &mut m.header;
    h.address_family = if r.v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    h.destination_prefix_length = r.dst.map_or(0, |d| d.prefix);
    h.source_prefix_length = r.src.map_or(0, |d| d.prefix);
    h.tos = r.tos;
    h.table = u8::try_from(r.table).unwrap_or(TABLE_COMPAT);
    h.protocol = r.protocol.into();
    h.scope = r.scope.into();
    h.kind = r.kind.into();
    let a = &mut m.attributes;
    a.push(RouteAttribute::Table(r.table));
    a.extend(r.dst.map(|d| RouteAttribute::Destination(d.ip.into())));
    a.extend(r.src.map(|s| RouteAttribute::Source(s.ip.into())));
    a.extend(r.prefsrc.map(|s| RouteAttribute::PrefSource(s.into())));
    a.extend(r.priority.map(RouteAttribute::Priority));
    a.extend(r.pref.map(|p| RouteAttribute::Preference(p.into())));
    a.extend(r.expires.map(RouteAttribute::Expires));
    let mut metrics: Vec<RouteMetric> = Vec::new();
    for (kind, value) in &r.metrics {
        metrics.push(RouteMetric::Other(DefaultNla::new(*kind, value.to_ne_bytes().to_vec())));
    }
    if let Some(c) = &r.congestion {
        let name = c.bytes().chain([0]).collect();
        metrics.push(RouteMetric::Other(DefaultNla::new(RTAX_CC_ALGO, name)));
    }
    if !metrics.is_empty() {
        a.push(RouteAttribute::Metrics(metrics));
    }
    let index = |hop: &NextHop| hop.dev.as_ref().and_then(|d| indices.get(d).copied());
    match r.next_hops.as_slice() {
        [] => {}
        [one] => {
            a.extend(one.via.map(|v| gateway(r.v6, v)));
            a.extend(index(one).map(RouteAttribute::Oif));
            if one.onlink {
                m.header.flags = RouteFlags::Onlink;
            }
        }
        many => {
            let hops = many.iter().map(|n| {
                let mut hop = RouteNextHop::default();
                hop.interface_index = index(n).unwrap_or(0);
                hop.hops = n.weight;
                hop.flags = if n.onlink { RouteNextHopFlags::Onlink } else { RouteNextHopFlags::empty() };
                hop.attributes.extend(n.via.map(|v| gateway(r.v6, v)));
                hop
            });
            a.push(RouteAttribute::MultiPath(hops.collect()));
        }
    }
    m
}

/// Does the kernel make this one by itself, with an address?
pub(super) fn is_kernels(r: &RouteCapture) -> bool {
    r.protocol == PROTO_KERNEL && r.kind == 1
}

/// The same route as far as the kernel's own ones go: metrics of the two kernels may differ.
pub(super) fn same_place(a: &RouteCapture, b: &RouteCapture) -> bool {
    let devs = |r: &RouteCapture| r.next_hops.iter().map(|h| h.dev.clone()).collect::<Vec<_>>();
    (a.v6, a.table, a.dst, a.prefsrc) == (b.v6, b.table, b.dst, b.prefsrc) && devs(a) == devs(b)
}
