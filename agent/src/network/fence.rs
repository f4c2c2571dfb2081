//! The fence and the gate: the administrative state of a container's host ends.
//!
//! One message for each port, all sent before the first answer is awaited. The kernel has done it
//! when it has answered; opening works at once too, since carrier changes of a pair are urgent to
//! the kernel's link watch (`linkwatch_urgent_event` of net/core/link_watch.c).

use super::Port;
use super::address::forget_unresolved;
use super::error::{Attempt, NetworkError};
use super::handle::Rt;
use super::link;
use super::netns::Netns;
use futures_util::future::join_all;
use nix::libc;

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
    Ok(())
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

/// Opens the ports of a container that has been made again here. Repeats are harmless.
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
