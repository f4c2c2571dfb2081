//! Links: listing them, and making a pair of which one end is in a container and the other in a
//! bridge of the host.

use super::error::{Attempt, NetworkError};
use super::handle::Rt;
use super::netns::NsFd;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoData, InfoKind, InfoVeth,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, State, XdpAttached,
};
use std::io;
use std::os::fd::AsRawFd;
use tranship_proto::network::Mac;

/// Attempts to get unlike indices for the two ends of a pair.
const INDEX_TRIES: usize = 4;

/// An interface as the kernel lists it.
#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Empty for the loopback and for hardware.
    pub(super) kind: String,
    pub(super) loopback: bool,
    pub(super) mac: Option<Mac>,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// Packets pass: carrier is there and the kernel has acted on it.
    pub(super) running: bool,
    pub(super) txqlen: u32,
    pub(super) qdisc: String,
    pub(super) xdp: bool,
    /// The bridge it is in.
    pub(super) controller: Option<u32>,
    /// Index of the other end of a pair, in that end's namespace.
    pub(super) peer: Option<u32>,
    /// That namespace's number in this one.
    pub(super) peer_ns: Option<i32>,
    pub(super) alias: Option<String>,
    /// A bridge that runs the spanning tree protocol.
    pub(super) stp: bool,
}

impl Link {
    fn parse(m: LinkMessage) -> Self {
        let mut l = Self {
            index: m.header.index,
            up: m.header.flags.contains(LinkFlags::Up),
            loopback: m.header.flags.contains(LinkFlags::Loopback),
            ..Self::default()
        };
        for a in m.attributes {
            match a {
                LinkAttribute::IfName(n) => l.name = n,
                LinkAttribute::Address(a) => l.mac = <[u8; 6]>::try_from(a).ok().map(Mac),
                LinkAttribute::Mtu(n) => l.mtu = n,
                LinkAttribute::TxQueueLen(n) => l.txqlen = n,
                LinkAttribute::Qdisc(q) => l.qdisc = q,
                LinkAttribute::Controller(i) => l.controller = Some(i),
                LinkAttribute::Link(i) => l.peer = Some(i),
                LinkAttribute::LinkNetNsId(n) => l.peer_ns = Some(n),
                LinkAttribute::OperState(s) => l.running = s == State::Up,
                LinkAttribute::IfAlias(a) => l.alias = Some(a),
                LinkAttribute::Xdp(x) => {
                    l.xdp = x.iter().any(|x| matches!(x, LinkXdp::Attached(a) if *a != XdpAttached::None));
                }
                LinkAttribute::LinkInfo(infos) => {
                    for i in infos {
                        match i {
                            LinkInfo::Kind(k) => l.kind = k.to_string(),
                            LinkInfo::Data(InfoData::Bridge(b)) => {
                                let stp = |b: &InfoBridge| matches!(b, InfoBridge::StpState(s) if *s != BridgeStpState::Disabled);
                                l.stp = b.iter().any(stp);
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        l
    }

    /// A tunnel that the kernel puts into every new namespace when its module is loaded.
    pub(super) fn is_fallback_tunnel(&self) -> bool {
        const NAMES: [&str; 10] = [
            "tunl0",
            "gre0",
            "gretap0",
            "erspan0",
            "ip_vti0",
            "ip6_vti0",
            "sit0",
            "ip6tnl0",
            "ip6gre0",
            "ip6gretap0",
        ];
        !self.up && NAMES.contains(&self.name.as_str())
    }
}

/// All links of a namespace, in order of index.
pub(super) async fn links(rt: &mut Rt) -> Result<Vec<Link>, NetworkError> {
    let mut all = rt
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |m| match m {
            RouteNetlinkMessage::NewLink(l) => Some(Link::parse(l)),
            _ => None,
        })
        .await
        .attempt("list", "links")?;
    all.sort_by_key(|l| l.index);
    Ok(all)
}

/// A message that means the link of this name.
fn named(name: &str) -> LinkMessage {
    let mut m = LinkMessage::default();
    m.attributes.push(LinkAttribute::IfName(name.to_owned()));
    m
}

/// One link by name.
pub(super) async fn find(rt: &mut Rt, name: &str) -> Result<Option<Link>, NetworkError> {
    ask(rt, named(name)).await.attempt("look up link", name)
}

async fn ask(rt: &mut Rt, question: LinkMessage) -> io::Result<Option<Link>> {
    match rt.get(RouteNetlinkMessage::GetLink(question)).await {
        Ok(Some(RouteNetlinkMessage::NewLink(l))) => Ok(Some(Link::parse(l))),
        Ok(_) => Ok(None),
        Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The other end of a pair, seen from this end's namespace without going there.
pub(super) async fn find_peer(rt: &mut Rt, of: &Link) -> Result<Option<Link>, NetworkError> {
    let (Some(index), Some(ns)) = (of.peer, of.peer_ns) else { return Ok(None) };
    let mut m = LinkMessage::default();
    m.header.index = index;
    m.attributes.push(LinkAttribute::IfNetnsId(ns));
    ask(rt, m).await.attempt("look up the other end of", &of.name)
}

/// A message that sets a link, named, up or down.
pub(super) fn set_up(name: &str, up: bool) -> RouteNetlinkMessage {
    let mut m = named(name);
    m.header.change_mask = LinkFlags::Up;
    m.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    RouteNetlinkMessage::SetLink(m)
}

/// Removes a link by name, and with it the other end of a pair. No link is no error.
pub(super) async fn delete(rt: &mut Rt, name: &str) -> Result<(), NetworkError> {
    match rt.change(RouteNetlinkMessage::DelLink(named(name)), 0).await {
        Err(e) if e.raw_os_error() != Some(nix::libc::ENODEV) => Err(e).attempt("remove link", name),
        _ => Ok(()),
    }
}

/// The container's end of a link to be made.
#[derive(Clone, Copy)]
pub(super) struct EndSpec<'a> {
    pub(super) name: &'a str,
    /// Index wanted; 0 for any.
    pub(super) index: u32,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    pub(super) txqlen: Option<u32>,
}

impl EndSpec<'_> {
    fn message(&self, kind: InfoKind, data: Option<InfoData>) -> LinkMessage {
        let mut m = named(self.name);
        m.header.index = self.index;
        m.attributes.push(LinkAttribute::Address(self.mac.0.to_vec()));
        m.attributes.push(LinkAttribute::Mtu(self.mtu));
        m.attributes.extend(self.txqlen.map(LinkAttribute::TxQueueLen));
        let info = [LinkInfo::Kind(kind)].into_iter().chain(data.map(LinkInfo::Data));
        m.attributes.push(LinkAttribute::LinkInfo(info.collect()));
        m
    }

    /// Creates the link, with the index wanted if it is free.
    async fn create(&self, rt: &mut Rt, kind: InfoKind, data: Option<InfoData>) -> Result<(), NetworkError> {
        let mut m = self.message(kind, data);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let taken = |e: &io::Error| e.raw_os_error() == Some(nix::libc::EBUSY);
        match rt.change(RouteNetlinkMessage::NewLink(m.clone()), flags).await {
            Err(e) if taken(&e) && self.index != 0 => {
                tracing::warn!(link = self.name, index = self.index, "interface index is taken");
                m.header.index = 0;
                rt.change(RouteNetlinkMessage::NewLink(m), flags).await
            }
            r => r,
        }
        .attempt("make link", self.name)
    }

    /// A pair with both ends in one namespace.
    pub(super) async fn create_loose_pair(&self, rt: &mut Rt, other: &str) -> Result<(), NetworkError> {
        self.create(rt, InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(named(other))))).await
    }

    /// A link that leads nowhere.
    pub(super) async fn create_dummy(&self, inside: &mut Rt) -> Result<(), NetworkError> {
        self.create(inside, InfoKind::Dummy, None).await
    }
}

/// The host's end of a link to be made.
pub(super) struct PortSpec<'a> {
    pub(super) name: &'a str,
    pub(super) bridge: &'a Link,
    pub(super) alias: String,
}

/// Makes the pair, such that its ends do not have the same index, each in its own namespace.
///
/// The kernel's link watch takes a device for a virtual one on top of another, whose carrier
/// changes are urgent, by comparing the two (`linkwatch_urgent_event`). With equal ones it lets
/// changes wait for up to a second: measured as 0.7 to 1.0 s from opening to the first packet.
async fn create_with_unlike_indices(
    inside: &mut Rt,
    host: &mut Rt,
    end: &EndSpec<'_>,
    port: &str,
    peer: LinkMessage,
) -> Result<(), NetworkError> {
    let last = links(inside).await?.last().map_or(1, |l| l.index);
    let index = if end.index == 0 { last + 1 } else { end.index };
    // The host's index is the next free one and counts on.
    for _ in 0..INDEX_TRIES {
        let data = InfoData::Veth(InfoVeth::Peer(peer.clone()));
        EndSpec { index, ..*end }.create(inside, InfoKind::Veth, Some(data)).await?;
        let (a, b) = (find(inside, end.name).await?, find(host, port).await?);
        match (a, b) {
            (Some(a), Some(b)) if a.index != b.index => return Ok(()),
            _ => delete(inside, end.name).await?,
        }
    }
    Err(io::Error::other("its ends always get the same index")).attempt("make link", end.name)
}

/// Which device on the host stands for a container's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outer {
    /// The host end of the link.
    Port,
    /// The device of a packet hold.
    Hold,
}

/// The MAC of a device in a bridge that stands for a link with `mac`: never that one, for a bridge
/// keeps frames for its ports' own addresses to itself; and high, a hold's highest of all, for a
/// bridge whose address nobody set takes the lowest one among its ports
/// (`br_stp_recalculate_bridge_id`), and a hold must not change it while it is there.
pub(super) fn outer_mac(mac: Mac, device: Outer) -> Mac {
    let (second, last) = match device {
        Outer::Port => (0xfe, 0x55),
        Outer::Hold => (0xff, 0xaa),
    };
    let [_, _, c, d, e, f] = mac.0;
    // The container's own may begin with the same two bytes.
    Mac([0xfe, second, c, d, e, f ^ last])
}

/// Makes a pair: one end in the container, down; the other in the host's bridge, down.
///
/// It is made from inside, for only then does the kernel honour the index wanted
/// (`veth_newlink` of drivers/net/veth.c).
pub(super) async fn create_pair(
    inside: &mut Rt,
    host: &mut Rt,
    host_ns: &NsFd,
    end: &EndSpec<'_>,
    port: &PortSpec<'_>,
) -> Result<(), NetworkError> {
    let mut peer = named(port.name);
    // Neither lowers the bridge's MTU nor drops what the container may send.
    let mtu = end.mtu.max(port.bridge.mtu);
    peer.attributes.push(LinkAttribute::Address(outer_mac(end.mac, Outer::Port).0.to_vec()));
    peer.attributes.push(LinkAttribute::Mtu(mtu));
    peer.attributes.push(LinkAttribute::NetNsFd(host_ns.fd().as_raw_fd()));
    create_with_unlike_indices(inside, host, end, port.name, peer).await?;

    // The host itself has nothing to say on this port: no link-local address, no solicitations.
    let mut quiet = named(port.name);
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    quiet.attributes.push(LinkAttribute::AfSpecUnspec(vec![mode]));
    if let Err(e) = host.change(RouteNetlinkMessage::SetLink(quiet), 0).await {
        tracing::debug!(port = port.name, %e, "no IPv6 on the host end");
    }
    let mut attach = named(port.name);
    attach.attributes.push(LinkAttribute::Controller(port.bridge.index));
    attach.attributes.push(LinkAttribute::IfAlias(port.alias.clone()));
    host.change(RouteNetlinkMessage::SetLink(attach), 0)
        .await
        .attempt("attach", format!("{} to bridge {}", port.name, port.bridge.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_stand_for_a_link_have_macs_of_their_own_and_high_ones() {
        let others = [[0x02, 0x42, 10, 0, 0, 1], [0xfe, 0xfd, 0xff, 0xff, 0xff, 0xff]];
        let alike = [[0xfe, 0xfe, 0, 0, 0, 0], [0xfe, 0xff, 0, 0, 0, 0], [0xfe, 0xff, 0, 0, 0, 0xff]];
        for mac in others.into_iter().chain(alike).map(Mac) {
            let (port, hold) = (outer_mac(mac, Outer::Port), outer_mac(mac, Outer::Hold));
            assert!(port != mac && hold != mac && port != hold, "{mac:?} {port:?} {hold:?}");
            // Multicast and burnt-in ones are not for us to use.
            assert_eq!((port.0[0] & 3, hold.0[0] & 3), (2, 2));
            assert!(hold.0 > port.0);
        }
        // What other programs give their ports is lower but for one in 16384.
        for mac in others.map(Mac) {
            assert!(outer_mac(mac, Outer::Hold).0 > others[1]);
        }
    }
}
