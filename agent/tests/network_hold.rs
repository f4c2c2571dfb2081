//! Packets wait at the destination: none lost, none twice, in order, within bounds, and nothing
//! left.

#![allow(clippy::unwrap_used)]

mod hold_lab;
mod network_lab;

use hold_lab::*;
use network_lab::{inside, on_host, sh};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
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

#[test]
fn numbered_packets_across_a_freeze() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        for (to, rate) in [(V4, 1), (V6, 1), (V4, 10)] {
            let mut hold = s.prepare(HoldLimits::default()).await;
            let got = receiver(&s.netns, to, 8 << 20);
            let sent = sender(&s.client, to, 900 * rate, MS / rate, 100);
            rest(200).await;
            let t = Instant::now();
            s.fence_source();
            let fenced = Instant::now();
            hold.catch().await.unwrap();
            hold.attract().unwrap();
            let caught = Instant::now();
            rest(300).await;
            s.carry();
            let opened = Instant::now();
            let stats = s.resume(Some(hold)).await;
            let delivered = opened.elapsed();
            let (sent, got) = (sent.join().unwrap(), got.join().unwrap());
            let numbers: Vec<u32> = got.iter().map(|(n, _)| *n).collect();
            let all: BTreeSet<u32> = numbers.iter().copied().collect();
            assert_eq!(all.len(), numbers.len(), "none twice");
            let lost: Vec<usize> = (0..sent.len()).filter(|n| !all.contains(&(*n as u32))).collect();
            let first = got.iter().find(|(_, at)| *at > opened).unwrap();
            eprintln!(
                "{to} at {rate} kHz: {stats:?}; fence took {:?}, to catch {:?}; lost {} ({:?} to {:?} after the fence); \
                 {} late; first delivered {:?} after opening, deliver() {delivered:?}",
                fenced - t,
                caught - fenced,
                lost.len(),
                lost.first().map(|n| sent[*n].saturating_duration_since(t)),
                lost.last().map(|n| sent[*n].saturating_duration_since(fenced)),
                late(&numbers),
                first.1 - opened,
            );
            assert!(lost.iter().all(|n| sent[*n] < caught + 2 * MS), "only on the way to the source");
            assert!(stats.held == stats.delivered && stats.dropped == 0 && !stats.gave_way, "{stats:?}");
            assert!(stats.held >= u64::from(250 * rate), "{stats:?}");
            assert!(late(&numbers) <= numbers.len() / 500, "{} late", late(&numbers));
            assert!(first.1 - opened < 100 * MS, "{:?}", first.1 - opened);
            let errors =
                inside(&s.netns, "nstat -asz UdpInErrors UdpInCsumErrors Udp6InErrors Udp6InCsumErrors");
            assert!(errors.lines().skip(1).all(|l| l.split_whitespace().nth(1) == Some("0")), "{errors}");
            // Back to the source.
            rest(2200).await;
            fence(std::slice::from_ref(&s.port)).await.unwrap();
            sh(&format!("ip link set {} netns {}", s.port.name, s.source.path().display()));
            inside(&s.source, &format!("ip link set {} master br0 up", s.port.name));
            rest(100).await;
            inside(&s.netns, "ping -c 1 -W 2 10.77.254.1 >/dev/null");
        }
        s.end().await;
    });
}

/// A server that answers each byte, and a client that asks every millisecond and says how long it
/// waited for the slowest answer.
fn ping_pong(s: &Segment) -> std::thread::JoinHandle<Duration> {
    let listener = in_ns(&s.netns, || TcpListener::bind((V4, 7001)).unwrap()).join().unwrap();
    std::thread::spawn(move || {
        let (mut c, _) = listener.accept().unwrap();
        c.set_nodelay(true).unwrap();
        let mut b = [0; 4];
        while c.read_exact(&mut b).is_ok() {
            c.write_all(&b).unwrap();
        }
    });
    in_ns(&s.client, || {
        let mut c = TcpStream::connect((V4, 7001)).unwrap();
        c.set_nodelay(true).unwrap();
        let (mut slowest, mut b) = (Duration::ZERO, [0; 4]);
        let start = Instant::now();
        let mut n = 0u32;
        while start.elapsed() < Duration::from_secs(2) {
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

#[test]
fn a_client_sees_the_outage_itself() {
    on_host(|host| async move {
        let s = Segment::new(host).await;
        let mut adds = Vec::new();
        for round in 0..6 {
            let with = round % 2 == 1;
            let mut hold = match with {
                true => Some(s.prepare(HoldLimits::default()).await),
                false => None,
            };
            let client = ping_pong(&s);
            rest(300).await;
            let t = Instant::now();
            s.fence_source();
            if let Some(hold) = &mut hold {
                hold.catch().await.unwrap();
                hold.attract().unwrap();
            }
            rest(300).await;
            s.carry();
            open_gate(std::slice::from_ref(&s.port)).await.unwrap();
            let outage = t.elapsed();
            let stats = s.resume(hold).await;
            let gap = client.join().unwrap();
            eprintln!("hold {with}: outage {outage:?}, the client saw {gap:?}, {stats:?}");
            adds.push((with, gap.saturating_sub(outage)));
            rest(1500).await;
            fence(std::slice::from_ref(&s.port)).await.unwrap();
            sh(&format!("ip link set {} netns {}", s.port.name, s.source.path().display()));
            inside(&s.source, &format!("ip link set {} master br0 up", s.port.name));
            rest(100).await;
            inside(&s.netns, "ping -c 1 -W 2 10.77.254.1 >/dev/null");
        }
        let best = |with| adds.iter().filter(|(w, _)| *w == with).map(|(_, d)| *d).min().unwrap();
        assert!(best(true) <= 20 * MS, "{adds:?}");
        assert!(best(false) >= 100 * MS, "{adds:?}");
        s.end().await;
    });
}
