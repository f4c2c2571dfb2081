//! What waits: frames in the order of their arrival, within bounds.
//!
//! When it is full the newest is dropped: what a stream sent first lets its receiver go on at once
//! and shows the sender what is missing, while a tail without its head helps nobody. Old frames go
//! because an answer to a question long given up is worse than none.

use super::HoldLimits;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
