//! What waits: frames in the order of their arrival, within bounds.
//!
//! When it is full the newest is dropped: what a stream sent first lets its receiver go on at once
//! and shows the sender what is missing, while a tail without its head helps nobody. Old frames go
//! because an answer to a question long given up is worse than none.

use super::HoldLimits;
use super::tap::VNET_HEADER;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tranship_proto::network::Mac;

use super::super::packet::{ETH_P_ARP, ETH_P_IPV6, ETH_P_RARP};

/// One frame with its `virtio_net_hdr`.
pub(super) struct Held {
    /// Which of the container's links it is for.
    pub(super) line: usize,
    pub(super) packet: Box<[u8]>,
    at: Instant,
}

impl Held {
    /// Memory it takes.
    fn cost(&self) -> usize {
        self.packet.len() + size_of::<Self>()
    }
}

#[derive(Default)]
pub(super) struct Queue {
    frames: VecDeque<Held>,
    bytes: usize,
    limits: HoldLimits,
    /// Frames that were taken in.
    pub(super) held: u64,
    /// Frames that were refused, or thrown away for their age.
    pub(super) dropped: u64,
}

impl Queue {
    pub(super) fn new(limits: HoldLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Takes a frame in, or counts it as dropped. Says which.
    pub(super) fn push(&mut self, line: usize, packet: &[u8], now: Instant) -> bool {
        while self.frames.front().is_some_and(|f| now.duration_since(f.at) > self.limits.age) {
            self.pop_front();
            self.dropped += 1;
        }
        let cost = packet.len() + size_of::<Held>();
        if self.frames.len() >= self.limits.packets || self.bytes + cost > self.limits.bytes {
            self.dropped += 1;
            return false;
        }
        self.held += 1;
        self.bytes += cost;
        self.frames.push_back(Held { line, packet: packet.into(), at: now });
        true
    }

    fn pop_front(&mut self) -> Option<Held> {
        let f = self.frames.pop_front()?;
        self.bytes -= f.cost();
        Some(f)
    }

    /// The oldest frame that is not too old.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Held> {
        loop {
            let f = self.pop_front()?;
            if now.duration_since(f.at) <= self.limits.age {
                return Some(f);
            }
            self.dropped += 1;
        }
    }

    /// Throws everything away, uncounted.
    pub(super) fn clear(&mut self) {
        self.frames = VecDeque::new();
        self.bytes = 0;
    }

    /// How long the oldest has waited.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.frames.front().map_or(Duration::ZERO, |f| now.duration_since(f.at))
    }

    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// What a frame is to a container's link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// To its MAC address.
    Own,
    /// A question to all for one of its addresses.
    Question,
    /// Sent by someone with its MAC address.
    Claim,
    /// Nothing to it.
    Other,
}

/// `packet` has a `virtio_net_hdr` in front. Reverse ARP from the link's address is not a claim:
/// it is our own, reflected.
pub(super) fn kind(packet: &[u8], mac: Mac, addresses: &[IpAddr]) -> Kind {
    let Some(frame) = packet.get(VNET_HEADER..).filter(|f| f.len() >= 14) else { return Kind::Other };
    let protocol = u16::from_be_bytes([frame[12], frame[13]]);
    if frame[6..12] == mac.0 {
        return if protocol == ETH_P_RARP { Kind::Other } else { Kind::Claim };
    }
    if frame[..6] == mac.0 {
        return Kind::Own;
    }
    let asks = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => protocol == ETH_P_ARP && frame.get(38..42) == Some(&v4.octets()),
        IpAddr::V6(v6) => protocol == ETH_P_IPV6 && frame.get(62..78) == Some(&v6.octets()),
    };
    if addresses.iter().any(asks) { Kind::Question } else { Kind::Other }
}

#[cfg(test)]
mod tests {
    use super::super::super::packet::{arp_announcement, arp_probe, neighbour_solicitation};
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 5]);
    const LIMITS: HoldLimits = HoldLimits { bytes: 4000, packets: 3, age: Duration::from_secs(60) };

    fn cost(n: usize) -> usize {
        n + size_of::<Held>()
    }

    #[test]
    fn both_sides_of_each_limit() {
        let now = Instant::now();
        let mut q = Queue::new(LIMITS);
        assert!((0..3).all(|n| q.push(0, &[n; 10], now)));
        assert!(!q.push(0, &[3; 10], now), "one packet too many");
        assert_eq!((q.held, q.dropped, q.len()), (3, 1, 3));
        assert_eq!(q.pop(now).unwrap().packet[0], 0, "the oldest first");
        assert!(q.push(0, &[4; 10], now));
        let left: Vec<u8> = std::iter::from_fn(|| q.pop(now)).map(|f| f.packet[0]).collect();
        assert_eq!(left, [1, 2, 4]);

        let mut q = Queue::new(HoldLimits { bytes: 2 * cost(100), ..LIMITS });
        assert!(q.push(0, &[0; 100], now) && !q.push(0, &[0; 101], now) && q.push(0, &[0; 100], now));
        assert!(!q.push(0, &[], now));
        q.clear();
        assert!(q.push(0, &[0; 100], now) && q.bytes == cost(100));

        let mut q = Queue::new(LIMITS);
        let (edge, late) = (now + LIMITS.age, now + LIMITS.age + Duration::from_nanos(1));
        q.push(0, &[1], now);
        q.push(0, &[2], edge);
        assert_eq!(q.wait(edge), LIMITS.age);
        assert!(q.push(0, &[3], edge), "as old as may be");
        assert!(q.push(0, &[4], late), "too old makes room");
        assert_eq!(q.dropped, 1);
        assert_eq!(q.pop(late).unwrap().packet[0], 2);
        assert!(q.pop(late + 2 * LIMITS.age).is_none());
        assert_eq!((q.dropped, q.bytes), (3, 0));
    }

    #[test]
    fn kinds() {
        let (v4, v6) = ("10.77.1.5".parse().unwrap(), "fd77::1:5".parse().unwrap());
        let addresses = [IpAddr::V4(v4), IpAddr::V6(v6)];
        let other = Mac([2, 0, 0, 0, 0, 9]);
        let of = |frame: &[u8]| {
            let packet: Vec<u8> = [0; VNET_HEADER].iter().chain(frame).copied().collect();
            for n in 0..packet.len() {
                kind(&packet[..n], MAC, &addresses);
            }
            kind(&packet, MAC, &addresses)
        };
        assert_eq!(of(&arp_probe(other, v4)), Kind::Question);
        assert_eq!(of(&neighbour_solicitation(other, v6)), Kind::Question);
        assert_eq!(of(&arp_probe(other, "10.77.1.6".parse().unwrap())), Kind::Other);
        assert_eq!(of(&neighbour_solicitation(other, "fd77::1:6".parse().unwrap())), Kind::Other);
        assert_eq!(of(&arp_announcement(MAC, v4, false)), Kind::Claim);
        let mut unicast = arp_probe(other, v4);
        unicast[..6].copy_from_slice(&MAC.0);
        assert_eq!(of(&unicast), Kind::Own);
        let mut mine = arp_announcement(MAC, v4, false);
        mine[12..14].copy_from_slice(&ETH_P_RARP.to_be_bytes());
        assert_eq!(of(&mine), Kind::Other);
    }
}
