//! Policy rules, between netlink messages and what travels.

use super::error::{Attempt, NetworkError};
use super::handle::Rt;
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage, RulePortRange, RuleUidRange};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tranship_proto::network::{IpNet, RuleCapture};

/// `RT_TABLE_COMPAT`: the number is in an attribute.
const TABLE_COMPAT: u8 = 252;
/// `FRA_SPORT_MASK`, `FRA_DPORT_MASK`: all ones for a plain range.
const PORT_MASKS: [u16; 2] = [28, 29];

fn parse(m: &RuleMessage) -> Result<RuleCapture, NetworkError> {
    let h = &m.header;
    let mut r = RuleCapture {
        v6: h.family == AddressFamily::Inet6,
        action: h.action.into(),
        table: h.table.into(),
        invert: h.flags.contains(RuleFlags::Invert),
        tos: h.tos,
        ..RuleCapture::default()
    };
    let (mut mark, mut mask) = (None, None);
    let mut unknown = None;
    for a in &m.attributes {
        match a {
            RuleAttribute::Priority(p) => r.priority = *p,
            RuleAttribute::Table(t) => r.table = *t,
            RuleAttribute::Source(ip) => r.src = IpNet::new(*ip, h.src_len).ok(),
            RuleAttribute::Destination(ip) => r.dst = IpNet::new(*ip, h.dst_len).ok(),
            RuleAttribute::Iifname(n) => r.iif = Some(n.clone()),
            RuleAttribute::Oifname(n) => r.oif = Some(n.clone()),
            RuleAttribute::FwMark(n) => mark = Some(*n),
            RuleAttribute::FwMask(n) => mask = Some(*n),
            RuleAttribute::Goto(p) => r.goto = Some(*p),
            RuleAttribute::SuppressPrefixLen(n) if *n == u32::MAX => {}
            RuleAttribute::SuppressPrefixLen(n) => r.suppress_prefix = Some(*n),
            RuleAttribute::SuppressIfGroup(n) if *n == u32::MAX => {}
            RuleAttribute::IpProtocol(p) => r.ip_proto = Some((*p).into()),
            RuleAttribute::SourcePortRange(p) => r.sport = Some((p.start, p.end)),
            RuleAttribute::DestinationPortRange(p) => r.dport = Some((p.start, p.end)),
            RuleAttribute::UidRange(u) => r.uids = Some((u.start, u.end)),
            RuleAttribute::Protocol(p) => r.protocol = (*p).into(),
            RuleAttribute::L3MDev(false) => {}
            RuleAttribute::Other(nla) if PORT_MASKS.contains(&nla.kind()) && nla.value_len() == 2 => {
                let mut v = [0; 2];
                nla.emit_value(&mut v);
                if v != [0xff; 2] {
                    unknown = Some("a port mask".to_owned());
                }
            }
            other => unknown = Some(format!("attribute {}", other.kind())),
        }
    }
    if mark.is_some() || mask.is_some() {
        r.mark = Some((mark.unwrap_or(0), mask.unwrap_or(u32::MAX)));
    }
    match unknown {
        Some(why) => Err(NetworkError::Unsupported {
            what: format!("policy rule {}", r.priority),
            why: format!("it has {why}"),
        }),
        None => Ok(r),
    }
}

/// All rules, in the kernel's order.
pub(super) async fn rules(rt: &mut Rt) -> Result<Vec<RuleCapture>, NetworkError> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RuleMessage::default();
        question.header.family = family;
        let list = rt
            .dump(RouteNetlinkMessage::GetRule(question), |m| match m {
                RouteNetlinkMessage::NewRule(r) if r.header.family == family => Some(r),
                _ => None,
            })
            .await
            .attempt("list", "policy rules")?;
        for m in &list {
            all.push(parse(m)?);
        }
    }
    Ok(all)
}

/// A message that makes or removes a rule.
pub(super) fn message(r: &RuleCapture) -> RuleMessage {
    let mut m = RuleMessage::default();
    m.header.family = if r.v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    m.header.action = r.action.into();
    m.header.table = u8::try_from(r.table).unwrap_or(TABLE_COMPAT);
    m.header.tos = r.tos;
    m.header.src_len = r.src.map_or(0, |n| n.prefix);
    m.header.dst_len = r.dst.map_or(0, |n| n.prefix);
    if r.invert {
        m.header.flags = RuleFlags::Invert;
    }
    let a = &mut m.attributes;
    a.push(RuleAttribute::Priority(r.priority));
    if r.table != 0 {
        a.push(RuleAttribute::Table(r.table));
    }
    a.extend(r.src.map(|n| RuleAttribute::Source(n.ip)));
    a.extend(r.dst.map(|n| RuleAttribute::Destination(n.ip)));
    a.extend(r.iif.clone().map(RuleAttribute::Iifname));
    a.extend(r.oif.clone().map(RuleAttribute::Oifname));
    if let Some((mark, mask)) = r.mark {
        a.push(RuleAttribute::FwMark(mark));
        a.push(RuleAttribute::FwMask(mask));
    }
    a.extend(r.goto.map(RuleAttribute::Goto));
    a.extend(r.suppress_prefix.map(RuleAttribute::SuppressPrefixLen));
    a.extend(r.ip_proto.map(|p| RuleAttribute::IpProtocol(p.into())));
    let range = |(start, end)| RulePortRange { start, end };
    a.extend(r.sport.map(range).map(RuleAttribute::SourcePortRange));
    a.extend(r.dport.map(range).map(RuleAttribute::DestinationPortRange));
    if let Some((start, end)) = r.uids {
        a.push(RuleAttribute::UidRange(RuleUidRange { start, end }));
    }
    if r.protocol != 0 {
        a.push(RuleAttribute::Protocol(r.protocol.into()));
    }
    m
}
