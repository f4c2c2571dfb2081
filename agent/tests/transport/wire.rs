//! A wire between two endpoints that can be made bad.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// How a wire treats what comes from the near end. The way back is only delayed.
#[derive(Clone, Copy)]
pub struct Wire {
    /// On the way, each way.
    pub delay: Duration,
    /// Longer payloads do not pass.
    pub max_payload: usize,
    /// Bytes that pass before losses begin.
    pub sound: u64,
    /// For how long every second packet is lost then.
    pub bad: Duration,
}

impl Wire {
    /// Starts the wire to `far`; answers the near end's address for it, and counts lost packets.
    pub fn start(self, far: SocketAddr) -> (SocketAddr, Arc<AtomicU64>) {
        let near_side = socket();
        let far_side = socket();
        far_side.connect(far).unwrap();
        let address = near_side.local_addr().unwrap();
        let lost = Arc::new(AtomicU64::new(0));
        let client = Arc::new(Mutex::new(None));
        let (there, back) = (Line::default(), Line::default());
        let (line, sink) = (there.clone(), far_side.try_clone().unwrap());
        std::thread::spawn(move || line.deliver(self.delay, |p| drop(sink.send(p))));
        let (line, sink, to) = (back.clone(), near_side.try_clone().unwrap(), client.clone());
        std::thread::spawn(move || {
            line.deliver(self.delay, |p| {
                let to: Option<SocketAddr> = *to.lock().unwrap();
                to.map(|to| sink.send_to(p, to));
            });
        });
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok(n) = far_side.recv(&mut buffer) {
                back.put(&buffer[..n]);
            }
        });
        let losses = lost.clone();
        std::thread::spawn(move || {
            let (mut buffer, mut seen, mut count, mut bad_until) = (vec![0; 65536], 0u64, 0u64, None);
            while let Ok((n, from)) = near_side.recv_from(&mut buffer) {
                *client.lock().unwrap() = Some(from);
                if n > self.max_payload {
                    continue;
                }
                seen += n as u64;
                count += 1;
                if seen > self.sound && bad_until.is_none() {
                    bad_until = Some(Instant::now() + self.bad);
                }
                let bad = bad_until.is_some_and(|until| Instant::now() < until);
                // In pairs, since packets of two streams take turns.
                if bad && count % 4 < 2 {
                    losses.fetch_add(1, Ordering::Relaxed);
                } else {
                    there.put(&buffer[..n]);
                }
            }
        });
        (address, lost)
    }
}

fn socket() -> UdpSocket {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_recv_buffer_size(4 << 20).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.into()
}

/// Packets on their way, and when each set out.
#[derive(Clone, Default)]
struct Line(Arc<(Mutex<VecDeque<Packet>>, Condvar)>);

type Packet = (Instant, Vec<u8>);

impl Line {
    fn put(&self, packet: &[u8]) {
        self.0.0.lock().unwrap().push_back((Instant::now(), packet.to_vec()));
        self.0.1.notify_one();
    }

    fn deliver(&self, delay: Duration, mut to: impl FnMut(&[u8])) {
        loop {
            let mut queue = self.0.0.lock().unwrap();
            while queue.is_empty() {
                queue = self.0.1.wait(queue).unwrap();
            }
            let (at, packet) = queue.pop_front().unwrap();
            drop(queue);
            std::thread::sleep((at + delay).saturating_duration_since(Instant::now()));
            to(&packet);
        }
    }
}
