//! Is an address in use on a network, and by whom? Asked by the destination before anything is
//! touched: the container itself answers, and nobody else may.

use super::address::addresses;
use super::error::{Attempt, NetworkError};
use super::handle::Rt;
use super::packet::{self, ETH_P_ARP, ETH_P_IPV6, RawSocket, claimant};
use super::{Networks, index_of};
use futures_util::future::join_all;
use nix::sys::socket::{MsgFlags, recv};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};
use tranship_proto::network::{Mac, NetCapture};

/// Questions asked within the time given.
const QUESTIONS: u32 = 3;
/// For anyone else to answer the last question after the one who is expected to has: on one segment all
/// answer as soon as they hear it.
const OTHERS: Duration = Duration::from_millis(60);
/// To the next question after the one who is expected to has answered.
const NEXT: Duration = Duration::from_millis(20);
/// Probes under way at a time: each has a socket.
const AT_ONCE: usize = 32;

/// An address of the container that someone else has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The address.
    pub ip: IpAddr,
    /// Where.
    pub network: String,
    /// Who answers.
    pub mac: Mac,
}

/// How long to listen for those who claim an address.
#[derive(Clone, Copy)]
enum Listen {
    /// Until the first does.
    First,
    /// To all of them; shorter after a question that this one has answered, [`NEXT`] and at last [`OTHERS`].
    All(Option<Mac>),
}

/// Everybody who claims `ip` within `timeout` on a network of this host, the host included.
async fn claimants(
    networks: &Networks,
    network: &str,
    ip: IpAddr,
    timeout: Duration,
    listen_to: Listen,
) -> Result<BTreeSet<Mac>, NetworkError> {
    let mut host = Rt::host()?;
    let bridge = networks.bridge_link(&mut host, network).await?;
    let Some(own) = bridge.mac else { return Ok(BTreeSet::new()) };
    if addresses(&mut host).await?.values().flatten().any(|a| a.ip == ip) {
        // The host does not hear its own question.
        return Ok(BTreeSet::from([own]));
    }
    let index = index_of(&bridge.name)?;
    let (listen, question) = match ip {
        IpAddr::V4(v4) => (ETH_P_ARP, packet::arp_probe(own, v4)),
        IpAddr::V6(v6) => (ETH_P_IPV6, packet::neighbour_solicitation(own, v6)),
    };
    let socket =
        RawSocket::open(index, listen).attempt("open", format!("a packet socket on {}", bridge.name))?;
    let copy = socket.fd().try_clone().attempt("copy", "a packet socket")?;
    // SAFETY: an OwnedFd is open until it is dropped, and nothing takes it out of the AsyncFd.
    let ready = unsafe { AsyncFd::register(copy) }.attempt("watch", "a packet socket")?;
    let mut found = BTreeSet::new();
    for n in 1..=QUESTIONS {
        socket.send(&question)?;
        let others = if n == QUESTIONS { OTHERS } else { NEXT };
        let mut until = Instant::now() + timeout / QUESTIONS;
        while let Ok(frame) = timeout_at(until, next_frame(&ready)).await {
            let frame = frame.attempt("listen on", &bridge.name)?;
            let Some(who) = claimant(&frame, ip, own) else { continue };
            found.insert(who);
            match listen_to {
                Listen::First => return Ok(found),
                Listen::All(Some(expected)) if expected == who => until = until.min(Instant::now() + others),
                Listen::All(_) => {}
            }
        }
    }
    Ok(found)
}

async fn next_frame(socket: &AsyncFd<OwnedFd>) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 128];
    loop {
        let mut guard = socket.readable().await?;
        match guard.try_io(|s| Ok(recv(s.as_raw_fd(), &mut buffer, MsgFlags::empty())?)) {
            Ok(n) => return n.map(|n| buffer[..n].to_vec()),
            Err(_would_block) => {}
        }
    }
}

/// Who answers for `ip` on a network of this host first? `None` when nobody does in time.
///
/// # Errors
/// When this host has no such network or cannot ask.
pub async fn probe(
    networks: &Networks,
    network: &str,
    ip: IpAddr,
    timeout: Duration,
) -> Result<Option<Mac>, NetworkError> {
    Ok(claimants(networks, network, ip, timeout, Listen::First).await?.into_iter().next())
}

/// Addresses of a captured container that anyone but itself answers for. Takes at most `timeout` for each
/// batch of 32 addresses, and less where the container answers itself. IPv6 link-local addresses are among
/// those asked for, loopback ones are not.
///
/// # Errors
/// When this host lacks a network or cannot ask.
pub async fn conflicts(
    networks: &Networks,
    capture: &NetCapture,
    timeout: Duration,
) -> Result<Vec<Conflict>, NetworkError> {
    let mut questions = Vec::new();
    for l in capture.ports() {
        let Some(network) = &l.network else { continue };
        questions.extend(l.addrs.iter().map(|a| (network.as_str(), a.ip, l.mac)));
    }
    let mut found = Vec::new();
    for batch in questions.chunks(AT_ONCE) {
        let asked = batch.iter().map(|(network, ip, own)| async move {
            let who = claimants(networks, network, *ip, timeout, Listen::All(*own)).await?;
            let others = who.into_iter().filter(|m| Some(*m) != *own);
            Ok::<_, NetworkError>(
                others
                    .map(|mac| Conflict { ip: *ip, network: (*network).to_owned(), mac })
                    .collect::<Vec<_>>(),
            )
        });
        for answer in join_all(asked).await {
            found.extend(answer?);
        }
    }
    Ok(found)
}
