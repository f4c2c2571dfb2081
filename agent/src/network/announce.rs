//! Telling the segment where a container's addresses are now: bridges and switches learn the port,
//! neighbours the MAC address. Repeated, for the first ones may be lost to a bridge that has just
//! changed; both forms of ARP, for implementations listen to either.

use super::address::forget_unresolved;
use super::error::{Attempt, NetworkError};
use super::handle::Rt;
use super::netns::Netns;
use super::packet::{RawSocket, arp_announcement, neighbour_advertisement};
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use tranship_proto::network::{LinkCapture, NetCapture};

/// Pauses between bursts: 2 s in all.
const REPEATS: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_millis(1000),
];
/// `RT_SCOPE_LINK` and `RT_SCOPE_HOST`: IPv4 addresses nobody else asks for.
const SCOPE_LINK: u8 = 253;

/// The frames that announce a link's addresses.
pub fn frames_of(link: &LinkCapture) -> Vec<Vec<u8>> {
    let Some(mac) = link.mac.filter(|_| link.up) else { return Vec::new() };
    let mut frames = Vec::new();
    for a in &link.addrs {
        match a.ip {
            IpAddr::V4(ip) if a.scope < SCOPE_LINK => {
                frames.push(arp_announcement(mac, ip, false));
                frames.push(arp_announcement(mac, ip, true));
            }
            IpAddr::V6(ip) => frames.push(neighbour_advertisement(mac, ip)),
            IpAddr::V4(_) => {}
        }
    }
    frames
}

/// Announces all addresses of a container from inside it, once before this returns and four times
/// more within two seconds in the background. Neighbours that the container asked for in vain
/// while it was shut are forgotten first, so that it asks anew. Call it when the gate is open and
/// before packets are delivered: what waits for a neighbour is forgotten with it, and that would
/// be the answers to these.
///
/// # Errors
/// When the first burst could not be sent.
pub async fn announce(netns: &Netns, capture: &NetCapture) -> Result<(), NetworkError> {
    let ns = netns.fd()?;
    let forgotten = async { forget_unresolved(&mut Rt::inside(&ns).await?).await };
    if let Err(e) = forgotten.await {
        tracing::debug!(%e, "unresolved neighbours stay");
    }
    let work: Vec<_> = capture.ports().map(|l| (l.name.clone(), frames_of(l))).collect();
    let opened = ns.inside(move || {
        let open = |(name, frames): (String, Vec<Vec<u8>>)| -> io::Result<_> {
            let index = nix::net::if_::if_nametoindex(name.as_str())?;
            Ok((RawSocket::open(index, 0)?, frames))
        };
        work.into_iter().filter(|(_, f)| !f.is_empty()).map(open).collect::<io::Result<Vec<_>>>()
    });
    let links = opened.await.attempt("open", "a packet socket in the container's namespace")?;
    let burst = move || -> Result<(), NetworkError> {
        links.iter().try_for_each(|(s, frames)| frames.iter().try_for_each(|f| s.send(f)))
    };
    burst()?;
    tokio::spawn(async move {
        for pause in REPEATS {
            tokio::time::sleep(pause).await;
            if let Err(e) = burst() {
                tracing::debug!(%e, "announcement not repeated");
                return;
            }
        }
    });
    Ok(())
}
