//! Packets for a container that does not run yet wait here instead of being lost.
//!
//! A lost packet is sent again only after 0.2, 0.6, 1.4 ... seconds, so a client sees an outage
//! rounded up to one of these. A hold is a TAP device in the bridge of each of the container's
//! networks, and an entry in the bridge that leads the container's MAC address there, whatever the
//! bridge hears elsewhere. A thread reads what comes into a bounded queue. When the gate is open the
//! frames go out of the container's port, then the entry is changed to that port: each frame takes
//! one of the two ways, so none is lost or doubled, and all but those that pass within the moment
//! of the change stay in order.
//!
//! All of it is gone with the descriptor, whatever becomes of this process. Rejected: packet
//! sockets on the bridge's uplinks, which do not see packets from this host and its other
//! containers, and cannot tell which frames the bridge delivers itself once the gate is open;
//! netfilter's and traffic control's queues, which not every kernel has and which leave rules.
//!
//! The segment is told by reverse ARP from the container's MAC address, as hypervisors do: switches
//! learn from it, neighbours have nothing to change, and it cannot be mistaken for an announcement
//! of the container's. Such an announcement from elsewhere means that the container runs there: the
//! hold gives way then, for the order to let go may have been lost.

use super::error::{Attempt, NetworkError};
use super::handle::Rt;
use super::packet::RawSocket;
use super::{Networks, Port, index_of, link};
use frame::Kind;
use futures_util::future::join_all;
use line::{Line, Phase, Shared, State, give_way_when_heard, socket_to};
use queue::Queue;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use switch::Lead;
use tap::Tap;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tranship_proto::error::WireError;
use tranship_proto::handoff::{HeldPacket, MAX_PACKET_BYTES, MAX_PACKETS};
use tranship_proto::ids::ContainerName;
use tranship_proto::network::{Mac, NetCapture};

mod frame;
mod line;
mod queue;
mod switch;
mod tap;

/// Pauses between calls to the segment, 1 s in all: the first ones because a last frame of the
/// container's may have taught a switch the old place again.
const CALLS: [u64; 8] = [2, 5, 13, 30, 50, 150, 250, 500];
/// After the change, for frames that were on their way through the bridge.
const LINGER: Duration = Duration::from_millis(2);

/// Bounds of a hold, over all links of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldLimits {
    /// Memory of the frames that wait, bookkeeping included.
    pub bytes: usize,
    /// Frames that wait; one may be as long as 64 KiB when it is large receive offload's.
    pub packets: usize,
    /// Longest wait of a frame. TCP's maximum segment lifetime, twice this, is on the safe side.
    pub age: Duration,
}

impl Default for HoldLimits {
    fn default() -> Self {
        Self { bytes: 4 << 20, packets: 4096, age: Duration::from_secs(60) }
    }
}

/// What became of the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HoldStats {
    /// Frames that were taken in.
    pub held: u64,
    /// Frames that found no room, got too old or could not be sent. In a flood of more than
    /// 250 in a millisecond it is a lower bound: the kernel then drops some unread.
    pub dropped: u64,
    /// Frames that were delivered.
    pub delivered: u64,
    /// How long the oldest of them had waited.
    pub longest: Duration,
    /// The container was heard elsewhere, so the hold ended by itself.
    pub gave_way: bool,
}

/// Packets of one container that wait. Ends when dropped; better call [`Self::deliver`] or
/// [`Self::discard`], which return when nothing is left.
pub struct PacketHold {
    shared: Arc<Shared>,
    host: Rt,
    tasks: Tasks,
    reader: thread::JoinHandle<()>,
    // Closing it ends the reader.
    stop: UnixStream,
}

/// Ended when dropped.
#[derive(Default)]
struct Tasks(Vec<JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for t in &self.0 {
            t.abort();
        }
    }
}

/// The name of a hold's device: `th` and the 11 digits of the port.
fn device_of(port: &Port) -> String {
    port.name.replacen("ts", "th", 1)
}

impl PacketHold {
    /// Makes all that a hold needs, so that [`Self::catch`] is one message to the kernel. Nothing
    /// changes for any packet yet. Takes some milliseconds for each link.
    ///
    /// # Errors
    /// When a network is missing or its bridge runs the spanning tree protocol, when the container
    /// claims a MAC address of this host, when there is a hold already, or no TAP device can be had.
    pub async fn prepare(
        container: &ContainerName,
        capture: &NetCapture,
        networks: &Networks,
        limits: HoldLimits,
    ) -> Result<Self, NetworkError> {
        let mut host = Rt::host()?;
        let own: Vec<Mac> = link::links(&mut host).await?.iter().filter_map(|l| l.mac).collect();
        let mut lines = Vec::new();
        for l in capture.ports().filter(|l| l.up) {
            let (Some(mac), Some(network)) = (l.mac, &l.network) else { continue };
            if own.contains(&mac) || !mac.is_station() {
                let why = format!("{mac} of {} is an address of this host", l.name);
                return Err(WireError::invalid("mac address", why).into());
            }
            let bridge = networks.bridge_link(&mut host, network).await?;
            if bridge.stp {
                return Err(NetworkError::SlowBridge { bridge: bridge.name });
            }
            let port = Port::of(container, &l.name);
            let name = device_of(&port);
            let tap = Tap::make(&name, mac).attempt("make TAP device", &name)?;
            let outer = link::outer_mac(mac, link::Outer::Hold);
            let alias = format!("tranship-hold:{container}:{}", l.name);
            let index = switch::attach(&mut host, &name, outer, &bridge, alias).await?;
            let addresses = l.addrs.iter().map(|a| a.ip).collect();
            lines.push(Line { tap, index, mac, addresses, port });
        }
        let state = State {
            queue: Queue::new(limits),
            phase: Phase::Ready,
            caught_at: Instant::now(),
            delivered: 0,
            longest: Duration::ZERO,
            buffer: vec![0; tap::LONGEST],
        };
        let shared = Arc::new(Shared { lines, state: Mutex::new(state), heard: Notify::new() });
        let (stop, stopped) = UnixStream::pair().attempt("make", "a socket pair")?;
        let read = Arc::clone(&shared);
        let reader = thread::Builder::new()
            .name("packet-hold".into())
            .spawn(move || read.read_until(stopped))
            .attempt("start", "the reader of held packets")?;
        Ok(Self { shared, host, tasks: Tasks::default(), reader, stop })
    }

    /// From now on what reaches this host's bridges for the container waits.
    ///
    /// # Errors
    /// When a bridge cannot be told; what was told is undone with this hold.
    pub async fn catch(&mut self) -> Result<(), NetworkError> {
        {
            let mut state = self.shared.lock();
            state.phase = Phase::Catching;
            state.caught_at = Instant::now();
        }
        self.lead_all(|l| Ok(l.index), Lead::Fixed).await?;
        let shared = Arc::clone(&self.shared);
        self.tasks.0.push(tokio::spawn(give_way_when_heard(shared)));
        Ok(())
    }

    /// Tells the segment to send here what is for the container: once before this returns, and
    /// eight times within a second in the background.
    ///
    /// # Errors
    /// When the first call could not be sent.
    pub fn attract(&mut self) -> Result<(), NetworkError> {
        self.shared.call()?;
        let shared = Arc::clone(&self.shared);
        self.tasks.0.push(tokio::spawn(async move {
            for pause in CALLS {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                if shared.lock().phase != Phase::Catching {
                    return;
                }
                if let Err(e) = shared.call() {
                    tracing::debug!(%e, "call for packets not repeated");
                    return;
                }
            }
        }));
        Ok(())
    }

    /// [`Self::prepare`], [`Self::catch`] and [`Self::attract`]: for a destination that is told
    /// when the source has been fenced.
    ///
    /// # Errors
    /// As theirs; nothing is left then.
    pub async fn start(
        container: &ContainerName,
        capture: &NetCapture,
        networks: &Networks,
        limits: HoldLimits,
    ) -> Result<Self, NetworkError> {
        let mut hold = Self::prepare(container, capture, networks, limits).await?;
        let started = match hold.catch().await {
            Ok(()) => hold.attract(),
            e => e,
        };
        match started {
            Ok(()) => Ok(hold),
            Err(e) => {
                hold.discard().await;
                Err(e)
            }
        }
    }

    /// What was held and dropped up to now.
    pub fn stats(&self) -> HoldStats {
        let state = self.shared.lock();
        HoldStats {
            held: state.queue.held,
            dropped: state.queue.dropped,
            delivered: state.delivered,
            longest: state.longest,
            gave_way: state.phase == Phase::GaveWay,
        }
    }

    /// Sends what waits to the container, in order, and lets the bridges do it from then on. Call it
    /// when the gate is open; the first packet goes out at once. Returns some 10 to 50 ms after the
    /// last one, when nothing is left of the hold: there is no need to wait for that.
    ///
    /// When cancelled, packets that still wait are lost.
    ///
    /// # Errors
    /// When a port is missing or shut: what waits is lost, and nothing is left of the hold.
    pub async fn deliver(mut self) -> Result<HoldStats, NetworkError> {
        let done = self.pass_on().await;
        {
            let mut state = self.shared.lock();
            state.queue.dropped += state.queue.len() as u64;
        }
        let stats = self.stats();
        self.finish().await;
        done.map(|()| stats)
    }

    async fn pass_on(&mut self) -> Result<(), NetworkError> {
        {
            let mut state = self.shared.lock();
            if state.phase != Phase::Catching {
                return Ok(());
            }
            state.phase = Phase::Delivering;
        }
        let sockets = Arc::new(self.shared.lines.iter().map(socket_to).collect::<Result<Vec<_>, _>>()?);
        self.send_all(&sockets).await?;
        if let Err(e) = self.lead_all(|l| index_of(&l.port.name), Lead::Learnt).await {
            // The entry goes with the device; until then nothing is lost.
            tracing::warn!(%e, "the bridge has to find the container by itself");
        }
        self.send_all(&sockets).await?;
        tokio::time::sleep(LINGER).await;
        self.send_all(&sockets).await
    }

    async fn send_all(&self, sockets: &Arc<Vec<RawSocket>>) -> Result<(), NetworkError> {
        let (shared, sockets) = (Arc::clone(&self.shared), Arc::clone(sockets));
        let sent = tokio::task::spawn_blocking(move || shared.send_all(&sockets)).await;
        sent.map_err(io::Error::other).attempt("deliver", "held packets")?
    }

    async fn lead_all(
        &mut self,
        to: impl Fn(&Line) -> Result<u32, NetworkError>,
        lead: Lead,
    ) -> Result<(), NetworkError> {
        let mut pending = Vec::new();
        for l in &self.shared.lines {
            let what = format!("{} to {}", l.mac, l.port.name);
            let told = switch::lead(&mut self.host, l.mac, to(l)?, lead).attempt("lead", &what)?;
            pending.push(async move { told.await.attempt("lead", what) });
        }
        join_all(pending).await.into_iter().collect()
    }

    /// For the source, when the destination has begun to attract packets: hands what waits here to `pass_on`,
    /// oldest first, to be adopted there. Packets that come later find their way by themselves.
    ///
    /// They are handed on before the devices are closed, for which the kernel takes some 20 ms, and much
    /// longer when it is busy: at the destination they are of use only until the container runs.
    ///
    /// Frames of large receive offload are dropped and counted, and so is what a message has no room for:
    /// their sender repeats them as soon as it is told of those that follow.
    ///
    /// # Errors
    /// When a device cannot be read; what came before is handed on, and nothing is left of the hold.
    pub async fn collect(mut self, pass_on: impl FnOnce(Vec<HeldPacket>)) -> Result<HoldStats, NetworkError> {
        let (mut packets, mut room) = (Vec::new(), MAX_PACKET_BYTES);
        for l in &self.shared.lines {
            if let Err(e) = switch::forget(&mut self.host, l.mac, l.index).await {
                tracing::debug!(%e, "the bridge has forgotten already");
            }
        }
        tokio::time::sleep(LINGER).await;
        let drained = {
            let mut state = self.shared.lock();
            let drained = self.shared.drain(&mut state).attempt("read", "held packets");
            state.phase = Phase::Delivering;
            while let Some(held) = state.queue.pop(Instant::now()) {
                match frame::finished(&held.packet) {
                    Ok(frame) if frame.len() <= room && packets.len() < MAX_PACKETS => {
                        room -= frame.len();
                        let link = self.shared.lines[held.line].port.link.clone();
                        state.delivered += 1;
                        packets.push(HeldPacket { link, frame });
                    }
                    Ok(_) | Err(frame::Unfinished) => state.queue.dropped += 1,
                }
            }
            drained
        };
        let stats = self.stats();
        pass_on(packets);
        self.finish().await;
        drained.map(|_| stats)
    }

    /// For the destination: takes in what waited at the source, before all that waits here.
    /// Packets are a peer's: they go to the container or nowhere, and within the bounds.
    /// Returns how many were refused because they are none for the container.
    pub fn adopt(&mut self, packets: Vec<HeldPacket>) -> usize {
        let mut refused = 0;
        let mut earlier = Vec::new();
        for HeldPacket { link, frame } in packets {
            let line = self.shared.lines.iter().position(|l| l.port.link == link);
            let packet: Box<[u8]> = [0; tap::VNET_HEADER].into_iter().chain(frame).collect();
            let fits = |l: &Line| {
                packet.len() <= tap::LONGEST
                    && matches!(frame::kind(&packet, l.mac, &l.addresses), Kind::Own | Kind::Question)
            };
            match line {
                Some(n) if fits(&self.shared.lines[n]) => earlier.push((n, packet)),
                _ => refused += 1,
            }
        }
        let mut state = self.shared.lock();
        if state.phase == Phase::Catching {
            state.queue.put_before(earlier, Instant::now());
        }
        refused
    }

    /// For a roll-back: throws away what waits. Nothing is left when it returns.
    pub async fn discard(self) {
        self.finish().await;
    }

    async fn finish(self) {
        let Self { shared, host: _, mut tasks, reader, stop } = self;
        for t in std::mem::take(&mut tasks.0) {
            t.abort();
            // Aborted or not, it is over.
            let _ = t.await;
        }
        drop(stop);
        let ended = tokio::task::spawn_blocking(move || {
            let ended = reader.join();
            // Closing a TAP device waits for the kernel.
            drop(shared);
            ended
        });
        if !matches!(ended.await, Ok(Ok(()))) {
            tracing::error!("the reader of held packets died");
        }
    }
}
