//! Packets wait at the destination: none lost, none twice, in order, within bounds, and nothing
//! left.

#![allow(clippy::unwrap_used)]

mod hold_lab;
mod network_lab;

use hold_lab::*;
use network_lab::{inside, on_host};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tranship_agent::network::*;

const MS: Duration = Duration::from_millis(1);

/// How many arrived after one with a higher number.
fn late(numbers: &[u32]) -> usize {
    let mut highest = 0;
    let late = |n: &&u32| {
        highest = highest.max(**n);
        highest > **n
    };
    numbers.iter().filter(late).count()
}

/// What came of numbered packets.
struct Outcome {
    sent: Vec<Instant>,
    got: Arrivals,
    numbers: Vec<u32>,
    lost: Vec<usize>,
}

impl Outcome {
    fn of(sent: Vec<Instant>, got: Arrivals) -> Self {
        let numbers: Vec<u32> = got.iter().map(|(n, _)| *n).collect();
        let all: BTreeSet<u32> = numbers.iter().copied().collect();
        assert_eq!(all.len(), numbers.len(), "none twice");
        let lost = (0..sent.len()).filter(|n| !all.contains(&(*n as u32))).collect();
        Self { sent, got, numbers, lost }
    }

    fn first_after(&self, moment: Instant) -> Duration {
        self.got.iter().find(|(_, at)| *at > moment).unwrap().1 - moment
    }
}

fn no_udp_errors(s: &Segment) {
    for (file, fields) in [("snmp", "Udp: "), ("snmp6", "Udp6In")] {
        let text = inside(&s.netns, &format!("grep '^{fields}' /proc/net/{file}"));
        let mut rows = text.lines();
        if file == "snmp" {
            let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
            for (name, value) in names.split(' ').zip(values.split(' ')) {
                assert!(
                    !["InErrors", "InCsumErrors", "RcvbufErrors"].contains(&name) || value == "0",
                    "{text}"
                );
            }
        } else {
            let bad = |r: &&str| r.contains("Errors") && !r.trim_end().ends_with('0');
            assert_eq!(rows.find(bad), None);
        }
    }
}

#[test]
fn numbered_packets_across_a_freeze() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        for (to, rate, at_source) in [(V4, 1, false), (V6, 1, true), (V6, 10, false), (V4, 10, true)] {
            let mut hold = s.prepare(HoldLimits::default()).await;
            let got = receiver(&s.netns, to, 8 << 20);
            let sent = sender(&s.client, to, 900 * rate, MS / rate, 100);
            rest(200).await;
            let at_source = at_source.then(|| AtSource::catch(&s));
            let t = Instant::now();
            s.fence_source();
            let fenced = Instant::now();
            hold.catch().await.unwrap();
            hold.attract().unwrap();
            let caught = Instant::now();
            let mut earlier = 0;
            if let Some(source) = at_source {
                let (packets, stats) = source.collect();
                earlier = packets.len();
                assert_eq!((stats.held, stats.delivered, stats.dropped), (earlier as u64, earlier as u64, 0));
                assert_eq!(hold.adopt(packets), 0);
                assert!(earlier > 0);
            }
            rest(300).await;
            s.carry();
            let opened = Instant::now();
            let stats = s.resume(Some(hold)).await;
            let delivered = opened.elapsed();
            let o = Outcome::of(sent.join().unwrap(), got.join().unwrap());
            let first = o.first_after(opened);
            eprintln!(
                "{to} at {rate} kHz: fence took {:?}, to catch {:?}; {earlier} from the source; {stats:?}; \
                 lost {} (up to {:?} after the fence); {} late; first {first:?}, all {delivered:?} after opening",
                fenced - t,
                caught - fenced,
                o.lost.len(),
                o.lost.last().map(|n| o.sent[*n].saturating_duration_since(fenced)),
                late(&o.numbers),
            );
            assert!(o.lost.iter().all(|n| o.sent[*n] < caught + 2 * MS), "only on the way to the source");
            assert!(earlier == 0 || o.lost.is_empty(), "{:?}", o.lost);
            assert!(stats.held == stats.delivered && stats.dropped == 0 && !stats.gave_way, "{stats:?}");
            assert!(stats.held >= u64::from(250 * rate), "{stats:?}");
            assert!(late(&o.numbers) <= o.numbers.len() / 200, "{} late", late(&o.numbers));
            assert!(first < 100 * MS, "{first:?}");
            no_udp_errors(&s);
            s.carry_back().await;
        }
        s.end().await;
    });
}

/// A server that answers as long as it is not frozen, and a client that asks again a millisecond
/// after each answer and says how long it waited for the slowest one.
fn ping_pong(s: &Segment, frozen: &Arc<AtomicBool>) -> std::thread::JoinHandle<Duration> {
    let listener = in_ns(&s.netns, || TcpListener::bind((V4, 7001)).unwrap()).join().unwrap();
    let frozen = Arc::clone(frozen);
    std::thread::spawn(move || {
        let (mut c, _) = listener.accept().unwrap();
        c.set_nodelay(true).unwrap();
        let mut b = [0; 4];
        while c.read_exact(&mut b).is_ok() {
            while frozen.load(Ordering::SeqCst) {
                std::thread::sleep(MS / 10);
            }
            c.write_all(&b).unwrap();
        }
    });
    in_ns(&s.client, || {
        let mut c = TcpStream::connect((V4, 7001)).unwrap();
        c.set_nodelay(true).unwrap();
        let (mut slowest, mut b) = (Duration::ZERO, [0; 4]);
        let start = Instant::now();
        let mut n = 0u32;
        while start.elapsed() < Duration::from_millis(1500) {
            let t = Instant::now();
            c.write_all(&n.to_be_bytes()).unwrap();
            c.read_exact(&mut b).unwrap();
            assert_eq!(u32::from_be_bytes(b), n);
            slowest = slowest.max(t.elapsed());
            n += 1;
            std::thread::sleep(MS);
        }
        slowest
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Dropped,
    Held,
    HeldAtBoth,
}

#[test]
fn a_client_sees_the_outage_itself() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        let mut added = Vec::new();
        let kinds = [How::Dropped, How::Held, How::HeldAtBoth];
        for (how, pause) in [(350, 2), (80, 2)]
            .into_iter()
            .flat_map(|(ms, n)| kinds.repeat(n).into_iter().map(move |k| (k, ms)))
        {
            let mut hold = match how {
                How::Dropped => None,
                _ => Some(s.prepare(HoldLimits::default()).await),
            };
            let frozen = Arc::new(AtomicBool::new(false));
            let client = ping_pong(&s, &frozen);
            rest(300).await;
            let t = Instant::now();
            let at_source = (how == How::HeldAtBoth).then(|| AtSource::catch(&s));
            s.fence_source();
            frozen.store(true, Ordering::SeqCst);
            if let Some(hold) = &mut hold {
                hold.catch().await.unwrap();
                hold.attract().unwrap();
                if let Some(source) = at_source {
                    assert_eq!(hold.adopt(source.collect().0), 0);
                }
            }
            rest(pause).await;
            s.carry();
            open_gate(std::slice::from_ref(&s.port)).await.unwrap();
            let outage = t.elapsed();
            frozen.store(false, Ordering::SeqCst);
            let stats = s.resume(hold).await;
            let gap = client.join().unwrap();
            eprintln!("{how:?}: outage {outage:?}, the client saw {gap:?}, held {}", stats.held);
            added.push((how, pause, gap.saturating_sub(outage)));
            s.carry_back().await;
        }
        let best = |how, pause| {
            added.iter().filter(|(h, p, _)| (*h, *p) == (how, pause)).map(|(.., d)| *d).min().unwrap()
        };
        assert!(best(How::Held, 350) <= 20 * MS, "{added:?}");
        assert!(best(How::HeldAtBoth, 350) <= 20 * MS, "{added:?}");
        assert!(best(How::HeldAtBoth, 80) <= 20 * MS, "{added:?}");
        s.end().await;
    });
}
