//! The fence and the gate: the administrative state of a container's host ends.
//!
//! One message for each port, all sent before the first answer is awaited. Shutting is done when the
//! kernel has answered. Opening is not: the two ends begin to send only when a kernel thread, the
//! link watch (net/core/link_watch.c), has seen the carrier. A question for a neighbour's address
//! that falls in between is lost and repeated a second later; measured in one of four openings on
//! a busy host. So opening waits until both ends run. Asking for a link's state also makes the
//! kernel act at once (`linkwatch_sync_dev` in `rtnl_getlink`, Linux 6.8).

use super::Port;
use super::address::forget_unresolved;
use super::error::{Attempt, NetworkError};
use super::handle::Rt;
use super::link;
use super::netns::Netns;
use futures_util::future::join_all;
use nix::libc;
use std::time::Duration;
use tokio::time::Instant;

/// Between looks at a link that is not running yet, and in all.
const LOOK: Duration = Duration::from_micros(200);
const SETTLE: Duration = Duration::from_millis(1500);

async fn set(ports: &[Port], up: bool, may_be_missing: bool) -> Result<(), NetworkError> {
    let attempt = if up { "open" } else { "shut" };
    let mut host = Rt::host()?;
    let mut pending = Vec::with_capacity(ports.len());
    for p in ports {
        pending.push(host.begin(link::set_up(&p.name, up), 0).attempt(attempt, &p.name)?);
    }
    for (p, done) in ports.iter().zip(join_all(pending).await) {
        match done {
            Err(e) if may_be_missing && e.raw_os_error() == Some(libc::ENODEV) => {}
            done => done.attempt(attempt, &p.name)?,
        }
    }
    if up {
        let until = Instant::now() + SETTLE;
        for p in ports {
            settle(&mut host, p, until).await?;
        }
    }
    Ok(())
}

/// Waits until packets really pass both ends of an open port.
async fn settle(host: &mut Rt, port: &Port, until: Instant) -> Result<(), NetworkError> {
    loop {
        let Some(outer) = link::find(host, &port.name).await? else { return Ok(()) };
        let inner = link::find_peer(host, &outer).await?;
        // The container has its own end down: there will be no carrier.
        if inner.as_ref().is_none_or(|i| !i.up || i.running)
            && (outer.running || inner.is_some_and(|i| !i.up))
        {
            return Ok(());
        }
        if Instant::now() > until {
            tracing::warn!(port = port.name, "the port is open but has no carrier");
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Cuts a container off: when this returns, nothing goes in or out, also when this process dies.
/// A port that does not exist lets nothing through either. Repeats are harmless.
///
/// Not undone when cancelled.
///
/// # Errors
/// When a port cannot be shut; others may be.
pub async fn fence(ports: &[Port]) -> Result<(), NetworkError> {
    set(ports, false, true).await
}

/// Lets a fenced container back: its ports open, and questions that went unanswered meanwhile are
/// forgotten so that they are asked anew at once. Call it before the container is thawed.
///
/// # Errors
/// When a port is missing or cannot be opened.
pub async fn unfence(netns: &Netns, ports: &[Port]) -> Result<(), NetworkError> {
    set(ports, true, false).await?;
    let ns = netns.fd()?;
    forget_unresolved(&mut Rt::inside(&ns).await?).await
}

/// Opens the ports of a container that has been made again here; packets pass when this returns.
/// Repeats are harmless.
///
/// # Errors
/// When a port is missing or cannot be opened.
pub async fn open_gate(ports: &[Port]) -> Result<(), NetworkError> {
    set(ports, true, false).await
}

/// Do packets pass this port? A port that does not exist passes none.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn is_open(port: &Port) -> Result<bool, NetworkError> {
    Ok(link::find(&mut Rt::host()?, &port.name).await?.is_some_and(|l| l.up))
}
