//! What is asked of a bridge: a port for the TAP device, and where a container's address leads.
//!
//! Nothing is asked for that would outlive the port: its entries go with it
//! (`br_fdb_delete_by_port`).

use super::super::error::{Attempt, NetworkError};
use super::super::handle::Rt;
use super::super::link::{self, Link};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeMulticastRouterType, In6AddrGenMode, InfoBridgePort, InfoPortData,
    InfoPortKind, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;
use tranship_proto::network::Mac;

/// A link by name, with attributes to be set.
fn named(name: &str, attributes: impl IntoIterator<Item = LinkAttribute>) -> LinkMessage {
    let mut m = LinkMessage::default();
    m.attributes.push(LinkAttribute::IfName(name.to_owned()));
    m.attributes.extend(attributes);
    m
}

/// Makes a new TAP device a port of a bridge that gets what is flooded to all and what is led to
/// it, and from whose frames the bridge learns nothing. Returns its index.
pub(super) async fn attach(
    host: &mut Rt,
    name: &str,
    mac: Mac,
    bridge: &Link,
    alias: String,
) -> Result<u32, NetworkError> {
    // As with a container's host end: never the bridge's own address, no smaller MTU, no IPv6.
    let quiet = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let plain = [LinkAttribute::Address(mac.0.to_vec()), LinkAttribute::Mtu(bridge.mtu)];
    let plain = plain.into_iter().chain([LinkAttribute::IfAlias(alias)]);
    let what = || format!("{name} for bridge {}", bridge.name);
    host.change(RouteNetlinkMessage::SetLink(named(name, plain)), 0).await.attempt("configure", what())?;
    let quiet = named(name, [LinkAttribute::AfSpecUnspec(vec![quiet])]);
    if let Err(e) = host.change(RouteNetlinkMessage::SetLink(quiet), 0).await {
        tracing::debug!(name, %e, "no IPv6 on the hold");
    }
    let join = named(name, [LinkAttribute::Controller(bridge.index)]);
    host.change(RouteNetlinkMessage::SetLink(join), 0).await.attempt("attach", what())?;
    // A router's port gets multicast that the bridge would send to listeners only: solicitations.
    let port = vec![
        InfoBridgePort::Learning(false),
        InfoBridgePort::UnicastFlood(false),
        InfoBridgePort::MulticastRouter(BridgeMulticastRouterType::Permanent),
    ];
    let port = LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(port)),
    ]);
    // Data of a port is heeded in this message only (`rtnl_changelink`).
    host.change(RouteNetlinkMessage::NewLink(named(name, [port])), 0).await.attempt("configure", what())?;
    host.change(link::set_up(name, true), 0).await.attempt("set up", what())?;
    // A TAP device has its carrier from the start, so there is nothing to wait for.
    let made = link::find(host, name).await?;
    made.map(|l| l.index).ok_or(io::ErrorKind::NotFound).attempt("find", what())
}

fn entry(port: u32, mac: Mac, state: NeighbourState, flags: NeighbourFlags) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.family = AddressFamily::Bridge;
    m.header.ifindex = port;
    m.header.state = state;
    m.header.flags = NeighbourFlags::Controller | flags;
    m.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    m
}

/// Where a bridge sends what is for an address.
#[derive(Clone, Copy)]
pub(super) enum Lead {
    /// To the port, whatever it hears elsewhere: sticky.
    Fixed,
    /// To the port, until it learns better: as if it had just heard a frame from there.
    Learnt,
}

/// Changes where an address leads; one store in the kernel, so each frame goes one way or the
/// other. Sent at once, the future waits for the kernel's word.
pub(super) fn lead(
    host: &mut Rt,
    mac: Mac,
    port: u32,
    lead: Lead,
) -> io::Result<impl Future<Output = io::Result<()>> + use<>> {
    let m = match lead {
        Lead::Fixed => entry(port, mac, NeighbourState::Noarp, NeighbourFlags::Sticky),
        Lead::Learnt => entry(port, mac, NeighbourState::Reachable, NeighbourFlags::empty()),
    };
    host.begin(RouteNetlinkMessage::NewNeighbour(m), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Makes a bridge forget that an address leads to a port.
pub(super) async fn forget(host: &mut Rt, mac: Mac, port: u32) -> io::Result<()> {
    let m = entry(port, mac, NeighbourState::Noarp, NeighbourFlags::empty());
    host.change(RouteNetlinkMessage::DelNeighbour(m), 0).await
}
