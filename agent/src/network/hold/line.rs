//! A container's links while its packets are held: reading what comes, sending what waited, and
//! giving way.

use super::super::error::{Attempt, NetworkError};
use super::super::handle::Rt;
use super::super::packet::{RawSocket, reverse_arp};
use super::super::{Port, index_of, is_open};
use super::frame::{self, Kind};
use super::queue::{Held, Queue};
use super::switch;
use super::tap::Tap;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tranship_proto::network::Mac;

/// A frame of the container's may still be under way when its packets are caught.
const GRACE: Duration = Duration::from_millis(100);
/// Pause of the reader while the queue is full: what comes then is only counted.
const NAP: Duration = Duration::from_millis(1);
/// Frames read at one go.
const READ_AT_ONCE: usize = 256;
/// Frames sent at one go, and the pause after them: a receiver's buffer has room for about 250.
const SEND_AT_ONCE: usize = 32;
const PACE: Duration = Duration::from_micros(100);
/// Attempts to send a frame that the kernel has no room for, [`PACE`] apart.
const SEND_TRIES: usize = 50;
/// The bridge takes over after this time even if frames come as fast as they can be sent.
const PATIENCE: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is caught yet.
    Ready,
    Catching,
    /// The gate is open: questions reach the container by themselves.
    Delivering,
    GaveWay,
}

/// One link of the container.
pub(super) struct Line {
    pub(super) tap: Tap,
    /// The TAP device's.
    pub(super) index: u32,
    pub(super) mac: Mac,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) port: Port,
}

pub(super) struct State {
    pub(super) queue: Queue,
    pub(super) phase: Phase,
    pub(super) caught_at: Instant,
    pub(super) delivered: u64,
    pub(super) longest: Duration,
    pub(super) buffer: Vec<u8>,
}

pub(super) struct Shared {
    pub(super) lines: Vec<Line>,
    pub(super) state: Mutex<State>,
    /// The container was heard.
    pub(super) heard: Notify,
}

/// What reading left behind.
#[derive(PartialEq, Eq)]
pub(super) enum Drained {
    All,
    /// There may be more.
    Some,
    /// There was no room.
    Full,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what has arrived.
    pub(super) fn drain(&self, state: &mut State) -> io::Result<Drained> {
        let State { queue, phase, caught_at, buffer, .. } = state;
        let mut drained = Drained::All;
        for (n, line) in self.lines.iter().enumerate() {
            for turn in 0.. {
                if turn == READ_AT_ONCE {
                    drained = Drained::Some;
                    break;
                }
                let Some(length) = line.tap.next(buffer)? else { break };
                let (packet, now) = (&buffer[..length], Instant::now());
                let wanted = match (&phase, frame::kind(packet, line.mac, &line.addresses)) {
                    (Phase::Catching | Phase::Delivering, Kind::Own) => true,
                    (Phase::Catching, Kind::Question) => true,
                    (Phase::Catching, Kind::Claim) => {
                        if now.duration_since(*caught_at) > GRACE {
                            self.heard.notify_one();
                        }
                        false
                    }
                    _ => false,
                };
                if wanted && !queue.push(n, packet, now) {
                    drained = Drained::Full;
                }
            }
        }
        Ok(drained)
    }

    /// The reader's thread, until the other end of `stopped` is closed.
    pub(super) fn read_until(&self, mut stopped: UnixStream) {
        loop {
            let mut fds = vec![PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.lines.iter().map(|l| PollFd::new(l.tap.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            if fds[0].any() == Some(true) && matches!(stopped.read(&mut [0]), Ok(0) | Err(_)) {
                return;
            }
            let drained = self.drain(&mut self.lock());
            match drained {
                Ok(Drained::Full) => thread::sleep(NAP),
                Ok(_) => {}
                Err(e) => {
                    // The device was removed by someone.
                    tracing::warn!(%e, "packets are not held any more");
                    return;
                }
            }
        }
    }

    /// Asks the segment to send here what is for the container.
    pub(super) fn call(&self) -> Result<(), NetworkError> {
        for l in &self.lines {
            l.tap.send(&reverse_arp(l.mac)).attempt("call for packets to", l.mac.to_string())?;
        }
        Ok(())
    }

    /// Sends what waits until there is no more, or too much of it. Blocking.
    pub(super) fn send_all(&self, sockets: &[RawSocket]) -> Result<(), NetworkError> {
        let start = Instant::now();
        loop {
            let (mut batch, mut more) = (Vec::with_capacity(SEND_AT_ONCE), false);
            {
                let mut state = self.lock();
                more |= self.drain(&mut state).attempt("read", "held packets")? != Drained::All;
                let now = Instant::now();
                state.longest = state.longest.max(state.queue.wait(now));
                while batch.len() < SEND_AT_ONCE
                    && let Some(held) = state.queue.pop(now)
                {
                    batch.push(held);
                }
                more |= !state.queue.is_empty();
            }
            let mut sent = 0;
            let result: Result<(), Errno> = batch.iter().try_for_each(|held| {
                sent += u64::from(send(&sockets[held.line], held)?);
                Ok(())
            });
            {
                let mut state = self.lock();
                state.delivered += sent;
                state.queue.dropped += batch.len() as u64 - sent;
            }
            result.attempt("deliver", "held packets")?;
            if !more || start.elapsed() > PATIENCE {
                return Ok(());
            }
            thread::sleep(PACE);
        }
    }
}

/// Was it sent? A frame that the kernel refuses as such is not.
fn send(socket: &RawSocket, held: &Held) -> Result<bool, Errno> {
    for _ in 0..SEND_TRIES {
        match socket.try_send(&held.packet) {
            Ok(()) => return Ok(true),
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => thread::sleep(PACE),
            Err(e @ (Errno::EINVAL | Errno::EMSGSIZE)) => {
                tracing::debug!(%e, length = held.packet.len(), "a held packet cannot be sent");
                return Ok(false);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

pub(super) fn socket_to(line: &Line) -> Result<RawSocket, NetworkError> {
    let socket = RawSocket::open(index_of(&line.port.name)?, 0).attempt("open", "a packet socket")?;
    socket.expect_virtio_header().attempt("configure", "a packet socket")?;
    Ok(socket)
}

/// Ends the catching when the container is heard and it is not the one here.
pub(super) async fn give_way_when_heard(shared: Arc<Shared>) {
    loop {
        shared.heard.notified().await;
        match gives_way(&shared).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(e) => tracing::warn!(%e, "packets go on being held for a container that runs elsewhere"),
        }
    }
}

async fn gives_way(shared: &Shared) -> Result<bool, NetworkError> {
    for l in &shared.lines {
        if is_open(&l.port).await? {
            return Ok(false);
        }
    }
    {
        let mut state = shared.lock();
        if state.phase != Phase::Catching {
            return Ok(true);
        }
        state.phase = Phase::GaveWay;
        state.queue.dropped += state.queue.len() as u64;
        state.queue.clear();
    }
    tracing::warn!("the container was heard elsewhere, packets for it are not held any more");
    let mut host = Rt::host()?;
    for l in &shared.lines {
        switch::forget(&mut host, l.mac, l.index).await.attempt("let go of", l.mac.to_string())?;
    }
    Ok(true)
}
