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

    /// Takes in what arrived elsewhere and earlier, as far as there is room.
    pub(super) fn put_before(&mut self, earlier: impl IntoIterator<Item = (usize, Box<[u8]>)>, now: Instant) {
        let mut tail = std::mem::take(&mut self.frames);
        for (line, packet) in earlier {
            let held = Held { line, packet, at: now };
            if self.frames.len() + tail.len() >= self.limits.packets
                || self.bytes + held.cost() > self.limits.bytes
            {
                self.dropped += 1;
                continue;
            }
            self.held += 1;
            self.bytes += held.cost();
            self.frames.push_back(held);
        }
        self.frames.append(&mut tail);
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

/// Why a frame cannot be handed on as it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfinished;

/// The frame alone, with the checksum that was left to the hardware. Large offloads are refused: to
/// cut them is the kernel's business, and what follows them makes their sender repeat them.
pub(super) fn finished(packet: &[u8]) -> Result<Vec<u8>, Unfinished> {
    const NEEDS_CHECKSUM: u8 = 1;
    let (header, frame) = packet.split_at_checked(VNET_HEADER).ok_or(Unfinished)?;
    let mut frame = frame.to_vec();
    // Any kind of segmentation.
    if header[1] != 0 {
        return Err(Unfinished);
    }
    if header[0] & NEEDS_CHECKSUM != 0 {
        let number = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        let (start, place) = (number(6), number(6) + number(8));
        let mut sum: u64 = 0;
        for pair in frame.get(start..).ok_or(Unfinished)?.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // Zero would mean none in UDP; to TCP both are the same.
        let sum = if sum == 0xffff { 0xffff } else { !(sum as u16) };
        frame.get_mut(place..place + 2).ok_or(Unfinished)?.copy_from_slice(&sum.to_be_bytes());
    }
    Ok(frame)
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
    use super::super::super::packet::{
        ICMPV6, arp_announcement, arp_probe, neighbour_advertisement, neighbour_solicitation,
    };
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
    fn what_came_earlier_goes_before() {
        let now = Instant::now();
        let mut q = Queue::new(LIMITS);
        q.push(0, &[3], now);
        q.put_before([1u8, 2, 9].map(|n| (0, Box::from([n]))), now);
        assert_eq!((q.held, q.dropped, q.bytes), (3, 1, 3 * cost(1)));
        let order: Vec<u8> = std::iter::from_fn(|| q.pop(now)).map(|f| f.packet[0]).collect();
        assert_eq!(order, [1, 2, 3]);
        assert_eq!(q.bytes, 0);
    }

    #[test]
    fn checksums_are_finished() {
        let advertisement = neighbour_advertisement(MAC, "fd77::1:5".parse().unwrap());
        let mut frame = advertisement.clone();
        // As a sender leaves it: the pseudo header's sum, not inverted, in place of the checksum.
        let mut pseudo: u32 = u32::from(ICMPV6) + 32;
        for pair in frame[22..54].chunks(2) {
            pseudo += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
        let pseudo = (pseudo & 0xffff) + (pseudo >> 16);
        frame[56..58].copy_from_slice(&(pseudo as u16).to_be_bytes());
        let with = |flags: u8, gso: u8, start: u16, offset: u16| {
            let mut p = vec![flags, gso, 0, 0, 0, 0];
            p.extend(start.to_ne_bytes());
            p.extend(offset.to_ne_bytes());
            p.extend(&frame);
            p
        };
        assert_eq!(finished(&with(1, 0, 54, 2)).unwrap(), advertisement);
        assert_eq!(finished(&with(0, 0, 54, 2)).unwrap(), frame);
        assert_eq!(finished(&with(1, 1, 54, 2)), Err(Unfinished));
        assert_eq!(finished(&with(1, 0, 54, 31)), Err(Unfinished));
        assert_eq!(finished(&with(1, 0, 87, 0)), Err(Unfinished));
        assert_eq!(finished(&with(1, 0, u16::MAX, u16::MAX)), Err(Unfinished));
        assert_eq!(finished(&[0; 9]), Err(Unfinished));
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
