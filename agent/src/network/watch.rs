//! When did the last packet go to a container, and when did the first come from it? The outage as
//! the network saw it, from the kernel's own time stamps.
//!
//! A thread of its own drains a packet socket on the host end: it takes 64 bytes of each packet,
//! and sleeps a little between drains so that a busy container wakes it at most a few hundred times
//! a second. Time stamps are of the packet's passing, so the sleep costs no precision. A BPF
//! program could count in the kernel, at the price of loading one.

use super::error::{Attempt, NetworkError};
use super::packet::{ETH_P_ALL, ETH_P_IP, ETH_P_IPV6, ICMPV6, RawSocket};
use super::{Port, index_of};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::{TimeSpec, TimeValLike};
use rustix::time::{ClockId, clock_gettime};
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes taken of each packet: enough for the headers looked at.
const SNAP: usize = 64;
/// Pause between drains.
const NAP: Duration = Duration::from_millis(3);
/// Room for packets between drains.
const BUFFER: usize = 2 << 20;

/// Moments by `CLOCK_MONOTONIC` of this host, in nanoseconds, since the watch was armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PacketTimes {
    /// The last IP packet toward the container.
    pub last_in: Option<u64>,
    /// The first IP packet from the container.
    pub first_out: Option<u64>,
    /// The last IP packet from the container.
    pub last_out: Option<u64>,
}

struct Shared {
    socket: RawSocket,
    armed_at: u64,
    times: PacketTimes,
}

/// Watches the host end of one link. Ends when dropped.
pub struct PacketWatch {
    shared: Arc<Mutex<Shared>>,
    // Closing it ends the thread.
    _stop: UnixStream,
}

fn clock(id: ClockId) -> i64 {
    let t = clock_gettime(id);
    t.tv_sec * 1_000_000_000 + t.tv_nsec
}

fn monotonic() -> u64 {
    clock(ClockId::Monotonic) as u64
}

/// Neighbour discovery, router solicitation and group membership: the kernel's own, sent when a
/// link comes up and not by the container.
fn is_housekeeping(protocol: u16, packet: &[u8]) -> bool {
    let payload = packet.get(14..).unwrap_or_default();
    match protocol {
        ETH_P_IP => payload.get(9) == Some(&2),
        _ => {
            let (next, kind) = match payload.get(6) {
                // Hop-by-hop options before an MLD report.
                Some(0) => (payload.get(40), payload.get(48)),
                next => (next, payload.get(40)),
            };
            next == Some(&ICMPV6) && kind.is_some_and(|k| matches!(k, 130..=137 | 143))
        }
    }
}

impl Shared {
    /// Takes in what has arrived.
    fn drain(&mut self) -> io::Result<()> {
        // The stamps are of the real-time clock; a step of that clock between stamp and drain,
        // milliseconds later, is not provided for.
        let offset = clock(ClockId::Monotonic) - clock(ClockId::Realtime);
        let mut buffer = [0; SNAP];
        loop {
            let mut control = nix::cmsg_space!(TimeSpec);
            let mut iov = [IoSliceMut::new(&mut buffer)];
            let fd = self.socket.fd().as_raw_fd();
            let (protocol, kind, stamp, length) =
                match recvmsg::<LinkAddr>(fd, &mut iov, Some(&mut control), MsgFlags::MSG_DONTWAIT) {
                    Ok(m) => {
                        let Some(a) = m.address else { continue };
                        let stamp = m.cmsgs()?.find_map(|c| match c {
                            ControlMessageOwned::ScmTimestampns(t) => Some(t.num_nanoseconds()),
                            _ => None,
                        });
                        (u16::from_be(a.protocol()), a.pkttype(), stamp, m.bytes)
                    }
                    Err(Errno::EAGAIN) => return Ok(()),
                    // Said once each time the port goes down; the socket works on.
                    Err(Errno::EINTR | Errno::ENETDOWN) => continue,
                    Err(e) => return Err(e.into()),
                };
            let Some(at) = stamp.map(|s| (s + offset) as u64).filter(|at| *at >= self.armed_at) else {
                continue;
            };
            let packet = &buffer[..length.min(SNAP)];
            if ![ETH_P_IP, ETH_P_IPV6].contains(&protocol) || is_housekeeping(protocol, packet) {
                continue;
            }
            // Seen from the host, what it sends on the port goes into the container.
            if kind == libc::PACKET_OUTGOING {
                self.times.last_in = Some(at);
            } else {
                self.times.first_out.get_or_insert(at);
                self.times.last_out = Some(at);
            }
        }
    }
}

impl PacketWatch {
    /// Begins to watch a port, open or shut. Armed from the start.
    ///
    /// # Errors
    /// When the port does not exist, or no socket or thread can be had.
    pub fn start(port: &Port) -> Result<Self, NetworkError> {
        let what = || format!("a packet socket on {}", port.name);
        let socket = RawSocket::open(index_of(&port.name)?, ETH_P_ALL).attempt("open", what())?;
        setsockopt(socket.fd(), sockopt::ReceiveTimestampns, &true).attempt("configure", what())?;
        setsockopt(socket.fd(), sockopt::RcvBufForce, &BUFFER).attempt("configure", what())?;
        let (stop, stopped) = UnixStream::pair().attempt("make", "a socket pair")?;
        let readable = socket.fd().try_clone().attempt("copy", what())?;
        let shared =
            Arc::new(Mutex::new(Shared { socket, armed_at: monotonic(), times: PacketTimes::default() }));
        let state = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("packet-watch".into())
            .spawn(move || {
                loop {
                    let mut fds = [
                        PollFd::new(readable.as_fd(), PollFlags::POLLIN),
                        PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                    ];
                    match poll(&mut fds, PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(_) => return,
                    }
                    if fds[1].any() == Some(true) && matches!((&stopped).read(&mut [0]), Ok(0) | Err(_)) {
                        return;
                    }
                    let drained = state.lock().unwrap_or_else(PoisonError::into_inner).drain();
                    if let Err(e) = drained {
                        tracing::debug!(%e, "packet watch ends");
                        return;
                    }
                    std::thread::sleep(NAP);
                }
            })
            .attempt("start", "the packet watch")?;
        Ok(Self { shared, _stop: stop })
    }

    /// Forgets what was seen; only packets from now on count.
    ///
    /// # Errors
    /// When the socket cannot be read any more (the port is gone).
    pub fn arm(&self) -> Result<(), NetworkError> {
        let mut s = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        s.drain().attempt("read", "a packet socket")?;
        s.armed_at = monotonic();
        s.times = PacketTimes::default();
        Ok(())
    }

    /// What was seen up to now. Cheap; may be polled.
    ///
    /// # Errors
    /// When the socket cannot be read any more (the port is gone).
    pub fn times(&self) -> Result<PacketTimes, NetworkError> {
        let mut s = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        s.drain().attempt("read", "a packet socket")?;
        Ok(s.times)
    }
}
